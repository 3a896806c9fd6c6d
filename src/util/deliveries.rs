//! When the readers of a store receive what was written: the *local leg* of a change that was mirrored from another cluster,
//! from its commit here to the send to the last watcher; and the sends of traced revisions.
//!
//! A few commits of each cluster are followed, so that a send almost always costs one load: a filter of 64 bits tells whether
//! a message may carry a followed revision.

use super::durations::{Durations, Quantiles};
use super::trace::{self, Cause, Place, Span, Trace, Value};
use bytes::Bytes;
use parking_lot::Mutex;
use prometheus_client::metrics::histogram::Histogram;
use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::time::Instant;

/// How often commits are looked at, and how long one is followed at least.
pub const SETTLE: Duration = Duration::from_millis(500);
/// A watcher that has not taken a commit after this time ends the measurement, which then takes this time.
const LONGEST: Duration = Duration::from_secs(30);
/// Commits that are measured at a time. More would make the filter useless.
const MEASURED: usize = 8;
/// The shortest time between two measured commits of a cluster.
const EVERY: Duration = Duration::from_secs(1);
/// Traced commits that are followed at a time; the oldest make room.
const TRACED: usize = 1024;

/// Sends of a traced commit that are told one by one. All of them together are told as one span.
const SENDS_TOLD: usize = 64;

/// See the module's documentation.
pub struct Deliveries {
    /// A bit for each followed revision, modulo 64.
    filter: AtomicU64,
    begun: Instant,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// In the order of revisions.
    followed: VecDeque<Followed>,
    legs: BTreeMap<Arc<str>, Leg>,
}

/// The local leg of one cluster.
#[derive(Default)]
struct Leg {
    /// The last commit that was measured.
    last: Option<Duration>,
    durations: Durations,
}

/// A commit whose sends are watched.
struct Followed {
    revision: i64,
    /// A key of the commit, by which its watchers are known.
    key: Bytes,
    committed: Instant,
    /// The cluster whose leg is measured.
    cluster: Option<Arc<str>>,
    traces: Vec<Trace>,
    last_send: Option<Instant>,
    sends: usize,
}

/// A change that is about to be written.
#[derive(Clone, Copy, Debug, Default)]
pub struct Change<'a> {
    /// A key of the change.
    pub key: &'a [u8],
    /// The cluster that the change was mirrored from.
    pub cluster: Option<&'a str>,
    /// The cluster id of the store.
    pub store_id: u64,
    pub cause: Cause<'a>,
}

impl fmt::Debug for Deliveries {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Deliveries")
    }
}

impl Default for Deliveries {
    fn default() -> Self {
        Self {
            filter: AtomicU64::new(0),
            begun: Instant::now(),
            state: Mutex::default(),
        }
    }
}

impl Deliveries {
    /// Runs `write`, which commits `change` and returns its outcome, and follows the revision that `revision_of` finds in it.
    pub fn commit<T>(
        &self,
        change: Change<'_>,
        revision_of: impl Fn(&T) -> Option<i64>,
        write: impl FnOnce() -> T,
    ) -> T {
        let is_traced = trace::is_on() && !matches!(change.cause, Cause::Untraced);
        if change.cluster.is_none() && !is_traced {
            return write();
        }
        let mut state = self.state.lock();
        let cluster = change
            .cluster
            .and_then(|name| state.measure(name, self.begun.elapsed()));
        if cluster.is_none() && !is_traced {
            drop(state);
            return write();
        }
        // A watcher may get the revision before it is known here: its send waits for the lock.
        self.filter.store(u64::MAX, Ordering::Relaxed);
        let committed = Instant::now();
        let outcome = write();
        if let Some(revision) = revision_of(&outcome) {
            let traces = match change.cause {
                Cause::Untraced => vec![],
                Cause::Source => trace::of(change.store_id, revision).into_iter().collect(),
                Cause::Revisions(traces) => traces.to_vec(),
            };
            if cluster.is_some() || !traces.is_empty() {
                state.follow(Followed {
                    revision,
                    key: Bytes::copy_from_slice(change.key),
                    committed,
                    cluster,
                    traces,
                    last_send: None,
                    sends: 0,
                });
            }
        }
        self.filter.store(state.filter(), Ordering::Relaxed);
        outcome
    }

