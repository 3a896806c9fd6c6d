//! An interval map over byte strings: finds the ranges that contain a key.
//!
//! The map is a treap: a search tree in the order of (start, end), balanced by random priorities, in which each node
//! knows the last end below it. Every range has one node, so memory is linear however the ranges overlap. A look-up
//! skips every subtree that ends before the key or begins after it, and takes O(log n) for each range that it finds.

use bytes::Bytes;
use smallvec::{SmallVec, smallvec};
use std::cmp::Ordering;
use std::hash::{BuildHasher, RandomState};
use std::ops::Range;

/// Ranges of keys, each with values of type `T`.
#[derive(Debug)]
pub struct IntervalMap<T> {
    root: Tree<T>,
    /// The number of different ranges.
    len: usize,
    /// Makes priorities that nobody can foresee, and so cannot choose ranges by.
    random: RandomState,
    /// The number of nodes ever made.
    made: u64,
}

type Tree<T> = Option<Box<Node<T>>>;

/// The end of a range, exclusive.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum End {
    At(Bytes),
    Never,
}

/// One range with its values, and the subtrees before and after it. No node below has a higher priority.
#[derive(Debug)]
struct Node<T> {
    start: Bytes,
    end: End,
    /// The last end in this subtree.
    reach: End,
    values: SmallVec<[T; 1]>,
    priority: u64,
    before: Tree<T>,
    after: Tree<T>,
}

impl<T> Default for IntervalMap<T> {
    fn default() -> Self {
        Self {
            root: None,
            len: 0,
            random: RandomState::new(),
            made: 0,
        }
    }
}

impl<T: PartialEq> IntervalMap<T> {
    /// Adds `value` over `[start, end)`, or over all keys from `start` on if there is no end. An empty range is ignored.
    pub fn insert(&mut self, start: Bytes, end: Option<Bytes>, value: T) {
        let end = End::from(end);
        if end.is_before(&start) {
            return;
        }
        if let Some(values) = values_of(&mut self.root, &start, &end) {
            values.push(value);
            return;
        }
        self.made += 1;
        self.len += 1;
        let (before, after) = split(self.root.take(), &start, &end);
        let node = Node {
            reach: end.clone(),
            start,
            end,
            values: smallvec![value],
            priority: self.random.hash_one(self.made),
            before: None,
            after: None,
        };
        self.root = join(join(before, Some(Box::new(node))), after);
    }

    /// Removes one `value` that was added over exactly this range.
    pub fn remove(&mut self, start: &Bytes, end: Option<&Bytes>, value: &T) {
        let end = End::from(end.cloned());
        let Some(values) = values_of(&mut self.root, start, &end) else {
            return;
        };
        if let Some(at) = values.iter().position(|v| v == value) {
            values.swap_remove(at);
        }
        if values.is_empty() {
            remove(&mut self.root, start, &end);
            self.len -= 1;
        }
    }

    /// The number of different ranges.
    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

impl<T> IntervalMap<T> {
    /// Calls `found` once for every value whose range contains any of `keys`, with the indices of the keys in the range.
    ///
    /// `keys` must be sorted. The values come in the order of the starts of their ranges.
    pub fn containing(&self, keys: &[&[u8]], mut found: impl FnMut(&T, Range<usize>)) {
        visit(self.root.as_deref(), keys, 0..keys.len(), &mut found);
    }
}

impl End {
    /// Whether the range ends at `key` or before.
    fn is_before(&self, key: &[u8]) -> bool {
        match self {
            Self::At(end) => &end[..] <= key,
            Self::Never => false,
        }
    }
}

impl From<Option<Bytes>> for End {
    fn from(end: Option<Bytes>) -> Self {
        end.map_or(Self::Never, Self::At)
    }
}

impl<T> Node<T> {
    fn cmp(&self, start: &[u8], end: &End) -> Ordering {
        self.start[..].cmp(start).then_with(|| self.end.cmp(end))
    }

    /// Computes `reach` anew after a subtree has changed.
    fn update(&mut self) {
        let below = [&self.before, &self.after].into_iter().flatten().map(|n| &n.reach);
        let reach = below.fold(&self.end, |last, end| last.max(end)).clone();
        self.reach = reach;
    }
}

fn visit<T>(
    mut tree: Option<&Node<T>>,
    keys: &[&[u8]],
    mut of: Range<usize>,
    found: &mut impl FnMut(&T, Range<usize>),
) {
    while let Some(node) = tree {
        of.end = of.start + keys[of.clone()].partition_point(|key| !node.reach.is_before(key));
        if of.is_empty() {
            return;
        }
        visit(node.before.as_deref(), keys, of.clone(), found);
        of.start += keys[of.clone()].partition_point(|key| *key < &node.start[..]);
        let end = of.start + keys[of.clone()].partition_point(|key| !node.end.is_before(key));
        if of.start < end {
            node.values.iter().for_each(|value| found(value, of.start..end));
        }
        tree = node.after.as_deref();
    }
}

/// The values of exactly the range from `start` to `end`.
fn values_of<'a, T>(mut tree: &'a mut Tree<T>, start: &[u8], end: &End) -> Option<&'a mut SmallVec<[T; 1]>> {
    while let Some(node) = tree {
        tree = match node.cmp(start, end) {
            Ordering::Equal => return Some(&mut node.values),
            Ordering::Greater => &mut node.before,
            Ordering::Less => &mut node.after,
        };
    }
    None
}

