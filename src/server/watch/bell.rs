//! Tells a stream that something has happened that happens seldom.
//!
//! A stream waits for the stop of the server, for times and for requests, and is woken by events thousands of times in between.
//! Looking at each of them at each event would take as long as the event, and the stop has a lock that all streams share.

use futures::task::AtomicWaker;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};

/// What was polled with the waker of a bell, and has happened since, rings the bell and wakes the task.
pub(super) struct Bell {
    inner: Arc<Inner>,
    waker: Waker,
}

struct Inner {
    rung: AtomicBool,
    task: AtomicWaker,
}

impl Wake for Inner {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.rung.store(true, Ordering::Release);
        self.task.wake();
    }
}

impl Bell {
    /// A bell that has rung, since nothing was looked at yet.
    pub(super) fn new() -> Self {
        let inner = Arc::new(Inner {
            rung: AtomicBool::new(true),
            task: AtomicWaker::new(),
        });
        Self {
            waker: Arc::clone(&inner).into(),
            inner,
        }
    }

    /// What everything that may ring the bell is polled with.
    pub(super) fn waker(&self) -> Waker {
        self.waker.clone()
    }

    /// Whether the bell has rung since everything was looked at.
    pub(super) fn has_rung(&self) -> bool {
        self.inner.rung.load(Ordering::Acquire)
    }

    /// Lets the task itself, which is not woken, look at everything again.
    pub(super) fn look_again(&self) {
        self.inner.rung.store(true, Ordering::Release);
    }

    /// Whether everything is to be looked at now. The task is woken when the bell rings next.
    pub(super) fn heard(&self, cx: &Context<'_>) -> bool {
        self.inner.task.register(cx.waker());
        self.inner.rung.swap(false, Ordering::AcqRel)
    }

    /// Passes on what was found. Once something is, the rest was not looked at.
    pub(super) fn found<T>(&self, found: Poll<T>) -> Poll<T> {
        if found.is_ready() {
            self.look_again();
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicUsize;

    #[derive(Default)]
    struct Task(AtomicUsize);

    impl Wake for Task {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn a_bell_is_heard_once_and_wakes_the_task() {
        let bell = Bell::new();
        let task = Arc::<Task>::default();
        let waker = Arc::clone(&task).into();
        let cx = Context::from_waker(&waker);
        assert!(bell.heard(&cx), "nothing was looked at yet");
        assert!(!bell.heard(&cx) && !bell.has_rung());
        bell.waker().wake();
        assert_eq!(task.0.load(Ordering::Relaxed), 1);
        assert!(bell.has_rung() && bell.heard(&cx) && !bell.has_rung());
        assert!(bell.found(Poll::Ready(())).is_ready());
        assert!(bell.heard(&cx), "the rest was not looked at");
        assert!(bell.found(Poll::<()>::Pending).is_pending());
        assert!(!bell.has_rung());
    }
}
