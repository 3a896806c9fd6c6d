//! The lifetime of leases: grant, keep alive, expire.
//!
//! The store knows which keys are attached to a lease; the lessor knows when the lease ends. Deadlines are
//! monotonic, so a jump of the wall clock expires no lease.

use crate::mvcc::{Error as StoreError, GrantedLease, RevokeResult, Store};
use parking_lot::Mutex;
use rand::RngExt;
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::time::{Instant, MissedTickBehavior};

/// Shortest lease that etcd grants with the default election timeout, in seconds: 1.5 times that timeout, rounded up.
pub const MIN_TTL_SECS: i64 = 2;
/// Longest lease, in seconds.
pub const MAX_TTL_SECS: i64 = 9_000_000_000;
/// How often expired leases are looked for.
const TICK: Duration = Duration::from_millis(500);
/// A longer time between two ticks means that the process did not run.
const PAUSE: Duration = Duration::from_secs(5);
/// How long the task looks for expired leases and revokes them before other tasks run, so that a mass expiry does not
/// stall writers.
const TURN: Duration = Duration::from_millis(2);
/// Deadlines looked at under one lock.
const LOOKED_AT: usize = 500;

/// Why a lease request failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error("lease already exists")]
    Exists,
    #[error("requested lease not found")]
    NotFound,
    /// The TTL is over [`MAX_TTL_SECS`].
    #[error("too large lease TTL")]
    TtlTooLarge,
}

/// The lifetime of a lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeaseInfo {
    pub granted_secs: i64,
    /// Whole seconds left; 0 for an expired lease that has not been revoked yet.
    pub left_secs: i64,
}

/// Grants and expires leases of one store.
pub struct Lessor {
    store: Arc<Store>,
    min_ttl_secs: i64,
    leases: Mutex<Leases>,
    counters: Counters,
}

/// Events in the life of leases since the process started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub granted: u64,
    /// Revoked by a client.
    pub revoked: u64,
    pub renewed: u64,
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
    /// When the lease is looked at: not after the deadline.
    look: Instant,
}

/// The leases, with a queue of the times at which to look at them.
///
/// A renewal moves only the deadline of a lease. A lease that is looked at before its deadline is looked at again at
/// the deadline. So a renewal costs no more than finding the lease, and expiry costs nothing for leases that live.
#[derive(Default)]
struct Leases {
    by_id: HashMap<i64, Lease>,
    /// For each lease, when to look at it, and its id.
    looks: BTreeSet<(Instant, i64)>,
}

fn deadline(ttl_secs: i64) -> Instant {
    // At most a century: an `Instant` cannot hold the longest TTL.
    let secs = ttl_secs.clamp(0, 100 * 365 * 86_400);
    Instant::now() + Duration::from_secs(secs.unsigned_abs())
}

impl Leases {
    fn insert(&mut self, id: i64, ttl_secs: i64) {
        let deadline = deadline(ttl_secs);
        let lease = Lease {
            ttl_secs,
            deadline,
            look: deadline,
        };
        self.by_id.insert(id, lease);
        self.looks.insert((deadline, id));
    }

    fn remove(&mut self, id: i64) {
        if let Some(lease) = self.by_id.remove(&id) {
            self.looks.remove(&(lease.look, id));
        }
    }

    /// Looks at up to [`LOOKED_AT`] leases that are due. Appends the expired leases to `expired`, in the order in which
    /// they are due, and returns whether more may be due. An expired lease stays due until it is removed.
    fn expired(&mut self, now: Instant, expired: &mut Vec<i64>) -> bool {
        let due: Vec<_> = self.looks.range(..=(now, i64::MAX)).take(LOOKED_AT).copied().collect();
        for (look, id) in &due {
            match self.by_id.get_mut(id) {
                Some(lease) if lease.deadline > now => {
                    lease.look = lease.deadline;
                    let next = (lease.look, *id);
                    self.looks.remove(&(*look, *id));
                    self.looks.insert(next);
                }
                Some(_) => expired.push(*id),
                None => drop(self.looks.remove(&(*look, *id))),
            }
        }
        due.len() == LOOKED_AT
    }
}

impl Lease {
    fn renew(&mut self) {
        self.deadline = deadline(self.ttl_secs);
    }
}

impl Lessor {
    /// Takes over the leases of the store, each with its full TTL. New leases get at least `min_ttl_secs`; see
    /// [`MIN_TTL_SECS`].
    pub fn new(store: Arc<Store>, min_ttl_secs: i64) -> Self {
        let mut leases = Leases::default();
        store
            .leases()
            .iter()
            .for_each(|lease| leases.insert(lease.id, lease.ttl_secs));
        Self {
            store,
            min_ttl_secs,
            leases: Mutex::new(leases),
            counters: Counters::default(),
        }
    }

