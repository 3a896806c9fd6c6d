//! The ordered index: every key with its history, and the number of live keys in any range.
//!
//! The index is a tree of three levels: leaves of up to [`LEAF_MAX`] histories in key order, branches of up to
//! [`BRANCH_MAX`] leaves, and the list of all branches. Fenwick trees (`counts`) over the leaves of a branch, and over the
//! branches, know the numbers of keys and of live keys before each. Finding a key takes a binary search in each level.
//! Counting a range takes two ranks, O(log n), however many keys the range holds. So a paginated list takes linear time,
//! while etcd walks the rest of the prefix on every page to fill `count`. A leaf that splits changes its branch only, so
//! that the time of a put does not grow with the index.

mod branch;
mod counts;

use super::encoded::Kv;
use super::key_history::KeyHistory;
use super::range::KeyRange;
use branch::{Branch, Fits, Leaf};
use counts::Counts;

/// Keys of a leaf, and leaves of a branch. Few in unit tests, so that tests reach every level.
const LEAF_MAX: usize = if cfg!(test) { 16 } else { 256 };
const BRANCH_MAX: usize = if cfg!(test) { 8 } else { 256 };

/// All keys that are live, or have versions that compaction has not removed.
pub(super) struct Index {
    /// At least one. Only the branch of an index without keys has an empty leaf.
    branches: Vec<Branch>,
    /// Over the live keys of the branches.
    live: Counts,
    /// Over all keys of the branches, deleted ones included.
    sizes: Counts,
}

/// The place of a key, or the place to insert it; valid until the index changes.
#[derive(Clone, Copy)]
pub(super) struct Place {
    branch: usize,
    leaf: usize,
    at: Result<usize, usize>,
}

/// How many keys a range has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Size {
    /// All of them, deleted ones included.
    pub(super) keys: usize,
    pub(super) live: usize,
}

/// The histories of a range, in key order.
pub(super) struct Histories<'a> {
    index: &'a Index,
    /// The present leaf, and what is left of it.
    branch: usize,
    leaf: usize,
    entries: std::slice::Iter<'a, KeyHistory>,
    /// The first key after the range.
    end: Option<&'a [u8]>,
}

// === impl Place ===

impl Place {
    fn index(self) -> usize {
        self.at.unwrap_or_else(|at| at)
    }
}

// === impl Index ===

impl Index {
    pub(super) fn new() -> Self {
        let mut index = Self {
            branches: vec![Branch::new(vec![Leaf::new(Vec::new())])],
            live: Counts::of(std::iter::empty()),
            sizes: Counts::of(std::iter::empty()),
        };
        index.recount();
        index
    }

    fn recount(&mut self) {
        self.live = Counts::of(self.branches.iter().map(Branch::live));
        self.sizes = Counts::of(self.branches.iter().map(Branch::keys));
    }

    /// Number of live keys.
    pub(super) fn live(&self) -> usize {
        self.live.total()
    }

    /// Number of keys, tombstoned ones included.
    pub(super) fn keys(&self) -> usize {
        self.sizes.total()
    }

    pub(super) fn get(&self, key: &[u8]) -> Option<&KeyHistory> {
        self.get_at(self.place(key))
    }

    /// Finds a key. The search is the most expensive part of a write, so a write searches once and keeps the place.
    pub(super) fn place(&self, key: &[u8]) -> Place {
        let branch = self.branches.partition_point(|branch| branch.starts_by(key));
        let branch = branch.saturating_sub(1);
        let (leaf, at) = self.branches[branch].find(key);
        Place { branch, leaf, at }
    }

    pub(super) fn get_at(&self, place: Place) -> Option<&KeyHistory> {
        let Place { branch, leaf, at } = place;
        at.ok().map(|at| &self.branches[branch].leaves[leaf].entries[at])
    }

    /// The key-value before the revision of `change`, as events carry it. The index has it unless a compaction to that
    /// revision or a later one was purged.
    pub(super) fn before(&self, change: &Kv) -> Option<&Kv> {
        // Parity: a key that the revision has created has no previous key-value, even if the revision has deleted an older
        // one.
        if change.is_created() {
            return None;
        }
        self.get(change.key())?.at(change.mod_revision() - 1)
    }

