//! The etcd v3 server of a store: gRPC services, authentication, TLS, the JSON gateway, health and metrics.
//!
//! A service translates a request to an [`admission::Operation`] and to the store's types, has the call admitted
//! (`Core::admit`), calls the store, and answers through `Core::commit`.

mod admission;
mod alarm;
mod auth;
mod bodies;
mod budgets;
mod clients;
mod cluster;
mod commit;
mod compaction;
mod concurrency;
mod config;
mod connection;
mod connections;
mod descriptors;
mod drain;
mod farewell;
mod forward;
mod frames;
mod fresh;
mod gateway;
pub mod http;
mod io;
mod kv;
mod lease;
pub mod listen;
mod lists;
mod logins;
mod maintenance;
mod metrics;
mod moves;
mod observe;
mod own_body;
pub mod peer;
mod protocol;
mod refusals;
mod shares;
mod status;
#[cfg(test)]
mod tests;
pub mod tls;
mod traced;
mod transport;
mod turns;
mod unknown;
pub mod upstream;
mod wakers;
mod watch;

pub use budgets::Budgets;
pub use clients::ClientFigures;
pub use config::{Config, MemberIdentity};
pub use wakers::Wakers;

use crate::auth::AuthStore;
use crate::durable::Durable;
use crate::lease::Lessor;
use crate::mvcc::{Gathering, Store};
use crate::pb::etcdserverpb as pb;
use crate::pb::v3electionpb::election_server::ElectionServer;
use crate::pb::v3lockpb::lock_server::LockServer;
use crate::util::deliveries;
use crate::util::lifecycle::Lifecycle;
use admission::{Admission, Admitted, Caller, Limits, Operation};
use alarm::Alarms;
use commit::{Cause, Durability};
use connections::Connections;
use forward::Forwarding;
use listen::Listener;
use logins::Logins;
use parking_lot::RwLock;
use refusals::Refusals;
use shares::Shares;
use std::sync::Arc;
use std::sync::atomic::AtomicI64;
use std::time::Duration;
use tokio::sync::watch::Sender as WatchSender;
use tokio::sync::{Notify, Semaphore};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tonic::Status;
use tonic::service::Routes;
use transport::Transport;
use turns::Turns;
use upstream::Upstream;

/// The etcd version that is reported to clients.
pub const ETCD_VERSION: &str = "3.7.3";
/// etcd's storage version for [`ETCD_VERSION`].
pub const STORAGE_VERSION: &str = "3.7.0";
/// The storage version in snapshots. The storage versions 3.6 and 3.7 have the same buckets and keys, but etcd 3.6 refuses a
/// database that says 3.7.
pub const SNAPSHOT_VERSION: &str = "3.6.0";
/// etcd's cluster version for [`ETCD_VERSION`], without the patch number.
const CLUSTER_VERSION: &str = "3.7";
/// About what a message to one client costs, in nanoseconds. Events of a range are gathered for so long for each watcher.
const MESSAGE_COST_NANOS: u64 = 20_000;
/// Watchers of a quiet range that are woken for each core before the others: about a millisecond of messages.
const WOKEN_FIRST: usize = 64;

/// The protocols that a listener serves.
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

/// What a server is made of.
pub struct Parts {
    pub store: Arc<Store>,
    pub lessor: Arc<Lessor>,
    pub auth: Arc<AuthStore>,
    /// The data directory; `None` for a store in memory.
    pub durable: Option<Arc<Durable>>,
    /// The cluster that the store follows; `None` for a store that decides for itself.
    pub upstream: Option<Arc<dyn Upstream>>,
    /// The notifiers that the store's hooks notify.
    pub wakers: Wakers,
}

/// The state that the services share.
pub struct Core {
    store: Arc<Store>,
    lessor: Arc<Lessor>,
    auth: Arc<AuthStore>,
    alarms: Arc<Alarms>,
    admission: Admission,
    durability: Durability,
    /// The cluster that a replica follows.
    upstream: Option<Arc<dyn Upstream>>,
    forwarding: Forwarding,
    metrics: metrics::Metrics,
    connections: Arc<Connections>,
    refusals: Arc<Refusals>,
    turns: Turns,
    logins: Logins,
    shares: Arc<Shares>,
    life: Lifecycle,
    /// The peer URLs in the member list.
    peer_urls: RwLock<Vec<String>>,
    config: Config,
    stop: CancellationToken,
    /// Permits one snapshot at a time.
    snapshots: Arc<Semaphore>,
    /// Notified when there is history to purge.
    compacted: Arc<Notify>,
    /// Held by a purge.
    purging: tokio::sync::Mutex<()>,
    /// Notified when watchers have news.
    published: Arc<Notify>,
    /// Notified when all watchers with news have been woken.
    woken: Notify,
    /// Changes when a revision has become visible.
    visible: WatchSender<()>,
    /// History before this revision is about to go although it is not old: quiet watches that need it are told first.
    history_goes: AtomicI64,
}

