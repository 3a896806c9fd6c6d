//! Metrics of the store's clients and writers, under Cilium's names (pkg/metrics, pkg/kvstore/metrics.go).

use super::labels::RequestOutcome;
use super::limiter::Limiter;
use super::sync_store::SyncStore;
use crate::util::metrics::{Labels, Page};
use parking_lot::Mutex;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

type Histograms = Family<Labels, Histogram, fn() -> Histogram>;

/// How often something was done, well and badly. Clones count together.
#[derive(Clone, Debug, Default)]
pub struct Runs(Arc<(AtomicU64, AtomicU64)>);

impl Runs {
    pub fn count(&self, was_good: bool) {
        let (well, badly) = &*self.0;
        let counter = if was_good { well } else { badly };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    pub fn counts(&self) -> (u64, u64) {
        let (well, badly) = &*self.0;
        (well.load(Ordering::Relaxed), badly.load(Ordering::Relaxed))
    }
}

/// What became of a key in an event, or that a list has ended, by Cilium's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum EventAction {
    Create,
    Modify,
    Delete,
    ListDone,
}

impl EventAction {
    fn label(self) -> &'static str {
        match self {
            Self::Create => "create",
            Self::Modify => "modify",
            Self::Delete => "delete",
            Self::ListDone => "listDone",
        }
    }
}

/// Clones share the same metrics.
#[derive(Clone)]
pub struct Metrics {
    operations: Histograms,
    events: Histograms,
    /// Checks of the configurations of clusters that this process keeps in its store.
    pub kept: Runs,
    quorum_errors: Family<Labels, Counter>,
    /// When the heartbeat was last written; seconds since 1970.
    pub(super) heartbeat: Gauge<f64, AtomicU64>,
    shared: Arc<Mutex<Shared>>,
}

#[derive(Default)]
struct Shared {
    stores: Vec<(String, Weak<SyncStore>)>,
    limiter: Option<Arc<Limiter>>,
    leases: Option<Box<dyn Fn() -> usize + Send>>,
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Shared")
    }
}

impl Default for Metrics {
    fn default() -> Self {
        let seconds = || Histogram::new([0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0]);
        let waits = || Histogram::new([0.002, 0.005, 0.01, 0.015, 0.025, 0.05, 0.1, 0.25, 0.5, 0.75, 1.0]);
        Self {
            operations: Family::new_with_constructor(seconds),
            events: Family::new_with_constructor(waits),
            kept: Runs::default(),
            quorum_errors: Family::default(),
            heartbeat: Gauge::default(),
            shared: Arc::default(),
        }
    }
}

impl Metrics {
    /// Records one request with `count` operations on keys of `scope`, which took `took`.
    pub fn operations(&self, scope: &str, action: &'static str, took: Duration, outcome: RequestOutcome, count: usize) {
        let kind = match action {
            "Get" | "ListPrefix" => "read",
            "Delete" | "DeletePrefix" => "delete",
            _ => "set",
        };
        let labels = vec![
            ("scope", scope.to_owned()),
            ("kind", kind.to_owned()),
            ("action", action.to_owned()),
            ("outcome", outcome.label().to_owned()),
        ];
        let histogram = self.operations.get_or_create(&labels);
        for _ in 0..count {
            histogram.observe(took.as_secs_f64());
        }
    }

    /// Records `count` events of `scope` that waited for `waited` until they were taken.
    pub fn events(&self, scope: &str, action: EventAction, waited: Duration, count: usize) {
        let labels = vec![("scope", scope.to_owned()), ("action", action.label().to_owned())];
        let histogram = self.events.get_or_create(&labels);
        for _ in 0..count {
            histogram.observe(waited.as_secs_f64());
        }
    }

    /// Counts a probe that the store did not answer.
    pub fn unreachable(&self) {
        let labels = vec![("error", "no answer".to_owned())];
        self.quorum_errors.get_or_create(&labels).inc();
    }

    /// Counts a remote store that answers, but whose heartbeat is not written.
    pub fn no_heartbeat(&self) {
        // Cilium's text.
        let labels = vec![("error", "no event received".to_owned())];
        self.quorum_errors.get_or_create(&labels).inc();
    }

    /// Shows a writer's metrics for as long as the writer exists.
    pub fn follow(&self, source_cluster: &str, store: &Arc<SyncStore>) {
        let mut shared = self.shared.lock();
        shared.stores.retain(|(_, store)| store.strong_count() > 0);
        shared.stores.push((source_cluster.to_owned(), Arc::downgrade(store)));
    }

    /// Shows the limits of a client and the number of its leases.
    pub(super) fn client(&self, limiter: &Arc<Limiter>, leases: impl Fn() -> usize + Send + 'static) {
        let mut shared = self.shared.lock();
        shared.limiter = Some(Arc::clone(limiter));
        shared.leases = Some(Box::new(leases));
    }

    pub fn register(&self, registry: &mut Registry) {
        let help = "Time of the last heartbeat that was written, in seconds since 1970";
        registry.register("kvstore_heartbeat_timestamp_seconds", help, self.heartbeat.clone());
        self.register_without_heartbeat(registry);
    }

