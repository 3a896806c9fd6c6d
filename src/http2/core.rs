//! The state machine of a connection, without IO: it takes frames, and makes events and output.

mod pings;
mod receive;
mod send;
#[cfg(test)]
mod tests;

pub(super) use send::Sent;

use super::config::Config;
use super::error::{Code, Violation};
use super::frame::{self, setting};
use super::hpack::{Decoder, Encoder};
use super::inbound::{BodyError, RequestStream};
use super::output::Output;
use super::streams::Streams;
use super::wakers::{SlotWaker, WakeSet};
use http::Request;
use pings::Pings;
use std::collections::VecDeque;
use std::sync::Arc;

/// The windows of both sides before any SETTINGS or WINDOW_UPDATE frame.
const INITIAL_WINDOW: u32 = 65_535;
/// The largest window, and the largest id of a stream.
const MAX_31: u32 = (1 << 31) - 1;
/// Streams that were reset here last, at least and at most: what was under way then is ignored. In between, as many as a
/// client may have open.
const RESETS_REMEMBERED: std::ops::RangeInclusive<u32> = 1000..=16_384;
/// Streams that ended last. Frames for them are errors that are named after the end.
const ENDED_REMEMBERED: usize = 8;
/// The longest payload that is sent, whatever the client would take.
const SENT_PAYLOAD_MAX: u32 = 64 << 10;
/// The data of the ping whose answer shows that the client knows of the end.
const LAST_PING: [u8; 8] = *b"last one";

/// What a frame means for the calls.
#[derive(Debug)]
pub(super) enum Event {
    Nothing,
    /// A call begins, in this slot.
    Request(usize, Box<Request<RequestStream>>),
    /// The stream of this slot is over. Its call must be dropped.
    Closed(usize),
    /// The stream of this slot has more window.
    Writable(usize),
    /// The connection has more window.
    ConnectionWritable,
    /// All streams have more window.
    AllWritable,
}

/// How far the end of a connection is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Open,
    /// The client was told to open no more streams. Those that are under way are served.
    Announced,
    /// Streams after this one are not served.
    After(u32),
}

/// A header block that continues in the next frame.
#[derive(Debug)]
struct Block {
    stream: u32,
    end_stream: bool,
    bytes: Vec<u8>,
    frames: u32,
}

/// What the settings of the client say.
#[derive(Debug)]
struct ClientSettings {
    initial_window: u32,
    max_payload: u32,
}

/// Counts what a client may do only so often.
#[derive(Debug, Default)]
struct Counters {
    settings: u32,
    error_resets: u32,
    unseen_resets: u32,
    empty_data: u32,
}

#[derive(Debug)]
pub(super) struct Core {
    config: Arc<Config>,
    decoder: Decoder,
    encoder: Encoder,
    streams: Streams,
    client: ClientSettings,
    /// Bytes that may be sent on all streams.
    send_window: i64,
    /// Bytes that the client may send on all streams.
    receive_window: i64,
    /// Bytes that were not given back to the client yet.
    unannounced: u32,
    /// Whether the first frame has come.
    greeted: bool,
    /// The last stream that the client opened.
    last: u32,
    block: Option<Box<Block>>,
    end: End,
    /// Why the connection was shut down.
    reason: &'static str,
    resets: VecDeque<u32>,
    ended: VecDeque<u32>,
    counters: Counters,
    pings: Pings,
    pub output: Output,
}

impl Core {
    /// A connection whose client has sent the preface.
    pub fn new(config: Arc<Config>) -> Self {
        let mut output = Output::default();
        let out = output.buffer();
        let parameters = [
            (setting::MAX_CONCURRENT_STREAMS, config.max_concurrent_streams),
            (setting::INITIAL_WINDOW_SIZE, config.stream_window),
            (setting::MAX_HEADER_LIST_SIZE, config.max_header_list),
        ];
        frame::settings(out, &parameters);
        let more = config.connection_window.saturating_sub(INITIAL_WINDOW);
        if more > 0 {
            frame::window_update(out, 0, more);
        }
        Self {
            decoder: Decoder::default(),
            encoder: Encoder::default(),
            streams: Streams::default(),
            client: ClientSettings {
                initial_window: INITIAL_WINDOW,
                max_payload: frame::PAYLOAD_MAX as u32,
            },
            send_window: INITIAL_WINDOW.into(),
            receive_window: (INITIAL_WINDOW + more).into(),
            unannounced: 0,
            greeted: false,
            last: 0,
            block: None,
            end: End::Open,
            reason: "",
            resets: VecDeque::new(),
            ended: VecDeque::new(),
            counters: Counters::default(),
            pings: Pings::default(),
            output,
            config,
        }
    }

    pub fn wakes(&self) -> &Arc<WakeSet> {
        self.streams.wakes()
    }

    /// Slots of streams, used or not.
    pub fn slots(&self) -> usize {
        self.streams.slots()
    }

    pub fn has_streams(&self) -> bool {
        !self.streams.is_empty()
    }

