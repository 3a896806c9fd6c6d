//! The Kubernetes API of one cluster for commands that change objects: it keeps objects, applies them by field manager,
//! merges patches, and deletes.
//!
//! Server-side apply is that of a real API server for maps: a manager owns the leaves that it has applied, leaves that it
//! does not apply any more are removed, and leaves of other managers with other values are conflicts. Lists are leaves.

use crate::support::certificates::certificates;
use crate::support::kubernetes_api::{failure, json_response, serve};
use axum::Router;
use axum::body::to_bytes;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::response::Response;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use isthmus::mesh::pki::Authority;
use parking_lot::Mutex;
use serde_json::{Map, Value, json};
use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

pub const CORE: &str = "/api/v1/namespaces/kube-system";
pub const APPS: &str = "/apis/apps/v1/namespaces/kube-system";
const STORE: &str = "clustermesh-apiserver";
/// The name with which this program writes.
const US: &str = "isthmus";

/// A running API.
#[derive(Clone)]
pub struct ApplyApi {
    pub name: String,
    pub url: String,
    state: Arc<Cluster>,
}

#[derive(Default)]
struct Cluster {
    /// Path → object.
    objects: Mutex<BTreeMap<String, Value>>,
    version: Mutex<u64>,
    /// Method and path of the requests that write.
    writes: Mutex<Vec<String>>,
    /// Paths that cannot be written.
    forbidden: Mutex<BTreeSet<String>>,
    /// Method and path of requests that are refused, rehearsals included.
    refused: Mutex<BTreeSet<String>>,
    /// What others do before a request is answered: method and path of the request, and the change. Each comes once.
    others: Mutex<Vec<(String, Change)>>,
}

type Change = Box<dyn FnOnce() + Send>;

/// Text of a path inside an object → its value.
type Leaves = BTreeMap<String, Value>;

impl ApplyApi {
    /// Starts the API of a cluster in which Cilium runs, without a mesh. Its two nodes are ready, a third one is not.
    pub async fn start(name: &str, id: u32) -> Self {
        let state = Arc::new(Cluster::default());
        let router = Router::new().fallback(answer).with_state(Arc::clone(&state));
        let (name, url) = (name.to_owned(), serve(router).await);
        let api = Self { name, url, state };
        let config = json!({"cluster-name": api.name, "cluster-id": id.to_string(), "routing-mode": "tunnel",
            "identity-allocation-mode": "crd", "cluster-pool-ipv4-cidr": format!("10.{}.0.0/16", 240 + id)});
        api.put(&format!("{CORE}/configmaps/cilium-config"), json!({"data": config}));
        api.agents("v1.20.2");
        for (at, ready) in ["True", "True", "False"].iter().enumerate() {
            let addresses = json!([{"type": "InternalIP", "address": format!("10.{}.1.{at}", 12 + id)}]);
            let status = json!({"addresses": addresses, "conditions": [{"type": "Ready", "status": ready}]});
            api.put(&format!("/api/v1/nodes/n{at}"), json!({"status": status}));
        }
        api
    }

    /// The agents' DaemonSet, with this version of Cilium.
    pub fn agents(&self, version: &str) {
        let agent = json!([{"name": "cilium-agent", "image": format!("quay.io/cilium/cilium:{version}")}]);
        let spec = json!({"selector": {}, "template": {"spec": {"containers": agent}}});
        self.put(&format!("{APPS}/daemonsets/cilium"), json!({"spec": spec}));
    }

