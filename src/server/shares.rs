//! What single users hold of the store beside their keys: leases, and distinct watched ranges.

use super::budgets::Budgets;
use super::connection::WatcherCount;
use super::peer::Peer;
use super::refusals::Budget;
use super::{Core, status};
use crate::mvcc::Watcher;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;
use tonic::Status;

/// Estimated bytes of a watched range, beside its keys.
const RANGE_BYTES: usize = 1024;

/// The time between two looks for ended leases of a user who has too many. A look at all of them takes milliseconds.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// A user, for the purpose of shares: a user of certificates by name, any other client by its address.
type Owner = Arc<str>;

/// The shares of all users.
pub(super) struct Shares {
    leases_max: usize,
    watch_bytes_max: usize,
    leases: Mutex<HashMap<Owner, OwnLeases>>,
    watched: Mutex<HashMap<Owner, usize>>,
}

/// The leases of one user. Ended leases are counted until the next look.
struct OwnLeases {
    /// When a lease ends that lives upstream, as far as is known here.
    ends: HashMap<i64, Instant>,
    looked: Instant,
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

    /// Whether the user of `peer` may have another lease. Leases from before a restart count for nobody. `has_ended` knows of
    /// a lease, with the end that was noted for it, whether it has ended.
    pub(super) fn may_grant(&self, peer: &Peer, has_ended: impl Fn(i64, Instant) -> bool) -> bool {
        let mut leases = self.leases.lock();
        let Some(own) = leases.get_mut(&peer.owner()) else {
            return true;
        };
        if own.ends.len() >= self.leases_max && own.looked.elapsed() >= LOOK_EVERY {
            own.looked = Instant::now();
            own.ends.retain(|id, end| !has_ended(*id, *end));
        }
        own.ends.len() < self.leases_max
    }

    /// Counts a lease, which ends at `end` unless it is renewed.
    pub(super) fn granted(&self, peer: &Peer, lease: i64, end: Instant) {
        let mut leases = self.leases.lock();
        let new = || OwnLeases {
            ends: HashMap::new(),
            looked: Instant::now(),
        };
        leases.entry(peer.owner()).or_insert_with(new).ends.insert(lease, end);
    }

    /// Notes the new end of a lease, if it counts.
    pub(super) fn renewed(&self, peer: &Peer, lease: i64, end: Instant) {
        let mut leases = self.leases.lock();
        let counted = leases.get_mut(&peer.owner()).and_then(|own| own.ends.get_mut(&lease));
        if let Some(counted) = counted {
            *counted = end;
        }
    }

    pub(super) fn revoked(&self, peer: &Peer, lease: i64) {
        let mut leases = self.leases.lock();
        let owner = peer.owner();
        let Some(own) = leases.get_mut(&owner) else { return };
        own.ends.remove(&lease);
        if own.ends.is_empty() {
            leases.remove(&owner);
        }
    }

    /// Takes a share for a range that nobody watched before, with keys of `key_bytes`; `None` if the user has too many.
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

impl Core {
    /// Takes a place for a new watcher among those of its connection, and, for a range that nobody watched before, a
    /// share of the user, which lasts as long as anybody watches the range.
    pub(super) fn take_place(&self, peer: &Peer, watcher: &Watcher) -> Result<WatcherCount, Status> {
        let refused = |status: Status| {
            self.refusals.note(Budget::Watchers, peer);
            status
        };
        let range = &watcher.filter().range;
        let key_bytes = range.start().len() + range.end().map_or(0, <[u8]>::len);
        if key_bytes > self.config.budgets.watch_key_bytes {
            return Err(refused(status::too_long_key()));
        }
        let place = peer.connection.add_watcher(self.config.budgets.watchers);
        let place = place.ok_or_else(|| refused(status::too_many_watchers()))?;
        if !watcher.has_attachment() {
            let share = self.shares.watch(peer, key_bytes);
            watcher.attach(Box::new(share.ok_or_else(|| refused(status::too_many_ranges()))?));
        }
        Ok(place)
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
    use crate::lease::{Lessor, MIN_TTL_SECS};
    use crate::mvcc::Store;

    fn user(name: &str) -> Peer {
        Peer {
            common_name: Some(name.into()),
            ..Peer::default()
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_leases_of_a_user_are_bounded_and_ended_leases_do_not_count() {
        let budgets = Budgets {
            leases: 2,
            ..Budgets::default()
        };
        let (shares, lessor) = (Shares::new(&budgets), Lessor::new(Store::new(), MIN_TTL_SECS));
        let (a, b) = (user("a"), user("b"));
        let may_grant = |peer: &Peer| shares.may_grant(peer, |id, _| lessor.info(id).is_none());
        for id in [1, 2] {
            assert!(may_grant(&a));
            lessor.grant(id, 60).unwrap();
            shares.granted(&a, id, Instant::now());
        }
        assert!(!may_grant(&a) && may_grant(&b));
        lessor.revoke(1).unwrap();
        assert!(!may_grant(&a), "a look a second");
        tokio::time::advance(LOOK_EVERY).await;
        assert!(may_grant(&a));
        shares.revoked(&a, 2);
        assert!(shares.leases.lock().is_empty());
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
