//! Named tasks, one stop signal, and a shutdown that waits for the tasks for a limited time.

use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// A task of whatever kind. Tokio's code for tasks is compiled anew for each type of future, about 50 functions; one type for
/// all tasks keeps builds short.
type Task<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// Spawns and supervises the tasks of one process, or of one cluster of the demo. Clones share the tasks.
///
/// A process that is asked to end first *leaves*: it gives up what others can take over at once, and lets go of its clients.
/// Then it stops.
#[derive(Clone)]
pub struct Lifecycle {
    /// Cancelled when the tasks that this clone spawns should stop.
    stop: CancellationToken,
    tasks: TaskTracker,
    inner: Arc<Inner>,
}

struct Inner {
    /// Cancelled when all tasks should stop.
    whole: CancellationToken,
    /// Cancelled when the process leaves, and with `whole`.
    leaving: CancellationToken,
    /// What leaving takes.
    before_stop: Mutex<Vec<Task<()>>>,
    next: AtomicU64,
    running: Mutex<BTreeMap<u64, String>>,
    failure: Mutex<Option<String>>,
    at_end: Mutex<Vec<Box<dyn FnOnce() + Send>>>,
}

impl Default for Lifecycle {
    fn default() -> Self {
        let whole = CancellationToken::new();
        let inner = Inner {
            leaving: whole.child_token(),
            whole: whole.clone(),
            before_stop: Mutex::default(),
            next: AtomicU64::default(),
            running: Mutex::default(),
            failure: Mutex::default(),
            at_end: Mutex::default(),
        };
        Self {
            stop: whole,
            tasks: TaskTracker::new(),
            inner: Arc::new(inner),
        }
    }
}

impl Lifecycle {
    /// The token that is cancelled when the tasks should stop.
    pub fn stop_token(&self) -> &CancellationToken {
        &self.stop
    }

    /// The token that is cancelled when the process leaves.
    pub fn leaving(&self) -> &CancellationToken {
        &self.inner.leaving
    }

    /// The same lifecycle for tasks that stop as soon as the process leaves, because another process takes their work over.
    pub fn until_leaving(&self) -> Self {
        Self {
            stop: self.inner.leaving.clone(),
            ..self.clone()
        }
    }

    /// Asks all tasks to stop.
    pub fn stop(&self) {
        self.inner.whole.cancel();
    }

    /// Leaves, waits for what was registered with [`Lifecycle::before_stop`], and asks all tasks to stop.
    pub async fn leave(&self) {
        self.inner.leaving.cancel();
        let before_stop = std::mem::take(&mut *self.inner.before_stop.lock());
        tokio::select! {
            () = self.inner.whole.cancelled() => {}
            _ = futures::future::join_all(before_stop) => {}
        }
        self.stop();
    }

    /// Registers work that is done after the process was asked to end, and before its tasks are asked to stop.
    pub fn before_stop(&self, work: impl Future<Output = ()> + Send + 'static) {
        self.inner.before_stop.lock().push(Box::pin(work));
    }

