//! What all agents and writers of a run share, and the phases that lead them.

use super::dial::Dialer;
use super::plan::Plan;
use super::tally::Tally;
use super::verify::State;
use std::sync::Arc;
use tokio::time::Instant;

/// The plan of a run, its connections and its counters.
pub struct Shared {
    pub plan: Plan,
    pub dialer: Dialer,
    pub tally: Tally,
}

/// What a run is doing.
#[derive(Clone, Debug)]
pub enum Phase {
    /// Writers write all keys once. There are no agents yet.
    Fill,
    /// Agents connect. Writers wait.
    Connect,
    /// Writers change keys.
    Live,
    /// As `Live`, after the storm with this number.
    Storm { number: u32, began: Instant },
    /// Writers end. Agents receive the last events.
    Quiet,
    /// Agents compare what they have with what was written.
    Verify(Arc<Written>),
    /// Everybody ends.
    End,
}

/// What has been written when the writers have ended.
#[derive(Debug)]
pub struct Written {
    /// The state of each scope of each cluster, and `None` where the store has not answered the last write, so that nobody
    /// knows the state; empty if nothing was written.
    pub states: Vec<Option<State>>,
    /// Agents that have not received everything by then are behind.
    pub deadline: Instant,
}
