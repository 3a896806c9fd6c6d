//! The status of remote clusters as Cilium's tools read it (api/v1/models/remote_cluster*.go): a view of
//! [`Cluster`].

mod scope;

pub use scope::{KindScope, RuleScope, Scope};

use super::cluster::{Cluster, Phase};
use super::propagation::{Figures, Method};
use super::reflector::Completeness;
use super::refusal::Refused;
use crate::model::cluster::ClusterConfig;
use crate::model::keys::Scope as Kind;
use crate::util::durations::Quantiles;
use serde::{Deserialize, Serialize};
use std::fmt::Write;
use std::time::SystemTime;
use tokio::time::Instant;

/// One remote cluster. As in Cilium, zero fields are omitted.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct RemoteCluster {
    /// What is wrong with the certificates for the connection to the cluster. Cilium has no such field.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub certificates: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config: Option<RemoteConfig>,
    /// Why agents refuse the cluster because of its cluster id. Cilium has no such field.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub conflict: Option<String>,
    #[serde(default, skip_serializing_if = "is_default")]
    pub connected: bool,
    /// How long mirrored changes took from their commit here to the send to the last watcher, over the last minute. Cilium has no
    /// such field.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delivery: Option<Delivery>,
    /// RFC 3339 with milliseconds; a time in the year 1 means never.
    pub last_failure: String,
    #[serde(default)]
    pub name: String,
    #[serde(default, skip_serializing_if = "is_default")]
    pub num_endpoint_slices: usize,
    #[serde(default, skip_serializing_if = "is_default")]
    pub num_endpoints: usize,
    #[serde(default, skip_serializing_if = "is_default")]
    pub num_failures: u64,
    #[serde(default, skip_serializing_if = "is_default")]
    pub num_identities: usize,
    #[serde(default, skip_serializing_if = "is_default")]
    pub num_nodes: usize,
    #[serde(default, skip_serializing_if = "is_default")]
    pub num_service_exports: usize,
    #[serde(default, skip_serializing_if = "is_default")]
    pub num_shared_services: usize,
    /// How long commits of the cluster took to arrive, over the last minute. Cilium has no such field.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub propagation: Option<Propagation>,
    #[serde(default, skip_serializing_if = "is_default")]
    pub ready: bool,
    /// What the scope file leaves of the cluster's keys; absent if every key is mirrored. Cilium has no such field.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scope: Option<Scope>,
    #[serde(default, skip_serializing_if = "is_default")]
    pub status: String,
    pub synced: Synced,
}

/// The cluster configuration of the remote.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct RemoteConfig {
    #[serde(default, skip_serializing_if = "is_default")]
    pub cluster_id: u32,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub endpoint_slices_export_mode: String,
    #[serde(default, skip_serializing_if = "is_default")]
    pub kvstoremesh: bool,
    #[serde(default, skip_serializing_if = "is_default")]
    pub required: bool,
    #[serde(default, skip_serializing_if = "is_default")]
    pub retrieved: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service_exports_enabled: Option<bool>,
    #[serde(default, skip_serializing_if = "is_default")]
    pub sync_canaries: bool,
}

/// How long commits took to arrive, in milliseconds.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Propagation {
    pub p50_ms: f64,
    pub p99_ms: f64,
    /// The last difference of the clocks at arrival and write.
    pub raw_ms: f64,
    /// Whether the figures are upper bounds, measured by the heartbeat.
    #[serde(default, skip_serializing_if = "is_default")]
    pub is_upper_bound: bool,
}

/// How long mirrored changes took to reach the last watcher of the store here, in milliseconds.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Delivery {
    pub p50_ms: f64,
    pub p99_ms: f64,
}

/// The scopes whose mirrors are complete.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Synced {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoint_slices: Option<bool>,
    #[serde(default, skip_serializing_if = "is_default")]
    pub endpoints: bool,
    #[serde(default, skip_serializing_if = "is_default")]
    pub identities: bool,
    #[serde(default, skip_serializing_if = "is_default")]
    pub nodes: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service_exports: Option<bool>,
    #[serde(default, skip_serializing_if = "is_default")]
    pub services: bool,
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

