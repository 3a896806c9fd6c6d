//! The ordered index: every key with its history, and the number of live keys in any range.
//!
//! The index has leaves of up to [`LEAF_MAX`] histories in key order, and Fenwick trees over the sizes and the live counts
//! of the leaves. Finding a key takes a binary search over the leaves and another inside a leaf. Counting a range takes
//! two ranks, O(log n), however many keys the range holds. So a paginated list takes linear time, while etcd walks the
//! rest of the prefix on every page to fill `count`.

use super::key_history::{KeyHistory, Version};
use super::range::KeyRange;

const LEAF_MAX: usize = 256;

struct Leaf {
    entries: Vec<KeyHistory>,
    live: usize,
}

/// All keys that are live, or have versions that compaction has not removed.
pub(super) struct Index {
    leaves: Vec<Leaf>,
    live: Fenwick,
    /// Over all histories, those of deleted keys included.
    sizes: Fenwick,
    keys: usize,
}

/// The place of a key, or the place to insert it; valid until the index changes.
#[derive(Clone, Copy)]
pub(super) struct Place {
    leaf: usize,
    at: Result<usize, usize>,
}

struct Fenwick(Vec<usize>);

// === impl Index ===

impl Index {
    pub(super) fn new() -> Self {
        Self {
            leaves: vec![Leaf {
                entries: Vec::new(),
                live: 0,
            }],
            live: Fenwick(vec![0]),
            sizes: Fenwick(vec![0]),
            keys: 0,
        }
    }

    /// Number of live keys.
    pub(super) fn live(&self) -> usize {
        self.live.before(self.leaves.len())
    }

    /// Number of keys, tombstoned ones included.
    pub(super) fn keys(&self) -> usize {
        self.keys
    }

    pub(super) fn get(&self, key: &[u8]) -> Option<&KeyHistory> {
        self.get_at(self.place(key))
    }

    /// Finds a key. The search is the most expensive part of a write, so a write searches once and keeps the place.
    pub(super) fn place(&self, key: &[u8]) -> Place {
        let (leaf, at) = self.find(key);
        Place { leaf, at }
    }

    pub(super) fn get_at(&self, place: Place) -> Option<&KeyHistory> {
        let Place { leaf, at } = place;
        at.ok().map(|at| &self.leaves[leaf].entries[at])
    }

    /// Like [`Index::push_at`], without a search, for the last key or a new key after it.
    pub(super) fn append(&mut self, version: Version) {
        let leaf = self.leaves.len() - 1;
        let entries = &self.leaves[leaf].entries;
        let at = match entries.last() {
            Some(last) if last.key() == version.kv.key() => Ok(entries.len() - 1),
            _ => Err(entries.len()),
        };
        self.push_at(Place { leaf, at }, version);
    }

    /// Appends a version to the history of its key. A new key gets a history.
    pub(super) fn push_at(&mut self, place: Place, version: Version) {
        let Place { leaf, at } = place;
        let entries = &mut self.leaves[leaf].entries;
        let (was, is) = match at {
            Ok(at) => {
                let was = entries[at].live().is_some();
                let is = !version.tombstone;
                entries[at].push(version);
                (was, is)
            }
            Err(at) => {
                let is = !version.tombstone;
                entries.insert(at, KeyHistory::from(version));
                self.sizes.add(leaf, 1);
                self.keys += 1;
                (false, is)
            }
        };
        self.adjust(leaf, was, is);
        if self.leaves[leaf].entries.len() > LEAF_MAX {
            self.split(leaf);
        }
    }

    /// Gives the last version of a key another place in its revision.
    pub(super) fn renumber(&mut self, place: Place, sub: u32) {
        let Place { leaf, at } = place;
        if let Ok(at) = at {
            self.leaves[leaf].entries[at].renumber(sub);
        }
    }

    /// Compacts the history of one key to revision `at`, and removes a key without versions. Returns the encoded bytes
    /// freed.
    pub(super) fn compact(&mut self, key: &[u8], at: i64) -> usize {
        let (leaf, Ok(pos)) = self.find(key) else { return 0 };
        let entries = &mut self.leaves[leaf].entries;
        let freed = entries[pos].compact(at);
        if entries[pos].is_empty() {
            // The last version was a tombstone, so live counts do not change.
            entries.remove(pos);
            self.sizes.add(leaf, usize::MAX); // minus one, wrapping
            self.keys -= 1;
            self.merge(leaf);
        }
        freed
    }

