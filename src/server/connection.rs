//! What one connection holds: its calls, the bytes of its requests and answers, its watchers.

use super::budgets::Budgets;
use parking_lot::Mutex;
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// Request bytes are counted in units of this size.
pub(super) const UNIT: usize = 1024;

/// The state of one connection.
#[derive(Debug)]
pub(super) struct Connection {
    /// Bytes of requests, in units of [`UNIT`].
    pub(super) requests: Arc<Semaphore>,
    pub(super) request_units: u32,
    pub(super) answers: AnswerMeter,
    /// Permits one read of many keys at a time.
    pub(super) turn: Arc<Semaphore>,
    /// Permits one long read at a time, until the client has taken the answer.
    pub(super) long_read: Arc<Semaphore>,
    /// Permits one password check at a time.
    pub(super) login: Arc<Semaphore>,
    pub(super) logins_waiting: AtomicUsize,
    watchers: AtomicUsize,
    activity: Mutex<Activity>,
    /// Cancelled when the connection should end after its present calls.
    close: CancellationToken,
    /// Cancelled when the connection should end at once.
    kill: CancellationToken,
}

#[derive(Debug)]
struct Activity {
    calls: usize,
    called: bool,
    /// Whether a call was admitted. Before that, open calls do not make a connection busy.
    admitted: bool,
    /// When the last call ended, or when the connection was made.
    since: Instant,
}

/// Counts the answer bytes of a connection that its client has not taken yet. A body that wants to produce more waits
/// while the budget is used up.
#[derive(Debug)]
pub(super) struct AnswerMeter {
    budget: usize,
    state: Mutex<Answers>,
}

#[derive(Debug)]
struct Answers {
    held: usize,
    /// When the client last took something while bytes were held.
    progress: Instant,
    waiting: VecDeque<Waker>,
}

/// How an idle connection stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Idle {
    /// Calls are open.
    Busy,
    /// There has been no call since this time.
    Since {
        since: Instant,
        /// Whether there ever was a call.
        called: bool,
    },
}

/// An open call of a connection.
#[derive(Debug)]
pub(super) struct OpenCall(Arc<Connection>);

/// Counts a watcher of a connection until it is dropped.
pub(super) struct WatcherCount(Arc<Connection>);

impl Drop for WatcherCount {
    fn drop(&mut self) {
        self.0.watchers.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Default for Connection {
    fn default() -> Self {
        Self::new(&Budgets::default())
    }
}

impl Connection {
    pub(super) fn new(budgets: &Budgets) -> Self {
        let units = (budgets.request_bytes / UNIT).max(1);
        Self {
            requests: Arc::new(Semaphore::new(units)),
            request_units: u32::try_from(units).unwrap_or(u32::MAX),
            answers: AnswerMeter::new(budgets.answer_bytes),
            turn: Arc::new(Semaphore::new(1)),
            long_read: Arc::new(Semaphore::new(1)),
            login: Arc::new(Semaphore::new(1)),
            logins_waiting: AtomicUsize::new(0),
            watchers: AtomicUsize::new(0),
            activity: Mutex::new(Activity {
                calls: 0,
                called: false,
                admitted: false,
                since: Instant::now(),
            }),
            close: CancellationToken::new(),
            kill: CancellationToken::new(),
        }
    }

    /// Notes the beginning of a call, which lasts until the result is dropped.
    pub(super) fn begin_call(self: &Arc<Self>) -> OpenCall {
        let mut activity = self.activity.lock();
        activity.calls += 1;
        activity.called = true;
        OpenCall(Arc::clone(self))
    }

    /// Notes that a call was admitted.
    pub(super) fn admitted(&self) {
        self.activity.lock().admitted = true;
    }

    pub(super) fn idle(&self) -> Idle {
        let activity = self.activity.lock();
        match activity.calls > 0 && activity.admitted {
            true => Idle::Busy,
            false => Idle::Since {
                since: activity.since,
                called: activity.called,
            },
        }
    }

    /// Ends the connection after its present calls.
    pub(super) fn close(&self) {
        self.close.cancel();
    }

    /// Ends the connection at once.
    pub(super) fn kill(&self) {
        self.kill.cancel();
    }

    pub(super) fn is_killed(&self) -> bool {
        self.kill.is_cancelled()
    }

    pub(super) async fn closing(&self) {
        self.close.cancelled().await;
    }

    pub(super) async fn killed(&self) {
        self.kill.cancelled().await;
    }

    /// Counts one more watcher; `None` if the connection has `max` already.
    pub(super) fn add_watcher(self: &Arc<Self>, max: usize) -> Option<WatcherCount> {
        let fits = |n: usize| (n < max).then_some(n + 1);
        let counted = self.watchers.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits);
        counted.ok().map(|_| WatcherCount(Arc::clone(self)))
    }
}

impl OpenCall {
    pub(super) fn connection(&self) -> &Arc<Connection> {
        &self.0
    }
}

impl Drop for OpenCall {
    fn drop(&mut self) {
        let mut activity = self.0.activity.lock();
        activity.calls -= 1;
        if activity.calls == 0 {
            activity.since = Instant::now();
        }
    }
}

// === impl AnswerMeter ===

impl AnswerMeter {
    fn new(budget: usize) -> Self {
        Self {
            budget,
            state: Mutex::new(Answers {
                held: 0,
                progress: Instant::now(),
                waiting: VecDeque::new(),
            }),
        }
    }

