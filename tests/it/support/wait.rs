//! Waiting for a condition. No test sleeps for a fixed time.

use std::time::Duration;
use tokio::time::Instant;

/// How long a condition may take to hold: long enough for a loaded machine. A test that waits this long fails.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// The pause between two checks of a condition.
const PAUSE: Duration = Duration::from_millis(10);

/// Repeats `check` until it returns a value, and fails with `condition` if [`PATIENCE`] runs out.
pub async fn eventually<T>(condition: &str, mut check: impl AsyncFnMut() -> Option<T>) -> T {
    let started = Instant::now();
    loop {
        if let Some(value) = check().await {
            return value;
        }
        assert!(started.elapsed() < PATIENCE, "waited {PATIENCE:?} in vain: {condition}");
        tokio::time::sleep(PAUSE).await;
    }
}
