//! The state machine of a client's connection, without IO: frames in, frames for the server into the output.

use super::Error;
use crate::http2::frame::{self, Head, flag, kind, setting};
use crate::http2::hpack::{self, Decoder, Name};
use crate::http2::output::{Output, give_buffer, take_buffer};
use crate::http2::{Code, PREFACE, Violation};
use bytes::{Buf, Bytes};
use http::HeaderMap;

/// Windows of a stream and of a connection that nobody has changed.
const INITIAL_WINDOW: u32 = 65_535;
/// The window of a connection. Only the window of a stream holds a server back, as in grpc-go: events that pile up on one
/// stream must not stop the answers on another.
const CONNECTION_WINDOW: u32 = 1 << 20;
/// A window is renewed when half of it has been used.
const RENEWED: u32 = 2;
/// The largest window (RFC 9113, section 6.9.1).
const WINDOW_MAX: i64 = 0x7fff_ffff;
/// The longest header block, and the most frames of it.
const BLOCK_MAX: usize = 64 << 10;
/// Bytes that wait for the socket, beyond which bodies wait in their streams.
const OUTPUT_MAX: usize = 64 << 10;
/// The reason of a GOAWAY that is kept.
const REASON_MAX: usize = 120;
const PING: [u8; 8] = *b"loadtest";

/// What the headers or the trailers of an answer say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fields {
    /// The status of HTTP; 0 in trailers.
    pub http_status: u16,
    pub grpc_status: Option<u32>,
    /// As it was sent: with percent signs.
    pub grpc_message: Bytes,
}

/// A call.
#[derive(Debug)]
struct Stream {
    id: u32,
    send_window: i64,
    /// What is still to be sent.
    pending: Bytes,
    /// Whether `pending` ends the request, and whether the end has been sent.
    ends: bool,
    has_ended: bool,
    /// What was received and not taken.
    received: Vec<u8>,
    /// Taken bytes that the window of the stream was not renewed by.
    taken: u32,
    head: Option<Fields>,
    /// Whether the headers have come, even if somebody has taken them.
    has_begun: bool,
    trailers: Option<Fields>,
    is_over: bool,
    /// The code by which the server has reset the stream.
    reset: Option<u32>,
}

/// A header block that continues in the next frame.
#[derive(Debug)]
struct Block {
    stream: u32,
    end_stream: bool,
    bytes: Vec<u8>,
}

#[derive(Debug)]
pub(super) struct Core {
    decoder: Decoder,
    streams: Vec<Stream>,
    next: u32,
    send_window: i64,
    /// The window that a new stream of the server has.
    initial_window: u32,
    /// Received bytes that the window of the connection was not renewed by.
    taken: u32,
    block: Option<Box<Block>>,
    /// Whether the settings of the server have come.
    pub greeted: bool,
    pub pongs: u32,
    /// The server takes no more calls, for this reason.
    leaving: Option<Box<str>>,
    pub output: Output,
}

impl Core {
    pub fn new() -> Self {
        let mut output = Output::default();
        let out = output.buffer();
        out.extend_from_slice(PREFACE);
        // Without a dynamic table, a connection holds no header.
        frame::settings(out, &[(setting::HEADER_TABLE_SIZE, 0), (setting::ENABLE_PUSH, 0)]);
        frame::window_update(out, 0, CONNECTION_WINDOW - INITIAL_WINDOW);
        Self {
            decoder: Decoder::default(),
            streams: vec![],
            next: 1,
            send_window: INITIAL_WINDOW.into(),
            initial_window: INITIAL_WINDOW,
            taken: 0,
            block: None,
            greeted: false,
            pongs: 0,
            leaving: None,
            output,
        }
    }

    // === calls ===

    /// Begins a call; returns its stream.
    pub fn open(&mut self, secure: bool, authority: &str, path: &str, headers: &HeaderMap) -> Result<u32, Error> {
        if self.leaving.is_some() || i64::from(self.next) > WINDOW_MAX {
            return Err(self.closed());
        }
        let id = self.next;
        self.next += 2;
        let out = self.output.buffer();
        let at = out.len();
        frame::head(out, 0, kind::HEADERS, flag::END_HEADERS, id);
        hpack::request(out, secure, authority, path, headers);
        let length = (out.len() - at - frame::HEAD) as u32;
        out[at..at + 3].copy_from_slice(&length.to_be_bytes()[1..]);
        self.streams.push(Stream {
            id,
            send_window: self.initial_window.into(),
            pending: Bytes::new(),
            ends: false,
            has_ended: false,
            received: Vec::new(),
            taken: 0,
            head: None,
            has_begun: false,
            trailers: None,
            is_over: false,
            reset: None,
        });
        Ok(id)
    }

