//! The publisher over a Kubernetes API: lists, watches, selectors, a watch that breaks; what it shows of itself.

use crate::fake_api::{ENDPOINTS, EXPORTS, FakeApi, IDENTITIES, NAMESPACES, NODES, fill};
use crate::support::{Process, Tls, etcd, eventually, free_port};
use etcd_client::{Client, GetOptions, WatchOptions};
use serde_json::json;
use std::process::Command;
use std::sync::atomic::Ordering;

/// A publisher into an etcd, and where it shows itself.
struct Publisher {
    process: Process,
    health: u16,
    metrics: u16,
}

impl Publisher {
    fn start(tls: &Tls, store: &str, api: &str, more: &[&str]) -> Self {
        let config = tls.path("etcd.yaml");
        tls.client_file(&config, store, &tls.ca.client("admin", "admin").unwrap());
        let (health, metrics) = (free_port(), free_port());
        let (store, health_port) = (
            format!("--kvstore-opt=etcd.config={}", config.display()),
            format!("--health-port={health}"),
        );
        let (urls, shown) = (
            format!("--k8s-api-server-urls={api}"),
            format!("--prometheus-serve-addr=127.0.0.1:{metrics}"),
        );
        let mut args = vec![
            "clustermesh",
            "--cluster-name=c3",
            "--cluster-id=3",
            "--controller-group-metrics=all",
        ];
        args.extend([&*store, &*health_port, &*urls, &*shown]);
        args.extend(more);
        let process = Process::start(&args);
        Self {
            process,
            health,
            metrics,
        }
    }

    /// The body of `/readyz` and its code.
    fn readyz(&self, query: &str) -> (String, String) {
        let text = curl(&[
            "-w",
            " %{http_code}",
            &format!("http://127.0.0.1:{}/readyz{query}", self.health),
        ]);
        let (body, code) = text.rsplit_once(' ').unwrap_or_default();
        (body.to_owned(), code.to_owned())
    }

    async fn ready(&self) {
        eventually("it is ready", async || (self.readyz("").0 == "Ready").then_some(())).await;
    }

    /// The value of a series, by its name with labels.
    fn metric(&self, series: &str) -> Option<f64> {
        let page = curl(&[&format!("http://127.0.0.1:{}/metrics", self.metrics)]);
        let line = page
            .lines()
            .find(|l| l.rsplit_once(' ').is_some_and(|(name, _)| name == series))?;
        line.rsplit_once(' ')?.1.parse().ok()
    }
}

fn curl(args: &[&str]) -> String {
    let out = Command::new("curl").arg("-s").args(args).output().unwrap();
    String::from_utf8(out.stdout).unwrap()
}

async fn names(client: &mut Client, prefix: &str) -> Vec<String> {
    let options = GetOptions::new().with_prefix().with_keys_only();
    let kvs = client.get(prefix, Some(options)).await.unwrap();
    let name = |kv: &etcd_client::KeyValue| kv.key_str().unwrap()[prefix.len()..].to_owned();
    kvs.kvs().iter().map(name).collect()
}

#[tokio::test]
async fn objects_of_a_kubernetes_api_are_published_and_followed() {
    let (api, url) = FakeApi::start().await;
    fill(&api);
    let tls = Tls::new();
    let store = etcd(&tls, &[]);
    let publisher = Publisher::start(&tls, &store.address(), &url, &[]);
    let mut client = tls.client(&store.address(), "any").await;
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
    let requests = api.0.requests.lock().join("\n");
    assert!(
        requests.contains("/api/v1/services?&labelSelector=%21service.kubernetes.io%2Fservice-proxy-name"),
        "{requests}"
    );
    assert!(
        requests.contains("managed-by%21%3Dendpointslice-mesh-controller.cilium.io"),
        "{requests}"
    );
    assert!(!requests.contains("secrets"));

    api.delete(NODES, "n2", true);
    api.apply(
        NODES,
        json!({"metadata": {"name": "n3", "resourceVersion": "11"}, "spec": {}}),
    );
    eventually("changes are followed", async || {
        (names("cilium/state/nodes/v1/c3/").await == ["n1", "n3"]).then_some(())
    })
    .await;

    // Gone while nobody was watching: the next list tells.
    api.delete(NODES, "n1", false);
    api.forget(NODES);
    eventually("a new list is a diff", async || {
        (names("cilium/state/nodes/v1/c3/").await == ["n3"]).then_some(())
    })
    .await;

    let private = json!({"metadata": {"name": "foo", "resourceVersion": "12", "annotations": {"clustermesh.cilium.io/global": "false"}}});
    api.apply(NAMESPACES, private);
    eventually("a namespace takes its keys along", async || {
        (names("cilium/state/ip/").await.is_empty() && names("cilium/state/services/").await.is_empty()).then_some(())
    })
    .await;
    drop(publisher);
}

const OURS: &str = "cilium_clustermesh_apiserver";

