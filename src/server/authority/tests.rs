//! The HTTP library behind the filter understands clients that refer to their dynamic table.

use super::AnyAuthority;
use super::frames::PREFACE;
use super::frames::tests::frame;
use axum::http::{Request, Response};
use http_body_util::Empty;
use hyper::body::{Bytes, Incoming};
use hyper_util::rt::{TokioExecutor, TokioIo};
use proptest::prelude::*;
use std::collections::VecDeque;
use std::convert::Infallible;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// Entries of the static table.
const STATIC: usize = 61;
/// Initial size of the dynamic table, in bytes.
const TABLE: usize = 4096;

/// A client that refers to its dynamic table wherever it can.
#[derive(Default)]
struct Client {
    table: VecDeque<(Vec<u8>, Vec<u8>)>,
}

impl Client {
    fn field(&mut self, block: &mut Vec<u8>, name: &[u8], value: &[u8]) {
        let found = |(n, v): &(Vec<u8>, Vec<u8>)| n == name && v == value;
        if let Some(index) = self.table.iter().position(found) {
            return integer(block, 0x80, 7, STATIC + 1 + index);
        }
        match name {
            b":authority" => block.push(0x41),
            b":path" => block.push(0x44),
            _ => {
                block.push(0x40);
                string(block, name);
            }
        }
        string(block, value);
        self.table.push_front((name.to_vec(), value.to_vec()));
        let size =
            |table: &VecDeque<(Vec<u8>, Vec<u8>)>| table.iter().map(|(n, v)| n.len() + v.len() + 32).sum::<usize>();
        while size(&self.table) > TABLE {
            self.table.pop_back();
        }
    }

    /// A call: the frame that opens and ends the stream.
    fn call(&mut self, stream: u32, authority: &str, path: &str, fields: &[(String, String)]) -> Vec<u8> {
        let mut block = vec![0x83, 0x86];
        self.field(&mut block, b":authority", authority.as_bytes());
        self.field(&mut block, b":path", path.as_bytes());
        for (name, value) in fields {
            self.field(&mut block, name.as_bytes(), value.as_bytes());
        }
        frame(0x1, 0x5, stream, &block)
    }
}

fn integer(block: &mut Vec<u8>, first: u8, prefix: u32, value: usize) {
    let mask = (1 << prefix) - 1;
    if value < mask {
        return block.push(first | u8::try_from(value).unwrap());
    }
    block.push(first | u8::try_from(mask).unwrap());
    let mut rest = value - mask;
    while rest > 0x7f {
        block.push(u8::try_from(rest & 0x7f).unwrap() | 0x80);
        rest >>= 7;
    }
    block.push(u8::try_from(rest).unwrap());
}

fn string(block: &mut Vec<u8>, text: &[u8]) {
    integer(block, 0, 7, text.len());
    block.extend(text);
}

/// A call as the library passes it on: path and fields.
type Seen = (String, Vec<(String, String)>);

/// Returns the first `count` calls that the library reads from the bytes of a client.
async fn seen(bytes: Vec<u8>, count: usize) -> Vec<Seen> {
    let (mut client, server) = tokio::io::duplex(1 << 20);
    client.write_all(&bytes).await.unwrap();
    let (sender, mut calls) = tokio::sync::mpsc::channel(count);
    let service = hyper::service::service_fn(move |request: Request<Incoming>| {
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        let fields = request.headers().iter();
        let fields = fields
            .map(|(name, value)| (name.to_string(), text(value.as_bytes())))
            .collect();
        assert!(request.uri().authority().is_some());
        sender.try_send((request.uri().path().to_owned(), fields)).unwrap();
        std::future::ready(Ok::<_, Infallible>(Response::new(Empty::<Bytes>::new())))
    });
    let io = TokioIo::new(AnyAuthority::new(server));
    let serving = hyper::server::conn::http2::Builder::new(TokioExecutor::new()).serve_connection(io, service);
    let mut serving = std::pin::pin!(serving);
    let mut seen = Vec::new();
    while seen.len() < count {
        tokio::select! {
            biased;
            Some(call) = calls.recv() => seen.push(call),
            ended = &mut serving => panic!("the connection ended: {ended:?}, after {seen:?}"),
        }
    }
    seen
}

