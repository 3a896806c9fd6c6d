//! Proves that a replica (`etcd --follow`) shows what its upstream has, at the upstream's revisions, that watches on it go
//! on while the upstream restarts, and that another past ends them as compacted. The upstream is this program.

use crate::support::admin::Admin;
use crate::support::files::example;
use crate::support::store::{message, next, plain_client, prefix, revision};
use crate::support::tls::{self, Tls};
use crate::support::{CommandLine, PATIENCE, Process, Signal, eventually, isthmus};
use etcd_client::*;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::time::timeout;

/// A directory with the file that names the upstream.
struct Place {
    dir: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        Self { dir }
    }

    fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    /// The file that names the upstream.
    fn file(&self, address: &str) -> PathBuf {
        let file = self.dir.path().join("upstream.yaml");
        std::fs::write(&file, format!("endpoints: [\"http://{address}\"]\n")).unwrap();
        file
    }
}

/// `etcd` at an address, with further arguments.
fn etcd_at(address: &str, args: &[&str]) -> CommandLine {
    let listen = format!("--listen-client-urls=http://{address}");
    let advertise = "--advertise-client-urls=http://127.0.0.1:1";
    isthmus(["etcd", &listen, advertise]).args(args)
}

fn replica(file: &Path, args: &[&str]) -> Process {
    let follow = format!("--follow={}", file.display());
    etcd_at("127.0.0.1:0", &[&follow]).args(args).start()
}

/// Everything that the store has at a revision, and its header without the member.
async fn everything(client: &mut Client, revision: i64) -> (String, u64, i64) {
    let options = GetOptions::new().with_all_keys().with_revision(revision);
    let found = client.get("", Some(options)).await.unwrap();
    let header = found.header().unwrap();
    (format!("{:?}", found.kvs()), header.cluster_id(), header.revision())
}

async fn put(client: &mut Client, key: &str, value: &str) -> i64 {
    let answer = client.put(key, value, None).await.unwrap();
    answer.header().unwrap().revision()
}

/// Events up to `last`, as texts.
async fn events_until(stream: &mut WatchStream, last: i64) -> Vec<String> {
    let mut events = vec![];
    loop {
        let response = next(stream).await;
        assert!(!response.canceled(), "cancelled: {}", response.cancel_reason());
        for event in response.events() {
            let kv = event.kv().unwrap();
            events.push(format!(
                "{:?} {} {} {} {} {}",
                event.event_type(),
                kv.key_str().unwrap(),
                kv.value_str().unwrap(),
                kv.create_revision(),
                kv.mod_revision(),
                kv.version()
            ));
            if kv.mod_revision() >= last {
                return events;
            }
        }
    }
}

fn watch_all(start: i64) -> Option<WatchOptions> {
    Some(WatchOptions::new().with_all_keys().with_start_revision(start))
}

#[tokio::test]
async fn a_replica_shows_the_history_of_its_upstream_and_passes_writes_on() {
    let place = Place::new();
    let upstream = etcd_at("127.0.0.1:0", &[]).start();
    let address = upstream.address().await;
    let up = &mut plain_client(&address).await;
    for i in 0..20 {
        put(up, &format!("k{}", i % 7), &format!("v{i}")).await;
    }
    up.delete("k3", None).await.unwrap();
    let two = [TxnOp::put("k1", "both", None), TxnOp::delete("k2", None)];
    up.txn(Txn::new().and_then(two)).await.unwrap();
    let here = replica(&place.file(&address), &[]);
    let client = &mut plain_client(&here.address().await).await;
    let now = revision(up).await;
    for at in 2..=now {
        assert_eq!(
            everything(client, at).await,
            everything(up, at).await,
            "at revision {at}"
        );
    }
    // Changes from now on arrive from both sides.
    put(up, "after", "up").await;
    let written = put(client, "after", "here").await;
    assert_eq!(written, now + 2);
    assert_eq!(everything(client, 0).await, everything(up, 0).await);
    let last = put(up, "end", "").await;
    let mut streams = [
        up.watch("", watch_all(2)).await.unwrap(),
        client.watch("", watch_all(2)).await.unwrap(),
    ];
    let there = events_until(&mut streams[0], last).await;
    assert_eq!(events_until(&mut streams[1], last).await, there);
    assert_eq!(there.len(), 20 + 1 + 2 + 3);
    let lease = client.lease_grant(60, None).await.unwrap().id();
    let leased = PutOptions::new().with_lease(lease);
    client.put("leased", "", Some(leased)).await.unwrap();
    client.lease_revoke(lease).await.unwrap();
    assert_eq!(everything(client, 0).await, everything(up, 0).await);
    assert!(client.get("leased", None).await.unwrap().kvs().is_empty());
}

