//! Statistics of a writer, for metrics and status texts. Reading them does not visit the keys.

use super::{PrefixSize, SyncStore};
use prometheus_client::metrics::histogram::Histogram;
use std::time::Duration;

/// Totals of a writer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WriterStats {
    /// Keys written or deleted.
    pub writes: u64,
    /// Batches that failed and were written again.
    pub failures: u64,
    /// Writes that the store refused.
    pub rejected: u64,
    /// Keys in the queue.
    pub queued: usize,
    /// Bytes of values that were replaced or deleted in the store, with their keys.
    pub replaced_bytes: u64,
    /// Bytes of values that were replaced by a newer one before they were written.
    pub coalesced_bytes: u64,
    /// Time for which the limits of changes have held the writer up.
    pub slowed: Duration,
}

/// The state of one owned prefix.
pub struct PrefixStats {
    /// The prefix as a metric label, see [`scope_of`](crate::kvstore::labels::scope_of).
    pub scope: String,
    /// Keys with a change that is not written yet, including those in flight.
    pub queued: usize,
    /// How long the oldest of these changes has been waiting.
    pub oldest: Duration,
    /// Keys that the prefix should have.
    pub keys: usize,
    /// Batches with keys of this prefix that failed and were written again.
    pub errors: u64,
    /// Keys that the store refused.
    pub rejected: u64,
    /// Whether every key has been written once.
    pub initial_write_done: bool,
    /// Whether the first list of the mirrored source has completed; `None` if the prefix is not a mirror.
    pub initial_read_done: Option<bool>,
    /// From receiving a change to its write; seconds.
    pub lag: Histogram,
}

impl SyncStore {
    pub fn stats(&self) -> WriterStats {
        let state = self.state.lock();
        WriterStats {
            queued: state.queue.len(),
            slowed: state.slowed.total(),
            ..state.stats
        }
    }

    /// The keys that `prefix`, one of the owned prefixes, should have.
    pub fn desired(&self, prefix: &str) -> PrefixSize {
        let size = self.at(prefix).map(|at| self.state.lock().table.counts(at).desired);
        size.unwrap_or_default()
    }

    /// The number of keys that the store is known to hold under `prefix`, one of the owned prefixes.
    pub fn stored(&self, prefix: &str) -> usize {
        let stored = self.at(prefix).map(|at| self.state.lock().table.counts(at).stored);
        stored.unwrap_or_default()
    }

    pub fn prefix_stats(&self) -> Vec<PrefixStats> {
        let state = self.state.lock();
        let stats = self.prefixes.iter().enumerate().map(|(at, prefix)| {
            let (progress, counts) = (&state.progress[at], state.table.counts(at));
            PrefixStats {
                scope: prefix.scope.clone(),
                queued: counts.waiting,
                oldest: counts.oldest().map(|since| self.elapsed(since)).unwrap_or_default(),
                keys: counts.desired.keys,
                errors: progress.errors,
                rejected: progress.rejected,
                initial_write_done: progress.initial_write_done,
                initial_read_done: progress.initial_read_done,
                lag: prefix.lag.clone(),
            }
        });
        stats.collect()
    }
}
