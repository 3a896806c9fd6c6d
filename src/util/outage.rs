//! A dependency (the store, the Kubernetes API) that does not work at the moment.

use std::time::Duration;
use tokio::time::Instant;

/// The duration and the reason of an outage.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outage {
    pub lasted: Duration,
    pub reason: String,
}

/// An [`Outage`] that is still going on.
#[derive(Clone, Debug)]
pub struct OngoingOutage {
    pub since: Instant,
    pub reason: String,
}

impl OngoingOutage {
    /// The outage with its duration so far.
    pub fn now(&self) -> Outage {
        Outage {
            lasted: self.since.elapsed(),
            reason: self.reason.clone(),
        }
    }
}
