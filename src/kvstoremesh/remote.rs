//! The state that the tasks of one mirrored remote cluster share.

use super::cluster::Cluster;
use super::import::Import;
use super::observed::Observed;
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
use std::time::{Duration, SystemTime};
use tokio::sync::Notify;

/// The state of one remote cluster. Clones share it.
#[derive(Clone)]
pub(super) struct SharedCluster(Arc<Shared>);

struct Shared {
    cluster: Mutex<Cluster>,
    observed: Mutex<Observed>,
    /// Notified after every transition.
    changed: Notify,
}

/// The inputs of the tasks that connect to one remote cluster. A changed client file makes a new value.
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
    /// What the scope file leaves of the cluster; `None` without a scope file.
    pub(super) import: Option<Arc<Import>>,
    /// Time without a connection after which the services of the remote are revoked; zero never revokes.
    pub(super) cache_ttl: Duration,
    pub(super) size_limit: SizeLimit,
    pub(super) limits: Arc<Limits>,
    pub(super) metrics: Metrics,
    pub(super) options: Options,
    /// Notified when a cluster id may have changed.
    pub(super) ids_changed: Arc<Notify>,
}

// === impl SharedCluster ===

impl SharedCluster {
    pub(super) fn new(cluster: Cluster) -> Self {
        Self(Arc::new(Shared {
            cluster: Mutex::new(cluster),
            observed: Mutex::default(),
            changed: Notify::new(),
        }))
    }

    /// Makes a transition, and wakes the tasks that wait in [`Self::until`].
    pub(super) fn transition<T>(&self, transition: impl FnOnce(&mut Cluster) -> T) -> T {
        let mut cluster = self.0.cluster.lock();
        let before = cluster.phase();
        let result = transition(&mut cluster);
        if cluster.phase() != before {
            self.0.observed.lock().phase_changed(&cluster, SystemTime::now());
        }
        drop(cluster);
        self.0.changed.notify_waiters();
        result
    }

    /// Changes counters or positions, for which no task waits.
    pub(super) fn note<T>(&self, change: impl FnOnce(&mut Cluster) -> T) -> T {
        change(&mut self.0.cluster.lock())
    }

    pub(super) fn read<T>(&self, look: impl FnOnce(&Cluster) -> T) -> T {
        look(&self.0.cluster.lock())
    }

    /// Notes what operators want to know.
    pub(super) fn observe(&self, note: impl FnOnce(&mut Observed)) {
        note(&mut self.0.observed.lock());
    }

    /// What operators want to know.
    pub(super) fn observed(&self) -> Observed {
        self.0.observed.lock().clone()
    }

    /// Looks at what operators want to know.
    pub(super) fn look<T>(&self, look: impl FnOnce(&Observed) -> T) -> T {
        look(&self.0.observed.lock())
    }

    /// Waits until `wanted` holds, now or after a transition.
    pub(super) async fn until(&self, wanted: impl Fn(&Cluster) -> bool) {
        until(&self.0.changed, || self.read(&wanted)).await;
    }
}
