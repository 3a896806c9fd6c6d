//! Leases in time: grant, keep alive, expire.
//!
//! Which keys a lease holds is the store's business; here is when it ends. Time is monotonic, so a jump
//! of the wall clock expires nothing.

use crate::mvcc::{Error as StoreError, GrantedLease, RevokeResult, Store};
use bytes::Bytes;
use parking_lot::Mutex;
use rand::RngExt;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::time::{Instant, MissedTickBehavior};

/// Shortest lease of an etcd with the default election timeout, in seconds: 1.5 times that, rounded up.
pub const MIN_TTL_SECS: i64 = 2;
/// Longest lease, in seconds.
pub const MAX_TTL_SECS: i64 = 9_000_000_000;
/// How often expired leases are looked for.
const TICK: Duration = Duration::from_millis(500);
/// Longer than this between two looks means that the process did not run.
const PAUSE: Duration = Duration::from_secs(5);
/// Leases revoked per tick, so that a mass expiry does not stall writers.
const REVOKED_PER_TICK: usize = 500;

/// Why a lease request failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The id is in use.
    #[error("lease already exists")]
    Exists,
    /// No such lease.
    #[error("requested lease not found")]
    NotFound,
    /// The TTL is over [`MAX_TTL_SECS`].
    #[error("too large lease TTL")]
    TtlTooLarge,
}

/// What is known of a lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Info {
    /// Seconds granted.
    pub granted_secs: i64,
    /// Whole seconds left; zero or below when it is about to be revoked.
    pub left_secs: i64,
    /// Attached keys.
    pub keys: Vec<Bytes>,
}

/// Grants and expires leases of one store.
pub struct Lessor {
    store: Arc<Store>,
    min_ttl_secs: i64,
    leases: Mutex<HashMap<i64, Lease>>,
    counters: Counters,
}

/// How often things have happened to leases.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Granted.
    pub granted: u64,
    /// Revoked by hand.
    pub revoked: u64,
    /// Kept alive.
    pub renewed: u64,
    /// Ended by time.
    pub expired: u64,
}

#[derive(Default)]
struct Counters {
    granted: AtomicU64,
    revoked: AtomicU64,
    renewed: AtomicU64,
    expired: AtomicU64,
}

#[derive(Clone, Copy)]
struct Lease {
    ttl_secs: i64,
    deadline: Instant,
}

impl Lease {
    fn new(ttl_secs: i64) -> Self {
        // Ages that no clock holds are as good as a century.
        let secs = ttl_secs.clamp(0, 100 * 365 * 86_400);
        let deadline = Instant::now() + Duration::from_secs(secs.unsigned_abs());
        Self { ttl_secs, deadline }
    }
}

impl Lessor {
    /// The leases of the store, each with its full time again. New ones shorter than `min_ttl_secs` are
    /// raised to it; see [`MIN_TTL_SECS`].
    pub fn new(store: Arc<Store>, min_ttl_secs: i64) -> Self {
        let leases = store.leases().into_iter();
        let leases = leases.map(|lease| (lease.id, Lease::new(lease.ttl_secs))).collect();
        Self {
            store,
            min_ttl_secs,
            leases: Mutex::new(leases),
            counters: Counters::default(),
        }
    }

    /// How often things have happened.
    pub fn counts(&self) -> Counts {
        let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Counts {
            granted: of(&self.counters.granted),
            revoked: of(&self.counters.revoked),
            renewed: of(&self.counters.renewed),
            expired: of(&self.counters.expired),
        }
    }

    /// Grants a lease of at least `ttl_secs`. For `id` 0 the lessor chooses the id.
    pub fn grant(&self, id: i64, ttl_secs: i64) -> Result<GrantedLease, Error> {
        if ttl_secs > MAX_TTL_SECS {
            return Err(Error::TtlTooLarge);
        }
        let ttl_secs = ttl_secs.max(self.min_ttl_secs);
        let mut leases = self.leases.lock();
        let id = match id {
            0 => loop {
                let id = rand::rng().random_range(1..=i64::MAX);
                if !leases.contains_key(&id) {
                    break id;
                }
            },
            id => id,
        };
        if leases.contains_key(&id) || !self.store.grant(id, ttl_secs) {
            return Err(Error::Exists);
        }
        leases.insert(id, Lease::new(ttl_secs));
        self.counters.granted.fetch_add(1, Ordering::Relaxed);
        Ok(GrantedLease { id, ttl_secs })
    }

    /// Ends a lease and deletes its keys.
    pub fn revoke(&self, id: i64) -> Result<RevokeResult, Error> {
        let done = self.revoke_if(id, |_| true)?;
        self.counters.revoked.fetch_add(1, Ordering::Relaxed);
        Ok(done)
    }

    /// Revokes a lease if `wanted` says so of it. The lease is there, with its keys, or it is not: nobody
    /// sees it half gone.
    fn revoke_if(&self, id: i64, wanted: impl FnOnce(&Lease) -> bool) -> Result<RevokeResult, Error> {
        let mut leases = self.leases.lock();
        if !leases.get(&id).is_some_and(wanted) {
            return Err(Error::NotFound);
        }
        leases.remove(&id);
        self.store.revoke(id).map_err(|e| match e {
            StoreError::LeaseNotFound
            | StoreError::Compacted
            | StoreError::FutureRevision
            | StoreError::KeyNotFound => Error::NotFound,
        })
    }

