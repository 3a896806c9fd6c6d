//! Whole connections, with the server of the crate `h2`, or with raw bytes.

use super::*;
use crate::http2::frame::{flag, kind};
use bytes::BytesMut;
use futures::stream::{FuturesUnordered, StreamExt};
use h2::server::SendResponse;
use h2::{RecvStream, SendStream};
use http::{Request, Response};
use proptest::prelude::*;
use tokio::io::{AsyncWriteExt, DuplexStream};

/// Answers with the body of the request, and with trailers.
async fn echo(request: Request<RecvStream>, mut respond: SendResponse<Bytes>) {
    let (head, mut body) = request.into_parts();
    assert_eq!((head.uri.path(), head.method.as_str()), ("/test/Echo", "POST"));
    assert_eq!(head.headers["te"], "trailers");
    // The call may have been cancelled.
    let Ok(mut out) = respond.send_response(Response::new(()), false) else {
        return;
    };
    while let Some(Ok(data)) = body.data().await {
        body.flow_control().release_capacity(data.len()).unwrap();
        send_all(&mut out, data).await;
    }
    let trailers = [("grpc-status", "5"), ("grpc-message", "not%20found")];
    let trailers = trailers.map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap()));
    out.send_trailers(HeaderMap::from_iter(trailers)).unwrap();
}

async fn send_all(out: &mut SendStream<Bytes>, mut data: Bytes) {
    while !data.is_empty() {
        out.reserve_capacity(data.len());
        let room = poll_fn(|cx| out.poll_capacity(cx)).await.unwrap().unwrap();
        out.send_data(data.split_to(room.min(data.len())), false).unwrap();
    }
}

async fn serve(io: DuplexStream) {
    let mut server = h2::server::handshake(io).await.unwrap();
    let mut calls = FuturesUnordered::new();
    loop {
        tokio::select! {
            accepted = server.accept() => match accepted {
                Some(Ok((request, respond))) => calls.push(echo(request, respond)),
                _ => return,
            },
            Some(()) = calls.next() => {}
        }
    }
}

fn begin(calls: &Calls) -> Call {
    let headers = HeaderMap::from_iter([(http::header::TE, "trailers".parse().unwrap())]);
    calls.begin(false, "localhost", "/test/Echo", &headers).unwrap()
}

/// Runs `work` on a connection to a server that echoes. Returns the connection.
async fn with_echo<T>(work: impl AsyncFnOnce(Calls) -> Result<T, Error>) -> (Connection<DuplexStream>, T) {
    let (near, far) = tokio::io::duplex(8 << 10);
    let (mut connection, calls) = connect(near);
    let never = AtomicBool::new(false);
    let done = tokio::select! {
        done = connection.drive(&never, work(calls)) => done.unwrap(),
        () = serve(far) => panic!("the server ended"),
    };
    (connection, done)
}

#[tokio::test]
async fn bodies_longer_than_the_windows_come_back_with_their_trailers() {
    let body: Bytes = (0..400_000_u32).flat_map(u32::to_le_bytes).collect();
    let (connection, trailers) = with_echo(async |calls| {
        let other = begin(&calls);
        let call = begin(&calls);
        call.send(body.clone(), true);
        assert_eq!(call.head().await?.http_status, 200);
        let (mut received, mut chunk) = (BytesMut::new(), Vec::new());
        while call.read(&mut chunk).await? {
            received.extend_from_slice(&chunk);
            give_back(&mut chunk);
        }
        assert!(received == body);
        let trailers = call.trailers().unwrap();
        // The other call has not been disturbed.
        other.send(Bytes::from_static(b"abc"), false);
        assert_eq!(other.head().await?.http_status, 200);
        assert!(other.read(&mut chunk).await?);
        assert_eq!(chunk, b"abc");
        Ok(trailers)
    })
    .await;
    assert_eq!(
        (trailers.grpc_status, &trailers.grpc_message[..]),
        (Some(5), &b"not%20found"[..])
    );
    assert_eq!(connection.rest.capacity(), 0, "a connection that waits holds no buffer");
}

#[tokio::test]
async fn pings_are_answered_and_a_dropped_call_is_cancelled() {
    with_echo(async |calls| {
        drop(begin(&calls));
        for _ in 0..3 {
            calls.ping();
            calls.pong().await;
        }
        assert!(calls.has_answer());
        let call = begin(&calls);
        call.send(Bytes::new(), true);
        call.head().await.map(drop)
    })
    .await;
}

/// What the client says to a server that sends these bytes and closes the connection.
async fn answer_to(bytes: &[u8]) -> Error {
    let (near, mut far) = tokio::io::duplex(64 << 10);
    let (mut connection, calls) = connect(near);
    far.write_all(bytes).await.unwrap();
    drop(far);
    // Begun before anything is received, since a server that leaves takes no more calls.
    let call = begin(&calls);
    let work = async { call.head().await };
    connection.drive(&AtomicBool::new(false), work).await.unwrap_err()
}

fn frames(frames: &[(u8, u8, u32, &[u8])]) -> Vec<u8> {
    let mut out = vec![];
    for (kind, flags, stream, payload) in frames {
        frame::head(&mut out, payload.len(), *kind, *flags, *stream);
        out.extend_from_slice(payload);
    }
    out
}

