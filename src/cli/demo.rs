//! `demo`: two clusters on this machine, joined over mTLS on loopback.

use super::logging::{self, Format};
use crate::app::certs::{Ca, Pair};
use crate::app::{self, Etcd, EtcdConfig, History, ListenConfig, Source};
use crate::clustermesh::publisher::{Options, ServiceMode};
use crate::kvstore::sync_store::SyncStore;
use crate::kvstoremesh::{self, Mesh};
use crate::model::cluster::ClusterInfo;
use crate::model::keys::Scope;
use crate::mvcc::{Event, EventKind};
use crate::server::listen::Address;
use crate::server::tls::{Protocol, TlsFiles};
use crate::server::{self, Identity};
use crate::util::lifecycle::Lifecycle;
use crate::util::readiness::Ready;
use anyhow::{Context, bail};
use clap::Args;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// Name and id of the demo's clusters; each has a directory of manifests of its name.
const CLUSTERS: [(&str, u32); 2] = [("tokyo-cluster", 1), ("hk-cluster", 2)];

/// Flags of `demo`.
#[derive(Args, Debug)]
pub struct DemoArgs {
    /// Directory with one directory of manifests for each cluster
    #[arg(long, default_value = "examples/tokyo-hk", value_name = "DIR")]
    manifests: PathBuf,
    /// Print the status once both clusters are in sync, and exit
    #[arg(long)]
    once: bool,
    /// How long to wait for that, in seconds
    #[arg(long, default_value_t = 30)]
    timeout_secs: u64,
    /// Show the log, too
    #[arg(short = 'D', long)]
    debug: bool,
}

struct Cluster {
    info: ClusterInfo,
    etcd: Etcd,
    /// Its directory: certificates for looking inside, and the other cluster's configuration.
    directory: PathBuf,
    admin: Pair,
    manifests: PathBuf,
}

struct Running {
    cluster: Cluster,
    mesh: Arc<Mesh>,
    publisher: Arc<SyncStore>,
    ready: Ready,
}

#[allow(clippy::print_stdout, reason = "this is what the user asked to see")]
impl DemoArgs {
    /// Starts both clusters, and shows what happens.
    pub async fn start(self, life: &Lifecycle) -> anyhow::Result<()> {
        let level = if self.debug {
            tracing::Level::DEBUG
        } else {
            tracing::Level::WARN
        };
        logging::init(Format::Text, level, false);
        let work = Work::new()?;
        let started = Instant::now();
        let ca = Ca::new(&work.0.join("certs"), "Isthmus demo CA").context("cannot make certificates")?;
        let mut clusters = vec![];
        for (name, id) in CLUSTERS {
            clusters.push(self.cluster(name, id, &ca, &work.0, life).await?);
        }
        connect(&clusters, &ca)?;
        let mut running = vec![];
        for cluster in clusters {
            running.push(run(cluster, life).await?);
        }
        let in_sync = wait_until_ready(&running, Duration::from_secs(self.timeout_secs)).await;
        println!("{}", running.iter().map(status).collect::<Vec<_>>().join("\n"));
        if let Err(pending) = in_sync {
            bail!("not in sync after {} s: {pending}", self.timeout_secs);
        }
        println!(
            "Both clusters are in sync, {} ms after the start.",
            started.elapsed().as_millis()
        );
        if self.once {
            life.stop();
            return Ok(());
        }
        println!("\n{}", instructions(&running, &ca));
        tokio::select! {
            () = life.stop_token().cancelled() => {}
            () = show_changes(&running) => {}
        }
        println!("\nStopping.");
        Ok(())
    }

