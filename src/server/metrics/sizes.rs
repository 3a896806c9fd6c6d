//! The size of the store and the use of the process, looked up at each scrape.

use super::zeros::{ZERO_COUNTERS, ZERO_GAUGES};
use crate::auth::AuthStore;
use crate::durable;
use crate::lease::Lessor;
use crate::mvcc::{Stats, Store};
use crate::util::metrics::{Page, Process};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use std::fmt;
use std::sync::Arc;

/// The sources of the figures.
pub(super) struct Sizes {
    pub(super) store: Arc<Store>,
    pub(super) lessor: Arc<Lessor>,
    pub(super) auth: Arc<AuthStore>,
    pub(super) quota: i64,
    /// Whether a data directory registers metrics of its own.
    pub(super) durable: bool,
}

impl fmt::Debug for Sizes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Sizes")
    }
}

impl Collector for Sizes {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let (stats, leases) = (self.store.stats(), self.lessor.counts());
        let bytes = stats.bytes as i64;
        let quota = self.quota;
        let process = Process::now();
        let gauges = [
            ("etcd_server_has_leader", 1),
            ("etcd_server_is_leader", 1),
            ("etcd_server_quota_backend_bytes", quota),
            ("etcd_server_proposals_applied_total", stats.commits as i64),
            ("etcd_server_proposals_committed_total", stats.commits as i64),
            ("etcd_mvcc_db_total_size_in_bytes", bytes),
            ("etcd_mvcc_db_total_size_in_use_in_bytes", bytes),
            ("etcd_debugging_auth_revision", self.auth.state().revision as i64),
            ("etcd_debugging_mvcc_total_put_size_in_bytes", bytes),
            ("etcd_debugging_mvcc_keys_total", stats.keys as i64),
            ("etcd_debugging_mvcc_watcher_total", stats.watchers as i64),
            ("etcd_debugging_mvcc_watch_stream_total", stats.watchers as i64),
            ("etcd_debugging_mvcc_current_revision", stats.revision),
            ("etcd_debugging_mvcc_compact_revision", stats.compacted),
            ("process_resident_memory_bytes", process.resident_bytes),
            ("process_open_fds", process.open_fds),
            ("process_max_fds", process.max_fds),
            ("os_fd_used", process.open_fds),
            ("os_fd_limit", process.max_fds),
        ];
        for (name, n) in gauges.into_iter().chain(ZERO_GAUGES.iter().map(|name| (*name, 0))) {
            let gauge = ConstGauge::new(n);
            let help = match name {
                "os_fd_used" => "Number of open files, by etcd's name",
                "os_fd_limit" => "Maximum number of open files, by etcd's name",
                _ => "See etcd",
            };
            gauge.encode(encoder.encode_descriptor(name, help, None, gauge.metric_type())?)?;
        }
        let counters = [
            ("etcd_mvcc_range", stats.ranges),
            ("etcd_mvcc_put", stats.puts),
            ("etcd_mvcc_delete", stats.deletes),
            ("etcd_mvcc_txn", stats.txns),
            ("etcd_debugging_mvcc_events", stats.events),
            ("etcd_debugging_lease_granted", leases.granted),
            ("etcd_debugging_lease_revoked", leases.revoked),
            ("etcd_debugging_lease_renewed", leases.renewed),
            ("etcd_debugging_server_lease_expired", leases.expired),
        ];
        let zero = ZERO_COUNTERS
            .iter()
            .filter(|n| !(self.durable && durable::Metrics::has(n)));
        for (name, n) in counters.into_iter().chain(zero.map(|name| (*name, 0))) {
            let counter = ConstCounter::new(n);
            counter.encode(encoder.encode_descriptor(name, "See etcd", None, counter.metric_type())?)?;
        }
        let cpu = ConstCounter::new(process.cpu_seconds);
        cpu.encode(encoder.encode_descriptor("process_cpu_seconds", "CPU time", None, cpu.metric_type())?)
    }
}

/// What watches cost, which etcd has no metrics for.
pub(super) fn watches(mut page: Page<'_>, stats: &Stats) -> fmt::Result {
    page.gauges(
        "isthmus_mvcc_watchers",
        "Watchers of all connections",
        vec![(vec![], stats.watchers as f64)],
    )?;
    page.gauges(
        "isthmus_mvcc_frame_bytes",
        "Bytes of encoded events that are kept for watchers, at most 64 MiB",
        vec![(vec![], stats.frame_bytes as f64)],
    )?;
    page.counters(
        "isthmus_mvcc_frames_dropped",
        "Frames of events that were dropped or never made because they take too much memory; their watchers read the log",
        vec![(vec![], stats.frames_dropped)],
    )?;
    page.counters(
        "isthmus_mvcc_log_reads",
        "Reads of the revision log by watchers that are behind the frames of their group",
        vec![(vec![], stats.log_reads)],
    )
}
