//! The composition root: the only module that knows all rooms. `cli` chooses which of them to start, and how.

pub mod certs;
pub mod etcdinit;
pub mod metrics;
pub mod signal;
mod users;

use crate::admin;
use crate::auth::{self, AuthStore, OnChange};
use crate::clustermesh;
use crate::clustermesh::publisher::{Options, Publisher};
use crate::durable::{self, Durable, Loaded};
use crate::k8s::api::ApiConfig;
use crate::k8s::manifests;
use crate::kvstore::etcd::EtcdBackend;
use crate::kvstore::local::{Durability, LocalBackend};
use crate::kvstore::sync_store::SyncStore;
use crate::kvstore::users::UserAdmin;
use crate::kvstore::{self, Backend, keeper};
use crate::kvstoremesh::{self, Mesh};
use crate::lease::Lessor;
use crate::model::cluster::ClusterName;
use crate::mvcc::{Hooks, Store};
use crate::server::listen::{Address, Listener};
use crate::server::peer::UserSource;
use crate::server::tls::{TlsConfig, TlsFiles};
use crate::server::{self, Core, MemberIdentity, Serve, Wakers};
use crate::users::Users;
use crate::util::lifecycle::Lifecycle;
use crate::util::readiness::{Block, Ready};
use anyhow::Context;
use futures::FutureExt;
use futures::future::BoxFuture;
use metrics::DaemonMetrics;
use std::mem::ManuallyDrop;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::Instant;

/// Capacity of the queue between the source of objects and the publisher. A full queue holds the source up.
const EVENTS: usize = 1024;

/// A socket for etcd clients.
#[derive(Clone, Debug)]
pub struct ListenConfig {
    /// The socket.
    pub address: Address,
    /// TLS, unless in clear.
    pub tls: Option<TlsFiles>,
    /// Whether a client certificate's common name is the etcd user.
    pub cert_auth: bool,
}

/// The store and its etcd front.
#[derive(Clone, Debug)]
pub struct EtcdConfig {
    /// How to serve.
    pub server: server::Config,
    /// Passwords and tokens.
    pub auth: auth::Config,
    /// Shortest lease, in seconds.
    pub min_lease_ttl_secs: i64,
    /// Where to listen.
    pub listen: Vec<ListenConfig>,
    /// Where to listen for HTTP; then `listen` is for gRPC alone.
    pub listen_http: Vec<ListenConfig>,
    /// Where to listen for health and metrics, besides.
    pub listen_metrics: Vec<ListenConfig>,
    /// Which revisions are compacted without a client's request.
    pub auto_compaction: AutoCompaction,
    /// Where the data is kept; in memory only without.
    pub data: Option<durable::Config>,
    /// Sets up the users and roles of this cluster, and turns authentication on.
    pub users_of: Option<ClusterName>,
}

/// Compaction by the server itself (etcd's `--auto-compaction-mode`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AutoCompaction {
    /// Keeps all revisions.
    Off,
    /// Keeps revisions that are not older than this.
    Periodic(Duration),
    /// Keeps this many of the latest revisions.
    Revision(i64),
}

/// A store that is being served.
pub struct Etcd {
    /// The store.
    pub store: Arc<Store>,
    /// Its users.
    auth: Arc<AuthStore>,
    /// Its data directory, if it has one.
    durable: Option<Arc<Durable>>,
    /// The network addresses bound for clients, in the order of the configuration.
    pub addresses: Vec<SocketAddr>,
    /// The network addresses bound for health and metrics.
    pub metrics_addresses: Vec<SocketAddr>,
}

impl EtcdConfig {
    /// etcd's defaults, for clients at `listen`.
    pub fn new(server: server::Config, listen: Vec<ListenConfig>) -> Self {
        Self {
            server,
            auth: auth::Config::default(),
            min_lease_ttl_secs: crate::lease::MIN_TTL_SECS,
            listen,
            listen_http: vec![],
            listen_metrics: vec![],
            auto_compaction: AutoCompaction::Off,
            data: None,
            users_of: None,
        }
    }
}

/// The source of the publisher's objects.
#[derive(Clone, Debug)]
pub enum ObjectSource {
    /// A directory of manifests.
    Manifests(PathBuf),
    /// A Kubernetes API.
    Api(ApiConfig),
}

