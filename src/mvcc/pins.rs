//! Revisions that long reads are at: purging leaves the history of a pinned revision alone.

use parking_lot::Mutex;
use std::collections::BTreeMap;

/// Pinned revisions, each with the number of reads at it.
pub(super) struct Pins {
    reads: Mutex<BTreeMap<i64, usize>>,
    /// Called when the last pin is released.
    unpinned: Box<dyn Fn() + Send + Sync>,
}

/// Keeps one revision readable until it is dropped.
pub(super) struct Pin<'a> {
    pins: &'a Pins,
    revision: i64,
}

impl Pins {
    pub(super) fn new(unpinned: Box<dyn Fn() + Send + Sync>) -> Self {
        Self {
            reads: Mutex::default(),
            unpinned,
        }
    }

    pub(super) fn pin(&self, revision: i64) -> Pin<'_> {
        self.hold(revision);
        Pin { pins: self, revision }
    }

    /// Pins a revision until [`Pins::release`], for readers that cannot borrow the store.
    pub(super) fn hold(&self, revision: i64) {
        *self.reads.lock().entry(revision).or_default() += 1;
    }

    /// Ends one [`Pins::hold`].
    pub(super) fn release(&self, revision: i64) {
        let mut reads = self.reads.lock();
        if let Some(n) = reads.get_mut(&revision) {
            *n -= 1;
            if *n == 0 {
                reads.remove(&revision);
            }
        }
        let free = reads.is_empty();
        drop(reads);
        if free {
            (self.unpinned)();
        }
    }

    /// The oldest pinned revision.
    pub(super) fn oldest(&self) -> Option<i64> {
        self.reads.lock().keys().next().copied()
    }
}

impl Drop for Pin<'_> {
    fn drop(&mut self) {
        self.pins.release(self.revision);
    }
}
