//! Waiting for clusters, with lines that say what for.

use super::output::Output;
use std::fmt::Display;
use std::time::Duration;
use tokio::time::{Instant, sleep, sleep_until};

/// Time between two looks.
const PAUSE: Duration = Duration::from_secs(2);
/// Least time between two lines about the same condition.
const QUIET: Duration = Duration::from_secs(10);
/// The condition while requests fail.
const ANSWER: &str = "the Kubernetes API to answer";

/// The patience of one command: one deadline for all conditions that it waits for.
pub struct Waiting {
    started: Instant,
    deadline: Instant,
    /// The condition of the last line, and when it was printed.
    told: Option<(String, Instant)>,
    /// The failure of the last request, unless it succeeded.
    failure: Option<String>,
    timed_out: bool,
}

// === impl Waiting ===

impl Waiting {
    /// `limit` is the time for the whole wait.
    pub fn new(limit: Duration) -> Self {
        let started = Instant::now();
        Self {
            started,
            deadline: started + limit,
            told: None,
            failure: None,
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

    /// Prints the condition and why it is not met, and pauses. Returns false once the time is over.
    pub async fn pause(&mut self, what: &str, why: &str, output: &dyn Output) -> bool {
        if Instant::now() < self.deadline {
            self.tell(what, why, output);
        }
        self.rest().await
    }

    /// Makes a request until it succeeds or the time is over.
    pub async fn request<T, E: Display, F: Future<Output = Result<T, E>>>(
        &mut self,
        output: &dyn Output,
        request: impl Fn() -> F,
    ) -> Result<T, E> {
        loop {
            match request().await {
                Err(error) if self.retry(&error.to_string(), output).await => {}
                done => {
                    self.failure = None;
                    return done;
                }
            }
        }
    }

    /// Prints a failed request if it failed otherwise than the last one, and pauses. Returns false once the time is over.
    pub async fn retry(&mut self, failure: &str, output: &dyn Output) -> bool {
        if self.failure.as_deref() != Some(failure) {
            output.line(&format!("⚠️  {failure}; trying again"));
            self.failure = Some(failure.to_owned());
            self.told = Some((ANSWER.to_owned(), Instant::now()));
        }
        self.pause(ANSWER, "see above", output).await
    }

    /// Forgets the last failure: a request succeeded.
    pub fn succeeded(&mut self) {
        self.failure = None;
    }

    /// Prints how many pods have answered, if that takes long.
    pub fn report_progress(&mut self, some: usize, all: usize, output: &dyn Output) {
        if some < all && Instant::now() >= self.started + QUIET {
            self.tell("answers", &format!("{some} of {all} pods have answered"), output);
        }
    }

    /// Prints what is waited for, unless that was printed a moment ago.
    fn tell(&mut self, what: &str, why: &str, output: &dyn Output) {
        let now = Instant::now();
        let is_known = |(last, at): &(String, Instant)| last == what && now < *at + QUIET;
        if self.told.as_ref().is_some_and(is_known) {
            return;
        }
        self.told = Some((what.to_owned(), now));
        let secs = now.duration_since(self.started).as_secs();
        output.line(&format!("⌛ Waiting ({}) for {what}: {why}", go(secs)));
    }

    /// Pauses until the next look. No look begins so late that it could not end before the deadline.
    async fn rest(&mut self) -> bool {
        if Instant::now() + PAUSE > self.deadline {
            sleep_until(self.deadline).await;
            self.timed_out = true;
            return false;
        }
        sleep(PAUSE).await;
        true
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
    use std::sync::atomic::{AtomicU32, Ordering};

    #[tokio::test(start_paused = true)]
    async fn a_wait_is_told_at_once_and_then_every_ten_seconds_until_the_deadline() {
        let out = Recorded::default();
        let mut wait = Waiting::new(Duration::from_secs(21));
        let started = Instant::now();
        let mut looks = 1;
        while wait
            .pause("clusters to be connected", "2 nodes are not ready", &out)
            .await
        {
            looks += 1;
        }
        assert_eq!((looks, started.elapsed().as_secs()), (11, 21));
        assert!(wait.timed_out());
        let line = |at| format!("⌛ Waiting ({at}s) for clusters to be connected: 2 nodes are not ready");
        assert_eq!(out.lines(), [line(0), line(10), line(20)]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_failed_request_is_told_once_per_change_and_tried_again_until_the_deadline() {
        let out = Recorded::default();
        let mut wait = Waiting::new(Duration::from_secs(60));
        let tried = AtomicU32::new(0);
        let request = || async {
            match tried.fetch_add(1, Ordering::Relaxed) {
                at @ 0..8 => Err(format!("refused {}", at / 7)),
                at => Ok(at),
            }
        };
        assert_eq!(wait.request(&out, request).await, Ok(8));
        assert!(!wait.timed_out());
        let expected = [
            "⚠️  refused 0; trying again",
            "⌛ Waiting (10s) for the Kubernetes API to answer: see above",
            "⚠️  refused 1; trying again",
        ];
        assert_eq!(out.lines(), expected);
        let never = || async { Err::<(), _>("refused") };
        let mut wait = Waiting::new(Duration::from_secs(5));
        assert_eq!(wait.request(&out, never).await, Err("refused"));
        assert!(wait.timed_out());
    }

    #[tokio::test(start_paused = true)]
    async fn without_patience_there_is_one_look_and_no_line() {
        let out = Recorded::default();
        assert!(!Waiting::new(Duration::ZERO).pause("an address", "none", &out).await);
        assert!(out.lines().is_empty());
    }

    #[test]
    fn durations_are_gos() {
        assert_eq!([go(5), go(65), go(3605)], ["5s", "1m5s", "1h0m5s"]);
    }
}
