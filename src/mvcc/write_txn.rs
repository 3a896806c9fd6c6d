//! Runs transactions on the [`State`].
//!
//! Like etcd, a transaction evaluates all compares of the tree on the state before the transaction, which fixes the
//! branches to take; checks the operations of these branches on that state; then runs the operations in order. All
//! changes share one main revision.

use super::Error;
use super::branches::{branch, check_range, path};
use super::encoded::{Fields, Kv};
use super::index::Place;
use super::log::EventKind;
use super::range::KeyRange;
use super::state::State;
use super::txn::{Compare, DeleteResult, Op, OpResult, Put, PutResult, Txn, TxnResult};
use smallvec::SmallVec;

/// An open write transaction under the store's lock. [`WriteTxn::finish`] makes its changes one batch.
///
/// A panic during the transaction aborts the process, because no reader may ever see half a transaction.
pub(super) struct WriteTxn<'a> {
    state: &'a mut State,
    /// The main revision of all changes.
    main: i64,
    /// The changes so far, in order.
    changes: SmallVec<[Kv; 1]>,
    deletes: usize,
    /// The lease that the transaction has revoked.
    revoked: Option<i64>,
    finished: bool,
}

/// The outcome of a write transaction.
pub(super) struct Committed {
    /// The number of events of the new revision; 0 if there is none.
    pub(super) events: usize,
    /// How many of them are deletions.
    pub(super) deletes: usize,
    /// The lease that was revoked.
    pub(super) revoked: Option<i64>,
}

fn check(txn: &Txn, state: &State, taken: &mut impl Iterator<Item = bool>) -> Result<(), Error> {
    let succeeded = taken.next().unwrap_or_default();
    for op in branch(txn, succeeded) {
        match op {
            Op::Range(options) => check_range(options, state.current, state.compacted)?,
            Op::Put(put) => check_put(put, state)?,
            Op::Txn(nested) => check(nested, state, taken)?,
            Op::Delete(_) => {}
        }
    }
    Ok(())
}

fn holds(compare: &Compare, state: &State) -> bool {
    if compare.range.is_single() {
        let kv = state.index.get(compare.range.start()).and_then(|h| h.live());
        return compare.holds_for(kv);
    }
    let mut live = state.index.range(&compare.range).filter_map(|h| h.live()).peekable();
    match live.peek() {
        None => compare.holds_for(None),
        Some(_) => live.all(|kv| compare.holds_for(Some(kv))),
    }
}

/// Checks the lease, then the key (etcd: server/etcdserver/txn/put.go).
fn check_put(put: &Put, state: &State) -> Result<(), Error> {
    if put.lease != 0 && !put.ignore_lease && !state.leases.contains(put.lease) {
        return Err(Error::LeaseNotFound);
    }
    let keeps = put.ignore_value || put.ignore_lease;
    if keeps && state.index.get(&put.key).and_then(|h| h.live()).is_none() {
        return Err(Error::KeyNotFound);
    }
    Ok(())
}

// === impl WriteTxn ===

impl<'a> WriteTxn<'a> {
    pub(super) fn new(state: &'a mut State) -> Self {
        let main = state.current + 1;
        Self {
            state,
            main,
            changes: SmallVec::new(),
            deletes: 0,
            revoked: None,
            finished: false,
        }
    }

    /// Checks and puts one key; returns the previous key-value.
    pub(super) fn put_alone(&mut self, put: &Put) -> Result<Option<Kv>, Error> {
        check_put(put, self.state)?;
        Ok(self.put(put))
    }

    /// Runs `txn`. After an error nothing has changed.
    pub(super) fn run(&mut self, txn: &Txn) -> Result<TxnResult, Error> {
        let mut taken = Vec::new();
        path(txn, &mut |compare| Ok(holds(compare, self.state)), &mut taken)?;
        check(txn, self.state, &mut taken.iter().copied())?;
        Ok(self.branch(txn, &mut taken.into_iter()))
    }

    fn branch(&mut self, txn: &Txn, taken: &mut impl Iterator<Item = bool>) -> TxnResult {
        let succeeded = taken.next().unwrap_or_default();
        let mut results = Vec::with_capacity(branch(txn, succeeded).len());
        for op in branch(txn, succeeded) {
            results.push(match op {
                Op::Range(options) => {
                    let now = self.revision();
                    OpResult::Range(self.state.range(options, now, &self.changes))
                }
                Op::Put(put) => {
                    let prev = self.put(put);
                    let revision = self.main;
                    OpResult::Put(PutResult { prev, revision })
                }
                Op::Delete(range) => {
                    let prev = self.delete(range);
                    let revision = self.revision();
                    OpResult::Delete(DeleteResult { prev, revision })
                }
                Op::Txn(nested) => OpResult::Txn(self.branch(nested, taken)),
            });
        }
        TxnResult {
            succeeded,
            results,
            revision: self.revision(),
        }
    }

