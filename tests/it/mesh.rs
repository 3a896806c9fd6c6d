//! Clusters as separate processes: all in one, and as the drop-ins for each container of the original.

use crate::support::{Process, Tls, copy_dir, etcd, eventually, free_port};
use etcd_client::{Client, GetOptions};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

struct Cluster {
    process: Process,
    manifests: PathBuf,
    remotes: PathBuf,
    api: u16,
    health: u16,
}

/// Starts `serve` with the demo's manifests of the same name.
fn serve(tls: &Tls, name: &str, id: u32) -> Cluster {
    let manifests = tls.path(&format!("{name}-manifests"));
    copy_dir(
        &Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("examples/tokyo-hk")
            .join(name),
        &manifests,
    );
    let remotes = tls.path(&format!("{name}-remotes"));
    std::fs::create_dir_all(&remotes).unwrap();
    let (api, health) = (free_port(), free_port());
    let mut args = vec![
        "serve".to_owned(),
        format!("--cluster-name={name}"),
        format!("--cluster-id={id}"),
        format!("--manifests={}", manifests.display()),
        format!("--clustermesh-config={}", remotes.display()),
        format!("--api-serve-addr=127.0.0.1:{api}"),
        format!("--health-port={health}"),
        "--clustermesh-enable-mcs-api".to_owned(),
    ];
    args.extend(tls.flags());
    let process = Process::start(&args.iter().map(String::as_str).collect::<Vec<_>>());
    Cluster {
        process,
        manifests,
        remotes,
        api,
        health,
    }
}

fn readyz(port: u16) -> (String, String) {
    let url = format!("http://127.0.0.1:{port}/readyz");
    let out = Command::new("curl")
        .args(["-s", "-w", " %{http_code}", &url])
        .output()
        .unwrap();
    let text = String::from_utf8(out.stdout).unwrap();
    let (body, code) = text.rsplit_once(' ').unwrap();
    (body.to_owned(), code.to_owned())
}

async fn dump(client: &mut Client, prefix: &str) -> BTreeMap<String, String> {
    let response = client.get(prefix, Some(GetOptions::new().with_prefix())).await.unwrap();
    response
        .kvs()
        .iter()
        .map(|kv| {
            (
                kv.key_str().unwrap().to_owned(),
                String::from_utf8_lossy(kv.value()).into_owned(),
            )
        })
        .collect()
}

/// What `name` mirrors of `of`, under the names it has at its source.
fn as_state(cache: &BTreeMap<String, String>, of: &str) -> BTreeMap<String, String> {
    let rename = |key: &String| {
        let key = key.replace("cilium/cache/", "cilium/state/");
        key.replace(&format!("identities/v1/{of}/id/"), "identities/v1/id/")
            .replace(&format!("ip/v1/{of}/"), "ip/v1/default/")
    };
    cache.iter().map(|(k, v)| (rename(k), v.clone())).collect()
}

