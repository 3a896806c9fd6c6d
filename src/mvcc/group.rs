//! Groups of watchers: watchers with the same range and options share a group, which encodes each event once.
//!
//! Publishing a revision finds the interested groups through an interval map, and leaves one encoded frame in each.
//! Members copy frames and neither filter nor encode. A group keeps frames only while a member may need them, and
//! within a bound. A member that falls behind the bound reads the revision log with the same filter instead, so a
//! slow watcher costs the other members nothing.

use super::encoded::{put_varint, varint_len};
use super::log::{Batch, Event, EventKind};
use super::range::KeyRange;
use crate::util::interval::IntervalMap;
use bytes::Bytes;
use parking_lot::Mutex;
use smallvec::SmallVec;
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Bytes of frames up to which a group does not look for frames that no member needs.
const FRAMES_RELAXED: usize = 16 << 10;
/// Most bytes of frames that a group keeps.
const FRAMES_MAX: usize = 4 << 20;

/// The events that a watcher sees. Watchers with equal filters share a group.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct WatchFilter {
    pub range: KeyRange,
    /// Attach the previous key-value.
    pub prev_kv: bool,
    /// Omit puts.
    pub no_put: bool,
    /// Omit deletes.
    pub no_delete: bool,
}

/// Wakes the owner of a watcher when its group has new frames. A stream has one for all of its watchers.
pub trait Wake: Send + Sync {
    /// Called outside of commits; often, and possibly without a new event.
    fn wake(&self);
}

/// The events of one revision that pass a group's filter, as encoded `WatchResponse.events` fields.
#[derive(Clone, Debug)]
pub(super) struct Frame {
    pub(super) revision: i64,
    pub(super) body: Bytes,
}

pub struct Group {
    pub(super) filter: WatchFilter,
    pub(super) state: Mutex<GroupState>,
    /// Whether the group waits for its members to be woken.
    dirty: AtomicBool,
}

#[derive(Default)]
pub(super) struct GroupState {
    frames: VecDeque<Frame>,
    bytes: usize,
    /// Bytes of frames at which to look again for frames that every member has read.
    trim_at: usize,
    /// The group has the frames of every revision after this one.
    pub(super) complete_after: i64,
    members: HashMap<u64, Member>,
}

struct Member {
    /// The next revision that the member looks at.
    next: i64,
    wake: Arc<dyn Wake>,
}

/// All groups of a store.
#[derive(Default)]
pub(super) struct Groups {
    by_filter: HashMap<WatchFilter, Arc<Group>>,
    by_key: HashMap<Bytes, Vec<Arc<Group>>>,
    by_range: IntervalMap<ById>,
    /// The number of the last member.
    members: u64,
}

/// A group compared by identity.
#[derive(Clone)]
struct ById(Arc<Group>);

impl PartialEq for ById {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

// === impl WatchFilter ===

impl WatchFilter {
    /// Puts and deletes in `range`, without previous values.
    pub fn new(range: KeyRange) -> Self {
        Self {
            range,
            prev_kv: false,
            no_put: false,
            no_delete: false,
        }
    }

    fn wants(&self, event: &Event) -> bool {
        match event.kind {
            EventKind::Put => !self.no_put,
            EventKind::Delete => !self.no_delete,
        }
    }

    /// The events of `batch` that pass the filter, encoded; `None` if no event passes. Revisions up to `compacted`
    /// have no previous key-values, because reads cannot see them any more.
    pub(super) fn encode(&self, batch: &Batch, compacted: i64) -> Option<Bytes> {
        let passing = batch.events.iter().filter(|e| self.range.contains(e.kv.key()));
        self.encode_events(passing, batch.revision > compacted)
    }

    fn encode_events<'a>(&self, events: impl Iterator<Item = &'a Event>, prev_visible: bool) -> Option<Bytes> {
        let mut body = Vec::new();
        for event in events.filter(|e| self.wants(e)) {
            encode_event(&mut body, event, self.prev_kv && prev_visible);
        }
        (!body.is_empty()).then(|| body.into())
    }
}

/// Appends `event` as one `WatchResponse.events` field (11).
fn encode_event(body: &mut Vec<u8>, event: &Event, with_prev: bool) {
    let field = |len: usize| 1 + varint_len(len as u64) + len;
    let kv = event.kv.as_bytes();
    let prev = event.prev.as_ref().filter(|_| with_prev).map(|p| p.as_bytes());
    let kind = if event.kind == EventKind::Delete { 2 } else { 0 };
    let len = kind + field(kv.len()) + prev.map_or(0, |p| field(p.len()));
    body.reserve(field(len));
    body.push(11 << 3 | 2);
    put_varint(body, len as u64);
    if kind > 0 {
        body.extend_from_slice(&[1 << 3, 1]);
    }
    for (tag, bytes) in [(2 << 3 | 2, Some(kv)), (3 << 3 | 2, prev)] {
        if let Some(bytes) = bytes {
            body.push(tag);
            put_varint(body, bytes.len() as u64);
            body.extend_from_slice(bytes);
        }
    }
}

// === impl Group ===