// === impl RemoteCluster ===

impl RemoteCluster {
    /// The status of `cluster` at `now`. `conflict` is the reason why its cluster id is refused; `count` returns the
    /// number of mirrored keys of a scope.
    pub(super) fn of(cluster: &Cluster, conflict: Option<&str>, now: Instant, count: impl Fn(Kind) -> usize) -> Self {
        let complete = |scope| match cluster.completeness(scope) {
            Completeness::Disabled => None,
            Completeness::Incomplete | Completeness::Stopped(_) | Completeness::Forbidden(_) => Some(false),
            Completeness::Complete => Some(true),
        };
        Self {
            certificates: vec![],
            config: match cluster.configuration() {
                // As in Cilium, the field is present while the mirror waits for the configuration.
                None => cluster.is_connected().then(|| RemoteConfig {
                    required: true,
                    ..RemoteConfig::default()
                }),
                Some(config) => Some(RemoteConfig::of(config)),
            },
            conflict: conflict.map(str::to_owned),
            connected: cluster.is_connected(),
            delivery: None,
            last_failure: cluster
                .last_failure()
                .map_or_else(|| "0001-01-01T00:00:00.000Z".to_owned(), rfc3339),
            name: cluster.name().to_string(),
            num_endpoint_slices: count(Kind::EndpointSlices),
            num_endpoints: count(Kind::Endpoints),
            num_failures: cluster.counters().failures,
            num_identities: count(Kind::Identities),
            num_nodes: count(Kind::Nodes),
            num_service_exports: count(Kind::ServiceExports),
            num_shared_services: count(Kind::Services),
            propagation: None,
            ready: cluster.phase() == Phase::Following,
            scope: None,
            status: text(cluster, conflict, now),
            synced: Synced {
                endpoint_slices: complete(Kind::EndpointSlices),
                endpoints: complete(Kind::Endpoints).unwrap_or_default(),
                identities: complete(Kind::Identities).unwrap_or_default(),
                nodes: complete(Kind::Nodes).unwrap_or_default(),
                service_exports: complete(Kind::ServiceExports),
                // A disabled scope is not missing from the mirror.
                services: complete(Kind::Services).unwrap_or(true),
            },
        }
    }
}

// === impl Propagation ===

impl From<&Figures> for Propagation {
    fn from(figures: &Figures) -> Self {
        Self {
            p50_ms: rounded(figures.p50),
            p99_ms: rounded(figures.p99),
            raw_ms: rounded(figures.raw),
            is_upper_bound: figures.method == Method::Heartbeat,
        }
    }
}

// === impl Delivery ===

impl From<&Quantiles> for Delivery {
    fn from(figures: &Quantiles) -> Self {
        Self {
            p50_ms: rounded(figures.p50),
            p99_ms: rounded(figures.p99),
        }
    }
}

fn rounded(ms: f64) -> f64 {
    (ms * 100.0).round() / 100.0
}

// === impl RemoteConfig ===

impl RemoteConfig {
    fn of(config: &ClusterConfig) -> Self {
        let capabilities = &config.capabilities;
        Self {
            cluster_id: config.id,
            endpoint_slices_export_mode: String::from(capabilities.endpoint_slices_export_mode.clone()),
            kvstoremesh: capabilities.cached,
            required: true,
            retrieved: true,
            service_exports_enabled: capabilities.service_exports_enabled,
            sync_canaries: capabilities.synced_canaries,
        }
    }
}

fn rfc3339(time: SystemTime) -> String {
    let time = jiff::Timestamp::try_from(time).unwrap_or_default();
    time.strftime("%Y-%m-%dT%H:%M:%S.%3fZ").to_string()
}

