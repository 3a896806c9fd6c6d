//! The users of remote clusters, from a file: who is listed there may connect, and who is not may not.
//!
//! ```text
//! users.yaml ─ file ─► wanted ─► reconcile ─► store
//!                                  ▲ what is there
//! ```
//!
//! The store's users are compared with the file, rather than the file with what it said before: what an
//! earlier process made is taken back, too. One user that fails holds up no other, and is tried again. When the
//! file is missing or wrong, users stay as they are.

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

/// What the original calls this in `controllers_group_runs_total`.
pub const GROUP: &str = "clustermesh-users-management";

/// The store may have lost its users: their names are compared this often.
const COMPARE: Duration = Duration::from_secs(60);

/// Keeps the users of a store as a file says.
pub struct Users {
    path: PathBuf,
    own: BTreeSet<String>,
    status: Mutex<Inner>,
}

/// How it goes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Status {
    /// Times that everything was made as the file says.
    pub runs_ok: u64,
    /// Times that something failed: the file, the store, or a user.
    pub runs_failed: u64,
    /// What is wrong now.
    pub last_error: Option<String>,
    /// Users in the store that are the file's.
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
    /// Of the last comparison.
    failures: Vec<String>,
}

impl Users {
    /// Follows the file at `path`. `own` are users that are never touched, whatever it says.
    pub fn new(path: PathBuf, own: BTreeSet<String>) -> Self {
        Self {
            path,
            own,
            status: Mutex::default(),
        }
    }

    /// How it goes.
    pub fn status(&self) -> Status {
        let inner = self.status.lock();
        Status {
            runs_ok: inner.runs_ok,
            runs_failed: inner.runs_failed,
            last_error: inner.file_error.as_ref().or(inner.failures.first()).cloned(),
            managed: inner.managed,
        }
    }

    /// Keeps the users of `admin` as the file says, for ever.
    pub async fn run(&self, admin: Arc<dyn UserAdmin>) {
        tracing::info!(path = %self.path.display(), "following the users of remote clusters");
        let file = UsersFile::new(self.path.clone(), self.own.clone());
        let mut follower = file.follower();
        let mut reconciler = Reconciler::new(self.own.clone());
        // The time of the next comparison with the store; none before the file has been read.
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
            "the users file is not as it should be: users stay as they are until it is changed"
        );
        let mut status = self.status.lock();
        status.runs_failed += 1;
        status.file_error = Some(error);
    }

    fn compared(&self, outcome: Outcome) {
        let mut status = self.status.lock();
        // What fails again, and the same way, has been said.
        for failure in outcome.failures.iter().filter(|f| !status.failures.contains(f)) {
            tracing::warn!(error = failure, "users are not as they should be, trying again");
        }
        match (
            outcome.failures.is_empty(),
            outcome.routine && status.failures.is_empty(),
        ) {
            (false, _) => status.runs_failed += 1,
            (true, false) => status.runs_ok += 1,
            // A look that found nothing to do is no run.
            (true, true) => {}
        }
        if let Some(managed) = outcome.managed {
            status.managed = managed;
        }
        status.failures = outcome.failures;
    }
}
