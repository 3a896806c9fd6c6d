//! Between those who change something and the thread that writes it down.

use super::directory::Directory;
use super::engine::Engine;
use super::metrics::Metrics;
use super::record::Record;
use super::writer::Writer;
use super::{Config, Loaded};
use crate::auth::State;
use crate::mvcc::{self, Change};
use crate::pb::etcdserverpb::AlarmMember;
use parking_lot::{Condvar, Mutex};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::sync::oneshot;

/// Changes that may wait to be written; more are refused.
const WAITING_MAX: usize = 64 << 20;

/// Why a change is not accepted, or not answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// The disk is full.
    #[error("there is no room on the disk")]
    NoSpace,
    /// The disk does not keep up.
    #[error("the disk does not keep up")]
    Busy,
    /// The log has ended; whether the change is in it is not known.
    #[error("the log has ended")]
    Ended,
}

/// A store's data directory, being written to. Dropping it closes it.
pub struct Durable {
    journal: Arc<Journal>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

/// What waits to be written, and who waits for it.
#[derive(Default)]
pub(super) struct Journal {
    queue: Mutex<Queue>,
    work: Condvar,
    /// The last revision that is safe.
    revision: AtomicI64,
    /// How many records are safe.
    written: AtomicU64,
    no_room: AtomicBool,
    metrics: Arc<Metrics>,
    failure: tokio::sync::watch::Sender<Option<String>>,
}

#[derive(Default)]
struct Queue {
    records: Vec<Waiting>,
    bytes: usize,
    /// Records ever.
    count: u64,
    waiters: Vec<Waiter>,
    /// How many waiters there are before those are looked for that gave up.
    prune_at: usize,
    closing: bool,
    ended: bool,
}

/// A record that has not been written. Changes of the store are turned into records by the writer.
pub(super) enum Waiting {
    Change(Change),
    Record(Record),
}

struct Waiter {
    until: Until,
    tell: oneshot::Sender<()>,
}

#[derive(Clone, Copy)]
enum Until {
    Revision(i64),
    Count(u64),
}

/// What the writer has to do next.
pub(super) struct Work {
    pub(super) records: Vec<Waiting>,
    /// How many records there were with these.
    pub(super) count: u64,
    pub(super) closing: bool,
}

impl mvcc::Journal for Journal {
    fn record(&self, change: Change) {
        self.push(Waiting::Change(change));
    }
}

// === impl Journal ===

impl Waiting {
    fn size(&self) -> usize {
        match self {
            Self::Change(Change::Commit { batch, .. }) => {
                let events = batch.iter().flat_map(|b| b.events.iter());
                events.map(|e| e.kv.as_bytes().len() + 16).sum()
            }
            Self::Change(Change::Grant { .. } | Change::Compact(_)) | Self::Record(_) => 16,
        }
    }
}

impl Journal {
    fn push(&self, waiting: Waiting) {
        let mut queue = self.queue.lock();
        queue.bytes += waiting.size();
        queue.count += 1;
        queue.records.push(waiting);
        if queue.records.len() == 1 {
            self.work.notify_one();
        }
    }

    /// Waits for work, but no longer than `patience`.
    pub(super) fn wait(&self, patience: Option<Duration>) -> Work {
        let mut queue = self.queue.lock();
        while queue.records.is_empty() && !queue.closing {
            match patience {
                None => self.work.wait(&mut queue),
                Some(patience) => {
                    self.work.wait_for(&mut queue, patience);
                    break;
                }
            }
        }
        queue.take()
    }

    /// All that waits now.
    pub(super) fn take(&self) -> Work {
        self.queue.lock().take()
    }

    /// `count` records are safe, and revisions up to `revision`.
    pub(super) fn done(&self, count: u64, revision: i64) {
        self.written.store(count, Ordering::Release);
        self.revision.fetch_max(revision, Ordering::AcqRel);
        let done = {
            let mut queue = self.queue.lock();
            queue
                .waiters
                .extract_if(.., |waiter| self.is_done(waiter.until))
                .collect::<Vec<_>>()
        };
        for waiter in done {
            // Whoever does not wait any more need not be told.
            let _ = waiter.tell.send(());
        }
    }

    fn is_done(&self, until: Until) -> bool {
        match until {
            Until::Revision(revision) => self.revision.load(Ordering::Acquire) >= revision,
            Until::Count(count) => self.written.load(Ordering::Acquire) >= count,
        }
    }

    /// Returns whether that was otherwise before.
    pub(super) fn set_room(&self, room: bool) -> bool {
        self.no_room.swap(!room, Ordering::AcqRel) == room
    }

    pub(super) fn has_room(&self) -> bool {
        !self.no_room.load(Ordering::Acquire)
    }

    /// Waits; false once the log is to be closed.
    pub(super) fn pause(&self, time: Duration) -> bool {
        let mut queue = self.queue.lock();
        self.work
            .wait_while_for(&mut queue, |queue| !queue.closing, time)
            .timed_out()
    }

