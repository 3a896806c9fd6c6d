//! A mesh in parts: stores of remote clusters that the test fills by hand, and a mirror.

use crate::support::admin::Admin;
use crate::support::files::free_port;
use crate::support::process::{CommandLine, Process, isthmus};
use crate::support::tls::{Tls, etcd};
use crate::support::{eventually, store};
use etcd_client::Client;
use std::collections::BTreeMap;
use std::path::PathBuf;

/// The kinds of keys that a cluster publishes, by the names that they have in a store.
const KINDS: [&str; 6] = [
    "identities",
    "ip",
    "nodes",
    "services",
    "serviceexports",
    "endpointslices",
];

/// The etcd of a remote cluster. It keeps its data in a directory.
pub struct RemoteStore {
    process: Process,
    name: String,
    pub port: u16,
    pub data: PathBuf,
}

impl RemoteStore {
    /// Starts the store of the cluster `name`.
    pub async fn start(tls: &Tls, name: &str) -> Self {
        Self::start_at(tls, name, free_port()).await
    }

    /// Starts the store of the cluster `name` with the data of an earlier store of this name, if there was one.
    pub async fn start_at(tls: &Tls, name: &str, port: u16) -> Self {
        let data = tls.path(&format!("{name}-data"));
        let url = format!("https://127.0.0.1:{port}");
        let process = isthmus(["etcd"])
            .args(tls.flags())
            .arg(format!("--listen-client-urls={url}"))
            .arg(format!("--advertise-client-urls={url}"))
            .arg(format!("--data-dir={}", data.display()))
            .start();
        process.line("serving client traffic").await;
        Self {
            process,
            name: name.to_owned(),
            port,
            data,
        }
    }

    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Kills the store and starts it again at the same address.
    pub async fn restart(self, tls: &Tls) -> Self {
        let (name, port) = (self.name.clone(), self.port);
        self.process.kill().await;
        Self::start_at(tls, &name, port).await
    }

    /// Writes what a complete cluster publishes: its configuration, ten nodes, ten addresses and all canaries.
    pub async fn fill(&self, tls: &Tls, cluster_id: u32) -> Client {
        let mut client = tls.client(&self.address(), "any").await;
        let name = &self.name;
        let mut pairs = vec![
            (
                format!("cilium/cluster-config/{name}"),
                format!(r#"{{"id":{cluster_id},"capabilities":{{"syncedCanaries":true,"maxConnectedClusters":255}}}}"#),
            ),
            ("cilium/.heartbeat".to_owned(), "now".to_owned()),
        ];
        for n in 0..10 {
            pairs.push((format!("cilium/state/nodes/v1/{name}/n{n}"), format!("node {n}")));
            pairs.push((format!("cilium/state/ip/v1/default/10.0.0.{n}"), format!("ip {n}")));
        }
        for kind in KINDS {
            let canary = format!("cilium/synced/{name}/cilium/state/{kind}/v1");
            pairs.push((canary, "now".to_owned()));
        }
        for (key, value) in pairs {
            client.put(key, value, None).await.unwrap();
        }
        client
    }
}

/// The directory of client files that names the remote clusters of a mirror.
pub fn client_files(tls: &Tls) -> PathBuf {
    let directory = tls.path("remotes");
    std::fs::create_dir_all(&directory).unwrap();
    directory
}

/// Writes a client file for each remote cluster, and returns their directory.
pub fn write_client_files(tls: &Tls, remotes: &[&RemoteStore]) -> PathBuf {
    let directory = client_files(tls);
    let admin = tls.ca.client("admin", "admin").unwrap();
    for remote in remotes {
        tls.client_file(&directory.join(&remote.name), &remote.address(), &admin);
    }
    directory
}

/// A `kvstoremesh` of the cluster `local` with id 9.
pub struct Mirror {
    pub process: Process,
    pub admin: Admin,
}

impl Mirror {
    /// The command line of a mirror into the etcd at `target`.
    pub fn command(tls: &Tls, target: &str, admin: &Admin) -> CommandLine {
        let config = tls.path("target.yaml");
        tls.client_file(&config, target, &tls.ca.client("admin", "admin").unwrap());
        isthmus(["kvstoremesh", "--cluster-name=local", "--cluster-id=9"])
            .arg("--kvstore-opt=etcd.qps=0")
            .arg(format!("--kvstore-opt=etcd.config={}", config.display()))
            .arg(format!("--clustermesh-config={}", client_files(tls).display()))
            .args([admin.health_flag(), admin.metrics_flag(), admin.api_flag()])
    }

    /// Starts a mirror into the etcd at `target`, with more flags.
    pub fn start(tls: &Tls, target: &str, flags: &[&str]) -> Self {
        let admin = Admin::new();
        let process = Self::command(tls, target, &admin).args(flags).start();
        Self { process, admin }
    }

    /// Waits until `count` remote clusters, and no others, are mirrored.
    pub async fn mirrors(&self, count: usize) {
        eventually("all clusters are mirrored", async || {
            let clusters = self.admin.clusters().await;
            let complete = clusters.iter().filter(|cluster| cluster["ready"] == true).count();
            (complete == count && self.admin.is_ready().await).then_some(())
        })
        .await;
    }
}

/// A mirror that has copied all of its remote clusters.
pub struct Mirrored {
    /// The etcd that the mirror writes to.
    pub target: Process,
    pub mirror: Mirror,
    /// A client of the target.
    pub local: Client,
}

/// Starts a mirror of `remotes` into an etcd, with more flags, and waits until all of them are mirrored.
pub async fn mirror_of(tls: &Tls, remotes: &[&RemoteStore], flags: &[&str]) -> Mirrored {
    write_client_files(tls, remotes);
    let target = etcd(tls).start();
    let address = target.address().await;
    let mirror = Mirror::start(tls, &address, flags);
    mirror.mirrors(remotes.len()).await;
    let local = tls.client(&address, "any").await;
    Mirrored { target, mirror, local }
}

/// Name → value of the mirrored keys of one kind, for one cluster (`"hk/"`) or for all (`""`).
pub async fn mirrored(client: &mut Client, kind: &str, cluster: &str) -> BTreeMap<String, String> {
    let prefix = format!("cilium/cache/{kind}/v1/{cluster}");
    let values = store::values(client, &prefix).await;
    let name = |key: String| key[prefix.len()..].to_owned();
    values.into_iter().map(|(key, value)| (name(key), value)).collect()
}
