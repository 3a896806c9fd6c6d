//! The Kubernetes API of one cluster of a mesh, for commands that read objects and execute in pods.

use crate::support::certificates::certificates;
use crate::support::exec::{self, Execution, Reply};
use crate::support::kubernetes_api::{failure, json_response, serve};
use axum::Router;
use axum::body::to_bytes;
use axum::extract::{Request, State};
use axum::http::{Method, StatusCode};
use axum::response::Response;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use isthmus::mesh::pki::Authority;
use parking_lot::Mutex;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

pub const REVIEWS: &str = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews";
const CORE: &str = "/api/v1/namespaces/kube-system";
const APPS: &str = "/apis/apps/v1/namespaces/kube-system";
const STORE: &str = "clustermesh-apiserver";
/// The address of the own store in client files of agents.
const OWN: &str = "https://clustermesh-apiserver.kube-system.svc:2379";

/// A running API.
#[derive(Clone)]
pub struct ClusterApi {
    pub name: String,
    pub url: String,
    state: Arc<Objects>,
}

#[derive(Default)]
struct Objects {
    /// Path → object.
    objects: Mutex<BTreeMap<String, Value>>,
    /// Pod and a part of the command → what the command does.
    script: Mutex<BTreeMap<(String, String), Reply>>,
    executions: Mutex<Vec<Execution>>,
    /// What the user may not do, such as `get secrets`.
    denied: Mutex<BTreeSet<String>>,
    fault: Mutex<Option<Fault>>,
    /// Number of requests that met the fault.
    faulty: AtomicUsize,
}

/// What is wrong with an API server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Answers every request with an internal error.
    Fails,
    /// Answers no request.
    Hangs,
}

impl ClusterApi {
    /// Starts the API of a cluster with a store behind a NodePort, one mirror, and three agents on three nodes. Its CA is
    /// `authority`.
    pub async fn start(name: &str, id: u32, authority: &Authority) -> Self {
        let state = Arc::new(Objects::default());
        let router = Router::new().fallback(answer).with_state(Arc::clone(&state));
        let (name, url) = (name.to_owned(), serve(router).await);
        let api = Self { name, url, state };
        api.install(id, authority);
        api
    }

    fn install(&self, id: u32, authority: &Authority) {
        let config = json!({"cluster-name": self.name, "cluster-id": id.to_string(), "identity-allocation-mode": "crd",
            "cluster-pool-ipv4-cidr": format!("10.{}.0.0/16", 240 + id), "routing-mode": "tunnel", "tunnel-protocol": "vxlan"});
        self.put(&format!("{CORE}/configmaps/cilium-config"), json!({"data": config}));
        let port = json!({"port": 2379, "nodePort": 32379});
        let service = json!({"spec": {"type": "NodePort", "clusterIP": "10.96.0.9", "ports": [port]}});
        self.put(&format!("{CORE}/services/{STORE}"), service);
        self.deploy(&["etcd", "apiserver", "kvstoremesh"], 1);
        let agent = json!([{"name": "cilium-agent", "image": "quay.io/cilium/cilium:v1.20.2"}]);
        self.put(
            &format!("{APPS}/daemonsets/cilium"),
            json!({"spec": {"selector": {}, "template": {"spec": {"containers": agent}}}}),
        );
        for at in 0..3 {
            let address = format!("10.{}.1.{at}", 12 + id);
            let status = json!({"conditions": [{"type": "Ready", "status": "True"}],
                "addresses": [{"type": "InternalIP", "address": address}]});
            self.put(&format!("/api/v1/nodes/n{at}"), json!({"status": status}));
            self.pod(&format!("cilium-{at}"), "cilium", "cilium-agent");
        }
        self.pod("clustermesh-apiserver-0", STORE, "kvstoremesh");
        for (name, values) in certificates(&self.name, authority) {
            self.secret(&name, &values);
        }
    }

