//! The notifiers between a store and the server's tasks, made before the store, which gets them as hooks.

use crate::mvcc::Hooks;
use std::sync::Arc;
use tokio::sync::{Notify, watch};

/// Wakes the tasks that serve a store.
#[derive(Clone, Debug, Default)]
pub struct Wakers {
    /// Notified when watchers have new events.
    pub(super) published: Arc<Notify>,
    /// Notified when there may be compacted history to purge.
    pub(super) compacted: Arc<Notify>,
    /// Changes when a revision has become visible, while somebody waits for one.
    pub(super) visible: watch::Sender<()>,
}

impl Wakers {
    /// The hooks of a store that wake these tasks.
    pub fn hooks(&self) -> Hooks {
        let (published, compacted) = (Arc::clone(&self.published), Arc::clone(&self.compacted));
        let visible = self.visible.clone();
        Hooks {
            published: Box::new(move || published.notify_one()),
            // Whoever waits subscribes before looking at the revision, so that no revision is missed.
            visible: Box::new(move || {
                if visible.receiver_count() > 0 {
                    visible.send_replace(());
                }
            }),
            unpinned: Box::new(move || compacted.notify_one()),
            journal: None,
        }
    }
}
