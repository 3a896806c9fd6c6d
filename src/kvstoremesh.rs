//! KVStoreMesh: mirrors the other clusters of the mesh into the local store, so that agents watch
//! locally only.

pub mod api;
pub mod config_dir;
pub mod metrics;
mod reflect;
mod remote;
pub mod status;

use crate::kvstore::sync_store::SyncStore;
use crate::kvstore::{self, Backend};
use crate::model::cluster::{ClusterInfo, ClusterName};
use crate::model::keys::Scope;
use crate::util::lifecycle::Lifecycle;
use crate::util::readiness::Ready;
use config_dir::Event;
use parking_lot::Mutex;
use reflect::{Positions, Turns};
use remote::Remote;
use status::{Live, RemoteCluster, Shared};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// What to mirror, and how.
#[derive(Clone, Debug)]
pub struct Config {
    /// This cluster.
    pub cluster: ClusterInfo,
    /// Directory of the remote clusters' client files.
    pub directory: PathBuf,
    /// After this long without a remote its services are revoked; zero: never.
    pub cache_ttl: Duration,
    /// A remote that is not connected to by then does not hold up readiness.
    pub per_cluster_ready_timeout: Duration,
    /// Readiness does not wait longer than this for anything.
    pub global_ready_timeout: Duration,
    /// How long a removed cluster's data stays after its configuration went.
    pub drain_grace: Duration,
    /// Whether the data of a removed cluster is removed at all.
    pub drain: bool,
    /// Whether legacy services are mirrored.
    pub legacy_services: bool,
    /// Most keys of one kind of one cluster: more is a fault there, and is not mirrored.
    pub keys_max: usize,
}

/// The clusters being mirrored.
pub struct Mesh {
    config: Config,
    backend: Arc<dyn Backend>,
    metrics: kvstore::Metrics,
    life: Lifecycle,
    clusters: Mutex<BTreeMap<ClusterName, Cluster>>,
    turns: Arc<Turns>,
}

struct Cluster {
    sync: Arc<SyncStore>,
    status: Shared,
    positions: Positions,
    /// Ends the connection, and the wait for a new one.
    stop: CancellationToken,
    /// Ends the writes to the mirror.
    stop_writes: CancellationToken,
    removing: bool,
}

impl Mesh {
    /// Starts mirroring into `backend`, until the lifecycle stops. The directory must be readable.
    pub fn start(
        config: Config,
        backend: Arc<dyn Backend>,
        metrics: &kvstore::Metrics,
        ready: &Ready,
        life: &Lifecycle,
    ) -> Arc<Self> {
        let mesh = Arc::new(Self {
            config,
            backend,
            metrics: metrics.clone(),
            life: life.clone(),
            clusters: Mutex::default(),
            turns: Arc::default(),
        });
        let (sender, events) = mpsc::channel(16);
        let (directory, own) = (mesh.config.directory.clone(), mesh.config.cluster.name.clone());
        let stop = life.stop_token().clone();
        life.spawn("cluster configurations", async move {
            let shown = directory.display().to_string();
            tokio::select! {
                () = stop.cancelled() => Ok(()),
                ended = config_dir::follow(directory, own, sender) => {
                    ended.map_err(|e| format!("cannot read the directory of remote clusters {shown}: {e}"))
                }
            }
        });
        let (this, ready) = (Arc::clone(&mesh), ready.clone());
        let listed = ready.block("remote clusters are not known yet");
        life.spawn_forever(
            "remote clusters",
            async move { this.follow(events, &ready, listed).await },
        );
        mesh
    }

    async fn follow(
        self: &Arc<Self>,
        mut events: mpsc::Receiver<Event>,
        ready: &Ready,
        listed: crate::util::readiness::Block,
    ) {
        let mut listed = Some(listed);
        while let Some(event) = events.recv().await {
            match event {
                Event::Set(name, path) => self.set(name, path, listed.is_some().then_some(ready)),
                Event::Removed(name) => self.remove(&name),
                Event::Listed => drop(listed.take()),
            }
        }
        // The directory's task has ended, which stops everything.
        std::future::pending().await
    }

    /// Connects to a cluster, or connects to it anew with a changed configuration.
    fn set(self: &Arc<Self>, name: ClusterName, path: PathBuf, ready: Option<&Ready>) {
        let mut clusters = self.clusters.lock();
        let stop = self.life.stop_token().child_token();
        let cluster = clusters.entry(name.clone()).or_insert_with(|| self.new_cluster(&name));
        cluster.stop.cancel();
        if cluster.removing {
            tracing::info!(cluster_name = %name, "the cluster is back: its removal is cancelled");
            *cluster = self.new_cluster(&name);
        }
        cluster.stop = stop.clone();
        let remote = Remote {
            name: name.clone(),
            path,
            own_id: self.config.cluster.id,
            legacy_services: self.config.legacy_services,
            backend: Arc::clone(&self.backend),
            sync: Arc::clone(&cluster.sync),
            status: cluster.status.clone(),
            cache_ttl: self.config.cache_ttl,
            keys_max: self.config.keys_max,
            positions: cluster.positions.clone(),
            turns: Arc::clone(&self.turns),
        };
        // Readiness is about the clusters there were at the start.
        if let Some(ready) = ready {
            self.hold_readiness(&name, cluster.status.clone(), ready, stop.clone());
        }
        self.life.spawn_part(format!("remote cluster {name}"), async move {
            tokio::select! { biased; () = stop.cancelled() => {}, () = remote.run() => {} }
        });
    }

