//! What the tests in a browser need: a browser, and processes of Isthmus whose pages it shows.

pub mod browser;
pub mod mesh;
pub mod process;

use std::time::Duration;
use tokio::time::Instant;

/// How long a condition may take to hold on a loaded machine.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Repeats `check` until it returns a value.
pub async fn eventually<T>(condition: &str, mut check: impl AsyncFnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(value) = check().await {
            return value;
        }
        assert!(begun.elapsed() < PATIENCE, "waited {PATIENCE:?} in vain: {condition}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
