//! Reads of a store in short locks: ranges, single keys, sizes.
//!
//! A read holds the lock for at most [`READ_CHUNK`] keys at a time. A longer read continues at the revision at
//! which it began, which a pin keeps readable, so a list of millions of keys never stalls a writer.

use super::Error;
use super::encoded::Kv;
use super::lease_book::GrantedLease;
use super::log::Batch;
use super::pages::Rest;
use super::range::{RangeOptions, RangeResult};
use super::stats::Stats;
use super::store::{READ_CHUNK, Store};
use bytes::Bytes;
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

    /// Sizes and counts.
    pub fn stats(&self) -> Stats {
        self.counters.stats(&self.state.read())
    }

    /// Reads a range at one revision.
    pub fn range(&self, options: &RangeOptions) -> Result<RangeResult, Error> {
        self.counters.ranges.fetch_add(1, Ordering::Relaxed);
        let state = self.state.read();
        let (current, revision) = (state.visible, state.readable(options.revision)?);
        let page = Rest {
            range: options.range.clone(),
            revision,
        };
        let known = self.pages.lock().get(&page);
        let count = known.unwrap_or_else(|| state.count(&options.range, revision, &[]));
        let mut result = RangeResult {
            count,
            revision: current,
            ..RangeResult::default()
        };
        if options.count_only {
            return Ok(result);
        }
        let needed = options.needed().unwrap_or(usize::MAX);
        let mut kvs = Vec::with_capacity(needed.min(count).min(READ_CHUNK));
        let mut rest = options.range.clone();
        let mut state = Some(state);
        let mut pin = None;
        loop {
            let locked = state.take().unwrap_or_else(|| self.state.read());
            let chunk = READ_CHUNK.min(needed - kvs.len());
            let before = kvs.len();
            let live = locked.index.range(&rest).filter_map(|h| h.at(revision));
            kvs.extend(live.take(chunk).cloned());
            let full = kvs.len() - before == chunk;
            if !full || kvs.len() >= needed.min(count) {
                break;
            }
            pin.get_or_insert_with(|| self.pins.pin(revision));
            let last = kvs.last().map(|kv| kv.key().to_vec()).unwrap_or_default();
            rest = rest.after(&last);
        }
        (result.kvs, result.more) = options.finish(kvs);
        if let Some(last) = result.kvs.last().filter(|_| result.more && options.needed().is_some()) {
            let range = options.range.after(last.key());
            let count = count - result.kvs.len();
            self.pages.lock().put(Rest { range, revision }, count);
        }
        Ok(result)
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

    /// Every lease, in no order.
    pub fn leases(&self) -> Vec<GrantedLease> {
        self.state.read().leases.granted()
    }

    /// Up to `max` published batches with a revision of at least `from`.
    pub fn batches(&self, from: i64, max: usize) -> Vec<Batch> {
        let state = self.state.read();
        state.visible_since(from).take(max).cloned().collect()
    }
}
