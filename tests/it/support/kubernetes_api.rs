//! A Kubernetes API server inside the test. It serves lists and watches of whole collections, and can be told to
//! fail, to forget the past of its watches, to be restored from a backup, and to lack the definition of a custom
//! resource.

use crate::support::kubernetes_client::{SelfSigned, TlsListener};
use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::serve::Listener;
use futures::StreamExt;
use parking_lot::Mutex;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use tokio::sync::broadcast;
use tokio_stream::wrappers::BroadcastStream;

pub const NAMESPACES: &str = "/api/v1/namespaces";
pub const SERVICES: &str = "/api/v1/services";
pub const SLICES: &str = "/apis/discovery.k8s.io/v1/endpointslices";
pub const NODES: &str = "/apis/cilium.io/v2/ciliumnodes";
pub const IDENTITIES: &str = "/apis/cilium.io/v2/ciliumidentities";
pub const ENDPOINTS: &str = "/apis/cilium.io/v2/ciliumendpoints";
pub const EXPORTS: &str = "/apis/multicluster.x-k8s.io/v1alpha1/serviceexports";

/// The newest version of a restored backup.
const RESTORED_VERSION: &str = "3";

/// A running server.
#[derive(Clone)]
pub struct KubernetesApi {
    pub url: String,
    state: Arc<Cluster>,
}

struct Cluster {
    /// Path of a collection → name of an object, with its namespace if there is one → object.
    objects: Mutex<BTreeMap<String, BTreeMap<String, Value>>>,
    events: broadcast::Sender<Event>,
    /// Path of a collection → the changes since its last list, which a watch that continues from the list begins with.
    since_list: Mutex<BTreeMap<String, Vec<String>>>,
    /// Path and query of each request.
    requests: Mutex<Vec<String>>,
    /// Custom resources without a definition, as `plural.group`.
    undefined: Mutex<BTreeSet<String>>,
    /// Whether every request is answered with an error.
    failing: AtomicBool,
    /// The only token that requests may bear; `None` for all.
    token: Mutex<Option<String>>,
    /// The answer to watches of versions that a restored backup does not have yet.
    restored: Mutex<Option<TooLarge>>,
}

/// How a watch of a version that the API server does not have yet is refused.
#[derive(Clone, Copy, Debug)]
pub enum TooLarge {
    /// As the answer to the request.
    Status,
    /// As an event of the watch.
    Event,
}

/// A line for all watches of one collection.
#[derive(Clone)]
struct Event {
    collection: String,
    /// `None` ends the watches.
    line: Option<String>,
}

impl KubernetesApi {
    /// Starts a server without objects.
    pub async fn start() -> Self {
        let state = Arc::new(Cluster {
            objects: Mutex::default(),
            events: broadcast::channel(1000).0,
            since_list: Mutex::default(),
            requests: Mutex::default(),
            undefined: Mutex::default(),
            failing: AtomicBool::new(false),
            token: Mutex::default(),
            restored: Mutex::default(),
        });
        let router = Router::new().fallback(answer).with_state(state.clone());
        Self {
            url: serve(router).await,
            state,
        }
    }

    /// Serves the same objects over TLS, too. Returns the address.
    pub async fn serve_tls(&self, certificate: &SelfSigned) -> SocketAddr {
        let listener = TlsListener::new(certificate).await;
        let address = Listener::local_addr(&listener).unwrap();
        let router = Router::new().fallback(answer).with_state(self.state.clone());
        tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        address
    }

    /// Answers 401 to requests that do not bear this token.
    pub fn require_token(&self, token: &str) {
        *self.state.token.lock() = Some(token.to_owned());
    }

    /// Starts a server that holds the objects of the golden fixture.
    pub async fn with_golden_objects() -> Self {
        let api = Self::start().await;
        let text = include_str!("../../testdata/golden/objs.json");
        for mut object in serde_json::from_str::<Vec<Value>>(text).unwrap() {
            let collection = match object["kind"].as_str().unwrap() {
                "Namespace" => NAMESPACES,
                "Service" => SERVICES,
                "EndpointSlice" => SLICES,
                "CiliumNode" => NODES,
                "CiliumIdentity" => IDENTITIES,
                "CiliumEndpoint" => ENDPOINTS,
                "ServiceExport" => EXPORTS,
                _ => continue,
            };
            object["metadata"]["resourceVersion"] = json!("5");
            object["metadata"]["uid"] = json!("0");
            api.apply(collection, object);
        }
        api
    }

