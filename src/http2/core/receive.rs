//! Frames of the client (RFC 9113, section 6).

use super::{Block, Core, End, Event, MAX_31, SENT_PAYLOAD_MAX};
use crate::http2::error::{Code, Violation};
use crate::http2::frame::{self, Head, flag, kind, setting};
use crate::http2::headers::{Fields, Opening, Refusal};
use crate::http2::hpack::Malformed;
use crate::http2::inbound::{BodyError, Inbound, RequestStream};
use crate::http2::streams::Stream;
use http::{HeaderMap, StatusCode};

/// Frames of one header block. A block of the longest header list fits into a fraction of them.
const BLOCK_FRAMES_MAX: u32 = 256;

impl Core {
    /// Takes one frame.
    pub fn receive(&mut self, head: Head, payload: &[u8]) -> Result<Event, Violation> {
        if let Some(block) = &self.block
            && (head.kind, head.stream) != (kind::CONTINUATION, block.stream)
        {
            return Err(Violation::protocol("a header block is interrupted"));
        }
        if !self.greeted {
            if head.kind != kind::SETTINGS || head.has(flag::ACK) {
                return Err(Violation::protocol("the first frame is not SETTINGS"));
            }
            self.greeted = true;
        }
        match head.kind {
            kind::DATA => self.data(head, payload),
            kind::HEADERS => self.headers(head, payload),
            kind::PRIORITY => self.priority(head, payload),
            kind::RST_STREAM => self.reset(head, payload),
            kind::SETTINGS => self.settings(head, payload),
            kind::PUSH_PROMISE => Err(Violation::protocol("a client pushes")),
            kind::PING => self.pinged(head, payload),
            kind::GOAWAY => Self::gone(head, payload),
            kind::WINDOW_UPDATE => self.window_update(head, payload),
            kind::CONTINUATION => self.continuation(head, payload),
            // Unknown kinds are ignored (RFC 9113, section 5.5).
            _ => Ok(Event::Nothing),
        }
    }

    fn data(&mut self, head: Head, payload: &[u8]) -> Result<Event, Violation> {
        if head.stream == 0 || self.is_idle(head.stream) {
            return Err(Violation::protocol("DATA on a stream that is not open"));
        }
        let length = payload.len() as u32;
        self.receive_window -= i64::from(length);
        if self.receive_window < 0 {
            return Err(Violation::flow_control("more than the window of the connection"));
        }
        let data = frame::unpadded(head, payload)?;
        let Some(slot) = self.streams.slot(head.stream) else {
            self.credit(length);
            return self.closed(head.stream);
        };
        let end = head.has(flag::END_STREAM);
        self.counters.empty_data = match data.is_empty() && !end {
            true => self.counters.empty_data + 1,
            false => 0,
        };
        if self.counters.empty_data > self.config.max_empty_data {
            return Err(Violation::calm("too many empty frames"));
        }
        let Some(stream) = self.streams.get_mut(slot) else {
            return Ok(Event::Nothing);
        };
        // Given back with the stream.
        stream.held += length;
        if !stream.receiving {
            return self.stream_error(head.stream, Code::StreamClosed);
        }
        stream.receive_window -= i64::from(length);
        if stream.receive_window < 0 {
            return self.stream_error(head.stream, Code::FlowControlError);
        }
        if let Some(expected) = &mut stream.expected {
            match expected.checked_sub(data.len() as u64) {
                Some(left) if left == 0 || !end => *expected = left,
                _ => return self.stream_error(head.stream, Code::ProtocolError),
            }
        }
        let padding = length - data.len() as u32;
        stream.held -= padding;
        stream.unannounced += padding;
        if let Some(inbound) = &stream.inbound {
            inbound.push(data);
        }
        if padding > 0 {
            // The body may be read elsewhere, and its reader knows nothing of the padding.
            self.announce(slot);
            self.credit(padding);
        }
        match end {
            true => Ok(self.received(slot, None)),
            false => {
                // Nothing else gives back what nobody will read.
                self.credit_dropped(slot);
                Ok(Event::Nothing)
            }
        }
    }

