//! A store that follows another one: its only writer repeats the revisions of an *upstream* store.
//!
//! [`Store::adopt`] repeats the next revision, after checks that no upstream with the same past can fail. A store whose
//! state came from lists knows of its first revision only what is left of it, until [`Store::complete`] has the rest.
//! [`Store::compare`] tells whether upstream has the same past. [`Store::swap`] puts another past into place, and
//! [`Store::skip_to`] a later state of the same past.

use super::encoded::{Fields, Kv};
use super::groups::Groups;
use super::log::{Event, EventKind, Log};
use super::recovery::Recovery;
use super::state::State;
use super::store::Store;
use super::waking::Swapped;
use super::write_txn::WriteTxn;
use std::collections::HashMap;

/// Bytes of a key that an error shows.
const SHOWN: usize = 120;

/// One change of an upstream revision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Followed {
    pub kind: EventKind,
    /// Upstream's own encoding of the key-value, or of the tombstone of a deletion.
    pub kv: Kv,
}

/// Why a revision cannot be repeated: upstream has another past, or an event was lost.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Divergence {
    #[error("revision {found} does not follow revision {current}")]
    Gap { found: i64, current: i64 },
    #[error("revision {revision} has no event")]
    Empty { revision: i64 },
    #[error("an event of revision {revision} for key {key} is not one that etcd sends")]
    Malformed { revision: i64, key: String },
    #[error(
        "revision {revision} puts key {key} as version {found} created at revision {found_created}, and here version \
         {expected} created at revision {expected_created} comes next"
    )]
    Version {
        revision: i64,
        key: String,
        found: i64,
        found_created: i64,
        expected: i64,
        expected_created: i64,
    },
    #[error("revision {revision} deletes key {key}, which does not exist here")]
    Absent { revision: i64, key: String },
    #[error("revision {revision} is another one here")]
    Different { revision: i64 },
    #[error("key {key} cannot come from what is here at revision {revision}")]
    Key { key: String, revision: i64 },
}

/// The result of [`Store::compare`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compared {
    /// The same events.
    Same,
    /// One side has lost a part of the revision to its compaction, and the rest is the same. Proves less than `Same`.
    Part,
    Different,
    /// The revision is below the floor, above the store's revision, or revision 1, which has no events.
    Unknown,
}

/// What a revision leaves of a key that is live: its version and the revision of its creation.
type Live = Option<(i64, i64)>;

// === impl Store ===

impl Store {
    /// Repeats the next revision of upstream, and makes it visible at once: upstream has committed it. After an error
    /// nothing has changed.
    pub fn adopt(&self, revision: i64, events: Vec<Followed>) -> Result<(), Divergence> {
        let mut state = self.state.write();
        check(&state, revision, &events)?;
        let mut txn = WriteTxn::new(&mut state);
        for Followed { kind, kv } in events {
            let fits = txn.replay(kind, kv);
            debug_assert!(fits, "the check has accepted the event");
        }
        let committed = txn.finish();
        self.committed(&committed, &state);
        self.publish_to(revision, state);
        Ok(())
    }

    /// Repeats what `newer` has beyond this store, revision by revision. Fails before the first change if the histories
    /// do not meet: `newer` must have this store's revision, with the same events, or with none if it was compacted to there. The
    /// caller has compared the keys ([`Store::seam`]).
    pub fn adopt_from(&self, newer: &Recovery) -> Result<(), Divergence> {
        let (from, to) = (self.revision(), newer.state().current);
        let floor = newer.state().floor();
        if floor > from {
            return Err(Divergence::Gap {
                found: floor,
                current: from,
            });
        }
        let is_same = match events_of(newer.state(), from) {
            // Revision 1 has no events, and a compaction may have left none.
            None => from <= 1 || (floor == from && to >= from),
            Some(events) => matches!(self.compare(from, &events), Compared::Same | Compared::Part),
        };
        if !is_same {
            return Err(Divergence::Different { revision: from });
        }
        for revision in from + 1..=to {
            let events = events_of(newer.state(), revision).ok_or(Divergence::Empty { revision })?;
            self.adopt(revision, events)?;
        }
        Ok(())
    }

    /// Gives the first revision of a state from lists its whole content, which a watch from there has shown. Does
    /// nothing if the revision is complete and the same.
    pub fn complete(&self, revision: i64, events: &[Followed]) -> Result<(), Divergence> {
        let mut state = self.state.write();
        let different = || Divergence::Different { revision };
        if !state.partial || revision != state.compacted {
            return match compare(&state, revision, events) {
                Compared::Same | Compared::Part => Ok(()),
                Compared::Different | Compared::Unknown => Err(different()),
            };
        }
        if compare(&state, revision, events) != Compared::Part {
            return Err(different());
        }
        if state.current != revision {
            // Later revisions are here: the floor stays one above.
            return Ok(());
        }
        state.complete(revision, events);
        Ok(())
    }

