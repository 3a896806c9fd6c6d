//! A time that a task looks at in each of its turns, most of which come long before.

use std::pin::Pin;
use std::task::{Context, Poll, Waker};
use tokio::time::{Instant, Sleep};

/// A timer that is asked again only when its time has come, once it knows which task to wake. A poll of tokio's timer costs a
/// few cold cache lines, which each turn of a connection would pay.
#[derive(Debug)]
pub struct Deadline {
    at: Instant,
    sleep: Pin<Box<Sleep>>,
    /// The task that the timer wakes.
    task: Option<Waker>,
}

impl Deadline {
    pub fn new(at: Instant) -> Self {
        Self {
            at,
            sleep: Box::pin(tokio::time::sleep_until(at)),
            task: None,
        }
    }

    /// Moves the time.
    pub fn reset(&mut self, at: Instant) {
        self.at = at;
        self.task = None;
        self.sleep.as_mut().reset(at);
    }

    /// Ready once the time has come. Until then the task is woken at that time.
    pub fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let wakes = self.task.as_ref().is_some_and(|task| task.will_wake(cx.waker()));
        if wakes && Instant::now() < self.at {
            return Poll::Pending;
        }
        // With its budget used up, a task would be told to come again, and the timer would know of no task.
        let polled = std::pin::pin!(tokio::task::unconstrained(self.sleep.as_mut())).poll(cx);
        self.task = polled.is_pending().then(|| cx.waker().clone());
        polled
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::task::noop_waker_ref;
    use std::future::poll_fn;
    use std::time::Duration;

    const STEP: Duration = Duration::from_secs(1);

    #[tokio::test(start_paused = true)]
    async fn the_task_is_woken_at_the_time_however_often_that_moves_and_whoever_asked_before() {
        let begun = Instant::now();
        let mut deadline = Deadline::new(begun + 5 * STEP);
        let mut other = Context::from_waker(noop_waker_ref());
        assert!(deadline.poll(&mut other).is_pending());
        assert!(deadline.poll(&mut other).is_pending());
        poll_fn(|cx| deadline.poll(cx)).await;
        assert_eq!(begun.elapsed().as_secs(), 5);
        deadline.reset(begun + 9 * STEP);
        assert!(poll_fn(|cx| Poll::Ready(deadline.poll(cx))).await.is_pending());
        deadline.reset(begun + 7 * STEP);
        poll_fn(|cx| deadline.poll(cx)).await;
        assert_eq!(begun.elapsed().as_secs(), 7);
    }

    #[tokio::test(start_paused = true)]
    async fn a_task_without_budget_is_woken_all_the_same() {
        let mut deadline = Deadline::new(Instant::now() + STEP);
        let mut spent = false;
        let woken = poll_fn(|cx| {
            while !spent {
                match tokio::task::coop::poll_proceed(cx) {
                    Poll::Ready(budget) => budget.made_progress(),
                    Poll::Pending => spent = true,
                }
            }
            deadline.poll(cx)
        });
        tokio::time::timeout(2 * STEP, woken).await.unwrap();
    }
}
