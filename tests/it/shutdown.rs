//! Proves that SIGTERM or SIGINT ends every long-running subcommand within five seconds, with exit code 0.

use crate::support::admin::Admin;
use crate::support::files::{example, free_port};
use crate::support::tls::etcd;
use crate::support::{CommandLine, Signal, Tls, isthmus};
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(5);

/// Starts a command, waits for the log line `running`, and ends the process with `signal`.
async fn ends(command: CommandLine, running: &str, signal: Signal) {
    let process = command.start();
    process.line(running).await;
    process.signal(signal);
    let status = process.ended_within(LIMIT).await;
    assert!(status.success(), "{status}:\n{}", process.log());
}

#[tokio::test]
async fn etcd_ends_on_sigterm() {
    let tls = Tls::new();
    ends(etcd(&tls), "ready to serve client requests", Signal::SIGTERM).await;
}

#[tokio::test]
async fn serve_ends_on_sigterm() {
    let tls = Tls::new();
    let serve = isthmus(["serve", "--cluster-name=a", "--cluster-id=1", "--health-port=0"])
        .arg(format!("--manifests={}", example("hk-cluster").display()))
        .args(tls.flags());
    ends(serve, "serving etcd clients", Signal::SIGTERM).await;
}

/// A subcommand that waits for a store which does not exist.
fn without_a_store(subcommand: &str) -> CommandLine {
    let absent = format!("--kvstore-opt=etcd.address=http://127.0.0.1:{}", free_port());
    isthmus([subcommand, "--cluster-name=a", "--cluster-id=1"])
        .arg(absent)
        .arg(Admin::new().health_flag())
}

#[tokio::test]
async fn the_publisher_ends_on_sigterm_while_the_store_is_unreachable() {
    let publisher = without_a_store("clustermesh").arg(format!("--manifests={}", example("hk-cluster").display()));
    ends(publisher, "cannot reach the store", Signal::SIGTERM).await;
}

#[tokio::test]
async fn the_mirror_ends_on_sigterm_while_the_store_is_unreachable() {
    let mirror = without_a_store("kvstoremesh")
        .arg("--clustermesh-config=/tmp")
        .arg(Admin::new().api_flag());
    ends(mirror, "cannot reach the store", Signal::SIGTERM).await;
}

#[tokio::test]
async fn the_demo_ends_on_sigint() {
    ends(isthmus(["demo"]), "Ctrl-C stops", Signal::SIGINT).await;
}
