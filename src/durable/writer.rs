//! The thread that writes groups and checkpoints.

use super::checkpoint::{PIECE, Pieces};
use super::directory::Directory;
use super::engine::Engine;
use super::frame::{self, Kind};
use super::metrics::Metrics;
use super::obstacle::Obstacle;
use super::queue::{Waiting, Work, WriteQueue};
use super::record::{Entry, Group, Metadata, Record};
use super::{Config, Loaded, Mode};
use crate::mvcc::{Change, Store};
use prost::Message;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// Shortest time between the beginnings of groups with many writers. On a fast disk groups would be small, and each
/// group costs two thread switches and a sync.
const PACE: Duration = Duration::from_millis(1);
/// A group with at least this many changes counts as a group of many writers.
const MANY: u64 = 8;
/// Bytes of changes from which a group takes no further change. A group has at least one change, however large.
const GROUP_BYTES: usize = 16 << 20;
/// Time between attempts to write while an obstacle lasts.
const RETRY: Duration = Duration::from_millis(if cfg!(test) { 20 } else { 500 });
/// Pieces of a checkpoint between two groups, at most: a group waits for them.
const PIECES: usize = 4;
/// Time in which others had the core that counts as rest of a checkpoint, at most.
const RESTED: Duration = Duration::from_millis(2);
/// Time between a failed checkpoint and the next attempt.
const CHECKPOINT_RETRY: Duration = Duration::from_secs(30);

/// The thread's state.
pub(super) struct Writer {
    queue: Arc<WriteQueue>,
    metrics: Arc<Metrics>,
    directory: Directory,
    engine: Box<dyn Engine>,
    store: Arc<Store>,
    metadata: Metadata,
    salt: u64,
    mode: Mode,
    interval: Duration,
    checkpoint_bytes: u64,
    /// The number of the last group.
    last_group: u64,
    /// The last revision in a group.
    revision: i64,
    frame: Vec<u8>,
    /// When the oldest group that is not synced was written.
    unsynced: Option<Instant>,
    checkpoint: Option<Checkpoint>,
    /// Earliest time of the next piece of the checkpoint.
    next_piece: Instant,
    /// What the directory holds says nothing about the store until a checkpoint is complete.
    is_void: bool,
    /// Earliest time of the next group.
    next_group: Option<Instant>,
    /// Earliest time of the next checkpoint.
    next_checkpoint: Option<Instant>,
}

/// A checkpoint that is being written.
struct Checkpoint {
    pieces: Pieces,
    begun: Instant,
    bytes: u64,
    /// Bytes of the log at the beginning of the checkpoint, which the checkpoint replaces.
    replaces: i64,
}

// === impl Writer ===

impl Writer {
    pub(super) fn new(
        config: &Config,
        directory: Directory,
        engine: Box<dyn Engine>,
        loaded: &Loaded,
        queue: Arc<WriteQueue>,
    ) -> Self {
        let metrics = Arc::clone(queue.metrics());
        metrics.log_bytes.set(loaded.sizes.log as i64);
        metrics.checkpoint_bytes.set(loaded.sizes.checkpoint as i64);
        Self {
            metrics,
            queue,
            directory,
            engine,
            store: Arc::clone(&loaded.store),
            metadata: loaded.metadata.clone(),
            salt: loaded.identity.salt,
            mode: config.mode,
            interval: config.interval,
            checkpoint_bytes: config.checkpoint_bytes,
            last_group: loaded.groups,
            revision: loaded.store.revision(),
            frame: vec![],
            unsynced: None,
            checkpoint: None,
            next_piece: Instant::now(),
            is_void: loaded.is_void,
            next_group: None,
            next_checkpoint: None,
        }
    }

    /// Writes until the queue is closed or the disk fails.
    pub(super) fn run(mut self) {
        let ended = self.write().and_then(|()| self.close());
        let failure = ended.err().map(|error| {
            tracing::error!(%error, "cannot write to the data directory: no more writes are accepted");
            error.to_string()
        });
        self.queue.end(failure);
    }

    fn write(&mut self) -> io::Result<()> {
        loop {
            if let Some(at) = self.next_group.take() {
                self.queue.pause(at.saturating_duration_since(Instant::now()));
            }
            let work = self.queue.wait(self.patience());
            let ends = work.closing && work.records.is_empty();
            self.write_groups(work)?;
            if ends {
                return Ok(());
            }
            self.sync_when_due()?;
            self.reserve()?;
            match self.checkpoint {
                Some(_) => self.go_on_with_checkpoint(),
                None if self.is_checkpoint_due() => self.begin_checkpoint()?,
                None => {}
            }
        }
    }

    /// The longest wait for new work; `None` if nothing else is due.
    fn patience(&self) -> Option<Duration> {
        if self.checkpoint.is_some() {
            return Some(self.next_piece.saturating_duration_since(Instant::now()));
        }
        let unsynced = self.unsynced.filter(|_| self.mode == Mode::Interval);
        let sync = unsynced.map(|since| self.interval.saturating_sub(since.elapsed()));
        let retry = self.queue.obstacle().map(|_| RETRY);
        let again = self.next_checkpoint.filter(|_| self.is_void);
        let again = again.map(|at| at.saturating_duration_since(Instant::now()));
        sync.into_iter().chain(retry).chain(again).min()
    }

