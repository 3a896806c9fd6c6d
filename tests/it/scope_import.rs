//! Proves that a scope file decides which keys of remote clusters are mirrored, while it is edited: just the keys move about
//! which it says something else, nothing else is read from the remote cluster, and no watcher sees a key deleted that is wanted
//! before and after.

use crate::support::admin::Admin;
use crate::support::files::free_port;
use crate::support::mesh::{Mirror, client_files, mirrored};
use crate::support::store::{message, values};
use crate::support::tls::etcd;
use crate::support::{Process, Signal, Tls, eventually, http, isthmus};
use etcd_client::{Client, EventType, WatchOptions, WatchStream};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

const NAMESPACES: [&str; 4] = ["shop", "team-a", "team-b", "batch"];
const APPS: [&str; 2] = ["web", "db"];
/// Endpoints of each namespace.
const ENDPOINTS: usize = 50;
const SPARE: &str = "cilium/state/serviceexports/v1/hk/spare/end";

/// The store of a remote cluster, filled by hand, whose metrics can be read.
struct Remote {
    process: Process,
    client: Client,
    metrics: u16,
}

fn identity(namespace: usize, app: usize) -> usize {
    65_536 + 256 + namespace * APPS.len() + app
}

fn address(namespace: usize, n: usize) -> String {
    format!("10.1.{namespace}.{n}")
}

fn endpoint(namespace: usize, n: usize, pod: &str) -> String {
    let id = identity(namespace, n % APPS.len());
    format!(
        r#"{{"IP":"{}","Mask":null,"HostIP":"172.18.0.2","ID":{id},"Key":0,"Metadata":"","K8sNamespace":"{}","K8sPodName":"{pod}"}}"#,
        address(namespace, n),
        NAMESPACES[namespace]
    )
}