    /// Like [`Index::push_at`], without a search, for the last key or a new key after it.
    pub(super) fn append(&mut self, version: Kv) {
        let branch = self.branches.len() - 1;
        let leaf = self.branches[branch].leaves.len() - 1;
        let entries = &self.branches[branch].leaves[leaf].entries;
        let at = match entries.last() {
            Some(last) if last.key() == version.key() => Ok(entries.len() - 1),
            _ => Err(entries.len()),
        };
        self.push_at(Place { branch, leaf, at }, version);
    }

    /// Appends a version to the history of its key. A new key gets a history.
    pub(super) fn push_at(&mut self, place: Place, version: Kv) {
        let (branch, is_live) = (place.branch, !version.is_tombstone());
        let of = &mut self.branches[branch];
        let was_live = match place.at {
            Ok(at) => {
                let history = &mut of.leaves[place.leaf].entries[at];
                let was_live = history.live().is_some();
                history.push(version);
                of.adjust(place.leaf, was_live, is_live);
                was_live
            }
            Err(at) => {
                let fits = of.insert(place.leaf, at, KeyHistory::new(version));
                self.sizes.add(branch, 1);
                if fits == Fits::TooMany {
                    return self.split(branch);
                }
                false
            }
        };
        match (was_live, is_live) {
            (false, true) => self.live.add(branch, 1),
            (true, false) => self.live.subtract(branch, 1),
            _ => {}
        }
    }

    /// Gives the last version of a key another place in its revision.
    pub(super) fn renumber(&mut self, place: Place, sub: u32) {
        let Place { branch, leaf, at } = place;
        if let Ok(at) = at {
            self.branches[branch].leaves[leaf].entries[at].renumber(sub);
        }
    }

    /// Compacts the history of one key to revision `at`, and removes a key without versions. Returns the encoded bytes
    /// freed.
    pub(super) fn compact(&mut self, key: &[u8], at: i64) -> usize {
        let Place {
            branch,
            leaf,
            at: Ok(place),
        } = self.place(key)
        else {
            return 0;
        };
        let of = &mut self.branches[branch];
        let freed = of.leaves[leaf].entries[place].compact(at);
        if freed.all {
            // The last version was a tombstone, so live counts do not change.
            of.remove(leaf, place);
            self.sizes.subtract(branch, 1);
            self.merge(branch);
        }
        freed.bytes
    }

    fn split(&mut self, branch: usize) {
        let is_last = branch + 1 == self.branches.len();
        let right = self.branches[branch].split(is_last);
        self.branches.insert(branch + 1, right);
        self.recount();
    }

    /// Merges a small branch with a neighbour, if that has room.
    fn merge(&mut self, branch: usize) {
        let is_small = self.branches[branch].leaves.len() < BRANCH_MAX / 4;
        if !is_small || self.branches.len() == 1 {
            return;
        }
        if self.branches[branch].keys() == 0 {
            // The search compares first keys.
            self.branches.remove(branch);
            return self.recount();
        }
        let left = branch.saturating_sub(1);
        let together = self.branches[left].leaves.len() + self.branches[left + 1].leaves.len();
        if together <= BRANCH_MAX / 2 {
            let right = self.branches.remove(left + 1);
            self.branches[left].append(right);
            self.recount();
        }
    }

    /// Histories of the keys in `range`, in key order.
    pub(super) fn range<'a>(&'a self, range: &'a KeyRange) -> Histories<'a> {
        let place = self.place(range.start());
        let (branch, leaf) = (place.branch, place.leaf);
        let mut histories = Histories {
            index: self,
            branch,
            leaf,
            entries: self.branches[branch].leaves[leaf].entries[place.index()..].iter(),
            end: range.end(),
        };
        histories.cut();
        histories
    }

    /// Number of live keys in `range`.
    pub(super) fn count(&self, range: &KeyRange) -> usize {
        self.size(range).live
    }

    /// Number of keys in `range` that a read visits, tombstoned ones included.
    pub(super) fn visited(&self, range: &KeyRange) -> usize {
        self.size(range).keys
    }

    /// The numbers of keys in `range`.
    pub(super) fn size(&self, range: &KeyRange) -> Size {
        let to = match range.end() {
            Some(end) => self.before_key(end),
            None => Size {
                keys: self.keys(),
                live: self.live(),
            },
        };
        let from = self.before_key(range.start());
        Size {
            keys: to.keys.saturating_sub(from.keys),
            live: to.live.saturating_sub(from.live),
        }
    }

