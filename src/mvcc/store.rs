//! The store: one lock, one writer, many short reads.
//!
//! Writes run under the write lock and leave one batch in the log and one frame in each interested
//! group. Reads take the read lock for at most [`READ_CHUNK`] keys at a time; a longer read goes on at
//! the revision it began with, which a pin keeps readable, so a list of millions never stalls a writer.
//!
//! With a journal, a commit is only seen by writers until it is published, which is when it will survive
//! the process: what a reader or watcher has seen once never becomes something else.

use super::Error;
use super::encoded::Kv;
use super::group::{Group, Groups, Wake, WatchFilter};
use super::index::Index;
use super::journal::{Change, Journal};
use super::lease_book::LeaseBook;
use super::log::{Batch, Event, Log};
use super::range::{KeyRange, RangeOptions, RangeResult};
use super::reads::{Pages, Pins};
use super::stats::Counters;
use super::txn::{self, Put, Txn, TxnResult, WriteTxn};
use super::watcher::Watcher;
use bytes::Bytes;
use parking_lot::{Mutex, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock};

/// Keys read under one lock.
pub(super) const READ_CHUNK: usize = 2000;
/// Events purged under one lock, but always a whole revision.
const PURGE_STEP: usize = 2000;
/// Bytes that a store without keys is said to take, as an etcd's empty file does.
const EMPTY: usize = 20 << 10;
/// Bytes that a lease is said to take.
const LEASE: usize = 64;

/// An MVCC store. See the module's text; a new store is at revision 1 and empty.
pub struct Store {
    pub(super) state: RwLock<State>,
    /// Groups with frames whose members have not been woken yet.
    dirty: Mutex<Vec<Arc<Group>>>,
    on_publish: OnceLock<Box<dyn Fn() + Send + Sync>>,
    pub(super) journal: OnceLock<Arc<dyn Journal>>,
    pub(super) pins: Pins,
    pages: Mutex<Pages>,
    pub(super) counters: Counters,
}

/// What the lock protects.
pub(super) struct State {
    pub(super) index: Index,
    pub(super) log: Log,
    pub(super) leases: LeaseBook,
    pub(super) groups: Groups,
    /// The last committed revision.
    pub(super) current: i64,
    /// The last published one: what readers and watchers see.
    pub(super) visible: i64,
    /// Reads below this revision fail; −1 if never compacted.
    pub(super) compacted: i64,
    /// The history before this revision has been purged.
    pub(super) purged: i64,
    /// Encoded bytes of all versions.
    pub(super) bytes: usize,
}

/// A read lock on the store, for the watcher's catch-up.
pub(super) struct Read<'a>(RwLockReadGuard<'a, State>);

/// One write of [`Store::apply`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Write {
    /// Put, without a lease.
    Put(Bytes, Bytes),
    /// Delete one key.
    Delete(Bytes),
}

// === impl Store ===

impl Store {
    /// An empty store at revision 1.
    pub fn new() -> Arc<Self> {
        Self::of(State::new())
    }

    pub(super) fn of(state: State) -> Arc<Self> {
        Arc::new(Self {
            state: RwLock::new(state),
            dirty: Mutex::default(),
            on_publish: OnceLock::new(),
            journal: OnceLock::new(),
            pins: Pins::default(),
            pages: Mutex::default(),
            counters: Counters::default(),
        })
    }

    /// Calls `f` after each commit that some watcher wants to see, outside the lock. `f` should lead to
    /// [`Store::wake_watchers`] soon, on another task. Only the first call of this has an effect.
    pub fn on_publish(&self, f: impl Fn() + Send + Sync + 'static) {
        let _ = self.on_publish.set(Box::new(f));
    }

    /// Calls `f` when no long read holds a revision any more, so that what a compaction had to leave can be
    /// purged. Only the first call of this has an effect.
    pub fn on_unpin(&self, f: impl Fn() + Send + Sync + 'static) {
        self.pins.on_unpin(f);
    }

    /// Wakes the members of every group that has news; returns how many groups that were.
    pub fn wake_watchers(&self) -> usize {
        let dirty = std::mem::take(&mut *self.dirty.lock());
        for group in &dirty {
            group.wake();
        }
        dirty.len()
    }

