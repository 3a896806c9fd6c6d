//! The queue between the threads that change something and the thread that writes the changes.

use super::metrics::Metrics;
use super::obstacle::Obstacle;
use super::record::Record;
use crate::mvcc::{Change, Journal};
use parking_lot::{Condvar, Mutex};
use std::sync::Arc;
#[cfg(test)]
use std::sync::atomic::AtomicBool;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::{oneshot, watch};

/// Bytes of changes that may wait to be written; more are refused.
const WAITING_MAX: usize = 64 << 20;

/// Why a change is not accepted, or not answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// The data directory takes no writes at present; a change that waited for the disk may still become durable.
    #[error(transparent)]
    Obstacle(#[from] Obstacle),
    #[error("too many writes wait for the disk of the data directory")]
    Busy,
    /// The writer has ended; the change may or may not be in the log.
    #[error("the data directory no longer accepts writes; the log of the process says why")]
    Ended,
}

/// Changes that wait to be written, and callers that wait until their changes are durable.
#[derive(Default)]
pub(super) struct WriteQueue {
    pending: Mutex<Pending>,
    /// Notified when there is work for the writer.
    work: Condvar,
    /// The last durable revision.
    revision: AtomicI64,
    /// The number of durable records.
    written: AtomicU64,
    /// The number of records queued when metadata (users, alarms, term, members) changed last.
    metadata: AtomicU64,
    metrics: Arc<Metrics>,
    /// Faults of the disk that tests ask for.
    #[cfg(test)]
    pub(super) faults: Faults,
    failure: watch::Sender<Option<String>>,
    /// The directory is a copy: nobody waits for it, and too many changes are replaced by a mark.
    is_behind: bool,
}

#[cfg(test)]
#[derive(Default)]
pub(super) struct Faults {
    /// The disk hangs.
    pub(super) stalled: AtomicBool,
    /// The disk takes no changes.
    pub(super) refusing: AtomicBool,
}

#[derive(Default)]
struct Pending {
    records: Vec<Waiting>,
    bytes: usize,
    /// Number of records ever queued.
    count: u64,
    waiters: Vec<Waiter>,
    /// Number of waiters at which to look for waiters that gave up.
    prune_at: usize,
    /// Why new changes are refused.
    obstacle: Option<Obstacle>,
    /// Why a group that was taken off the queue cannot be written at present.
    stuck: Option<Obstacle>,
    closing: bool,
    ended: bool,
}

/// A record that has not been written. The writer turns changes of the store into records.
pub(super) enum Waiting {
    Change(Change),
    Record(Record),
}

struct Waiter {
    point: Point,
    patience: Patience,
    tell: oneshot::Sender<Result<(), Refused>>,
}

/// How long a caller waits for the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Patience {
    /// Until the change is durable, however long an obstacle lasts.
    Unlimited,
    /// Until the change is durable, or an obstacle keeps the writer from writing.
    UntilObstacle,
}

/// A point in the sequence of changes, which callers can wait for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Point {
    /// The store's revision.
    Revision(i64),
    /// The number of records ever queued.
    Records(u64),
}

/// The next work of the writer.
pub(super) struct Work {
    pub(super) records: Vec<Waiting>,
    /// Number of records ever queued, including these.
    pub(super) count: u64,
    pub(super) closing: bool,
}

impl Journal for WriteQueue {
    fn record(&self, change: Change) {
        self.push(Waiting::Change(change));
    }
}

impl Waiting {
    /// Estimated bytes.
    pub(super) fn size(&self) -> usize {
        match self {
            Self::Change(Change::Commit { batch, .. }) => {
                let events = batch.iter().flat_map(|b| b.events.iter());
                events.map(|e| e.kv.as_bytes().len() + 16).sum()
            }
            Self::Change(Change::Grant { .. } | Change::Compact(_) | Change::Swapped) | Self::Record(_) => 16,
        }
    }
}

// === for callers that make changes ===

impl WriteQueue {
    /// The queue of a replica's copy, which takes every change and keeps no writer waiting.
    pub(super) fn behind() -> Self {
        Self {
            is_behind: true,
            ..Self::default()
        }
    }

    /// Whether this is the queue of a replica's copy.
    pub(super) fn is_behind(&self) -> bool {
        self.is_behind
    }

    pub(super) fn push(&self, waiting: Waiting) {
        let mut pending = self.pending.lock();
        pending.count += 1;
        // No answer rests on the term.
        if matches!(&waiting, Waiting::Record(record) if !matches!(record, Record::Term(_))) {
            self.metadata.store(pending.count, Ordering::Release);
        }
        if pending.ended {
            return;
        }
        pending.bytes += waiting.size();
        pending.records.push(waiting);
        if self.is_behind && pending.bytes > WAITING_MAX {
            pending.replace_changes();
        }
        if pending.records.len() == 1 {
            self.work.notify_one();
        }
    }

    /// Whether another change can be accepted.
    pub(super) fn admit(&self) -> Result<(), Refused> {
        let pending = self.pending.lock();
        if let Some(obstacle) = pending.obstacle {
            return Err(obstacle.into());
        }
        match pending.bytes < WAITING_MAX {
            true => Ok(()),
            false => Err(Refused::Busy),
        }
    }

    /// The last change of any kind.
    pub(super) fn last_change(&self) -> Point {
        Point::Records(self.pending.lock().count)
    }

    /// The last change of metadata.
    pub(super) fn last_metadata(&self) -> Point {
        Point::Records(self.metadata.load(Ordering::Acquire))
    }

