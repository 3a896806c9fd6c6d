//! The rules of the RFC and the limits, frame by frame.

use super::*;
use crate::http2::frame::{Head, Split, flag, kind, split};
use bytes::Bytes;
use http::{HeaderMap, StatusCode};
use http_body::Body;
use proptest::prelude::*;
use std::io::IoSlice;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

/// POST, http, a path of `/`.
const POST: &[u8] = b"\x83\x86\x84";
/// POST, http, a path of `/`, and a content length of 5.
const POST_5: &[u8] = b"\x83\x86\x84\x0f\x0d\x015";
const END: u8 = flag::END_HEADERS | flag::END_STREAM;

/// A received frame: kind, flags, stream, payload.
type Frame = (u8, u8, u32, Vec<u8>);

struct Client {
    core: Core,
    /// The bodies of requests, which are neither read nor dropped.
    bodies: Vec<RequestStream>,
}

impl Client {
    fn new() -> Self {
        Self::with(Config::default())
    }

    /// A connection whose SETTINGS frames were exchanged.
    fn with(config: Config) -> Self {
        let mut client = Self {
            core: Core::new(Arc::new(config)),
            bodies: vec![],
        };
        client.send(kind::SETTINGS, 0, 0, &[]).unwrap();
        client.frames();
        client
    }

