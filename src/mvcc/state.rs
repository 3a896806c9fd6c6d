//! The data of a store: everything that the store's lock protects, and the rules for reading it.

use super::Error;
use super::encoded::Kv;
use super::groups::Groups;
use super::index::Index;
use super::lease_book::LeaseBook;
use super::log::{Log, Revision};
use super::purge::Purge;
use super::range::{KeyRange, RangeOptions, RangeResult};

/// Reported size of a store without keys, in bytes, like the empty file of an etcd.
const EMPTY: usize = 20 << 10;
/// Reported size of a lease, in bytes.
const LEASE: usize = 64;

/// Keys, leases, the revision log and the watcher groups of one store.
pub(super) struct State {
    pub(super) index: Index,
    pub(super) log: Log,
    pub(super) leases: LeaseBook,
    pub(super) groups: Groups,
    /// The last committed revision.
    pub(super) current: i64,
    /// The last published revision: the one that readers and watchers see. Never above `current`.
    pub(super) visible: i64,
    /// Reads below this revision fail; −1 if never compacted.
    pub(super) compacted: i64,
    pub(super) purge: Purge,
    /// Encoded bytes of all versions.
    pub(super) bytes: usize,
    /// Encoded bytes of the newest versions of live keys.
    pub(super) live_bytes: usize,
    /// Whether a part of the revision `compacted` is missing in the log, because the state came from lists.
    pub(super) partial: bool,
    /// How many states were swapped in before this one.
    pub(super) generation: u64,
}

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
            purge: Purge::default(),
            bytes: 0,
            live_bytes: 0,
            partial: false,
            generation: 0,
        }
    }

    /// The empty state of a store that follows another one.
    pub(super) fn following() -> Self {
        Self {
            leases: LeaseBook::implied(),
            ..Self::new()
        }
    }

    /// The published revisions of the log from `from` on.
    pub(super) fn visible_since(&self, from: i64) -> impl Iterator<Item = Revision<'_>> {
        self.log.since(from).take_while(|at| at.revision <= self.visible)
    }

    /// Encoded bytes of the versions that a compaction to now would free: of those that later ones have replaced, and of
    /// tombstones.
    pub(super) fn history_bytes(&self) -> usize {
        self.bytes.saturating_sub(self.live_bytes)
    }

    /// Estimated bytes of the store, including the index and the log.
    pub(super) fn size(&self) -> usize {
        EMPTY + self.leases.len() * LEASE + self.bytes + self.index.keys() * 64 + self.log.len() * 120
    }

    /// The revision that a read asks for, if that revision can be read.
    pub(super) fn readable(&self, revision: i64) -> Result<i64, Error> {
        match revision {
            r if r > self.visible => Err(Error::FutureRevision),
            r if r <= 0 => Ok(self.visible),
            r if r < self.compacted => Err(Error::Compacted),
            r => Ok(r),
        }
    }

    /// Reads inside a transaction at revision `now`, whose events so far are `pending`. The caller has
    /// checked the revision asked for.
    pub(super) fn range(&self, options: &RangeOptions, now: i64, pending: &[Kv]) -> RangeResult {
        let at = if options.revision <= 0 { now } else { options.revision };
        if options.range.is_single() {
            return RangeResult {
                revision: now,
                ..self.single(options, at)
            };
        }
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

    /// Reads one key at revision `at` with one search. The caller fills in the revision of the result.
    pub(super) fn single(&self, options: &RangeOptions, at: i64) -> RangeResult {
        let kv = self.index.get(options.range.start()).and_then(|h| h.at(at));
        let mut result = RangeResult {
            count: usize::from(kv.is_some()),
            ..RangeResult::default()
        };
        if !options.count_only {
            (result.kvs, result.more) = options.finish(kv.cloned().into_iter().collect());
        }
        result
    }

    /// Keys in `range` that were live at revision `at`: the keys live now, corrected by the changes since.
    pub(super) fn count(&self, range: &KeyRange, at: i64, pending: &[Kv]) -> usize {
        let pending = if at > self.current { &[] } else { pending };
        // Either undo the changes since, or look at each key, whichever is less work.
        let changes = self.log.events_after(at) + pending.len() as u64;
        if changes > 0 && changes > self.index.visited(range) as u64 {
            return self.index.range(range).filter(|h| h.at(at).is_some()).count();
        }
        let since = self.log.since(at + 1).map(|revision| undone(revision.changes(), range));
        let delta = since.sum::<i64>() + undone(pending.iter(), range);
        usize::try_from(self.index.count(range) as i64 + delta).unwrap_or(0)
    }

    /// The number of changes or keys that [`State::count`] looks at.
    pub(super) fn work_of_count(&self, range: &KeyRange, at: i64) -> usize {
        match usize::try_from(self.log.events_after(at)).unwrap_or(usize::MAX) {
            0 => 0,
            changes => changes.min(self.index.visited(range)),
        }
    }

    /// Makes revisions before `revision` unreadable. [`State::purge`] frees their memory.
    pub(super) fn compact(&mut self, revision: i64) -> Result<(), Error> {
        if revision <= self.compacted {
            return Err(Error::Compacted);
        }
        if revision > self.visible {
            return Err(Error::FutureRevision);
        }
        // Later revisions are whole.
        (self.compacted, self.partial) = (revision, false);
        Ok(())
    }

    /// Frees some of the compacted history before revision `pinned`, until `go_on` says no; true if there is more to free.
    pub(super) fn purge(&mut self, pinned: i64, go_on: &mut dyn FnMut() -> bool) -> bool {
        let target = self.compacted.min(pinned);
        self.purge
            .step(&mut self.log, &mut self.index, &mut self.bytes, target, go_on)
    }
}

/// What undoing `changes` adds to the number of live keys in `range`.
pub(super) fn undone<'a>(changes: impl Iterator<Item = &'a Kv>, range: &KeyRange) -> i64 {
    let undo = |kv: &Kv| match kv.is_tombstone() {
        true => 1,
        false => -i64::from(kv.is_first()),
    };
    changes.filter(|kv| range.contains(kv.key())).map(undo).sum()
}