    /// Histories of the keys in `range`, in key order.
    pub(super) fn range<'a>(&'a self, range: &'a KeyRange) -> impl Iterator<Item = &'a KeyHistory> + 'a {
        let (leaf, at) = self.find(range.start());
        let first = at.unwrap_or_else(|at| at);
        self.leaves[leaf..]
            .iter()
            .enumerate()
            .flat_map(move |(i, l)| &l.entries[if i == 0 { first } else { 0 }..])
            .take_while(move |h| range.is_before_end(h.key()))
    }

    /// Number of live keys in `range`.
    pub(super) fn count(&self, range: &KeyRange) -> usize {
        let to = match range.end() {
            Some(end) => self.rank(end),
            None => self.live(),
        };
        to.saturating_sub(self.rank(range.start()))
    }

    /// Number of keys in `range` that a read visits, tombstoned ones included.
    pub(super) fn visited(&self, range: &KeyRange) -> usize {
        let before = |key: &[u8]| {
            let (leaf, at) = self.find(key);
            self.sizes.before(leaf) + at.unwrap_or_else(|at| at)
        };
        let to = range.end().map_or(self.keys, before);
        to.saturating_sub(before(range.start()))
    }

    /// Number of live keys before `key`.
    fn rank(&self, key: &[u8]) -> usize {
        let (leaf, at) = self.find(key);
        let at = at.unwrap_or_else(|at| at);
        let Leaf { entries, live } = &self.leaves[leaf];
        let inside = match entries.len() == *live {
            true => at,
            false => entries[..at].iter().filter(|h| h.live().is_some()).count(),
        };
        self.live.before(leaf) + inside
    }

    /// The leaf for `key`, and the place of the key, or the place to insert it, in the leaf.
    fn find(&self, key: &[u8]) -> (usize, Result<usize, usize>) {
        let leaf = self
            .leaves
            .partition_point(|l| l.entries.first().is_some_and(|h| h.key() <= key));
        let leaf = leaf.saturating_sub(1);
        (leaf, self.leaves[leaf].entries.binary_search_by(|h| h.key().cmp(key)))
    }

    /// Counts a key in or out of its leaf.
    fn adjust(&mut self, leaf: usize, was_live: bool, is_live: bool) {
        match (was_live, is_live) {
            (false, true) => {
                self.leaves[leaf].live += 1;
                self.live.add(leaf, 1);
            }
            (true, false) => {
                self.leaves[leaf].live -= 1;
                self.live.add(leaf, usize::MAX); // minus one, wrapping
            }
            _ => {}
        }
    }

    fn split(&mut self, leaf: usize) {
        // Keys often arrive in order: then keep the old leaf nearly full, and begin the new leaf nearly empty.
        let at = if leaf + 1 == self.leaves.len() {
            LEAF_MAX * 7 / 8
        } else {
            LEAF_MAX / 2
        };
        let entries = self.leaves[leaf].entries.split_off(at);
        self.leaves[leaf].entries.shrink_to_fit();
        let live = entries.iter().filter(|h| h.live().is_some()).count();
        self.leaves[leaf].live -= live;
        self.leaves.insert(leaf + 1, Leaf { entries, live });
        self.recount();
    }

    fn merge(&mut self, leaf: usize) {
        if self.leaves[leaf].entries.len() >= LEAF_MAX / 4 || self.leaves.len() == 1 {
            return;
        }
        let left = leaf.saturating_sub(1);
        let together = self.leaves[left].entries.len() + self.leaves[left + 1].entries.len();
        // An empty leaf must go, because the search compares first keys.
        if together > LEAF_MAX / 2 && !self.leaves[leaf].entries.is_empty() {
            return;
        }
        let right = self.leaves.remove(left + 1);
        self.leaves[left].live += right.live;
        self.leaves[left].entries.extend(right.entries);
        debug_assert!(self.leaves.len() == 1 || self.leaves.iter().all(|l| !l.entries.is_empty()));
        self.recount();
    }

    fn recount(&mut self) {
        self.live = Fenwick::of(self.leaves.iter().map(|l| l.live));
        self.sizes = Fenwick::of(self.leaves.iter().map(|l| l.entries.len()));
    }
}

// === impl Fenwick ===

impl Fenwick {
    fn of(counts: impl Iterator<Item = usize>) -> Self {
        let mut tree: Vec<usize> = counts.collect();
        for i in 0..tree.len() {
            let parent = i | (i + 1);
            if parent < tree.len() {
                tree[parent] = tree[parent].wrapping_add(tree[i]);
            }
        }
        Self(tree)
    }

    fn add(&mut self, mut i: usize, delta: usize) {
        while let Some(n) = self.0.get_mut(i) {
            *n = n.wrapping_add(delta);
            i |= i + 1;
        }
    }

    /// Sum of the counts before index `end`.
    fn before(&self, mut end: usize) -> usize {
        let mut sum = 0usize;
        while end > 0 {
            sum = sum.wrapping_add(self.0[end - 1]);
            end &= end - 1;
        }
        sum
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mvcc::Kv;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    fn key(i: usize) -> Vec<u8> {
        format!("k/{i:06}").into_bytes()
    }

    fn version(key: &[u8], main: i64, tombstone: bool) -> Version {
        Version {
            main,
            sub: 0,
            tombstone,
            kv: Kv::tombstone(key, main),
        }
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
                prop_assert_eq!(index.get(&key(from)).is_some(), model.contains_key(&key(from)));
            }
        }
    }
}
