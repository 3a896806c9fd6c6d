//! The notifiers between a store and the server's tasks, made before the store, which gets them as hooks.

use crate::mvcc::Hooks;
use std::sync::Arc;
use tokio::sync::Notify;

/// Wakes the tasks that serve a store.
#[derive(Clone, Debug, Default)]
pub struct Wakers {
    /// Notified when watchers have new events.
    pub(super) published: Arc<Notify>,
    /// Notified when there may be compacted history to purge.
    pub(super) compacted: Arc<Notify>,
}

impl Wakers {
    /// The hooks of a store that wake these tasks.
    pub fn hooks(&self) -> Hooks {
        let (published, compacted) = (Arc::clone(&self.published), Arc::clone(&self.compacted));
        Hooks {
            published: Box::new(move || published.notify_one()),
            unpinned: Box::new(move || compacted.notify_one()),
            journal: None,
        }
    }
}