impl Etcd {
    /// Starts the store of the data directory, or an empty one, and serves it. It is ready to serve when this
    /// returns.
    pub async fn start(config: EtcdConfig, life: &Lifecycle) -> anyhow::Result<Self> {
        let mut server = config.server;
        let wakers = Wakers::default();
        let hooks = wakers.hooks();
        let (store, auth, durable) = match config.data {
            Some(data) => {
                let (durable, loaded) = open(data, hooks, life).await?;
                resume(&mut server, &loaded);
                let journal = Arc::clone(&durable);
                let on_change: OnChange = Box::new(move |before, after| journal.auth_changed(before, after));
                let auth = AuthStore::with(loaded.metadata.auth(), config.auth, Some(on_change))?;
                (loaded.store, Arc::new(auth), Some(durable))
            }
            None => (Store::with_hooks(hooks), Arc::new(AuthStore::new(config.auth)?), None),
        };
        let lessor = Arc::new(Lessor::new(Arc::clone(&store), config.min_lease_ttl_secs));
        if let Some(cluster) = &config.users_of {
            users::init(&auth, Some(cluster)).context("cannot set up the users")?;
        }
        let listeners = listen(config.listen).await?;
        let (http, metrics) = (listen(config.listen_http).await?, listen(config.listen_metrics).await?);
        let addresses = addresses(&listeners)?;
        let metrics_addresses = self::addresses(&metrics)?;
        if server.client_urls.is_empty() {
            server.client_urls = urls(&listeners)?;
        }
        let core = Core::start(
            Arc::clone(&store),
            lessor,
            Arc::clone(&auth),
            durable.clone(),
            wakers,
            server,
            life,
        );
        let compactor = Arc::clone(&core);
        match config.auto_compaction {
            AutoCompaction::Off => {}
            AutoCompaction::Periodic(keep) => {
                life.spawn_forever("compaction", async move { compactor.compact_periodically(keep).await });
            }
            AutoCompaction::Revision(keep) => {
                life.spawn_forever("compaction", async move { compactor.compact_to_revisions(keep).await });
            }
        }
        let clients = if http.is_empty() { Serve::All } else { Serve::Grpc };
        for (name, listeners, what) in [
            ("etcd server", listeners, clients),
            ("http", http, Serve::Http),
            ("metrics", metrics, Serve::Metrics),
        ] {
            if !listeners.is_empty() {
                life.spawn(name, Arc::clone(&core).serve(listeners, what, life.clone()));
            }
        }
        Ok(Self {
            store,
            auth,
            durable,
            addresses,
            metrics_addresses,
        })
    }

    /// A writer in this process, beside the clients.
    pub fn backend(&self) -> Arc<dyn Backend> {
        let store = Arc::clone(&self.store);
        match self.durable.clone() {
            Some(durable) => Arc::new(LocalBackend::durable(store, Arc::new(OnDisk(durable)))),
            None => Arc::new(LocalBackend::new(store)),
        }
    }

    /// Administers the store's users in this process.
    pub fn users(&self) -> Arc<dyn UserAdmin> {
        Arc::new(users::StoreUsers {
            auth: Arc::clone(&self.auth),
            durable: self.durable.clone(),
        })
    }
}

/// Writes are durable once they are in the data directory.
struct OnDisk(Arc<Durable>);

impl Durability for OnDisk {
    fn admit(&self) -> Result<(), String> {
        self.0.admit().map_err(|e| e.to_string())
    }

    fn wait_durable(&self, revision: i64) -> BoxFuture<'_, Result<(), String>> {
        let durable = self.0.revision(revision);
        async move { durable.await.map_err(|e| e.to_string()) }.boxed()
    }
}

