//! Users and their passwords.

use super::{AuthStore, Error, ROOT, User};
use std::collections::BTreeSet;

impl AuthStore {
    /// Adds a user. `password` is in clear text, or `None` for a user who authenticates by certificate only.
    /// Hashing takes tens of milliseconds: call this on a thread that may block.
    pub fn user_add(&self, name: &str, password: Option<&str>) -> Result<(), Error> {
        if name.is_empty() {
            return Err(Error::UserEmpty);
        }
        if self.state.load().users.contains_key(name) {
            return Err(Error::UserAlreadyExist);
        }
        let password = password.map(|p| self.hash(p)).transpose()?;
        self.revise(|state| match state.users.contains_key(name) {
            true => Err(Error::UserAlreadyExist),
            false => {
                state.users.insert(
                    name.to_owned(),
                    User {
                        password,
                        roles: BTreeSet::new(),
                    },
                );
                Ok(())
            }
        })
    }

    /// Removes a user and the user's tokens.
    pub fn user_delete(&self, name: &str) -> Result<(), Error> {
        self.revise(|state| {
            if state.enabled && name == ROOT {
                return Err(Error::InvalidAuthMgmt);
            }
            state.users.remove(name).map(drop).ok_or(Error::UserNotFound)
        })?;
        self.tokens.forget(name);
        Ok(())
    }

    /// Sets a password, in clear text, and forgets the user's tokens. With an empty password, the user cannot
    /// authenticate by password. May block, as [`AuthStore::user_add`].
    ///
    /// As in etcd, a user who was added without a password never gets one.
    pub fn user_change_password(&self, name: &str, password: &str) -> Result<(), Error> {
        let state = self.state.load();
        let has_password = state.users.get(name).ok_or(Error::UserNotFound)?.password.is_some();
        let password = match (has_password, password) {
            (false, _) => None,
            (true, "") => Some(String::new()),
            (true, password) => Some(self.hash(password)?),
        };
        self.revise(|state| {
            state.users.get_mut(name).ok_or(Error::UserNotFound)?.password = password;
            Ok(())
        })?;
        self.tokens.forget(name);
        Ok(())
    }

    /// Grants a role to a user. The role `root` need not exist.
    pub fn user_grant_role(&self, user: &str, role: &str) -> Result<(), Error> {
        let state = self.state.load();
        let has = state.users.get(user).ok_or(Error::UserNotFound)?.roles.contains(role);
        if role != ROOT && !state.roles.contains_key(role) {
            return Err(Error::RoleNotFound);
        }
        if has {
            return Ok(());
        }
        self.revise(|state| {
            state
                .users
                .get_mut(user)
                .ok_or(Error::UserNotFound)?
                .roles
                .insert(role.to_owned());
            Ok(())
        })
    }

    /// Revokes a role from a user.
    pub fn user_revoke_role(&self, user: &str, role: &str) -> Result<(), Error> {
        self.revise(|state| {
            if state.enabled && user == ROOT && role == ROOT {
                return Err(Error::InvalidAuthMgmt);
            }
            let roles = &mut state.users.get_mut(user).ok_or(Error::UserNotFound)?.roles;
            roles.remove(role).then_some(()).ok_or(Error::RoleNotGranted)
        })
    }

    fn hash(&self, password: &str) -> Result<String, Error> {
        bcrypt::non_truncating_hash(password, self.bcrypt_cost).map_err(|e| Error::Internal(e.to_string()))
    }
}
