//! HTTP beside gRPC: health, version, metrics, and the checks in front of the JSON gateway.
//!
//! The paths and texts are etcd's (server/etcdserver/api/etcdhttp, server/embed/serve.go).

use super::{Core, ETCD_VERSION, STORAGE_VERSION};
use crate::durable::Durable;
use crate::mvcc::{KeyRange, RangeOptions};
use crate::pb::etcdserverpb::AlarmType;
use crate::server::bodies::Held;
use crate::server::peer::Peer;
use crate::util::metrics::Format;
use axum::Router;
use axum::extract::{RawQuery, Request};
use axum::http::header::{self, HeaderValue};
use axum::http::{Method, StatusCode};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{any, get};
use std::collections::BTreeSet;
use std::sync::Arc;

/// A page takes as long as work on so many keys.
const PAGE_KEYS: usize = 1000;

/// The browsers that may use HTTP.
#[derive(Clone, Debug)]
pub struct BrowserAccess {
    /// The origins that are allowed; `*` allows every origin.
    pub cors: BTreeSet<String>,
    /// The hosts that requests without TLS may name. `*` or an empty set allows every host.
    pub hosts: BTreeSet<String>,
}

impl Default for BrowserAccess {
    fn default() -> Self {
        let any = || BTreeSet::from(["*".to_owned()]);
        Self {
            cors: any(),
            hosts: any(),
        }
    }
}

/// Whether the data directory takes writes.
const DATA_DIRECTORY: &str = "data_directory";
/// Whether the process stays.
const IN_SERVICE: &str = "in_service";
/// The checks of ours that etcd does not have; mentioned only when they fail.
const OURS: [&str; 2] = [DATA_DIRECTORY, IN_SERVICE];

/// The checks of `/livez` or `/readyz`.
fn checks(kind: &str) -> &'static [&'static str] {
    match kind {
        "livez" => &["serializable_read"],
        _ => &[
            "data_corruption",
            "serializable_read",
            "linearizable_read",
            "non_learner",
            DATA_DIRECTORY,
            IN_SERVICE,
        ],
    }
}

impl Core {
    /// The routes of `--listen-metrics-urls`: health and metrics.
    pub fn health_and_metrics(self: &Arc<Self>) -> Router {
        let core = || Arc::clone(self);
        let mut router = Router::new().route("/health", answer(core(), Core::health)).route(
            "/metrics",
            answer_in_format(core(), |core, _, format| core.metrics_response(format)),
        );
        for kind in ["livez", "readyz"] {
            let all = move |core: &Core, query: &str| core.report(kind, checks(kind), query);
            router = router.route(&format!("/{kind}"), answer(core(), all));
            for &name in checks(kind) {
                let one = move |core: &Core, query: &str| core.report(kind, &[name], query);
                router = router.route(&format!("/{kind}/{name}"), answer(core(), one));
            }
        }
        router
    }

    /// The handler of requests that no route takes.
    pub(super) fn unknown(&self) -> axum::routing::MethodRouter {
        let life = self.life.clone();
        any(move |request: Request| super::unknown::answer(request, life.clone()))
    }

    /// All routes but gRPC. `gateway` serves `/v3/`.
    pub(super) fn http(self: &Arc<Self>, gateway: Option<Router>) -> Router {
        let version = |_: &Core, _: &str| {
            let body = format!(
                r#"{{"etcdserver":"{ETCD_VERSION}","etcdcluster":"{STORAGE_VERSION}","storage":"{STORAGE_VERSION}"}}"#
            );
            ([(header::CONTENT_TYPE, "application/json")], body).into_response()
        };
        let mut router = self
            .health_and_metrics()
            .route("/version", answer(Arc::clone(self), version))
            .route("/debug/vars", answer(Arc::clone(self), |core, _| core.variables()));
        if let Some(gateway) = gateway {
            router = router.merge(gateway);
        }
        let core = Arc::clone(self);
        let gate = move |request: Request, next: Next| {
            let core = Arc::clone(&core);
            async move { core.gate(request, next).await }
        };
        router.fallback(self.unknown()).layer(middleware::from_fn(gate))
    }

