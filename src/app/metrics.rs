//! Metrics and readiness conditions of a daemon.

#[cfg(test)]
mod reference;

use crate::admin::{self, LateRegistry};
use crate::follow;
use crate::k8s::status::Status;
use crate::kvstore::{self, Backend};
use crate::kvstoremesh::api::ReplicaSource;
use crate::kvstoremesh::cluster::Counters;
use crate::kvstoremesh::metrics::{ImportMetrics, MeshMetrics};
use crate::kvstoremesh::status::ReplicaStatus;
use crate::scope::metrics::ScopeMetrics;
use crate::users::{self, Users};
use crate::util::expiry::Expiries;
use crate::util::lifecycle::Lifecycle;
use crate::util::metrics::{BuildInfo, Labels, Page, ProcessCollector};
use crate::util::outage::Outage;
use crate::util::readiness::{Ready, Requirement};
use parking_lot::Mutex;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, SystemTime};
use tokio::time::Instant;

/// Shortest outage of the store that fails readiness.
const STORE_AWAY: Duration = Duration::from_secs(15);
/// Shortest outage of the Kubernetes API that fails readiness.
const API_AWAY: Duration = Duration::from_secs(15);

/// The prefix of the mirror's metrics.
pub const MIRROR: &str = "cilium_kvstoremesh";

/// Conditions that a daemon's readiness depends on (`--ready-needs`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Needs {
    /// The store accepts writes.
    pub store: bool,
    /// The Kubernetes API is connected. Off by default: published data remains valid without a connection.
    pub kubernetes: bool,
}

impl Default for Needs {
    fn default() -> Self {
        Self {
            store: true,
            kubernetes: false,
        }
    }
}

/// The metrics of all parts of a daemon. Clones share them.
#[derive(Clone, Default)]
pub struct DaemonMetrics {
    pub kvstore: kvstore::Metrics,
    /// The same of the mirror's writers and connections, under the prefix of Cilium's mirror.
    pub mirror: kvstore::Metrics,
    pub kubernetes: Status,
    pub mesh: MeshMetrics,
    /// The certificates that the process uses.
    pub expiry: Expiries,
    pub scope: ScopeMetrics,
    /// The store of this process, once it has started.
    store: LateRegistry,
    bootstrap: Gauge<f64, AtomicU64>,
    users: Arc<Mutex<Option<Arc<Users>>>>,
    /// How this process follows an etcd.
    replica: Arc<Mutex<Option<Arc<follow::Metrics>>>>,
    /// 1 while this process holds the leader lock; no series in a process without an election.
    leader: Family<Labels, Gauge>,
}

/// The controller groups whose runs are counted (`--controller-group-metrics`).
#[derive(Clone, Debug, Default)]
pub struct ControllerGroups(Vec<String>);

impl ControllerGroups {
    /// Takes names of groups, `all`, or `none`, which overrides the others.
    pub fn new(names: &[String]) -> Self {
        Self(names.to_vec())
    }

    fn has(&self, name: &str) -> bool {
        let any = |wanted: &str| self.0.iter().any(|n| n == wanted);
        !any("none") && (any("all") || any(name))
    }
}

/// The metrics of the tasks that Cilium calls controllers.
struct Controllers(ControllerGroups, DaemonMetrics);

impl fmt::Debug for Controllers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Controllers")
    }
}

impl Collector for Controllers {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let Self(groups, metrics) = self;
        let mut page = Page(encoder);
        let mut runs = vec![];
        let mut add = |group: &str, (well, badly): (u64, u64)| {
            for (status, count) in [("success", well), ("failure", badly)] {
                if count > 0 && groups.has(group) {
                    let labels = vec![("group_name", group.to_owned()), ("status", status.to_owned())];
                    runs.push((labels, count));
                }
            }
        };
        let probes = metrics.kubernetes.probes();
        add("k8s-heartbeat", (probes.succeeded, probes.failed));
        if let Some(mesh) = metrics.mesh.mesh() {
            let clusters = mesh.clusters();
            let sum = |of: fn(Counters) -> u64| clusters.iter().map(|c| of(c.cluster.counters())).sum();
            add(
                "clustermesh-remote-cluster",
                (sum(|l| l.connects), sum(|l| l.attempts_failed)),
            );
            add(
                "clustermesh-cluster-config",
                (sum(|l| l.connects), sum(|l| l.configurations_missing)),
            );
            add("clustermesh-cluster-config-enforcer", metrics.mirror.kept.counts());
        }
        let users = metrics.users.lock().as_ref().map(|users| users.status());
        if let Some(status) = &users {
            add(users::GROUP, (status.runs_ok, status.runs_failed));
        }
        page.counters(
            "controllers_group_runs",
            "Number of runs of controllers, by group and outcome",
            runs,
        )?;
        let managed = users.map(|status| (vec![], status.managed as f64));
        page.gauges(
            "users_managed",
            "Number of etcd users managed from the users file",
            managed.into_iter().collect(),
        )
    }
}

/// The text of an outage that has lasted for at least `after`.
fn lasting(outage: Option<Outage>, after: Duration) -> Option<String> {
    let Outage { lasted, reason } = outage.filter(|outage| outage.lasted >= after)?;
    Some(format!("for {} s: {reason}", lasted.as_secs()))
}

