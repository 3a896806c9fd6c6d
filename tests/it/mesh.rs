//! Proves the main path over several processes: clusters that mirror each other, as `serve` processes and as the drop-in
//! replacements of Cilium's containers around an etcd.

use crate::support::admin::Admin;
use crate::support::files::{copy_directory, example, free_port};
use crate::support::mesh::client_files;
use crate::support::store::{prefix, read, revision, values};
use crate::support::tls::etcd;
use crate::support::{Process, Tls, eventually, isthmus};
use etcd_client::Client;
use std::collections::BTreeMap;
use std::path::PathBuf;

/// The number of kinds of keys, each of which has a canary.
const KINDS: usize = 6;

/// A `serve` process with manifests and client files of its own.
struct Cluster {
    process: Process,
    manifests: PathBuf,
    remotes: PathBuf,
    admin: Admin,
}

/// Starts `serve` with the demo's manifests for the cluster `name`.
fn serve(tls: &Tls, name: &str, id: u32) -> Cluster {
    let manifests = tls.path(&format!("{name}-manifests"));
    copy_directory(&example(name), &manifests);
    let remotes = tls.path(&format!("{name}-remotes"));
    std::fs::create_dir_all(&remotes).unwrap();
    let admin = Admin::new();
    let process = isthmus(["serve", "--clustermesh-enable-mcs-api"])
        .args([format!("--cluster-name={name}"), format!("--cluster-id={id}")])
        .arg(format!("--manifests={}", manifests.display()))
        .arg(format!("--clustermesh-config={}", remotes.display()))
        .args([admin.api_flag(), admin.health_flag()])
        .args(tls.flags())
        .start();
    Cluster {
        process,
        manifests,
        remotes,
        admin,
    }
}

/// Whether every kind of keys of the cluster `name` has been mirrored into the store.
async fn is_mirrored(client: &mut Client, name: &str) -> bool {
    let canaries = read(client, &format!("cilium/synced/{name}/cilium/cache/")).await;
    canaries.len() == KINDS
}

/// The mirrored keys of the cluster `source`, renamed to the names that they have in its own store.
fn under_source_names(cache: &BTreeMap<String, String>, source: &str) -> BTreeMap<String, String> {
    let rename = |key: &String| {
        let key = key.replace("cilium/cache/", "cilium/state/");
        key.replace(&format!("identities/v1/{source}/id/"), "identities/v1/id/")
            .replace(&format!("ip/v1/{source}/"), "ip/v1/default/")
    };
    cache.iter().map(|(k, v)| (rename(k), v.clone())).collect()
}

#[tokio::test]
async fn two_clusters_mirror_each_other_and_follow_changes() {
    let tls = Tls::new();
    let (tokyo, hk) = (serve(&tls, "tokyo-cluster", 1), serve(&tls, "hk-cluster", 2));
    let remote = tls.ca.client("remote", "remote").unwrap();
    let (tokyo_at, hk_at) = (tokyo.process.address().await, hk.process.address().await);
    // The client files appear after the processes have started.
    tls.client_file(&tokyo.remotes.join("hk-cluster"), &hk_at, &remote);
    tls.client_file(&hk.remotes.join("tokyo-cluster"), &tokyo_at, &remote);
    let mut at_tokyo = tls.client(&tokyo_at, "admin-tokyo-cluster").await;
    let mut at_hk = tls.client(&hk_at, "admin-hk-cluster").await;
    eventually("both mirrors are complete", async || {
        let complete = is_mirrored(&mut at_tokyo, "hk-cluster").await && is_mirrored(&mut at_hk, "tokyo-cluster").await;
        complete.then_some(())
    })
    .await;
    let state = values(&mut at_tokyo, "cilium/state/").await;
    assert_eq!(
        under_source_names(&values(&mut at_hk, "cilium/cache/").await, "tokyo-cluster"),
        state,
        "the mirrored values must equal the published ones byte for byte"
    );
    let published = |word: &str| state.iter().any(|(k, v)| k.contains(word) || v.contains(word));
    assert!(published("shop/catalog"));
    assert!(
        !published("billing") && !published("ledger"),
        "objects of a namespace that is not global must not be published"
    );
    assert!(
        !state.keys().any(|k| k.contains("shop-admin")),
        "a service that is not global must not be published"
    );
    for cluster in [&tokyo, &hk] {
        cluster.admin.ready().await;
    }

    // The other cluster mirrors a change and a deletion.
    let endpoints = tokyo.manifests.join("endpoints.yaml");
    let text = std::fs::read_to_string(&endpoints).unwrap();
    std::fs::write(&endpoints, text.replace("ipv4: 10.1.0.21", "ipv4: 10.1.0.99")).unwrap();
    std::fs::remove_file(tokyo.manifests.join("nodes.yaml")).unwrap();
    eventually("the other cluster has mirrored the changes", async || {
        let cache = values(&mut at_hk, "cilium/cache/").await;
        let done = cache.contains_key("cilium/cache/ip/v1/tokyo-cluster/10.1.0.99")
            && !cache.contains_key("cilium/cache/ip/v1/tokyo-cluster/10.1.0.21")
            && !cache.keys().any(|k| k.contains("nodes/v1/tokyo-cluster"));
        done.then_some(())
    })
    .await;

    let status = |host: &str| isthmus(["kvstoremesh-dbg", "status", "--host", host]);
    let host = tokyo.admin.api_address();
    let text = status(&host).run().stdout;
    assert!(text.starts_with("KVStoreMesh:\t1/1 remote clusters ready\n   hk-cluster: ready, 2 nodes, 10 endpoints, 3 identities, 2 services, 4 endpoint slices, 1 MCS-API service exports, 0 reconnections"), "{text}");
    let json = isthmus(["kvstoremesh-dbg", "status", "-o", "json", "-H", &host])
        .run()
        .stdout;
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json[0]["config"]["cluster-id"], 2);
    assert_eq!(json[0]["ready"], true);
    let yaml = status(&host).args(["-o", "yaml"]).run().stdout;
    assert!(
        yaml.contains("cluster-id: 2\n") && yaml.contains("ready: true\n"),
        "{yaml}"
    );
    let nothing = status(&format!("127.0.0.1:{}", free_port())).run();
    assert_eq!(nothing.code, Some(1));
    assert!(nothing.stdout.contains("is KVStoreMesh running and serving the API on"));
}

