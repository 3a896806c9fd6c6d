//! Proves that a scope file decides what a cluster exports: from the first write on, across edits, mistakes and restarts, and
//! without a moment in which a key is gone that is wanted before and after.

use crate::support::admin::Admin;
use crate::support::files::{copy_directory, example};
use crate::support::store::{names, next_events, plain_client, plain_etcd, prefix, values};
use crate::support::{PATIENCE, Process, Tls, eventually, isthmus};
use etcd_client::{Client, EventType, WatchOptions};
use serde_json::Value;
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use tokio::time::timeout;

const ADDRESSES: &str = "cilium/state/ip/v1/default/";
const IDENTITIES: &str = "cilium/state/identities/v1/id/";

/// A cluster whose objects and scope can be edited.
struct Cluster {
    tls: Tls,
    admin: Admin,
    manifests: PathBuf,
    scope: PathBuf,
}

impl Cluster {
    fn new() -> Self {
        let tls = Tls::new();
        let manifests = tls.path("manifests");
        copy_directory(&example("hk-cluster"), &manifests);
        let scope = tls.path("scope.yaml");
        Self {
            tls,
            admin: Admin::new(),
            manifests,
            scope,
        }
    }

    fn serve(&self) -> Process {
        isthmus(["serve", "--cluster-name=hk-cluster", "--cluster-id=2"])
            .arg("--propagation-probe-interval=0")
            .arg(format!("--manifests={}", self.manifests.display()))
            .arg(format!("--scope={}", self.scope.display()))
            .arg(format!("--data-dir={}", self.tls.path("data").display()))
            .args([self.admin.health_flag(), self.admin.metrics_flag()])
            .args(self.tls.flags())
            .start()
    }

    async fn client(&self, process: &Process) -> Client {
        self.tls.client(&process.address().await, "admin-hk-cluster").await
    }

    /// Replaces the scope file as a careful editor does.
    fn write(&self, sections: &str) {
        write(&self.scope, sections);
    }

    /// Waits until the readiness report has this text.
    async fn reports(&self, text: &str) {
        eventually(text, async || {
            let report = self.admin.readyz("?verbose").await?;
            report.body.contains(text).then_some(())
        })
        .await;
    }
}

fn write(path: &Path, sections: &str) {
    let text = format!("apiVersion: scope.isthmus.io/v1\nkind: Scope\n{sections}");
    let new = path.with_extension("new");
    fs::write(&new, text).unwrap();
    fs::rename(new, path).unwrap();
}

/// Waits until exactly these addresses are published.
async fn addresses(client: &mut Client, wanted: &[&str]) {
    let mut wanted: Vec<_> = wanted.iter().map(|w| (*w).to_owned()).collect();
    wanted.sort();
    eventually(&format!("addresses {wanted:?}"), async || {
        (names(client, ADDRESSES).await == wanted).then_some(())
    })
    .await;
}

const CATALOG: [&str; 4] = ["10.2.0.21", "10.2.1.21", "fd00:10:2:1::15", "fd00:10:2::15"];
const FRONTEND: [&str; 2] = ["10.2.0.22", "fd00:10:2::16"];
const GATEWAY: [&str; 4] = ["10.2.0.23", "10.2.1.22", "fd00:10:2:1::16", "fd00:10:2::17"];

