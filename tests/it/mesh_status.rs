//! Proves what `mesh status` and `mesh preflight` tell of clusters, from their objects and from what their pods answer.

use crate::support::cluster_api::{ClusterApi, Fault, kubeconfig};
use crate::support::exec::Reply;
use crate::support::mesh::{Mirrored, RemoteStore, mirror_of};
use crate::support::process::Finished;
use crate::support::{Tls, eventually, isthmus};
use isthmus::mesh::pki::Authority;
use serde_json::{Value, json};

const WAITING: &str = "Waiting for initial connection to be established";
const MIRROR: &str = "clustermesh-apiserver-0";

/// Clusters and a kubeconfig with a context for each.
struct Mesh {
    tokyo: ClusterApi,
    hk: ClusterApi,
    directory: tempfile::TempDir,
}

impl Mesh {
    /// Two clusters with one CA that are connected, and whose pods say so.
    async fn connected() -> Self {
        let authority = Authority::generate("Cilium CA", jiff::Timestamp::now()).unwrap();
        let tokyo = ClusterApi::start("tokyo-cluster", 1, &authority).await;
        let hk = ClusterApi::start("hk-cluster", 2, &authority).await;
        tokyo.connect("hk-cluster", "10.14.1.0:32379");
        hk.connect("tokyo-cluster", "10.13.1.0:32379");
        tokyo.say(&json!([ready("hk-cluster", 2)]));
        hk.say(&json!([ready("tokyo-cluster", 1)]));
        let directory = tempfile::tempdir().unwrap();
        kubeconfig(&directory.path().join("config"), &[&tokyo, &hk]);
        Self { tokyo, hk, directory }
    }

    /// Runs a subcommand of `mesh` to its end.
    async fn run(&self, arguments: &[&str]) -> Finished {
        let file = format!("--kubeconfig={}", self.directory.path().join("config").display());
        let command = isthmus(["mesh"]).args(arguments).arg(file);
        tokio::task::spawn_blocking(move || command.run()).await.unwrap()
    }
}

fn ready(name: &str, id: u32) -> Value {
    json!({"name": name, "ready": true, "connected": true, "num-shared-services": 1, "status": "etcd: 1/1 connected",
        "config": {"required": true, "retrieved": true, "cluster-id": id, "kvstoremesh": true},
        "synced": {"nodes": true, "endpoints": true, "identities": true, "services": true}})
}

/// Asserts that `text` has these lines, in this order.
fn assert_lines(text: &str, lines: &[&str]) {
    let mut rest = text.lines();
    for line in lines {
        assert!(
            rest.any(|found| found == *line),
            "no line {line:?} at its place in:\n{text}"
        );
    }
}

/// The walk from Tokyo to Hong Kong, step 4.
#[tokio::test(flavor = "multi_thread")]
async fn a_healthy_mesh_is_shown_line_for_line_as_ciliums_tool_does() {
    let mesh = Mesh::connected().await;
    let status = mesh.run(&["status"]).await;
    assert!(status.succeeded(), "{}", status.text());
    assert_lines(
        &status.stdout,
        &[
            "ℹ️  Cluster tokyo-cluster, id 1, Cilium 1.20 (context tokyo-cluster)",
            "⚠️  Service type NodePort detected! Service may fail when nodes are removed from the cluster!",
            "✅ Service \"clustermesh-apiserver\" of type \"NodePort\" found",
            "✅ Cluster access information is available:",
            "  - 10.13.1.0:32379",
            "✅ Deployment clustermesh-apiserver is ready",
            "ℹ️  KVStoreMesh is enabled",
            "✅ All 3 nodes are connected to all clusters [min:1 / avg:1.0 / max:1]",
            "✅ All 1 KVStoreMesh replicas are connected to all clusters [min:1 / avg:1.0 / max:1]",
            "🔌 Cluster Connections:",
            "  - hk-cluster: 3/3 configured, 3/3 connected - KVStoreMesh: 1/1 configured, 1/1 connected",
            "🔀 Global services: [ min:1 / avg:1.0 / max:1 ]",
        ],
    );
    assert_eq!(status.stderr, "");
    let commands: Vec<_> = mesh
        .tokyo
        .executions()
        .into_iter()
        .map(|one| (one.container, one.command))
        .collect();
    let agent = ("cilium-agent".to_owned(), "cilium status -o json".to_owned());
    let mirror = "/usr/bin/clustermesh-apiserver kvstoremesh-dbg status -o json".to_owned();
    assert_eq!(
        commands,
        [agent.clone(), agent.clone(), agent, ("kvstoremesh".to_owned(), mirror)]
    );
}

