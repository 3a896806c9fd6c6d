//! A Kubernetes API server that knows whole collections only.

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use futures::StreamExt;
use parking_lot::Mutex;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use tokio::sync::broadcast;
use tokio_stream::wrappers::BroadcastStream;

/// An API server that knows lists and watches of whole collections.
#[derive(Clone)]
pub struct FakeApi(pub Arc<Inner>);

pub struct Inner {
    /// Path of a collection → name → object.
    pub objects: Mutex<BTreeMap<String, BTreeMap<String, Value>>>,
    /// (path, watch event); an empty one ends the watches.
    pub events: broadcast::Sender<(String, Value)>,
    /// Path and query of each request.
    pub requests: Mutex<Vec<String>>,
    /// Custom resources that are not defined, by plural and group.
    pub undefined: Mutex<Vec<String>>,
    /// Whether it answers nothing but errors.
    pub away: AtomicBool,
}

impl FakeApi {
    pub async fn start() -> (Self, String) {
        let (events, _) = broadcast::channel(1000);
        let api = Self(Arc::new(Inner {
            objects: Mutex::default(),
            events,
            requests: Mutex::default(),
            undefined: Mutex::default(),
            away: AtomicBool::new(false),
        }));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let router = Router::new().fallback(serve).with_state(api.clone());
        tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        (api, url)
    }

    pub fn apply(&self, path: &str, object: Value) {
        let name = object["metadata"]["name"].as_str().unwrap().to_owned();
        let mut objects = self.0.objects.lock();
        objects.entry(path.to_owned()).or_default().insert(name, object.clone());
        let _ = self
            .0
            .events
            .send((path.to_owned(), json!({"type": "MODIFIED", "object": object})));
    }

    pub fn delete(&self, path: &str, name: &str, tell: bool) {
        let object = self.0.objects.lock().get_mut(path).unwrap().remove(name).unwrap();
        if tell {
            let _ = self
                .0
                .events
                .send((path.to_owned(), json!({"type": "DELETED", "object": object})));
        }
    }

    /// Ends the watches of a collection as an API server does that has forgotten their past.
    pub fn forget(&self, path: &str) {
        let gone = json!({"kind": "Status", "apiVersion": "v1", "code": 410, "reason": "Expired", "message": "too old", "status": "Failure"});
        let _ = self
            .0
            .events
            .send((path.to_owned(), json!({"type": "ERROR", "object": gone})));
    }
}

async fn serve(State(api): State<FakeApi>, request: Request) -> Response {
    let (path, query) = (
        request.uri().path().to_owned(),
        request.uri().query().unwrap_or_default().to_owned(),
    );
    api.0.requests.lock().push(format!("{path}?{query}"));
    if api.0.away.load(Ordering::Relaxed) {
        return axum::http::StatusCode::SERVICE_UNAVAILABLE.into_response();
    }
    if path == "/readyz" {
        return "ok".into_response();
    }
    if path == "/version" {
        // Lists as streams are tried by a peer test; here they are refused as servers without them do.
        let version = json!({"major": "1", "minor": "31", "gitVersion": "v1.31.0", "gitCommit": "", "gitTreeState": "",
            "buildDate": "", "goVersion": "", "compiler": "", "platform": ""});
        return ([("content-type", "application/json")], version.to_string()).into_response();
    }
    if let Some(name) = path.strip_prefix("/apis/apiextensions.k8s.io/v1/customresourcedefinitions/") {
        if api.0.undefined.lock().iter().any(|n| n == name) {
            return not_found();
        }
        let versions = [("v2", true), ("v1beta1", false), ("v1alpha1", true)];
        let versions = versions.map(|(name, served)| json!({"name": name, "served": served}));
        let definition = json!({"spec": {"versions": versions}});
        return ([("content-type", "application/json")], definition.to_string()).into_response();
    }
    if query.contains("sendInitialEvents=true") {
        let status = json!({"kind": "Status", "apiVersion": "v1", "code": 422, "reason": "Invalid", "status": "Failure",
            "message": "sendInitialEvents is forbidden"});
        return (axum::http::StatusCode::UNPROCESSABLE_ENTITY, status.to_string()).into_response();
    }
    if query.contains("watch=true") {
        let events = BroadcastStream::new(api.0.events.subscribe());
        let lines = events.filter_map(move |event| {
            let (of, event) = event.unwrap();
            let line = (of == path).then(|| Ok::<_, std::io::Error>(Bytes::from(event.to_string() + "\n")));
            async move { line }
        });
        return Body::from_stream(lines).into_response();
    }
    let items: Vec<Value> = api
        .0
        .objects
        .lock()
        .get(&path)
        .map(|o| o.values().cloned().collect())
        .unwrap_or_default();
    let list = json!({"kind": "List", "apiVersion": "v1", "metadata": {"resourceVersion": "10"}, "items": items});
    ([("content-type", "application/json")], list.to_string()).into_response()
}

fn not_found() -> Response {
    let status = json!({"kind": "Status", "apiVersion": "v1", "code": 404, "reason": "NotFound", "status": "Failure",
        "message": "the server could not find the requested resource"});
    (axum::http::StatusCode::NOT_FOUND, status.to_string()).into_response()
}

pub const NAMESPACES: &str = "/api/v1/namespaces";
pub const SERVICES: &str = "/api/v1/services";
pub const SLICES: &str = "/apis/discovery.k8s.io/v1/endpointslices";
pub const NODES: &str = "/apis/cilium.io/v2/ciliumnodes";
pub const IDENTITIES: &str = "/apis/cilium.io/v2/ciliumidentities";
pub const ENDPOINTS: &str = "/apis/cilium.io/v2/ciliumendpoints";
pub const EXPORTS: &str = "/apis/multicluster.x-k8s.io/v1alpha1/serviceexports";

/// The golden fixture, as an API server would hold it.
pub fn fill(api: &FakeApi) {
    let text = include_str!("../testdata/golden/objs.json");
    for mut object in serde_json::from_str::<Vec<Value>>(text).unwrap() {
        let path = match object["kind"].as_str().unwrap() {
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
        api.apply(path, object);
    }
}
