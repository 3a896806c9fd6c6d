//! Desired state, diffed: what should be in a store, and the writes that make it so.
//!
//! A writer owns prefixes. It says what each key should be; only differences are written, in batches and
//! in the order they came up, so a canary queued behind its data is written after it. What was there
//! before counts: the owned prefixes are listed first, so a restart writes nothing that did not change,
//! and keys of a former life go once the first list is complete.

mod entry;
mod run;
mod view;

use super::metrics::scope_of;
use super::{Backend, StoredKey, Write};
use crate::util::notify::until;
use bytes::Bytes;
use parking_lot::Mutex;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::hash::{BuildHasher, RandomState};
use std::num::NonZeroU64;
use std::ops::Bound;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::Instant;

pub use entry::PrefixSize;
pub use view::{Stats, View};

use entry::{Digest, Entry};

/// Bytes of values in one batch: below etcd's largest request.
const BATCH_BYTES: usize = 1 << 20;

/// See the module's text.
pub struct SyncStore {
    name: String,
    backend: Arc<dyn Backend>,
    prefixes: Vec<Prefix>,
    /// Whether values are kept after they are written, because the store may lose them.
    retain: bool,
    hasher: RandomState,
    begun: Instant,
    state: Mutex<State>,
    wake: Notify,
    /// Told when writes are in the store.
    progress: Notify,
}

/// What is under one prefix.
struct Prefix {
    text: String,
    /// For labels.
    scope: String,
    /// From when a change is known to when it is in the store; seconds.
    lag: Histogram,
}

/// How it is under one prefix.
#[derive(Clone, Default)]
struct Under {
    /// A list of it has ended at least once: what nobody named there is stale.
    ended: bool,
    /// Everything has been written once.
    complete: bool,
    /// Whether what it is copied from has been read, where it is a copy.
    read: Option<bool>,
    /// Writes that failed, and keys that were refused.
    errors: u64,
    rejected: u64,
    count: PrefixSize,
}

#[derive(Default)]
struct State {
    keys: BTreeMap<Bytes, Entry>,
    queue: VecDeque<Bytes>,
    /// Lists begun so far.
    generation: u32,
    /// In the order of the prefixes.
    under: Vec<Under>,
    stats: Stats,
    /// The store has no room: only what is deleted makes some.
    full: bool,
}

impl SyncStore {
    /// A writer that owns `prefixes` of `backend`, and the single keys it is told to write.
    pub fn new(name: impl Into<String>, backend: Arc<dyn Backend>, prefixes: Vec<String>) -> Self {
        let lag = || Histogram::new(exponential_buckets(0.001, 2.0, 16));
        let prefix = |text: String| Prefix {
            scope: scope_of(format!("{text}cilium/k").as_bytes()),
            text,
            lag: lag(),
        };
        let prefixes: Vec<_> = prefixes.into_iter().map(prefix).collect();
        let state = State {
            under: vec![Under::default(); prefixes.len()],
            ..State::default()
        };
        Self {
            name: name.into(),
            retain: backend.keys_can_expire(),
            backend,
            prefixes,
            hasher: RandomState::new(),
            begun: Instant::now(),
            state: Mutex::new(state),
            wake: Notify::new(),
            progress: Notify::new(),
        }
    }

    fn digest(&self, value: &[u8]) -> Digest {
        NonZeroU64::MIN | self.hasher.hash_one(value)
    }

    fn micros(&self, at: Instant) -> NonZeroU64 {
        let micros = at.saturating_duration_since(self.begun).as_micros();
        NonZeroU64::MIN.saturating_add(u64::try_from(micros).unwrap_or(u64::MAX))
    }

    fn elapsed(&self, since: NonZeroU64) -> Duration {
        let since = Duration::from_micros(since.get() - 1);
        self.begun.elapsed().saturating_sub(since)
    }

    /// The key should have this value.
    pub fn upsert(&self, key: impl Into<Bytes>, value: impl Into<Bytes>) {
        self.desire(key.into(), Some(value.into()), false, Instant::now());
    }

    /// The key should be absent.
    pub fn delete(&self, key: impl Into<Bytes>) {
        self.desire(key.into(), None, false, Instant::now());
    }

    /// The key should have this value, or be absent (`None`), because of an event received at `known`.
    pub fn set(&self, key: impl Into<Bytes>, value: Option<Bytes>, known: Instant) {
        self.desire(key.into(), value, false, known);
    }

    /// Writes the key after everything queued so far, even if it has this value already.
    pub fn queue_canary(&self, key: impl Into<Bytes>, value: impl Into<Bytes>) {
        self.desire(key.into(), Some(value.into()), true, Instant::now());
    }

