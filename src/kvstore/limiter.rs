//! How fast and how widely a store is used, as Cilium's client limits itself (pkg/rate, `etcd.qps`).

use crate::util::notify::until;
use governor::clock::{Clock, DefaultClock};
use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};
use parking_lot::RwLock;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;
use tokio::sync::{Mutex, Notify, Semaphore, SemaphorePermit};
use tokio::time::{Instant, timeout};

/// Limits of one client of a store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Operations per second, and how many at once after a pause; 0: no limit. Each key counts.
    pub qps: u32,
    /// The same until everything has been written once; none: as ever.
    pub bootstrap_qps: Option<u32>,
    /// Requests on their way at the same time; none: as many as operations per second.
    pub max_inflight: Option<u32>,
    /// Keys per page of a list; 0: no pages (`etcd.limit`).
    pub page: i64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            qps: 20,
            bootstrap_qps: None,
            max_inflight: None,
            page: super::client::PAGE,
        }
    }
}

/// Most requests on their way: each may be a transaction of many keys, and an etcd that has too many of those
/// does not even renew leases in time.
const INFLIGHT_MAX: u32 = 16;

impl Limits {
    fn inflight(&self) -> u32 {
        match self.max_inflight.unwrap_or(self.qps) {
            0 => INFLIGHT_MAX,
            n => n.min(INFLIGHT_MAX),
        }
    }
}

/// Who goes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Class {
    /// The heartbeat and the configuration, by which others judge whether we live: no limit holds them up.
    Control,
    /// What changes now.
    Live,
    /// What there is when everything is listed.
    Bulk,
}

/// Largest number of operations asked for at once while there is no limit, and while starting.
const BATCH: u32 = 128;

/// The bulk lets others go first for no longer than this.
const PATIENCE: Duration = Duration::from_secs(2);

/// Makes callers wait.
pub struct Limiter {
    limits: Limits,
    rate: RwLock<Rate>,
    /// Who may save up for what it needs: one after the other, or a small request would always be faster than a
    /// large one.
    turn: Mutex<()>,
    bulk_turn: Mutex<()>,
    inflight: Semaphore,
    /// Callers that go before the bulk.
    live: AtomicUsize,
    live_done: Notify,
    figures: Figures,
}

struct Rate {
    qps: u32,
    burst: u32,
    bucket: Option<Arc<DefaultDirectRateLimiter>>,
}

/// What has been waited for; microseconds.
#[derive(Default)]
struct Figures {
    requests: AtomicU64,
    failed: AtomicU64,
    waited: AtomicU64,
    longest: AtomicU64,
    processed: AtomicU64,
}

/// One request on its way.
pub struct Permit<'a> {
    limiter: &'a Limiter,
    _inflight: Option<SemaphorePermit<'a>>,
    begun: Instant,
}

/// What a limiter shows.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
// names are the metric's (pkg/metrics, api_limiter.
pub struct View {
    pub processing_mean: f64,
    pub wait_mean: f64,
    pub wait_max: f64,
    pub in_flight: f64,
    pub in_flight_limit: f64,
    pub rate_limit: f64,
    pub burst: f64,
    pub succeeded: u64,
    pub failed: u64,
}

impl Rate {
    fn new(qps: u32, burst: u32) -> Self {
        let quota = NonZeroU32::new(qps).zip(NonZeroU32::new(burst));
        let bucket = quota.map(|(qps, burst)| Arc::new(RateLimiter::direct(Quota::per_second(qps).allow_burst(burst))));
        Self { qps, burst, bucket }
    }
}

impl Limiter {
    /// Begins with the limits of the start, if there are any.
    pub fn new(limits: Limits) -> Self {
        let rate = match limits.bootstrap_qps {
            Some(qps) if limits.qps > 0 => Rate::new(qps, limits.qps.max(BATCH)),
            _ => Rate::new(limits.qps, limits.qps),
        };
        let inflight = limits.inflight();
        Self {
            limits,
            rate: RwLock::new(rate),
            turn: Mutex::default(),
            bulk_turn: Mutex::default(),
            inflight: Semaphore::new(inflight as usize),
            live: AtomicUsize::new(0),
            live_done: Notify::new(),
            figures: Figures::default(),
        }
    }

