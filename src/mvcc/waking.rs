//! The groups whose members wait to be woken, and the revision up to which all members were woken.
//!
//! Every message to a client has a price, however many events it carries. So the events of a range that has many
//! watchers are *gathered*: a group that was quiet is woken at once, but not again before a while has passed. And the
//! members of a large group are woken in two parts: first a few, and a little later all others. Until then the rest of a
//! burst is committed, so that all but the first members take the whole burst at once. Times are arguments, in nanoseconds
//! since any fixed moment.

use super::group::{Group, Wake};
use parking_lot::Mutex;
use std::collections::VecDeque;
use std::sync::Arc;

/// How long the events of a group are gathered once its members were woken, in nanoseconds; by default not at all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Gathering {
    /// The longest time.
    pub most: u64,
    /// The time for each member, about what a message costs, so that a group of few members hardly waits.
    pub per_member: u64,
}

/// How many times the members of the first part the others are, for the first part to be given time.
const MANY: usize = 8;
/// This time, in nanoseconds: about what the messages to the members of the first part take. Most of the others are reached
/// later than this in any case.
const FIRST_PART: u64 = 1_000_000;

/// The result of [`Store::wake_due_watchers`](super::Store::wake_due_watchers).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Woken {
    /// The number of groups that were begun.
    pub groups: usize,
    /// When the next group, or the next part of one, is due, in nanoseconds.
    pub next: Option<u64>,
    /// Whether members that are due wait for the next call.
    pub more: bool,
}

/// A group with events of which its members were not told.
pub(super) struct Dirty {
    group: Arc<Group>,
    /// The first revision that may have such an event; `i64::MAX` if the group has ended.
    since: i64,
    /// Whether the group has gathered events.
    gathered: bool,
}

impl Dirty {
    pub(super) fn new(group: Arc<Group>, since: i64) -> Self {
        let gathered = false;
        Self { group, since, gathered }
    }
}

/// The groups to be woken once another state is put into place.
pub(super) enum Swapped {
    /// The groups have ended with the former state.
    Ended(Vec<Dirty>),
    /// The groups go on in the later state of the same past.
    Further(Vec<Dirty>),
}

/// Wakes the members of groups that have new frames.
pub(super) struct Waking {
    queue: Mutex<Queue>,
    /// Held while members are woken, so that of two callers none finds the queue empty while the other still wakes.
    turn: Mutex<Turn>,
}

struct Queue {
    /// Groups with new frames, since the queue was last taken.
    groups: Vec<Dirty>,
    /// The last published revision: the groups that want to see it are in `groups`, or in the turn of whoever wakes.
    published: i64,
    /// The last revision whose groups were all woken, up to date while `waits` or `groups` is not empty.
    woken: i64,
    /// Whether groups taken from the queue are being woken, wait for that, or gather events.
    waits: bool,
    /// How many times the revisions have begun anew.
    generation: u64,
}

/// What only the caller that wakes uses.
#[derive(Default)]
struct Turn {
    /// Groups that were taken from the queue and not looked at.
    pending: VecDeque<Dirty>,
    /// Large groups that wait for the one that is being woken.
    large: VecDeque<Dirty>,
    /// The group of which the first members were woken.
    parts: Option<Parts>,
    /// Groups that gather events.
    gathering: Vec<Dirty>,
    /// When the first of them is due.
    next: Option<u64>,
    /// The generation of the revisions in the other fields.
    generation: u64,
}

/// A group whose members are being woken.
struct Parts {
    dirty: Dirty,
    wakes: std::vec::IntoIter<Arc<dyn Wake>>,
    /// Whether some members were woken.
    begun: bool,
    /// When the others are due.
    due: u64,
    /// How long the group gathers events once all members were woken.
    gather: u64,
}

impl Parts {
    fn new(dirty: Dirty, gathering: Gathering) -> Self {
        let (wakes, members) = dirty.group.to_wake();
        Self {
            dirty,
            wakes: wakes.into_iter(),
            begun: false,
            due: 0,
            gather: gathering.per_member.saturating_mul(members as u64).min(gathering.most),
        }
    }

    /// Wakes the next members; returns whether these were the last.
    fn wake(&mut self, now: u64, members: usize) -> bool {
        self.wakes.by_ref().take(members).for_each(|wake| wake.wake());
        let over = self.wakes.len() == 0;
        // A group of which nobody had anything to take stays as quiet as it was.
        if over && (self.begun || members > 0) {
            let gathers = self.gather > 0;
            let due = if gathers { now.saturating_add(self.gather) } else { 0 };
            self.dirty.group.set_due(due);
        }
        over
    }
}

impl Turn {
    /// The revision of the first frame of which a member was not told; `None` if there is no such frame.
    fn oldest(&self) -> Option<i64> {
        let groups = self.gathering.iter().chain(&self.pending).chain(&self.large);
        let groups = groups.chain(self.parts.iter().map(|parts| &parts.dirty));
        groups.map(|dirty| dirty.since).min()
    }

    /// Keeps no revision back any more.
    fn forget_revisions(&mut self) {
        let groups = self
            .gathering
            .iter_mut()
            .chain(&mut self.pending)
            .chain(&mut self.large);
        let groups = groups.chain(self.parts.iter_mut().map(|parts| &mut parts.dirty));
        groups.for_each(|dirty| dirty.since = i64::MAX);
    }

