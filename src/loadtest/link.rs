//! One connection of the tester: gRPC over h2, with as little as an agent needs.
//!
//! A connection and everything that uses it run in one task ([`drive`]): no wake-ups between tasks, and no task but one for
//! each of tens of thousands of agents.

use super::error::Error;
use super::wire::{self, Field, Header};
use bytes::{Buf, Bytes, BytesMut};
use h2::client::{self, SendRequest};
use h2::{RecvStream, SendStream};
use http::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, TE, USER_AGENT};
use http::uri::{PathAndQuery, Uri};
use http::{Method, Request};
use prost::Message;
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::task::Poll;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::client::TlsStream;
use tokio_util::either::Either;

/// Limit for the answer to a call.
const CALL_TIMEOUT: Duration = Duration::from_secs(60);

/// Flow-control window of a connection. As in grpc-go, only the window of a stream (64 KiB) holds a server back: events that
/// pile up on the watch stream must not stop the pages of a list.
const CONNECTION_WINDOW: u32 = 1 << 20;

pub type Socket = Either<TcpStream, Box<TlsStream<TcpStream>>>;
pub type Connection = client::Connection<Socket, Bytes>;

/// The calls of one connection.
pub struct Link {
    send: SendRequest<Bytes>,
    base: http::uri::Parts,
    headers: HeaderMap,
}

/// The methods of etcd's API that the tester calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    Range,
    Put,
    Txn,
    DeleteRange,
    LeaseGrant,
    LeaseRevoke,
    LeaseKeepAlive,
    Watch,
}

impl Call {
    fn path(self) -> PathAndQuery {
        PathAndQuery::from_static(match self {
            Self::Range => "/etcdserverpb.KV/Range",
            Self::Put => "/etcdserverpb.KV/Put",
            Self::Txn => "/etcdserverpb.KV/Txn",
            Self::DeleteRange => "/etcdserverpb.KV/DeleteRange",
            Self::LeaseGrant => "/etcdserverpb.Lease/LeaseGrant",
            Self::LeaseRevoke => "/etcdserverpb.Lease/LeaseRevoke",
            Self::LeaseKeepAlive => "/etcdserverpb.Lease/LeaseKeepAlive",
            Self::Watch => "/etcdserverpb.Watch/Watch",
        })
    }

    fn name(self) -> &'static str {
        match self {
            Self::Range => "Range",
            Self::Put => "Put",
            Self::Txn => "Txn",
            Self::DeleteRange => "DeleteRange",
            Self::LeaseGrant => "LeaseGrant",
            Self::LeaseRevoke => "LeaseRevoke",
            Self::LeaseKeepAlive => "LeaseKeepAlive",
            Self::Watch => "Watch",
        }
    }
}

/// The messages that a call receives.
pub struct Answers {
    call: Call,
    body: RecvStream,
    /// Bytes that were received and not used.
    buffer: Bytes,
    /// The bytes of DATA frames since somebody took this number.
    pub received: u64,
}

/// A call that has begun and whose answer has not.
pub struct Pending {
    call: Call,
    response: client::ResponseFuture,
}

impl Link {
    /// Begins HTTP/2 on a socket.
    pub async fn open(socket: Socket, authority: &str, secure: bool) -> Result<(Self, Connection), Error> {
        let mut builder = client::Builder::new();
        builder
            .enable_push(false)
            .max_concurrent_reset_streams(4)
            .initial_connection_window_size(CONNECTION_WINDOW);
        let (send, connection) = builder.handshake(socket).await?;
        let mut base = http::uri::Parts::default();
        base.scheme = Some(if secure {
            http::uri::Scheme::HTTPS
        } else {
            http::uri::Scheme::HTTP
        });
        base.authority = authority.parse().ok();
        let headers = [
            (CONTENT_TYPE, "application/grpc"),
            (TE, "trailers"),
            (USER_AGENT, concat!("isthmus-loadtest/", env!("CARGO_PKG_VERSION"))),
            (HeaderName::from_static("hasleader"), "true"),
        ];
        let headers = headers.map(|(name, value)| (name, HeaderValue::from_static(value)));
        let link = Self {
            send,
            base,
            headers: HeaderMap::from_iter(headers),
        };
        Ok((link, connection))
    }

    /// Begins a call. The caller sends the messages.
    pub async fn begin(&mut self, call: Call) -> Result<(SendStream<Bytes>, Pending), Error> {
        poll_fn(|cx| self.send.poll_ready(cx)).await?;
        let mut parts = http::uri::Parts::default();
        parts.scheme = self.base.scheme.clone();
        parts.authority = self.base.authority.clone();
        parts.path_and_query = Some(call.path());
        let mut request = Request::new(());
        *request.method_mut() = Method::POST;
        *request.uri_mut() = Uri::from_parts(parts).unwrap_or_default();
        *request.headers_mut() = self.headers.clone();
        let (response, body) = self.send.send_request(request, false)?;
        Ok((body, Pending { call, response }))
    }