    /// Creates or replaces an object.
    pub fn apply(&self, collection: &str, object: Value) {
        let metadata = &object["metadata"];
        let name = metadata["name"].as_str().unwrap();
        let name = match metadata["namespace"].as_str() {
            Some(namespace) => format!("{namespace}/{name}"),
            None => name.to_owned(),
        };
        let mut objects = self.state.objects.lock();
        objects
            .entry(collection.to_owned())
            .or_default()
            .insert(name, object.clone());
        self.send(collection, "MODIFIED", &object);
    }

    /// Deletes an object. `name` is `NAMESPACE/NAME` for an object in a namespace.
    pub fn delete(&self, collection: &str, name: &str) {
        let object = self.delete_without_event(collection, name);
        self.send(collection, "DELETED", &object);
    }

    /// Deletes an object and sends no event: only the next list shows the deletion.
    pub fn delete_without_event(&self, collection: &str, name: &str) -> Value {
        let mut objects = self.state.objects.lock();
        objects.get_mut(collection).unwrap().remove(name).unwrap()
    }

    /// Ends the watches of a collection with 410 (Gone): the revision they continue from is too old.
    pub fn expire_watches(&self, collection: &str) {
        let gone = json!({"kind": "Status", "apiVersion": "v1", "code": 410, "reason": "Expired", "message": "too old", "status": "Failure"});
        self.send(collection, "ERROR", &gone);
    }

    /// Restores a backup: the newest version is older than the versions that clients have seen, and open watches end.
    pub fn restore(&self, collection: &str, answer: TooLarge) {
        *self.state.restored.lock() = Some(answer);
        self.send_line(collection, None);
    }

    fn send(&self, collection: &str, kind: &str, object: &Value) {
        let line = event_line(kind, object);
        let mut since_list = self.state.since_list.lock();
        if kind != "ERROR" {
            since_list.entry(collection.to_owned()).or_default().push(line.clone());
        }
        self.send_line(collection, Some(line));
    }

    fn send_line(&self, collection: &str, line: Option<String>) {
        // Sending fails if no watch is open.
        let _ = self.state.events.send(Event {
            collection: collection.to_owned(),
            line,
        });
    }

    /// Answers every request with an error from now on.
    pub fn fail(&self) {
        self.state.failing.store(true, Ordering::Relaxed);
    }

    /// Answers requests again.
    pub fn recover(&self) {
        self.state.failing.store(false, Ordering::Relaxed);
    }

    /// Removes the definition of a custom resource, named `plural.group`.
    pub fn undefine(&self, resource: &str) {
        self.state.undefined.lock().insert(resource.to_owned());
    }

    /// Restores the definition of a custom resource.
    pub fn define(&self, resource: &str) {
        self.state.undefined.lock().remove(resource);
    }

    /// Path and query of each request so far.
    pub fn requests(&self) -> Vec<String> {
        self.state.requests.lock().clone()
    }
}

/// Serves `router` on loopback until the test ends, and returns the URL.
pub async fn serve(router: Router) -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
    url
}

/// A JSON answer.
pub fn json_response(value: &Value) -> Response {
    ([("content-type", "application/json")], value.to_string()).into_response()
}

/// An error as an API server reports one.
pub fn failure(code: StatusCode, reason: &str, message: &str) -> Response {
    let status = json!({"kind": "Status", "apiVersion": "v1", "code": code.as_u16(), "reason": reason, "status": "Failure",
        "message": message});
    (code, status.to_string()).into_response()
}

