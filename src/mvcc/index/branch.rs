//! A branch of the index: consecutive leaves, and how many keys they have.

use super::counts::Counts;
use super::{BRANCH_MAX, LEAF_MAX};
use crate::mvcc::key_history::KeyHistory;

/// Places that a leaf gets at a time. A leaf that doubled its places would have a quarter of them empty.
const LEAF_STEP: usize = LEAF_MAX / 8;

/// Consecutive keys. Only the leaf of an index without keys is empty.
pub(super) struct Leaf {
    pub(super) entries: Vec<KeyHistory>,
    live: usize,
}

/// Consecutive leaves, at least one.
pub(super) struct Branch {
    pub(super) leaves: Vec<Leaf>,
    /// Over the live keys of the leaves.
    live: Counts,
    /// Over all keys of the leaves, deleted ones included.
    sizes: Counts,
}

/// What an insertion needs next.
#[derive(PartialEq, Eq)]
pub(super) enum Fits {
    Yes,
    /// The branch has too many leaves.
    TooMany,
}

// === impl Leaf ===

impl Leaf {
    pub(super) fn new(entries: Vec<KeyHistory>) -> Self {
        let live = entries.iter().filter(|history| history.live().is_some()).count();
        Self { entries, live }
    }

    fn insert(&mut self, at: usize, history: KeyHistory) {
        if self.entries.len() == self.entries.capacity() {
            self.entries.reserve_exact(LEAF_STEP);
        }
        self.entries.insert(at, history);
    }

    /// The number of live keys among the first `at`.
    fn live_before(&self, at: usize) -> usize {
        match self.entries.len() == self.live {
            true => at,
            false => self.entries[..at].iter().filter(|h| h.live().is_some()).count(),
        }
    }

    /// Moves the entries from `at` on to another leaf.
    fn split(&mut self, at: usize) -> Self {
        let right = Self::new(self.entries.split_off(at));
        self.entries.shrink_to_fit();
        self.live -= right.live;
        right
    }

    fn starts_by(&self, key: &[u8]) -> bool {
        self.entries.first().is_some_and(|h| h.key() <= key)
    }
}

// === impl Branch ===

impl Branch {
    pub(super) fn new(leaves: Vec<Leaf>) -> Self {
        let mut branch = Self {
            leaves,
            live: Counts::of(std::iter::empty()),
            sizes: Counts::of(std::iter::empty()),
        };
        branch.recount();
        branch
    }

    fn recount(&mut self) {
        self.live = Counts::of(self.leaves.iter().map(|leaf| leaf.live));
        self.sizes = Counts::of(self.leaves.iter().map(|leaf| leaf.entries.len()));
    }

    pub(super) fn live(&self) -> usize {
        self.live.total()
    }

    pub(super) fn keys(&self) -> usize {
        self.sizes.total()
    }

    /// The number of live keys before a place.
    pub(super) fn live_before(&self, leaf: usize, at: usize) -> usize {
        self.live.before(leaf) + self.leaves[leaf].live_before(at)
    }

    /// The number of keys before a place.
    pub(super) fn keys_before(&self, leaf: usize, at: usize) -> usize {
        self.sizes.before(leaf) + at
    }

    pub(super) fn starts_by(&self, key: &[u8]) -> bool {
        self.leaves[0].starts_by(key)
    }

    /// The leaf for `key`, and the place of the key, or the place to insert it, in the leaf.
    pub(super) fn find(&self, key: &[u8]) -> (usize, Result<usize, usize>) {
        let leaf = self.leaves.partition_point(|leaf| leaf.starts_by(key));
        let leaf = leaf.saturating_sub(1);
        (leaf, self.leaves[leaf].entries.binary_search_by(|h| h.key().cmp(key)))
    }

    /// Counts a key of a leaf in or out.
    pub(super) fn adjust(&mut self, leaf: usize, was_live: bool, is_live: bool) {
        match (was_live, is_live) {
            (false, true) => {
                self.leaves[leaf].live += 1;
                self.live.add(leaf, 1);
            }
            (true, false) => {
                self.leaves[leaf].live -= 1;
                self.live.subtract(leaf, 1);
            }
            _ => {}
        }
    }

    /// Inserts a key that is live or not.
    pub(super) fn insert(&mut self, leaf: usize, at: usize, history: KeyHistory) -> Fits {
        let is_live = history.live().is_some();
        self.leaves[leaf].insert(at, history);
        self.sizes.add(leaf, 1);
        self.adjust(leaf, false, is_live);
        let len = self.leaves[leaf].entries.len();
        if len <= LEAF_MAX {
            return Fits::Yes;
        }
        // Keys often arrive in order: then keep the old leaf nearly full, and begin the new leaf nearly empty.
        let middle = if at + 1 == len { LEAF_MAX * 7 / 8 } else { LEAF_MAX / 2 };
        let right = self.leaves[leaf].split(middle);
        self.leaves.insert(leaf + 1, right);
        self.recount();
        match self.leaves.len() <= BRANCH_MAX {
            true => Fits::Yes,
            false => Fits::TooMany,
        }
    }

    /// Removes a key that is not live. The leaf may be empty then, if it is the only one.
    pub(super) fn remove(&mut self, leaf: usize, at: usize) {
        self.leaves[leaf].entries.remove(at);
        self.sizes.subtract(leaf, 1);
        if self.leaves[leaf].entries.len() < LEAF_MAX / 4 && self.leaves.len() > 1 {
            self.merge(leaf);
        }
    }

    /// Merges a small leaf with a neighbour, if that has room.
    fn merge(&mut self, leaf: usize) {
        let left = leaf.saturating_sub(1);
        let together = self.leaves[left].entries.len() + self.leaves[left + 1].entries.len();
        // An empty leaf must go, because the search compares first keys.
        if together > LEAF_MAX / 2 && !self.leaves[leaf].entries.is_empty() {
            return;
        }
        let right = self.leaves.remove(left + 1);
        self.leaves[left].live += right.live;
        self.leaves[left].entries.reserve_exact(right.entries.len());
        self.leaves[left].entries.extend(right.entries);
        self.recount();
    }

    /// Moves the second half of the leaves to another branch. At the end of the index, where keys arrive in order, a smaller
    /// part moves.
    pub(super) fn split(&mut self, is_last: bool) -> Self {
        let at = if is_last { BRANCH_MAX * 7 / 8 } else { BRANCH_MAX / 2 };
        let right = Self::new(self.leaves.split_off(at));
        self.leaves.shrink_to_fit();
        self.recount();
        right
    }

    /// Takes the leaves of the next branch.
    pub(super) fn append(&mut self, next: Self) {
        self.leaves.extend(next.leaves);
        self.recount();
    }
}
