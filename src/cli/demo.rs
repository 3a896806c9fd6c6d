//! `demo`: a mesh of two clusters on this machine, connected over mutual TLS on loopback.

mod changes;
mod sides;

use super::logging::{self, Format, Output};
use super::print;
use crate::app::certs::{Ca, Pair};
use crate::app::page::{PageConfig, Shown, ShownStore, start_page};
use crate::app::{self, AutoCompaction, Etcd, EtcdConfig, ListenConfig, ObjectSource};
use crate::clustermesh::publisher::{Options, ServiceMode};
use crate::kvstore::keeper;
use crate::kvstore::sync_store::SyncStore;
use crate::kvstoremesh::{self, Mesh};
use crate::model::cluster::ClusterInfo;
use crate::model::keys::Scope;
use crate::server::listen::Address;
use crate::server::tls::{TlsFiles, TlsProtocol};
use crate::server::{self, MemberIdentity};
use crate::util::lifecycle::Lifecycle;
use crate::util::readiness::{Ready, Requirement};
use anyhow::{Context, bail};
use clap::Args;
use sides::{Side, Sides};
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;
use tracing::Level;

/// Names and ids of the demo's clusters. The name is also that of the directory of a cluster's manifests.
const CLUSTERS: [(&str, u32); 2] = [("tokyo-cluster", 1), ("hk-cluster", 2)];
/// The address of a store or page that was not started before.
const ANY_PORT: &str = "127.0.0.1:0";
/// Prefix of all mirrored keys.
const MIRRORED: &str = "cilium/cache/";

/// Flags of `demo`.
#[derive(Args, Debug)]
pub struct DemoArgs {
    /// Directory that contains the manifests of tokyo-cluster and hk-cluster, each in a directory of that name.
    #[arg(long, default_value = "examples/tokyo-hk", value_name = "DIR")]
    manifests: PathBuf,
    /// Print the status and exit, once both clusters are in sync.
    #[arg(long)]
    once: bool,
    /// Longest time until both clusters are in sync, in seconds. The demo fails after it.
    #[arg(long, default_value_t = 30, value_name = "SECONDS")]
    timeout_secs: u64,
    /// Print the log at level debug to standard error.
    #[arg(short = 'D', long)]
    debug: bool,
}

/// A cluster whose store is served.
struct Cluster {
    info: ClusterInfo,
    etcd: Etcd,
    /// Directory of the etcd client configurations of the other clusters.
    remotes: PathBuf,
    /// The certificate of the user who may read everything.
    admin: Pair,
    manifests: PathBuf,
    /// Where the page of the cluster is served.
    page: String,
    /// The tasks of this cluster but for its mirror, which stop without those of the other.
    life: Lifecycle,
    /// The tasks of the mirror, which stop before any store does.
    mirroring: Lifecycle,
}

/// A cluster that publishes its objects and mirrors those of the others.
struct Running {
    cluster: Cluster,
    publisher: Arc<SyncStore>,
    published: Ready,
    mesh: Arc<Mesh>,
    mirrored: Ready,
    /// The address of the page; `None` if its port is not free any more.
    page: Option<SocketAddr>,
}