    /// The objects of the chart with a store behind a NodePort and a mirror. Its certificates are of `authority`.
    pub fn install_chart(&self, authority: &Authority) {
        let helm = json!({"labels": {"app.kubernetes.io/managed-by": "Helm"},
            "annotations": {"meta.helm.sh/release-name": "cilium", "meta.helm.sh/release-namespace": "kube-system"}});
        let containers = ["etcd", "apiserver", "kvstoremesh"].map(|name| json!({"name": name}));
        let spec = json!({"replicas": 1, "selector": {}, "template": {"spec": {"containers": containers}}});
        let status = json!({"observedGeneration": 1, "replicas": 1, "availableReplicas": 1, "readyReplicas": 1, "updatedReplicas": 1});
        let mut deployment = json!({"metadata": helm, "spec": spec, "status": status});
        deployment["metadata"]["generation"] = json!(1);
        self.put(&format!("{APPS}/deployments/{STORE}"), deployment);
        let ports = json!([{"port": 2379, "nodePort": 32379}]);
        let service = json!({"metadata": helm, "spec": {"type": "NodePort", "clusterIP": "10.96.0.9", "ports": ports}});
        self.put(&format!("{CORE}/services/{STORE}"), service);
        for (name, values) in certificates(&self.name, authority) {
            self.secret(&name, &values);
        }
    }

    /// Creates or replaces the object at `path`, whose last part is its name, as another tool.
    pub fn put(&self, path: &str, mut object: Value) {
        object["metadata"]["name"] = json!(path.rsplit('/').next().unwrap());
        object["metadata"]["resourceVersion"] = json!(self.next_version());
        self.state.objects.lock().insert(path.to_owned(), object);
    }

    pub fn secret<T: AsRef<str>>(&self, name: &str, values: &[(&str, T)]) {
        let data: BTreeMap<_, _> = values
            .iter()
            .map(|(key, value)| (*key, STANDARD.encode(value.as_ref())))
            .collect();
        let kind = if data.contains_key("tls.crt") {
            "kubernetes.io/tls"
        } else {
            "Opaque"
        };
        self.put(&format!("{CORE}/secrets/{name}"), json!({"type": kind, "data": data}));
    }

    /// Changes an object as another tool.
    pub fn edit(&self, path: &str, change: impl FnOnce(&mut Value)) {
        let version = self.next_version();
        let mut objects = self.state.objects.lock();
        let object = objects.get_mut(path).unwrap();
        change(object);
        object["metadata"]["resourceVersion"] = json!(version);
    }

    fn next_version(&self) -> String {
        let mut version = self.state.version.lock();
        *version += 1;
        version.to_string()
    }

    pub fn get(&self, path: &str) -> Option<Value> {
        self.state.objects.lock().get(path).cloned()
    }

    /// The texts of a Secret.
    pub fn texts(&self, name: &str) -> BTreeMap<String, String> {
        let secret = self.get(&format!("{CORE}/secrets/{name}")).unwrap_or_default();
        let data = secret["data"].as_object().cloned().unwrap_or_default();
        let text = |value: &Value| String::from_utf8(STANDARD.decode(value.as_str().unwrap()).unwrap()).unwrap();
        data.iter().map(|(key, value)| (key.clone(), text(value))).collect()
    }

    /// Refuses writes to `path` from now on, and no rehearsals of writes.
    pub fn forbid(&self, path: &str) {
        self.state.forbidden.lock().insert(path.to_owned());
    }

    pub fn allow(&self, path: &str) {
        self.state.forbidden.lock().remove(path);
    }

    /// Lets another command do `change` before the next request with this method and path, such as `POST /api/…`.
    pub fn interrupt(&self, request: &str, change: impl FnOnce(&Self) + Send + 'static) {
        let api = self.clone();
        let change: Change = Box::new(move || change(&api));
        self.state.others.lock().push((request.to_owned(), change));
    }

    /// Lets the pods of the chart take their CAs from `key` of an object, `configMap` or `secret`, in place of `ca.crt`.
    pub fn use_bundle(&self, kind: &str, name: &str, key: &str) {
        let certificate = json!({"secret": {"name": "clustermesh-apiserver-server-cert",
            "items": [{"key": "tls.crt", "path": "tls.crt"}, {"key": "tls.key", "path": "tls.key"}]}});
        let bundle = json!({kind: {"name": name, "items": [{"key": key, "path": "ca.crt"}]}});
        let volume = json!({"name": "etcd-server-secrets", "projected": {"sources": [certificate, bundle]}});
        self.edit(&format!("{APPS}/deployments/{STORE}"), |deployment| {
            deployment["spec"]["template"]["spec"]["volumes"] = json!([volume]);
        });
    }

