//! The removal of a cluster's mirror: first the cluster configuration, so that no agent begins to read the mirror;
//! after a grace period the canaries and the data.
//!
//! Clusters that left while no mirror ran are found by their keys in the local store. In Cilium, such keys expire with
//! their leases. Here leases are shared and adopted, and the store in this process has no leases.

use crate::kvstore::{Backend, Class, Error, StoredKey, Write};
use crate::model::cluster::{ClusterConfig, ClusterName};
use crate::model::keys::{self, Scope};
use crate::util::backoff::Backoff;
use crate::util::trace::Cause;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Mutex, MutexGuard};
use tokio_util::sync::CancellationToken;

/// Held by the tasks that work on one cluster's mirror: the task that reads the remote and the task that writes the
/// mirror, or else the task that removes the mirror. The lock orders successive tasks, because a delete that is still
/// in flight must not be applied after a successor's write.
#[derive(Default)]
pub(super) struct MirrorLock {
    reader: Mutex<()>,
    writer: Mutex<()>,
}

impl MirrorLock {
    pub(super) async fn read(&self) -> MutexGuard<'_, ()> {
        self.reader.lock().await
    }

    pub(super) async fn write(&self) -> MutexGuard<'_, ()> {
        self.writer.lock().await
    }

    async fn exclusive(&self) -> [MutexGuard<'_, ()>; 2] {
        [self.reader.lock().await, self.writer.lock().await]
    }
}

/// The removal of a cluster that left the mesh.
pub(super) struct Removal {
    /// Cancelled if the cluster returns: the removal stops, unless the removal of data has begun.
    pub(super) stop: CancellationToken,
    pub(super) lock: Arc<MirrorLock>,
}

impl Removal {
    /// Removes the mirror of a cluster: its configuration after `wait`, and the rest `grace` later. Returns whether the
    /// mirror was removed.
    pub(super) async fn run(&self, name: &ClusterName, backend: &dyn Backend, wait: Duration, grace: Duration) -> bool {
        let config = Step::Key(keys::cluster_config(name));
        let announced = async {
            tokio::time::sleep(wait).await;
            config.run(name, backend).await;
            // Agents that still read the mirror have this time to stop.
            tokio::time::sleep(grace).await;
        };
        tokio::select! { () = self.stop.cancelled() => return false, () = announced => {} }
        let _exclusive = tokio::select! {
            biased;
            () = self.stop.cancelled() => return false,
            exclusive = self.lock.exclusive() => exclusive,
        };
        // The canary of the last scope is removed last, because an interrupted removal is found by a canary.
        let canaries = Scope::ALL.split_last().map_or(&[][..], |(_, others)| others);
        for scope in canaries {
            Step::Key(scope.cache_canary(name)).run(name, backend).await;
        }
        for scope in Scope::ALL {
            Step::Prefix(scope.cache_prefix(name)).run(name, backend).await;
        }
        Step::Prefix(keys::synced_prefix(name)).run(name, backend).await;
        // A write of the configuration may have been in flight.
        config.run(name, backend).await;
        tracing::info!(cluster_name = %name, "removed the mirror of the cluster");
        true
    }
}

/// The key or prefix that one step of a removal deletes.
enum Step {
    Key(String),
    Prefix(String),
}

impl Step {
    /// Repeats the step until the store has deleted the keys.
    async fn run(&self, name: &ClusterName, backend: &dyn Backend) {
        let mut backoff = Backoff::write();
        loop {
            let done = match self {
                Self::Key(key) => {
                    let delete = [Write::Delete(key.clone().into())];
                    backend.write(Class::Live, &delete, Cause::Untraced).await.map(drop)
                }
                Self::Prefix(prefix) => backend.delete_prefix(prefix).await,
            };
            let Err(error) = done else { return };
            if backoff.attempts().is_multiple_of(10) {
                tracing::warn!(cluster_name = %name, %error, "cannot remove the mirror of the cluster; trying again");
            }
            backoff.wait().await;
        }
    }
}

/// The clusters that have a mirror in the store: their configuration says that it is mirrored, or the store holds a
/// canary of mirrored data.
pub(super) async fn mirrored_clusters(backend: &dyn Backend) -> Result<BTreeSet<ClusterName>, Error> {
    let mut found = BTreeSet::new();
    let name = |key: &str| ClusterName::new(key.split('/').nth(2)?).ok();
    for StoredKey { key, value } in backend.list(keys::CLUSTER_CONFIGS).await? {
        let cached = serde_json::from_slice::<ClusterConfig>(&value).is_ok_and(|c| c.capabilities.cached);
        found.extend(std::str::from_utf8(&key).ok().filter(|_| cached).and_then(name));
    }
    for StoredKey { key, .. } in backend.list(keys::SYNCED).await? {
        let cached = |key: &&str| {
            key.splitn(4, '/')
                .nth(3)
                .is_some_and(|of| of.starts_with("cilium/cache/"))
        };
        found.extend(std::str::from_utf8(&key).ok().filter(cached).and_then(name));
    }
    Ok(found)
}
