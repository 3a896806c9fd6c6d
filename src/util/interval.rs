//! An interval map over byte strings: finds the ranges that contain a key.
//!
//! The key space is cut at the ends of every range; each segment lists the ranges that cover it. A look-up is one
//! search, whatever the number of ranges; adding a range touches the segments that it covers. Watched ranges are
//! prefixes, nested or disjoint, so a range covers few segments.

use bytes::Bytes;
use std::collections::BTreeMap;
use std::ops::Bound;

/// Ranges of keys, each with a value of type `T`.
#[derive(Debug)]
pub struct IntervalMap<T> {
    /// Start of a segment → the values of the ranges that cover it, up to the next start.
    segments: BTreeMap<Bytes, Vec<T>>,
}

impl<T> Default for IntervalMap<T> {
    fn default() -> Self {
        Self {
            segments: BTreeMap::new(),
        }
    }
}

impl<T: Clone + PartialEq> IntervalMap<T> {
    /// Adds `value` over `[start, end)`, or over all keys from `start` on if there is no end. An empty range is ignored.
    pub fn insert(&mut self, start: &[u8], end: Option<&[u8]>, value: T) {
        if end.is_some_and(|end| end <= start) {
            return;
        }
        self.cut(start);
        if let Some(end) = end {
            self.cut(end);
        }
        for (_, values) in self.segments.range_mut::<[u8], _>(bounds(start, end)) {
            values.push(value.clone());
        }
    }

    /// Removes one `value` that was added over exactly this range.
    pub fn remove(&mut self, start: &[u8], end: Option<&[u8]>, value: &T) {
        for (_, values) in self.segments.range_mut::<[u8], _>(bounds(start, end)) {
            if let Some(at) = values.iter().position(|v| v == value) {
                values.swap_remove(at);
            }
        }
        self.join(start);
        if let Some(end) = end {
            self.join(end);
        }
    }

    /// The values of the ranges that contain `key`, in no particular order.
    pub fn at(&self, key: &[u8]) -> &[T] {
        let bounds = (Bound::Unbounded, Bound::Included(key));
        self.segments
            .range::<[u8], _>(bounds)
            .next_back()
            .map_or(&[], |(_, values)| values)
    }

    fn cut(&mut self, at: &[u8]) {
        if !self.segments.contains_key(at) {
            let values = self.at(at).to_vec();
            self.segments.insert(Bytes::copy_from_slice(at), values);
        }
    }

    /// Removes the boundary `at` if the segments on both sides have the same values.
    fn join(&mut self, at: &[u8]) {
        let Some(right) = self.segments.get(at) else { return };
        let before = (Bound::Unbounded, Bound::Excluded(at));
        let left = self
            .segments
            .range::<[u8], _>(before)
            .next_back()
            .map_or(&[][..], |(_, v)| v);
        let same = left.len() == right.len() && left.iter().all(|v| right.contains(v));
        if same {
            self.segments.remove(at);
        }
    }
}

fn bounds<'a>(start: &'a [u8], end: Option<&'a [u8]>) -> (Bound<&'a [u8]>, Bound<&'a [u8]>) {
    (Bound::Included(start), end.map_or(Bound::Unbounded, Bound::Excluded))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_look_up_finds_exactly_the_ranges_that_contain_the_key(
            ranges in proptest::collection::vec(("[a-d]{0,3}", proptest::option::of("[a-d]{0,3}")), 0..12),
            removed in proptest::collection::vec(any::<prop::sample::Index>(), 0..6),
            key in "[a-d]{0,3}",
        ) {
            let mut map = IntervalMap::default();
            let mut model: Vec<_> = ranges.into_iter().enumerate().collect();
            for (id, (start, end)) in &model {
                map.insert(start.as_bytes(), end.as_ref().map(String::as_bytes), *id);
            }
            for index in removed {
                if model.is_empty() { break; }
                let (id, (start, end)) = model.remove(index.index(model.len()));
                if end.as_ref().is_some_and(|e| *e <= start) { continue; }
                map.remove(start.as_bytes(), end.as_ref().map(String::as_bytes), &id);
            }
            let mut found = map.at(key.as_bytes()).to_vec();
            found.sort_unstable();
            let expected: Vec<_> = model.iter()
                .filter(|(_, (s, e))| *s <= key && e.as_ref().is_none_or(|e| key < *e))
                .map(|(id, _)| *id).collect();
            prop_assert_eq!(found, expected);
            if model.is_empty() {
                prop_assert!(map.segments.values().all(Vec::is_empty));
            }
        }
    }
}