fn service(namespace: usize, backends: &[String]) -> String {
    let backends: Vec<_> = backends
        .iter()
        .map(|address| format!(r#""{address}":{{"http":{{"Protocol":"TCP","Port":80}}}}"#))
        .collect();
    format!(
        r#"{{"cluster":"hk","namespace":"{}","name":"front","frontends":{{}},"backends":{{{}}},"labels":{{}},"selector":{{}},"includeExternal":true,"shared":true,"clusterID":1}}"#,
        NAMESPACES[namespace],
        backends.join(",")
    )
}

impl Remote {
    async fn start(tls: &Tls, configuration: &str) -> Self {
        let (port, metrics) = (free_port(), free_port());
        let url = format!("https://127.0.0.1:{port}");
        let process = isthmus(["etcd"])
            .args(tls.flags())
            .arg(format!("--listen-client-urls={url}"))
            .arg(format!("--advertise-client-urls={url}"))
            .arg(format!("--listen-metrics-urls=http://127.0.0.1:{metrics}"))
            .arg(format!("--data-dir={}", tls.path("hk-data").display()))
            .start();
        process.line("serving client traffic").await;
        let address = format!("127.0.0.1:{port}");
        let directory = client_files(tls);
        tls.client_file(
            &directory.join("hk"),
            &address,
            &tls.ca.client("admin", "admin").unwrap(),
        );
        let client = tls.client(&address, "any").await;
        let mut remote = Self {
            process,
            client,
            metrics,
        };
        remote.fill(configuration).await;
        remote
    }

    async fn fill(&mut self, configuration: &str) {
        self.put("cilium/cluster-config/hk", configuration).await;
        self.put("cilium/.heartbeat", "now").await;
        for (n, namespace) in NAMESPACES.iter().enumerate() {
            for (a, app) in APPS.iter().enumerate() {
                let labels = format!("k8s:app={app};k8s:io.kubernetes.pod.namespace={namespace};");
                self.put(&format!("cilium/state/identities/v1/id/{}", identity(n, a)), &labels)
                    .await;
            }
            for e in 0..ENDPOINTS {
                let key = format!("cilium/state/ip/v1/default/{}", address(n, e));
                self.put(&key, &endpoint(n, e, "pod")).await;
            }
            let backends: Vec<_> = (0..3).map(|e| address(n, e)).collect();
            let key = format!("cilium/state/services/v1/hk/{namespace}/front");
            self.put(&key, &service(n, &backends)).await;
        }
        self.put("cilium/state/nodes/v1/hk/n1", "node").await;
        for kind in [
            "identities",
            "ip",
            "nodes",
            "services",
            "serviceexports",
            "endpointslices",
        ] {
            self.put(&format!("cilium/synced/hk/cilium/state/{kind}/v1"), "now")
                .await;
        }
    }

    async fn put(&mut self, key: &str, value: &str) {
        self.client.put(key, value, None).await.unwrap();
    }

    /// The value of a metric of the store, summed over its labels that contain `labels`.
    async fn metric(&self, name: &str, labels: &str) -> f64 {
        let page = http::get(&format!("http://127.0.0.1:{}/metrics", self.metrics))
            .await
            .unwrap()
            .body;
        let lines = page.lines().filter_map(|line| line.rsplit_once(' '));
        let of_name = |series: &str| series.split('{').next() == Some(name) && series.contains(labels);
        let values = lines.filter(|(series, _)| of_name(series)).map(|(_, value)| value);
        values.map(|value| value.parse::<f64>().unwrap()).sum()
    }
}

/// Replaces the scope file as a careful editor does.
fn write(path: &Path, sections: &str) {
    let text = format!("apiVersion: scope.isthmus.io/v1\nkind: Scope\n{sections}");
    let new = path.with_extension("new");
    fs::write(&new, text).unwrap();
    fs::rename(new, path).unwrap();
}

const CONFIGURATION: &str = r#"{"id":1,"capabilities":{"syncedCanaries":true,"maxConnectedClusters":255,"serviceExportsEnabled":true},"region":"apac"}"#;

/// An entry for clusters of the region that [`CONFIGURATION`] has.
fn entry(rules: &str) -> String {
    format!("import: {{clusters: [{{name: neighbours, regions: [apac], {rules}}}]}}\n")
}

/// A mirror of one remote cluster with a scope file.
struct Rig {
    tls: Tls,
    scope: PathBuf,
    remote: Remote,
    local: Client,
    mirror: Mirror,
    target: Process,
}

/// Adds the keys of the next message of a watch.
async fn take(watch: &mut WatchStream, put: &mut BTreeSet<String>, deleted: &mut BTreeSet<String>) {
    for event in message(watch).await.events() {
        let key = event.kv().unwrap().key_str().unwrap().to_owned();
        match event.event_type() {
            EventType::Put => put.insert(key),
            EventType::Delete => deleted.insert(key),
        };
    }
}

impl Rig {
    async fn start(scope: &str, flags: &[&str]) -> Self {
        let tls = Tls::new();
        let path = tls.path("scope.yaml");
        write(&path, scope);
        let remote = Remote::start(&tls, CONFIGURATION).await;
        let flag = format!("--scope={}", path.display());
        let flags = [&[&*flag], flags].concat();
        let target = etcd(&tls).start();
        let address = target.address().await;
        let mirror = Mirror::start(&tls, &address, &flags);
        mirror.mirrors(1).await;
        let local = tls.client(&address, "any").await;
        Self {
            tls,
            scope: path,
            remote,
            local,
            mirror,
            target,
        }
    }

    /// The number of mirrored endpoints of each namespace.
    async fn endpoints(&mut self) -> BTreeMap<usize, usize> {
        let mut numbers = BTreeMap::new();
        for name in mirrored(&mut self.local, "ip", "hk/").await.into_keys() {
            let namespace = name.split('.').nth(2).unwrap().parse().unwrap();
            *numbers.entry(namespace).or_default() += 1;
        }
        numbers
    }

    /// Waits until just these numbers of endpoints are mirrored, by namespace.
    async fn has(&mut self, expected: &[(usize, usize)]) {
        let expected: BTreeMap<_, _> = expected.iter().copied().collect();
        eventually(&format!("endpoints {expected:?}"), async || {
            (self.endpoints().await == expected).then_some(())
        })
        .await;
    }

    async fn watch(&mut self) -> WatchStream {
        let options = WatchOptions::new().with_prefix();
        self.local.watch("cilium/cache/", Some(options)).await.unwrap()
    }

    /// The keys that were put and deleted since the last call, after everything that the mirror has done so far.
    async fn seen(&mut self, watch: &mut WatchStream) -> (BTreeSet<String>, BTreeSet<String>) {
        let (mut put, mut deleted) = (BTreeSet::new(), BTreeSet::new());
        let is_end = |key: &String| key.ends_with("/spare/end");
        // Deleted only after its put was seen: the mirror need not write a key that lives for a moment.
        self.remote.put(SPARE, "").await;
        while !put.iter().any(is_end) {
            take(watch, &mut put, &mut deleted).await;
        }
        self.remote.client.delete(SPARE, None).await.unwrap();
        while !deleted.iter().any(is_end) {
            take(watch, &mut put, &mut deleted).await;
        }
        put.retain(|key| !is_end(key));
        deleted.retain(|key| !is_end(key));
        (put, deleted)
    }

    async fn metric(&self, name: &str, labels: &str) -> Option<f64> {
        let labels = match labels {
            "" => String::new(),
            labels => format!(",{labels}"),
        };
        self.mirror
            .admin
            .metric(&format!("{name}{{target_cluster=\"hk\"{labels}}}"))
            .await
    }

    async fn bytes(&mut self) -> usize {
        let values = values(&mut self.local, "cilium/cache/").await;
        values.iter().map(|(key, value)| key.len() + value.len()).sum()
    }
}

#[tokio::test]
async fn an_edited_scope_moves_just_its_keys_and_deletes_none_that_stays_wanted() {
    let everything = "import: {clusters: []}\n";
    let mut rig = Rig::start(everything, &[]).await;
    rig.has(&[(0, 50), (1, 50), (2, 50), (3, 50)]).await;
    let all = rig.bytes().await;
    let mut watch = rig.watch().await;
    assert_eq!(rig.mirror.admin.clusters().await[0]["scope"], serde_json::Value::Null);

    // Narrower: from everything to two namespaces, and to the identities of their endpoints.
    let teams =
        "endpoints: {default: exclude, rules: [{name: teams, action: include, namespaces: {names: [\"team-*\"]}}]}";
    write(&rig.scope, &entry(&format!("identities: used, {teams}")));
    rig.has(&[(1, 50), (2, 50)]).await;
    eventually("unused identities are gone", async || {
        (mirrored(&mut rig.local, "identities", "hk/id/").await.len() == 4).then_some(())
    })
    .await;
    let (put, deleted) = rig.seen(&mut watch).await;
    assert_eq!(put, BTreeSet::new(), "nothing is written again");
    assert_eq!(deleted.len(), 2 * ENDPOINTS + 4);
    assert!(
        deleted
            .iter()
            .all(|key| !key.contains("/10.1.1.") && !key.contains("/10.1.2."))
    );
    assert!(rig.bytes().await < all * 6 / 10);

    // Wider, by another namespace and an identity: just their endpoints are read.
    let lists = rig.metric("cilium_kvstoremesh_remote_cluster_lists_total", "").await;
    let ranges = rig
        .remote
        .metric("grpc_server_handled_total", "grpc_method=\"Range\"")
        .await;
    let sent = rig.remote.metric("etcd_network_client_grpc_sent_bytes_total", "").await;
    let wider = "endpoints: {default: exclude, rules: [
        {name: teams, action: include, namespaces: {names: [\"team-*\"]}},
        {name: batch, action: include, namespaces: {names: [batch]}}]}";
    write(&rig.scope, &entry(&format!("identities: used, {wider}")));
    rig.has(&[(1, 50), (2, 50), (3, 50)]).await;
    let (put, deleted) = rig.seen(&mut watch).await;
    assert_eq!(deleted, BTreeSet::new());
    assert_eq!(put.len(), ENDPOINTS + 2, "{put:?}");
    assert_eq!(rig.metric("isthmus_scope_keys_read_singly_total", "").await, Some(50.0));
    assert_eq!(
        rig.metric("cilium_kvstoremesh_remote_cluster_lists_total", "").await,
        lists
    );
    assert_eq!(
        rig.remote
            .metric("grpc_server_handled_total", "grpc_method=\"Range\"")
            .await,
        ranges
    );
    let sent = rig.remote.metric("etcd_network_client_grpc_sent_bytes_total", "").await - sent;
    assert!(sent < 30_000.0, "{sent} bytes were read");

    // Other rules for the same endpoints, while their values change.
    let others = "endpoints: {default: include, rules: [
        {name: shop, action: exclude, namespaces: {names: [shop]}},
        {name: db-of-batch, action: exclude, namespaces: {names: [batch]}, identity: {matchLabels: {app: db}}}]}";
    write(&rig.scope, &entry(others));
    rig.remote
        .put("cilium/state/ip/v1/default/10.1.1.7", &endpoint(1, 7, "another"))
        .await;
    rig.has(&[(1, 50), (2, 50), (3, 25)]).await;
    eventually("all identities are back", async || {
        let all = mirrored(&mut rig.local, "identities", "hk/id/").await;
        let moved = mirrored(&mut rig.local, "ip", "hk/").await["10.1.1.7"].contains("another");
        (all.len() == NAMESPACES.len() * APPS.len() && moved).then_some(())
    })
    .await;
    let (put, deleted) = rig.seen(&mut watch).await;
    assert_eq!(deleted.len(), ENDPOINTS / 2, "{deleted:?}");
    assert_eq!(put.len(), 2 + 1, "{put:?}");
    let left_out = rig
        .metric(
            "isthmus_scope_imported_keys",
            r#"kind="endpoints",decision="left-out",rule="db-of-batch""#,
        )
        .await;
    assert_eq!(left_out, Some(25.0));

    // Everything again.
    write(&rig.scope, everything);
    rig.has(&[(0, 50), (1, 50), (2, 50), (3, 50)]).await;
    let (put, deleted) = rig.seen(&mut watch).await;
    assert_eq!((put.len(), deleted), (ENDPOINTS + ENDPOINTS / 2, BTreeSet::new()));
    assert_eq!(rig.bytes().await, all + "another".len() - "pod".len());
}

#[tokio::test]
async fn whole_kinds_come_and_go_and_the_mirror_stays_complete() {
    let rules = |kinds: &str| entry(&format!("kinds: [{kinds}], services: {{default: include}}"));
    let mut rig = Rig::start(&rules("nodes, services"), &[]).await;
    rig.has(&[]).await;
    assert_eq!(mirrored(&mut rig.local, "services", "hk/").await.len(), 4);
    let status = &rig.mirror.admin.clusters().await[0];
    assert_eq!(status["ready"], true);
    assert_eq!(status["synced"]["endpoints"], true);
    assert_eq!(status["scope"]["entry"], "neighbours");
    assert_eq!(status["scope"]["region"], "apac");
    assert_eq!(status["scope"]["kinds"]["endpoints"]["off"], true);
    let canaries = values(&mut rig.local, "cilium/synced/hk/").await;
    assert_eq!(canaries.len(), 6, "agents wait for every canary: {canaries:?}");
    let config = values(&mut rig.local, "cilium/cluster-config/hk").await;
    assert!(!config["cilium/cluster-config/hk"].contains("region"), "{config:?}");

    write(&rig.scope, &rules("nodes, services, endpoints"));
    rig.has(&[(0, 50), (1, 50), (2, 50), (3, 50)]).await;
    rig.remote
        .put("cilium/state/ip/v1/default/10.1.0.99", &endpoint(0, 99, "new"))
        .await;
    rig.has(&[(0, 51), (1, 50), (2, 50), (3, 50)]).await;
    write(&rig.scope, &rules("nodes, identities"));
    rig.has(&[]).await;
    eventually("services are gone and identities are there", async || {
        let services = mirrored(&mut rig.local, "services", "hk/").await.len();
        let identities = mirrored(&mut rig.local, "identities", "hk/id/").await.len();
        (services == 0 && identities == 8).then_some(())
    })
    .await;
    let after = values(&mut rig.local, "cilium/synced/hk/").await;
    assert_eq!(after, canaries, "no canary is touched");
}

#[tokio::test]
async fn endpoints_follow_mirrored_services_and_namespaces_of_this_cluster() {
    let rules = entry(
        "services: {default: exclude, rules: [{name: here, action: include, namespaces: {existing: true}}]},
         endpoints: {default: exclude, rules: [{name: backends, action: include, backendsOfServices: true}]}",
    );
    let tls = Tls::new();
    let manifests = tls.path("manifests");
    fs::create_dir_all(&manifests).unwrap();
    let namespace = |name: &str| {
        let text = format!("apiVersion: v1\nkind: Namespace\nmetadata:\n  name: {name}\n");
        fs::write(manifests.join(format!("{name}.yaml")), text).unwrap();
    };
    namespace("shop");
    let flag = format!("--manifests={}", manifests.display());
    let mut rig = Rig::start(&rules, &[&flag]).await;
    rig.has(&[(0, 3)]).await;
    assert_eq!(mirrored(&mut rig.local, "services", "hk/").await.len(), 1);
    let lists = rig.metric("cilium_kvstoremesh_remote_cluster_lists_total", "").await;
    let mut watch = rig.watch().await;

    namespace("team-a");
    rig.has(&[(0, 3), (1, 3)]).await;
    let backends: Vec<_> = (2..6).map(|n| address(1, n)).collect();
    let key = "cilium/state/services/v1/hk/team-a/front";
    rig.remote.put(key, &service(1, &backends)).await;
    rig.has(&[(0, 3), (1, 4)]).await;
    fs::remove_file(manifests.join("shop.yaml")).unwrap();
    rig.has(&[(1, 4)]).await;
    let (put, deleted) = rig.seen(&mut watch).await;
    let of = |name: &str| format!("cilium/cache/{name}");
    let addresses =
        |names: &[&str]| -> Vec<String> { names.iter().map(|name| of(&format!("ip/v1/hk/{name}"))).collect() };
    let mut expected: BTreeSet<_> = (0..6).flat_map(|n| addresses(&[&address(1, n)])).collect();
    expected.insert(of("services/v1/hk/team-a/front"));
    assert_eq!(put, expected);
    let mut expected: BTreeSet<_> = (0..3).flat_map(|n| addresses(&[&address(0, n)])).collect();
    expected.extend(addresses(&["10.1.1.0", "10.1.1.1"]));
    expected.insert(of("services/v1/hk/shop/front"));
    assert_eq!(deleted, expected);
    assert_eq!(
        rig.metric("cilium_kvstoremesh_remote_cluster_lists_total", "").await,
        lists
    );
    // 3 endpoints and a service of the new namespace, then 3 other backends.
    assert_eq!(rig.metric("isthmus_scope_keys_read_singly_total", "").await, Some(7.0));
}

#[tokio::test]
async fn a_restarted_mirror_and_a_lost_connection_change_nothing() {
    let rule = |name: &str, namespace: &str, app: &str| {
        format!(
            "{{name: {name}, action: include, namespaces: {{names: [{namespace}]}}, identity: {{matchLabels: {{app: {app}}}}}}}"
        )
    };
    let of = |rules: &[String]| {
        let rules = rules.join(", ");
        entry(&format!(
            "identities: used, endpoints: {{default: exclude, rules: [{rules}]}}"
        ))
    };
    let (shop, team) = (rule("shop", "shop", "db"), rule("team", "team-a", "db"));
    let mut rig = Rig::start(&of(&[team.clone(), shop.clone()]), &[]).await;
    rig.has(&[(0, 25), (1, 25)]).await;
    let before = values(&mut rig.local, "cilium/cache/").await;
    let mut watch = rig.watch().await;
    let (target, flag) = (rig.target.address().await, format!("--scope={}", rig.scope.display()));
    let Mirror { process, .. } = std::mem::replace(&mut rig.mirror, Mirror::start(&rig.tls, &target, &[&flag]));
    process.kill().await;
    rig.mirror.mirrors(1).await;
    let (put, deleted) = rig.seen(&mut watch).await;
    assert_eq!((put, deleted), (BTreeSet::new(), BTreeSet::new()));
    assert_eq!(values(&mut rig.local, "cilium/cache/").await, before);

    // While the remote cluster does not answer, a narrower scope needs no answer, and a wider one waits for it.
    rig.remote.process.signal(Signal::SIGSTOP);
    write(&rig.scope, &of(std::slice::from_ref(&shop)));
    rig.has(&[(0, 25)]).await;
    write(&rig.scope, &of(&[shop, rule("batch", "batch", "db")]));
    let pending = r#"kind="endpoints",decision="pending",rule="batch""#;
    eventually("the wider scope waits", async || {
        (rig.metric("isthmus_scope_imported_keys", pending).await? == 25.0).then_some(())
    })
    .await;
    assert_eq!(rig.endpoints().await, [(0, 25)].into());
    rig.remote.process.signal(Signal::SIGCONT);
    rig.has(&[(0, 25), (3, 25)]).await;
    let (put, deleted) = rig.seen(&mut watch).await;
    assert_eq!(
        (put.len(), deleted.len()),
        (25 + 1, 25 + 1),
        "endpoints and their identity: {put:?} {deleted:?}"
    );
}

#[tokio::test]
async fn a_file_with_a_mistake_changes_nothing_and_the_status_says_what_is_scoped() {
    let rules = entry(
        "limits: {endpoints: 60}, endpoints: {default: exclude, rules: [
            {name: shop, action: include, namespaces: {names: [shop]}}]}",
    );
    let mut rig = Rig::start(&rules, &[]).await;
    rig.has(&[(0, 50)]).await;
    write(&rig.scope, "import: {clusters: [{name: neighbours, endpoint: {}}]}\n");
    rig.mirror.process.line("the scope file cannot be used").await;
    assert!(rig.mirror.admin.is_ready().await);
    rig.remote
        .put("cilium/state/ip/v1/default/10.1.0.60", &endpoint(0, 60, "new"))
        .await;
    rig.remote
        .put("cilium/state/ip/v1/default/10.1.1.60", &endpoint(1, 60, "new"))
        .await;
    rig.has(&[(0, 51)]).await;
    let asked = isthmus(["kvstoremesh-dbg", "status", "-H", &rig.mirror.admin.api_address()])
        .called("clustermesh-apiserver")
        .run();
    let text = asked.text();
    assert!(
        text.contains(r#"scoped by "neighbours" (region apac): 51 of 202 endpoints"#),
        "{text}"
    );

    // A limit of the file counts what is mirrored, and names itself.
    let wider = "limits: {endpoints: 60}, endpoints: {default: exclude, rules: [
        {name: all, action: include, namespaces: {names: [shop, batch]}}]}";
    write(&rig.scope, &entry(wider));
    let named = r#"cilium/state/ip/v1/default/ holds 101 keys, more than the limit of 60 (limits of "neighbours" in the scope file)"#;
    eventually("the limit is named", async || {
        let status = rig.mirror.admin.clusters().await[0]["status"].as_str()?.to_owned();
        status.contains(named).then_some(())
    })
    .await;
    write(&rig.scope, &rules);
    eventually("the mirror follows again without a wait", async || {
        (rig.mirror.admin.clusters().await[0]["ready"] == true).then_some(())
    })
    .await;
    rig.has(&[(0, 51)]).await;
}

