//! Waits for conditions, and says what for.

use crate::mesh::output::Output;
use std::time::Duration;
use tokio::time::{Instant, sleep, sleep_until};

/// Time between two looks.
const PAUSE: Duration = Duration::from_secs(2);
/// Time between two lines about the same wait.
const QUIET: Duration = Duration::from_secs(10);

/// The patience of one command: one deadline for everything.
pub struct Wait<'a> {
    out: &'a dyn Output,
    is_patient: bool,
    started: Instant,
    deadline: Instant,
    /// The wait of the last line, and when it was printed.
    told: Option<(&'static str, Instant)>,
    timed_out: bool,
}

// === impl Wait ===

impl<'a> Wait<'a> {
    /// `is_patient` says whether to wait at all; `limit` is the time for the whole command.
    pub fn new(out: &'a dyn Output, is_patient: bool, limit: Duration) -> Self {
        let started = Instant::now();
        Self {
            out,
            is_patient,
            started,
            deadline: started + limit,
            told: None,
            timed_out: false,
        }
    }

    pub fn deadline(&self) -> Instant {
        self.deadline
    }

    /// Whether the deadline ended a wait.
    pub fn timed_out(&self) -> bool {
        self.timed_out
    }

    /// Pauses before the next look, because of `why`. Returns whether there is one.
    pub async fn again(&mut self, what: &'static str, why: &str) -> bool {
        if !self.is_patient {
            return false;
        }
        self.tell(what, why);
        if Instant::now() + PAUSE > self.deadline {
            sleep_until(self.deadline).await;
            self.timed_out = true;
            return false;
        }
        sleep(PAUSE).await;
        true
    }

    /// Prints how many pods have answered, if that takes long.
    pub fn report_progress(&mut self, some: usize, all: usize) {
        if some < all && Instant::now() >= self.started + QUIET {
            self.tell("answers", &format!("{some} of {all} pods have answered"));
        }
    }

    /// Prints what is waited for, unless that was printed a moment ago.
    pub fn tell(&mut self, what: &'static str, why: &str) {
        let now = Instant::now();
        if self.told.is_some_and(|(last, at)| last == what && now < at + QUIET) {
            return;
        }
        self.told = Some((what, now));
        let secs = now.duration_since(self.started).as_secs();
        self.out.line(&format!("⌛ Waiting ({}) for {what}: {why}", go(secs)));
    }
}

/// Whole seconds, as Go prints a duration.
fn go(secs: u64) -> String {
    match (secs / 3600, secs / 60 % 60, secs % 60) {
        (0, 0, s) => format!("{s}s"),
        (0, m, s) => format!("{m}m{s}s"),
        (h, m, s) => format!("{h}h{m}m{s}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mesh::output::Recorded;

    #[tokio::test(start_paused = true)]
    async fn a_wait_is_told_at_once_and_then_every_ten_seconds_until_the_deadline() {
        let out = Recorded::default();
        let mut wait = Wait::new(&out, true, Duration::from_secs(21));
        let started = Instant::now();
        let mut looks = 1;
        while wait.again("clusters to be connected", "2 nodes are not ready").await {
            looks += 1;
        }
        assert_eq!((looks, started.elapsed().as_secs()), (11, 21));
        assert!(wait.timed_out());
        let line = |at| format!("⌛ Waiting ({at}s) for clusters to be connected: 2 nodes are not ready");
        assert_eq!(out.lines(), [line(0), line(10), line(20)]);
    }

    #[tokio::test(start_paused = true)]
    async fn without_patience_there_is_one_look() {
        let out = Recorded::default();
        let mut wait = Wait::new(&out, false, Duration::from_secs(60));
        assert!(!wait.again("access information", "no Service").await);
        assert!(out.lines().is_empty() && !wait.timed_out());
    }

    #[test]
    fn durations_are_gos() {
        assert_eq!([go(5), go(65), go(3605)], ["5s", "1m5s", "1h0m5s"]);
    }
}