    /// Notes that the call of a slot is polled. What resets it from now on has made work for the server.
    pub fn seen(&mut self, slot: usize) {
        if let Some(stream) = self.streams.get_mut(slot)
            && !std::mem::replace(&mut stream.seen, true)
        {
            self.counters.unseen_resets = self.counters.unseen_resets.saturating_sub(1);
        }
    }

    /// Tells the client to open no more streams, and why.
    pub fn shut_down(&mut self, reason: &'static str) {
        if self.end == End::Open {
            self.end = End::Announced;
            // What is under way now will arrive before the answer to the ping.
            self.reason = reason;
            frame::go_away(self.output.buffer(), MAX_31, Code::NoError, reason);
            frame::ping(self.output.buffer(), 0, LAST_PING);
        }
    }

    /// Whether the connection was shut down and no stream is left.
    pub fn is_done(&self) -> bool {
        matches!(self.end, End::After(_)) && self.streams.is_empty()
    }

    /// Ends the connection. All calls must be dropped.
    pub fn fail(&mut self, violation: Violation) {
        for stream in self.streams.iter_mut() {
            if let Some(inbound) = &stream.inbound {
                inbound.fail(BodyError::ConnectionEnded);
            }
        }
        frame::go_away(self.output.buffer(), self.last, violation.code, violation.reason);
        self.end = End::After(self.last);
    }

    /// Gives bytes back to the window of the connection. The client is told when half of the window is free, or as much as
    /// half of what the client has left: bodies that wait to be read may hold more than half of the window.
    fn credit(&mut self, bytes: u32) {
        self.unannounced += bytes;
        let left = self.receive_window.max(0);
        let mark = i64::from(self.config.connection_window / 2).min(left / 2);
        if self.unannounced > 0 && i64::from(self.unannounced) >= mark {
            let more = std::mem::take(&mut self.unannounced);
            self.receive_window += i64::from(more);
            frame::window_update(self.output.buffer(), 0, more);
        }
    }

    /// Gives back what the call of a slot has read.
    pub fn credit_read(&mut self, slot: usize) {
        let Some(stream) = self.streams.get_mut(slot) else {
            return;
        };
        let Some(inbound) = &stream.inbound else { return };
        let read = inbound.take_read();
        if read == 0 {
            return;
        }
        stream.held = stream.held.saturating_sub(read);
        if stream.receiving && !inbound.is_dropped() {
            stream.unannounced += read;
            self.announce(slot);
        }
        self.credit(read);
    }

    /// Tells the client when half of the window of a stream is free.
    fn announce(&mut self, slot: usize) {
        let Some(stream) = self.streams.get_mut(slot) else {
            return;
        };
        if stream.unannounced >= self.config.stream_window / 2 {
            let more = std::mem::take(&mut stream.unannounced);
            stream.receive_window += i64::from(more);
            frame::window_update(self.output.buffer(), stream.id, more);
        }
    }

    /// Forgets a stream. A body that is not complete fails with `error`.
    fn remove(&mut self, slot: usize, error: BodyError) {
        let Some(stream) = self.streams.remove(slot) else {
            return;
        };
        if let Some(inbound) = stream.inbound {
            inbound.fail(error);
        }
        self.credit(stream.held);
    }

    /// Forgets a stream that both sides have ended.
    fn end_stream(&mut self, slot: usize) {
        if let Some(stream) = self.streams.get(slot) {
            remember(&mut self.ended, stream.id, ENDED_REMEMBERED);
        }
        self.remove(slot, BodyError::Cancelled);
    }

    /// Resets a stream, open or not.
    fn reset_stream(&mut self, id: u32, code: Code) -> Event {
        frame::reset(self.output.buffer(), id, code);
        self.remember_reset(id);
        match self.streams.slot(id) {
            Some(slot) => {
                self.remove(slot, BodyError::Malformed);
                Event::Closed(slot)
            }
            None => Event::Nothing,
        }
    }

    fn remember_reset(&mut self, id: u32) {
        let (least, most) = (*RESETS_REMEMBERED.start(), *RESETS_REMEMBERED.end());
        let max = self.config.max_concurrent_streams.clamp(least, most);
        remember(&mut self.resets, id, max as usize);
    }

    /// A stream error (RFC 9113, section 5.4.2), of which a client may make only so many.
    fn stream_error(&mut self, id: u32, code: Code) -> Result<Event, Violation> {
        self.counters.error_resets += 1;
        if self.counters.error_resets > self.config.max_error_resets {
            return Err(Violation::calm("too many errors on streams"));
        }
        Ok(self.reset_stream(id, code))
    }

    /// The waker of a slot that is in use.
    pub fn waker(&self, slot: usize) -> Arc<SlotWaker> {
        self.streams.waker(slot)
    }

    /// Whether the output has room for data.
    pub fn has_room(&self) -> bool {
        self.output.len() < self.config.max_output / 2
    }

    /// Whether the output has room for what frames of the client cause, and for the heads of answers.
    pub fn may_receive(&self) -> bool {
        self.output.len() < 2 * self.config.max_output
    }
}

/// Remembers an id among the last `max`.
fn remember(ids: &mut VecDeque<u32>, id: u32, max: usize) {
    if ids.len() >= max {
        ids.pop_front();
    }
    ids.push_back(id);
}