    pub fn counts(&self) -> Counts {
        let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Counts {
            granted: of(&self.counters.granted),
            revoked: of(&self.counters.revoked),
            renewed: of(&self.counters.renewed),
            expired: of(&self.counters.expired),
        }
    }

    /// Grants a lease of `ttl_secs`. For the id 0, the lessor chooses an id.
    pub fn grant(&self, id: i64, ttl_secs: i64) -> Result<GrantedLease, Error> {
        if ttl_secs > MAX_TTL_SECS {
            return Err(Error::TtlTooLarge);
        }
        let ttl_secs = ttl_secs.max(self.min_ttl_secs);
        let mut leases = self.leases.lock();
        let id = match id {
            0 => loop {
                let id = rand::rng().random_range(1..=i64::MAX);
                if !leases.by_id.contains_key(&id) {
                    break id;
                }
            },
            id => id,
        };
        if leases.by_id.contains_key(&id) || !self.store.grant(id, ttl_secs) {
            return Err(Error::Exists);
        }
        leases.insert(id, ttl_secs);
        self.counters.granted.fetch_add(1, Ordering::Relaxed);
        Ok(GrantedLease { id, ttl_secs })
    }

    /// Ends a lease and deletes its keys.
    pub fn revoke(&self, id: i64) -> Result<RevokeResult, Error> {
        let done = self.revoke_if(id, |_| true)?;
        self.counters.revoked.fetch_add(1, Ordering::Relaxed);
        Ok(done)
    }

    /// Revokes a lease that `wanted` accepts. The lock is held meanwhile, so that no call sees a lease without
    /// its keys or keys without their lease.
    fn revoke_if(&self, id: i64, wanted: impl FnOnce(&Lease) -> bool) -> Result<RevokeResult, Error> {
        let mut leases = self.leases.lock();
        if !leases.by_id.get(&id).is_some_and(wanted) {
            return Err(Error::NotFound);
        }
        leases.remove(id);
        self.store.revoke(id).map_err(|e| match e {
            StoreError::LeaseNotFound
            | StoreError::Compacted
            | StoreError::FutureRevision
            | StoreError::KeyNotFound
            | StoreError::Stopped => Error::NotFound,
        })
    }

    /// Gives a lease its full TTL again, and returns the TTL in seconds; `None` if the lease does not exist. An
    /// expired lease is revoked before this returns.
    pub fn keep_alive(&self, id: i64) -> Option<i64> {
        let now = Instant::now();
        {
            let mut leases = self.leases.lock();
            let lease = leases.by_id.get_mut(&id)?;
            if lease.deadline > now {
                lease.renew();
                self.counters.renewed.fetch_add(1, Ordering::Relaxed);
                return Some(lease.ttl_secs);
            }
        }
        self.expire_one(id, now);
        None
    }

    /// The lifetime of a lease; `None` if the lease does not exist.
    pub fn info(&self, id: i64) -> Option<LeaseInfo> {
        let lease = *self.leases.lock().by_id.get(&id)?;
        let left = lease.deadline.saturating_duration_since(Instant::now());
        Some(LeaseInfo {
            granted_secs: lease.ttl_secs,
            left_secs: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
        })
    }

    /// All lease ids, in the order of their deadlines.
    pub fn ids(&self) -> Vec<i64> {
        let leases = self.leases.lock();
        let mut ids: Vec<_> = leases.by_id.iter().map(|(id, l)| (l.deadline, *id)).collect();
        // Sorting a million ids takes a while, and renewals should not wait.
        drop(leases);
        ids.sort_unstable();
        ids.into_iter().map(|(_, id)| id).collect()
    }

    /// Revokes leases as they expire. Never returns.
    pub async fn expire(&self) {
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut last = Instant::now();
        let mut more = false;
        loop {
            if !more {
                tick.tick().await;
            }
            let now = Instant::now();
            if now.duration_since(last) > PAUSE {
                // Clients could not keep their leases alive, so every lease gets its full TTL again.
                tracing::warn!(
                    secs = now.duration_since(last).as_secs(),
                    "the process was paused; every lease gets its full TTL again"
                );
                self.leases.lock().by_id.values_mut().for_each(Lease::renew);
            }
            last = now;
            more = self.expire_until(now).await;
        }
    }

    /// Revokes leases whose deadline is not after `now`, for a second at most, so that a mass expiry does not look like
    /// a pause of the process. Returns whether more may be due. Other tasks run in between.
    async fn expire_until(&self, now: Instant) -> bool {
        let mut turn = Instant::now();
        loop {
            let mut expired = vec![];
            let more = self.leases.lock().expired(now, &mut expired);
            for id in expired {
                self.expire_one(id, now);
                if turn.elapsed() >= TURN {
                    tokio::task::yield_now().await;
                    turn = Instant::now();
                }
            }
            if !more || now.elapsed() >= Duration::from_secs(1) {
                return more;
            }
            tokio::task::yield_now().await;
        }
    }

