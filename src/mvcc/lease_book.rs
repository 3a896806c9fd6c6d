//! Leases and the keys attached to them, without time: `crate::lease` expires leases.
//!
//! In a store that follows another one, leases are *implied*: a lease exists while keys name it, and nobody here may
//! expire it.

use bytes::Bytes;
use std::collections::hash_map::Entry;
use std::collections::{BTreeSet, HashMap};
use std::ops::Bound;

/// The leases of a store. A granted lease is present with or without keys, an implied one as long as it has keys.
#[derive(Default)]
pub(super) struct LeaseBook {
    leases: HashMap<i64, Held>,
    is_implied: bool,
}

/// A lease with its granted TTL.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GrantedLease {
    pub id: i64,
    pub ttl_secs: i64,
}

#[derive(Default)]
struct Held {
    ttl_secs: i64,
    keys: BTreeSet<Bytes>,
}

impl LeaseBook {
    /// A book of implied leases.
    pub(super) fn implied() -> Self {
        Self {
            is_implied: true,
            ..Self::default()
        }
    }

    pub(super) fn len(&self) -> usize {
        self.leases.len()
    }

    pub(super) fn contains(&self, lease: i64) -> bool {
        self.leases.contains_key(&lease)
    }

    /// Adds a lease; false if the id is taken.
    pub(super) fn grant(&mut self, lease: i64, ttl_secs: i64) -> bool {
        match self.leases.entry(lease) {
            Entry::Occupied(_) => false,
            Entry::Vacant(v) => {
                v.insert(Held {
                    ttl_secs,
                    ..Held::default()
                });
                true
            }
        }
    }

    /// Removes a lease and returns its keys in order; `None` if unknown.
    pub(super) fn take(&mut self, lease: i64) -> Option<BTreeSet<Bytes>> {
        self.leases.remove(&lease).map(|held| held.keys)
    }

    pub(super) fn keys(&self, lease: i64) -> Option<&BTreeSet<Bytes>> {
        self.leases.get(&lease).map(|held| &held.keys)
    }

    /// Whether every key of a lease is in a granted range. `granted_until` gives the end of the granted range that
    /// contains a key, and `None` for a key in no granted range. Asks once for each range that has keys of the lease.
    pub(super) fn is_within<'a>(&self, lease: i64, granted_until: impl Fn(&[u8]) -> Option<Bound<&'a [u8]>>) -> bool {
        let Some(Held { keys, .. }) = self.leases.get(&lease) else {
            return true;
        };
        let mut next = keys.first();
        while let Some(key) = next {
            next = match granted_until(key) {
                None => return false,
                Some(Bound::Unbounded) => return true,
                Some(Bound::Excluded(end)) => keys.range::<[u8], _>((Bound::Included(end), Bound::Unbounded)).next(),
                Some(Bound::Included(end)) => keys.range::<[u8], _>((Bound::Excluded(end), Bound::Unbounded)).next(),
            };
        }
        true
    }

    /// The ids of implied leases, in no order.
    pub(super) fn implied_ids(&self) -> Vec<i64> {
        match self.is_implied {
            true => self.leases.keys().copied().collect(),
            false => vec![],
        }
    }

    /// Every granted lease, in no order.
    pub(super) fn granted(&self) -> Vec<GrantedLease> {
        if self.is_implied {
            return vec![];
        }
        let granted = |(&id, held): (&i64, &Held)| GrantedLease {
            id,
            ttl_secs: held.ttl_secs,
        };
        self.leases.iter().map(granted).collect()
    }

    /// Moves `key` from lease `from` to lease `to`; lease 0 is no lease.
    pub(super) fn attach(&mut self, key: &[u8], from: i64, to: i64) {
        if from == to {
            return;
        }
        if let Some(held) = self.leases.get_mut(&from) {
            held.keys.remove(key);
            if self.is_implied && held.keys.is_empty() {
                self.leases.remove(&from);
            }
        }
        let held = match self.is_implied && to != 0 {
            true => Some(self.leases.entry(to).or_default()),
            false => self.leases.get_mut(&to),
        };
        if let Some(held) = held {
            held.keys.insert(Bytes::copy_from_slice(key));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::cell::Cell;

    proptest! {
        #[test]
        fn a_lease_is_within_granted_ranges_if_each_key_is(
            keys in proptest::collection::btree_set(0u8..60, 0..12), cuts in proptest::collection::btree_set(0u8..60, 0..8),
        ) {
            let cuts: Vec<_> = cuts.into_iter().map(|cut| [cut]).collect();
            let ranges: Vec<_> = cuts.chunks(2).map(|cut| (cut[0], cut.get(1))).collect();
            let mut book = LeaseBook::default();
            book.grant(7, 60);
            keys.iter().for_each(|key| book.attach(&[*key], 0, 7));
            let asked = Cell::new(0);
            let until = |key: &[u8]| {
                asked.set(asked.get() + 1);
                let found = ranges.iter().find(|(start, end)| start[..] <= *key && end.is_none_or(|end| *key < end[..]));
                found.map(|(_, end)| end.map_or(Bound::Unbounded, |end| Bound::Excluded(&end[..])))
            };
            let expected = keys.iter().all(|key| until(&[*key]).is_some());
            asked.set(0);
            prop_assert_eq!(book.is_within(7, until), expected);
            prop_assert!(asked.get() <= ranges.len() + 1);
            prop_assert!(book.is_within(8, until), "an unknown lease has no keys");
        }
    }

    #[test]
    fn an_implied_lease_lives_as_long_as_keys_name_it() {
        let mut book = LeaseBook::implied();
        book.attach(b"a", 0, 7);
        book.attach(b"b", 0, 7);
        assert_eq!(book.keys(7).map(BTreeSet::len), Some(2));
        book.attach(b"a", 7, 8);
        book.attach(b"b", 7, 0);
        assert!(!book.contains(7) && !book.contains(0));
        assert_eq!((book.len(), book.granted()), (1, vec![]));
    }
}