#[tokio::test]
async fn a_remote_cluster_that_makes_the_filter_remember_too_much_is_stopped_and_named() {
    // Of 210 keys that may be mirrored, a mebibyte may be remembered.
    let rules = entry(
        "identities: used, endpoints: {default: exclude, rules: [
        {name: shop, action: include, namespaces: {names: [shop]}}]}",
    );
    let mut rig = Rig::start(&rules, &["--clustermesh-max-keys=210"]).await;
    rig.has(&[(0, 50)]).await;
    let remembered = rig
        .metric("isthmus_scope_remembered_bytes", r#"kind="identities""#)
        .await
        .unwrap();
    assert!((100.0..10_000.0).contains(&remembered), "{remembered}");
    let large = format!("k8s:app={};", "a".repeat(600_000));
    for number in [300, 301] {
        let key = format!("cilium/state/identities/v1/id/{number}");
        rig.remote.put(&key, &large).await;
    }
    let status = eventually("the identities are stopped", async || {
        let status = rig.mirror.admin.clusters().await[0]["status"].as_str()?.to_owned();
        status.contains("bytes of memory for the scope file").then_some(status)
    })
    .await;
    for part in [
        "cilium/state/identities/v1/id/ holds",
        "--clustermesh-max-keys",
        "kinds in the scope file",
    ] {
        assert!(status.contains(part), "{status}");
    }
    let line = rig.mirror.process.line("exceeds a limit of the mirror").await;
    assert!(line.contains("hk") && line.contains("bytes of memory"), "{line}");
    let stopped = rig.metric("cilium_kvstoremesh_remote_cluster_kinds_stopped", "").await;
    assert_eq!(stopped, Some(1.0));

    // The other kinds go on; and rules that need no values end the stop without a wait.
    rig.remote
        .put("cilium/state/ip/v1/default/10.1.0.60", &endpoint(0, 60, "new"))
        .await;
    rig.has(&[(0, 51)]).await;
    let whole = "endpoints: {default: exclude, rules: [{name: shop, action: include, namespaces: {names: [shop]}}]}";
    write(&rig.scope, &entry(whole));
    eventually("all identities are mirrored", async || {
        (mirrored(&mut rig.local, "identities", "hk/id/").await.len() == 10).then_some(())
    })
    .await;
    assert_eq!(
        rig.metric("cilium_kvstoremesh_remote_cluster_kinds_stopped", "").await,
        Some(0.0)
    );
}

