//! The revision log: the events of each revision, from the compact revision to now.
//!
//! Revisions are dense, so a batch is found by subtraction. Watchers read the log with cursors and need no queues.

use super::encoded::Kv;
use std::collections::VecDeque;
use std::sync::Arc;

/// The kind of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventKind {
    Put,
    Delete,
}

/// One change of one key.
#[derive(Clone, Debug)]
pub struct Event {
    pub kind: EventKind,
    /// The new key-value, or a tombstone.
    pub kv: Kv,
    /// The key-value before the transaction of this event; `None` for an event that creates the key.
    pub prev: Option<Kv>,
    /// Whether the event put a key that was absent right before, so that the number of live keys grew.
    pub(super) created: bool,
}

/// The events of one revision, in order.
#[derive(Clone, Debug)]
pub struct Batch {
    /// The main revision.
    pub revision: i64,
    /// At least one event.
    pub events: Arc<[Event]>,
}

impl Batch {
    /// Encoded bytes of the versions that this batch replaced, and of its tombstones.
    fn replaced(&self) -> usize {
        let of = |event: &Event| {
            let tombstone = match event.kind {
                EventKind::Put => 0,
                EventKind::Delete => event.kv.as_bytes().len(),
            };
            event.prev.as_ref().map_or(0, |prev| prev.as_bytes().len()) + tombstone
        };
        self.events.iter().map(of).sum()
    }
}

/// Batches with consecutive revisions.
pub(super) struct Log {
    batches: VecDeque<Batch>,
    /// For each batch, the number of events ever committed up to its end.
    totals: VecDeque<u64>,
    /// The number of events ever committed.
    total: u64,
    /// Encoded bytes of the versions that the batches replaced, and of their tombstones.
    replaced: usize,
    /// Revision of the first batch, or of the next batch if the log is empty.
    first: i64,
}

impl Log {
    pub(super) fn new(first: i64) -> Self {
        Self {
            batches: VecDeque::new(),
            totals: VecDeque::new(),
            total: 0,
            replaced: 0,
            first,
        }
    }

    pub(super) fn push(&mut self, batch: Batch) {
        assert_eq!(batch.revision, self.next(), "revisions are dense");
        self.total += batch.events.len() as u64;
        self.replaced += batch.replaced();
        self.totals.push_back(self.total);
        self.batches.push_back(batch);
    }

    /// The revision of the next batch.
    pub(super) fn next(&self) -> i64 {
        self.first + self.batches.len() as i64
    }

    /// The number of events after `revision`.
    pub(super) fn events_after(&self, revision: i64) -> u64 {
        let at = usize::try_from(revision - self.first)
            .ok()
            .and_then(|at| self.totals.get(at));
        match at {
            Some(then) => self.total - then,
            None if revision < self.first => self.total,
            None => 0,
        }
    }

    /// Batches with a revision of at least `from`.
    pub(super) fn since(&self, from: i64) -> impl DoubleEndedIterator<Item = &Batch> {
        let skip = usize::try_from(from - self.first).unwrap_or(0);
        self.batches.range(skip.min(self.batches.len())..)
    }

    /// Drops the batches before `revision`.
    pub(super) fn truncate_before(&mut self, revision: i64) {
        while self.batches.front().is_some_and(|b| b.revision < revision) {
            if let Some(batch) = self.batches.pop_front() {
                self.replaced -= batch.replaced();
            }
            self.totals.pop_front();
            self.first += 1;
        }
    }

    /// Encoded bytes of the versions that the batches replaced, and of their tombstones.
    pub(super) fn replaced(&self) -> usize {
        self.replaced
    }

    pub(super) fn len(&self) -> usize {
        self.batches.len()
    }
}
