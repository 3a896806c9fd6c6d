//! HTTP over one accepted connection, within the connection's budgets and with every limit of HTTP/2 set.

use super::bodies::{AnswerBody, Budgeted, Held, RequestBody, RequestLimits, Span};
use super::budgets::Budgets;
use super::connection::{End, Idle};
use super::connections::{Connections, idle_deadline};
use super::farewell::Farewell;
use super::io::Io;
use super::moves::{self, Why};
use super::peer::Peer;
use super::protocol::{Protocol, Protocols};
use super::refusals::Budget;
use super::status;
use crate::http2;
use crate::util::deadline::Deadline;
use crate::util::net::Keepalive;
use axum::Router;
use axum::body::{Body, Bytes, HttpBody};
use axum::http::{HeaderValue, Request, Response, Version, header};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper_util::rt::TokioTimer;
use std::convert::Infallible;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::time::Instant;
use tower::ServiceExt;

/// Bytes that a stream may send before its call reads them.
const STREAM_WINDOW: u32 = 128 << 10;
/// Bytes that all streams of a connection may send before their calls read them.
const CONNECTION_WINDOW: u32 = 8 << 20;
/// Bytes of the headers of a request. grpc-go takes more; tokens with many claims need tens of kilobytes.
const HEADERS_MAX: u32 = 256 << 10;
/// Streams that a client resets before the server has looked at them. Go clients cancel in bursts.
const PENDING_RESETS_MAX: u32 = 2048;
/// Streams that the server resets because of errors of the client, in the life of a connection (CVE-2025-8671).
const ERROR_RESETS_MAX: u32 = 1024;
/// SETTINGS frames in the life of a connection. Clients send one at the start, and a few more as they learn the speed of
/// the network.
const SETTINGS_MAX: u32 = 100;
/// DATA frames in succession that carry nothing (CVE-2019-9518).
const EMPTY_DATA_MAX: u32 = 1000;
/// Bytes that wait for the socket.
const SEND_BUFFER: usize = 64 << 10;
/// The longest time for the headers of an HTTP/1 request, and between two requests.
const HEADERS_TIMEOUT: Duration = Duration::from_secs(60);
/// The time for the first bytes of a client whose connection has ended, so that the client can be told why.
const PATIENCE: Duration = Duration::from_secs(1);
/// The time that a closing connection has for its last calls.
const GRACE: Duration = Duration::from_secs(10);

/// Serves connections with one router.
pub(super) struct Transport {
    protocols: Arc<Protocols>,
    router: Router,
    connections: Arc<Connections>,
}

impl Transport {
    pub(super) fn new(
        router: Router,
        connections: Arc<Connections>,
        max_concurrent_streams: u32,
        keepalive: Keepalive,
        ping_answer_delay: Duration,
    ) -> Self {
        let Keepalive { interval, timeout } = keepalive;
        let pings = !interval.is_zero() && !timeout.is_zero();
        let mut http1 = http1::Builder::new();
        http1.timer(TokioTimer::new()).header_read_timeout(HEADERS_TIMEOUT);
        let http2 = http2::Config {
            stream_window: STREAM_WINDOW,
            connection_window: CONNECTION_WINDOW,
            max_concurrent_streams,
            max_header_list: HEADERS_MAX,
            max_unseen_resets: PENDING_RESETS_MAX,
            max_error_resets: ERROR_RESETS_MAX,
            max_settings: SETTINGS_MAX,
            max_empty_data: EMPTY_DATA_MAX,
            max_output: SEND_BUFFER,
            keepalive: pings.then_some(http2::config::Keepalive { interval, timeout }),
            ping_answer_delay,
        };
        Self {
            protocols: Arc::new(Protocols {
                http1,
                http2: Arc::new(http2),
            }),
            router,
            connections,
        }
    }

    /// Serves one connection until it ends, is idle for too long, or is closed by the server.
    pub(super) async fn serve(&self, io: Io, peer: Peer) {
        let http1 = hyper::service::service_fn(|request: Request<Incoming>| {
            let answer = self.call(request, peer.clone());
            async move { Ok::<_, Infallible>(answer.await) }
        });
        let http2 = |request| self.call(request, peer.clone());
        let mut serving = Protocol::new(io, http1, http2, Arc::clone(&self.protocols));
        let mut shutdown = Shutdown::new(&self.connections.budgets);
        std::future::poll_fn(|cx| {
            let end = peer.connection.poll_end(cx);
            if end == End::Now {
                return match serving.poll_abort(peer.connection.farewell(), cx) {
                    Poll::Pending if self.connections.has_patience() => shutdown.poll_patience(cx),
                    _ => Poll::Ready(()),
                };
            }
            let shut_down = |why| serving.shut_down(why);
            if shutdown.poll(cx, end, self, &peer, shut_down).is_ready() {
                return Poll::Ready(());
            }
            serving.poll(cx)
        })
        .await;
    }

