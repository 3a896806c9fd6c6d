//! Metrics under etcd's and grpc-prometheus's names, so that etcd's dashboards and alerts work.
//!
//! Sizes are looked up when somebody asks. Where etcd has a figure that means nothing here (Raft, disk),
//! its name is there with zero: an alert on it stays silent instead of missing its series.

use super::{Config, Core, ETCD_VERSION, STORAGE_VERSION};
use crate::auth::AuthStore;
use crate::durable::{self, Durable};
use crate::lease::Lessor;
use crate::mvcc::Store;
use crate::util::metrics::{Labels, Process};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, text};
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;
use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use tonic::Code;

/// All that is counted, and the registry that shows it.
pub(super) struct Metrics {
    registry: Registry,
    methods: HashMap<String, Arc<Method>>,
    health_success: Gauge,
    health_failures: Gauge,
    check: Family<Labels, Gauge>,
    checks: Family<Labels, Counter>,
    requests: Family<Labels, Counter>,
    /// Bytes of requests and of answers.
    pub(super) received_bytes: Counter,
    pub(super) sent_bytes: Counter,
}

/// What is counted of one gRPC method.
pub(super) struct Method {
    started: Counter,
    received: Counter,
    sent: Counter,
    handled: Vec<Counter>,
    seconds: Option<Histogram>,
    /// For reads and writes of keys: how long those that fail and those that succeed take.
    outcome: Option<[Histogram; 2]>,
    /// `unary` or `stream`, as etcd counts clients' requests.
    kind: &'static str,
}

/// Sizes of the store at the time of a scrape.
struct Sizes {
    store: Arc<Store>,
    lessor: Arc<Lessor>,
    auth: Arc<AuthStore>,
    quota: i64,
    /// Whether there is a disk to speak of.
    durable: bool,
}

impl fmt::Debug for Sizes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Sizes")
    }
}

const CODES: [&str; 17] = [
    "OK",
    "Canceled",
    "Unknown",
    "InvalidArgument",
    "DeadlineExceeded",
    "NotFound",
    "AlreadyExists",
    "PermissionDenied",
    "ResourceExhausted",
    "FailedPrecondition",
    "Aborted",
    "OutOfRange",
    "Unimplemented",
    "Internal",
    "Unavailable",
    "DataLoss",
    "Unauthenticated",
];

/// Counters that only a cluster or a disk would move. Names without their `_total`.
const ZERO_COUNTERS: &[&str] = &[
    "etcd_server_leader_changes_seen",
    "etcd_server_proposals_failed",
    "etcd_server_slow_apply",
    "etcd_server_slow_read_indexes",
    "etcd_server_read_indexes_failed",
    "etcd_server_heartbeat_send_failures",
    "etcd_disk_wal_write_bytes",
    "etcd_debugging_store_expires",
    "etcd_debugging_store_watch_requests",
    "etcd_debugging_store_reads",
    "etcd_debugging_store_writes",
    "etcd_debugging_mvcc_db_compaction_keys",
    "etcd_grpc_proxy_cache_hits",
    "etcd_grpc_proxy_cache_misses",
    "etcd_grpc_proxy_events_coalescing",
    "etcd_grpc_proxy_watchers_coalescing",
];

/// Gauges that only a cluster or a disk would move, and counters of etcd that do not end in `_total`.
const ZERO_GAUGES: &[&str] = &[
    "etcd_server_is_learner",
    "etcd_server_learner_promote_successes",
    "etcd_server_proposals_pending",
    "etcd_server_snapshot_apply_in_progress_total",
    "etcd_debugging_mvcc_pending_events_total",
    "etcd_debugging_mvcc_slow_watcher_total",
    "etcd_debugging_store_watchers",
    "etcd_debugging_mvcc_db_compaction_last",
    "etcd_grpc_proxy_cache_keys_total",
    "etcd_disk_defrag_inflight",
    "etcd_mvcc_db_open_read_transactions",
    "etcd_network_known_peers",
];

