//! The answer to a ping that waits for something to go with (`http2/core/pings.rs`).

use crate::http2::core::Core;
use std::pin::Pin;
use std::task::Context;
use std::time::Duration;
use tokio::time::{Instant, Sleep};

#[derive(Default)]
pub(super) struct LateAnswer {
    /// When the answer goes alone, if one waits.
    due: Option<Instant>,
    /// Made for the first answer that waits, and moved on for each further one, which costs less than a new one.
    timer: Option<Pin<Box<Sleep>>>,
}

impl LateAnswer {
    /// Appends the answer that waits to the output, if there is output or the time is over.
    pub fn poll(&mut self, core: &mut Core, cx: &mut Context<'_>) {
        if !core.has_late_answer() {
            self.due = None;
            return;
        }
        let delay = core.ping_answer_delay();
        if core.output.is_empty() {
            if !self.is_over(delay, cx) {
                return;
            }
            core.answer_overdue();
        } else {
            if let Some(timer) = &mut self.timer {
                // To move on a timer that has not fired takes no lock, and one that fires wakes the connection for nothing.
                timer.as_mut().reset(Instant::now() + delay);
            }
            core.answer_late();
        }
        self.due = None;
    }

    fn is_over(&mut self, delay: Duration, cx: &mut Context<'_>) -> bool {
        let begins = self.due.is_none();
        let due = *self.due.get_or_insert_with(|| Instant::now() + delay);
        let timer = self
            .timer
            .get_or_insert_with(|| Box::pin(tokio::time::sleep_until(due)));
        if begins {
            timer.as_mut().reset(due);
        }
        timer.as_mut().poll(cx).is_ready()
    }
}
