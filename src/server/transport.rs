//! HTTP over one accepted connection, within the connection's budgets and with every limit of HTTP/2 set.

use super::authority::AnyAuthority;
use super::bodies::{AnswerBody, Budgeted, Held, RequestBody, RequestLimits};
use super::connection::Idle;
use super::connections::{Connections, idle_deadline};
use super::io::Io;
use super::peer::Peer;
use super::refusals::Budget;
use super::status;
use crate::util::net::Keepalive;
use axum::Router;
use axum::body::Body;
use axum::http::{Request, Response, header};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use std::convert::Infallible;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

/// Bytes that a stream may send before its call reads them. A burst of small messages within this window does not
/// exhaust the library's budget for small frames, which is derived from the window of the connection.
const STREAM_WINDOW: u32 = 128 << 10;
/// Bytes that all streams of a connection may send before their calls read them.
const CONNECTION_WINDOW: u32 = 8 << 20;
/// Bytes of the headers of a request. grpc-go takes more; tokens with many claims need tens of kilobytes.
const HEADERS_MAX: u32 = 256 << 10;
/// Streams that a client resets before the server has looked at them. Go clients cancel in bursts.
const PENDING_RESETS_MAX: usize = 2048;
/// Streams that the server resets because of errors of the client, in the life of a connection (CVE-2025-8671).
const ERROR_RESETS_MAX: usize = 1024;
/// Bytes that the transport takes of a body in advance.
const SEND_BUFFER: usize = 64 << 10;
/// The longest time for the headers of an HTTP/1 request, and between two requests.
const HEADERS_TIMEOUT: Duration = Duration::from_secs(60);
/// The time that a closing connection has for its last calls.
const GRACE: Duration = Duration::from_secs(10);

/// Serves connections with one router.
pub(super) struct Transport {
    builder: Builder<TokioExecutor>,
    router: Router,
    connections: Arc<Connections>,
}

impl Transport {
    pub(super) fn new(
        router: Router,
        connections: Arc<Connections>,
        max_concurrent_streams: u32,
        keepalive: Keepalive,
    ) -> Self {
        let Keepalive { interval, timeout } = keepalive;
        let pings = !interval.is_zero() && !timeout.is_zero();
        let mut builder = Builder::new(TokioExecutor::new());
        builder
            .http2()
            .timer(TokioTimer::new())
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_concurrent_streams(max_concurrent_streams)
            .max_header_list_size(HEADERS_MAX)
            .max_pending_accept_reset_streams(PENDING_RESETS_MAX)
            .max_local_error_reset_streams(ERROR_RESETS_MAX)
            .max_send_buf_size(SEND_BUFFER)
            .keep_alive_interval(pings.then_some(interval));
        if pings {
            builder.http2().keep_alive_timeout(timeout);
        }
        builder
            .http1()
            .timer(TokioTimer::new())
            .header_read_timeout(HEADERS_TIMEOUT);
        Self {
            builder,
            router,
            connections,
        }
    }

    /// Serves one connection until it ends, is idle for too long, is closed by the server, or `stop` is cancelled.
    pub(super) async fn serve(&self, io: Io, peer: Peer, stop: &CancellationToken) {
        let connection = Arc::clone(&peer.connection);
        let service = hyper::service::service_fn(|request| self.call(request, peer.clone()));
        let io = TokioIo::new(AnyAuthority::new(io));
        let mut serving = pin!(self.builder.serve_connection(io, service));
        let (mut closing, mut idle) = (false, false);
        let budgets = &self.connections.budgets;
        let mut deadline = pin!(tokio::time::sleep_until(Instant::now() + budgets.first_call_timeout));
        loop {
            let close = tokio::select! {
                ended = &mut serving => {
                    if let Err(error) = ended {
                        tracing::debug!(%error, "a connection ended with an error");
                    }
                    return;
                }
                () = connection.killed() => return,
                () = stop.cancelled(), if !closing => true,
                () = connection.closing(), if !closing => true,
                () = &mut deadline => {
                    let now = Instant::now();
                    if closing && idle && connection.idle() == Idle::Busy {
                        // A call that began before the client knew of the end goes on.
                        deadline.as_mut().reset(now + GRACE);
                        continue;
                    }
                    if closing {
                        return;
                    }
                    match idle_deadline(budgets, connection.idle()) {
                        Some(at) if at <= now => {
                            self.connections.refusals.note(Budget::Idle, &peer);
                            idle = true;
                            true
                        }
                        Some(at) => {
                            deadline.as_mut().reset(at);
                            false
                        }
                        None => {
                            deadline.as_mut().reset(now + budgets.idle_timeout);
                            false
                        }
                    }
                }
            };
            if close {
                closing = true;
                serving.as_mut().graceful_shutdown();
                deadline.as_mut().reset(Instant::now() + GRACE);
            }
        }
    }

    /// Passes one call to the router, with what it may hold.
    fn call(
        &self,
        request: Request<Incoming>,
        peer: Peer,
    ) -> impl Future<Output = Result<Response<AnswerBody>, Infallible>> + Send + use<> {
        let call = Budgeted::new(peer.connection.begin_call());
        let kind = request.headers().get(header::CONTENT_TYPE);
        let path = request.uri().path();
        // Leases must be renewed, whatever else the client reads.
        let urgent = path.ends_with("/LeaseKeepAlive");
        // The last two are those of the JSON gateway.
        let streaming = ["/Watch", "/watch", "/keepalive"].iter().any(|end| path.ends_with(end));
        let limits = RequestLimits {
            timeout: self.connections.budgets.request_timeout,
            streaming: streaming || urgent,
            grpc: !path.starts_with("/v3") && kind.is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc")),
        };
        let (refusals, router) = (Arc::clone(&self.connections.refusals), self.router.clone());
        let crowded = peer.connection.is_crowded();
        async move {
            if crowded {
                refusals.note(Budget::StrangerCalls, &peer);
                let refused = status::too_many_requests().into_http::<Body>();
                return Ok(refused.map(|body| AnswerBody::new(body, call, urgent, None)));
            }
            let (mut parts, body) = request.into_parts();
            parts.extensions.insert(peer.clone());
            let body = RequestBody::new(Body::new(body), Arc::clone(&call), limits, peer, refusals);
            let answer = router.oneshot(Request::from_parts(parts, Body::new(body))).await;
            let answer = answer.unwrap_or_else(|never| match never {});
            let (mut parts, body) = answer.into_parts();
            let held = parts.extensions.remove::<Held>();
            Ok(Response::from_parts(parts, AnswerBody::new(body, call, urgent, held)))
        }
    }
}
