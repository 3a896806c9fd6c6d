//! The store: one lock around the [`State`], one writer at a time, many short reads.
//!
//! A write runs under the write lock and leaves one batch in the log. Publishing a revision makes it visible, and
//! leaves one frame in each interested group. Without a journal, a write publishes its revision at once. With a
//! journal, only later writers see a commit until it is published, and a commit is published once it survives the
//! process, so that nothing that a reader or watcher has seen ever changes.

use super::Error;
use super::hooks::Hooks;
use super::journal::{Change, Journal};
use super::log::Revision;
use super::pages::Pages;
use super::pins::Pins;
use super::range::KeyRange;
use super::state::State;
use super::stats::Counters;
use super::txn::{DeleteResult, Put, PutResult, Txn, TxnResult};
use super::waking::{Gathering, Swapped, Waking, Woken};
use super::write_txn::{Committed, WriteTxn};
use bytes::Bytes;
use parking_lot::{Mutex, RwLock, RwLockWriteGuard};
use std::sync::Arc;

/// Keys read under one lock. Few in unit tests, so that every test of a read crosses from one lock to the next.
pub(super) const READ_CHUNK: usize = if cfg!(test) { 7 } else { 2000 };

/// An MVCC store. A new store is empty and at revision 1.
pub struct Store {
    pub(super) state: RwLock<State>,
    waking: Waking,
    published: Box<dyn Fn() + Send + Sync>,
    visible: Box<dyn Fn() + Send + Sync>,
    journal: Option<Arc<dyn Journal>>,
    pub(super) pins: Pins,
    pub(super) pages: Mutex<Pages>,
    pub(super) counters: Counters,
}

/// One write of [`Store::apply`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Write {
    /// Puts a key with a value, without a lease.
    Put(Bytes, Bytes),
    /// Deletes one key.
    Delete(Bytes),
}

/// The result of [`Store::revoke`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RevokeResult {
    /// The number of keys deleted with the lease.
    pub deleted: usize,
    /// The store's revision after that.
    pub revision: i64,
}

impl Store {
    /// An empty store at revision 1, without hooks.
    pub fn new() -> Arc<Self> {
        Self::with_hooks(Hooks::default())
    }

    /// An empty store at revision 1.
    pub fn with_hooks(hooks: Hooks) -> Arc<Self> {
        Self::open(State::new(), hooks)
    }

    pub(super) fn open(state: State, hooks: Hooks) -> Arc<Self> {
        let Hooks {
            published,
            visible,
            unpinned,
            journal,
        } = hooks;
        Arc::new(Self {
            waking: Waking::new(state.visible),
            state: RwLock::new(state),
            published,
            visible,
            journal,
            pins: Pins::new(unpinned),
            pages: Mutex::default(),
            counters: Counters::default(),
        })
    }

    /// Runs a transaction: either all of it at one revision, or none of it.
    pub fn txn(&self, txn: &Txn) -> Result<TxnResult, Error> {
        self.txn_while(txn, &mut || true)
    }

    /// Runs a transaction that writes.
    pub(super) fn run(&self, txn: &Txn) -> Result<TxnResult, Error> {
        self.write(|w| w.run(txn)).0
    }

    /// Puts one key.
    pub fn put(&self, put: Put) -> Result<PutResult, Error> {
        let (prev, revision) = self.write(|w| w.put_alone(&put));
        Ok(PutResult { prev: prev?, revision })
    }

    /// Deletes every key of a range.
    pub fn delete(&self, range: &KeyRange) -> DeleteResult {
        let (prev, revision) = self.write(|w| w.delete(range));
        DeleteResult { prev, revision }
    }

    /// Applies `writes` in order as one revision and returns the store's revision after that. Deleting an absent
    /// key changes nothing. A fast path: no compares, no leases.
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

    /// Adds a lease without keys; false if the id is taken. `crate::lease` expires leases, not the store.
    pub fn grant(&self, lease: i64, ttl_secs: i64) -> bool {
        let mut state = self.state.write();
        let granted = state.leases.grant(lease, ttl_secs);
        if granted {
            self.record(|| Change::Grant { lease, ttl_secs });
        }
        granted
    }

    /// Removes a lease and deletes its keys as one revision.
    pub fn revoke(&self, lease: i64) -> Result<RevokeResult, Error> {
        let (deleted, revision) = self.write(|w| w.revoke(lease));
        let deleted = deleted?;
        Ok(RevokeResult { deleted, revision })
    }

