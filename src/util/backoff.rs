//! The retry policy: exponential backoff with jitter and a cap.

use rand::RngExt;
use std::time::Duration;

/// Waits that double from `first` to `cap`. Each wait is shortened by up to a half at random, so that peers do not retry
/// in step.
#[derive(Clone, Debug)]
pub struct Backoff {
    first: Duration,
    cap: Duration,
    attempts: u32,
}

impl Backoff {
    pub fn new(first: Duration, cap: Duration) -> Self {
        Self {
            first,
            cap,
            attempts: 0,
        }
    }

    /// Waits between connections to remote clusters and stores. A server that returns is found within seconds; 511
    /// clusters that retry make about 90 connections per second.
    pub fn connect() -> Self {
        Self::new(Duration::from_millis(200), Duration::from_secs(8))
    }

    /// Waits between watches of this cluster's Kubernetes API: many small requests to one nearby server.
    pub fn watch() -> Self {
        Self::new(Duration::from_millis(200), Duration::from_secs(5))
    }

    /// Waits after failed writes.
    pub fn write() -> Self {
        Self::new(Duration::from_millis(20), Duration::from_secs(5))
    }

    /// The number of waits since the last reset.
    pub fn attempts(&self) -> u32 {
        self.attempts
    }

    /// Begins again with the first wait. Called after a success.
    pub fn reset(&mut self) {
        self.attempts = 0;
    }

    /// Returns the next wait, without sleeping.
    pub fn next_wait(&mut self) -> Duration {
        let factor = 1u32.checked_shl(self.attempts).unwrap_or(u32::MAX);
        self.attempts = self.attempts.saturating_add(1);
        let full = self.first.saturating_mul(factor).min(self.cap);
        full.mul_f64(rand::rng().random_range(0.5..=1.0))
    }

    /// Sleeps for the next wait.
    pub async fn wait(&mut self) {
        tokio::time::sleep(self.next_wait()).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_the_cap_and_start_over_after_a_reset() {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(1));
        let waits: Vec<_> = (0..40).map(|_| backoff.next_wait()).collect();
        assert!(waits[0] <= Duration::from_millis(100));
        assert!(waits[39] >= Duration::from_millis(500) && waits[39] <= Duration::from_secs(1));
        backoff.reset();
        assert!(backoff.next_wait() <= Duration::from_millis(100));
    }
}
