//! The files that pages load: all of them are in this program.

use super::asked::no_such_page;
use axum::extract::Path;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use std::hash::{DefaultHasher, Hash, Hasher};

pub(super) const STYLE: Asset = Asset {
    name: "page.css",
    kind: "text/css; charset=utf-8",
    content: include_str!("assets/page.css"),
};
pub(super) const SCRIPT: Asset = Asset {
    name: "page.js",
    kind: "text/javascript; charset=utf-8",
    content: include_str!("assets/page.js"),
};
pub(super) const ICON: Asset = Asset {
    name: "icon.svg",
    kind: "image/svg+xml",
    content: include_str!("assets/icon.svg"),
};

pub(super) struct Asset {
    name: &'static str,
    kind: &'static str,
    content: &'static str,
}

impl Asset {
    /// The URL changes with the content, so that browsers may keep the file for ever.
    pub(super) fn url(&self) -> String {
        let mut hasher = DefaultHasher::new();
        self.content.hash(&mut hasher);
        format!("/assets/{}?{:x}", self.name, hasher.finish())
    }
}

/// Answers `/assets/{name}`.
pub(super) async fn serve(Path(name): Path<String>) -> Response {
    let Some(asset) = [STYLE, SCRIPT, ICON].into_iter().find(|asset| asset.name == name) else {
        return no_such_page();
    };
    let headers = [
        (header::CONTENT_TYPE, asset.kind),
        (header::CACHE_CONTROL, "max-age=31536000, immutable"),
    ];
    (headers, asset.content).into_response()
}
