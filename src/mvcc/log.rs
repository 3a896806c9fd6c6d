//! The revision log: the changes of each revision, from the compact revision to now.
//!
//! Revisions are dense, so the changes of a revision are found by subtraction. The log shares its key-values with the
//! index, and takes twelve bytes for the usual revision, which has one change. Watchers read the log with cursors and
//! need no queues.

use super::chunks::Chunks;
use super::encoded::Kv;
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
}

/// The events of one revision, in order.
#[derive(Clone, Debug)]
pub struct Batch {
    /// The main revision.
    pub revision: i64,
    /// At least one event.
    pub events: Arc<[Event]>,
}

/// The changes of consecutive revisions.
pub(super) struct Log {
    /// All changes, in order.
    changes: Chunks<Kv>,
    /// For each revision, the number of changes ever committed up to its end, without the high bits.
    ends: Chunks<u32>,
    /// The number of changes ever committed before the first one that is left, and in all.
    begin: u64,
    total: u64,
    /// The first revision, or the next one if the log is empty.
    first: i64,
}

/// One revision of the log.
#[derive(Clone, Copy)]
pub(super) struct Revision<'a> {
    log: &'a Log,
    pub(super) revision: i64,
    /// Indexes of its first change, and of the first change after it.
    from: usize,
    to: usize,
}

// === impl Event ===

impl From<Kv> for Event {
    fn from(kv: Kv) -> Self {
        let kind = match kv.is_tombstone() {
            true => EventKind::Delete,
            false => EventKind::Put,
        };
        Self { kind, kv }
    }
}

// === impl Log ===

impl Log {
    pub(super) fn new(first: i64) -> Self {
        Self {
            changes: Chunks::new(),
            ends: Chunks::new(),
            begin: 0,
            total: 0,
            first,
        }
    }

    /// Appends the next revision, with at least one change.
    pub(super) fn push(&mut self, revision: i64, changes: impl IntoIterator<Item = Kv>) {
        assert_eq!(revision, self.next(), "revisions are dense");
        for kv in changes {
            self.changes.push_back(kv);
            self.total += 1;
        }
        self.ends.push_back(self.total as u32);
    }

    /// The revision of the next batch.
    pub(super) fn next(&self) -> i64 {
        self.first + self.ends.len() as i64
    }

    /// The number of changes ever committed up to the end of the revision at `at`.
    fn end(&self, at: usize) -> Option<u64> {
        // There are fewer than 2^32 changes in the log.
        let end = self.ends.get(at)?;
        Some(self.begin + u64::from(end.wrapping_sub(self.begin as u32)))
    }

    /// The number of events after `revision`.
    pub(super) fn events_after(&self, revision: i64) -> u64 {
        let at = usize::try_from(revision - self.first).ok();
        match at.and_then(|at| self.end(at)) {
            Some(then) => self.total - then,
            None if revision < self.first => self.total - self.begin,
            None => 0,
        }
    }

    fn get(&self, at: usize) -> Option<Revision<'_>> {
        let before = match at.checked_sub(1) {
            Some(before) => self.end(before)?,
            None => self.begin,
        };
        Some(Revision {
            log: self,
            revision: self.first + at as i64,
            from: (before - self.begin) as usize,
            to: (self.end(at)? - self.begin) as usize,
        })
    }

    /// The newest revision.
    pub(super) fn last(&self) -> Option<Revision<'_>> {
        self.get(self.ends.len().checked_sub(1)?)
    }

    /// The revisions from `from` on.
    pub(super) fn since(&self, from: i64) -> impl Iterator<Item = Revision<'_>> {
        let skip = usize::try_from(from - self.first).unwrap_or(0);
        (skip..self.ends.len()).filter_map(|at| self.get(at))
    }

    /// The revision `revision`.
    pub(super) fn at(&self, revision: i64) -> Option<Revision<'_>> {
        self.get(usize::try_from(revision - self.first).ok()?)
    }

    /// Takes the first change off, if it is of a revision before `revision`. Its revision goes with its last change, and has
    /// fewer changes until then.
    pub(super) fn pop_before(&mut self, revision: i64) -> Option<Kv> {
        while self.first < revision
            && let Some(end) = self.end(0)
        {
            let change = match self.begin < end {
                true => self.changes.pop_front(),
                false => None,
            };
            self.begin += u64::from(change.is_some());
            if self.begin == end {
                self.ends.pop_front();
                self.first += 1;
            }
            if change.is_some() {
                return change;
            }
        }
        None
    }

    pub(super) fn len(&self) -> usize {
        self.ends.len()
    }
}

// === impl Revision ===

impl<'a> Revision<'a> {
    /// The number of changes.
    pub(super) fn len(self) -> usize {
        self.to - self.from
    }

    /// The change with this number, from 0.
    pub(super) fn change(self, number: usize) -> Option<&'a Kv> {
        let at = self.from.checked_add(number).filter(|at| *at < self.to)?;
        self.log.changes.get(at)
    }

    /// The changes, in order.
    pub(super) fn changes(self) -> impl Iterator<Item = &'a Kv> {
        (self.from..self.to).filter_map(move |at| self.log.changes.get(at))
    }

    pub(super) fn to_batch(self) -> Batch {
        Batch {
            revision: self.revision,
            events: self.changes().cloned().map(Event::from).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn revisions_have_their_changes_and_leave_from_the_front() {
        let changes = |revision: i64| (0..revision % 3 + 1).map(move |sub| Kv::tombstone(&[sub as u8 + 1], revision));
        let mut log = Log::new(2);
        // The counts pass the 32 bits that the log keeps of them.
        (log.begin, log.total) = (u64::from(u32::MAX) - 20, u64::from(u32::MAX) - 20);
        for revision in 2..40 {
            log.push(revision, changes(revision));
            while let Some(gone) = log.pop_before(revision - 12) {
                let left = log.at(gone.mod_revision()).map_or(0, Revision::len);
                let of_it = changes(gone.mod_revision()).count();
                assert_eq!(left, of_it - 1 - usize::from(gone.key()[0] - 1));
            }
            let first = (revision - 12).max(2);
            let all: Vec<_> = log
                .since(0)
                .map(|at| (at.revision, at.changes().cloned().collect::<Vec<_>>()))
                .collect();
            let expected: Vec<_> = (first..=revision)
                .map(|at| (at, changes(at).collect::<Vec<_>>()))
                .collect();
            assert_eq!(all, expected);
            assert_eq!((log.len(), log.next()), (expected.len(), revision + 1));
            for after in 0..revision + 3 {
                let count = expected
                    .iter()
                    .filter(|(at, _)| *at > after)
                    .map(|(_, of)| of.len() as u64);
                assert_eq!(log.events_after(after), count.sum::<u64>(), "after {after}");
                assert_eq!(
                    log.since(after).next().map(|at| at.revision),
                    (first.max(after)..=revision).next()
                );
            }
        }
    }
}
