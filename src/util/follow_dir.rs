//! Follows the files of a directory: reports which files are new, changed, unreadable or gone.
//!
//! ```text
//! inotify (watch) ──┐                blocking thread
//!                   ├─ Follower ─► read::look ─► Snapshot::compare ─► Update
//! timer (period) ───┘
//! ```
//!
//! Notifications of the kernel only decide *when* to look; *what* changed is found by comparing contents. So a
//! notification that was lost delays a change by at most the period, and a program that merely reads the directory
//! causes no change. Mounted ConfigMaps and Secrets replace a symbolic link (`..data`), therefore directories are
//! watched, not files.
//!
//! An error is never taken for content: a file or directory that cannot be read keeps the state that was known.

mod read;
mod snapshot;
#[cfg(test)]
mod tests;
mod watch;

use snapshot::{Comparison, Snapshot};
use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use watch::{MakeWatcher, Watch};

/// The clock that the age of a file is compared with.
pub type Clock<'a> = &'a dyn Fn() -> SystemTime;

/// A file that changed less than this long ago may be incomplete: most programs truncate a file before they write it.
/// Also the pause between a notification and the look that it causes.
pub const SETTLE: Duration = Duration::from_millis(50);

/// The files to follow, and how.
#[derive(Clone, Debug)]
pub struct Config {
    /// The name of the files in log lines, in the plural: `manifests`.
    pub subject: &'static str,
    pub scope: Scope,
    /// Decides by its path whether a file in a directory is read.
    pub wants: fn(&Path) -> bool,
    /// Decides by its content whether a file is followed.
    pub inspect: fn(&[u8]) -> Inspected,
    pub removal: Removal,
    /// Longest file that is read, in bytes; longer files are unreadable.
    pub length_max: u64,
    /// Time between two looks without a notification.
    pub period: Duration,
}

/// The location of the files.
#[derive(Clone, Debug)]
pub enum Scope {
    /// A single file. A missing file or directory is no error.
    File(PathBuf),
    /// The files directly in this directory, which must be readable.
    Directory(PathBuf),
    /// The files in this directory and its subdirectories, which must be readable; names that begin with a dot are
    /// skipped, so that a mounted ConfigMap is read once, through its links.
    Tree(PathBuf),
}

/// Whether a file is followed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Inspected {
    /// The file is not followed, and counts as absent.
    Ignored,
    /// The file is followed. Changes of these other files count as changes of this file.
    Followed { companions: Vec<PathBuf> },
}

/// The moment at which an absent file counts as removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Removal {
    /// At the first look that does not find the file.
    AtOnce,
    /// At the second such look in a row: the file may be absent for a moment while it is replaced.
    Confirmed,
}

/// A file and its content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct File {
    pub path: PathBuf,
    pub content: Vec<u8>,
    pub modified: SystemTime,
}

/// A change of one file.
#[derive(Debug)]
pub enum FileChange {
    /// The file is new, or its content or a companion's content changed.
    Content(File),
    /// The file could not be read before, and has the content that it had before that.
    ReadableAgain(File),
    /// The file cannot be read, so its known content stays. Reported once until the error changes.
    Unreadable { path: PathBuf, error: io::Error },
    /// The file is gone, or is no longer followed because of its content.
    Removed(PathBuf),
}

/// The changes found by one look, in the order of paths, removals last.
#[derive(Debug)]
pub struct Update {
    pub changes: Vec<FileChange>,
    /// Set once: with this update every file that existed at the start has been reported.
    pub listed: bool,
}

/// Looks at the files and remembers what was found. Looking blocks.
pub struct Looker {
    config: Config,
    snapshot: Snapshot,
    /// The directories that hold the files, as of the last look.
    directories: BTreeSet<PathBuf>,
}

/// The result of one look.
#[derive(Debug)]
pub struct Look {
    pub changes: Vec<FileChange>,
    /// When to look again without a notification.
    pub next: NextLook,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NextLook {
    /// Everything was read.
    AfterPeriod,
    /// Everything was read, but a directory is new: files may have been added to it before it was watched.
    SoonToWatch,
    /// A file is being written, or is absent for the first time.
    SoonToSettle,
}

/// Looks at files when the kernel reports a change, and every period.
pub struct Follower {
    period: Duration,
    subject: &'static str,
    changed: mpsc::Receiver<()>,
    due: Instant,
    listed: bool,
    /// The error of the last look, which has been reported.
    trouble: Option<String>,
    /// The state, while no look is running.
    idle: Option<Box<State>>,
    /// The look that is running. Kept here, so that [`Follower::next`] can be cancelled at any point.
    looking: Option<JoinHandle<(Box<State>, io::Result<Look>)>>,
}

struct State {
    looker: Looker,
    watch: Watch,
}

// === impl Scope ===

impl Scope {
    /// The directory whose entries determine the files.
    fn root(&self) -> &Path {
        match self {
            Self::Directory(directory) | Self::Tree(directory) => directory,
            Self::File(path) => {
                let parent = path.parent().filter(|p| !p.as_os_str().is_empty());
                parent.unwrap_or(Path::new("."))
            }
        }
    }
}

// === impl Looker ===

impl Looker {
    pub fn new(config: Config) -> Self {
        Self {
            directories: BTreeSet::from([config.scope.root().to_owned()]),
            snapshot: Snapshot::default(),
            config,
        }
    }

