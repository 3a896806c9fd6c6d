//! Counts of paginated lists: the number of keys left after a page, so that the next page need not count.

use super::range::KeyRange;
use bytes::Bytes;
use std::collections::{HashMap, VecDeque};

/// Remembered counts; the oldest is forgotten first.
const MAX: usize = 256;
/// Bytes of the two keys of a range whose count is remembered. Longer keys are counted again.
const MAX_KEYS: usize = 4 << 10;

/// The rest of a list after one of its pages.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(super) struct Rest {
    /// The keys that the list has not returned yet.
    pub(super) range: KeyRange,
    /// The revision of the list. The count at one revision of a generation never changes.
    pub(super) revision: i64,
    /// The generation of the store's state.
    pub(super) generation: u64,
}

/// Counts of the rests of lists.
#[derive(Default)]
pub(super) struct Pages {
    counts: HashMap<Rest, usize>,
    order: VecDeque<Rest>,
}

impl Pages {
    pub(super) fn put(&mut self, rest: &Rest, count: usize) {
        let (start, end) = rest.range.bounds();
        if start.len() + end.map_or(0, Bytes::len) > MAX_KEYS {
            return;
        }
        let rest = Rest {
            range: rest.range.detached(),
            ..rest.clone()
        };
        if self.counts.insert(rest.clone(), count).is_none() {
            self.order.push_back(rest);
        }
        while self.order.len() > MAX {
            let oldest = self.order.pop_front();
            oldest.map(|oldest| self.counts.remove(&oldest));
        }
    }

    /// Looks a count up and keeps it, because many clients read the same list.
    pub(super) fn get(&self, rest: &Rest) -> Option<usize> {
        self.counts.get(rest).copied()
    }
}
