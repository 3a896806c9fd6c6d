//! The etcd users of a cluster, as `etcdinit` makes them. A client is the user in its certificate's common name.

use crate::auth::{Access, AuthStore, Error, Permission, ROOT};
use crate::durable::Durable;
use crate::kvstore;
use crate::kvstore::users::{EtcdUsers, UserAdmin};
use crate::model::cluster::ClusterName;
use crate::model::keys;
use crate::mvcc::prefix_end;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

/// Longest wait until a change is on the disk.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(10);

/// A user that every cluster has, with its only role.
struct Account {
    user: String,
    role: &'static str,
    reads: Vec<Readable>,
}

/// Keys that a role may read.
struct Readable {
    key: String,
    /// The end of the range; empty for a single key.
    range_end: Vec<u8>,
}

/// The users and roles of `cluster`, in the order in which Cilium makes them.
///
/// | user | role | may read |
/// |---|---|---|
/// | `root`, `admin-<cluster>` | `root` | and write everything |
/// | `local-<cluster>` | `local` | mirrors, configurations, canaries, heartbeat |
/// | `remote` | `remote` | this cluster's own state, configuration, canaries, heartbeat |
///
/// Parity: without a name the users are `admin` and `local`.
fn accounts(cluster: Option<&ClusterName>) -> [Account; 4] {
    let named = |what: &str| cluster.map_or_else(|| what.to_owned(), |c| format!("{what}-{c}"));
    let root = |user: String| Account {
        user,
        role: ROOT,
        reads: vec![],
    };
    let prefix = |prefix: &str| {
        let end = prefix_end(prefix.as_bytes()).unwrap_or_default();
        Readable {
            key: prefix.to_owned(),
            range_end: end.to_vec(),
        }
    };
    let config = cluster.map_or_else(|| "cilium/cluster-config".to_owned(), keys::cluster_config);
    let synced = cluster.map_or_else(|| "cilium/synced/".to_owned(), keys::synced_prefix);
    [
        root(ROOT.to_owned()),
        root(named("admin")),
        Account {
            user: named("local"),
            role: "local",
            reads: keys::LOCAL_READS.map(prefix).into(),
        },
        Account {
            user: "remote".to_owned(),
            role: "remote",
            reads: vec![
                prefix(keys::HEARTBEAT),
                prefix("cilium/state/"),
                Readable {
                    key: config,
                    range_end: vec![],
                },
                prefix(&synced),
            ],
        },
    ]
}

/// The names of the cluster's own users.
pub(super) fn own_names(cluster: &ClusterName) -> BTreeSet<String> {
    accounts(Some(cluster)).into_iter().map(|a| a.user).collect()
}

/// Adds missing users, roles and permissions, and turns authentication on.
pub(super) fn init(auth: &AuthStore, cluster: Option<&ClusterName>) -> Result<(), Error> {
    for Account { user, role, reads } in accounts(cluster) {
        add(auth.user_add(&user, None))?;
        if role != ROOT {
            add(auth.role_add(role))?;
        }
        auth.user_grant_role(&user, role)?;
        for Readable { key, range_end } in reads {
            let permission = Permission {
                access: Access::Read,
                key: key.into_bytes(),
                range_end,
            };
            // A change without effect would still invalidate every token.
            if !auth.state().roles.get(role).is_some_and(|r| r.contains(&permission)) {
                auth.role_grant(role, permission)?;
            }
        }
    }
    auth.enable()
}

/// Adds missing users, roles and permissions of an etcd that runs, and turns authentication on.
pub(super) async fn init_etcd(etcd: &EtcdUsers, cluster: Option<&ClusterName>) -> Result<(), kvstore::Error> {
    for Account { user, role, reads } in accounts(cluster) {
        etcd.add(&user).await?;
        if role != ROOT {
            etcd.add_role(role).await?;
        }
        if !etcd.roles(&user).await?.unwrap_or_default().contains(role) {
            etcd.grant(&user, role).await?;
        }
        for Readable { key, range_end } in reads {
            etcd.allow_reading(role, key.as_bytes(), &range_end).await?;
        }
    }
    etcd.enable().await
}

/// Ignores that a user or role exists already, from an earlier start.
fn add(added: Result<(), Error>) -> Result<(), Error> {
    match added {
        Err(Error::UserAlreadyExist | Error::RoleAlreadyExist) => Ok(()),
        added => added,
    }
}

/// The users of the store in this process.
pub(super) struct StoreUsers {
    pub(super) auth: Arc<AuthStore>,
    pub(super) durable: Option<Arc<Durable>>,
}