#[tokio::test]
async fn two_clusters_mirror_each_other_and_follow_changes_both_ways() {
    let tls = Tls::new();
    let (tokyo, hk) = (serve(&tls, "tokyo-cluster", 1), serve(&tls, "hk-cluster", 2));
    let remote = tls.ca.client("remote", "remote").unwrap();
    let (tokyo_at, hk_at) = (tokyo.process.address(), hk.process.address());
    // The files appear after the processes did.
    tls.client_file(&tokyo.remotes.join("hk-cluster"), &hk_at, &remote);
    tls.client_file(&hk.remotes.join("tokyo-cluster"), &tokyo_at, &remote);
    let mut at_tokyo = tls.client(&tokyo_at, "admin-tokyo-cluster").await;
    let mut at_hk = tls.client(&hk_at, "admin-hk-cluster").await;
    eventually("both mirrors are complete", async || {
        let canaries = dump(&mut at_tokyo, "cilium/synced/hk-cluster/cilium/cache/").await;
        let others = dump(&mut at_hk, "cilium/synced/tokyo-cluster/cilium/cache/").await;
        (canaries.len() == 6 && others.len() == 6).then_some(())
    })
    .await;
    let state = dump(&mut at_tokyo, "cilium/state/").await;
    assert_eq!(
        as_state(&dump(&mut at_hk, "cilium/cache/").await, "tokyo-cluster"),
        state,
        "byte for byte"
    );
    let crossed = |word: &str| state.iter().any(|(k, v)| k.contains(word) || v.contains(word));
    assert!(crossed("shop/catalog"));
    assert!(
        !crossed("billing") && !crossed("ledger"),
        "a namespace that is not global stays at home"
    );
    assert!(
        !state.keys().any(|k| k.contains("shop-admin")),
        "and so does a service that is not"
    );
    for cluster in [&tokyo, &hk] {
        let ready = async || (readyz(cluster.health) == ("Ready".to_owned(), "200".to_owned())).then_some(());
        eventually("ready", ready).await;
    }

    // A change, a deletion, and an addition cross.
    let endpoints = tokyo.manifests.join("endpoints.yaml");
    let text = std::fs::read_to_string(&endpoints).unwrap();
    std::fs::write(&endpoints, text.replace("ipv4: 10.1.0.21", "ipv4: 10.1.0.99")).unwrap();
    std::fs::remove_file(tokyo.manifests.join("nodes.yaml")).unwrap();
    eventually("the change has crossed", async || {
        let cache = dump(&mut at_hk, "cilium/cache/").await;
        let done = cache.contains_key("cilium/cache/ip/v1/tokyo-cluster/10.1.0.99")
            && !cache.contains_key("cilium/cache/ip/v1/tokyo-cluster/10.1.0.21")
            && !cache.keys().any(|k| k.contains("nodes/v1/tokyo-cluster"));
        done.then_some(())
    })
    .await;

    let api = format!("127.0.0.1:{}", tokyo.api);
    let binary = env!("CARGO_BIN_EXE_clustermesh-apiserver");
    let status = Command::new(binary)
        .args(["kvstoremesh-dbg", "status", "--host", &api])
        .output()
        .unwrap();
    let text = String::from_utf8(status.stdout).unwrap();
    assert!(text.starts_with("KVStoreMesh:\t1/1 remote clusters ready\n   hk-cluster: ready, 2 nodes, 10 endpoints, 3 identities, 2 services, 4 endpoint slices, 1 MCS-API service exports, 0 reconnections"), "{text}");
    let json = Command::new(binary)
        .args(["kvstoremesh-dbg", "status", "-o", "json", "-H", &api])
        .output()
        .unwrap();
    let json: serde_json::Value = serde_json::from_slice(&json.stdout).unwrap();
    assert_eq!(json[0]["config"]["cluster-id"], 2);
    assert_eq!(json[0]["ready"], true);
    let yaml = Command::new(binary)
        .args(["kvstoremesh-dbg", "status", "-o", "yaml", "-H", &api])
        .output()
        .unwrap();
    let yaml = String::from_utf8(yaml.stdout).unwrap();
    assert!(
        yaml.contains("cluster-id: 2\n") && yaml.contains("ready: true\n"),
        "{yaml}"
    );
    let gone = format!("127.0.0.1:{}", free_port());
    let none = Command::new(binary)
        .args(["kvstoremesh-dbg", "status", "-H", &gone])
        .output()
        .unwrap();
    assert_eq!(none.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&none.stdout).contains("is KVStoreMesh running and serving the API on"));
}

#[tokio::test]
async fn a_remote_that_restarts_empty_is_mirrored_anew_and_its_data_stays_meanwhile() {
    let tls = Tls::new();
    let remote = tls.ca.client("remote", "remote").unwrap();
    let tokyo = serve(&tls, "tokyo-cluster", 1);
    let mut at_tokyo = tls.client(&tokyo.process.address(), "admin-tokyo-cluster").await;
    let canaries = "cilium/synced/hk-cluster/cilium/cache/";
    let file = tokyo.remotes.join("hk-cluster");
    let hk = serve(&tls, "hk-cluster", 2);
    tls.client_file(&file, &hk.process.address(), &remote);
    eventually("mirrored", async || {
        (dump(&mut at_tokyo, canaries).await.len() == 6).then_some(())
    })
    .await;
    let before = dump(&mut at_tokyo, "cilium/cache/").await;
    drop(hk);
    tokyo.process.line("no connection to the remote cluster");
    assert_eq!(
        dump(&mut at_tokyo, "cilium/cache/").await,
        before,
        "what was mirrored stays"
    );
    let revision = at_tokyo.get("x", None).await.unwrap().header().unwrap().revision();
    let hk = serve(&tls, "hk-cluster", 2);
    tls.client_file(&file, &hk.process.address(), &remote);
    let api = format!("http://127.0.0.1:{}/v1/cluster", tokyo.api);
    eventually("connected again", async || {
        let out = Command::new("curl").args(["-s", &api]).output().unwrap();
        let status: serde_json::Value = serde_json::from_slice(&out.stdout).unwrap();
        (status[0]["ready"] == true && status[0]["connected"] == true).then_some(())
    })
    .await;
    assert_eq!(dump(&mut at_tokyo, "cilium/cache/").await, before);
    let unchanged = at_tokyo
        .get("cilium/cache/", Some(GetOptions::new().with_prefix()))
        .await
        .unwrap();
    assert!(
        unchanged.kvs().iter().all(|kv| kv.mod_revision() <= revision),
        "nothing that did not change was written"
    );
}

