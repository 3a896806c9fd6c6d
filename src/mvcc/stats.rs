//! Sizes and counts of a store.

use super::log::{Batch, EventKind};
use super::store::Store;
use std::sync::atomic::{AtomicU64, Ordering};

/// Sizes and counts at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// The current revision.
    pub revision: i64,
    /// The compact revision, −1 if never compacted.
    pub compacted: i64,
    /// Live keys.
    pub keys: usize,
    /// Encoded bytes of every version kept.
    pub bytes: usize,
    /// Revisions in the log.
    pub log_len: usize,
    /// Watchers.
    pub watchers: usize,
    /// Range reads served.
    pub ranges: u64,
    /// Write transactions committed.
    pub commits: u64,
    /// Events committed.
    pub events: u64,
    /// Keys put.
    pub puts: u64,
    /// Keys deleted.
    pub deletes: u64,
    /// Write transactions of more than one change.
    pub txns: u64,
}

#[derive(Default)]
pub(super) struct Counters {
    pub(super) ranges: AtomicU64,
    commits: AtomicU64,
    puts: AtomicU64,
    deletes: AtomicU64,
    txns: AtomicU64,
}

// === impl Store ===

impl Store {
    /// Sizes and counts.
    pub fn stats(&self) -> Stats {
        let state = self.state.read();
        let puts = self.counters.puts.load(Ordering::Relaxed);
        let deletes = self.counters.deletes.load(Ordering::Relaxed);
        Stats {
            revision: state.visible,
            compacted: state.compacted,
            keys: state.index.live(),
            bytes: state.size(),
            log_len: state.log.len(),
            watchers: state.groups.watchers(),
            ranges: self.counters.ranges.load(Ordering::Relaxed),
            commits: self.counters.commits.load(Ordering::Relaxed),
            events: puts + deletes,
            puts,
            deletes,
            txns: self.counters.txns.load(Ordering::Relaxed),
        }
    }
}

// === impl Counters ===

impl Counters {
    pub(super) fn count(&self, batch: &Batch) {
        let add = |counter: &AtomicU64, n: usize| counter.fetch_add(n as u64, Ordering::Relaxed);
        let deletes = batch.events.iter().filter(|e| e.kind == EventKind::Delete).count();
        add(&self.commits, 1);
        add(&self.deletes, deletes);
        add(&self.puts, batch.events.len() - deletes);
        add(&self.txns, usize::from(batch.events.len() > 1));
    }
}
