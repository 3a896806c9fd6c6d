//! PING frames of both sides (RFC 9113, section 6.7).
//!
//! Clients of gRPC measure their bandwidth: they answer data with a ping, and read on until its answer comes. Where an event
//! is all that is sent, this ping and its answer cost the server as much as the event. So an answer may wait for the next
//! output of the connection, as TCP delays its acknowledgements. The answer goes after the data, which then belong to the
//! measurement that ends, so that they cause no ping of their own.

use super::{Core, End, Event, LAST_PING};
use crate::http2::error::{Code, Violation};
use crate::http2::frame::{self, Head, flag};
use std::time::Duration;

/// Data after which an answer does not wait. A client enlarges its windows when it receives two thirds of a window, which
/// has 64 KiB at first, between a ping and its answer; it must learn at once how fast so much was.
const SMALL: usize = 32 << 10;
/// Pings that are answered at once after an answer has waited in vain: events come too seldom, and an answer of its own after the
/// wait costs more than one before.
const AT_ONCE: u8 = 15;
const KEEPALIVE_PING: [u8; 8] = *b"isthere?";

#[derive(Debug, Default)]
pub(super) struct Pings {
    /// The data of a ping whose answer waits.
    unanswered: Option<[u8; 8]>,
    /// Bytes of data since the last ping of the client, at most `SMALL` + 1.
    data: usize,
    /// Further pings whose answers do not wait.
    at_once: u8,
}

impl Pings {
    /// Notes that data were sent.
    pub fn data_sent(&mut self, bytes: usize) {
        self.data = (self.data + bytes).min(SMALL + 1);
    }
}

impl Core {
    /// Asks the client whether it lives.
    pub fn ping(&mut self) {
        frame::ping(self.output.buffer(), 0, KEEPALIVE_PING);
    }

    /// Whether the answer to a ping waits for the next output.
    pub fn has_late_answer(&self) -> bool {
        self.pings.unanswered.is_some()
    }

    /// The longest time for which an answer waits.
    pub fn ping_answer_delay(&self) -> Duration {
        self.config.ping_answer_delay
    }

    /// Answers the ping whose answer waits.
    pub fn answer_late(&mut self) {
        if let Some(data) = self.pings.unanswered.take() {
            frame::ping(self.output.buffer(), flag::ACK, data);
        }
    }

    /// Answers the ping whose answer has waited in vain.
    pub fn answer_overdue(&mut self) {
        self.pings.at_once = AT_ONCE;
        self.answer_late();
    }

    pub(super) fn pinged(&mut self, head: Head, payload: &[u8]) -> Result<Event, Violation> {
        let Ok(data) = <[u8; 8]>::try_from(payload) else {
            return Err(Violation::frame_size("PING of a wrong length"));
        };
        if head.stream != 0 {
            return Err(Violation::protocol("PING of a stream"));
        }
        if !head.has(flag::ACK) {
            self.answer(data);
        } else if data == LAST_PING && self.end == End::Announced {
            self.end = End::After(self.last);
            frame::go_away(self.output.buffer(), self.last, Code::NoError, self.reason);
        }
        Ok(Event::Nothing)
    }

    /// Answers a ping, or lets the answer wait. Only one waits: who pings again wants to know something now.
    fn answer(&mut self, ping: [u8; 8]) {
        let data = std::mem::take(&mut self.pings.data);
        let waits = self.has_late_answer();
        self.answer_late();
        let may_wait = (1..=SMALL).contains(&data) && !waits && self.end == End::Open;
        match may_wait && !self.config.ping_answer_delay.is_zero() && self.pings.at_once == 0 {
            true => self.pings.unanswered = Some(ping),
            false => {
                self.pings.at_once = self.pings.at_once.saturating_sub(1);
                frame::ping(self.output.buffer(), flag::ACK, ping);
            }
        }
    }
}
