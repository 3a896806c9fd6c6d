//! Proves that a stock etcdctl (Debian: etcd-client) works with the store. Skipped where etcdctl is not installed.

use crate::support::tls::etcd;
use crate::support::{Tls, eventually};
use std::process::{Command, Output, Stdio};

/// etcdctl with the flags of a connection.
struct Etcdctl(Vec<String>);

impl Etcdctl {
    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new("etcdctl");
        command.env("ETCDCTL_API", "3").args(&self.0).args(args);
        command
    }

    fn output(&self, args: &[&str]) -> Output {
        self.command(args).stdin(Stdio::null()).output().unwrap()
    }

    /// Standard output of a call that must succeed.
    fn run(&self, args: &[&str]) -> String {
        let out = self.output(args);
        assert!(
            out.status.success(),
            "etcdctl {args:?}: {}",
            String::from_utf8_lossy(&out.stderr)
        );
        String::from_utf8(out.stdout).unwrap()
    }
}

/// Whether etcdctl is installed. Where the peers are required (`make interop`), its absence fails the test.
fn installed() -> bool {
    let found = Command::new("etcdctl")
        .arg("version")
        .output()
        .is_ok_and(|o| o.status.success());
    let required = std::env::var_os("ISTHMUS_REQUIRE_PEERS").is_some();
    assert!(found || !required, "etcdctl is not installed (Debian: etcd-client)");
    found
}

#[tokio::test]
async fn etcdctl_reads_writes_watches_leases_locks_and_elects() {
    if !installed() {
        eprintln!("skipped: etcdctl is not installed");
        return;
    }
    let tls = Tls::new();
    let server = etcd(&tls).start();
    let pair = tls.ca.client("ctl", "ctl").unwrap();
    let flag = |name: &str, value: String| format!("--{name}={value}");
    let ctl = Etcdctl(vec![
        flag("endpoints", format!("https://{}", server.address().await)),
        flag("cacert", tls.ca.path().display().to_string()),
        flag("cert", pair.cert.display().to_string()),
        flag("key", pair.key.display().to_string()),
    ]);
    assert_eq!(ctl.run(&["put", "a/1", "one"]), "OK\n");
    assert_eq!(ctl.run(&["put", "a/2", "two"]), "OK\n");
    assert_eq!(ctl.run(&["get", "--prefix", "a/"]), "a/1\none\na/2\ntwo\n");

    let mut watch = ctl.command(&["watch", "--prefix", "a/", "--rev=2"]);
    let file = tls.path("watched");
    let out = std::fs::File::create(&file).unwrap();
    let mut watch = watch.stdin(Stdio::null()).stdout(out).spawn().unwrap();
    assert_eq!(ctl.run(&["del", "a/1"]), "1\n");
    let expected = "PUT\na/1\none\nPUT\na/2\ntwo\nDELETE\na/1\n\n";
    eventually("etcdctl watch has printed all events", async || {
        (std::fs::read_to_string(&file).unwrap() == expected).then_some(())
    })
    .await;
    watch.kill().unwrap();
    watch.wait().unwrap();

    let granted = ctl.run(&["lease", "grant", "60"]);
    let lease = granted.split_whitespace().nth(1).unwrap().to_owned();
    ctl.run(&["put", "--lease", &lease, "leased", "x"]);
    let renewed = ctl.run(&["lease", "keep-alive", "--once", &lease]);
    assert!(renewed.contains("keepalived with TTL(60)"), "{renewed}");
    assert!(
        ctl.run(&["lease", "timetolive", "--keys", &lease])
            .contains("attached keys([leased])")
    );
    ctl.run(&["lease", "revoke", &lease]);
    assert_eq!(ctl.run(&["get", "leased"]), "");

    let script = "mod(\"a/2\") > \"0\"\n\nput a/3 three\nget a/2\n\nput a/4 four\n\n";
    std::fs::write(tls.path("txn"), script).unwrap();
    let stdin = std::fs::File::open(tls.path("txn")).unwrap();
    let txn = ctl.command(&["txn"]).stdin(stdin).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&txn.stdout), "SUCCESS\n\nOK\n\na/2\ntwo\n");

    assert!(ctl.run(&["compaction", "4"]).contains("compacted revision 4"));
    let old = ctl.output(&["get", "a/2", "--rev=2"]);
    assert!(String::from_utf8_lossy(&old.stderr).contains("required revision has been compacted"));
    let status = ctl.run(&["endpoint", "status", "-w", "json"]);
    let status: serde_json::Value = serde_json::from_str(&status).unwrap();
    assert_eq!(
        status[0]["Status"]["leader"],
        status[0]["Status"]["header"]["member_id"]
    );
    assert!(ctl.output(&["endpoint", "health"]).status.success());
    assert!(ctl.run(&["member", "list"]).contains("started, default"));

    // `lock` holds a mutex of the Go client library while a command runs.
    assert_eq!(ctl.run(&["lock", "mutex", "echo", "held"]), "held\n");
    let mut elect = ctl
        .command(&["elect", "leader", "me"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    eventually("etcdctl elect has won", async || {
        let leader = ctl.run(&["get", "--prefix", "leader/", "--print-value-only"]);
        (leader == "me\n").then_some(())
    })
    .await;
    elect.kill().unwrap();
    elect.wait().unwrap();
}
