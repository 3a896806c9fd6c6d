//! Users and roles as etcd's messages, which are also their form in the data directory and in snapshots.

use super::{AuthState, User};
use crate::pb::authpb;
use std::collections::BTreeMap;

impl User {
    pub fn message(&self, name: &str) -> authpb::User {
        let no_password = self.password.is_none();
        authpb::User {
            name: name.to_owned().into(),
            password: self.password.clone().unwrap_or_default().into(),
            roles: self.roles.iter().cloned().collect(),
            options: Some(authpb::UserAddOptions { no_password }),
        }
    }
}

impl AuthState {
    /// Decodes a state.
    pub fn of(enabled: bool, revision: u64, users: Vec<authpb::User>, roles: Vec<authpb::Role>) -> Self {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let user = |user: authpb::User| {
            let no_password = user.options.is_some_and(|o| o.no_password);
            let password = (!no_password).then(|| text(&user.password));
            let roles = user.roles.into_iter().collect();
            (text(&user.name), User { password, roles })
        };
        let role = |role: authpb::Role| {
            let permissions = role.key_permission.into_iter().map(Into::into).collect();
            (text(&role.name), permissions)
        };
        let mut state = Self {
            enabled,
            revision,
            users: users.into_iter().map(user).collect(),
            roles: roles.into_iter().map(role).collect(),
            ranges: Default::default(),
        };
        state.derive();
        state
    }

    pub fn user_messages(&self) -> Vec<authpb::User> {
        self.users.iter().map(|(name, user)| user.message(name)).collect()
    }

    pub fn role_messages(&self) -> Vec<authpb::Role> {
        let role = |(name, permissions): (&String, &Vec<super::Permission>)| authpb::Role {
            name: name.clone().into(),
            key_permission: permissions.iter().map(Into::into).collect(),
        };
        self.roles.iter().map(role).collect()
    }

    /// The changes between `before` and this state.
    pub fn since(&self, before: &Self) -> Difference {
        let users = self
            .users
            .iter()
            .filter(|(name, user)| before.users.get(*name) != Some(user));
        let changed = |name: &String| before.roles.get(name) != self.roles.get(name);
        Difference {
            users: users.map(|(name, user)| user.message(name)).collect(),
            roles: self
                .role_messages()
                .into_iter()
                .filter(|role| changed(&String::from_utf8_lossy(&role.name).into_owned()))
                .collect(),
            users_gone: gone(&before.users, &self.users),
            roles_gone: gone(&before.roles, &self.roles),
        }
    }
}

/// Users and roles that one change added, changed or removed.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Difference {
    /// Users that are new or changed.
    pub users: Vec<authpb::User>,
    /// Roles that are new or changed.
    pub roles: Vec<authpb::Role>,
    pub users_gone: Vec<String>,
    pub roles_gone: Vec<String>,
}

fn gone<T>(before: &BTreeMap<String, T>, after: &BTreeMap<String, T>) -> Vec<String> {
    before
        .keys()
        .filter(|name| !after.contains_key(*name))
        .cloned()
        .collect()
}
