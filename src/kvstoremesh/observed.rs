//! What operators want to know of a remote cluster beside its state: how the state has changed, when the last change of a
//! key arrived, and how long changes take.

use super::cluster::{Cluster, Phase};
use super::propagation::{Arrival, Figures, Propagation};
use crate::model::probe::Probe;
use std::collections::VecDeque;
use std::sync::LazyLock;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::time::Instant;

/// Changes of the state that are remembered.
const CHANGES: usize = 20;

/// The zero of the clock that is never set.
static START: LazyLock<Instant> = LazyLock::new(Instant::now);

/// A change of the state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StateChange {
    pub at: SystemTime,
    pub phase: Phase,
    /// The error at that time.
    pub cause: Option<String>,
}

/// See the module's documentation.
#[derive(Clone, Debug, Default)]
pub struct Observed {
    /// Oldest first.
    changes: VecDeque<StateChange>,
    last_event: Option<SystemTime>,
    propagation: Propagation,
}

impl Observed {
    /// The cluster has another phase than before.
    pub(super) fn phase_changed(&mut self, cluster: &Cluster, at: SystemTime) {
        if self.changes.len() == CHANGES {
            self.changes.pop_front();
        }
        self.changes.push_back(StateChange {
            at,
            phase: cluster.phase(),
            cause: cluster.error().map(str::to_owned),
        });
    }

    /// A change of a key arrived.
    pub(super) fn saw_event(&mut self) {
        self.last_event = Some(SystemTime::now());
    }

    pub(super) fn saw_probe(&mut self, probe: &Probe) {
        self.propagation.probe(probe, arrival());
    }

    pub(super) fn saw_heartbeat(&mut self, value: &[u8]) {
        let written = std::str::from_utf8(value)
            .ok()
            .and_then(|text| text.parse::<jiff::Timestamp>().ok());
        if let Some(written) = written {
            self.propagation.heartbeat(written.as_second(), arrival());
        }
    }

    pub(super) fn round_trip(&mut self, took: Duration) {
        self.propagation.round_trip(took, START.elapsed());
    }

    /// The last changes of the state, newest first.
    pub fn changes(&self) -> impl Iterator<Item = &StateChange> {
        self.changes.iter().rev()
    }

    pub fn last_event(&self) -> Option<SystemTime> {
        self.last_event
    }

    pub fn propagation(&self) -> &Propagation {
        &self.propagation
    }

    /// The figures of the last minute, or of the last hour.
    pub fn figures(&self, minutes: u64) -> Option<Figures> {
        // The last whole minute counts, too, so that a new one does not begin with a single measurement.
        self.propagation.figures(START.elapsed(), minutes.max(2))
    }

    /// See [`Propagation::by_minute`].
    pub fn by_minute(&self) -> Vec<(u32, f64, f64)> {
        self.propagation.by_minute(START.elapsed())
    }

    pub fn shortest_round_trip(&self) -> Option<Duration> {
        self.propagation.shortest_round_trip(START.elapsed())
    }
}

fn arrival() -> Arrival {
    let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Arrival {
        at: START.elapsed(),
        unix_micros: i64::try_from(since_1970.as_micros()).unwrap_or(i64::MAX),
    }
}