    /// A watcher that sees the keys for which `sees` says so is sent its events of `revisions`. `reader` describes it.
    pub fn sent(
        &self,
        revisions: RangeInclusive<i64>,
        sees: impl Fn(&[u8]) -> bool,
        reader: impl Fn() -> Vec<(&'static str, Value)>,
    ) {
        let filter = self.filter.load(Ordering::Relaxed);
        if filter == 0 || filter & bits(&revisions) == 0 {
            return;
        }
        let now = Instant::now();
        let mut state = self.state.lock();
        for followed in &mut state.followed {
            if !revisions.contains(&followed.revision) || !sees(&followed.key) {
                continue;
            }
            followed.last_send = Some(now);
            followed.sends += 1;
            if followed.sends > SENDS_TOLD {
                continue;
            }
            let start = trace::ago(now.saturating_duration_since(followed.committed));
            for trace in &followed.traces {
                let mut attributes = reader();
                attributes.push(("isthmus.revision", followed.revision.into()));
                attributes.push(("isthmus.key", trace::key(&followed.key)));
                trace::record(Span {
                    trace: *trace,
                    name: "watch send",
                    place: Place::Child,
                    start,
                    end: trace::ago(now.elapsed()),
                    attributes,
                    links: vec![],
                });
            }
        }
    }

    /// Ends what all watchers have had. `is_delivered` tells whether all watchers of a key have taken a revision.
    pub fn settle(&self, is_delivered: impl Fn(&[u8], i64) -> bool) {
        let due: Vec<_> = {
            let state = self.state.lock();
            let due = state.followed.iter().filter(|f| f.committed.elapsed() >= SETTLE);
            due.map(|f| (f.revision, f.key.clone(), f.committed)).collect()
        };
        for (revision, key, committed) in due {
            let is_late = committed.elapsed() >= LONGEST;
            if is_late || is_delivered(&key, revision) {
                self.state.lock().end(revision, is_late, self.begun.elapsed());
            }
        }
        let state = self.state.lock();
        self.filter.store(state.filter(), Ordering::Relaxed);
    }

    /// How long the local leg of a cluster took in the last `minutes`; `None` if nothing was measured.
    pub fn figures(&self, cluster: &str, minutes: u64) -> Option<Quantiles> {
        let state = self.state.lock();
        // The last whole minute counts, too, so that a new one does not begin with a single measurement.
        state
            .legs
            .get(cluster)?
            .durations
            .figures(self.begun.elapsed(), minutes.max(2))
    }

    /// All local legs of a cluster so far, in seconds.
    pub fn histogram(&self, cluster: &str) -> Option<Histogram> {
        self.state.lock().legs.get(cluster)?.durations.histogram()
    }

    /// Forgets a cluster that left.
    pub fn forget(&self, cluster: &str) {
        self.state.lock().legs.remove(cluster);
    }
}

/// The bits of revisions in the filter.
fn bits(revisions: &RangeInclusive<i64>) -> u64 {
    let (from, to) = (*revisions.start(), *revisions.end());
    match to.checked_sub(from) {
        Some(more @ 0..63) => ((1_u64 << (more + 1)) - 1).rotate_left((from.rem_euclid(64)).try_into().unwrap_or(0)),
        Some(..0) => 0,
        _ => u64::MAX,
    }
}

// === impl Followed ===

impl Followed {
    /// Tells when all watchers had the commit.
    fn tell(&self) {
        let Some(last) = self.last_send else { return };
        for trace in &self.traces {
            trace::record(Span {
                trace: *trace,
                name: "all watchers",
                place: Place::Child,
                start: trace::time_of(self.committed),
                end: trace::time_of(last),
                attributes: vec![
                    ("isthmus.revision", self.revision.into()),
                    ("isthmus.watchers", self.sends.into()),
                ],
                links: vec![],
            });
        }
    }
}

// === impl State ===

impl State {
    /// The name of the cluster if its next commit shall be measured.
    fn measure(&mut self, cluster: &str, now: Duration) -> Option<Arc<str>> {
        let measured = self.followed.iter().filter(|followed| followed.cluster.is_some());
        let is_full = measured.count() >= MEASURED;
        // So that busy clusters leave some to the others.
        let share = u32::try_from(self.legs.len() / MEASURED).unwrap_or(u32::MAX);
        let every = EVERY.max(SETTLE * 2 * share);
        if !self.legs.contains_key(cluster) {
            self.legs.insert(cluster.into(), Leg::default());
        }
        let (name, leg) = self.legs.get_key_value(cluster)?;
        if is_full || leg.last.is_some_and(|last| last + every > now) {
            return None;
        }
        let name = Arc::clone(name);
        self.legs.get_mut(cluster)?.last = Some(now);
        Some(name)
    }

    fn follow(&mut self, followed: Followed) {
        if self.followed.len() >= TRACED {
            self.followed.pop_front();
        }
        self.followed.push_back(followed);
    }

