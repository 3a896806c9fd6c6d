//! Values that all pages share: whoever asks gets the last value while it is fresh.

use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Mutex;
use tokio::time::Instant;

/// How long a value is fresh at least.
const FRESH: Duration = Duration::from_millis(500);
/// A value is fresh for this many times the time that it took, so that pages take at most a twentieth of a core, however
/// many there are and however large the mesh is.
const TIMES_COST: u32 = 20;
/// How long a value is fresh at most.
const STALE: Duration = Duration::from_secs(30);

/// One value, made anew when it is asked for and no longer fresh.
pub(super) struct Cached<T>(Mutex<Option<Made<T>>>);

struct Made<T> {
    value: Arc<T>,
    at: Instant,
    cost: Duration,
}

impl<T> Default for Cached<T> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<T> Cached<T> {
    /// The value; `make` makes it, in one call at a time.
    pub(super) async fn get(&self, make: impl AsyncFnOnce() -> T) -> Arc<T> {
        let mut slot = self.0.lock().await;
        if let Some(made) = slot.as_ref().filter(|made| made.at.elapsed() < made.lasts()) {
            return Arc::clone(&made.value);
        }
        let begun = Instant::now();
        let value = Arc::new(make().await);
        *slot = Some(Made {
            value: Arc::clone(&value),
            at: Instant::now(),
            cost: begun.elapsed(),
        });
        value
    }
}

impl<T> Made<T> {
    fn lasts(&self) -> Duration {
        (self.cost * TIMES_COST).clamp(FRESH, STALE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    #[tokio::test(start_paused = true)]
    async fn a_value_lasts_as_long_as_it_is_worth() {
        let (cached, made) = (Cached::default(), Cell::new(0));
        let get = async |cost: u64| {
            let make = async || {
                made.set(made.get() + 1);
                tokio::time::sleep(Duration::from_millis(cost)).await;
                made.get()
            };
            *cached.get(make).await
        };
        assert_eq!((get(0).await, get(0).await), (1, 1));
        tokio::time::advance(FRESH).await;
        assert_eq!(get(200).await, 2);
        tokio::time::advance(Duration::from_millis(3900)).await;
        assert_eq!(get(0).await, 2, "it took 200 ms");
        tokio::time::advance(Duration::from_millis(200)).await;
        assert_eq!(get(0).await, 3);
    }
}
