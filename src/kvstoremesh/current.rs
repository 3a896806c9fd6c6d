//! The present state of one remote cluster, for operators.

use super::cluster::Cluster;
use super::filter::Report;
use super::import::Import;
use super::observed::Observed;
use super::reflector::Completeness;
use super::remote::SharedCluster;
use super::status::{self, RemoteCluster};
use crate::kvstore::Backend;
use crate::kvstore::dial::Dialer;
use crate::kvstore::sync_store::{ReachedLimit, SyncStore};
use crate::model::keys::Scope;
use crate::util::durations::Quantiles;
use crate::util::expiry::Facts;
use prometheus_client::metrics::histogram::Histogram;
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::time::Instant;

/// The present state of one remote cluster.
pub struct Snapshot {
    pub cluster: Cluster,
    /// Why agents refuse the cluster's id, if they do.
    pub conflict: Option<String>,
    pub(super) sync: Arc<SyncStore>,
    pub(super) state: SharedCluster,
    pub(super) import: Option<Arc<Import>>,
    pub(super) dialer: Dialer,
    pub(super) backend: Arc<dyn Backend>,
}

// === impl Snapshot ===

impl Snapshot {
    /// The flag of the limit that holds the changes of the cluster up.
    pub(super) fn slowed_by(&self) -> Option<&'static str> {
        self.sync.slowed_by().map(|limit| match limit {
            ReachedLimit::Keys => "--clustermesh-max-changes",
            ReachedLimit::Bytes => "--clustermesh-max-change-bytes",
            ReachedLimit::History => "--clustermesh-max-history-bytes",
        })
    }

    /// The number of mirrored keys of a scope.
    pub fn keys(&self, scope: Scope) -> usize {
        let prefix = scope.cache_prefix(self.cluster.name());
        match self.cluster.completeness(scope) {
            // Keys that an earlier process has mirrored.
            Completeness::Disabled => self.sync.stored(&prefix),
            _ => self.sync.desired(&prefix).keys,
        }
    }

    /// What the scope file leaves of the cluster; `None` if every key is mirrored.
    pub fn scope(&self) -> Option<Report> {
        self.import.as_ref()?.report()
    }

    /// What is wrong, one sentence each.
    pub fn troubles(&self) -> Vec<String> {
        let mut troubles = status::troubles(&self.cluster, self.conflict.as_deref(), Instant::now());
        if let Some(flag) = self.slowed_by() {
            troubles.push(format!("its changes are slowed down: more than {flag} allows"));
        }
        troubles
    }

    /// What operators want to know beside the state.
    pub fn observed(&self) -> Observed {
        self.state.observed()
    }

    /// Looks at what operators want to know beside the state.
    pub fn look<T>(&self, look: impl FnOnce(&Observed) -> T) -> T {
        self.state.look(look)
    }

    /// How long commits of mirrored changes took to reach the last watcher of the store here, in the last `minutes`; `None` if
    /// the store is another process.
    pub fn delivery(&self, minutes: u64) -> Option<Quantiles> {
        self.backend
            .deliveries()?
            .figures(self.cluster.name().as_str(), minutes)
    }

    /// The same of all commits so far, in seconds.
    pub(super) fn delivery_histogram(&self) -> Option<Histogram> {
        self.backend.deliveries()?.histogram(self.cluster.name().as_str())
    }

    /// The address of the store that answered last.
    pub fn address(&self) -> Option<SocketAddr> {
        self.dialer.address()
    }

    /// The certificate that the store has shown last.
    pub fn certificate(&self) -> Option<Facts> {
        self.dialer.certificate()
    }

    pub(super) fn status(&self) -> RemoteCluster {
        let now = Instant::now();
        let mut status = RemoteCluster::of(&self.cluster, self.conflict.as_deref(), now, |scope| self.keys(scope));
        status.propagation = self
            .look(|observed| observed.figures(1))
            .map(|figures| (&figures).into());
        status.scope = self.scope().map(Into::into);
        status.delivery = self.delivery(1).map(|figures| (&figures).into());
        if let Some(flag) = self.slowed_by() {
            let _ = write!(status.status, "; its changes are slowed down: more than {flag} allows");
        }
        status
    }
}
