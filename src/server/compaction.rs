//! Compaction by policy, and the purge of compacted history.

use super::Core;
use std::collections::VecDeque;
use std::time::Duration;
use tokio::time::MissedTickBehavior;

/// How often history is compacted to a number of revisions. As in etcd.
const REVISION_COMPACTION: Duration = Duration::from_secs(300);
/// The longest time between two periodic compactions. As in etcd.
const PERIOD_MAX: Duration = Duration::from_secs(3600);

impl Core {
    /// Purges all compacted history, in steps between which writers run.
    pub(super) async fn purge(&self) {
        while self.store.purge() {
            tokio::task::yield_now().await;
        }
    }

    /// Purges after each compaction. Never returns.
    pub(super) async fn purge_when_compacted(&self) {
        loop {
            self.compacted.notified().await;
            self.purge().await;
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
                self.purge().await;
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
                self.purge().await;
            }
        }
    }
}