#[tokio::test]
async fn servers_that_speak_something_else_are_recognized() {
    assert!(matches!(
        answer_to(b"\x15\x03\x01\x00\x02\x02\x46").await,
        Error::AsksForTls
    ));
    assert!(matches!(
        answer_to(b"HTTP/1.1 400 Bad Request\r\n\r\n").await,
        Error::NotHttp2
    ));
    assert!(matches!(answer_to(b"").await, Error::Closed));
    assert!(matches!(
        answer_to(b"SSH-2.0-OpenSSH_9.2 and more\r\n").await,
        Error::Violation(_)
    ));
    let settings: (u8, u8, u32, &[u8]) = (kind::SETTINGS, 0, 0, &[]);
    let bye = frames(&[settings, (kind::GOAWAY, 0, 0, b"\0\0\0\0\0\0\0\x0btoo_many_pings")]);
    let text = answer_to(&bye).await.to_string();
    assert!(text.contains("too_many_pings (code 11"), "{text}");
}

#[tokio::test]
async fn a_server_that_leaves_in_order_is_quoted_when_it_closes_the_connection() {
    let settings: (u8, u8, u32, &[u8]) = (kind::SETTINGS, 0, 0, &[]);
    for (bye, reason) in [
        (&b"\x7f\xff\xff\xff\0\0\0\0max_idle"[..], Some("max_idle")),
        (&b"\x7f\xff\xff\xff\0\0\0\0"[..], None),
    ] {
        let bytes = frames(&[settings, (kind::GOAWAY, 0, 0, bye)]);
        match (answer_to(&bytes).await, reason) {
            (Error::GoAway { code: 0, reason }, Some(wanted)) => assert_eq!(reason, wanted),
            (Error::Closed, None) => {}
            (error, _) => panic!("{error}"),
        }
    }
}

#[test]
fn a_reset_call_fails_alone() {
    let mut core = Core::new();
    let [first, second] = [0, 1].map(|_| core.open(false, "a", "/b", &HeaderMap::new()).unwrap());
    let frame = |kind, flags| frame::Head { kind, flags, stream: 1 };
    core.receive(
        frame::Head {
            stream: 0,
            ..frame(kind::SETTINGS, 0)
        },
        &[],
    )
    .unwrap();
    core.receive(frame(kind::RST_STREAM, 0), &[0, 0, 0, 7]).unwrap();
    assert!(matches!(core.head(first), Err(Error::Reset(7))));
    assert!(matches!(core.take(first), Err(Error::Reset(7))));
    assert!(matches!(core.head(second), Ok(None)));
}

#[tokio::test]
async fn rules_that_a_server_breaks_are_named() {
    let settings: (u8, u8, u32, &[u8]) = (kind::SETTINGS, 0, 0, &[]);
    let head: (u8, u8, u32, &[u8]) = (kind::HEADERS, flag::END_HEADERS, 1, &[0x88]);
    let long = vec![0; 16 << 10];
    for (sent, word) in [
        (frames(&[(kind::PING, 0, 0, &[0; 8])]), "first frame"),
        (frames(&[settings, (kind::DATA, 0, 1, b"x")]), "outside"),
        (frames(&[settings, (kind::DATA, 0, 7, b"x")]), "does not exist"),
        (
            frames(&[settings, (kind::CONTINUATION, 0, 1, b"x")]),
            "continues nothing",
        ),
        (frames(&[settings, (kind::PING, 0, 0, b"x")]), "wrong length"),
        (
            frames(&[settings, (kind::HEADERS, flag::END_HEADERS, 1, &[0xff])]),
            "malformed",
        ),
        (
            frames(&[&[settings, head][..], &[(kind::DATA, 0, 1, &long[..]); 5]].concat()),
            "window of a stream",
        ),
    ] {
        let mut core = Core::new();
        core.open(false, "a", "/b", &HeaderMap::new()).unwrap();
        let mut rest = &sent[..];
        let error = loop {
            let Split::Frame { head, payload } = frame::split(rest).unwrap() else {
                panic!("no error with {word:?}");
            };
            rest = &rest[HEAD + payload.len()..];
            if let Err(error) = core.receive(head, payload) {
                break error.to_string();
            }
        };
        assert!(error.contains(word), "{word}: {error}");
    }
}

#[test]
fn a_connection_is_small() {
    let bytes = size_of::<Mutex<Core>>() + size_of::<Connection<()>>();
    assert!(bytes < 500, "{bytes} bytes");
}

proptest! {
    #[test]
    fn random_frames_never_panic(sent in prop::collection::vec((0..12_u8, any::<u8>(), 0..6_u32, prop::collection::vec(any::<u8>(), 0..40)), 0..40)) {
        let mut core = Core::new();
        let first = core.open(true, "a", "/b", &HeaderMap::new()).unwrap();
        core.send(first, Bytes::from(vec![1; 100_000]), true);
        let settings = [(kind::SETTINGS, 0, 0, vec![])];
        for (kind, flags, stream, payload) in settings.into_iter().chain(sent) {
            if core.receive(frame::Head { kind, flags, stream }, &payload).is_err() {
                break;
            }
            let _ = (core.head(first), core.take(first), core.trailers(first));
        }
        core.close(first);
    }
}