    /// Registers the metrics of a writer that writes no heartbeat.
    pub fn register_without_heartbeat(&self, registry: &mut Registry) {
        let help = "Duration of operations on the store, in seconds";
        registry.register("kvstore_operations_duration_seconds", help, self.operations.clone());
        let help = "Time from the arrival of events from a store until they were taken, in seconds";
        registry.register("kvstore_events_queue_seconds", help, self.events.clone());
        let help = "Probes of the store that failed";
        registry.register("kvstore_quorum_errors", help, self.quorum_errors.clone());
        registry.register_collector(Box::new(Scraped(Arc::clone(&self.shared))));
    }
}

#[cfg(test)]
impl Metrics {
    /// Metrics of which every family has a series.
    pub fn with_all_families() -> Self {
        let metrics = Self::default();
        metrics.operations("ip/v1", "Set", Duration::from_millis(1), RequestOutcome::Success, 1);
        metrics.events("ip/v1", EventAction::Create, Duration::from_millis(1), 1);
        metrics.unreachable();
        metrics.client(&Arc::new(Limiter::new(Default::default())), || 0);
        metrics
    }
}

/// Metrics that are computed at each scrape.
#[derive(Debug)]
struct Scraped(Arc<Mutex<Shared>>);

fn stores(page: &mut Page<'_>, shared: &Shared) -> fmt::Result {
    let (mut queued, mut ages, mut keys, mut errors, mut rejected, mut initial, mut lags) =
        (vec![], vec![], vec![], vec![], vec![], vec![], vec![]);
    for (cluster, store) in &shared.stores {
        let Some(store) = store.upgrade() else { continue };
        for stats in store.prefix_stats() {
            let labels = || vec![("scope", stats.scope.clone()), ("source_cluster", cluster.clone())];
            queued.push((labels(), stats.queued as f64));
            ages.push((labels(), stats.oldest.as_secs_f64()));
            keys.push((labels(), stats.keys as f64));
            errors.push((labels(), stats.errors));
            rejected.push((labels(), stats.rejected));
            for (action, done) in [
                ("write", Some(stats.initial_write_done)),
                ("read", stats.initial_read_done),
            ] {
                let Some(done) = done else { continue };
                let mut labels = labels();
                labels.push(("action", action.to_owned()));
                initial.push((labels, f64::from(u8::from(done))));
            }
            lags.push((labels(), stats.lag));
        }
    }
    page.gauges(
        "kvstore_sync_queue_size",
        "Keys with changes that are not written yet",
        queued,
    )?;
    let help = "Age of the oldest change that is not written yet, in seconds";
    page.gauges("kvstore_sync_queue_age_seconds", help, ages)?;
    page.gauges("kvstore_sync_keys", "Keys that the store should hold", keys)?;
    page.counters(
        "kvstore_sync_errors",
        "Batches of writes that failed and were retried",
        errors,
    )?;
    page.counters("kvstore_sync_rejected", "Keys that the store refused", rejected)?;
    let help = "Whether the initial read and the initial write have completed (1) or not (0)";
    page.gauges("kvstore_initial_sync_completed", help, initial)?;
    let help = "Time from receiving a change to its write into the store, in seconds";
    page.histograms("propagation_seconds", help, lags)
}

fn limiter(page: &mut Page<'_>, limiter: &Limiter) -> fmt::Result {
    let stats = limiter.stats();
    let series = |values: &[(&str, f64)]| {
        let labels = |value: &str| vec![("api_call", "etcd".to_owned()), ("value", value.to_owned())];
        values.iter().map(|(value, n)| (labels(value), *n)).collect::<Vec<_>>()
    };
    let values = series(&[("mean", stats.processing_mean), ("estimated", 0.0)]);
    page.gauges(
        "api_limiter_processing_duration_seconds",
        "Duration of requests, in seconds",
        values,
    )?;
    let values = series(&[("mean", stats.wait_mean), ("max", stats.wait_max), ("min", 0.0)]);
    let help = "Time that requests wait for the limits, in seconds";
    page.gauges("api_limiter_wait_duration_seconds", help, values)?;
    let values = series(&[("in-flight", stats.in_flight), ("limit", stats.in_flight_limit)]);
    page.gauges("api_limiter_requests_in_flight", "Requests in flight", values)?;
    let values = series(&[("limit", stats.rate_limit), ("burst", stats.burst)]);
    page.gauges("api_limiter_rate_limit", "Operations per second", values)?;
    let outcome = |outcome: &str, code: &str, count: u64| {
        let labels = vec![
            ("api_call", "etcd".to_owned()),
            ("outcome", outcome.to_owned()),
            ("return_code", code.to_owned()),
        ];
        (labels, count)
    };
    let counts = [
        outcome("success", "200", stats.succeeded),
        outcome("fail", "500", stats.failed),
    ];
    let counts = counts.into_iter().filter(|(_, count)| *count > 0).collect();
    page.counters("api_limiter_processed_requests", "Requests by outcome", counts)
}

impl Collector for Scraped {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let (shared, mut page) = (self.0.lock(), Page(encoder));
        stores(&mut page, &shared)?;
        if let Some(of) = &shared.limiter {
            limiter(&mut page, of)?;
        }
        if let Some(leases) = &shared.leases {
            page.gauges(
                "kvstore_leases",
                "Leases that are kept alive",
                vec![(vec![], leases() as f64)],
            )?;
        }
        Ok(())
    }
}
