//! Metrics of the mirror under Cilium's names (pkg/clustermesh/common/metrics.go), and ours.

mod scope;

pub use scope::ImportMetrics;

use super::cluster::Cluster;
use super::propagation::Method;
use super::{Mesh, Snapshot};
use crate::kvstore::sync_store::WriterStats;
use crate::model::keys::Scope;
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
    /// Whether a mesh starts once this process leads; until then, the number of clusters is 0.
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

    /// Notes that a mesh starts once this process leads; until then, the number of clusters is 0.
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
        gauges(&mut page, &all)?;
        counters(&mut page, &all)?;
        propagation(&mut page, &all)
    }
}

fn label(snapshot: &Snapshot) -> Labels {
    vec![("target_cluster", snapshot.cluster.name().to_string())]
}

fn gauges(page: &mut Page<'_>, all: &[Snapshot]) -> fmt::Result {
    let help = "Number of remote clusters configured";
    page.gauges("remote_clusters", help, vec![(vec![], all.len() as f64)])?;
    let mut gauge = |name, help, value: fn(&Snapshot) -> f64| {
        let values = all.iter().map(|snapshot| (label(snapshot), value(snapshot)));
        page.gauges(name, help, values.collect())
    };
    let help = "Number of connections to the remote cluster that were lost";
    gauge("remote_cluster_failures", help, |s| {
        s.cluster.counters().failures as f64
    })?;
    let help = "Time of the last lost connection, in seconds since 1970; 0 for never";
    gauge("remote_cluster_last_failure_ts", help, |s| {
        let since_1970 = s
            .cluster
            .last_failure()
            .and_then(|at| at.duration_since(SystemTime::UNIX_EPOCH).ok());
        since_1970.map_or(0.0, |time| time.as_secs_f64().floor())
    })?;
    let help = "Whether the remote cluster is connected (1) or not (0)";
    gauge("remote_cluster_readiness_status", help, |s| {
        flag(s.cluster.is_registered())
    })?;
    let help = "Number of times the services of the remote cluster were revoked";
    gauge("remote_cluster_cache_revocations", help, |s| {
        s.cluster.counters().revocations as f64
    })?;
    let help = "Whether the cluster id is invalid, or also that of another cluster";
    gauge("remote_cluster_id_conflict", help, |s| flag(s.conflict.is_some()))?;
    let help = "Whether the heartbeat has stopped although the store answers";
    gauge("remote_cluster_silent", help, |s| {
        flag(s.cluster.silent_since().is_some())
    })?;
    let help = "Number of kinds that are not mirrored because they have too many keys";
    gauge("remote_cluster_kinds_stopped", help, |s| {
        s.cluster.stopped().count() as f64
    })?;
    let help = "Whether the changes of the remote cluster are slowed down by a limit";
    gauge("remote_cluster_changes_slowed", help, |s| flag(s.slowed_by().is_some()))?;
    let help = "Time for which limits have held the changes of the remote cluster up, in seconds";
    gauge("remote_cluster_changes_slowed_seconds", help, |s| {
        s.sync.stats().slowed.as_secs_f64()
    })?;
    let mut forbidden = vec![];
    for snapshot in all {
        for scope in Scope::ALL {
            let mut labels = label(snapshot);
            labels.push(("scope", format!("{}/v1", scope.word())));
            forbidden.push((labels, flag(snapshot.cluster.is_forbidden(scope))));
        }
    }
    let help = "Whether the remote cluster forbids reading the keys of this kind";
    page.gauges("remote_cluster_kind_forbidden", help, forbidden)
}

/// How long commits of the remote clusters take to arrive.
fn propagation(page: &mut Page<'_>, all: &[Snapshot]) -> fmt::Result {
    let (mut histograms, mut deliveries) = (vec![], vec![]);
    let (mut raw, mut bounds, mut round_trips) = (vec![], vec![], vec![]);
    for snapshot in all {
        let (figures, histogram, round_trip) = snapshot.look(|observed| {
            let histogram = observed.propagation().histogram();
            (observed.figures(1), histogram, observed.shortest_round_trip())
        });
        let delivery = snapshot.delivery_histogram();
        deliveries.extend(delivery.map(|histogram| (label(snapshot), histogram)));
        histograms.extend(histogram.map(|histogram| (label(snapshot), histogram)));
        round_trips.extend(round_trip.map(|time| (label(snapshot), time.as_secs_f64())));
        match figures {
            Some(figures) if figures.method == Method::Probe => raw.push((label(snapshot), figures.raw / 1000.0)),
            Some(figures) => bounds.push((label(snapshot), figures.raw / 1000.0)),
            None => {}
        }
    }
    let help = "Time from a commit in the remote cluster until its arrival here, measured by probes, without the constant \
                difference of the clocks";
    page.histograms("remote_cluster_propagation_seconds", help, histograms)?;
    let help = "Time from the commit of a mirrored change in the store of this process until it is sent to the last watcher; \
                one commit of a cluster in a second is measured at most";
    page.histograms("remote_cluster_delivery_seconds", help, deliveries)?;
    let help = "The last difference between the clock here at the arrival of a probe and the clock of the remote cluster at \
                its write";
    page.gauges("remote_cluster_propagation_raw_seconds", help, raw)?;
    let help =
        "Upper bound of the propagation by the last heartbeat of a remote cluster without probes, if the clocks agree";
    page.gauges("remote_cluster_propagation_bound_seconds", help, bounds)?;
    let help = "Shortest round trip of a read from the remote cluster in the last ten minutes";
    page.gauges("remote_cluster_round_trip_seconds", help, round_trips)
}

fn flag(is_set: bool) -> f64 {
    f64::from(u8::from(is_set))
}

fn counters(page: &mut Page<'_>, all: &[Snapshot]) -> fmt::Result {
    let mut counter = |name, help, value: fn(&Cluster) -> u64| {
        let values = all.iter().map(|snapshot| (label(snapshot), value(&snapshot.cluster)));
        page.counters(name, help, values.collect())
    };
    let help = "Number of attempts to connect that failed";
    counter("remote_cluster_attempts_failed", help, |c| c.counters().attempts_failed)?;
    counter("remote_cluster_lists", "Number of lists begun", |c| {
        c.read_counters().lists
    })?;
    let help = "Number of watches that resumed without a list";
    counter("remote_cluster_resumes", help, |c| c.read_counters().resumes)?;
    counter("remote_cluster_keys_read", "Number of keys mirrored", |c| {
        c.read_counters().keys
    })?;
    let help = "Bytes of the keys and values mirrored";
    counter("remote_cluster_bytes_read", help, |c| c.read_counters().bytes)?;
    let mut of_writer = |name, help, value: fn(&WriterStats) -> u64| {
        let values = all.iter().map(|s| (label(s), value(&s.sync.stats())));
        page.counters(name, help, values.collect())
    };
    let help = "Bytes of mirrored values that were replaced or deleted, with their keys";
    of_writer("remote_cluster_bytes_replaced", help, |stats| stats.replaced_bytes)?;
    let help = "Bytes of values that were not written because a newer value came first";
    of_writer("remote_cluster_bytes_coalesced", help, |stats| stats.coalesced_bytes)?;
    let mut refused = vec![];
    for snapshot in all {
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
