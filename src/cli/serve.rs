//! `serve`: store, publisher and mirror in one process.

use super::budgets::BudgetArgs;
use super::data::DataArgs;
use super::etcd::listen::Tls;
use super::flags::{
    ClusterArgs, LogArgs, MeshArgs, ObserveArgs, PageArgs, PublisherArgs, ServiceArgs, boolean, duration,
};
use super::users::UserArgs;
use crate::app::page::{Shown, ShownStore, start_page};
use crate::app::{self, AutoCompaction, Etcd, EtcdConfig, Starting};
use crate::server::{self, MemberIdentity};
use crate::util::lifecycle::Lifecycle;
use crate::util::readiness::Ready;
use anyhow::Context;
use clap::{ArgAction, Args};
use std::path::PathBuf;
use std::time::Duration;

/// Heading of the flags that are not shared with other subcommands.
const SERVER: &str = "etcd server";

/// Flags of `serve`.
#[derive(Args, Debug)]
pub struct ServeArgs {
    #[command(flatten)]
    cluster: ClusterArgs,
    #[command(flatten)]
    publisher: PublisherArgs,
    #[command(flatten)]
    mesh: MeshArgs,
    #[command(flatten)]
    service: ServiceArgs,
    #[command(flatten)]
    users: UserArgs,
    #[command(flatten)]
    pub log: LogArgs,
    /// URLs to listen on for etcd clients: http, https, unix or unixs.
    #[arg(
        long,
        env = "CILIUM_LISTEN_CLIENT_URLS",
        default_value = "https://0.0.0.0:2379",
        value_delimiter = ',',
        value_name = "URL,...",
        help_heading = SERVER
    )]
    listen_client_urls: Vec<String>,
    #[command(flatten)]
    data: DataArgs,
    /// Server certificate with its chain, PEM. Changed certificates are read without a restart.
    #[arg(long, env = "CILIUM_CERT_FILE", default_value = "/var/lib/etcd-secrets/tls.crt", value_name = "FILE",
          help_heading = SERVER)]
    cert_file: PathBuf,
    /// Private key of the server certificate, PEM.
    #[arg(long, env = "CILIUM_KEY_FILE", default_value = "/var/lib/etcd-secrets/tls.key", value_name = "FILE",
          help_heading = SERVER)]
    key_file: PathBuf,
    /// CA certificates that client certificates must be signed by, PEM.
    #[arg(long, env = "CILIUM_TRUSTED_CA_FILE", default_value = "/var/lib/etcd-secrets/ca.crt", value_name = "FILE",
          help_heading = SERVER)]
    trusted_ca_file: PathBuf,
    /// Require a client certificate, whose common name is the etcd user, and enable authentication. Without it,
    /// every client may read and write everything.
    #[arg(long, env = "CILIUM_CLIENT_CERT_AUTH", num_args = 0..=1, require_equals = true, help_heading = SERVER,
          default_missing_value = "true", default_value = "true", value_parser = boolean, action = ArgAction::Set)]
    client_cert_auth: bool,
    #[command(flatten)]
    sizes: SizeArgs,
    #[command(flatten)]
    budgets: BudgetArgs,
    #[command(flatten)]
    observe: ObserveArgs,
    #[command(flatten)]
    page: PageArgs,
}

/// How much the store keeps.
#[derive(Args, Debug)]
struct SizeArgs {
    /// Age up to which revisions are kept, so that clients can resume watches and page through lists; 0 keeps all.
    #[arg(long, env = "CILIUM_HISTORY", default_value = "10m", value_parser = duration, value_name = "DURATION",
          help_heading = SERVER)]
    history: Duration,
    /// Bytes of history, that is, of replaced and deleted versions, from which revisions older than 10 seconds are
    /// compacted although --history keeps them; 0 for no limit. Lower it where memory is scarce.
    #[arg(long, env = "CILIUM_HISTORY_MAX_BYTES", default_value_t = 256 << 20, value_name = "BYTES",
          help_heading = SERVER)]
    history_max_bytes: usize,
    /// Size of the data, with its history, in bytes, from which the store takes deletions only; 0 for no limit.
    #[arg(long, env = "CILIUM_QUOTA_BACKEND_BYTES", default_value_t = 2 << 30, value_name = "BYTES",
          help_heading = SERVER)]
    quota_backend_bytes: u64,
}

