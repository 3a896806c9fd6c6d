//! Proves that the mirror copies remote clusters correctly when their stores restart, lose or swap their data, misbehave
//! or claim the id of another cluster, and when a second mirror waits for the leader lock.

use crate::support::admin::Admin;
use crate::support::files::copy_directory;
use crate::support::mesh::{Mirror, Mirrored, RemoteStore, mirror_of, mirrored, write_client_files};
use crate::support::store::message;
use crate::support::{Tls, eventually, isthmus};
use etcd_client::{AlarmAction, AlarmType, EventType, WatchOptions};
use std::time::Duration;
use tokio::time::Instant;

/// An event that a watcher of the mirrored keys sees: its kind, and the last part of the key.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Seen {
    Put(String),
    Delete(String),
}

#[tokio::test]
async fn a_remote_with_its_old_data_is_resumed_and_a_remote_with_new_data_is_listed() {
    let tls = Tls::new();
    let source = RemoteStore::start(&tls, "hk").await;
    let mut client = source.fill(&tls, 1).await;
    let Mirrored {
        mirror,
        mut local,
        target: _target,
    } = mirror_of(&tls, &[&source], &[]).await;
    let lists = "cilium_kvstoremesh_remote_cluster_lists_total{target_cluster=\"hk\"}";
    let resumes = "cilium_kvstoremesh_remote_cluster_resumes_total{target_cluster=\"hk\"}";
    let listed = mirror.admin.metric(lists).await.unwrap();
    assert_eq!(mirror.admin.metric(resumes).await, Some(0.0));
    let mut watch = local
        .watch("cilium/cache/", Some(WatchOptions::new().with_prefix()))
        .await
        .unwrap();

    client
        .put("cilium/state/nodes/v1/hk/n3", "changed", None)
        .await
        .unwrap();
    drop(client);
    let source = source.restart(&tls).await;
    let mut client = tls.client(&source.address(), "any").await;
    client.delete("cilium/state/nodes/v1/hk/n4", None).await.unwrap();
    eventually("the remote is followed again", async || {
        let nodes = mirrored(&mut local, "nodes", "hk/").await;
        (nodes.len() == 9 && nodes["n3"] == "changed").then_some(())
    })
    .await;
    // An empty prefix has no key that could prove the store unchanged: identities and services are listed again.
    assert_eq!(
        mirror.admin.metric(lists).await,
        Some(listed + 2.0),
        "only empty prefixes may be listed again"
    );
    assert_eq!(mirror.admin.metric(resumes).await, Some(2.0));

    // Another store at the same address, with mostly the same keys.
    drop(client);
    std::fs::remove_dir_all(&source.data).unwrap();
    let source = source.restart(&tls).await;
    let mut client = source.fill(&tls, 1).await;
    client.put("cilium/state/nodes/v1/hk/n77", "new", None).await.unwrap();
    eventually("the new store is mirrored", async || {
        let nodes = mirrored(&mut local, "nodes", "hk/").await;
        (nodes.len() == 11 && nodes["n3"] == "node 3").then_some(())
    })
    .await;
    local.put("cilium/cache/end", "", None).await.unwrap();
    let mut seen = vec![];
    while seen.last() != Some(&Seen::Put("end".to_owned())) {
        for event in message(&mut watch).await.events() {
            let key = event.kv().unwrap().key_str().unwrap();
            let name = key.rsplit('/').next().unwrap().to_owned();
            seen.push(match event.event_type() {
                EventType::Put => Seen::Put(name),
                EventType::Delete => Seen::Delete(name),
            });
        }
    }
    seen.sort();
    let mut expected = ["end", "n3", "n3", "n4", "n77"]
        .map(|name| Seen::Put(name.to_owned()))
        .to_vec();
    expected.push(Seen::Delete("n4".to_owned()));
    assert_eq!(seen, expected);
}

#[tokio::test]
async fn a_store_with_the_same_id_and_another_past_is_listed() {
    let tls = Tls::new();
    let source = RemoteStore::start(&tls, "hk").await;
    drop(source.fill(&tls, 1).await);
    let (data, copy) = (source.data.clone(), tls.path("copy"));
    let port = source.port;
    drop(source);
    copy_directory(&data, &copy);
    let source = RemoteStore::start_at(&tls, "hk", port).await;
    let mut client = tls.client(&source.address(), "any").await;
    let Mirrored {
        mut local,
        mirror: _mirror,
        target: _target,
    } = mirror_of(&tls, &[&source], &[]).await;
    client.put("cilium/state/nodes/v1/hk/n5", "later", None).await.unwrap();
    client.delete("cilium/state/nodes/v1/hk/n6", None).await.unwrap();
    eventually("the changes are mirrored", async || {
        let nodes = mirrored(&mut local, "nodes", "hk/").await;
        (nodes.len() == 9 && nodes["n5"] == "later").then_some(())
    })
    .await;
    // As after the restore of a snapshot, the store assigns the same revisions again, to other changes.
    drop((client, source));
    std::fs::remove_dir_all(&data).unwrap();
    copy_directory(&copy, &data);
    let source = RemoteStore::start_at(&tls, "hk", port).await;
    let mut client = tls.client(&source.address(), "any").await;
    for n in 0..5 {
        client
            .put(format!("cilium/state/nodes/v1/hk/other{n}"), "x", None)
            .await
            .unwrap();
    }
    eventually("the mirror equals the restored store", async || {
        let nodes = mirrored(&mut local, "nodes", "hk/").await;
        (nodes.len() == 15 && nodes["n5"] == "node 5" && nodes.contains_key("n6")).then_some(())
    })
    .await;
}

