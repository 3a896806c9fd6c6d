//! The Watch service: one task per stream, which merges the cursors of the stream's watchers.
//!
//! Responses are made when the transport asks for them, so a slow client costs no memory but its cursors. A watcher
//! that may have events puts its id into the stream's ready list, at most once; the stream takes all ready events of
//! one watcher in one message. The header revision of a message is the last revision that was delivered as a whole.

mod answer;
mod bell;
mod fragment;
mod quiet;
mod ready;
mod requests;
mod suspects;
#[cfg(test)]
mod tests;

use super::Core;
use super::admission::Caller;
use super::commit::Cause;
use super::connection::{Backlog, WatcherCount};
use super::own_body::OwnBody;
use super::status;
use crate::auth::AuthVersion;
use crate::durable::Point;
use crate::mvcc::{KeyRange, Wake, WatchUpdate, Watcher};
use crate::pb::etcdserverpb as pb;
use crate::pb::{WatchHead, WatchResponse};
use crate::util::trace::{self, Value};
use answer::WatchAnswer;
use bell::Bell;
use fragment::fragments;
use pb::watch_request::RequestUnion;
use quiet::Told;
use rand::RngExt;
use ready::{ReadyList, WatcherWake};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Range;
use std::pin::{Pin, pin};
use std::sync::{Arc, Weak};
use std::task::{Context, Poll};
use std::time::Duration;
use suspects::Suspects;
use tokio::time::{Interval, MissedTickBehavior};
use tokio_util::sync::WaitForCancellationFutureOwned;
use tonic::{Request, Response, Status, Streaming};

/// Bytes of events in one message. Small enough for clients that decode at most 4 MiB, as Rust's do; large
/// enough that catching up takes few messages.
const MESSAGE_BYTES: usize = 256 << 10;

/// Requests that a stream takes before it sends something. Clients create watchers in bursts, and the transport takes
/// an unread burst for a flood.
const REQUESTS_AT_ONCE: usize = 64;
/// Cancelled watchers whose ids are remembered.
const ENDED_MAX: usize = 10_000;
/// Answers that may wait while further requests are taken.
const ANSWERS_WAITING: usize = 256;

/// Serves `etcdserverpb.Watch`.
pub(super) struct WatchService(pub(super) Arc<Core>);

/// The state of one watch stream.
struct WatchSession {
    core: Arc<Core>,
    caller: Caller,
    inbound: Option<Streaming<pb::WatchRequest>>,
    watchers: BTreeMap<i64, Entry>,
    /// Ids of watchers that the server has cancelled. As in etcd, an id is in use until the client cancels the
    /// watcher, too.
    ended_ids: BTreeSet<i64>,
    /// Answers to requests and notices, sent before events.
    answers: VecDeque<Answer>,
    ready: Arc<ReadyList>,
    ticker: Interval,
    /// When the quiet watches are told of their progress.
    quiet: Option<Interval>,
    next_id: i64,
    /// A watcher has read a part of the log, without an event, and goes on later.
    reads_history: bool,
    /// The client asked for progress at this revision or a later one, and had no answer yet.
    progress_from: Option<i64>,
    /// The last start of a watcher that was created to begin in the future.
    last_start: i64,
    /// Watchers of a replica that may begin after everything there is.
    suspects: Suspects,
    /// The version of users and roles at which all watchers were allowed.
    allowed_at: AuthVersion,
    ended: bool,
    /// Rings when something happens that is not an event.
    bell: Bell,
    stopped: Pin<Box<WaitForCancellationFutureOwned>>,
}

/// A response that has to wait until the state on which it rests is durable.
struct Answer {
    response: WatchResponse,
    /// The point to wait for, fixed when the response was queued, so that responses that wait together wait once.
    durable_at: Option<Point>,
}

struct Entry {
    watcher: Watcher,
    /// The start revision that the client asked for; 0 means now.
    start: i64,
    wake: Arc<WatcherWake>,
    /// The user whom a certificate names, and whose permission is checked again when users or roles change.
    reader: Option<Arc<str>>,
    /// The place among the watchers of the connection.
    _place: WatcherCount,
    fragment: bool,
    progress: bool,
    /// Whether events were sent since the last progress tick.
    busy: bool,
    /// What the client knows of the progress.
    told: Told,
}

/// Why a stream that had nothing to do goes on.
enum Happened {
    /// There may be something to send.
    Woken,
    /// The time for the progress notifications that clients asked for.
    Tick,
    /// The time to look at quiet watches.
    Look,
    /// What upstream has, for watches that begin later.
    Judged(Result<i64, Status>),
    /// A request, or the end of them.
    Request(Result<Option<pb::WatchRequest>, Status>),
}

#[tonic::async_trait]
impl pb::watch_server::Watch for WatchService {
    type WatchStream = tokio_stream::Empty<Result<WatchResponse, Status>>;

    async fn watch(
        &self,
        request: Request<Streaming<pb::WatchRequest>>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let caller = Caller::of(&request);
        let session = WatchSession::new(Arc::clone(&self.0), caller, Some(request.into_inner()));
        let mut response = Response::new(tokio_stream::empty());
        response
            .extensions_mut()
            .insert(OwnBody::new(WatchAnswer::new(session)));
        Ok(response)
    }
}