/// Reads the data directory, and has the process end if it cannot be written to later.
async fn open(config: durable::Config, hooks: Hooks, life: &Lifecycle) -> anyhow::Result<(Arc<Durable>, Loaded)> {
    let directory = config.directory.clone();
    let begun = Instant::now();
    let (durable, loaded) = tokio::task::spawn_blocking(move || durable::open(&config, hooks)).await??;
    tracing::info!(
        data_dir = %directory.display(),
        cluster_id = %format_args!("{:x}", loaded.identity.cluster_id),
        revision = loaded.store.revision(),
        keys = loaded.store.stats().keys,
        secs = begun.elapsed().as_secs_f64(),
        "data loaded"
    );
    let durable = Arc::new(durable);
    let (stop, watched) = (life.stop_token().clone(), Arc::clone(&durable));
    let closing = Arc::clone(&durable);
    life.at_end(move || closing.close());
    life.spawn("data directory", async move {
        tokio::select! {
            () = stop.cancelled() => Ok(()),
            why = watched.failed() => Err(why),
        }
    });
    Ok((durable, loaded))
}

/// Goes on as the store was left.
fn resume(server: &mut server::Config, loaded: &Loaded) {
    server.identity = MemberIdentity {
        cluster_id: loaded.identity.cluster_id,
        member_id: loaded.identity.member_id,
        raft_term: loaded.metadata.raft_term + 1,
    };
    server.alarms.clone_from(&loaded.metadata.alarms);
    if !loaded.metadata.peer_urls.is_empty() {
        server.peer_urls.clone_from(&loaded.metadata.peer_urls);
    }
}

async fn listen(configs: Vec<ListenConfig>) -> anyhow::Result<Vec<Listener>> {
    let mut listeners = vec![];
    for config in configs {
        let address = &config.address;
        let failed = || format!("cannot listen on {address}");
        let tls = config.tls.map(TlsConfig::load).transpose().with_context(failed)?;
        let users = match config.cert_auth {
            true => UserSource::TokenOrCertificate,
            false => UserSource::Token,
        };
        let listener = Listener::bind(address, tls.map(Arc::new), users).await;
        listeners.push(listener.with_context(failed)?);
    }
    Ok(listeners)
}

fn addresses(listeners: &[Listener]) -> std::io::Result<Vec<SocketAddr>> {
    listeners.iter().filter_map(|l| l.address().transpose()).collect()
}

fn urls(listeners: &[Listener]) -> std::io::Result<Vec<String>> {
    let url = |l: &Listener| {
        let scheme = if l.is_secure() { "https" } else { "http" };
        Ok(l.address()?.map(|address| format!("{scheme}://{address}")))
    };
    listeners.iter().filter_map(|l| url(l).transpose()).collect()
}

/// Starts publishing objects of `source` to `backend`; returns the publisher's writer.
pub fn start_publisher(
    options: Options,
    source: ObjectSource,
    backend: Arc<dyn Backend>,
    metrics: &DaemonMetrics,
    ready: &Ready,
    life: &Lifecycle,
) -> Arc<SyncStore> {
    let (sender, events) = mpsc::channel(EVENTS);
    let kinds = Publisher::kinds(&options);
    let (stop, status) = (life.stop_token().clone(), metrics.kubernetes.clone());
    match source {
        ObjectSource::Manifests(directory) => {
            life.spawn("manifests", async move {
                tokio::select! {
                    () = stop.cancelled() => Ok(()),
                    ended = manifests::follow(directory, kinds, sender, &status) => ended,
                }
            });
        }
        ObjectSource::Api(config) => {
            let watches = life.clone();
            life.spawn("kubernetes", async move {
                tokio::select! {
                    () = stop.cancelled() => Ok(()),
                    ended = config.run(kinds, sender, status, watches) => ended,
                }
            });
        }
    }
    clustermesh::start(options, events, backend, &metrics.kvstore, ready, life)
}

/// Fails if the configuration of `source` cannot work, before anything is started.
pub async fn check_source(source: &ObjectSource) -> anyhow::Result<()> {
    if let ObjectSource::Api(config) = source {
        config.client(0).await?;
    }
    Ok(())
}

/// Starts mirroring remote clusters into `backend`.
pub fn start_mesh(
    config: kvstoremesh::Config,
    backend: Arc<dyn Backend>,
    metrics: &DaemonMetrics,
    ready: &Ready,
    life: &Lifecycle,
) -> Arc<Mesh> {
    let mesh = Mesh::start(config, backend, &metrics.kvstore, ready, life);
    metrics.mesh.follow(&mesh);
    mesh
}

