//! A read of everything, in short locks: for hashes, snapshots and checkpoints.

use super::hash::Stored;
use super::range::KeyRange;
use super::store::{READ_CHUNK, State, Store};
use std::sync::Arc;

/// Every change kept up to one revision, key by key, while the store goes on.
pub(super) struct Walk {
    store: Arc<Store>,
    revision: i64,
    /// Pinned: what this compaction keeps stays while we look at it.
    compacted: i64,
    rest: Option<KeyRange>,
}

impl Walk {
    /// Begins at the first key. The caller holds the lock that `state` is under.
    pub(super) fn new(store: &Arc<Store>, state: &State, revision: i64) -> Self {
        store.pins.hold(state.compacted);
        Self {
            store: Arc::clone(store),
            revision,
            compacted: state.compacted,
            rest: Some(KeyRange::all()),
        }
    }

    /// The next keys with all their changes kept, in order of key and revision, about `bytes` of them;
    /// `None` at the end. Writers wait for a few thousand keys at most.
    pub(super) fn next(&mut self, bytes: usize) -> Option<Vec<Stored>> {
        let mut rest = self.rest.take()?;
        let mut changes = Vec::new();
        let mut size = 0;
        loop {
            let read = self.store.read();
            let (mut seen, mut last) = (0, Vec::new());
            for history in read.index().range(&rest).take(READ_CHUNK) {
                let from = changes.len();
                changes.extend(history.stored(self.revision));
                size += changes[from..].iter().map(|c| c.kv.as_bytes().len()).sum::<usize>();
                seen += 1;
                if seen == READ_CHUNK || size >= bytes {
                    last = history.key().to_vec();
                    break;
                }
            }
            drop(read);
            if last.is_empty() {
                return (!changes.is_empty()).then_some(changes);
            }
            rest = rest.after(&last);
            if size >= bytes {
                self.rest = Some(rest);
                return Some(changes);
            }
        }
    }
}

impl Drop for Walk {
    fn drop(&mut self) {
        self.store.pins.release(self.compacted);
    }
}
