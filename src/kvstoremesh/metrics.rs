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
            "Number of remote clusters configured",
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
        page.gauges(
            "remote_cluster_failures",
            "Number of connections to the remote cluster that were lost",
            failures,
        )?;
        let last = all.iter().map(|s| (label(s), since_1970(s.cluster.last_failure())));
        let help = "Time of the last lost connection, in seconds since 1970; 0 for never";
        page.gauges("remote_cluster_last_failure_ts", help, last.collect())?;
        let ready = all.iter().map(|s| (label(s), flag(s.cluster.is_registered())));
        page.gauges(
            "remote_cluster_readiness_status",
            "Whether the remote cluster is connected (1) or not (0)",
            ready.collect(),
        )?;
        let help = "Number of times the services of the remote cluster were revoked";
        let revocations = gauges(|s| s.cluster.counters().revocations as f64);
        page.gauges("remote_cluster_cache_revocations", help, revocations)?;
        let help = "Whether the cluster id is invalid, or also that of another cluster";
        let conflicts = all.iter().map(|s| (label(s), flag(s.conflict.is_some())));
        page.gauges("remote_cluster_id_conflict", help, conflicts.collect())?;
        let help = "Whether the heartbeat has stopped although the store answers";
        let silent = all.iter().map(|s| (label(s), flag(s.cluster.silent_since().is_some())));
        page.gauges("remote_cluster_silent", help, silent.collect())?;
        let help = "Number of kinds that are not mirrored because they have too many keys";
        let stopped = gauges(|s| s.cluster.stopped().count() as f64);
        page.gauges("remote_cluster_kinds_stopped", help, stopped)?;
        let counters = |value: fn(&Cluster) -> u64| -> Vec<(Labels, u64)> {
            all.iter().map(|s| (label(s), value(&s.cluster))).collect()
        };
        let help = "Number of attempts to connect that failed";
        let failed = counters(|c| c.counters().attempts_failed);
        page.counters("remote_cluster_attempts_failed", help, failed)?;
        let lists = counters(|c| c.read_counters().lists);
        page.counters("remote_cluster_lists", "Number of lists begun", lists)?;
        let help = "Number of watches that resumed without a list";
        page.counters("remote_cluster_resumes", help, counters(|c| c.read_counters().resumes))?;
        let keys = counters(|c| c.read_counters().keys);
        page.counters("remote_cluster_keys_read", "Number of keys mirrored", keys)?;
        let bytes = counters(|c| c.read_counters().bytes);
        page.counters(
            "remote_cluster_bytes_read",
            "Bytes of the keys and values mirrored",
            bytes,
        )?;
        let mut refused = vec![];
        for snapshot in &all {
            for (why, keys) in snapshot.cluster.refusals().iter() {
                let mut labels = label(snapshot);
                labels.push(("reason", why.to_string()));
                refused.push((labels, keys.count));
            }
        }
        page.counters(
            "remote_cluster_keys_refused",
            "Number of keys refused, by reason",
            refused,
        )
    }
}
