//! HTTP for operators, beside the stores: readiness.

use crate::util::readiness::Ready;
use axum::Router;
use axum::http::StatusCode;
use axum::routing::any;
use std::net::SocketAddr;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

/// `/readyz` with the original's bodies, and `/healthz`; any method, as there.
pub fn health(ready: Ready) -> Router {
    let readyz = move || {
        let ready = ready.clone();
        async move {
            match ready.is_ready() {
                true => (StatusCode::OK, "Ready"),
                false => (StatusCode::INTERNAL_SERVER_ERROR, "NotReady"),
            }
        }
    };
    Router::new()
        .route("/readyz", any(readyz))
        .route("/healthz", any(|| async { "ok" }))
        .fallback(|| async { (StatusCode::NOT_FOUND, "404 page not found\n") })
}

/// Binds `address` for [`serve`]; the error names it.
pub async fn bind(address: &str) -> std::io::Result<(TcpListener, SocketAddr)> {
    let named = |e: std::io::Error| std::io::Error::new(e.kind(), format!("cannot listen on {address}: {e}"));
    let listener = crate::util::net::bind(address).await.map_err(named)?;
    let bound = listener.local_addr().map_err(named)?;
    Ok((listener, bound))
}

/// Serves `router` until `stop`.
pub async fn serve(listener: TcpListener, router: Router, stop: CancellationToken) -> std::io::Result<()> {
    tokio::select! {
        () = stop.cancelled() => Ok(()),
        ended = axum::serve(listener, router).into_future() => ended,
    }
}
