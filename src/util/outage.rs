//! A dependency (the store, the Kubernetes API) that does not work at the moment.

use std::time::Duration;
use tokio::time::Instant;

/// For how long a dependency has not worked, and why.
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
    /// The outage as it is now.
    pub fn now(&self) -> Outage {
        Outage {
            lasted: self.since.elapsed(),
            reason: self.reason.clone(),
        }
    }
}
