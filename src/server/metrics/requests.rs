//! `etcd_server_request_duration_seconds`, which etcd has since 3.7: the durations of requests by kind and success.

use crate::util::metrics::Labels;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;
use std::sync::OnceLock;
use tonic::Code;

/// Marks the answer of a transaction that only reads, which etcd counts as a kind of its own.
#[derive(Clone, Copy, Debug)]
pub(in crate::server) struct ReadOnlyTxn;

pub(super) type Durations = Family<Labels, Histogram, fn() -> Histogram>;

/// The histograms of one kind of request. As in etcd, a series exists from the first request on, because most kinds are
/// never used.
pub(super) struct Requests {
    kind: &'static str,
    durations: Durations,
    failure: OnceLock<Histogram>,
    success: OnceLock<Histogram>,
}

/// Registers the metric.
pub(super) fn register(registry: &mut Registry) -> Durations {
    let durations = Durations::new_with_constructor(|| Histogram::new(exponential_buckets(0.001, 2.0, 14)));
    registry.register(
        "etcd_server_request_duration_seconds",
        "How long requests take, by kind",
        Family::clone(&durations),
    );
    durations
}

/// The kind of request that etcd counts a method as (server/etcdserver/v3_server.go, getRequestType).
fn kind_of(service: &str, method: &str) -> Option<&'static str> {
    Some(match (service, method) {
        ("etcdserverpb.KV", "Range") => "Range",
        ("etcdserverpb.KV", "Put") => "Put",
        ("etcdserverpb.KV", "DeleteRange") => "DeleteRange",
        ("etcdserverpb.KV", "Txn") => "Txn",
        ("etcdserverpb.KV", "Compact") => "Compaction",
        ("etcdserverpb.Lease", "LeaseGrant") => "LeaseGrant",
        ("etcdserverpb.Lease", "LeaseRevoke") => "LeaseRevoke",
        ("etcdserverpb.Maintenance", "Alarm") => "Alarm",
        ("etcdserverpb.Auth", "Authenticate") => "Authenticate",
        ("etcdserverpb.Auth", "AuthEnable") => "AuthEnable",
        ("etcdserverpb.Auth", "AuthDisable") => "AuthDisable",
        ("etcdserverpb.Auth", "AuthStatus") => "AuthStatus",
        ("etcdserverpb.Auth", "UserAdd") => "AuthUserAdd",
        ("etcdserverpb.Auth", "UserGet") => "AuthUserGet",
        ("etcdserverpb.Auth", "UserList") => "AuthUserList",
        ("etcdserverpb.Auth", "UserDelete") => "AuthUserDelete",
        ("etcdserverpb.Auth", "UserChangePassword") => "AuthUserChangePassword",
        ("etcdserverpb.Auth", "UserGrantRole") => "AuthUserGrantRole",
        ("etcdserverpb.Auth", "UserRevokeRole") => "AuthUserRevokeRole",
        ("etcdserverpb.Auth", "RoleAdd") => "AuthRoleAdd",
        ("etcdserverpb.Auth", "RoleGet") => "AuthRoleGet",
        ("etcdserverpb.Auth", "RoleList") => "AuthRoleList",
        ("etcdserverpb.Auth", "RoleDelete") => "AuthRoleDelete",
        ("etcdserverpb.Auth", "RoleGrantPermission") => "AuthRoleGrantPermission",
        ("etcdserverpb.Auth", "RoleRevokePermission") => "AuthRoleRevokePermission",
        _ => return None,
    })
}

impl Requests {
    /// The histograms of a method; `None` for a method that etcd does not count.
    pub(super) fn of(durations: &Durations, service: &str, method: &str) -> Option<Self> {
        kind_of(service, method).map(|kind| Self::new(durations, kind))
    }

    /// The histograms of transactions that only read.
    pub(super) fn read_only(durations: &Durations) -> Self {
        Self::new(durations, "ReadonlyTxn")
    }

    fn new(durations: &Durations, kind: &'static str) -> Self {
        Self {
            kind,
            durations: Family::clone(durations),
            failure: OnceLock::new(),
            success: OnceLock::new(),
        }
    }

    pub(super) fn observe(&self, code: Code, seconds: f64) {
        // Parity: etcd counts a request that was answered with an error as a success, unless the request is a read.
        let success = match self.kind {
            "Range" | "ReadonlyTxn" => code == Code::Ok,
            _ => !matches!(code, Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled),
        };
        let histogram = if success { &self.success } else { &self.failure };
        let labels = || vec![("success", success.to_string()), ("type", self.kind.to_owned())];
        histogram
            .get_or_init(|| self.durations.get_or_create(&labels()).clone())
            .observe(seconds);
    }
}
