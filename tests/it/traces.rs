//! Proves that one write can be followed by its trace: from the Kubernetes event or the manifest through the stores of both clusters
//! to the watcher, over all processes, and that a collector that is away costs nothing but its spans.

use crate::support::admin::Admin;
use crate::support::collector::{Collector, Span};
use crate::support::files::{copy_directory, example, free_port};
use crate::support::kubernetes_api::{KubernetesApi, NODES};
use crate::support::mesh::{Mirror, RemoteStore, client_files, write_client_files};
use crate::support::tls::etcd;
use crate::support::{Process, Tls, eventually, isthmus};
use etcd_client::{Client, WatchOptions, WatchStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The key of a node of the example under its cluster's own prefix, and the same key in a mirror.
const PUBLISHED: &str = "cilium/state/nodes/v1/tokyo-cluster/";
const MIRRORED: &str = "cilium/cache/nodes/v1/tokyo-cluster/";

/// A `serve` with the example's manifests of the cluster `name`, which traces all writes.
struct Cluster {
    process: Process,
    manifests: PathBuf,
    remotes: PathBuf,
    admin: Admin,
}

fn serve(tls: &Tls, name: &str, id: u32, collector: &Collector) -> Cluster {
    let (manifests, remotes) = (
        tls.path(&format!("{name}-manifests")),
        tls.path(&format!("{name}-remotes")),
    );
    copy_directory(&example(name), &manifests);
    std::fs::create_dir_all(&remotes).unwrap();
    let admin = Admin::new();
    let process = isthmus(["serve"])
        .args([format!("--cluster-name={name}"), format!("--cluster-id={id}")])
        .arg(format!("--manifests={}", manifests.display()))
        .arg(format!("--clustermesh-config={}", remotes.display()))
        .args([admin.api_flag(), admin.health_flag(), admin.metrics_flag()])
        .args(collector.flags())
        .args(tls.flags())
        .start();
    Cluster {
        process,
        manifests,
        remotes,
        admin,
    }
}

async fn watch(client: &mut Client, prefix: &str) -> WatchStream {
    let options = WatchOptions::new().with_prefix();
    client.watch(prefix, Some(options)).await.unwrap()
}

/// Waits for an event whose value contains `text`; returns its revision.
async fn event(watch: &mut WatchStream, text: &str) -> i64 {
    loop {
        let message = watch.message().await.unwrap().unwrap();
        for event in message.events() {
            let kv = event.kv().unwrap();
            if kv.value_str().unwrap().contains(text) {
                return kv.mod_revision();
            }
        }
    }
}

fn find<'a>(trace: &'a [Span], name: &str, instance: &str) -> Option<&'a Span> {
    trace.iter().find(|span| span.name == name && span.instance == instance)
}

/// Gives the node with one address another one.
fn move_a_node(manifests: &Path, from: &str, to: &str) {
    let file = manifests.join("nodes.yaml");
    let text = std::fs::read_to_string(&file).unwrap();
    assert!(text.contains(from), "{text}");
    std::fs::write(&file, text.replace(from, to)).unwrap();
}

