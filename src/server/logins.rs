//! Password checks, which cost tens of milliseconds each on purpose. A connection has one check at a time, so that
//! connections take turns; too many that wait are refused; and a wrong password delays the next check of the connection.
//! A check that has begun cannot be stopped, so it keeps its places when its client goes away.

use super::Core;
use super::peer::Peer;
use super::refusals::Budget;
use super::status;
use crate::auth::Error;
use crate::util::lifecycle::Lifecycle;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::available_parallelism;
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tonic::Status;

/// Connections whose next check may wait.
const WAITING_MAX: usize = 256;
/// Checks of one connection that may wait.
const WAITING_OF_CONNECTION: usize = 32;
/// The delay after a wrong password.
const DELAY: Duration = Duration::from_secs(1);

/// The slots for password checks.
pub(super) struct Logins {
    slots: Arc<Semaphore>,
    waiting: Arc<AtomicUsize>,
}

/// Counts a waiting call until it is dropped.
struct Waiting(Arc<AtomicUsize>);

impl Waiting {
    fn begin(count: &Arc<AtomicUsize>, max: usize) -> Option<Self> {
        let fits = |n: usize| (n < max).then_some(n + 1);
        count.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits).ok()?;
        Some(Self(Arc::clone(count)))
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Default for Logins {
    fn default() -> Self {
        let cores = available_parallelism().map_or(1, usize::from);
        Self {
            // At least one core stays free for everything else.
            slots: Arc::new(Semaphore::new((cores / 2).max(1))),
            waiting: Arc::default(),
        }
    }
}

/// The turn of a password check.
pub(super) struct LoginTurn {
    /// The turn of the connection.
    turn: OwnedSemaphorePermit,
    slots: (OwnedSemaphorePermit, Waiting, Waiting),
    life: Lifecycle,
}

impl LoginTurn {
    /// Lets others check. A wrong password delays the next check of the connection.
    pub(super) fn end(self, wrong: bool) {
        let Self { turn, slots, life } = self;
        drop(slots);
        if wrong {
            // The answer is not delayed: a client learns of a mistyped password at once.
            life.spawn_part("delay after a wrong password", async move {
                tokio::time::sleep(DELAY).await;
                drop(turn);
            });
        }
    }
}

impl Core {
    /// Runs `check`, which may hash a password, on a thread that may block, when its turn has come.
    pub(super) async fn log_in<T: Send + 'static>(
        &self,
        peer: &Peer,
        check: impl FnOnce() -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Status> {
        let turn = self.login_turn(peer).await?;
        let done = tokio::task::spawn_blocking(move || {
            let done = check();
            turn.end(matches!(done, Err(Error::AuthFailed)));
            done
        });
        Ok(done.await.map_err(|e| Status::internal(e.to_string()))??)
    }

    /// Waits for the turn of a password check.
    pub(super) async fn login_turn(&self, peer: &Peer) -> Result<LoginTurn, Status> {
        let (connection, logins) = (&peer.connection, &self.logins);
        let refused = || {
            self.refusals.note(Budget::Passwords, peer);
            status::too_many_requests()
        };
        let own = Waiting::begin(&connection.logins_waiting, WAITING_OF_CONNECTION).ok_or_else(refused)?;
        let turn = Arc::clone(&connection.login).acquire_owned().await;
        let turn = turn.map_err(|_| status::stopped())?;
        // Now the connection waits once, however many of its checks wait for their turn.
        let all = Waiting::begin(&logins.waiting, WAITING_MAX).ok_or_else(refused)?;
        let slot = Arc::clone(&logins.slots).acquire_owned().await;
        let slot = slot.map_err(|_| status::stopped())?;
        Ok(LoginTurn {
            turn,
            slots: (slot, all, own),
            life: self.life.clone(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_so_many_calls_wait() {
        let count = Arc::default();
        let first = Waiting::begin(&count, 1);
        assert!(first.is_some() && Waiting::begin(&count, 1).is_none());
        drop(first);
        assert!(Waiting::begin(&count, 1).is_some());
    }
}
