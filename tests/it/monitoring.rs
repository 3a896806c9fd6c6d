//! The rules and dashboards in `deploy/monitoring` name metrics that exist: those of the reference, and those on the page of a
//! running mesh.

use crate::support::admin::Admin;
use crate::support::files::example;
use crate::support::mesh::{RemoteStore, write_client_files};
use crate::support::tls::etcd;
use crate::support::{Tls, eventually, http, isthmus};
use etcd_client::{Client, WatchOptions};
use isthmus::model::probe::Probe;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The beginning of the metrics that only a replica has.
const REPLICA: &str = "isthmus_follow_";

/// Metrics that are not on the page of `serve` in good health, or of a process with manifests, and where they are.
const ELSEWHERE: [&str; 4] = [
    // A process that follows a Kubernetes API.
    "cilium_clustermesh_apiserver_kubernetes_up",
    // A mirror of an etcd, which has to be elected.
    "cilium_kvstoremesh_leader_election_master_status",
    // A mirror that has refused a key.
    "cilium_kvstoremesh_remote_cluster_keys_refused_total",
    // The store's own page.
    "etcd_server_has_leader",
];

fn repository() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn text(path: &str) -> String {
    std::fs::read_to_string(repository().join(path)).unwrap()
}

/// The expressions of the rules.
fn rule_expressions() -> Vec<String> {
    let rules: serde_json::Value = serde_saphyr::from_str(&text("deploy/monitoring/alerts.yaml")).unwrap();
    let groups = rules["groups"].as_array().unwrap();
    let rules = groups.iter().flat_map(|group| group["rules"].as_array().unwrap());
    rules.map(|rule| rule["expr"].as_str().unwrap().to_owned()).collect()
}

/// The expressions of the dashboards' panels and variables.
fn dashboard_expressions() -> Vec<String> {
    let mut expressions = vec![];
    for entry in std::fs::read_dir(repository().join("deploy/monitoring/dashboards")).unwrap() {
        let dashboard: serde_json::Value =
            serde_json::from_str(&std::fs::read_to_string(entry.unwrap().path()).unwrap()).unwrap();
        for panel in dashboard["panels"].as_array().unwrap() {
            let targets = panel["targets"].as_array().map(Vec::as_slice).unwrap_or_default();
            expressions.extend(targets.iter().map(|target| target["expr"].as_str().unwrap().to_owned()));
        }
        let variables = dashboard["templating"]["list"].as_array().unwrap();
        let queries = variables.iter().filter(|variable| variable["type"] == "query");
        expressions.extend(queries.map(|variable| variable["definition"].as_str().unwrap().to_owned()));
    }
    expressions
}

/// The metrics that an expression names. Names of both processes in one pattern are two names.
fn names(expression: &str) -> BTreeSet<String> {
    let both = "(clustermesh_apiserver|kvstoremesh)";
    let expressions = match expression.contains(both) {
        true => ["clustermesh_apiserver", "kvstoremesh"]
            .map(|one| expression.replace(both, one))
            .to_vec(),
        false => vec![expression.to_owned()],
    };
    let mut found = BTreeSet::new();
    for expression in expressions {
        let words = expression.split(|c: char| !c.is_ascii_alphanumeric() && c != '_' && c != ':');
        let prefixes = ["cilium_", "etcd_", "isthmus_", "process_", "grpc_"];
        let metrics = words.filter(|word| prefixes.iter().any(|prefix| word.starts_with(prefix)));
        found.extend(metrics.map(str::to_owned));
    }
    found
}

fn all_names() -> BTreeSet<String> {
    let expressions = rule_expressions().into_iter().chain(dashboard_expressions());
    let found: BTreeSet<_> = expressions.flat_map(|expression| names(&expression)).collect();
    assert!(found.len() > 40, "only {} metrics are named", found.len());
    found
}

/// The name of the family: a histogram has three kinds of samples.
fn family(name: &str) -> &str {
    let ends = ["_bucket", "_sum", "_count"];
    ends.iter().find_map(|end| name.strip_suffix(end)).unwrap_or(name)
}

#[test]
fn rules_and_dashboards_name_metrics_of_the_reference() {
    let reference = text("docs/metrics.md");
    // The reference says which metrics of the publisher the mirror has under its own prefix.
    let described = |name: &str| {
        let twin = name.replace("cilium_kvstoremesh_", "cilium_clustermesh_apiserver_");
        [name, &twin]
            .iter()
            .any(|name| reference.contains(&format!("`{name}`")))
    };
    let missing: Vec<_> = all_names()
        .into_iter()
        .filter(|name| !described(family(name)))
        .collect();
    assert!(missing.is_empty(), "docs/metrics.md does not have {missing:?}");
}

#[test]
fn the_rules_are_those_of_the_chart_and_each_is_tested_and_listed() {
    let (rules, chart) = (
        text("deploy/monitoring/alerts.yaml"),
        text("deploy/helm/isthmus/files/alerts.yaml"),
    );
    let (_, rules) = rules.split_once("\ngroups:\n").unwrap();
    assert!(
        rules == chart,
        "deploy/monitoring/alerts.yaml and the chart's files/alerts.yaml differ"
    );
    let (tests, list) = (text("deploy/monitoring/alerts_test.yaml"), text("docs/installing.md"));
    let alerts: Vec<_> = rules
        .lines()
        .filter_map(|line| line.trim().strip_prefix("- alert: "))
        .collect();
    assert!(alerts.len() > 20);
    for alert in alerts {
        for case in ["fires", "does not fire"] {
            assert!(
                tests.contains(&format!("name: {alert} {case}\n")),
                "no test in which {alert} {case}"
            );
        }
        assert!(
            list.contains(&format!("| `{alert}` |")),
            "docs/installing.md does not list {alert}"
        );
    }
}

