//! The groups whose members wait to be woken, and the revision up to which all members were woken.
//!
//! Every message to a client has a price, however many events it carries. So the events of a range that has many
//! watchers are *gathered*: a group that was quiet is woken at once, but not again before a while has passed. Times are
//! arguments, in nanoseconds since any fixed moment.

use super::group::Group;
use parking_lot::Mutex;
use std::sync::Arc;

/// How long the events of a group are gathered once its members were woken, in nanoseconds; by default not at all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Gathering {
    /// The longest time between two calls of a member's [`Wake`](super::Wake) while there are events.
    pub most: u64,
    /// The time for each member, about what a message costs, so that a group of few members hardly waits.
    pub per_member: u64,
}

/// The result of [`Store::wake_due_watchers`](super::Store::wake_due_watchers).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Woken {
    /// The number of groups whose members were woken.
    pub groups: usize,
    /// When the next group is due that gathers events, in nanoseconds.
    pub next: Option<u64>,
}

/// A group with frames of which its members were not told.
pub(super) struct Dirty {
    pub(super) group: Arc<Group>,
    /// The revision of the first of these frames; `i64::MAX` if the group has ended.
    pub(super) since: i64,
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
    /// The last published revision: the groups that want to see it are in `groups`, gather, or are being woken.
    published: i64,
    /// The last revision whose groups were all woken, up to date while `waits` or `groups` is not empty.
    woken: i64,
    /// Whether groups taken from the queue are being woken, or gather events.
    waits: bool,
    /// How many times the revisions have begun anew.
    generation: u64,
}

/// What only the caller that wakes uses.
#[derive(Default)]
struct Turn {
    /// Groups that gather events.
    gathering: Vec<Dirty>,
    /// When the first of them is due.
    next: Option<u64>,
    /// The generation of the revisions in `gathering`.
    generation: u64,
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

    /// Wakes the members of every group that is due at `now`. Calls with a time that goes backwards are answered late.
    pub(super) fn wake(&self, now: u64, gathering: Gathering) -> Woken {
        let mut turn = self.turn.lock();
        let (mut groups, revision, generation) = {
            let mut queue = self.queue.lock();
            queue.waits = true;
            (std::mem::take(&mut queue.groups), queue.published, queue.generation)
        };
        if std::mem::replace(&mut turn.generation, generation) != generation {
            turn.gathering.iter_mut().for_each(|dirty| dirty.since = i64::MAX);
        }
        if turn.next.is_some_and(|next| next <= now) {
            turn.next = None;
            groups.append(&mut turn.gathering);
        }
        let mut woken = 0;
        for Dirty { group, since } in groups {
            let due = group.due();
            if due > now {
                turn.next = Some(turn.next.map_or(due, |next| next.min(due)));
                turn.gathering.push(Dirty { group, since });
                continue;
            }
            let members = group.wake() as u64;
            let gather = gathering.per_member.saturating_mul(members).min(gathering.most);
            group.set_due(if gather == 0 { 0 } else { now.saturating_add(gather) });
            woken += 1;
        }
        let oldest = turn.gathering.iter().map(|dirty| dirty.since).min();
        let mut queue = self.queue.lock();
        queue.waits = oldest.is_some();
        // Otherwise the revisions have begun anew meanwhile.
        if queue.generation == generation {
            queue.woken = oldest.map_or(revision, |since| revision.min(since - 1));
        }
        Woken {
            groups: woken,
            next: turn.next,
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
