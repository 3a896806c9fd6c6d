//! The Watch service: one task per stream, which merges the cursors of its watchers.
//!
//! The response stream is produced as the transport asks for it, so a slow client holds nothing but its
//! cursors. A watcher that has news puts its id in the stream's ready list, once; the stream takes all
//! that is ready of one watcher in one message. Header revision = the last revision wholly delivered.

use super::{Core, status};
use crate::mvcc::{KeyRange, Wake, WatchFilter, WatchUpdate, Watcher, take_varint};
use crate::pb::etcdserverpb as pb;
use crate::pb::{WatchHead, WatchResponse};
use crate::server::peer::Peer;
use bytes::Bytes;
use futures::FutureExt;
use parking_lot::Mutex;
use pb::watch_request::RequestUnion;
use rand::RngExt;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use tokio::sync::Notify;
use tokio::time::{Interval, MissedTickBehavior};
use tokio_stream::Stream;
use tonic::metadata::MetadataMap;
use tonic::{Request, Response, Status, Streaming};

/// Bytes of events taken from one watcher for one message. Small enough for clients that decode at most
/// 4 MiB (Rust's), large enough that catching up is not chatty.
const MESSAGE_BYTES: usize = 1 << 20;

/// Serves `etcdserverpb.Watch`.
pub(super) struct WatchService(pub(super) Arc<Core>);

struct Session {
    core: Arc<Core>,
    metadata: MetadataMap,
    peer: Peer,
    inbound: Option<Streaming<pb::WatchRequest>>,
    watchers: BTreeMap<i64, Entry>,
    /// Ids of watchers that a compaction ended. Parity: they are in use until the client cancels them.
    ended_ids: BTreeSet<i64>,
    /// Answers to requests, sent before events.
    answers: VecDeque<WatchResponse>,
    ready: Arc<ReadyList>,
    ticker: Interval,
    next_id: i64,
    /// The version of users and roles at which all watchers were allowed.
    allowed_at: (bool, u64),
    ended: bool,
}

struct Entry {
    watcher: Watcher,
    /// As asked for: 0 is now.
    start: i64,
    wake: Arc<WatcherWake>,
    /// A certificate's user, and what it must be allowed to read.
    reader: Option<(Arc<str>, KeyRange)>,
    fragment: bool,
    progress: bool,
    /// Whether events went out since the last tick.
    busy: bool,
}

#[derive(Default)]
struct ReadyList {
    ids: Mutex<VecDeque<i64>>,
    notify: Notify,
}

struct WatcherWake {
    id: i64,
    queued: AtomicBool,
    list: Arc<ReadyList>,
}

impl Wake for WatcherWake {
    fn wake(&self) {
        if !self.queued.swap(true, Ordering::AcqRel) {
            self.list.ids.lock().push_back(self.id);
            self.list.notify.notify_one();
        }
    }
}

#[tonic::async_trait]
impl pb::watch_server::Watch for WatchService {
    type WatchStream = Pin<Box<dyn Stream<Item = Result<WatchResponse, Status>> + Send>>;

    async fn watch(
        &self,
        request: Request<Streaming<pb::WatchRequest>>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let core = Arc::clone(&self.0);
        // Streams opened together should not all report progress together.
        let interval = core.config.watch_progress_interval;
        let interval = interval.mul_f64(rand::rng().random_range(1.0..1.1));
        let mut ticker = tokio::time::interval_at(tokio::time::Instant::now() + interval, interval);
        ticker.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let session = Session {
            allowed_at: core.auth.version(),
            core,
            metadata: request.metadata().clone(),
            peer: Peer::of(&request),
            inbound: Some(request.into_inner()),
            watchers: BTreeMap::new(),
            ended_ids: BTreeSet::new(),
            answers: VecDeque::new(),
            ready: Arc::default(),
            ticker,
            next_id: 0,
            ended: false,
        };
        let stream = futures::stream::unfold(session, |mut session| async move {
            let item = session.next().await?;
            Some((item, session))
        });
        Ok(Response::new(Box::pin(stream)))
    }
}

impl Session {
    /// The next message; cancel-safe, since all state is in `self`.
    async fn next(&mut self) -> Option<Result<WatchResponse, Status>> {
        if self.ended {
            return None;
        }
        loop {
            if self.core.stop.is_cancelled() {
                // Any other code, and a clean end too, makes a Go client close its watches for good.
                return self.end(status::stopped());
            }
            self.end_forbidden();
            // Requests go first, or a flood of events would keep a cancel waiting for ever.
            if let Some(inbound) = &mut self.inbound
                && let Some(message) = inbound.message().now_or_never()
                && let Err(status) = self.received(message)
            {
                return self.end(status);
            }
            if let Some(answer) = self.answers.pop_front() {
                return Some(Ok(answer));
            }
            if let Some(events) = self.take_ready() {
                return Some(Ok(events));
            }
            if !self.answers.is_empty() || !self.ready.ids.lock().is_empty() {
                continue;
            }
            let inbound = async {
                match &mut self.inbound {
                    Some(inbound) => inbound.message().await,
                    None => std::future::pending().await,
                }
            };
            let message = tokio::select! {
                () = self.core.stop.cancelled() => continue,
                () = self.ready.notify.notified() => continue,
                _ = self.ticker.tick() => None,
                message = inbound => Some(message),
            };
            match message {
                None => self.tick(),
                Some(message) => {
                    if let Err(status) = self.received(message) {
                        return self.end(status);
                    }
                }
            }
        }
    }

