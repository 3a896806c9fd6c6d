//! What the store remembers of reads that are under way: the revisions that long ones are at, and how many
//! keys are left of lists read page by page.

use super::range::KeyRange;
use parking_lot::Mutex;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::OnceLock;

/// Counts of what is left of paginated lists that are remembered.
const PAGES: usize = 256;

/// Revisions that long reads are at → how many of them.
#[derive(Default)]
pub(super) struct Pins {
    at: Mutex<BTreeMap<i64, usize>>,
    on_unpin: OnceLock<Box<dyn Fn() + Send + Sync>>,
}

/// Keeps one revision readable while it lives.
pub(super) struct Pin<'a> {
    pins: &'a Pins,
    at: i64,
}

/// Counts of the rest of lists that are being read page by page; the oldest is forgotten first.
#[derive(Default)]
pub(super) struct Pages {
    counts: HashMap<(KeyRange, i64), usize>,
    order: VecDeque<(KeyRange, i64)>,
}

// === impl Pins ===

impl Pins {
    pub(super) fn pin(&self, at: i64) -> Pin<'_> {
        self.hold(at);
        Pin { pins: self, at }
    }

    /// Pins a revision until it is released.
    pub(super) fn hold(&self, at: i64) {
        *self.at.lock().entry(at).or_default() += 1;
    }

    /// Ends one [`Pins::hold`].
    pub(super) fn release(&self, revision: i64) {
        let mut at = self.at.lock();
        if let Some(n) = at.get_mut(&revision) {
            *n -= 1;
            if *n == 0 {
                at.remove(&revision);
            }
        }
        let free = at.is_empty();
        drop(at);
        if free && let Some(f) = self.on_unpin.get() {
            f();
        }
    }

    /// The oldest revision pinned.
    pub(super) fn oldest(&self) -> Option<i64> {
        self.at.lock().keys().next().copied()
    }

    /// Calls `f` whenever the last pin is gone; only the first call of this has an effect.
    pub(super) fn on_unpin(&self, f: impl Fn() + Send + Sync + 'static) {
        let _ = self.on_unpin.set(Box::new(f));
    }
}

impl Drop for Pin<'_> {
    fn drop(&mut self) {
        self.pins.release(self.at);
    }
}

// === impl Pages ===

impl Pages {
    pub(super) fn put(&mut self, rest: (KeyRange, i64), count: usize) {
        if self.counts.insert(rest.clone(), count).is_none() {
            self.order.push_back(rest);
        }
        while self.order.len() > PAGES {
            let oldest = self.order.pop_front();
            oldest.map(|oldest| self.counts.remove(&oldest));
        }
    }

    /// Many clients read the same list, so what is found stays.
    pub(super) fn get(&self, rest: &(KeyRange, i64)) -> Option<usize> {
        self.counts.get(rest).copied()
    }
}