impl Core {
    /// Connects a store to the services. Starts the tasks that expire leases, purge history and wake watchers. In a
    /// replica, leases end upstream.
    pub fn start(parts: Parts, config: Config, life: &Lifecycle) -> Arc<Self> {
        let Parts {
            store,
            lessor,
            auth,
            durable,
            upstream,
            wakers,
        } = parts;
        let stop = life.stop_token().clone();
        let Wakers {
            published,
            compacted,
            visible,
        } = wakers;
        let mut metrics = metrics::Metrics::new(
            Arc::clone(&store),
            Arc::clone(&lessor),
            Arc::clone(&auth),
            durable.as_deref(),
            &config,
        );
        let refusals: Arc<Refusals> = Arc::default();
        let connections = Connections::new(config.budgets.clone(), Arc::clone(&refusals));
        metrics.register(&connections, &store);
        let forwarding = Forwarding::default();
        if let Some(upstream) = &upstream {
            metrics.register_forwarding(&**upstream, &forwarding.unheld);
        }
        // The directory of a replica is a copy, which no answer rests on.
        let durability = Durability::new(durable.filter(|_| upstream.is_none()));
        let alarms = Arc::new(Alarms::new(&config.alarms, durability.clone()));
        let admission = Admission {
            refusals: Arc::clone(&refusals),
            store: Arc::clone(&store),
            auth: Arc::clone(&auth),
            alarms: Arc::clone(&alarms),
            durability: durability.clone(),
            follows: upstream.is_some(),
            limits: Limits::of(&config),
        };
        let core = Arc::new(Self {
            store,
            lessor,
            auth,
            alarms,
            admission,
            durability,
            upstream,
            forwarding,
            metrics,
            connections,
            refusals,
            turns: Turns::new(config.budgets.long_answer_bytes),
            logins: Logins::default(),
            shares: Shares::new(&config.budgets),
            life: life.clone(),
            peer_urls: RwLock::new(config.peer_urls.clone()),
            config,
            stop,
            snapshots: Arc::new(Semaphore::new(1)),
            compacted,
            purging: tokio::sync::Mutex::default(),
            published,
            woken: Notify::new(),
            visible,
            history_goes: AtomicI64::new(0),
        });
        core.spawn_tasks(life);
        core
    }

    fn spawn_tasks(self: &Arc<Self>, life: &Lifecycle) {
        let (purge, wake) = (Arc::clone(self), Arc::clone(self));
        if self.upstream.is_none() {
            let lessor = Arc::clone(&self.lessor);
            life.spawn_forever("lease expiry", async move { lessor.expire().await });
        }
        life.spawn_forever("purge", async move { purge.purge_when_compacted().await });
        life.spawn_forever("watchers", async move { wake.wake_watchers().await });
        let (deliveries, store) = (Arc::clone(&self.config.deliveries), Arc::clone(&self.store));
        life.spawn_forever("deliveries", async move {
            loop {
                tokio::time::sleep(deliveries::SETTLE).await;
                deliveries.settle(|key, revision| store.is_delivered(key, revision));
            }
        });
        life.spawn_forever("connections", Arc::clone(&self.connections).watch_over());
    }

    /// The identity of the store. A replica shows the cluster that it follows, as a member of its own.
    fn identity(&self) -> MemberIdentity {
        let own = self.config.identity;
        match &self.upstream {
            None => own,
            Some(upstream) => {
                let identity = upstream.identity();
                MemberIdentity {
                    cluster_id: identity.cluster_id,
                    raft_term: identity.raft_term,
                    ..own
                }
            }
        }
    }

    fn header(&self, revision: i64) -> pb::ResponseHeader {
        let MemberIdentity {
            cluster_id,
            member_id,
            raft_term,
        } = self.identity();
        pb::ResponseHeader {
            cluster_id,
            member_id,
            revision,
            raft_term,
        }
    }

