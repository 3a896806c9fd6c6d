//! Rests between the steps of long work, so that whoever waits for a core gets it at once.
//!
//! A scheduler gives a thread a core for some milliseconds at a time. Where there are more threads with work than cores, a
//! thread that is woken waits until the one before it has used up its time, or rests. So work that takes longer than a
//! millisecond and is not urgent goes in steps, and rests for at least as long as it has worked while others have work: it takes
//! two to three times as long then, and what it delays waits for a step, and no longer than the work between two rests.

use std::sync::LazyLock;
use std::thread::available_parallelism;
use std::time::Duration;
use tokio::time::Instant;

/// The longest time of one step, as far as the work can be divided.
const STEP: Duration = Duration::from_micros(100);
/// Work of a task after which it rests. The timer of the runtime counts milliseconds.
const TASK_WORK: Duration = Duration::from_millis(1);
/// A turn of a runtime that has no other work takes less.
const EMPTY_TURN: Duration = Duration::from_micros(10);
/// Work of a thread after which it rests.
const THREAD_WORK: Duration = Duration::from_micros(250);
/// The longest rest: time in which others had the core is not told from work.
const REST_MAX: Duration = Duration::from_millis(5);

/// Whether all threads of the process share one core.
static ONE_CORE: LazyLock<bool> = LazyLock::new(|| available_parallelism().is_ok_and(|cores| cores.get() == 1));

/// The pace of a task that does much work on a thread of the runtime.
#[derive(Debug, Default)]
pub struct Pace {
    /// Work since the last rest, or since a rest would have been due.
    worked: Duration,
    /// Whether others had work in that time.
    disturbs: bool,
}

/// The pace of work on a thread that may block. A client waits for it, so it rests only where no other core is there for
/// everybody else.
#[derive(Debug)]
pub struct Rests {
    /// The end of the last rest; `None` if none is needed.
    since: Option<Instant>,
}

/// Says whether a step may go on, from its first question on.
pub fn within_a_step() -> impl FnMut() -> bool {
    let mut begun = None;
    move || begun.get_or_insert_with(Instant::now).elapsed() < STEP
}

// === impl Pace ===

impl Pace {
    /// Runs one step.
    pub fn step<T>(&mut self, work: impl FnOnce() -> T) -> T {
        let begun = Instant::now();
        let done = work();
        self.worked += begun.elapsed();
        done
    }

    /// Lets other tasks run, and other threads once a rest is due. To be called after each step.
    pub async fn rest(&mut self) {
        let is_due = self.worked >= TASK_WORK;
        if is_due && self.disturbs {
            let worked = std::mem::take(self).worked;
            return tokio::time::sleep(worked.min(REST_MAX)).await;
        }
        if is_due {
            *self = Self::default();
        }
        let begun = Instant::now();
        tokio::task::yield_now().await;
        // Whatever ran meanwhile may have woken a thread, which needs a core.
        self.disturbs |= begun.elapsed() >= EMPTY_TURN;
    }
}

// === impl Rests ===

impl Rests {
    /// Begins to work.
    pub fn begin() -> Self {
        Self {
            since: ONE_CORE.then(Instant::now),
        }
    }

    /// Blocks the thread for as long as it has worked, once a rest is due. To be called after each step, without a lock.
    pub fn rest(&mut self) {
        let Some(since) = &mut self.since else { return };
        let worked = since.elapsed();
        if worked < THREAD_WORK {
            return;
        }
        #[allow(clippy::disallowed_methods, reason = "this is no thread of the runtime")]
        std::thread::sleep(worked.min(REST_MAX));
        *since = Instant::now();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_task_rests_as_long_as_it_has_worked_while_others_have_work() {
        let begun = Instant::now();
        let mut pace = Pace::default();
        assert_eq!(pace.step(|| 7), 7);
        pace.rest().await;
        assert!(begun.elapsed().is_zero(), "there was no work");
        pace.worked = Duration::from_millis(3);
        pace.rest().await;
        assert!(begun.elapsed().is_zero(), "it disturbs nobody");
        (pace.worked, pace.disturbs) = (Duration::from_millis(3), true);
        pace.rest().await;
        let rested = begun.elapsed();
        assert!(rested >= Duration::from_millis(3), "{rested:?}");
        pace.rest().await;
        assert_eq!(begun.elapsed(), rested);
        (pace.worked, pace.disturbs) = (Duration::from_secs(1), true);
        pace.rest().await;
        assert!(begun.elapsed() < rested + 2 * REST_MAX, "the machine was busy");
    }

    #[test]
    fn a_thread_rests_as_long_as_it_has_worked() {
        let begun = Instant::now();
        let worked = Duration::from_millis(2);
        let mut rests = Rests {
            since: begun.checked_sub(worked),
        };
        rests.rest();
        assert!(begun.elapsed() >= worked);
        assert!(rests.since.is_some_and(|since| since > begun));
        let mut none = Rests { since: None };
        none.rest();
    }
}
