//! Follows a scope file. A content that cannot be used changes nothing.

use super::exported::Exported;
use super::file::ScopeFile;
use crate::util::follow_dir::{Config, FileChange, Follower, Inspected, Removal, Scope, Update};
use parking_lot::Mutex;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::sync::watch;

/// Longest file that is read, in bytes: more than a ConfigMap can hold.
const LENGTH_MAX: u64 = 4 << 20;
/// The file is read this often even without a notification.
const PERIOD: Duration = Duration::from_secs(5);

/// The last valid content of a scope file. Clones see the same file, each at its own pace.
#[derive(Clone, Debug)]
pub struct Watcher {
    scope: watch::Receiver<Option<Arc<ScopeFile>>>,
    state: Arc<FileState>,
}

/// What is known of the file, for readiness and metrics.
#[derive(Debug)]
pub struct FileState {
    path: PathBuf,
    known: Mutex<Known>,
    exported: Mutex<Option<Exported>>,
}

#[derive(Clone, Debug, Default)]
struct Known {
    /// The reason why the file cannot be used.
    problem: Option<String>,
    errors: u64,
    /// When the present scope was read.
    loaded: Option<SystemTime>,
}

/// The end of the follower that finds the changes.
#[derive(Debug)]
pub struct ScopeFollower {
    scope: watch::Sender<Option<Arc<ScopeFile>>>,
    state: Arc<FileState>,
}

/// A watcher of the file at `path`, and the follower that must run for it.
pub fn follow(path: PathBuf) -> (Watcher, ScopeFollower) {
    let (sender, receiver) = watch::channel(None);
    let known = Mutex::new(Known {
        problem: Some("the file has not been read yet".to_owned()),
        ..Known::default()
    });
    let state = Arc::new(FileState {
        path,
        known,
        exported: Mutex::default(),
    });
    let watcher = Watcher {
        scope: receiver,
        state: Arc::clone(&state),
    };
    (watcher, ScopeFollower { scope: sender, state })
}

impl Watcher {
    /// A scope that never changes.
    pub fn fixed(scope: ScopeFile) -> Self {
        let (watcher, follower) = follow(PathBuf::from("scope.yaml"));
        follower.scope.send_replace(Some(Arc::new(scope)));
        follower.state.valid();
        watcher
    }

    /// The present scope; `None` before the file was valid for the first time.
    pub fn current(&self) -> Option<Arc<ScopeFile>> {
        self.scope.borrow().clone()
    }

    /// Waits for the first valid content.
    pub async fn usable(&mut self) -> Arc<ScopeFile> {
        loop {
            if let Some(scope) = self.scope.borrow_and_update().clone() {
                return scope;
            }
            self.wait().await;
        }
    }

    /// Waits for a scope that differs from the last one that this watcher returned.
    pub async fn changed(&mut self) -> Arc<ScopeFile> {
        loop {
            self.wait().await;
            if let Some(scope) = self.scope.borrow_and_update().clone() {
                return scope;
            }
        }
    }

    async fn wait(&mut self) {
        if self.scope.changed().await.is_err() {
            // The follower has ended, with the process or because the scope never changes.
            std::future::pending::<()>().await;
        }
    }

    pub fn state(&self) -> &Arc<FileState> {
        &self.state
    }
}

impl ScopeFollower {
    /// Follows the file for ever.
    pub async fn run(self) {
        let mut follower = Follower::new(self.config());
        loop {
            match follower.next().await {
                Ok(update) => self.update(update),
                Err(error) => self.state.wrong(format!("cannot read the file: {error}")),
            }
        }
    }

    fn config(&self) -> Config {
        Config {
            subject: "scope file",
            scope: Scope::File(self.state.path.clone()),
            wants: |_| true,
            inspect: |_| Inspected::Followed { companions: vec![] },
            removal: Removal::Confirmed,
            length_max: LENGTH_MAX,
            period: PERIOD,
        }
    }

    fn update(&self, update: Update) {
        match update.changes.into_iter().next_back() {
            Some(FileChange::Content(file) | FileChange::ReadableAgain(file)) => self.content(&file.content),
            Some(FileChange::Unreadable { error, .. }) => self.state.wrong(format!("cannot read the file: {error}")),
            Some(FileChange::Removed(_)) => self.state.wrong("the file is gone".to_owned()),
            None => self.state.wrong("the file does not exist".to_owned()),
        }
    }

    pub(super) fn content(&self, content: &[u8]) {
        let path = self.state.path.display();
        match ScopeFile::parse(content) {
            Ok(scope) => {
                self.state.valid();
                let is_changed = self.scope.send_if_modified(|present| {
                    let is_changed = present.as_deref() != Some(&scope);
                    if is_changed {
                        *present = Some(Arc::new(scope));
                    }
                    is_changed
                });
                match is_changed {
                    true => tracing::info!(%path, "the scope file has been read"),
                    false => tracing::info!(%path, "the scope file says the same as before"),
                }
            }
            Err(mistake) => self.state.wrong(mistake.to_string()),
        }
    }
}

impl FileState {
    /// The reason why the file cannot be used, with its path.
    pub fn problem(&self) -> Option<String> {
        let problem = self.known.lock().problem.clone();
        problem.map(|problem| format!("{}: {problem}", self.path.display()))
    }

    /// The number of times that the file became unusable, or unusable for another reason.
    pub fn errors(&self) -> u64 {
        self.known.lock().errors
    }

    /// When the present scope was read.
    pub fn loaded(&self) -> Option<SystemTime> {
        self.known.lock().loaded
    }

    /// Shows what was decided about the keys of this cluster.
    pub fn exported(&self, exported: Exported) {
        *self.exported.lock() = Some(exported);
    }

    /// What was decided about the keys of this cluster, once the publisher knows.
    pub fn export(&self) -> Option<Exported> {
        self.exported.lock().clone()
    }

    fn valid(&self) {
        let mut known = self.known.lock();
        known.problem = None;
        known.loaded = Some(SystemTime::now());
    }

    fn wrong(&self, problem: String) {
        let path = self.path.display();
        let mut known = self.known.lock();
        match known.loaded {
            Some(_) => tracing::warn!(%path, "the scope file cannot be used, the former scope stays: {problem}"),
            None => {
                tracing::error!(%path, "the scope file cannot be used, nothing is exported or imported until it can: {problem}")
            }
        }
        known.errors += 1;
        known.problem = Some(problem);
    }
}