    /// Refuses requests of `method` to `path` from now on, rehearsals included.
    pub fn refuse(&self, method: &str, path: &str) {
        self.state.refused.lock().insert(format!("{method} {path}"));
    }

    /// Method and path of each write so far.
    pub fn writes(&self) -> Vec<String> {
        self.state.writes.lock().clone()
    }
}

/// Writes a kubeconfig with a context for each cluster, the first of which is the current one.
pub fn kubeconfig(path: &Path, contexts: &[(&str, &ApplyApi)]) {
    let mut text = format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: {}\ncontexts:\n",
        contexts[0].0
    );
    for (name, _) in contexts {
        text += &format!("- {{name: {name}, context: {{cluster: {name}, user: u}}}}\n");
    }
    text += "users: [{name: u, user: {token: t}}]\nclusters:\n";
    for (name, api) in contexts {
        text += &format!("- {{name: {name}, cluster: {{server: '{}'}}}}\n", api.url);
    }
    std::fs::write(path, text).unwrap();
}

async fn answer(State(cluster): State<Arc<Cluster>>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let (path, method) = (parts.uri.path().to_owned(), parts.method.to_string());
    let query = parts.uri.query().unwrap_or_default().to_owned();
    let kind = parts
        .headers
        .get("content-type")
        .map_or("", |value| value.to_str().unwrap())
        .to_owned();
    let body = to_bytes(body, 1 << 22).await.unwrap();
    let path = match &*method {
        // An object is named in the request.
        "POST" => {
            let object: Value = serde_json::from_slice(&body).unwrap();
            format!("{path}/{}", object["metadata"]["name"].as_str().unwrap())
        }
        _ => path,
    };
    // A deletion has its options in the body.
    let options: Value = match &*method {
        "DELETE" => serde_json::from_slice(&body).unwrap_or_default(),
        _ => Value::Null,
    };
    let is_rehearsal = query.contains("dryRun=All") || options["dryRun"] == json!(["All"]);
    let is_forbidden = method != "GET" && !is_rehearsal && cluster.forbidden.lock().contains(&path);
    if is_forbidden || cluster.refused.lock().contains(&format!("{method} {path}")) {
        let message = format!("{path} is forbidden: User \"u\" cannot {}", method.to_lowercase());
        return failure(StatusCode::FORBIDDEN, "Forbidden", &message);
    }
    if method != "GET" && !is_rehearsal {
        cluster.writes.lock().push(format!("{method} {path}"));
        let request = format!("{method} {path}");
        let other = {
            let mut others = cluster.others.lock();
            let at = others.iter().position(|(of, _)| *of == request);
            at.map(|at| others.remove(at).1)
        };
        if let Some(change) = other {
            change();
        }
    }
    match (&*method, &*kind) {
        ("GET", _) => get(&cluster, &path),
        ("DELETE", _) if is_rehearsal => get(&cluster, &path),
        ("DELETE", _) => match cluster.objects.lock().remove(&path) {
            Some(object) => json_response(&object),
            None => not_found(&path),
        },
        ("POST", _) => create(&cluster, &path, serde_json::from_slice(&body).unwrap(), is_rehearsal),
        ("PATCH", "application/apply-patch+yaml") => {
            let wanted = serde_json::from_slice(&body).unwrap();
            apply(&cluster, &path, wanted, query.contains("force=true"), is_rehearsal)
        }
        ("PATCH", _) => {
            let mut objects = cluster.objects.lock();
            let Some(object) = objects.get_mut(&path) else {
                return not_found(&path);
            };
            let patch: Value = serde_json::from_slice(&body).unwrap();
            let version = &patch["metadata"]["resourceVersion"];
            if !version.is_null() && *version != object["metadata"]["resourceVersion"] {
                return failure(StatusCode::CONFLICT, "Conflict", "the object has been modified");
            }
            if !is_rehearsal {
                merge(object, &patch);
                let mut next = cluster.version.lock();
                *next += 1;
                object["metadata"]["resourceVersion"] = json!(next.to_string());
            }
            json_response(object)
        }
        _ => failure(StatusCode::METHOD_NOT_ALLOWED, "MethodNotAllowed", "not supported"),
    }
}