    /// Sends a part of the body, the last one if it `ends` the request.
    pub fn send(&mut self, id: u32, bytes: Bytes, ends: bool) {
        if let Some(stream) = self.streams.iter_mut().find(|stream| stream.id == id) {
            stream.pending = match stream.pending.is_empty() {
                true => bytes,
                false => [&stream.pending[..], &bytes].concat().into(),
            };
            stream.ends |= ends;
        }
        self.pump();
    }

    /// Puts as much of the bodies into the output as the windows allow.
    pub fn pump(&mut self) {
        for stream in &mut self.streams {
            while !stream.has_ended && (stream.ends || !stream.pending.is_empty()) && self.output.len() < OUTPUT_MAX {
                let window = stream.send_window.min(self.send_window).clamp(0, WINDOW_MAX) as usize;
                let length = stream.pending.len().min(window).min(frame::PAYLOAD_MAX);
                if length == 0 && !stream.pending.is_empty() {
                    break;
                }
                let piece = stream.pending.split_to(length);
                stream.has_ended = stream.ends && stream.pending.is_empty();
                let flags = if stream.has_ended { flag::END_STREAM } else { 0 };
                frame::head(self.output.buffer(), length, kind::DATA, flags, stream.id);
                self.output.payload(piece);
                stream.send_window -= length as i64;
                self.send_window -= length as i64;
            }
        }
    }

    /// Whether a body waits that could be sent at once.
    pub fn has_more(&self) -> bool {
        let may_go = |stream: &Stream| !stream.pending.is_empty() && stream.send_window > 0 && self.send_window > 0;
        self.streams.iter().any(may_go)
    }

    /// The headers of an answer, once they have come.
    pub fn head(&mut self, id: u32) -> Result<Option<Fields>, Error> {
        let stream = self.stream(id)?;
        match (stream.head.take(), stream.reset) {
            (Some(head), _) => Ok(Some(head)),
            (None, Some(code)) => Err(Error::Reset(code)),
            (None, None) => Ok(None),
        }
    }

    /// What was received; empty if nothing was. `None` at the end.
    pub fn take(&mut self, id: u32) -> Result<Option<Vec<u8>>, Error> {
        let stream = self.stream(id)?;
        if stream.received.is_empty() {
            return match (stream.is_over, stream.reset) {
                (true, _) => Ok(None),
                (false, Some(code)) => Err(Error::Reset(code)),
                (false, None) => Ok(Some(Vec::new())),
            };
        }
        let taken = std::mem::take(&mut stream.received);
        stream.taken += taken.len() as u32;
        let renewal =
            (stream.taken >= INITIAL_WINDOW / RENEWED && !stream.is_over).then(|| std::mem::take(&mut stream.taken));
        if let Some(renewal) = renewal {
            frame::window_update(self.output.buffer(), id, renewal);
        }
        self.renew(taken.len());
        Ok(Some(taken))
    }

    pub fn trailers(&mut self, id: u32) -> Option<Fields> {
        self.stream(id).ok()?.trailers.take()
    }

    /// Nobody is interested in a call any more.
    pub fn close(&mut self, id: u32) {
        let Some(at) = self.streams.iter().position(|stream| stream.id == id) else {
            return;
        };
        let stream = self.streams.swap_remove(at);
        if !(stream.is_over && stream.has_ended) && stream.reset.is_none() {
            frame::reset(self.output.buffer(), id, Code::Cancel);
        }
        self.renew(stream.received.len());
        give_buffer(stream.received);
        if self.streams.is_empty() {
            self.streams = vec![];
        }
    }

    pub fn ping(&mut self) {
        frame::ping(self.output.buffer(), 0, PING);
    }

    fn stream(&mut self, id: u32) -> Result<&mut Stream, Error> {
        let found = self.streams.iter_mut().find(|stream| stream.id == id);
        found.ok_or(Error::Closed)
    }

