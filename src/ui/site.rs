//! The routes of the page.

use super::access::{self, Access, EVENTS, refusal};
use super::asked::{Fields, Wanted, no_such_page};
use super::data::{Data, shortened};
use super::live::{Topics, parse_version};
use super::pages;
use super::reader::Reader;
use super::source::{Keys, Source};
use super::{api, assets};
use crate::util::lifecycle::Lifecycle;
use axum::body::Body;
use axum::extract::{Request, State};
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

/// The query of the look-up.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Question {
    q: String,
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
        .fallback(async || no_such_page())
        .method_not_allowed_fallback(async || refusal(StatusCode::METHOD_NOT_ALLOWED, "the page is read-only: use GET"))
        .layer(guard)
}

fn html(status: StatusCode, markup: Markup) -> Response {
    (status, [(header::CONTENT_TYPE, "text/html; charset=utf-8")], markup.0).into_response()
}

/// A live page.
async fn page(State(site): Shared, Wanted { view, .. }: Wanted) -> Response {
    let pages::Rendered {
        title, main, exists, ..
    } = pages::main(&site.data, &view).await;
    let status = if exists { StatusCode::OK } else { StatusCode::NOT_FOUND };
    html(status, pages::page(&site.data.cluster(), &title, &main, Some(&view)))
}

/// The events of a live page.
async fn live(State(site): Shared, headers: HeaderMap, wanted: Wanted) -> Response {
    let Wanted { view, reader, version } = wanted;
    let again = headers.get(LAST_EVENT).and_then(|version| version.to_str().ok());
    let version = parse_version(again.unwrap_or(&version));
    let Some(events) = site.topics.follow(view, reader, version) else {
        return refusal(
            StatusCode::SERVICE_UNAVAILABLE,
            "too many different searches and pages of services are open: close some of them",
        );
    };
    let body = Body::from_stream(events.map(Ok::<_, Infallible>));
    ([(header::CONTENT_TYPE, EVENTS)], body).into_response()
}

/// The look-up, which is not live.
async fn look_up(
    State(site): Shared,
    Extension(reader): Extension<Reader>,
    Fields(Question { q }): Fields<Question>,
) -> Response {
    let question = shortened(&q);
    let answer = match question.is_empty() {
        true => None,
        false => Some(site.data.look_up(&question, reader).await),
    };
    let status = match &answer {
        Some(Err(_)) => StatusCode::SERVICE_UNAVAILABLE,
        _ => StatusCode::OK,
    };
    let own = site.data.cluster();
    let main = pages::look_up(&own, &question, answer.as_ref());
    html(status, pages::page(&own, "Look up", &main, None))
}