#[tokio::test]
async fn watches_go_on_while_the_upstream_restarts() {
    let place = Place::new();
    let data = format!("--data-dir={}", place.data().display());
    let upstream = etcd_at("127.0.0.1:0", &[&data]).start();
    let address = upstream.address().await;
    let mut up = plain_client(&address).await;
    put(&mut up, "a", "1").await;
    let here = replica(&place.file(&address), &[]);
    let client = &mut plain_client(&here.address().await).await;
    let lenient = replica(&place.file(&address), &["--reads-when-cut-off=serve"]);
    let served = &mut plain_client(&lenient.address().await).await;
    let mut stream = client.watch("", watch_all(2)).await.unwrap();
    assert_eq!(events_until(&mut stream, 2).await.len(), 1);
    upstream.kill().await;
    assert_eq!(served.get("a", None).await.unwrap().kvs().len(), 1);
    // What is here is still served; what the upstream alone knows is not.
    let serializable = GetOptions::new().with_serializable();
    let found = client.get("a", Some(serializable)).await.unwrap();
    assert_eq!(found.kvs().len(), 1);
    let refused = client.get("a", None).await.unwrap_err().to_string();
    assert!(refused.contains("request timed out"), "{refused}");
    let refused = client.put("a", "2", None).await.unwrap_err().to_string();
    assert!(refused.contains("there is no connection available"), "{refused}");
    let upstream = etcd_at(&address, &[&data]).start();
    upstream.address().await;
    let up = &mut plain_client(&address).await;
    let last = put(up, "b", "2").await;
    let events = events_until(&mut stream, last).await;
    assert_eq!(events, [format!("Put b 2 {last} {last} 1")]);
    assert_eq!(everything(client, 0).await, everything(up, 0).await);
}

#[tokio::test]
async fn calls_that_wait_leave_room_for_all_others() {
    let place = Place::new();
    let upstream = etcd_at("127.0.0.1:0", &["--max-concurrent-streams=20"]).start();
    let address = upstream.address().await;
    let here = replica(&place.file(&address), &[]);
    let client = &mut plain_client(&here.address().await).await;
    let held = client.lock("l", None).await.unwrap();
    let waiting: Vec<_> = (0..40)
        .map(|_| {
            let mut client = client.clone();
            tokio::spawn(async move { client.lock("l", None).await })
        })
        .collect();
    let up = &mut plain_client(&address).await;
    eventually("the upstream has as many waiting calls as it takes", async || {
        let found = up.get("l/", Some(GetOptions::new().with_prefix().with_count_only()));
        (found.await.ok()?.count() >= 20).then_some(())
    })
    .await;
    let written = timeout(Duration::from_secs(3), client.put("a", "1", None)).await;
    written.expect("a write waits for those who wait").unwrap();
    client.unlock(held.key()).await.unwrap();
    waiting.into_iter().for_each(|task| task.abort());
}

