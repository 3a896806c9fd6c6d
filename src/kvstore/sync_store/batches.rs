//! The queue of a writer: takes the next writes, and processes their outcome.
//!
//! Invariant: a canary is written after everything that was queued before it. So keys that failed or were lost go to the
//! front of the queue, not behind the canary.

use super::budget::{self, ReachedLimit};
use super::entry::{Digest, Next, size_of};
use super::{State, SyncStore, is_delete, key_of};
use crate::kvstore::{HistoryMark, StoredKey, Write};
use bytes::Bytes;
use std::collections::{BTreeSet, HashSet, VecDeque};
use std::time::Duration;
use tokio::time::Instant;

/// Bytes of values in one batch: below etcd's largest request.
const BATCH_BYTES: usize = 1 << 20;
/// Keys for which an empty queue keeps its memory.
const QUEUE_KEPT: usize = 256;

impl SyncStore {
    /// Takes the next writes off the queue; none if the queue is empty, or begins with a change that the budget does not
    /// allow yet.
    pub(super) fn next_batch(&self) -> Vec<Write> {
        let history = self.history();
        let mut state = self.state.lock();
        let State {
            table,
            queue,
            full,
            budget,
            slowed,
            ..
        } = &mut *state;
        let reached = budget.as_mut().and_then(|b| b.reached(Instant::now(), history));
        let (mut batch, mut bytes, mut any_settled) = (Vec::new(), 0, false);
        slowed.end();
        let most = self.backend.batch_max();
        while batch.len() < most && bytes < BATCH_BYTES {
            let Some(key) = queue.pop_front() else { break };
            // Finding the entry twice is worth it only for writers with limits.
            let entry = (self.is_limited || *full).then(|| table.get(&key)).flatten();
            let is_put = entry.is_some_and(|e| e.desired.is_some());
            if *full && !batch.is_empty() && is_put {
                // A full store takes a batch of deletions only.
                queue.push_front(key);
                break;
            }
            let replaces = entry.filter(|e| e.written.is_some() && !e.is_as_desired());
            if let (Some((limit, wait)), Some(_)) = (reached, replaces)
                && (is_put || !*full)
            {
                queue.push_front(key);
                slowed.begin(limit, wait);
                break;
            }
            let history = replaces.map_or(0, |e| budget::cost(&key, e.written_size));
            match table.update(&key, |entry| entry.dequeue(self.written_values)) {
                Some(Next::Put(value)) => {
                    bytes += (key.len() + value.len()).max(usize::try_from(history).unwrap_or(usize::MAX));
                    batch.push(Write::Put(key, value));
                }
                Some(Next::Delete) => {
                    bytes += usize::try_from(history).unwrap_or(usize::MAX);
                    batch.push(Write::Delete(key));
                }
                Some(Next::Nothing) | None => {
                    table.remove_if_idle(&key);
                    any_settled = true;
                }
            }
        }
        let waits_for = slowed.limit();
        if queue.is_empty() && queue.capacity() > QUEUE_KEPT {
            // After a start with millions of keys, the queue is short for ever.
            *queue = VecDeque::new();
        }
        drop(state);
        if waits_for == Some(ReachedLimit::History) {
            self.backend.request_compaction();
        }
        if any_settled {
            self.progress.notify_waiters();
        }
        batch
    }

    /// How far the history of the store reaches, for the budget.
    fn history(&self) -> Option<HistoryMark> {
        self.is_limited.then(|| self.backend.history()).flatten()
    }

    /// How long to wait for the budget; `None` if the writer waits for nothing but changes.
    pub(super) fn wait_for_budget(&self) -> Option<Duration> {
        self.state.lock().slowed.wait()
    }

    /// The limit because of which the writer waits.
    pub fn slowed_by(&self) -> Option<ReachedLimit> {
        self.state.lock().slowed.limit()
    }

    /// The store has applied `batch`. A key that changed in the meantime is queued again.
    pub(super) fn done(&self, batch: &[Write]) {
        let history = self.history();
        let mut state = self.state.lock();
        let State {
            table,
            queue,
            stats,
            full,
            budget,
            ..
        } = &mut *state;
        let (mut replaced, mut replaced_bytes) = (0, 0);
        stats.writes += batch.len() as u64;
        *full &= batch.iter().all(is_delete);
        for write in batch {
            let (Write::Put(key, _) | Write::Delete(key)) = write;
            if budget.is_some()
                && let Some(entry) = table.get(key).filter(|e| e.written.is_some())
            {
                replaced += 1;
                replaced_bytes += budget::cost(key, entry.written_size);
            }
            let since = table.update(key, |entry| {
                entry.set_written(match write {
                    Write::Put(_, value) => {
                        let digest = entry.dequeued().unwrap_or_else(|| self.digest(value));
                        debug_assert_eq!(digest, self.digest(value));
                        Some((digest, size_of(value)))
                    }
                    Write::Delete(_) => None,
                });
                if entry.queued {
                    return None;
                }
                if !entry.is_as_desired() {
                    entry.enqueue(key.clone(), queue);
                    return None;
                }
                entry.always = false;
                entry.settle(self.written_values)
            });
            if let (Some(since), Some(at)) = (since.flatten(), table.prefix_of(key)) {
                self.prefixes[at].lag.observe(self.elapsed(since).as_secs_f64());
            }
            if is_delete(write) {
                table.remove_if_idle(key);
            }
        }
        stats.replaced_bytes += replaced_bytes;
        if let Some(budget) = budget {
            budget.charge(Instant::now(), history, replaced, replaced_bytes);
        }
        drop(state);
        self.progress.notify_waiters();
    }