    fn desire(&self, key: Bytes, value: Option<Bytes>, always: bool, known: Instant) {
        let desired = value.as_ref().map(|v| self.digest(v));
        let at = self.prefix_of(&key);
        let mut state = self.state.lock();
        let State {
            keys,
            queue,
            generation,
            under,
            ..
        } = &mut *state;
        if desired.is_none() && !keys.contains_key(&key) {
            return;
        }
        let entry = keys.entry(key.clone()).or_default();
        entry.set_desired(desired, value, at.map(|at| &mut under[at].count));
        (entry.generation, entry.always) = (*generation, always);
        if entry.is_as_desired() && !always {
            // As it is already; a queued write of something else is skipped when its turn comes.
            entry.value = entry.value.take().filter(|_| self.retain);
            entry.since = None;
            return;
        }
        entry.since.get_or_insert(self.micros(known));
        if entry.enqueue(&key, queue) {
            self.wake.notify_one();
        }
    }

    /// Begins a list: keys desired from now on count as named by it.
    pub fn begin_list(&self) -> u32 {
        let mut state = self.state.lock();
        state.generation += 1;
        state.generation
    }

    /// Ends a list of `prefix`: whatever there is under it that was not named since should be absent.
    pub fn end_list(&self, prefix: &str, generation: u32) {
        let Some(at) = self.at(prefix) else { return };
        let now = self.micros(Instant::now());
        let mut state = self.state.lock();
        let State { keys, queue, under, .. } = &mut *state;
        under[at].ended = true;
        let range = (Bound::Included(prefix.as_bytes()), Bound::Unbounded);
        let stale = keys
            .range_mut::<[u8], _>(range)
            .take_while(|(k, _)| k.starts_with(prefix.as_bytes()))
            .filter(|(_, e)| e.generation < generation);
        for (key, entry) in stale {
            entry.set_desired(None, None, Some(&mut under[at].count));
            if !entry.is_as_desired() && entry.enqueue(key, queue) {
                entry.since.get_or_insert(now);
            }
        }
        self.wake.notify_one();
    }

    /// Where one of the writer's own prefixes is among them.
    fn at(&self, prefix: &str) -> Option<usize> {
        self.prefixes.iter().position(|p| p.text == prefix)
    }

    /// The keys that `prefix`, one of the owned prefixes, should have.
    pub fn desired(&self, prefix: &str) -> PrefixSize {
        let size = self.at(prefix).map(|at| self.state.lock().under[at].count);
        size.unwrap_or_default()
    }

    /// Notes that every key of `prefix`, one of the owned prefixes, has been written once.
    pub fn initial_write_done(&self, prefix: &str) {
        if let Some(at) = self.at(prefix) {
            self.state.lock().under[at].complete = true;
        }
    }

    /// Notes that `prefix`, one of the owned prefixes, mirrors a source whose first list has not completed yet.
    pub fn initial_read_pending(&self, prefix: &str) {
        if let Some(at) = self.at(prefix) {
            self.state.lock().under[at].read = Some(false);
        }
    }

    /// Notes that the first list of the source that `prefix` mirrors has completed.
    pub fn initial_read_done(&self, prefix: &str) {
        if let Some(at) = self.at(prefix) {
            self.state.lock().under[at].read = Some(true);
        }
    }

    /// Whether `key` is in the store as it should be.
    pub fn is_written(&self, key: &str) -> bool {
        let state = self.state.lock();
        state
            .keys
            .get(key.as_bytes())
            .is_some_and(|e| e.desired.is_some() && e.is_as_desired() && !e.queued)
    }

    /// Waits until `key` is in the store as it should be.
    pub async fn wait_written(&self, key: &str) {
        until(&self.progress, || self.is_written(key)).await;
    }

    /// Whether the store had no room when something was put last.
    fn full(&self) -> bool {
        self.state.lock().full
    }

    /// Moves what is deleted to the front, as it makes room and needs none.
    fn deletes_first(&self) {
        let mut state = self.state.lock();
        let State { keys, queue, full, .. } = &mut *state;
        *full = true;
        let goes = |key: &Bytes| keys.get(key).is_none_or(|e| e.desired.is_none());
        let (mut first, mut rest): (VecDeque<_>, VecDeque<_>) = queue.drain(..).partition(goes);
        first.append(&mut rest);
        *queue = first;
    }

    /// The prefix that a key is under.
    fn prefix_of(&self, key: &[u8]) -> Option<usize> {
        self.prefixes.iter().position(|p| key.starts_with(p.text.as_bytes()))
    }

    fn failed(&self, batch: &[Write]) {
        let mut state = self.state.lock();
        state.stats.failures += 1;
        let under: BTreeSet<_> = batch.iter().filter_map(|w| self.prefix_of(key_of(w))).collect();
        under.into_iter().for_each(|at| state.under[at].errors += 1);
    }

