//! The etcd v3 front of a store: gRPC services, authentication, TLS, and a little HTTP beside them.

mod alarm;
mod auth;
mod cluster;
mod concurrency;
mod guard;
mod kv;
mod lease;
pub mod listen;
mod maintenance;
pub mod peer;
mod status;
pub mod tls;
mod watch;

use crate::auth::AuthStore;
use crate::lease::Lessor;
use crate::mvcc::Store;
use crate::pb::etcdserverpb as pb;
use crate::util::lifecycle::Lifecycle;
use axum::routing::get;
use listen::Listener;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Notify, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::codegen::http::header::CONTENT_TYPE;

/// The etcd release we say we are, where clients ask.
pub const ETCD_VERSION: &str = "3.6.16";
/// The storage version that goes with it.
const STORAGE_VERSION: &str = "3.6.0";
/// After this long without a word a client is pinged, and given this long to answer.
const KEEPALIVE: (Duration, Duration) = (Duration::from_secs(300), Duration::from_secs(20));
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
}

/// What the services share.
pub struct Core {
    store: Arc<Store>,
    lessor: Arc<Lessor>,
    auth: Arc<AuthStore>,
    alarms: alarm::Alarms,
    config: Config,
    stop: CancellationToken,
    /// Told when there is history to purge.
    compacted: Notify,
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
    /// etcd's defaults.
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
        }
    }
}

impl Core {
    /// Ties a store to the services. Starts the tasks that expire leases, purge history and wake
    /// watchers.
    pub fn start(
        store: Arc<Store>,
        lessor: Arc<Lessor>,
        auth: Arc<AuthStore>,
        config: Config,
        life: &Lifecycle,
    ) -> Arc<Self> {
        let stop = life.stop_token().clone();
        let (compacted, published) = (Notify::new(), Arc::new(Notify::new()));
        let notify = Arc::clone(&published);
        store.on_publish(move || notify.notify_one());
        let core = Arc::new(Self {
            store,
            lessor,
            auth,
            alarms: alarm::Alarms::default(),
            config,
            stop,
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

    /// Serves all services on `listeners` until the lifecycle stops.
    pub async fn serve(
        self: Arc<Self>,
        listeners: Vec<Listener>,
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
        tonic::transport::Server::builder()
            .accept_http1(true)
            .max_concurrent_streams(u32::MAX)
            .http2_keepalive_interval(Some(KEEPALIVE.0))
            .http2_keepalive_timeout(Some(KEEPALIVE.1))
            .add_routes(self.routes())
            .serve_with_incoming_shutdown(ReceiverStream::new(connections), stop.cancelled_owned())
            .await
    }

    fn routes(self: Arc<Self>) -> tonic::service::Routes {
        // Parity: requests may be this much larger than the largest write.
        let max = self.config.max_request_bytes + (512 << 10);
        let (health, health_service) = tonic_health::server::health_reporter();
        let core = || Arc::clone(&self);
        let (lock, election) = concurrency::services(&self);
        let kv = pb::kv_server::KvServer::new(kv::KvService(core())).max_decoding_message_size(max);
        let watch = pb::watch_server::WatchServer::new(watch::WatchService(core()));
        let routes = tonic::service::Routes::new(kv)
            .add_service(watch.max_decoding_message_size(max))
            .add_service(pb::lease_server::LeaseServer::new(lease::LeaseService(core())))
            .add_service(pb::auth_server::AuthServer::new(auth::AuthService(core())))
            .add_service(pb::cluster_server::ClusterServer::new(cluster::ClusterService(core())))
            .add_service(pb::maintenance_server::MaintenanceServer::new(
                maintenance::MaintenanceService(core()),
            ))
            .add_service(lock)
            .add_service(election)
            .add_service(health_service);
        drop(health);
        let http = self.http();
        tonic::service::Routes::from(routes.into_axum_router().merge(http))
    }

    /// What is answered over plain HTTP: health, version and metrics.
    pub fn http(self: &Arc<Self>) -> axum::Router {
        let typed = |kind: &'static str, body: String| async move { ([(CONTENT_TYPE, kind)], body) };
        let json = move |body: &str| typed("application/json", body.to_owned());
        let version = format!(
            r#"{{"etcdserver":"{ETCD_VERSION}","etcdcluster":"{STORAGE_VERSION}","storage":"{STORAGE_VERSION}"}}"#
        );
        let core = Arc::clone(self);
        let metrics = move || typed("text/plain; version=0.0.4", core.metrics());
        axum::Router::new()
            .route("/version", get(move || json(&version)))
            .route("/health", get(move || json(r#"{"health":"true","reason":""}"#)))
            .route("/livez", get(|| async { "ok\n" }))
            .route("/readyz", get(|| async { "ok\n" }))
            .route("/metrics", get(metrics))
    }

    /// The figures that etcd's dashboards need most, under etcd's names.
    fn metrics(&self) -> String {
        let stats = self.store.stats();
        let gauges = [
            ("etcd_server_has_leader", 1),
            ("etcd_server_is_leader", 1),
            ("etcd_server_quota_backend_bytes", self.config.quota_bytes),
            ("etcd_mvcc_db_total_size_in_bytes", stats.bytes as i64),
            ("etcd_mvcc_db_total_size_in_use_in_bytes", stats.bytes as i64),
            ("etcd_debugging_mvcc_keys_total", stats.keys as i64),
            ("etcd_debugging_mvcc_watcher_total", stats.watchers as i64),
            ("etcd_debugging_mvcc_current_revision", stats.revision),
            ("etcd_debugging_mvcc_compact_revision", stats.compacted),
        ];
        let counters = [
            ("etcd_mvcc_range_total", stats.ranges),
            ("etcd_mvcc_txn_total", stats.commits),
            ("etcd_debugging_mvcc_events_total", stats.events),
        ];
        let gauges = gauges.map(|(name, n)| format!("# TYPE {name} gauge\n{name} {n}\n"));
        let counters = counters.map(|(name, n)| format!("# TYPE {name} counter\n{name} {n}\n"));
        [gauges.concat(), counters.concat()].concat()
    }
}