#[tokio::test]
async fn a_replica_with_a_password_notices_that_authentication_is_switched_on() {
    let place = Place::new();
    let upstream = etcd_at("127.0.0.1:0", &[]).start();
    let address = upstream.address().await;
    let up = &mut plain_client(&address).await;
    put(up, "secret", "1").await;
    up.user_add("root", "pw", None).await.unwrap();
    up.role_add("root").await.unwrap();
    up.user_grant_role("root", "root").await.unwrap();
    let file = place.file(&address);
    let text = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, text + "username: root\npassword: pw\n").unwrap();
    let here = replica(&file, &[]);
    let client = &mut plain_client(&here.address().await).await;
    // Nothing else makes the replica ask the upstream for anything.
    let options = GetOptions::new().with_serializable();
    assert_eq!(client.get("secret", Some(options.clone())).await.unwrap().count(), 1);
    up.auth_enable().await.unwrap();
    eventually("nobody may read without credentials", async || {
        let refused = client.get("secret", Some(options.clone())).await.err()?;
        refused.to_string().contains("user name is empty").then_some(())
    })
    .await;
}

#[tokio::test]
async fn another_store_at_the_same_address_ends_watches_as_compacted() {
    let place = Place::new();
    let upstream = etcd_at("127.0.0.1:0", &[]).start();
    let address = upstream.address().await;
    let mut up = plain_client(&address).await;
    for i in 0..5 {
        put(&mut up, "a", &i.to_string()).await;
    }
    let file = place.file(&address);
    let cautious = replica(&file, &["--on-divergence=exit"]);
    cautious.address().await;
    let here = replica(&file, &[]);
    let client = &mut plain_client(&here.address().await).await;
    let before = everything(client, 0).await;
    let mut stream = client.watch("", watch_all(0)).await.unwrap();
    assert!(message(&mut stream).await.created());
    upstream.kill().await;
    let upstream = etcd_at(&address, &[]).start();
    upstream.address().await;
    let up = &mut plain_client(&address).await;
    put(up, "other", "past").await;
    // A client that meets another cluster id connects again, and so do streams: they end, or are cancelled.
    let ended = timeout(PATIENCE + Duration::from_secs(30), stream.message())
        .await
        .unwrap();
    if let Ok(Some(last)) = &ended {
        assert!(last.canceled() && last.compact_revision() > 0, "{last:?}");
    }
    eventually("the other store is taken over", async || {
        let found = client.get("other", None).await.ok()?;
        (!found.kvs().is_empty()).then_some(())
    })
    .await;
    let after = everything(client, 0).await;
    assert_eq!(after, everything(up, 0).await);
    assert_ne!(after.1, before.1, "another cluster has another id");
    assert_eq!(cautious.ended().await.code(), Some(1));
    cautious.line("a restart loads everything anew").await;
}

#[tokio::test]
async fn an_upstream_that_cannot_be_followed_is_named_and_waited_for() {
    let place = Place::new();
    let missing = etcd_at("127.0.0.1:0", &["--follow=/nonexistent/upstream.yaml"]).run();
    assert_eq!(missing.code, Some(1));
    assert!(
        missing.text().contains("cannot read /nonexistent/upstream.yaml"),
        "{}",
        missing.text()
    );
    // Nothing listens at the address yet.
    let probe = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = probe.local_addr().unwrap().to_string();
    drop(probe);
    let here = replica(&place.file(&address), &[]);
    let line = here.line("cannot follow the upstream").await;
    assert!(line.contains(&address), "{line}");
    let upstream = etcd_at(&address, &[]).start();
    upstream.address().await;
    let client = &mut plain_client(&here.address().await).await;
    assert_eq!(revision(client).await, 1);
    assert!(here.terminate().await.success());
    upstream.signal(Signal::SIGTERM);
}

