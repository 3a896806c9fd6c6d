//! Reads of everything that a store holds at one revision, in short locks while writers continue: for hashes,
//! snapshots and checkpoints.

use super::Error;
use super::key_history::Version;
use super::lease_book::GrantedLease;
use super::range::KeyRange;
use super::state::State;
use super::store::{READ_CHUNK, Store};
use std::sync::Arc;

/// A walk over every key in order, with all versions up to one revision.
pub(super) struct Walk {
    store: Arc<Store>,
    revision: i64,
    /// Pinned, so that history from this compact revision on stays during the walk.
    compacted: i64,
    generation: u64,
    rest: Option<KeyRange>,
}

/// Everything that a store holds at one revision, read piece by piece while writers continue.
pub struct Frozen {
    walk: Walk,
    /// The revision of the contents.
    pub revision: i64,
    /// The compact revision, −1 if never compacted.
    pub compacted: i64,
    /// Whether a part of the revision `compacted` is missing, because the state came from lists.
    pub partial: bool,
    pub leases: Vec<GrantedLease>,
}

// === impl Store ===

impl Store {
    /// Freezes the present contents, to be read later piece by piece. Nothing is committed while `f` runs, so every
    /// change that `f` finds in the journal is part of the contents.
    pub fn freeze<T>(self: &Arc<Self>, f: impl FnOnce() -> T) -> (Frozen, T) {
        let state = self.state.read();
        let frozen = Frozen {
            walk: Walk::new(self, &state, state.current),
            revision: state.current,
            compacted: state.compacted,
            partial: state.partial,
            leases: state.leases.granted(),
        };
        (frozen, f())
    }
}

// === impl Frozen ===

impl Frozen {
    /// The versions of the next keys, in order of key and revision, about `bytes` of them; `None` at the end.
    /// Writers wait for at most a few thousand keys. Fails with [`Error::Compacted`] once another state was swapped in.
    pub fn next(&mut self, bytes: usize) -> Result<Option<Vec<Version>>, Error> {
        self.walk.next(bytes)
    }
}

// === impl Walk ===

impl Walk {
    /// Begins at the first key. The caller holds the lock that protects `state`.
    pub(super) fn new(store: &Arc<Store>, state: &State, revision: i64) -> Self {
        store.pins.hold(state.compacted);
        Self {
            store: Arc::clone(store),
            revision,
            compacted: state.compacted,
            generation: state.generation,
            rest: Some(KeyRange::all()),
        }
    }

    /// See [`Frozen::next`].
    pub(super) fn next(&mut self, bytes: usize) -> Result<Option<Vec<Version>>, Error> {
        let Some(mut rest) = self.rest.take() else {
            return Ok(None);
        };
        let mut versions = Vec::new();
        let mut size = 0;
        loop {
            let state = self.store.state.read();
            if state.generation != self.generation {
                return Err(Error::Compacted);
            }
            let (mut seen, mut last) = (0, Vec::new());
            for history in state.index.range(&rest).take(READ_CHUNK) {
                let from = versions.len();
                versions.extend(history.up_to(self.revision).iter().cloned().map(Version::from));
                size += versions[from..].iter().map(|v| v.kv.as_bytes().len()).sum::<usize>();
                seen += 1;
                if seen == READ_CHUNK || size >= bytes {
                    last = history.key().to_vec();
                    break;
                }
            }
            drop(state);
            if last.is_empty() {
                return Ok((!versions.is_empty()).then_some(versions));
            }
            rest = rest.after(&last);
            if size >= bytes {
                self.rest = Some(rest);
                return Ok(Some(versions));
            }
        }
    }
}

impl Drop for Walk {
    fn drop(&mut self) {
        self.store.pins.release(self.compacted);
    }
}
