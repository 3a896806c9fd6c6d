//! Proves that the publisher follows a Kubernetes API into an etcd: lists, watches, selectors, expired watches,
//! outages of either side, restarts, rate limits, and its metrics.

use crate::support::admin::Admin;
use crate::support::kubernetes_api::{ENDPOINTS, EXPORTS, IDENTITIES, KubernetesApi, NAMESPACES, NODES, TooLarge};
use crate::support::store::{message, names};
use crate::support::tls::etcd;
use crate::support::{Process, Signal, Tls, eventually, isthmus};
use ::http::StatusCode;
use etcd_client::WatchOptions;
use serde_json::json;

/// A publisher of the cluster `c3` with id 3.
struct Publisher {
    process: Process,
    admin: Admin,
}

impl Publisher {
    /// Starts a publisher of the Kubernetes API at `api` into the etcd at `store`, with more flags.
    fn start(tls: &Tls, store: &str, api: &str, flags: &[&str]) -> Self {
        let config = tls.path("etcd.yaml");
        tls.client_file(&config, store, &tls.ca.client("admin", "admin").unwrap());
        let admin = Admin::new();
        let process = isthmus(["clustermesh", "--cluster-name=c3", "--cluster-id=3"])
            .arg("--controller-group-metrics=all")
            .arg(format!("--kvstore-opt=etcd.config={}", config.display()))
            .arg(format!("--k8s-api-server-urls={api}"))
            .args([admin.health_flag(), admin.metrics_flag()])
            .args(flags)
            .start();
        Self { process, admin }
    }

    /// The value of a series, by its name without the common prefix.
    async fn metric(&self, series: &str) -> Option<f64> {
        self.admin
            .metric(&format!("cilium_clustermesh_apiserver_{series}"))
            .await
    }
}

#[tokio::test]
async fn objects_of_a_kubernetes_api_are_published_and_followed() {
    let api = KubernetesApi::with_golden_objects().await;
    let tls = Tls::new();
    let store = etcd(&tls).start();
    let _publisher = Publisher::start(&tls, &store.address().await, &api.url, &[]);
    let mut client = tls.client(&store.address().await, "any").await;
    let mut names = async |prefix: &str| names(&mut client, prefix).await;
    eventually("all canaries are there", async || {
        (names("cilium/synced/c3/").await.len() == 6).then_some(())
    })
    .await;
    assert_eq!(names("cilium/state/nodes/v1/c3/").await, ["n1", "n2"]);
    assert_eq!(
        names("cilium/state/ip/v1/default/").await,
        ["10.0.0.1", "10.0.0.2", "fd00::a"]
    );
    assert_eq!(names("cilium/state/services/v1/c3/").await, ["foo/hl", "foo/s1"]);
    let requests = api.requests().join("\n");
    assert!(
        requests.contains("/api/v1/services?&labelSelector=%21service.kubernetes.io%2Fservice-proxy-name"),
        "{requests}"
    );
    assert!(
        requests.contains("managed-by%21%3Dendpointslice-mesh-controller.cilium.io"),
        "{requests}"
    );
    assert!(!requests.contains("secrets"));

    api.delete(NODES, "n2");
    api.apply(
        NODES,
        json!({"metadata": {"name": "n3", "resourceVersion": "11"}, "spec": {}}),
    );
    eventually("changes are followed", async || {
        (names("cilium/state/nodes/v1/c3/").await == ["n1", "n3"]).then_some(())
    })
    .await;

    // Only the list after an expired watch shows this deletion.
    api.delete_without_event(NODES, "n1");
    api.expire_watches(NODES);
    eventually("the new list is compared with the published keys", async || {
        (names("cilium/state/nodes/v1/c3/").await == ["n3"]).then_some(())
    })
    .await;

    let private = json!({"metadata": {"name": "foo", "resourceVersion": "12", "annotations": {"clustermesh.cilium.io/global": "false"}}});
    api.apply(NAMESPACES, private);
    eventually("the keys of a namespace that is not global are deleted", async || {
        (names("cilium/state/ip/").await.is_empty() && names("cilium/state/services/").await.is_empty()).then_some(())
    })
    .await;
}