    /// Runs `task`, which should end when the stop token is cancelled. An error, a panic, or an earlier end stops the
    /// whole lifecycle, with the task's name in the reason.
    pub fn spawn<E: std::fmt::Display + Send + 'static>(
        &self,
        name: impl Into<String>,
        task: impl Future<Output = Result<(), E>> + Send + 'static,
    ) {
        let task = async move { task.await.map_err(|error| error.to_string()) };
        self.supervise(name.into(), Box::pin(task));
    }

    /// Runs a task that never ends by itself. The task is dropped when the lifecycle stops.
    pub fn spawn_forever(&self, name: impl Into<String>, task: impl Future<Output = ()> + Send + 'static) {
        self.supervise_forever(name.into(), Box::pin(task));
    }

    /// Runs a task that may end at any time, and whose panic ends nothing else: one connection, one remote cluster. The
    /// panic hook logs the panic.
    pub fn spawn_part(&self, name: impl Into<String>, task: impl Future<Output = ()> + Send + 'static) {
        self.run(name.into(), Box::pin(task));
    }

    /// Runs a task that may end at any time, and whose panic stops the whole lifecycle, because no other task does
    /// its work.
    pub fn spawn_vital(&self, name: impl Into<String>, task: impl Future<Output = ()> + Send + 'static) {
        self.supervise_vital(name.into(), Box::pin(task));
    }

    /// Registers `f`, which may block, to be called after the tasks have stopped.
    pub fn at_end(&self, f: impl FnOnce() + Send + 'static) {
        self.inner.at_end.lock().push(Box::new(f));
    }

    fn supervise(&self, name: String, task: Task<Result<(), String>>) {
        let (this, named) = (self.clone(), name.clone());
        let supervised = async move {
            #[allow(clippy::disallowed_methods, reason = "the one place that spawns")]
            match tokio::spawn(task).await {
                Ok(Ok(())) if this.stop.is_cancelled() => {}
                Ok(Ok(())) => this.fail(&named, "ended early"),
                Ok(Err(error)) => this.fail(&named, &error),
                // The runtime ends, as it does when the start has failed.
                Err(end) if end.is_cancelled() => {}
                Err(panic) => this.fail(&named, &panic.to_string()),
            }
        };
        self.run(name, Box::pin(supervised));
    }

    fn supervise_forever(&self, name: String, task: Task<()>) {
        let stop = self.stop.clone();
        let until_stopped = async move {
            tokio::select! { () = stop.cancelled() => {}, () = task => {} }
            Ok(())
        };
        self.supervise(name, Box::pin(until_stopped));
    }

    fn supervise_vital(&self, name: String, task: Task<()>) {
        let (this, named) = (self.clone(), name.clone());
        let supervised = async move {
            #[allow(clippy::disallowed_methods, reason = "the one place that spawns")]
            if let Err(end) = tokio::spawn(task).await
                && !end.is_cancelled()
            {
                this.fail(&named, &end.to_string());
            }
        };
        self.run(name, Box::pin(supervised));
    }

    fn run(&self, name: String, task: Task<()>) {
        let id = self.inner.next.fetch_add(1, Ordering::Relaxed);
        self.inner.running.lock().insert(id, name);
        let running = Running {
            inner: Arc::clone(&self.inner),
            id,
        };
        #[allow(clippy::disallowed_methods, reason = "the one place that spawns")]
        self.tasks.spawn(async move {
            let _running = running;
            task.await;
        });
    }

    fn fail(&self, name: &str, why: &str) {
        tracing::error!(task = name, error = why, "a task failed; stopping the process");
        self.inner
            .failure
            .lock()
            .get_or_insert_with(|| format!("{name}: {why}"));
        self.stop();
    }

    /// Waits for the stop signal, then at most `grace` for the tasks, then at most `grace` for each function of
    /// [`Lifecycle::at_end`]. Returns the reason if a failure stopped the lifecycle.
    pub async fn stopped(&self, grace: Duration) -> Option<String> {
        self.inner.whole.cancelled().await;
        self.tasks.close();
        if tokio::time::timeout(grace, self.tasks.wait()).await.is_err() {
            let left: Vec<_> = self.inner.running.lock().values().cloned().collect();
            tracing::warn!(tasks = left.join(", "), "tasks did not stop in time");
        }
        let at_end = std::mem::take(&mut *self.inner.at_end.lock());
        for last in at_end {
            match tokio::time::timeout(grace, tokio::task::spawn_blocking(last)).await {
                Ok(Ok(())) => {}
                Ok(Err(panic)) => tracing::error!(%panic, "a shutdown step panicked; continuing the shutdown"),
                Err(_) => tracing::error!(
                    secs = grace.as_secs(),
                    "a shutdown step did not end in time; ending without it"
                ),
            }
        }
        self.inner.failure.lock().clone()
    }
}

/// Lists a task as running until dropped.
struct Running {
    inner: Arc<Inner>,
    id: u64,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.inner.running.lock().remove(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_failing_task_stops_the_rest_and_is_named() {
        let life = Lifecycle::default();
        let stop = life.stop_token().clone();
        life.spawn("waits", async move {
            stop.cancelled().await;
            Ok::<_, String>(())
        });
        life.spawn("breaks", async { Err("disk on fire") });
        let failure = life.stopped(Duration::from_secs(5)).await;
        assert_eq!(failure.as_deref(), Some("breaks: disk on fire"));
    }

    #[tokio::test(start_paused = true)]
    async fn what_others_take_over_ends_first_and_the_rest_once_the_clients_are_gone() {
        let life = Lifecycle::default();
        let (first, clients) = (life.until_leaving(), tokio::sync::oneshot::channel::<()>());
        let ended = first.stop_token().clone();
        life.before_stop(async move {
            ended.cancelled().await;
            drop(clients.1.await);
        });
        let leaving = life.leave();
        tokio::pin!(leaving);
        assert!(futures::poll!(&mut leaving).is_pending());
        assert!(first.stop_token().is_cancelled() && !life.stop_token().is_cancelled());
        drop(clients.0);
        leaving.await;
        assert!(life.stop_token().is_cancelled());
        // A failure of a task that ends first stops everything, and a failure waits for nobody.
        let life = Lifecycle::default();
        life.before_stop(std::future::pending());
        life.until_leaving().spawn("breaks", async { Err("lost") });
        let (failure, ()) = tokio::join!(life.stopped(Duration::from_secs(5)), life.leave());
        assert_eq!(failure.as_deref(), Some("breaks: lost"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_task_that_will_not_stop_does_not_hold_the_process() {
        let life = Lifecycle::default();
        life.spawn_part("stuck", std::future::pending());
        life.stop();
        assert_eq!(life.stopped(Duration::from_secs(5)).await, None);
    }
}
