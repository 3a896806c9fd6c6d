//! HTTP servers for operators: readiness and metrics.

use crate::util::metrics::Format;
use crate::util::readiness::Ready;
use axum::Router;
use axum::extract::RawQuery;
use axum::http::header::{ACCEPT, CONTENT_TYPE};
use axum::http::{HeaderMap, StatusCode};
use axum::routing::{any, get};
use prometheus_client::registry::Registry;
use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
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

/// A registry that is filled once the part that it describes has started.
pub type LateRegistry = Arc<OnceLock<Registry>>;

/// `/metrics`, in the format that the request accepts.
pub fn metrics(registry: Arc<Registry>, late: LateRegistry) -> Router {
    let page = move |headers: HeaderMap| {
        let (registry, late) = (Arc::clone(&registry), Arc::clone(&late));
        async move {
            let accepts = headers.get_all(ACCEPT).iter().filter_map(|v| v.to_str().ok());
            let format = Format::accepted(accepts);
            let body = format.page([&*registry].into_iter().chain(late.get()));
            let body = body.unwrap_or_else(|error| {
                tracing::error!(%error, "cannot write the metrics");
                String::new()
            });
            ([(CONTENT_TYPE, format.content_type())], body)
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