    /// Makes a call with one request and one answer, whose fields `on` takes. Returns the answer's header.
    pub async fn call(
        &mut self,
        call: Call,
        request: &impl Message,
        on: impl FnMut(u32, Field<'_>) -> Result<(), Error>,
    ) -> Result<Header, Error> {
        let late = |_| Error::Timeout(call.name());
        let answered = self.call_without_limit(call, request, on);
        timeout(CALL_TIMEOUT, answered).await.map_err(late)?
    }

    async fn call_without_limit(
        &mut self,
        call: Call,
        request: &impl Message,
        mut on: impl FnMut(u32, Field<'_>) -> Result<(), Error>,
    ) -> Result<Header, Error> {
        let (mut body, pending) = self.begin(call).await?;
        body.send_data(wire::frame(request), true)?;
        let mut answers = pending.answers().await?;
        let mut header = None;
        let found = answers.message(|tag, field| {
            if tag == 1 {
                header = Some(Header::read(field.bytes())?);
            }
            on(tag, field)
        });
        let found = found.await?;
        answers.end().await?;
        header
            .filter(|header| found && header.cluster_id != 0)
            .ok_or(Error::NoHeader)
    }
}

impl Pending {
    /// Waits for the beginning of the answer.
    pub async fn answers(self) -> Result<Answers, Error> {
        let (head, body) = self.response.await?.into_parts();
        check(self.call, &head.headers)?;
        Ok(Answers {
            call: self.call,
            body,
            buffer: Bytes::new(),
            received: 0,
        })
    }
}

/// Fails if the headers or trailers have the status of an error.
fn check(call: Call, headers: &HeaderMap) -> Result<(), Error> {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    match text("grpc-status") {
        None | Some("0") => Ok(()),
        Some(code) => Err(Error::Status {
            call: call.name(),
            code: code.parse().unwrap_or(2),
            message: text("grpc-message").unwrap_or_default().replace("%20", " "),
        }),
    }
}

impl Answers {
    /// Reads one message and hands its fields to `on` as they are complete, so that no more than one field is kept. Returns
    /// false at the end of the stream. What a cancelled call has read is lost, so a caller that waits for other things as well
    /// waits for [`Answers::more`] first.
    pub async fn message(&mut self, mut on: impl FnMut(u32, Field<'_>) -> Result<(), Error>) -> Result<bool, Error> {
        while self.buffer.len() < 5 {
            if !self.read().await? {
                return if self.buffer.is_empty() {
                    Ok(false)
                } else {
                    Err(wire::Malformed.into())
                };
            }
        }
        let length = self.buffer[1..5].iter().fold(0, |n, byte| n << 8 | usize::from(*byte));
        if self.buffer[0] != 0 {
            return Err(wire::Malformed.into());
        }
        self.buffer.advance(5);
        let mut left = length;
        while left > 0 {
            let present = &self.buffer[..self.buffer.len().min(left)];
            if let Some((tag, field, used)) = wire::first_field(present, left)? {
                on(tag, field)?;
                self.buffer.advance(used);
                left -= used;
            } else if !self.read().await? {
                return Err(wire::Malformed.into());
            }
        }
        if self.buffer.is_empty() {
            // Gives the memory back to the connection's read buffer.
            self.buffer = Bytes::new();
        }
        Ok(true)
    }

    /// Waits until a message has begun or the stream has ended. Nothing is lost if the caller stops waiting.
    pub async fn more(&mut self) -> Result<(), Error> {
        if self.buffer.is_empty() {
            self.read().await?;
        }
        Ok(())
    }

    /// Reads the next DATA frame; false at the end.
    async fn read(&mut self) -> Result<bool, Error> {
        let Some(chunk) = poll_fn(|cx| self.body.poll_data(cx)).await else {
            return Ok(false);
        };
        let chunk = chunk?;
        self.received += chunk.len() as u64;
        self.body.flow_control().release_capacity(chunk.len())?;
        if self.buffer.is_empty() {
            self.buffer = chunk;
        } else {
            let mut both = BytesMut::with_capacity(self.buffer.len() + chunk.len());
            both.extend_from_slice(&self.buffer);
            both.extend_from_slice(&chunk);
            self.buffer = both.freeze();
        }
        Ok(true)
    }

    /// Reads and throws away what comes, until the stream ends or fails.
    pub async fn discard(&mut self) -> Result<(), Error> {
        while self.read().await? {
            self.buffer = Bytes::new();
        }
        Ok(())
    }

    /// Reads to the end of the stream. Fails if the call failed.
    pub async fn end(&mut self) -> Result<(), Error> {
        self.buffer = Bytes::new();
        self.discard().await?;
        match poll_fn(|cx| self.body.poll_trailers(cx)).await? {
            Some(trailers) => check(self.call, &trailers),
            None => Ok(()),
        }
    }
}

/// Runs `work` and the connection that it uses in this task, until `work` ends or the connection does. While `paused` is set,
/// nothing is read or written.
pub async fn drive<T>(
    connection: &mut Connection,
    paused: &AtomicBool,
    work: impl Future<Output = Result<T, Error>>,
) -> Result<T, Error> {
    let mut work = pin!(work);
    poll_fn(move |cx| {
        // First what has been received; `work` then finds it. What `work` sends wakes the connection once more.
        let ended = match paused.load(Relaxed) {
            true => Poll::Pending,
            false => Pin::new(&mut *connection).poll(cx),
        };
        match (work.as_mut().poll(cx), ended) {
            (Poll::Ready(done), _) => Poll::Ready(done),
            (Poll::Pending, Poll::Ready(Err(error))) => Poll::Ready(Err(error.into())),
            (Poll::Pending, Poll::Ready(Ok(()))) => Poll::Ready(Err(Error::Closed)),
            (Poll::Pending, Poll::Pending) => Poll::Pending,
        }
    })
    .await
}
