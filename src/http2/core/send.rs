//! Frames of answers.

use super::{Core, remember};
use crate::http2::error::Code;
use crate::http2::frame::{self, flag, kind};
use crate::http2::inbound::BodyError;
use bytes::Bytes;
use http::{HeaderMap, StatusCode};

/// How much of a piece of a body was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::http2) enum Sent {
    All,
    /// A frame was sent, and more may follow.
    Some,
    /// The output is full.
    OutputFull,
    StreamWindowUsed,
    ConnectionWindowUsed,
    /// The stream is over.
    Closed,
}

impl Core {
    /// Begins an answer, and ends it if `end`.
    pub fn send_head(&mut self, slot: usize, status: StatusCode, fields: &HeaderMap, end: bool) {
        let Some(stream) = self.streams.get(slot) else { return };
        self.write_head(stream.id, status, fields, end);
    }

    fn write_head(&mut self, id: u32, status: StatusCode, fields: &HeaderMap, end: bool) {
        let (encoder, max) = (&mut self.encoder, self.client.max_payload as usize);
        block(self.output.buffer(), id, end, max, |out| {
            encoder.head(out, status, fields)
        });
    }

    /// Answers a stream that was not opened.
    pub(super) fn answer_alone(&mut self, id: u32, status: StatusCode) {
        self.write_head(id, status, &HeaderMap::new(), true);
        remember(&mut self.ended, id, super::ENDED_REMEMBERED);
    }

    /// Sends one frame of `data`, which keeps the rest. The frame ends the answer if `end` and nothing is left.
    pub fn send_data(&mut self, slot: usize, data: &mut Bytes, end: bool) -> Sent {
        let Some(stream) = self.streams.get_mut(slot) else {
            return Sent::Closed;
        };
        if !data.is_empty() {
            if stream.send_window <= 0 {
                return Sent::StreamWindowUsed;
            }
            if self.send_window <= 0 {
                return Sent::ConnectionWindowUsed;
            }
        }
        if self.output.len() >= self.config.max_output {
            return Sent::OutputFull;
        }
        let window = stream.send_window.min(self.send_window).max(0) as usize;
        let length = data.len().min(window).min(self.client.max_payload as usize);
        stream.send_window -= length as i64;
        self.send_window -= length as i64;
        self.pings.data_sent(length);
        let all = length == data.len();
        let flags = if all && end { flag::END_STREAM } else { 0 };
        frame::head(self.output.buffer(), length, kind::DATA, flags, stream.id);
        self.output.payload(data.split_to(length));
        match all {
            true => Sent::All,
            false => Sent::Some,
        }
    }

    /// Ends an answer with trailers.
    pub fn send_trailers(&mut self, slot: usize, fields: &HeaderMap) {
        let Some(stream) = self.streams.get(slot) else { return };
        let (id, encoder, max) = (stream.id, &mut self.encoder, self.client.max_payload as usize);
        block(self.output.buffer(), id, true, max, |out| encoder.trailers(out, fields));
    }

    /// Notes that the end of an answer was sent. Returns whether the stream is over. Otherwise, its request is still being
    /// read; the question is to be asked again when the slot is woken.
    pub fn finish(&mut self, slot: usize) -> bool {
        self.credit_read(slot);
        let Some(stream) = self.streams.get_mut(slot) else {
            return true;
        };
        stream.sending = false;
        if !stream.receiving {
            self.end_stream(slot);
            return true;
        }
        if stream.inbound.as_ref().is_some_and(|inbound| !inbound.is_dropped()) {
            return false;
        }
        // The answer did not need the whole request (RFC 9113, section 8.1).
        let id = stream.id;
        self.reset_stream(id, Code::NoError);
        true
    }

    /// Gives up an answer that cannot be completed.
    pub fn abort(&mut self, slot: usize) {
        let Some(stream) = self.streams.get(slot) else { return };
        let id = stream.id;
        frame::reset(self.output.buffer(), id, Code::InternalError);
        self.remember_reset(id);
        self.remove(slot, BodyError::Cancelled);
    }
}

/// Writes a header block into HEADERS and, if it is longer than `max`, CONTINUATION frames.
fn block(out: &mut Vec<u8>, id: u32, end: bool, max: usize, encode: impl FnOnce(&mut Vec<u8>)) {
    let at = out.len();
    frame::head(out, 0, kind::HEADERS, 0, id);
    let from = out.len();
    encode(out);
    let length = out.len() - from;
    let rest = match length > max {
        true => out.split_off(from + max),
        false => Vec::new(),
    };
    let end_headers = if rest.is_empty() { flag::END_HEADERS } else { 0 };
    let [_, a, b, c] = (length.min(max) as u32).to_be_bytes();
    let flags = end_headers | if end { flag::END_STREAM } else { 0 };
    out[at..at + 5].copy_from_slice(&[a, b, c, kind::HEADERS, flags]);
    let mut pieces = rest.chunks(max).peekable();
    while let Some(piece) = pieces.next() {
        let flags = if pieces.peek().is_none() { flag::END_HEADERS } else { 0 };
        frame::head(out, piece.len(), kind::CONTINUATION, flags, id);
        out.extend_from_slice(piece);
    }
}
