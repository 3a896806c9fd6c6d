//! `serve`: store, publisher and mirror in one process.

use super::budgets::BudgetArgs;
use super::data::DataArgs;
use super::etcd::listen::Tls;
use super::flags::{
    ClusterArgs, LogArgs, MeshArgs, ObserveArgs, PageArgs, PublisherArgs, ScopeArgs, ServiceArgs, TraceArgs, boolean,
    duration,
};
use super::follow::FollowArgs;
use super::users::UserArgs;
use crate::app::metrics::{DaemonMetrics, Needs};
use crate::app::page::{Shown, ShownStore, start_page};
use crate::app::{self, AutoCompaction, Candidates, Etcd, EtcdConfig, ObjectSource, Starting};
use crate::clustermesh::publisher::{Options, ServiceMode};
use crate::k8s::status::Status;
use crate::kvstore::sync_store::SyncStore;
use crate::kvstoremesh;
use crate::model::cluster::{ClusterInfo, ClusterName};
use crate::server::{self, MemberIdentity};
use crate::util::lifecycle::Lifecycle;
use crate::util::readiness::{Ready, Requirement};
use anyhow::Context;
use clap::{ArgAction, Args};
use std::path::{Path, PathBuf};
use std::sync::Arc;
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
    scope: ScopeArgs,
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
    follow: FollowArgs,
    #[command(flatten)]
    budgets: BudgetArgs,
    #[command(flatten)]
    observe: ObserveArgs,
    #[command(flatten)]
    traces: TraceArgs,
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
    /// Tell a watch that had no message for a third of --history the revision that it has, so that its client can
    /// resume from there after hours. The message has no events. Disable it for clients that take it for an error.
    #[arg(long, env = "CILIUM_PROGRESS_TO_QUIET_WATCHES", num_args = 0..=1, require_equals = true,
          default_missing_value = "true", default_value = "true", value_parser = boolean, action = ArgAction::Set,
          help_heading = SERVER)]
    progress_to_quiet_watches: bool,
    /// Size of the data, with its history, in bytes, from which the store takes deletions only; 0 for no limit.
    #[arg(long, env = "CILIUM_QUOTA_BACKEND_BYTES", default_value_t = 2 << 30, value_name = "BYTES",
          help_heading = SERVER)]
    quota_backend_bytes: u64,
}

impl SizeArgs {
    /// Sets what the server has to know of the sizes.
    fn server(&self, config: server::Config) -> server::Config {
        let quiet_watch_time = self.auto_compaction().quiet_watch_time();
        server::Config {
            quota_bytes: self.quota_bytes(),
            quiet_watch_time: self.progress_to_quiet_watches.then_some(quiet_watch_time),
            ..config
        }
    }

    /// Sets how much the store keeps.
    fn etcd(&self, config: EtcdConfig) -> EtcdConfig {
        EtcdConfig {
            auto_compaction: self.auto_compaction(),
            history_max: self.history_max(),
            ..config
        }
    }

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
            scope,
            users,
            log: _,
            listen_client_urls,
            data,
            cert_file,
            key_file,
            trusted_ca_file,
            client_cert_auth,
            sizes,
            follow,
            budgets,
            observe,
            traces,
            page,
        } = self;
        let (cluster, mode) = (cluster.info()?, service.clustermesh_service_v2);
        traces.start("serve", cluster.name.as_str(), life)?;
        let objects = publisher.source()?;
        app::check_source(&objects).await?;
        let mirror = mirror(&mesh, &cluster, mode)?;
        let page = page.config()?;
        let ready = Ready::default();
        let starting = Starting::new(&ready);
        let metrics = observe.start("cilium_clustermesh_apiserver", &ready, life).await?;
        let tls = tls(cert_file, key_file, client_cert_auth.then_some(trusted_ca_file));
        let server = sizes.server(server::Config {
            name: cluster.name.to_string(),
            client_urls: listen_client_urls.clone(),
            expiry: metrics.expiry.clone(),
            cancel_impossible_watches: follow.cancels_impossible_watches(true),
            ..limits(&budgets)
        });
        let listeners = tls.listeners(&listen_client_urls).context("--listen-client-urls")?;
        let config = EtcdConfig {
            data: data.config(),
            // Without client certificates, users cannot be told apart. A replica has the users of its upstream.
            users_of: (client_cert_auth && !follow.is_replica()).then(|| cluster.name.clone()),
            follow: follow.config(),
            ..sizes.etcd(EtcdConfig::new(server, listeners))
        };
        not_ready_while_leaving(budgets.drain_time, &ready, life);
        let etcd = Etcd::start(config, life).await?;
        show(&etcd, &metrics, &cluster);
        if mirror.is_some() {
            start_api(&mesh.api_serve_addr, &metrics, life).await?;
        }
        let scope = scope.start(&metrics, &ready, life);
        let writers = Writers {
            publisher: publisher.options(cluster.clone(), mode, scope.clone()),
            mirror: mirror.map(|mirror| kvstoremesh::Config {
                imports: scope.map(|file| app::start_imports(file, objects.clone(), &Status::default(), &ready, life)),
                ..mirror
            }),
            objects,
            cluster: cluster.name.clone(),
            users: users.path(),
            has_users: client_cert_auth,
        };
        let publisher = writers.start(&etcd, follow.file(), observe.ready_needs, (&metrics, &ready, life));
        let shown = Shown::new("serve", cluster, ready, metrics, ShownStore::own(&etcd)).publishing(publisher);
        start_page(page, shown, life).await?;
        starting.complete();
        Ok(())
    }
}

