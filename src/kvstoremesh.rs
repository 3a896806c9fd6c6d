//! KVStoreMesh: mirrors the other clusters of the mesh into the local store, so that agents watch the local store only.
//! A *remote* is a remote cluster, and its store is the etcd that the client file names.

pub mod api;
pub mod cluster;
pub mod config_dir;
mod connection;
mod current;
mod error;
mod exports;
pub mod filter;
mod ids;
mod import;
pub mod metrics;
pub mod observed;
mod position;
pub mod propagation;
mod reconnect;
mod reflect;
pub mod reflector;
pub mod refusal;
mod remote;
mod removal;
mod rules;
mod slots;
pub mod status;
pub mod trial;
mod witness;

use crate::kvstore::client::Options;
use crate::kvstore::dial::Dialer;
use crate::kvstore::sync_store::{ChangeLimits, SyncStore};
use crate::kvstore::{self, Backend};
use crate::model::cluster::{ClusterInfo, ClusterName};
use crate::model::keys::Scope;
use crate::util::backoff::Backoff;
use crate::util::lifecycle::Lifecycle;
use crate::util::readiness::Ready;
use cluster::Cluster;
use config_dir::Event;
use import::Import;
use parking_lot::Mutex;
use reflector::SizeLimit;
use remote::{Remote, SharedCluster};
use removal::{MirrorLock, Removal};
use slots::Limits;
use status::RemoteCluster;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Notify, mpsc};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, Span};

pub use current::Snapshot;
pub use import::Imports;

/// The remote clusters to mirror, and the limits and waits of the mirror.
#[derive(Clone, Debug)]
pub struct Config {
    /// The identity of this cluster.
    pub cluster: ClusterInfo,
    /// Directory of the remote clusters' client files.
    pub directory: PathBuf,
    /// Time without a connection after which the services of a remote cluster are revoked; zero never revokes.
    pub cache_ttl: Duration,
    /// Longest time that readiness waits for the configuration of one remote cluster.
    pub per_cluster_ready_timeout: Duration,
    /// Longest time that readiness waits for the mirror of one remote cluster.
    pub global_ready_timeout: Duration,
    /// Time between the removal of a cluster's configuration and the removal of its data.
    pub drain_grace: Duration,
    /// Time that the data of a cluster without a client file is kept after the start, since the file may appear late.
    pub former_grace: Duration,
    /// Whether the data of a removed cluster is removed at all.
    pub drain: bool,
    /// Whether legacy services are mirrored.
    pub legacy_services: bool,
    /// Largest number of keys of one scope of one cluster; the mirror of a scope with more keys is stopped.
    pub keys_max: usize,
    /// Limits of the changes of one remote cluster.
    pub changes: ChangeLimits,
    /// Options of the clients of the remotes.
    pub remotes: Options,
    /// What decides which keys are mirrored; `None` mirrors every key.
    pub imports: Option<Imports>,
}

/// The clusters being mirrored.
pub struct Mesh {
    config: Config,
    backend: Arc<dyn Backend>,
    metrics: kvstore::Metrics,
    life: Lifecycle,
    members: Mutex<BTreeMap<ClusterName, Member>>,
    limits: Arc<Limits>,
    /// Notified when the id of a cluster may have changed, or a cluster was removed.
    ids_changed: Arc<Notify>,
}

enum Member {
    Mirrored(Mirror),
    Leaving(Arc<Removal>),
}

