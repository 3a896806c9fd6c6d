//! Roles and their permissions.

use super::{AuthStore, Error, Permission, ROOT};

impl AuthStore {
    /// Adds a role without permissions.
    pub fn role_add(&self, name: &str) -> Result<(), Error> {
        if name.is_empty() {
            return Err(Error::RoleEmpty);
        }
        self.revise(|state| match state.roles.contains_key(name) {
            true => Err(Error::RoleAlreadyExist),
            false => {
                state.roles.insert(name.to_owned(), Vec::new());
                Ok(())
            }
        })
    }

    /// Removes a role, and revokes the role from all users.
    pub fn role_delete(&self, name: &str) -> Result<(), Error> {
        self.revise(|state| {
            if state.enabled && name == ROOT {
                return Err(Error::InvalidAuthMgmt);
            }
            state.roles.remove(name).ok_or(Error::RoleNotFound)?;
            for user in state.users.values_mut() {
                user.roles.remove(name);
            }
            Ok(())
        })
    }

    /// Grants a permission, or changes the access of the permission for the same range.
    pub fn role_grant(&self, role: &str, permission: Permission) -> Result<(), Error> {
        let (key, end) = (&permission.key, &permission.range_end);
        if key.is_empty() || (!end.is_empty() && end[..] != [0] && key >= end) {
            return Err(Error::InvalidAuthMgmt);
        }
        self.revise(|state| {
            let list = state.roles.get_mut(role).ok_or(Error::RoleNotFound)?;
            // As in etcd, permissions are ordered by key, then by age, and only the oldest of a key can be changed.
            let first = list.partition_point(|p| p.key < permission.key);
            match list.get_mut(first) {
                Some(p) if (&p.key, &p.range_end) == (&permission.key, &permission.range_end) => {
                    p.access = permission.access;
                }
                _ => {
                    let after = list.partition_point(|p| p.key <= permission.key);
                    list.insert(after, permission);
                }
            }
            Ok(())
        })
    }

    /// Revokes the permission for exactly this range. `range_end` is as it was granted.
    pub fn role_revoke(&self, role: &str, key: &[u8], range_end: &[u8]) -> Result<(), Error> {
        self.revise(|state| {
            let list = state.roles.get_mut(role).ok_or(Error::RoleNotFound)?;
            let before = list.len();
            list.retain(|p| p.key != key || p.range_end != range_end);
            (list.len() < before).then_some(()).ok_or(Error::PermissionNotGranted)
        })
    }
}
