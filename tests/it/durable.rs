//! Proves that a data directory preserves its contents across the end of a process, that a damaged, full or busy
//! directory is handled as documented, and that the tools `check`, `dump` and `snapshot` read a directory.

use crate::support::admin::Admin;
use crate::support::files::example;
use crate::support::process::BINARY;
use crate::support::store::{next, next_events, plain_client, prefix};
use crate::support::tls::etcd;
use crate::support::{CommandLine, Process, Tls, eventually, http, isthmus};
use etcd_client::*;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;
use tokio::time::Instant;

fn data_dir(path: &Path) -> String {
    format!("--data-dir={}", path.display())
}

/// `etcd` with a data directory.
fn durable(tls: &Tls, path: &Path) -> CommandLine {
    etcd(tls).arg(data_dir(path))
}

/// Fails unless the command succeeds, and returns what it prints.
fn succeeds(command: CommandLine) -> String {
    let finished = command.run();
    let text = finished.text();
    assert!(finished.succeeded(), "{text}");
    text
}

/// Fails unless the command fails, and returns what it prints.
fn fails(command: CommandLine) -> String {
    let finished = command.run();
    let text = finished.text();
    assert!(!finished.succeeded(), "{text}");
    text
}

/// `check`, the tool that reads a whole data directory and reports damage.
fn check(path: &Path) -> CommandLine {
    isthmus(["check"]).arg(path)
}

/// The directory's only log file.
fn log_file(path: &Path) -> PathBuf {
    let files = fs::read_dir(path.join("store")).unwrap().map(|e| e.unwrap().path());
    let mut logs = files.filter(|p| p.file_name().unwrap().to_string_lossy().starts_with("log-"));
    logs.next().unwrap()
}

#[tokio::test]
async fn a_killed_store_continues_with_everything_it_had_answered() {
    let tls = Tls::new();
    let path = tls.path("data");
    let first = durable(&tls, &path).start();
    let mut client = tls.client(&first.address().await, "anybody").await;
    let lease = client.lease_grant(60, None).await.unwrap().id();
    let leased = PutOptions::new().with_lease(lease);
    client.put("leased", "1", Some(leased)).await.unwrap();
    for i in 0..50 {
        client.put("a", i.to_string(), None).await.unwrap();
    }
    client.compact(20, None).await.unwrap();
    client.user_add("root", "secret", None).await.unwrap();
    client.role_add("nothing").await.unwrap();
    let before = client.get("a", None).await.unwrap();
    let status = client.status().await.unwrap();
    first.kill().await;

    let again = durable(&tls, &path).start();
    let mut client = tls.client(&again.address().await, "anybody").await;
    let after = client.get("a", None).await.unwrap();
    assert_eq!(format!("{:?}", after.kvs()), format!("{:?}", before.kvs()));
    let header = |response: &GetResponse| {
        let header = response.header().unwrap();
        (header.cluster_id(), header.member_id(), header.revision())
    };
    assert_eq!(header(&after), header(&before));
    assert_eq!(client.status().await.unwrap().raft_term(), status.raft_term() + 1);
    let left = client.lease_time_to_live(lease, Some(LeaseTimeToLiveOptions::new().with_keys()));
    let left = left.await.unwrap();
    assert!(left.ttl() >= 55 && left.keys() == [b"leased"], "{left:?}");
    assert_eq!(client.user_list().await.unwrap().users(), ["root"]);
    assert_eq!(client.role_list().await.unwrap().roles(), ["nothing"]);
    let compacted = client.get("a", Some(GetOptions::new().with_revision(19))).await;
    assert!(compacted.unwrap_err().to_string().contains("compacted"));
    // A watch may start from any revision that is not compacted.
    let options = WatchOptions::new().with_start_revision(30);
    let mut watch = client.watch("a", Some(options)).await.unwrap();
    let mut revisions = vec![];
    while revisions.len() < 23 {
        let response = watch.message().await.unwrap().unwrap();
        revisions.extend(response.events().iter().map(|e| e.kv().unwrap().mod_revision()));
    }
    assert_eq!(revisions, (30..=52).collect::<Vec<_>>());
    let put = client.put("a", "next", None).await.unwrap();
    assert_eq!(put.header().unwrap().revision(), 53);
    let message = next(&mut watch).await;
    assert_eq!(message.events()[0].kv().unwrap().value(), b"next");
}