/// Serves the status API of the mirror at `address`; an empty address disables the API.
pub async fn start_mesh_api(address: &str, metrics: &DaemonMetrics, life: &Lifecycle) -> anyhow::Result<()> {
    if !address.is_empty() {
        let router = kvstoremesh::api::router(metrics.mesh.clone());
        start_http("status API", address, router, life).await?;
    }
    Ok(())
}

/// Key of the leader lock that all mirrors of one store share.
const MESH_LOCK: &str = "cilium/kvstoremesh-lock";
/// Time to wait for the leader lock before this process becomes a standby, which is ready.
const STANDBY: Duration = Duration::from_secs(10);

/// Waits for the leader lock; losing the lock later ends the process. Returns `starting`, unless the wait was so
/// long that readiness had to be released.
pub async fn lead(
    store: &Arc<EtcdBackend>,
    metrics: &DaemonMetrics,
    starting: Starting,
    life: &Lifecycle,
) -> Option<Starting> {
    let mut starting = Some(starting);
    let leads = store.lead(MESH_LOCK);
    tokio::pin!(leads);
    let leadership = match tokio::time::timeout(STANDBY, &mut leads).await {
        Ok(leadership) => leadership,
        Err(_) => {
            tracing::info!(lock = MESH_LOCK, "another instance holds the leader lock; standing by");
            starting.take().into_iter().for_each(Starting::complete);
            leads.await
        }
    };
    tracing::info!(
        lock = MESH_LOCK,
        "leading: this instance holds the leader lock and mirrors"
    );
    metrics.set_leader(true);
    let (store, metrics, stop) = (Arc::clone(store), metrics.clone(), life.stop_token().clone());
    life.spawn("leadership", async move {
        let lease = leadership.lease();
        tokio::select! {
            () = stop.cancelled() => {
                store.release(lease).await;
                Ok(())
            }
            () = store.hold(leadership) => {
                metrics.set_leader(false);
                Err("Leader election lost")
            }
        }
    });
    starting
}

/// Holds readiness until the start is complete, and for ever if the start fails.
pub struct Starting(ManuallyDrop<Block>);

impl Starting {
    pub fn new(ready: &Ready) -> Self {
        Self(ManuallyDrop::new(ready.block("starting")))
    }

    pub fn complete(self) {
        drop(ManuallyDrop::into_inner(self.0));
    }
}

/// Calls `f` when readiness is reached for the first time.
pub fn once_ready(ready: &Ready, life: &Lifecycle, f: impl FnOnce() + Send + 'static) {
    let (ready, stop) = (ready.clone(), life.stop_token().clone());
    life.spawn_vital("actions after readiness", async move {
        // A task that fails releases its hold on readiness, too.
        tokio::select! { biased; () = stop.cancelled() => {}, () = ready.reached() => f() }
    });
}

/// Starts reconciling the users of `admin` with the file at `path`. The users of `cluster` itself are left alone.
pub fn start_users(
    path: PathBuf,
    admin: Arc<dyn UserAdmin>,
    cluster: &ClusterName,
    metrics: &DaemonMetrics,
    life: &Lifecycle,
) {
    let users = Arc::new(Users::new(path, users::own_names(cluster)));
    metrics.follow_users(&users);
    life.spawn_forever("users", async move { users.run(admin).await });
}

/// Starts writing the heartbeat key, for stores without a publisher.
pub fn start_heartbeat(backend: Arc<dyn Backend>, metrics: kvstore::Metrics, life: &Lifecycle) {
    life.spawn_forever("heartbeat", keeper::beat(backend, metrics));
}

/// Serves readiness at `address`; returns the bound address.
pub async fn start_health(address: &str, ready: Ready, life: &Lifecycle) -> anyhow::Result<SocketAddr> {
    start_http("health", address, admin::health(ready), life).await
}

async fn start_http(name: &str, address: &str, router: axum::Router, life: &Lifecycle) -> anyhow::Result<SocketAddr> {
    let (listener, bound) = admin::bind(address).await?;
    life.spawn(name, admin::serve(listener, router, life.stop_token().clone()));
    Ok(bound)
}