    /// The last revision that is seen.
    pub fn revision(&self) -> i64 {
        self.state.read().visible
    }

    /// The compact revision, −1 if never compacted.
    pub fn compacted(&self) -> i64 {
        self.state.read().compacted
    }

    /// Bytes that the store takes, with what it needs to find them.
    pub fn size(&self) -> usize {
        self.state.read().size()
    }

    /// Reads a range at one revision.
    pub fn range(&self, options: &RangeOptions) -> Result<RangeResult, Error> {
        self.counters.ranges.fetch_add(1, Ordering::Relaxed);
        let state = self.state.read();
        let (current, at) = (state.visible, state.readable(options.revision)?);
        let page = (options.range.clone(), at);
        let known = self.pages.lock().get(&page);
        let count = known.unwrap_or_else(|| state.count(&options.range, at, &[]));
        let mut result = RangeResult {
            count,
            revision: current,
            ..RangeResult::default()
        };
        if options.count_only {
            return Ok(result);
        }
        let needed = options.needed().unwrap_or(usize::MAX);
        let mut kvs = Vec::with_capacity(needed.min(count).min(READ_CHUNK));
        let mut rest = options.range.clone();
        let mut state = Some(state);
        let mut pin = None;
        loop {
            let locked = state.take().unwrap_or_else(|| self.state.read());
            let chunk = READ_CHUNK.min(needed - kvs.len());
            let before = kvs.len();
            kvs.extend(locked.index.range(&rest).filter_map(|h| h.at(at)).take(chunk).cloned());
            let full = kvs.len() - before == chunk;
            if !full || kvs.len() >= needed.min(count) {
                break;
            }
            pin.get_or_insert_with(|| self.pins.pin(at));
            let last = kvs.last().map(|kv| kv.key().to_vec()).unwrap_or_default();
            rest = rest.after(&last);
        }
        (result.kvs, result.more) = options.finish(kvs);
        if let Some(last) = result.kvs.last().filter(|_| result.more && options.needed().is_some()) {
            // What is left of a list at one revision never changes: its next page need not count it.
            let rest = (options.range.after(last.key()), at);
            self.pages.lock().put(rest, count - result.kvs.len());
        }
        Ok(result)
    }

    /// The key-value now.
    pub fn get(&self, key: &[u8]) -> Option<Kv> {
        let state = self.state.read();
        state.index.get(key).and_then(|h| h.at(state.visible)).cloned()
    }

    /// Runs a transaction: all of it at one revision, or none of it.
    pub fn txn(&self, txn: &Txn) -> Result<TxnResult, Error> {
        if txn.is_read_only() {
            return txn::read_only(txn, &self.state.read());
        }
        self.write(|w| w.run(txn)).0
    }

    /// Puts one key; returns what was there and the new revision.
    pub fn put(&self, put: Put) -> Result<(Option<Kv>, i64), Error> {
        let (prev, revision) = self.write(|w| w.put_alone(&put));
        Ok((prev?, revision))
    }

    /// Deletes a range; returns what was there, in key order, and the store's revision after it.
    pub fn delete(&self, range: &KeyRange) -> (Vec<Kv>, i64) {
        self.write(|w| w.delete(range))
    }

    /// Applies `writes` in order as one revision; deletions of absent keys are no change. Returns the
    /// store's revision after it. The writer's fast path: no compares, no leases.
    pub fn apply(&self, writes: &[Write]) -> i64 {
        let ((), revision) = self.write(|w| {
            for write in writes {
                match write {
                    Write::Put(key, value) => {
                        let (key, value) = (key.clone(), value.clone());
                        w.put(&Put {
                            key,
                            value,
                            ..Put::default()
                        });
                    }
                    Write::Delete(key) => {
                        w.delete(&KeyRange::key(key.clone()));
                    }
                }
            }
        });
        revision
    }

    /// Adds a lease of `ttl_secs` without keys; false if the id is taken. Its time is not counted here.
    pub fn grant(&self, lease: i64, ttl_secs: i64) -> bool {
        let mut state = self.state.write();
        let granted = state.leases.grant(lease, ttl_secs);
        if granted {
            self.record(|| Change::Grant { lease, ttl_secs });
        }
        granted
    }