impl DemoArgs {
    /// Starts both clusters, waits until they are in sync and prints their status; then prints changes, and stops and
    /// starts clusters as the user says.
    pub async fn start(self, life: &Lifecycle) -> anyhow::Result<()> {
        let level = if self.debug { Level::DEBUG } else { Level::WARN };
        logging::init(Format::Text, level, Output::Stderr);
        let work = WorkDirectory::new()?;
        let started = Instant::now();
        let ca = Ca::new(&work.0.join("certs"), "Isthmus demo CA").context("cannot make certificates")?;
        let mut clusters = vec![];
        for (name, id) in CLUSTERS {
            clusters.push(self.cluster(name, id, &Addresses::default(), &ca, &work.0).await?);
        }
        if let Some(warning) = self.ignored_directories() {
            print::answer(&warning)?;
        }
        connect(&clusters, &ca)?;
        let mut running = vec![];
        for cluster in clusters {
            running.push(run(cluster).await?);
        }
        let timeout = Duration::from_secs(self.timeout_secs);
        let in_sync = tokio::time::timeout(timeout, all_in_sync(&running)).await.is_ok();
        let took = started.elapsed().as_millis();
        print::answer(&(running.iter().map(status).collect::<Vec<_>>().join("\n") + "\n"))?;
        if !in_sync {
            bail!(
                "the clusters are not in sync after {} s; unfinished: {}. Use --debug to see the log, or a longer \
                 --timeout-secs",
                self.timeout_secs,
                running.iter().flat_map(pending).collect::<Vec<_>>().join(", ")
            );
        }
        print::answer(&format!("Both clusters are in sync, {took} ms after the start.\n"))?;
        let instructions = instructions(&running, &ca);
        let mut sides = Sides {
            demo: &self,
            ca: &ca,
            work: &work.0,
            sides: running.into_iter().map(|one| Side::Up(Box::new(one))).collect(),
        };
        if self.once {
            sides.stop_all().await;
            life.stop();
            return Ok(());
        }
        print::answer(&format!("\n{instructions}\n"))?;
        sides.run(life).await?;
        print::answer("\nStopping.\n")
    }

    /// Says which directories beside those of the two clusters are not used.
    fn ignored_directories(&self) -> Option<String> {
        let entries = std::fs::read_dir(&self.manifests).ok()?.flatten();
        let is_ignored = |name: &String| !name.starts_with('.') && CLUSTERS.iter().all(|(cluster, _)| cluster != name);
        let directories = entries.filter(|entry| entry.path().is_dir());
        let mut ignored: Vec<_> = directories
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .filter(is_ignored)
            .collect();
        ignored.sort();
        let names = CLUSTERS.map(|(name, _)| name).join(" and ");
        (!ignored.is_empty()).then(|| {
            format!(
                "Not used: {} in {}. The demo has the clusters {names} only; `serve` runs a cluster of any name.\n\n",
                ignored.join(", "),
                self.manifests.display()
            )
        })
    }

    /// Starts the store of a cluster, with a lifecycle of its own.
    async fn cluster(
        &self,
        name: &str,
        id: u32,
        addresses: &Addresses,
        ca: &Ca,
        work: &Path,
    ) -> anyhow::Result<Cluster> {
        let life = Lifecycle::default();
        let manifests = self.manifests.join(name);
        if !manifests.is_dir() {
            bail!(
                "there is no directory {} with the manifests of {name}: run the demo in the root of the repository, or set \
                 --manifests to a copy of examples/tokyo-hk",
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
            client_certificates: Default::default(),
            client_crl: None,
            allowed_hostnames: vec![],
            protocol: TlsProtocol::default(),
        };
        let server = server::Config {
            name: name.to_owned(),
            ..server::Config::new(MemberIdentity::random())
        };
        let listen = ListenConfig {
            address: Address::Tcp(addresses.store.clone()),
            tls: Some(tls),
            cert_auth: true,
        };
        let config = EtcdConfig {
            auto_compaction: AutoCompaction::Periodic(Duration::from_secs(600)),
            users_of: Some(info.name.clone()),
            ..EtcdConfig::new(server, vec![listen])
        };
        let etcd = Etcd::start(config, &life).await?;
        let remotes = work.join(name);
        std::fs::create_dir_all(&remotes)
            .with_context(|| format!("cannot make the directory {}", remotes.display()))?;
        Ok(Cluster {
            info,
            etcd,
            remotes,
            admin,
            manifests,
            page: addresses.page.clone(),
            life,
            mirroring: Lifecycle::default(),
        })
    }
}

/// The addresses of a cluster. A cluster that starts again has those that it had before.
#[derive(Clone, Debug)]
struct Addresses {
    store: String,
    page: String,
}

impl Default for Addresses {
    fn default() -> Self {
        Self {
            store: ANY_PORT.to_owned(),
            page: ANY_PORT.to_owned(),
        }
    }
}

/// A temporary directory for certificates and configurations, removed at the end of the demo.
struct WorkDirectory(PathBuf);

impl WorkDirectory {
    fn new() -> anyhow::Result<Self> {
        let path = std::env::temp_dir().join(format!("isthmus-demo-{}", std::process::id()));
        std::fs::create_dir_all(&path).with_context(|| format!("cannot make the directory {}", path.display()))?;
        Ok(Self(path))
    }
}

impl Drop for WorkDirectory {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

impl Cluster {
    fn endpoint(&self) -> String {
        format!("https://{}", self.etcd.addresses[0])
    }
}

/// Writes each cluster's etcd client configuration of the other cluster.
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
            let path = cluster.remotes.join(other.info.name.as_str());
            std::fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
        }
    }
    Ok(())
}

