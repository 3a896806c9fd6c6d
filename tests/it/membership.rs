//! Clusters that come, go, come back or stay away, and the files they are known by.

use crate::remotes::{Mirror, Source, cache, remotes};
use crate::support::{Process, Tls, etcd, eventually, free_port};
use etcd_client::{Client, GetOptions};
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// Key → revision of its last change, under `prefix`.
async fn revisions(client: &mut Client, prefix: &str) -> BTreeMap<String, i64> {
    let found = client.get(prefix, Some(GetOptions::new().with_prefix())).await.unwrap();
    let kvs = found.kvs().iter();
    kvs.map(|kv| (kv.key_str().unwrap().to_owned(), kv.mod_revision()))
        .collect()
}

#[tokio::test]
async fn a_cluster_that_is_back_within_the_grace_loses_nothing() {
    let tls = Tls::new();
    let source = Source::start(&tls, "hk", free_port());
    let mut remote = source.fill(&tls, "hk", 1).await;
    remotes(&tls, "remotes", &[("hk", &source)]);
    let target = etcd(&tls, &[]);
    let mirror = Mirror::start(&tls, &target.address(), "remotes", &[]);
    mirror.ready(1).await;
    let mut local = tls.client(&target.address(), "any").await;
    let (data, canaries) = ("cilium/cache/", "cilium/synced/hk/");
    let (data_before, canaries_before) = (revisions(&mut local, data).await, revisions(&mut local, canaries).await);

    std::fs::remove_file(tls.path("remotes").join("hk")).unwrap();
    eventually("its configuration goes first", async || {
        revisions(&mut local, "cilium/cluster-config/")
            .await
            .is_empty()
            .then_some(())
    })
    .await;
    assert!(mirror.clusters().is_empty());
    assert_eq!(mirror.metric("cilium_kvstoremesh_remote_clusters"), Some(0.0));
    assert_eq!(revisions(&mut local, data).await, data_before);
    remote
        .put("cilium/state/nodes/v1/hk/n1", "changed", None)
        .await
        .unwrap();

    remotes(&tls, "remotes", &[("hk", &source)]);
    mirror.process.line("the cluster is back: its removal is cancelled");
    eventually("it is followed again", async || {
        (cache(&mut local, "nodes", "hk/").await["n1"] == "changed").then_some(())
    })
    .await;
    mirror.ready(1).await;
    let mut data_now = revisions(&mut local, data).await;
    let changed = data_now.insert("cilium/cache/nodes/v1/hk/n1".to_owned(), 0);
    assert!(changed > data_before.values().max().copied());
    let mut data_before = data_before;
    data_before.insert("cilium/cache/nodes/v1/hk/n1".to_owned(), 0);
    assert_eq!(data_now, data_before, "nothing else was written");
    assert_eq!(revisions(&mut local, canaries).await.len(), canaries_before.len());
}

/// The file comes late, the files it names later, and the CA is another one after that. The name is an alias, of
/// which two addresses are dead.
#[tokio::test]
async fn files_may_come_late_and_change() {
    let (old, new) = (Tls::new(), Tls::new());
    let port = free_port();
    let source = Source::start(&old, "hk", port);
    drop(source.fill(&old, "hk", 1).await);
    let remotes = old.path("remotes");
    std::fs::create_dir_all(&remotes).unwrap();
    let target = etcd(&old, &[]);
    let mirror = Mirror::start(&old, &target.address(), "remotes", &[]);
    mirror.ready(0).await;

    let text = format!(
        "endpoints:\n- https://hk.mesh.cilium.io:{port}\ncilium-host-aliases:\n- hostname: hk.mesh.cilium.io\n  ips: [127.0.0.2, 127.0.0.1, 127.0.0.3]\ntrusted-ca-file: {0}/hk-ca.crt\ncert-file: {0}/hk.crt\nkey-file: {0}/hk.key\n",
        remotes.display()
    );
    std::fs::write(remotes.join("hk"), text).unwrap();
    eventually("what is missing is named", async || {
        let all = mirror.clusters();
        let status = all.first()?["status"].as_str()?;
        status.contains("hk-ca.crt: No such file").then_some(())
    })
    .await;
    let install = |tls: &Tls| {
        let client = tls.ca.client("remote", "remote").unwrap();
        for (from, to) in [
            (&tls.ca.path(), "hk-ca.crt"),
            (&client.cert, "hk.crt"),
            (&client.key, "hk.key"),
        ] {
            // As a mounted Secret: each file is there whole or not at all.
            let temporary = tls.path("temporary");
            std::fs::copy(from, &temporary).unwrap();
            std::fs::rename(temporary, remotes.join(to)).unwrap();
        }
    };
    install(&old);
    mirror.ready(1).await;

    drop(source);
    let source = Source::start(&new, "hk", port);
    let mut remote = source.fill(&new, "hk", 1).await;
    remote
        .put("cilium/state/nodes/v1/hk/n1", "changed", None)
        .await
        .unwrap();
    eventually("the stranger is named", async || {
        let all = mirror.clusters();
        all[0]["status"]
            .as_str()?
            .contains("invalid peer certificate")
            .then_some(())
    })
    .await;
    install(&new);
    let mut local = old.client(&target.address(), "any").await;
    eventually("the new one is trusted", async || {
        (cache(&mut local, "nodes", "hk/").await["n1"] == "changed").then_some(())
    })
    .await;
}

