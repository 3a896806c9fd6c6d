//! Whole connections, with the client of the crate `h2`, or with raw bytes.

use super::*;
use crate::http2::config::Keepalive;
use crate::http2::frame::{self, PREFACE, flag, kind};
use crate::http2::inbound::BodyError;
use futures::channel::mpsc;
use futures::future::{join_all, poll_fn};
use futures::stream::{FuturesUnordered, StreamExt};
use h2::client::SendRequest;
use http::{HeaderMap, StatusCode};
use http_body::Frame;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Empty, Full, StreamBody};
use proptest::prelude::*;
use std::cell::Cell;
use std::convert::Infallible;
use std::rc::Rc;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, ReadBuf};

type Answer = Response<UnsyncBoxBody<Bytes, Infallible>>;

fn answer(body: impl Body<Data = Bytes, Error = Infallible> + Send + 'static) -> Answer {
    Response::new(body.boxed_unsync())
}

/// Answers with the body of the request, and trailers.
async fn echo(request: Request<RequestStream>) -> Answer {
    let body = request.into_body().map_err(|error| panic!("{error}"));
    let trailers = HeaderMap::from_iter([(http::HeaderName::from_static("grpc-status"), "0".parse().unwrap())]);
    let end = futures::stream::iter([Ok(Frame::trailers(trailers))]);
    answer(StreamBody::new(body.into_data_stream().map_ok_frame().chain(end)))
}

trait MapOkFrame: futures::Stream<Item = Result<Bytes, Infallible>> + Sized {
    fn map_ok_frame(self) -> impl futures::Stream<Item = Result<Frame<Bytes>, Infallible>> {
        self.map(|data| data.map(Frame::data))
    }
}

impl<S: futures::Stream<Item = Result<Bytes, Infallible>>> MapOkFrame for S {}

/// A connection whose client writes into `io`.
async fn accept<I, S, F>(mut io: I, service: S, config: Config) -> Result<(), Error>
where
    I: AsyncRead + AsyncWrite + Unpin,
    S: Fn(Request<RequestStream>) -> F + Unpin,
    F: Future<Output = Answer>,
{
    let mut preface = [0; PREFACE.len()];
    io.read_exact(&mut preface).await?;
    assert_eq!(preface, PREFACE);
    Connection::new(io, service, Arc::new(config)).await
}

/// Runs a client against a service, and returns how the connection of the server ended.
async fn with_client<F: Future<Output = Answer>>(
    service: impl Fn(Request<RequestStream>) -> F + Unpin,
    client: impl AsyncFnOnce(SendRequest<Bytes>),
) -> Result<(), Error> {
    let (near, far) = tokio::io::duplex(32 << 10);
    let client = async {
        let (send, connection) = h2::client::handshake(near).await.unwrap();
        let (_, ended) = tokio::join!(client(send), connection);
        ended.unwrap();
    };
    tokio::join!(accept(far, service, Config::default()), client).0
}

/// Calls with a body, and returns the body and the trailers of the answer.
async fn call(send: &SendRequest<Bytes>, body: Bytes) -> (Bytes, Option<HeaderMap>) {
    let mut send = send.clone().ready().await.unwrap();
    let request = Request::post("http://localhost/a").body(()).unwrap();
    let (response, mut out) = send.send_request(request, body.is_empty()).unwrap();
    let upload = async {
        let mut rest = body;
        while !rest.is_empty() {
            out.reserve_capacity(rest.len());
            let room = poll_fn(|cx| out.poll_capacity(cx)).await.unwrap().unwrap();
            let piece = rest.split_to(room.min(rest.len()));
            out.send_data(piece, rest.is_empty()).unwrap();
        }
    };
    let download = async {
        let mut body = response.await.unwrap().into_body();
        let mut read = Vec::new();
        while let Some(data) = body.data().await {
            let data = data.unwrap();
            body.flow_control().release_capacity(data.len()).unwrap();
            read.extend(data);
        }
        (Bytes::from(read), body.trailers().await.unwrap())
    };
    tokio::join!(upload, download).1
}

