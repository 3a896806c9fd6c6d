//! Watchers: a filter and a cursor in the revision log, without a queue of their own.

use super::encoded::Kv;
use super::frame::Seen;
use super::group::{Group, GroupState, Wake, WatchFilter};
use super::state::State;
use super::store::Store;
use bytes::Bytes;
use std::any::Any;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Events that a watcher copies from the log under one lock while it catches up. A revision is never split.
const CATCH_UP_EVENTS: usize = if cfg!(test) { 7 } else { 2000 };
/// How many events an event with its previous key-value counts for, which is searched for in the index.
const PREV_COST: usize = if cfg!(test) { 2 } else { 8 };

/// A cursor in the revision log; made by [`Store::watch`].
pub struct Watcher {
    store: Arc<Store>,
    group: Arc<Group>,
    member: u64,
    /// The next revision to look at.
    next: i64,
    start: i64,
    created_at: i64,
    /// The compact revision, if the watcher asked for history before it.
    too_late: Option<i64>,
    /// Up to here the watcher reads the log even where its group has frames.
    log_through: i64,
}

/// The result of [`Watcher::take`].
#[derive(Debug, PartialEq, Eq)]
pub enum WatchUpdate {
    /// No new events.
    Nothing,
    /// No event yet: the watcher has read a part of the log, and goes on when it is taken from again.
    Later,
    /// Encoded `WatchResponse.events` fields, whole revisions in order. The watcher has now taken all of its events up
    /// to and including `revision`.
    Events {
        /// The encoded fields, to be concatenated.
        frames: Vec<Bytes>,
        revision: i64,
    },
    /// The watcher needs history that was compacted, or of a state that was swapped out. The owner must cancel the watcher with this compact revision.
    Compacted(i64),
}

/// The events of one revision of the log that pass a filter.
struct Missed {
    revision: i64,
    /// The key-value, and the key-value before the revision where the filter wants it.
    events: Vec<(Kv, Option<Kv>)>,
}

// === impl Missed ===

impl Missed {
    /// The next published revisions from `next` to `last`, as many as may be read under one lock.
    fn read(state: &State, filter: &WatchFilter, next: i64, last: i64) -> Vec<Self> {
        let cost = if filter.prev_kv { PREV_COST } else { 1 };
        let (mut missed, mut read) = (Vec::new(), 0);
        for revision in state.visible_since(next).take_while(|at| at.revision <= last) {
            read += revision.len() * cost;
            if read > CATCH_UP_EVENTS && !missed.is_empty() {
                break;
            }
            // Reads cannot see revisions before the compact revision, so the key-values of these are not shown.
            let has_prev = filter.prev_kv && revision.revision > state.compacted;
            let prev = |kv: &Kv| has_prev.then(|| state.index.before(kv)).flatten().cloned();
            let passing = revision.changes().filter(|kv| filter.range.contains(kv.key()));
            missed.push(Self {
                revision: revision.revision,
                events: passing.map(|kv| (kv.clone(), prev(kv))).collect(),
            });
        }
        missed
    }

    fn encode(&self, filter: &WatchFilter) -> Option<Bytes> {
        let seen = || {
            let events = self.events.iter();
            events.map(|(kv, prev)| Seen {
                kv,
                prev: prev.as_ref(),
            })
        };
        filter.view().encode(seen)
    }
}

// === impl Store ===

impl Store {
    /// Starts a watcher that sees every change from revision `start` on (0: from now on), and wakes `wake` when
    /// there may be something to take.
    pub fn watch(self: &Arc<Self>, filter: WatchFilter, start: i64, wake: Arc<dyn Wake>) -> Watcher {
        let mut state = self.state.write();
        let current = state.visible;
        let start = if start == 0 { current + 1 } else { start };
        // The group may still hold frames from before the compaction, but a new watcher must not see them.
        let first = state.first_watched();
        let too_late = Some(first).filter(|first| start < *first);
        // Frames from before the compaction show what was before the compact revision. New watchers of etcd do not see that.
        let log_through = if filter.prev_kv { state.compacted } else { 0 };
        let (group, member) = state.groups.join(filter, current, start, wake);
        Watcher {
            store: Arc::clone(self),
            group,
            member,
            next: start,
            start,
            created_at: current,
            too_late,
            log_through,
        }
    }

    /// Whether a revision is visible, and every watcher of `key` has taken its events up to there.
    pub fn is_delivered(&self, key: &[u8], revision: i64) -> bool {
        let state = self.state.read();
        revision <= state.visible && state.groups.behind(key, revision) == 0
    }

