//! Waiting for a condition.

use tokio::sync::Notify;

/// Waits until `done` returns true. `done` is called at once, and after every [`Notify::notify_waiters`] of `progress`;
/// a notification between a call and the wait is not missed.
pub async fn until(progress: &Notify, done: impl Fn() -> bool) {
    loop {
        let notified = progress.notified();
        tokio::pin!(notified);
        notified.as_mut().enable();
        if done() {
            return;
        }
        notified.await;
    }
}