impl Group {
    /// Wakes every member.
    pub fn wake(&self) {
        self.dirty.store(false, Ordering::Release);
        // Collect first: a commit may be waiting for the lock.
        let wakes: Vec<_> = self
            .state
            .lock()
            .members
            .values()
            .map(|m| Arc::clone(&m.wake))
            .collect();
        wakes.iter().for_each(|wake| wake.wake());
    }
}

// === impl GroupState ===

impl GroupState {
    /// Frames from revision `next` on, up to `max` bytes but at least one; with the revision of the last.
    pub(super) fn read(&self, next: i64, max: usize) -> (Vec<Bytes>, Option<i64>) {
        let from = self.frames.partition_point(|f| f.revision < next);
        let (mut out, mut last, mut bytes) = (Vec::new(), None, 0);
        for frame in self.frames.range(from..) {
            if !out.is_empty() && bytes + frame.body.len() > max {
                break;
            }
            bytes += frame.body.len();
            out.push(frame.body.clone());
            last = Some(frame.revision);
        }
        (out, last)
    }

    pub(super) fn has_after(&self, next: i64) -> bool {
        self.frames.back().is_some_and(|f| f.revision >= next)
    }

    pub(super) fn moved(&mut self, member: u64, next: i64) {
        if let Some(m) = self.members.get_mut(&member) {
            m.next = next;
        }
    }

    fn push(&mut self, frame: Frame) {
        self.bytes += frame.body.len();
        self.frames.push_back(frame);
        if self.bytes > self.trim_at.max(FRAMES_RELAXED) {
            self.trim();
            self.trim_at = (self.bytes * 2).min(FRAMES_MAX);
        }
    }

    /// Drops frames that every member has read, and further frames while there are too many bytes.
    fn trim(&mut self) {
        let needed = self.members.values().map(|m| m.next).min().unwrap_or(i64::MAX);
        while let Some(frame) = self.frames.front() {
            let revision = frame.revision;
            if revision >= needed && self.bytes <= FRAMES_MAX {
                break;
            }
            // A member that has read all earlier frames has seen everything before this revision: the log need not
            // reach further back for that member.
            for member in self.members.values_mut().filter(|m| m.next > self.complete_after) {
                member.next = member.next.max(revision);
            }
            self.bytes -= frame.body.len();
            self.complete_after = revision;
            self.frames.pop_front();
        }
    }

    /// The next revision of a member, as far as the group knows.
    pub(super) fn next_of(&self, member: u64) -> i64 {
        self.members.get(&member).map_or(0, |m| m.next)
    }
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
        group.state.lock().members.insert(self.members, Member { next, wake });
        (group, self.members)
    }

    /// Removes a member, and the group with its last one.
    pub(super) fn leave(&mut self, group: &Arc<Group>, member: u64) {
        let mut state = group.state.lock();
        state.members.remove(&member);
        if !state.members.is_empty() {
            return;
        }
        drop(state);
        let filter = &group.filter;
        self.by_filter.remove(filter);
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
        let state = GroupState {
            complete_after: current,
            ..GroupState::default()
        };
        let group = Arc::new(Group {
            filter: filter.clone(),
            state: Mutex::new(state),
            dirty: AtomicBool::new(false),
        });
        let range = &filter.range;
        if range.is_single() {
            let key = Bytes::copy_from_slice(range.start());
            self.by_key.entry(key).or_default().push(Arc::clone(&group));
        } else {
            let (start, end) = range.bounds();
            self.by_range
                .insert(start.clone(), end.cloned(), ById(Arc::clone(&group)));
        }
        self.by_filter.insert(filter, Arc::clone(&group));
        group
    }

    /// Leaves a frame of `batch` in each interested group; appends to `dirty` the groups that do not wait to be woken
    /// already.
    pub(super) fn publish(&self, batch: &Batch, dirty: &mut Vec<Arc<Group>>) {
        let mut events: SmallVec<[(&[u8], usize); 4]> = (batch.events.iter().enumerate())
            .map(|(i, event)| (event.kv.key(), i))
            .collect();
        events.sort();
        let keys: SmallVec<[&[u8]; 4]> = events.iter().map(|(key, _)| *key).collect();
        let mut hits: Vec<(Arc<Group>, std::ops::Range<usize>)> = Vec::new();
        self.by_range
            .containing(&keys, |group, of| hits.push((Arc::clone(&group.0), of)));
        for run in (0..keys.len())
            .collect::<Vec<_>>()
            .chunk_by(|a, b| keys[*a] == keys[*b])
        {
            for group in self.by_key.get(keys[run[0]]).into_iter().flatten() {
                hits.push((Arc::clone(group), run[0]..run[0] + run.len()));
            }
        }
        for (group, of) in &hits {
            let mut of: Vec<usize> = events[of.clone()].iter().map(|(_, i)| *i).collect();
            of.sort_unstable();
            let events = of.iter().map(|i| &batch.events[*i]);
            let Some(body) = group.filter.encode_events(events, true) else {
                continue;
            };
            group.state.lock().push(Frame {
                revision: batch.revision,
                body,
            });
            if !group.dirty.swap(true, Ordering::AcqRel) {
                dirty.push(Arc::clone(group));
            }
        }
    }

    /// Number of watchers in all groups.
    pub(super) fn watchers(&self) -> usize {
        self.by_filter.values().map(|g| g.state.lock().members.len()).sum()
    }
}