    /// Removes a lease and deletes its keys as one revision. Returns how many and the store's revision after
    /// it, or an error if unknown.
    pub fn revoke(&self, lease: i64) -> Result<(usize, i64), Error> {
        let (keys, revision) = self.write(|w| w.revoke(lease));
        Ok((keys?, revision))
    }

    /// The keys attached to a lease, in order; `None` if the lease is unknown.
    pub fn lease_keys(&self, lease: i64) -> Option<Vec<Bytes>> {
        Some(self.state.read().leases.keys(lease)?.iter().cloned().collect())
    }

    /// Runs `f` under the write lock and records or publishes what it changed; returns its result and the
    /// store's revision after it.
    fn write<T>(&self, f: impl FnOnce(&mut WriteTxn<'_>) -> T) -> (T, i64) {
        let mut state = self.state.write();
        let mut txn = WriteTxn::new(&mut state);
        let done = f(&mut txn);
        let (batch, revoked) = txn.finish();
        let revision = state.current;
        if batch.is_none() && revoked.is_none() {
            return (done, revision);
        }
        if let Some(batch) = &batch {
            self.counters.count(batch);
        }
        if self.journal.get().is_some() {
            self.record(|| Change::Commit { batch, revoked });
        } else {
            self.publish_to(revision, state);
        }
        (done, revision)
    }

    /// Tells the journal, if there is one. The caller holds the lock, so that the order is that of commits.
    pub(super) fn record(&self, change: impl FnOnce() -> Change) {
        if let Some(journal) = self.journal.get() {
            journal.record(change());
        }
    }

    /// Lets everybody see the revisions up to `revision`: they survive the process.
    pub fn publish(&self, revision: i64) {
        self.publish_to(revision, self.state.write());
    }

    fn publish_to(&self, revision: i64, mut state: RwLockWriteGuard<'_, State>) {
        let mut dirty = Vec::new();
        let from = state.visible + 1;
        state.visible = state.visible.max(revision.min(state.current));
        for batch in state.log.since(from).take_while(|b| b.revision <= revision) {
            state.groups.publish(batch, &mut dirty);
        }
        drop(state);
        if !dirty.is_empty() {
            self.dirty.lock().append(&mut dirty);
            if let Some(f) = self.on_publish.get() {
                f();
            }
        }
    }

    /// Starts a watcher that sees every change from revision `start` on (0: from now on), waking `wake`
    /// when there may be something to take. Returns it and the store's revision.
    pub fn watch(self: &Arc<Self>, filter: WatchFilter, start: i64, wake: Arc<dyn Wake>) -> (Watcher, i64) {
        let mut state = self.state.write();
        let current = state.visible;
        let start = if start == 0 { current + 1 } else { start };
        // The group may have frames from before the compaction, but a new watcher has no claim to them.
        let compacted = Some(state.compacted).filter(|compacted| start < *compacted);
        let (group, member) = state.groups.join(filter, current, start, wake);
        (Watcher::new(Arc::clone(self), group, member, start, compacted), current)
    }

    /// The store's revision, if each of `watchers` has taken everything up to it. Nothing is committed
    /// while it looks.
    pub fn synced<'a>(&self, watchers: impl IntoIterator<Item = &'a Watcher>) -> Option<i64> {
        let state = self.state.read();
        watchers
            .into_iter()
            .all(|w| w.is_synced(state.visible))
            .then_some(state.visible)
    }

    pub(super) fn leave(&self, group: &Arc<Group>, member: u64) {
        self.state.write().groups.leave(group, member);
    }

