//! What is known of remote clusters, as Cilium's tools read it (api/v1/models/remote_cluster*.go).

use crate::model::keys::Scope;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

/// One remote cluster. Fields are omitted when zero, as the original omits them.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct RemoteCluster {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config: Option<RemoteConfig>,
    #[serde(default, skip_serializing_if = "is_default")]
    pub connected: bool,
    /// RFC 3339 with milliseconds; the year 1 for never.
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
    #[serde(default, skip_serializing_if = "is_default")]
    pub ready: bool,
    #[serde(default, skip_serializing_if = "is_default")]
    pub status: String,
    pub synced: Synced,
}

/// What the remote says of itself.
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

/// Which resources are here completely.
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

/// The status of one cluster while it is worked on. Clones share it.
#[derive(Clone, Default)]
pub struct Shared(Arc<Mutex<Live>>);

/// The facts behind a [`RemoteCluster`].
#[derive(Clone, Debug, Default)]
pub struct Live {
    pub name: String,
    pub endpoint: String,
    pub connected: bool,
    pub registered: bool,
    pub cluster_id_hex: String,
    pub config: Option<crate::model::cluster::ClusterConfig>,
    pub config_retrieved: bool,
    /// Scope → whether its first list is here; absent while it is not mirrored.
    pub listed: BTreeMap<Scope, bool>,
    pub failures: u64,
    pub last_failure: Option<SystemTime>,
    /// Since when the remote has been away, or not been here yet.
    pub away_since: Option<tokio::time::Instant>,
    pub error: Option<String>,
    /// From the start of the connection to the last canary.
    pub sync_took: Option<Duration>,
    /// Since when the heartbeat is silent, though the store answers.
    pub silent_since: Option<tokio::time::Instant>,
    /// Kinds of which everything has been written once.
    pub written: BTreeSet<Scope>,
    /// Kinds that are not followed any further, and why.
    pub stopped: BTreeMap<Scope, String>,
    /// Another cluster of the mesh has the same id.
    pub conflict: Option<String>,
    /// Connections made, and those that were not.
    pub connects: u64,
    pub attempts_failed: u64,
    pub revocations: u64,
    /// Scopes listed, and scopes whose watch went on from where it was.
    pub lists: u64,
    pub resumes: u64,
    /// Keys and bytes taken over.
    pub keys_read: u64,
    pub bytes_read: u64,
    /// Why keys were refused → how many, and the last one.
    pub refused: BTreeMap<&'static str, (u64, String)>,
}

impl Shared {
    /// The status of a cluster that has not been connected to.
    pub fn new(name: String) -> Self {
        Self(Arc::new(Mutex::new(Live {
            name,
            away_since: Some(tokio::time::Instant::now()),
            ..Live::default()
        })))
    }

    /// Changes the facts.
    pub fn update(&self, f: impl FnOnce(&mut Live)) {
        f(&mut self.0.lock());
    }

    /// Counts a key taken over.
    pub(super) fn count(&self, bytes: usize) {
        let mut live = self.0.lock();
        live.keys_read += 1;
        live.bytes_read += bytes as u64;
    }

    /// Counts a key refused; says whether it is worth a line in the log.
    pub(super) fn refused(&self, why: &'static str, key: &str) -> bool {
        let mut live = self.0.lock();
        let (count, last) = live.refused.entry(why).or_default();
        *count += 1;
        key.clone_into(last);
        count.is_power_of_two()
    }

    /// The facts now.
    pub fn live(&self) -> Live {
        self.0.lock().clone()
    }
}

impl Live {
    /// Whether there is nothing more to wait for: every kind has been written once, or is not followed.
    pub fn is_mirrored(&self) -> bool {
        let done = |scope: &Scope| self.written.contains(scope) || self.stopped.contains_key(scope);
        Scope::ALL.iter().all(done)
    }