    async fn cluster(&self, name: &str, id: u32, ca: &Ca, work: &Path, life: &Lifecycle) -> anyhow::Result<Cluster> {
        let manifests = self.manifests.join(name);
        if !manifests.is_dir() {
            bail!(
                "there is no directory {} with the manifests of {name}; run the demo from the repository, or say --manifests DIR",
                manifests.display()
            );
        }
        let info = ClusterInfo::new(name, id, 255)?;
        let server = ca.server(&format!("{name}-server"))?;
        let admin = ca.client(&format!("{name}-admin"), &format!("admin-{name}"))?;
        let tls = TlsFiles {
            cert: server.cert,
            key: server.key,
            client_ca: Some(ca.path()),
            client_crl: None,
            allowed_hostnames: vec![],
            protocol: Protocol::default(),
        };
        let server = server::Config {
            name: name.to_owned(),
            ..server::Config::new(Identity::random())
        };
        let listen = ListenConfig {
            address: Address::Tcp("127.0.0.1:0".to_owned()),
            tls: Some(tls),
            cert_auth: true,
        };
        let config = EtcdConfig {
            history: History::For(Duration::from_secs(600)),
            users_of: Some(info.name.clone()),
            ..EtcdConfig::new(server, vec![listen])
        };
        let etcd = Etcd::start(config, life).await?;
        let directory = work.join(name);
        std::fs::create_dir_all(&directory)?;
        Ok(Cluster {
            info,
            etcd,
            directory,
            admin,
            manifests,
        })
    }
}

/// The demo's own directory, removed with it.
struct Work(PathBuf);

