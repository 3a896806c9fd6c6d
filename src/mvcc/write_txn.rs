//! Runs transactions on the [`State`].
//!
//! Like etcd, a transaction evaluates all compares of the tree on the state before the transaction, which fixes the
//! branches to take; checks the operations of these branches on that state; then runs the operations in order. All
//! changes share one main revision.

use super::Error;
use super::branches::{branch, check_range, path};
use super::encoded::{Fields, Kv};
use super::index::Place;
use super::key_history::Version;
use super::log::{Batch, Event, EventKind};
use super::range::KeyRange;
use super::state::State;
use super::txn::{Compare, DeleteResult, Op, OpResult, Put, PutResult, Txn, TxnResult};
use std::sync::Arc;

/// An open write transaction under the store's lock. [`WriteTxn::finish`] makes its changes one batch.
///
/// A panic during the transaction aborts the process, because no reader may ever see half a transaction.
pub(super) struct WriteTxn<'a> {
    state: &'a mut State,
    /// The main revision of all changes.
    main: i64,
    events: Vec<Event>,
    /// The lease that the transaction has revoked.
    revoked: Option<i64>,
    finished: bool,
}

/// The outcome of a write transaction.
pub(super) struct Committed {
    /// The new revision, if anything has changed.
    pub(super) batch: Option<Batch>,
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
            events: Vec::new(),
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
                    OpResult::Range(self.state.range(options, now, &self.events))
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
        if self.events.is_empty() {
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
        let kv = Kv::new(&Fields {
            key: &put.key,
            create_revision: if prev.is_some() { was.create_revision } else { self.main },
            mod_revision: self.main,
            version: was.version + 1,
            value: if put.ignore_value { was.value } else { &put.value },
            lease,
        });
        self.state.leases.attach(&put.key, was.lease, lease);
        self.change(place, EventKind::Put, kv);
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
            self.change(place, EventKind::Delete, Kv::tombstone(key, self.main));
        }
        gone
    }

    /// Removes a lease and deletes its keys in key order; returns the number of keys.
    pub(super) fn revoke(&mut self, lease: i64) -> Result<usize, Error> {
        let keys = self.state.leases.take(lease).ok_or(Error::LeaseNotFound)?;
        self.revoked = Some(lease);
        Ok(keys.into_iter().map(|key| self.delete(&KeyRange::key(key)).len()).sum())
    }

    fn change(&mut self, place: Place, kind: EventKind, kv: Kv) {
        let before = self.state.index.get_at(place).map_or(&[][..], |h| h.versions());
        let event = Event::after(before, self.main, kind, kv);
        let sub = u32::try_from(self.events.len()).expect("a txn has fewer than 2^32 changes");
        self.state.bytes += event.kv.as_bytes().len();
        let version = Version {
            main: self.main,
            sub,
            tombstone: event.kind == EventKind::Delete,
            kv: event.kv.clone(),
        };
        self.state.index.push_at(place, version);
        self.events.push(event);
    }

    /// Repeats a recorded change; false if the change cannot come next.
    pub(super) fn replay(&mut self, kind: EventKind, kv: Kv) -> bool {
        let key = kv.key();
        let place = self.state.index.place(key);
        let live = self.state.index.get_at(place).and_then(|h| h.live());
        let (was, existed) = (live.map_or(0, Kv::lease), live.is_some());
        if key.is_empty() || kv.fields().mod_revision != self.main || (kind == EventKind::Delete && !existed) {
            return false;
        }
        self.state.leases.attach(key, was, kv.lease());
        self.change(place, kind, kv);
        true
    }

    /// Makes the changes one revision.
    pub(super) fn finish(mut self) -> Committed {
        self.finished = true;
        let revoked = self.revoked;
        if self.events.is_empty() {
            return Committed { batch: None, revoked };
        }
        let events: Arc<[Event]> = std::mem::take(&mut self.events).into();
        let batch = Batch {
            revision: self.main,
            events,
        };
        self.state.current = self.main;
        self.state.log.push(batch.clone());
        Committed {
            batch: Some(batch),
            revoked,
        }
    }
}

impl Drop for WriteTxn<'_> {
    fn drop(&mut self) {
        if !self.finished && !self.events.is_empty() {
            // Reached only by unwinding.
            tracing::error!("a write transaction panicked: aborting, so that no reader sees half of it");
            std::process::abort();
        }
    }
}