#[tokio::test]
async fn watchers_see_no_event_when_serve_restarts_over_unchanged_objects() {
    let tls = Tls::new();
    let admin = Admin::new();
    let serve = || {
        isthmus(["serve", "--cluster-name=hk-cluster", "--cluster-id=2"])
            .arg(format!("--manifests={}", example("hk-cluster").display()))
            .args([admin.health_flag(), data_dir(&tls.path("data"))])
            .args(tls.flags())
            .start()
    };
    let first = serve();
    let mut client = tls.client(&first.address().await, "admin-hk-cluster").await;
    admin.ready().await;
    let before = client.get("cilium/state/", prefix()).await.unwrap();
    assert!(before.count() > 5);
    assert!(first.terminate().await.success());
    let again = serve();
    let mut client = tls.client(&again.address().await, "admin-hk-cluster").await;
    let remote = tls.client(&again.address().await, "remote").await;
    let (old, new) = (before.header().unwrap(), client.get("x", None).await.unwrap());
    assert_eq!(new.header().unwrap().cluster_id(), old.cluster_id());
    let from = WatchOptions::new()
        .with_start_revision(old.revision() + 1)
        .with_prefix();
    let mut watch = remote.clone().watch("cilium/state/", Some(from)).await.unwrap();
    // A ready process has compared every object with the store and written the differences.
    admin.ready().await;
    client.put("cilium/state/last", "1", None).await.unwrap();
    let message = next_events(&mut watch).await;
    let keys: Vec<_> = message
        .events()
        .iter()
        .map(|e| e.kv().unwrap().key_str().unwrap())
        .collect();
    assert_eq!(keys, ["cilium/state/last"], "unchanged keys were written");
    let after = client.get("cilium/state/", prefix()).await.unwrap();
    assert_eq!(after.count(), before.count() + 1);
}

#[tokio::test]
async fn damaged_data_is_set_aside_or_refused_and_a_directory_in_use_is_refused() {
    let tls = Tls::new();
    let path = tls.path("data");
    let first = durable(&tls, &path).start();
    let mut client = tls.client(&first.address().await, "anybody").await;
    for i in 0..20 {
        client.put("a", i.to_string(), None).await.unwrap();
    }
    let id = client.get("a", None).await.unwrap().header().unwrap().cluster_id();
    first.terminate().await;
    let log = log_file(&path);
    let mut bytes = fs::read(&log).unwrap();
    bytes[500] ^= 4;
    fs::write(&log, bytes).unwrap();
    let text = fails(check(&path));
    assert!(text.contains("checksum") && text.contains("log-"), "{text}");

    let refused = durable(&tls, &path).arg("--on-corruption=fail").start();
    assert_eq!(refused.ended().await.code(), Some(1));
    refused.line("a checksum does not match").await;
    let anew = durable(&tls, &path).start();
    let mut client = tls.client(&anew.address().await, "anybody").await;
    anew.line("THE DATA IS DAMAGED").await;
    let now = client.get("a", None).await.unwrap();
    assert!(now.kvs().is_empty() && now.header().unwrap().cluster_id() != id);
    let names = fs::read_dir(&path)
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap());
    assert_eq!(names.filter(|name| name.starts_with("damaged-20")).count(), 1);

    // A directory serves one process at a time.
    let second = durable(&tls, &path).start();
    assert_eq!(second.ended().await.code(), Some(1));
    second.line("is in use by another process").await;
    anew.terminate().await;
}

/// `etcd` with a data directory on a file system of 8 MiB, `occupied` KiB of which are taken by the file `other`.
/// `None` if this machine does not allow mount namespaces.
fn on_small_disk(disk: &Path, occupied: u32) -> Option<Process> {
    let disk = disk.display();
    let script = format!(
        "mount -t tmpfs -o size=8m tmpfs {disk} && fallocate -l {occupied}k {disk}/other && \
         exec {BINARY} etcd --data-dir={disk}/data --checkpoint-bytes=1000000 \
         --listen-client-urls=http://127.0.0.1:0 --advertise-client-urls=http://127.0.0.1:1"
    );
    let probe = Command::new("unshare").args(["-rm", "true"]).status();
    if !probe.is_ok_and(|status| status.success()) {
        eprintln!("skipped: this machine does not allow user namespaces");
        return None;
    }
    let mut command = Command::new("unshare");
    command.args(["-rm", "sh", "-c", &script]);
    Some(Process::spawn(command))
}

