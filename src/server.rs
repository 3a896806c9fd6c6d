//! The etcd v3 front of a store: gRPC services, authentication, TLS, and a little HTTP beside them.

mod alarm;
mod auth;
mod cluster;
mod concurrency;
mod gateway;
mod guard;
pub mod http;
mod kv;
mod lease;
pub mod listen;
mod maintenance;
mod metrics;
mod observe;
pub mod peer;
mod status;
pub mod tls;
mod txn;
mod wakers;
mod watch;

pub use wakers::Wakers;

use crate::auth::AuthStore;
use crate::durable::{Durable, Refused};
use crate::lease::Lessor;
use crate::mvcc::Store;
use crate::pb::etcdserverpb as pb;
use crate::util::lifecycle::Lifecycle;
use crate::util::net::Keepalive;
use listen::Listener;
use parking_lot::{Mutex, RwLock};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Notify, Semaphore, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::Status;
use tonic::service::Routes;

/// The etcd release we say we are, where clients ask.
pub const ETCD_VERSION: &str = "3.6.16";
/// The storage version that goes with it.
pub const STORAGE_VERSION: &str = "3.6.0";
/// How long a write may take (etcd: server/config, ReqTimeout).
const REQUEST_TIMEOUT: Duration = Duration::from_secs(7);
/// How often history is compacted to a number of revisions.
const REVISION_COMPACTION: Duration = Duration::from_secs(300);
/// Handshaken connections waiting for the transport to take them.
const CONNECTIONS_WAITING: usize = 64;

/// Who this store is, in every answer's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Never 0; another one whenever the data is not provably the same.
    pub cluster_id: u64,
    /// Never 0.
    pub member_id: u64,
    /// At least 2.
    pub raft_term: u64,
}

/// How to serve.
#[derive(Clone, Debug)]
pub struct Config {
    /// Who this store is.
    pub identity: Identity,
    /// Member name.
    pub name: String,
    /// Client URLs to advertise.
    pub client_urls: Vec<String>,
    /// Peer URLs to advertise; nothing listens there.
    pub peer_urls: Vec<String>,
    /// Largest write request, in bytes.
    pub max_request_bytes: usize,
    /// Most operations in one transaction.
    pub max_txn_ops: usize,
    /// How often idle watchers that ask for it are told how far they are.
    pub watch_progress_interval: Duration,
    /// Bytes the store may take; negative for no limit.
    pub quota_bytes: i64,
    /// As in etcd, a zero interval or a zero timeout disables keepalive pings.
    pub keepalive: Keepalive,
    /// Most calls at once on one connection.
    pub max_concurrent_streams: u32,
    /// Whether `/v3/` speaks JSON.
    pub gateway: bool,
    /// Who may use HTTP from a browser.
    pub access: http::Access,
    /// Whether metrics say how long calls take.
    pub extensive_metrics: bool,
    /// Alarms that are on from the beginning.
    pub alarms: Vec<pb::AlarmMember>,
}

/// What a listener serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Serve {
    /// gRPC and HTTP.
    All,
    /// gRPC alone.
    Grpc,
    /// HTTP alone, with the JSON gateway.
    Http,
    /// Health and metrics.
    Metrics,
}

/// A gRPC method of ours.
struct GrpcMethod {
    service: String,
    name: String,
    /// unary, client_stream, server_stream or bidi_stream.
    kind: &'static str,
}

/// What the services share.
pub struct Core {
    store: Arc<Store>,
    lessor: Arc<Lessor>,
    auth: Arc<AuthStore>,
    alarms: alarm::Alarms,
    /// Held while alarms or peer URLs change.
    changing: Mutex<()>,
    /// Nothing, if all is in memory only.
    durable: Option<Arc<Durable>>,
    metrics: metrics::Metrics,
    /// Where peers would be, as last told.
    peer_urls: RwLock<Vec<String>>,
    config: Config,
    stop: CancellationToken,
    /// One snapshot at a time.
    snapshots: Arc<Semaphore>,
    /// Told when there is history to purge.
    compacted: Arc<Notify>,
    /// Told when watchers have news.
    published: Arc<Notify>,
}

impl Identity {
    /// Random ids: for a store whose data began just now.
    pub fn random() -> Self {
        let id = || rand::random::<u64>() | 1;
        Self {
            cluster_id: id(),
            member_id: id(),
            raft_term: 2,
        }
    }
}

