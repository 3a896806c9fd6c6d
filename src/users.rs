//! The users of remote clusters, kept as a file lists them: clusters that are listed may connect, others may not.
//!
//! ```text
//! users.yaml ─ file ─► wanted users ─► reconcile ─► store
//!                                         ▲ present users
//! ```
//!
//! The file is compared with the store's users, not with its own former content, so users that an earlier process made
//! are removed, too. A user that cannot be changed does not delay the others, and is retried. While the file is missing
//! or invalid, users stay as they are.

mod file;
mod reconcile;
#[cfg(test)]
mod tests;

use crate::kvstore::users::UserAdmin;
use crate::util::backoff::Backoff;
use file::{News, UsersFile};
use parking_lot::Mutex;
use reconcile::{Outcome, Reconciler};
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// The name of this controller in the metric `controllers_group_runs_total`. Parity: the same as in Cilium.
pub const GROUP: &str = "clustermesh-users-management";

/// Time between two comparisons of the names of users, since the store may have lost some.
const COMPARE: Duration = Duration::from_secs(60);

/// Keeps the users of a store as a file lists them.
pub struct Users {
    path: PathBuf,
    /// Users that are never changed.
    own: BTreeSet<String>,
    status: Mutex<Inner>,
}

/// The counts and the last error, for metrics.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Status {
    /// Runs that made or confirmed all users as the file lists them.
    pub runs_ok: u64,
    /// Runs that failed because of the file, the store, or a user.
    pub runs_failed: u64,
    /// The reason why the users are not as the file lists them, if they are not.
    pub last_error: Option<String>,
    /// Number of users in the store that the file manages.
    pub managed: usize,
}

async fn sleep_until(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due).await,
        None => std::future::pending().await,
    }
}

#[derive(Default)]
struct Inner {
    runs_ok: u64,
    runs_failed: u64,
    managed: usize,
    file_error: Option<String>,
    /// The failures of the last comparison.
    failures: Vec<String>,
}

impl Users {
    /// Follows the file at `path`. Users in `own` are never changed, even if the file lists them.
    pub fn new(path: PathBuf, own: BTreeSet<String>) -> Self {
        Self {
            path,
            own,
            status: Mutex::default(),
        }
    }

    pub fn status(&self) -> Status {
        let inner = self.status.lock();
        Status {
            runs_ok: inner.runs_ok,
            runs_failed: inner.runs_failed,
            last_error: inner.file_error.as_ref().or(inner.failures.first()).cloned(),
            managed: inner.managed,
        }
    }

    /// Keeps the users of `admin` as the file lists them. Never returns.
    pub async fn run(&self, admin: Arc<dyn UserAdmin>) {
        tracing::info!(path = %self.path.display(), "following the users file of remote clusters");
        let file = UsersFile::new(self.path.clone(), self.own.clone());
        let mut follower = file.follower();
        let mut reconciler = Reconciler::new(self.own.clone());
        // The time of the next comparison with the store; `None` before the file has been read.
        let mut due: Option<Instant> = None;
        let mut backoff = Backoff::connect();
        loop {
            let news = tokio::select! {
                // A file that is both new and due is read first.
                biased;
                update = follower.next() => match update {
                    Ok(update) => file.news(update),
                    Err(error) => Some(News::Wrong(error.to_string())),
                },
                () = sleep_until(due) => None,
            };
            match news {
                None => {}
                Some(News::Wrong(error)) => self.file_failed(error),
                Some(News::Listed(wanted)) => {
                    self.status.lock().file_error = None;
                    reconciler.want(wanted);
                    backoff.reset();
                    due = Some(Instant::now());
                }
            }
            if due.is_some_and(|at| at <= Instant::now()) {
                let outcome = reconciler.reconcile(&*admin).await;
                let wait = match outcome.failures.is_empty() {
                    true => {
                        backoff.reset();
                        COMPARE
                    }
                    false => backoff.next_wait(),
                };
                self.compared(outcome);
                due = Some(Instant::now() + wait);
            }
        }
    }

    fn file_failed(&self, error: String) {
        tracing::error!(
            error,
            "the users file is invalid or unreadable: users stay as they are until it can be used"
        );
        let mut status = self.status.lock();
        status.runs_failed += 1;
        status.file_error = Some(error);
    }

    fn compared(&self, outcome: Outcome) {
        let mut status = self.status.lock();
        // A failure that is repeated has been logged.
        for failure in outcome.failures.iter().filter(|f| !status.failures.contains(f)) {
            tracing::warn!(
                error = failure,
                "cannot change a user as the users file lists it; trying again"
            );
        }
        match (
            outcome.failures.is_empty(),
            outcome.routine && status.failures.is_empty(),
        ) {
            (false, _) => status.runs_failed += 1,
            (true, false) => status.runs_ok += 1,
            // A comparison that found nothing to do is not counted as a run.
            (true, true) => {}
        }
        if let Some(managed) = outcome.managed {
            status.managed = managed;
        }
        status.failures = outcome.failures;
    }
}
