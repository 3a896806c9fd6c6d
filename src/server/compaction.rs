//! Compaction by policy, and the purge of compacted history.

use super::Core;
use crate::util::pace::{Pace, within_a_step};
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::time::MissedTickBehavior;

/// How often history is compacted to a number of revisions. As in etcd.
const REVISION_COMPACTION: Duration = Duration::from_secs(300);
/// How often the size of the history is looked at.
const SIZE_TICK: Duration = Duration::from_secs(1);
/// Ticks whose revisions a compaction by size keeps, so that clients resume their watches.
const KEPT_TICKS: usize = 10;
/// Ticks whose revisions are kept once the history has twice the size.
const KEPT_TICKS_WHEN_LARGE: usize = 1;
/// The longest time between two periodic compactions. As in etcd.
const PERIOD_MAX: Duration = Duration::from_secs(3600);

/// How urgent a purge is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Haste {
    /// It rests for as long as it works, or longer.
    None,
    /// The history grows faster than a purge that rests frees it.
    Great,
}

impl Core {
    /// Purges the history before `revision`, as far as it is compacted and no long read needs it. Works in short steps,
    /// between which requests are served and writers run. Ends whatever is written and compacted meanwhile.
    pub(super) async fn purge(&self, revision: i64, haste: Haste) {
        // Several at a time would not rest.
        let _turn = self.purging.lock().await;
        let mut pace = Pace::default();
        while pace.step(|| self.store.purge_while(&mut within_a_step())) && self.store.purged() < revision {
            match haste {
                Haste::None => pace.rest().await,
                Haste::Great => tokio::task::yield_now().await,
            }
        }
    }

    /// Purges after each compaction. Never returns.
    pub(super) async fn purge_when_compacted(&self) {
        loop {
            self.compacted.notified().await;
            // Not what is compacted meanwhile: others wait for their turn.
            self.purge(self.store.compacted(), Haste::None).await;
        }
    }

    /// Compacts everything older than `keep`. Never returns. As etcd's periodic mode: samples the revision ten
    /// times in that time, and compacts to the revision of `keep` ago.
    pub async fn compact_periodically(&self, keep: Duration) {
        let period = keep.min(PERIOD_MAX);
        let mut tick = tokio::time::interval((period / 10).max(Duration::from_millis(1)));
        // After a pause of the process, samples must not be made up for.
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let samples = (keep.as_secs_f64() / (period / 10).as_secs_f64()).round() as usize;
        let mut revisions = VecDeque::new();
        loop {
            tick.tick().await;
            revisions.push_back(self.store.revision());
            if revisions.len() <= samples.max(1) {
                continue;
            }
            let Some(revision) = revisions.pop_front() else {
                continue;
            };
            if self.store.compact(revision).is_ok() {
                tracing::debug!(revision, "compacted");
                self.purge(revision, Haste::None).await;
            }
        }
    }