    fn end(&mut self, status: Status) -> Option<Result<WatchResponse, Status>> {
        self.ended = true;
        self.watchers.clear();
        Some(Err(status))
    }

    fn received(&mut self, message: Result<Option<pb::WatchRequest>, Status>) -> Result<(), Status> {
        let Some(request) = message? else {
            // A half-closed stream goes on watching.
            self.inbound = None;
            return Ok(());
        };
        match request.request_union {
            Some(RequestUnion::CreateRequest(create)) => self.create(create),
            Some(RequestUnion::CancelRequest(cancel)) => self.cancel(cancel.watch_id),
            Some(RequestUnion::ProgressRequest(_)) => self.progress(),
            None => {}
        }
        Ok(())
    }

    fn answer(&mut self, revision: i64, head: WatchHead) {
        let header = Some(self.core.header(revision));
        self.answers.push_back(WatchResponse {
            head: WatchHead { header, ..head },
            events: vec![],
        });
    }

    fn create(&mut self, request: pb::WatchCreateRequest) {
        // Parity: no key is the smallest key. Permission is asked for the range as the client means it.
        let key = if request.key.is_empty() {
            Bytes::from_static(&[0])
        } else {
            request.key
        };
        let range = KeyRange::new(key, request.range_end);
        let id = request.watch_id;
        let refused = if request.start_revision < 0 {
            Some(status::compacted().message().to_owned())
        } else if let Err(denied) = self.may_read(&range) {
            Some(status::rendered(&denied))
        } else if range.is_empty() {
            Some("mvcc: watcher range is empty".to_owned())
        } else if id != 0 && self.is_used(id) {
            Some("mvcc: duplicate watch ID provided on the WatchStream".to_owned())
        } else {
            None
        };
        if let Some(cancel_reason) = refused {
            let head = WatchHead {
                watch_id: -1,
                created: true,
                canceled: true,
                cancel_reason,
                ..WatchHead::default()
            };
            return self.answer(self.core.store.revision(), head);
        }
        let id = if id == 0 { self.free_id() } else { id };
        let wake = Arc::new(WatcherWake {
            id,
            queued: AtomicBool::new(false),
            list: Arc::clone(&self.ready),
        });
        let user = self.core.certificate_user(&self.metadata, &self.peer);
        let reader = user.map(|user| (user, range.clone()));
        let filter = WatchFilter {
            range,
            prev_kv: request.prev_kv,
            no_put: request.filters.contains(&0),
            no_delete: request.filters.contains(&1),
        };
        let start = request.start_revision;
        let watcher = self.core.store.watch(filter, start, Arc::clone(&wake) as _);
        let revision = watcher.created_at();
        // It may have history to read.
        wake.wake();
        let (fragment, progress) = (request.fragment, request.progress_notify);
        let entry = Entry {
            watcher,
            start,
            wake,
            reader,
            fragment,
            progress,
            busy: false,
        };
        self.watchers.insert(id, entry);
        self.answer(
            revision,
            WatchHead {
                watch_id: id,
                created: true,
                ..WatchHead::default()
            },
        );
    }

    fn may_read(&self, range: &KeyRange) -> Result<(), Status> {
        self.core.guard_for(&self.metadata, &self.peer)?.read(range)
    }

    /// Ends the watchers of a certificate's user who may not read what they watch any more, before they bring
    /// anything else. etcd lets them go on for as long as the connection lasts. A token's user is not asked for:
    /// tokens end by themselves, and watches outlive them.
    fn end_forbidden(&mut self) {
        let version = self.core.auth.version();
        if std::mem::replace(&mut self.allowed_at, version) == version {
            return;
        }
        let core = &self.core;
        let forbidden = |entry: &mut Entry| {
            let reader = entry.reader.as_ref();
            reader.is_some_and(|(user, range)| !core.may_still_read(user, range))
        };
        let ended: Vec<i64> = self
            .watchers
            .extract_if(.., |_, entry| forbidden(entry))
            .map(|(id, _)| id)
            .collect();
        for watch_id in ended {
            self.ended_ids.insert(watch_id);
            let head = WatchHead {
                watch_id,
                canceled: true,
                cancel_reason: status::rendered(&crate::auth::Error::PermissionDenied.into()),
                ..WatchHead::default()
            };
            // It has not seen all that the store has.
            self.answer(0, head);
        }
    }

