//! Attempts to connect to a remote cluster: why they end, and what follows.

use crate::util::backoff::Backoff;
use std::time::Duration;
use tokio::time::Instant;

/// A connection that lasted this long resets the backoff, so the next attempt is made soon.
pub(in crate::kvstoremesh) const STEADY: Duration = Duration::from_secs(30);
/// Wait before the next attempt, if a remote cluster holds more than the limits allow.
pub(in crate::kvstoremesh) const TOO_MUCH_WAIT: Duration = Duration::from_secs(300);
/// A failure that repeats is logged as a warning once in this many attempts.
pub(super) const LOGGED_ATTEMPTS: u32 = 10;

/// Why an attempt or a connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::kvstoremesh) enum Cause {
    /// The client file cannot be read, or is not an etcd client configuration.
    File,
    /// The connection ended without an error from the store.
    ConnectionLost,
    /// Nothing listens at the addresses of the store.
    Refused,
    /// The remote cluster holds more than the limits allow.
    TooMuch,
    Other,
}

/// The level at which a failure is logged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::kvstoremesh) enum Loudness {
    /// The failure is new, or one in [`LOGGED_ATTEMPTS`] repetitions.
    Warning,
    /// The failure is the same as before.
    Debug,
}

/// The reaction to a failure.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::kvstoremesh) struct Retry {
    pub(in crate::kvstoremesh) wait: Duration,
    pub(in crate::kvstoremesh) loudness: Loudness,
    /// The failure in full, for the log.
    pub(in crate::kvstoremesh) error: String,
    /// Whether to try other addresses before the last good address.
    pub(in crate::kvstoremesh) forget_address: bool,
}

/// Attempts to connect, since the client file was read or changed.
#[derive(Clone, Debug)]
pub(super) struct Attempts {
    pub(super) backoff: Backoff,
    pub(super) begun_at: Instant,
    pub(super) last_error: String,
    /// Attempts in succession of which nothing listened at the addresses.
    pub(super) refused: u32,
}

// === impl Attempts ===

impl Attempts {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            backoff: Backoff::connect(),
            begun_at: now,
            last_error: String::new(),
            refused: 0,
        }
    }

    /// Whether the connection of the last attempt has lasted for [`STEADY`].
    pub(super) fn is_steady(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.begun_at) >= STEADY
    }
}
