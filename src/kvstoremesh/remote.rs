//! One remote cluster that is being mirrored: what its tasks share.

use super::cluster::Cluster;
use super::reflector::SizeLimit;
use super::slots::Limits;
use crate::kvstore::client::Options;
use crate::kvstore::sync_store::SyncStore;
use crate::kvstore::{Backend, Metrics};
use crate::model::cluster::ClusterName;
use crate::util::wait::until;
use parking_lot::Mutex;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Notify;

/// The state of one remote cluster. Clones share it.
#[derive(Clone)]
pub(super) struct SharedCluster(Arc<Shared>);

struct Shared {
    cluster: Mutex<Cluster>,
    /// Told of every transition.
    changed: Notify,
}

/// One connection after another to one remote cluster, with the client file as it is now.
pub(super) struct Remote {
    pub(super) name: ClusterName,
    pub(super) client_file: PathBuf,
    /// Whether legacy services are mirrored.
    pub(super) legacy_services: bool,
    /// The store that holds the mirror.
    pub(super) backend: Arc<dyn Backend>,
    /// Writes the mirror.
    pub(super) sync: Arc<SyncStore>,
    pub(super) state: SharedCluster,
    /// After this long without the remote its services are revoked; zero: never.
    pub(super) cache_ttl: Duration,
    pub(super) size_limit: SizeLimit,
    pub(super) limits: Arc<Limits>,
    pub(super) metrics: Metrics,
    pub(super) options: Options,
    /// Told when a cluster id may be new.
    pub(super) ids_changed: Arc<Notify>,
}

// === impl SharedCluster ===

impl SharedCluster {
    pub(super) fn new(cluster: Cluster) -> Self {
        Self(Arc::new(Shared {
            cluster: Mutex::new(cluster),
            changed: Notify::new(),
        }))
    }

    /// Makes a transition, and wakes those who wait for one.
    pub(super) fn transition<T>(&self, transition: impl FnOnce(&mut Cluster) -> T) -> T {
        let result = transition(&mut self.0.cluster.lock());
        self.0.changed.notify_waiters();
        result
    }

    /// Notes counters and positions, for which nobody waits.
    pub(super) fn note<T>(&self, change: impl FnOnce(&mut Cluster) -> T) -> T {
        change(&mut self.0.cluster.lock())
    }

    pub(super) fn read<T>(&self, look: impl FnOnce(&Cluster) -> T) -> T {
        look(&self.0.cluster.lock())
    }

    /// Waits until the state is as wanted, now or after a transition.
    pub(super) async fn until(&self, wanted: impl Fn(&Cluster) -> bool) {
        until(&self.0.changed, || self.read(&wanted)).await;
    }
}
