//! Waiting for something that others bring about.

use tokio::sync::Notify;

/// Waits until `done`, which is looked at now and whenever somebody is told of progress with
/// [`Notify::notify_waiters`]. Nothing is missed in between.
pub async fn until(progress: &Notify, done: impl Fn() -> bool) {
    loop {
        let told = progress.notified();
        tokio::pin!(told);
        told.as_mut().enable();
        if done() {
            return;
        }
        told.await;
    }
}