    /// The commit has reached all of its watchers, or `is_late`.
    fn end(&mut self, revision: i64, is_late: bool, now: Duration) {
        let Some(at) = self.followed.iter().position(|f| f.revision == revision) else {
            return;
        };
        let Some(followed) = self.followed.remove(at) else {
            return;
        };
        followed.tell();
        let took = match (is_late, followed.last_send) {
            (true, _) => LONGEST,
            (false, Some(last)) => last.saturating_duration_since(followed.committed),
            // Nobody watches the key.
            (false, None) => return,
        };
        if let Some(leg) = followed.cluster.and_then(|cluster| self.legs.get_mut(&cluster)) {
            leg.durations.add(took.as_secs_f64() * 1000.0, now);
        }
    }

    fn filter(&self) -> u64 {
        let followed = self.followed.iter();
        followed.fold(0, |filter, f| filter | bits(&(f.revision..=f.revision)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mirrored(key: &'static str, cluster: &'static str) -> Change<'static> {
        Change {
            key: key.as_bytes(),
            cluster: Some(cluster),
            ..Change::default()
        }
    }

    fn commit(deliveries: &Deliveries, cluster: &'static str, revision: i64) {
        deliveries.commit(mirrored("cilium/cache/a", cluster), |r| Some(*r), || revision);
    }

    fn send(deliveries: &Deliveries, revisions: RangeInclusive<i64>) {
        deliveries.sent(revisions, |key| key.starts_with(b"cilium/cache/"), Vec::new);
    }

    #[test]
    fn a_filter_has_the_bits_of_all_revisions() {
        assert_eq!(bits(&(3..=3)), 0b1000);
        assert_eq!(bits(&(63..=65)), (1 << 63) | 0b11);
        assert_eq!(bits(&(0..=62)), u64::MAX >> 1);
        assert_eq!((bits(&(1..=64)), bits(&(1..=1000))), (u64::MAX, u64::MAX));
        assert_eq!(bits(&RangeInclusive::new(5, 4)), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn the_last_send_counts() {
        let deliveries = Deliveries::default();
        commit(&deliveries, "hk", 7);
        for ms in [3, 40, 57] {
            tokio::time::advance(Duration::from_millis(ms)).await;
            send(&deliveries, 6..=7);
        }
        // Messages that do not carry the revision, and watchers that do not see the key.
        tokio::time::advance(Duration::from_millis(500)).await;
        send(&deliveries, 8..=9);
        deliveries.sent(7..=7, |_| false, Vec::new);
        deliveries.settle(|_, _| false);
        assert!(deliveries.figures("hk", 1).is_none(), "a watcher is behind");
        deliveries.settle(|_, _| true);
        let figures = deliveries.figures("hk", 1).unwrap();
        assert!((figures.max - 100.0).abs() < 6.0, "{figures:?}");
        assert_eq!(figures.samples, 1);
        assert_eq!(deliveries.filter.load(Ordering::Relaxed), 0);
        deliveries.forget("hk");
        assert!(deliveries.figures("hk", 1).is_none() && deliveries.histogram("hk").is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn a_watcher_that_stands_still_is_not_waited_for_without_end() {
        let deliveries = Deliveries::default();
        commit(&deliveries, "hk", 7);
        send(&deliveries, 7..=7);
        tokio::time::advance(LONGEST).await;
        deliveries.settle(|_, _| false);
        assert!(deliveries.figures("hk", 1).unwrap().max > 28_000.0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_commit_that_nobody_watches_is_no_measurement() {
        let deliveries = Deliveries::default();
        commit(&deliveries, "hk", 7);
        tokio::time::advance(SETTLE).await;
        deliveries.settle(|_, _| true);
        assert!(deliveries.figures("hk", 1).is_none());
        assert!(deliveries.state.lock().followed.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn few_commits_are_followed_and_each_cluster_has_its_share() {
        let deliveries = Deliveries::default();
        let names: Vec<&'static str> = (0..40).map(|n| &*format!("c{n}").leak()).collect();
        let mut revision = 0;
        for _ in 0..40 {
            // The first clusters are the busiest.
            for name in &names {
                for _ in 0..3 {
                    revision += 1;
                    commit(&deliveries, name, revision);
                    send(&deliveries, revision..=revision);
                }
            }
            assert!(deliveries.state.lock().followed.len() <= MEASURED);
            tokio::time::advance(SETTLE).await;
            deliveries.settle(|_, _| true);
        }
        for name in names {
            assert!(deliveries.figures(name, 60).is_some(), "{name}");
        }
    }

    #[test]
    fn what_is_neither_mirrored_nor_traced_is_only_written() {
        let deliveries = Deliveries::default();
        let revision = deliveries.commit(Change::default(), |r| Some(*r), || 9);
        assert_eq!((revision, deliveries.filter.load(Ordering::Relaxed)), (9, 0));
    }
}
