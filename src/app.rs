//! The composition root: the only module that knows all rooms. `cli` chooses which of them to start, and how.

mod candidates;
pub mod certs;
mod etcd;
pub mod etcdinit;
mod expiry;
mod leader;
pub mod metrics;
mod namespaces;
pub mod otlp;
pub mod page;
pub mod signal;
mod users;

pub use candidates::Candidates;
pub use etcd::{AutoCompaction, Etcd, EtcdConfig, ListenConfig};
pub use leader::lead;
pub use namespaces::start_imports;

use crate::admin;
use crate::clustermesh;
use crate::clustermesh::publisher::{Options, Publisher};
use crate::k8s::api::{self, ApiConfig};
use crate::k8s::{client, manifests};
use crate::kvstore::config::ConfigSource;
use crate::kvstore::sync_store::SyncStore;
use crate::kvstore::users::UserAdmin;
use crate::kvstore::{self, Backend, keeper};
use crate::kvstoremesh::{self, Mesh};
use crate::model::cluster::ClusterName;
use crate::scope::{self, Watcher};
use crate::users::Users;
use crate::util::access;
use crate::util::http;
use crate::util::lifecycle::Lifecycle;
use crate::util::readiness::{Block, Ready, Requirement};
use anyhow::{Context, anyhow};
use metrics::DaemonMetrics;
use std::mem::ManuallyDrop;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::sync::mpsc;

/// Capacity of the queue between the source of objects and the publisher. A full queue holds the source up.
const EVENTS: usize = 1024;

/// The source of the publisher's objects.
#[derive(Clone, Debug)]
pub enum ObjectSource {
    /// A directory of manifests.
    Manifests(PathBuf),
    /// A Kubernetes API.
    Api(ApiConfig),
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
    match source {
        ObjectSource::Api(config) => {
            let made = config.client(0).await.map(drop);
            made.map_err(|error| match error {
                api::Error::Client(client::Error::NotConfigured { .. }) => {
                    anyhow!("{error}, or --manifests to a directory of manifests")
                }
                error => error.into(),
            })
        }
        ObjectSource::Manifests(directory) => readable(directory).context("--manifests"),
    }
}

/// Fails if `directory` cannot be read.
pub fn readable(directory: &Path) -> anyhow::Result<()> {
    let read = std::fs::read_dir(directory).map(drop);
    let read = read.map_err(|error| access::explained(error, directory));
    read.with_context(|| format!("cannot read {}", directory.display()))
}

/// Starts mirroring remote clusters into `backend`.
pub fn start_mesh(
    config: kvstoremesh::Config,
    backend: Arc<dyn Backend>,
    metrics: &DaemonMetrics,
    ready: &Ready,
    life: &Lifecycle,
) -> Arc<Mesh> {
    let mesh = Mesh::start(config, backend, &metrics.mirror, ready, life);
    metrics.mesh.follow(&mesh);
    let of_mesh = metrics.mesh.clone();
    expiry::watch(metrics.expiry.clone(), "mesh", move || expiry::of_mesh(&of_mesh), life);
    mesh
}

/// Watches the certificates of the connection to the store of `source`.
pub fn watch_store_certificates(source: ConfigSource, metrics: &DaemonMetrics, life: &Lifecycle) {
    let files = move || expiry::of_store(&source);
    expiry::watch(metrics.expiry.clone(), "store", files, life);
}

/// Serves the status API of the mirror at `address`; an empty address disables the API.
pub async fn start_mesh_api(address: &str, metrics: &DaemonMetrics, life: &Lifecycle) -> anyhow::Result<()> {
    if !address.is_empty() {
        let router = kvstoremesh::api::router(metrics.mesh.clone(), metrics.expiry.clone(), metrics.replica_status());
        start_http("status API", address, router, life).await?;
    }
    Ok(())
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

/// Follows the scope file at `path`. Readiness waits for a content that can be used; a later one that cannot is named.
pub fn start_scope(path: PathBuf, metrics: &DaemonMetrics, ready: &Ready, life: &Lifecycle) -> Watcher {
    let (watcher, follower) = scope::follow::follow(path);
    metrics.scope.follow(watcher.state());
    life.spawn_forever("scope file", follower.run());
    let state = Arc::clone(watcher.state());
    ready.condition("scope file", Requirement::Informative, move || state.problem());
    let (block, stop, mut first) = (
        ready.block("reading the scope file"),
        life.stop_token().clone(),
        watcher.clone(),
    );
    life.spawn_vital("first scope", async move {
        let _block = block;
        tokio::select! {
            () = stop.cancelled() => {}
            _ = first.usable() => {}
        }
    });
    watcher
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
    life.spawn(
        name,
        http::serve(listener, router, http::Options::default(), life.clone()),
    );
    Ok(bound)
}