    /// As Cilium's tools read it; `count` says how many keys of a scope there are.
    pub fn remote_cluster(&self, count: impl Fn(Scope) -> usize) -> RemoteCluster {
        let listed = |scope| self.listed.get(&scope).copied();
        let all = !self.listed.is_empty() && self.listed.values().all(|l| *l);
        let text = |t: SystemTime| {
            let time = jiff::Timestamp::try_from(t).unwrap_or_default();
            time.strftime("%Y-%m-%dT%H:%M:%S.%3fZ").to_string()
        };
        RemoteCluster {
            config: match &self.config {
                // As the original, while it is waited for.
                None => self.connected.then(|| RemoteConfig {
                    required: true,
                    ..RemoteConfig::default()
                }),
                Some(c) => Some(RemoteConfig {
                    cluster_id: c.id,
                    endpoint_slices_export_mode: String::from(c.capabilities.endpoint_slices_export_mode.clone()),
                    kvstoremesh: c.capabilities.cached,
                    required: true,
                    retrieved: self.config_retrieved,
                    service_exports_enabled: c.capabilities.service_exports_enabled,
                    sync_canaries: c.capabilities.synced_canaries,
                }),
            },
            connected: self.connected,
            last_failure: self
                .last_failure
                .map_or_else(|| "0001-01-01T00:00:00.000Z".to_owned(), text),
            name: self.name.clone(),
            num_endpoint_slices: count(Scope::EndpointSlices),
            num_endpoints: count(Scope::Endpoints),
            num_failures: self.failures,
            num_identities: count(Scope::Identities),
            num_nodes: count(Scope::Nodes),
            num_service_exports: count(Scope::ServiceExports),
            num_shared_services: count(Scope::Services),
            ready: self.connected && self.config_retrieved && self.registered && all,
            status: self.text(),
            synced: Synced {
                endpoint_slices: listed(Scope::EndpointSlices),
                endpoints: listed(Scope::Endpoints).unwrap_or_default(),
                identities: listed(Scope::Identities).unwrap_or_default(),
                nodes: listed(Scope::Nodes).unwrap_or_default(),
                service_exports: listed(Scope::ServiceExports),
                // What is not mirrored is not missing.
                services: listed(Scope::Services).unwrap_or(true),
            },
        }
    }

    fn text(&self) -> String {
        let mut text = match (&self.error, self.connected) {
            (Some(error), _) => error.clone(),
            (None, true) => format!(
                "etcd: 1/1 connected, leases=0, lock leases=0, has-quorum=true: endpoint status checks are disabled, ID: {}",
                self.cluster_id_hex
            ),
            (None, false) => "Waiting for initial connection to be established".to_owned(),
        };
        if let Some(since) = self.silent_since.filter(|_| self.connected) {
            let _ = write!(text, "; no heartbeat for {} s", since.elapsed().as_secs());
        }
        for what in self.stopped.values().chain(&self.conflict) {
            let _ = write!(text, "; {what}");
        }
        for (why, (count, last)) in &self.refused {
            let _ = write!(text, "; {count} × {why}, last {last:?}");
        }
        text
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
        }
    }
    out
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

/// How long ago a time was, in Go's words; `never` for the year 1.
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

    #[test]
    fn a_cluster_that_was_never_reached_looks_like_ciliums() {
        let cluster = Live {
            name: "dead".to_owned(),
            ..Live::default()
        }
        .remote_cluster(|_| 0);
        let json = serde_json::to_string(&cluster).unwrap();
        let expected = r#"{"last-failure":"0001-01-01T00:00:00.000Z","name":"dead","status":"Waiting for initial connection to be established","synced":{"services":true}}"#;
        assert_eq!(json, expected);
        let text = format(&[cluster], false);
        assert!(text.starts_with("KVStoreMesh:\t0/1 remote clusters ready\n   dead: not-ready, 0 nodes,"));
        assert!(text.contains("   └  remote configuration: expected=unknown, retrieved=unknown\n"));
    }

    #[test]
    fn a_ready_cluster_takes_one_line() {
        let config = crate::model::cluster::ClusterConfig {
            id: 7,
            ..Default::default()
        };
        let live = Live {
            name: "foo".to_owned(),
            connected: true,
            registered: true,
            config: Some(config),
            config_retrieved: true,
            listed: [(Scope::Nodes, true), (Scope::ServiceExports, true)].into(),
            ..Live::default()
        };
        let cluster = live.remote_cluster(|s| usize::from(s == Scope::Nodes) * 5);
        let text = format(std::slice::from_ref(&cluster), false);
        assert_eq!(
            text.lines().nth(1).unwrap(),
            "   foo: ready, 5 nodes, 0 endpoints, 0 identities, 0 services, 0 endpoint slices, 0 MCS-API service exports, 0 reconnections (last: never)"
        );
        assert_eq!(text.lines().count(), 2);
        assert!(format(&[cluster], true).contains("expected=true, retrieved=true, cluster-id=7"));
    }
}