    /// The store's revision, if each of `watchers` has taken everything up to it. Nothing is committed during
    /// the comparison.
    pub fn synced<'a>(&self, watchers: impl IntoIterator<Item = &'a Watcher>) -> Option<i64> {
        let state = self.state.read();
        watchers
            .into_iter()
            .all(|w| w.is_synced(state.visible))
            .then_some(state.visible)
    }
}

// === impl Watcher ===

impl Watcher {
    pub fn filter(&self) -> &WatchFilter {
        &self.group.filter
    }

    /// Whether something is attached to the watchers of this filter.
    pub fn has_attachment(&self) -> bool {
        self.group.attachment.get().is_some()
    }

    /// Attaches something to all watchers of this filter, which is dropped with the last of them. Of two attachments
    /// the first stays.
    pub fn attach(&self, attachment: Box<dyn Any + Send + Sync>) {
        // Fails if something is attached already.
        let _ = self.group.attachment.set(attachment);
    }

    /// The next revision that the watcher looks at.
    pub fn position(&self) -> i64 {
        self.next
    }

    /// The first revision that the watcher asked for.
    pub fn start(&self) -> i64 {
        self.start
    }

    /// The store's revision when the watcher was started.
    pub fn created_at(&self) -> i64 {
        self.created_at
    }

    /// Takes the events that are ready, up to about `max` bytes. A revision is never split, so a single revision may be
    /// larger.
    pub fn take(&mut self, max: usize) -> WatchUpdate {
        if let Some(compacted) = self.too_late {
            return WatchUpdate::Compacted(compacted);
        }
        {
            let mut state = self.group.state.lock();
            if let Some(compacted) = state.ended {
                return WatchUpdate::Compacted(compacted);
            }
            if self.next > self.log_end(&state) {
                let (frames, last) = state.read(self.next, max);
                let Some(revision) = last else {
                    return WatchUpdate::Nothing;
                };
                self.next = revision + 1;
                state.moved(self.member, self.next);
                return WatchUpdate::Events { frames, revision };
            }
        }
        self.catch_up(max)
    }

    /// Like [`Watcher::take`], but reads on where that would return [`WatchUpdate::Later`].
    #[cfg(test)]
    pub(crate) fn take_now(&mut self, max: usize) -> WatchUpdate {
        loop {
            match self.take(max) {
                WatchUpdate::Later => {}
                update => return update,
            }
        }
    }

    /// Reads a part of the log. Filters and encodes outside of the store's lock.
    fn catch_up(&mut self, max: usize) -> WatchUpdate {
        let (store, group) = (Arc::clone(&self.store), Arc::clone(&self.group));
        store.counters.log_reads.fetch_add(1, Ordering::Relaxed);
        let read = store.state.read();
        let state = group.state.lock();
        self.next = self.next.max(state.next_of(self.member));
        let (first, log_end) = (read.first_watched(), self.log_end(&state));
        if let Some(compacted) = state.ended {
            return WatchUpdate::Compacted(compacted);
        }
        drop(state);
        if self.next < first {
            return WatchUpdate::Compacted(first);
        }
        let missed = Missed::read(&read, &group.filter, self.next, log_end);
        drop(read);

        let (mut frames, mut bytes) = (Vec::new(), 0);
        let mut all = missed.last().is_none_or(|missed| missed.revision == log_end);
        for missed in &missed {
            if bytes > max {
                all = false;
                break;
            }
            if let Some(body) = missed.encode(&group.filter) {
                bytes += body.len();
                frames.push(body);
            }
            self.next = missed.revision + 1;
        }
        if all {
            // Revision 1 and purged revisions have no batch.
            self.next = self.next.max(log_end + 1);
        }
        let mut state = group.state.lock();
        state.moved(self.member, self.next);
        let joined = self.next > self.log_end(&state);
        drop(state);
        if !frames.is_empty() {
            let revision = self.next - 1;
            return WatchUpdate::Events { frames, revision };
        }
        match joined {
            true => self.take(max),
            false => WatchUpdate::Later,
        }
    }

    /// The last revision that the watcher reads from the log.
    fn log_end(&self, group: &GroupState) -> i64 {
        group.complete_after.max(self.log_through)
    }

    /// Whether the watcher has taken everything up to `current`, the store's revision, which was read under the same
    /// lock.
    pub(super) fn is_synced(&self, current: i64) -> bool {
        let state = self.group.state.lock();
        self.start <= current + 1
            && state.ended.is_none()
            && (self.next > state.complete_after || self.next > current)
            && !state.has_after(self.next)
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.store.state.write().groups.leave(&self.group, self.member);
    }
}