    /// Whether the events that upstream has of a revision are those that are here.
    pub fn compare(&self, revision: i64, events: &[Followed]) -> Compared {
        compare(&self.state.read(), revision, events)
    }

    /// The events of a revision; `None` below the floor and above the store's revision.
    pub fn events_of(&self, revision: i64) -> Option<Vec<Followed>> {
        events_of(&self.state.read(), revision)
    }

    /// The first revision from which the history is complete: reads and watches from there on see everything.
    pub fn floor(&self) -> i64 {
        self.state.read().floor()
    }

    /// The number of states that [`Store::swap`] and [`Store::skip_to`] have put into place.
    pub fn generation(&self) -> u64 {
        self.state.read().generation
    }

    /// Puts another state into place, with another past. Watchers of the former state are cancelled as compacted, long
    /// reads fail as compacted, and walks end.
    pub fn swap(&self, recovery: Recovery) {
        // A watch from the floor on sees all that is known of the new past.
        self.put_into_place(recovery, |groups, _, next| Swapped::Ended(groups.retire(next.floor())));
    }

    /// Puts a later state of the same past into place, of which [`Store::adopt_from`] could not take the missing revisions:
    /// its history begins later. Watchers go on if they need nothing below its floor, such as those from a revision that was
    /// not here yet; the others are cancelled as compacted. Long reads and walks end as with [`Store::swap`]. The caller has
    /// asked [`Store::seam`], and it was not torn: then a watcher that has seen everything here may miss a part of the next
    /// revision.
    pub fn skip_to(&self, recovery: Recovery) {
        self.put_into_place(recovery, |groups, before, next| {
            Swapped::Further(groups.skip(before, next.visible))
        });
    }

    /// Replaces the state. `move_groups` gets the revision of the former one, and returns the groups to be woken.
    fn put_into_place(&self, recovery: Recovery, move_groups: impl FnOnce(&mut Groups, i64, &State) -> Swapped) {
        let mut next = recovery.into_state();
        let mut state = self.state.write();
        next.generation = state.generation + 1;
        let mut groups = std::mem::take(&mut state.groups);
        let moved = move_groups(&mut groups, state.visible, &next);
        next.groups = groups;
        let former = std::mem::replace(&mut *state, next);
        self.swapped(state, moved);
        // Freeing millions of keys takes a while.
        drop(former);
    }
}

// === impl State ===

impl State {
    /// See [`Store::floor`].
    pub(super) fn floor(&self) -> i64 {
        self.compacted.max(1) + i64::from(self.partial)
    }

    /// The first revision from which a watch sees everything; at most 0 if nothing was compacted. The first revision of a
    /// state from lists is incomplete.
    pub(super) fn first_watched(&self) -> i64 {
        self.compacted + i64::from(self.partial)
    }

    /// Writes the history of `revision`, the store's revision and the first one of its history. The caller has compared
    /// the events.
    fn complete(&mut self, revision: i64, events: &[Followed]) {
        let last = last_of_each_key(events);
        let mut changes = Vec::with_capacity(events.len());
        for (sub, (at, event)) in (0..).zip(events.iter().enumerate()) {
            let kv = event.kv.clone().with_sub(sub);
            let key = kv.key();
            let place = self.index.place(key);
            match event.kind {
                // A later event of the revision has replaced this one, and reads cannot see it.
                _ if last.get(key) != Some(&at) => {}
                EventKind::Put => self.index.renumber(place, sub),
                EventKind::Delete => {
                    self.bytes += kv.as_bytes().len();
                    self.index.push_at(place, kv.clone());
                }
            }
            changes.push(kv);
        }
        self.log = Log::new(revision);
        self.log.push(revision, changes);
        self.partial = false;
    }
}

/// For each key, the place of its last event.
fn last_of_each_key(events: &[Followed]) -> HashMap<&[u8], usize> {
    events
        .iter()
        .enumerate()
        .map(|(at, event)| (event.kv.key(), at))
        .collect()
}

fn events_of(state: &State, revision: i64) -> Option<Vec<Followed>> {
    if revision < state.floor() {
        return None;
    }
    let batch = state
        .visible_since(revision)
        .next()
        .filter(|b| b.revision == revision)?;
    Some(batch.changes().map(Followed::from).collect())
}

