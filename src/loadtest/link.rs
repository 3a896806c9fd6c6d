//! One connection of the tester: gRPC over HTTP/2, with as little as an agent needs.
//!
//! A connection and everything that uses it run in one task ([`client::Connection::drive`]): no wake-ups between tasks, and no
//! task but one for each of tens of thousands of agents.

use super::error::Error;
use super::wire::{self, Field, Header};
use crate::http2::client::{self, Calls, Fields};
use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, TE, USER_AGENT};
use prost::Message;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::client::TlsStream;
use tokio_util::either::Either;

/// Limit for the answer to a call.
const CALL_TIMEOUT: Duration = Duration::from_secs(60);

/// For connections that are never paused.
pub static NEVER_PAUSED: AtomicBool = AtomicBool::new(false);

pub type Socket = Either<TcpStream, Box<TlsStream<TcpStream>>>;
pub type Connection = client::Connection<Socket>;

/// The calls of one connection.
#[derive(Clone)]
pub struct Link {
    calls: Calls,
    head: Arc<RequestHead>,
}

/// What all requests to an endpoint begin with.
#[derive(Debug)]
pub struct RequestHead {
    secure: bool,
    authority: String,
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
    fn path(self) -> &'static str {
        match self {
            Self::Range => "/etcdserverpb.KV/Range",
            Self::Put => "/etcdserverpb.KV/Put",
            Self::Txn => "/etcdserverpb.KV/Txn",
            Self::DeleteRange => "/etcdserverpb.KV/DeleteRange",
            Self::LeaseGrant => "/etcdserverpb.Lease/LeaseGrant",
            Self::LeaseRevoke => "/etcdserverpb.Lease/LeaseRevoke",
            Self::LeaseKeepAlive => "/etcdserverpb.Lease/LeaseKeepAlive",
            Self::Watch => "/etcdserverpb.Watch/Watch",
        }
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

impl RequestHead {
    pub fn new(authority: String, secure: bool) -> Arc<Self> {
        let headers = [
            (CONTENT_TYPE, "application/grpc"),
            (TE, "trailers"),
            (USER_AGENT, concat!("isthmus-loadtest/", env!("CARGO_PKG_VERSION"))),
            (HeaderName::from_static("hasleader"), "true"),
        ];
        let headers = headers.map(|(name, value)| (name, HeaderValue::from_static(value)));
        Arc::new(Self {
            secure,
            authority,
            headers: HeaderMap::from_iter(headers),
        })
    }
}

/// A call under way, whose messages are sent and received.
pub struct Exchange {
    call: Call,
    stream: client::Call,
    /// Bytes that were received, and how many of them were used.
    buffer: Vec<u8>,
    used: usize,
    /// The bytes of answers since somebody took this number.
    pub received: u64,
}

impl Link {
    /// Begins HTTP/2 on a socket.
    pub fn open(socket: Socket, head: &Arc<RequestHead>) -> (Self, Connection) {
        let (connection, calls) = client::connect(socket);
        let head = Arc::clone(head);
        (Self { calls, head }, connection)
    }

    /// Begins a call. The caller sends the messages.
    pub fn begin(&self, call: Call) -> Result<Exchange, Error> {
        let head = &self.head;
        let stream = self
            .calls
            .begin(head.secure, &head.authority, call.path(), &head.headers)?;
        Ok(Exchange {
            call,
            stream,
            buffer: Vec::new(),
            used: 0,
            received: 0,
        })
    }

    /// Makes a call with one request and one answer, whose fields `on` takes. Returns the answer's header.
    pub async fn call(
        &self,
        call: Call,
        request: &impl Message,
        on: impl FnMut(u32, Field<'_>) -> Result<(), Error>,
    ) -> Result<Header, Error> {
        let late = |_| Error::Timeout(call.name());
        let answered = self.call_without_limit(call, request, on);
        timeout(CALL_TIMEOUT, answered).await.map_err(late)?
    }

    async fn call_without_limit(
        &self,
        call: Call,
        request: &impl Message,
        mut on: impl FnMut(u32, Field<'_>) -> Result<(), Error>,
    ) -> Result<Header, Error> {
        let mut exchange = self.begin(call)?;
        exchange.send(wire::frame(request), true);
        exchange.begun().await?;
        let mut header = None;
        let found = exchange.message(|tag, field| {
            if tag == 1 {
                header = Some(Header::read(field.bytes())?);
            }
            on(tag, field)
        });
        let found = found.await?;
        exchange.end().await?;
        header
            .filter(|header| found && header.cluster_id != 0)
            .ok_or(Error::NoHeader)
    }

    /// Sends a ping of HTTP/2.
    pub fn ping(&self) {
        self.calls.ping();
    }

    /// Waits for the answer to a ping.
    pub async fn pong(&self) {
        self.calls.pong().await;
    }
}

/// Fails if the headers or trailers have the status of an error.
fn check(call: Call, fields: &Fields) -> Result<(), Error> {
    let failed = |code, message| Error::Status {
        call: call.name(),
        code,
        message,
    };
    match (fields.http_status, fields.grpc_status) {
        (0 | 200, None | Some(0)) => Ok(()),
        (_, Some(code)) => Err(failed(code, percent_decoded(&fields.grpc_message))),
        (status, None) => Err(failed(2, format!("HTTP status {status}"))),
    }
}

/// The text of a `grpc-message`.
fn percent_decoded(mut text: &[u8]) -> String {
    let mut decoded = Vec::with_capacity(text.len());
    while let Some((first, rest)) = text.split_first() {
        let digits = (*first == b'%').then(|| rest.get(..2).and_then(|hex| std::str::from_utf8(hex).ok()));
        match digits.flatten().and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
            Some(byte) => {
                decoded.push(byte);
                text = &rest[2..];
            }
            None => {
                decoded.push(*first);
                text = rest;
            }
        }
    }
    wire::shown(&decoded)
}

impl Exchange {
    /// Sends a message, the last one if it `ends` the request.
    pub fn send(&self, message: Bytes, ends: bool) {
        self.stream.send(message, ends);
    }