#[tokio::test]
async fn many_calls_at_once_are_answered() {
    let ended = with_client(echo, async |send| {
        let calls = (0..200_usize).map(|n| {
            let send = &send;
            async move {
                let body = Bytes::from(vec![n as u8; n * 7]);
                let (answer, trailers) = call(send, body.clone()).await;
                assert_eq!(answer, body);
                assert_eq!(trailers.unwrap()["grpc-status"], "0");
            }
        });
        join_all(calls).await;
    });
    ended.await.unwrap();
}

#[tokio::test]
async fn long_bodies_pass_through_the_windows_of_both_sides() {
    let ended = with_client(echo, async |send| {
        let body = Bytes::from((0..3_000_000_u32).map(|n| (n / 1000) as u8).collect::<Vec<_>>());
        let (first, second) = tokio::join!(call(&send, body.clone()), call(&send, body.clone()));
        assert!(first.0 == body && second.0 == body);
    });
    ended.await.unwrap();
}

#[tokio::test]
async fn a_cancelled_call_is_dropped() {
    struct Guard(Rc<Cell<u32>>);
    impl Drop for Guard {
        fn drop(&mut self) {
            self.0.set(self.0.get() + 1);
        }
    }
    let dropped = Rc::new(Cell::new(0));
    let service = |request: Request<RequestStream>| {
        let guard = Guard(Rc::clone(&dropped));
        async move {
            let _guard = guard;
            match request.uri().path() {
                "/never" => std::future::pending().await,
                _ => answer(StreamBody::new(futures::stream::pending())),
            }
        }
    };
    let ended = with_client(service, async |send| {
        let mut send = send.ready().await.unwrap();
        let request = |path| Request::get(format!("http://localhost/{path}")).body(()).unwrap();
        let (_, mut never) = send.send_request(request("never"), true).unwrap();
        let (open, mut out) = send.send_request(request("open"), true).unwrap();
        let mut body = open.await.unwrap().into_body();
        assert_eq!(dropped.get(), 1, "the future of the answer");
        never.send_reset(h2::Reason::CANCEL);
        out.send_reset(h2::Reason::CANCEL);
        while dropped.get() < 2 {
            tokio::task::yield_now().await;
        }
        assert!(body.data().await.unwrap().is_err());
    });
    ended.await.unwrap();
}

#[tokio::test]
async fn a_body_that_fails_resets_its_call_alone() {
    let service = |_| async {
        let failed = futures::stream::iter([Ok(Frame::data(Bytes::from("a"))), Err("why")]);
        Response::new(StreamBody::new(failed).boxed_unsync())
    };
    let (near, far) = tokio::io::duplex(1 << 10);
    let server = async {
        let mut io = far;
        io.read_exact(&mut [0; PREFACE.len()]).await.unwrap();
        Connection::new(io, service, Arc::default()).await
    };
    let client = async {
        let (send, connection) = h2::client::handshake(near).await.unwrap();
        let calls = async {
            let mut send = send.ready().await.unwrap();
            for _ in 0..2 {
                let request = Request::get("http://localhost/").body(()).unwrap();
                let (answer, _) = send.send_request(request, true).unwrap();
                let mut body = answer.await.unwrap().into_body();
                assert_eq!(body.data().await.unwrap().unwrap(), "a");
                let error = body.data().await.unwrap().unwrap_err();
                assert_eq!(error.reason(), Some(h2::Reason::INTERNAL_ERROR));
            }
        };
        tokio::join!(calls, connection).1.unwrap();
    };
    tokio::join!(server, client).0.unwrap();
}

