//! Proves that a mirror follows the membership of the mesh: client files that come late, change, go and come back,
//! remotes that stay unreachable, cluster configurations that are missing or invalid, and a target store that loses
//! its data.

use crate::support::admin::Admin;
use crate::support::files::{example, free_port};
use crate::support::mesh::{Mirror, Mirrored, RemoteStore, client_files, mirror_of, mirrored, write_client_files};
use crate::support::store::revisions;
use crate::support::tls::etcd;
use crate::support::{Tls, eventually, isthmus};
use etcd_client::Client;
use serde_json::{Value, json};

/// The text in which the mirror reports the state of a remote cluster.
fn status_text(cluster: &Value) -> &str {
    cluster["status"].as_str().unwrap_or_default()
}

#[tokio::test]
async fn a_cluster_whose_client_file_returns_within_the_grace_period_loses_no_key() {
    let tls = Tls::new();
    let source = RemoteStore::start(&tls, "hk").await;
    let mut remote = source.fill(&tls, 1).await;
    let Mirrored {
        mirror,
        mut local,
        target: _target,
    } = mirror_of(&tls, &[&source], &[]).await;
    let (data, canaries) = ("cilium/cache/", "cilium/synced/hk/");
    let (data_before, canaries_before) = (revisions(&mut local, data).await, revisions(&mut local, canaries).await);

    std::fs::remove_file(client_files(&tls).join("hk")).unwrap();
    eventually("the cluster configuration is deleted first", async || {
        revisions(&mut local, "cilium/cluster-config/")
            .await
            .is_empty()
            .then_some(())
    })
    .await;
    assert!(mirror.admin.clusters().await.is_empty());
    assert_eq!(
        mirror.admin.metric("cilium_kvstoremesh_remote_clusters").await,
        Some(0.0)
    );
    assert_eq!(revisions(&mut local, data).await, data_before);
    remote
        .put("cilium/state/nodes/v1/hk/n1", "changed", None)
        .await
        .unwrap();

    write_client_files(&tls, &[&source]);
    mirror
        .process
        .line("the cluster is back: its removal is cancelled")
        .await;
    eventually("the remote is followed again", async || {
        (mirrored(&mut local, "nodes", "hk/").await["n1"] == "changed").then_some(())
    })
    .await;
    mirror.mirrors(1).await;
    let mut data_now = revisions(&mut local, data).await;
    let changed = data_now.insert("cilium/cache/nodes/v1/hk/n1".to_owned(), 0);
    assert!(changed > data_before.values().max().copied());
    let mut data_before = data_before;
    data_before.insert("cilium/cache/nodes/v1/hk/n1".to_owned(), 0);
    assert_eq!(data_now, data_before, "an unchanged key was written");
    assert_eq!(revisions(&mut local, canaries).await.len(), canaries_before.len());
}

/// The client file appears after the mirror has started, the certificate files after the client file, and then the
/// remote changes its CA. The hostname is an alias; nothing listens at two of its three addresses.
#[tokio::test]
async fn client_files_and_certificates_may_appear_late_and_change() {
    let (old, new) = (Tls::new(), Tls::new());
    let source = RemoteStore::start(&old, "hk").await;
    let port = source.port;
    drop(source.fill(&old, 1).await);
    let remotes = client_files(&old);
    let target = etcd(&old).start();
    let mirror = Mirror::start(&old, &target.address().await, &[]);
    mirror.mirrors(0).await;

    let text = format!(
        "endpoints:\n- https://hk.mesh.cilium.io:{port}\ncilium-host-aliases:\n- hostname: hk.mesh.cilium.io\n  ips: [127.0.0.2, 127.0.0.1, 127.0.0.3]\ntrusted-ca-file: {0}/hk-ca.crt\ncert-file: {0}/hk.crt\nkey-file: {0}/hk.key\n",
        remotes.display()
    );
    std::fs::write(remotes.join("hk"), text).unwrap();
    eventually("the status names the missing file", async || {
        let clusters = mirror.admin.clusters().await;
        let text = status_text(clusters.first()?);
        text.contains("hk-ca.crt: No such file").then_some(())
    })
    .await;
    let install = |tls: &Tls| {
        let client = tls.ca.client("remote", "remote").unwrap();
        for (from, to) in [
            (&tls.ca.path(), "hk-ca.crt"),
            (&client.cert, "hk.crt"),
            (&client.key, "hk.key"),
        ] {
            // Like a mounted Secret, each file appears with its whole content.
            let temporary = tls.path("temporary");
            std::fs::copy(from, &temporary).unwrap();
            std::fs::rename(temporary, remotes.join(to)).unwrap();
        }
    };
    install(&old);
    mirror.mirrors(1).await;

    drop(source);
    let source = RemoteStore::start_at(&new, "hk", port).await;
    let mut remote = source.fill(&new, 1).await;
    remote
        .put("cilium/state/nodes/v1/hk/n1", "changed", None)
        .await
        .unwrap();
    eventually("the status reports the unknown CA", async || {
        let clusters = mirror.admin.clusters().await;
        let text = status_text(clusters.first()?);
        text.contains("invalid peer certificate").then_some(())
    })
    .await;
    install(&new);
    let mut local = old.client(&target.address().await, "any").await;
    eventually("the mirror trusts the new CA", async || {
        (mirrored(&mut local, "nodes", "hk/").await["n1"] == "changed").then_some(())
    })
    .await;
}

