//! `kvstoremesh`: the mirror alone, into any etcd; `kvstoremesh-dbg`: what it knows.

use super::flags::{ClusterArgs, KvstoreArgs, LogArgs, MeshArgs, ObserveArgs, ServiceArgs, boolean};
use crate::app;
use crate::kvstore::etcd::EtcdBackend;
use crate::kvstoremesh::status::{self, RemoteCluster};
use crate::util::lifecycle::Lifecycle;
use crate::util::readiness::Ready;
use anyhow::{Context, bail};
use clap::{ArgAction, Args, Subcommand, ValueEnum};
use std::io::ErrorKind;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::Duration;

/// Flags of `kvstoremesh`.
#[derive(Args, Debug)]
pub struct KvstoremeshArgs {
    #[command(flatten)]
    cluster: ClusterArgs,
    #[command(flatten)]
    mesh: MeshArgs,
    #[command(flatten)]
    service: ServiceArgs,
    #[command(flatten)]
    kvstore: KvstoreArgs,
    /// Logging.
    #[command(flatten)]
    pub log: LogArgs,
    /// Write the heartbeat, too: where no publisher does
    #[arg(long, env = "CILIUM_ENABLE_HEARTBEAT", num_args = 0..=1, require_equals = true,
          default_missing_value = "true", default_value = "false", value_parser = boolean, action = ArgAction::Set)]
    enable_heartbeat: bool,
    /// Health and metrics.
    #[command(flatten)]
    observe: ObserveArgs,
}

impl KvstoremeshArgs {
    /// Connects to the local store, and starts mirroring.
    pub async fn start(self, life: &Lifecycle) -> anyhow::Result<()> {
        let Self {
            cluster,
            mesh,
            service,
            kvstore,
            log: _,
            enable_heartbeat,
            observe,
        } = self;
        let cluster = cluster.info()?;
        let store = kvstore.config()?;
        let Some(mut config) = mesh.config(cluster, service.clustermesh_service_v2) else {
            bail!("--clustermesh-config is required");
        };
        let directory = config.directory.display();
        std::fs::read_dir(&config.directory)
            .with_context(|| format!("--clustermesh-config: cannot read {directory}"))?;
        // As the original: remotes are asked as the store here is (pkg/clustermesh/common/factory.go).
        (config.remotes.page, config.remotes.keepalive) = (store.limits.page, store.keepalive);
        let ready = Ready::default();
        let starting = ready.block("starting");
        let figures = observe.start("cilium_kvstoremesh", &ready, life).await?;
        figures.leads(false);
        figures.mesh.stand_by();
        let backend = EtcdBackend::start(store, &figures.kvstore, life);
        figures.store_condition(&(Arc::clone(&backend) as _), observe.ready_needs, &ready);
        let connected = backend.connected().await;
        connected.context("failed to establish connection to kvstore")?;
        let api = app::start_mesh_api(&mesh.api_serve_addr, &figures, life).await;
        api.context("--api-serve-addr")?;
        let starting = app::lead(&backend, &figures, starting, life).await;
        if enable_heartbeat {
            app::start_heartbeat(Arc::clone(&backend) as _, figures.kvstore.clone(), life);
        }
        // Of its own: that a standby is ready says nothing of the mirror.
        let mirrored = Ready::default();
        let waiting = mirrored.clone();
        ready.condition("mirror", false, move || {
            let pending = waiting.pending();
            (!pending.is_empty()).then(|| pending.join(", "))
        });
        app::start_mesh(config, Arc::clone(&backend) as _, &figures, &mirrored, life);
        app::once_ready(&mirrored, life, move || {
            drop(starting);
            backend.steady();
        });
        Ok(())
    }
}

/// Flags of `kvstoremesh-dbg`.
#[derive(Args, Debug)]
pub struct DbgArgs {
    /// Where the status API is
    #[arg(short = 'H', long, default_value = "localhost:9889", global = true)]
    host: String,
    #[command(subcommand)]
    command: DbgCommand,
}

#[derive(Debug, Subcommand)]
enum DbgCommand {
    /// Show the remote clusters
    Status {
        /// Print the API's answer
        #[arg(short, long)]
        output: Option<Output>,
        /// Print details of ready clusters, too
        #[arg(long)]
        verbose: bool,
    },
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Output {
    Json,
    Yaml,
}

impl DbgArgs {
    /// Asks the API; returns what to print.
    pub fn run(&self) -> anyhow::Result<String> {
        let DbgCommand::Status { output, verbose } = &self.command;
        let clusters: Vec<RemoteCluster> = serde_json::from_str(&get(&self.host, "/v1/cluster")?)?;
        Ok(match output {
            Some(Output::Json) => serde_json::to_string_pretty(&clusters)? + "\n",
            Some(Output::Yaml) => serde_saphyr::to_string(&clusters)?,
            None => status::format(&clusters, *verbose),
        })
    }
}

/// The body of an HTTP answer; the API closes the connection after it.
fn get(host: &str, path: &str) -> anyhow::Result<String> {
    let connected = TcpStream::connect(host);
    let mut stream = connected.with_context(|| format!("is KVStoreMesh running and serving the API on {host}?"))?;
    stream.set_read_timeout(Some(Duration::from_secs(30)))?;
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"
    )?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).map_err(|e| match e.kind() {
        ErrorKind::WouldBlock | ErrorKind::TimedOut => anyhow::anyhow!("no answer from {host} in 30 s"),
        _ => e.into(),
    })?;
    let (head, body) = answer.split_once("\r\n\r\n").context("the answer is not HTTP")?;
    if !head.starts_with("HTTP/1.1 200") {
        bail!("{host} answers {}", head.lines().next().unwrap_or_default());
    }
    Ok(body.to_owned())
}