    /// `batch` has failed and will be written again: counts that.
    pub(super) fn failed(&self, batch: &[Write]) {
        let mut state = self.state.lock();
        let State {
            table, stats, progress, ..
        } = &mut *state;
        stats.failures += 1;
        let prefixes: BTreeSet<_> = batch.iter().filter_map(|w| table.prefix_of(key_of(w))).collect();
        prefixes.into_iter().for_each(|at| progress[at].errors += 1);
    }

    /// The store will never take `write`: the key should be absent instead, because its value in the store is outdated.
    pub(super) fn refused(&self, write: &Write, why: &str) {
        let (Write::Put(key, _) | Write::Delete(key)) = write;
        let shown = String::from_utf8_lossy(key);
        tracing::error!(store = self.name, key = %shown, error = why, "the store refuses this key; deleting its old value instead");
        let mut state = self.state.lock();
        let State {
            table,
            queue,
            stats,
            progress,
            ..
        } = &mut *state;
        stats.rejected += 1;
        if let Some(at) = table.prefix_of(key) {
            progress[at].rejected += 1;
        }
        table.update(key, |entry| {
            if !entry.queued && entry.desired.is_some() {
                entry.set_desired(None, None);
                entry.waits_no_more();
                entry.enqueue(key.clone(), queue);
            }
        });
    }

    /// Puts a failed batch back to the front of the queue, in its order. A key of it that was queued again in the
    /// meantime moves there as well.
    pub(super) fn requeue(&self, batch: &[Write]) {
        let mut state = self.state.lock();
        let State { table, queue, .. } = &mut *state;
        let failed: HashSet<&[u8]> = batch.iter().map(key_of).collect();
        queue.retain(|key| !failed.contains(&key[..]));
        for write in batch.iter().rev() {
            let (Write::Put(key, _) | Write::Delete(key)) = write;
            if table.update(key, |entry| entry.queued = true).is_some() {
                queue.push_front(key.clone());
            }
        }
    }

    /// Moves deletions to the front of the queue: the store is full, and only they make room.
    pub(super) fn deletes_first(&self) {
        let mut state = self.state.lock();
        let State { table, queue, full, .. } = &mut *state;
        *full = true;
        let is_deletion = |key: &Bytes| table.get(key).is_none_or(|e| e.desired.is_none());
        let (mut first, mut rest): (VecDeque<_>, VecDeque<_>) = queue.drain(..).partition(is_deletion);
        first.append(&mut rest);
        *queue = first;
    }

    /// The store holds exactly the keys `found` under the owned prefixes. Queues, before everything else, the keys that
    /// the store has lost and those that a completed list did not contain.
    pub(super) fn adopted(&self, found: Vec<StoredKey>) {
        let of = |value: &Bytes| (self.digest(value), size_of(value));
        let mut found: Vec<(Bytes, (Digest, u32))> = found.into_iter().map(|f| (f.key, of(&f.value))).collect();
        // The lists of a few prefixes, each in the order of its keys.
        found.sort_by(|(a, _), (b, _)| a.cmp(b));
        let mut found = found.into_iter().peekable();
        let mut unknown = vec![];
        let mut state = self.state.lock();
        state.adopted = true;
        let State {
            table, queue, progress, ..
        } = &mut *state;
        let mut first = BTreeSet::new();
        table.update_all(|key, entry| {
            let was_stored = entry.written.is_some();
            while let Some(other) = found.next_if(|(found, _)| found[..] < *key) {
                unknown.push(other);
            }
            let written = found.next_if(|(found, _)| found[..] == *key);
            entry.set_written(written.map(|(_, written)| written));
            let is_lost = was_stored && entry.written.is_none() && entry.desired.is_some();
            if entry.has_value() && !entry.is_as_desired() && (is_lost || !entry.queued) {
                first.insert(Bytes::copy_from_slice(key));
            }
        });
        for (key, written) in unknown.into_iter().chain(found) {
            table.insert(&key, |entry| entry.set_written(Some(written)));
        }
        table.remove_idle();
        let is_listed = |key: &[u8]| table.prefix_of(key).is_some_and(|at| progress[at].listed);
        let stale = table
            .iter()
            .filter(|(key, e)| e.desired.is_none() && !e.is_as_desired() && !e.queued && is_listed(key));
        first.extend(stale.map(|(key, _)| Bytes::copy_from_slice(key)));
        queue.retain(|key| !first.contains(key));
        for key in first.into_iter().rev() {
            if table.update(&key, |entry| entry.queued = true).is_some() {
                queue.push_front(key);
            }
        }
        drop(state);
        self.progress.notify_waiters();
    }
}
