//! SIGTERM ends every subcommand within five seconds, with status 0.

use crate::support::{Process, Tls, etcd, free_port};
use std::time::Duration;

async fn ends(mut process: Process, ready: &str) {
    process.line(ready);
    process.signal("-TERM");
    let (status, took) = process.ended().await;
    assert!(status.success(), "{status}:\n{}", process.log());
    assert!(took < Duration::from_secs(5), "{took:?}");
}

#[tokio::test]
async fn etcd_ends_on_sigterm() {
    ends(etcd(&Tls::new(), &[]), "ready to serve client requests").await;
}

#[tokio::test]
async fn serve_ends_on_sigterm() {
    let tls = Tls::new();
    let mut args = [
        "serve",
        "--cluster-name=a",
        "--cluster-id=1",
        "--health-port=0",
        "--manifests=examples/tokyo-hk/hk-cluster",
    ]
    .map(str::to_owned)
    .to_vec();
    args.extend(tls.flags());
    let args: Vec<_> = args.iter().map(String::as_str).collect();
    ends(Process::start(&args), "serving etcd clients").await;
}

#[tokio::test]
async fn the_drop_ins_end_on_sigterm_even_while_they_wait_for_their_store() {
    let absent = format!("--kvstore-opt=etcd.address=http://127.0.0.1:{}", free_port());
    let health = format!("--health-port={}", free_port());
    let cluster = ["--cluster-name=a", "--cluster-id=1", &absent, &health];
    let publisher = [
        &["clustermesh", "--manifests=examples/tokyo-hk/hk-cluster"][..],
        &cluster,
    ]
    .concat();
    ends(Process::start(&publisher), "cannot reach the store").await;
    let api = format!("--api-serve-addr=127.0.0.1:{}", free_port());
    let mirror = [&["kvstoremesh", "--clustermesh-config=/tmp", &api][..], &cluster].concat();
    ends(Process::start(&mirror), "cannot reach the store").await;
}

#[tokio::test]
async fn the_demo_ends_on_sigint() {
    let mut demo = Process::start(&["demo"]);
    demo.line("Ctrl-C stops");
    demo.signal("-INT");
    let (status, took) = demo.ended().await;
    assert!(
        status.success() && took < Duration::from_secs(5),
        "{status} after {took:?}"
    );
}