    /// Writes the queued records, publishes their revisions, and releases the answers.
    fn write_groups(&mut self, work: Work) -> io::Result<()> {
        let records = work.records.len() as u64;
        if records > 0 {
            self.next_group = (records >= MANY).then(|| Instant::now() + PACE);
        }
        let mut count = work.count - records;
        let mut records = work.records.into_iter().peekable();
        while records.peek().is_some() {
            let mut bytes = 0;
            let group: Vec<_> = std::iter::from_fn(|| {
                let next = records.next_if(|_| bytes < GROUP_BYTES)?;
                bytes += next.size();
                Some(next)
            })
            .collect();
            count += group.len() as u64;
            self.group(group, count)?;
        }
        Ok(())
    }

    /// Writes `records`, the last of the first `count` that were ever queued, as one group.
    fn group(&mut self, records: Vec<Waiting>, count: u64) -> io::Result<()> {
        self.metrics.records.inc_by(records.len() as u64);
        let mut entries = Vec::with_capacity(records.len());
        for waiting in records {
            let record = match waiting {
                Waiting::Change(change) => {
                    match &change {
                        Change::Commit { batch: Some(batch), .. } => self.revision = batch.revision,
                        Change::Swapped => self.begin_anew(),
                        Change::Commit { .. } | Change::Grant { .. } | Change::Compact(_) => {}
                    }
                    Record::from(change)
                }
                Waiting::Record(record) => {
                    self.metadata.apply(record.clone());
                    record
                }
            };
            entries.push(Entry::from(record));
        }
        self.last_group += 1;
        let group = Group { entries };
        self.frame.clear();
        frame::write(&mut self.frame, self.salt, Kind::Group, self.last_group, |out| {
            group.encode_raw(out);
        });
        self.persist()?;
        let bytes = self.frame.len() as u64;
        self.metrics.groups.inc();
        self.metrics.bytes.inc_by(bytes);
        self.metrics.log_bytes.inc_by(bytes as i64);
        if self.frame.capacity() > 4 * PIECE {
            self.frame = vec![];
        }
        self.store.publish(self.revision);
        self.queue.done(count, self.revision);
        Ok(())
    }

    /// Brings the frame to the disk, and tries again while an obstacle lasts.
    fn persist(&mut self) -> io::Result<()> {
        #[cfg(test)]
        self.queue.wait_while_stalled();
        loop {
            let begun = Instant::now();
            let written = self.engine.append(self.last_group, &self.frame);
            self.metrics.write.observe(begun.elapsed().as_secs_f64());
            let synced = match self.mode {
                Mode::Sync => written.and_then(|()| self.sync()),
                Mode::Interval | Mode::None => written,
            };
            match synced {
                Err(error) => match Obstacle::of(&error) {
                    // Write again, not only sync again: the kernel drops pages that it could not write.
                    Some(obstacle) => self.wait_for_end_of(obstacle, error)?,
                    None => return Err(error),
                },
                Ok(()) if self.mode != Mode::Sync => {
                    self.unsynced.get_or_insert_with(Instant::now);
                    return Ok(());
                }
                Ok(()) => return Ok(()),
            }
        }
    }

    /// Waits before the next attempt to write; fails with `error` once the queue is closing.
    fn wait_for_end_of(&self, obstacle: Obstacle, error: io::Error) -> io::Result<()> {
        self.report(Some(obstacle));
        self.queue.stuck(obstacle);
        match self.queue.pause(RETRY) {
            true => Ok(()),
            false => Err(error),
        }
    }

    /// Refuses new changes because of an obstacle, or accepts them.
    fn report(&self, obstacle: Option<Obstacle>) {
        let before = self.queue.set_obstacle(obstacle);
        if before == obstacle {
            return;
        }
        self.metrics.refusing(obstacle);
        if self.queue.is_behind() {
            return report_of_copy(before, obstacle);
        }
        match obstacle {
            Some(why) if why.is_full() => {
                tracing::error!(%why, "THE DISK IS FULL: writes are refused until space is free");
            }
            Some(why) => tracing::error!(%why, "THE DATA DIRECTORY TAKES NO WRITES: writes are refused until it does"),
            None if before.is_some_and(Obstacle::is_full) => {
                tracing::warn!("the disk has free space again; accepting writes");
            }
            None => tracing::warn!("the data directory takes writes again; accepting writes"),
        }
    }

    fn sync(&mut self) -> io::Result<()> {
        let begun = Instant::now();
        self.engine.sync()?;
        self.unsynced = None;
        self.metrics.sync.observe(begun.elapsed().as_secs_f64());
        Ok(())
    }

    fn sync_when_due(&mut self) -> io::Result<()> {
        let due = self.unsynced.is_some_and(|since| since.elapsed() >= self.interval);
        match due && self.mode == Mode::Interval {
            true => self.sync(),
            false => Ok(()),
        }
    }

