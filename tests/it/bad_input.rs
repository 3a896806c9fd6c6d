//! Bad input gets a message that names it, the rest goes on, and nothing already published is lost.

use crate::support::{Process, Tls, copy_dir, eventually, free_port};
use etcd_client::GetOptions;
use std::path::Path;

fn serve(tls: &Tls, more: &[String]) -> Process {
    let mut args = ["serve", "--cluster-name=a", "--cluster-id=1", "--health-port=0"]
        .map(str::to_owned)
        .to_vec();
    args.push(format!("--api-serve-addr=127.0.0.1:{}", free_port()));
    args.extend(tls.flags());
    args.extend(more.iter().cloned());
    Process::start(&args.iter().map(String::as_str).collect::<Vec<_>>())
}

#[tokio::test]
async fn bad_manifests_are_named_and_the_others_are_published() {
    let tls = Tls::new();
    let manifests = tls.path("manifests");
    copy_dir(
        &Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/tokyo-hk/hk-cluster"),
        &manifests,
    );
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
    let server = serve(&tls, &[format!("--manifests={}", manifests.display())]);
    server.line("broken.yaml: the document at line 1 does not parse");
    // The files are read in order of their names.
    let duplicate = server.line("CiliumNode hkg-node-1 is also in");
    assert!(
        duplicate.contains("nodes.yaml") && duplicate.contains("duplicate.yaml"),
        "{duplicate}"
    );
    server.line("CiliumEndpoint shop/sick: address");
    server.line("shape.yaml: CiliumNode odd is not valid");
    let mut client = tls.client(&server.address(), "admin-a").await;
    let mut count = async || {
        let options = GetOptions::new().with_prefix().with_count_only();
        client.get("cilium/state/", Some(options)).await.unwrap().count()
    };
    // 2 nodes, 3 identities, 10 addresses and the good one, 2 services, 4 slices.
    eventually("the rest is published", async || (count().await == 22).then_some(())).await;
    write("nodes.yaml", "no: [longer, valid");
    server.line("nodes.yaml: the document at line 1 does not parse");
    assert_eq!(count().await, 22, "what was published stays: {}", server.log());
}

#[tokio::test]
async fn a_remote_with_another_ca_or_a_broken_file_is_named_and_the_others_are_mirrored() {
    let (tls, strange) = (Tls::new(), Tls::new());
    let hk = serve(&tls, &["--manifests=examples/tokyo-hk/hk-cluster".to_owned()]);
    let remotes = tls.path("remotes");
    std::fs::create_dir_all(&remotes).unwrap();
    let remote = tls.ca.client("remote", "remote").unwrap();
    tls.client_file(&remotes.join("a"), &hk.address(), &remote);
    let text = std::fs::read_to_string(remotes.join("a")).unwrap();
    std::fs::write(
        remotes.join("wrong-ca"),
        text.replace(tls.ca.path().to_str().unwrap(), strange.ca.path().to_str().unwrap()),
    )
    .unwrap();
    std::fs::write(remotes.join("no-cert"), text.replace("remote.crt", "absent.crt")).unwrap();
    std::fs::write(remotes.join("not-yaml"), "endpoints: [").unwrap();
    std::fs::write(remotes.join("Bad_Name"), &text).unwrap();
    let own = serve(
        &tls,
        &[
            "--cluster-name=b".to_owned(),
            "--cluster-id=2".to_owned(),
            format!("--clustermesh-config={}", remotes.display()),
            "--manifests=examples/tokyo-hk/tokyo-cluster".to_owned(),
        ],
    );
    let wrong = own.line("cluster_name=wrong-ca");
    assert!(
        wrong.contains("invalid peer certificate") && wrong.contains("remotes/wrong-ca"),
        "{wrong}"
    );
    let absent = own.line("cluster_name=no-cert");
    assert!(absent.contains("absent.crt"), "{absent}");
    assert!(
        own.line("cluster_name=not-yaml")
            .contains("not-yaml is not an etcd client configuration")
    );
    assert!(own.line("Bad_Name").contains("invalid cluster name"));
    let mut client = tls.client(&own.address(), "admin-b").await;
    eventually("the good one is mirrored", async || {
        let nodes = client
            .get("cilium/cache/nodes/v1/a/", Some(GetOptions::new().with_prefix()))
            .await
            .unwrap();
        (nodes.kvs().len() == 2).then_some(())
    })
    .await;
}

async fn fails(args: &[&str], code: i32, parts: &[&str]) {
    let mut process = Process::start(args);
    let (status, _) = process.ended().await;
    let log = eventually("the reason is printed", async || {
        let log = process.log();
        parts.iter().all(|p| log.contains(p)).then_some(log)
    })
    .await;
    assert_eq!(status.code(), Some(code), "{log}");
}

#[tokio::test]
async fn what_cannot_start_says_why_and_exits() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("--listen-client-urls=http://{}", taken.local_addr().unwrap());
    let advertise = "--advertise-client-urls=http://127.0.0.1:1";
    let address = taken.local_addr().unwrap().to_string();
    fails(&["etcd", &url, advertise], 1, &["cannot listen on", &address, "in use"]).await;
    let tls = [
        "--listen-client-urls=https://127.0.0.1:0",
        advertise,
        "--cert-file=/absent.crt",
        "--key-file=/absent.key",
    ];
    fails(
        &[&["etcd"][..], &tls].concat(),
        1,
        &["cannot read certificate /absent.crt"],
    )
    .await;
    fails(&["etcd", "--no-such-flag"], 2, &["--no-such-flag"]).await;
    fails(&["serve", "--no-such-flag"], 1, &["--no-such-flag"]).await;
    fails(&["serve", "--cluster-name=a"], 1, &["ClusterID 0 is reserved"]).await;
    fails(
        &["clustermesh", "--cluster-name=A", "--cluster-id=1"],
        255,
        &["level=fatal", "invalid cluster name: "],
    )
    .await;
    let cluster = ["clustermesh", "--cluster-name=a", "--cluster-id=1"];
    fails(
        &[&cluster[..], &["--kvstore-opt=etcd.color=red"]].concat(),
        255,
        &["etcd.color"],
    )
    .await;
    fails(
        &[&cluster[..], &["--kvstore="]].concat(),
        255,
        &["KVStore client not configured"],
    )
    .await;
    let lease = ["--kvstore-opt=etcd.address=http://x:1", "--kvstore-lease-ttl=1s"];
    fails(
        &[&cluster[..], &lease].concat(),
        255,
        &["kvstore-lease-ttl does not lie in required range"],
    )
    .await;
}

#[tokio::test]
async fn a_missing_directory_stops_the_process_and_is_named() {
    let tls = Tls::new();
    for (flag, part) in [
        ("--manifests=/absent/m", "/absent/m"),
        ("--clustermesh-config=/absent/c", "/absent/c"),
    ] {
        let manifests = "--manifests=examples/tokyo-hk/hk-cluster".to_owned();
        let mut process = match flag.starts_with("--manifests") {
            true => serve(&tls, &[flag.to_owned()]),
            false => serve(&tls, &[manifests, flag.to_owned()]),
        };
        let (status, _) = process.ended().await;
        assert_eq!(status.code(), Some(1));
        process.line(part);
    }
}