#[tokio::test]
async fn a_write_is_followed_from_the_manifest_to_the_watcher_of_the_other_cluster() {
    let (tls, collector) = (Tls::new(), Collector::start().await);
    let tokyo = serve(&tls, "tokyo-cluster", 1, &collector);
    let hk = serve(&tls, "hk-cluster", 2, &collector);
    let remote = tls.ca.client("remote", "remote").unwrap();
    let (tokyo_at, hk_at) = (tokyo.process.address().await, hk.process.address().await);
    tls.client_file(&hk.remotes.join("tokyo-cluster"), &tokyo_at, &remote);
    tls.client_file(&tokyo.remotes.join("hk-cluster"), &hk_at, &remote);
    tokyo.admin.ready().await;
    hk.admin.ready().await;
    let mut agent = tls.client(&hk_at, "local-hk-cluster").await;
    eventually("the nodes are mirrored", async || {
        let found = agent
            .get(MIRRORED, Some(etcd_client::GetOptions::new().with_prefix()))
            .await;
        (found.unwrap().kvs().len() == 3).then_some(())
    })
    .await;
    let mut watch = watch(&mut agent, MIRRORED).await;
    move_a_node(&tokyo.manifests, "172.18.1.11", "172.18.77.77");
    let mirrored_at = event(&mut watch, "172.18.77.77").await.to_string();

    let is_end = |span: &Span| {
        span.name == "watch send" && span.attributes["isthmus.revision"] == mirrored_at && span.instance == "hk-cluster"
    };
    let names = [
        ("publish", "tokyo-cluster"),
        ("write", "tokyo-cluster"),
        ("watch send", "tokyo-cluster"),
        ("mirror", "hk-cluster"),
        ("watch send", "hk-cluster"),
        ("all watchers", "tokyo-cluster"),
        ("all watchers", "hk-cluster"),
    ];
    let is_complete = |trace: &[Span]| {
        names
            .iter()
            .all(|(name, instance)| find(trace, name, instance).is_some())
    };
    let trace = collector.trace("the whole trace arrives", is_end, is_complete).await;
    let of = |name, instance| find(&trace, name, instance).unwrap();

    let root = of("publish", "tokyo-cluster");
    assert!(root.parent.is_empty(), "{root:?}");
    for span in trace.iter().filter(|span| *span != root) {
        assert_eq!(span.parent, root.id, "{span:?}");
        assert!(span.start <= span.end, "{span:?}");
    }
    assert_eq!(root.service, "isthmus-serve");
    let write = of("write", "tokyo-cluster");
    assert!(write.attributes["isthmus.key"].starts_with(PUBLISHED), "{write:?}");
    assert_eq!(write.attributes["isthmus.writer"], "publisher");
    let to_mirror = of("watch send", "tokyo-cluster");
    assert_eq!(to_mirror.attributes["isthmus.user"], "remote");
    assert_eq!(to_mirror.attributes["isthmus.prefix"], PUBLISHED);
    assert_eq!(
        to_mirror.attributes["isthmus.revision"],
        write.attributes["isthmus.revision"]
    );
    let mirror = of("mirror", "hk-cluster");
    assert_eq!(mirror.attributes["isthmus.remote_cluster"], "tokyo-cluster");
    assert_eq!(mirror.attributes["isthmus.revision"], mirrored_at);
    let to_agent = of("watch send", "hk-cluster");
    assert_eq!(to_agent.attributes["isthmus.user"], "local-hk-cluster");
    assert!(to_agent.attributes["isthmus.key"].starts_with(MIRRORED), "{to_agent:?}");
    // All clocks are those of this machine.
    let order = [
        root.start,
        write.start,
        to_mirror.start,
        to_mirror.end,
        mirror.start,
        to_agent.start,
        to_agent.end,
    ];
    assert!(order.is_sorted(), "{order:?} of {trace:#?}");

    // The same leg is measured without traces, of one commit in a second.
    let series = "cilium_kvstoremesh_remote_cluster_delivery_seconds_count{target_cluster=\"tokyo-cluster\"}";
    let mut at = "172.18.77.77".to_owned();
    let mut moves = 0;
    eventually("the delivery is measured", async || {
        moves += 1;
        let to = format!("172.18.78.{moves}");
        move_a_node(&tokyo.manifests, &at, &to);
        event(&mut watch, &to).await;
        at = to;
        tokio::time::sleep(Duration::from_millis(600)).await;
        hk.admin.metric(series).await.filter(|count| *count >= 1.0)
    })
    .await;
    let status = isthmus(["kvstoremesh-dbg", "status", "-H", &hk.admin.api_address()])
        .run()
        .text();
    assert!(
        status.contains("└  from the commit here to the last watcher: p50 "),
        "{status}"
    );
}

