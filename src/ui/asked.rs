//! What a request asks for. A request that says it wrongly is refused as JSON, by the API and the pages alike.

use super::access::refusal;
use super::data::shortened;
use super::pages::{Order, Sort, View};
use super::reader::Reader;
use axum::Extension;
use axum::extract::{FromRequestParts, Path, Query};
use axum::http::StatusCode;
use axum::http::request::Parts;
use axum::response::Response;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use std::collections::BTreeMap;

/// The fields of a query.
pub(super) struct Fields<T>(pub(super) T);

/// The last segment of a path, decoded.
pub(super) struct Name(pub(super) String);

/// The view that a path and its query name, for the reader.
pub(super) struct Wanted {
    pub(super) view: View,
    pub(super) reader: Reader,
    /// The version that the page has already.
    pub(super) version: String,
}

/// The query of a view.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Asked {
    q: String,
    offset: usize,
    sort: String,
    order: String,
    version: String,
}

fn malformed(why: &str) -> Response {
    refusal(StatusCode::BAD_REQUEST, why)
}

/// The answer to a path that leads nowhere.
pub(super) fn no_such_page() -> Response {
    refusal(StatusCode::NOT_FOUND, "there is no such page")
}

// === impl Fields ===

impl<S: Send + Sync, T: DeserializeOwned> FromRequestParts<S> for Fields<T> {
    type Rejection = Response;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Response> {
        match Query::from_request_parts(parts, state).await {
            Ok(Query(fields)) => Ok(Self(fields)),
            Err(error) => Err(malformed(&error.body_text())),
        }
    }
}

// === impl Name ===

impl<S: Send + Sync> FromRequestParts<S> for Name {
    type Rejection = Response;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Response> {
        match Path::from_request_parts(parts, state).await {
            Ok(Path(name)) => Ok(Self(name)),
            Err(error) => Err(malformed(&error.body_text())),
        }
    }
}

// === impl Wanted ===

impl<S: Send + Sync> FromRequestParts<S> for Wanted {
    type Rejection = Response;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Response> {
        let named = Path::<BTreeMap<String, String>>::from_request_parts(parts, state).await;
        let Path(named) = named.map_err(|error| malformed(&error.body_text()))?;
        let Fields(asked) = Fields::<Asked>::from_request_parts(parts, state).await?;
        // The guard lets no request in without a reader.
        let reader = Extension::<Reader>::from_request_parts(parts, state).await;
        let Extension(reader) = reader.map_err(|_| refusal(StatusCode::UNAUTHORIZED, "nobody asks"))?;
        let view = match (named.get("page").map(String::as_str), named.get("name")) {
            (_, Some(name)) => View::Remote(name.clone()),
            (None | Some("overview"), _) => View::Overview,
            (Some("topology"), _) => View::Topology(Order {
                sort: Sort::parse(&asked.sort).unwrap_or_default(),
                is_descending: asked.order == "descending",
            }),
            (Some("services"), _) => View::Services {
                search: shortened(&asked.q),
                offset: asked.offset,
                reader,
            },
            (Some("clients"), _) => View::Clients,
            (Some(_), _) => return Err(no_such_page()),
        };
        Ok(Self {
            view,
            reader,
            version: asked.version,
        })
    }
}