#[tokio::test]
async fn services_of_a_cluster_that_stays_away_are_revoked_once_and_come_back() {
    let tls = Tls::new();
    let port = free_port();
    let source = Source::start(&tls, "hk", port);
    let mut remote = source.fill(&tls, "hk", 1).await;
    remote
        .put("cilium/state/services/v1/hk/ns/web", "{}", None)
        .await
        .unwrap();
    remotes(&tls, "remotes", &[("hk", &source)]);
    let target = etcd(&tls, &[]);
    let flags = ["--clustermesh-cache-ttl=5s"];
    let mirror = Mirror::start(&tls, &target.address(), "remotes", &flags);
    mirror.ready(1).await;
    let mut local = tls.client(&target.address(), "any").await;
    let revoked = async |local: &mut Client| {
        eventually("services are revoked", async || {
            cache(local, "services", "").await.is_empty().then_some(())
        })
        .await;
    };
    assert_eq!(cache(&mut local, "services", "hk/").await["ns/web"], "{}");
    drop((remote, source));
    revoked(&mut local).await;
    let counted = "cilium_kvstoremesh_remote_cluster_cache_revocations{target_cluster=\"hk\"}";
    // Long enough for some attempts to connect.
    eventually("it is tried again", async || {
        (mirror.metric("cilium_kvstoremesh_remote_cluster_attempts_failed_total{target_cluster=\"hk\"}")? > 4.0)
            .then_some(())
    })
    .await;
    assert_eq!(mirror.metric(counted), Some(1.0));
    assert_eq!(cache(&mut local, "nodes", "hk/").await.len(), 10, "nodes are not");
    let source = Source::start(&tls, "hk", port);
    eventually("they come back", async || {
        cache(&mut local, "services", "hk/")
            .await
            .contains_key("ns/web")
            .then_some(())
    })
    .await;

    // One that is away when the mirror starts stays away for as long.
    drop((mirror, source));
    let _mirror = Mirror::start(&tls, &target.address(), "remotes", &flags);
    revoked(&mut local).await;
}

