//! The status API that Cilium's tools read: `GET /v1/cluster`.

use super::metrics::MeshMetrics;
use crate::util::expiry::Expiries;
use axum::extract::Request;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::{Router, routing};
use std::time::SystemTime;

/// Routes of the API. An instance that does not hold the leader lock has no mesh, and shows no clusters.
pub fn router(metrics: MeshMetrics, expiry: Expiries) -> Router {
    let clusters = move || {
        let mut clusters = metrics.mesh().map(|mesh| mesh.remote_clusters()).unwrap_or_default();
        for cluster in &mut clusters {
            cluster.certificates = expiry.troubles_of(&cluster.name, SystemTime::now());
        }
        async move {
            let body = serde_json::to_string(&clusters).unwrap_or_default() + "\n";
            (
                [
                    (header::CONTENT_TYPE, "application/json"),
                    (header::CONNECTION, "close"),
                ],
                body,
            )
        }
    };
    Router::new()
        .route("/v1/cluster", routing::get(clusters).fallback(not_allowed))
        .fallback(not_found)
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