impl Config {
    /// etcd's defaults, but that silent clients are found sooner.
    pub fn new(identity: Identity) -> Self {
        Self {
            identity,
            name: "default".to_owned(),
            client_urls: vec![],
            peer_urls: vec!["http://localhost:2380".to_owned()],
            max_request_bytes: 1_572_864,
            max_txn_ops: 128,
            watch_progress_interval: Duration::from_secs(600),
            quota_bytes: 2 << 30,
            keepalive: Keepalive {
                interval: Duration::from_secs(300),
                timeout: Duration::from_secs(20),
            },
            max_concurrent_streams: u32::MAX,
            gateway: true,
            access: http::Access::default(),
            extensive_metrics: false,
            alarms: vec![],
        }
    }
}

impl Core {
    /// Ties a store to the services; `wakers` are the ones that the store's hooks notify. Starts the tasks that expire leases, purge history and wake
    /// watchers.
    pub fn start(
        store: Arc<Store>,
        lessor: Arc<Lessor>,
        auth: Arc<AuthStore>,
        durable: Option<Arc<Durable>>,
        wakers: Wakers,
        config: Config,
        life: &Lifecycle,
    ) -> Arc<Self> {
        let stop = life.stop_token().clone();
        let Wakers { published, compacted } = wakers;
        let metrics = metrics::Metrics::new(
            Arc::clone(&store),
            Arc::clone(&lessor),
            Arc::clone(&auth),
            durable.as_deref(),
            &config,
        );
        let core = Arc::new(Self {
            store,
            lessor,
            auth,
            alarms: alarm::Alarms::new(&config.alarms),
            changing: Mutex::default(),
            durable,
            metrics,
            peer_urls: RwLock::new(config.peer_urls.clone()),
            config,
            stop,
            snapshots: Arc::new(Semaphore::new(1)),
            compacted,
            published,
        });
        let (expiry, purge, wake) = (Arc::clone(&core), Arc::clone(&core), Arc::clone(&core));
        life.spawn_forever("lease expiry", async move { expiry.lessor.expire().await });
        life.spawn_forever("purge", async move { purge.purge_when_compacted().await });
        life.spawn_forever("watchers", async move { wake.wake_watchers().await });
        core
    }

    fn header(&self, revision: i64) -> pb::ResponseHeader {
        let Identity {
            cluster_id,
            member_id,
            raft_term,
        } = self.config.identity;
        pb::ResponseHeader {
            cluster_id,
            member_id,
            revision,
            raft_term,
        }
    }

    /// Returns when what was seen at `revision` will still be so after a crash.
    async fn committed(&self, revision: i64) -> Result<(), Status> {
        match &self.durable {
            Some(durable) => answered(durable.revision(revision)).await,
            None => Ok(()),
        }
    }

    /// Returns when all that was changed so far will still be so after a crash.
    async fn flushed(&self) -> Result<(), Status> {
        match &self.durable {
            Some(durable) => answered(durable.flushed()).await,
            None => Ok(()),
        }
    }

    /// As it is, but an error is told only once what it was found from is safe, too.
    async fn settled<T>(&self, result: Result<T, impl Into<Status>>) -> Result<T, Status> {
        if result.is_err() {
            self.flushed().await?;
        }
        result.map_err(Into::into)
    }

    /// Purges until nothing is left to, letting writers in between.
    async fn purge(&self) {
        while self.store.purge() {
            tokio::task::yield_now().await;
        }
    }

    async fn purge_when_compacted(&self) {
        loop {
            self.compacted.notified().await;
            self.purge().await;
        }
    }

    async fn wake_watchers(&self) {
        loop {
            self.published.notified().await;
            self.store.wake_watchers();
        }
    }

    /// Compacts everything older than `keep`, for ever, as etcd's periodic mode does: it looks at the
    /// revision ten times in that time, and compacts to the one of `keep` ago.
    pub async fn compact_periodically(&self, keep: Duration) {
        let period = keep.min(Duration::from_secs(3600));
        let mut tick = tokio::time::interval((period / 10).max(Duration::from_millis(1)));
        // A pause is not history.
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let samples = (keep.as_secs_f64() / (period / 10).as_secs_f64()).round() as usize;
        let mut revisions = std::collections::VecDeque::new();
        loop {
            tick.tick().await;
            revisions.push_back(self.store.revision());
            if revisions.len() <= samples.max(1) {
                continue;
            }
            let Some(revision) = revisions.pop_front() else {
                continue;
            };
            if self.store.compact(revision).is_ok() {
                tracing::debug!(revision, "compacted");
                self.purge().await;
            }
        }
    }