    /// Runs `f` under the write lock, then records its changes in the journal, or publishes them if there is no
    /// journal. Returns the result of `f` and the store's revision after it.
    fn write<T>(&self, f: impl FnOnce(&mut WriteTxn<'_>) -> T) -> (T, i64) {
        let mut state = self.state.write();
        let mut txn = WriteTxn::new(&mut state);
        let done = f(&mut txn);
        let committed = txn.finish();
        let revision = state.current;
        if committed.is_nothing() {
            return (done, revision);
        }
        self.committed(&committed, &state);
        if self.journal.is_none() {
            self.publish_to(revision, state);
        }
        (done, revision)
    }

    /// Counts and records a commit. The caller holds the lock.
    pub(super) fn committed(&self, committed: &Committed, state: &State) {
        if committed.events > 0 {
            self.counters.count(committed);
        }
        if self.journal.is_some() {
            let revoked = committed.revoked;
            let batch = (committed.events > 0).then(|| state.log.last()).flatten();
            let batch = batch.map(Revision::to_batch);
            self.record(|| Change::Commit { batch, revoked });
        }
    }

    /// Records that another state was put into place, and wakes watchers of the former one.
    pub(super) fn swapped(&self, state: RwLockWriteGuard<'_, State>, groups: Swapped) {
        self.record(|| Change::Swapped);
        match groups {
            Swapped::Ended(groups) => self.waking.restart(state.visible, groups),
            Swapped::Further(groups) => self.waking.add(state.visible, groups),
        }
        drop(state);
        (self.visible)();
        (self.published)();
    }

    /// Records a change in the journal, if there is one. The caller holds the lock, so that the journal is in the
    /// order of commits.
    fn record(&self, change: impl FnOnce() -> Change) {
        if let Some(journal) = &self.journal {
            journal.record(change());
        }
    }

    /// Makes the revisions up to `revision` visible to readers and watchers. The journal's owner calls this once
    /// those revisions are durable.
    pub fn publish(&self, revision: i64) {
        self.publish_to(revision, self.state.write());
    }

    pub(super) fn publish_to(&self, revision: i64, mut state: RwLockWriteGuard<'_, State>) {
        let mut dirty = Vec::new();
        let from = state.visible + 1;
        state.visible = state.visible.max(revision.min(state.current));
        let State { log, groups, index, .. } = &mut *state;
        for published in log.since(from).take_while(|at| at.revision <= revision) {
            groups.publish(published, index, &mut dirty);
        }
        let wanted = !dirty.is_empty();
        self.waking.add(state.visible, dirty);
        drop(state);
        (self.visible)();
        if wanted {
            (self.published)();
        }
    }

    /// Wakes the members that have something to take; returns the number of their groups. Calls wake one after
    /// another, so a [`Wake`](super::Wake) must not call this.
    pub fn wake_watchers(&self) -> usize {
        self.waking.wake(u64::MAX, Gathering::default(), usize::MAX).groups
    }

    /// Like [`Store::wake_watchers`], but leaves out the groups that still gather events at `now`, in nanoseconds since
    /// any fixed moment, and of a quiet group with very many members all but the `first`. These are due at [`Woken::next`].
    pub fn wake_due_watchers(&self, now: u64, gathering: Gathering, first: usize) -> Woken {
        self.waking.wake(now, gathering, first)
    }

    /// Wakes every watcher, with or without events to take. Like [`Store::wake_watchers`], not to be called by a
    /// [`Wake`](super::Wake).
    pub fn wake_every_watcher(&self) {
        let groups = self.state.read().groups.all();
        for group in groups {
            group.wake_all();
        }
    }

    /// The revision up to which every watcher was woken that has events to take.
    ///
    /// For each event of a revision up to this one, and for each watcher that wanted the event and existed when the
    /// revision was published: since the event could be taken, the watcher has taken it, or its [`Wake`](super::Wake) was
    /// called and that call has returned. So a watcher that has taken everything ([`WatchUpdate::Nothing`](super::WatchUpdate))
    /// after each call of its `Wake`, and once when it was made, has taken every event up to this revision. An owner of
    /// several watchers that reads `woken` first and then finds none of them woken, or left in the middle, knows that
    /// all of them have taken everything up to there, except watchers that begin after it.
    ///
    /// Never above [`Store::revision`]. Revisions that no watcher wants count at once.
    pub fn woken(&self) -> i64 {
        self.waking.woken()
    }

    /// Makes revisions before `revision` unreadable. [`Store::purge`] frees their memory.
    pub fn compact(&self, revision: i64) -> Result<(), Error> {
        let mut state = self.state.write();
        state.compact(revision)?;
        self.record(|| Change::Compact(revision));
        Ok(())
    }

    /// Frees some of the compacted history in one short lock; true if there is more to free. History that a long
    /// read has pinned stays until the `unpinned` hook was called.
    pub fn purge(&self) -> bool {
        self.purge_while(&mut || true)
    }

    /// Like [`Store::purge`], and ends the step early once `go_on`, which is asked after every few changes, says no.
    pub fn purge_while(&self, go_on: &mut dyn FnMut() -> bool) -> bool {
        let mut state = self.state.write();
        let pinned = self.pins.oldest().unwrap_or(i64::MAX);
        let more = state.purge(pinned, go_on);
        // Without handing the lock over, the next step would often have it before those who wait for it are awake.
        RwLockWriteGuard::unlock_fair(state);
        more
    }

    /// The history before this revision is purged. Revision 0 before the first purge.
    pub fn purged(&self) -> i64 {
        self.state.read().purge.revision()
    }
}
