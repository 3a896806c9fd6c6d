//! The main job: two clusters, one command.

use crate::support::{Process, copy_dir};
use std::path::Path;

#[tokio::test]
async fn both_clusters_are_in_sync_and_the_status_says_what_they_have() {
    let mut demo = Process::start(&["demo", "--once"]);
    let (status, _) = demo.ended().await;
    let out = demo.log();
    assert!(status.success(), "{out}");
    for part in [
        "tokyo-cluster (id 1)",
        "Published: 3 nodes, 5 identities, 18 endpoints, 1 global services, 2 endpoint slices, 0 service exports",
        "hk-cluster: ready at https://127.0.0.1:",
        "2 nodes, 3 identities, 10 endpoints, 2 global services, 4 endpoint slices, 1 service exports — synced in",
        "Both clusters are in sync",
    ] {
        assert!(out.contains(part), "{part:?} is not in:\n{out}");
    }
}

#[tokio::test]
async fn an_edited_manifest_shows_up_on_the_other_side() {
    let dir = tempfile::tempdir().unwrap();
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/tokyo-hk");
    for cluster in ["tokyo-cluster", "hk-cluster"] {
        copy_dir(&examples.join(cluster), &dir.path().join(cluster));
    }
    let demo = Process::start(&["demo", "--manifests", dir.path().to_str().unwrap()]);
    demo.line("Ctrl-C stops");
    let nodes = dir.path().join("hk-cluster/nodes.yaml");
    let text = std::fs::read_to_string(&nodes).unwrap();
    std::fs::write(&nodes, text.replace("name: hkg-node-2", "name: hkg-node-9")).unwrap();
    let put = demo.line("put    cilium/cache/nodes/v1/hk-cluster/hkg-node-9");
    assert!(put.contains("tokyo-cluster revision"), "{put}");
    demo.line("delete cilium/cache/nodes/v1/hk-cluster/hkg-node-2");
}

#[tokio::test]
async fn a_demo_that_cannot_start_says_why() {
    let mut demo = Process::start(&["demo", "--once", "--manifests=/nonexistent"]);
    let (status, _) = demo.ended().await;
    assert!(!status.success());
    assert!(
        demo.log().contains("there is no directory /nonexistent/tokyo-cluster"),
        "{}",
        demo.log()
    );
}
