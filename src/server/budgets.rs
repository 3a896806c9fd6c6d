//! Budgets: the most that one connection, one user and all clients together may make the server hold.
//!
//! A budget that is used up makes its own user wait, or refuses, or closes the connection at fault; see
//! docs/security.md for the effect of each. The defaults are at least ten times what the clients of a large mesh use.

use crate::util::descriptors;
use std::time::Duration;

/// Connections of a server that may open more files. An idle connection with TLS and six watches takes about 30 KiB.
const CONNECTIONS_MAX: usize = 65_536;

/// The limits of a server. All sizes are in bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Budgets {
    /// Open connections on all listeners of the server, unfinished handshakes included. When the budget is used up, a
    /// new connection replaces the oldest unfinished handshake or the connection that has been idle for longest.
    pub connections: usize,
    /// A client has to say hello, and to finish its handshake, within this time.
    pub handshake_timeout: Duration,
    /// A connection that has never made a call is closed after this time.
    pub first_call_timeout: Duration,
    /// A connection without calls is closed, gracefully, after this time.
    pub idle_timeout: Duration,
    /// The client of a connection of this age is asked to connect anew; `None` for never.
    pub connection_age: Option<Duration>,
    /// A message of a request has to be complete this long after its first byte, or the call ends.
    pub request_timeout: Duration,
    /// Requests of one connection that are incomplete or whose call has not ended.
    pub request_bytes: usize,
    /// Answers and events of one connection that the client has not taken yet.
    pub answer_bytes: usize,
    /// Long answers of all connections that clients have not taken yet. A longer single answer is refused.
    pub long_answer_bytes: usize,
    /// Watchers of one connection.
    pub watchers: usize,
    /// The key and the range end of a watch, together. Watched keys stay in memory, and are compared at each write.
    pub watch_key_bytes: usize,
    /// Distinct ranges that one user watches, each with its keys and about 1 KiB more. Many agents that watch the same
    /// prefixes share their ranges.
    pub watch_bytes: usize,
    /// Leases of one user.
    pub leases: usize,
    /// Keys that the compares and ranges of a transaction that writes may visit.
    pub txn_keys: usize,
}

impl Default for Budgets {
    fn default() -> Self {
        Self {
            connections: descriptors::connections().min(CONNECTIONS_MAX),
            handshake_timeout: Duration::from_secs(5),
            first_call_timeout: Duration::from_secs(30),
            idle_timeout: Duration::from_secs(300),
            connection_age: None,
            request_timeout: Duration::from_secs(30),
            request_bytes: 8 << 20,
            answer_bytes: 4 << 20,
            long_answer_bytes: 128 << 20,
            watchers: 50_000,
            watch_key_bytes: 32 << 10,
            watch_bytes: 64 << 20,
            leases: 100_000,
            txn_keys: 500_000,
        }
    }
}
