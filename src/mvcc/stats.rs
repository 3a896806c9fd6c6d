//! Sizes and counts of a store.

use super::state::State;
use super::write_txn::Committed;
use std::sync::atomic::{AtomicU64, Ordering};

/// Sizes and counts at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// The last published revision.
    pub revision: i64,
    /// The compact revision, −1 if never compacted.
    pub compacted: i64,
    /// Live keys.
    pub keys: usize,
    /// Estimated bytes of the store, including the index and the log.
    pub bytes: usize,
    /// Revisions in the log.
    pub log_len: usize,
    pub watchers: usize,
    /// Bytes of all frames that groups of watchers hold.
    pub frame_bytes: usize,
    /// Frames that groups dropped or never made since the start, because all frames together, or those of one revision,
    /// would have taken too much memory. Their watchers read the log.
    pub frames_dropped: u64,
    /// How many times a watcher has read the log, because it was behind the frames of its group, since the start.
    pub log_reads: u64,
    /// Range reads since the start.
    pub ranges: u64,
    /// Committed write transactions since the start.
    pub commits: u64,
    /// Committed events since the start.
    pub events: u64,
    /// Keys put since the start.
    pub puts: u64,
    /// Keys deleted since the start.
    pub deletes: u64,
    /// Committed write transactions with more than one event since the start.
    pub txns: u64,
}

#[derive(Default)]
pub(super) struct Counters {
    pub(super) ranges: AtomicU64,
    pub(super) log_reads: AtomicU64,
    commits: AtomicU64,
    puts: AtomicU64,
    deletes: AtomicU64,
    txns: AtomicU64,
}

impl Counters {
    /// Counts a new revision.
    pub(super) fn count(&self, committed: &Committed) {
        let add = |counter: &AtomicU64, n: usize| counter.fetch_add(n as u64, Ordering::Relaxed);
        add(&self.commits, 1);
        add(&self.deletes, committed.deletes);
        add(&self.puts, committed.events - committed.deletes);
        add(&self.txns, usize::from(committed.events > 1));
    }

    pub(super) fn stats(&self, state: &State) -> Stats {
        let puts = self.puts.load(Ordering::Relaxed);
        let deletes = self.deletes.load(Ordering::Relaxed);
        Stats {
            revision: state.visible,
            compacted: state.compacted,
            keys: state.index.live(),
            bytes: state.size(),
            log_len: state.log.len(),
            watchers: state.groups.watchers(),
            frame_bytes: state.groups.budget.held(),
            frames_dropped: state.groups.budget.dropped,
            log_reads: self.log_reads.load(Ordering::Relaxed),
            ranges: self.ranges.load(Ordering::Relaxed),
            commits: self.commits.load(Ordering::Relaxed),
            events: puts + deletes,
            puts,
            deletes,
            txns: self.txns.load(Ordering::Relaxed),
        }
    }
}