/// Adds an object, whose fields its creator owns from then on.
fn create(cluster: &Cluster, path: &str, mut object: Value, is_rehearsal: bool) -> Response {
    let name = path.rsplit('/').next().unwrap();
    let mut objects = cluster.objects.lock();
    match objects.entry(path.to_owned()) {
        Entry::Occupied(_) => failure(
            StatusCode::CONFLICT,
            "AlreadyExists",
            &format!("{name:?} already exists"),
        ),
        Entry::Vacant(place) => {
            let owned = ownership("Update", &leaves_of(&object));
            object["metadata"]["managedFields"] = json!([owned]);
            let mut next = cluster.version.lock();
            *next += 1;
            object["metadata"]["resourceVersion"] = json!(next.to_string());
            if !is_rehearsal {
                place.insert(object.clone());
            }
            json_response(&object)
        }
    }
}

/// The entry about the fields that this program owns.
fn ownership(operation: &str, leaves: &Leaves) -> Value {
    let mut all = json!({});
    for at in leaves.keys() {
        note(&mut all, at);
    }
    json!({"manager": US, "operation": operation, "apiVersion": "v1", "fieldsType": "FieldsV1", "fieldsV1": all,
        "time": "2026-11-27T10:00:00Z"})
}

/// The leaves of an object that can be owned.
fn leaves_of(object: &Value) -> Leaves {
    let mut leaves = Leaves::new();
    collect(object, "", &mut leaves);
    leaves.retain(|at, _| {
        ![
            "/apiVersion",
            "/kind",
            "/metadata/name",
            "/metadata/namespace",
            "/metadata/resourceVersion",
        ]
        .contains(&&**at)
    });
    leaves
}

fn not_found(path: &str) -> Response {
    let name = path.rsplit('/').next().unwrap();
    failure(StatusCode::NOT_FOUND, "NotFound", &format!("{name:?} not found"))
}