impl DaemonMetrics {
    /// The metrics of a process whose names begin with `prefix`.
    pub fn new(prefix: &str) -> Self {
        let mut metrics = Self::default();
        if prefix == MIRROR {
            metrics.mirror = metrics.kvstore.clone();
        }
        metrics
    }

    /// Shows the store of this process.
    pub fn follow_store(&self, figures: Registry) {
        // A process has one store.
        let _ = self.store.set(figures);
    }

    /// Measures the time until readiness is reached.
    pub fn follow(&self, ready: &Ready, life: &Lifecycle) {
        let (bootstrap, begun) = (self.bootstrap.clone(), Instant::now());
        super::once_ready(ready, life, move || {
            tracing::info!(secs = begun.elapsed().as_secs_f64(), "ready");
            bootstrap.set(begun.elapsed().as_secs_f64());
        });
    }

    /// Includes the management of users.
    pub fn follow_users(&self, users: &Arc<Users>) {
        *self.users.lock() = Some(Arc::clone(users));
    }

    /// Includes how this process follows an etcd.
    pub fn follow_replica(&self, replica: &Arc<follow::Metrics>) {
        *self.replica.lock() = Some(Arc::clone(replica));
    }

    /// How this process follows an etcd, for the status API.
    pub(super) fn replica_status(&self) -> ReplicaSource {
        let replica = Arc::clone(&self.replica);
        Arc::new(move || {
            let metrics = replica.lock().clone()?;
            let (revision, behind) = metrics.position();
            Some(ReplicaStatus {
                revision,
                behind,
                trouble: metrics.trouble().unwrap_or_default(),
            })
        })
    }

    /// Records whether this process holds the leader lock.
    pub fn set_leader(&self, is_leader: bool) {
        let labels = vec![("name", "kvstoremesh".to_owned())];
        self.leader.get_or_create(&labels).set(is_leader.into());
    }

    /// Whether this process holds the leader lock; `None` in a process without an election.
    pub(super) fn is_leader(&self) -> Option<bool> {
        let labels = vec![("name", "kvstoremesh".to_owned())];
        self.leader.get(&labels).map(|gauge| gauge.get() != 0)
    }

    /// Registers the readiness conditions of the store and of the Kubernetes API.
    pub fn conditions(&self, backend: &Arc<dyn Backend>, needs: Needs, ready: &Ready) {
        self.kubernetes_condition(needs, ready);
        self.store_condition(backend, needs, ready);
    }

    /// Registers the readiness condition of the store.
    pub fn store_condition(&self, backend: &Arc<dyn Backend>, needs: Needs, ready: &Ready) {
        let store = Arc::clone(backend);
        let requirement = Requirement::required_if(needs.store);
        ready.condition("store", requirement, move || lasting(store.outage(), STORE_AWAY));
        let expiry = self.expiry.clone();
        ready.condition("certificates", Requirement::Informative, move || {
            expiry.own_trouble(SystemTime::now())
        });
    }

    fn kubernetes_condition(&self, needs: Needs, ready: &Ready) {
        let kubernetes = self.kubernetes.clone();
        let requirement = Requirement::required_if(needs.kubernetes);
        ready.condition("kubernetes", requirement, move || {
            lasting(kubernetes.outage(), API_AWAY)
        });
    }

    /// All metrics, under Cilium's names.
    fn registry(&self, prefix: &str, groups: ControllerGroups) -> Registry {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(ProcessCollector));
        registry.register_collector(Box::new(BuildInfo));
        let ours = registry.sub_registry_with_prefix(prefix);
        let help = "Seconds from the start until the process was ready; 0 until then";
        ours.register("bootstrap_seconds", help, self.bootstrap.clone());
        ours.register(
            "leader_election_master_status",
            "Whether this process holds the leader lock (1) or not (0)",
            self.leader.clone(),
        );
        let version: Family<Labels, Gauge> = Family::default();
        let labels = vec![
            ("version", env!("CARGO_PKG_VERSION").to_owned()),
            ("revision", String::new()),
            ("arch", crate::util::arch().to_owned()),
        ];
        // As in Cilium, the information is in the labels and the value is 0.
        version.get_or_create(&labels).set(0);
        ours.register("version", "Version of this program, in the labels", version);
        self.kvstore.register(ours);
        ours.register_collector(Box::new(self.kubernetes.clone()));
        ours.register_collector(Box::new(Controllers(groups, self.clone())));
        let mesh = registry.sub_registry_with_prefix(MIRROR);
        mesh.register_collector(Box::new(self.mesh.clone()));
        // In Cilium's process of the mirror alone, there is one prefix.
        if prefix != MIRROR {
            self.mirror.register_without_heartbeat(mesh);
        }
        registry.register_collector(Box::new(self.expiry.clone()));
        registry.register_collector(Box::new(self.scope.clone()));
        registry.register_collector(Box::new(ImportMetrics(self.mesh.clone())));
        registry
    }

    /// Serves the metrics at `address` under names that begin with `prefix`; returns the bound address.
    pub async fn serve(
        &self,
        prefix: &str,
        address: &str,
        groups: ControllerGroups,
        life: &Lifecycle,
    ) -> anyhow::Result<SocketAddr> {
        let registry = Arc::new(self.registry(prefix, groups));
        let router = admin::metrics(registry, Arc::clone(&self.store));
        super::start_http("metrics", address, router, life).await
    }
}
