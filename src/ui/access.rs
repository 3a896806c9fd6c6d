//! Who may see the page, and what the browser may do with it.

use super::reader::Reader;
use super::view::Refusal;
use crate::util::http::{ClientName, Standing};
use axum::body::Body;
use axum::extract::Request;
use axum::http::header::{self, HeaderMap, HeaderName, HeaderValue};
use axum::http::request::Parts;
use axum::http::{StatusCode, Uri};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures::StreamExt;
use parking_lot::Mutex;
use sha2::{Digest, Sha256};
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// The type of the answers that go on as long as a page is open.
pub(super) const EVENTS: &str = "text/event-stream";
/// A wrong token is answered after this time.
const GUESS: Duration = Duration::from_millis(300);
/// How often the token of an open page is checked.
const TOKEN_CHECK: Duration = Duration::from_secs(10);
/// Headers of every answer. The page loads its own files only, runs no script but its own file, and is shown in no frame.
const HEADERS: [(HeaderName, &str); 6] = [
    (
        header::CONTENT_SECURITY_POLICY,
        "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; connect-src 'self'; \
         form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    ),
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (header::X_FRAME_OPTIONS, "DENY"),
    (header::REFERRER_POLICY, "no-referrer"),
    (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
    (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
];

/// Who may see the page.
#[derive(Clone, Debug, Default)]
pub struct Access {
    pub hosts: Hosts,
    /// What a request must show; `None` lets everybody in who can reach the address.
    pub credentials: Option<Credentials>,
}

/// The names by which the page may be asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Hosts {
    /// `localhost` and loopback addresses. A web page elsewhere whose name leads here cannot read this one.
    #[default]
    Loopback,
    Any,
}

/// What opens the page.
#[derive(Clone, Debug, Default)]
pub struct Credentials {
    /// The name of this cluster. The certificates of its users `admin-<cluster>` and `local-<cluster>` open the page.
    pub cluster: String,
    /// A token, which a request shows as a bearer token, or as the password of any user.
    pub token: Option<TokenFile>,
}

/// A file with a token. It is read each time.
#[derive(Clone, Debug)]
pub struct TokenFile {
    path: PathBuf,
    /// Why the file lets nobody in, as it was logged last.
    trouble: Arc<Mutex<Option<String>>>,
}

/// Why a request is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Refused {
    Host,
    /// Another site asks in a browser.
    Site,
    /// Neither a certificate nor a token.
    NoCredentials,
    Token,
}

/// Answers a request, if it may be.
pub(super) async fn guard(access: Access, request: Request, next: Next) -> Response {
    let (mut head, body) = request.into_parts();
    let mut response = match access.check(&head).await {
        Ok(reader) => {
            if let Some(connection) = head.extensions.get::<Standing>() {
                connection.raise(reader.standing());
            }
            head.extensions.insert(reader);
            let shown = head.clone();
            let response = next.run(Request::from_parts(head, body)).await;
            while_let_in(access.clone(), shown, response)
        }
        Err(refused) => {
            if refused == Refused::Token {
                tokio::time::sleep(GUESS).await;
            }
            refused.response(access.credentials.as_ref())
        }
    };
    let headers = response.headers_mut();
    for (name, value) in HEADERS {
        headers.insert(name, HeaderValue::from_static(value));
    }
    if !headers.contains_key(header::CACHE_CONTROL) {
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    }
    response
}

/// Ends the events of a page soon after its request would not be let in any more, because the token is another. The connection
/// ends with the trust in the client certificate.
fn while_let_in(access: Access, request: Parts, response: Response) -> Response {
    let is_live = response
        .headers()
        .get(header::CONTENT_TYPE)
        .is_some_and(|kind| kind == EVENTS);
    let has_token = access
        .credentials
        .as_ref()
        .is_some_and(|credentials| credentials.token.is_some());
    if !is_live || !has_token || shown_token(&request.headers).is_none() {
        return response;
    }
    let shut_out = async move {
        loop {
            tokio::time::sleep(TOKEN_CHECK).await;
            if access.check(&request).await.is_err() {
                return;
            }
        }
    };
    response.map(|body| Body::from_stream(body.into_data_stream().take_until(Box::pin(shut_out))))
}

// === impl Access ===

impl Access {
    /// Who makes the request, if the request may be answered.
    async fn check(&self, request: &Parts) -> Result<Reader, Refused> {
        if self.hosts == Hosts::Loopback && !is_loopback(&request.uri, &request.headers) {
            return Err(Refused::Host);
        }
        if is_of_another_site(&request.headers) {
            return Err(Refused::Site);
        }
        let Some(credentials) = &self.credentials else {
            return Ok(Reader::Operator);
        };
        let name = request
            .extensions
            .get::<ClientName>()
            .and_then(|name| name.0.as_deref());
        let user = name.and_then(|name| credentials.reader(name));
        // A token may do more than a user of agents, who can have the token as well.
        match (&credentials.token, shown_token(&request.headers), user) {
            (.., Some(Reader::Operator)) => Ok(Reader::Operator),
            (Some(token), Some(shown), _) if token.is(&shown).await => Ok(Reader::Operator),
            // A certificate of agents saves nobody the wait after a wrong token.
            (Some(_), Some(_), _) => Err(Refused::Token),
            (.., Some(Reader::Agent)) => Ok(Reader::Agent),
            (.., None) => Err(Refused::NoCredentials),
        }
    }
}

// === impl Credentials ===

impl Credentials {
    /// Who the user of a certificate is; `None` for users that do not open the page. Clusters of a mesh often share their CA,
    /// so only the users of this cluster are let in, as by its store.
    fn reader(&self, user: &str) -> Option<Reader> {
        let (role, cluster) = user.split_once('-')?;
        match role {
            "admin" if cluster == self.cluster => Some(Reader::Operator),
            "local" if cluster == self.cluster => Some(Reader::Agent),
            _ => None,
        }
    }
}

/// Whether the request names a host of this machine.
fn is_loopback(uri: &Uri, headers: &HeaderMap) -> bool {
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok());
    let authority = host.map(str::parse).or_else(|| uri.authority().cloned().map(Ok));
    let Some(Ok::<http::uri::Authority, _>(authority)) = authority else {
        return false;
    };
    let host = authority.host().trim_start_matches('[').trim_end_matches(']');
    host.eq_ignore_ascii_case("localhost") || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// Whether a page of another site makes the request in a browser. It could not read the answer, but it could use up live views
/// and look-ups. A link that somebody follows is no such request.
fn is_of_another_site(headers: &HeaderMap) -> bool {
    let text = |name: &str| headers.get(name).map(|value| value.to_str().unwrap_or_default());
    let is_link = text("sec-fetch-mode") == Some("navigate") && text("sec-fetch-dest") == Some("document");
    match (text("sec-fetch-site"), text("origin")) {
        (Some("same-origin" | "none"), _) | (None, None) => false,
        (Some(_), _) => !is_link,
        // A browser that does not say more.
        (None, Some(origin)) => {
            let host = origin.split_once("://").map(|(_, host)| host);
            host.is_none() || host != text("host")
        }
    }
}

/// The token of a request: a bearer token, or the password of basic authentication, for which browsers ask.
fn shown_token(headers: &HeaderMap) -> Option<String> {
    let shown = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, rest) = shown.split_once(' ')?;
    if scheme.eq_ignore_ascii_case("bearer") {
        return Some(rest.trim().to_owned());
    }
    let is_basic = scheme.eq_ignore_ascii_case("basic");
    let decoded = STANDARD.decode(rest.trim()).ok().filter(|_| is_basic)?;
    let text = String::from_utf8(decoded).ok()?;
    text.split_once(':').map(|(_, password)| password.to_owned())
}