/// Describes a watcher to whoever follows a write.
fn reader(caller: &Caller, watch_id: i64, range: &KeyRange) -> Vec<(&'static str, Value)> {
    let peer = caller.peer();
    let mut reader = vec![
        ("isthmus.watch", watch_id.into()),
        ("isthmus.prefix", trace::key(range.start())),
    ];
    reader.extend(peer.common_name.as_deref().map(|user| ("isthmus.user", user.into())));
    reader.extend(
        peer.address
            .map(|address| ("client.address", address.to_string().into())),
    );
    reader
}

/// Ticks about every `interval`. A random factor keeps streams that were opened together from reporting progress together.
fn ticker(interval: Duration, factor: Range<f64>) -> Interval {
    let interval = interval.mul_f64(rand::rng().random_range(factor));
    let mut ticker = tokio::time::interval_at(tokio::time::Instant::now() + interval, interval);
    ticker.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticker
}

impl WatchSession {
    fn new(core: Arc<Core>, caller: Caller, inbound: Option<Streaming<pb::WatchRequest>>) -> Self {
        let ready: Arc<ReadyList> = Arc::default();
        let backlog: Weak<dyn Backlog> = Arc::downgrade(&ready) as _;
        caller.peer().connection.add_backlog(backlog);
        Self {
            allowed_at: core.admission.auth_version(),
            ticker: ticker(core.config.watch_progress_interval, 1.0..1.1),
            quiet: quiet::looks(&core),
            stopped: Box::pin(core.stop.clone().cancelled_owned()),
            core,
            caller,
            inbound,
            watchers: BTreeMap::new(),
            ended_ids: BTreeSet::new(),
            answers: VecDeque::new(),
            ready,
            next_id: 0,
            progress_from: None,
            reads_history: false,
            last_start: 0,
            suspects: Suspects::default(),
            ended: false,
            bell: Bell::new(),
        }
    }

    /// The next message. Cancel-safe, because all state is in `self`.
    async fn next(&mut self) -> Option<Result<WatchResponse, Status>> {
        if self.ended {
            return None;
        }
        loop {
            // The transport asks for messages until it has enough for a large frame.
            tokio::task::coop::consume_budget().await;
            if self.bell.has_rung() && self.core.stop.is_cancelled() {
                // After any other code, or a clean end, a Go client would not watch again.
                return self.end(status::stopped());
            }
            self.end_forbidden();
            // Requests come before events: otherwise a flood of events would delay a cancel request for ever.
            if let Err(status) = self.take_requests() {
                return self.end(status);
            }
            if let Some(durable_at) = self.answers.front().map(|answer| answer.durable_at) {
                // The wait has no time limit: a stream outlives a disk that hangs.
                let reached = tokio::select! {
                    reached = self.core.durability.reached(durable_at) => reached,
                    () = self.core.stop.cancelled() => continue,
                };
                if let Err(status) = reached {
                    return self.end(status);
                }
                return self.answers.pop_front().map(|answer| Ok(answer.response));
            }
            if let Some(events) = self.take_ready() {
                return Some(Ok(events));
            }
            if std::mem::take(&mut self.reads_history) {
                // A watcher may have a long way to go.
                tokio::task::yield_now().await;
                continue;
            }
            if !self.answers.is_empty() || !self.ready.is_empty() {
                continue;
            }
            match self.wait().await {
                Happened::Woken => {}
                Happened::Tick => self.tick(),
                Happened::Look => self.look_at_quiet(),
                Happened::Judged(told) => self.judge_suspects(told),
                Happened::Request(request) => {
                    if let Err(status) = self.received(request) {
                        return self.end(status);
                    }
                }
            }
        }
    }

    /// Waits until there may be something to do. Cancel-safe.
    async fn wait(&mut self) -> Happened {
        // Only a stream that owes an answer waits for others to be woken: each waiting stream costs time in every
        // publication.
        let core = self.progress_from.is_some().then(|| Arc::clone(&self.core));
        let mut woken = pin!(core.as_ref().map(|core| core.woken.notified()));
        if let Some(woken) = woken.as_mut().as_pin_mut() {
            woken.enable();
        }
        if self.report_progress() {
            return Happened::Woken;
        }
        std::future::poll_fn(|cx| {
            let asked = woken.as_mut().as_pin_mut();
            if self.ready.poll(cx).is_ready() || asked.is_some_and(|woken| woken.poll(cx).is_ready()) {
                return Poll::Ready(Happened::Woken);
            }
            match self.bell.heard(cx) {
                true => {
                    let found = self.look_around();
                    self.bell.found(found)
                }
                false => Poll::Pending,
            }
        })
        .await
    }

