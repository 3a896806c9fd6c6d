//! The etcd users of a cluster, as `etcdinit` makes them: who they are is the certificate's common name.

use crate::auth::{Access, AuthStore, Error, Permission, ROOT};
use crate::model::cluster::ClusterName;
use crate::model::keys;
use crate::mvcc::prefix_end;

/// Adds users and roles that are not there yet, and turns authentication on.
///
/// | user | role | may read |
/// |---|---|---|
/// | `root`, `admin-<cluster>` | `root` | and write everything |
/// | `local-<cluster>` | `local` | mirrors, configurations, canaries, heartbeat |
/// | `remote` | `remote` | this cluster's own state, configuration, canaries, heartbeat |
pub(super) fn init(auth: &AuthStore, cluster: &ClusterName) -> Result<(), Error> {
    for user in [ROOT.to_owned(), format!("admin-{cluster}")] {
        add(auth.user_add(&user, None))?;
        auth.user_grant_role(&user, ROOT)?;
    }
    let local = [
        keys::HEARTBEAT.to_owned(),
        "cilium/cache/".to_owned(),
        "cilium/cluster-config/".to_owned(),
        "cilium/synced/".to_owned(),
    ];
    role(auth, &format!("local-{cluster}"), "local", &local, &[])?;
    let remote = [
        keys::HEARTBEAT.to_owned(),
        "cilium/state/".to_owned(),
        keys::synced_prefix(cluster),
    ];
    role(auth, "remote", "remote", &remote, &[keys::cluster_config(cluster)])?;
    auth.enable()
}

/// Something that may be there from a former start.
fn add(added: Result<(), Error>) -> Result<(), Error> {
    match added {
        Err(Error::UserAlreadyExist | Error::RoleAlreadyExist) => Ok(()),
        added => added,
    }
}

fn role(auth: &AuthStore, user: &str, role: &str, prefixes: &[String], single: &[String]) -> Result<(), Error> {
    add(auth.user_add(user, None))?;
    add(auth.role_add(role))?;
    auth.user_grant_role(user, role)?;
    let prefixes = prefixes
        .iter()
        .map(|p| (p, prefix_end(p.as_bytes()).unwrap_or_default().to_vec()));
    for (key, range_end) in prefixes.chain(single.iter().map(|k| (k, vec![]))) {
        let permission = Permission {
            access: Access::Read,
            key: key.clone().into_bytes(),
            range_end,
        };
        // A change for nothing would make every token old.
        if !auth.state().roles.get(role).is_some_and(|r| r.contains(&permission)) {
            auth.role_grant(role, permission)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::{Config, Identity};

    #[test]
    fn a_remote_reads_this_clusters_own_keys_and_a_local_agent_the_mirrors() {
        let auth = AuthStore::new(Config::default()).unwrap();
        init(&auth, &ClusterName::new("hk").unwrap()).unwrap();
        let revision = auth.state().revision;
        init(&auth, &ClusterName::new("hk").unwrap()).unwrap();
        assert_eq!(auth.state().revision, revision, "a second time changes nothing");
        let reads = |user: &str, key: &str| {
            let who = Identity {
                user: user.into(),
                revision: auth.state().revision,
            };
            let ranges = auth.ranges(Some(&who)).unwrap();
            let end = [key.as_bytes(), &[0]].concat();
            ranges.is_none_or(|r| r.may_read((key.as_bytes(), Some(&end))))
        };
        assert!(reads("remote", "cilium/state/nodes/v1/hk/n1"));
        assert!(reads("remote", "cilium/cluster-config/hk"));
        assert!(reads("remote", "cilium/.heartbeat"));
        assert!(!reads("remote", "cilium/cluster-config/tokyo"));
        assert!(!reads("remote", "cilium/cache/nodes/v1/tokyo/n1"));
        assert!(reads("local-hk", "cilium/cache/nodes/v1/tokyo/n1"));
        assert!(!reads("local-hk", "cilium/state/nodes/v1/hk/n1"));
        assert!(reads("admin-hk", "anything"));
    }
}