    /// Ready when another answer may be produced.
    pub(super) fn poll_room(&self, cx: &mut Context<'_>) -> Poll<()> {
        let mut state = self.state.lock();
        if state.held < self.budget {
            return Poll::Ready(());
        }
        state.waiting.push_back(cx.waker().clone());
        Poll::Pending
    }

    /// Notes that the transport holds `bytes` more.
    pub(super) fn hold(&self, bytes: usize) {
        let mut state = self.state.lock();
        if state.held == 0 {
            state.progress = Instant::now();
        }
        state.held += bytes;
    }

    /// Notes that the client has taken `bytes`.
    pub(super) fn release(&self, bytes: usize) {
        let woken = {
            let mut state = self.state.lock();
            state.held -= bytes;
            state.progress = Instant::now();
            match state.held < self.budget {
                true => std::mem::take(&mut state.waiting),
                false => VecDeque::new(),
            }
        };
        woken.into_iter().for_each(Waker::wake);
    }

    /// The bytes held, and for how long the client has taken nothing of them.
    pub(super) fn stalled(&self) -> (usize, Duration) {
        let state = self.state.lock();
        match state.held {
            0 => (0, Duration::ZERO),
            held => (held, state.progress.elapsed()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_connection_is_idle_between_its_calls() {
        let connection = Arc::new(Connection::default());
        let made = Instant::now();
        let idle = |since, called| Idle::Since { since, called };
        assert_eq!(connection.idle(), idle(made, false));
        let call = connection.begin_call();
        assert_eq!(connection.idle(), idle(made, true), "a call that nobody admitted");
        connection.admitted();
        assert_eq!(connection.idle(), Idle::Busy);
        tokio::time::advance(Duration::from_secs(5)).await;
        drop(call);
        assert_eq!(connection.idle(), idle(made + Duration::from_secs(5), true));
    }

    #[tokio::test(start_paused = true)]
    async fn answers_wait_until_the_client_has_taken_former_answers() {
        let meter = AnswerMeter::new(10);
        let room = || std::future::poll_fn(|cx| meter.poll_room(cx));
        room().await;
        meter.hold(25);
        assert!(futures::poll!(std::pin::pin!(room())).is_pending());
        tokio::time::advance(Duration::from_secs(3)).await;
        assert_eq!(meter.stalled(), (25, Duration::from_secs(3)));
        let waits = room();
        tokio::join!(waits, async { meter.release(20) });
        assert_eq!(meter.stalled(), (5, Duration::ZERO));
    }

    #[tokio::test]
    async fn watchers_of_a_connection_are_bounded() {
        let connection = Arc::new(Connection::default());
        let first = connection.add_watcher(1);
        assert!(first.is_some() && connection.add_watcher(1).is_none());
        drop(first);
        assert!(connection.add_watcher(1).is_some());
    }
}
