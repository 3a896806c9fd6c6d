//! Durations as HDR histograms in microseconds, which can be stored and merged without loss.

use hdrhistogram::Histogram as Hdr;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::time::Duration;

/// The longest duration that is told apart, in microseconds: an hour.
const LONGEST: u64 = 3_600_000_000;
/// Significant digits.
const DIGITS: u8 = 3;

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Measure {
    /// From the moment the store's answer to a write came, or the write was sent if its event came first, to the event's
    /// arrival at an agent.
    CommitToDelivery,
    /// From the moment a write was sent to the event's arrival at an agent.
    SendToDelivery,
    /// From the request of a single change to its answer.
    Put,
    /// From the request of a transaction of many puts to its answer.
    Batch,
    /// From the moment a change was due to its request, or to the end of the outage that prevented it.
    WriteDelay,
    /// TCP, TLS and HTTP/2 of a connection.
    Connect,
    /// From the beginning of a connection until all its lists are read and all its watches live.
    Sync,
    /// One page of a list.
    Page,
    /// From the loss of a connection, or the beginning of a storm, until the agent is in sync again.
    Recovery,
    /// A ping of HTTP/2.
    Ping,
    /// From a heartbeat's arrival at the first agent to its arrival at another.
    HeartbeatSpread,
    /// From a heartbeat's time, in whole seconds, to its arrival: an upper bound of the latency.
    HeartbeatAge,
}

impl Measure {
    /// The name in reports.
    pub fn title(self) -> &'static str {
        match self {
            Self::CommitToDelivery => "commit to delivery",
            Self::SendToDelivery => "send to delivery",
            Self::Put => "write",
            Self::Batch => "write of a batch",
            Self::WriteDelay => "writers' delay",
            Self::Connect => "connect",
            Self::Sync => "connect to in sync",
            Self::Page => "page of a list",
            Self::Recovery => "loss to in sync",
            Self::Ping => "ping",
            Self::HeartbeatSpread => "heartbeat, first to other",
            Self::HeartbeatAge => "heartbeat, upper bound",
        }
    }
}

impl Measure {
    /// All measures.
    pub const ALL: [Self; 12] = [
        Self::CommitToDelivery,
        Self::SendToDelivery,
        Self::Put,
        Self::Batch,
        Self::WriteDelay,
        Self::Connect,
        Self::Sync,
        Self::Page,
        Self::Recovery,
        Self::Ping,
        Self::HeartbeatSpread,
        Self::HeartbeatAge,
    ];

    /// What the figure means, for people who see the report alone.
    pub fn meaning(self) -> &'static str {
        match self {
            Self::CommitToDelivery => {
                "From the arrival of the store's answer to a write to the arrival of its event at an agent. If the event came \
                 first, from the request: never less than the latency."
            }
            Self::SendToDelivery => "From the request of a write to the arrival of its event at an agent.",
            Self::Put => "From the request of a single change to its answer, attempts after lost answers included.",
            Self::Batch => "The same, of a transaction of many puts.",
            Self::WriteDelay => {
                "How much later than planned a change was sent. Changes that fell into an outage count with the time to its end."
            }
            Self::Connect => "TCP, TLS and HTTP/2 of a connection, with the aborted handshake that precedes it.",
            Self::Sync => {
                "From the beginning of a connection until all its lists were read and all its watches were confirmed."
            }
            Self::Page => "One Range request of a list.",
            Self::Recovery => {
                "From the loss of a connection, or the beginning of a storm, until the agent was in sync again: the time for which \
                 a node would have worked with its last state."
            }
            Self::Ping => "A ping of HTTP/2 and its answer. Seconds mean that the store is overloaded.",
            Self::HeartbeatSpread => "How much later than the first agent the others received the same heartbeat.",
            Self::HeartbeatAge => {
                "From the time in a heartbeat, which has whole seconds, to its arrival; contains the difference of the clocks."
            }
        }
    }
}

