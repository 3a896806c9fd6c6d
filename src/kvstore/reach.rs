//! Whether a store answers, and since when it does not.

use super::Error;
use std::time::Duration;
use tokio::time::Instant;

/// What is over sooner is not worth a line in the log.
const HICCUP: Duration = Duration::from_secs(5);

/// When the store answered last.
#[derive(Default)]
pub(super) struct Reach {
    answered: Option<Instant>,
    /// Since when it has not, and what it says.
    trouble: Option<(Instant, String)>,
}

impl Reach {
    pub(super) fn answered(&mut self) {
        self.answered = Some(Instant::now());
        if let Some((since, _)) = self.trouble.take()
            && since.elapsed() > HICCUP
        {
            tracing::info!(secs = since.elapsed().as_secs(), "the store answers again");
        }
    }

    pub(super) fn failed(&mut self, error: &Error) {
        // Since it answered last: a request that got no answer was waited for.
        let since = self.answered.unwrap_or_else(Instant::now);
        let since = self.trouble.take().map_or(since, |(since, _)| since);
        self.trouble = Some((since, error.to_string()));
    }

    pub(super) fn answered_within(&self, time: Duration) -> bool {
        self.answered.is_some_and(|at| at.elapsed() < time)
    }

    /// For how long it has not, and what it says.
    pub(super) fn trouble(&self) -> Option<(Duration, String)> {
        let trouble = self.trouble.as_ref();
        trouble.map(|(since, error)| (since.elapsed(), error.clone()))
    }
}