    /// Compacts everything but the last `keep` revisions. Never returns. As etcd's revision mode.
    pub async fn compact_to_revisions(&self, keep: i64) {
        let mut tick = tokio::time::interval(REVISION_COMPACTION);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tick.tick().await;
            let revision = self.store.revision() - keep;
            if revision > 0 && self.store.compact(revision).is_ok() {
                tracing::debug!(revision, "compacted");
                self.purge(revision, Haste::None).await;
            }
        }
    }

    /// Compacts once the history has more than `most` bytes, or `wanted` is set, to the revision of [`KEPT_TICKS`]
    /// seconds ago. Never returns.
    pub async fn compact_by_size(&self, most: usize, wanted: &AtomicBool) {
        let mut tick = tokio::time::interval(SIZE_TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut revisions = VecDeque::new();
        // Quiet watches can resume from here.
        let mut told = 0;
        loop {
            tick.tick().await;
            let bytes = self.store.history_bytes();
            let (kept, haste) = match bytes > 2 * most {
                true => (KEPT_TICKS_WHEN_LARGE, Haste::Great),
                false => (KEPT_TICKS, Haste::None),
            };
            // The last `KEPT_TICKS` revisions, the latest at the front.
            let revision = revisions.get(kept - 1).copied();
            revisions.push_front(self.store.revision());
            revisions.truncate(KEPT_TICKS);
            let is_due = bytes > most || wanted.swap(false, Ordering::Relaxed);
            let Some(revision) = revision.filter(|_| is_due) else {
                continue;
            };
            if revision > told {
                told = self.store.revision();
                self.history_goes(revision).await;
            }
            if self.store.compact(revision).is_ok() {
                self.purge(revision, haste).await;
                let left = self.store.history_bytes();
                tracing::info!(
                    revision,
                    bytes,
                    left,
                    "the history is over its limit of bytes: compacted"
                );
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::{self, AuthStore};
    use crate::lease::Lessor;
    use crate::mvcc::{Store, Write};
    use crate::server::{Config, MemberIdentity, Parts, Wakers};
    use crate::util::lifecycle::Lifecycle;
    use std::sync::Arc;

    /// A store and the server's part that compacts it.
    fn core() -> (Arc<Store>, Arc<Core>) {
        let (wakers, life) = (Wakers::default(), Lifecycle::default());
        let store = Store::with_hooks(wakers.hooks());
        let lessor = Arc::new(Lessor::new(Arc::clone(&store), 2));
        let auth = Arc::new(AuthStore::new(auth::Config::default()).unwrap());
        let config = Config::new(MemberIdentity::random());
        let parts = Parts {
            store: Arc::clone(&store),
            lessor,
            auth,
            durable: None,
            upstream: None,
            wakers,
        };
        let core = Core::start(parts, config, &life);
        (store, core)
    }

    /// Puts one key `times` per second with 1000 bytes; returns the largest history.
    async fn change(store: &Store, seconds: usize, times: usize) -> usize {
        let mut largest = 0;
        for _ in 0..seconds {
            for _ in 0..times {
                store.apply(&[Write::Put("k".into(), vec![7; 1000].into())]);
            }
            largest = largest.max(store.history_bytes());
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        largest
    }

    #[tokio::test(start_paused = true)]
    async fn a_history_over_its_size_is_compacted_and_the_last_seconds_are_kept() {
        let (store, core) = core();
        let wanted = AtomicBool::new(false);
        let drive = async {
            let largest = change(&store, 60, 10).await;
            assert!((140_000..190_000).contains(&largest), "{largest}");
            assert!(
                store.revision() - store.compacted() >= 90,
                "less than ten seconds are left"
            );
            // Too fast for ten seconds of history.
            let largest = change(&store, 30, 100).await;
            assert!(largest < 500_000, "{largest}");
            change(&store, 15, 1).await;
            let compacted = store.compacted();
            change(&store, 2, 1).await;
            assert_eq!(store.compacted(), compacted);
            wanted.store(true, Ordering::Relaxed);
            change(&store, 2, 1).await;
            assert!(store.compacted() > compacted, "a writer asked for a compaction");
        };
        tokio::select! { () = core.compact_by_size(150_000, &wanted) => {}, () = drive => {} }
    }

    #[tokio::test]
    async fn a_purge_ends_although_history_is_written_and_compacted_meanwhile() {
        let (store, core) = core();
        let change = |n: usize| {
            let writes = [0, 1, 2].map(|m| Write::Put(format!("k{}", (n + m) % 500).into(), n.to_string().into()));
            store.apply(&writes)
        };
        let revision = (0..3000).fold(0, |_, n| change(n));
        store.compact(revision).unwrap();
        let mut more = 0;
        let churn = async {
            for n in 0.. {
                let now = change(n);
                store.compact(now).unwrap();
                core.compacted.notify_one();
                more = n;
                tokio::task::yield_now().await;
            }
        };
        tokio::select! { () = core.purge(revision, Haste::None) => {}, () = churn => {} }
        assert!(store.purged() >= revision);
        assert!(more > 10, "the purge left no time for others: {more}");
    }

    #[tokio::test]
    async fn a_purge_whose_client_goes_away_is_ended_by_the_task() {
        let (store, core) = core();
        for n in 0..3000 {
            store.apply(&[Write::Put("k".into(), n.to_string().into())]);
        }
        store.compact(store.revision()).unwrap();
        core.compacted.notify_one();
        tokio::select! {
            biased;
            () = core.purge(store.revision(), Haste::None) => panic!("so much is not purged at once"),
            () = tokio::task::yield_now() => {}
        }
        while store.purged() < store.revision() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
}
