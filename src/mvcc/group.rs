//! Groups of watchers: watchers with the same range and options share a group, which encodes each event once.
//!
//! Publishing a revision leaves one encoded frame in each interested group.
//! Members copy frames and neither filter nor encode. A group keeps frames only while a member may need them, and
//! within a bound. A member that falls behind the bound reads the revision log with the same filter instead, so a
//! slow watcher costs the other members nothing.

use super::frame::{FRAMES_MAX, Frame, View};
use super::range::KeyRange;
use bytes::Bytes;
use parking_lot::Mutex;
use std::any::Any;
use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

/// Bytes of frames up to which a group does not look for frames that no member needs.
const FRAMES_RELAXED: usize = 16 << 10;
/// Most bytes of frames that are joined for several members.
const JOINED_MAX: usize = 256 << 10;
/// Places for frames that a group may keep although it needs far fewer.
const FRAMES_SPARE: usize = 1024;

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

pub struct Group {
    pub(super) filter: WatchFilter,
    pub(super) state: Mutex<GroupState>,
    /// Whether the group waits for its members to be woken.
    dirty: AtomicBool,
    /// The group gathers events until this time, in nanoseconds of the clock of whoever wakes.
    due: AtomicU64,
    /// Dropped with the group.
    pub(super) attachment: OnceLock<Box<dyn Any + Send + Sync>>,
}

#[derive(Default)]
pub(super) struct GroupState {
    frames: VecDeque<Frame>,
    bytes: usize,
    /// What members read at present, if that is several frames.
    joined: Option<Joined>,
    /// Bytes of frames at which to look again for frames that every member has read.
    trim_at: usize,
    /// The group has the frames of every revision after this one.
    pub(super) complete_after: i64,
    /// Another state was put into place: the members are cancelled with this compact revision.
    pub(super) ended: Option<i64>,
    members: HashMap<u64, Member>,
}

/// The last frames of a group as one, until another frame follows or those have read it that had frames to read.
struct Joined {
    /// The revision of the first of these frames.
    first: i64,
    frame: Frame,
    /// Members that may still read them.
    readers: usize,
}

struct Member {
    /// The next revision that the member looks at.
    next: i64,
    wake: Arc<dyn Wake>,
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

    pub(super) fn view(&self) -> View {
        View {
            prev_kv: self.prev_kv,
            no_put: self.no_put,
            no_delete: self.no_delete,
        }
    }
}

// === impl Group ===

impl Group {
    /// A group without members and frames. Its frames begin after revision `current`.
    pub(super) fn new(filter: WatchFilter, current: i64) -> Self {
        let state = GroupState {
            complete_after: current,
            ..GroupState::default()
        };
        Self {
            filter,
            state: Mutex::new(state),
            dirty: AtomicBool::new(false),
            due: AtomicU64::new(0),
            attachment: OnceLock::new(),
        }
    }

    /// Notes that the members must be woken; returns false if they wait for that already.
    pub(super) fn mark_dirty(&self) -> bool {
        !self.dirty.swap(true, Ordering::AcqRel)
    }

    /// When the members may be woken again.
    pub(super) fn due(&self) -> u64 {
        self.due.load(Ordering::Relaxed)
    }

    pub(super) fn set_due(&self, at: u64) {
        self.due.store(at, Ordering::Relaxed);
    }

    /// The members that have something to take, which the caller wakes; and the number of all members.
    pub(super) fn to_wake(&self) -> (Vec<Arc<dyn Wake>>, usize) {
        self.dirty.store(false, Ordering::Release);
        let state = self.state.lock();
        let wakes = state.lagging(i64::MAX).map(|m| Arc::clone(&m.wake)).collect();
        (wakes, state.members())
    }

    /// The number of members.
    pub(super) fn members(&self) -> usize {
        self.state.lock().members()
    }

    /// Wakes every member.
    pub(super) fn wake_all(&self) {
        // Collect first: a commit may be waiting for the lock.
        let wakes: Vec<_> = {
            let state = self.state.lock();
            state.members.values().map(|m| Arc::clone(&m.wake)).collect()
        };
        wakes.iter().for_each(|wake| wake.wake());
    }
}

// === impl GroupState ===

impl GroupState {
    /// Frames from revision `next` on, up to `max` bytes but at least one; with the revision of the last. Members that
    /// read the same frames share the bytes.
    pub(super) fn read(&mut self, next: i64, max: usize) -> (Vec<Bytes>, Option<i64>) {
        let from = self.frames.partition_point(|f| f.revision < next);
        if self.frames.len() > from + 1
            && self.members.len() > 1
            && let Some(joined) = self.joined(from, max)
        {
            return joined;
        }
        let (mut out, mut last, mut bytes) = (Vec::new(), None, 0);
        for frame in self.frames.range(from..) {
            if !out.is_empty() && bytes + frame.bytes().len() > max {
                break;
            }
            bytes += frame.bytes().len();
            out.push(frame.bytes().clone());
            last = Some(frame.revision);
        }
        (out, last)
    }