    /// Gives bytes back to the window of the connection.
    fn renew(&mut self, bytes: usize) {
        self.taken += bytes as u32;
        if self.taken >= CONNECTION_WINDOW / RENEWED {
            let taken = std::mem::take(&mut self.taken);
            frame::window_update(self.output.buffer(), 0, taken);
        }
    }

    // === frames ===

    /// Takes a frame of the server.
    pub fn receive(&mut self, head: Head, payload: &[u8]) -> Result<(), Error> {
        if !self.greeted && head.kind != kind::SETTINGS {
            return Err(Violation::protocol("the first frame is not SETTINGS").into());
        }
        if self.block.is_some() && head.kind != kind::CONTINUATION {
            return Err(Violation::protocol("a header block is interrupted").into());
        }
        match head.kind {
            kind::DATA => self.receive_data(head, payload)?,
            kind::HEADERS => self.receive_headers(head, payload)?,
            kind::CONTINUATION => self.continue_block(head, payload)?,
            kind::RST_STREAM => {
                let code = u32::from_be_bytes(fixed(payload)?);
                if let Ok(stream) = self.stream(head.stream) {
                    stream.reset = Some(code);
                }
            }
            kind::SETTINGS => self.receive_settings(head, payload)?,
            kind::PING => {
                let data = fixed(payload)?;
                match head.has(flag::ACK) {
                    true => self.pongs += u32::from(data == PING),
                    false => frame::ping(self.output.buffer(), flag::ACK, data),
                }
            }
            kind::GOAWAY => self.receive_go_away(payload)?,
            kind::WINDOW_UPDATE => self.receive_window(head, payload)?,
            kind::PUSH_PROMISE => return Err(Violation::protocol("the server pushes").into()),
            _ => {}
        }
        Ok(())
    }

    fn receive_data(&mut self, head: Head, payload: &[u8]) -> Result<(), Error> {
        let data = frame::unpadded(head, payload)?;
        let ends = head.has(flag::END_STREAM);
        let Some(stream) = self.streams.iter_mut().find(|stream| stream.id == head.stream) else {
            // The call was given up.
            self.known(head.stream)?;
            self.renew(payload.len());
            return Ok(());
        };
        if stream.is_over || !stream.has_begun {
            return Err(Violation::protocol("DATA outside of an answer").into());
        }
        if stream.received.len() + data.len() > INITIAL_WINDOW as usize {
            return Err(Violation::flow_control("more data than the window of a stream").into());
        }
        if stream.received.capacity() == 0 && !data.is_empty() {
            stream.received = take_buffer();
        }
        stream.received.extend_from_slice(data);
        stream.is_over |= ends;
        let padding = payload.len() - data.len();
        stream.taken += padding as u32;
        self.renew(padding);
        Ok(())
    }

    fn receive_headers(&mut self, head: Head, payload: &[u8]) -> Result<(), Error> {
        let mut block = frame::unpadded(head, payload)?;
        if head.has(flag::PRIORITY) {
            block = block.get(5..).ok_or(Violation::frame_size("HEADERS is too short"))?;
        }
        self.known(head.stream)?;
        let end_stream = head.has(flag::END_STREAM);
        if head.has(flag::END_HEADERS) {
            return self.receive_block(head.stream, end_stream, block);
        }
        self.block = Some(Box::new(Block {
            stream: head.stream,
            end_stream,
            bytes: block.to_vec(),
        }));
        Ok(())
    }

    fn continue_block(&mut self, head: Head, payload: &[u8]) -> Result<(), Error> {
        let block = self.block.take().filter(|block| block.stream == head.stream);
        let mut block = block.ok_or(Violation::protocol("CONTINUATION continues nothing"))?;
        if payload.is_empty() || block.bytes.len() + payload.len() > BLOCK_MAX {
            return Err(Violation::calm("a header block is too long").into());
        }
        block.bytes.extend_from_slice(payload);
        match head.has(flag::END_HEADERS) {
            true => self.receive_block(block.stream, block.end_stream, &block.bytes),
            false => {
                self.block = Some(block);
                Ok(())
            }
        }
    }

