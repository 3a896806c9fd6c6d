//! Proves which objects `mcsapi-coredns-cfg` changes through a Kubernetes API, and when it leaves them unchanged.

use crate::support::isthmus;
use crate::support::kubernetes_api::{failure, json_response, serve};
use crate::support::process::Finished;
use axum::Router;
use axum::body::to_bytes;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::response::Response;
use parking_lot::Mutex;
use serde_json::{Value, json};
use std::sync::Arc;

const MAP: &str = "/api/v1/namespaces/dns/configmaps/core";
const DEPLOYMENT: &str = "/apis/apps/v1/namespaces/dns/deployments/core";
const COREFILE: &str = ".:53 {\n    kubernetes a.local in-addr.arpa {\n    }\n}\n";

/// An API server with one ConfigMap and one Deployment.
struct Api {
    url: String,
    objects: Arc<Mutex<Objects>>,
}

struct Objects {
    map: Value,
    deployment: Value,
    requests: Vec<Received>,
}

/// A request that the API server has received.
struct Received {
    method: String,
    uri: String,
    content_type: String,
    body: Value,
}

impl Api {
    /// Starts a server whose CoreDNS has an image, and more fields in the Deployment's `spec`.
    async fn start(image: &str, more: Value) -> Self {
        let template = json!({"spec": {"containers": [{"name": "coredns", "image": image}]}});
        let mut spec = json!({"selector": {}, "template": template});
        spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let meta = json!({"name": "core", "namespace": "dns", "resourceVersion": "7"});
        let objects = Arc::new(Mutex::new(Objects {
            map: json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta, "data": {"Corefile": COREFILE, "x": "y"}}),
            deployment: json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": meta, "spec": spec}),
            requests: vec![],
        }));
        let router = Router::new().fallback(answer).with_state(objects.clone());
        Self {
            url: serve(router).await,
            objects,
        }
    }

    /// Methods of the requests so far.
    fn methods(&self) -> Vec<String> {
        let objects = self.objects.lock();
        objects.requests.iter().map(|request| request.method.clone()).collect()
    }

    /// Runs the command against this server, with some settings from variables and `flags`.
    async fn configure(&self, flags: &[&str]) -> Finished {
        let command = isthmus(["mcsapi-coredns-cfg"])
            .arg(format!("--k8s-api-server-urls={}", self.url))
            .args([
                "--coredns-configmap-name=core",
                "--coredns-namespace=dns",
                "--k8s-client-qps=5",
            ])
            .args(flags)
            .env("CILIUM_COREDNS_DEPLOYMENT_NAME", "core")
            .env("CILIUM_COREDNS_CLUSTER_DOMAIN", "a.local")
            .env("CILIUM_COREDNS_CLUSTERSET_DOMAIN", "");
        tokio::task::spawn_blocking(|| command.run()).await.unwrap()
    }
}

async fn answer(State(objects): State<Arc<Mutex<Objects>>>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let body = to_bytes(body, 1 << 20).await.unwrap();
    let body: Value = serde_json::from_slice(&body).unwrap_or_default();
    let content_type = parts.headers.get("content-type").map(|v| v.to_str().unwrap());
    let mut objects = objects.lock();
    let method = parts.method.to_string();
    objects.requests.push(Received {
        method: method.clone(),
        uri: parts.uri.to_string(),
        content_type: content_type.unwrap_or_default().to_owned(),
        body: body.clone(),
    });
    match (&*method, parts.uri.path()) {
        ("GET", MAP) => json_response(&objects.map),
        ("PUT", MAP) => {
            objects.map = body;
            json_response(&objects.map)
        }
        ("GET" | "PATCH", DEPLOYMENT) => json_response(&objects.deployment),
        _ => failure(StatusCode::NOT_FOUND, "NotFound", "no such thing"),
    }
}

#[tokio::test]
async fn coredns_is_changed_and_restarted_once() {
    let api = Api::start("registry:5000/coredns:v1.12.2", json!({})).await;
    let finished = api.configure(&[]).await;
    let log = finished.text();
    assert!(finished.succeeded(), "{log}");
    assert!(log.contains("--k8s-client-qps is accepted and has no effect"), "{log}");
    assert_eq!(api.methods(), ["GET", "GET", "PUT", "PATCH"]);
    {
        let objects = api.objects.lock();
        let after = ".:53 {\n    kubernetes a.local clusterset.local in-addr.arpa {\n       multicluster clusterset.local\n    }\n}\n";
        assert_eq!(
            objects.map["data"],
            json!({"Corefile": after, "Corefile.cilium.bak": COREFILE, "x": "y"})
        );
        assert_eq!(
            objects.map["metadata"]["resourceVersion"], "7",
            "the update must fail if somebody else changes the map meanwhile"
        );
        let Received {
            uri,
            content_type,
            body: patch,
            ..
        } = &objects.requests[3];
        assert_eq!(content_type, "application/apply-patch+yaml");
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
    let finished = api.configure(&[]).await;
    let log = finished.text();
    assert!(finished.succeeded(), "{log}");
    assert!(log.contains("nothing was changed"), "{log}");
    assert_eq!(api.methods().len(), 6, "the second run only reads");
}

#[tokio::test]
async fn a_configuration_that_cannot_be_adapted_stays_as_it_is() {
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
        (
            "coredns:1.13.0",
            &untagged,
            "--enable-k8s=false",
            255,
            "cannot configure CoreDNS with --enable-k8s=false",
        ),
    ] {
        let api = Api::start(image, more.clone()).await;
        let flags: &[&str] = if flag.is_empty() { &[] } else { &[flag] };
        let finished = api.configure(flags).await;
        let log = finished.text();
        assert_eq!(finished.code, Some(code), "{image} {flag}: {log}");
        assert!(log.contains(part), "no {part} in {log}");
        assert_eq!(api.methods().contains(&"PUT".to_owned()), code == 0, "{image} {flag}");
    }
}
