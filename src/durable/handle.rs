//! The handle of a data directory that is being written to.

use super::directory::Directory;
use super::engine::Engine;
use super::metrics::Metrics;
use super::obstacle::Obstacle;
use super::queue::{Patience, Point, Refused, Waiting, WriteQueue};
use super::record::Record;
use super::writer::Writer;
use super::{Config, Loaded};
use crate::auth::AuthState;
use crate::pb::etcdserverpb::AlarmMember;
use parking_lot::Mutex;
use std::sync::Arc;
use std::thread::JoinHandle;

/// A data directory that is being written to. Dropping the handle closes the directory.
pub struct Durable {
    queue: Arc<WriteQueue>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Durable {
    /// Starts the thread that writes the changes in `queue`, the journal of the loaded store.
    pub(super) fn start(
        config: &Config,
        directory: Directory,
        engine: Box<dyn Engine>,
        loaded: &Loaded,
        queue: Arc<WriteQueue>,
    ) -> Self {
        queue.begin_at(loaded.store.revision());
        queue
            .metrics()
            .damaged
            .set(i64::try_from(directory.damaged()).unwrap_or(i64::MAX));
        let term = loaded.metadata.raft_term + 1;
        queue.push(Waiting::Record(Record::Term(term)));
        let writer = Writer::new(config, directory, engine, loaded, Arc::clone(&queue));
        let ending = Arc::clone(&queue);
        let thread = std::thread::Builder::new().name("durable".to_owned());
        let thread = thread.spawn(move || {
            let _ending = PanicEnds(ending);
            writer.run();
        });
        let thread = thread.map_err(|e| {
            queue.end(Some(format!(
                "cannot start the thread of the data directory: {e}; raise the limit of threads (ulimit -u)"
            )))
        });
        Self {
            queue,
            thread: Mutex::new(thread.ok()),
        }
    }

    /// Makes the disk hang until this is called with `false`, or the log is closed.
    #[cfg(test)]
    pub fn stall(&self, stalled: bool) {
        let faults = &self.queue.faults;
        faults.stalled.store(stalled, std::sync::atomic::Ordering::Release);
    }

    /// Refuses further changes as a full disk does.
    #[cfg(test)]
    pub fn refuse_changes(&self, refuse: bool) {
        let faults = &self.queue.faults;
        faults.refusing.store(refuse, std::sync::atomic::Ordering::Release);
    }

    /// Whether another change can be accepted.
    pub fn admit(&self) -> Result<(), Refused> {
        #[cfg(test)]
        if self.queue.faults.refusing.load(std::sync::atomic::Ordering::Acquire) {
            return Err(Obstacle::NoSpace.into());
        }
        self.queue.admit()
    }

    /// Why the data directory takes no writes at present; `None` if it does.
    pub fn obstacle(&self) -> Option<Obstacle> {
        self.queue.obstacle()
    }

    /// The last change of any kind.
    pub fn last_change(&self) -> Point {
        self.queue.last_change()
    }

    /// The last change of users, roles, alarms or members.
    pub fn last_metadata(&self) -> Point {
        self.queue.last_metadata()
    }

    /// Returns when the store's revisions up to `revision` are durable.
    pub async fn revision(&self, revision: i64) -> Result<(), Refused> {
        self.reached(Point::Revision(revision)).await
    }

    /// Returns when everything changed so far is durable.
    pub async fn flushed(&self) -> Result<(), Refused> {
        self.reached(self.last_change()).await
    }

    /// Returns when everything up to `point` is durable, however long an obstacle lasts.
    pub async fn reached(&self, point: Point) -> Result<(), Refused> {
        self.queue.reached(point, Patience::Unlimited).await
    }

    /// Like [`Durable::reached`], but fails as soon as an obstacle keeps the writer from writing. The changes are
    /// written once the obstacle is gone.
    pub async fn reached_or_refused(&self, point: Point) -> Result<(), Refused> {
        self.queue.reached(point, Patience::UntilObstacle).await
    }

    /// Records a change of users and roles.
    pub fn auth_changed(&self, before: &AuthState, after: &AuthState) {
        self.queue.push(Waiting::Record(Record::auth(before, after)));
    }

    /// Records the raised alarms.
    pub fn alarms_changed(&self, alarms: Vec<AlarmMember>) {
        self.queue.push(Waiting::Record(Record::alarms(alarms)));
    }

    /// Records the advertised peer URLs.
    pub fn peer_urls_changed(&self, urls: Vec<String>) {
        self.queue.push(Waiting::Record(Record::peer_urls(urls)));
    }

    pub fn metrics(&self) -> &Metrics {
        self.queue.metrics()
    }

    /// Returns the reason once nothing can be written any more.
    pub async fn failed(&self) -> String {
        self.queue.failed().await
    }

    /// Writes the queued changes, syncs, and ends the log. Blocks.
    pub fn close(&self) {
        self.queue.close();
        if let Some(thread) = self.thread.lock().take() {
            // `PanicEnds` has reported a panic of the thread.
            let _ = thread.join();
        }
    }
}

impl Drop for Durable {
    fn drop(&mut self) {
        self.close();
    }
}

/// Ends the queue if the writer's thread panics.
struct PanicEnds(Arc<WriteQueue>);

impl Drop for PanicEnds {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.end(Some("the thread of the data directory panicked".to_owned()));
        }
    }
}