    /// Refuses requests with unknown hosts, answers preflight requests, and adds the CORS headers.
    async fn gate(&self, request: Request, next: Next) -> Response {
        let peer = request.extensions().get::<Peer>().cloned().unwrap_or_default();
        let gateway = request.uri().path().starts_with("/v3");
        if !peer.secure {
            let host = host_of(&request);
            let hosts = &self.config.access.hosts;
            if !hosts.is_empty() && !hosts.contains("*") && !hosts.contains(&host) {
                // Prevents DNS rebinding: a web page whose own name resolves to this server.
                let text = format!(
                    "etcd received your request, but the Host header was unrecognized.\n\
                     Use TLS, or add the host with --host-whitelist {host:?} (CVE-2018-5702).\n"
                );
                return (StatusCode::MISDIRECTED_REQUEST, text).into_response();
            }
        } else if gateway && peer.common_name.is_some() && self.auth.state().enabled {
            // As in etcd: its gateway is a separate gRPC client, which does not present the caller's certificate.
            let text =
                "CommonName of client sending a request against gateway will be ignored and not used as expected";
            return (StatusCode::BAD_REQUEST, format!("{text}\n")).into_response();
        }
        let cors = &self.config.access.cors;
        let origin = match request.headers().get(header::ORIGIN) {
            _ if cors.contains("*") => Some(HeaderValue::from_static("*")),
            Some(origin) if origin.to_str().is_ok_and(|o| cors.contains(o)) => Some(origin.clone()),
            _ => None,
        };
        let mut response = match *request.method() == Method::OPTIONS {
            true => StatusCode::OK.into_response(),
            false => next.run(request).await,
        };
        if let Some(origin) = origin {
            let headers = response.headers_mut();
            let fixed = HeaderValue::from_static;
            headers.insert(
                header::ACCESS_CONTROL_ALLOW_METHODS,
                fixed("POST, GET, OPTIONS, PUT, DELETE"),
            );
            headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
            headers.insert(
                header::ACCESS_CONTROL_ALLOW_HEADERS,
                fixed("accept, content-type, authorization"),
            );
        }
        response
    }

    /// The document of Go's expvar. The command line is left out, because it may contain secrets.
    fn variables(&self) -> Response {
        let stats = self.store.stats();
        let vars = serde_json::json!({
            "cmdline": [],
            "memstats": {},
            "revision": stats.revision,
            "keys": stats.keys,
            "watchers": stats.watchers,
        });
        let json = [(header::CONTENT_TYPE, "application/json; charset=utf-8")];
        (json, vars.to_string()).into_response()
    }

    fn health(&self, query: &str) -> Response {
        let excluded: Vec<_> = values(query, "exclude").collect();
        let alarms = self.alarms.list(AlarmType::None);
        let alarm = alarms
            .iter()
            .map(|a| a.alarm().as_str_name())
            .find(|name| !excluded.contains(name));
        let reason = match (alarm, self.check_read(), self.check_data_directory()) {
            (Some(alarm), ..) => format!("ALARM {alarm}"),
            (None, Err(error), _) => format!("RANGE ERROR:{error}"),
            (None, Ok(()), Err(obstacle)) => obstacle,
            (None, Ok(()), Ok(())) => String::new(),
        };
        let healthy = reason.is_empty();
        self.metrics.health(healthy);
        let body = serde_json::json!({ "health": healthy.to_string(), "reason": reason }).to_string();
        match healthy {
            // As in etcd, the content type of this JSON is text.
            true => body.into_response(),
            false => (StatusCode::SERVICE_UNAVAILABLE, format!("{body}\n")).into_response(),
        }
    }

    /// The results of `checks`, without the excluded checks.
    fn report(&self, kind: &str, checks: &[&str], query: &str) -> Response {
        let excluded: Vec<_> = values(query, "exclude").collect();
        let (mut text, mut failed) = (String::new(), false);
        for &name in checks.iter().filter(|name| !excluded.contains(name)) {
            let result = self.check(name);
            self.metrics.check(kind, name, result.is_ok());
            match result {
                Ok(()) if OURS.contains(&name) => {}
                Ok(()) => text.push_str(&format!("[+]{name} ok\n")),
                Err(error) => {
                    failed = true;
                    text.push_str(&format!("[-]{name} failed: {error}\n"));
                }
            }
        }
        if failed {
            return (StatusCode::SERVICE_UNAVAILABLE, format!("{text}\n")).into_response();
        }
        let verbose = query.split('&').any(|pair| pair.split('=').next() == Some("verbose"));
        if verbose {
            format!("{text}ok\n")
        } else {
            "ok\n".to_owned()
        }
        .into_response()
    }

