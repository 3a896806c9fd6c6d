//! Which streams of a connection have been woken. All streams are polled by the one task of their connection.

use futures::task::AtomicWaker;
use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Wake, Waker};

/// The woken streams of a connection.
#[derive(Debug, Default)]
pub(super) struct WakeSet {
    woken: Mutex<Woken>,
    task: AtomicWaker,
}

#[derive(Debug, Default)]
struct Woken {
    slots: Vec<u32>,
    /// Whether the task is being polled, and will look at `slots` before the end.
    polled: bool,
}

/// Wakes one slot for a stream. A slot is used by one stream after another; the waker of an ended stream wakes its
/// successor once for nothing.
#[derive(Debug)]
pub(super) struct SlotWaker {
    slot: u32,
    /// Whether the slot is among the woken ones.
    woken: AtomicBool,
    set: Arc<WakeSet>,
}

impl WakeSet {
    /// Notes that the connection is polled by this task.
    pub fn begin(&self, task: &Waker) {
        self.task.register(task);
        self.woken.lock().polled = true;
    }

    /// Notes the end of a poll. Returns whether slots were woken that were not taken.
    pub fn end(&self) -> bool {
        let mut woken = self.woken.lock();
        woken.polled = false;
        !woken.slots.is_empty()
    }

    /// Takes the woken slots into `slots`, which is empty.
    pub fn take(&self, slots: &mut Vec<u32>) {
        std::mem::swap(&mut self.woken.lock().slots, slots);
    }

    fn wake(&self, slot: u32) {
        let mut woken = self.woken.lock();
        woken.slots.push(slot);
        let polled = woken.polled;
        drop(woken);
        if !polled {
            self.task.wake();
        }
    }
}

impl SlotWaker {
    pub fn new(slot: usize, set: &Arc<WakeSet>) -> Arc<Self> {
        Arc::new(Self {
            slot: slot as u32,
            woken: AtomicBool::new(false),
            set: Arc::clone(set),
        })
    }

    /// To be called before the slot is polled: what happens from now on wakes it again.
    pub fn clear(&self) {
        self.woken.swap(false, Ordering::AcqRel);
    }
}

impl Wake for SlotWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if !self.woken.swap(true, Ordering::AcqRel) {
            self.set.wake(self.slot);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicUsize;

    #[test]
    fn a_slot_is_woken_once_until_it_is_polled() {
        let set = Arc::new(WakeSet::default());
        let slots: Vec<_> = (0..3).map(|slot| SlotWaker::new(slot, &set)).collect();
        let mut woken = vec![];
        for slot in [2, 0, 2] {
            slots[slot].wake_by_ref();
        }
        set.take(&mut woken);
        assert_eq!(woken, [2, 0]);
        slots[0].clear();
        woken.clear();
        for slot in [0, 2] {
            slots[slot].wake_by_ref();
        }
        set.take(&mut woken);
        assert_eq!(woken, [0], "the other was not polled");
    }

    #[test]
    fn the_task_is_woken_unless_it_is_being_polled() {
        #[derive(Default)]
        struct Count(AtomicUsize);
        impl Wake for Count {
            fn wake(self: Arc<Self>) {
                self.0.fetch_add(1, Ordering::Relaxed);
            }
        }
        let (set, count) = (Arc::new(WakeSet::default()), Arc::new(Count::default()));
        let woken = || count.0.load(Ordering::Relaxed);
        let slots: Vec<_> = (0..3).map(|slot| SlotWaker::new(slot, &set)).collect();
        set.begin(&Arc::clone(&count).into());
        slots[0].wake_by_ref();
        assert!(set.end(), "for the caller");
        set.take(&mut vec![]);
        assert_eq!(woken(), 0);
        set.begin(&Arc::clone(&count).into());
        assert!(!set.end());
        slots[1].wake_by_ref();
        assert_eq!(woken(), 1);
    }
}
