//! The status API that Cilium's tools read: `GET /v1/cluster`. In a replica, `GET /v1/replica` says how it follows its etcd.

use super::metrics::MeshMetrics;
use super::status::ReplicaStatus;
use crate::util::expiry::Expiries;
use axum::extract::Request;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::{Router, routing};
use std::sync::Arc;
use std::time::SystemTime;

/// How this process follows an etcd; `None` if it does not.
pub type ReplicaSource = Arc<dyn Fn() -> Option<ReplicaStatus> + Send + Sync>;

/// Routes of the API. An instance that does not hold the leader lock has no mesh, and shows no clusters.
pub fn router(metrics: MeshMetrics, expiry: Expiries, replica: ReplicaSource) -> Router {
    let clusters = move || {
        let mut clusters = metrics.mesh().map(|mesh| mesh.remote_clusters()).unwrap_or_default();
        for cluster in &mut clusters {
            cluster.certificates = expiry.troubles_of(&cluster.name, SystemTime::now());
        }
        async move {
            let body = serde_json::to_string(&clusters).unwrap_or_default() + "\n";
            document(body)
        }
    };
    let replica = move |request: Request| {
        let status = replica();
        async move {
            match status {
                Some(status) => document(serde_json::to_string(&status).unwrap_or_default() + "\n"),
                None => not_found(request).await,
            }
        }
    };
    Router::new()
        .route("/v1/cluster", routing::get(clusters).fallback(not_allowed))
        .route("/v1/replica", routing::get(replica).fallback(not_allowed))
        .fallback(not_found)
}

fn document(body: String) -> Response {
    let headers = [
        (header::CONTENT_TYPE, "application/json"),
        (header::CONNECTION, "close"),
    ];
    (headers, body).into_response()
}

fn error(status: StatusCode, message: String) -> Response {
    let body = serde_json::json!({"code": status.as_u16(), "message": message}).to_string();
    (status, [(header::CONTENT_TYPE, "application/json")], body).into_response()
}

async fn not_found(request: Request) -> Response {
    error(
        StatusCode::NOT_FOUND,
        format!("path {} was not found", request.uri().path()),
    )
}

async fn not_allowed(request: Request) -> Response {
    let text = format!("method {} is not allowed, but [GET] are", request.method());
    error(StatusCode::METHOD_NOT_ALLOWED, text)
}