impl From<&Event> for Followed {
    fn from(event: &Event) -> Self {
        Self {
            kind: event.kind,
            kv: event.kv.clone(),
        }
    }
}

impl From<&Kv> for Followed {
    fn from(kv: &Kv) -> Self {
        Self::from(&Event::from(kv.clone()))
    }
}

/// Everything that must hold before a revision may change anything.
fn check(state: &State, revision: i64, events: &[Followed]) -> Result<(), Divergence> {
    if revision != state.current + 1 {
        let (found, current) = (revision, state.current);
        return Err(Divergence::Gap { found, current });
    }
    if events.is_empty() {
        return Err(Divergence::Empty { revision });
    }
    // What earlier events of the revision have left.
    let mut changed: HashMap<&[u8], Live> = HashMap::new();
    for event in events {
        let key = event.kv.key();
        let before = changed.get(key).copied().unwrap_or_else(|| {
            let live = state.index.get(key).and_then(|history| history.live());
            live.map(|kv| (kv.fields().version, kv.fields().create_revision))
        });
        let after = follows(before, revision, event)?;
        if events.len() > 1 {
            changed.insert(key, after);
        }
    }
    Ok(())
}

/// What an event leaves of its key, of which `before` was there.
fn follows(before: Live, revision: i64, event: &Followed) -> Result<Live, Divergence> {
    let fields = event.kv.fields();
    let key = || shown(fields.key);
    if fields.key.is_empty() || fields.mod_revision != revision {
        let key = key();
        return Err(Divergence::Malformed { revision, key });
    }
    match event.kind {
        EventKind::Delete => {
            let tombstone = Fields {
                key: fields.key,
                mod_revision: revision,
                ..Fields::default()
            };
            match before {
                _ if fields != tombstone => Err(Divergence::Malformed { revision, key: key() }),
                None => Err(Divergence::Absent { revision, key: key() }),
                Some(_) => Ok(None),
            }
        }
        EventKind::Put => {
            let (version, created) = before.unwrap_or((0, revision));
            let next = (version + 1, created);
            let found = (fields.version, fields.create_revision);
            if found == next {
                return Ok(Some(next));
            }
            Err(Divergence::Version {
                revision,
                key: key(),
                found: found.0,
                found_created: found.1,
                expected: next.0,
                expected_created: next.1,
            })
        }
    }
}

pub(super) fn shown(key: &[u8]) -> String {
    let cut = &key[..key.len().min(SHOWN)];
    let more = if cut.len() < key.len() { "…" } else { "" };
    format!("\"{}\"{more}", cut.escape_ascii())
}

fn compare(state: &State, revision: i64, theirs: &[Followed]) -> Compared {
    let is_partial = state.partial && revision == state.compacted;
    if (revision < state.floor() && !is_partial) || revision > state.visible {
        return Compared::Unknown;
    }
    let batch = state.visible_since(revision).next().filter(|b| b.revision == revision);
    let ours: Vec<Followed> = batch.iter().flat_map(|b| b.changes()).map(Followed::from).collect();
    if is_partial {
        // Lists know no order inside of a revision.
        return match by_key(left(&ours)) == by_key(left(theirs)) && !theirs.is_empty() {
            true => Compared::Part,
            false => Compared::Different,
        };
    }
    if revision <= 1 {
        return Compared::Unknown;
    }
    if ours == theirs {
        return Compared::Same;
    }
    // A compaction may have left nothing here.
    let is_part = ours.is_empty() || is_part(&ours, theirs) || is_part(theirs, &ours);
    match is_part && left(&ours) == left(theirs) {
        true => Compared::Part,
        false => Compared::Different,
    }
}

/// The events that a compaction to this very revision never removes: the last put of each key.
fn left(events: &[Followed]) -> Vec<&Followed> {
    let last = last_of_each_key(events);
    let stays = |(at, event): &(usize, &Followed)| event.kind == EventKind::Put && last.get(event.kv.key()) == Some(at);
    events
        .iter()
        .enumerate()
        .filter(stays)
        .map(|(_, event)| event)
        .collect()
}

fn by_key(mut events: Vec<&Followed>) -> Vec<&Followed> {
    events.sort_unstable_by(|a, b| a.kv.key().cmp(b.kv.key()));
    events
}

/// Whether `part` has some of the events of `whole`, at least one, in the same order.
fn is_part(part: &[Followed], whole: &[Followed]) -> bool {
    let mut rest = whole.iter();
    !part.is_empty() && part.iter().all(|event| rest.any(|other| other == event))
}
