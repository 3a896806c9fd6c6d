//! The writer: makes the keys of a store equal to a desired state.
//!
//! A writer owns prefixes. Callers set the value that each key should have; the writer writes only the differences, in
//! batches, in the order of the calls. So a canary that is queued after its data is written after its data. The owned
//! prefixes are listed first: after a restart only real changes are written, and keys of an earlier run are deleted
//! once the first list of the source is complete.
//!
//! Files: `budget` limits changes, `entry` is one key, `table` all keys with their counters, `batches` the queue, `run` the loop that writes,
//! `stats` the statistics for metrics, `traced` what is told of traced writes.

mod batches;
mod budget;
mod entry;
mod run;
mod stats;
mod table;
mod traced;

use super::labels::scope_of;
use super::{Backend, Write};
use crate::util::trace::Trace;
use crate::util::wait::until;
use bytes::Bytes;
use parking_lot::Mutex;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasher, RandomState};
use std::num::NonZeroU64;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::Instant;

pub use budget::{ChangeLimits, ReachedLimit};
pub use stats::{PrefixStats, WriterStats};
pub use table::PrefixSize;

use budget::Budget;
use entry::{Digest, WrittenValues};
use table::Table;

/// Traced keys that are remembered until they are written.
const ORIGINS_MAX: usize = 10_000;

/// See the module's documentation.
pub struct SyncStore {
    /// The writer's name in log lines.
    name: String,
    backend: Arc<dyn Backend>,
    prefixes: Vec<Prefix>,
    written_values: WrittenValues,
    hasher: RandomState,
    begun: Instant,
    /// Whether the changes of keys have a budget.
    is_limited: bool,
    state: Mutex<State>,
    /// Notified when keys are queued.
    wake: Notify,
    /// Notified when keys are written, or turn out to have their value already.
    progress: Notify,
}

/// An owned prefix.
struct Prefix {
    text: String,
    /// The metric label.
    scope: String,
    /// From receiving a change to its write; seconds.
    lag: Histogram,
}

struct State {
    table: Table,
    /// Keys to write, without duplicates: those whose entry says `queued`.
    queue: VecDeque<Bytes>,
    /// Lists begun so far.
    generation: u32,
    /// In the order of the prefixes.
    progress: Vec<Progress>,
    stats: WriterStats,
    /// The owned prefixes have been listed, so that the keys of the store are known.
    adopted: bool,
    /// The store had no room for the last put.
    full: bool,
    /// `None`: changes are not limited.
    budget: Option<Budget>,
    slowed: Slowed,
    /// The revisions of other stores that traced keys follow from, until the keys are written.
    origins: HashMap<Bytes, Trace>,
}

/// Whether the writer waits for its budget.
#[derive(Default)]
struct Slowed {
    /// The limit, when to look again, and since when.
    now: Option<(ReachedLimit, Duration, Instant)>,
    before: Duration,
}

/// How far one prefix is.
#[derive(Default)]
struct Progress {
    /// A full list of the source has completed: keys it did not contain are stale.
    listed: bool,
    initial_write_done: bool,
    /// `None` if the prefix is not a mirror.
    initial_read_done: Option<bool>,
    /// Batches that failed.
    errors: u64,
    /// Keys that the store refused.
    rejected: u64,
}

/// A list of the source that has begun, see [`SyncStore::begin_list`].
#[derive(Clone, Copy, Debug)]
pub struct List(u32);

/// The condition for a write.
#[derive(Clone, Copy, PartialEq, Eq)]
enum WriteMode {
    IfChanged,
    Always,
}

impl SyncStore {
    /// A writer that owns `prefixes` of `backend`, which do not overlap. It also writes single keys outside of them.
    pub fn new(name: impl Into<String>, backend: Arc<dyn Backend>, prefixes: Vec<String>) -> Self {
        let prefix = |text: &String| Prefix {
            text: text.clone(),
            scope: scope_of(format!("{text}cilium/k").as_bytes()),
            lag: Histogram::new(exponential_buckets(0.001, 2.0, 16)),
        };
        Self {
            name: name.into(),
            written_values: match backend.expired_leases() {
                Some(_) => WrittenValues::Keep,
                None => WrittenValues::Drop,
            },
            backend,
            prefixes: prefixes.iter().map(prefix).collect(),
            hasher: RandomState::new(),
            begun: Instant::now(),
            is_limited: false,
            state: Mutex::new(State {
                progress: prefixes.iter().map(|_| Progress::default()).collect(),
                table: Table::new(prefixes),
                queue: VecDeque::new(),
                generation: 0,
                stats: WriterStats::default(),
                adopted: false,
                full: false,
                budget: None,
                slowed: Slowed::default(),
                origins: HashMap::new(),
            }),
            wake: Notify::new(),
            progress: Notify::new(),
        }
    }

    /// Limits the changes of keys that the store holds.
    pub fn limited(mut self, limits: ChangeLimits) -> Self {
        self.state.get_mut().budget = Some(Budget::new(limits, Instant::now()));
        self.is_limited = true;
        self
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
        self.desire(key.into(), Some(value.into()), WriteMode::IfChanged, Instant::now());
    }

    /// The key should be absent.
    pub fn delete(&self, key: impl Into<Bytes>) {
        self.desire(key.into(), None, WriteMode::IfChanged, Instant::now());
    }

    /// The key should have this value, or be absent (`None`), because of an event received at `known`.
    pub fn set(&self, key: impl Into<Bytes>, value: Option<Bytes>, known: Instant) {
        self.desire(key.into(), value, WriteMode::IfChanged, known);
    }