#[tokio::test]
async fn a_write_that_no_longer_fits_is_refused_at_once_and_everything_says_that_the_disk_is_full() {
    let dir = tempfile::tempdir().unwrap();
    // Room for the first log file, and not for a file that the write fits into.
    let Some(server) = on_small_disk(dir.path(), 6800) else {
        return;
    };
    let address = server.address().await;
    let mut client = plain_client(&address).await;
    client.put("before", "1", None).await.unwrap();
    let begun = Instant::now();
    let refused = client
        .put("large", vec![7; 1_200_000], None)
        .await
        .unwrap_err()
        .to_string();
    assert!(begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());
    let full = "no room on the disk of the data directory (ENOSPC)";
    assert!(
        refused.contains(full) && !refused.contains("database space exceeded"),
        "{refused}"
    );
    let again = client.put("small", "1", None).await.unwrap_err().to_string();
    assert!(again.contains(full), "{again}");
    // Reads and lists of alarms answer.
    assert_eq!(client.get("before", None).await.unwrap().kvs()[0].value(), b"1");
    let alarms = client.alarm(AlarmAction::Get, AlarmType::None, None).await.unwrap();
    assert!(alarms.alarms().is_empty());
    for path in ["health", "readyz"] {
        let response = http::get(&format!("http://{address}/{path}")).await.unwrap();
        assert_eq!(response.status.as_u16(), 503, "{path}");
        assert!(response.body.contains(full), "{path}: {}", response.body);
    }
    fs::remove_file(format!("/proc/{}/root{}/other", server.id(), dir.path().display())).unwrap();
    eventually("writes are accepted again", async || {
        client.put("small", "1", None).await.ok()
    })
    .await;
    // The refused write was made, and is on the disk now.
    assert_eq!(
        client.get("large", None).await.unwrap().kvs()[0].value().len(),
        1_200_000
    );
    for path in ["health", "readyz?verbose"] {
        let response = http::get(&format!("http://{address}/{path}")).await.unwrap();
        assert_eq!(response.status.as_u16(), 200, "{path}: {}", response.body);
        assert!(!response.body.contains("data_directory"));
    }
}

#[tokio::test]
async fn a_store_on_a_small_disk_starts_and_names_the_space_that_it_needs() {
    let dir = tempfile::tempdir().unwrap();
    let Some(server) = on_small_disk(dir.path(), 7800) else {
        return;
    };
    assert_eq!(server.ended().await.code(), Some(1));
    server.line("a new store takes 2 MiB and grows with use").await;
}

#[tokio::test]
async fn a_full_disk_refuses_writes_until_space_is_free() {
    let dir = tempfile::tempdir().unwrap();
    let disk = dir.path().display();
    let Some(server) = on_small_disk(dir.path(), 5120) else {
        return;
    };
    let mut client = plain_client(&server.address().await).await;
    let mut watch = client
        .watch("k", Some(WatchOptions::new().with_prefix()))
        .await
        .unwrap();
    assert!(watch.message().await.unwrap().unwrap().created());
    let (mut written, mut refused) = (0, None);
    while refused.is_none() && written < 1000 {
        match client.put(format!("k{written}"), vec![7; 20_000], None).await {
            Ok(_) => written += 1,
            Err(error) => refused = Some(error.to_string()),
        }
    }
    let refused = refused.unwrap();
    assert!(
        refused.contains("etcdserver: no room on the disk of the data directory"),
        "{refused}"
    );
    server.line("THE DISK IS FULL").await;
    let all = || Some(GetOptions::new().with_prefix().with_keys_only());
    assert_eq!(client.get("k", all()).await.unwrap().count(), written);
    let mut seen = 0;
    while seen < written {
        seen += watch.message().await.unwrap().unwrap().events().len() as i64;
    }
    // The file system is visible only in the mount namespace of the server.
    let other = format!("/proc/{}/root{disk}/other", server.id());
    fs::remove_file(other).unwrap();
    eventually("writes are accepted again", async || {
        client.put("k", "1", None).await.ok()
    })
    .await;
    server.line("the disk has free space again").await;
    assert_eq!(client.get("k", all()).await.unwrap().count(), written + 1);
}

