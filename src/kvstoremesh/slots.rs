//! Limits on how much work all remote clusters do at the same time.

use std::time::Duration;
use tokio::sync::Semaphore;

/// Initial lists that are read at the same time.
const LISTS: usize = 8;
/// Connections that are made at the same time.
const CONNECTS: usize = 64;
/// Longest time that work holds its slot; slower work continues without it, so that a slow remote delays no other.
const LIST_MAX: Duration = Duration::from_secs(5);
/// A connection that takes longer waits for the network or for DNS: hundreds of them must not delay another by much.
const CONNECT_MAX: Duration = Duration::from_secs(1);

/// The limits that all remote clusters of a mesh share.
pub(super) struct Limits {
    pub(super) lists: Slots,
    pub(super) connects: Slots,
}

/// A number of slots for work of one kind.
pub(super) struct Slots {
    free: Semaphore,
    /// Longest time that work holds a slot.
    held_max: Duration,
}

// === impl Limits ===

impl Default for Limits {
    fn default() -> Self {
        Self {
            lists: Slots::new(LISTS, LIST_MAX),
            connects: Slots::new(CONNECTS, CONNECT_MAX),
        }
    }
}

// === impl Slots ===

impl Slots {
    fn new(slots: usize, held_max: Duration) -> Self {
        let free = Semaphore::new(slots);
        Self { free, held_max }
    }

    /// Waits for a slot, then does `work`. The slot is given back after a limited time, even if the work goes on.
    pub(super) async fn run<T>(&self, work: impl Future<Output = T>) -> T {
        let slot = self.free.acquire().await;
        let mut work = Box::pin(work);
        match tokio::time::timeout(self.held_max, &mut work).await {
            Ok(done) => done,
            Err(_) => {
                drop(slot);
                work.await
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::time::Instant;

    #[tokio::test(start_paused = true)]
    async fn slow_work_holds_a_slot_for_a_limited_time() {
        let slots = Slots::new(1, LIST_MAX);
        let begun = Instant::now();
        tokio::select! {
            () = slots.run(std::future::pending()) => {}
            () = async {
                tokio::task::yield_now().await;
                slots.run(async {}).await;
            } => {}
        }
        assert_eq!(begun.elapsed(), LIST_MAX);
    }
}
