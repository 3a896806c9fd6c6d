//! Checks of what a user may do.

use super::{AuthStore, Error, Principal, ROOT, Ranges, Span};
use std::sync::Arc;

/// Changes whenever the permissions of any user may have changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AuthVersion {
    enabled: bool,
    revision: u64,
}

impl AuthStore {
    pub fn version(&self) -> AuthVersion {
        let state = self.state.load();
        AuthVersion {
            enabled: state.enabled,
            revision: state.revision,
        }
    }

    /// The permissions of a caller; `None` for a caller who may do everything: a user with the role `root`, or
    /// anybody while authentication is disabled.
    pub fn ranges(&self, caller: Option<&Principal>) -> Result<Option<Arc<Ranges>>, Error> {
        let state = self.state.load();
        if !state.enabled {
            return Ok(None);
        }
        let caller = caller.ok_or(Error::UserEmpty)?;
        if caller.revision < state.revision {
            return Err(Error::AuthOldRevision);
        }
        if state.is_root(&caller.user) {
            return Ok(None);
        }
        let ranges = state.ranges.get(&*caller.user).ok_or(Error::PermissionDenied)?;
        Ok(Some(Arc::clone(ranges)))
    }

    /// Fails unless the caller has the role `root`, or authentication is disabled. As in etcd, the caller's auth
    /// revision does not matter.
    pub fn check_root(&self, caller: Option<&Principal>) -> Result<(), Error> {
        let state = self.state.load();
        if !state.enabled {
            return Ok(());
        }
        let caller = caller.ok_or(Error::UserEmpty)?;
        let user = state.users.get(&*caller.user).ok_or(Error::UserNotFound)?;
        user.roles.contains(ROOT).then_some(()).ok_or(Error::PermissionDenied)
    }

    /// Whether `user` may read all of `span` now.
    pub fn may_read(&self, user: &str, span: Span<'_>) -> bool {
        let state = self.state.load();
        !state.enabled || state.is_root(user) || state.ranges.get(user).is_some_and(|r| r.may_read(span))
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Access, Config, Permission, ROOT};
    use super::*;

    #[test]
    fn a_user_who_lost_a_role_reads_no_more_and_the_version_has_changed() {
        let auth = AuthStore::new(Config::default()).unwrap();
        for user in [ROOT, "remote"] {
            auth.user_add(user, None).unwrap();
        }
        auth.user_grant_role(ROOT, ROOT).unwrap();
        auth.role_add("r").unwrap();
        let permission = Permission {
            access: Access::Read,
            key: b"a".to_vec(),
            range_end: b"c".to_vec(),
        };
        auth.role_grant("r", permission).unwrap();
        auth.user_grant_role("remote", "r").unwrap();
        let reads = |user: &str| auth.may_read(user, Span::new(b"a", b"b"));
        assert!(reads("nobody"), "authentication is disabled");
        let mut before = auth.version();
        let mut changed = || std::mem::replace(&mut before, auth.version()) != auth.version();
        auth.enable().unwrap();
        assert!(changed() && reads(ROOT) && reads("remote") && !reads("nobody"));
        auth.user_revoke_role("remote", "r").unwrap();
        assert!(changed() && !reads("remote"));
        auth.user_grant_role("remote", "r").unwrap();
        assert!(changed() && reads("remote"));
        auth.user_delete("remote").unwrap();
        assert!(changed() && !reads("remote") && !changed());
    }
}