async fn answer(State(cluster): State<Arc<Cluster>>, request: Request) -> Response {
    let path = request.uri().path().to_owned();
    let query = request.uri().query().unwrap_or_default().to_owned();
    cluster.requests.lock().push(format!("{path}?{query}"));
    let token = cluster.token.lock().clone();
    if let Some(token) = token {
        let authorization = request.headers().get("authorization");
        if authorization.is_none_or(|value| *value != format!("Bearer {token}")) {
            return failure(StatusCode::UNAUTHORIZED, "Unauthorized", "Unauthorized");
        }
    }
    if cluster.failing.load(Ordering::Relaxed) {
        return StatusCode::SERVICE_UNAVAILABLE.into_response();
    }
    if path == "/readyz" {
        return "ok".into_response();
    }
    if path == "/version" {
        let version = json!({"major": "1", "minor": "31", "gitVersion": "v1.31.0", "gitCommit": "", "gitTreeState": "",
            "buildDate": "", "goVersion": "", "compiler": "", "platform": ""});
        return json_response(&version);
    }
    if let Some(name) = path.strip_prefix("/apis/apiextensions.k8s.io/v1/customresourcedefinitions/") {
        return definition(&cluster, name);
    }
    if query.contains("sendInitialEvents=true") {
        // A server without streaming lists refuses them with this answer. The publisher suite in `tests/interop` covers
        // streaming lists.
        let message = "sendInitialEvents is forbidden";
        return failure(StatusCode::UNPROCESSABLE_ENTITY, "Invalid", message);
    }
    let restored = *cluster.restored.lock();
    if query.contains("watch=true") {
        let version = query.split('&').find_map(|part| part.strip_prefix("resourceVersion="));
        let number = |version: &str| version.parse::<u64>().unwrap();
        let is_too_large = version.is_some_and(|version| number(version) > number(RESTORED_VERSION));
        return match restored.filter(|_| is_too_large) {
            Some(TooLarge::Status) => (StatusCode::GATEWAY_TIMEOUT, too_large().to_string()).into_response(),
            Some(TooLarge::Event) => event_line("ERROR", &too_large()).into_response(),
            None => watch(&cluster, path, version == Some(list_version(restored))),
        };
    }
    let objects = cluster.objects.lock();
    let items: Vec<Value> = objects
        .get(&path)
        .into_iter()
        .flat_map(BTreeMap::values)
        .cloned()
        .collect();
    cluster.since_list.lock().remove(&path);
    let version = list_version(restored);
    json_response(
        &json!({"kind": "List", "apiVersion": "v1", "metadata": {"resourceVersion": version}, "items": items}),
    )
}

/// The version of every list.
fn list_version(restored: Option<TooLarge>) -> &'static str {
    restored.map_or("10", |_| RESTORED_VERSION)
}

fn definition(cluster: &Cluster, name: &str) -> Response {
    if cluster.undefined.lock().contains(name) {
        let message = "the server could not find the requested resource";
        return failure(StatusCode::NOT_FOUND, "NotFound", message);
    }
    let versions = [("v2", true), ("v1beta1", false), ("v1alpha1", true)];
    let versions = versions.map(|(name, served)| json!({"name": name, "served": served}));
    json_response(&json!({"spec": {"versions": versions}}))
}

fn watch(cluster: &Cluster, collection: String, continues_list: bool) -> Response {
    let (events, earlier) = {
        let since_list = cluster.since_list.lock();
        let earlier = since_list.get(&collection).filter(|_| continues_list);
        (cluster.events.subscribe(), earlier.cloned().unwrap_or_default())
    };
    let events = BroadcastStream::new(events);
    let lines = events.filter_map(move |event| {
        let event = event.unwrap();
        let line = (event.collection == collection).then_some(event.line);
        async move { line }
    });
    let lines = futures::stream::iter(earlier.into_iter().map(Some)).chain(lines);
    let lines = lines.take_while(|line| std::future::ready(line.is_some()));
    let lines = lines.map(|line| Ok::<_, std::io::Error>(Bytes::from(line.unwrap_or_default())));
    Body::from_stream(lines).into_response()
}

fn event_line(kind: &str, object: &Value) -> String {
    json!({"type": kind, "object": object}).to_string() + "\n"
}

/// The answer of an API server (Kubernetes 1.36) to a request for a version that it does not have yet.
fn too_large() -> Value {
    json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "reason": "Timeout", "code": 504,
        "message": "Timeout: Too large resource version: 10, current: 3",
        "details": {"causes": [{"reason": "ResourceVersionTooLarge", "message": "Too large resource version"}],
            "retryAfterSeconds": 1}})
}
