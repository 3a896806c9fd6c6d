//! The wiring of a store, its users, its data directory and the etcd server.

mod config;
mod open;
mod size;
mod sockets;

pub use config::{AutoCompaction, EtcdConfig, ListenConfig};

use super::{expiry, users};
use crate::auth::AuthStore;
use crate::durable::Durable;
use crate::follow::{self, Followed, Replica};
use crate::kvstore::Backend;
use crate::kvstore::local::{LocalBackend, LocalDisk};
use crate::kvstore::users::UserAdmin;
use crate::lease::Lessor;
use crate::mvcc::Store;
use crate::server::{Core, Parts, Wakers};
use crate::util::deliveries::Deliveries;
use crate::util::lifecycle::Lifecycle;
use anyhow::Context;
use futures::FutureExt;
use futures::future::BoxFuture;
use open::{Opened, follow_upstream, open};
use prometheus_client::registry::Registry;
use size::StoreSize;
use sockets::{Sockets, addresses, certificates, listen, urls};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

/// The share (1/n) of the quota that remote clusters cannot use up.
const NOT_FOR_MIRROR: usize = 8;

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
