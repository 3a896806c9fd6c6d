//! The watchers of a stream that may have events to take.

use crate::mvcc::Wake;
use crate::server::connection::Backlog;
use parking_lot::Mutex;
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::Duration;
use tokio::time::Instant;

/// The ids of watchers that were woken and have not been looked at since, each at most once.
#[derive(Debug, Default)]
pub(super) struct ReadyList {
    ids: Mutex<Ids>,
}

#[derive(Debug, Default)]
struct Ids {
    ids: VecDeque<i64>,
    /// Since when there have been ids.
    since: Option<Instant>,
    /// Whom the next id wakes.
    task: Option<Waker>,
}

/// Puts one watcher into the ready list.
pub(super) struct WatcherWake {
    id: i64,
    queued: AtomicBool,
    list: Arc<ReadyList>,
}

impl ReadyList {
    pub(super) fn pop(&self) -> Option<i64> {
        let mut ids = self.ids.lock();
        let id = ids.ids.pop_front();
        if ids.ids.is_empty() {
            ids.since = None;
        }
        id
    }

    pub(super) fn is_empty(&self) -> bool {
        self.ids.lock().ids.is_empty()
    }

    fn push(&self, id: i64) {
        let task = {
            let mut ids = self.ids.lock();
            if ids.since.is_none() {
                ids.since = Some(Instant::now());
            }
            ids.ids.push_back(id);
            ids.task.take()
        };
        if let Some(task) = task {
            task.wake();
        }
    }

    /// Ready while a watcher is in the list.
    pub(super) fn poll(&self, cx: &Context<'_>) -> Poll<()> {
        let mut ids = self.ids.lock();
        if !ids.ids.is_empty() {
            return Poll::Ready(());
        }
        match &mut ids.task {
            Some(task) => task.clone_from(cx.waker()),
            task => *task = Some(cx.waker().clone()),
        }
        Poll::Pending
    }
}

impl Backlog for ReadyList {
    fn waits(&self) -> Duration {
        self.ids.lock().since.map_or(Duration::ZERO, |since| since.elapsed())
    }
}

impl WatcherWake {
    pub(super) fn new(id: i64, list: &Arc<ReadyList>) -> Arc<Self> {
        Arc::new(Self {
            id,
            queued: AtomicBool::new(false),
            list: Arc::clone(list),
        })
    }

    /// Lets the watcher be put into the list again. Call this before taking from the watcher, so that no wake
    /// is lost.
    pub(super) fn reset(&self) {
        self.queued.store(false, Ordering::Release);
    }
}

impl Wake for WatcherWake {
    fn wake(&self) {
        if !self.queued.swap(true, Ordering::AcqRel) {
            self.list.push(self.id);
        }
    }
}
