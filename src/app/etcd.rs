//! The wiring of a store, its users, its data directory and the etcd server.

use super::{expiry, users};
use crate::auth::{self, AuthStore, OnChange};
use crate::durable::{self, Durable, Loaded};
use crate::follow::{self, Contents, Followed, Replica};
use crate::kvstore::Backend;
use crate::kvstore::local::{LocalBackend, LocalDisk};
use crate::kvstore::users::UserAdmin;
use crate::lease::Lessor;
use crate::model::cluster::ClusterName;
use crate::mvcc::{Hooks, Recovery, Store};
use crate::server::listen::{Address, Listener};
use crate::server::peer::UserSource;
use crate::server::tls::{TlsConfig, TlsFiles};
use crate::server::{self, Core, MemberIdentity, Parts, Serve, Wakers};
use crate::util::deliveries::Deliveries;
use crate::util::expiry::{CertificateFile, Role};
use crate::util::lifecycle::Lifecycle;
use crate::util::metrics::Page;
use anyhow::Context;
use futures::FutureExt;
use futures::future::BoxFuture;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;
use prometheus_client::registry::Registry;
use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;
use tokio::time::Instant;

/// For how long clients that compact themselves are expected to keep revisions; Kubernetes compacts every five minutes.
const KEPT_BY_CLIENTS: Duration = Duration::from_secs(300);
/// The share (1/n) of the quota that remote clusters cannot use up.
const NOT_FOR_MIRROR: usize = 8;

/// A socket for etcd clients.
#[derive(Clone, Debug)]
pub struct ListenConfig {
    /// The address of the socket.
    pub address: Address,
    /// TLS files; `None` serves without TLS.
    pub tls: Option<TlsFiles>,
    /// Whether a client certificate's common name is the etcd user.
    pub cert_auth: bool,
}

/// Configuration of a store and of its etcd server.
#[derive(Clone, Debug)]
pub struct EtcdConfig {
    pub server: server::Config,
    /// Password hashing and tokens.
    pub auth: auth::Config,
    /// Shortest lease, in seconds.
    pub min_lease_ttl_secs: i64,
    /// Sockets for etcd clients.
    pub listen: Vec<ListenConfig>,
    /// Sockets for HTTP. If there are any, `listen` serves gRPC only.
    pub listen_http: Vec<ListenConfig>,
    /// Additional sockets for health and metrics only.
    pub listen_metrics: Vec<ListenConfig>,
    /// Which revisions are compacted without a client's request.
    pub auto_compaction: AutoCompaction,
    /// Bytes of history from which it is compacted, whatever `auto_compaction` says; `None` for no limit.
    pub history_max: Option<usize>,
    /// The data directory; `None` keeps data in memory only.
    pub data: Option<durable::Config>,
    /// Creates the users and roles of this cluster and enables authentication.
    pub users_of: Option<ClusterName>,
    /// The upstream whose keys, users and revisions the store takes over; `None` for a store of its own.
    pub follow: Option<follow::Config>,
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

impl AutoCompaction {
    /// How long a watch may be without a message if its client shall be able to resume: a third of the time for which
    /// revisions are kept. Where that is not known, clients that compact themselves keep at least some minutes.
    pub fn quiet_watch_time(self) -> Duration {
        let kept = match self {
            Self::Periodic(kept) => kept,
            Self::Off | Self::Revision(_) => KEPT_BY_CLIENTS,
        };
        (kept / 3).max(Duration::from_millis(100))
    }
}

/// A store, and the etcd server in front of it.
pub struct Etcd {
    pub store: Arc<Store>,
    auth: Arc<AuthStore>,
    durable: Option<Arc<Durable>>,
    core: Arc<Core>,
    followed: Option<Followed>,
    quota_bytes: usize,
    /// When watchers receive what publisher and mirror have written.
    deliveries: Arc<Deliveries>,
    /// The cluster id of a store of its own.
    store_id: u64,
    /// Set when a writer of this process waits for a compaction.
    compaction_wanted: Arc<AtomicBool>,
    /// The bound network addresses for clients, in the order of the configuration.
    pub addresses: Vec<SocketAddr>,
    /// The bound network addresses for health and metrics.
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
            history_max: None,
            data: None,
            users_of: None,
            follow: None,
        }
    }
}

