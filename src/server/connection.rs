//! What one connection holds: its calls, the bytes of its requests and answers, its watchers.

use super::budgets::Budgets;
use super::farewell::Farewell;
use futures::task::AtomicWaker;
use parking_lot::Mutex;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::task::{Context, Poll, Waker};
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio::time::Instant;

/// Request bytes are counted in units of this size.
pub(super) const UNIT: usize = 1024;

/// Open calls of a connection until a call was admitted. A client that begins with a burst has its first call admitted
/// before the burst is read.
const STRANGER_CALLS: usize = 100;

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
    pub(super) logins_waiting: Arc<AtomicUsize>,
    /// Permits a few pages, range streams and answers of the JSON gateway at a time, whose parts are made as a whole.
    pub(super) documents: Arc<Semaphore>,
    /// Request bodies that wait for the budget.
    pub(super) requests_waiting: AtomicUsize,
    watchers: AtomicUsize,
    backlogs: Mutex<Vec<Weak<dyn Backlog>>>,
    activity: Mutex<Activity>,
    end: Ending,
}

/// Events of a watch stream that are ready to be sent.
pub(super) trait Backlog: std::fmt::Debug + Send + Sync {
    /// How long the oldest of them have waited.
    fn waits(&self) -> Duration;
}

/// When a connection should end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    Never,
    /// After its present calls, however long they take; calls that never end by themselves are ended.
    Gently,
    /// After its present calls, or a few seconds.
    Soon,
    Now,
}

/// The end that the server wants for a connection, and why. Ten thousands of connections look at it whenever they are woken,
/// so looking at it takes no lock.
#[derive(Debug, Default)]
struct Ending {
    /// The [`End`] in the upper half, the [`Farewell`] in the lower one.
    end: AtomicU8,
    task: AtomicWaker,
}

impl Ending {
    /// An end that was wanted before stays, unless this one is earlier.
    fn want(&self, end: End, why: Farewell) {
        self.end.fetch_max((end as u8) << 4 | why as u8, Ordering::AcqRel);
        self.task.wake();
    }

    fn why(&self) -> Farewell {
        let number = self.end.load(Ordering::Acquire) & 0xf;
        Farewell::ALL
            .get(usize::from(number))
            .copied()
            .unwrap_or(Farewell::Stop)
    }

    fn wanted(&self) -> End {
        match self.end.load(Ordering::Acquire) >> 4 {
            0 => End::Never,
            1 => End::Gently,
            2 => End::Soon,
            _ => End::Now,
        }
    }
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
    /// Bytes of answers and events, for which others wait.
    held: usize,
    /// Bytes of long answers, which have a budget of their own.
    long: usize,
    /// When the client last took something, or had nothing to take.
    progress: Instant,
    /// When the present period of [`SLOW_AFTER`] began, and the bytes that were taken since.
    period: Instant,
    taken: usize,
    /// Bytes that were taken since the connection was made.
    sent: u64,
    slow: bool,
    waiting: VecDeque<Waker>,
}

/// Whether an answer has a budget of its own, so that others of its connection do not wait for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Length {
    Usual,
    Long,
}

/// How a client takes its answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stalled {
    /// Bytes that the client has not taken.
    pub(super) held: usize,
    /// For how long the client has taken nothing.
    pub(super) since: Duration,
    /// Whether the client took less than [`SLOW_BYTES`] in the last period.
    pub(super) slow: bool,
}