/// The status line: the error, or the state of the connection in Cilium's words; then further remarks.
fn text(cluster: &Cluster, conflict: Option<&str>, now: Instant) -> String {
    let mut text = match (cluster.error(), cluster.is_connected()) {
        (Some(error), _) => error.to_owned(),
        (None, true) => format!(
            "etcd: 1/1 connected, leases=0, lock leases=0, has-quorum=true: endpoint status checks are disabled, ID: {:x}",
            cluster.store_id()
        ),
        (None, false) => "Waiting for initial connection to be established".to_owned(),
    };
    for what in remarks(cluster, conflict, now) {
        let _ = write!(text, "; {what}");
    }
    text
}

/// What is wrong beside the connection.
fn remarks(cluster: &Cluster, conflict: Option<&str>, now: Instant) -> Vec<String> {
    let mut remarks = vec![];
    if let Some(since) = cluster.silent_since().filter(|_| cluster.is_connected()) {
        let silent = now.saturating_duration_since(since);
        remarks.push(format!("no heartbeat for {} s", silent.as_secs()));
    }
    let reasons = cluster.forbidden().chain(cluster.stopped()).chain(conflict);
    remarks.extend(reasons.map(str::to_owned));
    for (why, Refused { count, last_key }) in cluster.refusals().iter() {
        remarks.push(format!("{count} × {why}, last {last_key:?}"));
    }
    remarks
}

/// What is wrong with a cluster at `now`, one sentence each. `conflict` is the reason why its cluster id is refused.
pub(super) fn troubles(cluster: &Cluster, conflict: Option<&str>, now: Instant) -> Vec<String> {
    let error = cluster.error().map(str::to_owned);
    error.into_iter().chain(remarks(cluster, conflict, now)).collect()
}

/// How a replica follows its etcd.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub struct ReplicaStatus {
    /// The last revision that is visible here.
    pub revision: i64,
    /// Revisions that the etcd has told and that are not here yet.
    pub behind: i64,
    /// Why the etcd is not followed at the moment; empty if it is.
    pub trouble: String,
}

impl ReplicaStatus {
    /// The text form.
    pub fn format(&self) -> String {
        let Self {
            revision,
            behind,
            trouble,
        } = self;
        match &**trouble {
            "" => format!("Replica:\tat revision {revision}, {behind} revisions behind the etcd\n"),
            trouble => format!("Replica:\tat revision {revision}, does not follow the etcd: {trouble}\n"),
        }
    }
}

/// The text form (pkg/client/client.go, FormatStatusResponseRemoteClusters).
pub fn format(clusters: &[RemoteCluster], verbose: bool) -> String {
    let mut out = String::new();
    let ready = clusters.iter().filter(|c| c.ready).count();
    let _ = writeln!(out, "KVStoreMesh:\t{ready}/{} remote clusters ready", clusters.len());
    for c in clusters {
        let state = if c.ready { "ready" } else { "not-ready" };
        let _ = writeln!(
            out,
            "   {}: {state}, {} nodes, {} endpoints, {} identities, {} services, {} endpoint slices, {} MCS-API service exports, {} reconnections (last: {})",
            c.name,
            c.num_nodes,
            c.num_endpoints,
            c.num_identities,
            c.num_shared_services,
            c.num_endpoint_slices,
            c.num_service_exports,
            c.num_failures,
            ago(&c.last_failure),
        );
        if verbose || !c.ready {
            let _ = writeln!(out, "   └  {}", c.status);
            let _ = writeln!(out, "   └  remote configuration: {}", config(c.config.as_ref()));
            let _ = writeln!(out, "   └  synchronization status: {}", synced(&c.synced));
        } else if let Some(conflict) = &c.conflict {
            let _ = writeln!(out, "   └  {conflict}: agents refuse the cluster");
        }
        if let Some(scope) = &c.scope {
            let _ = writeln!(out, "   └  {}", scope.line());
        }
        if let Some(propagation) = &c.propagation {
            let _ = writeln!(out, "   └  {}", propagated(propagation));
        }
        if let Some(Delivery { p50_ms, p99_ms }) = &c.delivery {
            let _ = writeln!(
                out,
                "   └  from the commit here to the last watcher: p50 {p50_ms:.1} ms, p99 {p99_ms:.1} ms"
            );
        }
        for certificate in c.certificates.iter().filter(|text| !c.status.contains(*text)) {
            let _ = writeln!(out, "   └  {certificate}");
        }
    }
    out
}