    /// All frames from the place `from` on as one, if they take `max` bytes at most. A burst is read by one member after the
    /// other: each would otherwise count references to each frame.
    fn joined(&mut self, from: usize, max: usize) -> Option<(Vec<Bytes>, Option<i64>)> {
        let (first, last) = (self.frames.get(from)?.revision, self.frames.back()?.revision);
        let wanted = self.frames.range(from..).try_fold(0, |sum, frame| {
            let sum = sum + frame.bytes().len();
            (sum <= max.min(JOINED_MAX)).then_some(sum)
        })?;
        // Members that have taken the beginning of a burst already read the end of what the others read.
        if self.joined.as_ref().is_none_or(|joined| joined.first > first) {
            let readers = self
                .members
                .values()
                .filter(|m| m.next > self.complete_after && m.next <= last);
            let readers = readers.count();
            let frame = Frame::join(self.frames.range(from..))?;
            self.joined = Some(Joined { first, frame, readers });
        }
        let joined = self.joined.as_mut()?;
        let bytes = joined.frame.bytes();
        let bytes = bytes.slice(bytes.len() - wanted..);
        joined.readers = joined.readers.saturating_sub(1);
        if joined.readers == 0 {
            self.joined = None;
        }
        Some((vec![bytes], Some(last)))
    }

    /// The members that have events up to `revision`, or their cancellation, still to take.
    fn lagging(&self, revision: i64) -> impl Iterator<Item = &Member> {
        let frames = self.frames.partition_point(|f| f.revision <= revision);
        let last = frames.checked_sub(1).map(|at| self.frames[at].revision);
        let last = last.unwrap_or(0).max(self.complete_after.min(revision));
        let ended = self.ended.is_some();
        self.members.values().filter(move |m| ended || m.next <= last)
    }

    pub(super) fn has_after(&self, next: i64) -> bool {
        self.frames.back().is_some_and(|f| f.revision >= next)
    }

    pub(super) fn moved(&mut self, member: u64, next: i64) {
        if let Some(m) = self.members.get_mut(&member) {
            m.next = next;
        }
    }

    pub(super) fn push(&mut self, frame: Frame) {
        self.joined = None;
        self.bytes += frame.bytes().len();
        self.frames.push_back(frame);
        if self.bytes > self.trim_at.max(FRAMES_RELAXED) {
            self.trim();
            self.trim_at = (self.bytes * 2).min(FRAMES_MAX);
        }
    }

    /// Drops frames that every member has read, and further frames while there are too many bytes.
    fn trim(&mut self) {
        let needed = self.members.values().map(|m| m.next).min().unwrap_or(i64::MAX);
        let (mut n, mut bytes) = (0, self.bytes);
        for frame in &self.frames {
            if frame.revision >= needed && bytes <= FRAMES_MAX {
                break;
            }
            bytes -= frame.bytes().len();
            n += 1;
        }
        self.drop_first(n);
    }

    /// Drops the frames up to `revision`; returns their number.
    pub(super) fn drop_through(&mut self, revision: i64) -> usize {
        let n = self.frames.partition_point(|f| f.revision <= revision);
        self.drop_first(n);
        n
    }

    /// Goes without a frame for `revision`: the members read the log up to there.
    pub(super) fn skip(&mut self, revision: i64) -> usize {
        let n = self.frames.len();
        self.drop_first(n);
        let joined = self.members.values_mut().filter(|m| m.next > self.complete_after);
        joined.for_each(|m| m.next = m.next.max(revision));
        self.complete_after = revision;
        n
    }

    fn drop_first(&mut self, n: usize) {
        self.joined = None;
        let Some(last) = n.checked_sub(1).map(|at| self.frames[at].revision) else {
            return;
        };
        // A member that has read all frames before one has seen everything before the revision of that frame: the log
        // need not reach further back for that member.
        let joined = self.members.values_mut().filter(|m| m.next > self.complete_after);
        for member in joined.filter(|m| m.next <= last) {
            let at = self.frames.partition_point(|f| f.revision < member.next);
            member.next = self.frames[at].revision;
        }
        self.bytes -= self.frames.drain(..n).map(|f| f.bytes().len()).sum::<usize>();
        self.complete_after = last;
        if self.frames.capacity() > FRAMES_SPARE.max(4 * self.frames.len()) {
            self.frames.shrink_to(2 * self.frames.len());
        }
    }

    pub(super) fn join(&mut self, member: u64, next: i64, wake: Arc<dyn Wake>) {
        self.members.insert(member, Member { next, wake });
    }

    /// Removes a member; returns the number of those left. The last member takes the frames along: a group may live
    /// on for a while, until it was woken.
    pub(super) fn leave(&mut self, member: u64) -> usize {
        self.members.remove(&member);
        if self.members.is_empty() {
            self.clear();
        }
        self.members.len()
    }

    /// Cancels the members with this compact revision.
    pub(super) fn end(&mut self, compacted: i64) {
        self.clear();
        self.ended = Some(compacted);
    }

    /// Goes on in a later state, whose log may begin after the revision `before` of this one: all members read that log, up
    /// to `current`, from where they are.
    pub(super) fn skip_state(&mut self, before: i64, current: i64) {
        for member in self.members.values_mut().filter(|m| m.next > self.complete_after) {
            // A member that has read all frames before one has seen everything before the revision of that frame.
            let at = self.frames.partition_point(|f| f.revision < member.next);
            let seen = self.frames.get(at).map_or(before + 1, |frame| frame.revision);
            member.next = member.next.max(seen);
        }
        self.clear();
        self.complete_after = current;
    }

    /// Goes without frames.
    fn clear(&mut self) {
        (self.frames, self.bytes, self.joined) = (VecDeque::new(), 0, None);
    }

    /// The number of members.
    pub(super) fn members(&self) -> usize {
        self.members.len()
    }

    /// The number of members that have events up to `revision` still to take.
    pub(super) fn behind(&self, revision: i64) -> usize {
        self.lagging(revision).count()
    }

    /// The next revision of a member, as far as the group knows.
    pub(super) fn next_of(&self, member: u64) -> i64 {
        self.members.get(&member).map_or(0, |m| m.next)
    }
}