    fn adopted(&self, found: Vec<StoredKey>) {
        let mut state = self.state.lock();
        let State { keys, queue, under, .. } = &mut *state;
        let mut found: HashMap<Bytes, Digest> = found.into_iter().map(|f| (f.key, self.digest(&f.value))).collect();
        // What goes before anything that waits, the canary of a list that has ended among it.
        let mut first = BTreeSet::new();
        for (key, entry) in keys.iter_mut() {
            let was_there = entry.written.is_some();
            entry.set_written(found.remove(key));
            let is_lost = was_there && entry.written.is_none() && entry.desired.is_some();
            if entry.value.is_some() && !entry.is_as_desired() && (is_lost || !entry.queued) {
                first.insert(key.clone());
            }
        }
        for (key, digest) in found {
            keys.entry(key).or_default().set_written(Some(digest));
        }
        keys.retain(|_, entry| !entry.is_nothing());
        let is_stale = |key: &Bytes| self.prefix_of(key).is_some_and(|at| under[at].ended);
        let stale = keys
            .iter()
            .filter(|(key, e)| e.desired.is_none() && !e.is_as_desired() && !e.queued && is_stale(key));
        first.extend(stale.map(|(key, _)| key.clone()));
        queue.retain(|key| !first.contains(key));
        for key in first.into_iter().rev() {
            if let Some(entry) = keys.get_mut(&key) {
                entry.queued = true;
                queue.push_front(key);
            }
        }
    }

    /// Takes the next writes off the queue.
    fn next_batch(&self) -> Vec<Write> {
        let mut state = self.state.lock();
        let State { keys, queue, full, .. } = &mut *state;
        let (mut batch, mut bytes) = (Vec::new(), 0);
        let most = self.backend.batch_max();
        while batch.len() < most && bytes < BATCH_BYTES {
            let Some(key) = queue.pop_front() else { break };
            let Some(entry) = keys.get_mut(&key) else { continue };
            if *full && entry.desired.is_some() && !batch.is_empty() {
                // Deletes go alone.
                queue.push_front(key);
                break;
            }
            entry.queued = false;
            match (&entry.value, entry.desired) {
                _ if entry.is_nothing() => drop(keys.remove(&key)),
                _ if entry.is_as_desired() && !entry.always => {
                    entry.value = entry.value.take().filter(|_| self.retain);
                    entry.since = None;
                }
                (Some(value), Some(_)) => {
                    bytes += key.len() + value.len();
                    entry.is_known = false;
                    batch.push(Write::Put(key, value.clone()));
                }
                (_, None) => {
                    entry.is_known = false;
                    batch.push(Write::Delete(key));
                }
                (None, Some(_)) => {}
            }
        }
        batch
    }

    /// Notes that a batch is in the store. A key that was asked to change since is queued again.
    fn done(&self, batch: &[Write]) {
        let mut state = self.state.lock();
        let State {
            keys,
            queue,
            stats,
            full,
            ..
        } = &mut *state;
        stats.writes += batch.len() as u64;
        *full &= batch.iter().all(is_delete);
        for write in batch {
            let (key, written) = match write {
                Write::Put(key, value) => (key, Some(self.digest(value))),
                Write::Delete(key) => (key, None),
            };
            let Some(entry) = keys.get_mut(key) else { continue };
            entry.set_written(written);
            if entry.queued {
                continue;
            }
            if !entry.is_as_desired() {
                entry.enqueue(key, queue);
                continue;
            }
            entry.always = false;
            if let (Some(since), Some(at)) = (entry.since.take(), self.prefix_of(key)) {
                self.prefixes[at].lag.observe(self.elapsed(since).as_secs_f64());
            }
            if !self.retain {
                entry.value = None;
            }
            if written.is_none() {
                keys.remove(key);
            }
        }
        drop(state);
        self.progress.notify_waiters();
    }

    /// Notes that the store will never take this.
    fn refused(&self, write: &Write, why: &str) {
        let (Write::Put(key, _) | Write::Delete(key)) = write;
        let shown = String::from_utf8_lossy(key);
        tracing::error!(store = self.name, key = %shown, error = why, "the store refuses this key: skipped");
        let mut state = self.state.lock();
        let State {
            keys,
            queue,
            stats,
            under,
            ..
        } = &mut *state;
        stats.rejected += 1;
        let mut under = self.prefix_of(key).map(|at| &mut under[at]);
        if let Some(under) = &mut under {
            under.rejected += 1;
        }
        if let Some(entry) = keys.get_mut(key).filter(|e| !e.queued && e.desired.is_some()) {
            // The value before is not what the key should be, either.
            entry.set_desired(None, None, under.map(|under| &mut under.count));
            entry.since = None;
            entry.enqueue(key, queue);
        }
    }

    /// Puts a failed batch back at the front, in its order. What was queued again meanwhile moves there,
    /// too, or a canary that waits behind the batch would go first.
    fn requeue(&self, batch: &[Write]) {
        let mut state = self.state.lock();
        let State { keys, queue, .. } = &mut *state;
        let failed: HashSet<&[u8]> = batch.iter().map(key_of).collect();
        queue.retain(|key| !failed.contains(&key[..]));
        for write in batch.iter().rev() {
            let (Write::Put(key, _) | Write::Delete(key)) = write;
            if let Some(entry) = keys.get_mut(key) {
                entry.queued = true;
                queue.push_front(key.clone());
            }
        }
    }
}

fn is_delete(write: &Write) -> bool {
    matches!(write, Write::Delete(_))
}

fn key_of(write: &Write) -> &[u8] {
    let (Write::Put(key, _) | Write::Delete(key)) = write;
    key
}

#[cfg(test)]
mod tests;