    /// Gives back what a call does not want.
    fn credit_dropped(&mut self, slot: usize) {
        let inbound = self.streams.get(slot).and_then(|stream| stream.inbound.as_ref());
        if inbound.is_some_and(|inbound| inbound.is_dropped()) {
            self.credit_read(slot);
        }
    }

    /// Notes the end of a request.
    fn received(&mut self, slot: usize, trailers: Option<HeaderMap>) -> Event {
        let Some(stream) = self.streams.get_mut(slot) else {
            return Event::Nothing;
        };
        stream.receiving = false;
        if let Some(inbound) = &stream.inbound {
            inbound.end(trailers);
        }
        match stream.sending {
            true => Event::Nothing,
            false => {
                self.end_stream(slot);
                Event::Closed(slot)
            }
        }
    }

    /// Whether the client has not opened this stream, nor one after it.
    fn is_idle(&self, id: u32) -> bool {
        id > self.last || id.is_multiple_of(2)
    }

    /// A frame for a stream that is closed. What was under way when this side closed it is ignored.
    fn closed(&mut self, id: u32) -> Result<Event, Violation> {
        match self.resets.contains(&id) || self.is_refused(id) {
            true => Ok(Event::Nothing),
            false => self.stream_error(id, Code::StreamClosed),
        }
    }

    /// Whether the stream comes after the last one that is served.
    fn is_refused(&self, id: u32) -> bool {
        matches!(self.end, End::After(last) if id > last)
    }

    fn headers(&mut self, head: Head, payload: &[u8]) -> Result<Event, Violation> {
        if head.stream == 0 || head.stream.is_multiple_of(2) {
            return Err(Violation::protocol("HEADERS on a stream that no client opens"));
        }
        let mut fragment = frame::unpadded(head, payload)?;
        if head.has(flag::PRIORITY) {
            let Some((priority, rest)) = fragment.split_first_chunk::<5>() else {
                return Err(Violation::frame_size("HEADERS is too short for its priority"));
            };
            // Whatever it is: the block has to be decoded.
            let itself = depends_on(priority) == head.stream;
            fragment = rest;
            if itself {
                self.decode(&mut Fields::of_request(0), fragment)?;
                self.last = self.last.max(head.stream);
                return self.stream_error(head.stream, Code::ProtocolError);
            }
        }
        let end_stream = head.has(flag::END_STREAM);
        if head.has(flag::END_HEADERS) {
            return self.complete(head.stream, end_stream, fragment);
        }
        self.block = Some(Box::new(Block {
            stream: head.stream,
            end_stream,
            bytes: fragment.to_vec(),
            frames: 1,
        }));
        Ok(Event::Nothing)
    }

    fn continuation(&mut self, head: Head, payload: &[u8]) -> Result<Event, Violation> {
        let Some(mut block) = self.block.take() else {
            return Err(Violation::protocol("CONTINUATION without HEADERS"));
        };
        block.frames += 1;
        let length = block.bytes.len() + payload.len();
        if length > self.config.max_header_list as usize || block.frames > BLOCK_FRAMES_MAX {
            return Err(Violation::calm("a header block is too long"));
        }
        block.bytes.extend_from_slice(payload);
        if head.has(flag::END_HEADERS) {
            return self.complete(block.stream, block.end_stream, &block.bytes);
        }
        self.block = Some(block);
        Ok(Event::Nothing)
    }

    /// Takes a whole header block.
    fn complete(&mut self, id: u32, end_stream: bool, block: &[u8]) -> Result<Event, Violation> {
        let limit = self.config.max_header_list;
        if let Some(slot) = self.streams.slot(id) {
            let mut fields = Fields::of_trailers(limit);
            self.decode(&mut fields, block)?;
            return self.trailers(slot, id, end_stream, fields);
        }
        let mut fields = Fields::of_request(limit);
        self.decode(&mut fields, block)?;
        if self.is_idle(id) {
            self.last = id;
            if self.is_refused(id) {
                return Ok(Event::Nothing);
            }
            return self.open(id, end_stream, fields);
        }
        if self.resets.contains(&id) {
            return Ok(Event::Nothing);
        }
        let code = match self.ended.contains(&id) {
            true => Code::StreamClosed,
            false => Code::ProtocolError,
        };
        Err(Violation {
            code,
            reason: "HEADERS on a closed stream",
        })
    }