    /// Everything has been written once: from now on the limits of every day count.
    pub fn steady(&self) {
        if self.limits.bootstrap_qps.is_some() {
            *self.rate.write() = Rate::new(self.limits.qps, self.limits.qps);
        }
    }

    /// How many operations fit one request.
    pub fn batch_max(&self) -> usize {
        let rate = self.rate.read();
        let most = if rate.bucket.is_some() {
            rate.burst.min(BATCH)
        } else {
            BATCH
        };
        most as usize
    }

    /// Waits until `operations`, at most [`Self::batch_max`], may go as one request; none: it is only counted as one.
    pub async fn acquire(&self, class: Class, operations: usize) -> Permit<'_> {
        let begun = Instant::now();
        let inflight = match class {
            Class::Control => None,
            Class::Live => {
                let _first = First::new(self);
                self.save_up(operations).await;
                self.inflight.acquire().await.ok()
            }
            Class::Bulk => {
                let turn = self.bulk_turn.lock().await;
                if timeout(PATIENCE, self.go_last(operations)).await.is_err() {
                    self.save_up(operations).await;
                }
                drop(turn);
                self.inflight.acquire().await.ok()
            }
        };
        let micros = u64::try_from(begun.elapsed().as_micros()).unwrap_or(u64::MAX);
        self.figures.waited.fetch_add(micros, Ordering::Relaxed);
        self.figures.longest.fetch_max(micros, Ordering::Relaxed);
        Permit {
            limiter: self,
            _inflight: inflight,
            begun: Instant::now(),
        }
    }

    /// Takes what `operations` need, or says when there may be that much.
    fn take(&self, operations: usize) -> Result<(), Duration> {
        let rate = self.rate.read();
        let Some(bucket) = &rate.bucket else { return Ok(()) };
        let most = u32::try_from(operations).unwrap_or(u32::MAX).clamp(1, rate.burst);
        let wait = match NonZeroU32::new(most).map(|n| bucket.check_n(n)) {
            None | Some(Err(_) | Ok(Ok(()))) => return Ok(()),
            Some(Ok(Err(not_yet))) => not_yet.wait_time_from(DefaultClock::default().now()),
        };
        // The rate may rise meanwhile.
        Err(wait.clamp(Duration::from_millis(1), Duration::from_secs(1)))
    }

    async fn save_up(&self, operations: usize) {
        if operations == 0 {
            return;
        }
        let _turn = self.turn.lock().await;
        while let Err(wait) = self.take(operations) {
            tokio::time::sleep(wait).await;
        }
    }

    /// Goes when nobody else wants to.
    async fn go_last(&self, operations: usize) {
        loop {
            self.wait_live().await;
            let Err(wait) = self.take(operations) else { return };
            tokio::time::sleep(wait).await;
        }
    }

    async fn wait_live(&self) {
        until(&self.live_done, || self.live.load(Ordering::Relaxed) == 0).await;
    }

    /// What to show of it now.
    pub fn view(&self) -> View {
        let load = |figure: &AtomicU64| figure.load(Ordering::Relaxed);
        let (figures, rate) = (&self.figures, self.rate.read());
        let (requests, failed) = (load(&figures.requests), load(&figures.failed));
        let mean = |micros: u64| micros as f64 / 1e6 / requests.max(1) as f64;
        let limit = f64::from(self.limits.inflight());
        View {
            processing_mean: mean(load(&figures.processed)),
            wait_mean: mean(load(&figures.waited)),
            wait_max: load(&figures.longest) as f64 / 1e6,
            in_flight: limit - self.inflight.available_permits() as f64,
            in_flight_limit: limit,
            rate_limit: if rate.bucket.is_some() {
                f64::from(rate.qps)
            } else {
                f64::INFINITY
            },
            burst: if rate.bucket.is_some() {
                f64::from(rate.burst)
            } else {
                f64::INFINITY
            },
            succeeded: requests - failed,
            failed,
        }
    }
}

