//! HTTP servers for operators: readiness and metrics.

use crate::util::readiness::Ready;
use axum::Router;
use axum::extract::RawQuery;
use axum::http::header::{ACCEPT, CONTENT_TYPE};
use axum::http::{HeaderMap, StatusCode};
use axum::routing::{any, get};
use prometheus_client::encoding::text::encode;
use prometheus_client::registry::Registry;
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::net::TcpListener;

/// `/readyz` and `/healthz`. Parity: bodies and accepted methods (any) are Cilium's. `/readyz?verbose` also lists the
/// steps and conditions.
pub fn health(ready: Ready) -> Router {
    let readyz = move |RawQuery(query): RawQuery| {
        let ready = ready.clone();
        async move {
            let (status, word) = match ready.is_ready() {
                true => (StatusCode::OK, "Ready"),
                false => (StatusCode::INTERNAL_SERVER_ERROR, "NotReady"),
            };
            let verbose = query.is_some_and(|q| q.split('&').any(|part| part.split('=').next() == Some("verbose")));
            let body = if verbose {
                ready.report() + word + "\n"
            } else {
                word.to_owned()
            };
            (status, body)
        }
    };
    Router::new()
        .route("/readyz", any(readyz))
        .route("/healthz", any(|| async { "ok" }))
        .fallback(|| async { (StatusCode::NOT_FOUND, "404 page not found\n") })
}

/// The content type of a page of metrics, chosen by the request. The text is valid in both formats.
fn metrics_content_type(headers: &HeaderMap) -> &'static str {
    let accepts = headers.get_all(ACCEPT).iter().filter_map(|v| v.to_str().ok());
    match accepts.into_iter().any(|v| v.contains("application/openmetrics-text")) {
        true => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        false => "text/plain; version=0.0.4; charset=utf-8",
    }
}

/// `/metrics` in the OpenMetrics text format.
pub fn metrics(registry: Arc<Registry>) -> Router {
    let page = move |headers: HeaderMap| {
        let registry = Arc::clone(&registry);
        async move {
            let mut body = String::new();
            if let Err(error) = encode(&mut body, &registry) {
                tracing::error!(%error, "cannot write the metrics");
            }
            ([(CONTENT_TYPE, metrics_content_type(&headers))], body)
        }
    };
    Router::new().route("/metrics", get(page))
}

/// Binds `address`. The error names the address.
pub async fn bind(address: &str) -> std::io::Result<(TcpListener, SocketAddr)> {
    let named = |e: std::io::Error| std::io::Error::new(e.kind(), format!("cannot listen on {address}: {e}"));
    let listener = crate::util::net::bind(address).await.map_err(named)?;
    let bound = listener.local_addr().map_err(named)?;
    Ok((listener, bound))
}
