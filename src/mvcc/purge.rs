//! Freeing what compactions have made unreadable, in short steps.
//!
//! A *pass* goes through the revision log up to a bound, and compacts the history of each changed key to the bound. The log
//! loses the changes before the bound as they are visited, so a step may end inside a revision. The revision at the bound
//! stays in the log, because a watch may start there, and so do its tombstones; the next pass visits these again.

use super::index::Index;
use super::log::Log;

/// Changes that a step visits, at most. Few in unit tests, so that every purge ends inside revisions.
const STEP: usize = if cfg!(test) { 3 } else { 256 };
/// Changes between two questions whether to go on. Each takes microseconds in a large store, whose keys no cache holds.
const ASK: usize = 2;

/// How far the purge has come.
#[derive(Debug, Default)]
pub(super) struct Purge {
    /// The bound of the last pass that ended. Never above the compact revision.
    done: i64,
    /// The bound of the present pass; that of the last one between two passes.
    bound: i64,
    /// How many changes of the revision `bound` the present pass has visited.
    visited: usize,
}

impl Purge {
    /// Everything was compacted to `revision` already.
    pub(super) fn done(revision: i64) -> Self {
        Self {
            done: revision,
            bound: revision,
            visited: 0,
        }
    }

    /// The history before this revision is purged.
    pub(super) fn revision(&self) -> i64 {
        self.done
    }

    /// Frees some of the history in `log` and `index` before revision `target`, until `go_on` says no; true if there is more to
    /// free. What is freed leaves `bytes`.
    pub(super) fn step(
        &mut self,
        log: &mut Log,
        index: &mut Index,
        bytes: &mut usize,
        target: i64,
        go_on: &mut dyn FnMut() -> bool,
    ) -> bool {
        // A later compaction, or a read that ends, changes the next pass and not this one, so that no tombstone is missed.
        // A pin taken meanwhile is not below the bound, which was compacted before.
        if self.bound == self.done {
            self.bound = target.max(self.done);
        }
        let mut visited = 0;
        while self.done < self.bound {
            let change = log.pop_before(self.bound).or_else(|| {
                let last = log.at(self.bound)?.change(self.visited)?.clone();
                self.visited += 1;
                Some(last)
            });
            let Some(change) = change else {
                *self = Self::done(self.bound);
                break;
            };
            // The pass before has visited its bound, and has left nothing but tombstones.
            if change.mod_revision() > self.done || change.is_tombstone() {
                *bytes = bytes.saturating_sub(index.compact(change.key(), self.bound));
            }
            visited += 1;
            if visited == STEP || (visited % ASK == 0 && !go_on()) {
                break;
            }
        }
        self.done < self.bound.max(target)
    }
}