/// Case B1 from the field.
#[tokio::test]
async fn objects_are_listed_anew_after_the_api_was_restored_from_a_backup() {
    for answer in [TooLarge::Status, TooLarge::Event] {
        let api = KubernetesApi::with_golden_objects().await;
        let tls = Tls::new();
        let store = etcd(&tls).start();
        let publisher = Publisher::start(&tls, &store.address().await, &api.url, &[]);
        publisher.admin.ready().await;
        let mut client = tls.client(&store.address().await, "any").await;
        api.delete_without_event(NODES, "n2");
        api.restore(NODES, answer);
        let begun = tokio::time::Instant::now();
        eventually("the objects of the backup are published", async || {
            (names(&mut client, "cilium/state/nodes/v1/c3/").await == ["n1"]).then_some(())
        })
        .await;
        assert!(begun.elapsed().as_secs() < 5, "{answer:?}: {:?}", begun.elapsed());
        api.apply(
            NODES,
            json!({"metadata": {"name": "n3", "resourceVersion": "4"}, "spec": {}}),
        );
        eventually("changes are followed", async || {
            (names(&mut client, "cilium/state/nodes/v1/c3/").await == ["n1", "n3"]).then_some(())
        })
        .await;
    }
}

#[tokio::test]
async fn service_exports_are_published_as_soon_as_their_definition_exists() {
    let api = KubernetesApi::with_golden_objects().await;
    let definition = "serviceexports.multicluster.x-k8s.io";
    api.undefine(definition);
    let tls = Tls::new();
    let store = etcd(&tls).start();
    let publisher = Publisher::start(
        &tls,
        &store.address().await,
        &api.url,
        &["--clustermesh-enable-mcs-api"],
    );
    let mut client = tls.client(&store.address().await, "any").await;
    publisher.admin.ready().await;
    let canary = "cilium/synced/c3/cilium/state/serviceexports/v1";
    assert_eq!(
        names(&mut client, canary).await.len(),
        1,
        "the canary must not wait for a definition that may never come"
    );
    assert!(!api.requests().iter().any(|request| request.starts_with(EXPORTS)));
    api.define(definition);
    eventually("exports are published", async || {
        let exports = names(&mut client, "cilium/state/serviceexports/v1/c3/").await;
        (exports == ["foo/hl", "foo/s1"]).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_restart_writes_only_what_changed_in_the_meantime() {
    let api = KubernetesApi::with_golden_objects().await;
    let tls = Tls::new();
    let store = etcd(&tls).start();
    let mut client = tls.client(&store.address().await, "any").await;
    let publisher = Publisher::start(&tls, &store.address().await, &api.url, &[]);
    publisher.admin.ready().await;
    drop(publisher);
    let options = WatchOptions::new().with_prefix();
    let mut watch = client.watch("cilium/state/", Some(options)).await.unwrap();
    api.delete_without_event(IDENTITIES, "196915");
    let publisher = Publisher::start(&tls, &store.address().await, &api.url, &[]);
    publisher.admin.ready().await;
    // The publisher adopts the leases of the configuration and of the data, which may be one lease. The heartbeat may
    // get a lease before the adoption.
    let leases = publisher.metric("kvstore_leases").await.unwrap();
    assert!((2.0..=3.0).contains(&leases), "{leases}");
    // The last event that the watch waits for.
    client.put("cilium/state/end", "", None).await.unwrap();
    let mut seen = vec![];
    while seen.last().is_none_or(|key| key != "cilium/state/end") {
        let message = message(&mut watch).await;
        let keys = message
            .events()
            .iter()
            .map(|e| e.kv().unwrap().key_str().unwrap().to_owned());
        seen.extend(keys);
    }
    assert_eq!(seen, ["cilium/state/identities/v1/id/196915", "cilium/state/end"]);
}

#[tokio::test]
async fn an_outage_of_kubernetes_or_of_the_store_is_reported_and_loses_no_key() {
    let api = KubernetesApi::with_golden_objects().await;
    let tls = Tls::new();
    let data = format!("--data-dir={}", tls.path("data").display());
    let store = etcd(&tls).arg(data).start();
    let address = store.address().await;
    let publisher = Publisher::start(&tls, &address, &api.url, &["--k8s-heartbeat-timeout=1s"]);
    publisher.admin.ready().await;
    let mut client = tls.client(&address, "any").await;
    let before = names(&mut client, "cilium/state/").await;
    assert!(publisher.metric("bootstrap_seconds").await.unwrap() > 0.0);
    let nodes = publisher.metric("kubernetes_objects{resource=\"CiliumNode\"}").await;
    assert_eq!(nodes, Some(2.0));
    let initial = "kvstore_initial_sync_completed{scope=\"nodes/v1\",source_cluster=\"c3\",action=\"write\"}";
    assert_eq!(publisher.metric(initial).await, Some(1.0));

    // Published data remains valid while the Kubernetes API is unreachable, so the publisher stays ready.
    api.fail();
    api.expire_watches(ENDPOINTS);
    api.expire_watches(NODES);
    eventually("a metric shows the outage of the Kubernetes API", async || {
        (publisher.metric("kubernetes_up").await == Some(0.0)).then_some(())
    })
    .await;
    assert_eq!(publisher.admin.readyz("").await.unwrap().status, StatusCode::OK);
    api.delete_without_event(NODES, "n2");
    api.recover();
    eventually("the publisher catches up", async || {
        (names(&mut client, "cilium/state/nodes/v1/c3/").await == ["n1"]).then_some(())
    })
    .await;

    // A change during an outage of the store is written when the store is back.
    store.signal(Signal::SIGSTOP);
    api.apply(
        NODES,
        json!({"metadata": {"name": "n9", "resourceVersion": "20"}, "spec": {}}),
    );
    eventually("readiness shows the outage of the store", async || {
        let answer = publisher.admin.readyz("").await?;
        (answer.status == StatusCode::INTERNAL_SERVER_ERROR).then_some(())
    })
    .await;
    let report = publisher.admin.readyz("?verbose").await.unwrap().body;
    assert!(report.contains("[-]store failed: for "), "{report}");
    let age = "kvstore_sync_queue_age_seconds{scope=\"nodes/v1\",source_cluster=\"c3\"}";
    assert!(publisher.metric(age).await.unwrap() > 1.0);
    store.signal(Signal::SIGCONT);
    eventually("the change is written", async || {
        (names(&mut client, "cilium/state/nodes/v1/c3/").await == ["n1", "n9"]).then_some(())
    })
    .await;
    publisher.admin.ready().await;
    let after = names(&mut client, "cilium/state/").await;
    let gone: Vec<_> = before.iter().filter(|name| !after.contains(name)).collect();
    assert_eq!(gone, ["nodes/v1/c3/n2"]);
    let log = publisher.process.log();
    let complaints = log.lines().filter(|line| line.contains("level=warn")).count();
    assert!(complaints < 30, "{log}");
}

#[tokio::test]
async fn a_low_rate_limit_slows_the_publisher_and_loses_no_key() {
    let api = KubernetesApi::with_golden_objects().await;
    let tls = Tls::new();
    let store = etcd(&tls).start();
    let begun = tokio::time::Instant::now();
    let publisher = Publisher::start(&tls, &store.address().await, &api.url, &["--kvstore-opt=etcd.qps=4"]);
    publisher.admin.ready().await;
    let mut client = tls.client(&store.address().await, "any").await;
    let written = names(&mut client, "cilium/state/").await.len();
    // Four operations at once, and then four per second.
    assert!(
        written > 8 && begun.elapsed().as_secs_f64() > (written - 4) as f64 / 4.0,
        "{written}"
    );
    let limit = "api_limiter_rate_limit{api_call=\"etcd\",value=\"limit\"}";
    assert_eq!(publisher.metric(limit).await, Some(4.0));
}
