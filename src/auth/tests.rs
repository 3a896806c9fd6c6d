//! Users, roles, permissions and tokens together.

use super::*;

fn enabled() -> AuthStore {
    let auth = AuthStore::new(Config {
        bcrypt_cost: 4,
        ..Config::default()
    })
    .unwrap();
    assert_eq!(auth.enable(), Err(Error::RootUserNotExist));
    auth.user_add("root", None).unwrap();
    assert_eq!(auth.enable(), Err(Error::RootRoleNotExist));
    auth.user_grant_role("root", "root").unwrap();
    auth.user_add("remote", None).unwrap();
    auth.role_add("remote").unwrap();
    auth.user_grant_role("remote", "remote").unwrap();
    let read = |key: &str, end: &str| Permission {
        access: Access::Read,
        key: key.into(),
        range_end: end.into(),
    };
    auth.role_grant("remote", read("cilium/state/", "cilium/state0"))
        .unwrap();
    auth.role_grant("remote", read("cilium/cluster-config/c1", "")).unwrap();
    auth.enable().unwrap();
    auth
}

fn who(auth: &AuthStore, user: &str) -> Option<Principal> {
    Some(Principal {
        user: user.into(),
        revision: auth.state().revision,
    })
}

#[test]
fn a_user_reads_what_the_roles_grant_and_no_more() {
    let auth = enabled();
    let remote = who(&auth, "remote");
    let ranges = auth.ranges(remote.as_ref()).unwrap().unwrap();
    assert!(ranges.may_read(Span::new(b"cilium/state/nodes/", b"cilium/state/nodes0")));
    assert!(!ranges.may_read(Span::new(b"cilium/cluster-config/", b"cilium/cluster-config0")));
    assert!(!ranges.may_write(Span::new(b"cilium/state/x", b"cilium/state/x\0")));
    assert_eq!(auth.check_root(remote.as_ref()), Err(Error::PermissionDenied));
    assert_eq!(auth.check_root(who(&auth, "nobody").as_ref()), Err(Error::UserNotFound));
    assert_eq!(
        auth.ranges(who(&auth, "nobody").as_ref()).err(),
        Some(Error::PermissionDenied)
    );
    assert_eq!(auth.ranges(None).err(), Some(Error::UserEmpty));
    assert!(auth.ranges(who(&auth, "root").as_ref()).unwrap().is_none());
}

#[test]
fn a_change_makes_older_credentials_invalid() {
    let auth = enabled();
    let before = who(&auth, "remote");
    auth.role_delete("remote").unwrap();
    assert_eq!(auth.ranges(before.as_ref()).err(), Some(Error::AuthOldRevision));
    let ranges = auth.ranges(who(&auth, "remote").as_ref()).unwrap().unwrap();
    assert!(!ranges.may_read(Span::new(b"cilium/state/", b"cilium/state/x")));
    assert_eq!(auth.user_delete("root"), Err(Error::InvalidAuthMgmt));
    assert_eq!(auth.user_revoke_role("root", "root"), Err(Error::InvalidAuthMgmt));
}

#[tokio::test(start_paused = true)]
async fn a_token_is_valid_while_it_is_used_and_until_the_password_changes() {
    let auth = enabled();
    auth.user_add("pw", Some("secret")).unwrap();
    assert_eq!(auth.authenticate("pw", "wrong"), Err(Error::AuthFailed));
    assert_eq!(auth.authenticate("remote", ""), Err(Error::NoPasswordUser));
    let token = auth.authenticate("pw", "secret").unwrap();
    for _ in 0..3 {
        tokio::time::advance(Duration::from_secs(200)).await;
        assert_eq!(&*auth.token_principal(&token).unwrap().user, "pw");
    }
    tokio::time::advance(Duration::from_secs(301)).await;
    assert_eq!(auth.token_principal(&token), Err(Error::InvalidAuthToken));
    let token = auth.authenticate("pw", "secret").unwrap();
    auth.user_change_password("pw", "other").unwrap();
    assert_eq!(auth.token_principal(&token), Err(Error::InvalidAuthToken));
}
