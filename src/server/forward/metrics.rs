//! The figures of forwarding.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

/// What a replica counts about the calls that it forwards.
pub(in crate::server) struct Figures {
    /// Answers that were sent before their revision was here.
    pub(super) unheld: Counter,
    /// How long upstream takes for an answer.
    pub(super) seconds: Histogram,
}

impl Default for Figures {
    fn default() -> Self {
        Self {
            unheld: Counter::default(),
            // From half a millisecond to eight seconds.
            seconds: Histogram::new(exponential_buckets(0.0005, 2.0, 15)),
        }
    }
}

impl Figures {
    pub(in crate::server) fn register(&self, registry: &mut Registry) {
        registry.register(
            "isthmus_follow_unheld",
            "Answers to forwarded calls that were sent before their revision was here",
            self.unheld.clone(),
        );
        registry.register(
            "isthmus_follow_forward_seconds",
            "Time until upstream answered a forwarded call",
            self.seconds.clone(),
        );
    }
}