impl Permit<'_> {
    /// The request is done.
    pub fn done(self, well: bool) {
        let figures = &self.limiter.figures;
        let micros = u64::try_from(self.begun.elapsed().as_micros()).unwrap_or(u64::MAX);
        figures.processed.fetch_add(micros, Ordering::Relaxed);
        // In this order: who reads them never sees more failures than requests.
        figures.requests.fetch_add(1, Ordering::Relaxed);
        figures.failed.fetch_add(u64::from(!well), Ordering::Relaxed);
    }
}

/// Makes the bulk wait while it lives.
struct First<'a>(&'a Limiter);

impl<'a> First<'a> {
    fn new(limiter: &'a Limiter) -> Self {
        limiter.live.fetch_add(1, Ordering::Relaxed);
        Self(limiter)
    }
}

impl Drop for First<'_> {
    fn drop(&mut self) {
        self.0.live.fetch_sub(1, Ordering::Relaxed);
        self.0.live_done.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits(qps: u32, bootstrap_qps: Option<u32>) -> Limits {
        Limits {
            qps,
            bootstrap_qps,
            ..Limits::default()
        }
    }

    async fn takes(limiter: &Limiter, class: Class, operations: usize) -> bool {
        let soon = Duration::from_millis(20);
        tokio::time::timeout(soon, limiter.acquire(class, operations))
            .await
            .is_ok()
    }

    #[tokio::test]
    async fn each_key_counts_and_the_rate_falls_once_all_is_written() {
        let limiter = Limiter::new(limits(2, Some(1_000_000)));
        assert_eq!(limiter.batch_max(), 128);
        for _ in 0..100 {
            assert!(takes(&limiter, Class::Bulk, 100).await);
        }
        limiter.steady();
        assert_eq!(limiter.batch_max(), 2);
        assert!(takes(&limiter, Class::Live, 2).await);
        assert!(!takes(&limiter, Class::Live, 2).await);
        assert!(
            takes(&limiter, Class::Control, 2).await,
            "nothing holds up the heartbeat"
        );
    }

    #[tokio::test]
    async fn zero_is_no_limit() {
        let limiter = Limiter::new(limits(0, Some(10)));
        for _ in 0..1000 {
            assert!(takes(&limiter, Class::Bulk, 128).await);
        }
        assert_eq!(limiter.view().rate_limit, f64::INFINITY);
    }

    #[tokio::test]
    async fn the_bulk_waits_for_what_changes_now() {
        let limiter = Limiter::new(limits(0, None));
        let first = First::new(&limiter);
        assert!(!takes(&limiter, Class::Bulk, 1).await);
        assert!(takes(&limiter, Class::Live, 1).await);
        drop(first);
        assert!(takes(&limiter, Class::Bulk, 1).await);
    }

    #[tokio::test]
    async fn a_flood_of_small_requests_starves_nobody() {
        let limiter = Limiter::new(limits(100, None));
        limiter.acquire(Class::Live, 100).await.done(true);
        let flood = async || {
            loop {
                limiter.acquire(Class::Live, 1).await.done(true);
            }
        };
        for class in [Class::Live, Class::Bulk] {
            let floods = futures::future::select_all([0; 3].map(|_| Box::pin(flood())));
            tokio::select! {
                permit = limiter.acquire(class, 50) => permit.done(true),
                _ = floods => unreachable!("it has no end"),
                () = tokio::time::sleep(Duration::from_secs(10)) => panic!("{class:?} starves"),
            }
        }
    }

    #[tokio::test]
    async fn requests_on_their_way_are_counted() {
        let few = Limits {
            max_inflight: Some(1),
            ..limits(0, None)
        };
        let limiter = Limiter::new(few);
        let permit = limiter.acquire(Class::Live, 1).await;
        assert!(!takes(&limiter, Class::Live, 1).await);
        assert_eq!(limiter.view().in_flight, 1.0);
        permit.done(false);
        let view = limiter.view();
        assert_eq!((view.failed, view.succeeded, view.in_flight), (1, 0, 0.0));
    }
}