/// The tasks of one cluster that is mirrored.
struct Mirror {
    sync: Arc<SyncStore>,
    state: SharedCluster,
    import: Option<Arc<Import>>,
    /// Options of the clients of the remote cluster; their dialer remembers its last good address.
    options: Options,
    /// Ends the connection, or the wait for the next connection.
    stop: CancellationToken,
    /// Ends the writes to the mirror.
    stop_writes: CancellationToken,
    lock: Arc<MirrorLock>,
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
            members: Mutex::default(),
            limits: Arc::default(),
            ids_changed: Arc::default(),
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
        mesh.follow_rules();
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
        self.wait_for_rules().await;
        while let Some(event) = events.recv().await {
            match event {
                Event::Set(name, path) => self.set(name, path, listed.is_some().then_some(ready)),
                Event::Removed(name) => self.remove(&name),
                Event::Listed => {
                    drop(listed.take());
                    let (this, stop) = (Arc::clone(self), self.life.stop_token().clone());
                    let (mesh, end) = (Arc::clone(self), stop.clone());
                    self.life.spawn_vital("cluster ids", async move {
                        tokio::select! { () = end.cancelled() => {}, () = mesh.log_id_conflicts() => {} }
                    });
                    self.life.spawn_vital("clusters that left before", async move {
                        tokio::select! { () = stop.cancelled() => {}, () = this.remove_former() => {} }
                    });
                }
            }
        }
        // The directory's task has ended, which stops everything.
        std::future::pending().await
    }

    /// Connects to a cluster, or connects again with a changed client file.
    fn set(self: &Arc<Self>, name: ClusterName, path: PathBuf, ready: Option<&Ready>) {
        let mut members = self.members.lock();
        let stop = self.life.stop_token().child_token();
        let lock = match members.get(&name) {
            Some(Member::Mirrored(_)) => None,
            Some(Member::Leaving(removal)) => {
                tracing::info!(cluster_name = %name, "the cluster is back: its removal is cancelled");
                removal.stop.cancel();
                Some(Arc::clone(&removal.lock))
            }
            None => Some(Arc::default()),
        };
        let is_new = lock.is_some();
        if let Some(lock) = lock {
            members.insert(name.clone(), Member::Mirrored(self.new_mirror(&name, lock)));
        }
        let Some(Member::Mirrored(mirror)) = members.get_mut(&name) else {
            return;
        };
        mirror.stop.cancel();
        mirror.stop = stop.clone();
        mirror.state.transition(|cluster| cluster.file_changed(Instant::now()));
        let remote = Remote {
            name: name.clone(),
            client_file: path,
            legacy_services: self.config.legacy_services,
            backend: Arc::clone(&self.backend),
            sync: Arc::clone(&mirror.sync),
            state: mirror.state.clone(),
            import: mirror.import.clone(),
            cache_ttl: self.config.cache_ttl,
            size_limit: SizeLimit {
                keys: self.config.keys_max,
            },
            limits: Arc::clone(&self.limits),
            metrics: self.metrics.clone(),
            options: mirror.options.clone(),
            ids_changed: Arc::clone(&self.ids_changed),
        };
        // Readiness waits for the clusters that were configured at the start, however often their files change.
        if let Some(ready) = ready.filter(|_| is_new) {
            self.hold_readiness(&name, mirror.state.clone(), ready, mirror.stop_writes.clone());
        }
        let lock = Arc::clone(&mirror.lock);
        let span = span(&name);
        self.life.spawn_vital(format!("remote cluster {name}"), async move {
            let run = async {
                let _reader = lock.read().await;
                reconnect::run(remote).instrument(span).await;
            };
            tokio::select! { biased; () = stop.cancelled() => {}, () = run => {} }
        });
    }

    fn hold_readiness(&self, name: &ClusterName, state: SharedCluster, ready: &Ready, stop: CancellationToken) {
        let name = name.clone();
        let synced = ready.block(format!("mirroring {name}"));
        let (per_cluster, global) = (self.config.per_cluster_ready_timeout, self.config.global_ready_timeout);
        self.life.spawn_vital(format!("readiness of {name}"), async move {
            let wait = tokio::time::timeout(global, wait_until_mirrored(&state, per_cluster));
            tokio::select! {
                () = stop.cancelled() => {}
                waited = wait => match waited {
                    Ok(Waited::Mirrored) => {}
                    Ok(Waited::Refused) => tracing::warn!(cluster_name = %name, "nothing listens at the addresses of the remote cluster; readiness does not wait for it"),
                    Ok(Waited::NotConnected) => tracing::warn!(cluster_name = %name, secs = per_cluster.as_secs(), "the remote cluster is not connected in time; readiness does not wait for it"),
                    Err(_) => tracing::error!(cluster_name = %name, secs = global.as_secs(), "the remote cluster is not mirrored in time; readiness does not wait for it"),
                },
            }
            drop(synced);
        });
    }

    fn new_mirror(&self, name: &ClusterName, lock: Arc<MirrorLock>) -> Mirror {
        let mut prefixes = Scope::ALL.map(|s| s.cache_prefix(name)).to_vec();
        prefixes.push(crate::model::keys::synced_prefix(name));
        let writer = format!("mirror of {name}");
        let sync = SyncStore::new(writer.clone(), Arc::clone(&self.backend), prefixes);
        let sync = Arc::new(sync.limited(self.config.changes));
        self.metrics.follow(name.as_str(), &sync);
        let stop_writes = self.life.stop_token().child_token();
        let (writes, stop, write_lock) = (Arc::clone(&sync), stop_writes.clone(), Arc::clone(&lock));
        let span = span(name);
        self.life.spawn_vital(writer, async move {
            let run = async {
                let _writer = write_lock.write().await;
                writes.run().instrument(span).await;
            };
            tokio::select! { () = stop.cancelled() => {}, () = run => {} }
        });
        Mirror {
            import: self.new_import(name, &sync),
            sync,
            state: SharedCluster::new(Cluster::new(name.clone(), Instant::now())),
            options: Options {
                dialer: Dialer::default(),
                ..self.config.remotes.clone()
            },
            stop: CancellationToken::new(),
            stop_writes,
            lock,
        }
    }

    fn remove(self: &Arc<Self>, name: &ClusterName) {
        let mut members = self.members.lock();
        let Some(Member::Mirrored(mirror)) = members.get(name) else {
            return;
        };
        let secs = self.config.drain_grace.as_secs();
        match self.config.drain {
            true => {
                tracing::info!(cluster_name = %name, secs, "the cluster left the mesh; its mirror is removed after the grace period")
            }
            false => tracing::info!(cluster_name = %name, "the cluster left the mesh; its mirror stays"),
        }
        mirror.state.transition(Cluster::file_removed);
        mirror.stop.cancel();
        mirror.stop_writes.cancel();
        if self.config.drain {
            let removal = self.start_removal(name, Arc::clone(&mirror.lock), Duration::ZERO);
            members.insert(name.clone(), Member::Leaving(removal));
        } else {
            members.remove(name);
        }
        self.ids_changed.notify_one();
    }

    /// Removes the mirror of a cluster, `wait` from now.
    fn start_removal(self: &Arc<Self>, name: &ClusterName, lock: Arc<MirrorLock>, wait: Duration) -> Arc<Removal> {
        let stop = CancellationToken::new();
        let removal = Arc::new(Removal { stop, lock });
        let (this, name, running) = (Arc::clone(self), name.clone(), Arc::clone(&removal));
        let end = self.life.stop_token().clone();
        self.life.spawn_vital(format!("removal of {name}"), async move {
            let done = running.run(&name, &*this.backend, wait, this.config.drain_grace);
            let removed = tokio::select! { () = end.cancelled() => false, removed = done => removed };
            let mut members = this.members.lock();
            // The cluster's file may have returned in the meantime.
            if removed && matches!(members.get(&name), Some(Member::Leaving(now)) if Arc::ptr_eq(now, &running)) {
                members.remove(&name);
                if let Some(deliveries) = this.backend.deliveries() {
                    deliveries.forget(name.as_str());
                }
            }
        });
        removal
    }

    /// Logs each conflict of cluster ids once.
    async fn log_id_conflicts(&self) {
        let mut logged = BTreeMap::new();
        loop {
            let conflicts = ids::conflicts(&self.config.cluster, &self.ids());
            for (name, conflict) in &conflicts {
                if logged.get(name) != Some(conflict) {
                    tracing::error!(cluster_name = %name, conflict, "agents refuse the remote cluster because of its cluster id");
                }
            }
            logged = conflicts;
            self.ids_changed.notified().await;
        }
    }

    fn ids(&self) -> BTreeMap<ClusterName, u32> {
        let members = self.members.lock();
        mirrors(&members)
            .filter_map(|(name, mirror)| {
                let id = mirror.state.read(|cluster| Some(cluster.configuration()?.id))?;
                Some((name.clone(), id))
            })
            .collect()
    }

    /// Removes the mirrors of clusters that left the mesh before the start.
    async fn remove_former(self: &Arc<Self>) {
        let mut backoff = Backoff::write();
        let found = loop {
            match removal::mirrored_clusters(&*self.backend).await {
                Ok(found) => break found,
                Err(error) => tracing::warn!(%error, "cannot list the clusters that left the mesh; trying again"),
            }
            backoff.wait().await;
        };
        let mut members = self.members.lock();
        for name in found.into_iter().filter(|_| self.config.drain) {
            if name != self.config.cluster.name && !members.contains_key(&name) {
                let wait = self.config.former_grace;
                tracing::warn!(cluster_name = %name, secs = wait.as_secs(), "the store holds a mirror of a cluster that has no client file; the mirror will be removed");
                let removal = self.start_removal(&name, Arc::default(), wait);
                members.insert(name, Member::Leaving(removal));
            }
        }
    }

    /// The remote clusters, by name, as Cilium's tools read them.
    pub fn remote_clusters(&self) -> Vec<RemoteCluster> {
        self.clusters().iter().map(Snapshot::status).collect()
    }

    /// The names of the clusters that are not being removed, with their etcd client files.
    pub fn client_files(&self) -> Vec<(String, PathBuf)> {
        let members = self.members.lock();
        let file = |name: &ClusterName| (name.to_string(), self.config.directory.join(name.as_str()));
        mirrors(&members).map(|(name, _)| file(name)).collect()
    }

    /// The present states of all clusters that are not being removed, by name.
    pub fn clusters(&self) -> Vec<Snapshot> {
        let members = self.members.lock();
        let mirrors = mirrors(&members);
        let mut snapshots: Vec<_> = mirrors
            .map(|(_, mirror)| Snapshot {
                cluster: mirror.state.read(Cluster::clone),
                conflict: None,
                sync: Arc::clone(&mirror.sync),
                state: mirror.state.clone(),
                import: mirror.import.clone(),
                dialer: mirror.options.dialer.clone(),
                backend: Arc::clone(&self.backend),
            })
            .collect();
        drop(members);
        let ids = snapshots.iter().filter_map(|s| {
            let config = s.cluster.configuration()?;
            Some((s.cluster.name().clone(), config.id))
        });
        let mut conflicts = ids::conflicts(&self.config.cluster, &ids.collect());
        for snapshot in &mut snapshots {
            snapshot.conflict = conflicts.remove(snapshot.cluster.name());
        }
        snapshots
    }
}

