//! Proves that `demo` shows two clusters that mirror each other, with one command.

use crate::support::files::{copy_directory, example};
use crate::support::isthmus;

#[test]
fn both_clusters_are_in_sync_and_the_status_counts_their_objects() {
    let demo = isthmus(["demo", "--once"]).run();
    let out = demo.text();
    assert!(demo.succeeded(), "{out}");
    for part in [
        "tokyo-cluster (id 1)",
        "Published: 3 nodes, 5 identities, 18 endpoints, 1 global service, 2 endpoint slices, 0 service exports",
        "hk-cluster: ready at https://127.0.0.1:",
        "2 nodes, 3 identities, 10 endpoints, 2 global services, 4 endpoint slices, 1 service export — synced in",
        "Both clusters are in sync",
    ] {
        assert!(out.contains(part), "{part:?} is not in:\n{out}");
    }
    // The clusters stop together, so none reports that the other is away.
    assert_eq!(demo.stderr, "");
}

#[tokio::test]
async fn an_edited_manifest_is_mirrored_to_the_other_cluster() {
    let dir = tempfile::tempdir().unwrap();
    for cluster in ["tokyo-cluster", "hk-cluster"] {
        copy_directory(&example(cluster), &dir.path().join(cluster));
    }
    let demo = isthmus(["demo", "--manifests"]).arg(dir.path()).start();
    demo.line("Ctrl-C stops").await;
    let nodes = dir.path().join("hk-cluster/nodes.yaml");
    let text = std::fs::read_to_string(&nodes).unwrap();
    std::fs::write(&nodes, text.replace("name: hkg-node-2", "name: hkg-node-9")).unwrap();
    let put = demo.line("put    cilium/cache/nodes/v1/hk-cluster/hkg-node-9").await;
    assert!(put.contains("tokyo-cluster revision"), "{put}");
    demo.line("delete cilium/cache/nodes/v1/hk-cluster/hkg-node-2").await;
}

#[test]
fn a_demo_that_cannot_start_prints_the_reason() {
    let demo = isthmus(["demo", "--once", "--manifests=/nonexistent"]).run();
    assert!(!demo.succeeded());
    let out = demo.text();
    assert!(
        out.contains("there is no directory /nonexistent/tokyo-cluster"),
        "{out}"
    );
}
