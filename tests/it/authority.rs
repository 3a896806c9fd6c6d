//! Proves that clients are served whatever `:authority` they send, as etcd serves them.

use crate::support::store::{plain_client, plain_etcd};
use crate::support::tls::etcd;
use crate::support::{PATIENCE, Tls, eventually};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use std::sync::Arc;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const SETTINGS: u8 = 4;
const CONTINUATION: u8 = 9;

const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

/// What clients in use send: etcd's own client 3.5.0, several endpoints joined, and the paths of sockets.
const AUTHORITIES: [&str; 8] = [
    "#initially=[http://127.0.0.1:2379]",
    "127.0.0.1:2379,127.0.0.1:2380",
    "http://127.0.0.1:2379",
    "/run/etcd/etcd.sock",
    "run%2Fetcd%2Fetcd.sock",
    "%2Frun%2Fetcd%2Fetcd.sock",
    "",
    "etcd.example:2379",
];

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

/// An HTTP/2 client that sends what it is told. The Rust libraries refuse to send such authorities.
struct Client {
    io: Box<dyn Stream>,
    stream: u32,
}

impl Client {
    async fn new(io: impl Stream + 'static) -> Self {
        let mut client = Self {
            io: Box::new(io),
            stream: 1,
        };
        client.io.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.unwrap();
        client.write(SETTINGS, 0, 0, &[]).await;
        client
    }

    async fn write(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
        let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
        let frame = [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat();
        self.io.write_all(&frame).await.unwrap();
    }

    async fn read(&mut self) -> (u8, u8, u32, Vec<u8>) {
        let mut head = [0; 9];
        self.io.read_exact(&mut head).await.unwrap();
        let [a, b, c, kind, flags, stream @ ..] = head;
        let mut payload = vec![0; u32::from_be_bytes([0, a, b, c]) as usize];
        self.io.read_exact(&mut payload).await.unwrap();
        (kind, flags, u32::from_be_bytes(stream), payload)
    }

    /// Reads the key "key", with fields that are sent in this form, and returns the body of the answer.
    async fn get(&mut self, fields: &[u8]) -> Vec<u8> {
        let stream = self.stream;
        self.stream += 2;
        let (first, rest) = fields.split_at(fields.len() / 2);
        self.write(HEADERS, 0, stream, first).await;
        self.write(CONTINUATION, END_HEADERS, stream, rest).await;
        // RangeRequest { key: "key" }, behind the head of a gRPC message.
        self.write(DATA, END_STREAM, stream, b"\0\0\0\0\x05\x0a\x03key").await;
        let mut body = Vec::new();
        loop {
            let (kind, flags, of, payload) = timeout(PATIENCE, self.read()).await.unwrap();
            match kind {
                SETTINGS if flags == 0 => self.write(SETTINGS, 1, 0, &[]).await,
                DATA if of == stream => body.extend(payload),
                3 | 7 => panic!("reset or gone: {payload:?}"),
                _ => {}
            }
            if of == stream && flags & END_STREAM != 0 {
                return body;
            }
        }
    }
}

/// A field that the dynamic table keeps. The name is the index of a name in the static table, or a text.
fn field(index: u8, name: &str, value: &str) -> Vec<u8> {
    let length = |text: &str| u8::try_from(text.len()).unwrap();
    let mut field = vec![0x40 | index];
    if index == 0 {
        field.push(length(name));
        field.extend(name.bytes());
    }
    field.push(length(value));
    field.extend(value.bytes());
    field
}

/// The fields of a Range, each of which the dynamic table keeps.
fn fields(authority: &str) -> Vec<u8> {
    [
        vec![0x83, 0x86],
        field(1, "", authority),
        field(4, "", "/etcdserverpb.KV/Range"),
        field(31, "", "application/grpc"),
        field(0, "te", "trailers"),
    ]
    .concat()
}

/// Calls, twice, with each authority, on a connection of its own.
async fn all_are_served<S: Stream + 'static>(connect: impl AsyncFn() -> S) {
    for authority in AUTHORITIES {
        let mut client = Client::new(connect().await).await;
        // The dynamic table keeps no empty value that is in the static table.
        let authority_index = if authority.is_empty() { 0x81 } else { 0x80 | (61 + 4) };
        let first = match authority {
            "" => [&[0x83, 0x86, 0x81], &fields("")[4..]].concat(),
            _ => fields(authority),
        };
        for fields in [
            first,
            vec![0x83, 0x86, authority_index, 0x80 | 64, 0x80 | 63, 0x80 | 62],
        ] {
            let body = client.get(&fields).await;
            let body = String::from_utf8_lossy(&body);
            assert!(body.contains("value"), "{authority}: {body:?}");
        }
    }
}

#[tokio::test]
async fn every_authority_is_served_over_tcp_and_unix_sockets() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("socket");
    let server = plain_etcd()
        .arg(format!(
            "--listen-client-urls=http://127.0.0.1:0,unix://{}",
            socket.display()
        ))
        .start();
    let address = server.address().await;
    plain_client(&address).await.put("key", "value", None).await.unwrap();
    all_are_served(async || TcpStream::connect(&address).await.unwrap()).await;
    eventually("the unix socket accepts", async || {
        UnixStream::connect(&socket).await.ok()
    })
    .await;
    all_are_served(async || UnixStream::connect(&socket).await.unwrap()).await;
}

#[tokio::test]
async fn every_authority_is_served_over_tls() {
    let tls = Tls::new();
    let server = etcd(&tls).start();
    let address = server.address().await;
    tls.client(&address, "any")
        .await
        .put("key", "value", None)
        .await
        .unwrap();
    let pair = tls.ca.client("raw", "any").unwrap();
    let mut config = ClientConfig::clone(&tls.rustls_client(&pair, rustls::ALL_VERSIONS));
    config.alpn_protocols = vec![b"h2".to_vec()];
    let connector = TlsConnector::from(Arc::new(config));
    all_are_served(async || {
        let stream = TcpStream::connect(&address).await.unwrap();
        let name = ServerName::try_from("127.0.0.1").unwrap();
        connector.connect(name, stream).await.unwrap()
    })
    .await;
}