    /// Reserves space ahead, so that new writes are refused while accepted writes still fit.
    fn reserve(&mut self) -> io::Result<()> {
        let obstacle = match self.engine.reserve() {
            Ok(()) => None,
            Err(error) => Some(Obstacle::of(&error).ok_or(error)?),
        };
        self.report(obstacle.filter(|_| !self.engine.has_room()));
        Ok(())
    }

    fn is_checkpoint_due(&self) -> bool {
        let (log, checkpoint) = (self.metrics.log_bytes.get(), self.metrics.checkpoint_bytes.get());
        let enough = match self.engine.is_tight() {
            // A checkpoint about as large as the last one frees the log.
            true => checkpoint * 2 + PIECE as i64,
            false => (self.checkpoint_bytes as i64).max(checkpoint / 2),
        };
        (log >= enough || self.is_void) && self.next_checkpoint.is_none_or(|at| Instant::now() >= at)
    }

    fn begin_checkpoint(&mut self) -> io::Result<()> {
        let begun = Instant::now();
        // Nothing is committed between the frozen revision and the last group before the checkpoint.
        let (frozen, work) = self.store.freeze(|| self.queue.take());
        self.write_groups(work)?;
        match self.engine.begin(self.last_group) {
            Err(error) if Obstacle::of(&error).is_some() => {
                self.give_up_checkpoint(&error);
                return Ok(());
            }
            begun => begun?,
        }
        self.checkpoint = Some(Checkpoint {
            pieces: Pieces::new(frozen, self.metadata.clone(), self.last_group, self.salt),
            begun,
            bytes: 0,
            replaces: self.metrics.log_bytes.get(),
        });
        Ok(())
    }

    fn go_on_with_checkpoint(&mut self) {
        // Whoever waits for the core gets it for as long as a piece takes: a checkpoint is not urgent.
        for _ in 0..PIECES {
            if Instant::now() >= self.next_piece {
                self.add_piece();
            }
        }
    }

    fn add_piece(&mut self) {
        let Some(checkpoint) = &mut self.checkpoint else { return };
        let begun = Instant::now();
        let piece = checkpoint.pieces.next();
        // Writing is not counted: a disk lets others have the core.
        let rested = begun.saturating_duration_since(self.next_piece).min(RESTED);
        self.next_piece = (begun + 2 * begun.elapsed()).checked_sub(rested).unwrap_or(begun);
        let done = match piece {
            Ok(Some(piece)) => {
                checkpoint.bytes += piece.len() as u64;
                self.engine.add(piece).map(|()| false)
            }
            Ok(None) => self.engine.finish().map(|()| true),
            // The mark is in the queue.
            Err(_swapped) => return self.begin_anew(),
        };
        match done {
            Ok(false) => {}
            Ok(true) => {
                let secs = checkpoint.begun.elapsed().as_secs_f64();
                self.metrics.checkpoints.inc();
                self.metrics.checkpoint_secs.set(secs);
                self.metrics.checkpoint_bytes.set(checkpoint.bytes as i64);
                self.metrics.log_bytes.dec_by(checkpoint.replaces);
                tracing::info!(
                    group = self.last_group,
                    bytes = checkpoint.bytes,
                    secs,
                    "checkpoint written"
                );
                (self.checkpoint, self.is_void) = (None, false);
            }
            Err(error) => self.give_up_checkpoint(&error),
        }
    }

    /// Notes that another state was put into place, or that changes are missing: a checkpoint is due.
    fn begin_anew(&mut self) {
        if self.checkpoint.take().is_some() {
            self.engine.abandon();
        }
        self.is_void = true;
    }

    fn give_up_checkpoint(&mut self, error: &io::Error) {
        tracing::warn!(
            %error,
            retry_secs = CHECKPOINT_RETRY.as_secs(),
            "cannot write a checkpoint: the log keeps growing until the next attempt succeeds"
        );
        self.engine.abandon();
        self.checkpoint = None;
        self.next_checkpoint = Some(Instant::now() + CHECKPOINT_RETRY);
    }

    fn close(&mut self) -> io::Result<()> {
        if self.checkpoint.take().is_some() {
            self.engine.abandon();
        }
        self.engine.sync()?;
        self.engine.close(self.last_group + 1)?;
        self.directory.end_run()
    }
}

/// Says how the copy of a replica stands, which nobody waits for.
fn report_of_copy(before: Option<Obstacle>, obstacle: Option<Obstacle>) {
    match obstacle {
        Some(why) if why.is_full() => {
            tracing::error!(%why, "THE DISK IS FULL: the replica goes on, and its copy waits until space is free");
        }
        Some(why) => {
            tracing::error!(%why, "THE DATA DIRECTORY TAKES NO WRITES: the replica goes on, and its copy waits until it does");
        }
        None if before.is_some_and(Obstacle::is_full) => {
            tracing::warn!("the disk has free space again; the replica's copy goes on");
        }
        None => tracing::warn!("the data directory takes writes again; the replica's copy goes on"),
    }
}