/// Publisher, store, mirror and the store that it writes to are processes of their own here, as in Cilium's pod.
#[tokio::test]
async fn an_object_of_kubernetes_is_followed_through_separate_processes_to_the_watcher() {
    let (tls, collector) = (Tls::new(), Collector::start().await);
    let api = KubernetesApi::with_golden_objects().await;
    let store = |name: &str| etcd(&tls).args(collector.flags()).arg(format!("--name={name}")).start();
    let (there, here) = (store("store-there"), store("store-here"));
    let (there_at, here_at) = (there.address().await, here.address().await);
    let config = tls.path("publisher.yaml");
    tls.client_file(&config, &there_at, &tls.ca.client("publisher", "admin-c3").unwrap());
    let _publisher = isthmus(["clustermesh", "--cluster-name=c3", "--cluster-id=3"])
        .arg(format!("--kvstore-opt=etcd.config={}", config.display()))
        .arg(format!("--k8s-api-server-urls={}", api.url))
        .arg(Admin::new().health_flag())
        .args(collector.flags())
        .start();
    let remote = tls.ca.client("remote", "remote").unwrap();
    tls.client_file(&client_files(&tls).join("c3"), &there_at, &remote);
    let flags = collector.flags();
    let mirror = Mirror::start(&tls, &here_at, &[&flags[0], &flags[1]]);
    mirror.mirrors(1).await;
    let mut agent = tls.client(&here_at, "local-agent").await;
    let mut watch = watch(&mut agent, "cilium/cache/nodes/v1/c3/").await;
    let changed = jiff::Timestamp::now().as_nanosecond();
    let node = serde_json::json!({"metadata": {"name": "n9", "resourceVersion": "99"}, "spec": {}});
    api.apply(NODES, node);
    let mirrored_at = event(&mut watch, "n9").await.to_string();

    let names = [
        ("publish", "c3"),
        ("write", "c3"),
        ("commit", "store-there"),
        ("watch send", "store-there"),
        ("all watchers", "store-there"),
        ("mirror", "local"),
    ];
    let has = |trace: &[Span], names: &[(&str, &str)]| names.iter().all(|(name, of)| find(trace, name, of).is_some());
    let is_mirror = |span: &Span| span.name == "mirror" && span.attributes["isthmus.revision"] == mirrored_at;
    let first = collector
        .trace("the trace of the remote revision arrives", is_mirror, |trace| {
            has(trace, &names)
        })
        .await;
    let of = |name, instance| find(&first, name, instance).unwrap();
    let (root, write, commit) = (of("publish", "c3"), of("write", "c3"), of("commit", "store-there"));
    let (sent, mirror) = (of("watch send", "store-there"), of("mirror", "local"));
    for span in first.iter().filter(|span| *span != root) {
        assert_eq!(span.parent, root.id, "{span:?}");
    }
    for span in [root, write, commit, sent] {
        assert_eq!(
            span.attributes["isthmus.key"], "cilium/state/nodes/v1/c3/n9",
            "{span:?}"
        );
    }
    let copy = "cilium/cache/nodes/v1/c3/n9";
    for span in [root, write, sent] {
        assert_eq!(
            span.attributes["isthmus.revision"], commit.attributes["isthmus.revision"],
            "{span:?}"
        );
    }
    assert_eq!(
        (&*commit.attributes["isthmus.user"], &*sent.attributes["isthmus.user"]),
        ("admin-c3", "remote")
    );
    assert_eq!(mirror.attributes["isthmus.remote_cluster"], "c3");
    assert_eq!(mirror.attributes["isthmus.key"], copy);

    // The mirror's span links to the trace of its write in the store here, which ends with the watcher.
    let is_commit = |span: &Span| {
        span.name == "commit" && span.attributes["isthmus.revision"] == mirrored_at && span.instance == "store-here"
    };
    let sends = [("watch send", "store-here"), ("all watchers", "store-here")];
    let second = collector
        .trace("the trace of the mirrored revision arrives", is_commit, |trace| {
            has(trace, &sends)
        })
        .await;
    let (copied, told) = (
        find(&second, "commit", "store-here").unwrap(),
        find(&second, "watch send", "store-here").unwrap(),
    );
    assert_eq!(mirror.links, std::slice::from_ref(&copied.trace));
    assert_eq!(told.attributes["isthmus.user"], "local-agent");
    assert_eq!(told.attributes["isthmus.key"], copy);
    // All clocks are those of this machine.
    let order = [
        root.start,
        write.start,
        commit.start,
        sent.end,
        mirror.start,
        copied.start,
        told.end,
    ];
    assert!(
        order.is_sorted() && changed <= i128::from(root.start),
        "{changed} {order:?}"
    );
}

