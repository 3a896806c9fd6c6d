//! All groups of a store: which groups want to see a revision, and what their frames take together.

use super::encoded::Kv;
use super::frame::{Body, Budget, FRAMES_MAX, Seen, View};
use super::group::{Group, Wake, WatchFilter};
use super::index::Index;
use super::log::Revision;
use super::waking::Dirty;
use crate::util::interval::IntervalMap;
use bytes::Bytes;
use smallvec::SmallVec;
use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

/// All groups of a store.
#[derive(Default)]
pub(super) struct Groups {
    by_filter: HashMap<WatchFilter, Arc<Group>>,
    by_key: HashMap<Bytes, Vec<Arc<Group>>>,
    by_range: IntervalMap<ById>,
    /// The number of the last member.
    members: u64,
    pub(super) budget: Budget,
}

/// A group compared by identity.
#[derive(Clone)]
struct ById(Arc<Group>);

impl PartialEq for ById {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

/// Makes the frames of one revision.
struct Publishing<'a> {
    revision: i64,
    changes: SmallVec<[&'a Kv; 4]>,
    /// Knows the key-values before the revision.
    index: &'a Index,
    /// Keys and places of the changes, in key order.
    events: SmallVec<[(&'a [u8], usize); 4]>,
    /// What was encoded so far. The events that a group sees are next to each other in key order.
    made: HashMap<(Range<usize>, View), Encoded>,
    budget: &'a mut Budget,
}

/// The events of a revision that some groups see.
#[derive(Clone)]
enum Encoded {
    /// The groups see no event.
    Nothing,
    Body(Arc<Body>),
    /// More bytes than frames may take.
    TooLong,
}

// === impl Groups ===

impl Groups {
    /// Adds a member that reads from revision `next`; returns its group and its number.
    pub(super) fn join(
        &mut self,
        filter: WatchFilter,
        current: i64,
        next: i64,
        wake: Arc<dyn Wake>,
    ) -> (Arc<Group>, u64) {
        let group = match self.by_filter.get(&filter) {
            Some(group) => Arc::clone(group),
            None => self.create(filter, current),
        };
        self.members += 1;
        group.state.lock().join(self.members, next, wake);
        (group, self.members)
    }

    /// Removes a member, and the group with its last one.
    pub(super) fn leave(&mut self, group: &Arc<Group>, member: u64) {
        if group.state.lock().leave(member) > 0 {
            return;
        }
        let filter = &group.filter;
        // The group of an older generation may have a successor.
        if self.by_filter.get(filter).is_some_and(|g| Arc::ptr_eq(g, group)) {
            self.by_filter.remove(filter);
        }
        if filter.range.is_single() {
            if let Some(groups) = self.by_key.get_mut(filter.range.start()) {
                groups.retain(|g| !Arc::ptr_eq(g, group));
                if groups.is_empty() {
                    self.by_key.remove(filter.range.start());
                }
            }
        } else {
            let (start, end) = filter.range.bounds();
            self.by_range.remove(start, end, &ById(Arc::clone(group)));
        }
    }

    fn create(&mut self, filter: WatchFilter, current: i64) -> Arc<Group> {
        let filter = WatchFilter {
            range: filter.range.detached(),
            ..filter
        };
        let group = Arc::new(Group::new(filter, current));
        let range = &group.filter.range;
        let (start, end) = range.bounds();
        if range.is_single() {
            self.by_key.entry(start.clone()).or_default().push(Arc::clone(&group));
        } else {
            self.by_range
                .insert(start.clone(), end.cloned(), ById(Arc::clone(&group)));
        }
        self.by_filter.insert(group.filter.clone(), Arc::clone(&group));
        group
    }

    /// Ends every group, as its events are of another past: the members are cancelled with the compact revision
    /// `compacted`. Returns the groups that do not wait to be woken already.
    pub(super) fn retire(&mut self, compacted: i64) -> Vec<Dirty> {
        self.by_key = HashMap::new();
        self.by_range = IntervalMap::default();
        self.budget.begin_anew();
        let mut ended = Vec::new();
        for group in std::mem::take(&mut self.by_filter).into_values() {
            group.state.lock().end(compacted);
            if group.mark_dirty() {
                ended.push(Dirty::new(group, i64::MAX));
            }
        }
        ended
    }

    /// Lets every group go on in a later state of the same past, of which `before` was the revision and `current` is: the
    /// members read the log, and those that need what is not in there are cancelled by that. Returns the groups that do not
    /// wait to be woken already.
    pub(super) fn skip(&mut self, before: i64, current: i64) -> Vec<Dirty> {
        self.budget.begin_anew();
        let mut moved = Vec::new();
        for group in self.by_filter.values() {
            group.state.lock().skip_state(before, current);
            if group.mark_dirty() {
                let group = Arc::clone(group);
                moved.push(Dirty::new(group, before + 1));
            }
        }
        moved
    }

    /// Leaves a frame of a revision in each interested group; appends to `dirty` the groups that do not wait to be woken
    /// already.
    pub(super) fn publish(&mut self, revision: Revision<'_>, index: &Index, dirty: &mut Vec<Dirty>) {
        if self.by_filter.is_empty() {
            return;
        }
        self.make_frames(revision, index, dirty);
        self.budget.made(revision.revision);
        if self.budget.is_exceeded() {
            let old = self.budget.old();
            let drop_old = |group: &Arc<Group>| group.state.lock().drop_through(old) as u64;
            self.budget.dropped += self.by_filter.values().map(drop_old).sum::<u64>();
        }
    }

    /// The number of watchers of `key` that have events up to `revision` still to take.
    pub(super) fn behind(&self, key: &[u8], revision: i64) -> usize {
        let of = |group: &Arc<Group>| group.state.lock().behind(revision);
        let mut behind: usize = self.by_key.get(key).into_iter().flatten().map(of).sum();
        self.by_range.containing(&[key], |group, _| behind += of(&group.0));
        behind
    }

    fn make_frames(&mut self, revision: Revision<'_>, index: &Index, dirty: &mut Vec<Dirty>) {
        let mut publishing = Publishing::new(revision, index, &mut self.budget);
        let keys: SmallVec<[&[u8]; 4]> = publishing.events.iter().map(|(key, _)| *key).collect();
        let mut publish = |group: &Arc<Group>, events: Range<usize>| {
            if publishing.publish(group, events) && group.mark_dirty() {
                dirty.push(Dirty::new(Arc::clone(group), revision.revision));
            }
        };
        self.by_range.containing(&keys, |group, of| publish(&group.0, of));
        if !self.by_key.is_empty() {
            let mut from = 0;
            for run in keys.chunk_by(|a, b| a == b) {
                let of = from..from + run.len();
                from = of.end;
                let groups = self.by_key.get(run[0]).into_iter().flatten();
                groups.for_each(|group| publish(group, of.clone()));
            }
        }
    }

    /// Every group, in no order.
    pub(super) fn all(&self) -> Vec<Arc<Group>> {
        self.by_filter.values().cloned().collect()
    }

    /// Number of watchers in all groups.
    pub(super) fn watchers(&self) -> usize {
        self.by_filter.values().map(|g| g.members()).sum()
    }
}

// === impl Publishing ===

impl<'a> Publishing<'a> {
    fn new(revision: Revision<'a>, index: &'a Index, budget: &'a mut Budget) -> Self {
        let changes: SmallVec<[&Kv; 4]> = revision.changes().collect();
        let events = changes.iter().enumerate();
        let mut events: SmallVec<[_; 4]> = events.map(|(at, kv)| (kv.key(), at)).collect();
        events.sort_unstable();
        Self {
            revision: revision.revision,
            changes,
            index,
            events,
            made: HashMap::new(),
            budget,
        }
    }

    /// Leaves a frame in `group`, in whose range are `events`; false if the group sees none of them.
    fn publish(&mut self, group: &Group, events: Range<usize>) -> bool {
        let revision = self.revision;
        match self.encoded(events, group.filter.view()) {
            Encoded::Nothing => return false,
            Encoded::Body(body) => group.state.lock().push(self.budget.frame(revision, &body)),
            Encoded::TooLong => self.budget.dropped += group.state.lock().skip(revision) as u64 + 1,
        }
        true
    }

    fn encoded(&mut self, events: Range<usize>, view: View) -> Encoded {
        if let Some(encoded) = self.made.get(&(events.clone(), view)) {
            return encoded.clone();
        }
        let mut places: SmallVec<[usize; 4]> = self.events[events.clone()].iter().map(|(_, at)| *at).collect();
        places.sort_unstable();
        let seen = |at: &usize| {
            let kv = self.changes[*at];
            let shows_prev = view.prev_kv && view.shows(kv);
            let prev = shows_prev.then(|| self.index.before(kv)).flatten();
            Seen { kv, prev }
        };
        let seen: SmallVec<[Seen<'_>; 4]> = places.iter().map(seen).collect();
        let passing = || seen.iter().copied();
        let encoded = match view.len(passing()) {
            0 => Encoded::Nothing,
            n if n > FRAMES_MAX || !self.budget.has_room(n) => Encoded::TooLong,
            _ => view
                .encode(passing)
                .map_or(Encoded::Nothing, |bytes| Encoded::Body(self.budget.body(bytes))),
        };
        self.made.insert((events, view), encoded.clone());
        encoded
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mvcc::tests::NoWake;
    use crate::mvcc::{KeyRange, RangeOptions, Store, Write};

    #[test]
    fn watchers_and_pages_do_not_keep_the_buffer_of_their_request() {
        let buffer = Bytes::from(b"a-c-".repeat(1 << 14));
        let ranges = [
            KeyRange::key(buffer.slice(0..1)),
            KeyRange::new(buffer.slice(0..1), buffer.slice(2..3)),
        ];
        let store = Store::new();
        let watch = |range: &KeyRange| store.watch(WatchFilter::new(range.clone()), 0, Arc::new(NoWake));
        let watchers: Vec<_> = ranges.iter().map(watch).collect();
        let puts = ["a", "b", "bb"].map(|key| Write::Put(key.into(), "v".into()));
        store.apply(&puts);
        let first = RangeOptions {
            limit: 1,
            ..RangeOptions::new(ranges[1].clone())
        };
        assert!(store.range(&first).unwrap().more);
        drop((ranges, first));
        assert!(buffer.is_unique());
        drop(watchers);
    }
}