    pub(super) fn read(&self) -> Read<'_> {
        Read(self.state.read())
    }

    /// Up to `max` committed batches with a revision of at least `from`.
    pub fn batches(&self, from: i64, max: usize) -> Vec<Batch> {
        let state = self.state.read();
        state.visible_since(from).take(max).cloned().collect()
    }

    /// Makes revisions before `revision` unreadable. The memory comes back through [`Store::purge`].
    pub fn compact(&self, revision: i64) -> Result<(), Error> {
        let mut state = self.state.write();
        if revision <= state.compacted {
            return Err(Error::Compacted);
        }
        if revision > state.visible {
            return Err(Error::FutureRevision);
        }
        state.compacted = revision;
        self.record(|| Change::Compact(revision));
        Ok(())
    }

    /// Frees some of what compaction made unreadable, in one short lock; true if there is more to do.
    /// Revisions that a long read is at are left for later: when it ends, there is more again.
    pub fn purge(&self) -> bool {
        let mut state = self.state.write();
        let pinned = self.pins.oldest().unwrap_or(i64::MAX);
        let target = state.compacted.min(pinned);
        if state.purged >= target {
            return false;
        }
        let State { log, index, bytes, .. } = &mut *state;
        let (mut to, mut events) = (target, 0);
        for batch in log.since(0).take_while(|b| b.revision <= target) {
            if events >= PURGE_STEP {
                to = batch.revision - 1;
                break;
            }
            events += batch.events.len();
        }
        // The batch at the last bound is there still, and looked at again: tombstones at exactly the bound
        // were kept.
        for event in log
            .since(0)
            .take_while(|b| b.revision <= to)
            .flat_map(|b| b.events.iter())
        {
            *bytes = bytes.saturating_sub(index.compact(event.kv.key(), to));
        }
        log.truncate_before(to);
        state.purged = to;
        to < target
    }
}

// === impl State ===

impl State {
    pub(super) fn new() -> Self {
        Self {
            index: Index::new(),
            log: Log::new(2),
            leases: LeaseBook::default(),
            groups: Groups::default(),
            current: 1,
            visible: 1,
            compacted: -1,
            purged: 0,
            bytes: 0,
        }
    }

    /// What has been published from revision `from` on.
    fn visible_since(&self, from: i64) -> impl Iterator<Item = &Batch> {
        self.log.since(from).take_while(|b| b.revision <= self.visible)
    }

    pub(super) fn size(&self) -> usize {
        EMPTY + self.leases.len() * LEASE + self.bytes + self.index.keys() * 64 + self.log.len() * 120
    }

    /// The revision a read asks for, if it can be read.
    fn readable(&self, revision: i64) -> Result<i64, Error> {
        match revision {
            r if r > self.visible => Err(Error::FutureRevision),
            r if r <= 0 => Ok(self.visible),
            r if r < self.compacted => Err(Error::Compacted),
            r => Ok(r),
        }
    }

    /// Reads inside a transaction whose events so far are `pending`; `now` is its revision. The
    /// revision asked for has been checked.
    pub(super) fn range(&self, options: &RangeOptions, now: i64, pending: &[Event]) -> RangeResult {
        let at = if options.revision <= 0 { now } else { options.revision };
        let count = self.count(&options.range, at, pending);
        let mut result = RangeResult {
            count,
            revision: now,
            ..RangeResult::default()
        };
        if !options.count_only {
            let needed = options.needed().unwrap_or(usize::MAX);
            let rows = self.index.range(&options.range).filter_map(|h| h.at(at));
            (result.kvs, result.more) = options.finish(rows.take(needed).cloned().collect());
        }
        result
    }

    /// Keys in `range` that were live at revision `at`: those live now, less what changed since.
    fn count(&self, range: &KeyRange, at: i64, pending: &[Event]) -> usize {
        let now = self.index.count(range);
        let since = self.log.since(at + 1).flat_map(|b| b.events.iter());
        let pending = if at > self.current { &[] } else { pending };
        // Undoing what happened since, or looking at each key: whichever is less.
        if self.log.events_after(at) + pending.len() as u64 > now as u64 {
            return self.index.range(range).filter(|h| h.at(at).is_some()).count();
        }
        let mut delta = 0i64;
        for event in since.chain(pending).filter(|e| range.contains(e.kv.key())) {
            match event.kind {
                super::EventKind::Put if event.created => delta -= 1,
                super::EventKind::Put => {}
                super::EventKind::Delete => delta += 1,
            }
        }
        usize::try_from(now as i64 + delta).unwrap_or(0)
    }
}

// === impl Read ===

impl Read<'_> {
    pub(super) fn compacted(&self) -> i64 {
        self.0.compacted
    }

    pub(super) fn visible(&self) -> i64 {
        self.0.visible
    }

    pub(super) fn since(&self, from: i64) -> impl Iterator<Item = &Batch> {
        self.0.visible_since(from)
    }

    pub(super) fn index(&self) -> &Index {
        &self.0.index
    }
}