    /// Reads the files and returns the changes since the last look. `now` decides which files are still being written.
    /// After an error nothing has changed.
    pub fn look(&mut self, clock: Clock<'_>) -> io::Result<Look> {
        let listing = read::list(&self.config)?;
        let found = read::read(&self.config, listing.files, &self.snapshot, clock);
        let Comparison { changes, settled } = self.snapshot.compare(found, self.config.removal);
        let is_known = listing.directories.is_subset(&self.directories);
        self.directories = listing.directories;
        let next = match (settled, is_known) {
            (false, _) => NextLook::SoonToSettle,
            (true, false) => NextLook::SoonToWatch,
            (true, true) => NextLook::AfterPeriod,
        };
        Ok(Look { changes, next })
    }
}

// === impl Follower ===

impl Follower {
    pub fn new(config: Config) -> Self {
        Self::with_watcher(config, Box::new(watch::inotify))
    }

    fn with_watcher(config: Config, make: MakeWatcher) -> Self {
        // Room for one message is enough: the message only says that something has changed.
        let (sender, changed) = mpsc::channel(1);
        let (period, subject) = (config.period, config.subject);
        let watch = Watch::new(&config, make, sender);
        let looker = Looker::new(config);
        Self {
            period,
            subject,
            changed,
            due: Instant::now(),
            listed: false,
            trouble: None,
            idle: Some(Box::new(State { looker, watch })),
            looking: None,
        }
    }

    /// Waits for the next changes. An error means that the directory cannot be read, and that nothing changes until
    /// it can be; the same error is returned once. Cancelling loses nothing.
    pub async fn next(&mut self) -> io::Result<Update> {
        loop {
            match self.look().await {
                Ok(look) => {
                    self.due = Instant::now() + self.pause(look.next);
                    if self.trouble.take().is_some() {
                        tracing::info!("the {} can be read again", self.subject);
                    }
                    let listed = !self.listed && look.next != NextLook::SoonToSettle;
                    self.listed |= listed;
                    if listed || !look.changes.is_empty() {
                        let changes = look.changes;
                        return Ok(Update { changes, listed });
                    }
                }
                Err(error) => {
                    self.due = Instant::now() + self.period;
                    let text = error.to_string();
                    if self.trouble.as_ref() != Some(&text) {
                        self.trouble = Some(text);
                        return Err(error);
                    }
                }
            }
        }
    }

    fn pause(&self, next: NextLook) -> Duration {
        match next {
            NextLook::AfterPeriod => self.period,
            NextLook::SoonToWatch | NextLook::SoonToSettle => SETTLE,
        }
    }

    async fn look(&mut self) -> io::Result<Look> {
        if self.looking.is_none() {
            self.until_due().await;
        }
        if let Some(mut state) = self.idle.take() {
            // The look that begins now finds everything that was notified so far.
            while self.changed.try_recv().is_ok() {}
            self.looking = Some(tokio::task::spawn_blocking(move || {
                // The directories are watched before they are read, so that a change in between is notified.
                state.watch.cover(&state.looker.directories);
                let look = state.looker.look(&SystemTime::now);
                (state, look)
            }));
        }
        let looking = self.looking.as_mut().expect("a look is going on");
        let looked = looking.await;
        self.looking = None;
        match looked.map_err(tokio::task::JoinError::try_into_panic) {
            Ok((state, look)) => {
                self.idle = Some(state);
                look
            }
            Err(Ok(panic)) => std::panic::resume_unwind(panic),
            // The runtime is shutting down.
            Err(Err(_)) => std::future::pending().await,
        }
    }

    /// Waits until the next look is due: a notification brings it forward to [`SETTLE`] from now, and further
    /// notifications do not put it off again.
    async fn until_due(&mut self) {
        loop {
            tokio::select! {
                () = tokio::time::sleep_until(self.due) => return,
                Some(()) = self.changed.recv() => self.due = self.due.min(Instant::now() + SETTLE),
            }
        }
    }
}
