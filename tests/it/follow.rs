//! Proves that a replica (`etcd --follow`) shows what its upstream has, at the upstream's revisions, that watches on it go
//! on while the upstream restarts, and that another past ends them as compacted. The upstream is this program.

use crate::support::environment::Faults;
use crate::support::store::{message, next, plain_client, revision};
use crate::support::{CommandLine, PATIENCE, Process, Signal, eventually, http, isthmus};
use etcd_client::*;
use nix::errno::Errno;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::time::timeout;

/// A directory with the file that names the upstream.
pub struct Place {
    dir: tempfile::TempDir,
}

impl Place {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        Self { dir }
    }

    pub fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    /// The file that names the upstream.
    pub fn file(&self, address: &str) -> PathBuf {
        let file = self.dir.path().join("upstream.yaml");
        std::fs::write(&file, format!("endpoints: [\"http://{address}\"]\n")).unwrap();
        file
    }
}

/// `etcd` at an address, with further arguments.
pub fn etcd_at(address: &str, args: &[&str]) -> CommandLine {
    let listen = format!("--listen-client-urls=http://{address}");
    let advertise = "--advertise-client-urls=http://127.0.0.1:1";
    isthmus(["etcd", &listen, advertise]).args(args)
}

pub fn replica(file: &Path, args: &[&str]) -> Process {
    let follow = format!("--follow={}", file.display());
    etcd_at("127.0.0.1:0", &[&follow]).args(args).start()
}

/// Everything that the store has at a revision, and its header without the member.
pub async fn everything(client: &mut Client, revision: i64) -> (String, u64, i64) {
    let options = GetOptions::new().with_all_keys().with_revision(revision);
    let found = client.get("", Some(options)).await.unwrap();
    let header = found.header().unwrap();
    (format!("{:?}", found.kvs()), header.cluster_id(), header.revision())
}

pub async fn put(client: &mut Client, key: &str, value: &str) -> i64 {
    let answer = client.put(key, value, None).await.unwrap();
    answer.header().unwrap().revision()
}

/// Events up to `last`, as texts.
pub async fn events_until(stream: &mut WatchStream, last: i64) -> Vec<String> {
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

pub fn watch_all(start: i64) -> Option<WatchOptions> {
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
async fn a_full_disk_stops_the_copy_of_a_replica_and_nothing_else() {
    let (place, faults) = (Place::new(), Faults::new());
    let upstream = etcd_at("127.0.0.1:0", &[]).start();
    let address = upstream.address().await;
    let up = &mut plain_client(&address).await;
    put(up, "before", "1").await;
    let follow = format!("--follow={}", place.file(&address).display());
    let here = faults.etcd(&[&follow]);
    let here_address = here.address().await;
    let client = &mut plain_client(&here_address).await;
    let mut stream = client.watch("", watch_all(3)).await.unwrap();
    faults.set("errno", Errno::ENOSPC as i64);
    // More than what may wait for the disk.
    let value = "v".repeat(1_000_000);
    for i in 0..70 {
        put(up, &format!("k{}", i % 5), &value).await;
    }
    up.delete("k", Some(DeleteOptions::new().with_prefix())).await.unwrap();
    here.line("THE DISK IS FULL: the replica goes on").await;
    let last = put(client, "through", "1").await;
    assert_eq!(events_until(&mut stream, last).await.len(), 70 + 5 + 1);
    assert_eq!(everything(client, 0).await, everything(up, 0).await);
    for path in ["health", "readyz"] {
        let response = http::get(&format!("http://{here_address}/{path}")).await.unwrap();
        assert_eq!(response.status.as_u16(), 200, "{path}: {}", response.body);
    }
    faults.clear("errno");
    here.line("the disk has free space again").await;
    let last = put(client, "after", "1").await;
    events_until(&mut stream, last).await;
    eventually("the copy is complete again", async || {
        let log = here.log();
        let (_, since) = log.split_once("the disk has free space again")?;
        since.contains("checkpoint written").then_some(())
    })
    .await;
    assert!(here.terminate().await.success());
    let here = faults.etcd(&[&follow]);
    let client = &mut plain_client(&here.address().await).await;
    assert_eq!(everything(client, 0).await, everything(up, 0).await);
    assert!(!here.log().contains("the upstream's keys are loaded"), "{}", here.log());
}

#[tokio::test]
async fn a_person_can_make_a_store_of_its_own_of_the_copy_of_a_replica() {
    let place = Place::new();
    let upstream = etcd_at("127.0.0.1:0", &[]).start();
    let address = upstream.address().await;
    let up = &mut plain_client(&address).await;
    let lease = up.lease_grant(5, None).await.unwrap().id();
    let leased = PutOptions::new().with_lease(lease);
    up.put("leased", "1", Some(leased)).await.unwrap();
    for i in 0..5 {
        put(up, "k", &i.to_string()).await;
    }
    let copy = format!("--data-dir={}", place.data().display());
    let here = replica(&place.file(&address), &[&copy]);
    here.address().await;
    assert!(here.terminate().await.success());
    let before = everything(up, 0).await;
    upstream.kill().await;
    let to = format!("--to={}", place.dir.path().join("own").display());
    let detached = isthmus(["snapshot", "detach", &copy, &to]).run();
    assert!(detached.succeeded(), "{}", detached.text());
    assert!(
        detached
            .stdout
            .contains("revision 7, 2 keys, 1 leases of 900 s, no users"),
        "{}",
        detached.stdout
    );
    let again = isthmus(["snapshot", "detach", &copy, &to]).run();
    assert!(again.text().contains("already holds a store"), "{}", again.text());
    let own = to.replace("--to=", "--data-dir=");
    let own_copy = isthmus(["snapshot", "detach", &own, "--to=/nonexistent/x"]).run();
    assert!(
        own_copy.text().contains("has a store of its own already"),
        "{}",
        own_copy.text()
    );
    let leader = etcd_at("127.0.0.1:0", &[&own]).start();
    let client = &mut plain_client(&leader.address().await).await;
    let after = everything(client, 0).await;
    assert_eq!(
        (&after.0, after.2),
        (&before.0, before.2),
        "the same keys at the same revisions"
    );
    assert_ne!(after.1, before.1, "another cluster, whose clients list");
    let left = client.lease_time_to_live(lease, None).await.unwrap();
    assert!(left.ttl() > 800, "{left:?}");
    assert_eq!(put(client, "k", "on").await, before.2 + 1);
}
