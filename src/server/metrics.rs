//! Metrics under the names of etcd and grpc-prometheus, so that etcd's dashboards and alerts work.

mod budgets;
mod methods;
mod requests;
mod sizes;
mod zeros;

pub(super) use methods::{Method, TxnKind};
pub(super) use requests::ReadOnlyTxn;

use super::connections::Connections;
use super::upstream::Upstream;
use super::{CLUSTER_VERSION, Config, Core, ETCD_VERSION};
use crate::auth::AuthStore;
use crate::durable::{self, Durable};
use crate::lease::Lessor;
use crate::mvcc::Store;
use crate::util::metrics::{BuildInfo, Format, Labels, Page};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use parking_lot::Mutex;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;
use sizes::Sizes;
use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::Arc;
use zeros::ZERO_HISTOGRAMS;

/// Versions of clients that have a label. Each has two series.
const VERSIONS_MAX: usize = 32;

/// The metrics of a server, and the registry that shows them.
pub(super) struct Metrics {
    registry: Registry,
    methods: HashMap<String, Arc<Method>>,
    health_success: Gauge,
    health_failures: Gauge,
    check: Family<Labels, Gauge>,
    checks: Family<Labels, Counter>,
    requests: Family<Labels, Counter>,
    /// The versions that are labels of `requests`.
    versions: Mutex<HashSet<String>>,
    pub(super) received_bytes: Counter,
    pub(super) sent_bytes: Counter,
}

/// Registers the histograms of what nothing here does. A data directory has some of them.
fn register_zeros(registry: &mut Registry, durable: bool) {
    let zero = |name: &str| !(durable && durable::Metrics::has(name));
    for zero in ZERO_HISTOGRAMS.iter().filter(|histogram| zero(histogram.name)) {
        let histogram = Histogram::new(exponential_buckets(zero.first_bucket, 2.0, zero.buckets));
        registry.register(zero.name, "Nothing here does this", histogram);
    }
}

impl Metrics {
    pub(super) fn new(
        store: Arc<Store>,
        lessor: Arc<Lessor>,
        auth: Arc<AuthStore>,
        durable: Option<&Durable>,
        config: &Config,
    ) -> Self {
        let (quota, member, extensive) = (config.quota_bytes, config.identity.member_id, config.extensive_metrics);
        let mut registry = Registry::default();
        let methods = methods::register(&mut registry, extensive);
        let (health_success, health_failures) = (Gauge::default(), Gauge::default());
        registry.register(
            "etcd_server_health_success",
            "Health checks passed",
            health_success.clone(),
        );
        registry.register(
            "etcd_server_health_failures",
            "Health checks failed",
            health_failures.clone(),
        );
        let (check, checks, requests) = (Family::default(), Family::default(), Family::default());
        registry.register(
            "etcd_server_healthcheck",
            "Result of each check, 1 is good",
            Family::clone(&check),
        );
        registry.register(
            "etcd_server_healthchecks",
            "Results of each check",
            Family::clone(&checks),
        );
        registry.register(
            "etcd_server_client_requests",
            "Requests by kind and version of the client",
            Family::clone(&requests),
        );
        let (received_bytes, sent_bytes) = (Counter::default(), Counter::default());
        registry.register(
            "etcd_network_client_grpc_received_bytes",
            "Bytes received from clients",
            received_bytes.clone(),
        );
        registry.register(
            "etcd_network_client_grpc_sent_bytes",
            "Bytes sent to clients",
            sent_bytes.clone(),
        );
        facts(&mut registry, member);
        registry.register_collector(Box::new(BuildInfo));
        if let Some(durable) = durable {
            durable.metrics().register(&mut registry);
        }
        let durable = durable.is_some();
        register_zeros(&mut registry, durable);
        registry.register_collector(Box::new(config.expiry.clone()));
        registry.register_collector(Box::new(Sizes {
            store,
            lessor,
            auth,
            quota,
            durable,
        }));
        Self {
            registry,
            methods,
            health_success,
            health_failures,
            check,
            checks,
            requests,
            versions: Mutex::default(),
            received_bytes,
            sent_bytes,
        }
    }

    /// Registers what clients hold, what they were refused, and what watches cost.
    pub(super) fn register(&mut self, connections: &Arc<Connections>, store: &Arc<Store>) {
        register_clients(&mut self.registry, connections, store);
    }

    /// Registers what a replica counts about its upstream and the calls that it forwards.
    pub(super) fn register_forwarding(&mut self, upstream: &dyn Upstream, unheld: &Counter) {
        register_forwarding(&mut self.registry, upstream, unheld);
    }