/// The certificate files of listeners.
fn certificates<'a>(listeners: impl Iterator<Item = &'a ListenConfig>) -> Vec<CertificateFile> {
    let mut files = vec![];
    for tls in listeners.filter_map(|listener| listener.tls.as_ref()) {
        files.push(expiry::file(Role::Server, tls.cert.clone()));
        files.extend(tls.client_ca.clone().map(|ca| expiry::file(Role::ClientCa, ca)));
    }
    files
}

impl Etcd {
    /// Opens the store, binds the sockets, and serves. Clients can connect when this returns.
    pub async fn start(config: EtcdConfig, life: &Lifecycle) -> anyhow::Result<Self> {
        let mut server = config.server;
        let wakers = Wakers::default();
        let opened = match &config.follow {
            Some(follow) => follow_upstream(follow, config.data, config.auth, &wakers, &mut server, life).await?,
            None => open(config.data, config.auth, &wakers, &mut server, life).await?,
        };
        let Opened {
            store,
            auth,
            durable,
            replica,
        } = opened;
        // The users of a replica are its upstream's.
        if let Some(cluster) = config.users_of.as_ref().filter(|_| replica.is_none()) {
            users::init(&auth, Some(cluster)).context("cannot set up the users")?;
        }
        let all = [&config.listen, &config.listen_http, &config.listen_metrics];
        let certificates = certificates(all.into_iter().flatten());
        expiry::watch(server.expiry.clone(), "listeners", move || certificates.clone(), life);
        let sockets = Sockets {
            clients: listen(config.listen).await.context("--listen-client-urls")?,
            http: listen(config.listen_http).await.context("--listen-client-http-urls")?,
            metrics: listen(config.listen_metrics).await.context("--listen-metrics-urls")?,
        };
        let addresses = addresses(&sockets.clients)?;
        let metrics_addresses = self::addresses(&sockets.metrics)?;
        if server.client_urls.is_empty() {
            server.client_urls = urls(&sockets.clients)?;
        }
        let compaction_wanted = Arc::<AtomicBool>::default();
        let quota_bytes = usize::try_from(server.quota_bytes).unwrap_or(usize::MAX);
        let lessor = Arc::new(Lessor::new(Arc::clone(&store), config.min_lease_ttl_secs));
        let parts = Parts {
            store: Arc::clone(&store),
            lessor,
            auth: Arc::clone(&auth),
            durable: durable.clone(),
            upstream: replica.as_ref().map(Replica::upstream),
            wakers,
        };
        let (deliveries, store_id) = (Arc::clone(&server.deliveries), server.identity.cluster_id);
        let drain_time = server.drain_time;
        let core = Core::start(parts, server, life);
        let followed = replica.map(|replica| replica.start(life));
        compact(&core, config.auto_compaction, life);
        if let Some(most) = config.history_max {
            compact_by_size(&core, most, &compaction_wanted, life);
        }
        if let Some(followed) = &followed {
            followed.caught_up().await;
        }
        sockets.serve(&core, life);
        if !drain_time.is_zero() {
            life.before_stop(core.drain(drain_time));
        }
        Ok(Self {
            store,
            auth,
            durable,
            core,
            followed,
            quota_bytes,
            deliveries,
            store_id,
            compaction_wanted,
            addresses,
            metrics_addresses,
        })
    }

    /// The figures of a replica; `None` for a store of its own.
    pub fn replica_metrics(&self) -> Option<&Arc<follow::Metrics>> {
        self.followed.as_ref().map(Followed::metrics)
    }

    /// Tells why the upstream of a replica is not followed at the moment; `None` for a store of its own.
    pub fn upstream_trouble(&self) -> Option<impl Fn() -> Option<String> + Send + use<>> {
        let metrics = Arc::clone(self.followed.as_ref()?.metrics());
        Some(move || metrics.trouble())
    }

    /// A backend for the publisher.
    pub fn backend(&self) -> Arc<dyn Backend> {
        self.backend_within(self.quota_bytes)
    }

    /// A backend for the mirror, which leaves a part of the quota to the publisher and to clients.
    pub fn mirror_backend(&self) -> Arc<dyn Backend> {
        self.backend_within(self.quota_bytes - self.quota_bytes / NOT_FOR_MIRROR)
    }

    fn backend_within(&self, quota_bytes: usize) -> Arc<dyn Backend> {
        let store = Arc::clone(&self.store);
        let backend = match self.durable.clone() {
            Some(durable) => LocalBackend::durable(store, Arc::new(OnDisk(durable))),
            None => LocalBackend::new(store),
        };
        let wanted = Arc::clone(&self.compaction_wanted);
        let backend = backend.with_deliveries(Arc::clone(&self.deliveries), self.store_id);
        Arc::new(backend.with_quota(quota_bytes).with_compaction(wanted))
    }