    fn free_id(&mut self) -> i64 {
        while self.is_used(self.next_id) {
            self.next_id += 1;
        }
        self.next_id += 1;
        self.next_id - 1
    }

    fn is_used(&self, id: i64) -> bool {
        self.watchers.contains_key(&id) || self.ended_ids.contains(&id)
    }

    fn cancel(&mut self, id: i64) {
        if self.watchers.remove(&id).is_some() || self.ended_ids.remove(&id) {
            let head = WatchHead {
                watch_id: id,
                canceled: true,
                ..WatchHead::default()
            };
            self.answer(self.core.store.revision(), head);
        }
    }

    /// Answers a progress request, if all watchers are where the store is; else there is none.
    fn progress(&mut self) {
        let synced = self.core.store.synced(self.watchers.values().map(|e| &e.watcher));
        if let Some(revision) = synced
            && !self.watchers.is_empty()
            && self.watchers.values().all(|e| revision >= e.start)
        {
            self.answer(
                revision,
                WatchHead {
                    watch_id: -1,
                    ..WatchHead::default()
                },
            );
        }
    }

    /// Tells idle watchers that asked for it how far they are.
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
            self.answer(
                revision,
                WatchHead {
                    watch_id,
                    ..WatchHead::default()
                },
            );
        }
    }

    /// One message of the next ready watcher that has any; answers may be left instead.
    fn take_ready(&mut self) -> Option<WatchResponse> {
        loop {
            let id = self.ready.ids.lock().pop_front()?;
            // Cancelled since.
            let Some(entry) = self.watchers.get_mut(&id) else {
                continue;
            };
            entry.wake.queued.store(false, Ordering::Release);
            match entry.watcher.take(MESSAGE_BYTES) {
                WatchUpdate::Nothing => {}
                WatchUpdate::Events { frames, revision } => {
                    entry.busy = true;
                    let fragment = entry.fragment;
                    // There may be more than one message's worth.
                    entry.wake.wake();
                    let header = Some(self.core.header(revision));
                    let head = WatchHead {
                        header,
                        watch_id: id,
                        ..WatchHead::default()
                    };
                    if fragment {
                        let max = self.core.config.max_request_bytes + (512 << 10);
                        self.answers.extend(fragments(head, frames, max));
                        return self.answers.pop_front();
                    }
                    return Some(WatchResponse { head, events: frames });
                }
                WatchUpdate::Compacted(compact_revision) => {
                    self.watchers.remove(&id);
                    self.ended_ids.insert(id);
                    let header = Some(self.core.header(0));
                    let head = WatchHead {
                        header,
                        watch_id: id,
                        canceled: true,
                        compact_revision,
                        ..WatchHead::default()
                    };
                    return Some(WatchResponse { head, events: vec![] });
                }
            }
        }
    }
}

/// Splits events over messages of at most about `max` bytes; all but the last say so.
fn fragments(head: WatchHead, frames: Vec<Bytes>, max: usize) -> Vec<WatchResponse> {
    if frames.iter().map(Bytes::len).sum::<usize>() < max {
        return vec![WatchResponse { head, events: frames }];
    }
    let mut out: Vec<Vec<Bytes>> = vec![vec![]];
    let mut size = 0;
    for event in frames.iter().flat_map(split) {
        if size > 0 && size + event.len() > max {
            out.push(vec![]);
            size = 0;
        }
        size += event.len();
        out.last_mut().expect("never empty").push(event);
    }
    let last = out.len() - 1;
    let response = |(i, events)| {
        let head = WatchHead {
            fragment: i < last,
            ..head.clone()
        };
        WatchResponse { head, events }
    };
    out.into_iter().enumerate().map(response).collect()
}

/// The single `events` fields of a frame.
fn split(frame: &Bytes) -> Vec<Bytes> {
    let (mut at, mut out) = (0, vec![]);
    while at < frame.len() {
        let from = at;
        at += 1;
        let len = take_varint(frame, &mut at) as usize;
        at += len;
        out.push(frame.slice(from..at));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fragments_split_between_events_and_only_the_last_ends_the_message() {
        let event = |n: u8| Bytes::from(vec![0x5a, 3, n, n, n]);
        let frame = Bytes::from([event(1), event(2), event(3)].concat());
        let parts = fragments(WatchHead::default(), vec![frame.clone(), event(4)], 10);
        let sizes: Vec<_> = parts.iter().map(|p| (p.events.len(), p.head.fragment)).collect();
        assert_eq!(sizes, [(2, true), (2, false)]);
        assert_eq!(fragments(WatchHead::default(), vec![frame], 100).len(), 1);
    }
}
