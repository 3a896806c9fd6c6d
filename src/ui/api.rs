//! The JSON API: what the pages show, for programs. Its OpenAPI document is made from this code.

use super::access::refusal;
use super::asked::{Fields, Name};
use super::data::{Data, shortened};
use super::reader::Reader;
use super::view::{
    Certificate, Client, Clients, Configuration, Delivery, Finding, Findings, KeyCounts, KeysOfKind, Lag, Method,
    Minute, Mirror, MirroredKind, Moment, Overview, OwnCluster, Part, PartState, ProcessFigures, Propagation,
    Readiness, Refusal, RefusedKeys, Remote, RemoteCounters, RemoteDetail, Scoped, ScopedKind, ScopedRule, Service,
    ServiceIn, Services, State, StateChange, StoreFigures, Totals,
};
use axum::extract::State as Shared;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Extension, Router};
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use utoipa::{IntoParams, OpenApi};

/// The most services in one answer.
const SERVICES_MAX: usize = 1000;

#[derive(OpenApi)]
#[openapi(
    info(
        title = "Isthmus",
        description = "What the mesh page shows, for programs. Read-only. New fields may be added; fields that are there keep \
                       their meaning. Whatever is not answered has the body `Refusal`: 400 for a malformed request, 401 without a \
                       certificate or token that opens the page, 403 and 421 for requests of other sites and hosts.",
        version = "1"
    ),
    paths(overview, remotes, remote, services, clients, look_up),
    components(schemas(
        Certificate,
        Client,
        Clients,
        Configuration,
        Delivery,
        Finding,
        Findings,
        KeyCounts,
        KeysOfKind,
        Lag,
        Method,
        Minute,
        Mirror,
        MirroredKind,
        Moment,
        Overview,
        OwnCluster,
        Part,
        PartState,
        ProcessFigures,
        Propagation,
        Readiness,
        RefusedKeys,
        Refusal,
        Remote,
        RemoteCounters,
        RemoteDetail,
        Scoped,
        ScopedKind,
        ScopedRule,
        Service,
        ServiceIn,
        Services,
        State,
        StateChange,
        StoreFigures,
        Totals
    ))
)]
struct Document;

/// Which services to answer.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(default)]
#[into_params(parameter_in = Query)]
struct Which {
    /// A part of `namespace/name`; empty for all services.
    q: String,
    /// The first service to answer.
    offset: usize,
    /// The most services to answer, up to 1000.
    limit: usize,
}

/// What to look up.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
struct Question {
    /// An IP address, `namespace/name` of a pod or service, `namespace/`, a number of an identity, a key or the beginning of keys, or a
    /// part of a name.
    q: String,
}

impl Default for Which {
    fn default() -> Self {
        Self {
            q: String::new(),
            offset: 0,
            limit: 100,
        }
    }
}

/// The routes below `/api/v1`.
pub(super) fn router(data: Arc<Data>) -> Router {
    Router::new()
        .route("/api/v1/overview", get(overview))
        .route("/api/v1/remotes", get(remotes))
        .route("/api/v1/remotes/{name}", get(remote))
        .route("/api/v1/services", get(services))
        .route("/api/v1/clients", get(clients))
        .route("/api/v1/look-up", get(look_up))
        .route("/api/v1/openapi.json", get(async || json(&Document::openapi())))
        .with_state(data)
}

fn json(value: &impl Serialize) -> Response {
    match serde_json::to_string_pretty(value) {
        Ok(body) => ([(header::CONTENT_TYPE, "application/json")], body + "\n").into_response(),
        Err(error) => refusal(StatusCode::INTERNAL_SERVER_ERROR, &error.to_string()),
    }
}

/// This cluster, its process and its store.
#[utoipa::path(get, path = "/api/v1/overview", responses((status = 200, body = Overview)))]
async fn overview(Shared(data): Shared<Arc<Data>>) -> Response {
    json(&*data.overview().await)
}

/// All remote clusters, by name.
#[utoipa::path(get, path = "/api/v1/remotes", responses((status = 200, body = Vec<Remote>)))]
async fn remotes(Shared(data): Shared<Arc<Data>>) -> Response {
    json(&*data.remotes().await)
}

/// One remote cluster in full.
#[utoipa::path(
    get,
    path = "/api/v1/remotes/{name}",
    params(("name" = String, Path, description = "The name of the cluster")),
    responses(
        (status = 200, body = RemoteDetail),
        (status = 400, description = "The name is malformed", body = Refusal),
        (status = 404, description = "There is no such cluster", body = Refusal)
    )
)]
async fn remote(Shared(data): Shared<Arc<Data>>, Name(name): Name) -> Response {
    match data.remote(&name) {
        Some(detail) => json(&detail),
        None => refusal(StatusCode::NOT_FOUND, &format!("there is no remote cluster {name:?}")),
    }
}

/// The global services and exports of all clusters.
#[utoipa::path(
    get,
    path = "/api/v1/services",
    params(Which),
    responses((status = 200, body = Services), (status = 400, description = "The query is malformed", body = Refusal))
)]
async fn services(
    Shared(data): Shared<Arc<Data>>,
    Extension(reader): Extension<Reader>,
    Fields(which): Fields<Which>,
) -> Response {
    let limit = which.limit.min(SERVICES_MAX);
    let search = shortened(&which.q);
    json(&data.services(reader).await.page(&search, which.offset, limit))
}

/// The clients of the store, by user.
#[utoipa::path(get, path = "/api/v1/clients", responses((status = 200, body = Clients)))]
async fn clients(Shared(data): Shared<Arc<Data>>) -> Response {
    let clients = (*data.clients().await).clone();
    json(&Clients { clients })
}

/// What is known of an address, a pod, an identity or a key.
#[utoipa::path(
    get,
    path = "/api/v1/look-up",
    params(Question),
    responses(
        (status = 200, body = Findings),
        (status = 400, description = "The query is malformed, or asks for nothing", body = Refusal),
        (status = 503, description = "The store cannot be read, or too many look-ups wait", body = Refusal)
    )
)]
async fn look_up(
    Shared(data): Shared<Arc<Data>>,
    Extension(reader): Extension<Reader>,
    Fields(Question { q }): Fields<Question>,
) -> Response {
    let question = shortened(&q);
    if question.is_empty() {
        return refusal(StatusCode::BAD_REQUEST, "q is empty: say what to look up");
    }
    match data.look_up(&question, reader).await {
        Ok(findings) => json(&findings),
        Err(error) => refusal(StatusCode::SERVICE_UNAVAILABLE, &error.to_string()),
    }
}