#[tokio::test]
async fn a_replica_continues_from_its_own_copy_and_takes_over_what_it_missed() {
    let place = Place::new();
    let upstream = etcd_at("127.0.0.1:0", &[]).start();
    let address = upstream.address().await;
    let up = &mut plain_client(&address).await;
    for i in 0..10 {
        put(up, &format!("k{i}"), "v").await;
    }
    let copy = format!("--data-dir={}", place.data().display());
    let here = replica(&place.file(&address), &[&copy]);
    let client = &mut plain_client(&here.address().await).await;
    let seen = put(client, "seen", "1").await;
    let mut stream = client.watch("", watch_all(seen)).await.unwrap();
    events_until(&mut stream, seen).await;
    here.kill().await;
    let last = put(up, "missed", "1").await;
    let here = replica(&place.file(&address), &[&copy]);
    let client = &mut plain_client(&here.address().await).await;
    assert_eq!(everything(client, 0).await, everything(up, 0).await);
    // The copy is written behind: it may lack the end, which comes again.
    let mut stream = client.watch("", watch_all(seen + 1)).await.unwrap();
    let events = events_until(&mut stream, last).await;
    assert_eq!(events, [format!("Put missed 1 {last} {last} 1")]);
    assert!(!here.log().contains("the upstream's keys are loaded"), "{}", here.log());
    assert!(here.terminate().await.success());
    // Whose copy it is, is said.
    let alone = etcd_at("127.0.0.1:0", &[&copy]).run();
    assert_eq!(alone.code, Some(1));
    assert!(
        alone.text().contains("start the replica with --follow"),
        "{}",
        alone.text()
    );
}

#[tokio::test]
async fn one_of_the_replicas_publishes_and_its_successor_rewrites_nothing() {
    let tls = Tls::new();
    let upstream = tls::etcd(&tls).start();
    let address = upstream.address().await;
    let file = tls.path("upstream.yaml");
    tls.client_file(&file, &address, &tls.ca.client("replica", "replica").unwrap());
    let serve = |admin: &Admin| {
        isthmus(["serve", "--cluster-name=hk-cluster", "--cluster-id=2"])
            .arg(format!("--manifests={}", example("hk-cluster").display()))
            .arg(format!("--follow={}", file.display()))
            .args([admin.health_flag(), admin.metrics_flag(), admin.api_flag()])
            .args(tls.flags())
            .start()
    };
    let publishes = async |admin: &Admin| {
        eventually("the publisher is complete", async || {
            let report = admin.readyz("?verbose").await?.body;
            report.contains("[+]publisher ok").then_some(())
        })
        .await;
    };
    let (admin, standby) = (Admin::new(), Admin::new());
    let first = serve(&admin);
    first.address().await;
    publishes(&admin).await;
    let second = serve(&standby);
    standby.ready().await;
    let waits = standby.readyz("?verbose").await.unwrap().body;
    assert!(waits.contains("another replica holds the leader lock"), "{waits}");
    // Both show the same, at the same revisions.
    let mut clients = [
        tls.client(&first.address().await, "any").await,
        tls.client(&second.address().await, "any").await,
    ];
    let shown = async |client: &mut Client| {
        let found = client.get("cilium/state/", prefix()).await.unwrap();
        (format!("{:?}", found.kvs()), found.header().unwrap().cluster_id())
    };
    let [before, same] = [shown(&mut clients[0]).await, shown(&mut clients[1]).await];
    assert_eq!(before, same);
    let from = revision(&mut clients[1]).await + 1;
    let options = WatchOptions::new().with_prefix().with_start_revision(from);
    let mut watch = clients[1].watch("cilium/state/", Some(options)).await.unwrap();
    first.kill().await;
    publishes(&standby).await;
    clients[1].put("cilium/state/last", "1", None).await.unwrap();
    let message = next(&mut watch).await;
    let keys: Vec<_> = message
        .events()
        .iter()
        .map(|e| e.kv().unwrap().key_str().unwrap())
        .collect();
    assert_eq!(keys, ["cilium/state/last"], "unchanged keys were written");
    assert!(second.terminate().await.success());
}