    /// Returns a group that is due at `now`, and puts another one among those that gather events.
    fn take_due(&mut self, mut dirty: Dirty, now: u64) -> Option<Dirty> {
        let due = dirty.group.due();
        if due <= now {
            return Some(dirty);
        }
        dirty.gathered = true;
        self.next = Some(self.next.map_or(due, |next| next.min(due)));
        self.gathering.push(dirty);
        None
    }

    /// Wakes groups of up to `at_once` members, and then as many members of a larger one, or all others of one that was begun
    /// before; returns the number of groups that were begun.
    fn wake(&mut self, now: u64, gathering: Gathering, at_once: usize) -> usize {
        let (mut groups, mut left) = (0, at_once);
        while left > 0
            && let Some(dirty) = self.pending.pop_front()
        {
            let members = dirty.group.members();
            if members > at_once {
                self.large.push_back(dirty);
            } else if let Some(dirty) = self.take_due(dirty, now) {
                let mut parts = Parts::new(dirty, gathering);
                parts.wake(now, parts.wakes.len());
                left = left.saturating_sub(members);
                groups += 1;
            }
        }
        let mut left = at_once;
        while left > 0 {
            let Some(mut parts) = self.parts.take() else {
                let Some(dirty) = self.large.pop_front() else { break };
                // A group may have been woken, and gather events, since it was put there.
                self.parts = self.take_due(dirty, now).map(|dirty| Parts::new(dirty, gathering));
                groups += usize::from(self.parts.is_some());
                continue;
            };
            if parts.due > now {
                self.parts = Some(parts);
                break;
            }
            let members = match parts.begun {
                true => parts.wakes.len(),
                false => left.min(parts.wakes.len()),
            };
            left = left.saturating_sub(members);
            if !parts.wake(now, members) {
                let first = !std::mem::replace(&mut parts.begun, true);
                if first && !parts.dirty.gathered && parts.wakes.len() / MANY >= at_once {
                    parts.due = now.saturating_add(FIRST_PART);
                }
                self.parts = Some(parts);
            }
        }
        groups
    }

    /// Whether members wait that are due at `now`.
    fn has_more(&self, now: u64) -> bool {
        let parts = match &self.parts {
            Some(parts) => parts.due <= now,
            None => !self.large.is_empty(),
        };
        parts || !self.pending.is_empty()
    }

    /// When something is due that is not due at `now`.
    fn next(&self, now: u64) -> Option<u64> {
        let part = self.parts.as_ref().map(|parts| parts.due).filter(|due| *due > now);
        self.next.into_iter().chain(part).min()
    }
}

impl Waking {
    /// Nothing up to `revision` needs waking.
    pub(super) fn new(revision: i64) -> Self {
        let queue = Queue {
            groups: Vec::new(),
            published: revision,
            woken: revision,
            waits: false,
            generation: 0,
        };
        Self {
            queue: Mutex::new(queue),
            turn: Mutex::default(),
        }
    }

    /// Adds the groups with new frames, once everything up to `revision` is published. The caller holds the store's
    /// lock, so that the calls are in the order of revisions.
    pub(super) fn add(&self, revision: i64, groups: Vec<Dirty>) {
        let mut queue = self.queue.lock();
        queue.woken = queue.woken();
        queue.published = revision;
        match queue.groups.is_empty() {
            true => queue.groups = groups,
            false => queue.groups.extend(groups),
        }
    }

    /// Begins anew at `revision`, when another state is put into place whose watchers are all still to come. The groups of
    /// the former state are still woken, with `ended`, but keep no revision back. The caller holds the store's lock.
    pub(super) fn restart(&self, revision: i64, ended: Vec<Dirty>) {
        let mut queue = self.queue.lock();
        queue.generation += 1;
        (queue.published, queue.woken) = (revision, revision);
        queue.groups.iter_mut().for_each(|dirty| dirty.since = i64::MAX);
        queue.groups.extend(ended);
    }

    /// Wakes members of the groups that are due at `now`: small groups of about `at_once` members, and as many members of a
    /// larger group or all others of one that was begun before. What is left waits for the next call.
    /// Calls with a time that goes backwards are answered late.
    pub(super) fn wake(&self, now: u64, gathering: Gathering, at_once: usize) -> Woken {
        let mut turn = self.turn.lock();
        let (groups, revision, generation) = {
            let mut queue = self.queue.lock();
            queue.waits = true;
            (std::mem::take(&mut queue.groups), queue.published, queue.generation)
        };
        if std::mem::replace(&mut turn.generation, generation) != generation {
            turn.forget_revisions();
        }
        turn.pending.extend(groups);
        if turn.next.is_some_and(|next| next <= now) {
            turn.next = None;
            let due = std::mem::take(&mut turn.gathering);
            turn.pending.extend(due);
        }
        let groups = turn.wake(now, gathering, at_once);
        let oldest = turn.oldest();
        let mut queue = self.queue.lock();
        queue.waits = oldest.is_some();
        // Otherwise the revisions have begun anew meanwhile.
        if queue.generation == generation {
            queue.woken = oldest.map_or(revision, |since| revision.min(since - 1));
        }
        Woken {
            groups,
            next: turn.next(now),
            more: turn.has_more(now),
        }
    }

    /// See [`Store::woken`](super::Store::woken).
    pub(super) fn woken(&self) -> i64 {
        self.queue.lock().woken()
    }
}

impl Queue {
    fn woken(&self) -> i64 {
        match self.groups.is_empty() && !self.waits {
            true => self.published,
            false => self.woken,
        }
    }
}