/// Histograms that nothing is observed in, first bucket and number of buckets.
const ZERO_HISTOGRAMS: &[(&str, f64, u16)] = &[
    ("etcd_disk_wal_fsync_duration_seconds", 0.001, 14),
    ("etcd_disk_wal_write_duration_seconds", 0.001, 14),
    ("etcd_disk_backend_commit_duration_seconds", 0.001, 14),
    ("etcd_disk_backend_defrag_duration_seconds", 0.1, 13),
    ("etcd_disk_backend_snapshot_duration_seconds", 0.01, 17),
    ("etcd_mvcc_hash_duration_seconds", 0.01, 15),
    ("etcd_mvcc_hash_rev_duration_seconds", 0.01, 15),
    ("etcd_snap_db_fsync_duration_seconds", 0.001, 14),
    ("etcd_snap_db_save_total_duration_seconds", 0.1, 10),
    ("etcd_snap_fsync_duration_seconds", 0.001, 14),
    (
        "etcd_debugging_disk_backend_commit_rebalance_duration_seconds",
        0.001,
        14,
    ),
    ("etcd_debugging_disk_backend_commit_spill_duration_seconds", 0.001, 14),
    ("etcd_debugging_disk_backend_commit_write_duration_seconds", 0.001, 14),
    ("etcd_debugging_lease_ttl_total", 1.0, 24),
    ("etcd_debugging_mvcc_db_compaction_pause_duration_milliseconds", 1.0, 13),
    (
        "etcd_debugging_mvcc_db_compaction_total_duration_milliseconds",
        100.0,
        14,
    ),
    (
        "etcd_debugging_mvcc_index_compaction_pause_duration_milliseconds",
        0.5,
        14,
    ),
    ("etcd_debugging_snap_save_marshalling_duration_seconds", 0.001, 14),
    ("etcd_debugging_snap_save_total_duration_seconds", 0.001, 14),
];

// === impl Method ===

impl Method {
    pub(super) fn started(&self) {
        self.started.inc();
    }

    pub(super) fn received(&self, messages: u64) {
        self.received.inc_by(messages);
    }

    pub(super) fn sent(&self, messages: u64) {
        self.sent.inc_by(messages);
    }

    pub(super) fn handled(&self, code: Code, seconds: f64) {
        if let Some(counter) = self.handled.get(code as usize) {
            counter.inc();
        }
        if let Some(histogram) = &self.seconds {
            histogram.observe(seconds);
        }
        if let Some(histograms) = &self.outcome {
            histograms[usize::from(code == Code::Ok)].observe(seconds);
        }
    }
}

// === impl Metrics ===

