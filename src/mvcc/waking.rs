//! The groups whose members wait to be woken, and the revision up to which all members were woken.

use super::group::Group;
use parking_lot::Mutex;
use std::sync::Arc;

/// Wakes the members of groups that have new frames.
pub(super) struct Waking {
    queue: Mutex<Queue>,
    /// Held while members are woken, so that of two callers none finds the queue empty while the other still wakes.
    turn: Mutex<()>,
}

struct Queue {
    /// Groups with new frames, since the queue was last taken.
    groups: Vec<Arc<Group>>,
    /// The last published revision: the groups that want to see it are in `groups`, or are being woken.
    published: i64,
    /// The last revision whose groups were all woken, up to date while `groups` is not empty or is being woken.
    woken: i64,
    /// Whether groups taken from the queue are being woken.
    busy: bool,
}

impl Waking {
    /// Nothing up to `revision` needs waking.
    pub(super) fn new(revision: i64) -> Self {
        let queue = Queue {
            groups: Vec::new(),
            published: revision,
            woken: revision,
            busy: false,
        };
        Self {
            queue: Mutex::new(queue),
            turn: Mutex::default(),
        }
    }

    /// Adds the groups with new frames, once everything up to `revision` is published. The caller holds the store's
    /// lock, so that the calls are in the order of revisions.
    pub(super) fn add(&self, revision: i64, groups: Vec<Arc<Group>>) {
        let mut queue = self.queue.lock();
        queue.woken = queue.woken();
        queue.published = revision;
        match queue.groups.is_empty() {
            true => queue.groups = groups,
            false => queue.groups.extend(groups),
        }
    }

    /// Wakes the members of every group in the queue; returns the number of groups.
    pub(super) fn wake(&self) -> usize {
        let _turn = self.turn.lock();
        let (groups, revision) = {
            let mut queue = self.queue.lock();
            queue.busy = true;
            (std::mem::take(&mut queue.groups), queue.published)
        };
        for group in &groups {
            group.wake();
        }
        let mut queue = self.queue.lock();
        (queue.busy, queue.woken) = (false, revision);
        groups.len()
    }

    /// See [`Store::woken`](super::Store::woken).
    pub(super) fn woken(&self) -> i64 {
        self.queue.lock().woken()
    }
}

impl Queue {
    fn woken(&self) -> i64 {
        match self.groups.is_empty() && !self.busy {
            true => self.published,
            false => self.woken,
        }
    }
}