    /// The revision that the transaction reports: the new revision once something has changed.
    fn revision(&self) -> i64 {
        if self.changes.is_empty() {
            self.state.current
        } else {
            self.main
        }
    }

    /// Puts one key without checks; returns the previous key-value.
    pub(super) fn put(&mut self, put: &Put) -> Option<Kv> {
        let place = self.state.index.place(&put.key);
        let prev = self.state.index.get_at(place).and_then(|h| h.live()).cloned();
        let was = prev.as_ref().map(Kv::fields).unwrap_or_default();
        let lease = if put.ignore_lease { was.lease } else { put.lease };
        let fields = Fields {
            key: &put.key,
            create_revision: if prev.is_some() { was.create_revision } else { self.main },
            mod_revision: self.main,
            version: was.version + 1,
            value: if put.ignore_value { was.value } else { &put.value },
            lease,
        };
        let kv = Kv::placed(&fields, self.sub());
        self.state.leases.attach(&put.key, was.lease, lease);
        self.change(place, prev.as_ref(), kv);
        prev
    }

    /// Deletes every live key in `range`; returns the deleted key-values, in key order.
    pub(super) fn delete(&mut self, range: &KeyRange) -> Vec<Kv> {
        let gone: Vec<Kv> = if range.is_single() {
            self.state
                .index
                .get(range.start())
                .and_then(|h| h.live())
                .cloned()
                .into_iter()
                .collect()
        } else {
            self.state
                .index
                .range(range)
                .filter_map(|h| h.live())
                .cloned()
                .collect()
        };
        for kv in &gone {
            let key = kv.key();
            let place = self.state.index.place(key);
            self.state.leases.attach(key, kv.lease(), 0);
            self.change(place, Some(kv), Kv::tombstone(key, self.main));
        }
        gone
    }

    /// Removes a lease and deletes its keys in key order; returns the number of keys.
    pub(super) fn revoke(&mut self, lease: i64) -> Result<usize, Error> {
        let keys = self.state.leases.take(lease).ok_or(Error::LeaseNotFound)?;
        self.revoked = Some(lease);
        Ok(keys.into_iter().map(|key| self.delete(&KeyRange::key(key)).len()).sum())
    }

    /// The place of the next change.
    fn sub(&self) -> u32 {
        u32::try_from(self.changes.len()).expect("a txn has fewer than 2^32 changes")
    }

    /// Adds a change of a key, whose live key-value was `was`.
    fn change(&mut self, place: Place, was: Option<&Kv>, kv: Kv) {
        let kv = kv.with_sub(self.sub());
        let (bytes, is_tombstone) = (kv.as_bytes().len(), kv.is_tombstone());
        let state = &mut *self.state;
        state.bytes += bytes;
        state.live_bytes -= was.map_or(0, |was| was.as_bytes().len());
        state.live_bytes += if is_tombstone { 0 } else { bytes };
        self.deletes += usize::from(is_tombstone);
        self.changes.push(kv.clone());
        state.index.push_at(place, kv);
    }

    /// Repeats a recorded change; false if the change cannot come next.
    pub(super) fn replay(&mut self, kind: EventKind, kv: Kv) -> bool {
        let key = kv.key();
        let place = self.state.index.place(key);
        let was = self.state.index.get_at(place).and_then(|h| h.live()).cloned();
        let is_deletion = kind == EventKind::Delete;
        let fits = kv.mod_revision() == self.main && kv.is_tombstone() == is_deletion;
        if key.is_empty() || !fits || (is_deletion && was.is_none()) {
            return false;
        }
        self.state
            .leases
            .attach(key, was.as_ref().map_or(0, Kv::lease), kv.lease());
        self.change(place, was.as_ref(), kv);
        true
    }

    /// Makes the changes one revision.
    pub(super) fn finish(mut self) -> Committed {
        self.finished = true;
        let changes = std::mem::take(&mut self.changes);
        let committed = Committed {
            events: changes.len(),
            deletes: self.deletes,
            revoked: self.revoked,
        };
        if !changes.is_empty() {
            self.state.current = self.main;
            self.state.log.push(self.main, changes);
        }
        committed
    }
}

impl Committed {
    /// Whether nothing has changed.
    pub(super) fn is_nothing(&self) -> bool {
        self.events == 0 && self.revoked.is_none()
    }
}

impl Drop for WriteTxn<'_> {
    fn drop(&mut self) {
        if !self.finished && !self.changes.is_empty() {
            // Reached only by unwinding.
            tracing::error!("a write transaction panicked: aborting, so that no reader sees half of it");
            std::process::abort();
        }
    }
}
