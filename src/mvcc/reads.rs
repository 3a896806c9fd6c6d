//! Reads of a store in short locks: ranges, single keys, sizes.
//!
//! A long read continues under several locks (`reader`), so a list of millions of keys never stalls a writer.

use super::Error;
use super::encoded::Kv;
use super::lease_book::GrantedLease;
use super::log::{Batch, Event, Revision};
use super::range::{RangeOptions, RangeResult};
use super::reader::Reader;
use super::stats::Stats;
use super::store::Store;
use bytes::Bytes;
use std::ops::Bound;
use std::sync::atomic::Ordering;

impl Store {
    /// The last published revision.
    pub fn revision(&self) -> i64 {
        self.state.read().visible
    }

    /// The compact revision, −1 if never compacted.
    pub fn compacted(&self) -> i64 {
        self.state.read().compacted
    }

    /// Estimated bytes of the store, including the index and the log.
    pub fn size(&self) -> usize {
        self.state.read().size()
    }

    /// Encoded bytes of history: of the versions that changes since the purge have replaced, and of tombstones. A
    /// compaction to now would free them.
    pub fn history_bytes(&self) -> usize {
        self.state.read().history_bytes()
    }

    /// Sizes and counts.
    pub fn stats(&self) -> Stats {
        self.counters.stats(&self.state.read())
    }

    /// Reads a range at one revision.
    pub fn range(&self, options: &RangeOptions) -> Result<RangeResult, Error> {
        self.range_while(options, &mut || true)
    }

    /// Reads a range at one revision, in short locks. Asks `keep_going` after every few thousand keys, outside of the
    /// lock; fails with [`Error::Stopped`] if the answer is false. A long read takes as long as it takes, so an
    /// asynchronous caller runs it on a blocking thread.
    pub fn range_while(
        &self,
        options: &RangeOptions,
        keep_going: &mut dyn FnMut() -> bool,
    ) -> Result<RangeResult, Error> {
        self.counters.ranges.fetch_add(1, Ordering::Relaxed);
        let state = self.state.read();
        let (current, at) = (state.visible, state.readable(options.revision)?);
        let result = Reader::new(self, state, at, keep_going).range(options, at)?;
        Ok(RangeResult {
            revision: current,
            ..result
        })
    }

    /// The key-value at the last published revision.
    pub fn get(&self, key: &[u8]) -> Option<Kv> {
        let state = self.state.read();
        state.index.get(key).and_then(|h| h.at(state.visible)).cloned()
    }

    /// The keys attached to a lease, in order; `None` if the lease is unknown.
    pub fn lease_keys(&self, lease: i64) -> Option<Vec<Bytes>> {
        Some(self.state.read().leases.keys(lease)?.iter().cloned().collect())
    }

    /// Whether every key of a lease is in a granted range; an unknown lease has no keys. `granted_until` gives the end of
    /// the granted range that contains a key, and `None` for a key in no granted range.
    ///
    /// Takes O(log n) for each granted range that has keys of the lease, however many keys these are.
    pub fn lease_is_within<'a>(&self, lease: i64, granted_until: impl Fn(&[u8]) -> Option<Bound<&'a [u8]>>) -> bool {
        self.state.read().leases.is_within(lease, granted_until)
    }

    /// Every lease, in no order.
    pub fn leases(&self) -> Vec<GrantedLease> {
        self.state.read().leases.granted()
    }

    /// The leases that keys of a store name which follows another one, in no order.
    pub fn implied_leases(&self) -> Vec<i64> {
        self.state.read().leases.implied_ids()
    }

    /// Up to `max` published batches with a revision of at least `from`.
    pub fn batches(&self, from: i64, max: usize) -> Vec<Batch> {
        let state = self.state.read();
        state.visible_since(from).take(max).map(Revision::to_batch).collect()
    }

    /// The key-value before the revision of an event of the store; `None` if there was none, or if it was compacted.
    pub fn before(&self, event: &Event) -> Option<Kv> {
        self.state.read().index.before(&event.kv).cloned()
    }
}
