//! Metrics of each gRPC method, under grpc-prometheus's names.

use super::requests::{self, Requests};
use crate::server::descriptors::{GrpcMethod, grpc_methods};
use crate::util::metrics::Labels;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;
use std::collections::HashMap;
use std::sync::Arc;
use tonic::Code;

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

/// The metrics of one gRPC method.
pub(in crate::server) struct Method {
    started: Counter,
    received: Counter,
    sent: Counter,
    handled: Vec<Counter>,
    seconds: Option<Histogram>,
    /// Durations of calls; only for methods that read or write keys.
    outcome: Option<OutcomeSeconds>,
    requests: Option<Requests>,
    /// Instead of `requests`, for transactions that only read.
    read_only: Option<Requests>,
    /// `unary` or `stream`, the label of etcd's `etcd_server_client_requests`.
    pub(super) kind: &'static str,
}

/// Whether a call was a transaction that only reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::server) enum TxnKind {
    ReadOnly,
    /// A transaction that may write, or no transaction.
    Other,
}

/// Durations of failed and of successful calls.
struct OutcomeSeconds {
    failure: Histogram,
    success: Histogram,
}

impl Method {
    pub(in crate::server) fn started(&self) {
        self.started.inc();
    }

    pub(in crate::server) fn received(&self, messages: u64) {
        self.received.inc_by(messages);
    }

    pub(in crate::server) fn sent(&self, messages: u64) {
        self.sent.inc_by(messages);
    }

    pub(in crate::server) fn handled(&self, code: Code, seconds: f64, kind: TxnKind) {
        if let Some(counter) = self.handled.get(code as usize) {
            counter.inc();
        }
        if let Some(histogram) = &self.seconds {
            histogram.observe(seconds);
        }
        if let Some(OutcomeSeconds { failure, success }) = &self.outcome {
            let histogram = if code == Code::Ok { success } else { failure };
            histogram.observe(seconds);
        }
        let requests = match kind {
            TxnKind::ReadOnly => &self.read_only,
            TxnKind::Other => &self.requests,
        };
        if let Some(requests) = requests {
            requests.observe(code, seconds);
        }
    }
}

/// Registers the metrics of all methods at zero, so that rates exist before the first call. The methods are found
/// by their paths, `/package.Service/Method`.
pub(super) fn register(registry: &mut Registry, extensive: bool) -> HashMap<String, Arc<Method>> {
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
    let outcome = |method: &GrpcMethod| {
        let read = |success: bool| reads.get_or_create(&vec![("success", success.to_string())]).clone();
        let write = |success: bool| {
            let labels = vec![
                ("op", method.name.clone()),
                ("success", success.to_string()),
                ("version", "v3".to_owned()),
            ];
            writes.get_or_create(&labels).clone()
        };
        match (&*method.service, &*method.name) {
            ("etcdserverpb.KV", "Range") => Some(OutcomeSeconds {
                failure: read(false),
                success: read(true),
            }),
            ("etcdserverpb.KV", "Put" | "DeleteRange" | "Txn") => Some(OutcomeSeconds {
                failure: write(false),
                success: write(true),
            }),
            _ => None,
        }
    };
    let durations = requests::register(registry);
    let mut methods = HashMap::new();
    for method in grpc_methods() {
        // In the order of Go's client, which sorts labels.
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
            requests: Requests::of(&durations, &method.service, &method.name),
            read_only: (method.name == "Txn").then(|| Requests::read_only(&durations)),
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