    /// Returns when everything up to `point` is durable.
    pub(super) async fn reached(&self, point: Point, patience: Patience) -> Result<(), Refused> {
        if self.is_done(point) {
            return Ok(());
        }
        let (tell, told) = oneshot::channel();
        {
            let mut pending = self.pending.lock();
            if self.is_done(point) {
                return Ok(());
            }
            if pending.ended {
                return Err(Refused::Ended);
            }
            if let (Some(obstacle), Patience::UntilObstacle) = (pending.stuck, patience) {
                return Err(obstacle.into());
            }
            if pending.waiters.len() >= pending.prune_at {
                // While the disk hangs, waiters that gave up would pile up.
                pending.waiters.retain(|waiter| !waiter.tell.is_closed());
                pending.prune_at = (pending.waiters.len() * 2).max(1024);
            }
            pending.waiters.push(Waiter { point, patience, tell });
        }
        told.await.unwrap_or(Err(Refused::Ended))
    }

    fn is_done(&self, point: Point) -> bool {
        match point {
            Point::Revision(revision) => self.revision.load(Ordering::Acquire) >= revision,
            Point::Records(count) => self.written.load(Ordering::Acquire) >= count,
        }
    }

    /// Asks the writer to write the queued changes and to end.
    pub(super) fn close(&self) {
        self.pending.lock().closing = true;
        self.work.notify_one();
    }

    /// Returns the reason once nothing can be written any more.
    pub(super) async fn failed(&self) -> String {
        let mut failure = self.failure.subscribe();
        let failed = failure.wait_for(Option::is_some).await;
        failed.ok().and_then(|f| f.clone()).unwrap_or_default()
    }

    /// Why new changes are refused; `None` if they are accepted.
    pub(super) fn obstacle(&self) -> Option<Obstacle> {
        self.pending.lock().obstacle
    }

    #[cfg(test)]
    pub(super) fn wait_while_stalled(&self) {
        let mut pending = self.pending.lock();
        while self.faults.stalled.load(Ordering::Acquire) && !pending.closing {
            self.work.wait_for(&mut pending, Duration::from_millis(1));
        }
    }

    pub(super) fn metrics(&self) -> &Arc<Metrics> {
        &self.metrics
    }
}

// === for the writer ===

impl WriteQueue {
    /// Notes the revision that a start has loaded: it is durable.
    pub(super) fn begin_at(&self, revision: i64) {
        self.revision.store(revision, Ordering::Release);
    }

    /// Waits for work, but no longer than `patience`.
    pub(super) fn wait(&self, patience: Option<Duration>) -> Work {
        let mut pending = self.pending.lock();
        while pending.records.is_empty() && !pending.closing {
            match patience {
                None => self.work.wait(&mut pending),
                Some(patience) => {
                    self.work.wait_for(&mut pending, patience);
                    break;
                }
            }
        }
        pending.take()
    }

    /// Takes everything that is queued now.
    pub(super) fn take(&self) -> Work {
        self.pending.lock().take()
    }

    /// Waits for `time`; false once the queue is closing.
    pub(super) fn pause(&self, time: Duration) -> bool {
        let mut pending = self.pending.lock();
        self.work
            .wait_while_for(&mut pending, |pending| !pending.closing, time)
            .timed_out()
    }

    /// Notes that the first `count` records, and the revisions up to `revision`, are durable.
    pub(super) fn done(&self, count: u64, revision: i64) {
        self.written.store(count, Ordering::Release);
        self.revision.fetch_max(revision, Ordering::AcqRel);
        let done = {
            let mut pending = self.pending.lock();
            pending.stuck = None;
            pending
                .waiters
                .extract_if(.., |waiter| self.is_done(waiter.point))
                .collect::<Vec<_>>()
        };
        for waiter in done {
            // A waiter that gave up has no receiver.
            let _ = waiter.tell.send(Ok(()));
        }
    }

    /// Notes why new changes are refused, or that they are accepted; returns the obstacle before.
    pub(super) fn set_obstacle(&self, obstacle: Option<Obstacle>) -> Option<Obstacle> {
        std::mem::replace(&mut self.pending.lock().obstacle, obstacle)
    }

    /// Notes that the present group cannot be written for now, and tells those who do not wait for so long.
    pub(super) fn stuck(&self, obstacle: Obstacle) {
        let impatient = {
            let mut pending = self.pending.lock();
            pending.stuck = Some(obstacle);
            pending
                .waiters
                .extract_if(.., |waiter| waiter.patience == Patience::UntilObstacle)
                .collect::<Vec<_>>()
        };
        for waiter in impatient {
            // A waiter that gave up has no receiver.
            let _ = waiter.tell.send(Err(obstacle.into()));
        }
    }

    /// Ends all waiting: nothing will be written any more, because of `failure` or because the queue was closed.
    pub(super) fn end(&self, failure: Option<String>) {
        let mut pending = self.pending.lock();
        pending.ended = true;
        pending.waiters.clear();
        drop(pending);
        if failure.is_some() {
            self.failure.send_replace(failure);
        }
    }
}

impl Pending {
    /// Replaces the changes of keys by a mark that they are missing, after which the writer makes a checkpoint.
    fn replace_changes(&mut self) {
        self.records.retain(|waiting| matches!(waiting, Waiting::Record(_)));
        self.records.push(Waiting::Change(Change::Swapped));
        self.bytes = self.records.iter().map(Waiting::size).sum();
    }

    fn take(&mut self) -> Work {
        self.bytes = 0;
        Work {
            records: std::mem::take(&mut self.records),
            count: self.count,
            closing: self.closing,
        }
    }
}