#[tokio::test]
async fn a_store_that_begins_anew_gets_everything() {
    let tls = Tls::new();
    let source = Source::start(&tls, "hk", free_port());
    drop(source.fill(&tls, "hk", 1).await);
    remotes(&tls, "remotes", &[("hk", &source)]);
    let target = Source::start(&tls, "target", free_port());
    let (port, data) = (target.port, target.data.clone());
    let mut client = tls.client(&target.address(), "any").await;
    // Of the two endpoints one never listens.
    let local = tls.path("two.yaml");
    tls.client_file(&local, &target.address(), &tls.ca.client("admin", "admin").unwrap());
    let text = std::fs::read_to_string(&local).unwrap();
    let dead = format!("endpoints:\n- https://127.0.0.1:{}\n", free_port());
    std::fs::write(&local, text.replace("endpoints:\n", &dead)).unwrap();
    let config = format!("--kvstore-opt=etcd.config={}", local.display());
    let mut mirror = Mirror::start(&tls, &target.address(), "remotes", &[&config]);
    mirror.ready(1).await;
    let (health, manifests) = (free_port(), "--manifests=examples/tokyo-hk/tokyo-cluster");
    let health_port = format!("--health-port={health}");
    let publisher = [
        "clustermesh",
        "--cluster-name=tokyo-cluster",
        "--cluster-id=1",
        &config,
        &health_port,
        manifests,
    ];
    let publisher = Process::start(&publisher);
    publisher.line("msg=ready");
    let keys = async |client: &mut Client| -> Vec<String> {
        let all = revisions(client, "cilium/").await.into_keys();
        // The heartbeat comes every minute.
        let other = ["cilium/kvstoremesh-lock/", "cilium/.heartbeat"];
        all.filter(|key| !other.iter().any(|o| key.starts_with(o))).collect()
    };
    let all = keys(&mut client).await;
    assert!(
        all.iter().filter(|k| k.contains("/tokyo-cluster")).count() > 10,
        "{all:?}"
    );
    assert!(all.iter().filter(|k| k.contains("/hk")).count() > 20, "{all:?}");
    drop((client, target));
    std::fs::remove_dir_all(data).unwrap();
    let target = Source::start(&tls, "target", port);
    // Its lock is lost: another mirror may lead there.
    let (status, _) = mirror.process.ended().await;
    assert!(!status.success());
    mirror.process.line("Leader election lost");
    let mirror = Mirror::start(&tls, &target.address(), "remotes", &[&config]);
    mirror.ready(1).await;
    let mut client = tls.client(&target.address(), "any").await;
    eventually("everything is there again", async || {
        let now = keys(&mut client).await;
        (now == all).then_some(())
    })
    .await;
    drop(publisher);
}

#[tokio::test]
async fn a_configuration_that_is_missing_odd_changed_or_gone() {
    let tls = Tls::new();
    let source = Source::start(&tls, "hk", free_port());
    let mut remote = source.fill(&tls, "hk", 1).await;
    let config = "cilium/cluster-config/hk";
    remote.delete(config, None).await.unwrap();
    remotes(&tls, "remotes", &[("hk", &source)]);
    let target = etcd(&tls, &[]);
    let mirror = Mirror::start(&tls, &target.address(), "remotes", &[]);
    let status = async |what: &str, check: &dyn Fn(&Value) -> bool| {
        let look = async || mirror.clusters().into_iter().find(|cluster| check(cluster));
        eventually(what, look).await
    };
    let waiting = status("it is missing", &|c| {
        c["status"]
            .as_str()
            .is_some_and(|s| s.contains("is missing; is the cluster called hk?"))
    });
    let waiting = waiting.await;
    assert_eq!(
        (&waiting["connected"], &waiting["config"]),
        (&json!(true), &json!({"required": true}))
    );

    let odd = r#"{"id":1,"capabilities":{"syncedCanaries":true,"endpointSlicesExportMode":"newer"}}"#;
    remote.put(config, odd, None).await.unwrap();
    mirror.ready(1).await;
    mirror.process.line("is not known here");
    let mut local = tls.client(&target.address(), "any").await;
    let data = revisions(&mut local, "cilium/cache/").await;
    assert_eq!(data.len(), 20);

    for id in [300, 9] {
        let changed = format!(r#"{{"id":{id},"capabilities":{{"syncedCanaries":true}}}}"#);
        remote.put(config, changed, None).await.unwrap();
        let remark = if id == 300 {
            "cluster id 300 is none of 1 to 255"
        } else {
            "is also that of this cluster"
        };
        let known = |c: &Value| {
            let text = c["status"].as_str().unwrap_or_default();
            c["config"]["cluster-id"] == id && c["ready"] == true && text.contains(remark)
        };
        let now = status("the new one is known", &known);
        assert_eq!(now.await["num-failures"], Value::Null, "that is no failure");
        mirror.process.line(remark);
    }
    remote.put(config, "{", None).await.unwrap();
    let broken = status("it is broken", &|c| {
        c["status"]
            .as_str()
            .is_some_and(|s| s.contains("is not a cluster configuration"))
    });
    assert_eq!(broken.await["ready"], true, "what is mirrored is as good as before");
    remote
        .put("cilium/state/nodes/v1/hk/n1", "changed", None)
        .await
        .unwrap();
    eventually("it is followed", async || {
        (cache(&mut local, "nodes", "hk/").await["n1"] == "changed").then_some(())
    })
    .await;
    let mut now = revisions(&mut local, "cilium/cache/").await;
    let node = "cilium/cache/nodes/v1/hk/n1".to_owned();
    now.insert(node.clone(), data[&node]);
    assert_eq!(now, data, "nothing else was written");
}
