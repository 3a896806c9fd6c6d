//! Metrics of the mirror under Cilium's names (pkg/clustermesh/common/metrics.go), and ours.

use super::cluster::Cluster;
use super::{Mesh, Snapshot};
use crate::util::metrics::{Labels, Page};
use parking_lot::Mutex;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;
use std::fmt;
use std::sync::{Arc, Weak};
use std::time::SystemTime;

/// Shows a mesh once there is one. Clones share it.
#[derive(Clone, Default)]
pub struct MeshMetrics(Arc<Mutex<Source>>);

#[derive(Default)]
struct Source {
    /// There will be a mesh, once this process leads: until then there are no clusters.
    stands_by: bool,
    mesh: Weak<Mesh>,
}

impl fmt::Debug for MeshMetrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("MeshMetrics")
    }
}

impl MeshMetrics {
    /// The mesh, once there is one.
    pub fn mesh(&self) -> Option<Arc<Mesh>> {
        self.0.lock().mesh.upgrade()
    }

    /// Every remote cluster; `None` where there never is a mesh.
    fn clusters(&self) -> Option<Vec<Snapshot>> {
        let stands_by = self.0.lock().stands_by;
        let clusters = self.mesh().map(|mesh| mesh.clusters());
        clusters.or_else(|| stands_by.then(Vec::new))
    }

    /// There will be a mesh, once this process leads: until then the number of clusters is 0.
    pub fn stand_by(&self) {
        self.0.lock().stands_by = true;
    }

    /// Shows this mesh from now on.
    pub fn follow(&self, mesh: &Arc<Mesh>) {
        self.0.lock().mesh = Arc::downgrade(mesh);
    }
}

impl Collector for MeshMetrics {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let Some(all) = self.clusters() else {
            return Ok(());
        };
        let mut page = Page(encoder);
        let label = |snapshot: &Snapshot| vec![("target_cluster", snapshot.cluster.name().to_string())];
        page.gauges(
            "remote_clusters",
            "Remote clusters configured",
            vec![(vec![], all.len() as f64)],
        )?;
        let gauges = |value: fn(&Snapshot) -> f64| -> Vec<(Labels, f64)> {
            all.iter().map(|snapshot| (label(snapshot), value(snapshot))).collect()
        };
        let flag = |is_set: bool| f64::from(u8::from(is_set));
        let since_1970 = |at: Option<SystemTime>| {
            let secs = at.and_then(|at| at.duration_since(SystemTime::UNIX_EPOCH).ok());
            secs.map_or(0.0, |secs| secs.as_secs_f64().floor())
        };
        let failures = gauges(|s| s.cluster.counters().failures as f64);
        page.gauges("remote_cluster_failures", "Connections lost", failures)?;
        let last = all.iter().map(|s| (label(s), since_1970(s.cluster.last_failure())));
        let help = "When a connection was lost last";
        page.gauges("remote_cluster_last_failure_ts", help, last.collect())?;
        let ready = all.iter().map(|s| (label(s), flag(s.cluster.is_registered())));
        page.gauges(
            "remote_cluster_readiness_status",
            "Whether it is connected",
            ready.collect(),
        )?;
        let help = "Times its services were revoked";
        let revocations = gauges(|s| s.cluster.counters().revocations as f64);
        page.gauges("remote_cluster_cache_revocations", help, revocations)?;
        let help = "Whether its cluster id is also another's";
        let conflicts = all.iter().map(|s| (label(s), flag(s.conflict.is_some())));
        page.gauges("remote_cluster_id_conflict", help, conflicts.collect())?;
        let help = "Whether its heartbeat is silent though its store answers";
        let silent = all.iter().map(|s| (label(s), flag(s.cluster.silent_since().is_some())));
        page.gauges("remote_cluster_silent", help, silent.collect())?;
        let help = "Kinds of which it has too many keys to be followed";
        let stopped = gauges(|s| s.cluster.stopped().count() as f64);
        page.gauges("remote_cluster_kinds_stopped", help, stopped)?;
        let counters = |value: fn(&Cluster) -> u64| -> Vec<(Labels, u64)> {
            all.iter().map(|s| (label(s), value(&s.cluster))).collect()
        };
        let help = "Connections that were not made";
        let failed = counters(|c| c.counters().attempts_failed);
        page.counters("remote_cluster_attempts_failed", help, failed)?;
        let lists = counters(|c| c.read_counters().lists);
        page.counters("remote_cluster_lists", "Complete lists begun", lists)?;
        let help = "Watches that went on from where the mirror was";
        page.counters("remote_cluster_resumes", help, counters(|c| c.read_counters().resumes))?;
        let keys = counters(|c| c.read_counters().keys);
        page.counters("remote_cluster_keys_read", "Keys read", keys)?;
        let bytes = counters(|c| c.read_counters().bytes);
        page.counters("remote_cluster_bytes_read", "Bytes read", bytes)?;
        let mut refused = vec![];
        for snapshot in &all {
            for (why, keys) in snapshot.cluster.refusals().iter() {
                let mut labels = label(snapshot);
                labels.push(("reason", why.to_string()));
                refused.push((labels, keys.count));
            }
        }
        page.counters("remote_cluster_keys_refused", "Keys that are not mirrored", refused)
    }
}