// === impl TokenFile ===

impl TokenFile {
    pub fn new(path: PathBuf) -> Self {
        Self {
            path,
            trouble: Arc::default(),
        }
    }

    /// The token. A file that lets nobody in is logged, once for each reason.
    pub async fn read(&self) -> Option<String> {
        let (token, trouble) = match tokio::fs::read_to_string(&self.path).await {
            // Editors of some systems begin a file with the mark of its byte order.
            Ok(text) => match text.trim_start_matches('\u{feff}').trim() {
                "" => (None, Some("the file is empty".to_owned())),
                token => (Some(token.to_owned()), None),
            },
            Err(error) => (None, Some(error.to_string())),
        };
        let mut logged = self.trouble.lock();
        if let Some(error) = trouble.as_ref().filter(|_| *logged != trouble) {
            let file = self.path.display();
            tracing::warn!(%file, error, "nobody is let in by the token of the mesh page (--ui-token-file)");
        }
        *logged = trouble;
        token
    }

    /// Whether `shown` is the token. Hashes are compared, so that the time tells nothing of the token.
    async fn is(&self, shown: &str) -> bool {
        let token = self.read().await;
        token.is_some_and(|token| Sha256::digest(token) == Sha256::digest(shown))
    }
}

// === impl Refused ===

impl Refused {
    fn response(self, credentials: Option<&Credentials>) -> Response {
        let cluster = credentials.map_or("<cluster>", |credentials| &credentials.cluster);
        let ask = format!(
            "show a client certificate of admin-{cluster} or local-{cluster}, or the token of --ui-token-file as the password of \
             any user"
        );
        let (status, message) = match self {
            Self::Host => (
                StatusCode::MISDIRECTED_REQUEST,
                "this page is served for localhost only: use --ui-addr with TLS to see it from elsewhere",
            ),
            Self::Site => (
                StatusCode::FORBIDDEN,
                "a page of another site asks for this one: open this page by itself",
            ),
            Self::NoCredentials => (StatusCode::UNAUTHORIZED, &*ask),
            Self::Token => (StatusCode::UNAUTHORIZED, "the token is not that of --ui-token-file"),
        };
        let mut response = refusal(status, message);
        if status == StatusCode::UNAUTHORIZED {
            let ask = HeaderValue::from_static("Basic realm=\"Isthmus\", charset=\"UTF-8\"");
            response.headers_mut().insert(header::WWW_AUTHENTICATE, ask);
        }
        response
    }
}

