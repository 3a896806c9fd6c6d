//! KVStoreMesh: mirrors the other clusters of the mesh into the local store, so that agents watch
//! locally only.

pub mod api;
pub mod config_dir;
mod leave;
pub mod metrics;
mod reflect;
mod remote;
pub mod status;

use crate::kvstore::client::Options;
use crate::kvstore::dial::Dialer;
use crate::kvstore::sync_store::SyncStore;
use crate::kvstore::{self, Backend};
use crate::model::cluster::{ClusterInfo, ClusterName};
use crate::model::keys::Scope;
use crate::util::backoff::Backoff;
use crate::util::lifecycle::Lifecycle;
use crate::util::readiness::Ready;
use config_dir::Event;
use leave::{Gate, Leaving};
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
    /// How long the data of a cluster stays that left before the start, in case its file only comes late.
    pub former_grace: Duration,
    /// Whether the data of a removed cluster is removed at all.
    pub drain: bool,
    /// Whether legacy services are mirrored.
    pub legacy_services: bool,
    /// Most keys of one kind of one cluster: more is a fault there, and is not mirrored.
    pub keys_max: usize,
    /// How remotes are asked.
    pub remotes: Options,
}

/// The clusters being mirrored.
pub struct Mesh {
    config: Config,
    backend: Arc<dyn Backend>,
    metrics: kvstore::Metrics,
    life: Lifecycle,
    clusters: Mutex<BTreeMap<ClusterName, Member>>,
    turns: Arc<Turns>,
}

enum Member {
    Mirrored(Cluster),
    Leaving(Arc<Leaving>),
}