#[tokio::test]
async fn a_request_is_read_after_its_answer_and_elsewhere() {
    let (bodies, mut received) = mpsc::channel(1);
    let service = |request: Request<RequestStream>| {
        bodies.clone().try_send(request.into_body()).unwrap();
        async { answer(Full::from("early")) }
    };
    let ended = with_client(service, async |send| {
        let mut send = send.ready().await.unwrap();
        let request = Request::post("http://localhost/").body(()).unwrap();
        let (answer, mut out) = send.send_request(request, false).unwrap();
        let mut answered = answer.await.unwrap().into_body();
        assert_eq!(answered.data().await.unwrap().unwrap(), "early");
        let body = received.next().await.unwrap();
        let read = async { body.collect().await.unwrap().to_bytes() };
        let write = async {
            // More than a window.
            let mut rest = Bytes::from(vec![7; 300_000]);
            while !rest.is_empty() {
                out.reserve_capacity(rest.len());
                let room = poll_fn(|cx| out.poll_capacity(cx)).await.unwrap().unwrap();
                let piece = rest.split_to(room.min(rest.len()));
                out.send_data(piece, rest.is_empty()).unwrap();
            }
        };
        assert_eq!(tokio::join!(read, write).0.len(), 300_000);
    });
    ended.await.unwrap();
}

#[tokio::test]
async fn a_shutdown_waits_for_open_calls() {
    let (near, mut far) = tokio::io::duplex(1 << 10);
    let (finish, finished) = futures::channel::oneshot::channel::<()>();
    let finished = Cell::new(Some(finished));
    let service = |_| {
        let finished = finished.take().unwrap();
        async move {
            finished.await.unwrap();
            answer(Full::from("done"))
        }
    };
    let server = async {
        far.read_exact(&mut [0; PREFACE.len()]).await.unwrap();
        let mut connection = Connection::new(far, service, Arc::default());
        let called = poll_fn(|cx| {
            let polled = Pin::new(&mut connection).poll(cx);
            assert!(polled.is_pending());
            match connection.core.has_streams() {
                true => Poll::Ready(()),
                false => Poll::Pending,
            }
        });
        called.await;
        connection.shut_down("");
        finish.send(()).unwrap();
        connection.await
    };
    let client = async {
        let (mut send, connection) = h2::client::handshake(near).await.unwrap();
        let request = Request::get("http://localhost/").body(()).unwrap();
        let (answer, _) = send.send_request(request, true).unwrap();
        let read = async { answer.await.unwrap().into_body().data().await.unwrap().unwrap() };
        let (read, ended) = tokio::join!(read, connection);
        assert_eq!(read, "done");
        ended.unwrap();
        assert!(send.ready().await.is_err());
    };
    tokio::join!(server, client).0.unwrap();
}

#[tokio::test]
async fn the_client_of_an_aborted_connection_is_told_why_unless_it_does_not_read() {
    let violation = Violation::calm("enough");
    for (space, is_told) in [(1 << 10, true), (16, false)] {
        let (mut near, mut far) = tokio::io::duplex(space);
        let client = async {
            near.write_all(PREFACE).await.unwrap();
            near
        };
        let server = async {
            far.read_exact(&mut [0; PREFACE.len()]).await.unwrap();
            let service = |_| std::future::pending::<Answer>();
            let mut connection = Connection::new(far, service, Arc::default());
            poll_fn(|cx| match Pin::new(&mut connection).poll(cx) {
                Poll::Pending if connection.core.output.is_empty() || !is_told => Poll::Ready(()),
                polled => polled.map(|ended| panic!("{ended:?}")),
            })
            .await;
            poll_fn(|cx| {
                connection.abort(violation, cx);
                Poll::Ready(())
            })
            .await;
        };
        let (mut near, ()) = tokio::join!(client, server);
        let mut received = Vec::new();
        near.read_to_end(&mut received).await.unwrap();
        assert_eq!(received.ends_with(b"\0\0\0\x0benough"), is_told, "{received:?}");
    }
}

/// A client of raw bytes that has sent the preface and SETTINGS.
async fn raw(buffer: usize) -> (DuplexStream, DuplexStream) {
    let (mut near, far) = tokio::io::duplex(buffer);
    let mut hello = PREFACE.to_vec();
    frame::settings(&mut hello, &[(frame::setting::INITIAL_WINDOW_SIZE, 1 << 30)]);
    frame::window_update(&mut hello, 0, 1 << 30);
    near.write_all(&hello).await.unwrap();
    (near, far)
}

fn get(stream: u32) -> Vec<u8> {
    let mut bytes = Vec::new();
    frame::head(
        &mut bytes,
        3,
        kind::HEADERS,
        flag::END_HEADERS | flag::END_STREAM,
        stream,
    );
    bytes.extend(b"\x82\x86\x84");
    bytes
}