/// A process whose clients have time to leave is not ready meanwhile, so that nobody comes.
fn not_ready_while_leaving(drain_time: Duration, ready: &Ready, life: &Lifecycle) {
    if drain_time.is_zero() {
        return;
    }
    let leaving = life.leaving().clone();
    ready.condition("in service", Requirement::Required, move || {
        let why = "the process is about to stop, and its clients are asked to connect elsewhere";
        leaving.is_cancelled().then(|| why.to_owned())
    });
}

/// Shows the store on the page of metrics, in the status API and in the log.
fn show(etcd: &Etcd, metrics: &DaemonMetrics, cluster: &ClusterInfo) {
    metrics.follow_store(etcd.figures());
    if let Some(replica) = etcd.replica_metrics() {
        metrics.follow_replica(replica);
    }
    for address in &etcd.addresses {
        tracing::info!(%address, cluster_name = %cluster.name, cluster_id = cluster.id, "serving etcd clients");
    }
}

/// The server's configuration with these limits.
fn limits(budgets: &BudgetArgs) -> server::Config {
    server::Config {
        max_concurrent_streams: budgets.max_concurrent_streams,
        watch_gather_time: budgets.watch_gather_time,
        ping_answer_delay: budgets.ping_answer_delay,
        drain_time: budgets.drain_time,
        budgets: budgets.budgets(),
        ..server::Config::new(MemberIdentity::random())
    }
}

/// The configuration of the mirror, whose directory can be read; `None` without a mirror.
fn mirror(mesh: &MeshArgs, cluster: &ClusterInfo, mode: ServiceMode) -> anyhow::Result<Option<kvstoremesh::Config>> {
    let config = mesh.config(cluster.clone(), mode);
    if let Some(config) = &config {
        app::readable(&config.directory).context("--clustermesh-config")?;
    }
    Ok(config)
}

/// Serves the status API of the mirror.
async fn start_api(address: &str, metrics: &DaemonMetrics, life: &Lifecycle) -> anyhow::Result<()> {
    app::start_mesh_api(address, metrics, life)
        .await
        .context("--api-serve-addr")
}

/// What writes into the store.
struct Writers {
    publisher: Options,
    objects: ObjectSource,
    mirror: Option<kvstoremesh::Config>,
    cluster: ClusterName,
    /// The file of further users.
    users: Option<PathBuf>,
    /// Whether clients can be told apart.
    has_users: bool,
}

/// Where parts of a process report, and what they live in.
type Surroundings<'a> = (&'a DaemonMetrics, &'a Ready, &'a Lifecycle);

impl Writers {
    /// Starts publisher and mirror where they write: here, or in the upstream that `upstream` names. Returns the publisher's
    /// writer of a store of its own.
    fn start(
        self,
        etcd: &Etcd,
        upstream: Option<&Path>,
        needs: Needs,
        surroundings: Surroundings<'_>,
    ) -> Option<Arc<SyncStore>> {
        match upstream {
            Some(file) => {
                self.start_where_they_lead(etcd, file, needs, surroundings);
                None
            }
            None => Some(self.start_here(etcd, needs, surroundings)),
        }
    }

    /// Starts publisher and mirror, which write to the store of this process. Returns the publisher's writer.
    fn start_here(self, etcd: &Etcd, needs: Needs, (metrics, ready, life): Surroundings<'_>) -> Arc<SyncStore> {
        metrics.conditions(&etcd.backend(), needs, ready);
        match self.users {
            Some(path) if self.has_users => app::start_users(path, etcd.users(), &self.cluster, metrics, life),
            Some(_) => tracing::warn!("--cluster-users-enabled has no effect with --client-cert-auth=false"),
            None => {}
        }
        let publisher = app::start_publisher(self.publisher, self.objects, etcd.backend(), metrics, ready, life);
        if let Some(config) = self.mirror {
            app::start_mesh(config, etcd.mirror_backend(), metrics, ready, life);
        }
        publisher
    }

    /// Takes part in the elections of publisher and mirror, which write to the upstream that `file` names.
    fn start_where_they_lead(self, etcd: &Etcd, file: &Path, needs: Needs, surroundings: Surroundings<'_>) {
        let (metrics, ready, life) = surroundings;
        if let Some(trouble) = etcd.upstream_trouble() {
            // An outage of the upstream must not take all of its replicas out of their Service.
            ready.condition("upstream", Requirement::Informative, trouble);
        }
        let candidates = Candidates {
            publisher: self.publisher,
            objects: self.objects,
            mirror: self.mirror,
            users: self.users,
        };
        candidates.start(file, metrics, needs, ready, life);
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
