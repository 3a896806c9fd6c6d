//! Pings of a client that is silent.

use crate::http2::config::Keepalive;
use crate::http2::error::Error;
use crate::util::deadline::Deadline;
use std::task::{Context, Poll};
use tokio::time::Instant;

pub(super) struct Liveness {
    keepalive: Keepalive,
    /// When something was last received.
    heard: Instant,
    /// When the unanswered ping was sent.
    pinged: Option<Instant>,
    timer: Deadline,
}

impl Liveness {
    pub fn new(keepalive: Keepalive) -> Self {
        let now = Instant::now();
        Self {
            keepalive,
            heard: now,
            pinged: None,
            timer: Deadline::new(now + keepalive.interval),
        }
    }

    /// Notes that something was received.
    pub fn heard(&mut self) {
        self.heard = Instant::now();
    }

    /// Returns true if the client should be pinged now.
    pub fn poll(&mut self, cx: &mut Context<'_>) -> Result<bool, Error> {
        let mut ping = false;
        while let Poll::Ready(()) = self.timer.poll(cx) {
            let now = Instant::now();
            let next = match self.pinged {
                Some(pinged) if self.heard < pinged => return Err(Error::PingTimeout),
                _ if self.heard + self.keepalive.interval <= now => {
                    ping = true;
                    self.pinged = Some(now);
                    now + self.keepalive.timeout
                }
                _ => {
                    self.pinged = None;
                    self.heard + self.keepalive.interval
                }
            };
            self.timer.reset(next);
        }
        Ok(ping)
    }
}