    /// The Deployment of the store, with `ready` of one replica.
    pub fn deploy(&self, containers: &[&str], ready: i32) {
        let containers: Vec<_> = containers.iter().map(|name| json!({"name": name})).collect();
        let status = json!({"observedGeneration": 1, "replicas": 1, "availableReplicas": ready, "readyReplicas": ready,
            "updatedReplicas": 1});
        let spec = json!({"replicas": 1, "selector": {}, "template": {"spec": {"containers": containers}}});
        let deployment = json!({"metadata": {"generation": 1}, "spec": spec, "status": status});
        self.put(&format!("{APPS}/deployments/{STORE}"), deployment);
    }

    /// A pod whose container runs.
    pub fn pod(&self, name: &str, app: &str, container: &str) {
        let status = json!({"phase": "Running", "containerStatuses": [{"name": container, "ready": true, "restartCount": 0,
            "image": "", "imageID": "", "state": {"running": {}}}]});
        self.pod_with(name, app, status);
    }

    /// A pod in any state.
    pub fn pod_with(&self, name: &str, app: &str, status: Value) {
        let pod = json!({"metadata": {"labels": {"k8s-app": app}}, "status": status});
        self.put(&format!("{CORE}/pods/{name}"), pod);
    }

    pub fn secret<T: AsRef<str>>(&self, name: &str, values: &[(&str, T)]) {
        let data: BTreeMap<_, _> = values
            .iter()
            .map(|(key, value)| (*key, STANDARD.encode(value.as_ref())))
            .collect();
        self.put(&format!("{CORE}/secrets/{name}"), json!({"data": data}));
    }

    /// Writes the client files of a connection to the cluster `peer`, as the chart does with a mirror.
    pub fn connect(&self, peer: &str, address: &str) {
        self.secret("cilium-clustermesh", &[(peer, &format!("endpoints:\n- {OWN}\n"))]);
        self.secret(
            "cilium-kvstoremesh",
            &[(peer, &format!("endpoints:\n- https://{address}\n"))],
        );
    }

    /// Creates or replaces the object at `path`, whose last part is its name.
    pub fn put(&self, path: &str, mut object: Value) {
        object["metadata"]["name"] = json!(path.rsplit('/').next().unwrap());
        self.state.objects.lock().insert(path.to_owned(), object);
    }

    pub fn remove(&self, path: &str) {
        self.state.objects.lock().remove(path).unwrap();
    }

    /// What a command in `pod` does whose words contain `part`.
    pub fn reply(&self, pod: &str, part: &str, reply: Reply) {
        self.state
            .script
            .lock()
            .insert((pod.to_owned(), part.to_owned()), reply);
    }

    /// All agents and the mirror say `remotes`.
    pub fn say(&self, remotes: &Value) {
        for at in 0..3 {
            self.agent_says(&format!("cilium-{at}"), remotes);
        }
        let mirror = Reply::Prints(remotes.to_string());
        self.reply("clustermesh-apiserver-0", "kvstoremesh-dbg status", mirror);
    }

    pub fn agent_says(&self, pod: &str, remotes: &Value) {
        let status = json!({"cluster-mesh": {"clusters": remotes}});
        self.reply(pod, "cilium status", Reply::Prints(status.to_string()));
    }

    /// Takes a right away, such as `get secrets`.
    pub fn deny(&self, right: &str) {
        self.state.denied.lock().insert(right.to_owned());
    }

    /// Gives a right back.
    pub fn grant(&self, right: &str) {
        self.state.denied.lock().remove(right);
    }

    /// Breaks or mends the API server.
    pub fn fault(&self, fault: Option<Fault>) {
        *self.state.fault.lock() = fault;
    }

    /// The number of requests that met a fault.
    pub fn faulty(&self) -> usize {
        self.state.faulty.load(Ordering::Relaxed)
    }

    pub fn executions(&self) -> Vec<Execution> {
        self.state.executions.lock().clone()
    }
}