#[tokio::test]
async fn services_of_an_unreachable_cluster_are_revoked_once_and_restored() {
    let tls = Tls::new();
    let source = RemoteStore::start(&tls, "hk").await;
    let port = source.port;
    let mut remote = source.fill(&tls, 1).await;
    remote
        .put("cilium/state/services/v1/hk/ns/web", "{}", None)
        .await
        .unwrap();
    let flags = ["--clustermesh-cache-ttl=5s"];
    let Mirrored {
        target,
        mirror,
        mut local,
    } = mirror_of(&tls, &[&source], &flags).await;
    let revoked = async |local: &mut Client| {
        eventually("services are revoked", async || {
            mirrored(local, "services", "").await.is_empty().then_some(())
        })
        .await;
    };
    assert_eq!(mirrored(&mut local, "services", "hk/").await["ns/web"], "{}");
    drop((remote, source));
    revoked(&mut local).await;
    let counted = "cilium_kvstoremesh_remote_cluster_cache_revocations{target_cluster=\"hk\"}";
    let failed = "cilium_kvstoremesh_remote_cluster_attempts_failed_total{target_cluster=\"hk\"}";
    eventually("some more attempts to connect have failed", async || {
        (mirror.admin.metric(failed).await? > 4.0).then_some(())
    })
    .await;
    assert_eq!(mirror.admin.metric(counted).await, Some(1.0));
    assert_eq!(
        mirrored(&mut local, "nodes", "hk/").await.len(),
        10,
        "nodes must not be revoked"
    );
    let source = RemoteStore::start_at(&tls, "hk", port).await;
    eventually("services are mirrored again", async || {
        mirrored(&mut local, "services", "hk/")
            .await
            .contains_key("ns/web")
            .then_some(())
    })
    .await;

    // The services of a cluster that is unreachable from the start of the mirror are revoked after the same time.
    drop((mirror, source));
    let _mirror = Mirror::start(&tls, &target.address().await, &flags);
    revoked(&mut local).await;
}

