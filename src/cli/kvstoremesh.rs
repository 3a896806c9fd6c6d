//! `kvstoremesh`: the mirror alone, writing to any etcd; `kvstoremesh-dbg status`, which asks a mirror.

use super::flags::{
    ClusterArgs, KvstoreArgs, LogArgs, MeshArgs, NamespaceArgs, ObserveArgs, PageArgs, ScopeArgs, ServiceArgs,
    TraceArgs, boolean,
};
use crate::app::page::{Shown, ShownStore, start_page};
use crate::app::{self, Starting};
use crate::kvstore::etcd::EtcdBackend;
use crate::kvstoremesh::status::{self, RemoteCluster, ReplicaStatus};
use crate::util::lifecycle::Lifecycle;
use crate::util::readiness::{Ready, Requirement};
use crate::util::words::visible;
use anyhow::{Context, bail};
use clap::{ArgAction, Args, Subcommand, ValueEnum};
use std::io::ErrorKind;
use std::io::{Read, Write};
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
    scope: ScopeArgs,
    #[command(flatten)]
    namespaces: NamespaceArgs,
    #[command(flatten)]
    kvstore: KvstoreArgs,
    #[command(flatten)]
    pub log: LogArgs,
    /// Write the heartbeat key to the local store. Set if no publisher writes to that store.
    #[arg(long, help_heading = "Mirror of remote clusters", env = "CILIUM_ENABLE_HEARTBEAT", num_args = 0..=1, require_equals = true,
          default_missing_value = "true", default_value = "false", value_parser = boolean, action = ArgAction::Set)]
    enable_heartbeat: bool,
    #[command(flatten)]
    observe: ObserveArgs,
    #[command(flatten)]
    traces: TraceArgs,
    #[command(flatten)]
    page: PageArgs,
}

impl KvstoremeshArgs {
    /// Connects to the local store, waits for the leader lock and starts the mirror.
    pub async fn start(self, life: &Lifecycle) -> anyhow::Result<()> {
        let Self {
            cluster,
            mesh,
            service,
            scope,
            namespaces,
            kvstore,
            log: _,
            enable_heartbeat,
            observe,
            traces,
            page,
        } = self;
        let page = page.config()?;
        let cluster = cluster.info()?;
        traces.start("kvstoremesh", cluster.name.as_str(), life)?;
        let store = kvstore.config()?;
        let Some(mut config) = mesh.config(cluster.clone(), service.clustermesh_service_v2) else {
            bail!(
                "no remote clusters to mirror: set --clustermesh-config to the directory of their etcd client configurations"
            );
        };
        app::readable(&config.directory).context("--clustermesh-config")?;
        // As in Cilium, the local store's options also apply to the remote ones (pkg/clustermesh/common/factory.go).
        (config.remotes.page, config.remotes.keepalive) = (store.limits.page, store.keepalive);
        let ready = Ready::default();
        let starting = Starting::new(&ready);
        let metrics = observe.start("cilium_kvstoremesh", &ready, life).await?;
        config.imports = scope
            .start(&metrics, &ready, life)
            .map(|scope| app::start_imports(scope, namespaces.source(), &metrics.kubernetes, &ready, life));
        metrics.set_leader(false);
        metrics.mesh.stand_by();
        app::watch_store_certificates(store.source.clone(), &metrics, life);
        let backend = EtcdBackend::start(store, &metrics.kvstore, life);
        metrics.store_condition(&(Arc::clone(&backend) as _), observe.ready_needs, &ready);
        let store = ShownStore::Etcd(Arc::clone(&backend));
        let shown = Shown::new("kvstoremesh", cluster, ready.clone(), metrics.clone(), store);
        start_page(page, shown, life).await?;
        let connected = backend.connected().await;
        connected.context("failed to establish connection to kvstore")?;
        let api = app::start_mesh_api(&mesh.api_serve_addr, &metrics, life).await;
        api.context("--api-serve-addr")?;
        let starting = app::lead(&backend, &metrics, starting, life).await;
        if enable_heartbeat {
            app::start_heartbeat(Arc::clone(&backend) as _, metrics.kvstore.clone(), life);
        }
        // Separate from `ready`: a standby is ready although its mirror has not started.
        let mirrored = Ready::default();
        let waiting = mirrored.clone();
        ready.condition("mirror", Requirement::Informative, move || {
            let pending = waiting.pending();
            (!pending.is_empty()).then(|| pending.join(", "))
        });
        app::start_mesh(config, Arc::clone(&backend) as _, &metrics, &mirrored, life);
        app::once_ready(&mirrored, life, move || {
            starting.into_iter().for_each(Starting::complete);
            backend.initial_write_done();
        });
        Ok(())
    }
}

/// Flags of `kvstoremesh-dbg`.
#[derive(Args, Debug)]
pub struct DbgArgs {
    /// Address of the mirror's status API (--api-serve-addr of kvstoremesh).
    #[arg(
        short = 'H',
        long,
        default_value = "localhost:9889",
        global = true,
        value_name = "HOST:PORT"
    )]
    host: String,
    #[command(subcommand)]
    command: DbgCommand,
}

#[derive(Debug, Subcommand)]
enum DbgCommand {
    /// Print the status of every remote cluster
    Status {
        /// Print all fields in this format instead of a summary.
        #[arg(short, long, value_name = "FORMAT")]
        output: Option<Output>,
        /// Print the details of ready clusters, too.
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
    /// Asks the status API; returns the text to print.
    pub fn run(&self) -> anyhow::Result<String> {
        let DbgCommand::Status { output, verbose } = &self.command;
        let clusters: Vec<RemoteCluster> = serde_json::from_str(&get(&self.host, "/v1/cluster")?)?;
        Ok(match output {
            Some(Output::Json) => serde_json::to_string_pretty(&clusters)? + "\n",
            Some(Output::Yaml) => serde_saphyr::to_string(&clusters)?,
            None => visible(&(status::format(&clusters, *verbose) + &self.replica())).into_owned(),
        })
    }
}

impl DbgArgs {
    /// How the process follows an etcd; empty if it does not, or does not know this question.
    fn replica(&self) -> String {
        let answer = get(&self.host, "/v1/replica").ok();
        let status = answer.and_then(|answer| serde_json::from_str::<ReplicaStatus>(&answer).ok());
        status.map(|status| status.format()).unwrap_or_default()
    }
}

/// The body of the answer to a GET request, up to the end of the connection.
fn get(host: &str, path: &str) -> anyhow::Result<String> {
    let connected = crate::util::net::connect(host);
    let mut stream = connected.with_context(|| format!("is KVStoreMesh running and serving the API on {host}?"))?;
    stream.set_read_timeout(Some(Duration::from_secs(30)))?;
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"
    )?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).map_err(|e| match e.kind() {
        ErrorKind::WouldBlock | ErrorKind::TimedOut => {
            anyhow::anyhow!("no answer from the status API on {host} within 30 s")
        }
        _ => e.into(),
    })?;
    let (head, body) = answer
        .split_once("\r\n\r\n")
        .with_context(|| format!("the answer from {host} is not HTTP: is it the address of the status API?"))?;
    if !head.starts_with("HTTP/1.1 200") {
        bail!(
            "GET {path} on {host} failed: {}",
            head.lines().next().unwrap_or_default()
        );
    }
    Ok(body.to_owned())
}
