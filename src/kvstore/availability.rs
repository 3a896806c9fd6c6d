//! Whether a store answers, and since when it does not.

use super::Error;
use crate::util::outage::{OngoingOutage, Outage};
use std::time::Duration;
use tokio::time::Instant;

/// The end of a shorter outage is not logged.
const LOGGED_FROM: Duration = Duration::from_secs(5);

/// When a store answered last, and the outage since.
#[derive(Default)]
pub(super) struct Availability {
    answered_at: Option<Instant>,
    outage: Option<OngoingOutage>,
}

impl Availability {
    pub(super) fn answered(&mut self) {
        self.answered_at = Some(Instant::now());
        if let Some(outage) = self.outage.take()
            && outage.since.elapsed() > LOGGED_FROM
        {
            tracing::info!(secs = outage.since.elapsed().as_secs(), "the store answers again");
        }
    }

    pub(super) fn failed(&mut self, error: &Error) {
        // The outage counts from the last answer: the failed request has waited for its deadline.
        let since = self.answered_at.unwrap_or_else(Instant::now);
        let since = self.outage.take().map_or(since, |outage| outage.since);
        self.outage = Some(OngoingOutage {
            since,
            reason: error.to_string(),
        });
    }

    pub(super) fn answered_within(&self, time: Duration) -> bool {
        self.answered_at.is_some_and(|at| at.elapsed() < time)
    }

    pub(super) fn outage(&self) -> Option<Outage> {
        self.outage.as_ref().map(OngoingOutage::now)
    }
}