/// A scope with rules for all that the metrics tell of.
const SCOPE: &str = "apiVersion: scope.isthmus.io/v1
kind: Scope
export:
  endpoints:
    rules:
    - {name: no-batch, action: exclude, namespaces: {names: [\"batch-*\"]}}
import:
  clusters:
  - name: all
    clusters: [\"*\"]
    endpoints:
      rules:
      - {name: no-batch, action: exclude, namespaces: {names: [\"batch-*\"]}}
";

/// Writes a probe, a change and a heartbeat into the stores of two remote clusters every second, for ever: one has probes, and of
/// the other only the heartbeat is known.
async fn live(mut with_probes: Client, mut without: Client) {
    let mut tick = tokio::time::interval(Duration::from_secs(1));
    for n in 0_i64.. {
        tick.tick().await;
        let now = jiff::Timestamp::now();
        let probe = Probe {
            run: 1,
            unix_micros: now.as_microsecond(),
            run_micros: n * 1_000_000,
            ..Probe::default()
        };
        let of_first = [
            ("cilium/state/probe/v1/hk-cluster", probe.to_json()),
            ("cilium/state/nodes/v1/hk-cluster/n2", format!("node {n}").into_bytes()),
        ];
        for (key, value) in of_first {
            with_probes.put(key, value, None).await.unwrap();
        }
        let heartbeat = now.strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
        without.put("cilium/.heartbeat", heartbeat, None).await.unwrap();
    }
}

#[tokio::test]
async fn a_mesh_serves_the_metrics_of_rules_and_dashboards() {
    let (tls, admin) = (Tls::new(), Admin::new());
    let hk = RemoteStore::start(&tls, "hk-cluster").await;
    let osaka = RemoteStore::start(&tls, "osaka-cluster").await;
    let clients = (hk.fill(&tls, 2).await, osaka.fill(&tls, 3).await);
    let remotes = write_client_files(&tls, &[&hk, &osaka]);
    let (data, scope): (&Path, &Path) = (&tls.path("data"), &tls.path("scope.yaml"));
    std::fs::write(scope, SCOPE).unwrap();
    let serve = isthmus(["serve", "--cluster-name=tokyo-cluster", "--cluster-id=1"])
        .arg(format!("--manifests={}", example("tokyo-cluster").display()))
        .arg(format!("--clustermesh-config={}", remotes.display()))
        .arg(format!("--data-dir={}", data.display()))
        .arg(format!("--scope={}", scope.display()))
        .args([admin.health_flag(), admin.metrics_flag(), admin.api_flag()])
        .args(tls.flags())
        .start();
    admin.ready().await;
    let mut agent = tls.client(&serve.address().await, "local-tokyo-cluster").await;
    let options = WatchOptions::new().with_prefix();
    let _watch = agent.watch("cilium/cache/", Some(options)).await.unwrap();
    let _live = tokio::spawn(live(clients.0, clients.1));
    let is_here = |name: &String| !ELSEWHERE.contains(&name.as_str()) && !name.starts_with(REPLICA);
    serves(&admin, &all_names().into_iter().filter(is_here).collect()).await;
}

#[tokio::test]
async fn a_replica_serves_the_metrics_of_its_rules() {
    let (tls, admin) = (Tls::new(), Admin::new());
    let upstream = etcd(&tls).start();
    let (file, pair) = (tls.path("upstream.yaml"), tls.ca.client("replica", "replica").unwrap());
    tls.client_file(&file, &upstream.address().await, &pair);
    let _replica = isthmus(["serve", "--cluster-name=tokyo-cluster", "--cluster-id=1"])
        .arg(format!("--manifests={}", example("tokyo-cluster").display()))
        .arg(format!("--follow={}", file.display()))
        .args([admin.health_flag(), admin.metrics_flag(), admin.api_flag()])
        .args(tls.flags())
        .start();
    admin.ready().await;
    let of_replica: BTreeSet<_> = all_names()
        .into_iter()
        .filter(|name| name.starts_with(REPLICA))
        .collect();
    assert!(of_replica.len() > 6, "{of_replica:?}");
    serves(&admin, &of_replica).await;
}

/// Waits until the page of metrics has all of these names.
async fn serves(admin: &Admin, wanted: &BTreeSet<String>) {
    let mut missing = vec![];
    let complete = async || {
        let page = http::get(&admin.metrics_url()).await.ok()?.body;
        let has = |name: &&String| {
            page.lines().any(|line| {
                line.strip_prefix(name.as_str())
                    .is_some_and(|rest| rest.starts_with(['{', ' ']))
            })
        };
        missing = wanted.iter().filter(|name| !has(name)).cloned().collect();
        missing.is_empty().then_some(())
    };
    if tokio::time::timeout(Duration::from_secs(20), eventually("all metrics are served", complete))
        .await
        .is_err()
    {
        panic!("not on the page of metrics: {missing:?}");
    }
}
