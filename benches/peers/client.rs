//! A gRPC client with little cost of its own: many calls in flight on one connection of HTTP/2, answers as bytes.

use anyhow::{Context, bail};
use bytes::{BufMut, Bytes, BytesMut};
use h2::client::SendRequest;
use http::header::{CONTENT_TYPE, TE};
use http::{HeaderMap, Method, Request};
use isthmus::mvcc::take_varint;
use isthmus::pb::etcdserverpb::watch_request::RequestUnion;
use isthmus::pb::etcdserverpb::{WatchCreateRequest, WatchRequest};
use prost::Message;
use tokio::net::TcpStream;
use tokio::task::JoinHandle;

/// The window of a stream and of a connection: grpc-go grows its windows to this size on a fast network.
const WINDOW: u32 = 4 << 20;

/// One connection.
pub struct Client {
    send: SendRequest<Bytes>,
    authority: String,
    driver: JoinHandle<()>,
}

/// A watch of one range, which has begun.
pub struct Watch {
    body: h2::RecvStream,
    /// What has arrived and belongs to no message yet.
    rest: BytesMut,
    /// The server ends the watch when nobody can send any more.
    _send: h2::SendStream<Bytes>,
}

/// A method of etcd's services.
#[derive(Clone, Copy, Debug)]
pub enum Call {
    Put,
    Range,
    Txn,
    Compact,
    Watch,
}

impl Call {
    fn path(self) -> &'static str {
        match self {
            Self::Put => "/etcdserverpb.KV/Put",
            Self::Range => "/etcdserverpb.KV/Range",
            Self::Txn => "/etcdserverpb.KV/Txn",
            Self::Compact => "/etcdserverpb.KV/Compact",
            Self::Watch => "/etcdserverpb.Watch/Watch",
        }
    }
}

impl Client {
    pub async fn connect(authority: &str) -> anyhow::Result<Self> {
        let socket = TcpStream::connect(authority).await?;
        socket.set_nodelay(true)?;
        let mut builder = h2::client::Builder::new();
        builder
            .initial_window_size(WINDOW)
            .initial_connection_window_size(WINDOW)
            .enable_push(false);
        let (send, connection) = builder.handshake(socket).await?;
        // A lost connection shows up in the calls.
        #[expect(clippy::disallowed_methods, reason = "the task ends with the client")]
        let driver = tokio::spawn(async { drop(connection.await) });
        Ok(Self {
            send,
            authority: authority.to_owned(),
            driver,
        })
    }

    async fn begin(&self, call: Call) -> anyhow::Result<(h2::client::ResponseFuture, h2::SendStream<Bytes>)> {
        let mut send = self.send.clone().ready().await?;
        let request = Request::builder()
            .method(Method::POST)
            .uri(format!("http://{}{}", self.authority, call.path()))
            .header(CONTENT_TYPE, "application/grpc")
            .header(TE, "trailers")
            .body(())?;
        Ok(send.send_request(request, false)?)
    }

    /// Watches a range from now on. Returns once the server has confirmed the watch.
    pub async fn watch(&self, (key, end): (&'static str, &'static str)) -> anyhow::Result<Watch> {
        let (response, mut send) = self.begin(Call::Watch).await?;
        let create = WatchCreateRequest {
            key: key.into(),
            range_end: end.into(),
            ..WatchCreateRequest::default()
        };
        let request = WatchRequest {
            request_union: Some(RequestUnion::CreateRequest(create)),
        };
        send.send_data(framed(&request), false)?;
        let (head, body) = response.await?.into_parts();
        check(Call::Watch, &head.headers)?;
        let mut watch = Watch {
            body,
            rest: BytesMut::new(),
            _send: send,
        };
        let created = watch.message().await?;
        for field in fields(&created) {
            if let (3, Value::Number(1)) = field? {
                return Ok(watch);
            }
        }
        bail!("the server did not confirm a watch")
    }

    /// Makes one call.
    pub async fn call(&self, call: Call, message: &impl Message) -> anyhow::Result<Bytes> {
        let (response, mut body) = self.begin(call).await?;
        body.send_data(framed(message), true)?;
        let (head, mut body) = response.await?.into_parts();
        check(call, &head.headers)?;
        let mut answer = BytesMut::new();
        while let Some(chunk) = body.data().await {
            let chunk = chunk?;
            body.flow_control().release_capacity(chunk.len())?;
            answer.extend_from_slice(&chunk);
        }
        if let Some(trailers) = body.trailers().await? {
            check(call, &trailers)?;
        }
        if answer.len() < 5 {
            bail!("{call:?}: the server sent no answer");
        }
        Ok(answer.freeze().slice(5..))
    }
}