fn propagated(propagation: &Propagation) -> String {
    let Propagation {
        p50_ms,
        p99_ms,
        raw_ms,
        is_upper_bound,
    } = propagation;
    match is_upper_bound {
        true => format!("propagation: at most {p99_ms:.0} ms, by the heartbeat, if the clocks agree"),
        false => {
            format!("propagation: p50 {p50_ms:.1} ms, p99 {p99_ms:.1} ms; with the clocks' difference {raw_ms:.1} ms")
        }
    }
}

fn config(config: Option<&RemoteConfig>) -> String {
    let Some(c) = config else {
        return "expected=unknown, retrieved=unknown".to_owned();
    };
    let mut text = format!("expected={}, retrieved={}", c.required, c.retrieved);
    if c.retrieved {
        let exports = match c.service_exports_enabled {
            None => "unsupported",
            Some(true) => "enabled",
            Some(false) => "disabled",
        };
        let mode = match &*c.endpoint_slices_export_mode {
            "" => "services-only",
            mode => mode,
        };
        let _ = write!(
            text,
            ", cluster-id={}, kvstoremesh={}, sync-canaries={}, service-exports={exports}, endpoint-slice-export-mode={mode}",
            c.cluster_id, c.kvstoremesh, c.sync_canaries
        );
    }
    text
}

fn synced(s: &Synced) -> String {
    let mut text = format!(
        "nodes={}, endpoints={}, identities={}, services={}",
        s.nodes, s.endpoints, s.identities, s.services
    );
    for (name, value) in [
        ("endpoint-slices", s.endpoint_slices),
        ("service-exports", s.service_exports),
    ] {
        if let Some(value) = value {
            let _ = write!(text, ", {name}={value}");
        }
    }
    text
}