    fn receive_block(&mut self, id: u32, end_stream: bool, block: &[u8]) -> Result<(), Error> {
        let mut fields = Fields::default();
        let decoded = self.decoder.decode(block, |name, value, _| {
            let text = || std::str::from_utf8(value).ok();
            match name {
                Name::Status => fields.http_status = text().and_then(|text| text.parse().ok()).unwrap_or_default(),
                Name::Header(name) if name == "grpc-status" => {
                    fields.grpc_status = text().and_then(|text| text.parse().ok());
                }
                Name::Header(name) if name == "grpc-message" => fields.grpc_message = value.clone(),
                _ => {}
            }
        });
        decoded.map_err(|_| Violation {
            code: Code::CompressionError,
            reason: "a header block is malformed",
        })?;
        let Ok(stream) = self.stream(id) else {
            return Ok(());
        };
        match fields.http_status {
            // What an answer is announced by.
            100..200 => {}
            0 => stream.trailers = Some(fields),
            _ => {
                if end_stream {
                    stream.trailers = Some(fields.clone());
                }
                (stream.head, stream.has_begun) = (Some(fields), true);
            }
        }
        stream.is_over |= end_stream;
        Ok(())
    }

    fn receive_settings(&mut self, head: Head, payload: &[u8]) -> Result<(), Error> {
        if head.has(flag::ACK) {
            return Ok(());
        }
        self.greeted = true;
        let (settings, rest) = payload.as_chunks::<6>();
        if !rest.is_empty() {
            return Err(Violation::frame_size("SETTINGS of a wrong length").into());
        }
        for setting in settings {
            let mut setting = &setting[..];
            let (parameter, value) = (setting.get_u16(), setting.get_u32());
            if parameter == setting::INITIAL_WINDOW_SIZE {
                if i64::from(value) > WINDOW_MAX {
                    return Err(Violation::flow_control("a window is too large").into());
                }
                let change = i64::from(value) - i64::from(self.initial_window);
                self.streams.iter_mut().for_each(|stream| stream.send_window += change);
                self.initial_window = value;
            }
        }
        let out = self.output.buffer();
        frame::head(out, 0, kind::SETTINGS, flag::ACK, 0);
        self.pump();
        Ok(())
    }

    fn receive_window(&mut self, head: Head, payload: &[u8]) -> Result<(), Error> {
        let increment = i64::from(u32::from_be_bytes(fixed(payload)?) & 0x7fff_ffff);
        let window = match head.stream {
            0 => Some(&mut self.send_window),
            id => self.stream(id).ok().map(|stream| &mut stream.send_window),
        };
        if let Some(window) = window {
            *window += increment;
            if *window > WINDOW_MAX {
                return Err(Violation::flow_control("a window is too large").into());
            }
        }
        self.pump();
        Ok(())
    }

    fn receive_go_away(&mut self, payload: &[u8]) -> Result<(), Error> {
        let Some((head, reason)) = payload.split_first_chunk::<8>() else {
            return Err(Violation::frame_size("GOAWAY is too short").into());
        };
        let mut head = &head[..];
        let (last, code) = (head.get_u32() & 0x7fff_ffff, head.get_u32());
        let reason = String::from_utf8_lossy(&reason[..reason.len().min(REASON_MAX)]);
        if code == Code::NoError as u32 {
            self.leaving = Some(reason.into());
            for stream in self.streams.iter_mut().filter(|stream| stream.id > last) {
                stream.reset = Some(Code::RefusedStream as u32);
            }
            return Ok(());
        }
        Err(Error::GoAway {
            code,
            reason: reason.into_owned(),
        })
    }

    /// The error of a connection that the server has closed.
    pub fn closed(&self) -> Error {
        match self.leaving.as_deref() {
            None | Some("") => Error::Closed,
            Some(reason) => Error::GoAway {
                code: Code::NoError as u32,
                reason: reason.to_owned(),
            },
        }
    }

    /// Fails for a stream that was never opened.
    fn known(&self, id: u32) -> Result<(), Violation> {
        match id % 2 == 1 && id < self.next {
            true => Ok(()),
            false => Err(Violation::protocol("a frame of a stream that does not exist")),
        }
    }
}

fn fixed<const N: usize>(payload: &[u8]) -> Result<[u8; N], Violation> {
    let exact = payload.try_into();
    exact.map_err(|_| Violation::frame_size("a frame of a wrong length"))
}