    fn expire_one(&self, id: i64, now: Instant) {
        if let Ok(revoked) = self.revoke_if(id, |lease| lease.deadline <= now) {
            self.counters.expired.fetch_add(1, Ordering::Relaxed);
            tracing::debug!(lease_id = id, keys = revoked.deleted, "lease expired");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mvcc::{EventKind, Fields, Followed, Hooks, Kv, Put, Recovery};

    fn granted(id: i64, ttl_secs: i64) -> Result<GrantedLease, Error> {
        Ok(GrantedLease { id, ttl_secs })
    }

    #[tokio::test(start_paused = true)]
    async fn a_lease_without_keepalives_expires_with_its_keys() {
        let store = Store::new();
        let lessor = Arc::new(Lessor::new(Arc::clone(&store), MIN_TTL_SECS));
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
        assert_eq!(lessor.info(7), None);
        assert_eq!(lessor.info(kept).unwrap().granted_secs, 10);
        assert_eq!(store.lease_keys(kept).unwrap(), ["b"]);
        assert_eq!(lessor.ids(), [kept]);
    }

    #[tokio::test(start_paused = true)]
    async fn leases_that_keys_name_are_known_and_belong_to_no_lessor() {
        let store = Recovery::following().open(Hooks::default());
        let lessor = Lessor::new(Arc::clone(&store), MIN_TTL_SECS);
        let put = Kv::new(&Fields {
            key: b"a",
            create_revision: 2,
            mod_revision: 2,
            version: 1,
            lease: 7,
            ..Fields::default()
        });
        let kind = EventKind::Put;
        store.adopt(2, vec![Followed { kind, kv: put }]).unwrap();
        assert_eq!(store.lease_keys(7).unwrap(), ["a"]);
        assert_eq!(
            (lessor.ids(), lessor.info(7), lessor.keep_alive(7)),
            (vec![], None, None)
        );
        assert_eq!(lessor.revoke(7), Err(Error::NotFound));
        // Neither does one that begins later, as after a restart.
        let lessor = Lessor::new(Arc::clone(&store), MIN_TTL_SECS);
        beside_expiry(&lessor, tokio::time::sleep(Duration::from_secs(10_000))).await;
        assert!(store.get(b"a").is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn a_late_keepalive_finds_the_lease_and_its_keys_gone() {
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
        assert_eq!(lessor.grant(7, 2), granted(7, 2), "the id is free again");
    }

    #[tokio::test(start_paused = true)]
    async fn a_pause_of_the_process_expires_no_lease() {
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

    /// Runs the expiry of leases beside `drive`.
    async fn beside_expiry(lessor: &Lessor, drive: impl Future<Output = ()>) {
        tokio::select! { () = lessor.expire() => unreachable!(), () = drive => {} }
    }

    #[tokio::test(start_paused = true)]
    async fn a_short_lease_expires_in_time_among_a_million() {
        let lessor = Lessor::new(Store::new(), MIN_TTL_SECS);
        for id in 1..=1_000_000 {
            lessor.grant(id, 60 + id % 3600).unwrap();
        }
        lessor.grant(2_000_000, 5).unwrap();
        beside_expiry(&lessor, async {
            tokio::time::sleep(Duration::from_secs(4)).await;
            assert!(lessor.info(2_000_000).is_some());
            tokio::time::sleep(Duration::from_secs(2)).await;
            assert_eq!((lessor.info(2_000_000), lessor.counts().expired), (None, 1));
            // The ids are in the order of the deadlines.
            assert_eq!((lessor.ids().len(), lessor.ids()[0]), (1_000_000, 3600));
            // A tenth of all leases expires, and no more.
            tokio::time::sleep(Duration::from_millis(414_900)).await;
            assert_eq!(lessor.counts().expired, 1 + 277 + 360 * 278);
        })
        .await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_renewed_lease_lives_and_a_revoked_lease_leaves_nothing_to_look_at() {
        let lessor = Lessor::new(Store::new(), MIN_TTL_SECS);
        lessor.grant(1, 10).unwrap();
        beside_expiry(&lessor, async {
            for _ in 0..5 {
                tokio::time::sleep(Duration::from_secs(6)).await;
                assert_eq!(lessor.keep_alive(1), Some(10));
                assert_eq!(lessor.leases.lock().looks.len(), 1);
            }
            lessor.revoke(1).unwrap();
            assert!(lessor.leases.lock().looks.is_empty());
            // The id is free, and the new lease has its own time.
            lessor.grant(1, 30).unwrap();
            tokio::time::sleep(Duration::from_secs(29)).await;
            assert!(lessor.info(1).is_some());
            tokio::time::sleep(Duration::from_secs(2)).await;
            assert_eq!(lessor.info(1), None);
        })
        .await;
    }
}