/// The period over which the pace of a client is measured.
pub(super) const SLOW_AFTER: Duration = Duration::from_secs(15);
/// A client that takes fewer bytes in a period is slow: 17 KiB/s.
const SLOW_BYTES: usize = 256 << 10;

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
        /// Whether a call was ever admitted.
        admitted: bool,
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
            logins_waiting: Arc::default(),
            documents: Arc::new(Semaphore::new(4)),
            requests_waiting: AtomicUsize::new(0),
            watchers: AtomicUsize::new(0),
            backlogs: Mutex::default(),
            activity: Mutex::new(Activity {
                calls: 0,
                called: false,
                admitted: false,
                since: Instant::now(),
            }),
            end: Ending::default(),
        }
    }

    /// Notes the beginning of a call, which lasts until the result is dropped.
    pub(super) fn begin_call(self: &Arc<Self>) -> OpenCall {
        let mut activity = self.activity.lock();
        activity.calls += 1;
        activity.called = true;
        OpenCall(Arc::clone(self))
    }

    /// Whether the client, of whom no call was admitted yet, has more open calls than a stranger may have.
    pub(super) fn is_crowded(&self) -> bool {
        let activity = self.activity.lock();
        !activity.admitted && activity.calls > STRANGER_CALLS
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
                admitted: activity.admitted,
            },
        }
    }

    /// Asks the client to go on with another connection. This one ends with its present calls.
    pub(super) fn leave(&self, why: Farewell) {
        self.end.want(End::Gently, why);
    }

    /// Whether the client was told, or is about to be told, to go on with another connection.
    pub(super) fn is_ending(&self) -> bool {
        self.end.wanted() != End::Never
    }

    /// Whether the client is asked to go on with another connection, and nothing worse.
    pub(super) fn is_moving(&self) -> bool {
        self.end.wanted() == End::Gently
    }

    /// Ends the connection after its present calls.
    pub(super) fn close(&self, why: Farewell) {
        self.end.want(End::Soon, why);
    }

    /// Ends the connection at once.
    pub(super) fn kill(&self, why: Farewell) {
        self.end.want(End::Now, why);
    }

    /// What the client is told at the end that the server wants.
    pub(super) fn farewell(&self) -> Farewell {
        self.end.why()
    }

    pub(super) fn is_killed(&self) -> bool {
        self.end.wanted() == End::Now
    }

    /// When the connection should end. Its task is woken when that changes.
    pub(super) fn poll_end(&self, cx: &mut Context<'_>) -> End {
        self.end.task.register(cx.waker());
        self.end.wanted()
    }

    pub(super) fn watchers(&self) -> usize {
        self.watchers.load(Ordering::Relaxed)
    }

    /// Adds the events of a watch stream.
    pub(super) fn add_backlog(&self, backlog: Weak<dyn Backlog>) {
        let mut backlogs = self.backlogs.lock();
        backlogs.retain(|backlog| backlog.strong_count() > 0);
        backlogs.push(backlog);
    }

    /// How long the oldest events that are ready have waited.
    pub(super) fn backlog(&self) -> Duration {
        let backlogs = self.backlogs.lock();
        let waits = backlogs.iter().filter_map(Weak::upgrade).map(|backlog| backlog.waits());
        waits.max().unwrap_or_default()
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
                long: 0,
                progress: Instant::now(),
                period: Instant::now(),
                taken: 0,
                sent: 0,
                slow: false,
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
    pub(super) fn hold(&self, bytes: usize, length: Length) {
        let mut state = self.state.lock();
        if state.held + state.long == 0 {
            let now = Instant::now();
            (state.progress, state.period, state.taken, state.slow) = (now, now, 0, false);
        }
        match length {
            Length::Usual => state.held += bytes,
            Length::Long => state.long += bytes,
        }
    }

    /// Notes that the client has taken `bytes`: they are in the socket, or the call has ended.
    pub(super) fn release(&self, bytes: usize, length: Length) {
        let woken = {
            let mut state = self.state.lock();
            match length {
                Length::Usual => state.held -= bytes,
                Length::Long => state.long -= bytes,
            }
            state.taken += bytes;
            state.sent += bytes as u64;
            state.progress = Instant::now();
            match state.held < self.budget {
                true => std::mem::take(&mut state.waiting),
                false => VecDeque::new(),
            }
        };
        woken.into_iter().for_each(Waker::wake);
    }

    /// Bytes that the client has taken since the connection was made.
    pub(super) fn sent(&self) -> u64 {
        self.state.lock().sent
    }

    /// Bytes that the client has not taken.
    pub(super) fn held(&self) -> usize {
        let state = self.state.lock();
        state.held + state.long
    }

    /// How the client takes its answers. To be asked often.
    pub(super) fn stalled(&self) -> Stalled {
        let mut state = self.state.lock();
        let held = state.held + state.long;
        if held == 0 {
            return Stalled {
                held,
                since: Duration::ZERO,
                slow: false,
            };
        }
        if state.period.elapsed() >= SLOW_AFTER {
            state.slow = state.taken < SLOW_BYTES;
            (state.period, state.taken) = (Instant::now(), 0);
        }
        Stalled {
            held,
            since: state.progress.elapsed(),
            slow: state.slow,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug)]
    struct Waits(Duration);

    impl Backlog for Waits {
        fn waits(&self) -> Duration {
            self.0
        }
    }

    #[test]
    fn a_connection_lags_as_its_slowest_live_stream_and_counts_what_was_taken() {
        let connection = Connection::default();
        let streams = [1, 7, 3].map(|secs| Arc::new(Waits(Duration::from_secs(secs))));
        for stream in &streams {
            let stream: Weak<dyn Backlog> = Arc::downgrade(stream) as _;
            connection.add_backlog(stream);
        }
        assert_eq!(connection.backlog(), Duration::from_secs(7));
        drop(streams);
        assert_eq!(connection.backlog(), Duration::ZERO);
        connection.answers.hold(100, Length::Usual);
        assert_eq!((connection.answers.held(), connection.answers.sent()), (100, 0));
        connection.answers.release(60, Length::Usual);
        assert_eq!((connection.answers.held(), connection.answers.sent()), (40, 60));
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_is_idle_between_its_calls() {
        let connection = Arc::new(Connection::default());
        let made = Instant::now();
        let idle = |since, called, admitted| Idle::Since {
            since,
            called,
            admitted,
        };
        assert_eq!(connection.idle(), idle(made, false, false));
        let call = connection.begin_call();
        assert_eq!(
            connection.idle(),
            idle(made, true, false),
            "a call that nobody admitted"
        );
        connection.admitted();
        assert_eq!(connection.idle(), Idle::Busy);
        tokio::time::advance(Duration::from_secs(5)).await;
        drop(call);
        assert_eq!(connection.idle(), idle(made + Duration::from_secs(5), true, true));
    }

    #[tokio::test]
    async fn the_earlier_end_of_a_connection_counts() {
        let connection = Connection::default();
        let end = || std::future::poll_fn(|cx| Poll::Ready(connection.poll_end(cx)));
        assert_eq!((end().await, connection.is_ending()), (End::Never, false));
        connection.leave(Farewell::Age);
        assert_eq!((end().await, connection.is_ending()), (End::Gently, true));
        assert_eq!(connection.farewell(), Farewell::Age);
        connection.close(Farewell::Stop);
        connection.leave(Farewell::Age);
        assert_eq!((end().await, connection.farewell()), (End::Soon, Farewell::Stop));
        connection.kill(Farewell::Share);
        connection.close(Farewell::UnknownUser);
        assert_eq!((end().await, connection.is_killed()), (End::Now, true));
        assert_eq!(connection.farewell(), Farewell::Share);
    }

    #[tokio::test(start_paused = true)]
    async fn answers_wait_until_the_client_has_taken_former_answers() {
        let meter = AnswerMeter::new(10);
        let room = || std::future::poll_fn(|cx| meter.poll_room(cx));
        room().await;
        meter.hold(7, Length::Long);
        room().await;
        meter.hold(25, Length::Usual);
        assert!(futures::poll!(std::pin::pin!(room())).is_pending());
        tokio::time::advance(Duration::from_secs(3)).await;
        let stalled = |held, secs| Stalled {
            held,
            since: Duration::from_secs(secs),
            slow: false,
        };
        assert_eq!(meter.stalled(), stalled(32, 3));
        let waits = room();
        tokio::join!(waits, async { meter.release(20, Length::Usual) });
        assert_eq!(meter.stalled(), stalled(12, 0));
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
