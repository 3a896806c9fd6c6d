//! What a writer shows of itself.

use super::SyncStore;
use prometheus_client::metrics::histogram::Histogram;
use std::ops::Bound;
use std::time::Duration;

/// What has been done, and what is waiting.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Keys written or deleted.
    pub writes: u64,
    /// Batches that failed and were tried again.
    pub failures: u64,
    /// Writes that the store will never take.
    pub rejected: u64,
    /// Keys waiting.
    pub queued: usize,
}

/// What one prefix of a writer is like.
pub struct View {
    /// Its kind of data, for labels.
    pub scope: String,
    /// Keys waiting.
    pub queued: usize,
    /// How long the one that waits longest has been waiting.
    pub oldest: Duration,
    /// Keys that should be there.
    pub keys: usize,
    /// Writes that failed and were tried again.
    pub errors: u64,
    /// Keys that the store refused.
    pub rejected: u64,
    /// Whether everything has been written once.
    pub complete: bool,
    /// Whether what it is a copy of has been read whole; none: it is no copy.
    pub read: Option<bool>,
    /// From when a change is known to when it is in the store; seconds.
    pub lag: Histogram,
}

impl SyncStore {
    /// What has been done, and what is waiting.
    pub fn stats(&self) -> Stats {
        let state = self.state.lock();
        Stats {
            queued: state.queue.len(),
            ..state.stats
        }
    }

    /// The number of keys of `prefix` that the store is known to hold.
    pub fn stored(&self, prefix: &str) -> usize {
        let state = self.state.lock();
        let range = (Bound::Included(prefix.as_bytes()), Bound::Unbounded);
        let under = state.keys.range::<[u8], _>(range);
        let under = under.take_while(|(key, _)| key.starts_with(prefix.as_bytes()));
        under.filter(|(_, entry)| entry.written.is_some()).count()
    }

    /// How it is with each prefix. What is on its way waits, too.
    pub fn views(&self) -> Vec<View> {
        let state = self.state.lock();
        let mut views: Vec<View> = Vec::with_capacity(self.prefixes.len());
        for (at, prefix) in self.prefixes.iter().enumerate() {
            let under = &state.under[at];
            views.push(View {
                scope: prefix.scope.clone(),
                queued: 0,
                oldest: Duration::ZERO,
                keys: under.count.keys,
                errors: under.errors,
                rejected: under.rejected,
                complete: under.complete,
                read: under.read,
                lag: prefix.lag.clone(),
            });
        }
        for (key, entry) in &state.keys {
            let Some(at) = self.prefix_of(key) else { continue };
            let view = &mut views[at];
            if let Some(since) = entry.since {
                view.queued += 1;
                view.oldest = view.oldest.max(self.elapsed(since));
            }
        }
        views
    }
}