/// The walk, step 2.
#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_without_peers_is_healthy() {
    let mesh = Mesh::connected().await;
    mesh.tokyo.deploy(&["etcd", "apiserver"], 1);
    mesh.tokyo
        .remove("/api/v1/namespaces/kube-system/secrets/cilium-clustermesh");
    mesh.tokyo
        .remove("/api/v1/namespaces/kube-system/secrets/cilium-kvstoremesh");
    for at in 0..3 {
        mesh.tokyo
            .reply(&format!("cilium-{at}"), "cilium status", Reply::Prints("{}".to_owned()));
    }
    let status = mesh.run(&["status", "--wait"]).await;
    assert!(status.succeeded(), "{}", status.text());
    let lines = [
        "ℹ️  KVStoreMesh is disabled",
        "🔌 No cluster connected",
        "🔀 Global services: [ min:-1 / avg:0.0 / max:0 ]",
    ];
    assert_lines(&status.stdout, &lines);
}

/// Complaint 8 of the field: a misleading status, blocked by one bad pod, and exit code 0.
#[tokio::test(flavor = "multi_thread")]
async fn the_first_broken_hop_is_named_with_its_cause_and_one_bad_pod_hides_nothing() {
    let mesh = Mesh::connected().await;
    let waiting = json!([{"name": "hk-cluster", "connected": true, "config": {"required": true}}]);
    mesh.tokyo.say(&waiting);
    mesh.tokyo.reply("cilium-1", "cilium status", Reply::Hangs);
    let reason =
        json!({"phase": "Pending", "conditions": [{"type": "PodScheduled", "status": "False", "message": "no room"}]});
    mesh.tokyo.pod_with("cilium-2", "cilium", reason);
    mesh.tokyo
        .pod_with("cilium-3", "cilium", json!({"phase": "Failed", "reason": "Evicted"}));
    let away = json!([{"name": "hk-cluster", "status": WAITING}]);
    mesh.tokyo
        .reply(MIRROR, "kvstoremesh-dbg status", Reply::Prints(away.to_string()));
    let traced = "🔌 Endpoints:\n   - https://hk-cluster.mesh.cilium.io:32379\n     ✅ Hostname resolved to: 10.14.1.0\n     \
        ❌ Cannot establish TCP connection to hk-cluster.mesh.cilium.io:32379: dial tcp 10.14.1.0:32379: i/o timeout\n";
    mesh.tokyo.reply(
        MIRROR,
        "kvstoremesh-dbg troubleshoot hk-cluster",
        Reply::Prints(traced.to_owned()),
    );
    let status = mesh.run(&["status", "--pod-timeout=2s"]).await;
    assert_eq!(status.code, Some(1), "{}", status.text());
    assert_lines(
        &status.stdout,
        &[
            "⚠️  3/3 nodes are not connected to all clusters [min:0 / avg:0.0 / max:0]",
            "⚠️  1/1 KVStoreMesh replicas are not connected to all clusters [min:0 / avg:0.0 / max:0]",
            "  - hk-cluster: 1/3 configured, 0/3 connected - KVStoreMesh: 1/1 configured, 0/1 connected",
            "❌ 4 Errors:",
            "  ❌ cilium-0 is not connected to cluster hk-cluster: remote cluster configuration required but not found",
            "     💡 This is likely caused by KVStoreMesh not being connected to the given cluster",
            "  ❌ cilium-1 did not tell its status: command failed (pod=kube-system/cilium-1, container=cilium-agent): no answer in 2 s",
            "  ❌ cilium-2 did not tell its status: pod is Pending: no room",
            "  ❌ clustermesh-apiserver-0 is not connected to cluster hk-cluster: Waiting for initial connection to be established",
            "🔎 agents ✅ → own store ✅ → KVStoreMesh ✅ → hk-cluster ❌",
            "⚠️  Pod kube-system/cilium-3 ended (Evicted) and is not counted",
        ],
    );
    let cause = "   ❌ Cannot establish TCP connection to hk-cluster.mesh.cilium.io:32379: dial tcp 10.14.1.0:32379: i/o timeout (seen by pod clustermesh-apiserver-0)";
    assert_lines(&status.stdout, &[cause]);
    assert!(
        status.stdout.contains("   💡 Packets do not arrive: open the way"),
        "{}",
        status.stdout
    );
    assert!(
        status.stderr.contains("Error: 1 KVStoreMesh replicas are not ready"),
        "{}",
        status.stderr
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_document_has_the_fields_of_ciliums_tool_and_the_errors_and_fails_too() {
    let mesh = Mesh::connected().await;
    let healthy = mesh.run(&["status", "-o", "json"]).await;
    assert!(healthy.succeeded(), "{}", healthy.text());
    let document: Value = serde_json::from_str(&healthy.stdout).unwrap();
    let access = &document["access_information"];
    assert_eq!(
        (&access["service_type"], &access["service_port"]),
        (&json!("NodePort"), &json!(32379))
    );
    assert_eq!(access["service_ips"], json!(["10.13.1.0", "10.13.1.1", "10.13.1.2"]));
    assert_eq!(
        (&access["cluster_id"], &access["max_connected_clusters"]),
        (&json!("1"), &json!(255))
    );
    let agents = &document["connectivity"];
    assert_eq!(
        (&agents["total"], &agents["connected"]),
        (&json!(3), &json!({"min": 1, "avg": 1, "max": 1}))
    );
    assert_eq!(
        agents["clusters"]["hk-cluster"],
        json!({"configured": 3, "connected": 3})
    );
    assert_eq!(document["kvstoremesh"]["status"]["total"], json!(1));
    assert_eq!(document["cluster"]["name"], json!("tokyo-cluster"));
    assert_eq!(document["healthy"], json!(true));
    mesh.tokyo.deploy(&["etcd", "apiserver", "kvstoremesh"], 0);
    mesh.tokyo
        .agent_says("cilium-1", &json!([{"name": "hk-cluster", "status": WAITING}]));
    let broken = mesh.run(&["status", "-o", "json"]).await;
    assert_eq!(broken.code, Some(1));
    let document: Value = serde_json::from_str(&broken.stdout).unwrap();
    let why = "deployment clustermesh-apiserver is not ready: only 0 of 1 replicas are available";
    assert_eq!(document["errors"], json!([why]));
    let errors = &document["connectivity"]["errors"]["cilium-1"]["hk-cluster"]["Errors"];
    assert_eq!(errors, &json!([WAITING]));
    assert_eq!(document["paths"]["hk-cluster"]["broken"]["hop"], json!("own-store"));
    assert_eq!(document["paths"]["hk-cluster"]["broken"]["cause"], json!(why));
    let yaml = mesh.run(&["status", "-o", "yaml", "--context=hk-cluster"]).await;
    assert!(
        yaml.succeeded() && yaml.stdout.contains("healthy: true"),
        "{}",
        yaml.text()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wait_says_what_is_missing_and_ends_when_it_is_there() {
    let mesh = Mesh::connected().await;
    mesh.tokyo.agent_says("cilium-2", &json!([]));
    let late = mesh.run(&["status", "--wait", "--wait-duration=3s"]).await;
    assert_eq!(late.code, Some(1));
    assert_lines(
        &late.stdout,
        &[
            "⌛ Waiting (0s) for clusters to be connected: 1 nodes are not ready: the kubelet passes a changed Secret on to its pods within about two minutes",
        ],
    );
    let text = "  ❌ cilium-2 is not connected to cluster hk-cluster: unknown status";
    let hint = "     💡 The pod has not read its changed Secret yet: the kubelet passes it on within about two minutes";
    assert_lines(&late.stdout, &["❌ 1 Errors:", text, hint]);
    let error = "Error: timeout while waiting for condition, last error: 1 nodes are not ready";
    assert!(late.stderr.contains(error), "{}", late.stderr);
    let mended = async {
        let asked = async || (mesh.tokyo.executions().len() > 8).then_some(());
        eventually("the status was asked again", asked).await;
        mesh.tokyo.agent_says("cilium-2", &json!([ready("hk-cluster", 2)]));
    };
    let (status, ()) = tokio::join!(mesh.run(&["status", "--wait"]), mended);
    assert!(status.succeeded(), "{}", status.text());
}

/// A rolling upgrade of the control plane, while a script waits.
#[tokio::test(flavor = "multi_thread")]
async fn a_wait_outlives_failed_requests_and_says_each_failure_once() {
    let mesh = Mesh::connected().await;
    for begin in [Some(Fault::Fails), None] {
        mesh.tokyo.fault(begin);
        if begin.is_none() {
            mesh.tokyo.deny("list pods");
        }
        let before = mesh.tokyo.faulty();
        let mended = async {
            let asked = async || (mesh.tokyo.faulty() > before + 2).then_some(());
            eventually("the API was asked again", asked).await;
            mesh.tokyo.fault(None);
            mesh.tokyo.grant("list pods");
        };
        let (status, ()) = tokio::join!(mesh.run(&["status", "--wait"]), mended);
        assert!(status.succeeded(), "{}", status.text());
        let told = status.stdout.lines().filter(|line| line.ends_with("; trying again"));
        assert_eq!(told.count(), 1, "{}", status.stdout);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_api_that_does_not_answer_ends_with_the_deadline_and_a_missing_right_at_once() {
    let mesh = Mesh::connected().await;
    mesh.tokyo.fault(Some(Fault::Hangs));
    let started = tokio::time::Instant::now();
    let hanging = mesh.run(&["status", "--wait", "--wait-duration=3s"]).await;
    assert_eq!(hanging.code, Some(1), "{}", hanging.text());
    let text = "the Kubernetes API of context \"tokyo-cluster\" has not answered in";
    assert!(hanging.stderr.contains(text), "{}", hanging.text());
    mesh.tokyo.fault(None);
    mesh.tokyo.deny("get secrets");
    let forbidden = mesh.run(&["status", "--wait"]).await;
    assert_eq!(forbidden.code, Some(1));
    let text = "needs the right to get secrets";
    assert!(forbidden.stderr.contains(text), "{}", forbidden.text());
    assert!(started.elapsed().as_secs() < 30, "{:?}", started.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_api_that_breaks_while_waiting_keeps_what_was_seen() {
    let mesh = Mesh::connected().await;
    mesh.tokyo.agent_says("cilium-2", &json!([]));
    let broken = async {
        let asked = async || (mesh.tokyo.executions().len() > 3).then_some(());
        eventually("the pods were asked", asked).await;
        mesh.tokyo.fault(Some(Fault::Hangs));
    };
    let (status, ()) = tokio::join!(
        mesh.run(&["status", "--wait", "--wait-duration=8s", "-o", "json"]),
        broken
    );
    assert_eq!(status.code, Some(1), "{}", status.text());
    let document: Value = serde_json::from_str(&status.stdout).unwrap();
    assert_eq!(
        (&document["timed_out"], &document["connectivity"]["total"]),
        (&json!(true), &json!(3))
    );
    let errors = document["errors"].to_string();
    assert!(errors.contains("has not answered in"), "{errors}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_api_server_hides_no_other_cluster_from_preflight() {
    let mesh = Mesh::connected().await;
    mesh.hk.fault(Some(Fault::Fails));
    let preflight = mesh.run(&["preflight", "--destination-context=hk-cluster"]).await;
    assert_eq!(preflight.code, Some(1), "{}", preflight.text());
    let dead = "❌ hk-cluster: cannot get ConfigMap kube-system/cilium-config in context \"hk-cluster\": etcdserver: request timed out";
    assert!(preflight.stdout.contains(dead), "{}", preflight.stdout);
    assert_lines(
        &preflight.stdout,
        &["✅ tokyo-cluster: Deployment kube-system/clustermesh-apiserver is ready"],
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_load_balancer_may_have_several_names_and_addresses() {
    let mesh = Mesh::connected().await;
    let balance = |ingress: Value| {
        let spec = json!({"type": "LoadBalancer", "ports": [{"port": 2379, "nodePort": 32379}]});
        let service = json!({"spec": spec, "status": {"loadBalancer": {"ingress": ingress}}});
        let path = "/api/v1/namespaces/kube-system/services/clustermesh-apiserver";
        mesh.tokyo.put(path, service);
    };
    balance(json!([{"hostname": "a.example"}, {"hostname": "b.example"}]));
    let status = mesh.run(&["status"]).await;
    assert!(status.succeeded(), "{}", status.text());
    let unused = "  - b.example (not used: a client file takes one host name, or IP addresses)";
    assert_lines(&status.stdout, &["  - a.example:2379", unused]);
    balance(json!([{"hostname": "a.example"}, {"ip": "192.0.2.7"}]));
    let status = mesh.run(&["status", "-o", "json"]).await;
    let document: Value = serde_json::from_str(&status.stdout).unwrap();
    let access = &document["access_information"];
    assert_eq!(
        (&access["service_ips"], &access["unused_names"]),
        (&json!(["192.0.2.7"]), &json!(["a.example"]))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_older_mirror_without_the_command_is_no_failure() {
    let mesh = Mesh::connected().await;
    let usage = Reply::Fails(
        "Error: unknown command \"status\" for \"kvstoremesh-dbg\"".to_owned(),
        1,
    );
    mesh.tokyo.reply(MIRROR, "kvstoremesh-dbg status", usage);
    let status = mesh.run(&["status"]).await;
    assert!(status.succeeded(), "{}", status.text());
    let lines = [
        "⚠️  KVStoreMesh status retrieval is not supported by this Cilium version",
        "  - hk-cluster: 3/3 configured, 3/3 connected - KVStoreMesh: status not available",
    ];
    assert_lines(&status.stdout, &lines);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_right_is_named_with_its_verb_and_resource() {
    let mesh = Mesh::connected().await;
    mesh.tokyo.deny("create pods/exec");
    let status = mesh.run(&["status"]).await;
    assert_eq!(status.code, Some(1));
    let text = "executing in pods needs the rights to get and create pods/exec in namespace kube-system";
    assert!(status.stdout.contains(text), "{}", status.text());
    // connect executes nothing that it cannot do without.
    let preflight = mesh.run(&["preflight"]).await;
    assert!(preflight.succeeded(), "{}", preflight.text());
    let text = "⚠️  tokyo-cluster: the user of context \"tokyo-cluster\" may not: create pods/exec; status needs it";
    assert!(preflight.stdout.contains(text), "{}", preflight.text());
    mesh.tokyo.deny("patch secrets");
    let preflight = mesh.run(&["preflight"]).await;
    assert_eq!(preflight.code, Some(1), "{}", preflight.text());
    let text = "❌ tokyo-cluster: the user of context \"tokyo-cluster\" may not: patch secrets; connect needs it";
    assert!(preflight.stdout.contains(text), "{}", preflight.text());
    mesh.tokyo.deny("get secrets");
    let status = mesh.run(&["status", "-o", "json"]).await;
    assert_eq!(status.code, Some(1));
    let document: Value = serde_json::from_str(&status.stdout).unwrap();
    let error = document["errors"][0].as_str().unwrap();
    assert!(error.contains("needs the right to get secrets"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn preflight_has_one_line_for_each_check_and_fails_with_a_remedy() {
    let mesh = Mesh::connected().await;
    let fine = mesh.run(&["preflight", "--destination-context=hk-cluster"]).await;
    assert!(fine.succeeded(), "{}", fine.text());
    assert_lines(
        &fine.stdout,
        &[
            "✅ tokyo-cluster: name tokyo-cluster, id 1 of at most 255, Cilium 1.20, context tokyo-cluster",
            "✅ tokyo-cluster: the user of the context has the rights that connect and status need",
            "✅ hk-cluster: Deployment kube-system/clustermesh-apiserver is ready",
            "✅ tokyo-cluster <=> hk-cluster: names and ids differ, and the greatest number of clusters is the same",
            "✅ tokyo-cluster <=> hk-cluster: each cluster accepts the certificate of the other (TLS handshake both ways)",
        ],
    );
    // A cluster that Hong Kong is connected to has the id of Tokyo, and another CA is installed in Tokyo.
    mesh.hk.say(&json!([ready("tokyo-cluster", 1), ready("osaka", 1)]));
    let config = json!({"data": {"cluster-name": "tokyo-cluster", "cluster-id": "1", "cluster-pool-ipv4-cidr": "10.242.7.0/24"}});
    mesh.tokyo
        .put("/api/v1/namespaces/kube-system/configmaps/cilium-config", config);
    let broken = mesh
        .run(&["preflight", "--destination-context=hk-cluster", "-o", "json"])
        .await;
    assert_eq!(broken.code, Some(1));
    let document: Value = serde_json::from_str(&broken.stdout).unwrap();
    assert_eq!(document["failed"], json!(2));
    let failed: Vec<_> = document["checks"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|check| check["state"] == "failed")
        .collect();
    assert!(failed.iter().all(|check| check["remedy"].is_string()), "{failed:?}");
    assert_eq!(
        (&failed[0]["topic"], &failed[1]["topic"]),
        (&json!("identity"), &json!("networks"))
    );
}

/// Complaint 9 of the field: all green, but no traffic.
#[tokio::test(flavor = "multi_thread")]
async fn a_probe_connects_from_a_node_to_the_store_and_the_nodes_of_the_other_cluster() {
    let mesh = Mesh::connected().await;
    let open = |subnet: u32| {
        let target = |at: u32, port: u32| format!("0 10.{subnet}.1.{at}/{port} \n");
        let targets = (0..3).flat_map(|at| [target(at, 32379), target(at, 4240)]);
        targets.collect::<String>()
    };
    mesh.hk.reply("cilium-0", "bash -c", Reply::Prints(open(13)));
    let closed = open(14).replace("0 10.14.1.1/4240 ", "124 10.14.1.1/4240 ");
    mesh.tokyo.reply("cilium-0", "bash -c", Reply::Prints(closed));
    let preflight = mesh
        .run(&["preflight", "--destination-context=hk-cluster", "--probe"])
        .await;
    assert_eq!(preflight.code, Some(1), "{}", preflight.text());
    assert_lines(
        &preflight.stdout,
        &[
            "✅ tokyo-cluster <=> hk-cluster: the store of hk-cluster is reached from pod cilium-0: 10.14.1.0/32379, 10.14.1.1/32379, 10.14.1.2/32379",
            "❌ tokyo-cluster <=> hk-cluster: not reached from pod cilium-0: 10.14.1.1/4240 (no answer in 3 s)",
            "✅ hk-cluster <=> tokyo-cluster: 3 nodes of tokyo-cluster are reached from pod cilium-0 (TCP 4240)",
        ],
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_our_mirror_answers_is_understood_with_its_cause() {
    let mesh = Mesh::connected().await;
    let tls = Tls::new();
    let store = RemoteStore::start(&tls, "hk-cluster").await;
    drop(store.fill(&tls, 2).await);
    let Mirrored {
        mirror,
        target: _target,
        ..
    } = mirror_of(&tls, &[&store], &[]).await;
    let host = mirror.admin.api_address();
    let answer = || {
        isthmus(["kvstoremesh-dbg", "status", "-o", "json", "-H", &host])
            .run()
            .stdout
    };
    mesh.tokyo
        .reply(MIRROR, "kvstoremesh-dbg status", Reply::Prints(answer()));
    let status = mesh.run(&["status"]).await;
    assert!(status.succeeded(), "{}", status.text());
    let line = "  - hk-cluster: 3/3 configured, 3/3 connected - KVStoreMesh: 1/1 configured, 1/1 connected";
    assert_lines(&status.stdout, &[line]);
    drop(store);
    let refused = eventually("the mirror knows that the store is gone", async || {
        Some(answer()).filter(|answer| answer.contains("refused"))
    });
    mesh.tokyo
        .reply(MIRROR, "kvstoremesh-dbg status", Reply::Prints(refused.await));
    let status = mesh.run(&["status"]).await;
    assert_eq!(status.code, Some(1));
    assert_lines(
        &status.stdout,
        &["🔎 agents ✅ → own store ✅ → KVStoreMesh ✅ → hk-cluster ❌"],
    );
    assert!(
        status.stdout.contains("   💡 Nothing listens at the address"),
        "{}",
        status.stdout
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_breaks_is_an_error_of_its_pod_alone_and_long_answers_are_read() {
    let mesh = Mesh::connected().await;
    mesh.tokyo.reply("cilium-1", "cilium status", Reply::Breaks);
    let noise = "x".repeat(300_000);
    let long = json!({"cilium": {"msg": noise}, "cluster-mesh": {"clusters": [ready("hk-cluster", 2)]}});
    mesh.tokyo
        .reply("cilium-2", "cilium status", Reply::Prints(long.to_string()));
    let status = mesh.run(&["status"]).await;
    assert_eq!(status.code, Some(1), "{}", status.text());
    assert_lines(
        &status.stdout,
        &[
            "⚠️  1/3 nodes are not connected to all clusters [min:0 / avg:0.7 / max:1]",
            "  - hk-cluster: 2/3 configured, 2/3 connected - KVStoreMesh: 1/1 configured, 1/1 connected",
            "❌ 1 Errors:",
        ],
    );
    let error = "cilium-1 did not tell its status: command failed (pod=kube-system/cilium-1, container=cilium-agent): \
        the command ended without a status; did the container restart?";
    assert!(status.stdout.contains(error), "{}", status.stdout);
}

/// Complaint 5 of the field: the mesh is gone after an unrelated upgrade or a Git sync, and nothing says so.
#[tokio::test(flavor = "multi_thread")]
async fn what_another_tool_has_removed_is_reported_although_nothing_expects_the_peer_any_more() {
    let mesh = Mesh::connected().await;
    let peer = json!({"id": 2, "context": "hk-cluster", "endpoints": {"ips": ["10.14.1.0"], "port": 32379}});
    let record = json!({"data": {"hk-cluster": peer.to_string()}});
    mesh.tokyo
        .put("/api/v1/namespaces/kube-system/configmaps/isthmus-mesh", record);
    for secret in ["cilium-clustermesh", "cilium-kvstoremesh"] {
        mesh.tokyo
            .remove(&format!("/api/v1/namespaces/kube-system/secrets/{secret}"));
    }
    mesh.tokyo.say(&json!([]));
    let status = mesh.run(&["status"]).await;
    assert_eq!(status.code, Some(1), "{}", status.text());
    assert_lines(&status.stdout, &["🔌 No cluster connected"]);
    let text = "❌ Secret kube-system/cilium-clustermesh is not as 'clustermesh-apiserver mesh connect' wrote it for cluster \
        hk-cluster: the Secret is gone";
    assert!(status.text().contains(text), "{}", status.text());
    let preflight = mesh.run(&["preflight"]).await;
    assert_eq!(preflight.code, Some(1), "{}", preflight.text());
    let text = format!("❌ tokyo-cluster: {}", text.trim_start_matches("❌ "));
    assert!(preflight.stdout.contains(&text), "{}", preflight.stdout);
    let remedy = "   💡 Connect hk-cluster again, and keep the values that";
    assert!(preflight.stdout.contains(remedy), "{}", preflight.stdout);
}

#[tokio::test(flavor = "multi_thread")]
async fn hundreds_of_agents_are_asked_and_counted() {
    let mesh = Mesh::connected().await;
    for at in 3..500 {
        let name = format!("cilium-{at}");
        mesh.tokyo.pod(&name, "cilium", "cilium-agent");
        mesh.tokyo.agent_says(&name, &json!([ready("hk-cluster", 2)]));
    }
    let status = mesh.run(&["status"]).await;
    assert!(status.succeeded(), "{}", status.text());
    let line = "✅ All 500 nodes are connected to all clusters [min:1 / avg:1.0 / max:1]";
    assert_lines(&status.stdout, &[line]);
}