#[tokio::test]
async fn the_drop_ins_write_into_any_etcd() {
    let tls = Tls::new();
    let admin = tls.ca.client("admin", "admin").unwrap();
    let (source, target) = (etcd(&tls, &[]), etcd(&tls, &[]));
    let (source_at, target_at) = (source.address(), target.address());
    let config = |name: &str, address: &str| {
        let path = tls.path(name);
        tls.client_file(&path, address, &admin);
        format!("--kvstore-opt=etcd.config={}", path.display())
    };
    let health = || format!("--health-port={}", free_port());
    let publisher = Process::start(&[
        "clustermesh",
        "--cluster-name=tokyo-cluster",
        "--cluster-id=1",
        &config("source.yaml", &source_at),
        &health(),
        "--kvstore-opt=etcd.qps=20,etcd.bootstrapQps=10000",
        "--manifests=examples/tokyo-hk/tokyo-cluster",
        "--gops-port=9892",
        "--prometheus-serve-addr",
        ":0",
        "--controller-group-metrics=all",
    ]);
    publisher.line("--gops-port is accepted and has no effect");
    let mut at_source = tls.client(&source_at, "any").await;
    eventually("published", async || {
        (dump(&mut at_source, "cilium/synced/tokyo-cluster/cilium/state/")
            .await
            .len()
            == 6)
            .then_some(())
    })
    .await;
    let remotes = tls.path("remotes");
    std::fs::create_dir_all(&remotes).unwrap();
    tls.client_file(&remotes.join("tokyo-cluster"), &source_at, &admin);
    let mirror_port = free_port();
    let mirror = Process::start(&[
        "kvstoremesh",
        "--cluster-name=hk-cluster",
        "--cluster-id=2",
        &config("target.yaml", &target_at),
        &format!("--clustermesh-config={}", remotes.display()),
        &format!("--health-port={mirror_port}"),
        &format!("--api-serve-addr=127.0.0.1:{}", free_port()),
    ]);
    let mut at_target = tls.client(&target_at, "any").await;
    eventually("mirrored", async || (readyz(mirror_port).0 == "Ready").then_some(())).await;
    let state = dump(&mut at_source, "cilium/state/").await;
    assert_eq!(
        as_state(&dump(&mut at_target, "cilium/cache/").await, "tokyo-cluster"),
        state
    );
    let kvs = at_source
        .get("cilium/", Some(GetOptions::new().with_prefix()))
        .await
        .unwrap();
    assert!(kvs.kvs().iter().all(|kv| kv.lease() != 0), "a dead writer's keys go");

    // A new publisher over unchanged manifests changes no data.
    let revision = kvs.header().unwrap().revision();
    drop(publisher);
    let again = Process::start(&[
        "clustermesh",
        "--cluster-name=tokyo-cluster",
        "--cluster-id=1",
        &config("source.yaml", &source_at),
        &health(),
        "--manifests=examples/tokyo-hk/tokyo-cluster",
    ]);
    eventually("published again", async || {
        let canaries = at_source
            .get("cilium/synced/", Some(GetOptions::new().with_prefix()))
            .await
            .unwrap();
        canaries
            .kvs()
            .iter()
            .all(|kv| kv.mod_revision() > revision)
            .then_some(())
    })
    .await;
    let data = at_source
        .get("cilium/state/", Some(GetOptions::new().with_prefix()))
        .await
        .unwrap();
    assert!(data.kvs().iter().all(|kv| kv.mod_revision() <= revision));
    drop((mirror, again));
}
