//! Limits on the requests to an etcd: operations per second and requests in flight, as in Cilium's client (pkg/rate,
//! `etcd.qps`).
//!
//! Requests have a class. Control requests (heartbeat, configuration) wait for no limit. Changes go before bulk writes,
//! and within a class requests go in the order in which they came.

use super::labels::RequestOutcome;
use crate::util::wait::until;
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
    /// Operations per second, and the size of a burst after a pause; each key counts as one. 0: no limit.
    pub qps: u32,
    /// Replaces `qps` until [`Limiter::initial_write_done`]; `None`: `qps` counts from the start.
    pub bootstrap_qps: Option<u32>,
    /// Requests in flight; `None`: as many as `qps`.
    pub max_inflight: Option<u32>,
    /// Keys per page of a list (`etcd.limit`); 0: one page.
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

/// Upper bound of [`Limits::max_inflight`]. Each request can be a transaction with many keys; too many of them at once
/// keep an etcd from renewing leases in time.
const INFLIGHT_MAX: u32 = 16;

impl Limits {
    fn inflight(&self) -> u32 {
        match self.max_inflight.unwrap_or(self.qps) {
            0 => INFLIGHT_MAX,
            n => n.min(INFLIGHT_MAX),
        }
    }
}

/// The priority of a request; the first class is the highest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Class {
    /// The heartbeat and the cluster configuration. Remote clusters judge by them whether this cluster is alive, so no
    /// limit delays them.
    Control,
    /// A change that happens now.
    Live,
    /// A backlog, such as the first write of everything.
    Bulk,
}

/// Operations per request if there is no rate limit, or only that of the start.
const BATCH: u32 = 128;

/// A bulk request yields to live requests for no longer than this.
const PATIENCE: Duration = Duration::from_secs(2);

/// Makes requests wait until the limits admit them.
pub struct Limiter {
    limits: Limits,
    rate: RwLock<Rate>,
    /// Held while waiting for the rate: requests wait one after the other, or small requests would always overtake a
    /// large one.
    rate_queue: Mutex<()>,
    /// Held while a bulk request waits, so that bulk requests wait one after the other.
    bulk_queue: Mutex<()>,
    inflight: Semaphore,
    /// Live requests that wait for the limits.
    live: AtomicUsize,
    live_done: Notify,
    totals: Totals,
}

struct Rate {
    qps: u32,
    burst: u32,
    bucket: Option<Arc<DefaultDirectRateLimiter>>,
}

/// Durations are sums over all requests, in microseconds.
#[derive(Default)]
struct Totals {
    requests: AtomicU64,
    failed: AtomicU64,
    waited: AtomicU64,
    waited_max: AtomicU64,
    processed: AtomicU64,
}

/// Permission for one request.
pub struct Permit<'a> {
    limiter: &'a Limiter,
    _inflight: Option<SemaphorePermit<'a>>,
    begun: Instant,
}

/// The values of Cilium's metrics `api_limiter_*` (pkg/metrics). Durations are in seconds.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct LimiterStats {
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
    pub fn new(limits: Limits) -> Self {
        let rate = match limits.bootstrap_qps {
            Some(qps) if limits.qps > 0 => Rate::new(qps, limits.qps.max(BATCH)),
            _ => Rate::new(limits.qps, limits.qps),
        };
        let inflight = limits.inflight();
        Self {
            limits,
            rate: RwLock::new(rate),
            rate_queue: Mutex::default(),
            bulk_queue: Mutex::default(),
            inflight: Semaphore::new(inflight as usize),
            live: AtomicUsize::new(0),
            live_done: Notify::new(),
            totals: Totals::default(),
        }
    }

    /// Everything has been written once: `bootstrap_qps` no longer counts.
    pub fn initial_write_done(&self) {
        if self.limits.bootstrap_qps.is_some() {
            *self.rate.write() = Rate::new(self.limits.qps, self.limits.qps);
        }
    }

    /// The number of operations that fit into one request.
    pub fn batch_max(&self) -> usize {
        let rate = self.rate.read();
        let most = if rate.bucket.is_some() {
            rate.burst.min(BATCH)
        } else {
            BATCH
        };
        most as usize
    }

    /// Waits until the limits admit one request with `operations`, at most [`Self::batch_max`]. A request without
    /// operations waits only for the number of requests in flight.
    pub async fn acquire(&self, class: Class, operations: usize) -> Permit<'_> {
        let begun = Instant::now();
        let inflight = match class {
            Class::Control => None,
            Class::Live => {
                let _waiting = WaitingLive::new(self);
                self.wait_rate(operations).await;
                self.inflight.acquire().await.ok()
            }
            Class::Bulk => {
                let queue = self.bulk_queue.lock().await;
                if timeout(PATIENCE, self.wait_rate_after_live(operations)).await.is_err() {
                    self.wait_rate(operations).await;
                }
                drop(queue);
                self.inflight.acquire().await.ok()
            }
        };
        let micros = u64::try_from(begun.elapsed().as_micros()).unwrap_or(u64::MAX);
        self.totals.waited.fetch_add(micros, Ordering::Relaxed);
        self.totals.waited_max.fetch_max(micros, Ordering::Relaxed);
        Permit {
            limiter: self,
            _inflight: inflight,
            begun: Instant::now(),
        }
    }

    /// Takes `operations` from the rate; the error is the time after which it makes sense to try again.
    fn take(&self, operations: usize) -> Result<(), Duration> {
        let rate = self.rate.read();
        let Some(bucket) = &rate.bucket else { return Ok(()) };
        let most = u32::try_from(operations).unwrap_or(u32::MAX).clamp(1, rate.burst);
        let wait = match NonZeroU32::new(most).map(|n| bucket.check_n(n)) {
            None | Some(Err(_) | Ok(Ok(()))) => return Ok(()),
            Some(Ok(Err(not_yet))) => not_yet.wait_time_from(DefaultClock::default().now()),
        };
        // Bounded, because the rate can change in the meantime.
        Err(wait.clamp(Duration::from_millis(1), Duration::from_secs(1)))
    }

    async fn wait_rate(&self, operations: usize) {
        if operations == 0 {
            return;
        }
        let _queue = self.rate_queue.lock().await;
        while let Err(wait) = self.take(operations) {
            tokio::time::sleep(wait).await;
        }
    }

    /// Waits for the rate while no live request does.
    async fn wait_rate_after_live(&self, operations: usize) {
        loop {
            self.wait_live().await;
            let Err(wait) = self.take(operations) else { return };
            tokio::time::sleep(wait).await;
        }
    }

    async fn wait_live(&self) {
        until(&self.live_done, || self.live.load(Ordering::Relaxed) == 0).await;
    }

    pub fn stats(&self) -> LimiterStats {
        let load = |total: &AtomicU64| total.load(Ordering::Relaxed);
        let (totals, rate) = (&self.totals, self.rate.read());
        let (requests, failed) = (load(&totals.requests), load(&totals.failed));
        let mean = |micros: u64| micros as f64 / 1e6 / requests.max(1) as f64;
        let limit = f64::from(self.limits.inflight());
        LimiterStats {
            processing_mean: mean(load(&totals.processed)),
            wait_mean: mean(load(&totals.waited)),
            wait_max: load(&totals.waited_max) as f64 / 1e6,
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
    /// The request has ended.
    pub fn done(self, outcome: RequestOutcome) {
        let totals = &self.limiter.totals;
        let micros = u64::try_from(self.begun.elapsed().as_micros()).unwrap_or(u64::MAX);
        totals.processed.fetch_add(micros, Ordering::Relaxed);
        // In this order, so that a reader never sees more failures than requests.
        totals.requests.fetch_add(1, Ordering::Relaxed);
        let failed = outcome == RequestOutcome::Failure;
        totals.failed.fetch_add(u64::from(failed), Ordering::Relaxed);
    }
}

/// A live request that waits for the limits; bulk requests wait until it is dropped.
struct WaitingLive<'a>(&'a Limiter);