#[tokio::test]
async fn the_mirror_of_serve_has_the_same_scope() {
    let tls = Tls::new();
    let (scope, manifests) = (tls.path("scope.yaml"), tls.path("manifests"));
    fs::create_dir_all(&manifests).unwrap();
    let text = "apiVersion: v1\nkind: Namespace\nmetadata:\n  name: batch\n";
    fs::write(manifests.join("batch.yaml"), text).unwrap();
    write(
        &scope,
        &entry("endpoints: {default: exclude, rules: [{name: here, action: include, namespaces: {existing: true}}]}"),
    );
    let _remote = Remote::start(&tls, CONFIGURATION).await;
    let admin = Admin::new();
    let serve = isthmus(["serve", "--cluster-name=local", "--cluster-id=9"])
        .arg(format!("--manifests={}", manifests.display()))
        .arg(format!("--scope={}", scope.display()))
        .arg(format!("--clustermesh-config={}", tls.path("remotes").display()))
        .args([admin.health_flag(), admin.metrics_flag(), admin.api_flag()])
        .args(tls.flags())
        .start();
    admin.ready().await;
    let mut local = tls.client(&serve.address().await, "admin-local").await;
    let names = mirrored(&mut local, "ip", "hk/").await;
    assert_eq!(names.len(), ENDPOINTS);
    assert!(names.keys().all(|name| name.starts_with("10.1.3.")));
    let config = values(&mut local, "cilium/cluster-config/").await;
    assert!(!config["cilium/cluster-config/hk"].contains("region"));
}
