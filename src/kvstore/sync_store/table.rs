//! All keys of a writer, with counters for each prefix.
//!
//! Every change of an entry goes through this table, which updates the counters at the same time. So a scrape reads the
//! counters and never visits the keys.

use super::entry::Entry;
use std::collections::BTreeMap;
use std::num::NonZeroU64;
use std::ops::{AddAssign, Bound};

pub(super) struct Table {
    prefixes: Vec<String>,
    /// The keys have memory of their own: a `Bytes` takes more, and a slice of an answer keeps the answer.
    entries: BTreeMap<Box<[u8]>, Entry>,
    /// In the order of `prefixes`.
    counts: Vec<PrefixCounts>,
}

/// The number of keys that a prefix should have, and the bytes of their values.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PrefixSize {
    pub keys: usize,
    pub bytes: usize,
}

impl AddAssign for PrefixSize {
    fn add_assign(&mut self, other: Self) {
        self.keys += other.keys;
        self.bytes += other.bytes;
    }
}

/// The counters of one prefix.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct PrefixCounts {
    pub(super) desired: PrefixSize,
    /// Keys that the store is known to hold.
    pub(super) stored: usize,
    /// Keys with a change that is not written yet.
    pub(super) waiting: usize,
    /// When those changes were received ([`Entry::since`]) → how many of them.
    waiting_since: BTreeMap<NonZeroU64, usize>,
}

/// The contribution of one entry to the counters of its prefix.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Share {
    is_desired: bool,
    bytes: u32,
    is_stored: bool,
    since: Option<NonZeroU64>,
}

impl Share {
    fn of(entry: &Entry) -> Self {
        Self {
            is_desired: entry.desired.is_some(),
            bytes: entry.size,
            is_stored: entry.written.is_some(),
            since: entry.since(),
        }
    }
}

impl PrefixCounts {
    /// When the change that has been waiting longest was received.
    pub(super) fn oldest(&self) -> Option<NonZeroU64> {
        self.waiting_since.first_key_value().map(|(since, _)| *since)
    }

    fn add(&mut self, share: Share) {
        self.desired.keys += usize::from(share.is_desired);
        self.desired.bytes += share.bytes as usize;
        self.stored += usize::from(share.is_stored);
        if let Some(since) = share.since {
            self.waiting += 1;
            *self.waiting_since.entry(since).or_default() += 1;
        }
    }

    fn subtract(&mut self, share: Share) {
        self.desired.keys -= usize::from(share.is_desired);
        self.desired.bytes -= share.bytes as usize;
        self.stored -= usize::from(share.is_stored);
        if let Some(since) = share.since {
            self.waiting -= 1;
            if let Some(keys) = self.waiting_since.get_mut(&since) {
                *keys -= 1;
                if *keys == 0 {
                    self.waiting_since.remove(&since);
                }
            }
        }
    }

    /// Runs `change` on an entry of this prefix.
    fn track<R>(&mut self, entry: &mut Entry, change: impl FnOnce(&mut Entry) -> R) -> R {
        let before = Share::of(entry);
        let result = change(entry);
        let after = Share::of(entry);
        if before != after {
            self.subtract(before);
            self.add(after);
        }
        result
    }
}

impl Table {
    /// A table without keys. The prefixes do not overlap.
    pub(super) fn new(prefixes: Vec<String>) -> Self {
        let counts = prefixes.iter().map(|_| PrefixCounts::default()).collect();
        Self {
            prefixes,
            entries: BTreeMap::new(),
            counts,
        }
    }

    /// The index of the prefix that `key` begins with.
    pub(super) fn prefix_of(&self, key: &[u8]) -> Option<usize> {
        prefix_of(&self.prefixes, key)
    }

    pub(super) fn counts(&self, prefix: usize) -> &PrefixCounts {
        &self.counts[prefix]
    }

    pub(super) fn get(&self, key: &[u8]) -> Option<&Entry> {
        self.entries.get(key)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&[u8], &Entry)> {
        self.entries.iter().map(|(key, entry)| (&key[..], entry))
    }

    /// Changes the entry of `key`, if there is one.
    pub(super) fn update<R>(&mut self, key: &[u8], change: impl FnOnce(&mut Entry) -> R) -> Option<R> {
        let entry = self.entries.get_mut(key)?;
        Some(tracked(&self.prefixes, &mut self.counts, key, entry, change))
    }

    /// Changes the entry of `key`, which is made first if there is none.
    pub(super) fn insert<R>(&mut self, key: &[u8], change: impl FnOnce(&mut Entry) -> R) -> R {
        // Most keys are there, and need no copy.
        let Some(entry) = self.entries.get_mut(key) else {
            let entry = self.entries.entry(key.into()).or_default();
            return tracked(&self.prefixes, &mut self.counts, key, entry, change);
        };
        tracked(&self.prefixes, &mut self.counts, key, entry, change)
    }

    /// Changes all entries of a prefix, in the order of their keys.
    pub(super) fn update_prefix(&mut self, prefix: usize, mut change: impl FnMut(&[u8], &mut Entry)) {
        let (text, counts) = (self.prefixes[prefix].as_bytes(), &mut self.counts[prefix]);
        let entries = self
            .entries
            .range_mut::<[u8], _>((Bound::Included(text), Bound::Unbounded));
        for (key, entry) in entries.take_while(|(key, _)| key.starts_with(text)) {
            counts.track(entry, |entry| change(key, entry));
        }
    }

    /// Changes all entries, in the order of their keys.
    pub(super) fn update_all(&mut self, mut change: impl FnMut(&[u8], &mut Entry)) {
        for (key, entry) in &mut self.entries {
            tracked(&self.prefixes, &mut self.counts, key, entry, |entry| change(key, entry));
        }
    }

    /// Moves all entries closer together: those of a list, which come in the order of their keys, leave a third of each node
    /// of the tree empty.
    pub(super) fn pack(&mut self) {
        self.entries = std::mem::take(&mut self.entries).into_iter().collect();
    }

    /// Forgets the entry of `key` if it is idle.
    pub(super) fn remove_if_idle(&mut self, key: &[u8]) {
        if self.entries.get(key).is_some_and(Entry::is_idle) {
            // An idle entry still counts if its last change was never written.
            self.update(key, Entry::waits_no_more);
            self.entries.remove(key);
        }
    }

    /// Forgets all idle entries.
    pub(super) fn remove_idle(&mut self) {
        self.update_all(|_, entry| {
            if entry.is_idle() {
                entry.waits_no_more();
            }
        });
        self.entries.retain(|_, entry| !entry.is_idle());
    }
}

fn prefix_of(prefixes: &[String], key: &[u8]) -> Option<usize> {
    prefixes.iter().position(|prefix| key.starts_with(prefix.as_bytes()))
}

fn tracked<R>(
    prefixes: &[String],
    counts: &mut [PrefixCounts],
    key: &[u8],
    entry: &mut Entry,
    change: impl FnOnce(&mut Entry) -> R,
) -> R {
    match prefix_of(prefixes, key) {
        Some(prefix) => counts[prefix].track(entry, change),
        None => change(entry),
    }
}

#[cfg(test)]
impl Table {
    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    /// The counters of a prefix, made anew from its entries.
    pub(super) fn recount(&self, prefix: usize) -> PrefixCounts {
        let mut counts = PrefixCounts::default();
        for (key, entry) in &self.entries {
            if self.prefix_of(key) == Some(prefix) {
                counts.add(Share::of(entry));
            }
        }
        counts
    }
}