struct Cluster {
    sync: Arc<SyncStore>,
    status: Shared,
    positions: Positions,
    /// How the remote is asked; with it, where it was.
    how: Options,
    /// Ends the connection, and the wait for a new one.
    stop: CancellationToken,
    /// Ends the writes to the mirror.
    stop_writes: CancellationToken,
    gate: Arc<Gate>,
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
                Event::Listed => {
                    drop(listed.take());
                    let (this, stop) = (Arc::clone(self), self.life.stop_token().clone());
                    let (judge, end) = (Arc::clone(self), stop.clone());
                    self.life.spawn_vital("cluster ids", async move {
                        tokio::select! { () = end.cancelled() => {}, () = judge.name_conflicts() => {} }
                    });
                    self.life.spawn_vital("clusters that left before", async move {
                        tokio::select! { () = stop.cancelled() => {}, () = this.sweep() => {} }
                    });
                }
            }
        }
        // The directory's task has ended, which stops everything.
        std::future::pending().await
    }

    /// Connects to a cluster, or connects to it anew with a changed configuration.
    fn set(self: &Arc<Self>, name: ClusterName, path: PathBuf, ready: Option<&Ready>) {
        let mut members = self.clusters.lock();
        let stop = self.life.stop_token().child_token();
        let gate = match members.get(&name) {
            Some(Member::Mirrored(_)) => None,
            Some(Member::Leaving(leaving)) => {
                tracing::info!(cluster_name = %name, "the cluster is back: its removal is cancelled");
                leaving.stop.cancel();
                Some(Arc::clone(&leaving.gate))
            }
            None => Some(Arc::default()),
        };
        let is_new = gate.is_some();
        if let Some(gate) = gate {
            members.insert(name.clone(), Member::Mirrored(self.new_cluster(&name, gate)));
        }
        let Some(Member::Mirrored(cluster)) = members.get_mut(&name) else {
            return;
        };
        cluster.stop.cancel();
        cluster.stop = stop.clone();
        let remote = Remote {
            name: name.clone(),
            path,
            legacy_services: self.config.legacy_services,
            backend: Arc::clone(&self.backend),
            sync: Arc::clone(&cluster.sync),
            status: cluster.status.clone(),
            cache_ttl: self.config.cache_ttl,
            keys_max: self.config.keys_max,
            positions: cluster.positions.clone(),
            turns: Arc::clone(&self.turns),
            metrics: self.metrics.clone(),
            how: cluster.how.clone(),
        };
        // Readiness is about the clusters there were at the start, however often their files change.
        if let Some(ready) = ready.filter(|_| is_new) {
            self.hold_readiness(&name, cluster.status.clone(), ready, cluster.stop_writes.clone());
        }
        let gate = Arc::clone(&cluster.gate);
        self.life.spawn_vital(format!("remote cluster {name}"), async move {
            let run = async {
                let _alone = gate.read().await;
                remote.run().await;
            };
            tokio::select! { biased; () = stop.cancelled() => {}, () = run => {} }
        });
    }

    fn hold_readiness(&self, name: &ClusterName, status: Shared, ready: &Ready, stop: CancellationToken) {
        let synced = ready.block(format!("mirroring {name}"));
        let (per_cluster, global) = (self.config.per_cluster_ready_timeout, self.config.global_ready_timeout);
        self.life.spawn_vital(format!("readiness of {name}"), async move {
            let wait = tokio::time::timeout(global, wait_until_mirrored(&status, per_cluster));
            let name = status.live().name;
            tokio::select! {
                () = stop.cancelled() => {}
                waited = wait => match waited {
                    Ok(true) => {}
                    Ok(false) => tracing::warn!(cluster_name = name, secs = per_cluster.as_secs(), "not connected in time: readiness does not wait for it"),
                    Err(_) => tracing::error!(cluster_name = name, secs = global.as_secs(), "not mirrored in time: readiness does not wait for it"),
                },
            }
            drop(synced);
        });
    }

    fn new_cluster(&self, name: &ClusterName, gate: Arc<Gate>) -> Cluster {
        let mut prefixes = Scope::ALL.map(|s| s.cache_prefix(name)).to_vec();
        prefixes.push(crate::model::keys::synced_prefix(name));
        let writer = format!("mirror of {name}");
        let sync = Arc::new(SyncStore::new(writer.clone(), Arc::clone(&self.backend), prefixes));
        self.metrics.follow(name.as_str(), &sync);
        let stop_writes = self.life.stop_token().child_token();
        let (sync_run, stop, free) = (Arc::clone(&sync), stop_writes.clone(), Arc::clone(&gate));
        self.life.spawn_vital(writer, async move {
            let run = async {
                let _alone = free.write().await;
                sync_run.run().await;
            };
            tokio::select! { () = stop.cancelled() => {}, () = run => {} }
        });
        let status = Shared::new(name.to_string());
        Cluster {
            sync,
            status,
            positions: Positions::default(),
            how: Options {
                dialer: Dialer::default(),
                ..self.config.remotes.clone()
            },
            stop: CancellationToken::new(),
            stop_writes,
            gate,
        }
    }

    fn remove(self: &Arc<Self>, name: &ClusterName) {
        let mut members = self.clusters.lock();
        let Some(Member::Mirrored(cluster)) = members.get(name) else {
            return;
        };
        let secs = self.config.drain_grace.as_secs();
        match self.config.drain {
            true => {
                tracing::info!(cluster_name = %name, secs, "the cluster left the mesh: its data is removed after a time of grace")
            }
            false => tracing::info!(cluster_name = %name, "the cluster left the mesh: its data stays"),
        }
        cluster.stop.cancel();
        cluster.stop_writes.cancel();
        if self.config.drain {
            let leaving = self.leave(name, Arc::clone(&cluster.gate), Duration::ZERO);
            members.insert(name.clone(), Member::Leaving(leaving));
        } else {
            members.remove(name);
        }
    }

    fn leave(self: &Arc<Self>, name: &ClusterName, gate: Arc<Gate>, wait: Duration) -> Arc<Leaving> {
        let stop = CancellationToken::new();
        let leaving = Arc::new(Leaving { stop, gate });
        let (this, name, it) = (Arc::clone(self), name.clone(), Arc::clone(&leaving));
        let end = self.life.stop_token().clone();
        self.life.spawn_vital(format!("removal of {name}"), async move {
            let done = it.run(&name, &*this.backend, wait, this.config.drain_grace);
            let removed = tokio::select! { () = end.cancelled() => false, removed = done => removed };
            let mut members = this.clusters.lock();
            // It may have come back just now.
            if removed && matches!(members.get(&name), Some(Member::Leaving(now)) if Arc::ptr_eq(now, &it)) {
                members.remove(&name);
            }
        });
        leaving
    }

    /// Says in the log, once each, which clusters have ids that readers refuse.
    async fn name_conflicts(&self) {
        let mut said = BTreeMap::new();
        loop {
            let all = self.live().into_iter();
            let now: BTreeMap<_, _> = all.filter_map(|(live, ..)| Some((live.name, live.conflict?))).collect();
            for (name, conflict) in now.iter().filter(|(name, conflict)| said.get(*name) != Some(*conflict)) {
                tracing::error!(cluster_name = name, conflict, "readers refuse the remote cluster");
            }
            said = now;
            tokio::time::sleep(Duration::from_secs(5)).await;
        }
    }

    /// Finds clusters that are mirrored here and are not in the mesh any more, and has them leave.
    async fn sweep(self: &Arc<Self>) {
        let mut backoff = Backoff::write();
        let found = loop {
            match leave::mirrored(&*self.backend).await {
                Ok(found) => break found,
                Err(error) => tracing::warn!(%error, "cannot look for clusters that left, trying again"),
            }
            backoff.wait().await;
        };
        let mut members = self.clusters.lock();
        for name in found.into_iter().filter(|_| self.config.drain) {
            if name != self.config.cluster.name && !members.contains_key(&name) {
                let wait = self.config.former_grace;
                tracing::warn!(cluster_name = %name, secs = wait.as_secs(), "mirrored here but not in the mesh: it will be removed");
                let leaving = self.leave(&name, Arc::default(), wait);
                members.insert(name, Member::Leaving(leaving));
            }
        }
    }

    /// The remote clusters, by name, as Cilium's tools read them.
    pub fn remote_clusters(&self) -> Vec<RemoteCluster> {
        self.live()
            .into_iter()
            .map(|(live, sync, name)| {
                live.remote_cluster(|scope| match live.listed.contains_key(&scope) {
                    true => sync.desired(&scope.cache_prefix(&name)).keys,
                    // What is here of a former life.
                    false => sync.stored(&scope.cache_prefix(&name)),
                })
            })
            .collect()
    }

    /// The facts about each cluster that is not being removed, with its writer.
    pub fn live(&self) -> Vec<(Live, Arc<SyncStore>, ClusterName)> {
        let clusters = self.clusters.lock();
        let present = clusters.iter().filter_map(|(name, member)| match member {
            Member::Mirrored(cluster) => Some((name, cluster)),
            Member::Leaving(_) => None,
        });
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
            let max = self.config.cluster.max_connected;
            if let Some(id) = id.filter(|id| !(1..=max).contains(id)) {
                live.conflict = Some(format!("cluster id {id} is none of 1 to {max}"));
                continue;
            }
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

/// Waits until all of a cluster is mirrored; false: it was not even connected to in time.
async fn wait_until_mirrored(status: &Shared, connect_timeout: Duration) -> bool {
    let started = tokio::time::Instant::now();
    loop {
        let live = status.live();
        // One that was connected to is waited for longer, whatever became of the connection.
        let given_up = live.config.is_none() && started.elapsed() >= connect_timeout;
        if live.is_mirrored() || given_up {
            return !given_up;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[cfg(test)]
mod tests;