impl Metrics {
    /// Figures of these.
    pub(super) fn new(
        store: Arc<Store>,
        lessor: Arc<Lessor>,
        auth: Arc<AuthStore>,
        durable: Option<&Durable>,
        config: &Config,
    ) -> Self {
        let (quota, member, extensive) = (config.quota_bytes, config.identity.member_id, config.extensive_metrics);
        let mut registry = Registry::default();
        let methods = methods(&mut registry, extensive);
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
        let (check, checks) = (Family::default(), Family::default());
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
        let requests = Family::default();
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
        if let Some(durable) = durable {
            durable.metrics().register(&mut registry);
        }
        let durable = durable.is_some();
        let zero = |name: &str| !(durable && durable::Metrics::has(name));
        for &(name, first, buckets) in ZERO_HISTOGRAMS.iter().filter(|(name, ..)| zero(name)) {
            let histogram = Histogram::new(exponential_buckets(first, 2.0, buckets));
            registry.register(name, "Nothing here does this", histogram);
        }
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
            received_bytes,
            sent_bytes,
        }
    }

    /// The counters of a method by its path, `/package.Service/Method`.
    pub(super) fn method(&self, path: &str) -> Option<Arc<Method>> {
        self.methods.get(path).map(Arc::clone)
    }

    /// Counts a request by the version its client says it has, if that looks like one.
    pub(super) fn request(&self, method: &Method, version: Option<&str>) {
        // What a client says is not to fill the memory: major.minor, or nothing.
        let short = |n: &str| (1..=2).contains(&n.len()) && n.bytes().all(|b| b.is_ascii_digit());
        let plain = |v: &&str| v.split_once('.').is_some_and(|(a, b)| short(a) && short(b));
        let version = version.filter(plain).unwrap_or("unknown");
        let labels = vec![
            ("client_api_version", version.to_owned()),
            ("type", method.kind.to_owned()),
        ];
        self.requests.get_or_create(&labels).inc();
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

/// Gauges that say by their label what runs.
fn facts(registry: &mut Registry, member: u64) {
    let cluster = STORAGE_VERSION.trim_end_matches(".0").to_owned();
    for (name, label, value) in [
        ("etcd_server_version", "server_version", ETCD_VERSION.to_owned()),
        ("etcd_cluster_version", "cluster_version", cluster),
        ("etcd_server_go_version", "server_go_version", "none".to_owned()),
        ("etcd_server_id", "server_id", format!("{member:x}")),
    ] {
        let family: Family<Labels, Gauge> = Family::default();
        family.get_or_create(&vec![(label, value)]).set(1);
        registry.register(name, "1 for what runs", family);
    }
}

/// Registers the counters of all methods, at zero, so that rates exist before the first call.
fn methods(registry: &mut Registry, extensive: bool) -> HashMap<String, Arc<Method>> {
    let counters = || Family::<Labels, Counter>::default();
    let (started, handled, received, sent) = (counters(), counters(), counters(), counters());
    let seconds = Family::<Labels, Histogram, fn() -> Histogram>::new_with_constructor(|| {
        Histogram::new([0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0])
    });
    let timed = || {
        Family::<Labels, Histogram, fn() -> Histogram>::new_with_constructor(|| {
            Histogram::new(exponential_buckets(0.0001, 2.0, 20))
        })
    };
    let (reads, writes) = (timed(), timed());
    let outcome = |method: &super::GrpcMethod| {
        let write = |op: &str| {
            let labels = |success: bool| {
                vec![
                    ("op", op.to_owned()),
                    ("success", success.to_string()),
                    ("version", "v3".to_owned()),
                ]
            };
            [false, true].map(|success| writes.get_or_create(&labels(success)).clone())
        };
        match (&*method.service, &*method.name) {
            ("etcdserverpb.KV", "Range") => {
                Some([false, true].map(|success| reads.get_or_create(&vec![("success", success.to_string())]).clone()))
            }
            ("etcdserverpb.KV", name @ ("Put" | "DeleteRange" | "Txn")) => Some(write(name)),
            _ => None,
        }
    };
    let mut methods = HashMap::new();
    for method in super::grpc_methods() {
        // Labels are sorted, as Go's client sorts them.
        let labels: Labels = vec![
            ("grpc_method", method.name.clone()),
            ("grpc_service", method.service.clone()),
            ("grpc_type", method.kind.to_owned()),
        ];
        let with_code = |code: &&str| [&[("grpc_code", (*code).to_owned())], &labels[..]].concat();
        let counted = Method {
            started: started.get_or_create(&labels).clone(),
            received: received.get_or_create(&labels).clone(),
            sent: sent.get_or_create(&labels).clone(),
            handled: CODES
                .iter()
                .map(|code| handled.get_or_create(&with_code(code)).clone())
                .collect(),
            seconds: extensive.then(|| seconds.get_or_create(&labels).clone()),
            outcome: outcome(&method),
            kind: if method.kind == "unary" { "unary" } else { "stream" },
        };
        methods.insert(format!("/{}/{}", method.service, method.name), Arc::new(counted));
    }
    registry.register("grpc_server_started", "RPCs started on the server", started);
    registry.register("grpc_server_handled", "RPCs completed on the server", handled);
    registry.register("grpc_server_msg_received", "Messages received", received);
    registry.register("grpc_server_msg_sent", "Messages sent", sent);
    registry.register("etcd_server_range_duration_seconds", "How long reads take", reads);
    registry.register("etcd_server_apply_duration_seconds", "How long writes take", writes);
    if extensive {
        let help = "How long the server took, in seconds";
        registry.register("grpc_server_handling_seconds", help, seconds);
    }
    methods
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
            gauge.encode(encoder.encode_descriptor(name, "See etcd", None, gauge.metric_type())?)?;
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

impl Core {
    pub(super) fn metrics_response(&self) -> Response {
        let mut body = String::new();
        if let Err(error) = text::encode(&mut body, &self.metrics.registry) {
            tracing::error!(%error, "cannot write the metrics");
        }
        let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
        ([(header::CONTENT_TYPE, kind)], body).into_response()
    }
}
