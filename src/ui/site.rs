//! The routes of the page.

use super::access::{self, Access, refusal};
use super::data::{Data, shortened};
use super::live::{Topics, parse_version};
use super::pages::{self, Order, Sort, View};
use super::reader::Reader;
use super::source::{Keys, Source};
use super::{api, assets};
use crate::util::lifecycle::Lifecycle;
use axum::body::Body;
use axum::extract::{Query, Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::{Next, from_fn};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Extension, Router};
use futures::StreamExt;
use maud::Markup;
use serde::Deserialize;
use std::convert::Infallible;
use std::sync::Arc;

/// The header with the version of a page that connects again.
const LAST_EVENT: &str = "last-event-id";

/// What all requests share.
struct Site {
    data: Arc<Data>,
    topics: Topics,
}

/// The queries of all pages.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Asked {
    q: String,
    offset: usize,
    sort: String,
    order: String,
    version: String,
}

type Shared = State<Arc<Site>>;

/// The page and the API, for those that `access` lets in. `life` runs the tasks of live pages.
pub fn router(source: Arc<dyn Source>, keys: Arc<dyn Keys>, access: Access, life: Lifecycle) -> Router {
    let data = Arc::new(Data::new(source, keys));
    let topics = Topics::new(Arc::clone(&data), life);
    let api = api::router(Arc::clone(&data));
    let site = Arc::new(Site { data, topics });
    let guard = from_fn(move |request: Request, next: Next| access::guard(access.clone(), request, next));
    Router::new()
        .route("/", get(page))
        .route("/{page}", get(page))
        .route("/remote/{name}", get(page))
        .route("/live/{page}", get(live))
        .route("/live/remote/{name}", get(live))
        .route("/look-up", get(look_up))
        .with_state(site)
        .route("/assets/{name}", get(assets::serve))
        .merge(api)
        .fallback(async || refusal(StatusCode::NOT_FOUND, "there is no such page"))
        .layer(guard)
}

/// The view that a path and its query name, for `reader`.
fn view(path: &str, asked: &Asked, reader: Reader) -> Option<View> {
    let path = path.strip_prefix("/live").unwrap_or(path);
    Some(match path {
        "/" | "/overview" => View::Overview,
        "/topology" => View::Topology(Order {
            sort: Sort::parse(&asked.sort).unwrap_or_default(),
            is_descending: asked.order == "descending",
        }),
        "/services" => View::Services {
            search: shortened(&asked.q),
            offset: asked.offset,
            reader,
        },
        "/clients" => View::Clients,
        _ => View::Remote(path.strip_prefix("/remote/")?.to_owned()),
    })
}

fn html(status: StatusCode, markup: Markup) -> Response {
    (status, [(header::CONTENT_TYPE, "text/html; charset=utf-8")], markup.0).into_response()
}

/// A live page.
async fn page(
    State(site): Shared,
    Extension(reader): Extension<Reader>,
    uri: axum::http::Uri,
    Query(asked): Query<Asked>,
) -> Response {
    let Some(view) = view(uri.path(), &asked, reader) else {
        return refusal(StatusCode::NOT_FOUND, "there is no such page");
    };
    let pages::Rendered { title, main, exists } = pages::main(&site.data, &view).await;
    let status = if exists { StatusCode::OK } else { StatusCode::NOT_FOUND };
    html(status, pages::page(&site.data.cluster(), &title, &main, Some(&view)))
}

/// The events of a live page.
async fn live(
    State(site): Shared,
    Extension(reader): Extension<Reader>,
    uri: axum::http::Uri,
    headers: HeaderMap,
    Query(asked): Query<Asked>,
) -> Response {
    let Some(view) = view(uri.path(), &asked, reader) else {
        return refusal(StatusCode::NOT_FOUND, "there is no such page");
    };
    let again = headers.get(LAST_EVENT).and_then(|version| version.to_str().ok());
    let version = parse_version(again.unwrap_or(&asked.version));
    let Some(events) = site.topics.follow(view, version) else {
        return refusal(StatusCode::SERVICE_UNAVAILABLE, "too many different pages are open");
    };
    let body = Body::from_stream(events.map(Ok::<_, Infallible>));
    ([(header::CONTENT_TYPE, "text/event-stream")], body).into_response()
}

/// The look-up, which is not live.
async fn look_up(State(site): Shared, Extension(reader): Extension<Reader>, Query(asked): Query<Asked>) -> Response {
    let question = shortened(&asked.q);
    let answer = match question.is_empty() {
        true => None,
        false => Some(site.data.look_up(&question, reader).await),
    };
    let own = site.data.cluster();
    let main = pages::look_up(&own, &question, answer.as_ref());
    html(StatusCode::OK, pages::page(&own, "Look up", &main, None))
}
