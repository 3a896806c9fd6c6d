//! Moves clients to other servers of the same store: over time when this one is about to stop, so that the others are not
//! overrun; and when a connection has reached its age, so that a server that was added gets its share.
//!
//! A client is moved by GOAWAY: its next call takes another connection, and its watches end with an error after which clients
//! resume them there.

use crate::util::metrics::Labels;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;
use rand::RngExt;
use std::time::Duration;
use tokio::time::Instant;

/// The shortest life of a connection, as a part of the longest: connections that were made together do not end together.
const SHORTEST_LIFE: f64 = 0.5;

/// Why a client is moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Why {
    /// The connection has reached its age.
    Age,
    /// The server is about to stop.
    Stop,
}

/// Counts the clients that were moved.
#[derive(Default)]
pub(super) struct Moves(Family<Labels, Counter>);

impl Why {
    const fn label(self) -> &'static str {
        match self {
            Self::Age => "age",
            Self::Stop => "stop",
        }
    }
}

impl Moves {
    fn counter(&self, why: Why) -> impl std::ops::Deref<Target = Counter> {
        self.0.get_or_create(&vec![("why", why.label().to_owned())])
    }

    /// Registers the counters, at zero.
    pub(super) fn register(&self, registry: &mut Registry) {
        for why in [Why::Age, Why::Stop] {
            drop(self.counter(why));
        }
        registry.register(
            "isthmus_server_moves",
            "Connections whose client was asked to connect elsewhere, by reason: age (--max-connection-age) or stop \
             (--drain-time)",
            Family::clone(&self.0),
        );
    }

    pub(super) fn note(&self, why: Why, count: usize) {
        self.counter(why).inc_by(u64::try_from(count).unwrap_or(u64::MAX));
    }

    #[cfg(test)]
    pub(super) fn count(&self, why: Why) -> u64 {
        self.counter(why).get()
    }
}

/// When a connection that begins now is old, if connections live for `longest`.
pub(super) fn old_at(longest: Option<Duration>) -> Option<Instant> {
    let life = longest?.mul_f64(rand::rng().random_range(SHORTEST_LIFE..=1.0));
    Instant::now().checked_add(life)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn connections_of_one_moment_do_not_reach_their_age_together() {
        assert_eq!(old_at(None), None);
        let longest = Duration::from_secs(1000);
        let ages: Vec<_> = (0..1000)
            .filter_map(|_| Some(old_at(Some(longest))?.duration_since(Instant::now())))
            .collect();
        let early = ages.iter().filter(|age| **age < longest.mul_f64(0.75)).count();
        assert!(ages.iter().all(|age| (longest / 2..=longest).contains(age)));
        assert!((350..650).contains(&early), "{early} of 1000 in the first half");
    }
}