/// A histogram of durations.
#[derive(Clone, Debug, PartialEq)]
pub struct Histogram(Hdr<u64>);

impl Default for Histogram {
    fn default() -> Self {
        // Fails only for limits that make no histogram, and these are constants.
        let made = Hdr::new_with_bounds(1, LONGEST, DIGITS);
        Self(made.unwrap_or_else(|_| unreachable!("the limits are valid")))
    }
}

impl Histogram {
    pub fn record_nanos(&mut self, nanos: u64) {
        self.0.saturating_record((nanos / 1000).max(1));
    }

    pub fn add(&mut self, other: &Self) {
        // All histograms have the same limits.
        let _ = self.0.add(&other.0);
    }

    /// Takes away what was recorded before.
    pub fn subtract(&mut self, earlier: &Self) {
        // The earlier one is a part of this one, with the same limits.
        let _ = self.0.subtract(&earlier.0);
    }

    pub fn clear(&mut self) {
        self.0.reset();
    }

    pub fn count(&self) -> u64 {
        self.0.len()
    }

    /// The duration that a share of all durations does not exceed; `quantile` is from 0 to 1.
    pub fn at(&self, quantile: f64) -> Duration {
        Duration::from_micros(self.0.value_at_quantile(quantile))
    }

    pub fn max(&self) -> Duration {
        Duration::from_micros(self.0.max())
    }

    pub fn mean(&self) -> Duration {
        Duration::from_nanos((self.0.mean() * 1000.0) as u64)
    }
}

/// The recorded values with their counts: small, and exact within the histogram's digits.
impl Serialize for Histogram {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let recorded = self.0.iter_recorded();
        let pairs = recorded.map(|step| (step.value_iterated_to(), step.count_at_value()));
        serializer.collect_seq(pairs)
    }
}

impl<'de> Deserialize<'de> for Histogram {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut histogram = Self::default();
        for (micros, count) in Vec::<(u64, u64)>::deserialize(deserializer)? {
            histogram.0.saturating_record_n(micros.max(1), count);
        }
        Ok(histogram)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(millis: impl IntoIterator<Item = u64>) -> Histogram {
        let mut histogram = Histogram::default();
        millis.into_iter().for_each(|ms| histogram.record_nanos(ms * 1_000_000));
        histogram
    }

    #[test]
    fn merging_two_histograms_is_recording_everything_in_one() {
        let mut merged = of(1..=500);
        merged.add(&of(501..=1000));
        assert_eq!(merged, of(1..=1000));
        let near = |quantile: f64, millis: f64| {
            let found = merged.at(quantile).as_secs_f64() * 1000.0;
            assert!((found / millis - 1.0).abs() < 0.002, "{quantile}: {found}");
        };
        near(0.5, 500.0);
        near(0.99, 990.0);
        near(0.999, 999.0);
        near(1.0, 1000.0);
    }

    #[test]
    fn a_stored_histogram_is_read_back_with_the_same_quantiles() {
        let histogram = of([1, 1, 2, 500, 60_000]);
        let text = serde_json::to_string(&histogram).unwrap();
        assert!(text.len() < 100, "{text}");
        let read: Histogram = serde_json::from_str(&text).unwrap();
        assert_eq!((read.count(), read.max()), (5, histogram.max()));
        for quantile in [0.0, 0.5, 0.9, 1.0] {
            assert_eq!(read.at(quantile), histogram.at(quantile));
        }
        let empty: Histogram = serde_json::from_str("[]").unwrap();
        assert_eq!((empty.count(), empty.max()), (0, Duration::ZERO));
    }

    #[test]
    fn durations_outside_of_the_limits_count_as_the_limits() {
        let histogram = of([0, 86_400_000]);
        assert_eq!(histogram.count(), 2);
        assert!(histogram.max() >= Duration::from_secs(3600));
    }
}