/// An error as the API and the pages answer it.
pub(super) fn refusal(status: StatusCode, message: &str) -> Response {
    let message = message.to_owned();
    let body = serde_json::to_string(&Refusal { message }).unwrap_or_default();
    (
        status,
        [(header::CONTENT_TYPE, "application/json")],
        Body::from(body + "\n"),
    )
        .into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(headers: &[(&'static str, &str)]) -> Parts {
        let (mut request, _) = Request::new(Body::empty()).into_parts();
        for (name, value) in headers {
            request.headers.insert(*name, value.parse().unwrap());
        }
        request
    }

    #[tokio::test]
    async fn on_loopback_only_names_of_this_machine_are_answered() {
        let access = Access::default();
        for host in [
            "localhost",
            "LOCALHOST:9890",
            "127.0.0.1:9890",
            "127.3.2.1",
            "[::1]:9890",
        ] {
            let checked = access.check(&request(&[("host", host)])).await;
            assert_eq!(checked, Ok(Reader::Operator), "{host}");
        }
        for host in [
            "evil.example",
            "localhost.evil.example:9890",
            "10.0.0.1",
            "[::2]",
            "",
            "a b",
        ] {
            assert_eq!(
                access.check(&request(&[("host", host)])).await,
                Err(Refused::Host),
                "{host}"
            );
        }
        assert_eq!(access.check(&request(&[])).await, Err(Refused::Host));
    }

    #[tokio::test]
    async fn a_page_of_another_site_may_link_here_and_nothing_else() {
        let host = ("host", "localhost:9890");
        let site = |site: &'static str| ("sec-fetch-site", site);
        let (navigate, document) = (("sec-fetch-mode", "navigate"), ("sec-fetch-dest", "document"));
        let (refused, let_in) = (Err(Refused::Site), Ok(Reader::Operator));
        for (headers, expected) in [
            (
                &[host, site("same-origin"), ("origin", "http://localhost:9890")][..],
                let_in,
            ),
            (&[host, site("none"), navigate, document], let_in),
            (&[host, site("cross-site"), navigate, document], let_in),
            (
                &[host, site("cross-site"), navigate, ("sec-fetch-dest", "iframe")],
                refused,
            ),
            (&[host, site("cross-site"), ("sec-fetch-mode", "no-cors")], refused),
            (&[host, site("same-site"), ("sec-fetch-mode", "cors")], refused),
            (&[host, ("origin", "http://localhost:9890")], let_in),
            (&[host, ("origin", "http://localhost:3000")], refused),
            (&[host, ("origin", "https://evil.example")], refused),
            (&[host, ("origin", "null")], refused),
        ] {
            assert_eq!(
                Access::default().check(&request(headers)).await,
                expected,
                "{headers:?}"
            );
        }
    }

    #[tokio::test]
    async fn a_certificate_of_an_operator_or_the_token_opens_the_page() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "secret\n").unwrap();
        let access = |token| Access {
            hosts: Hosts::Any,
            credentials: Some(Credentials {
                cluster: "tokyo".to_owned(),
                token,
            }),
        };
        let with_token = access(Some(TokenFile::new(file.path().to_owned())));
        let basic = format!("Basic {}", STANDARD.encode("any:secret"));
        for (shown, expected) in [
            ("Bearer secret", Ok(Reader::Operator)),
            (&*basic, Ok(Reader::Operator)),
            ("Bearer wrong", Err(Refused::Token)),
            ("Bearer ", Err(Refused::Token)),
            ("Basic ???", Err(Refused::NoCredentials)),
        ] {
            let request = request(&[("authorization", shown)]);
            assert_eq!(with_token.check(&request).await, expected, "{shown}");
            let expected = Err(Refused::NoCredentials);
            assert_eq!(access(None).check(&request).await, expected, "no token is accepted");
        }
        for (name, expected) in [
            ("admin-tokyo", Ok(Reader::Operator)),
            ("local-tokyo", Ok(Reader::Agent)),
            ("admin-hk", Err(Refused::NoCredentials)),
            ("local-hk", Err(Refused::NoCredentials)),
            ("local-", Err(Refused::NoCredentials)),
            ("remote", Err(Refused::NoCredentials)),
            ("remote-tokyo", Err(Refused::NoCredentials)),
            ("xadmin-tokyo", Err(Refused::NoCredentials)),
        ] {
            let mut request = request(&[]);
            request.extensions.insert(ClientName(Some(name.into())));
            assert_eq!(with_token.check(&request).await, expected, "{name}");
            request
                .headers
                .insert("authorization", "Bearer secret".parse().unwrap());
            assert_eq!(
                with_token.check(&request).await,
                Ok(Reader::Operator),
                "{name} with the token"
            );
            let guess = "Bearer guess".parse().unwrap();
            request.headers.insert("authorization", guess);
            let guessed = with_token.check(&request).await;
            let is_operator = name == "admin-tokyo";
            assert_eq!(guessed.is_ok(), is_operator, "{name} with a wrong token");
        }
        for with_marks in ["\u{feff}secret\r\n", "\n secret "] {
            std::fs::write(file.path(), with_marks).unwrap();
            let request = request(&[("authorization", "Bearer secret")]);
            assert_eq!(with_token.check(&request).await, Ok(Reader::Operator), "{with_marks:?}");
        }
        std::fs::write(file.path(), "\n").unwrap();
        let empty = request(&[("authorization", "Bearer ")]);
        assert_eq!(
            with_token.check(&empty).await,
            Err(Refused::Token),
            "an empty file opens nothing"
        );
    }
    #[tokio::test(start_paused = true)]
    async fn the_events_of_a_page_end_with_its_token() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "secret\n").unwrap();
        let access = Access {
            hosts: Hosts::Any,
            credentials: Some(Credentials {
                cluster: "tokyo".to_owned(),
                token: Some(TokenFile::new(file.path().to_owned())),
            }),
        };
        let events = |kind: &'static str| {
            let body = Body::from_stream(futures::stream::pending::<Result<&str, std::convert::Infallible>>());
            let response = ([(header::CONTENT_TYPE, kind)], body).into_response();
            let request = request(&[("authorization", "Bearer secret")]);
            let mut body = while_let_in(access.clone(), request, response)
                .into_body()
                .into_data_stream();
            async move { body.next().await.is_none() }
        };
        let (live, other) = (events(EVENTS), events("text/plain"));
        let mut live = std::pin::pin!(live);
        assert!(tokio::time::timeout(5 * TOKEN_CHECK, &mut live).await.is_err());
        std::fs::write(file.path(), "another").unwrap();
        assert!(tokio::time::timeout(2 * TOKEN_CHECK, live).await.unwrap());
        assert!(tokio::time::timeout(5 * TOKEN_CHECK, other).await.is_err());
    }
}
