//! Figures of the mirror under Cilium's names (pkg/clustermesh/common/metrics.go), and ours.

use super::Mesh;
use super::status::Live;
use crate::kvstore::sync_store::SyncStore;
use crate::model::cluster::ClusterName;
use crate::util::metrics::{Labels, Page};
use parking_lot::Mutex;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::SystemTime;

/// Shows a mesh once there is one. Clones share it.
#[derive(Clone, Default)]
pub struct Figures(Arc<Mutex<Weak<Mesh>>>, Arc<AtomicBool>);

impl fmt::Debug for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Figures")
    }
}

impl Figures {
    /// The mesh, once there is one.
    pub fn mesh(&self) -> Option<Arc<Mesh>> {
        self.0.lock().upgrade()
    }

    /// What is known of each cluster; none where there is no mesh.
    fn live(&self) -> Option<Vec<(Live, Arc<SyncStore>, ClusterName)>> {
        let stands_by = self.1.load(Ordering::Relaxed).then(Vec::new);
        self.mesh().map(|mesh| mesh.live()).or(stands_by)
    }

    /// There will be a mesh: until then there are no clusters.
    pub fn stand_by(&self) {
        self.1.store(true, Ordering::Relaxed);
    }

    /// Shows this mesh from now on.
    pub fn follow(&self, mesh: &Arc<Mesh>) {
        *self.0.lock() = Arc::downgrade(mesh);
    }
}

impl Collector for Figures {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let Some(all) = self.live() else {
            return Ok(());
        };
        let mut page = Page(encoder);
        let label = |name: &str| vec![("target_cluster", name.to_owned())];
        page.gauges(
            "remote_clusters",
            "Remote clusters configured",
            vec![(vec![], all.len() as f64)],
        )?;
        let gauges = |value: fn(&Live) -> f64| -> Vec<(Labels, f64)> {
            all.iter().map(|(live, ..)| (label(&live.name), value(live))).collect()
        };
        let since_1970 = |at: Option<SystemTime>| {
            let secs = at.and_then(|at| at.duration_since(SystemTime::UNIX_EPOCH).ok());
            secs.map_or(0.0, |secs| secs.as_secs_f64().floor())
        };
        let last: Vec<_> = all
            .iter()
            .map(|(live, ..)| (label(&live.name), since_1970(live.last_failure)))
            .collect();
        page.gauges(
            "remote_cluster_failures",
            "Connections lost",
            gauges(|l| l.failures as f64),
        )?;
        page.gauges(
            "remote_cluster_last_failure_ts",
            "When a connection was lost last",
            last,
        )?;
        let ready = gauges(|l| f64::from(u8::from(l.registered)));
        page.gauges("remote_cluster_readiness_status", "Whether it is connected", ready)?;
        let help = "Times its services were revoked";
        page.gauges(
            "remote_cluster_cache_revocations",
            help,
            gauges(|l| l.revocations as f64),
        )?;
        let help = "Whether its cluster id is also another's";
        let conflicts = gauges(|l| f64::from(u8::from(l.conflict.is_some())));
        page.gauges("remote_cluster_id_conflict", help, conflicts)?;
        let help = "Whether its heartbeat is silent though its store answers";
        page.gauges(
            "remote_cluster_silent",
            help,
            gauges(|l| f64::from(u8::from(l.silent_since.is_some()))),
        )?;
        let help = "Kinds of which it has too many keys to be followed";
        page.gauges("remote_cluster_kinds_stopped", help, gauges(|l| l.stopped.len() as f64))?;
        let counters = |value: fn(&Live) -> u64| -> Vec<(Labels, u64)> {
            all.iter().map(|(live, ..)| (label(&live.name), value(live))).collect()
        };
        let help = "Connections that were not made";
        page.counters("remote_cluster_attempts_failed", help, counters(|l| l.attempts_failed))?;
        page.counters("remote_cluster_lists", "Complete lists begun", counters(|l| l.lists))?;
        let help = "Watches that went on from where the mirror was";
        page.counters("remote_cluster_resumes", help, counters(|l| l.resumes))?;
        page.counters("remote_cluster_keys_read", "Keys read", counters(|l| l.keys_read))?;
        page.counters("remote_cluster_bytes_read", "Bytes read", counters(|l| l.bytes_read))?;
        let mut refused = vec![];
        for (live, ..) in &all {
            for (why, (count, _)) in &live.refused {
                let mut labels = label(&live.name);
                labels.push(("reason", (*why).to_owned()));
                refused.push((labels, *count));
            }
        }
        page.counters("remote_cluster_keys_refused", "Keys that are not mirrored", refused)
    }
}