#[tokio::test]
async fn exports_are_published_once_their_definition_comes() {
    let (api, url) = FakeApi::start().await;
    fill(&api);
    api.0
        .undefined
        .lock()
        .push("serviceexports.multicluster.x-k8s.io".to_owned());
    let tls = Tls::new();
    let store = etcd(&tls, &[]);
    let publisher = Publisher::start(&tls, &store.address(), &url, &["--clustermesh-enable-mcs-api"]);
    let mut client = tls.client(&store.address(), "any").await;
    publisher.ready().await;
    let canary = "cilium/synced/c3/cilium/state/serviceexports/v1";
    assert_eq!(
        names(&mut client, canary).await.len(),
        1,
        "readers do not wait for what may never come"
    );
    assert!(!api.0.requests.lock().iter().any(|r| r.starts_with(EXPORTS)));
    api.0.undefined.lock().clear();
    eventually("exports are published", async || {
        let exports = names(&mut client, "cilium/state/serviceexports/v1/c3/").await;
        (exports == ["foo/hl", "foo/s1"]).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_restart_changes_nothing_and_what_went_meanwhile_goes() {
    let (api, url) = FakeApi::start().await;
    fill(&api);
    let tls = Tls::new();
    let store = etcd(&tls, &[]);
    let mut client = tls.client(&store.address(), "any").await;
    let publisher = Publisher::start(&tls, &store.address(), &url, &[]);
    publisher.ready().await;
    drop(publisher);
    let options = WatchOptions::new().with_prefix();
    let mut watch = client.watch("cilium/state/", Some(options)).await.unwrap();
    api.delete(IDENTITIES, "196915", false);
    let publisher = Publisher::start(&tls, &store.address(), &url, &[]);
    publisher.ready().await;
    // Those of the configuration and of the data, which may be the same, are taken over; the heartbeat does not wait
    // for that.
    let leases = publisher.metric(&format!("{OURS}_kvstore_leases")).unwrap();
    assert!((2.0..=3.0).contains(&leases), "{leases}");
    // Something after the restart, to know that everything before it has been seen.
    client.put("cilium/state/end", "", None).await.unwrap();
    let mut seen = vec![];
    while seen.last().is_none_or(|key| key != "cilium/state/end") {
        let message = watch.message().await.unwrap().unwrap();
        let keys = message
            .events()
            .iter()
            .map(|e| e.kv().unwrap().key_str().unwrap().to_owned());
        seen.extend(keys);
    }
    assert_eq!(seen, ["cilium/state/identities/v1/id/196915", "cilium/state/end"]);
}

#[tokio::test]
async fn what_is_away_shows_and_costs_no_key() {
    let (api, url) = FakeApi::start().await;
    fill(&api);
    let tls = Tls::new();
    let data = tls.path("data");
    let flag = format!("--data-dir={}", data.display());
    let store = etcd(&tls, &[&flag]);
    let address = store.address();
    let publisher = Publisher::start(&tls, &address, &url, &["--k8s-heartbeat-timeout=1s"]);
    publisher.ready().await;
    let mut client = tls.client(&address, "any").await;
    let before = names(&mut client, "cilium/state/").await;
    assert!(publisher.metric(&format!("{OURS}_bootstrap_seconds")).unwrap() > 0.0);
    assert_eq!(
        publisher.metric(&format!("{OURS}_kubernetes_objects{{resource=\"CiliumNode\"}}")),
        Some(2.0)
    );
    let initial = "kvstore_initial_sync_completed{scope=\"nodes/v1\",source_cluster=\"c3\",action=\"write\"}";
    assert_eq!(publisher.metric(&format!("{OURS}_{initial}")), Some(1.0));

    // The Kubernetes API: what was published stays right, so it stays ready.
    api.0.away.store(true, Ordering::Relaxed);
    api.forget(ENDPOINTS);
    api.forget(NODES);
    eventually("the loss of the API shows", async || {
        (publisher.metric(&format!("{OURS}_kubernetes_up")) == Some(0.0)).then_some(())
    })
    .await;
    assert_eq!(publisher.readyz("").1, "200");
    api.delete(NODES, "n2", false);
    api.0.away.store(false, Ordering::Relaxed);
    eventually("it catches up", async || {
        (names(&mut client, "cilium/state/nodes/v1/c3/").await == ["n1"]).then_some(())
    })
    .await;

    // The store: a change waits, and is written when it is back.
    store.signal("-STOP");
    api.apply(
        NODES,
        json!({"metadata": {"name": "n9", "resourceVersion": "20"}, "spec": {}}),
    );
    eventually("the loss of the store shows", async || {
        (publisher.readyz("").1 == "500").then_some(())
    })
    .await;
    let report = publisher.readyz("?verbose").0;
    assert!(report.contains("[-]store failed: for "), "{report}");
    let age = format!("{OURS}_kvstore_sync_queue_age_seconds{{scope=\"nodes/v1\",source_cluster=\"c3\"}}");
    assert!(publisher.metric(&age).unwrap() > 1.0);
    store.signal("-CONT");
    eventually("the change is written", async || {
        (names(&mut client, "cilium/state/nodes/v1/c3/").await == ["n1", "n9"]).then_some(())
    })
    .await;
    publisher.ready().await;
    let after = names(&mut client, "cilium/state/").await;
    let gone: Vec<_> = before.iter().filter(|name| !after.contains(name)).collect();
    assert_eq!(gone, ["nodes/v1/c3/n2"]);
    let log = publisher.process.log();
    let complaints = log.lines().filter(|line| line.contains("level=warn")).count();
    assert!(complaints < 30, "{log}");
}

#[tokio::test]
async fn a_low_limit_slows_and_loses_nothing() {
    let (api, url) = FakeApi::start().await;
    fill(&api);
    let tls = Tls::new();
    let store = etcd(&tls, &[]);
    let begun = tokio::time::Instant::now();
    let publisher = Publisher::start(&tls, &store.address(), &url, &["--kvstore-opt=etcd.qps=4"]);
    publisher.ready().await;
    let mut client = tls.client(&store.address(), "any").await;
    let written = names(&mut client, "cilium/state/").await.len();
    // Four at once, and then four a second.
    assert!(
        written > 8 && begun.elapsed().as_secs_f64() > (written - 4) as f64 / 4.0,
        "{written}"
    );
    let limit = format!("{OURS}_api_limiter_rate_limit{{api_call=\"etcd\",value=\"limit\"}}");
    assert_eq!(publisher.metric(&limit), Some(4.0));
}