    /// The metrics of a method, found by its path `/package.Service/Method`.
    pub(super) fn method(&self, path: &str) -> Option<Arc<Method>> {
        self.methods.get(path).map(Arc::clone)
    }

    /// Counts a request by the version that its client names, if that has the form `major.minor`.
    pub(super) fn request(&self, method: &Method, version: Option<&str>) {
        // The number of labels must be bounded, whatever clients send.
        let short = |n: &str| (1..=2).contains(&n.len()) && n.bytes().all(|b| b.is_ascii_digit());
        let plain = |v: &&str| v.split_once('.').is_some_and(|(a, b)| short(a) && short(b));
        let version = version.filter(plain).filter(|v| self.is_known(v)).unwrap_or("unknown");
        let labels = vec![
            ("client_api_version", version.to_owned()),
            ("type", method.kind.to_owned()),
        ];
        self.requests.get_or_create(&labels).inc();
    }

    /// Whether the version is among the first [`VERSIONS_MAX`] that clients named.
    fn is_known(&self, version: &str) -> bool {
        let mut versions = self.versions.lock();
        versions.contains(version) || versions.len() < VERSIONS_MAX && versions.insert(version.to_owned())
    }

    pub(super) fn health(&self, healthy: bool) {
        let counter = if healthy {
            &self.health_success
        } else {
            &self.health_failures
        };
        counter.inc();
    }

    pub(super) fn check(&self, kind: &str, name: &str, passed: bool) {
        let status = if passed { "success" } else { "error" };
        let mut labels = vec![("name", name.to_owned()), ("type", kind.to_owned())];
        self.check.get_or_create(&labels).set(passed.into());
        labels.insert(1, ("status", status.to_owned()));
        self.checks.get_or_create(&labels).inc();
    }
}

/// Registers gauges whose label is the version or the id of the server.
fn facts(registry: &mut Registry, member: u64) {
    for (name, label, value) in [
        ("etcd_server_version", "server_version", ETCD_VERSION.to_owned()),
        ("etcd_cluster_version", "cluster_version", CLUSTER_VERSION.to_owned()),
        ("etcd_server_go_version", "server_go_version", "none".to_owned()),
        ("etcd_server_id", "server_id", format!("{member:x}")),
    ] {
        let family: Family<Labels, Gauge> = Family::default();
        family.get_or_create(&vec![(label, value)]).set(1);
        registry.register(name, "1, with what runs in the labels", family);
    }
}

/// Registers the metrics that etcd does not have.
fn register_clients(registry: &mut Registry, connections: &Arc<Connections>, store: &Arc<Store>) {
    connections.refusals.register(registry);
    connections.moves.register(registry);
    registry.register_collector(Box::new(budgets::Held(Arc::clone(connections))));
    registry.register_collector(Box::new(Watches(Arc::clone(store))));
}

/// Registers what a replica counts about its upstream and the calls that it forwards.
fn register_forwarding(registry: &mut Registry, upstream: &dyn Upstream, unheld: &Counter) {
    upstream.register(registry);
    registry.register(
        "isthmus_follow_unheld",
        "Answers to forwarded calls that were sent before their revision was here",
        unheld.clone(),
    );
}

/// What watches cost, looked up at each scrape.
struct Watches(Arc<Store>);

impl fmt::Debug for Watches {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Watches")
    }
}

impl Collector for Watches {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        sizes::watches(Page(encoder), &self.0.stats())
    }
}

impl Core {
    /// Registers what clients hold, what they were refused, what watches cost, and how a replica stands: for a page that does
    /// not have the metrics of etcd.
    pub fn register_figures(&self, registry: &mut Registry) {
        register_clients(registry, &self.connections, &self.store);
        if let Some(upstream) = &self.upstream {
            register_forwarding(registry, &**upstream, &self.forwarding.unheld);
        }
    }

    /// The page of metrics.
    pub(super) fn metrics_response(&self, format: Format) -> Response {
        let body = format.page([&self.metrics.registry]).unwrap_or_else(|error| {
            tracing::error!(%error, "cannot write the metrics");
            String::new()
        });
        ([(header::CONTENT_TYPE, format.content_type())], body).into_response()
    }
}

#[cfg(test)]
impl Core {
    /// The name, the type and the help text of every family of metrics.
    pub fn described_metrics(&self) -> Vec<(String, String, String)> {
        self.metrics.check("livez", "ping", true);
        if let Some(method) = self.metrics.method("/etcdserverpb.KV/Range") {
            self.metrics.request(&method, None);
        }
        crate::util::metrics::describe([&self.metrics.registry])
    }
}