    fn check(&self, name: &str) -> Result<(), String> {
        match name {
            "data_corruption" if self.alarms.has(AlarmType::Corrupt) => Err("alarm activated: CORRUPT".to_owned()),
            // Every read of a single member is linearizable, and a single member is never a learner.
            "serializable_read" | "linearizable_read" => self.check_read(),
            DATA_DIRECTORY => self.check_data_directory(),
            IN_SERVICE if self.life.leaving().is_cancelled() => {
                Err("the process is about to stop, and its clients are asked to connect elsewhere".to_owned())
            }
            _ => Ok(()),
        }
    }

    /// Whether the data directory takes writes.
    fn check_data_directory(&self) -> Result<(), String> {
        let obstacle = self.durability.disk().and_then(Durable::obstacle);
        obstacle.map_or(Ok(()), |obstacle| Err(obstacle.to_string()))
    }

    fn check_read(&self) -> Result<(), String> {
        if self.stop.is_cancelled() {
            return Err("etcdserver: server stopped".to_owned());
        }
        let one = RangeOptions {
            limit: 1,
            keys_only: true,
            ..RangeOptions::new(KeyRange::key("\0"))
        };
        self.store.range(&one).map(drop).map_err(|e| e.to_string())
    }
}

/// A GET handler.
fn answer(
    core: Arc<Core>,
    f: impl Fn(&Core, &str) -> Response + Clone + Send + Sync + 'static,
) -> axum::routing::MethodRouter {
    answer_in_format(core, move |core, query, _| f(core, query))
}

/// Like [`answer`], for a page that has several formats.
fn answer_in_format(
    core: Arc<Core>,
    f: impl Fn(&Core, &str, Format) -> Response + Clone + Send + Sync + 'static,
) -> axum::routing::MethodRouter {
    let not_allowed = || async {
        let allow = [(header::ALLOW, "GET")];
        (StatusCode::METHOD_NOT_ALLOWED, allow, "Method Not Allowed\n")
    };
    let handler = move |RawQuery(query): RawQuery, request: Request| {
        let (core, f) = (Arc::clone(&core), f.clone());
        async move {
            let peer = request.extensions().get::<Peer>().cloned().unwrap_or_default();
            let accepts = request.headers().get_all(header::ACCEPT).iter();
            let format = Format::accepted(accepts.filter_map(|value| value.to_str().ok()));
            let page = move |core: &Core, _: &mut dyn FnMut() -> bool| f(core, &query.unwrap_or_default(), format);
            let Ok(document) = Arc::clone(&peer.connection.documents).acquire_owned().await else {
                return StatusCode::SERVICE_UNAVAILABLE.into_response();
            };
            match core.take_turn(&peer, PAGE_KEYS, page).await {
                Ok(done) => {
                    let mut page = done.take().0;
                    // Until the client has taken the page.
                    page.extensions_mut().insert(Held(Arc::new(vec![document])));
                    page
                }
                Err(status) => (StatusCode::SERVICE_UNAVAILABLE, format!("{}\n", status.message())).into_response(),
            }
        }
    };
    get(handler).head(not_allowed).fallback(not_allowed)
}

/// The values of the parameter `name` in a query. They need no decoding: names of checks and alarms are plain.
fn values<'a>(query: &'a str, name: &'a str) -> impl Iterator<Item = &'a str> {
    let pairs = query.split('&').filter_map(|pair| pair.split_once('='));
    pairs
        .filter(move |(key, value)| *key == name && !value.is_empty())
        .map(|(_, value)| value)
}

/// The host that a request names, without the port.
fn host_of(request: &Request) -> String {
    let header = request.headers().get(header::HOST).and_then(|h| h.to_str().ok());
    let host = header.or_else(|| request.uri().host()).unwrap_or_default();
    let port = |p: &str| !p.is_empty() && p.bytes().all(|b| b.is_ascii_digit());
    match host.rsplit_once(':') {
        Some((host, p)) if port(p) => host.trim_matches(['[', ']']).to_owned(),
        _ => host.trim_matches(['[', ']']).to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_and_hosts_are_parsed() {
        let query = "serializable=true&exclude=NOSPACE&exclude=&exclude=CORRUPT";
        assert!(values(query, "exclude").eq(["NOSPACE", "CORRUPT"]));
        let host = |text: &str| {
            let request = Request::builder().header("host", text).body(axum::body::Body::empty());
            host_of(&request.unwrap())
        };
        assert_eq!(host("example.com:2379"), "example.com");
        assert_eq!(host("[::1]:2379"), "::1");
        assert_eq!(host("localhost"), "localhost");
    }
}