    /// Notes that the desired value of the key, or its absence, follows from a revision of another store.
    pub fn follows_from(&self, key: Bytes, origin: Trace) {
        let origins = &mut self.state.lock().origins;
        if origins.len() >= ORIGINS_MAX {
            // Keys that needed no write.
            origins.clear();
        }
        origins.insert(key, origin);
    }

    /// Writes the key after everything queued so far, even if it has this value already.
    pub fn queue_canary(&self, key: impl Into<Bytes>, value: impl Into<Bytes>) {
        self.desire(key.into(), Some(value.into()), WriteMode::Always, Instant::now());
    }

    fn desire(&self, key: Bytes, value: Option<Bytes>, mode: WriteMode, known: Instant) {
        let sized = value.as_ref().map(|v| (self.digest(v), entry::size_of(v)));
        let desired = sized.map(|(digest, _)| digest);
        let mut state = self.state.lock();
        let State {
            table,
            queue,
            generation,
            stats,
            ..
        } = &mut *state;
        if desired.is_none() && table.get(&key).is_none() {
            return;
        }
        let is_queued = table.insert(&key, |entry| {
            if entry.queued && entry.desired != desired {
                stats.coalesced_bytes += u64::from(entry.size);
            }
            // Of millions of keys, a restart finds few that differ: their values need no place.
            let is_there = entry.is_known && entry.written == desired && mode == WriteMode::IfChanged;
            let is_dropped = is_there && self.written_values == WrittenValues::Drop;
            entry.set_desired(sized, value.filter(|_| !is_dropped));
            (entry.generation, entry.always) = (*generation, mode == WriteMode::Always);
            if entry.is_as_desired() && !entry.always {
                // If the key is queued for another value, the queue skips it later.
                entry.settle(self.written_values);
                return false;
            }
            entry.waits_since(self.micros(known));
            entry.enqueue(key.clone(), queue)
        });
        if is_queued {
            self.wake.notify_one();
        }
    }

    /// Begins a list of the source: it contains the keys that are set from now on.
    pub fn begin_list(&self) -> List {
        let mut state = self.state.lock();
        state.generation += 1;
        List(state.generation)
    }

    /// The list is complete for `prefix`, one of the owned prefixes: deletes the keys that it does not contain.
    pub fn end_list(&self, prefix: &str, list: List) {
        let Some(at) = self.at(prefix) else { return };
        let now = self.micros(Instant::now());
        let mut state = self.state.lock();
        let State {
            table, queue, progress, ..
        } = &mut *state;
        let is_first = !std::mem::replace(&mut progress[at].listed, true);
        table.update_prefix(at, |key, entry| {
            if entry.generation >= list.0 {
                return;
            }
            entry.set_desired(None, None);
            if !entry.is_as_desired() && entry.enqueue(Bytes::copy_from_slice(key), queue) {
                entry.waits_since(now);
            }
        });
        if is_first && progress.iter().all(|progress| progress.listed) {
            table.pack();
        }
        self.wake.notify_one();
    }

    /// The index of an owned prefix.
    fn at(&self, prefix: &str) -> Option<usize> {
        self.prefixes.iter().position(|p| p.text == prefix)
    }

    fn note(&self, prefix: &str, change: impl FnOnce(&mut Progress)) {
        if let Some(at) = self.at(prefix) {
            change(&mut self.state.lock().progress[at]);
        }
    }

    /// Notes that every key of `prefix`, one of the owned prefixes, has been written once.
    pub fn initial_write_done(&self, prefix: &str) {
        self.note(prefix, |progress| progress.initial_write_done = true);
    }

    /// Notes that `prefix`, one of the owned prefixes, mirrors a source whose first list has not completed yet.
    pub fn initial_read_pending(&self, prefix: &str) {
        self.note(prefix, |progress| progress.initial_read_done = Some(false));
    }

    /// Notes that the first list of the source that `prefix` mirrors has completed.
    pub fn initial_read_done(&self, prefix: &str) {
        self.note(prefix, |progress| progress.initial_read_done = Some(true));
    }

    /// Whether the store holds `key` with the desired value.
    pub fn is_written(&self, key: &str) -> bool {
        let state = self.state.lock();
        let entry = state.table.get(key.as_bytes());
        entry.is_some_and(|e| e.desired.is_some() && e.is_as_desired() && !e.queued)
    }

    /// Waits until the keys are known that the store holds under the owned prefixes.
    pub async fn wait_adopted(&self) {
        until(&self.progress, || self.state.lock().adopted).await;
    }

    /// Whether the store is known to hold `key`, or the key should have a value.
    pub fn holds(&self, key: &[u8]) -> bool {
        let state = self.state.lock();
        let entry = state.table.get(key);
        entry.is_some_and(|entry| entry.written.is_some() || entry.desired.is_some())
    }

    /// Waits until the store holds `key` with the desired value.
    pub async fn wait_written(&self, key: &str) {
        until(&self.progress, || self.is_written(key)).await;
    }

    fn is_full(&self) -> bool {
        self.state.lock().full
    }
}

impl Slowed {
    fn begin(&mut self, limit: ReachedLimit, wait: Duration) {
        self.now = Some((limit, wait, Instant::now()));
    }

    fn end(&mut self) {
        self.before = self.total();
        self.now = None;
    }

    fn total(&self) -> Duration {
        self.before + self.now.map_or(Duration::ZERO, |(.., since)| since.elapsed())
    }

    fn limit(&self) -> Option<ReachedLimit> {
        self.now.map(|(limit, ..)| limit)
    }

    fn wait(&self) -> Option<Duration> {
        self.now.map(|(_, wait, _)| wait)
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
