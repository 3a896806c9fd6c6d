//! Where a process runs: its user, its variables, its file systems and its networks.

use super::count;
use crate::support::Process;
use crate::support::environment::{allows, etcd_in, wrapped};
use crate::support::files::{example, free_port};
use crate::support::store::plain_client;
use crate::support::{PATIENCE, Tls, eventually, isthmus};
use std::fs;
use std::process::Command;

/// A shell in namespaces of its own, in which `script` ends with `exec "$@"`.
fn shell<'a>(namespaces: &'a str, script: &'a str) -> [&'a str; 6] {
    ["unshare", namespaces, "sh", "-ec", script, "sh"]
}

#[tokio::test]
async fn a_store_needs_nothing_but_its_data_directory() {
    let dir = tempfile::tempdir().unwrap();
    // The root is read-only, the data directory is a volume, and the system's directory for temporary files is missing.
    let script = format!(
        "mount -t tmpfs tmpfs {0}; mount -o remount,bind,ro /; cd /; \
         exec env -i LC_ALL=xx_YY.ISO-8859-1 LANG=C TZ=Mars/Olympus:-99 TMPDIR=/missing \"$@\"",
        dir.path().display()
    );
    if !allows(&["unshare", "-rm"]) {
        return;
    }
    let data = format!("--data-dir={}/data", dir.path().display());
    let server = etcd_in(&shell("-rm", &script), &[&data]);
    let address = server.address().await;
    let mut client = plain_client(&address).await;
    client.put("schlüssel", "wert", None).await.unwrap();
    let line = server.line("ready to serve client requests").await;
    let record: serde_json::Value = serde_json::from_str(&line).unwrap();
    let logged: jiff::Timestamp = record["ts"].as_str().unwrap().parse().unwrap();
    assert!(jiff::Timestamp::now().duration_since(logged).abs() < PATIENCE.try_into().unwrap());
    let save = isthmus(["snapshot", "save"])
        .arg(dir.path().join("saved.db"))
        .arg(format!("--endpoints={address}"));
    let saved = save.run();
    assert!(saved.succeeded(), "{}", saved.text());
    assert!(server.terminate().await.success());
}

#[tokio::test]
async fn a_user_without_a_name_or_a_home_may_run_a_store() {
    let nameless = ["unshare", "--map-user=54321"];
    if !allows(&nameless) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let data = format!("--data-dir={}/data", dir.path().display());
    let server = etcd_in(&[&nameless[..], &["env", "-i"]].concat(), &[&data]);
    let mut client = plain_client(&server.address().await).await;
    client.put("k", "v", None).await.unwrap();
    assert_eq!(count(&mut client).await, 1);
}

#[tokio::test]
async fn a_data_directory_on_a_read_only_file_system_is_named_at_the_start() {
    if !allows(&["unshare", "-rm"]) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let script = format!("mount -t tmpfs -o ro tmpfs {0}; exec \"$@\"", dir.path().display());
    let data = format!("--data-dir={}/data", dir.path().display());
    let server = etcd_in(&shell("-rm", &script), &[&data]);
    assert_eq!(server.ended().await.code(), Some(1));
    let line = server.line("Read-only file system").await;
    assert!(line.contains(&dir.path().display().to_string()), "{line}");
}

#[tokio::test]
async fn manifests_are_followed_without_inotify() {
    if !allows(&["unshare", "-rm"]) {
        return;
    }
    let tls = Tls::new();
    let manifests = tls.path("manifests");
    fs::create_dir(&manifests).unwrap();
    let script = "echo 0 > /proc/sys/user/max_inotify_instances; exec \"$@\"";
    let mut arguments = tls.flags();
    arguments.extend(["--cluster-name=hk-cluster", "--cluster-id=2", "--health-port=0"].map(str::to_owned));
    arguments.push(format!("--manifests={}", manifests.display()));
    let mut command = wrapped(&shell("-rm", script), &["serve"]);
    command.args(arguments);
    let server = Process::spawn(command);
    let mut client = tls.client(&server.address().await, "admin-hk-cluster").await;
    server.line("raise the sysctl fs.inotify.max_user_instances").await;
    let manifest = fs::read_dir(example("hk-cluster")).unwrap().next().unwrap().unwrap();
    fs::copy(manifest.path(), manifests.join("late.yaml")).unwrap();
    eventually("a late manifest is published", async || {
        let found = crate::support::store::names(&mut client, "cilium/state/").await;
        (!found.is_empty()).then_some(())
    })
    .await;
}

const IPV6_ONLY: &str = "ip link set lo up; ip addr del 127.0.0.1/8 dev lo; exec \"$@\"";

#[tokio::test]
async fn a_host_with_ipv6_only_is_served_and_an_address_that_it_lacks_is_named() {
    let probe = shell(
        "-rn",
        "ip link set lo up; ip addr show dev lo | grep -q ::1; exec \"$@\"",
    );
    if !allows(&probe) {
        return;
    }
    let ipv6_only = |url: &str| {
        let advertised = "--advertise-client-urls=http://127.0.0.1:1";
        Process::spawn(wrapped(&shell("-rn", IPV6_ONLY), &["etcd", url, advertised]))
    };
    for (host, bound) in [("localhost", "[::1]:"), ("0.0.0.0", "[::]:"), ("", "[::]:")] {
        let url = format!("--listen-client-urls=http://{host}:0");
        let server = ipv6_only(&url);
        let line = server.line("serving client traffic").await;
        assert!(line.contains(bound), "{host}: {line}");
    }
    let server = ipv6_only("--listen-client-urls=http://127.0.0.1:0");
    assert_eq!(server.ended().await.code(), Some(1));
    server.line("choose an address of this machine").await;
}

#[tokio::test]
async fn the_mirrors_status_is_asked_for_on_a_host_with_ipv6_only() {
    if !allows(&["unshare", "-rn"]) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (manifests, remotes) = (example("hk-cluster"), dir.path());
    let api = format!("localhost:{}", free_port());
    let arguments = [
        "serve".to_owned(),
        "--cluster-name=hk-cluster".to_owned(),
        "--cluster-id=2".to_owned(),
        "--health-port=0".to_owned(),
        "--listen-client-urls=http://localhost:0".to_owned(),
        format!("--manifests={}", manifests.display()),
        format!("--clustermesh-config={}", remotes.display()),
        format!("--api-serve-addr={api}"),
    ];
    let server = Process::spawn(wrapped(&shell("-rn", IPV6_ONLY), &arguments.each_ref().map(|a| &**a)));
    let pid = server.id().to_string();
    let enter = ["nsenter", "--preserve-credentials", "-U", "-n", "-t", &pid];
    eventually("the status is printed", async || {
        let mut command: Command = wrapped(&enter, &["kvstoremesh-dbg", "status", "-H", &api]);
        let output = command.output().unwrap();
        (output.status.success() && String::from_utf8_lossy(&output.stdout).contains("0/0")).then_some(())
    })
    .await;
}