    fn decode(&mut self, fields: &mut Fields, block: &[u8]) -> Result<(), Violation> {
        let decoded = self
            .decoder
            .decode(block, |name, value, size| fields.add(name, value, size));
        decoded.map_err(|Malformed| Violation {
            code: Code::CompressionError,
            reason: "a header block cannot be decoded",
        })
    }

    fn trailers(&mut self, slot: usize, id: u32, end_stream: bool, fields: Fields) -> Result<Event, Violation> {
        let Some(stream) = self.streams.get_mut(slot) else {
            return Ok(Event::Nothing);
        };
        if !stream.receiving {
            return self.stream_error(id, Code::StreamClosed);
        }
        let complete = end_stream && stream.expected.unwrap_or(0) == 0;
        match fields.trailers() {
            Ok(trailers) if complete => Ok(self.received(slot, Some(trailers))),
            _ => self.stream_error(id, Code::ProtocolError),
        }
    }

    /// Opens a stream.
    fn open(&mut self, id: u32, end_stream: bool, fields: Fields) -> Result<Event, Violation> {
        if self.streams.len() >= self.config.max_concurrent_streams as usize {
            return Ok(self.reset_stream(id, Code::RefusedStream));
        }
        let Opening {
            request,
            content_length,
        } = match fields.request() {
            Ok(opening) => opening,
            Err(Refusal::Malformed) => return self.stream_error(id, Code::ProtocolError),
            Err(Refusal::TooLong) => {
                self.answer_alone(id, StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE);
                return Ok(match end_stream {
                    true => Event::Nothing,
                    false => self.reset_stream(id, Code::NoError),
                });
            }
        };
        if end_stream && content_length.unwrap_or(0) != 0 {
            return self.stream_error(id, Code::ProtocolError);
        }
        let slot = self.streams.reserve();
        let waker = self.streams.waker(slot);
        let inbound = (!end_stream).then(|| Inbound::new(waker.into(), self.config.stream_window));
        self.streams.insert(
            slot,
            Stream {
                id,
                send_window: self.client.initial_window.into(),
                receive_window: self.config.stream_window.into(),
                held: 0,
                unannounced: 0,
                inbound: inbound.clone(),
                expected: content_length,
                receiving: !end_stream,
                sending: true,
                seen: false,
            },
        );
        let request = request.map(|()| RequestStream::new(inbound, content_length));
        Ok(Event::Request(slot, Box::new(request)))
    }

    fn priority(&mut self, head: Head, payload: &[u8]) -> Result<Event, Violation> {
        if head.stream == 0 {
            return Err(Violation::protocol("PRIORITY of the connection"));
        }
        let Ok(priority) = <&[u8; 5]>::try_from(payload) else {
            return self.stream_error(head.stream, Code::FrameSizeError);
        };
        // Priorities are ignored, as RFC 9113 deprecates them.
        match depends_on(priority) == head.stream && self.streams.slot(head.stream).is_some() {
            true => self.stream_error(head.stream, Code::ProtocolError),
            false => Ok(Event::Nothing),
        }
    }

    fn reset(&mut self, head: Head, payload: &[u8]) -> Result<Event, Violation> {
        if payload.len() != 4 {
            return Err(Violation::frame_size("RST_STREAM of a wrong length"));
        }
        if head.stream == 0 || self.is_idle(head.stream) {
            return Err(Violation::protocol("RST_STREAM on a stream that is not open"));
        }
        let Some(slot) = self.streams.slot(head.stream) else {
            return Ok(Event::Nothing);
        };
        if self.streams.get(slot).is_some_and(|stream| !stream.seen) {
            self.counters.unseen_resets += 1;
            if self.counters.unseen_resets > self.config.max_unseen_resets {
                return Err(Violation::calm("too many calls are reset at once"));
            }
        }
        super::remember(&mut self.ended, head.stream, super::ENDED_REMEMBERED);
        self.remove(slot, BodyError::Cancelled);
        Ok(Event::Closed(slot))
    }

