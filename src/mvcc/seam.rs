//! How a later state, as it was loaded from upstream, joins the state of a store.
//!
//! The keys tell whether both have the same past. A later state knows every key as it was at its compact revision and since. If
//! that reaches back to the revision of the store, all keys must be the same there. If upstream has compacted revisions that are
//! missing here, no revision is on both sides; but a key that did not change in between must be the same, and one that lived on
//! was created at the same revision, and had fewer versions here. Another past breaks that at every key of its own that is left.
//! What nothing on either side can show is another past whose own keys were all written again or deleted in the missing revisions:
//! then only watchers that need none of these go on, as they would at upstream itself.

use super::adopt::{Divergence, shown};
use super::encoded::Kv;
use super::key_history::KeyHistory;
use super::range::KeyRange;
use super::recovery::Recovery;
use super::store::Store;

/// Keys that are compared under one lock.
const PIECE: usize = if cfg!(test) { 7 } else { 2_000 };

/// How a later state of the same past joins a store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seam {
    /// The history of the later state reaches back to the store: [`Store::adopt_from`] can take it over.
    Met,
    /// The later state begins where the store ends, and has everything that changed: whoever has seen all that is here misses
    /// nothing.
    Closed,
    /// Revisions are missing in between.
    Open,
    /// The later state begins with the next revision, of which a compaction has removed changes. etcd removes the deletions
    /// of the revision to which it compacts up to 3.5.18, and every version all changes of a key in it but the last.
    Torn,
}

impl Store {
    /// How a later state joins this store. Fails if it has another past.
    pub fn seam(&self, newer: &Recovery) -> Result<Seam, Divergence> {
        let (newer, before) = (newer.state(), self.revision());
        let known = newer.compacted;
        let seam = match known - before {
            _ if newer.floor() <= before => Seam::Met,
            ..=0 => Seam::Closed,
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
                let whole = match known <= before {
                    true => (history.at(before) == live).then_some(true),
                    false => follows_from(live, &history.versions()[0], before),
                };
                is_torn |= !whole.ok_or_else(|| diverges(history.key()))?;
            }
        }
        if seam == Seam::Open {
            return Ok(seam);
        }
        let absent = self.first_live_key(|key| newer.index.get(key).is_none());
        match absent {
            Some(key) if known <= before => Err(diverges(&key)),
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