    /// Looks at everything that happens seldom.
    fn look_around(&mut self) -> Poll<Happened> {
        let waker = self.bell.waker();
        let cx = &mut Context::from_waker(&waker);
        if self.stopped.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Happened::Woken);
        }
        if self.ticker.poll_tick(cx).is_ready() {
            return Poll::Ready(Happened::Tick);
        }
        if self.quiet.as_mut().is_some_and(|quiet| quiet.poll_tick(cx).is_ready()) {
            return Poll::Ready(Happened::Look);
        }
        if let Poll::Ready(told) = self.suspects.poll(cx) {
            return Poll::Ready(Happened::Judged(told));
        }
        self.poll_request().map(Happened::Request)
    }

    /// The next request, or the end of them.
    fn poll_request(&mut self) -> Poll<Result<Option<pb::WatchRequest>, Status>> {
        let waker = self.bell.waker();
        match &mut self.inbound {
            Some(inbound) => pin!(inbound.message()).poll(&mut Context::from_waker(&waker)),
            None => Poll::Pending,
        }
    }

    /// Takes the requests that are there.
    fn take_requests(&mut self) -> Result<(), Status> {
        if !self.bell.has_rung() {
            return Ok(());
        }
        for _ in 0..REQUESTS_AT_ONCE {
            if self.answers.len() >= ANSWERS_WAITING {
                break;
            }
            let Poll::Ready(message) = self.poll_request() else {
                break;
            };
            self.received(message)?;
        }
        Ok(())
    }

    /// Remembers that the server has cancelled a watcher.
    fn ended(&mut self, id: i64) {
        self.ended_ids.insert(id);
        if self.ended_ids.len() > ENDED_MAX {
            self.ended_ids.pop_first();
        }
    }

    fn end(&mut self, status: Status) -> Option<Result<WatchResponse, Status>> {
        self.ended = true;
        self.watchers.clear();
        Some(Err(status))
    }

    fn received(&mut self, message: Result<Option<pb::WatchRequest>, Status>) -> Result<(), Status> {
        let Some(request) = message? else {
            // The watchers of a half-closed stream continue.
            self.inbound = None;
            return Ok(());
        };
        match request.request_union {
            Some(RequestUnion::CreateRequest(create)) => self.create(create),
            Some(RequestUnion::CancelRequest(cancel)) => self.cancel(cancel.watch_id),
            Some(RequestUnion::ProgressRequest(_)) => self.ask_progress(),
            None => {}
        }
        Ok(())
    }

    /// Reports progress to the idle watchers that asked for progress notifications.
    fn tick(&mut self) {
        let mut idle = Vec::new();
        for (id, entry) in &mut self.watchers {
            let busy = std::mem::take(&mut entry.busy);
            if entry.progress
                && !busy
                && let Some(revision) = self.core.store.synced([&entry.watcher])
                && revision >= entry.start
            {
                idle.push((*id, revision));
            }
        }
        for (watch_id, revision) in idle {
            if let Some(entry) = self.watchers.get_mut(&watch_id) {
                entry.told.note(revision);
            }
            let head = WatchHead {
                watch_id,
                ..WatchHead::default()
            };
            self.answer(revision, head, Cause::Published);
        }
    }

    /// Takes a message of the next ready watcher that has events, or the first of its fragments. May queue an answer
    /// instead.
    fn take_ready(&mut self) -> Option<WatchResponse> {
        loop {
            let id = self.ready.pop()?;
            // The watcher may have been cancelled since it was woken.
            let Some(entry) = self.watchers.get_mut(&id) else {
                continue;
            };
            entry.wake.reset();
            let from = entry.watcher.position();
            match entry.watcher.take(MESSAGE_BYTES) {
                WatchUpdate::Nothing if self.quiet.is_some() => {
                    self.tell_without_events(id);
                    if !self.answers.is_empty() {
                        return None;
                    }
                }
                WatchUpdate::Nothing => {}
                WatchUpdate::Later => {
                    entry.wake.wake();
                    self.reads_history = true;
                    return None;
                }
                WatchUpdate::Events { frames, revision } => {
                    entry.busy = true;
                    entry.told.note(revision);
                    let range = &entry.watcher.filter().range;
                    self.core.config.deliveries.sent(
                        from..=revision,
                        |key| range.contains(key),
                        || reader(&self.caller, id, range),
                    );
                    let fragment = entry.fragment;
                    // The watcher may have more events than one message takes.
                    entry.wake.wake();
                    let header = Some(self.core.header(revision));
                    let head = WatchHead {
                        header,
                        watch_id: id,
                        ..WatchHead::default()
                    };
                    if !fragment {
                        return Some(WatchResponse { head, events: frames });
                    }
                    let mut parts = fragments(head, frames, self.core.message_limit()).into_iter();
                    let first = parts.next();
                    self.answers.extend(parts.map(|response| Answer {
                        response,
                        durable_at: None,
                    }));
                    return first;
                }
                WatchUpdate::Compacted(compact_revision) => {
                    self.watchers.remove(&id);
                    self.ended(id);
                    if self.watchers.is_empty() {
                        // The answer would be about revisions that another state may have replaced.
                        self.progress_from = None;
                    }
                    let head = WatchHead {
                        watch_id: id,
                        canceled: true,
                        compact_revision,
                        ..WatchHead::default()
                    };
                    // As in etcd, the header has no revision.
                    self.answer(0, head, Cause::EveryChange);
                    return None;
                }
            }
        }
    }
}