    pub(super) fn metrics(&self) -> &Arc<Metrics> {
        &self.metrics
    }

    /// Nothing will be written any more, for this reason or because it was closed.
    pub(super) fn end(&self, failure: Option<String>) {
        let mut queue = self.queue.lock();
        queue.ended = true;
        queue.waiters.clear();
        drop(queue);
        if failure.is_some() {
            self.failure.send_replace(failure);
        }
    }

    async fn until(&self, until: Until) -> Result<(), Refused> {
        if self.is_done(until) {
            return Ok(());
        }
        let (tell, told) = oneshot::channel();
        {
            let mut queue = self.queue.lock();
            if self.is_done(until) {
                return Ok(());
            }
            if queue.ended {
                return Err(Refused::Ended);
            }
            if queue.waiters.len() >= queue.prune_at {
                // Whoever does not wait any more while the disk hangs.
                queue.waiters.retain(|waiter| !waiter.tell.is_closed());
                queue.prune_at = (queue.waiters.len() * 2).max(1024);
            }
            queue.waiters.push(Waiter { until, tell });
        }
        told.await.map_err(|_| Refused::Ended)
    }
}

impl Queue {
    fn take(&mut self) -> Work {
        self.bytes = 0;
        Work {
            records: std::mem::take(&mut self.records),
            count: self.count,
            closing: self.closing,
        }
    }
}

// === impl Durable ===

impl Durable {
    /// Starts the thread that writes what `journal`, the journal of the loaded store, holds.
    pub(super) fn start(
        config: &Config,
        directory: Directory,
        engine: Box<dyn Engine>,
        loaded: &Loaded,
        journal: Arc<Journal>,
    ) -> Self {
        journal.revision.store(loaded.store.revision(), Ordering::Release);
        let term = loaded.side.raft_term + 1;
        journal.push(Waiting::Record(Record::Term(term)));
        let writer = Writer::new(config, directory, engine, loaded, Arc::clone(&journal));
        let ending = Arc::clone(&journal);
        let thread = std::thread::Builder::new().name("durable".to_owned());
        let thread = thread.spawn(move || {
            let _ending = PanicEnds(ending);
            writer.run();
        });
        let thread = thread.map_err(|e| journal.end(Some(format!("cannot start its thread: {e}"))));
        Self {
            journal,
            thread: Mutex::new(thread.ok()),
        }
    }

    /// Whether another change can be accepted.
    pub fn admit(&self) -> Result<(), Refused> {
        if !self.has_room() {
            return Err(Refused::NoSpace);
        }
        match self.journal.queue.lock().bytes < WAITING_MAX {
            true => Ok(()),
            false => Err(Refused::Busy),
        }
    }

    /// Whether there is room on the disk.
    pub fn has_room(&self) -> bool {
        self.journal.has_room()
    }

    /// Returns when the store's revisions up to `revision` are safe.
    pub async fn revision(&self, revision: i64) -> Result<(), Refused> {
        self.journal.until(Until::Revision(revision)).await
    }

    /// Returns when all that has been changed so far is safe.
    pub async fn flushed(&self) -> Result<(), Refused> {
        let count = self.journal.queue.lock().count;
        self.journal.until(Until::Count(count)).await
    }

    /// Takes down a change of users and roles.
    pub fn auth_changed(&self, before: &State, after: &State) {
        self.journal.push(Waiting::Record(Record::auth(before, after)));
    }

    /// Takes down the alarms that are on.
    pub fn alarms_changed(&self, alarms: Vec<AlarmMember>) {
        self.journal.push(Waiting::Record(Record::alarms(alarms)));
    }

    /// Takes down where peers would be.
    pub fn peer_urls_changed(&self, urls: Vec<String>) {
        self.journal.push(Waiting::Record(Record::peer_urls(urls)));
    }

    /// What has been written, and how.
    pub fn metrics(&self) -> &Metrics {
        self.journal.metrics()
    }

    /// Returns why nothing can be written any more, once that is so.
    pub async fn failed(&self) -> String {
        let mut failure = self.journal.failure.subscribe();
        let failed = failure.wait_for(Option::is_some).await;
        failed.ok().and_then(|f| f.clone()).unwrap_or_default()
    }

    /// Writes what is left, syncs, and ends the log. Blocks.
    pub fn close(&self) {
        self.journal.queue.lock().closing = true;
        self.journal.work.notify_one();
        if let Some(thread) = self.thread.lock().take() {
            // Its panic has been reported.
            let _ = thread.join();
        }
    }
}

impl Drop for Durable {
    fn drop(&mut self) {
        self.close();
    }
}

/// Says that the log has ended if its thread panics.
struct PanicEnds(Arc<Journal>);

impl Drop for PanicEnds {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.end(Some("its thread panicked".to_owned()));
        }
    }
}