#[tokio::test]
async fn invalid_keys_of_a_hostile_remote_are_not_mirrored_and_are_reported() {
    let tls = Tls::new();
    let (good, bad) = (
        RemoteStore::start(&tls, "good").await,
        RemoteStore::start(&tls, "bad").await,
    );
    let mut good_client = good.fill(&tls, 1).await;
    let mut client = bad.fill(&tls, 1).await;
    for key in ["..", "../good/n1", "", "a//b", "a/", "."] {
        client
            .put(format!("cilium/state/nodes/v1/bad/{key}"), "evil", None)
            .await
            .unwrap();
    }
    client
        .put("cilium/state/ip/v1/default/10.9.9.9", vec![b'x'; 1_200_000], None)
        .await
        .unwrap();
    let flags = ["--clustermesh-max-keys=20", "--controller-group-metrics=all"];
    let Mirrored {
        mirror,
        mut local,
        target: _target,
    } = mirror_of(&tls, &[&good, &bad], &flags).await;
    assert_eq!(mirrored(&mut local, "nodes", "").await.len(), 20);
    assert_eq!(mirrored(&mut local, "ip", "").await.len(), 20);
    let statuses = mirror.admin.clusters().await;
    let status = |name: &str| {
        let cluster = statuses.iter().find(|c| c["name"] == name).unwrap();
        cluster["status"].as_str().unwrap().to_owned()
    };
    assert!(status("bad").contains("6 × unsafe key, last "), "{}", status("bad"));
    assert!(status("bad").contains("1 × value too large, last \"cilium/state/ip/v1/default/10.9.9.9\""));
    assert!(
        status("good").contains("cluster id 1 is also that of bad"),
        "{}",
        status("good")
    );
    let series = "cilium_kvstoremesh_remote_cluster_keys_refused_total{target_cluster=\"bad\",reason=\"unsafe key\"}";
    assert_eq!(mirror.admin.metric(series).await, Some(6.0));

    let runs =
        "cilium_kvstoremesh_controllers_group_runs_total{group_name=\"clustermesh-remote-cluster\",status=\"success\"}";
    assert_eq!(mirror.admin.metric(runs).await, Some(2.0));
    let read = async |source: &str| {
        let labels = format!("scope=\"nodes/v1\",source_cluster=\"{source}\",action=\"read\"");
        let series = format!("cilium_kvstoremesh_kvstore_initial_sync_completed{{{labels}}}");
        mirror.admin.metric(&series).await
    };
    assert_eq!((read("good").await, read("bad").await), (Some(1.0), Some(1.0)));

    // Too many keys of one kind: the mirrored keys of this kind stay and are no longer updated. Other kinds and other
    // clusters are still followed.
    for n in 0..15 {
        client
            .put(format!("cilium/state/nodes/v1/bad/more{n}"), "x", None)
            .await
            .unwrap();
    }
    eventually("the status reports too many keys", async || {
        let all = mirror.admin.clusters().await;
        let bad = all.iter().find(|c| c["name"] == "bad")?;
        let named = bad["status"]
            .as_str()?
            .contains("cilium/state/nodes/v1/bad/ holds 21 keys, more than the limit of 20 (--clustermesh-max-keys)");
        (named && bad["ready"] == serde_json::Value::Null && bad["synced"]["endpoints"] == true).then_some(())
    })
    .await;
    let stopped = "cilium_kvstoremesh_remote_cluster_kinds_stopped{target_cluster=\"bad\"}";
    assert_eq!(mirror.admin.metric(stopped).await, Some(1.0));
    assert_eq!((read("good").await, read("bad").await), (Some(1.0), Some(0.0)));
    for (client, key) in [
        (&mut client, "cilium/state/ip/v1/default/1.2.3.4"),
        (&mut good_client, "cilium/state/nodes/v1/good/n0"),
    ] {
        client.put(key, "changed", None).await.unwrap();
    }
    eventually("the other kinds and the other cluster are still followed", async || {
        let node = mirrored(&mut local, "nodes", "good/").await["n0"] == "changed";
        let address = mirrored(&mut local, "ip", "bad/").await.contains_key("1.2.3.4");
        (node && address).then_some(())
    })
    .await;
}