    /// What an operator must know of the store: its size, its clients, its disk, refused writes, and data that was set aside.
    pub fn figures(&self) -> Registry {
        let mut registry = Registry::default();
        if let Some(durable) = &self.durable {
            durable.metrics().register(&mut registry);
        }
        self.core.register_figures(&mut registry);
        registry.register_collector(Box::new(StoreSize {
            store: Arc::clone(&self.store),
            quota_bytes: self.quota_bytes,
        }));
        registry
    }

    /// See [`Core::described_metrics`].
    #[cfg(test)]
    pub fn described_metrics(&self) -> Vec<(String, String, String)> {
        self.core.described_metrics()
    }

    /// The server in front of the store.
    pub(super) fn core(&self) -> &Arc<Core> {
        &self.core
    }

    /// Bytes from which the store takes deletions only; `None` without a limit.
    pub(super) fn quota_bytes(&self) -> Option<usize> {
        (self.quota_bytes < usize::MAX).then_some(self.quota_bytes)
    }

    /// Administration of the store's users in this process.
    pub fn users(&self) -> Arc<dyn UserAdmin> {
        Arc::new(users::StoreUsers {
            auth: Arc::clone(&self.auth),
            durable: self.durable.clone(),
        })
    }
}

/// The size of the store, under etcd's names.
struct StoreSize {
    store: Arc<Store>,
    quota_bytes: usize,
}

impl fmt::Debug for StoreSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("StoreSize")
    }
}

impl Collector for StoreSize {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let (mut page, stats) = (Page(encoder), self.store.stats());
        for (name, help, value) in [
            (
                "etcd_mvcc_db_total_size_in_bytes",
                "Bytes of the store with its history",
                stats.bytes as f64,
            ),
            (
                "etcd_server_quota_backend_bytes",
                "Bytes from which the store takes deletions only",
                self.quota_bytes as f64,
            ),
            ("etcd_debugging_mvcc_keys_total", "Keys in the store", stats.keys as f64),
        ] {
            page.gauges(name, help, vec![(vec![], value)])?;
        }
        Ok(())
    }
}

/// Writes are durable once they are in the data directory.
struct OnDisk(Arc<Durable>);

impl LocalDisk for OnDisk {
    fn admit(&self) -> Result<(), String> {
        self.0.admit().map_err(|e| e.to_string())
    }

    fn wait_durable(&self, revision: i64) -> BoxFuture<'_, Result<(), String>> {
        let durable = self.0.revision(revision);
        async move { durable.await.map_err(|e| e.to_string()) }.boxed()
    }
}

/// The task of an auth store that can fail, for error messages.
const TOKENS: &str = "cannot set up auth tokens (--auth-token)";

/// The store and its users, with the journal that makes their changes durable.
struct Opened {
    store: Arc<Store>,
    auth: Arc<AuthStore>,
    durable: Option<Arc<Durable>>,
    /// The replica that owns the store.
    replica: Option<Replica>,
}

/// Takes everything over from the upstream, whose identity `server` takes over, too.
async fn follow_upstream(
    follow: &follow::Config,
    data: Option<durable::Config>,
    auth: auth::Config,
    wakers: &Wakers,
    server: &mut server::Config,
    life: &Lifecycle,
) -> anyhow::Result<Opened> {
    let auth = Arc::new(AuthStore::new(auth).context(TOKENS)?);
    let connected = follow::connect(follow, Arc::clone(&auth)).await.context("--follow")?;
    let (store, durable, contents) = match data {
        None => (Recovery::following().open(wakers.hooks()), None, Contents::Nothing),
        Some(data) => {
            server.scratch = Some(data.directory.clone());
            let copy = durable::Config {
                follows: Some(connected.cluster_id()),
                ..data
            };
            let (durable, loaded) = load(copy, wakers.hooks(), life).await?;
            server.identity.member_id = loaded.identity.member_id;
            let contents = match loaded.is_void || loaded.store.revision() <= 1 {
                true => Contents::Nothing,
                false => Contents::Kept,
            };
            (loaded.store, Some(durable), contents)
        }
    };
    let replica = connected.load(store, contents, server.scratch.clone()).await;
    let (cluster_id, raft_term) = replica.identity();
    server.identity = MemberIdentity {
        cluster_id,
        raft_term,
        ..server.identity
    };
    tracing::info!(
        etcd_cluster_id = %format_args!("{cluster_id:x}"), revision = replica.store.revision(),
        keys = replica.store.stats().keys, floor = replica.store.floor(), "the state of the upstream is here"
    );
    Ok(Opened {
        store: Arc::clone(&replica.store),
        auth,
        durable,
        replica: Some(replica),
    })
}

