//! The watchers of a stream that may have events to take.

use crate::mvcc::Wake;
use parking_lot::Mutex;
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use tokio::sync::Notify;

/// The ids of watchers that were woken and have not been looked at since, each at most once.
#[derive(Default)]
pub(super) struct ReadyList {
    ids: Mutex<VecDeque<i64>>,
    notify: Notify,
}

/// Puts one watcher into the ready list.
pub(super) struct WatcherWake {
    id: i64,
    queued: AtomicBool,
    list: Arc<ReadyList>,
}

impl ReadyList {
    pub(super) fn pop(&self) -> Option<i64> {
        self.ids.lock().pop_front()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.ids.lock().is_empty()
    }

    /// Returns when a watcher was put into the list.
    pub(super) async fn woken(&self) {
        self.notify.notified().await;
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
            self.list.ids.lock().push_back(self.id);
            self.list.notify.notify_one();
        }
    }
}