impl Watch {
    /// The next message.
    async fn message(&mut self) -> anyhow::Result<Bytes> {
        loop {
            if let Some(length) = self.rest.get(1..5) {
                let length = length.iter().fold(0, |sum, byte| sum << 8 | usize::from(*byte));
                if self.rest.len() >= 5 + length {
                    return Ok(self.rest.split_to(5 + length).freeze().slice(5..));
                }
            }
            let chunk = self.body.data().await.context("the server has ended a watch")??;
            self.body.flow_control().release_capacity(chunk.len())?;
            self.rest.extend_from_slice(&chunk);
        }
    }

    /// The values of the events of the next message that has any. Values must have eight bytes at least, of which the first
    /// eight are a number.
    pub async fn numbers(&mut self) -> anyhow::Result<Vec<u64>> {
        loop {
            let message = self.message().await?;
            let mut numbers = vec![];
            for field in fields(&message) {
                match field? {
                    (4, Value::Number(1)) => bail!("the server has cancelled a watch"),
                    (11, Value::Bytes(event)) => numbers.push(number(event)?),
                    _ => {}
                }
            }
            if !numbers.is_empty() {
                return Ok(numbers);
            }
        }
    }
}

/// The number in the value of an event.
fn number(event: &[u8]) -> anyhow::Result<u64> {
    for field in fields(event) {
        let (2, Value::Bytes(kv)) = field? else { continue };
        for field in fields(kv) {
            if let (5, Value::Bytes(value)) = field? {
                let number = value.first_chunk().context("a value has no number")?;
                return Ok(u64::from_be_bytes(*number));
            }
        }
    }
    bail!("an event has no value")
}

impl Drop for Client {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

fn framed(message: &impl Message) -> Bytes {
    let length = message.encoded_len();
    let mut frame = BytesMut::with_capacity(5 + length);
    frame.put_u8(0);
    frame.put_u32(u32::try_from(length).unwrap_or(u32::MAX));
    // Fails only without room, and the buffer grows.
    let _ = message.encode(&mut frame);
    frame.freeze()
}

fn check(call: Call, headers: &HeaderMap) -> anyhow::Result<()> {
    match headers.get("grpc-status").map(|status| status.as_bytes()) {
        None | Some(b"0") => Ok(()),
        Some(status) => {
            let message = headers.get("grpc-message").and_then(|text| text.to_str().ok());
            let status = String::from_utf8_lossy(status);
            bail!("{call:?} failed with status {status}: {}", message.unwrap_or_default())
        }
    }
}

/// What a list's reader needs of a page.
#[derive(Debug, Default, PartialEq)]
pub struct Page {
    pub keys: usize,
    pub revision: i64,
    pub more: bool,
    pub last: Vec<u8>,
}

impl Page {
    /// Reads a `RangeResponse`.
    pub fn read(answer: &[u8]) -> anyhow::Result<Self> {
        let mut page = Self::default();
        let mut last = None;
        for field in fields(answer) {
            match field? {
                (1, Value::Bytes(header)) => {
                    for field in fields(header) {
                        if let (3, Value::Number(revision)) = field? {
                            page.revision = i64::try_from(revision)?;
                        }
                    }
                }
                (2, Value::Bytes(kv)) => {
                    page.keys += 1;
                    last = Some(kv);
                }
                (3, Value::Number(more)) => page.more = more != 0,
                _ => {}
            }
        }
        if let Some(kv) = last
            && let Some(field) = fields(kv).next()
            && let (1, Value::Bytes(key)) = field?
        {
            page.last = key.to_vec();
        }
        Ok(page)
    }
}

enum Value<'a> {
    Number(u64),
    Bytes(&'a [u8]),
}

/// The fields of a message that has only numbers and bytes.
fn fields(message: &[u8]) -> impl Iterator<Item = anyhow::Result<(u64, Value<'_>)>> {
    let mut at = 0;
    let mut next = move || {
        let tag = take_varint(message, &mut at);
        let value = match tag & 7 {
            0 => Value::Number(take_varint(message, &mut at)),
            2 => {
                let length = usize::try_from(take_varint(message, &mut at))?;
                let bytes = message
                    .get(at..at + length)
                    .context("a field is longer than its message")?;
                at += length;
                Value::Bytes(bytes)
            }
            wire => bail!("an answer has a field of wire type {wire}"),
        };
        Ok((at, (tag >> 3, value)))
    };
    let mut done = message.is_empty();
    std::iter::from_fn(move || {
        if done {
            return None;
        }
        match next() {
            Ok((at, field)) => {
                done = at >= message.len();
                Some(Ok(field))
            }
            Err(error) => {
                done = true;
                Some(Err(error))
            }
        }
    })
}