#[tokio::test]
async fn of_two_mirrors_one_is_leader_and_the_other_takes_over() {
    let tls = Tls::new();
    let source = RemoteStore::start(&tls, "hk").await;
    let mut client = source.fill(&tls, 1).await;
    let Mirrored {
        target,
        mirror: first,
        mut local,
    } = mirror_of(&tls, &[&source], &[]).await;
    let second = Mirror::start(&tls, &target.address().await, &[]);
    second.process.line("waiting for the leader lock").await;
    let leads = "cilium_kvstoremesh_leader_election_master_status{name=\"kvstoremesh\"}";
    assert_eq!(first.admin.metric(leads).await, Some(1.0));
    assert_eq!(second.admin.metric(leads).await, Some(0.0));
    assert_eq!(second.admin.clusters().await.len(), 0);
    let before = mirrored(&mut local, "nodes", "hk/").await;
    // A leader that is told to stop releases the lock at once.
    assert!(first.process.terminate().await.success());
    second.process.line("leading").await;
    // A leader that was killed on this machine does not hold the lock until its lease expires: a restarted container
    // takes the lock at once.
    second.process.kill().await;
    let second = Mirror::start(&tls, &target.address().await, &[]);
    second
        .process
        .line("the leader process is dead: revoking its lease")
        .await;
    second.process.line("leading").await;
    client
        .put("cilium/state/nodes/v1/hk/n0", "changed", None)
        .await
        .unwrap();
    second.mirrors(1).await;
    eventually("the new leader writes", async || {
        let nodes = mirrored(&mut local, "nodes", "hk/").await;
        (nodes["n0"] == "changed" && nodes.len() == before.len()).then_some(())
    })
    .await;
}

/// A remote that changes large values as fast as it can, beside an honest one.
#[tokio::test]
async fn a_remote_that_floods_the_mirror_is_slowed_down_and_delays_no_other() {
    const LIMIT: i64 = 4 << 20;
    let tls = Tls::new();
    let (hostile, honest) = (
        RemoteStore::start(&tls, "bad").await,
        RemoteStore::start(&tls, "good").await,
    );
    let (mut flood, mut good) = (hostile.fill(&tls, 1).await, honest.fill(&tls, 2).await);
    let remotes = write_client_files(&tls, &[&hostile, &honest]);
    let admin = Admin::new();
    let serve = isthmus(["serve", "--cluster-name=local", "--cluster-id=9"])
        .arg(format!("--manifests={}", tls.path("").display()))
        .arg(format!("--clustermesh-config={}", remotes.display()))
        .arg(format!("--clustermesh-max-history-bytes={LIMIT}"))
        .args([admin.health_flag(), admin.metrics_flag(), admin.api_flag()])
        .args(tls.flags())
        .start();
    let mut local = tls.client(&serve.address().await, "admin-local").await;
    eventually("both remotes are mirrored", async || {
        let all = mirrored(&mut local, "nodes", "").await;
        (all.len() == 20).then_some(())
    })
    .await;
    let begun = Instant::now();
    let key = "cilium/state/nodes/v1/bad/n0";
    let mut largest = 0;
    let mut slowest = Duration::ZERO;
    let (mut last, mut is_said) = (String::new(), false);
    for n in 0.. {
        if begun.elapsed() > Duration::from_secs(8) {
            break;
        }
        last = format!("{n:060000}");
        let put = flood.put(key, last.clone(), None).await.unwrap();
        if n % 50 == 0 {
            let revision = put.header().unwrap().revision();
            flood.compact(revision, None).await.unwrap();
            largest = largest.max(local.status().await.unwrap().db_size());
            let (asked, value) = (Instant::now(), n.to_string());
            good.put("cilium/state/nodes/v1/good/n0", value.clone(), None)
                .await
                .unwrap();
            eventually("the honest remote is mirrored", async || {
                let nodes = mirrored(&mut local, "nodes", "good/").await;
                (nodes["n0"] == value).then_some(())
            })
            .await;
            slowest = slowest.max(asked.elapsed());
            let said = "its changes are slowed down: more than --clustermesh-max-history-bytes allows";
            let clusters = admin.clusters().await;
            is_said |= clusters
                .iter()
                .any(|c| c["name"] == "bad" && c["status"].as_str().unwrap().contains(said));
        }
    }
    eprintln!("largest store {largest} bytes, slowest change of the honest remote {slowest:?}");
    // The limit, one batch more, and the changes of the seconds that a compaction keeps.
    assert!(largest > LIMIT / 2 && largest < 4 * LIMIT, "{largest}");
    assert!(slowest < Duration::from_secs(1), "{slowest:?}");
    assert!(is_said, "the status does not say that the remote is slowed down");
    let slowed = "cilium_kvstoremesh_remote_cluster_changes_slowed_seconds{target_cluster=\"bad\"}";
    assert!(admin.metric(slowed).await.unwrap() > 1.0);
    let other = slowed.replace("bad", "good");
    assert_eq!(admin.metric(&other).await, Some(0.0));
    eventually("the newest value is mirrored", async || {
        let nodes = mirrored(&mut local, "nodes", "bad/").await;
        (nodes["n0"] == last).then_some(())
    })
    .await;
    // Clients are not affected.
    local.put("client", "1", None).await.unwrap();
    let alarms = local.alarm(AlarmAction::Get, AlarmType::None, None).await.unwrap();
    assert!(alarms.alarms().is_empty());
}
