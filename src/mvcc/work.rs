//! How much a request would read, before it runs.

use super::index::Size;
use super::range::{KeyRange, RangeOptions};
use super::state::State;
use super::store::Store;
use super::txn::{Op, Txn};
use std::ops::AddAssign;

/// An upper bound of what a request looks at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Work {
    /// Keys that are visited, deleted keys that compaction has not removed included; at least one for each compare and
    /// each operation. Counting at an older revision may look at changes instead of keys.
    pub keys: usize,
    /// Compares and operations, those of nested transactions included.
    pub ops: usize,
}

impl AddAssign for Work {
    fn add_assign(&mut self, more: Self) {
        self.keys = self.keys.saturating_add(more.keys);
        self.ops = self.ops.saturating_add(more.ops);
    }
}

impl Store {
    /// The keys that a range read would visit. Takes O(log n).
    pub fn work_of_range(&self, options: &RangeOptions) -> usize {
        self.state.read().work_of_range(options)
    }

    /// What a transaction would look at: every compare and the operations of both branches, at every depth. Takes
    /// O(log n) for each, in one lock for each.
    pub fn work_of_txn(&self, txn: &Txn) -> Work {
        let mut work = Work::default();
        for compare in &txn.compares {
            work += Work::of(self.state.read().keys_of(&compare.range));
        }
        for op in txn.ops() {
            let more = match op {
                Op::Range(options) => Work::of(self.work_of_range(options)),
                Op::Put(_) => Work::of(1),
                Op::Delete(range) => Work::of(self.state.read().keys_of(range)),
                Op::Txn(nested) => {
                    work += self.work_of_txn(nested);
                    Work::of(1)
                }
            };
            work += more;
        }
        work
    }
}

impl Work {
    /// One compare or operation.
    fn of(keys: usize) -> Self {
        let keys = keys.max(1);
        Self { keys, ops: 1 }
    }
}

impl State {
    fn work_of_range(&self, options: &RangeOptions) -> usize {
        let range = &options.range;
        let count = match options.revision {
            r if r > 0 => self.work_of_count(range, r),
            _ => 0,
        };
        let visited = match options.needed() {
            _ if options.count_only => 0,
            None => self.keys_of(range),
            // A limit ends the read after so many live keys, but tombstones may come before these.
            Some(_) if range.is_single() => 1,
            Some(needed) => {
                let Size { keys, live } = self.index.size(range);
                keys.min(needed.saturating_add(keys - live))
            }
        };
        count.saturating_add(visited).max(1)
    }

    fn keys_of(&self, range: &KeyRange) -> usize {
        match range.is_single() {
            true => 1,
            false => self.index.visited(range),
        }
    }
}
