//! The groups whose members wait to be woken, and the revision up to which all members were woken.
//!
//! Every message to a client has a price, however many events it carries. So the events of a range that has many
//! watchers are *gathered*: a group that was quiet is woken at once, but not again before a while has passed. And of a
//! quiet group with very many members, only a few are woken at once, and all others a little later: the rest of a burst is
//! committed until then, so that all but the first members take the whole burst in one message. Times are arguments, in
//! nanoseconds since any fixed moment.

use super::group::{Group, Wake};
use parking_lot::Mutex;
use std::sync::Arc;

/// How long the events of a group are gathered once its members were woken, in nanoseconds; by default not at all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Gathering {
    /// The longest time.
    pub most: u64,
    /// The time for each member, about what a message costs, so that a group of few members hardly waits.
    pub per_member: u64,
}

impl Gathering {
    /// The time for a group of so many members, in nanoseconds.
    fn time(self, members: usize) -> u64 {
        self.per_member.saturating_mul(members as u64).min(self.most)
    }
}

/// A group has very many members if those that have something to take are this many times those that are woken first.
const MANY: usize = 8;
/// How long the others wait, in nanoseconds: about what the messages to the first members take. Most of the others are
/// reached later than this in any case.
const HEAD_START: u64 = 1_000_000;

/// The result of [`Store::wake_due_watchers`](super::Store::wake_due_watchers).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Woken {
    /// The number of groups that were due. A group of which some members are woken later counts once.
    pub groups: usize,
    /// When further members are due, in nanoseconds.
    pub next: Option<u64>,
}

/// A group with events of which its members were not told.
pub(super) struct Dirty {
    group: Arc<Group>,
    /// The first revision that may have such an event; `i64::MAX` if the group has ended.
    since: i64,
}

impl Dirty {
    pub(super) fn new(group: Arc<Group>, since: i64) -> Self {
        Self { group, since }
    }

    /// Whether the group gathers events no longer.
    fn is_due(&self, now: u64) -> bool {
        self.group.due() <= now
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
    /// Groups that gather events.
    gathering: Vec<Dirty>,
    /// Groups of which the first members were woken.
    begun: Vec<Begun>,
    /// The generation of the revisions in the other fields.
    generation: u64,
}

/// A group of which the first members were woken. The group is due when the others are.
struct Begun {
    dirty: Dirty,
    others: Vec<Arc<dyn Wake>>,
    /// The number of all members.
    members: usize,
}

impl Begun {
    /// From `now` on the group gathers events: the others are woken by the same call.
    fn gather(&self, now: u64, gathering: Gathering) {
        let due = match gathering.time(self.members) {
            0 => 0,
            time => now.saturating_add(time),
        };
        self.dirty.group.set_due(due);
    }
}

impl Turn {
    /// Groups with members that were not told of everything.
    fn groups(&mut self) -> impl Iterator<Item = &mut Dirty> {
        let begun = self.begun.iter_mut().map(|begun| &mut begun.dirty);
        self.gathering.iter_mut().chain(begun)
    }

    /// Wakes the members that are due: all those of groups of former calls, and of groups that are `dirty` since then only the
    /// `first` where they have very many. Groups that are not due gather events. Returns the number of groups that were due.
    fn wake(&mut self, dirty: Vec<Dirty>, now: u64, gathering: Gathering, first: usize) -> usize {
        let begun: Vec<_> = self.begun.extract_if(.., |begun| begun.dirty.is_due(now)).collect();
        begun.iter().for_each(|begun| begun.gather(now, gathering));
        let gathered: Vec<_> = self.gathering.extract_if(.., |dirty| dirty.is_due(now)).collect();
        let mut groups = gathered.len();
        // Quiet groups come first: the few members of a small one do not wait for the many of another.
        for dirty in dirty {
            if dirty.is_due(now) {
                groups += 1;
                self.begin(dirty, now, gathering, first);
            } else {
                self.gathering.push(dirty);
            }
        }
        for dirty in gathered {
            self.begin(dirty, now, gathering, usize::MAX);
        }
        for begun in begun {
            begun.others.iter().for_each(|wake| wake.wake());
        }
        groups
    }

    /// Wakes the members of a group, of very many only the `first`.
    fn begin(&mut self, dirty: Dirty, now: u64, gathering: Gathering, first: usize) {
        let (mut wakes, members) = dirty.group.to_wake();
        // A group of which nobody has anything to take stays as quiet as it was.
        if wakes.is_empty() {
            return;
        }
        let others = match gathering.time(members) > 0 && wakes.len() / MANY >= first {
            true => wakes.split_off(first),
            false => vec![],
        };
        wakes.iter().for_each(|wake| wake.wake());
        let begun = Begun { dirty, others, members };
        match begun.others.is_empty() {
            true => begun.gather(now, gathering),
            false => {
                begun.dirty.group.set_due(now.saturating_add(HEAD_START));
                self.begun.push(begun);
            }
        }
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

    /// Wakes the members of the groups that are due at `now`; of a quiet group with very many members only the `first`, and the
    /// others in a later call. Calls with a time that goes backwards are answered late.
    pub(super) fn wake(&self, now: u64, gathering: Gathering, first: usize) -> Woken {
        let mut turn = self.turn.lock();
        let (groups, revision, generation) = {
            let mut queue = self.queue.lock();
            queue.waits = true;
            (std::mem::take(&mut queue.groups), queue.published, queue.generation)
        };
        if std::mem::replace(&mut turn.generation, generation) != generation {
            turn.groups().for_each(|dirty| dirty.since = i64::MAX);
        }
        let groups = turn.wake(groups, now, gathering, first);
        let oldest = turn.groups().map(|dirty| dirty.since).min();
        let mut queue = self.queue.lock();
        queue.waits = oldest.is_some();
        // Otherwise the revisions have begun anew meanwhile.
        if queue.generation == generation {
            queue.woken = oldest.map_or(revision, |since| revision.min(since - 1));
        }
        Woken {
            groups,
            next: turn.groups().map(|dirty| dirty.group.due()).min(),
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