#[tokio::test]
async fn keys_of_a_remote_that_restarts_empty_stay_and_are_compared_again() {
    let tls = Tls::new();
    let remote = tls.ca.client("remote", "remote").unwrap();
    let tokyo = serve(&tls, "tokyo-cluster", 1);
    let mut at_tokyo = tls.client(&tokyo.process.address().await, "admin-tokyo-cluster").await;
    let file = tokyo.remotes.join("hk-cluster");
    let hk = serve(&tls, "hk-cluster", 2);
    tls.client_file(&file, &hk.process.address().await, &remote);
    eventually("hk-cluster is mirrored", async || {
        is_mirrored(&mut at_tokyo, "hk-cluster").await.then_some(())
    })
    .await;
    let before = values(&mut at_tokyo, "cilium/cache/").await;
    drop(hk);
    tokyo.process.line("cannot connect to the remote cluster").await;
    assert_eq!(
        values(&mut at_tokyo, "cilium/cache/").await,
        before,
        "mirrored keys must stay while the remote is unreachable"
    );
    let revision = revision(&mut at_tokyo).await;
    let hk = serve(&tls, "hk-cluster", 2);
    tls.client_file(&file, &hk.process.address().await, &remote);
    eventually("the remote is connected again", async || {
        let clusters = tokyo.admin.clusters().await;
        let hk = clusters.first()?;
        (hk["ready"] == true && hk["connected"] == true).then_some(())
    })
    .await;
    assert_eq!(values(&mut at_tokyo, "cilium/cache/").await, before);
    let unchanged = read(&mut at_tokyo, "cilium/cache/").await;
    assert!(
        unchanged.iter().all(|kv| kv.mod_revision() <= revision),
        "an unchanged key was written"
    );
}

#[tokio::test]
async fn the_publisher_and_the_mirror_work_on_any_etcd() {
    let tls = Tls::new();
    let admin = tls.ca.client("admin", "admin").unwrap();
    let (source, target) = (etcd(&tls).start(), etcd(&tls).start());
    let (source_at, target_at) = (source.address().await, target.address().await);
    let config = |name: &str, address: &str| {
        let path = tls.path(name);
        tls.client_file(&path, address, &admin);
        format!("--kvstore-opt=etcd.config={}", path.display())
    };
    let publish = || {
        isthmus(["clustermesh", "--cluster-name=tokyo-cluster", "--cluster-id=1"])
            .args([config("source.yaml", &source_at), Admin::new().health_flag()])
            .arg(format!("--manifests={}", example("tokyo-cluster").display()))
    };
    let publisher = publish()
        .arg("--kvstore-opt=etcd.qps=20,etcd.bootstrapQps=10000")
        .arg("--gops-port=9892")
        .args(["--prometheus-serve-addr", ":0"])
        .arg("--controller-group-metrics=all")
        .start();
    publisher.line("--gops-port is accepted and has no effect").await;
    let mut at_source = tls.client(&source_at, "any").await;
    eventually("the publisher has written all canaries", async || {
        let canaries = read(&mut at_source, "cilium/synced/tokyo-cluster/cilium/state/").await;
        (canaries.len() == KINDS).then_some(())
    })
    .await;
    let remotes = client_files(&tls);
    tls.client_file(&remotes.join("tokyo-cluster"), &source_at, &admin);
    let admin_of_mirror = Admin::new();
    let mirror = isthmus(["kvstoremesh", "--cluster-name=hk-cluster", "--cluster-id=2"])
        .arg(config("target.yaml", &target_at))
        .arg(format!("--clustermesh-config={}", remotes.display()))
        .args([admin_of_mirror.health_flag(), admin_of_mirror.api_flag()])
        .start();
    let mut at_target = tls.client(&target_at, "any").await;
    admin_of_mirror.ready().await;
    let state = values(&mut at_source, "cilium/state/").await;
    assert_eq!(
        under_source_names(&values(&mut at_target, "cilium/cache/").await, "tokyo-cluster"),
        state
    );
    let kvs = at_source.get("cilium/", prefix()).await.unwrap();
    assert!(
        kvs.kvs().iter().all(|kv| kv.lease() != 0),
        "the keys of a publisher that died must expire"
    );

    // A new publisher over unchanged manifests writes only canaries.
    let revision = kvs.header().unwrap().revision();
    drop(publisher);
    let again = publish().start();
    eventually("the new publisher has written all canaries", async || {
        let canaries = read(&mut at_source, "cilium/synced/").await;
        canaries.iter().all(|kv| kv.mod_revision() > revision).then_some(())
    })
    .await;
    let data = read(&mut at_source, "cilium/state/").await;
    assert!(data.iter().all(|kv| kv.mod_revision() <= revision));
    drop((mirror, again));
}