impl Work {
    fn new() -> anyhow::Result<Self> {
        let path = std::env::temp_dir().join(format!("isthmus-demo-{}", std::process::id()));
        std::fs::create_dir_all(&path).with_context(|| format!("cannot make {}", path.display()))?;
        Ok(Self(path))
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

impl Cluster {
    fn endpoint(&self) -> String {
        format!("https://{}", self.etcd.addresses[0])
    }
}

/// Gives each cluster the file by which it finds the other.
fn connect(clusters: &[Cluster], ca: &Ca) -> anyhow::Result<()> {
    let remote = ca.client("remote", "remote")?;
    for cluster in clusters {
        for other in clusters.iter().filter(|o| o.info != cluster.info) {
            let text = format!(
                "endpoints:\n- {}\ntrusted-ca-file: {}\ncert-file: {}\nkey-file: {}\n",
                other.endpoint(),
                ca.path().display(),
                remote.cert.display(),
                remote.key.display(),
            );
            std::fs::write(cluster.directory.join(other.info.name.as_str()), text)?;
        }
    }
    Ok(())
}

async fn run(cluster: Cluster, life: &Lifecycle) -> anyhow::Result<Running> {
    let ready = Ready::default();
    let options = Options {
        cluster: cluster.info.clone(),
        default_global_namespace: true,
        endpoint_slices: false,
        service_exports: true,
        service_mode: ServiceMode::default(),
    };
    let config = kvstoremesh::Config {
        cluster: cluster.info.clone(),
        directory: cluster.directory.clone(),
        cache_ttl: Duration::ZERO,
        per_cluster_ready_timeout: Duration::from_secs(3600),
        global_ready_timeout: Duration::from_secs(3600),
        drain_grace: Duration::from_secs(180),
        former_grace: Duration::from_secs(180),
        drain: true,
        legacy_services: true,
        keys_max: 1_000_000,
        remotes: Default::default(),
    };
    let source = Source::Manifests(cluster.manifests.clone());
    let figures = app::figures::Figures::default();
    let publisher = app::start_publisher(options, source, cluster.etcd.backend(), &figures, &ready, life);
    let mesh = app::start_mesh(config, cluster.etcd.backend(), &figures, &ready, life);
    Ok(Running {
        cluster,
        mesh,
        publisher,
        ready,
    })
}

async fn wait_until_ready(running: &[Running], timeout: Duration) -> Result<(), String> {
    let deadline = Instant::now() + timeout;
    loop {
        let pending: Vec<_> = running
            .iter()
            .flat_map(|r| {
                r.ready
                    .pending()
                    .into_iter()
                    .map(|p| format!("{}: {p}", r.cluster.info.name))
            })
            .collect();
        if pending.is_empty() {
            return Ok(());
        }
        if Instant::now() >= deadline {
            return Err(pending.join(", "));
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// One cluster, in the manner of `cilium clustermesh status`.
fn status(running: &Running) -> String {
    let Running {
        cluster,
        mesh,
        publisher,
        ready,
    } = running;
    let name = &cluster.info.name;
    let count = |scope: Scope| publisher.desired(&scope.state_prefix(name)).keys;
    let mut out = format!("{name} (id {})\n", cluster.info.id);
    let mark = |ok: bool| if ok { "✅" } else { "❌" };
    let _ = writeln!(
        out,
        "✅ Cluster access information is available:\n  - {}",
        cluster.endpoint()
    );
    let _ = writeln!(
        out,
        "{} Published: {} nodes, {} identities, {} endpoints, {} global services, {} endpoint slices, {} service exports",
        mark(!ready.pending().iter().any(|p| p.starts_with("publishing"))),
        count(Scope::Nodes),
        count(Scope::Identities),
        count(Scope::Endpoints),
        count(Scope::Services),
        count(Scope::EndpointSlices),
        count(Scope::ServiceExports),
    );
    let clusters = mesh.remote_clusters();
    let connected = clusters.iter().filter(|c| c.ready).count();
    let _ = writeln!(
        out,
        "{} KVStoreMesh: {connected}/{} remote clusters ready",
        mark(connected == clusters.len()),
        clusters.len()
    );
    out += "🔌 Cluster Connections:\n";
    for (remote, (live, ..)) in clusters.iter().zip(mesh.live()) {
        let took = match live.sync_took {
            Some(took) => format!("synced in {:.1} ms", took.as_secs_f64() * 1000.0),
            None => remote.status.clone(),
        };
        let _ = writeln!(
            out,
            "  - {}: {} at {}\n    {} nodes, {} identities, {} endpoints, {} global services, {} endpoint slices, {} service exports — {took}",
            remote.name,
            if remote.ready { "ready" } else { "not ready" },
            live.endpoint,
            remote.num_nodes,
            remote.num_identities,
            remote.num_endpoints,
            remote.num_shared_services,
            remote.num_endpoint_slices,
            remote.num_service_exports,
        );
    }
    out
}

fn instructions(running: &[Running], ca: &Ca) -> String {
    let mut out = String::from("Look inside with a stock etcdctl:\n");
    for r in running {
        let admin = &r.cluster.admin;
        let _ = writeln!(
            out,
            "\n  # what {} mirrors of the other cluster\n  ETCDCTL_API=3 etcdctl --endpoints={} --cacert={} \\\n    --cert={} --key={} \\\n    get --prefix --keys-only cilium/cache/",
            r.cluster.info.name,
            r.cluster.endpoint(),
            ca.path().display(),
            admin.cert.display(),
            admin.key.display(),
        );
    }
    let manifests = running[0].cluster.manifests.display();
    let _ = write!(
        out,
        "\nEdit a manifest, such as {manifests}/nodes.yaml, and watch the change cross. Ctrl-C stops.\n"
    );
    out
}

/// Prints what changes in each cluster's mirror, as it comes in.
#[allow(clippy::print_stdout, reason = "this is what the user asked to see")]
async fn show_changes(running: &[Running]) {
    let mut next: Vec<i64> = running.iter().map(|r| r.cluster.etcd.store.revision() + 1).collect();
    loop {
        tokio::time::sleep(Duration::from_millis(20)).await;
        for (r, next) in running.iter().zip(&mut next) {
            for batch in r.cluster.etcd.store.batches(*next, 1000) {
                *next = batch.revision + 1;
                for line in batch
                    .events
                    .iter()
                    .filter_map(|e| change(&r.cluster, batch.revision, e))
                {
                    println!("{line}");
                }
            }
        }
    }
}

fn change(cluster: &Cluster, revision: i64, event: &Event) -> Option<String> {
    let key = String::from_utf8_lossy(event.kv.key()).into_owned();
    if !key.starts_with("cilium/cache/") {
        return None;
    }
    let time = jiff::Timestamp::now().strftime("%H:%M:%S%.3f");
    let what = match event.kind {
        EventKind::Put => format!("put    {key}  {}", shortened(event.kv.value())),
        EventKind::Delete => format!("delete {key}"),
    };
    Some(format!("{time} {} revision {revision}: {what}", cluster.info.name))
}

/// The beginning of a value, on one line.
fn shortened(value: &[u8]) -> String {
    match std::str::from_utf8(value) {
        Ok(text) if text.chars().count() <= 100 => text.to_owned(),
        Ok(text) => text.chars().take(100).collect::<String>() + "…",
        Err(_) => format!("({} bytes)", value.len()),
    }
}