/// The time that has passed since `time`, in Go's words; `never` for the year 1.
fn ago(time: &str) -> String {
    let then = time
        .parse::<jiff::Timestamp>()
        .ok()
        .filter(|_| !time.starts_with("0001-"));
    let Some(then) = then else { return "never".to_owned() };
    let secs = (jiff::Timestamp::now().as_second() - then.as_second()).max(0);
    let text = match (secs / 3600, secs / 60 % 60, secs % 60) {
        (0, 0, s) => format!("{s}s"),
        (0, m, s) => format!("{m}m{s}s"),
        (h, m, s) => format!("{h}h{m}m{s}s"),
    };
    format!("{text} ago")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kvstoremesh::cluster::Cause;
    use crate::kvstoremesh::exports::Exports;
    use crate::model::cluster::ClusterName;
    use std::time::Duration;

    fn cluster(name: &str) -> Cluster {
        Cluster::new(ClusterName::new(name).unwrap(), Instant::now())
    }

    /// Connected to a store and configured, with mirrors of these scopes complete.
    fn configured(name: &str, complete: &[Kind]) -> Cluster {
        let mut cluster = cluster(name);
        let config = ClusterConfig {
            id: 7,
            ..ClusterConfig::default()
        };
        cluster.file_read("https://foo:2379".to_owned());
        cluster.connected(0xab);
        cluster.configured(config.clone(), &Exports::of(&config, true));
        for scope in complete {
            cluster.reflector_synced(*scope);
        }
        cluster
    }

    fn status(cluster: &Cluster) -> RemoteCluster {
        RemoteCluster::of(cluster, None, Instant::now(), |scope| {
            usize::from(scope == Kind::Nodes) * 5
        })
    }

    #[test]
    fn a_cluster_that_was_never_reached_looks_like_ciliums() {
        let cluster = RemoteCluster::of(&cluster("dead"), None, Instant::now(), |_| 0);
        let json = serde_json::to_string(&cluster).unwrap();
        let expected = r#"{"last-failure":"0001-01-01T00:00:00.000Z","name":"dead","status":"Waiting for initial connection to be established","synced":{"services":true}}"#;
        assert_eq!(json, expected);
        let text = format(&[cluster], false);
        assert!(text.starts_with("KVStoreMesh:\t0/1 remote clusters ready\n   dead: not-ready, 0 nodes,"));
        assert!(text.contains("   └  remote configuration: expected=unknown, retrieved=unknown\n"));
    }

    #[test]
    fn a_ready_cluster_takes_one_line() {
        let cluster = status(&configured("foo", &Kind::ALL));
        let text = format(std::slice::from_ref(&cluster), false);
        assert_eq!(
            text.lines().nth(1).unwrap(),
            "   foo: ready, 5 nodes, 0 endpoints, 0 identities, 0 services, 0 endpoint slices, 0 MCS-API service exports, 0 reconnections (last: never)"
        );
        assert_eq!(text.lines().count(), 2);
        assert!(format(&[cluster], true).contains("expected=true, retrieved=true, cluster-id=7"));
    }

    #[test]
    fn a_conflict_of_ids_is_shown_for_a_ready_cluster_too() {
        let cluster = configured("foo", &Kind::ALL);
        let conflict = Some("cluster id 7 is also that of bar");
        let cluster = RemoteCluster::of(&cluster, conflict, Instant::now(), |_| 0);
        let read: RemoteCluster = serde_json::from_str(&serde_json::to_string(&cluster).unwrap()).unwrap();
        let text = format(&[read], false);
        assert_eq!(
            text.lines().nth(2),
            Some("   └  cluster id 7 is also that of bar: agents refuse the cluster")
        );
    }

    #[test]
    fn a_certificate_that_expires_is_shown_for_a_ready_cluster_too() {
        let mut cluster = status(&configured("foo", &Kind::ALL));
        cluster.certificates = vec!["the client certificate /c expired".to_owned()];
        let read: RemoteCluster = serde_json::from_str(&serde_json::to_string(&cluster).unwrap()).unwrap();
        let text = format(&[read], false);
        assert_eq!(text.lines().nth(2), Some("   └  the client certificate /c expired"));
    }

    #[test]
    fn a_cluster_that_is_waited_for_has_a_configuration_that_is_not_retrieved() {
        let mut cluster = cluster("foo");
        cluster.connected(1);
        let config = status(&cluster).config.unwrap();
        assert!(config.required && !config.retrieved);
    }

    #[test]
    fn synced_is_absent_for_kinds_that_are_not_exported() {
        let remote = status(&configured("foo", &[Kind::Nodes]));
        assert!(!remote.ready && remote.connected);
        let synced = remote.synced;
        assert!(synced.nodes && !synced.endpoints && !synced.identities && !synced.services);
        assert_eq!((synced.endpoint_slices, synced.service_exports), (None, None));
    }

    #[test]
    fn the_status_line_names_everything_that_is_wrong() {
        let mut cluster = configured("foo", &Kind::ALL);
        let now = Instant::now();
        cluster.heartbeat_silent(now);
        cluster.reflector_stopped(Kind::Nodes, "p/ holds 9 keys".to_owned());
        let line = text(
            &cluster,
            Some("cluster id 7 is also that of b"),
            now + Duration::from_secs(130),
        );
        assert_eq!(
            line,
            "etcd: 1/1 connected, leases=0, lock leases=0, has-quorum=true: endpoint status checks are disabled, ID: ab; no heartbeat for 130 s; p/ holds 9 keys; cluster id 7 is also that of b"
        );
        cluster.failed(Cause::Other, "it broke".to_owned(), now, SystemTime::UNIX_EPOCH);
        let remote = status(&cluster);
        assert_eq!(remote.status, "it broke; p/ holds 9 keys");
        assert_eq!(
            (remote.num_failures, &*remote.last_failure),
            (1, "1970-01-01T00:00:00.000Z")
        );
        assert!(!remote.ready && !remote.connected && !remote.synced.nodes && remote.synced.endpoints);
    }
}
