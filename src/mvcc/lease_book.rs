//! Which keys are attached to which lease. Data only: time is `crate::lease`'s business.

use bytes::Bytes;
use std::collections::{BTreeSet, HashMap};

/// Lease id → attached keys. A granted lease is present, with or without keys.
#[derive(Default)]
pub(super) struct LeaseBook(HashMap<i64, BTreeSet<Bytes>>);

impl LeaseBook {
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    pub(super) fn contains(&self, lease: i64) -> bool {
        self.0.contains_key(&lease)
    }

    /// Adds a lease; false if it exists.
    pub(super) fn grant(&mut self, lease: i64) -> bool {
        match self.0.entry(lease) {
            std::collections::hash_map::Entry::Occupied(_) => false,
            std::collections::hash_map::Entry::Vacant(v) => {
                v.insert(BTreeSet::new());
                true
            }
        }
    }

    /// Removes a lease and returns its keys in order; `None` if unknown.
    pub(super) fn take(&mut self, lease: i64) -> Option<BTreeSet<Bytes>> {
        self.0.remove(&lease)
    }

    pub(super) fn keys(&self, lease: i64) -> Option<&BTreeSet<Bytes>> {
        self.0.get(&lease)
    }

    /// Moves `key` from lease `from` to lease `to`; 0 is none.
    pub(super) fn attach(&mut self, key: &[u8], from: i64, to: i64) {
        if from == to {
            return;
        }
        if let Some(keys) = self.0.get_mut(&from) {
            keys.remove(key);
        }
        if let Some(keys) = self.0.get_mut(&to) {
            keys.insert(Bytes::copy_from_slice(key));
        }
    }
}