/// Cuts a tree into the ranges before the range from `start` to `end`, and the ranges after it.
fn split<T>(tree: Tree<T>, start: &[u8], end: &End) -> (Tree<T>, Tree<T>) {
    let Some(mut node) = tree else { return (None, None) };
    if node.cmp(start, end) == Ordering::Less {
        let (before, after) = split(node.after.take(), start, end);
        node.after = before;
        node.update();
        (Some(node), after)
    } else {
        let (before, after) = split(node.before.take(), start, end);
        node.before = after;
        node.update();
        (before, Some(node))
    }
}

/// Makes one tree of two, of which `left` has the ranges before those of `right`.
fn join<T>(left: Tree<T>, right: Tree<T>) -> Tree<T> {
    let (mut left, mut right) = match (left, right) {
        (Some(left), Some(right)) => (left, right),
        (left, right) => return left.or(right),
    };
    if left.priority >= right.priority {
        left.after = join(left.after.take(), Some(right));
        left.update();
        Some(left)
    } else {
        right.before = join(Some(left), right.before.take());
        right.update();
        Some(right)
    }
}

fn remove<T>(tree: &mut Tree<T>, start: &[u8], end: &End) {
    let Some(node) = tree else { return };
    match node.cmp(start, end) {
        Ordering::Greater => remove(&mut node.before, start, end),
        Ordering::Less => remove(&mut node.after, start, end),
        Ordering::Equal => {
            *tree = join(node.before.take(), node.after.take());
            return;
        }
    }
    node.update();
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn depth<T>(tree: &Tree<T>) -> usize {
        tree.as_ref()
            .map_or(0, |node| 1 + depth(&node.before).max(depth(&node.after)))
    }

    /// Checks the order, the priorities and the reaches; returns the number of nodes.
    fn checked<T>(tree: &Tree<T>) -> usize {
        let Some(node) = tree else { return 0 };
        let mut reach = node.end.clone();
        for below in [&node.before, &node.after].into_iter().flatten() {
            assert!(below.priority <= node.priority);
            reach = reach.max(below.reach.clone());
        }
        assert_eq!(reach, node.reach);
        assert!(!node.values.is_empty());
        let is = |tree: &Tree<T>, order| tree.as_ref().is_none_or(|n| n.cmp(&node.start, &node.end) == order);
        assert!(is(&node.before, Ordering::Less) && is(&node.after, Ordering::Greater));
        checked(&node.before) + checked(&node.after) + 1
    }

    proptest! {
        #[test]
        fn a_look_up_finds_exactly_the_ranges_that_contain_the_keys(
            ranges in proptest::collection::vec(("[a-d]{0,3}", proptest::option::of("[a-d]{0,3}")), 0..24),
            removed in proptest::collection::vec(any::<prop::sample::Index>(), 0..12),
            mut keys in proptest::collection::vec("[a-d]{0,3}", 0..5),
        ) {
            let bytes = |text: &String| Bytes::from(text.clone());
            let mut map = IntervalMap::default();
            let mut model: Vec<_> = ranges.into_iter().enumerate().collect();
            for (id, (start, end)) in &model {
                map.insert(bytes(start), end.as_ref().map(bytes), *id);
            }
            for index in removed {
                if model.is_empty() { break; }
                let (id, (start, end)) = model.remove(index.index(model.len()));
                map.remove(&bytes(&start), end.as_ref().map(bytes).as_ref(), &id);
            }
            model.retain(|(_, (start, end))| end.as_ref().is_none_or(|end| start < end));
            keys.sort();
            let sorted: Vec<&[u8]> = keys.iter().map(String::as_bytes).collect();
            let mut found = vec![];
            map.containing(&sorted, |id, keys| found.push((*id, keys.collect::<Vec<_>>())));
            found.sort();
            let contain = |(id, (start, end)): &(usize, (String, Option<String>))| {
                let inside = |key: &String| start <= key && end.as_ref().is_none_or(|end| key < end);
                let inside: Vec<_> = (0..keys.len()).filter(|i| inside(&keys[*i])).collect();
                (!inside.is_empty()).then_some((*id, inside))
            };
            prop_assert_eq!(found, model.iter().filter_map(contain).collect::<Vec<_>>());
            prop_assert_eq!(checked(&map.root), map.len());
            let distinct: BTreeSet<_> = model.iter().map(|(_, range)| range.clone()).collect();
            prop_assert_eq!(map.len(), distinct.len());
        }
    }

    #[test]
    fn nested_ranges_take_one_node_each_and_the_tree_stays_flat() {
        const RANGES: usize = 20_000;
        let bound = |letter: char, n: usize| Bytes::from(format!("{letter}{n:05}"));
        let range = |i: usize| (bound('a', i), Some(bound('b', RANGES - i)));
        let mut map = IntervalMap::default();
        for i in 0..RANGES {
            let (start, end) = range(i);
            map.insert(start, end, i);
        }
        assert_eq!((checked(&map.root), map.len()), (RANGES, RANGES));
        assert!(depth(&map.root) < 100, "{}", depth(&map.root));
        let found = |map: &IntervalMap<usize>, key: &[u8]| {
            let mut n = 0;
            map.containing(&[key], |_, _| n += 1);
            n
        };
        assert_eq!(found(&map, b"a"), 0);
        assert_eq!(found(&map, b"a00099x"), 100);
        assert_eq!(found(&map, b"b"), RANGES);
        assert_eq!(found(&map, b"b19900"), 100);
        for i in (0..RANGES).rev() {
            let (start, end) = range(i);
            map.remove(&start, end.as_ref(), &i);
        }
        assert!(map.root.is_none() && map.is_empty());
    }
}
