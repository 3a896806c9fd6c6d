use super::*;
use crate::kvstore::client::Options;
use crate::kvstore::local::LocalBackend;
use crate::mvcc::{Store, Write};

fn put(key: &str, value: &str) -> Write {
    Write::Put(key.to_owned().into(), value.to_owned().into())
}

/// The mirrored keys of a cluster.
fn mirrored(name: &str) -> Vec<Write> {
    vec![
        put(
            &format!("cilium/cluster-config/{name}"),
            r#"{"id":1,"capabilities":{"cached":true,"syncedCanaries":true}}"#,
        ),
        put(&format!("cilium/synced/{name}/cilium/cache/nodes/v1"), "now"),
        put(&format!("cilium/cache/nodes/v1/{name}/n1"), "node"),
        put(&format!("cilium/cache/ip/v1/{name}/default/10.0.0.1"), "ip"),
    ]
}

fn start(store: &Arc<Store>, directory: &std::path::Path, former: Duration, life: &Lifecycle) -> Arc<Mesh> {
    let config = Config {
        cluster: ClusterInfo::new("own", 9, 255).unwrap(),
        directory: directory.to_owned(),
        cache_ttl: Duration::ZERO,
        per_cluster_ready_timeout: Duration::ZERO,
        global_ready_timeout: Duration::ZERO,
        drain_grace: Duration::from_millis(50),
        former_grace: former,
        drain: true,
        legacy_services: true,
        keys_max: 1000,
        changes: Default::default(),
        remotes: Options::default(),
        imports: None,
    };
    let backend = Arc::new(LocalBackend::new(Arc::clone(store)));
    Mesh::start(config, backend, &kvstore::Metrics::default(), &Ready::default(), life)
}

#[tokio::test]
async fn what_is_left_of_clusters_that_left_before_the_start_is_removed() {
    let (store, directory, life) = (Store::new(), tempfile::tempdir().unwrap(), Lifecycle::default());
    for name in ["here", "gone"] {
        store.apply(&mirrored(name));
    }
    // An interrupted removal has left the last canary.
    store.apply(&[
        put("cilium/synced/half/cilium/cache/endpointslices/v1", "now"),
        put("cilium/cache/nodes/v1/half/n1", "node"),
    ]);
    // The own keys of this cluster, and the configuration of another cluster that is not mirrored.
    store.apply(&[
        put("cilium/cluster-config/own", r#"{"id":9,"capabilities":{}}"#),
        put("cilium/synced/own/cilium/state/nodes/v1", "now"),
        put("cilium/cluster-config/other", r#"{"id":3,"capabilities":{}}"#),
    ]);
    std::fs::write(directory.path().join("here"), "endpoints: [\"http://127.0.0.1:1\"]").unwrap();
    let mesh = start(&store, directory.path(), Duration::from_millis(50), &life);
    let keys = || -> Vec<String> {
        let all = crate::mvcc::RangeOptions::new(crate::mvcc::KeyRange::all());
        let kvs = store.range(&all).unwrap().kvs;
        kvs.iter()
            .map(|kv| String::from_utf8_lossy(kv.key()).into_owned())
            .collect()
    };
    let begun = tokio::time::Instant::now();
    while keys().iter().any(|k| k.contains("gone") || k.contains("half")) {
        assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", keys());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let left = keys();
    assert_eq!(left.len(), 4 + 3, "{left:?}");
    assert_eq!(mesh.clusters().len(), 1);
    life.stop();
    assert_eq!(life.stopped(Duration::from_secs(5)).await, None);
}

/// No mirrored key is removed if the client file appears within the grace period after the start.
#[tokio::test]
async fn a_cluster_whose_file_comes_late_keeps_its_mirror() {
    let (store, directory, life) = (Store::new(), tempfile::tempdir().unwrap(), Lifecycle::default());
    store.apply(&mirrored("late"));
    let mesh = start(&store, directory.path(), Duration::from_secs(3), &life);
    let listed = async || {
        let begun = tokio::time::Instant::now();
        while mesh.members.lock().is_empty() {
            assert!(begun.elapsed() < Duration::from_secs(20));
            tokio::task::yield_now().await;
        }
    };
    listed().await;
    mesh.set(ClusterName::new("late").unwrap(), directory.path().join("late"), None);
    tokio::time::sleep(Duration::from_secs(4)).await;
    assert_eq!(store.revision(), 2, "nothing was written or deleted");
    life.stop();
    assert_eq!(life.stopped(Duration::from_secs(5)).await, None);
}