#[tokio::test]
async fn a_target_store_that_lost_its_data_gets_everything_again() {
    let tls = Tls::new();
    let source = RemoteStore::start(&tls, "hk").await;
    drop(source.fill(&tls, 1).await);
    write_client_files(&tls, &[&source]);
    let target = RemoteStore::start(&tls, "target").await;
    let (port, data) = (target.port, target.data.clone());
    let mut client = tls.client(&target.address(), "any").await;
    // No server listens at the first of the two endpoints.
    let local = tls.path("two.yaml");
    tls.client_file(&local, &target.address(), &tls.ca.client("admin", "admin").unwrap());
    let text = std::fs::read_to_string(&local).unwrap();
    let dead = format!("endpoints:\n- https://127.0.0.1:{}\n", free_port());
    std::fs::write(&local, text.replace("endpoints:\n", &dead)).unwrap();
    let config = format!("--kvstore-opt=etcd.config={}", local.display());
    let mirror = Mirror::start(&tls, &target.address(), &[&config]);
    mirror.mirrors(1).await;
    let publisher = isthmus(["clustermesh", "--cluster-name=tokyo-cluster", "--cluster-id=1"])
        .args([&config, &Admin::new().health_flag()])
        .arg(format!("--manifests={}", example("tokyo-cluster").display()))
        .start();
    publisher.line("msg=ready").await;
    let keys = async |client: &mut Client| -> Vec<String> {
        let all = revisions(client, "cilium/").await.into_keys();
        // A restart changes the lock, and the heartbeat is written once a minute.
        let changing = ["cilium/kvstoremesh-lock/", "cilium/.heartbeat"];
        let is_changing = |key: &String| changing.iter().any(|prefix| key.starts_with(prefix));
        all.filter(|key| !is_changing(key)).collect()
    };
    let all = keys(&mut client).await;
    assert!(
        all.iter().filter(|k| k.contains("/tokyo-cluster")).count() > 10,
        "{all:?}"
    );
    assert!(all.iter().filter(|k| k.contains("/hk")).count() > 20, "{all:?}");
    drop((client, target));
    std::fs::remove_dir_all(data).unwrap();
    let target = RemoteStore::start_at(&tls, "target", port).await;
    // The leader lock is lost with the data, so another mirror may be the leader now.
    assert!(!mirror.process.ended().await.success());
    mirror.process.line("Leader election lost").await;
    let mirror = Mirror::start(&tls, &target.address(), &[&config]);
    mirror.mirrors(1).await;
    let mut client = tls.client(&target.address(), "any").await;
    eventually("all keys are restored", async || {
        let now = keys(&mut client).await;
        (now == all).then_some(())
    })
    .await;
    drop(publisher);
}

#[tokio::test]
async fn a_cluster_configuration_may_be_missing_unknown_changed_or_invalid() {
    let tls = Tls::new();
    let source = RemoteStore::start(&tls, "hk").await;
    let mut remote = source.fill(&tls, 1).await;
    let config = "cilium/cluster-config/hk";
    remote.delete(config, None).await.unwrap();
    write_client_files(&tls, &[&source]);
    let target = etcd(&tls).start();
    let mirror = Mirror::start(&tls, &target.address().await, &[]);
    let status = async |condition: &str, check: &dyn Fn(&Value) -> bool| {
        let find = async || mirror.admin.clusters().await.into_iter().find(|cluster| check(cluster));
        eventually(condition, find).await
    };
    let waiting = status("the status reports a missing configuration", &|cluster| {
        status_text(cluster).contains("is missing; is the cluster called hk?")
    });
    let waiting = waiting.await;
    assert_eq!(
        (&waiting["connected"], &waiting["config"]),
        (&json!(true), &json!({"required": true}))
    );

    let odd = r#"{"id":1,"capabilities":{"syncedCanaries":true,"endpointSlicesExportMode":"newer"}}"#;
    remote.put(config, odd, None).await.unwrap();
    mirror.mirrors(1).await;
    mirror.process.line("unknown endpointSlicesExportMode").await;
    let mut local = tls.client(&target.address().await, "any").await;
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
        let known = |cluster: &Value| {
            let complete = cluster["config"]["cluster-id"] == id && cluster["ready"] == true;
            complete && status_text(cluster).contains(remark)
        };
        let now = status("the status shows the new configuration", &known);
        assert_eq!(
            now.await["num-failures"],
            Value::Null,
            "a changed configuration is no failure"
        );
        mirror.process.line(remark).await;
    }
    remote.put(config, "{", None).await.unwrap();
    let broken = status("the status reports an invalid configuration", &|cluster| {
        status_text(cluster).contains("is not a cluster configuration")
    });
    assert_eq!(
        broken.await["ready"],
        true,
        "mirrored keys stay valid without a configuration"
    );
    remote
        .put("cilium/state/nodes/v1/hk/n1", "changed", None)
        .await
        .unwrap();
    eventually("the remote is followed", async || {
        (mirrored(&mut local, "nodes", "hk/").await["n1"] == "changed").then_some(())
    })
    .await;
    let mut now = revisions(&mut local, "cilium/cache/").await;
    let node = "cilium/cache/nodes/v1/hk/n1".to_owned();
    now.insert(node.clone(), data[&node]);
    assert_eq!(now, data, "an unchanged key was written");
}