    /// The numbers of keys before `key`.
    fn before_key(&self, key: &[u8]) -> Size {
        let place = self.place(key);
        let branch = &self.branches[place.branch];
        Size {
            keys: self.sizes.before(place.branch) + branch.keys_before(place.leaf, place.index()),
            live: self.live.before(place.branch) + branch.live_before(place.leaf, place.index()),
        }
    }
}

// === impl Histories ===

impl Histories<'_> {
    /// Cuts what is left of the present leaf where the range ends.
    fn cut(&mut self) {
        let Some(end) = self.end else { return };
        let entries = self.entries.as_slice();
        if entries.last().is_none_or(|last| last.key() < end) {
            return;
        }
        self.entries = entries[..entries.partition_point(|h| h.key() < end)].iter();
        // No later leaf has keys of the range.
        self.branch = usize::MAX;
    }

    /// Goes to the next leaf; false at the end.
    fn advance(&mut self) -> bool {
        let Some(branch) = self.index.branches.get(self.branch) else {
            return false;
        };
        (self.branch, self.leaf) = match self.leaf + 1 < branch.leaves.len() {
            true => (self.branch, self.leaf + 1),
            false => (self.branch + 1, 0),
        };
        let Some(branch) = self.index.branches.get(self.branch) else {
            return false;
        };
        self.entries = branch.leaves[self.leaf].entries.iter();
        self.cut();
        true
    }
}

impl<'a> Iterator for Histories<'a> {
    type Item = &'a KeyHistory;

    fn next(&mut self) -> Option<&'a KeyHistory> {
        loop {
            if let Some(history) = self.entries.next() {
                return Some(history);
            }
            if !self.advance() {
                return None;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mvcc::Fields;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    fn key(i: usize) -> Vec<u8> {
        format!("k/{i:06}").into_bytes()
    }

    fn version(key: &[u8], mod_revision: i64, tombstone: bool) -> Kv {
        Kv::new(&Fields {
            key,
            create_revision: if tombstone { 0 } else { mod_revision },
            mod_revision,
            ..Fields::default()
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

        #[test]
        fn leaves_that_fill_and_drain_agree_with_a_map(
            spans in proptest::collection::vec((0usize..6000, 1usize..2500, any::<bool>()), 1..12),
            probes in proptest::collection::vec((0usize..6500, 0usize..3000), 1..20),
        ) {
            let mut index = Index::new();
            let mut model = BTreeMap::new();
            for (main, (from, len, put)) in (2..).zip(spans) {
                for i in from..from + len {
                    if !put && !model.contains_key(&key(i)) {
                        continue;
                    }
                    index.push_at(index.place(&key(i)), version(&key(i), main, !put));
                    if put { model.insert(key(i), main); } else { model.remove(&key(i)); }
                }
                // Compacting after each change empties leaves in the middle.
                for i in from..from + len {
                    index.compact(&key(i), main + 1);
                }
                prop_assert_eq!(index.live(), model.len());
                prop_assert_eq!(index.keys(), model.len());
                let levels = index.branches.iter().all(|b| {
                    let full = b.leaves.iter().all(|l| (1..=LEAF_MAX).contains(&l.entries.len()));
                    (1..=BRANCH_MAX).contains(&b.leaves.len()) && (full || model.is_empty())
                });
                prop_assert!(levels, "too many or too few parts");
                // Tombstones count among the visited keys until they are compacted.
                let all = KeyRange::all();
                index.push_at(index.place(b"z"), version(b"z", main, false));
                index.push_at(index.place(b"z"), version(b"z", main + 1, true));
                prop_assert_eq!((index.count(&all), index.visited(&all)), (model.len(), model.len() + 1));
                index.compact(b"z", main + 2);
            }
            for (from, len) in probes {
                let range = KeyRange::new(key(from), key(from + len));
                let expected: Vec<_> = model.range(key(from)..key(from + len)).map(|(k, _)| k.clone()).collect();
                let found: Vec<_> = index.range(&range).map(|h| h.key().to_vec()).collect();
                prop_assert_eq!(index.count(&range), expected.len());
                prop_assert_eq!(index.visited(&range), expected.len());
                prop_assert_eq!(found, expected);
                let rest: Vec<_> = model.range(key(from)..).map(|(k, _)| k.clone()).collect();
                let range = KeyRange::new(key(from), &b"\0"[..]);
                prop_assert_eq!(index.range(&range).map(|h| h.key().to_vec()).collect::<Vec<_>>(), rest);
                prop_assert_eq!(index.get(&key(from)).is_some(), model.contains_key(&key(from)));
            }
        }
    }
}