impl StoreUsers {
    /// Makes a change, and waits until it survives a crash. Requests see the change before that.
    async fn change(&self, change: impl FnOnce(&AuthStore) -> Result<(), Error>) -> Result<(), kvstore::Error> {
        let unavailable = |e: &dyn std::fmt::Display| kvstore::Error::Unavailable(e.to_string());
        let Some(durable) = &self.durable else {
            return change(&self.auth).map_err(refused);
        };
        durable.admit().map_err(|e| unavailable(&e))?;
        change(&self.auth).map_err(refused)?;
        match tokio::time::timeout(FLUSH_TIMEOUT, durable.flushed()).await {
            Ok(flushed) => flushed.map_err(|e| unavailable(&e)),
            Err(late) => Err(unavailable(&format!(
                "the change did not reach the disk in time: {late}"
            ))),
        }
    }
}

fn refused(error: Error) -> kvstore::Error {
    kvstore::Error::Rejected(error.to_string())
}

#[async_trait::async_trait]
impl UserAdmin for StoreUsers {
    async fn list(&self) -> Result<BTreeSet<String>, kvstore::Error> {
        Ok(self.auth.state().users.keys().cloned().collect())
    }

    async fn roles(&self, user: &str) -> Result<Option<BTreeSet<String>>, kvstore::Error> {
        Ok(self.auth.state().users.get(user).map(|user| user.roles.clone()))
    }

    async fn add(&self, user: &str) -> Result<(), kvstore::Error> {
        self.change(|auth| add(auth.user_add(user, None))).await
    }

    async fn delete(&self, user: &str) -> Result<(), kvstore::Error> {
        let delete = |auth: &AuthStore| match auth.user_delete(user) {
            Err(Error::UserNotFound) => Ok(()),
            deleted => deleted,
        };
        self.change(delete).await
    }

    async fn grant(&self, user: &str, role: &str) -> Result<(), kvstore::Error> {
        self.change(|auth| auth.user_grant_role(user, role)).await
    }

    async fn revoke(&self, user: &str, role: &str) -> Result<(), kvstore::Error> {
        let revoke = |auth: &AuthStore| match auth.user_revoke_role(user, role) {
            Err(Error::RoleNotGranted | Error::UserNotFound) => Ok(()),
            revoked => revoked,
        };
        self.change(revoke).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::{Config, Principal, Span};

    fn hk() -> ClusterName {
        ClusterName::new("hk").unwrap()
    }

    #[test]
    fn a_remote_cluster_reads_this_clusters_keys_and_a_local_agent_the_mirrored_keys() {
        let auth = AuthStore::new(Config::default()).unwrap();
        init(&auth, Some(&hk())).unwrap();
        let revision = auth.state().revision;
        assert_eq!(revision, 19, "one revision for each change, as in etcd");
        init(&auth, Some(&hk())).unwrap();
        assert_eq!(auth.state().revision, revision, "a second time changes nothing");
        let reads = |user: &str, key: &str| {
            let who = Principal {
                user: user.into(),
                revision: auth.state().revision,
            };
            let ranges = auth.ranges(Some(&who)).unwrap();
            let end = [key.as_bytes(), &[0]].concat();
            ranges.is_none_or(|r| r.may_read(Span::new(key.as_bytes(), &end)))
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

    #[test]
    fn a_cluster_without_a_name_has_users_without_one() {
        let auth = AuthStore::new(Config::default()).unwrap();
        init(&auth, None).unwrap();
        let state = auth.state();
        assert!(state.users.keys().eq(["admin", "local", "remote", "root"]));
        let remote: Vec<_> = state.roles["remote"].iter().map(|p| (&*p.key, &*p.range_end)).collect();
        assert!(remote.contains(&(&b"cilium/cluster-config"[..], &b""[..])));
        assert!(remote.contains(&(&b"cilium/synced/"[..], &b"cilium/synced0"[..])));
    }

    #[tokio::test]
    async fn changes_that_are_made_already_are_no_errors() {
        let auth = Arc::new(AuthStore::new(Config::default()).unwrap());
        init(&auth, Some(&hk())).unwrap();
        let users = StoreUsers { auth, durable: None };
        for _ in 0..2 {
            users.add("remote-tokyo").await.unwrap();
            users.grant("remote-tokyo", "remote").await.unwrap();
        }
        let error = users.grant("remote-tokyo", "nothing").await.unwrap_err().to_string();
        assert_eq!(error, "role name not found");
        let roles = users.roles("remote-tokyo").await.unwrap().unwrap();
        assert!(roles.iter().eq(["remote"]));
        for _ in 0..2 {
            users.revoke("remote-tokyo", "remote").await.unwrap();
        }
        assert!(users.roles("remote-tokyo").await.unwrap().unwrap().is_empty());
        for _ in 0..2 {
            users.delete("remote-tokyo").await.unwrap();
        }
        assert_eq!(users.roles("remote-tokyo").await.unwrap(), None);
        assert!(users.list().await.unwrap().iter().eq(&own_names(&hk())));
    }
}