/// Writes a kubeconfig with a context for each cluster, the first of which is the current one.
pub fn kubeconfig(path: &Path, apis: &[&ClusterApi]) {
    let mut text = format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: {}\ncontexts:\n",
        apis[0].name
    );
    for ClusterApi { name, .. } in apis {
        text += &format!("- {{name: {name}, context: {{cluster: {name}, user: u}}}}\n");
    }
    text += "users: [{name: u, user: {token: t}}]\nclusters:\n";
    for ClusterApi { name, url, .. } in apis {
        text += &format!("- {{name: {name}, cluster: {{server: '{url}'}}}}\n");
    }
    std::fs::write(path, text).unwrap();
}

async fn answer(State(state): State<Arc<Objects>>, request: Request) -> Response {
    let path = request.uri().path().to_owned();
    let fault = *state.fault.lock();
    if let Some(fault) = fault {
        state.faulty.fetch_add(1, Ordering::Relaxed);
        if fault == Fault::Hangs {
            tokio::time::sleep(Duration::from_secs(600)).await;
        }
        let message = "etcdserver: request timed out";
        return failure(StatusCode::INTERNAL_SERVER_ERROR, "InternalError", message);
    }
    if let Some(execution) = Execution::of(&request) {
        state.executions.lock().push(execution.clone());
        if state.denied.lock().contains("create pods/exec") {
            return failure(
                StatusCode::FORBIDDEN,
                "Forbidden",
                "pods is forbidden: cannot create resource \"pods/exec\"",
            );
        }
        let script = state.script.lock();
        let found = script
            .iter()
            .find(|((pod, part), _)| *pod == execution.pod && execution.command.contains(part.as_str()));
        return match found {
            Some((_, reply)) => exec::answer(request, reply.clone()),
            None => exec::answer(request, Reply::Fails("no such command".to_owned(), 127)),
        };
    }
    if request.method() == Method::POST && path == REVIEWS {
        return review(&state, request).await;
    }
    if path.contains("/secrets/") && state.denied.lock().contains("get secrets") {
        return failure(
            StatusCode::FORBIDDEN,
            "Forbidden",
            "secrets is forbidden: User \"u\" cannot get resource \"secrets\"",
        );
    }
    if path.ends_with("/pods") && state.denied.lock().contains("list pods") {
        state.faulty.fetch_add(1, Ordering::Relaxed);
        let message = "pods is forbidden: User \"u\" cannot list resource \"pods\"";
        return failure(StatusCode::FORBIDDEN, "Forbidden", message);
    }
    let query = request.uri().query().unwrap_or_default().to_owned();
    let objects = state.objects.lock();
    if let Some(object) = objects.get(&path) {
        return json_response(object);
    }
    let is_collection = ["nodes", "pods", "secrets", "configmaps", "ciliumnodes"]
        .iter()
        .any(|kind| path.ends_with(kind));
    if !is_collection {
        return failure(
            StatusCode::NOT_FOUND,
            "NotFound",
            "the server could not find the requested resource",
        );
    }
    let label = query.split('&').find_map(|pair| pair.strip_prefix("labelSelector="));
    let has_label = |object: &Value| match label.map(|label| label.replace("%3D", "=")) {
        None => true,
        Some(label) => label
            .split_once('=')
            .is_some_and(|(key, value)| object["metadata"]["labels"][key] == value),
    };
    let prefix = format!("{path}/");
    let items: Vec<_> = objects
        .iter()
        .filter(|(at, object)| at.starts_with(&prefix) && has_label(object))
        .map(|(_, o)| o)
        .collect();
    json_response(&json!({"kind": "List", "apiVersion": "v1", "metadata": {"resourceVersion": "1"}, "items": items}))
}

async fn review(state: &Objects, request: Request) -> Response {
    let body = to_bytes(request.into_body(), 1 << 20).await.unwrap();
    let mut review: Value = serde_json::from_slice(&body).unwrap();
    let wanted = &review["spec"]["resourceAttributes"];
    let text = |key: &str| wanted[key].as_str().unwrap_or_default().to_owned();
    let right = format!(
        "{} {}",
        text("verb"),
        [text("resource"), text("subresource")].join("/").trim_end_matches('/')
    );
    let is_allowed = !state.denied.lock().contains(&right);
    review["status"] = json!({"allowed": is_allowed});
    json_response(&review)
}
