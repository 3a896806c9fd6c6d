//! How a store is used, under Cilium's names (pkg/metrics, pkg/kvstore/metrics.go).

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
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Weak};
use std::time::Duration;

type Histograms = Family<Labels, Histogram, fn() -> Histogram>;

/// See the module's text. Clones share the figures.
#[derive(Clone)]
pub struct Metrics {
    operations: Histograms,
    quorum_errors: Family<Labels, Counter>,
    /// When the heartbeat was written last; seconds since 1970.
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
        Self {
            operations: Family::new_with_constructor(seconds),
            quorum_errors: Family::default(),
            heartbeat: Gauge::default(),
            shared: Arc::default(),
        }
    }
}

/// A key's scope, for labels: its kind of data, or what it begins with.
pub fn scope_of(key: &[u8]) -> String {
    let text = String::from_utf8_lossy(key);
    let parts: Vec<&str> = text.splitn(5, '/').collect();
    match &parts[..] {
        [_, _, kind, version, ..] => format!("{kind}/{version}"),
        _ => text.chars().take(12).collect(),
    }
}

impl Metrics {
    /// `count` operations on keys of a scope took `took`, all in one request.
    pub fn operations(&self, scope: &str, action: &'static str, took: Duration, well: bool, count: usize) {
        let kind = match action {
            "Get" | "ListPrefix" => "read",
            "Delete" | "DeletePrefix" => "delete",
            _ => "set",
        };
        let labels = vec![
            ("scope", scope.to_owned()),
            ("kind", kind.to_owned()),
            ("action", action.to_owned()),
            ("outcome", if well { "success" } else { "fail" }.to_owned()),
        ];
        let histogram = self.operations.get_or_create(&labels);
        for _ in 0..count {
            histogram.observe(took.as_secs_f64());
        }
    }

    /// The store did not answer a look whether it is there.
    pub fn unreachable(&self) {
        let labels = vec![("error", "no answer".to_owned())];
        self.quorum_errors.get_or_create(&labels).inc();
    }

    /// A remote store answers, and nobody writes its heartbeat.
    pub fn no_heartbeat(&self) {
        // The original's words.
        let labels = vec![("error", "no event received".to_owned())];
        self.quorum_errors.get_or_create(&labels).inc();
    }

    /// Shows a writer's figures, for as long as it lives.
    pub fn follow(&self, source_cluster: &str, store: &Arc<SyncStore>) {
        let mut shared = self.shared.lock();
        shared.stores.retain(|(_, store)| store.strong_count() > 0);
        shared.stores.push((source_cluster.to_owned(), Arc::downgrade(store)));
    }

    /// Shows the limits of a client, and how many leases it holds.
    pub(super) fn client(&self, limiter: &Arc<Limiter>, leases: impl Fn() -> usize + Send + 'static) {
        let mut shared = self.shared.lock();
        shared.limiter = Some(Arc::clone(limiter));
        shared.leases = Some(Box::new(leases));
    }

    /// Shows the figures.
    pub fn register(&self, registry: &mut Registry) {
        let help = "How long operations on the store take";
        registry.register("kvstore_operations_duration_seconds", help, self.operations.clone());
        let help = "Looks at the store that failed";
        registry.register("kvstore_quorum_errors", help, self.quorum_errors.clone());
        let help = "When the heartbeat was written last";
        registry.register("kvstore_heartbeat_timestamp_seconds", help, self.heartbeat.clone());
        registry.register_collector(Box::new(Looked(Arc::clone(&self.shared))));
    }
}

/// Shows what is looked up.
#[derive(Debug)]
struct Looked(Arc<Mutex<Shared>>);

fn stores(page: &mut Page<'_>, shared: &Shared) -> fmt::Result {
    let (mut queued, mut ages, mut keys, mut errors, mut rejected, mut initial, mut lags) =
        (vec![], vec![], vec![], vec![], vec![], vec![], vec![]);
    for (cluster, store) in &shared.stores {
        let Some(store) = store.upgrade() else { continue };
        for view in store.views() {
            let labels = || vec![("scope", view.scope.clone()), ("source_cluster", cluster.clone())];
            queued.push((labels(), view.queued as f64));
            ages.push((labels(), view.oldest.as_secs_f64()));
            keys.push((labels(), view.keys as f64));
            errors.push((labels(), view.errors));
            rejected.push((labels(), view.rejected));
            for (action, whole) in [("write", Some(view.complete)), ("read", view.read)] {
                let Some(whole) = whole else { continue };
                let mut labels = labels();
                labels.push(("action", action.to_owned()));
                initial.push((labels, f64::from(u8::from(whole))));
            }
            lags.push((labels(), view.lag));
        }
    }
    page.gauges("kvstore_sync_queue_size", "Keys waiting to be written", queued)?;
    let help = "How long the key that waits longest has been waiting";
    page.gauges("kvstore_sync_queue_age_seconds", help, ages)?;
    page.gauges("kvstore_sync_keys", "Keys that should be there", keys)?;
    page.counters("kvstore_sync_errors", "Writes that failed and were tried again", errors)?;
    page.counters("kvstore_sync_rejected", "Keys that the store refused", rejected)?;
    let help = "Whether everything has been read, and been written once";
    page.gauges("kvstore_initial_sync_completed", help, initial)?;
    let help = "From when a change is known to when it is in the store";
    page.histograms("propagation_seconds", help, lags)
}

fn limiter(page: &mut Page<'_>, limiter: &Limiter) -> fmt::Result {
    let view = limiter.view();
    let series = |values: &[(&str, f64)]| {
        let labels = |value: &str| vec![("api_call", "etcd".to_owned()), ("value", value.to_owned())];
        values.iter().map(|(value, n)| (labels(value), *n)).collect::<Vec<_>>()
    };
    let values = series(&[("mean", view.processing_mean), ("estimated", 0.0)]);
    page.gauges(
        "api_limiter_processing_duration_seconds",
        "How long requests take",
        values,
    )?;
    let values = series(&[("mean", view.wait_mean), ("max", view.wait_max), ("min", 0.0)]);
    let help = "How long requests wait for the limits";
    page.gauges("api_limiter_wait_duration_seconds", help, values)?;
    let values = series(&[("in-flight", view.in_flight), ("limit", view.in_flight_limit)]);
    page.gauges("api_limiter_requests_in_flight", "Requests on their way", values)?;
    let values = series(&[("limit", view.rate_limit), ("burst", view.burst)]);
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
        outcome("success", "200", view.succeeded),
        outcome("fail", "500", view.failed),
    ];
    let counts = counts.into_iter().filter(|(_, count)| *count > 0).collect();
    page.counters("api_limiter_processed_requests", "Requests by outcome", counts)
}

impl Collector for Looked {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let (shared, mut page) = (self.0.lock(), Page(encoder));
        stores(&mut page, &shared)?;
        if let Some(of) = &shared.limiter {
            limiter(&mut page, of)?;
        }
        if let Some(leases) = &shared.leases {
            page.gauges("kvstore_leases", "Leases held", vec![(vec![], leases() as f64)])?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scopes_are_ciliums() {
        for (key, scope) in [
            ("cilium/state/nodes/v1/c3/n1", "nodes/v1"),
            ("cilium/state/ip/v1/default/10.0.0.1", "ip/v1"),
            ("cilium/synced/c3/cilium/state/ip/v1", "c3/cilium"),
            ("cilium/cluster-config/c3", "cilium/clust"),
            ("cilium/.heartbeat", "cilium/.hear"),
        ] {
            assert_eq!(scope_of(key.as_bytes()), scope);
        }
    }
}
