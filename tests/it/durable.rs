//! What survives the process, and what becomes of a directory that is damaged, full or somebody else's.

use crate::support::{Process, Tls, etcd, eventually, free_port};
use etcd_client::*;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Runs a tool of ours; whether it succeeded, and what it printed.
fn tool(args: &[&str]) -> (bool, String) {
    let out = Command::new(env!("CARGO_BIN_EXE_clustermesh-apiserver"))
        .args(args)
        .output()
        .unwrap();
    let text = [out.stdout, out.stderr].concat();
    (out.status.success(), String::from_utf8(text).unwrap())
}

fn data_dir(path: &Path) -> String {
    format!("--data-dir={}", path.display())
}

fn start(tls: &Tls, path: &Path, more: &[&str]) -> Process {
    let data = data_dir(path);
    etcd(tls, &[&[&*data], more].concat())
}

/// The directory's only log file.
fn log_file(path: &Path) -> PathBuf {
    let files = fs::read_dir(path.join("store")).unwrap().map(|e| e.unwrap().path());
    let mut logs = files.filter(|p| p.file_name().unwrap().to_string_lossy().starts_with("log-"));
    logs.next().unwrap()
}

#[tokio::test]
async fn a_killed_store_goes_on_where_it_was() {
    let tls = Tls::new();
    let path = tls.path("data");
    let mut first = start(&tls, &path, &[]);
    let mut client = tls.client(&first.address(), "anybody").await;
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
    first.signal("-KILL");
    first.ended().await;

    let again = start(&tls, &path, &[]);
    let mut client = tls.client(&again.address(), "anybody").await;
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
    // A watch goes on from any revision that is left.
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
    assert_eq!(
        watch.message().await.unwrap().unwrap().events()[0]
            .kv()
            .unwrap()
            .value(),
        b"next"
    );
}

#[tokio::test]
async fn agents_see_no_event_when_serve_is_started_again() {
    let tls = Tls::new();
    let flags = tls.flags();
    let (data, health) = (data_dir(&tls.path("data")), free_port());
    let port = format!("--health-port={health}");
    let mut args = vec![
        "serve",
        "--cluster-name=hk-cluster",
        "--cluster-id=2",
        &port,
        "--manifests=examples/tokyo-hk/hk-cluster",
        &data,
    ];
    args.extend(flags.iter().map(String::as_str));
    let all = || Some(GetOptions::new().with_prefix());
    // Ready is when everything has been compared and written.
    let ready = async || {
        let url = format!("http://127.0.0.1:{health}/readyz");
        eventually("the cluster is ready", async || {
            let out = Command::new("curl").args(["-sf", &url]).output().unwrap();
            out.status.success().then_some(())
        })
        .await;
    };
    let mut first = Process::start(&args);
    let mut client = tls.client(&first.address(), "admin-hk-cluster").await;
    ready().await;
    let before = client.get("cilium/state/", all()).await.unwrap();
    assert!(before.count() > 5);
    first.signal("-TERM");
    assert!(first.ended().await.0.success());
    let again = Process::start(&args);
    let mut client = tls.client(&again.address(), "admin-hk-cluster").await;
    let remote = tls.client(&again.address(), "remote").await;
    let (old, new) = (before.header().unwrap(), client.get("x", None).await.unwrap());
    assert_eq!(new.header().unwrap().cluster_id(), old.cluster_id());
    let from = WatchOptions::new()
        .with_start_revision(old.revision() + 1)
        .with_prefix();
    let mut watch = remote.clone().watch("cilium/state/", Some(from)).await.unwrap();
    ready().await;
    // What was written by then comes before this.
    client.put("cilium/state/last", "1", None).await.unwrap();
    let mut message = watch.message().await.unwrap().unwrap();
    while message.events().is_empty() {
        message = watch.message().await.unwrap().unwrap();
    }
    let keys: Vec<_> = message
        .events()
        .iter()
        .map(|e| e.kv().unwrap().key_str().unwrap())
        .collect();
    assert_eq!(keys, ["cilium/state/last"], "unchanged keys were written");
    let after = client.get("cilium/state/", all()).await.unwrap();
    assert_eq!(after.count(), before.count() + 1);
}

#[tokio::test]
async fn damaged_data_is_set_aside_or_the_process_ends() {
    let tls = Tls::new();
    let path = tls.path("data");
    let mut first = start(&tls, &path, &[]);
    let mut client = tls.client(&first.address(), "anybody").await;
    for i in 0..20 {
        client.put("a", i.to_string(), None).await.unwrap();
    }
    let id = client.get("a", None).await.unwrap().header().unwrap().cluster_id();
    first.signal("-TERM");
    first.ended().await;
    let log = log_file(&path);
    let mut bytes = fs::read(&log).unwrap();
    bytes[500] ^= 4;
    fs::write(&log, bytes).unwrap();
    let (good, text) = tool(&["check", path.to_str().unwrap()]);
    assert!(!good && text.contains("checksum") && text.contains("log-"), "{text}");

    let mut refused = start(&tls, &path, &["--on-corruption=fail"]);
    assert_eq!(refused.ended().await.0.code(), Some(1));
    refused.line("a checksum does not match");
    let mut anew = start(&tls, &path, &[]);
    let mut client = tls.client(&anew.address(), "anybody").await;
    anew.line("THE DATA IS DAMAGED");
    let now = client.get("a", None).await.unwrap();
    assert!(now.kvs().is_empty() && now.header().unwrap().cluster_id() != id);
    let names = fs::read_dir(&path)
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap());
    assert_eq!(names.filter(|name| name.starts_with("damaged-20")).count(), 1);

    // While it runs, nobody else may.
    let mut second = start(&tls, &path, &[]);
    assert_eq!(second.ended().await.0.code(), Some(1));
    second.line("is in use by another process");
    anew.signal("-TERM");
    anew.ended().await;
}