impl<'a> WaitingLive<'a> {
    fn new(limiter: &'a Limiter) -> Self {
        limiter.live.fetch_add(1, Ordering::Relaxed);
        Self(limiter)
    }
}

impl Drop for WaitingLive<'_> {
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

    async fn is_admitted(limiter: &Limiter, class: Class, operations: usize) -> bool {
        let soon = Duration::from_millis(20);
        tokio::time::timeout(soon, limiter.acquire(class, operations))
            .await
            .is_ok()
    }

    #[tokio::test]
    async fn each_key_counts_and_the_bootstrap_rate_ends_after_the_initial_write() {
        let limiter = Limiter::new(limits(2, Some(1_000_000)));
        assert_eq!(limiter.batch_max(), 128);
        for _ in 0..100 {
            assert!(is_admitted(&limiter, Class::Bulk, 100).await);
        }
        limiter.initial_write_done();
        assert_eq!(limiter.batch_max(), 2);
        assert!(is_admitted(&limiter, Class::Live, 2).await);
        assert!(!is_admitted(&limiter, Class::Live, 2).await);
        assert!(
            is_admitted(&limiter, Class::Control, 2).await,
            "no limit delays the heartbeat"
        );
    }

    #[tokio::test]
    async fn zero_is_no_limit() {
        let limiter = Limiter::new(limits(0, Some(10)));
        for _ in 0..1000 {
            assert!(is_admitted(&limiter, Class::Bulk, 128).await);
        }
        assert_eq!(limiter.stats().rate_limit, f64::INFINITY);
    }

    #[tokio::test]
    async fn bulk_requests_wait_for_live_ones() {
        let limiter = Limiter::new(limits(0, None));
        let waiting = WaitingLive::new(&limiter);
        assert!(!is_admitted(&limiter, Class::Bulk, 1).await);
        assert!(is_admitted(&limiter, Class::Live, 1).await);
        drop(waiting);
        assert!(is_admitted(&limiter, Class::Bulk, 1).await);
    }

    #[tokio::test]
    async fn a_flood_of_small_requests_does_not_starve_a_large_one() {
        let limiter = Limiter::new(limits(100, None));
        limiter.acquire(Class::Live, 100).await.done(RequestOutcome::Success);
        let flood = async || {
            loop {
                limiter.acquire(Class::Live, 1).await.done(RequestOutcome::Success);
            }
        };
        for class in [Class::Live, Class::Bulk] {
            let floods = futures::future::select_all([0; 3].map(|_| Box::pin(flood())));
            tokio::select! {
                permit = limiter.acquire(class, 50) => permit.done(RequestOutcome::Success),
                _ = floods => unreachable!("the floods do not end"),
                () = tokio::time::sleep(Duration::from_secs(10)) => panic!("{class:?} starves"),
            }
        }
    }

    #[tokio::test]
    async fn requests_in_flight_are_counted() {
        let few = Limits {
            max_inflight: Some(1),
            ..limits(0, None)
        };
        let limiter = Limiter::new(few);
        let permit = limiter.acquire(Class::Live, 1).await;
        assert!(!is_admitted(&limiter, Class::Live, 1).await);
        assert_eq!(limiter.stats().in_flight, 1.0);
        permit.done(RequestOutcome::Failure);
        let stats = limiter.stats();
        assert_eq!((stats.failed, stats.succeeded, stats.in_flight), (1, 0, 0.0));
    }
}
