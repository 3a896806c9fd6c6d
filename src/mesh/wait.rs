//! Waiting for clusters, with lines that say what for.

use super::output::Output;
use std::time::Duration;
use tokio::time::Instant;

/// Time between two looks.
const PAUSE: Duration = Duration::from_secs(2);
/// Least time between two lines.
const REPEAT: Duration = Duration::from_secs(10);

/// A wait with a limit.
pub struct Waiting {
    started: Instant,
    limit: Duration,
    told: Option<Instant>,
}

// === impl Waiting ===

impl Waiting {
    pub fn new(limit: Duration) -> Self {
        Self {
            started: Instant::now(),
            limit,
            told: None,
        }
    }

    /// Prints what is waited for, at most every ten seconds, and pauses. Returns false once the time is over.
    pub async fn pause(&mut self, what: &str, output: &dyn Output) -> bool {
        let now = Instant::now();
        if now.duration_since(self.started) >= self.limit {
            return false;
        }
        if self.told.is_none_or(|told| now.duration_since(told) >= REPEAT) {
            self.told = Some(now);
            let seconds = now.duration_since(self.started).as_secs();
            output.line(&format!("⌛ Waiting ({seconds}s) for {what}"));
        }
        tokio::time::sleep(PAUSE).await;
        true
    }
}
