//! The callbacks by which a store calls other parts of the process. A store gets its hooks when it is made.

use super::journal::Journal;
use std::sync::Arc;

/// The callbacks of one store; by default none.
pub struct Hooks {
    /// Called after a commit that some watcher wants to see was published, outside the store's lock. Should lead
    /// to a call of [`Store::wake_watchers`](super::Store::wake_watchers) soon, on another task.
    pub published: Box<dyn Fn() + Send + Sync>,
    /// Called after each publication, outside the store's lock. Must be cheap and must not call the store.
    pub visible: Box<dyn Fn() + Send + Sync>,
    /// Called when no long read pins a revision any more, so that [`Store::purge`](super::Store::purge) can free
    /// the history that a compaction had to leave.
    pub unpinned: Box<dyn Fn() + Send + Sync>,
    /// Records every change. With a journal, readers and watchers see a commit only after
    /// [`Store::publish`](super::Store::publish); adopted revisions are visible at once.
    pub journal: Option<Arc<dyn Journal>>,
}

impl Default for Hooks {
    fn default() -> Self {
        Self {
            published: Box::new(|| {}),
            visible: Box::new(|| {}),
            unpinned: Box::new(|| {}),
            journal: None,
        }
    }
}