fn get(cluster: &Cluster, path: &str) -> Response {
    let objects = cluster.objects.lock();
    if let Some(object) = objects.get(path) {
        return json_response(object);
    }
    if path == "/apis" {
        return json_response(&json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": []}));
    }
    let collections = ["nodes", "pods", "secrets", "configmaps", "ciliumnodes"];
    if !collections.contains(&path.rsplit('/').next().unwrap()) {
        return not_found(path);
    }
    let prefix = format!("{path}/");
    let items: Vec<_> = objects
        .iter()
        .filter(|(at, _)| at.starts_with(&prefix))
        .map(|(_, object)| object)
        .collect();
    json_response(&json!({"kind": "List", "apiVersion": "v1", "metadata": {"resourceVersion": "1"}, "items": items}))
}

fn apply(cluster: &Cluster, path: &str, wanted: Value, force: bool, is_rehearsal: bool) -> Response {
    let mut objects = cluster.objects.lock();
    let mut object = objects.get(path).cloned();
    let version = &wanted["metadata"]["resourceVersion"];
    let present = object
        .as_ref()
        .map_or(Value::Null, |object| object["metadata"]["resourceVersion"].clone());
    if !version.is_null() && *version != present {
        return failure(StatusCode::CONFLICT, "Conflict", "the object has been modified");
    }
    let live = object.get_or_insert_with(|| json!({"metadata": {"name": path.rsplit('/').next().unwrap()}}));
    let kinds = (live.get("type").cloned(), wanted.get("type").cloned());
    let default = json!("Opaque");
    if path.contains("/secrets/")
        && kinds
            .0
            .as_ref()
            .is_some_and(|kind| kind != kinds.1.as_ref().unwrap_or(&default))
    {
        let message = "type: Invalid value: \"Opaque\": field is immutable";
        return failure(StatusCode::UNPROCESSABLE_ENTITY, "Invalid", message);
    }
    let leaves = leaves_of(&wanted);
    let mut fields = live["metadata"]["managedFields"]
        .as_array()
        .cloned()
        .unwrap_or_default();
    let ours = fields
        .iter()
        .position(|entry| entry["manager"] == US && entry["operation"] == "Apply");
    let owned = ours
        .map(|at| fields.remove(at))
        .map(|entry| names(&entry["fieldsV1"], ""))
        .unwrap_or_default();
    for (at, value) in &leaves {
        let differs = live.pointer(at).is_some_and(|present| present != value) && !owned.contains(at);
        if differs && !force {
            let message = format!("Apply failed with 1 conflict: conflict with \"helm\" using v1: {at}");
            return failure(StatusCode::CONFLICT, "Conflict", &message);
        }
    }
    let of_others: BTreeSet<String> = fields.iter().flat_map(|entry| names(&entry["fieldsV1"], "")).collect();
    let is_removed = |at: &&String| !leaves.contains_key(*at) && !of_others.contains(*at);
    for at in owned.iter().filter(is_removed) {
        let (parent, name) = at.rsplit_once('/').unwrap();
        if let Some(Value::Object(parent)) = live.pointer_mut(parent) {
            parent.remove(&name.replace("~1", "/"));
        }
    }
    merge(live, &wanted);
    fields.push(ownership("Apply", &leaves));
    live["metadata"]["managedFields"] = Value::Array(fields);
    let mut next = cluster.version.lock();
    *next += 1;
    live["metadata"]["resourceVersion"] = json!(next.to_string());
    if path.contains("/deployments/") {
        // There is no kubelet: the pods are ready at once.
        live["metadata"]["generation"] = json!(1);
        live["status"] = json!({"observedGeneration": 1, "replicas": 1, "availableReplicas": 9, "readyReplicas": 9, "updatedReplicas": 9});
    }
    let live = live.clone();
    if !is_rehearsal {
        objects.insert(path.to_owned(), live.clone());
    }
    json_response(&live)
}

/// The leaves of an object, by their JSON pointers.
fn collect(value: &Value, at: &str, leaves: &mut Leaves) {
    match value {
        Value::Object(fields) if !fields.is_empty() => {
            for (name, value) in fields {
                collect(value, &format!("{at}/{}", name.replace('/', "~1")), leaves);
            }
        }
        _ => {
            leaves.insert(at.to_owned(), value.clone());
        }
    }
}

/// The pointers in the managed fields.
fn names(fields: &Value, at: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for (name, inner) in fields.as_object().into_iter().flatten() {
        let at = format!("{at}/{}", name.trim_start_matches("f:").replace('/', "~1"));
        match inner.as_object().is_none_or(Map::is_empty) {
            true => drop(found.insert(at)),
            false => found.extend(names(inner, &at)),
        }
    }
    found
}

fn note(fields: &mut Value, at: &str) {
    let mut here = fields;
    for name in at.split('/').skip(1) {
        here = &mut here[format!("f:{}", name.replace("~1", "/"))];
        if here.is_null() {
            *here = json!({});
        }
    }
}

/// A JSON merge patch.
fn merge(object: &mut Value, patch: &Value) {
    let Value::Object(fields) = patch else {
        *object = patch.clone();
        return;
    };
    if !object.is_object() {
        *object = json!({});
    }
    for (name, value) in fields {
        match value {
            Value::Null => drop(object.as_object_mut().unwrap().remove(name)),
            _ => merge(&mut object[name], value),
        }
    }
}