    /// Passes one call to the router, with what it may hold.
    fn call<B>(&self, request: Request<B>, peer: Peer) -> impl Future<Output = Response<AnswerBody>> + Send + use<B>
    where
        B: HttpBody<Data = Bytes, Error: Into<axum::BoxError>> + Send + 'static,
    {
        let call = Budgeted::new(peer.connection.begin_call());
        let kind = request.headers().get(header::CONTENT_TYPE);
        let path = request.uri().path();
        // Leases must be renewed, whatever else the client reads.
        let urgent = path.ends_with("/LeaseKeepAlive");
        // The last two are those of the JSON gateway.
        let streaming = ["/Watch", "/watch", "/keepalive"].iter().any(|end| path.ends_with(end));
        let span = match streaming || urgent || path.to_ascii_lowercase().ends_with("/observe") {
            false => Span::Finite,
            true if path.starts_with("/v3/") => Span::EndlessDocument,
            true => Span::Endless,
        };
        let limits = RequestLimits {
            timeout: self.connections.budgets.request_timeout,
            streaming: streaming || urgent,
            grpc: !path.starts_with("/v3") && kind.is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc")),
        };
        let (refusals, router) = (Arc::clone(&self.connections.refusals), self.router.clone());
        let crowded = peer.connection.is_crowded();
        // HTTP/1 adds the date itself, and gRPC has none.
        let dated = request.version() == Version::HTTP_2 && !limits.grpc;
        async move {
            if crowded {
                refusals.note(Budget::StrangerCalls, &peer);
                let refused = status::too_many_requests().into_http::<Body>();
                return refused.map(|body| AnswerBody::new(body, call, Span::Finite, urgent, None));
            }
            let (mut parts, body) = request.into_parts();
            parts.extensions.insert(peer.clone());
            let body = RequestBody::new(Body::new(body), Arc::clone(&call), limits, peer, refusals);
            let answer = router.oneshot(Request::from_parts(parts, Body::new(body))).await;
            let answer = answer.unwrap_or_else(|never| match never {});
            let (mut parts, body) = answer.into_parts();
            let held = parts.extensions.remove::<Held>();
            if let Some(date) = dated.then(date).flatten() {
                parts.headers.entry(header::DATE).or_insert(date);
            }
            Response::from_parts(parts, AnswerBody::new(body, call, span, urgent, held))
        }
    }
}

/// Decides when a connection ends, however it is used.
struct Shutdown {
    closing: bool,
    /// Whether the connection was ended at once, and its client's first bytes are waited for.
    parting: bool,
    /// Whether present calls have as much time as they take.
    patient: bool,
    /// When the connection is old, and its client is moved.
    old_at: Option<Instant>,
    deadline: Deadline,
}

impl Shutdown {
    fn new(budgets: &Budgets) -> Self {
        let old_at = moves::old_at(budgets.connection_age);
        let first = Instant::now() + budgets.first_call_timeout;
        Self {
            closing: false,
            parting: false,
            patient: false,
            old_at,
            deadline: Deadline::new(earlier(first, old_at)),
        }
    }

    /// Ready when a client that was not heard of yet cannot be waited for any longer.
    fn poll_patience(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if !std::mem::replace(&mut self.parting, true) {
            self.deadline.reset(Instant::now() + PATIENCE);
        }
        self.deadline.poll(cx)
    }

    /// Ready when the time of the connection is over. Calls `shut_down` when no more calls should begin.
    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        end: End,
        transport: &Transport,
        peer: &Peer,
        shut_down: impl FnOnce(Farewell),
    ) -> Poll<()> {
        let mut close = (end != End::Never).then(|| peer.connection.farewell());
        if end == End::Gently && !self.closing {
            self.patient = true;
        }
        if end == End::Soon && self.closing && std::mem::take(&mut self.patient) {
            self.deadline.reset(Instant::now() + GRACE);
        }
        while self.deadline.poll(cx).is_ready() {
            let now = Instant::now();
            let idle = peer.connection.idle();
            let next = if self.closing {
                if !self.patient || idle != Idle::Busy {
                    return Poll::Ready(());
                }
                // A call that began before the client knew of the end goes on.
                now + GRACE
            } else if self.old_at.is_some_and(|old_at| old_at <= now) {
                transport.connections.moves.note(Why::Age, 1);
                peer.connection.leave(Farewell::Age);
                (self.patient, close) = (true, Some(Farewell::Age));
                now + GRACE
            } else {
                let budgets = &transport.connections.budgets;
                match idle_deadline(budgets, idle) {
                    Some(at) if at <= now => {
                        transport.connections.refusals.note(Budget::Idle, peer);
                        (self.patient, close) = (true, Some(Farewell::Idle));
                        now + GRACE
                    }
                    Some(at) => earlier(at, self.old_at),
                    None => earlier(now + budgets.idle_timeout, self.old_at),
                }
            };
            self.deadline.reset(next);
        }
        if let Some(why) = close.filter(|_| !self.closing) {
            self.closing = true;
            shut_down(why);
            self.deadline.reset(Instant::now() + GRACE);
            // The deadline has to be polled to wake this task.
            let _ = self.deadline.poll(cx);
        }
        Poll::Pending
    }
}

fn earlier(at: Instant, other: Option<Instant>) -> Instant {
    other.map_or(at, |other| at.min(other))
}

/// The time of an answer.
fn date() -> Option<HeaderValue> {
    let printer = jiff::fmt::rfc2822::DateTimePrinter::new();
    let text = printer.timestamp_to_rfc9110_string(&jiff::Timestamp::now()).ok()?;
    HeaderValue::try_from(text).ok()
}