/// Starts the publisher, the mirror and the page of a cluster.
async fn run(cluster: Cluster) -> anyhow::Result<Running> {
    let life = &cluster.life;
    let (published, mirrored) = (Ready::default(), Ready::default());
    let options = Options {
        cluster: cluster.info.clone(),
        default_global_namespace: true,
        endpoint_slices: false,
        service_exports: true,
        service_mode: ServiceMode::default(),
        probe_interval: keeper::PROBE,
        scope: None,
    };
    let config = kvstoremesh::Config {
        cluster: cluster.info.clone(),
        directory: cluster.remotes.clone(),
        cache_ttl: Duration::ZERO,
        per_cluster_ready_timeout: Duration::from_secs(3600),
        global_ready_timeout: Duration::from_secs(3600),
        drain_grace: Duration::from_secs(180),
        former_grace: Duration::from_secs(180),
        drain: true,
        legacy_services: true,
        keys_max: 1_000_000,
        changes: Default::default(),
        imports: None,
        remotes: Default::default(),
    };
    let source = ObjectSource::Manifests(cluster.manifests.clone());
    let metrics = app::metrics::DaemonMetrics::default();
    let publisher = app::start_publisher(options, source, cluster.etcd.backend(), &metrics, &published, life);
    let mesh = app::start_mesh(config, cluster.etcd.backend(), &metrics, &mirrored, &cluster.mirroring);
    let (name, store) = (cluster.info.name.to_string(), Arc::clone(&cluster.etcd.store));
    let synced = mirrored.clone();
    life.spawn_forever("changes", async move {
        // What was there at the start is in the status.
        synced.reached().await;
        changes::print(&name, &store).await;
    });
    let page = PageConfig {
        address: Some(cluster.page.clone()),
        ..PageConfig::default()
    };
    let (info, ready) = (cluster.info.clone(), ready(&published, &mirrored));
    let shown = Shown::new("demo", info, ready, metrics, ShownStore::own(&cluster.etcd));
    let page = start_page(page, shown.publishing(Some(Arc::clone(&publisher))), life).await?;
    Ok(Running {
        cluster,
        publisher,
        published,
        mesh,
        mirrored,
        page,
    })
}

/// The readiness of a whole cluster.
fn ready(published: &Ready, mirrored: &Ready) -> Ready {
    let ready = Ready::default();
    for (name, part) in [("publisher", published), ("mirror", mirrored)] {
        let part = part.clone();
        ready.condition(name, Requirement::Required, move || {
            let pending = part.pending();
            (!pending.is_empty()).then(|| pending.join(", "))
        });
    }
    // Nothing else has to finish.
    drop(ready.block("start"));
    ready
}

/// Waits until every cluster has published all its objects and mirrored those of the others.
async fn all_in_sync(running: &[Running]) {
    for r in running {
        r.published.reached().await;
        r.mirrored.reached().await;
    }
}