    /// Admits a call, or returns the error of the first check that fails. See [`admission`].
    async fn admit(&self, caller: &Caller, operation: &Operation) -> Result<Admitted, Status> {
        self.admission.admit(caller, operation).await
    }

    /// Returns an answer once its cause is durable, and an error once every change so far is. See [`commit`].
    async fn commit<T, E: Into<Status>>(
        &self,
        outcome: Result<T, E>,
        cause: impl FnOnce(&T) -> Cause,
    ) -> Result<T, Status> {
        self.durability.commit(outcome, cause).await
    }

    async fn wake_watchers(&self) {
        let gathering = Gathering {
            most: u64::try_from(self.config.watch_gather_time.as_nanos()).unwrap_or(u64::MAX),
            per_member: MESSAGE_COST_NANOS,
        };
        let first = tokio::runtime::Handle::current().metrics().num_workers() * WOKEN_FIRST;
        let begun = Instant::now();
        let (mut due, mut told) = (None, 0);
        loop {
            let falls_due = async move {
                match due {
                    Some(due) => tokio::time::sleep_until(begun + Duration::from_nanos(due)).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = self.published.notified() => {}
                () = falls_due => {}
            }
            let now = u64::try_from(begun.elapsed().as_nanos()).unwrap_or(u64::MAX);
            due = self.store.wake_due_watchers(now, gathering, first).next;
            let woken = self.store.woken();
            if std::mem::replace(&mut told, woken) != woken {
                self.woken.notify_waiters();
            }
        }
    }

    /// Serves on `listeners` until the lifecycle stops.
    pub async fn serve(
        self: Arc<Self>,
        listeners: Vec<Listener>,
        what: Serve,
        life: Lifecycle,
    ) -> Result<(), std::convert::Infallible> {
        let transport = Arc::new(Transport::new(
            self.router(what),
            Arc::clone(&self.connections),
            self.config.max_concurrent_streams,
            self.config.keepalive,
            self.config.ping_answer_delay,
        ));
        let accept =
            |listener: Listener| listener.accept(Arc::clone(&transport), Arc::clone(&self.connections), life.clone());
        futures::future::join_all(listeners.into_iter().map(accept)).await;
        Ok(())
    }

    /// Asks all clients to connect elsewhere, one after the other within `time`.
    pub fn drain(&self, time: Duration) -> impl Future<Output = ()> + Send + use<> {
        let connections = Arc::clone(&self.connections);
        async move { connections.drain(time).await }
    }

    /// The routes of a listener, without sockets.
    pub fn router(self: &Arc<Self>, what: Serve) -> axum::Router {
        let gateway = || {
            self.config
                .gateway
                .then(|| gateway::router(&self.grpc(), self.message_limit()))
        };
        match what {
            Serve::All => self.grpc().merge(self.http(gateway())),
            Serve::Grpc => self.grpc().fallback(self.unknown()),
            Serve::Http => self.http(gateway()),
            Serve::Metrics => self.health_and_metrics(),
        }
    }

    /// The longest message in bytes: as in etcd, 512 KiB more than the longest write request.
    fn message_limit(&self) -> usize {
        self.config.max_request_bytes + (512 << 10)
    }

    /// All gRPC services, with metrics.
    fn grpc(self: &Arc<Self>) -> axum::Router {
        let max = self.message_limit();
        let (health, health_service) = tonic_health::server::health_reporter();
        let core = || Arc::clone(self);
        let lock = LockServer::new(concurrency::ConcurrencyService::new(self));
        let election = ElectionServer::new(concurrency::ConcurrencyService::new(self));
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
        let forwarder = Arc::clone(&core);
        let forward = move |request: axum::extract::Request, next: axum::middleware::Next| {
            Arc::clone(&forwarder).forward(request, next)
        };
        let observer = Arc::clone(&core);
        let observe = move |request: axum::extract::Request, next: axum::middleware::Next| {
            let core = Arc::clone(&observer);
            async move { observe::observe(&core.metrics, request, next).await }
        };
        // The HTTP router has the fallback.
        let router = routes.into_axum_router().reset_fallback();
        let router = match &core.upstream {
            None => router,
            Some(_) => router.route_layer(axum::middleware::from_fn(forward)),
        };
        router.route_layer(axum::middleware::from_fn(observe))
    }
}