#[tokio::test(start_paused = true)]
async fn a_silent_client_is_pinged_and_disconnected() {
    let keepalive = Keepalive {
        interval: Duration::from_secs(10),
        timeout: Duration::from_secs(3),
    };
    let config = || Config {
        keepalive: Some(keepalive),
        ..Config::default()
    };
    let began = tokio::time::Instant::now();
    let (near, far) = raw(1 << 10).await;
    assert!(matches!(accept(far, echo, config()).await, Err(Error::PingTimeout)));
    assert_eq!(began.elapsed().as_secs(), 13);
    drop(near);
    // A client that answers stays.
    let ended = async {
        let (near, far) = tokio::io::duplex(1 << 10);
        let client = async {
            let (_send, connection) = h2::client::handshake(near).await.unwrap();
            tokio::time::timeout(Duration::from_secs(100), connection)
                .await
                .unwrap_err();
        };
        tokio::join!(accept(far, echo, config()), client).0
    };
    assert!(ended.await.is_ok());
    assert_eq!(began.elapsed().as_secs(), 113);
}

/// Reads until a frame of a kind comes.
async fn read_until(near: &mut DuplexStream, wanted: u8) -> Vec<u8> {
    loop {
        let mut head = [0; frame::HEAD];
        near.read_exact(&mut head).await.unwrap();
        let mut payload = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
        near.read_exact(&mut payload).await.unwrap();
        if head[3] == wanted {
            return payload;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn the_answer_to_a_ping_goes_with_data_or_alone_after_the_delay() {
    let config = Config {
        ping_answer_delay: Duration::from_millis(100),
        ..Config::default()
    };
    let (mut near, far) = raw(1 << 10).await;
    let (events, received) = mpsc::unbounded::<Bytes>();
    let body = Cell::new(Some(received));
    let service = |_| {
        let events = body.take().unwrap();
        std::future::ready(answer(StreamBody::new(events.map(|event| Ok(Frame::data(event))))))
    };
    let client = async {
        near.write_all(&get(1)).await.unwrap();
        let began = Instant::now();
        // An answer that had to go alone was not worth the wait: the next ones do not wait.
        for (round, waited) in (0..17).map(|round| (round, if round == 16 { 200 } else { 100 })) {
            events.unbounded_send(Bytes::from_static(b"event")).unwrap();
            assert_eq!(read_until(&mut near, kind::DATA).await, b"event");
            let mut ping = Vec::new();
            frame::ping(&mut ping, 0, [round; 8]);
            near.write_all(&ping).await.unwrap();
            assert_eq!(read_until(&mut near, kind::PING).await, [round; 8]);
            assert_eq!(began.elapsed().as_millis(), waited, "ping {round}");
        }
        for _ in 0..15 {
            events.unbounded_send(Bytes::from_static(b"event")).unwrap();
            read_until(&mut near, kind::DATA).await;
            let mut ping = Vec::new();
            frame::ping(&mut ping, 0, [7; 8]);
            near.write_all(&ping).await.unwrap();
            read_until(&mut near, kind::PING).await;
        }
        let began = Instant::now();
        for round in 0..3 {
            let mut ping = Vec::new();
            frame::ping(&mut ping, 0, [round; 8]);
            events.unbounded_send(Bytes::from_static(b"event")).unwrap();
            read_until(&mut near, kind::DATA).await;
            near.write_all(&ping).await.unwrap();
            tokio::time::sleep(Duration::from_millis(90)).await;
            events.unbounded_send(Bytes::from_static(b"event")).unwrap();
            read_until(&mut near, kind::DATA).await;
            assert_eq!(read_until(&mut near, kind::PING).await, [round; 8]);
        }
        assert_eq!(began.elapsed().as_millis(), 270, "with the next event");
        drop(near);
    };
    let (ended, ()) = tokio::join!(accept(far, service, config), client);
    assert!(matches!(ended, Err(Error::ClosedAmidCalls)), "{ended:?}");
}

#[tokio::test]
async fn an_error_of_the_connection_is_told_and_ends_the_calls() {
    let (mut near, far) = raw(1 << 10).await;
    let failed = Rc::new(Cell::new(None));
    let service = |request: Request<RequestStream>| {
        let failed = Rc::clone(&failed);
        async move {
            failed.set(Some(request.into_body()));
            std::future::pending().await
        }
    };
    let mut bytes = Vec::new();
    frame::head(&mut bytes, 3, kind::HEADERS, flag::END_HEADERS, 1);
    bytes.extend(b"\x83\x86\x84");
    near.write_all(&bytes).await.unwrap();
    let client = async {
        tokio::task::yield_now().await;
        let mut ping = Vec::new();
        frame::ping(&mut ping, 0, *b"12345678");
        frame::head(&mut ping, 0, kind::DATA, 0, 0);
        near.write_all(&ping).await.unwrap();
        let mut read = Vec::new();
        near.read_to_end(&mut read).await.unwrap();
        read
    };
    let (ended, read) = tokio::join!(accept(far, service, Config::default()), client);
    assert!(matches!(
        ended,
        Err(Error::Violation(Violation {
            code: crate::http2::Code::ProtocolError,
            ..
        }))
    ));
    assert!(read.ends_with(b"DATA on a stream that is not open"), "{read:?}");
    let mut body = failed.take().unwrap();
    let error = poll_fn(|cx| Pin::new(&mut body).poll_frame(cx))
        .await
        .unwrap()
        .unwrap_err();
    assert_eq!(error, BodyError::ConnectionEnded);
}

/// Counts the writes to a connection.
struct Counted<I> {
    io: I,
    writes: Rc<Cell<usize>>,
}

impl<I: AsyncRead + Unpin> AsyncRead for Counted<I> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl<I: AsyncWrite + Unpin> AsyncWrite for Counted<I> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.writes.set(self.writes.get() + 1);
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

#[tokio::test]
async fn everything_that_is_ready_leaves_in_one_write_and_idle_connections_hold_no_buffer() {
    let (mut near, mut far) = raw(1 << 20).await;
    let senders = std::cell::RefCell::new(Vec::new());
    let service = |_| {
        let (sender, receiver) = mpsc::channel::<Bytes>(10);
        senders.borrow_mut().push(sender);
        let frames = receiver.map(|data| Ok(Frame::data(data)));
        std::future::ready(answer(StreamBody::new(frames)))
    };
    far.read_exact(&mut [0; PREFACE.len()]).await.unwrap();
    let writes = Rc::new(Cell::new(0));
    let io = Counted {
        io: far,
        writes: Rc::clone(&writes),
    };
    let mut connection = Connection::new(io, service, Arc::default());
    let calls: Vec<u8> = (0..20).flat_map(|n| get(2 * n + 1)).collect();
    near.write_all(&calls).await.unwrap();
    assert!(futures::poll!(&mut connection).is_pending());
    assert_eq!((senders.borrow().len(), writes.get()), (20, 1));
    for n in 0..3_u8 {
        for sender in &mut *senders.borrow_mut() {
            sender.try_send(vec![n; 100].into()).unwrap();
        }
        assert!(futures::poll!(&mut connection).is_pending());
        assert_eq!(writes.get(), 2 + usize::from(n));
    }
    assert!(futures::poll!(&mut connection).is_pending());
    assert_eq!(writes.get(), 4, "nothing to write");
    assert_eq!((connection.core.output.len(), connection.rest.capacity()), (0, 0));
}

#[tokio::test]
async fn a_client_that_does_not_read_makes_the_server_hold_little() {
    let (mut near, far) = raw(4 << 10).await;
    near.write_all(&[get(1), get(3)].concat()).await.unwrap();
    let made = Rc::new(Cell::new(0));
    let service = |_| {
        let made = Rc::clone(&made);
        let endless = futures::stream::repeat_with(move || {
            made.set(made.get() + 10_000);
            Ok::<_, Infallible>(Frame::data(Bytes::from(vec![0; 10_000])))
        });
        // The body of this test is on one thread.
        std::future::ready(Response::new(LocalBody(Box::pin(StreamBody::new(endless)))))
    };
    let mut io = far;
    io.read_exact(&mut [0; PREFACE.len()]).await.unwrap();
    let mut connection = Connection::new(io, service, Arc::default());
    for _ in 0..10 {
        assert!(futures::poll!(&mut connection).is_pending());
    }
    assert!((60_000..110_000).contains(&made.get()), "{}", made.get());
    // Both calls go on when the client reads.
    let mut read = vec![0; 1 << 20];
    tokio::select! {
        ended = &mut connection => panic!("{ended:?}"),
        read = near.read_exact(&mut read) => drop(read.unwrap()),
    }
    let of = |stream: u32| {
        let (mut rest, mut bytes) = (&read[..], 0);
        while let Ok(frame::Split::Frame { head, payload }) = frame::split(rest) {
            bytes += if head.stream == stream { payload.len() } else { 0 };
            rest = &rest[frame::HEAD + payload.len()..];
        }
        bytes
    };
    assert!(of(1).abs_diff(of(3)) < 100_000, "{} and {}", of(1), of(3));
}

/// A body that stays on its thread.
struct LocalBody<B>(Pin<Box<B>>);

impl<B: Body> Body for LocalBody<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        self.0.as_mut().poll_frame(cx)
    }
}

#[test]
fn a_connection_is_small() {
    type Service = fn(Request<RequestStream>) -> std::future::Ready<Answer>;
    type Small = Connection<DuplexStream, Service, std::future::Ready<Answer>, UnsyncBoxBody<Bytes, Infallible>>;
    let size = size_of::<Small>();
    assert!(size <= 800, "{size} bytes");
}

#[tokio::test]
async fn a_client_that_leaves_amid_a_call_ends_the_connection() {
    let (near, far) = raw(1 << 10).await;
    let client = async {
        let mut near = near;
        near.write_all(&get(1)).await.unwrap();
    };
    let never = |_| std::future::pending::<Answer>();
    let (ended, ()) = tokio::join!(accept(far, never, Config::default()), client);
    assert!(matches!(ended, Err(Error::ClosedAmidCalls)));
    let (mut near, far) = raw(1 << 10).await;
    near.shutdown().await.unwrap();
    accept(far, never, Config::default()).await.unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Random frames in pieces of any size, with a service that answers: the connection ends, or waits for more.
    #[test]
    fn random_bytes_never_panic(
        frames in proptest::collection::vec((0..10_u8, any::<u8>(), 0..9_u32, proptest::collection::vec(any::<u8>(), 0..40)), 0..60),
        size in 1..200_usize,
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(async {
            let (mut near, far) = raw(1 << 20).await;
            let mut bytes = Vec::new();
            for (kind, flags, stream, payload) in frames {
                frame::head(&mut bytes, payload.len(), kind, flags, stream);
                bytes.extend(payload);
                bytes.extend(get(2 * stream + 1));
            }
            let client = async {
                for piece in bytes.chunks(size) {
                    if near.write_all(piece).await.is_err() {
                        break;
                    }
                    tokio::task::yield_now().await;
                }
                drop(near);
            };
            let service = |_| async { answer(Empty::new()) };
            let (_, ()) = tokio::join!(accept(far, service, Config::default()), client);
        });
    }
}

#[tokio::test]
async fn status_and_headers_arrive_as_they_were() {
    let service = |_| async {
        let mut answer = answer(Full::from("x"));
        *answer.status_mut() = StatusCode::IM_A_TEAPOT;
        answer.headers_mut().insert("a", "b".parse().unwrap());
        answer
    };
    let ended = with_client(service, async |send| {
        let mut send = send.ready().await.unwrap();
        let calls = FuturesUnordered::new();
        for _ in 0..3 {
            let request = Request::get("http://localhost/").body(()).unwrap();
            calls.push(send.send_request(request, true).unwrap().0);
        }
        let answers: Vec<_> = calls.collect().await;
        for answer in answers {
            let answer = answer.unwrap();
            assert_eq!(
                (answer.status(), &answer.headers()["a"]),
                (StatusCode::IM_A_TEAPOT, &"b".parse().unwrap())
            );
        }
    });
    ended.await.unwrap();
}
