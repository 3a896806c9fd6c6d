//! A gRPC client with little cost of its own: many calls in flight on one connection of HTTP/2, answers as bytes.

use anyhow::{Context, bail};
use bytes::{BufMut, Bytes, BytesMut};
use h2::client::SendRequest;
use http::header::{CONTENT_TYPE, TE};
use http::{HeaderMap, Method, Request};
use isthmus::mvcc::take_varint;
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

/// A method of etcd's key-value service.
#[derive(Clone, Copy, Debug)]
pub enum Call {
    Put,
    Range,
    Txn,
    Compact,
}

impl Call {
    fn path(self) -> &'static str {
        match self {
            Self::Put => "/etcdserverpb.KV/Put",
            Self::Range => "/etcdserverpb.KV/Range",
            Self::Txn => "/etcdserverpb.KV/Txn",
            Self::Compact => "/etcdserverpb.KV/Compact",
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

    /// Makes one call.
    pub async fn call(&self, call: Call, message: &impl Message) -> anyhow::Result<Bytes> {
        let mut send = self.send.clone().ready().await?;
        let request = Request::builder()
            .method(Method::POST)
            .uri(format!("http://{}{}", self.authority, call.path()))
            .header(CONTENT_TYPE, "application/grpc")
            .header(TE, "trailers")
            .body(())?;
        let (response, mut body) = send.send_request(request, false)?;
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