    /// Compacts everything but the last `keep` revisions, for ever, as etcd's revision mode does.
    pub async fn compact_to_revisions(&self, keep: i64) {
        let mut tick = tokio::time::interval(REVISION_COMPACTION);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tick.tick().await;
            let revision = self.store.revision() - keep;
            if revision > 0 && self.store.compact(revision).is_ok() {
                tracing::debug!(revision, "compacted");
                self.purge().await;
            }
        }
    }

    /// Serves on `listeners` until the lifecycle stops.
    pub async fn serve(
        self: Arc<Self>,
        listeners: Vec<Listener>,
        what: Serve,
        life: Lifecycle,
    ) -> Result<(), tonic::transport::Error> {
        let (sender, connections) = mpsc::channel(CONNECTIONS_WAITING);
        for listener in listeners {
            let (sender, stop, parts) = (sender.clone(), self.stop.clone(), life.clone());
            let spawn = move |task| parts.spawn_part("handshake", task);
            life.spawn_part("accept", listener.accept(sender, spawn, stop));
        }
        drop(sender);
        let stop = self.stop.clone();
        let Keepalive { interval, timeout } = self.config.keepalive;
        let pings = !interval.is_zero() && !timeout.is_zero();
        tonic::transport::Server::builder()
            .accept_http1(true)
            .max_concurrent_streams(self.config.max_concurrent_streams)
            .http2_keepalive_interval(pings.then_some(interval))
            .http2_keepalive_timeout(pings.then_some(timeout))
            .add_routes(Routes::from(self.router(what)))
            .serve_with_incoming_shutdown(ReceiverStream::new(connections), stop.cancelled_owned())
            .await
    }

    /// What answers requests, without the sockets.
    pub fn router(self: &Arc<Self>, what: Serve) -> axum::Router {
        let gateway = || {
            self.config
                .gateway
                .then(|| gateway::router(&self.grpc(), self.message_limit()))
        };
        match what {
            Serve::All => self.grpc().merge(self.http(gateway())),
            Serve::Grpc => self.grpc(),
            Serve::Http => self.http(gateway()),
            Serve::Metrics => self.health_and_metrics(),
        }
    }

    /// Parity: messages may be this much larger than the largest write.
    fn message_limit(&self) -> usize {
        self.config.max_request_bytes + (512 << 10)
    }

    /// All gRPC services, counted.
    fn grpc(self: &Arc<Self>) -> axum::Router {
        let max = self.message_limit();
        let (health, health_service) = tonic_health::server::health_reporter();
        let core = || Arc::clone(self);
        let (lock, election) = concurrency::services(self);
        let kv = pb::kv_server::KvServer::new(kv::KvService(core())).max_decoding_message_size(max);
        let watch = pb::watch_server::WatchServer::new(watch::WatchService(core()));
        let lease = pb::lease_server::LeaseServer::new(lease::LeaseService(core()));
        let auth = pb::auth_server::AuthServer::new(auth::AuthService(core()));
        let cluster = pb::cluster_server::ClusterServer::new(cluster::ClusterService(core()));
        let maintenance = pb::maintenance_server::MaintenanceServer::new(maintenance::MaintenanceService(core()));
        let routes = Routes::new(kv)
            .add_service(watch.max_decoding_message_size(max))
            .add_service(lease.max_decoding_message_size(max))
            .add_service(auth.max_decoding_message_size(max))
            .add_service(cluster.max_decoding_message_size(max))
            .add_service(maintenance.max_decoding_message_size(max))
            .add_service(lock.max_decoding_message_size(max))
            .add_service(election.max_decoding_message_size(max))
            .add_service(health_service);
        drop(health);
        let core = core();
        let observe = move |request: axum::extract::Request, next: axum::middleware::Next| {
            let core = Arc::clone(&core);
            async move { observe::observe(&core.metrics, request, next).await }
        };
        // The fallback is the other router's.
        routes
            .into_axum_router()
            .reset_fallback()
            .route_layer(axum::middleware::from_fn(observe))
    }
}

/// Waits for the disk, but not for ever.
async fn answered(safe: impl Future<Output = Result<(), Refused>>) -> Result<(), Status> {
    match tokio::time::timeout(REQUEST_TIMEOUT, safe).await {
        Ok(done) => Ok(done?),
        // Parity: it may still come to pass.
        Err(_) => Err(status::timed_out()),
    }
}

/// The descriptors of all messages and services in `proto/`.
fn descriptors() -> prost_reflect::DescriptorPool {
    let bytes = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
    prost_reflect::DescriptorPool::decode(&bytes[..]).expect("the build compiled these descriptors")
}

/// All gRPC methods of `proto/`.
fn grpc_methods() -> Vec<GrpcMethod> {
    let pool = descriptors();
    let methods = pool
        .services()
        .flat_map(|service| service.methods().collect::<Vec<_>>());
    methods
        .map(|method| GrpcMethod {
            service: method.parent_service().full_name().to_owned(),
            name: method.name().to_owned(),
            kind: match (method.is_client_streaming(), method.is_server_streaming()) {
                (false, false) => "unary",
                (true, false) => "client_stream",
                (false, true) => "server_stream",
                (true, true) => "bidi_stream",
            },
        })
        .collect()
}