    fn settings(&mut self, head: Head, payload: &[u8]) -> Result<Event, Violation> {
        if head.stream != 0 {
            return Err(Violation::protocol("SETTINGS of a stream"));
        }
        if head.has(flag::ACK) {
            return match payload.is_empty() {
                true => Ok(Event::Nothing),
                false => Err(Violation::frame_size("an acknowledgement of SETTINGS has a payload")),
            };
        }
        let (parameters, []) = payload.as_chunks::<6>() else {
            return Err(Violation::frame_size("SETTINGS of a wrong length"));
        };
        self.counters.settings += 1;
        if self.counters.settings > self.config.max_settings {
            return Err(Violation::calm("too many SETTINGS frames"));
        }
        let mut event = Event::Nothing;
        for &[a, b, value @ ..] in parameters {
            let value = u32::from_be_bytes(value);
            match u16::from_be_bytes([a, b]) {
                setting::HEADER_TABLE_SIZE => self.encoder.limit(value),
                setting::ENABLE_PUSH if value > 1 => return Err(Violation::protocol("ENABLE_PUSH is 0 or 1")),
                setting::INITIAL_WINDOW_SIZE => {
                    self.resize_windows(value)?;
                    event = Event::AllWritable;
                }
                setting::MAX_FRAME_SIZE if !(1 << 14..1 << 24).contains(&value) => {
                    return Err(Violation::protocol("MAX_FRAME_SIZE is out of its range"));
                }
                setting::MAX_FRAME_SIZE => self.client.max_payload = value.min(SENT_PAYLOAD_MAX),
                _ => {}
            }
        }
        frame::head(self.output.buffer(), 0, kind::SETTINGS, flag::ACK, 0);
        Ok(event)
    }

    /// Changes the windows of all streams (RFC 9113, section 6.9.2).
    fn resize_windows(&mut self, window: u32) -> Result<(), Violation> {
        if window > MAX_31 {
            return Err(Violation::flow_control("INITIAL_WINDOW_SIZE is out of its range"));
        }
        let more = i64::from(window) - i64::from(self.client.initial_window);
        self.client.initial_window = window;
        for stream in self.streams.iter_mut() {
            stream.send_window += more;
            if stream.send_window > MAX_31.into() {
                return Err(Violation::flow_control("the window of a stream overflows"));
            }
        }
        Ok(())
    }

    /// The client will open no more streams, and need not: it ends the connection itself.
    fn gone(head: Head, payload: &[u8]) -> Result<Event, Violation> {
        match (head.stream, payload.len()) {
            (0, 8..) => Ok(Event::Nothing),
            (0, _) => Err(Violation::frame_size("GOAWAY of a wrong length")),
            _ => Err(Violation::protocol("GOAWAY of a stream")),
        }
    }

    fn window_update(&mut self, head: Head, payload: &[u8]) -> Result<Event, Violation> {
        let Ok(more) = <[u8; 4]>::try_from(payload) else {
            return Err(Violation::frame_size("WINDOW_UPDATE of a wrong length"));
        };
        let more = u32::from_be_bytes(more) & MAX_31;
        if head.stream == 0 {
            self.send_window += i64::from(more);
            return match more {
                0 => Err(Violation::protocol("WINDOW_UPDATE of 0")),
                _ if self.send_window > MAX_31.into() => {
                    Err(Violation::flow_control("the window of the connection overflows"))
                }
                _ => Ok(Event::ConnectionWritable),
            };
        }
        if self.is_idle(head.stream) {
            return Err(Violation::protocol("WINDOW_UPDATE on a stream that is not open"));
        }
        let Some(slot) = self.streams.slot(head.stream) else {
            return Ok(Event::Nothing);
        };
        let Some(stream) = self.streams.get_mut(slot) else {
            return Ok(Event::Nothing);
        };
        stream.send_window += i64::from(more);
        match more {
            0 => self.stream_error(head.stream, Code::ProtocolError),
            _ if stream.send_window > MAX_31.into() => self.stream_error(head.stream, Code::FlowControlError),
            _ => Ok(Event::Writable(slot)),
        }
    }
}

/// The stream that a priority depends on.
fn depends_on(priority: &[u8; 5]) -> u32 {
    let [a, b, c, d, _] = *priority;
    u32::from_be_bytes([a & 0x7f, b, c, d])
}