#[tokio::test]
async fn a_full_disk_refuses_writes_until_there_is_room() {
    let dir = tempfile::tempdir().unwrap();
    let disk = dir.path().display().to_string();
    // A small disk of its own, most of it taken.
    let script = format!(
        "mount -t tmpfs -o size=8m tmpfs {disk} && fallocate -l 5m {disk}/other && \
         exec {} etcd --data-dir={disk}/data --checkpoint-bytes=1000000 \
         --listen-client-urls=http://127.0.0.1:0 --advertise-client-urls=http://127.0.0.1:1",
        env!("CARGO_BIN_EXE_clustermesh-apiserver"),
    );
    let probe = Command::new("unshare").args(["-rm", "true"]).status();
    if !probe.is_ok_and(|status| status.success()) {
        eprintln!("skipped: namespaces are not allowed here");
        return;
    }
    let server = Process::command("unshare", &["-rm", "sh", "-c", &script]);
    let mut client = Client::connect([server.address()], None).await.unwrap();
    let mut watch = client
        .watch("k", Some(WatchOptions::new().with_prefix()))
        .await
        .unwrap();
    let (mut written, mut refused) = (0, None);
    while refused.is_none() && written < 1000 {
        match client.put(format!("k{written}"), vec![7; 20_000], None).await {
            Ok(_) => written += 1,
            Err(error) => refused = Some(error.to_string()),
        }
    }
    let refused = refused.unwrap();
    assert!(
        refused.contains("etcdserver: mvcc: database space exceeded"),
        "{refused}"
    );
    server.line("THE DISK IS FULL");
    let all = || Some(GetOptions::new().with_prefix().with_keys_only());
    assert_eq!(client.get("k", all()).await.unwrap().count(), written);
    let mut seen = 0;
    while seen < written {
        seen += watch.message().await.unwrap().unwrap().events().len() as i64;
    }
    // The process sees its own disk only.
    let other = format!("/proc/{}/root{disk}/other", server.id());
    fs::remove_file(other).unwrap();
    eventually("writes are accepted again", async || {
        client.put("k", "1", None).await.ok()
    })
    .await;
    server.line("there is room on the disk again");
    assert_eq!(client.get("k", all()).await.unwrap().count(), written + 1);
}

#[tokio::test]
async fn a_directory_can_be_checked_dumped_saved_and_restored() {
    let tls = Tls::new();
    let path = tls.path("data");
    let mut first = start(&tls, &path, &[]);
    let mut client = tls.client(&first.address(), "anybody").await;
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
    let (endpoint, ca) = (
        format!("--endpoints={}", first.address()),
        flag("cacert", &tls.ca.path()),
    );
    let (cert, key) = (flag("cert", &pair.cert), flag("key", &pair.key));
    let file = running.to_str().unwrap();
    let (saved, text) = tool(&["snapshot", "save", file, &endpoint, &ca, &cert, &key]);
    assert!(saved && text.contains("Snapshot saved at"), "{text}");
    let (good, text) = tool(&["check", path.to_str().unwrap()]);
    assert!(!good && text.contains("is in use by another process"), "{text}");
    first.signal("-TERM");
    first.ended().await;

    let (good, text) = tool(&["check", path.to_str().unwrap()]);
    assert!(
        good && text.contains("revision 5") && text.contains("2 keys, 1 leases"),
        "{text}"
    );
    let (_, text) = tool(&["dump", path.to_str().unwrap()]);
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
    let (saved, text) = tool(&["snapshot", "save", offline.to_str().unwrap(), &data_dir(&path)]);
    assert!(saved, "{text}");
    for (snapshot, engine) in [(&running, "log"), (&offline, "sled")] {
        let name = snapshot.to_str().unwrap();
        let (_, text) = tool(&["snapshot", "status", name, "-w", "json"]);
        let status: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(
            (&status["revision"], &status["totalKey"]),
            (&5.into(), &2.into()),
            "{text}"
        );
        let restored = tls.path(&format!("restored-{engine}"));
        let engine = format!("--data-engine={engine}");
        let restore = ["snapshot", "restore", name, &data_dir(&restored), &engine];
        let (done, text) = tool(&restore);
        assert!(done, "{text}");
        let (again, text) = tool(&restore);
        assert!(!again && text.contains("there is a store"), "{text}");
        let server = start(&tls, &restored, &[]);
        let mut client = tls.client(&server.address(), "anybody").await;
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
    let name = offline.to_str().unwrap();
    let (done, text) = tool(&["snapshot", "restore", name, &data_dir(&tls.path("never"))]);
    assert!(!done && text.contains("SHA-256"), "{text}");
}
