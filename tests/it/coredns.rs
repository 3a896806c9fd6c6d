//! `mcsapi-coredns-cfg` over a Kubernetes API.

use crate::troubleshoot::run;
use axum::Router;
use axum::body::to_bytes;
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use parking_lot::Mutex;
use serde_json::{Value, json};
use std::sync::Arc;

const MAP: &str = "/api/v1/namespaces/dns/configmaps/core";
const DEPLOYMENT: &str = "/apis/apps/v1/namespaces/dns/deployments/core";
const COREFILE: &str = ".:53 {\n    kubernetes a.local in-addr.arpa {\n    }\n}\n";

/// An API server with one ConfigMap and one Deployment.
#[derive(Clone)]
struct FakeApi(Arc<Mutex<Inner>>);

struct Inner {
    map: Value,
    deployment: Value,
    /// Method, path and query, content type, and body of each request.
    requests: Vec<(String, String, String, Value)>,
}

impl FakeApi {
    async fn start(image: &str, more: Value) -> (Self, String) {
        let template = json!({"spec": {"containers": [{"name": "coredns", "image": image}]}});
        let mut spec = json!({"selector": {}, "template": template});
        spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let meta = json!({"name": "core", "namespace": "dns", "resourceVersion": "7"});
        let api = Self(Arc::new(Mutex::new(Inner {
            map: json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta, "data": {"Corefile": COREFILE, "x": "y"}}),
            deployment: json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": meta, "spec": spec}),
            requests: vec![],
        })));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let router = Router::new().fallback(serve).with_state(api.clone());
        tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        (api, url)
    }

    /// Methods of the requests so far.
    fn methods(&self) -> Vec<String> {
        self.0.lock().requests.iter().map(|r| r.0.clone()).collect()
    }
}

async fn serve(State(api): State<FakeApi>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let body = to_bytes(body, 1 << 20).await.unwrap();
    let body: Value = serde_json::from_slice(&body).unwrap_or_default();
    let kind = parts
        .headers
        .get("content-type")
        .map(|v| v.to_str().unwrap().to_owned());
    let mut inner = api.0.lock();
    let method = parts.method.to_string();
    let request = (
        method.clone(),
        parts.uri.to_string(),
        kind.unwrap_or_default(),
        body.clone(),
    );
    inner.requests.push(request);
    let answer = match (&*method, parts.uri.path()) {
        ("GET", MAP) => inner.map.clone(),
        ("PUT", MAP) => {
            inner.map = body;
            inner.map.clone()
        }
        ("GET" | "PATCH", DEPLOYMENT) => inner.deployment.clone(),
        _ => {
            let status = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": "no such thing", "reason": "NotFound", "code": 404});
            return (axum::http::StatusCode::NOT_FOUND, status.to_string()).into_response();
        }
    };
    ([("content-type", "application/json")], answer.to_string()).into_response()
}

/// Runs the command, in part with variables.
async fn configure(url: &str, more: &[&str]) -> (Option<i32>, String) {
    let args = [
        "mcsapi-coredns-cfg".to_owned(),
        format!("--k8s-api-server-urls={url}"),
        "--coredns-configmap-name=core".to_owned(),
        "--coredns-namespace=dns".to_owned(),
        "--k8s-client-qps=5".to_owned(),
    ];
    let args: Vec<String> = args.into_iter().chain(more.iter().map(|m| (*m).to_owned())).collect();
    let done = tokio::task::spawn_blocking(move || {
        let variables = [
            ("CILIUM_COREDNS_DEPLOYMENT_NAME", "core"),
            ("CILIUM_COREDNS_CLUSTER_DOMAIN", "a.local"),
            ("CILIUM_COREDNS_CLUSTERSET_DOMAIN", ""),
        ];
        run(&variables, &args.iter().map(String::as_str).collect::<Vec<_>>())
    });
    let (code, out, err) = done.await.unwrap();
    (code, out + &err)
}

#[tokio::test]
async fn coredns_is_changed_and_restarted_once() {
    let (api, url) = FakeApi::start("registry:5000/coredns:v1.12.2", json!({})).await;
    let (code, log) = configure(&url, &[]).await;
    assert_eq!(code, Some(0), "{log}");
    assert!(log.contains("--k8s-client-qps is accepted and has no effect"), "{log}");
    assert_eq!(api.methods(), ["GET", "GET", "PUT", "PATCH"]);
    {
        let inner = api.0.lock();
        let after = ".:53 {\n    kubernetes a.local clusterset.local in-addr.arpa {\n       multicluster clusterset.local\n    }\n}\n";
        assert_eq!(
            inner.map["data"],
            json!({"Corefile": after, "Corefile.cilium.bak": COREFILE, "x": "y"})
        );
        assert_eq!(
            inner.map["metadata"]["resourceVersion"], "7",
            "a change by others is not lost"
        );
        let (_, uri, kind, patch) = &inner.requests[3];
        assert_eq!(kind, "application/apply-patch+yaml");
        assert!(
            uri.contains("fieldManager=mcsapi-coredns-autocfg") && uri.contains("force=true"),
            "{uri}"
        );
        let annotations = &patch["spec"]["template"]["metadata"]["annotations"];
        let at = annotations["clustermesh.cilium.io/autoPatchedAt"].as_str().unwrap();
        assert!(at.parse::<jiff::Timestamp>().is_ok() && at.len() == 20, "{at}");
        assert_eq!(
            *patch,
            json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "core", "namespace": "dns"},
                   "spec": {"template": {"metadata": {"annotations": annotations}}}})
        );
    }
    let (code, log) = configure(&url, &[]).await;
    assert_eq!(code, Some(0), "{log}");
    assert!(log.contains("nothing was changed"), "{log}");
    assert_eq!(api.methods().len(), 6, "only looked at");
}

#[tokio::test]
async fn what_cannot_be_changed_stays_as_it_is() {
    let (untagged, paused) = (json!({}), json!({"paused": true}));
    for (image, more, flag, code, part) in [
        (
            "coredns",
            &untagged,
            "--coredns-clusterset-domain=c.local",
            0,
            "no tag in image",
        ),
        ("coredns:1.11.0", &untagged, "", 255, "CoreDNS 1.11.0 is too old"),
        ("coredns:1.13.0", &paused, "", 255, "Deployment dns/core is paused"),
        (
            "coredns:1.13.0",
            &untagged,
            "--coredns-cluster-domain=b.local",
            255,
            "b.local",
        ),
        (
            "coredns:1.13.0",
            &untagged,
            "--coredns-configmap-name=x",
            255,
            "cannot get ConfigMap dns/x",
        ),
        (
            "coredns:1.13.0",
            &untagged,
            "--coredns-deployment-name=x",
            255,
            "cannot get Deployment dns/x",
        ),
        ("coredns:1.13.0", &untagged, "--enable-k8s=false", 255, "not enabled"),
    ] {
        let (api, url) = FakeApi::start(image, more.clone()).await;
        let flags: &[&str] = if flag.is_empty() { &[] } else { &[flag] };
        let (got, log) = configure(&url, flags).await;
        assert_eq!(got, Some(code), "{image} {flag}: {log}");
        assert!(log.contains(part), "no {part} in {log}");
        assert_eq!(api.methods().contains(&"PUT".to_owned()), code == 0, "{image} {flag}");
    }
}