    /// Gives a lease its full time again; returns the seconds, or `None` if it is gone. One that has run
    /// out is gone by then.
    pub fn keep_alive(&self, id: i64) -> Option<i64> {
        let now = Instant::now();
        {
            let mut leases = self.leases.lock();
            let lease = leases.get_mut(&id)?;
            if lease.deadline > now {
                *lease = Lease::new(lease.ttl_secs);
                self.counters.renewed.fetch_add(1, Ordering::Relaxed);
                return Some(lease.ttl_secs);
            }
        }
        self.expire_one(id, now);
        None
    }

    /// What is known of a lease, with its keys if asked.
    pub fn info(&self, id: i64, with_keys: bool) -> Option<Info> {
        let lease = *self.leases.lock().get(&id)?;
        let keys = if with_keys {
            self.store.lease_keys(id).unwrap_or_default()
        } else {
            vec![]
        };
        let left = lease.deadline.saturating_duration_since(Instant::now());
        let left_secs = i64::try_from(left.as_secs()).unwrap_or(i64::MAX);
        Some(Info {
            granted_secs: lease.ttl_secs,
            left_secs,
            keys,
        })
    }

    /// All lease ids, the one that ends first first.
    pub fn ids(&self) -> Vec<i64> {
        let leases = self.leases.lock();
        let mut ids: Vec<_> = leases.iter().map(|(id, l)| (l.deadline, *id)).collect();
        ids.sort_unstable();
        ids.into_iter().map(|(_, id)| id).collect()
    }

    /// Revokes leases as they expire, for ever.
    pub async fn expire(&self) {
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut last = Instant::now();
        loop {
            tick.tick().await;
            let now = Instant::now();
            if now.duration_since(last) > PAUSE {
                // We did not run, so nobody could keep a lease alive: all get their full time again.
                tracing::warn!(
                    secs = now.duration_since(last).as_secs(),
                    "the process was paused: leases are prolonged"
                );
                self.leases
                    .lock()
                    .values_mut()
                    .for_each(|l| *l = Lease::new(l.ttl_secs));
            }
            last = now;
            for id in self.expired(now) {
                self.expire_one(id, now);
                tokio::task::yield_now().await;
            }
        }
    }

    fn expire_one(&self, id: i64, now: Instant) {
        if let Ok(revoked) = self.revoke_if(id, |lease| lease.deadline <= now) {
            self.counters.expired.fetch_add(1, Ordering::Relaxed);
            tracing::debug!(lease_id = id, keys = revoked.deleted, "lease expired");
        }
    }

    fn expired(&self, now: Instant) -> Vec<i64> {
        let leases = self.leases.lock();
        let expired = leases.iter().filter(|(_, l)| l.deadline <= now);
        expired.map(|(id, _)| *id).take(REVOKED_PER_TICK).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mvcc::Put;

    #[tokio::test(start_paused = true)]
    async fn a_lease_that_is_kept_alive_stays_and_one_that_is_not_takes_its_keys_along() {
        let store = Store::new();
        let lessor = Arc::new(Lessor::new(Arc::clone(&store), MIN_TTL_SECS));
        let granted = |id, ttl_secs| Ok(GrantedLease { id, ttl_secs });
        assert_eq!(lessor.grant(7, -5), granted(7, MIN_TTL_SECS));
        assert_eq!(lessor.grant(7, 10), Err(Error::Exists));
        assert_eq!(lessor.grant(0, MAX_TTL_SECS + 1), Err(Error::TtlTooLarge));
        let kept = lessor.grant(0, 10).unwrap().id;
        for (key, lease) in [("a", 7), ("b", kept)] {
            store
                .put(Put {
                    key: key.into(),
                    lease,
                    ..Put::default()
                })
                .unwrap();
        }
        let expiry = Arc::clone(&lessor);
        let task = async move { expiry.expire().await };
        let drive = async {
            for _ in 0..6 {
                tokio::time::sleep(Duration::from_secs(2)).await;
                assert_eq!(lessor.keep_alive(kept), Some(10));
            }
        };
        tokio::select! { () = task => unreachable!(), () = drive => {} }
        assert!(store.get(b"a").is_none() && store.get(b"b").is_some());
        assert_eq!(lessor.keep_alive(7), None);
        assert_eq!(lessor.info(7, false), None);
        assert_eq!(lessor.info(kept, true).unwrap().keys, ["b"]);
        assert_eq!(lessor.ids(), [kept]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_keep_alive_that_comes_too_late_finds_the_lease_wholly_gone() {
        let store = Store::new();
        let lessor = Lessor::new(Arc::clone(&store), MIN_TTL_SECS);
        lessor.grant(7, 2).unwrap();
        store
            .put(Put {
                key: "a".into(),
                lease: 7,
                ..Put::default()
            })
            .unwrap();
        tokio::time::advance(Duration::from_secs(3)).await;
        assert_eq!(lessor.keep_alive(7), None);
        assert!(store.get(b"a").is_none());
        let again = GrantedLease { id: 7, ttl_secs: 2 };
        assert_eq!(lessor.grant(7, 2), Ok(again), "its id is free again");
    }

    #[tokio::test(start_paused = true)]
    async fn a_pause_of_the_process_expires_nothing() {
        let lessor = Arc::new(Lessor::new(Store::new(), MIN_TTL_SECS));
        lessor.grant(7, 2).unwrap();
        let expiry = Arc::clone(&lessor);
        let task = async move { expiry.expire().await };
        let drive = async {
            tokio::task::yield_now().await;
            tokio::time::advance(Duration::from_secs(60)).await;
            tokio::time::sleep(Duration::from_secs(1)).await;
            assert_eq!(lessor.keep_alive(7), Some(2));
        };
        tokio::select! { () = task => unreachable!(), () = drive => {} }
    }
}
