//! A connection in the version of HTTP that its client speaks.

use super::bodies::AnswerBody;
use super::farewell::Farewell;
use super::io::{Io, Version};
use crate::http2;
use axum::http::{Request, Response};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::HttpService;
use hyper_util::rt::TokioIo;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

/// What all connections have in common.
pub(super) struct Protocols {
    pub(super) http1: http1::Builder,
    pub(super) http2: Arc<http2::Config>,
}

/// A connection, with the service of each version.
pub(super) struct Protocol<S1: HttpService<Incoming>, S2, F> {
    protocols: Arc<Protocols>,
    stage: Stage<S1, S2, F>,
}

enum Stage<S1: HttpService<Incoming>, S2, F> {
    /// Nothing was received that tells the version.
    Silent(Box<(Io, S1, S2)>),
    Http1(Pin<Box<http1::Connection<TokioIo<Io>, S1>>>),
    Http2(Box<http2::Connection<Io, S2, F, AnswerBody>>),
    Ended,
}

impl<S1, S2, F> Protocol<S1, S2, F>
where
    S1: HttpService<Incoming, ResBody = AnswerBody>,
    S1::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    S2: Fn(Request<http2::RequestStream>) -> F + Unpin,
    F: Future<Output = Response<AnswerBody>>,
{
    pub(super) fn new(io: Io, http1: S1, http2: S2, protocols: Arc<Protocols>) -> Self {
        Self {
            protocols,
            stage: Stage::Silent(Box::new((io, http1, http2))),
        }
    }

    /// Ready when the client has said in which version it speaks.
    fn poll_begun(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if let Stage::Silent(silent) = &mut self.stage {
            let version = ready!(silent.0.poll_version(cx));
            let Stage::Silent(silent) = std::mem::replace(&mut self.stage, Stage::Ended) else {
                return Poll::Ready(());
            };
            let (io, http1, http2) = *silent;
            self.stage = match version {
                Ok(Version::Http2) => {
                    let config = Arc::clone(&self.protocols.http2);
                    Stage::Http2(Box::new(http2::Connection::new(io, http2, config)))
                }
                Ok(Version::Http1) => {
                    let connection = self.protocols.http1.serve_connection(TokioIo::new(io), http1);
                    Stage::Http1(Box::pin(connection))
                }
                Err(_) => Stage::Ended,
            };
        }
        Poll::Ready(())
    }

    /// Ready when the connection is over.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        ready!(self.poll_begun(cx));
        match &mut self.stage {
            Stage::Silent(_) => return Poll::Pending,
            Stage::Http1(connection) => {
                if let Err(error) = ready!(connection.as_mut().poll(cx)) {
                    tracing::debug!(%error, "a connection ended with an error");
                }
            }
            Stage::Http2(connection) => {
                if let Err(error) = ready!(Pin::new(&mut **connection).poll(cx)) {
                    tracing::debug!(%error, "a connection ended with an error");
                }
            }
            Stage::Ended => {}
        }
        self.stage = Stage::Ended;
        Poll::Ready(())
    }

    /// Ends the connection at once. A client that speaks HTTP/2 is told why; ready when that is done, and pending while the
    /// version is not known.
    pub(super) fn poll_abort(&mut self, farewell: Farewell, cx: &mut Context<'_>) -> Poll<()> {
        ready!(self.poll_begun(cx));
        if let Stage::Http2(connection) = &mut self.stage {
            connection.abort(farewell.violation(), cx);
        }
        self.stage = Stage::Ended;
        Poll::Ready(())
    }

    /// Ends the connection after its present calls. A client that speaks HTTP/2 is told why.
    pub(super) fn shut_down(&mut self, farewell: Farewell) {
        match &mut self.stage {
            Stage::Silent(_) => self.stage = Stage::Ended,
            Stage::Http1(connection) => connection.as_mut().graceful_shutdown(),
            Stage::Http2(connection) => connection.shut_down(farewell.reason()),
            Stage::Ended => {}
        }
    }
}
