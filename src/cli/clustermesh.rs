//! `clustermesh`: the publisher alone, into any etcd.

use super::flags::{ClusterArgs, KvstoreArgs, LogArgs, PublisherArgs, ServiceArgs};
use super::users::UserArgs;
use crate::app;
use crate::kvstore::etcd::EtcdBackend;
use crate::kvstore::users::EtcdUsers;
use crate::util::lifecycle::Lifecycle;
use crate::util::readiness::Ready;
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
    kvstore: KvstoreArgs,
    #[command(flatten)]
    users: UserArgs,
    /// Logging.
    #[command(flatten)]
    pub log: LogArgs,
    /// Port for /readyz, on all interfaces
    #[arg(long, env = "CILIUM_HEALTH_PORT", default_value_t = 9880)]
    health_port: u16,
}

impl ClustermeshArgs {
    /// Connects, and starts publishing.
    pub async fn start(self, life: &Lifecycle) -> anyhow::Result<()> {
        let Self {
            cluster,
            publisher,
            service,
            kvstore,
            users,
            log: _,
            health_port,
        } = self;
        let cluster = cluster.info()?;
        let (source, lease_ttl_secs) = kvstore.source()?;
        let ready = Ready::default();
        let starting = ready.block("starting");
        app::start_health(&format!(":{health_port}"), ready.clone(), life).await?;
        let admin = EtcdUsers::new(source.clone());
        let backend = Arc::new(EtcdBackend::new(source, lease_ttl_secs, life.clone()));
        backend.connected().await;
        let options = publisher.options(cluster.clone(), service.clustermesh_service_v2);
        app::start_publisher(options, publisher.source(), backend, &ready, life).await?;
        if let Some(path) = users.path() {
            app::start_users(path, Arc::new(admin), &cluster.name, life);
        }
        drop(starting);
        Ok(())
    }
}
