//! Whether what was allowed still is: for what goes on long after it was asked for.

use super::{AuthStore, Span};

impl AuthStore {
    /// Another one whenever somebody may be allowed something else than before.
    pub fn version(&self) -> (bool, u64) {
        let state = self.state.load();
        (state.enabled, state.revision)
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
    fn whoever_is_removed_may_read_no_more_and_the_version_says_that_it_may_be_so() {
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
        let reads = |user: &str| auth.may_read(user, (b"a", Some(b"b")));
        assert!(reads("nobody"), "nobody is asked");
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
