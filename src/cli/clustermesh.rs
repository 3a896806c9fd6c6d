//! `clustermesh`: the publisher alone, writing to any etcd.

use super::flags::{ClusterArgs, KvstoreArgs, LogArgs, ObserveArgs, PublisherArgs, ScopeArgs, ServiceArgs, TraceArgs};
use super::users::UserArgs;
use crate::app::{self, Starting};
use crate::kvstore::Backend;
use crate::kvstore::etcd::EtcdBackend;
use crate::kvstore::users::EtcdUsers;
use crate::util::lifecycle::Lifecycle;
use crate::util::readiness::Ready;
use anyhow::Context;
use clap::Args;
use std::sync::Arc;

/// Flags of `clustermesh`.
#[derive(Args, Debug)]
pub struct ClustermeshArgs {
    #[command(flatten)]
    cluster: ClusterArgs,
    #[command(flatten)]
    publisher: PublisherArgs,
    #[command(flatten)]
    service: ServiceArgs,
    #[command(flatten)]
    scope: ScopeArgs,
    #[command(flatten)]
    kvstore: KvstoreArgs,
    #[command(flatten)]
    users: UserArgs,
    #[command(flatten)]
    pub log: LogArgs,
    #[command(flatten)]
    observe: ObserveArgs,
    #[command(flatten)]
    traces: TraceArgs,
}

impl ClustermeshArgs {
    /// Connects to the store and starts the publisher.
    pub async fn start(self, life: &Lifecycle) -> anyhow::Result<()> {
        let Self {
            cluster,
            publisher,
            service,
            scope,
            kvstore,
            users,
            log: _,
            observe,
            traces,
        } = self;
        let cluster = cluster.info()?;
        traces.start("clustermesh", cluster.name.as_str(), life)?;
        let store = kvstore.config()?;
        let source = publisher.source()?;
        app::check_source(&source).await?;
        let ready = Ready::default();
        let starting = Starting::new(&ready);
        let metrics = observe.start("cilium_clustermesh_apiserver", &ready, life).await?;
        let scope = scope.start(&metrics, &ready, life);
        let admin = EtcdUsers::new(store.source.clone());
        app::watch_store_certificates(store.source.clone(), &metrics, life);
        let store = EtcdBackend::start(store, &metrics.kvstore, life);
        let backend: Arc<dyn Backend> = Arc::clone(&store) as _;
        metrics.conditions(&backend, observe.ready_needs, &ready);
        let connected = store.connected().await;
        connected.context("failed to establish connection to kvstore")?;
        let options = publisher.options(cluster.clone(), service.clustermesh_service_v2, scope);
        app::start_publisher(options, source, backend, &metrics, &ready, life);
        if let Some(path) = users.path() {
            app::start_users(path, Arc::new(admin), &cluster.name, &metrics, life);
        }
        starting.complete();
        app::once_ready(&ready, life, move || store.initial_write_done());
        Ok(())
    }
}
