//! The wiring: the only place that knows all parts. `cli` says which to start, and with what.

pub mod certs;
pub mod signal;
mod users;

use crate::admin;
use crate::auth::{self, AuthStore};
use crate::clustermesh;
use crate::clustermesh::publisher::{Options, Publisher};
use crate::k8s::api::ApiConfig;
use crate::k8s::manifests;
use crate::kvstore::local::LocalBackend;
use crate::kvstore::sync_store::SyncStore;
use crate::kvstore::{Backend, keeper};
use crate::kvstoremesh::{self, Mesh};
use crate::lease::Lessor;
use crate::model::cluster::ClusterName;
use crate::mvcc::Store;
use crate::server::listen::Listener;
use crate::server::tls::{TlsConfig, TlsFiles};
use crate::server::{self, Core};
use crate::util::lifecycle::Lifecycle;
use crate::util::readiness::Ready;
use anyhow::Context;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;

/// Events between a source and the publisher.
const EVENTS: usize = 1024;

/// Where to listen for etcd clients.
#[derive(Clone, Debug)]
pub struct ListenConfig {
    /// `host:port`; port 0 picks one.
    pub address: String,
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
    /// Where to listen.
    pub listen: Vec<ListenConfig>,
    /// History older than this is compacted; `None` keeps all.
    pub keep_history: Option<Duration>,
    /// Sets up the users and roles of this cluster, and turns authentication on.
    pub users_of: Option<ClusterName>,
}

/// A store that is being served.
pub struct Etcd {
    /// The store.
    pub store: Arc<Store>,
    /// The addresses bound, in the order of the configuration.
    pub addresses: Vec<SocketAddr>,
    core: Arc<Core>,
}

/// Where objects come from.
#[derive(Clone, Debug)]
pub enum Source {
    /// A directory of manifests.
    Manifests(PathBuf),
    /// A Kubernetes API.
    Api(ApiConfig),
}

impl Etcd {
    /// Starts a store, empty, and serves it. It is ready to serve when this returns.
    pub async fn start(config: EtcdConfig, life: &Lifecycle) -> anyhow::Result<Self> {
        let store = Store::new();
        let lessor = Arc::new(Lessor::new(Arc::clone(&store)));
        let auth = Arc::new(AuthStore::new(config.auth)?);
        if let Some(cluster) = &config.users_of {
            users::init(&auth, cluster).context("cannot set up the users")?;
        }
        let secure: Vec<bool> = config.listen.iter().map(|l| l.tls.is_some()).collect();
        let mut listeners = vec![];
        for listen in config.listen {
            let tls = listen.tls.map(TlsConfig::load).transpose()?.map(Arc::new);
            let listener = Listener::bind(&listen.address, tls, listen.cert_auth).await;
            let address = &listen.address;
            listeners.push(listener.with_context(|| format!("cannot listen on {address}"))?);
        }
        let addresses = listeners.iter().map(Listener::address).collect::<Result<Vec<_>, _>>()?;
        let mut server = config.server;
        if server.client_urls.is_empty() {
            server.client_urls = addresses.iter().zip(&secure).map(|(a, s)| url(*s, a)).collect();
        }
        let core = Core::start(Arc::clone(&store), lessor, auth, server, life);
        if let Some(keep) = config.keep_history {
            let core = Arc::clone(&core);
            life.spawn_forever("compaction", async move { core.compact_periodically(keep).await });
        }
        life.spawn("etcd server", Arc::clone(&core).serve(listeners, life.clone()));
        Ok(Self { store, addresses, core })
    }

    /// Serves health and metrics at one more address, without TLS.
    pub async fn start_metrics(&self, address: &str, life: &Lifecycle) -> anyhow::Result<SocketAddr> {
        start_http("metrics", address, self.core.http(), life).await
    }

    /// A writer in this process, beside the clients.
    pub fn backend(&self) -> Arc<dyn Backend> {
        Arc::new(LocalBackend::new(Arc::clone(&self.store)))
    }
}

fn url(secure: bool, address: &SocketAddr) -> String {
    format!("{}://{address}", if secure { "https" } else { "http" })
}

/// Starts publishing from `source` into `backend`; returns the publisher's writer.
pub async fn start_publisher(
    options: Options,
    source: Source,
    backend: Arc<dyn Backend>,
    ready: &Ready,
    life: &Lifecycle,
) -> anyhow::Result<Arc<SyncStore>> {
    let (sender, events) = mpsc::channel(EVENTS);
    let kinds = Publisher::kinds(&options);
    let stop = life.stop_token().clone();
    match source {
        Source::Manifests(directory) => {
            life.spawn("manifests", async move {
                tokio::select! {
                    () = stop.cancelled() => Ok(()),
                    ended = manifests::follow(directory, kinds, sender) => ended,
                }
            });
        }
        Source::Api(config) => {
            let client = config.client().await?;
            for kind in kinds {
                let follow = config.clone().follow(client.clone(), kind, sender.clone());
                life.spawn_forever(format!("watch of {}", kind.name()), follow);
            }
        }
    }
    Ok(clustermesh::start(options, events, backend, ready, life))
}

/// Starts mirroring; serves the status API at `api_address` unless that is empty.
pub async fn start_mesh(
    config: kvstoremesh::Config,
    api_address: &str,
    backend: Arc<dyn Backend>,
    ready: &Ready,
    life: &Lifecycle,
) -> anyhow::Result<Arc<Mesh>> {
    let mesh = Mesh::start(config, backend, ready, life);
    if !api_address.is_empty() {
        let router = kvstoremesh::api::router(Arc::clone(&mesh));
        start_http("status API", api_address, router, life).await?;
    }
    Ok(mesh)
}

/// Writes the heartbeat, where no publisher does.
pub fn start_heartbeat(backend: Arc<dyn Backend>, life: &Lifecycle) {
    life.spawn_forever("heartbeat", keeper::beat(backend));
}

/// Serves readiness at `address`; returns the address bound.
pub async fn start_health(address: &str, ready: Ready, life: &Lifecycle) -> anyhow::Result<SocketAddr> {
    start_http("health", address, admin::health(ready), life).await
}

async fn start_http(name: &str, address: &str, router: axum::Router, life: &Lifecycle) -> anyhow::Result<SocketAddr> {
    let (listener, bound) = admin::bind(address).await?;
    life.spawn(name, admin::serve(listener, router, life.stop_token().clone()));
    Ok(bound)
}
