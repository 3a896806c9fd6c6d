//! The publisher over a Kubernetes API: lists, watches, selectors, a watch that breaks.

use crate::support::{Process, Tls, etcd, eventually, free_port};
use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use etcd_client::GetOptions;
use futures::StreamExt;
use parking_lot::Mutex;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::Arc;
use tokio::sync::broadcast;
use tokio_stream::wrappers::BroadcastStream;

/// An API server that knows lists and watches of whole collections.
#[derive(Clone)]
struct FakeApi(Arc<Inner>);

struct Inner {
    /// Path of a collection → name → object.
    objects: Mutex<BTreeMap<String, BTreeMap<String, Value>>>,
    /// (path, watch event); an empty one ends the watches.
    events: broadcast::Sender<(String, Value)>,
    /// Path and query of each request.
    requests: Mutex<Vec<String>>,
}

impl FakeApi {
    async fn start() -> (Self, String) {
        let (events, _) = broadcast::channel(1000);
        let api = Self(Arc::new(Inner {
            objects: Mutex::default(),
            events,
            requests: Mutex::default(),
        }));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let router = Router::new().fallback(serve).with_state(api.clone());
        tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        (api, url)
    }

    fn apply(&self, path: &str, object: Value) {
        let name = object["metadata"]["name"].as_str().unwrap().to_owned();
        let mut objects = self.0.objects.lock();
        objects.entry(path.to_owned()).or_default().insert(name, object.clone());
        let _ = self
            .0
            .events
            .send((path.to_owned(), json!({"type": "MODIFIED", "object": object})));
    }

    fn delete(&self, path: &str, name: &str, tell: bool) {
        let object = self.0.objects.lock().get_mut(path).unwrap().remove(name).unwrap();
        if tell {
            let _ = self
                .0
                .events
                .send((path.to_owned(), json!({"type": "DELETED", "object": object})));
        }
    }

    /// Ends the watches of a collection as an API server does that has forgotten their past.
    fn forget(&self, path: &str) {
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
    if path == "/version" {
        // Lists as streams are tried by a peer test; here they are refused as servers without them do.
        let version = json!({"major": "1", "minor": "31", "gitVersion": "v1.31.0", "gitCommit": "", "gitTreeState": "",
            "buildDate": "", "goVersion": "", "compiler": "", "platform": ""});
        return ([("content-type", "application/json")], version.to_string()).into_response();
    }
    if path.contains("customresourcedefinitions") {
        let definition = json!({"spec": {"versions": [{"name": "v2", "served": true}]}});
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

const NAMESPACES: &str = "/api/v1/namespaces";
const SERVICES: &str = "/api/v1/services";
const SLICES: &str = "/apis/discovery.k8s.io/v1/endpointslices";
const NODES: &str = "/apis/cilium.io/v2/ciliumnodes";
const IDENTITIES: &str = "/apis/cilium.io/v2/ciliumidentities";
const ENDPOINTS: &str = "/apis/cilium.io/v2/ciliumendpoints";

/// The golden fixture, as an API server would hold it.
fn fill(api: &FakeApi) {
    let text = include_str!("../testdata/golden/objs.json");
    for mut object in serde_json::from_str::<Vec<Value>>(text).unwrap() {
        let path = match object["kind"].as_str().unwrap() {
            "Namespace" => NAMESPACES,
            "Service" => SERVICES,
            "EndpointSlice" => SLICES,
            "CiliumNode" => NODES,
            "CiliumIdentity" => IDENTITIES,
            "CiliumEndpoint" => ENDPOINTS,
            _ => continue,
        };
        object["metadata"]["resourceVersion"] = json!("5");
        object["metadata"]["uid"] = json!("0");
        api.apply(path, object);
    }
}

#[tokio::test]
async fn objects_of_a_kubernetes_api_are_published_and_followed() {
    let (api, url) = FakeApi::start().await;
    fill(&api);
    let tls = Tls::new();
    let store = etcd(&tls, &[]);
    let config = tls.path("etcd.yaml");
    tls.client_file(&config, &store.address(), &tls.ca.client("admin", "admin").unwrap());
    let publisher = Process::start(&[
        "clustermesh",
        "--cluster-name=c3",
        "--cluster-id=3",
        &format!("--kvstore-opt=etcd.config={}", config.display()),
        &format!("--health-port={}", free_port()),
        &format!("--k8s-api-server-urls={url}"),
    ]);
    let mut client = tls.client(&store.address(), "any").await;
    let mut names = async |prefix: &str| {
        let options = GetOptions::new().with_prefix().with_keys_only();
        let kvs = client.get(prefix, Some(options)).await.unwrap();
        kvs.kvs()
            .iter()
            .map(|kv| kv.key_str().unwrap()[prefix.len()..].to_owned())
            .collect::<Vec<_>>()
    };
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
