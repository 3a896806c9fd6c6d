//! Proves that invalid input is reported with its name, that the valid rest is processed, that published data stays,
//! and that a command which cannot start exits with the reason.

use crate::support::admin::Admin;
use crate::support::files::{copy_directory, example};
use crate::support::store::read;
use crate::support::{CommandLine, Tls, eventually, isthmus};

/// `serve` for a cluster with an id of its own.
fn serve(tls: &Tls, name: &str, id: u32) -> CommandLine {
    isthmus(["serve", "--health-port=0"])
        .args([format!("--cluster-name={name}"), format!("--cluster-id={id}")])
        .arg(Admin::new().api_flag())
        .args(tls.flags())
}

#[tokio::test]
async fn invalid_manifests_are_named_and_the_valid_ones_published() {
    let tls = Tls::new();
    let manifests = tls.path("manifests");
    copy_directory(&example("hk-cluster"), &manifests);
    let write = |name: &str, text: &str| std::fs::write(manifests.join(name), text).unwrap();
    write("broken.yaml", "kind: CiliumNode\nmetadata: {name: [\n");
    write(
        "duplicate.yaml",
        "apiVersion: cilium.io/v2\nkind: CiliumNode\nmetadata: {name: hkg-node-1}\n",
    );
    write(
        "bad-ip.yaml",
        "kind: CiliumEndpoint\nmetadata: {name: sick, namespace: shop}\nstatus:\n  networking:\n    addressing: [{ipv4: 10.2.0.300}, {ipv4: 10.2.0.200}]\n",
    );
    write(
        "shape.yaml",
        "apiVersion: cilium.io/v2\nkind: CiliumNode\nmetadata: {name: odd}\nspec: {addresses: none}\n",
    );
    let server = serve(&tls, "a", 1)
        .arg(format!("--manifests={}", manifests.display()))
        .start();
    server.line("broken.yaml: does not parse: line ").await;
    // The files are read in order of their names.
    let duplicate = server.line("CiliumNode hkg-node-1 is also in").await;
    assert!(
        duplicate.contains("nodes.yaml") && duplicate.contains("duplicate.yaml"),
        "{duplicate}"
    );
    server.line("CiliumEndpoint shop/sick: address").await;
    server.line("shape.yaml: CiliumNode odd is not valid").await;
    let mut client = tls.client(&server.address().await, "admin-a").await;
    let mut count = async || read(&mut client, "cilium/state/").await.len();
    // 2 nodes, 3 identities, 10 addresses and the valid one of bad-ip.yaml, 2 services, 4 slices.
    eventually("the valid objects are published", async || {
        (count().await == 22).then_some(())
    })
    .await;
    write("nodes.yaml", "no: [longer, valid");
    server.line("nodes.yaml: does not parse: line ").await;
    assert_eq!(count().await, 22, "published keys must stay: {}", server.log());
}

#[tokio::test]
async fn remotes_that_cannot_be_reached_are_named_and_the_others_mirrored() {
    let (tls, other) = (Tls::new(), Tls::new());
    let manifests = |cluster: &str| format!("--manifests={}", example(cluster).display());
    let hk = serve(&tls, "a", 1).arg(manifests("hk-cluster")).start();
    let remotes = tls.path("remotes");
    std::fs::create_dir_all(&remotes).unwrap();
    let remote = tls.ca.client("remote", "remote").unwrap();
    tls.client_file(&remotes.join("a"), &hk.address().await, &remote);
    let text = std::fs::read_to_string(remotes.join("a")).unwrap();
    std::fs::write(
        remotes.join("wrong-ca"),
        text.replace(tls.ca.path().to_str().unwrap(), other.ca.path().to_str().unwrap()),
    )
    .unwrap();
    std::fs::write(remotes.join("no-cert"), text.replace("remote.crt", "absent.crt")).unwrap();
    std::fs::write(remotes.join("not-yaml"), "endpoints: [").unwrap();
    std::fs::write(remotes.join("Bad_Name"), &text).unwrap();
    let own = serve(&tls, "b", 2)
        .arg(format!("--clustermesh-config={}", remotes.display()))
        .arg(manifests("tokyo-cluster"))
        .start();
    let wrong = own.line("cluster_name=wrong-ca").await;
    assert!(
        wrong.contains("invalid peer certificate") && wrong.contains("remotes/wrong-ca"),
        "{wrong}"
    );
    let absent = own.line("cluster_name=no-cert").await;
    assert!(absent.contains("absent.crt"), "{absent}");
    assert!(
        own.line("cluster_name=not-yaml")
            .await
            .contains("not-yaml is not an etcd client configuration")
    );
    assert!(own.line("Bad_Name").await.contains("invalid cluster name"));
    let mut client = tls.client(&own.address().await, "admin-b").await;
    eventually("the valid remote is mirrored", async || {
        let nodes = read(&mut client, "cilium/cache/nodes/v1/a/").await;
        (nodes.len() == 2).then_some(())
    })
    .await;
}

/// Runs a command that must fail with `code` and print all of `parts`.
fn fails(command: CommandLine, code: i32, parts: &[&str]) {
    let finished = command.run();
    let text = finished.text();
    assert_eq!(finished.code, Some(code), "{text}");
    for part in parts {
        assert!(text.contains(part), "no {part:?} in:\n{text}");
    }
}

#[test]
fn a_command_that_cannot_start_prints_the_reason_and_fails() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let advertise = "--advertise-client-urls=http://127.0.0.1:1";
    let listen = format!("--listen-client-urls=http://{address}");
    fails(
        isthmus(["etcd", &listen, advertise]),
        1,
        &["cannot listen on", &address, "in use"],
    );
    let absent_files = ["--cert-file=/absent.crt", "--key-file=/absent.key"];
    fails(
        isthmus(["etcd", "--listen-client-urls=https://127.0.0.1:0", advertise]).args(absent_files),
        1,
        &["cannot use /absent.crt as the server certificate (--cert-file)"],
    );
    fails(isthmus(["etcd", "--no-such-flag"]), 2, &["--no-such-flag"]);
    fails(isthmus(["serve", "--no-such-flag"]), 1, &["--no-such-flag"]);
    fails(isthmus(["serve", "--cluster-name=a"]), 1, &["ClusterID 0 is reserved"]);
    fails(
        isthmus(["clustermesh", "--cluster-name=A", "--cluster-id=1"]),
        255,
        &["level=fatal", "invalid cluster name: "],
    );
    let publisher = || isthmus(["clustermesh", "--cluster-name=a", "--cluster-id=1"]);
    fails(publisher().arg("--kvstore-opt=etcd.color=red"), 255, &["etcd.color"]);
    fails(publisher().arg("--kvstore="), 255, &["KVStore client not configured"]);
    let lease = ["--kvstore-opt=etcd.address=http://x:1", "--kvstore-lease-ttl=1s"];
    fails(
        publisher().args(lease),
        255,
        &["kvstore-lease-ttl does not lie in required range"],
    );
}

#[tokio::test]
async fn a_missing_directory_stops_the_process_and_is_named() {
    let tls = Tls::new();
    let manifests = format!("--manifests={}", example("hk-cluster").display());
    for (flags, absent) in [
        (vec!["--manifests=/absent/m"], "/absent/m"),
        (vec![&manifests, "--clustermesh-config=/absent/c"], "/absent/c"),
    ] {
        let process = serve(&tls, "a", 1).args(flags).start();
        assert_eq!(process.ended().await.code(), Some(1));
        process.line(absent).await;
    }
}
