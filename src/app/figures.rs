//! What a daemon shows of itself: metrics and readiness.

use crate::admin;
use crate::k8s::status::Status;
use crate::kvstore::{self, Backend};
use crate::kvstoremesh::{self, status::Live};
use crate::users::{self, Users};
use crate::util::lifecycle::Lifecycle;
use crate::util::metrics::{Labels, OfProcess, Page};
use crate::util::outage::Outage;
use crate::util::readiness::Ready;
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
use std::time::Duration;
use tokio::time::Instant;

/// A store that cannot be used for this long takes readiness away; less is a hiccup.
const STORE_AWAY: Duration = Duration::from_secs(15);
/// The same for a Kubernetes API.
const API_AWAY: Duration = Duration::from_secs(15);

/// What must be well for a daemon to stay ready (`--ready-needs`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Needs {
    /// The store can be written to.
    pub store: bool,
    /// The Kubernetes API can be followed. What was published stays right for readers while it is away.
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

/// Figures of the parts of a daemon. Clones share them.
#[derive(Clone, Default)]
pub struct Figures {
    /// Of the use of the store.
    pub kvstore: kvstore::Metrics,
    /// Of the source of objects.
    pub kubernetes: Status,
    /// Of the remote clusters.
    pub mesh: kvstoremesh::metrics::Figures,
    bootstrap: Gauge<f64, AtomicU64>,
    users: Arc<Mutex<Option<Arc<Users>>>>,
    /// Whether this process leads, where there is an election.
    leader: Family<Labels, Gauge>,
}

/// Which controllers' runs are counted (`--controller-group-metrics`).
#[derive(Clone, Debug, Default)]
pub struct Groups(Vec<String>);

impl Groups {
    /// Group names, `all` or `none`, which wins.
    pub fn new(names: &[String]) -> Self {
        Self(names.to_vec())
    }

    fn has(&self, name: &str) -> bool {
        let any = |wanted: &str| self.0.iter().any(|n| n == wanted);
        !any("none") && (any("all") || any(name))
    }
}

/// Runs of what Cilium calls controllers.
struct Controllers(Groups, Figures);

impl fmt::Debug for Controllers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Controllers")
    }
}

impl Collector for Controllers {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let Self(groups, figures) = self;
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
        add("k8s-heartbeat", figures.kubernetes.probes());
        if let Some(mesh) = figures.mesh.mesh() {
            let live = mesh.live();
            let sum = |of: fn(&Live) -> u64| live.iter().map(|(live, ..)| of(live)).sum();
            add(
                "clustermesh-remote-cluster",
                (sum(|l| l.connects), sum(|l| l.attempts_failed)),
            );
        }
        let users = figures.users.lock().as_ref().map(|users| users.status());
        if let Some(status) = &users {
            add(users::GROUP, (status.runs_ok, status.runs_failed));
        }
        page.counters("controllers_group_runs", "Runs of controllers", runs)?;
        let managed = users.map(|status| (vec![], status.managed as f64));
        page.gauges(
            "users_managed",
            "Users that are the file's",
            managed.into_iter().collect(),
        )
    }
}

/// The text of an outage that has lasted for at least `after`.
fn lasting(outage: Option<Outage>, after: Duration) -> Option<String> {
    let Outage { lasted, reason } = outage.filter(|outage| outage.lasted >= after)?;
    Some(format!("for {} s: {reason}", lasted.as_secs()))
}

impl Figures {
    /// Notes how long it takes until everything is ready.
    pub fn follow(&self, ready: &Ready, life: &Lifecycle) {
        let (bootstrap, begun) = (self.bootstrap.clone(), Instant::now());
        super::once_ready(ready, life, move || {
            tracing::info!(secs = begun.elapsed().as_secs_f64(), "ready");
            bootstrap.set(begun.elapsed().as_secs_f64());
        });
    }

    /// Shows how keeping the users goes.
    pub fn follow_users(&self, users: &Arc<Users>) {
        *self.users.lock() = Some(Arc::clone(users));
    }

    /// Notes whether this process is the one that mirrors.
    pub fn leads(&self, leads: bool) {
        let labels = vec![("name", "kvstoremesh".to_owned())];
        self.leader.get_or_create(&labels).set(leads.into());
    }

    /// Has readiness tell of the store and of the source of objects.
    pub fn conditions(&self, backend: &Arc<dyn Backend>, needs: Needs, ready: &Ready) {
        self.kubernetes_condition(needs, ready);
        self.store_condition(backend, needs, ready);
    }

    /// Has readiness tell of the store.
    pub fn store_condition(&self, backend: &Arc<dyn Backend>, needs: Needs, ready: &Ready) {
        let store = Arc::clone(backend);
        ready.condition("store", needs.store, move || lasting(store.outage(), STORE_AWAY));
    }

    fn kubernetes_condition(&self, needs: Needs, ready: &Ready) {
        let kubernetes = self.kubernetes.clone();
        ready.condition("kubernetes", needs.kubernetes, move || {
            lasting(kubernetes.outage(), API_AWAY)
        });
    }

    /// All of them, under Cilium's names.
    fn registry(&self, prefix: &str, groups: Groups) -> Registry {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(OfProcess));
        let ours = registry.sub_registry_with_prefix(prefix);
        let help = "How long it took until everything was in the store; 0 until then";
        ours.register("bootstrap_seconds", help, self.bootstrap.clone());
        ours.register("leader_election_master_status", "Whether it leads", self.leader.clone());
        let version: Family<Labels, Gauge> = Family::default();
        let labels = vec![
            ("version", env!("CARGO_PKG_VERSION").to_owned()),
            ("revision", String::new()),
            ("arch", crate::util::arch().to_owned()),
        ];
        // Its value says nothing in the original either.
        version.get_or_create(&labels).set(0);
        ours.register("version", "What runs, in the labels", version);
        self.kvstore.register(ours);
        ours.register_collector(Box::new(self.kubernetes.clone()));
        ours.register_collector(Box::new(Controllers(groups, self.clone())));
        let mesh = registry.sub_registry_with_prefix("cilium_kvstoremesh");
        mesh.register_collector(Box::new(self.mesh.clone()));
        registry
    }

    /// Serves the metrics at `address`, their names beginning with `prefix`; returns the address bound.
    pub async fn serve(
        &self,
        prefix: &str,
        address: &str,
        groups: Groups,
        life: &Lifecycle,
    ) -> anyhow::Result<SocketAddr> {
        let router = admin::metrics(Arc::new(self.registry(prefix, groups)));
        super::start_http("metrics", address, router, life).await
    }
}
