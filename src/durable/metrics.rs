//! Metrics of the data directory, under etcd's names where etcd has the same metric.

use super::obstacle::Obstacle;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};
use std::sync::atomic::AtomicU64;

/// Duration of a sync, under etcd's name.
pub const SYNC_SECONDS: &str = "etcd_disk_wal_fsync_duration_seconds";
/// Duration of a write, under etcd's name.
pub const WRITE_SECONDS: &str = "etcd_disk_wal_write_duration_seconds";
/// Bytes written, under etcd's name.
pub const WRITTEN_BYTES: &str = "etcd_disk_wal_write_bytes";

/// Metrics of one data directory.
#[derive(Debug)]
pub struct Metrics {
    pub(super) sync: Histogram,
    pub(super) write: Histogram,
    pub(super) bytes: Counter,
    pub(super) groups: Counter,
    pub(super) records: Counter,
    pub checkpoints: Counter,
    pub(super) checkpoint_secs: Gauge<f64, AtomicU64>,
    /// Bytes of groups since the checkpoint.
    pub log_bytes: Gauge,
    pub checkpoint_bytes: Gauge,
    /// Damaged stores that were set aside, as of the start.
    pub(super) damaged: Gauge,
    full: Gauge,
    refusing: Family<[(&'static str, &'static str); 1], Gauge>,
}

impl Default for Metrics {
    fn default() -> Self {
        // etcd: server/storage/wal/metrics.go.
        let seconds = || Histogram::new(exponential_buckets(0.001, 2.0, 14));
        let metrics = Self {
            sync: seconds(),
            write: seconds(),
            bytes: Counter::default(),
            groups: Counter::default(),
            records: Counter::default(),
            checkpoints: Counter::default(),
            checkpoint_secs: Gauge::default(),
            log_bytes: Gauge::default(),
            checkpoint_bytes: Gauge::default(),
            damaged: Gauge::default(),
            full: Gauge::default(),
            refusing: Family::default(),
        };
        metrics.refusing(None);
        metrics
    }
}

impl Metrics {
    /// Whether this room has the metric `name`.
    pub fn has(name: &str) -> bool {
        [SYNC_SECONDS, WRITE_SECONDS, WRITTEN_BYTES].contains(&name)
    }

    #[cfg(test)]
    pub(super) fn groups(&self) -> u64 {
        self.groups.get()
    }

    /// Notes why writes are refused, or that they are accepted.
    pub(super) fn refusing(&self, obstacle: Option<Obstacle>) {
        self.full.set(i64::from(obstacle.is_some_and(Obstacle::is_full)));
        for each in Obstacle::ALL {
            let refusing = self.refusing.get_or_create(&[("cause", each.label())]);
            refusing.set(i64::from(obstacle == Some(each)));
        }
    }

    /// Registers everything.
    pub fn register(&self, registry: &mut Registry) {
        registry.register(
            SYNC_SECONDS,
            "Time to sync a group of changes to the disk, in seconds",
            self.sync.clone(),
        );
        registry.register(
            WRITE_SECONDS,
            "Time to write a group of changes, in seconds",
            self.write.clone(),
        );
        registry.register(WRITTEN_BYTES, "Bytes of changes written to the log", self.bytes.clone());
        let ours = registry.sub_registry_with_prefix("isthmus_durable");
        ours.register(
            "groups",
            "Number of groups of changes written; each is synced once",
            self.groups.clone(),
        );
        ours.register("records", "Number of changes written", self.records.clone());
        ours.register("checkpoints", "Number of checkpoints written", self.checkpoints.clone());
        let help = "How long the last checkpoint took";
        ours.register_with_unit("checkpoint", help, Unit::Seconds, self.checkpoint_secs.clone());
        let help = "Size of the log since the checkpoint";
        ours.register_with_unit("log", help, Unit::Bytes, self.log_bytes.clone());
        let help = "Size of the checkpoint";
        ours.register_with_unit("checkpoint", help, Unit::Bytes, self.checkpoint_bytes.clone());
        ours.register(
            "damaged_stores",
            "Damaged stores that were set aside as damaged-<date>, as of the start",
            self.damaged.clone(),
        );
        ours.register(
            "disk_full",
            "1 while the disk is full: writes are refused, or the copy of a replica waits",
            self.full.clone(),
        );
        ours.register(
            "writes_refused",
            "1 while the data directory takes no writes, by cause: writes are refused, or the copy of a replica waits",
            self.refusing.clone(),
        );
    }
}