/// The unfinished tasks of a cluster.
fn pending(running: &Running) -> Vec<String> {
    let name = &running.cluster.info.name;
    let tasks = [running.published.pending(), running.mirrored.pending()];
    tasks.concat().iter().map(|task| format!("{name}: {task}")).collect()
}

/// The status of one cluster, in the style of `cilium clustermesh status`.
fn status(running: &Running) -> String {
    let Running {
        cluster,
        publisher,
        published: is_published,
        mesh,
        mirrored: _,
        page: _,
    } = running;
    let name = &cluster.info.name;
    let count = |scope: Scope| publisher.desired(&scope.state_prefix(name)).keys;
    let published = objects([
        count(Scope::Nodes),
        count(Scope::Identities),
        count(Scope::Endpoints),
        count(Scope::Services),
        count(Scope::EndpointSlices),
        count(Scope::ServiceExports),
    ]);
    let mut out = format!("{name} (id {})\n", cluster.info.id);
    let mark = |ok: bool| if ok { "✅" } else { "❌" };
    let _ = writeln!(
        out,
        "✅ Cluster access information is available:\n  - {}",
        cluster.endpoint()
    );
    let _ = writeln!(out, "{} Published: {published}", mark(is_published.is_ready()));
    let clusters = mesh.remote_clusters();
    let connected = clusters.iter().filter(|c| c.ready).count();
    let _ = writeln!(
        out,
        "{} KVStoreMesh: {connected}/{} remote clusters ready",
        mark(connected == clusters.len()),
        clusters.len()
    );
    out += "🔌 Cluster Connections:\n";
    for (remote, snapshot) in clusters.iter().zip(mesh.clusters()) {
        let took = match snapshot.cluster.first_sync() {
            Some(took) => format!("synced in {:.1} ms", took.as_secs_f64() * 1000.0),
            None => remote.status.clone(),
        };
        let _ = writeln!(
            out,
            "  - {}: {} at {}\n    {} — {took}",
            remote.name,
            if remote.ready { "ready" } else { "not ready" },
            snapshot.cluster.endpoints(),
            objects([
                remote.num_nodes,
                remote.num_identities,
                remote.num_endpoints,
                remote.num_shared_services,
                remote.num_endpoint_slices,
                remote.num_service_exports,
            ]),
        );
    }
    out
}

/// The numbers of nodes, identities, endpoints, global services, endpoint slices and service exports, in words.
fn objects(counts: [usize; 6]) -> String {
    let words = [
        ("node", "nodes"),
        ("identity", "identities"),
        ("endpoint", "endpoints"),
        ("global service", "global services"),
        ("endpoint slice", "endpoint slices"),
        ("service export", "service exports"),
    ];
    let counted = counts
        .into_iter()
        .zip(words)
        .map(|(count, (one, many))| format!("{count} {}", if count == 1 { one } else { many }));
    counted.collect::<Vec<_>>().join(", ")
}

fn instructions(running: &[Running], ca: &Ca) -> String {
    let mut out = String::from("Watch the mesh in a browser:\n\n");
    for r in running {
        if let Some(page) = r.page {
            let _ = writeln!(out, "  {:<15}http://{page}/", r.cluster.info.name.as_str());
        }
    }
    out += "\nRead the stores with etcdctl, from another terminal:\n";
    for r in running {
        let admin = &r.cluster.admin;
        let _ = writeln!(
            out,
            "\n  # the keys that {} mirrors from the other cluster\n  ETCDCTL_API=3 etcdctl --endpoints={} --cacert={} \\\n    --cert={} --key={} \\\n    get --prefix --keys-only {MIRRORED}",
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
        "\nEdit a manifest, such as {manifests}/nodes.yaml: the change is printed here, and shown on the page, as it reaches the other cluster's mirror.\nType `stop {one}` and Enter to stop a cluster, `start {one}` to start it again. Ctrl-C stops.\n",
        one = running[1].cluster.info.name,
    );
    out
}
