//! What single users hold of the store beside their keys: leases, and distinct watched ranges.

use super::budgets::Budgets;
use super::peer::Peer;
use crate::lease::Lessor;
use parking_lot::Mutex;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

/// Estimated bytes of a watched range, beside its keys.
const RANGE_BYTES: usize = 1024;

/// A user, for the purpose of shares: a user of certificates by name, any other client by its address.
type Owner = Arc<str>;

/// The shares of all users.
pub(super) struct Shares {
    leases_max: usize,
    watch_bytes_max: usize,
    leases: Mutex<HashMap<Owner, HashSet<i64>>>,
    watched: Mutex<HashMap<Owner, usize>>,
}

/// The share that one distinct watched range takes, until it is dropped.
pub(super) struct WatchShare {
    shares: Arc<Shares>,
    owner: Owner,
    bytes: usize,
}

impl Shares {
    pub(super) fn new(budgets: &Budgets) -> Arc<Self> {
        Arc::new(Self {
            leases_max: budgets.leases,
            watch_bytes_max: budgets.watch_bytes,
            leases: Mutex::default(),
            watched: Mutex::default(),
        })
    }

    /// Whether the user of `peer` may have another lease. Leases from before a restart count for nobody.
    pub(super) fn may_grant(&self, peer: &Peer, lessor: &Lessor) -> bool {
        let mut leases = self.leases.lock();
        let Some(own) = leases.get_mut(&peer.owner()) else {
            return true;
        };
        if own.len() >= self.leases_max {
            // Ended leases are still counted.
            own.retain(|id| lessor.info(*id).is_some());
        }
        own.len() < self.leases_max
    }

    pub(super) fn granted(&self, peer: &Peer, lease: i64) {
        self.leases.lock().entry(peer.owner()).or_default().insert(lease);
    }

    pub(super) fn revoked(&self, peer: &Peer, lease: i64) {
        if let Some(own) = self.leases.lock().get_mut(&peer.owner()) {
            own.remove(&lease);
        }
    }

    /// Takes a share for a range that nobody else watches, with keys of `key_bytes`; `None` if the user has too many.
    pub(super) fn watch(self: &Arc<Self>, peer: &Peer, key_bytes: usize) -> Option<WatchShare> {
        let (owner, bytes) = (peer.owner(), RANGE_BYTES + key_bytes);
        let mut watched = self.watched.lock();
        let held = watched.entry(Arc::clone(&owner)).or_default();
        if *held + bytes > self.watch_bytes_max {
            return None;
        }
        *held += bytes;
        Some(WatchShare {
            shares: Arc::clone(self),
            owner,
            bytes,
        })
    }
}

impl Drop for WatchShare {
    fn drop(&mut self) {
        let mut watched = self.shares.watched.lock();
        if let Some(held) = watched.get_mut(&self.owner) {
            *held -= self.bytes;
            if *held == 0 {
                watched.remove(&self.owner);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lease::MIN_TTL_SECS;
    use crate::mvcc::Store;

    fn user(name: &str) -> Peer {
        Peer {
            common_name: Some(name.into()),
            ..Peer::default()
        }
    }

    #[tokio::test]
    async fn the_leases_of_a_user_are_bounded_and_ended_leases_do_not_count() {
        let budgets = Budgets {
            leases: 2,
            ..Budgets::default()
        };
        let (shares, lessor) = (Shares::new(&budgets), Lessor::new(Store::new(), MIN_TTL_SECS));
        let (a, b) = (user("a"), user("b"));
        for id in [1, 2] {
            assert!(shares.may_grant(&a, &lessor));
            lessor.grant(id, 60).unwrap();
            shares.granted(&a, id);
        }
        assert!(!shares.may_grant(&a, &lessor) && shares.may_grant(&b, &lessor));
        lessor.revoke(1).unwrap();
        assert!(shares.may_grant(&a, &lessor));
        shares.revoked(&a, 2);
        assert!(shares.leases.lock()["a"].is_empty());
    }

    #[tokio::test]
    async fn the_distinct_ranges_that_a_user_watches_are_bounded() {
        let budgets = Budgets {
            watch_bytes: 3 * RANGE_BYTES,
            ..Budgets::default()
        };
        let shares = Shares::new(&budgets);
        let first = shares.watch(&user("a"), 10).unwrap();
        assert!(shares.watch(&user("a"), 2 * RANGE_BYTES).is_none());
        assert!(shares.watch(&user("b"), 2 * RANGE_BYTES).is_some());
        drop(first);
        assert!(shares.watched.lock().is_empty());
    }
}