/// The span of everything that is done for a remote cluster. Its level is that of errors, so that it is there at every level
/// of the log.
fn span(name: &ClusterName) -> Span {
    tracing::error_span!("remote cluster", cluster_name = %name)
}

fn mirrors(members: &BTreeMap<ClusterName, Member>) -> impl Iterator<Item = (&ClusterName, &Mirror)> {
    members.iter().filter_map(|(name, member)| match member {
        Member::Mirrored(mirror) => Some((name, mirror)),
        Member::Leaving(_) => None,
    })
}

/// What became of the wait for a remote cluster.
enum Waited {
    Mirrored,
    /// Nothing listens at the addresses of its store.
    Refused,
    /// Its configuration was not read in time.
    NotConnected,
}

/// Waits until all of a cluster is mirrored. Once the configuration was read, the wait goes on even if the connection is
/// lost.
async fn wait_until_mirrored(state: &SharedCluster, connect_timeout: Duration) -> Waited {
    let known = state.until(|cluster| cluster.configuration().is_some() || cluster.is_refusing());
    if tokio::time::timeout(connect_timeout, known).await.is_err() {
        return Waited::NotConnected;
    }
    if state.read(|cluster| cluster.configuration().is_none()) {
        return Waited::Refused;
    }
    state.until(Cluster::is_mirrored).await;
    Waited::Mirrored
}

#[cfg(test)]
mod tests;