impl SizeArgs {
    /// The automatic compaction by time.
    fn auto_compaction(&self) -> AutoCompaction {
        match self.history.is_zero() {
            true => AutoCompaction::Off,
            false => AutoCompaction::Periodic(self.history),
        }
    }

    /// Bytes of history from which it is compacted; `None` for no limit.
    fn history_max(&self) -> Option<usize> {
        (self.history_max_bytes > 0).then_some(self.history_max_bytes)
    }

    /// The quota in the form of etcd's flag: negative for no limit.
    fn quota_bytes(&self) -> i64 {
        match self.quota_backend_bytes {
            0 => -1,
            bytes => i64::try_from(bytes).unwrap_or(i64::MAX),
        }
    }
}

impl ServeArgs {
    /// Starts the store, the publisher and the mirror.
    pub async fn start(self, life: &Lifecycle) -> anyhow::Result<()> {
        let Self {
            cluster,
            publisher,
            mesh,
            service,
            users,
            log: _,
            listen_client_urls,
            data,
            cert_file,
            key_file,
            trusted_ca_file,
            client_cert_auth,
            sizes,
            budgets,
            observe,
            page,
        } = self;
        let (cluster, mode) = (cluster.info()?, service.clustermesh_service_v2);
        let source = publisher.source()?;
        app::check_source(&source).await?;
        let mesh_config = mesh.config(cluster.clone(), mode);
        if let Some(config) = &mesh_config {
            app::readable(&config.directory).context("--clustermesh-config")?;
        }
        let page = page.config()?;
        let ready = Ready::default();
        let starting = Starting::new(&ready);
        let metrics = observe.start("cilium_clustermesh_apiserver", &ready, life).await?;
        let tls = tls(cert_file, key_file, client_cert_auth.then_some(trusted_ca_file));
        let server = server::Config {
            name: cluster.name.to_string(),
            client_urls: listen_client_urls.clone(),
            expiry: metrics.expiry.clone(),
            ..limits(&sizes, &budgets)
        };
        let config = EtcdConfig {
            auto_compaction: sizes.auto_compaction(),
            history_max: sizes.history_max(),
            data: data.config(),
            // Without client certificates, users cannot be told apart.
            users_of: client_cert_auth.then(|| cluster.name.clone()),
            ..EtcdConfig::new(
                server,
                tls.listeners(&listen_client_urls).context("--listen-client-urls")?,
            )
        };
        let etcd = Etcd::start(config, life).await?;
        metrics.follow_store(etcd.figures());
        metrics.conditions(&etcd.backend(), observe.ready_needs, &ready);
        for address in &etcd.addresses {
            tracing::info!(%address, cluster_name = %cluster.name, cluster_id = cluster.id, "serving etcd clients");
        }
        match users.path() {
            Some(path) if client_cert_auth => app::start_users(path, etcd.users(), &cluster.name, &metrics, life),
            Some(_) => tracing::warn!("--cluster-users-enabled has no effect with --client-cert-auth=false"),
            None => {}
        }
        let options = publisher.options(cluster.clone(), mode);
        let publisher = app::start_publisher(options, source, etcd.backend(), &metrics, &ready, life);
        if let Some(config) = mesh_config {
            let api = app::start_mesh_api(&mesh.api_serve_addr, &metrics, life).await;
            api.context("--api-serve-addr")?;
            app::start_mesh(config, etcd.mirror_backend(), &metrics, &ready, life);
        }
        let shown = Shown::new("serve", cluster, ready, metrics, ShownStore::own(&etcd));
        start_page(page, shown.publishing(publisher), life).await?;
        starting.complete();
        Ok(())
    }
}

/// The server's configuration with these limits.
fn limits(sizes: &SizeArgs, budgets: &BudgetArgs) -> server::Config {
    server::Config {
        quota_bytes: sizes.quota_bytes(),
        max_concurrent_streams: budgets.max_concurrent_streams,
        watch_gather_time: budgets.watch_gather_time,
        budgets: budgets.budgets(),
        ..server::Config::new(MemberIdentity::random())
    }
}

/// TLS with these files. With a CA, client certificates are required.
fn tls(cert: PathBuf, key: PathBuf, ca: Option<PathBuf>) -> Tls {
    Tls {
        cert: Some(cert),
        key: Some(key),
        cert_auth: ca.is_some(),
        ca,
        ..Tls::default()
    }
}