#[tokio::test]
async fn serve_waits_for_a_valid_scope_file() {
    let cluster = Cluster::new();
    let serve = cluster.serve();
    let mut client = cluster.client(&serve).await;
    cluster.reports("scope.yaml: the file does not exist").await;
    assert!(!cluster.admin.is_ready().await);
    cluster.write("export: {endpoint: {}}\n");
    cluster.reports("unknown field `endpoint`").await;
    assert!(!cluster.admin.is_ready().await);
    assert!(
        serve.log().contains("nothing is exported or imported until it can"),
        "{}",
        serve.log()
    );
    assert!(names(&mut client, "cilium/state/").await.is_empty());
    assert!(names(&mut client, "cilium/cluster-config/").await.is_empty());
    assert_eq!(cluster.admin.metric("isthmus_scope_file_valid").await, Some(0.0));

    cluster.write("region: apac\nexport: {endpoints: {default: exclude}}\n");
    cluster.admin.ready().await;
    assert!(names(&mut client, ADDRESSES).await.is_empty());
    assert_eq!(names(&mut client, IDENTITIES).await, ["132079", "132086", "132093"]);
    let config = values(&mut client, "cilium/cluster-config/hk-cluster").await;
    let config = &config["cilium/cluster-config/hk-cluster"];
    assert!(config.ends_with(r#"},"region":"apac"}"#), "{config}");
    assert_eq!(cluster.admin.metric("isthmus_scope_file_valid").await, Some(1.0));
    let left_out = r#"isthmus_scope_exported_keys{kind="endpoints",decision="left-out",rule="(default)"}"#;
    assert_eq!(cluster.admin.metric(left_out).await, Some(10.0));

    cluster.write("region: emea\nexport: {endpoints: {default: exclude}}\n");
    eventually("the region is published", async || {
        let config = values(&mut client, "cilium/cluster-config/hk-cluster").await;
        config["cilium/cluster-config/hk-cluster"]
            .contains("emea")
            .then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_scope_that_changes_deletes_no_key_that_stays_wanted() {
    let cluster = Cluster::new();
    cluster.write("");
    let serve = cluster.serve();
    let mut client = cluster.client(&serve).await;
    cluster.admin.ready().await;
    let all: BTreeSet<_> = values(&mut client, "cilium/state/").await.into_keys().collect();
    let options = WatchOptions::new().with_prefix();
    let mut watch = client.clone().watch("cilium/state/", Some(options)).await.unwrap();

    // Narrower, by services; then by identity; wider, with a mistake in between; by labels of a namespace.
    let backends = "{name: backends, action: include, backendsOfGlobalServices: true}";
    cluster.write(&format!(
        "export: {{endpoints: {{default: exclude, rules: [{backends}]}}}}\n"
    ));
    addresses(&mut client, &[CATALOG, GATEWAY].concat()).await;
    let frontend = "{name: frontend, action: include, identity: {matchLabels: {app: frontend}}}";
    cluster.write(&format!(
        "export: {{identities: used, endpoints: {{default: exclude, rules: [{frontend}, {backends}]}}}}\n"
    ));
    addresses(&mut client, &[&CATALOG[..], &GATEWAY, &FRONTEND].concat()).await;
    let payments = "{name: payments, action: exclude, namespaces: {names: [pay*]}}";
    cluster.write(&format!(
        "export: {{identities: used, endpoints: {{rules: [{payments}]}}, services: {{rules: [{payments}]}}}}\n"
    ));
    addresses(&mut client, &[&CATALOG[..], &FRONTEND].concat()).await;
    eventually("the identity of payments is not used", async || {
        (names(&mut client, IDENTITIES).await == ["132079", "132086"]).then_some(())
    })
    .await;
    assert_eq!(
        names(&mut client, "cilium/state/services/v1/hk-cluster/").await,
        ["shop/catalog"]
    );
    cluster.write("export: {services: {default: drop}}\n");
    cluster.reports("export.services.default: unknown variant `drop`").await;
    assert!(cluster.admin.is_ready().await, "a later mistake costs no readiness");
    let label = "{name: prod, action: include, namespaces: {labels: {matchLabels: {env: prod}}}}";
    cluster.write(&format!(
        "export: {{endpoints: {{default: exclude, rules: [{label}]}}}}\n"
    ));
    addresses(&mut client, &[]).await;
    let namespaces = cluster.manifests.join("namespaces.yaml");
    let text = fs::read_to_string(&namespaces).unwrap();
    let labelled = text.replace("  name: shop\n", "  name: shop\n  labels: {env: prod}\n");
    assert_ne!(labelled, text);
    fs::write(&namespaces, labelled).unwrap();
    addresses(&mut client, &[&CATALOG[..], &FRONTEND].concat()).await;
    cluster.write("");
    addresses(&mut client, &[&CATALOG[..], &GATEWAY, &FRONTEND].concat()).await;
    client.put("cilium/state/last", "1", None).await.unwrap();

    // Each state that was waited for is a step; a key that is in two steps in a row must not go in between.
    let (mut deleted, mut put) = (vec![], vec![]);
    'events: loop {
        let message = timeout(PATIENCE, watch.message()).await.unwrap().unwrap().unwrap();
        for event in message.events() {
            let key = event.kv().unwrap().key_str().unwrap().to_owned();
            if key == "cilium/state/last" {
                break 'events;
            }
            match event.event_type() {
                EventType::Delete => deleted.push(key),
                EventType::Put => put.push(key),
            }
        }
    }
    // Deleted: the frontend once and again with the labels, payments with its service, slices and identity, the catalog
    // with the labels. So nothing is deleted twice but the frontend, payments' addresses, and what came back.
    let count = |keys: &[String], end: &str| keys.iter().filter(|key| key.ends_with(end)).count();
    for ip in CATALOG {
        assert_eq!((count(&deleted, ip), count(&put, ip)), (1, 1), "{ip}");
    }
    for ip in FRONTEND {
        assert_eq!((count(&deleted, ip), count(&put, ip)), (2, 2), "{ip}");
    }
    for ip in GATEWAY {
        assert_eq!((count(&deleted, ip), count(&put, ip)), (1, 1), "{ip}");
    }
    for end in ["/132079", "/132086", "/shop/catalog", "/shop/catalog-v4"] {
        assert_eq!((count(&deleted, end), count(&put, end)), (0, 0), "{end}");
    }
    for end in ["/132093", "/payments/gateway", "/payments/gateway-v4"] {
        assert_eq!((count(&deleted, end), count(&put, end)), (1, 1), "{end}");
    }
    let now: BTreeSet<_> = values(&mut client, "cilium/state/").await.into_keys().collect();
    let last = BTreeSet::from(["cilium/state/last".to_owned()]);
    assert_eq!(now, &all | &last);
}

#[tokio::test]
async fn a_restart_with_a_scope_writes_nothing_and_forgets_nothing() {
    let cluster = Cluster::new();
    let gateway = "{name: gateway, action: include, identity: {matchLabels: {app: gateway}}}";
    cluster.write(&format!(
        "region: apac\nexport: {{identities: used, endpoints: {{default: exclude, rules: [{gateway}]}}}}\n"
    ));
    let serve = cluster.serve();
    let mut client = cluster.client(&serve).await;
    cluster.admin.ready().await;
    addresses(&mut client, &GATEWAY).await;
    // The addresses stay, although nobody knows any more what they are.
    let identities = cluster.manifests.join("identities.yaml");
    let text = fs::read_to_string(&identities).unwrap();
    fs::write(&identities, text.replace("\"132093\"", "\"132094\"")).unwrap();
    eventually("the identity is gone", async || {
        names(&mut client, IDENTITIES).await.is_empty().then_some(())
    })
    .await;
    addresses(&mut client, &GATEWAY).await;
    let before = client.get("cilium/state/", prefix()).await.unwrap();
    assert!(serve.terminate().await.success());

    let again = cluster.serve();
    let mut client = cluster.client(&again).await;
    let from = before.header().unwrap().revision() + 1;
    let options = WatchOptions::new().with_start_revision(from).with_prefix();
    let mut watch = client.clone().watch("cilium/state/", Some(options)).await.unwrap();
    cluster.admin.ready().await;
    client.put("cilium/state/last", "1", None).await.unwrap();
    let message = next_events(&mut watch).await;
    let keys = message.events().iter().map(|e| e.kv().unwrap().key_str().unwrap());
    assert_eq!(
        keys.collect::<Vec<_>>(),
        ["cilium/state/last"],
        "unchanged keys were written"
    );
    addresses(&mut client, &GATEWAY).await;
}

#[tokio::test]
async fn clustermesh_exports_to_an_etcd_what_the_scope_says() {
    let cluster = Cluster::new();
    cluster.write(
        "region: apac\nexport: {endpoints: {rules: [{name: shop, action: exclude, namespaces: {names: [shop]}}]}}\n",
    );
    let etcd = plain_etcd().start();
    let mut client = plain_client(&etcd.address().await).await;
    let config = cluster.tls.path("etcd.config");
    fs::write(&config, format!("endpoints:\n- {}\n", etcd.address().await)).unwrap();
    // Regional addresses have one field more.
    let endpoints = cluster.manifests.join("endpoints.yaml");
    let text = fs::read_to_string(&endpoints).unwrap();
    let regional = "  namespace: payments\n  annotations: {clustermesh.cilium.io/sync-scope: regional}\n";
    fs::write(&endpoints, text.replacen("  namespace: payments\n", regional, 1)).unwrap();
    let _clustermesh = isthmus(["clustermesh", "--cluster-name=hk-cluster", "--cluster-id=2"])
        .arg(format!("--kvstore-opt=etcd.config={}", config.display()))
        .arg(format!("--manifests={}", cluster.manifests.display()))
        .arg(format!("--scope={}", cluster.scope.display()))
        .args([cluster.admin.health_flag()])
        .start();
    cluster.admin.ready().await;
    addresses(&mut client, &GATEWAY).await;
    let all = values(&mut client, ADDRESSES).await;
    let field = |ip: &str| -> Value {
        let value: Value = serde_json::from_str(&all[&format!("{ADDRESSES}{ip}")]).unwrap();
        value["SyncScope"].clone()
    };
    assert_eq!(field(GATEWAY[0]), "regional");
    assert_eq!(field(GATEWAY[1]), Value::Null);
    let config = values(&mut client, "cilium/cluster-config/").await;
    assert!(
        config["cilium/cluster-config/hk-cluster"].contains(r#""region":"apac""#),
        "{config:?}"
    );
}