fn settings() -> Vec<u8> {
    [PREFACE, &frame(0x4, 0, 0, &[])].concat()
}

#[tokio::test]
async fn an_authority_that_left_the_table_and_comes_again_is_mended_again() {
    let mut client = Client::default();
    let (mut bytes, mut expected) = (settings(), Vec::new());
    for n in 0..40_u32 {
        let path = format!("/{n}");
        let fields = [
            ("a".to_owned(), format!("{n}{}", "x".repeat(500))),
            ("b".to_owned(), "kept".to_owned()),
        ];
        bytes.extend(client.call(2 * n + 1, "/run/etcd.sock", &path, &fields));
        expected.push((path, fields.to_vec()));
    }
    assert_eq!(seen(bytes, 40).await, expected);
}

#[tokio::test]
async fn a_full_table_keeps_the_entry_of_a_mended_authority() {
    for authority in ["#", "/run", "/run/etcd.sock", "#initially=[http://127.0.0.1:2379]"] {
        let mut client = Client::default();
        let entry = |name: &str, value: &str| name.len() + value.len() + 32;
        let rest = TABLE - entry(":authority", authority) - entry(":path", "/") - entry("a", "");
        let fields = [("a".to_owned(), "x".repeat(rest))];
        let first = client.call(1, authority, "/", &fields);
        let second = client.call(3, authority, "/", &fields);
        assert_eq!(second.len(), 9 + 5, "the second call has indexes alone");
        let call = ("/".to_owned(), fields.to_vec());
        assert_eq!(
            seen([settings(), first, second].concat(), 2).await,
            [call.clone(), call]
        );
    }
}

/// Reads a connection to its end, a few bytes at a time.
async fn read_in_pieces(bytes: &[u8]) -> Vec<u8> {
    let mut io = AnyAuthority::new(bytes);
    let (mut read, mut piece) = (Vec::new(), [0; 7]);
    loop {
        match io.read(&mut piece).await.unwrap() {
            0 => return read,
            n => read.extend_from_slice(&piece[..n]),
        }
    }
}

#[tokio::test]
async fn a_connection_that_ends_within_a_block_is_read_to_its_end() {
    let call = Client::default().call(1, "/run/etcd.sock", "/path", &[]);
    let mended = Client::default().call(1, "localhost.loca", "/path", &[]);
    let whole = read_in_pieces(&[settings(), call.clone()].concat()).await;
    assert_eq!(whole, [settings(), mended].concat());
    let cut = [&settings(), &call[..call.len() - 1]].concat();
    assert_eq!(read_in_pieces(&cut).await, cut);
    let http1 = b"GET /health HTTP/1.1\r\nhost: /run/etcd.sock\r\n\r\n";
    assert_eq!(read_in_pieces(http1).await, http1);
    assert_eq!(read_in_pieces(b"").await, b"");
}

fn fields() -> impl Strategy<Value = Vec<(String, String)>> {
    prop::collection::vec(("x-[a-e]", "[a-c]{0,300}"), 0..8)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn the_library_sees_each_call_with_its_own_fields(
        authorities in prop::collection::vec("[/#a-z]{1,40}", 1..4),
        calls in prop::collection::vec((any::<prop::sample::Index>(), "/[a-c]", fields()), 1..40),
    ) {
        let mut client = Client::default();
        let (mut bytes, mut expected) = (settings(), Vec::new());
        // The first authority decides that the connection is mended.
        bytes.extend(client.call(1, "#", "/", &[]));
        expected.push(("/".to_owned(), Vec::new()));
        for (stream, (authority, path, mut fields)) in (1..).zip(calls) {
            fields.sort();
            fields.dedup_by(|a, b| a.0 == b.0);
            bytes.extend(client.call(2 * stream + 1, &authorities[authority.index(authorities.len())], &path, &fields));
            expected.push((path, fields));
        }
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let seen = runtime.block_on(seen(bytes, expected.len()));
        let sorted = |mut calls: Vec<Seen>| {
            calls.iter_mut().for_each(|(_, fields)| fields.sort());
            calls
        };
        prop_assert_eq!(sorted(seen), sorted(expected));
    }
}
