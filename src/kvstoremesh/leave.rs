//! The end of a cluster's mirror: its configuration goes first, so that nobody begins to read it; after a time of
//! grace its canaries and its data.
//!
//! Clusters that left while nobody ran here are found by what the store still holds of them. The original's would
//! go with their leases; here leases are shared and taken over, and a store of our own has none.

use crate::kvstore::{Backend, Class, Error, StoredKey, Write};
use crate::model::cluster::{ClusterConfig, ClusterName};
use crate::model::keys::{self, Scope};
use crate::util::backoff::Backoff;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Mutex, MutexGuard};
use tokio_util::sync::CancellationToken;

/// Who works on a cluster's mirror now: one that reads the remote, one that writes; or else who removes it. A
/// predecessor may have requests on their way, and a delete must not come after a successor's write.
#[derive(Default)]
pub(super) struct Gate {
    reader: Mutex<()>,
    writer: Mutex<()>,
}

impl Gate {
    pub(super) async fn read(&self) -> MutexGuard<'_, ()> {
        self.reader.lock().await
    }

    pub(super) async fn write(&self) -> MutexGuard<'_, ()> {
        self.writer.lock().await
    }

    async fn alone(&self) -> [MutexGuard<'_, ()>; 2] {
        [self.reader.lock().await, self.writer.lock().await]
    }
}

/// A cluster that is leaving.
pub(super) struct Leaving {
    /// It is back: nothing more is removed, unless that has begun.
    pub(super) stop: CancellationToken,
    pub(super) gate: Arc<Gate>,
}

impl Leaving {
    /// Removes all that is mirrored of it, `wait` from now and with `grace`; says whether it came to that.
    pub(super) async fn run(&self, name: &ClusterName, backend: &dyn Backend, wait: Duration, grace: Duration) -> bool {
        let config = Part::Key(keys::cluster_config(name));
        let announced = async {
            tokio::time::sleep(wait).await;
            config.remove(name, backend).await;
            // Agents that still read it get the time to leave.
            tokio::time::sleep(grace).await;
        };
        tokio::select! { () = self.stop.cancelled() => return false, () = announced => {} }
        let _nobody = tokio::select! {
            biased;
            () = self.stop.cancelled() => return false,
            alone = self.gate.alone() => alone,
        };
        // The last canary goes last: by it a removal is found that was interrupted.
        let canaries = Scope::ALL.split_last().map_or(&[][..], |(_, others)| others);
        for scope in canaries {
            Part::Key(scope.cache_canary(name)).remove(name, backend).await;
        }
        for scope in Scope::ALL {
            Part::Prefix(scope.cache_prefix(name)).remove(name, backend).await;
        }
        Part::Prefix(keys::synced_prefix(name)).remove(name, backend).await;
        // A write of it may have been on its way.
        config.remove(name, backend).await;
        tracing::info!(cluster_name = %name, "removed what was mirrored of the cluster");
        true
    }
}

/// What is removed in one step.
enum Part {
    Key(String),
    Prefix(String),
}

impl Part {
    /// Tries until it is done.
    async fn remove(&self, name: &ClusterName, backend: &dyn Backend) {
        let mut backoff = Backoff::write();
        loop {
            let done = match self {
                Self::Key(key) => backend.write(Class::Live, &[Write::Delete(key.clone().into())]).await,
                Self::Prefix(prefix) => backend.delete_prefix(prefix).await,
            };
            let Err(error) = done else { return };
            if backoff.attempts().is_multiple_of(10) {
                tracing::warn!(cluster_name = %name, %error, "cannot remove the cluster's keys, trying again");
            }
            backoff.wait().await;
        }
    }
}

/// The clusters that the store holds a mirror of: those with a configuration that says so, or with a canary of
/// mirrored data.
pub(super) async fn mirrored(backend: &dyn Backend) -> Result<BTreeSet<ClusterName>, Error> {
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