    fn hold_readiness(&self, name: &ClusterName, status: Shared, ready: &Ready, stop: CancellationToken) {
        let synced = ready.block(format!("mirroring {name}"));
        let (per_cluster, global) = (self.config.per_cluster_ready_timeout, self.config.global_ready_timeout);
        self.life.spawn_part(format!("readiness of {name}"), async move {
            let wait = tokio::time::timeout(global, wait_until_mirrored(&status, per_cluster));
            tokio::select! { () = stop.cancelled() => {}, _ = wait => {} }
            drop(synced);
        });
    }

    fn new_cluster(&self, name: &ClusterName) -> Cluster {
        let mut prefixes = Scope::ALL.map(|s| s.cache_prefix(name)).to_vec();
        prefixes.push(crate::model::keys::synced_prefix(name));
        let writer = format!("mirror of {name}");
        let sync = Arc::new(SyncStore::new(writer.clone(), Arc::clone(&self.backend), prefixes));
        self.metrics.follow(name.as_str(), &sync);
        let stop_writes = self.life.stop_token().child_token();
        let (run, stop) = (Arc::clone(&sync), stop_writes.clone());
        self.life.spawn_part(writer, async move {
            tokio::select! { () = stop.cancelled() => {}, () = run.run() => {} }
        });
        let status = Shared::new(name.to_string());
        Cluster {
            sync,
            status,
            positions: Positions::default(),
            stop: CancellationToken::new(),
            stop_writes,
            removing: false,
        }
    }

    fn remove(self: &Arc<Self>, name: &ClusterName) {
        let mut clusters = self.clusters.lock();
        let Some(cluster) = clusters.get_mut(name) else { return };
        tracing::info!(cluster_name = %name, "the cluster left the mesh");
        cluster.stop.cancel();
        cluster.stop_writes.cancel();
        cluster.removing = true;
        let stop = self.life.stop_token().child_token();
        cluster.stop = stop.clone();
        let (this, name) = (Arc::clone(self), name.clone());
        self.life.spawn_part(format!("removal of {name}"), async move {
            let drained = async {
                if this.config.drain {
                    remote::drain(&name, &*this.backend, this.config.drain_grace).await;
                }
            };
            tokio::select! { () = stop.cancelled() => return, () = drained => {} }
            let mut clusters = this.clusters.lock();
            // It may have come back just now.
            if !stop.is_cancelled() {
                clusters.remove(&name);
            }
        });
    }

    /// The remote clusters, by name, as Cilium's tools read them.
    pub fn remote_clusters(&self) -> Vec<RemoteCluster> {
        self.live()
            .into_iter()
            .map(|(live, sync, name)| live.remote_cluster(|scope| sync.desired(&scope.cache_prefix(&name))))
            .collect()
    }

    /// The facts about each cluster that is not being removed, with its writer.
    pub fn live(&self) -> Vec<(Live, Arc<SyncStore>, ClusterName)> {
        let clusters = self.clusters.lock();
        let present = clusters.iter().filter(|(_, c)| !c.removing);
        let mut all: Vec<_> = present
            .map(|(name, c)| (c.status.live(), Arc::clone(&c.sync), name.clone()))
            .collect();
        let mut names: BTreeMap<u32, Vec<String>> = BTreeMap::new();
        let own = format!("this cluster ({})", self.config.cluster.name);
        names.insert(self.config.cluster.id, vec![own]);
        for (live, ..) in &all {
            if let Some(config) = &live.config {
                names.entry(config.id).or_default().push(live.name.clone());
            }
        }
        for (live, ..) in &mut all {
            let id = live.config.as_ref().map(|config| config.id);
            let same = id.and_then(|id| names.get(&id)).filter(|same| same.len() > 1);
            live.conflict = same.map(|same| {
                let others: Vec<_> = same.iter().filter(|name| **name != live.name).cloned().collect();
                format!(
                    "cluster id {} is also that of {}",
                    id.unwrap_or_default(),
                    others.join(", ")
                )
            });
        }
        all
    }
}

/// Waits until all of a cluster is mirrored, or it was not even connected to in time.
async fn wait_until_mirrored(status: &Shared, connect_timeout: Duration) {
    let started = tokio::time::Instant::now();
    loop {
        let live = status.live();
        let given_up = !live.registered && started.elapsed() >= connect_timeout;
        if live.sync_took.is_some() || given_up {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