/// Opens the store of the data directory, whose identity `server` takes over, or an empty store in memory.
async fn open(
    data: Option<durable::Config>,
    auth: auth::Config,
    wakers: &Wakers,
    server: &mut server::Config,
    life: &Lifecycle,
) -> anyhow::Result<Opened> {
    let Some(data) = data else {
        return Ok(Opened {
            store: Store::with_hooks(wakers.hooks()),
            auth: Arc::new(AuthStore::new(auth).context(TOKENS)?),
            durable: None,
            replica: None,
        });
    };
    server.scratch = Some(data.directory.clone());
    let (durable, loaded) = load(data, wakers.hooks(), life).await?;
    resume(server, &loaded);
    let journal = Arc::clone(&durable);
    let on_change: OnChange = Box::new(move |before, after| journal.auth_changed(before, after));
    Ok(Opened {
        auth: Arc::new(AuthStore::with(loaded.metadata.auth(), auth, Some(on_change)).context(TOKENS)?),
        store: loaded.store,
        durable: Some(durable),
        replica: None,
    })
}

/// Loads the data directory. A later failure to write to the directory ends the process, unless the directory is a copy of what
/// a replica follows.
async fn load(config: durable::Config, hooks: Hooks, life: &Lifecycle) -> anyhow::Result<(Arc<Durable>, Loaded)> {
    let (directory, is_copy) = (config.directory.clone(), config.follows.is_some());
    let begun = Instant::now();
    let (durable, loaded) = tokio::task::spawn_blocking(move || durable::open(&config, hooks)).await??;
    tracing::info!(
        data_dir = %directory.display(),
        etcd_cluster_id = %format_args!("{:x}", loaded.identity.cluster_id),
        revision = loaded.store.revision(),
        keys = loaded.store.stats().keys,
        secs = begun.elapsed().as_secs_f64(),
        "data loaded"
    );
    let durable = Arc::new(durable);
    let (stop, watched) = (life.stop_token().clone(), Arc::clone(&durable));
    let closing = Arc::clone(&durable);
    life.at_end(move || closing.close());
    if is_copy {
        life.spawn_part("data directory", async move {
            tokio::select! {
                () = stop.cancelled() => {}
                why = watched.failed() => tracing::error!(
                    error = %why, "the replica's copy cannot be written any more; the replica goes on, and its next start loads from the upstream"
                ),
            }
        });
        return Ok((durable, loaded));
    }
    life.spawn("data directory", async move {
        tokio::select! {
            () = stop.cancelled() => Ok(()),
            why = watched.failed() => Err(why),
        }
    });
    Ok((durable, loaded))
}

/// Continues with the identity, the alarms and the peer URLs of the loaded store.
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

/// The bound sockets, by what they serve.
struct Sockets {
    clients: Vec<Listener>,
    http: Vec<Listener>,
    metrics: Vec<Listener>,
}

impl Sockets {
    fn serve(self, core: &Arc<Core>, life: &Lifecycle) {
        let clients = if self.http.is_empty() { Serve::All } else { Serve::Grpc };
        for (name, listeners, what) in [
            ("etcd server", self.clients, clients),
            ("http", self.http, Serve::Http),
            ("metrics", self.metrics, Serve::Metrics),
        ] {
            if !listeners.is_empty() {
                life.spawn(name, Arc::clone(core).serve(listeners, what, life.clone()));
            }
        }
    }
}

fn compact_by_size(core: &Arc<Core>, most: usize, wanted: &Arc<AtomicBool>, life: &Lifecycle) {
    let (core, wanted) = (Arc::clone(core), Arc::clone(wanted));
    life.spawn_forever("compaction by size", async move {
        core.compact_by_size(most, &wanted).await
    });
}

/// Starts automatic compaction.
fn compact(core: &Arc<Core>, mode: AutoCompaction, life: &Lifecycle) {
    let core = Arc::clone(core);
    match mode {
        AutoCompaction::Off => {}
        AutoCompaction::Periodic(keep) => {
            life.spawn_forever("compaction", async move { core.compact_periodically(keep).await });
        }
        AutoCompaction::Revision(keep) => {
            life.spawn_forever("compaction", async move { core.compact_to_revisions(keep).await });
        }
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