#[tokio::test]
async fn a_data_directory_can_be_checked_dumped_saved_and_restored() {
    let tls = Tls::new();
    let path = tls.path("data");
    let first = durable(&tls, &path).start();
    let mut client = tls.client(&first.address().await, "anybody").await;
    client.put("text", "1", None).await.unwrap();
    client.put(vec![0xff], "2", None).await.unwrap();
    client.delete("text", None).await.unwrap();
    let lease = client.lease_grant(600, None).await.unwrap().id();
    client
        .put("leased", "3", Some(PutOptions::new().with_lease(lease)))
        .await
        .unwrap();
    client.role_add("r").await.unwrap();
    let pair = tls.ca.client("tool", "tool").unwrap();
    let running = tls.path("running.db");
    let flag = |name: &str, path: &Path| format!("--{name}={}", path.display());
    let save = isthmus(["snapshot", "save"])
        .arg(&running)
        .arg(format!("--endpoints={}", first.address().await))
        .args([
            flag("cacert", &tls.ca.path()),
            flag("cert", &pair.cert),
            flag("key", &pair.key),
        ]);
    let text = succeeds(save);
    assert!(text.contains("Snapshot saved at"), "{text}");
    let text = fails(check(&path));
    assert!(text.contains("is in use by another process"), "{text}");
    first.terminate().await;

    let text = succeeds(check(&path));
    assert!(
        text.contains("revision 5") && text.contains("2 keys, 1 leases"),
        "{text}"
    );
    let text = isthmus(["dump"]).arg(&path).run().text();
    let lines: Vec<serde_json::Value> = text.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    assert_eq!(lines.len(), 4);
    assert_eq!((&lines[0]["key"], &lines[0]["value"]), (&"text".into(), &"1".into()));
    assert_eq!(lines[1]["key_base64"], "/w==");
    assert_eq!(
        (&lines[2]["type"], &lines[2]["revision"]),
        (&"delete".into(), &4.into())
    );
    assert_eq!(lines[3]["lease"], format!("{lease:x}"));

    let offline = tls.path("offline.db");
    succeeds(isthmus(["snapshot", "save"]).arg(&offline).arg(data_dir(&path)));
    for (snapshot, engine) in [(&running, "log"), (&offline, "sled")] {
        let text = isthmus(["snapshot", "status", "-w", "json"]).arg(snapshot).run().text();
        let status: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(
            (&status["revision"], &status["totalKey"]),
            (&5.into(), &2.into()),
            "{text}"
        );
        let restored = tls.path(&format!("restored-{engine}"));
        let engine = format!("--data-engine={engine}");
        let restore = || {
            isthmus(["snapshot", "restore"])
                .arg(snapshot)
                .args([&data_dir(&restored), &engine])
        };
        succeeds(restore());
        let text = fails(restore());
        assert!(text.contains("already holds a store"), "{text}");
        let server = durable(&tls, &restored).start();
        let mut client = tls.client(&server.address().await, "anybody").await;
        let kvs = client.get("leased", None).await.unwrap();
        assert_eq!((kvs.kvs()[0].lease(), kvs.kvs()[0].mod_revision()), (lease, 5));
        let old = client
            .get("text", Some(GetOptions::new().with_revision(3)))
            .await
            .unwrap();
        assert_eq!(old.kvs()[0].value(), b"1");
        assert_eq!(client.role_list().await.unwrap().roles(), ["r"]);
        assert_eq!(
            client.put("x", "y", None).await.unwrap().header().unwrap().revision(),
            6
        );
    }
    let mut bytes = fs::read(&offline).unwrap();
    bytes[5000] ^= 1;
    fs::write(&offline, bytes).unwrap();
    let restore = isthmus(["snapshot", "restore"]).arg(&offline);
    let text = fails(restore.arg(data_dir(&tls.path("never"))));
    assert!(text.contains("SHA-256"), "{text}");
}
