//! Leases and the keys attached to them, without time: `crate::lease` expires leases.

use bytes::Bytes;
use std::collections::hash_map::Entry;
use std::collections::{BTreeSet, HashMap};

/// Lease id → lease. A granted lease is present, with or without keys.
#[derive(Default)]
pub(super) struct LeaseBook(HashMap<i64, Held>);

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
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    pub(super) fn contains(&self, lease: i64) -> bool {
        self.0.contains_key(&lease)
    }

    /// Adds a lease; false if the id is taken.
    pub(super) fn grant(&mut self, lease: i64, ttl_secs: i64) -> bool {
        match self.0.entry(lease) {
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
        self.0.remove(&lease).map(|held| held.keys)
    }

    pub(super) fn keys(&self, lease: i64) -> Option<&BTreeSet<Bytes>> {
        self.0.get(&lease).map(|held| &held.keys)
    }

    /// Every lease, in no order.
    pub(super) fn granted(&self) -> Vec<GrantedLease> {
        let granted = |(&id, held): (&i64, &Held)| GrantedLease {
            id,
            ttl_secs: held.ttl_secs,
        };
        self.0.iter().map(granted).collect()
    }

    /// Moves `key` from lease `from` to lease `to`; lease 0 is no lease.
    pub(super) fn attach(&mut self, key: &[u8], from: i64, to: i64) {
        if from == to {
            return;
        }
        if let Some(held) = self.0.get_mut(&from) {
            held.keys.remove(key);
        }
        if let Some(held) = self.0.get_mut(&to) {
            held.keys.insert(Bytes::copy_from_slice(key));
        }
    }
}