    /// Waits for the beginning of the answer.
    pub async fn begun(&self) -> Result<(), Error> {
        let head = self.stream.head().await?;
        check(self.call, &head)
    }

    /// Reads one message and hands its fields to `on` as they are complete, so that no more than one field is kept. Returns
    /// false at the end of the stream. What a cancelled call has read is lost, so a caller that waits for other things as well
    /// waits for [`Exchange::more`] first.
    pub async fn message(&mut self, mut on: impl FnMut(u32, Field<'_>) -> Result<(), Error>) -> Result<bool, Error> {
        while self.rest().len() < 5 {
            if !self.read().await? {
                return match self.rest() {
                    [] => Ok(false),
                    _ => Err(wire::Malformed.into()),
                };
            }
        }
        let head = self.rest();
        let mut left = head[1..5].iter().fold(0, |n, byte| n << 8 | usize::from(*byte));
        if head[0] != 0 {
            return Err(wire::Malformed.into());
        }
        self.used += 5;
        while left > 0 {
            let rest = self.rest();
            if let Some((tag, field, used)) = wire::first_field(&rest[..rest.len().min(left)], left)? {
                on(tag, field)?;
                self.used += used;
                left -= used;
            } else if !self.read().await? {
                return Err(wire::Malformed.into());
            }
        }
        if self.rest().is_empty() {
            self.forget();
        }
        Ok(true)
    }

    /// Received bytes that were not used.
    fn rest(&self) -> &[u8] {
        &self.buffer[self.used..]
    }

    /// Gives the buffer back.
    fn forget(&mut self) {
        self.used = 0;
        self.buffer.clear();
        client::give_back(&mut self.buffer);
    }

    /// Waits until a message has begun or the stream has ended. Nothing is lost if the caller stops waiting.
    pub async fn more(&mut self) -> Result<(), Error> {
        if self.rest().is_empty() {
            self.read().await?;
        }
        Ok(())
    }

    /// Reads what has come; false at the end.
    async fn read(&mut self) -> Result<bool, Error> {
        self.buffer.drain(..self.used);
        self.used = 0;
        let before = self.buffer.len();
        let has_more = self.stream.read(&mut self.buffer).await?;
        self.received += (self.buffer.len() - before) as u64;
        Ok(has_more)
    }

    /// Reads and throws away what comes, until the stream ends or fails.
    pub async fn discard(&mut self) -> Result<(), Error> {
        self.forget();
        while self.read().await? {
            self.forget();
        }
        Ok(())
    }

    /// Reads to the end of the stream. Fails if the call failed.
    pub async fn end(&mut self) -> Result<(), Error> {
        self.discard().await?;
        match self.stream.trailers() {
            Some(trailers) => check(self.call, &trailers),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_has_its_code_and_its_text() {
        let fields = |http_status, grpc_status, message: &'static str| Fields {
            http_status,
            grpc_status,
            grpc_message: Bytes::from_static(message.as_bytes()),
        };
        let text = |fields| check(Call::Put, &fields).map_err(|error| error.to_string());
        assert_eq!(text(fields(200, None, "")), Ok(()));
        assert_eq!(text(fields(0, Some(0), "")), Ok(()));
        assert_eq!(
            text(fields(0, Some(7), "etcdserver: permission%20denied, 100%, %e2%82%ac")),
            Err("Put: etcdserver: permission denied, 100%, \u{20ac} (gRPC code 7)".to_owned())
        );
        assert_eq!(
            text(fields(0, Some(2), "%1b[31mred%0a")),
            Err("Put:  [31mred  (gRPC code 2)".to_owned())
        );
        assert_eq!(
            text(fields(404, None, "")),
            Err("Put: HTTP status 404 (gRPC code 2)".to_owned())
        );
    }
}