    fn send(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Result<Event, Violation> {
        let head = Head { kind, flags, stream };
        let event = self.core.receive(head, payload)?;
        Ok(match event {
            Event::Request(slot, request) => {
                let (parts, body) = request.into_parts();
                self.bodies.push(body);
                let nobody = RequestStream::new(None, None);
                Event::Request(slot, Box::new(Request::from_parts(parts, nobody)))
            }
            event => event,
        })
    }

    /// Opens a stream and returns its slot.
    fn open(&mut self, stream: u32, flags: u8) -> usize {
        match self.send(kind::HEADERS, flags, stream, POST).unwrap() {
            Event::Request(slot, _) => slot,
            event => panic!("{event:?}"),
        }
    }

    /// The frames that were sent since the last call.
    fn frames(&mut self) -> Vec<Frame> {
        let mut bytes = Vec::new();
        while !self.core.output.is_empty() {
            let mut slices = [IoSlice::new(&[]); crate::http2::output::PIECES];
            let count = self.core.output.slices(&mut slices);
            let piece = slices[..count]
                .iter()
                .flat_map(|slice| slice.to_vec())
                .collect::<Vec<_>>();
            self.core.output.advance(piece.len());
            bytes.extend(piece);
        }
        let (mut rest, mut frames) = (&bytes[..], vec![]);
        while !rest.is_empty() {
            let Split::Frame { head, payload } = split(rest).unwrap() else {
                panic!("an incomplete frame: {rest:?}");
            };
            frames.push((head.kind, head.flags, head.stream, payload.to_vec()));
            rest = &rest[frame::HEAD + payload.len()..];
        }
        frames
    }

    /// The only frame that was sent, a reset of this stream.
    fn reset(&mut self, stream: u32) -> u32 {
        match &self.frames()[..] {
            [(kind::RST_STREAM, 0, id, code)] if *id == stream => u32::from_be_bytes(code[..].try_into().unwrap()),
            frames => panic!("{frames:?}"),
        }
    }

    /// Reads what a body has.
    fn read(&mut self, body: usize) -> Vec<u8> {
        let mut read = vec![];
        let mut cx = Context::from_waker(Waker::noop());
        while let Poll::Ready(Some(Ok(frame))) = Pin::new(&mut self.bodies[body]).poll_frame(&mut cx) {
            read.extend(frame.into_data().unwrap());
        }
        read
    }
}

fn code(result: Result<Event, Violation>) -> Code {
    result.unwrap_err().code
}

fn window_update(stream: u32, more: u32) -> Frame {
    (kind::WINDOW_UPDATE, 0, stream, more.to_be_bytes().to_vec())
}

fn settings(parameters: &[(u16, u32)]) -> Vec<u8> {
    let mut frame = vec![];
    frame::settings(&mut frame, parameters);
    frame.split_off(frame::HEAD)
}

#[test]
fn a_connection_begins_with_settings_of_both_sides() {
    let mut client = Client {
        core: Core::new(Arc::default()),
        bodies: vec![],
    };
    let announced = settings(&[
        (setting::MAX_CONCURRENT_STREAMS, 1000),
        (setting::INITIAL_WINDOW_SIZE, 128 << 10),
        (setting::MAX_HEADER_LIST_SIZE, 256 << 10),
    ]);
    let more = window_update(0, (8 << 20) - 65_535);
    assert_eq!(client.frames(), [(kind::SETTINGS, 0, 0, announced), more]);
    for (kind, flags) in [(kind::PING, 0), (kind::SETTINGS, flag::ACK)] {
        let mut client = Client {
            core: Core::new(Arc::default()),
            bodies: vec![],
        };
        assert_eq!(code(client.send(kind, flags, 0, &[0; 8])), Code::ProtocolError);
    }
}

#[test]
fn broken_rules_end_the_connection_with_the_code_of_the_rfc() {
    use Code::{CompressionError, FlowControlError, FrameSizeError, ProtocolError, StreamClosed};
    // Stream 1 is open, stream 3 has ended, streams from 5 on are idle.
    let cases: &[(u8, u8, u32, &[u8], Code)] = &[
        (kind::DATA, 0, 0, b"", ProtocolError),
        (kind::DATA, 0, 5, b"", ProtocolError),
        (kind::DATA, flag::PADDED, 1, b"\x05abcd", ProtocolError),
        (kind::HEADERS, END, 0, POST, ProtocolError),
        (kind::HEADERS, END, 2, POST, ProtocolError),
        (kind::HEADERS, END, 3, POST, StreamClosed),
        (kind::HEADERS, END, 5, b"\xff", CompressionError),
        (kind::HEADERS, END | flag::PADDED, 5, b"\x09abc", ProtocolError),
        (kind::HEADERS, END | flag::PRIORITY, 5, b"\0\0", FrameSizeError),
        (kind::PRIORITY, 0, 0, b"\0\0\0\0\0", ProtocolError),
        (kind::RST_STREAM, 0, 0, b"\0\0\0\0", ProtocolError),
        (kind::RST_STREAM, 0, 5, b"\0\0\0\0", ProtocolError),
        (kind::RST_STREAM, 0, 1, b"\0\0\0", FrameSizeError),
        (kind::SETTINGS, 0, 1, b"", ProtocolError),
        (kind::SETTINGS, 0, 0, b"\0\0\0", FrameSizeError),
        (kind::SETTINGS, flag::ACK, 0, b"\0\0\0\0\0\0", FrameSizeError),
        (kind::SETTINGS, 0, 0, b"\0\x02\0\0\0\x02", ProtocolError),
        (kind::SETTINGS, 0, 0, b"\0\x04\x80\0\0\0", FlowControlError),
        (kind::SETTINGS, 0, 0, b"\0\x05\0\0\x3f\xff", ProtocolError),
        (kind::SETTINGS, 0, 0, b"\0\x05\x01\0\0\0", ProtocolError),
        (kind::PUSH_PROMISE, END, 1, POST, ProtocolError),
        (kind::PING, 0, 1, b"12345678", ProtocolError),
        (kind::PING, 0, 0, b"1234567", FrameSizeError),
        (kind::GOAWAY, 0, 1, b"12345678", ProtocolError),
        (kind::GOAWAY, 0, 0, b"1234567", FrameSizeError),
        (kind::WINDOW_UPDATE, 0, 0, b"\0\0\0\0", ProtocolError),
        (kind::WINDOW_UPDATE, 0, 0, b"\x7f\xff\xff\xff", FlowControlError),
        (kind::WINDOW_UPDATE, 0, 1, b"\0\0\0", FrameSizeError),
        (kind::WINDOW_UPDATE, 0, 5, b"\0\0\0\x01", ProtocolError),
        (kind::CONTINUATION, flag::END_HEADERS, 1, POST, ProtocolError),
    ];
    for &(kind, flags, stream, payload, expected) in cases {
        let mut client = Client::new();
        client.open(1, flag::END_HEADERS);
        let slot = client.open(3, END);
        client.core.send_head(slot, StatusCode::OK, &HeaderMap::new(), true);
        assert!(client.core.finish(slot));
        let result = client.send(kind, flags, stream, payload);
        assert_eq!(code(result), expected, "kind {kind}, flags {flags}, stream {stream}");
        client.frames();
        let violation = Violation {
            code: expected,
            reason: "why",
        };
        client.core.fail(violation);
        let payload = [&3_u32.to_be_bytes()[..], &(expected as u32).to_be_bytes(), b"why"].concat();
        assert_eq!(client.frames(), [(kind::GOAWAY, 0, 0, payload)]);
    }
}

#[test]
fn a_header_block_must_not_be_interrupted() {
    for (kind, stream) in [(kind::PING, 0), (kind::CONTINUATION, 3), (kind::HEADERS, 1), (0x42, 1)] {
        let mut client = Client::new();
        client.send(kind::HEADERS, 0, 1, POST).unwrap();
        assert_eq!(
            code(client.send(kind, 0, stream, &[0; 8])),
            Code::ProtocolError,
            "{kind}"
        );
    }
    let mut client = Client::new();
    client.send(kind::HEADERS, flag::END_STREAM, 1, &POST[..1]).unwrap();
    client.send(kind::CONTINUATION, 0, 1, &POST[1..2]).unwrap();
    let event = client.send(kind::CONTINUATION, flag::END_HEADERS, 1, &POST[2..]);
    let Ok(Event::Request(_, request)) = event else {
        panic!("{event:?}");
    };
    assert_eq!(request.uri(), "/");
    assert!(client.bodies[0].is_end_stream());
}

#[test]
fn errors_of_a_stream_reset_it_alone() {
    use Code::{FlowControlError, FrameSizeError, ProtocolError, StreamClosed};
    // Stream 1 is open with a length of 5, the request of stream 3 is complete, stream 5 is idle.
    let cases: &[(u8, u8, u32, &[u8], Code)] = &[
        (kind::DATA, 0, 1, b"123456", ProtocolError),
        (kind::DATA, flag::END_STREAM, 1, b"1234", ProtocolError),
        (kind::DATA, 0, 3, b"1", StreamClosed),
        (kind::HEADERS, flag::END_HEADERS, 1, b"\0\x01a\x01b", ProtocolError),
        (kind::HEADERS, END, 1, b"\x84", ProtocolError),
        (kind::HEADERS, END, 1, b"\0\x01a\x01b", ProtocolError),
        (kind::HEADERS, END, 3, b"\0\x01a\x01b", StreamClosed),
        (kind::HEADERS, END, 5, b"\x83\x86", ProtocolError),
        (kind::HEADERS, END, 5, b"\x83\x86\x84\0\x01A\x01b", ProtocolError),
        (kind::HEADERS, END, 5, POST_5, ProtocolError),
        (
            kind::HEADERS,
            END | flag::PRIORITY,
            5,
            b"\0\0\0\x05\0\x83\x86\x84",
            ProtocolError,
        ),
        (kind::PRIORITY, 0, 1, b"\0\0\0\x01\0", ProtocolError),
        (kind::PRIORITY, 0, 1, b"\0\0\0\x03", FrameSizeError),
        (kind::WINDOW_UPDATE, 0, 1, b"\0\0\0\0", ProtocolError),
        (kind::WINDOW_UPDATE, 0, 3, b"\x7f\xff\xff\xff", FlowControlError),
    ];
    for &(kind, flags, stream, payload, expected) in cases {
        let mut client = Client::new();
        client.send(kind::HEADERS, flag::END_HEADERS, 1, POST_5).unwrap();
        client.open(3, END);
        let case = format!("kind {kind}, flags {flags}, stream {stream}");
        let event = client.send(kind, flags, stream, payload).expect(&case);
        assert_eq!(matches!(event, Event::Closed(_)), stream < 5, "{case}");
        assert_eq!(client.reset(stream), expected as u32, "{case}");
        // The connection goes on, and what was under way is ignored.
        for (kind, payload) in [
            (kind::DATA, &b"x"[..]),
            (kind::HEADERS, b"\x84"),
            (kind::WINDOW_UPDATE, &[0; 4]),
        ] {
            assert!(
                matches!(client.send(kind, END, stream, payload), Ok(Event::Nothing)),
                "{case}"
            );
        }
        assert_eq!(client.frames(), [], "{case}");
        client.open(7, END);
    }
}

#[test]
fn data_fills_the_windows_until_it_is_read() {
    let mut client = Client::with(Config {
        stream_window: 20_000,
        connection_window: 80_000,
        ..Config::default()
    });
    for stream in [1, 3, 5, 7] {
        client.open(stream, flag::END_HEADERS);
    }
    let data = vec![7; 10_000];
    for stream in [1, 1, 3, 3, 5, 5] {
        client.send(kind::DATA, 0, stream, &data).unwrap();
    }
    assert_eq!(client.frames(), []);
    assert_eq!(client.read(0).len(), 20_000);
    client.core.credit_read(0);
    assert_eq!(client.frames(), [window_update(1, 20_000), window_update(0, 20_000)]);
    client.send(kind::DATA, 0, 1, &data).unwrap();
    assert!(matches!(client.send(kind::DATA, 0, 3, b"x"), Ok(Event::Closed(1))));
    assert_eq!(
        client.frames(),
        [
            (
                kind::RST_STREAM,
                0,
                3,
                (Code::FlowControlError as u32).to_be_bytes().to_vec()
            ),
            // What the reset stream held.
            window_update(0, 20_001),
        ]
    );
    let rest = vec![7; 10_000];
    for _ in 0..2 {
        client.send(kind::DATA, 0, 7, &rest).unwrap();
    }
    for stream in [1, 3, 3] {
        // What comes for the reset stream counts, too.
        client.send(kind::DATA, 0, stream, &rest).unwrap();
    }
    assert_eq!(
        code(client.send(kind::DATA, 0, 3, &[0; 20_001])),
        Code::FlowControlError,
        "the connection's"
    );
}

#[test]
fn padding_and_what_nobody_reads_is_given_back_at_once() {
    let mut client = Client::with(Config {
        connection_window: 70_000,
        ..Config::default()
    });
    client.open(1, flag::END_HEADERS);
    client.bodies.clear();
    for _ in 0..3 {
        client.send(kind::DATA, 0, 1, &[7; 12_000]).unwrap();
    }
    assert_eq!(client.frames(), [window_update(0, 24_000)], "but not to the stream");
    client.open(3, flag::END_HEADERS);
    for _ in 0..300 {
        client
            .send(kind::DATA, flag::PADDED, 3, &[[254].as_slice(), &[0; 254]].concat())
            .unwrap();
    }
    let given = |frames: &[Frame], stream| frames.iter().filter(|frame| frame.2 == stream).count();
    let frames = client.frames();
    assert_eq!((given(&frames, 0), given(&frames, 3)), (3, 1), "300 * 255 bytes");
    client.core.credit_read(1);
}

#[test]
fn a_body_is_completed_while_others_hold_most_of_the_window() {
    let mut client = Client::with(Config {
        stream_window: 60_000,
        connection_window: 200_000,
        ..Config::default()
    });
    for stream in [1, 3, 5, 7] {
        client.open(stream, flag::END_HEADERS);
    }
    let piece = vec![7; 10_000];
    for stream in [1, 3, 5] {
        (0..6).for_each(|_| drop(client.send(kind::DATA, 0, stream, &piece).unwrap()));
    }
    client.frames();
    let (mut window, mut sent) = (20_000, 0);
    while sent < 500_000 {
        let length = piece.len().min(window);
        assert!(length > 0, "no window is left after {sent} bytes");
        client.send(kind::DATA, 0, 7, &piece[..length]).unwrap();
        (window, sent) = (window - length, sent + length);
        assert_eq!(client.read(3).len(), length);
        client.core.credit_read(3);
        let updates = client.frames().into_iter().filter(|frame| frame.2 == 0);
        let more = updates.map(|(.., more)| u32::from_be_bytes(more.try_into().unwrap()));
        window += more.sum::<u32>() as usize;
    }
}

#[test]
fn answers_keep_to_the_windows_of_the_client() {
    let mut client = Client::new();
    let slot = client.open(1, END);
    client
        .send(kind::SETTINGS, 0, 0, &settings(&[(setting::INITIAL_WINDOW_SIZE, 10)]))
        .unwrap();
    client.core.send_head(slot, StatusCode::OK, &HeaderMap::new(), false);
    let mut data = Bytes::from(vec![1; 100_000]);
    assert_eq!(client.core.send_data(slot, &mut data, true), Sent::Some);
    assert_eq!(client.core.send_data(slot, &mut data, true), Sent::StreamWindowUsed);
    let event = client.send(kind::SETTINGS, 0, 0, &settings(&[(setting::INITIAL_WINDOW_SIZE, 5)]));
    assert!(matches!(event, Ok(Event::AllWritable)));
    let event = client.send(kind::WINDOW_UPDATE, 0, 1, &5_u32.to_be_bytes());
    assert!(matches!(event, Ok(Event::Writable(s)) if s == slot));
    assert_eq!(
        client.core.send_data(slot, &mut data, true),
        Sent::StreamWindowUsed,
        "5 - 10 + 5"
    );
    client
        .send(kind::WINDOW_UPDATE, 0, 1, &(1_u32 << 20).to_be_bytes())
        .unwrap();
    while client.core.send_data(slot, &mut data, true) == Sent::Some {
        client.frames();
    }
    assert_eq!(data.len(), 100_000 - 65_535, "the window of the connection");
    let event = client.send(kind::WINDOW_UPDATE, 0, 0, &(1_u32 << 20).to_be_bytes());
    assert!(matches!(event, Ok(Event::ConnectionWritable)));
    client.frames();
    client.core.send_data(slot, &mut data, true);
    client.core.send_data(slot, &mut data, true);
    assert_eq!(client.core.send_data(slot, &mut data, true), Sent::All);
    let frames = client.frames();
    let lengths: Vec<_> = frames
        .iter()
        .map(|(kind, flags, _, data)| (*kind, *flags, data.len()))
        .collect();
    assert_eq!(lengths, [(0, 0, 16_384), (0, 0, 16_384), (0, flag::END_STREAM, 1_697)]);
    assert!(client.core.finish(slot) && !client.core.has_streams());
}

#[test]
fn the_output_is_bounded() {
    let mut client = Client::new();
    let slot = client.open(1, END);
    client
        .send(kind::WINDOW_UPDATE, 0, 0, &(1_u32 << 20).to_be_bytes())
        .unwrap();
    client
        .send(kind::WINDOW_UPDATE, 0, 1, &(1_u32 << 20).to_be_bytes())
        .unwrap();
    let mut data = Bytes::from(vec![1; 1 << 20]);
    while client.core.send_data(slot, &mut data, true) == Sent::Some {}
    assert_eq!(client.core.send_data(slot, &mut data, true), Sent::OutputFull);
    assert!((64 << 10..80 << 10).contains(&client.core.output.len()));
    while client.core.may_receive() {
        client.send(kind::PING, 0, 0, &[1; 8]).unwrap();
    }
    assert!(client.core.output.len() < 130 << 10);
}

#[test]
fn a_request_may_end_with_trailers() {
    let mut client = Client::new();
    client.open(1, flag::END_HEADERS);
    client.send(kind::DATA, 0, 1, b"data").unwrap();
    client.send(kind::HEADERS, END, 1, b"\0\x01a\x01b").unwrap();
    assert_eq!(client.frames(), []);
    let mut cx = Context::from_waker(Waker::noop());
    let mut next = || match Pin::new(&mut client.bodies[0]).poll_frame(&mut cx) {
        Poll::Ready(Some(Ok(frame))) => frame,
        other => panic!("{other:?}"),
    };
    assert_eq!(next().into_data().unwrap(), "data");
    assert_eq!(next().into_trailers().unwrap()["a"], "b");
}

#[test]
fn an_answer_that_needs_no_more_of_the_request_ends_the_stream() {
    let mut client = Client::new();
    let slot = client.open(1, flag::END_HEADERS);
    client.core.send_head(slot, StatusCode::OK, &HeaderMap::new(), true);
    assert!(!client.core.finish(slot), "the body is still being read");
    client.frames();
    client.bodies.clear();
    assert!(client.core.finish(slot));
    assert_eq!(client.reset(1), Code::NoError as u32);
    let slot = client.open(3, flag::END_HEADERS);
    client.core.send_head(slot, StatusCode::OK, &HeaderMap::new(), true);
    assert!(!client.core.finish(slot));
    let event = client.send(kind::DATA, flag::END_STREAM, 3, b"data");
    assert!(matches!(event, Ok(Event::Closed(s)) if s == slot));
    assert_eq!(client.read(0), b"data", "which can still be read");
}

#[test]
fn headers_over_the_limit_are_answered_with_431() {
    let mut client = Client::new();
    // A field of 4,000 bytes, and 100 references to it.
    let value = [b"\x40\x01x\x7f\xa1\x1e", &[b'a'; 4000][..]].concat();
    let block = [POST, &value, &[0xbe; 100]].concat();
    assert!(matches!(
        client.send(kind::HEADERS, flag::END_HEADERS, 1, &block),
        Ok(Event::Nothing)
    ));
    let frames = client.frames();
    let [(kind::HEADERS, END, 1, block), (kind::RST_STREAM, 0, 1, code)] = &frames[..] else {
        panic!("{frames:?}");
    };
    assert_eq!((&block[..], &code[..]), (&b"\x08\x03431"[..], &[0; 4][..]));
    // The tables of both sides are still the same.
    assert!(matches!(
        client.send(kind::HEADERS, END, 3, b"\x83\x86\x84\xbe"),
        Ok(Event::Request(..))
    ));
}

#[test]
fn long_headers_continue_in_further_frames() {
    let mut client = Client::new();
    let slot = client.open(1, END);
    let mut headers = HeaderMap::new();
    headers.insert("long", "x".repeat(40_000).parse().unwrap());
    client.core.send_trailers(slot, &headers);
    let frames = client.frames();
    let shape: Vec<_> = frames
        .iter()
        .map(|(kind, flags, _, data)| (*kind, *flags, data.len()))
        .collect();
    assert_eq!(
        shape,
        [
            (kind::HEADERS, flag::END_STREAM, 16_384),
            (kind::CONTINUATION, 0, 16_384),
            (kind::CONTINUATION, flag::END_HEADERS, 40_000 + 10 - 32_768),
        ]
    );
}

#[test]
fn floods_end_the_connection() {
    let calm = |mut client: Client, send: &mut dyn FnMut(&mut Client, u32) -> Result<Event, Violation>| {
        for n in 0..10_000 {
            if let Err(violation) = send(&mut client, n) {
                assert_eq!(violation.code, Code::EnhanceYourCalm);
                return n;
            }
        }
        panic!("no end");
    };
    let times = calm(Client::new(), &mut |client, _| client.send(kind::SETTINGS, 0, 0, &[]));
    assert_eq!(times, 99, "and the one of the start");
    let times = calm(Client::new(), &mut |client, n| {
        client.open(2 * n + 1, END);
        client.send(kind::RST_STREAM, 0, 2 * n + 1, &[0; 4])
    });
    assert_eq!(times, 2048, "rapid reset");
    let times = calm(Client::new(), &mut |client, n| {
        client.open(2 * n + 1, END);
        client.send(kind::WINDOW_UPDATE, 0, 2 * n + 1, &[0; 4])
    });
    assert_eq!(times, 1024, "resets that the client provokes");
    let times = calm(Client::new(), &mut |client, n| {
        if n == 0 {
            client.open(1, flag::END_HEADERS);
        }
        client.send(kind::DATA, 0, 1, &[])
    });
    assert_eq!(times, 1000, "empty frames");
    let times = calm(Client::new(), &mut |client, n| match n {
        0 => client.send(kind::HEADERS, 0, 1, POST),
        _ => client.send(kind::CONTINUATION, 0, 1, &[0; 16 << 10]),
    });
    assert_eq!(times, 16, "256 KiB");
    let times = calm(Client::new(), &mut |client, n| match n {
        0 => client.send(kind::HEADERS, 0, 1, POST),
        _ => client.send(kind::CONTINUATION, 0, 1, &[]),
    });
    assert_eq!(times, 256, "frames of a block");
}

#[test]
fn calls_that_were_polled_and_cancelled_are_no_flood() {
    let mut client = Client::new();
    for n in 0..10_000 {
        let slot = client.open(2 * n + 1, END);
        // Every second one is reset before the server looks at it.
        if n % 2 == 0 {
            client.core.seen(slot);
        }
        client.send(kind::RST_STREAM, 0, 2 * n + 1, &[0; 4]).unwrap();
    }
    assert_eq!(client.frames(), []);
}

#[test]
fn streams_over_the_limit_are_refused() {
    let mut client = Client::with(Config {
        max_concurrent_streams: 2,
        ..Config::default()
    });
    client.open(1, END);
    client.open(3, END);
    assert!(matches!(
        client.send(kind::HEADERS, flag::END_HEADERS, 5, POST),
        Ok(Event::Nothing)
    ));
    assert_eq!(client.reset(5), Code::RefusedStream as u32);
    assert!(matches!(
        client.send(kind::DATA, flag::END_STREAM, 5, b"data"),
        Ok(Event::Nothing)
    ));
    client.send(kind::RST_STREAM, 0, 1, &[0; 4]).unwrap();
    client.open(7, END);
}

#[test]
fn a_shutdown_serves_what_is_under_way() {
    let mut client = Client::new();
    let slot = client.open(1, END);
    client.core.shut_down("why");
    client.core.shut_down("again");
    let go_away = |last: u32| (kind::GOAWAY, 0, 0, [&last.to_be_bytes()[..], &[0; 4], b"why"].concat());
    assert_eq!(
        client.frames(),
        [go_away(MAX_31), (kind::PING, 0, 0, LAST_PING.to_vec())]
    );
    let late = client.open(3, END);
    assert!(!client.core.is_done());
    client.send(kind::PING, flag::ACK, 0, &LAST_PING).unwrap();
    assert_eq!(client.frames(), [go_away(3)]);
    assert!(matches!(
        client.send(kind::HEADERS, flag::END_HEADERS, 5, POST),
        Ok(Event::Nothing)
    ));
    assert!(matches!(
        client.send(kind::DATA, flag::END_STREAM, 5, b"data"),
        Ok(Event::Nothing)
    ));
    assert_eq!(client.frames(), [], "as if it had never come");
    for slot in [slot, late] {
        assert!(!client.core.is_done());
        client.core.send_head(slot, StatusCode::OK, &HeaderMap::new(), true);
        assert!(client.core.finish(slot));
    }
    assert!(client.core.is_done());
}

#[test]
fn pings_are_answered_and_unknown_frames_ignored() {
    let mut client = Client::new();
    client.send(kind::PING, 0, 0, b"12345678").unwrap();
    assert_eq!(client.frames(), [(kind::PING, flag::ACK, 0, b"12345678".to_vec())]);
    client.send(0x42, 0xff, 7, b"anything").unwrap();
    client.send(kind::PRIORITY, 0, 9, b"\0\0\0\x03\0").unwrap();
    client.send(kind::GOAWAY, 0, 0, b"12345678why").unwrap();
    client.send(kind::SETTINGS, flag::ACK, 0, b"").unwrap();
    client.send(kind::SETTINGS, 0, 0, &settings(&[(0x99, 1)])).unwrap();
    assert_eq!(client.frames(), [(kind::SETTINGS, flag::ACK, 0, vec![])]);
}

/// A client whose pings may wait for an answer, and the slot of its watch.
fn measuring() -> (Client, usize) {
    let mut client = Client::with(Config {
        ping_answer_delay: Duration::from_millis(100),
        ..Config::default()
    });
    let slot = client.open(1, flag::END_HEADERS);
    (client, slot)
}

fn pong(data: &[u8; 8]) -> Frame {
    (kind::PING, flag::ACK, 0, data.to_vec())
}

fn event(length: usize) -> Bytes {
    vec![7; length].into()
}

#[test]
fn a_ping_after_a_small_event_is_answered_behind_the_next_one() {
    let (mut client, slot) = measuring();
    for ping in [b"ping   1", b"ping   2"] {
        client.core.send_data(slot, &mut event(300), false);
        client.frames();
        client.send(kind::PING, 0, 0, ping).unwrap();
        assert_eq!(client.frames(), []);
        assert!(client.core.has_late_answer());
        client.core.send_data(slot, &mut event(300), false);
        client.core.answer_late();
        let frames = client.frames();
        assert_eq!((frames.len(), frames[0].0, &frames[1]), (2, kind::DATA, &pong(ping)));
        assert!(!client.core.has_late_answer());
    }
}

#[test]
fn pings_that_want_to_know_something_now_are_answered_at_once() {
    let (mut client, slot) = measuring();
    client.send(kind::PING, 0, 0, b"no data.").unwrap();
    assert_eq!(client.frames(), [pong(b"no data.")]);

    client.core.send_data(slot, &mut event(16 << 10), false);
    client.core.send_data(slot, &mut event(16 << 10), false);
    client.core.send_data(slot, &mut event(1), false);
    client.frames();
    client.send(kind::PING, 0, 0, b"bulk....").unwrap();
    assert_eq!(client.frames(), [pong(b"bulk....")]);

    client.core.send_data(slot, &mut event(1), false);
    client.frames();
    client.send(kind::PING, 0, 0, b"waits...").unwrap();
    client.send(kind::PING, 0, 0, b"another.").unwrap();
    assert_eq!(
        client.frames(),
        [pong(b"waits..."), pong(b"another.")],
        "in their order"
    );

    client.core.send_data(slot, &mut event(1), false);
    client.core.shut_down("bye");
    client.frames();
    client.send(kind::PING, 0, 0, b"the end.").unwrap();
    assert_eq!(client.frames(), [pong(b"the end.")]);
}

#[test]
fn without_a_delay_every_ping_is_answered_at_once() {
    let mut client = Client::new();
    let slot = client.open(1, flag::END_HEADERS);
    client.core.send_data(slot, &mut event(1), false);
    client.frames();
    client.send(kind::PING, 0, 0, b"12345678").unwrap();
    assert_eq!(client.frames(), [pong(b"12345678")]);
}

fn frame() -> impl Strategy<Value = (u8, u8, u32, Vec<u8>)> {
    let payload = prop_oneof![
        proptest::collection::vec(any::<u8>(), 0..20),
        Just(POST.to_vec()),
        Just(POST_5.to_vec()),
        Just(vec![0; 4]),
        Just(vec![0; 8]),
        Just(vec![7; 3000]),
    ];
    let flags = prop_oneof![Just(0), Just(1), Just(4), Just(5), any::<u8>()];
    (0..11_u8, flags, 0..20_u32, payload)
}

proptest! {
    /// Whatever a client sends, no byte of the connection's window is lost.
    #[test]
    fn random_frames_never_panic_and_lose_no_window(
        frames in proptest::collection::vec(frame(), 0..200),
        actions in proptest::collection::vec(0..6_u8, 200),
    ) {
        let mut client = Client::new();
        for ((kind, flags, stream, payload), action) in frames.into_iter().zip(actions) {
            let Ok(event) = client.send(kind, flags, stream, &payload) else {
                return Ok(());
            };
            if let Event::Request(slot, _) | Event::Closed(slot) | Event::Writable(slot) = event {
                match action {
                    0 => {
                        client.core.send_head(slot, StatusCode::OK, &HeaderMap::new(), true);
                        client.core.finish(slot);
                    }
                    1 => drop(client.core.send_data(slot, &mut Bytes::from_static(b"data"), false)),
                    2 => client.core.abort(slot),
                    3 => client.bodies.clear(),
                    4 => client.core.credit_read(slot),
                    _ => {}
                }
            }
        }
        let held: u32 = client.core.streams.iter_mut().map(|stream| stream.held).sum();
        let known = client.core.receive_window + i64::from(held) + i64::from(client.core.unannounced);
        prop_assert_eq!(known, 8 << 20);
    }
}
