//! Calls of services that do not exist.

use super::descriptors::grpc_methods;
use crate::util::lifecycle::Lifecycle;
use axum::body::Body;
use axum::extract::Request;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use futures::StreamExt;
use std::collections::BTreeSet;
use std::sync::LazyLock;
use std::time::Duration;
use tonic::Status;

/// How long messages to an unknown service are read and dropped. Without a reader, the transport would take them for an
/// attack, and end the connection with all of its other calls.
const DRAIN: Duration = Duration::from_secs(30);

/// The services of `proto/`.
static SERVICES: LazyLock<BTreeSet<String>> =
    LazyLock::new(|| grpc_methods().into_iter().map(|method| method.service).collect());

/// Answers a request that no route has taken: gRPC with grpc-go's status, and HTTP with 404.
pub(super) async fn answer(request: Request, life: Lifecycle) -> Response {
    let kind = request.headers().get(header::CONTENT_TYPE);
    if !kind.is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc")) {
        return (StatusCode::NOT_FOUND, "404 page not found\n").into_response();
    }
    let status = status(request.uri().path());
    let mut messages = request.into_body().into_data_stream();
    life.spawn_part("messages to an unknown service", async move {
        let drained = async { while let Some(Ok(_)) = messages.next().await {} };
        // Whoever still sends after that is no client.
        let _ = tokio::time::timeout(DRAIN, drained).await;
    });
    status.into_http::<Body>()
}

/// grpc-go's status (server.go, handleStream).
fn status(path: &str) -> Status {
    let Some((service, method)) = path.trim_start_matches('/').rsplit_once('/') else {
        return Status::unimplemented(format!("malformed method name: {path:?}"));
    };
    match SERVICES.contains(service) {
        true => Status::unimplemented(format!("unknown method {method} for service {service}")),
        false => Status::unimplemented(format!("unknown service {service}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_status_names_the_unknown_service_or_method() {
        let text = |path: &str| status(path).message().to_owned();
        assert_eq!(text("/grpc.Nothing/Get"), "unknown service grpc.Nothing");
        assert_eq!(
            text("/etcdserverpb.KV/Got"),
            "unknown method Got for service etcdserverpb.KV"
        );
        assert_eq!(text("/x"), "malformed method name: \"/x\"");
    }
}
