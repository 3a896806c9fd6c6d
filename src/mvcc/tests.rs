//! Tests of the whole store: against a model that keeps the content of every revision, and by example.

mod follow;
pub(super) mod message;
mod model;
mod reads;
mod seam;
mod waking;
mod watch;
mod writes;

use super::*;
use std::sync::Arc;

/// A waker for watchers whose test takes without being woken.
pub(super) struct NoWake;

impl Wake for NoWake {
    fn wake(&self) {}
}

fn put_of(key: &str, value: &str) -> Put {
    Put {
        key: key.to_owned().into(),
        value: value.to_owned().into(),
        ..Put::default()
    }
}

/// Puts a key; returns the revision.
fn put(store: &Store, key: &str, value: &str) -> i64 {
    store.put(put_of(key, value)).unwrap().revision
}

fn watch(store: &Arc<Store>, filter: WatchFilter, start: i64) -> Watcher {
    store.watch(filter, start, Arc::new(NoWake))
}

/// With previous key-values.
fn with_previous(range: KeyRange) -> WatchFilter {
    WatchFilter {
        prev_kv: true,
        ..WatchFilter::new(range)
    }
}

fn watch_all(store: &Arc<Store>, start: i64) -> Watcher {
    watch(store, WatchFilter::new(KeyRange::all()), start)
}

/// Sets the budget for all frames of a store, in bytes.
fn limit_frames(store: &Store, bytes: usize) {
    store.state.write().groups.budget.limit(bytes);
}

/// Compacts to `revision` and frees all memory that this allows to free.
fn compact_and_purge(store: &Store, revision: i64) {
    store.compact(revision).unwrap();
    while store.purge() {}
}