#[tokio::test]
async fn processes_that_know_nothing_of_each_other_tell_of_the_same_trace() {
    let (tls, collector) = (Tls::new(), Collector::start().await);
    let remote = RemoteStore::start(&tls, "tokyo-cluster").await;
    let mut publisher = remote.fill(&tls, 1).await;
    let store = etcd(&tls).args(collector.flags()).arg("--name=store").start();
    let address = store.address().await;
    write_client_files(&tls, &[&remote]);
    let flags = collector.flags();
    let mirror = Mirror::start(&tls, &address, &[&flags[0], &flags[1]]);
    mirror.mirrors(1).await;
    let mut agent = tls.client(&address, "agent").await;
    let mut watch = watch(&mut agent, MIRRORED).await;
    publisher
        .put(format!("{PUBLISHED}n3"), "the new node", None)
        .await
        .unwrap();
    let revision = event(&mut watch, "the new node").await.to_string();

    let is_commit = |span: &Span| span.name == "commit" && span.attributes["isthmus.revision"] == revision;
    let is_complete = |trace: &[Span]| find(trace, "watch send", "store").is_some();
    let trace = collector
        .trace("the store tells of the write", is_commit, is_complete)
        .await;
    let commit = find(&trace, "commit", "store").unwrap();
    assert_eq!(
        (&*commit.service, &*commit.attributes["rpc.method"]),
        ("isthmus-etcd", "Txn")
    );
    assert_eq!(commit.attributes["isthmus.user"], "admin");
    // The store of the remote cluster does not trace, and yet the mirror goes on with the trace of its revision.
    let told = eventually("the mirror tells of the write", async || {
        let all = collector.spans().into_iter();
        let mut mirrors = all.filter(|span| span.name == "mirror");
        mirrors.find(|span| span.attributes["isthmus.revision"] == revision)
    })
    .await;
    assert_eq!((&*told.service, &*told.instance), ("isthmus-kvstoremesh", "local"));
    assert_ne!(told.trace, commit.trace);
    assert_eq!(
        told.links,
        std::slice::from_ref(&commit.trace),
        "it links to what the store tells"
    );
}

#[tokio::test]
async fn a_collector_that_is_away_costs_its_spans_only() {
    let store = isthmus([
        "etcd",
        "--listen-client-urls=http://127.0.0.1:0",
        "--advertise-client-urls=http://127.0.0.1:2379",
    ])
    .arg(format!("--otlp-endpoint=http://127.0.0.1:{}", free_port()))
    .arg("--otlp-sample=1")
    .start();
    let mut client = crate::support::store::plain_client(&store.address().await).await;
    for n in 0..100 {
        client.put(format!("k{n}"), "v", None).await.unwrap();
    }
    store.line("spans were lost: the collector did not take them").await;
    client.put("last", "v", None).await.unwrap();
    store.signal(crate::support::Signal::SIGTERM);
    assert_eq!(store.ended().await.code(), Some(0));
}

#[test]
fn an_endpoint_or_a_share_that_cannot_be_is_refused() {
    for (flag, says) in [
        ("--otlp-endpoint=not a url", "--otlp-endpoint"),
        ("--otlp-sample=2", "is not a number from 0 to 1"),
    ] {
        let refused = isthmus(["etcd", flag]).run();
        assert!(
            !refused.succeeded() && refused.text().contains(says),
            "{}",
            refused.text()
        );
    }
}
