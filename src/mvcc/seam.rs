//! How a later state joins the state of a store where revisions are missing: upstream has compacted them, so that
//! [`Store::adopt_from`] can repeat nothing, and no revision is on both sides to be compared.
//!
//! The keys tell instead. A state knows every key as it was at its compact revision, so a key that did not change since the
//! store's revision must be the same here; and one that lived on was created at the same revision, and had fewer versions here.
//! Another past breaks that at every key that is its own. What nothing on either side can show is another past whose own keys
//! were all written again or deleted in the missing revisions: then only watchers that need none of these go on, as they would
//! at upstream itself.

use super::adopt::{Divergence, shown};
use super::encoded::Kv;
use super::key_history::KeyHistory;
use super::range::KeyRange;
use super::recovery::Recovery;
use super::store::Store;

/// Keys that are compared under one lock.
const PIECE: usize = if cfg!(test) { 7 } else { 2_000 };

/// How a later state joins a store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seam {
    /// The later state begins where the store ends, and has everything that changed: whoever has seen all that is here misses
    /// nothing.
    Closed,
    /// Revisions are missing in between.
    Open,
    /// The later state begins with the next revision, of which a compaction has removed changes. etcd removes the deletions
    /// of the revision to which it compacts, up to 3.5.18, and each version keeps only the last change of a key.
    Torn,
}

impl Store {
    /// How a state whose history begins after the revision of this store joins it. Fails if the state has another past.
    pub fn seam(&self, newer: &Recovery) -> Result<Seam, Divergence> {
        let (newer, before) = (newer.state(), self.revision());
        debug_assert!(newer.floor() > before, "the histories meet");
        // All keys of `newer` are known as they were at its compact revision.
        let seam = match newer.compacted - before {
            0 => Seam::Closed,
            1 if !newer.partial => Seam::Closed,
            _ => Seam::Open,
        };
        let diverges = |key: &[u8]| Divergence::Key {
            key: shown(key),
            revision: before,
        };
        let (all, mut is_torn) = (KeyRange::all(), false);
        let mut theirs = newer.index.range(&all).peekable();
        while theirs.peek().is_some() {
            let ours = self.state.read();
            for history in theirs.by_ref().take(PIECE) {
                let live = ours.index.get(history.key()).and_then(KeyHistory::live);
                let whole = follows_from(live, &history.versions()[0], before);
                is_torn |= !whole.ok_or_else(|| diverges(history.key()))?;
            }
        }
        if seam == Seam::Open {
            return Ok(seam);
        }
        let absent = self.first_live_key(|key| newer.index.get(key).is_none());
        match absent {
            Some(key) if newer.compacted == before => Err(diverges(&key)),
            None if !is_torn => Ok(seam),
            // The next revision has deleted the key, as far as anybody can tell.
            Some(_) | None => Ok(Seam::Torn),
        }
    }

    /// The first key of all live ones to which this applies.
    fn first_live_key(&self, applies: impl Fn(&[u8]) -> bool) -> Option<Vec<u8>> {
        let mut rest = KeyRange::all();
        loop {
            let state = self.state.read();
            let piece: Vec<_> = state.index.range(&rest).take(PIECE).collect();
            let live = piece.iter().filter(|history| history.live().is_some());
            if let Some(found) = live.map(|history| history.key()).find(|key| applies(key)) {
                return Some(found.to_vec());
            }
            let after = piece.last().map(|last| rest.after(last.key()));
            drop(piece);
            rest = after?;
        }
    }
}

/// Whether the first change of a key that a later state knows shows all that came after the key-value `live` of revision
/// `before`; `None` if it cannot come after that at all.
fn follows_from(live: Option<&Kv>, first: &Kv, before: i64) -> Option<bool> {
    let found = first.fields();
    if found.mod_revision <= before {
        return (live == Some(first)).then_some(true);
    }
    if first.is_tombstone() {
        // Of a key that was created by the same revision, the creation is lost.
        return Some(live.is_some());
    }
    let live = live.map(|kv| (kv.fields().version, kv.fields().create_revision));
    let lives_on = live.is_some_and(|(version, created)| created == found.create_revision && version < found.version);
    if found.create_revision <= before && !lives_on {
        return None;
    }
    let next = live.map_or((1, found.mod_revision), |(version, created)| (version + 1, created));
    Some((found.version, found.create_revision) == next)
}
