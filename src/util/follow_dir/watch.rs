//! Notifications of changes in directories. Without them a follower still works, but finds changes only by its
//! periodic look; so every failure is a warning, and is tried again before the next look.

use super::Config;
use nix::errno::Errno;
use notify::event::{AccessKind, AccessMode};
use notify::{ErrorKind, EventKind, RecommendedWatcher, RecursiveMode, Watcher};
use std::collections::BTreeSet;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::sync::mpsc;

/// Makes a watcher that calls the handler. Tests replace this function to make watchers that fail.
pub(super) type MakeWatcher = Box<dyn Fn(Handler) -> notify::Result<Box<dyn Watcher + Send>> + Send>;

pub(super) struct Watch {
    subject: &'static str,
    period: Duration,
    make: MakeWatcher,
    changed: mpsc::Sender<()>,
    active: Option<Active>,
    /// The reported reason why changes are not notified.
    trouble: Option<String>,
}

struct Active {
    watcher: Box<dyn Watcher + Send>,
    health: Arc<Health>,
    directories: BTreeSet<PathBuf>,
}

#[derive(Default)]
struct Health {
    /// The watcher reported an error.
    has_failed: AtomicBool,
    /// The watcher's thread has ended.
    has_ended: AtomicBool,
}

/// Receives the events of one watcher.
pub(super) struct Handler {
    changed: mpsc::Sender<()>,
    health: Arc<Health>,
}

pub(super) fn inotify(handler: Handler) -> notify::Result<Box<dyn Watcher + Send>> {
    let watcher: RecommendedWatcher = Watcher::new(handler, notify::Config::default())?;
    Ok(Box::new(watcher))
}

impl notify::EventHandler for Handler {
    fn handle_event(&mut self, event: notify::Result<notify::Event>) {
        match event {
            Ok(event) if !is_change(event.kind) => return,
            Ok(_) => {}
            Err(error) => {
                tracing::debug!(%error, "a watcher of files failed");
                self.health.has_failed.store(true, Ordering::Release);
            }
        }
        // A full channel already says that something changed.
        let _ = self.changed.try_send(());
    }
}

impl Drop for Handler {
    fn drop(&mut self) {
        self.health.has_ended.store(true, Ordering::Release);
        let _ = self.changed.try_send(());
    }
}

/// Whether an event can mean that a file has other content. Reading is an event, too, and our own looks read.
fn is_change(kind: EventKind) -> bool {
    !kind.is_access() || kind == EventKind::Access(AccessKind::Close(AccessMode::Write))
}

impl Watch {
    pub(super) fn new(config: &Config, make: MakeWatcher, changed: mpsc::Sender<()>) -> Self {
        Self {
            subject: config.subject,
            period: config.period,
            make,
            changed,
            active: None,
            trouble: None,
        }
    }

    /// Watches exactly these directories. Called before each look, because a watch ends silently with its directory
    /// and a new directory of the same name is not watched. A directory that does not exist is left to the look.
    pub(super) fn cover(&mut self, directories: &BTreeSet<PathBuf>) {
        let (subject, secs) = (self.subject, self.period.as_secs_f64());
        let trouble = self.try_cover(directories).err().map(|error| describe(&error));
        match &trouble {
            Some(error) if self.trouble.as_ref() != Some(error) => {
                tracing::warn!(
                    error,
                    "inotify reports no changes of the {subject}; reading them every {secs} s"
                );
            }
            None if self.trouble.is_some() => tracing::info!("inotify reports changes of the {subject} again"),
            _ => {}
        }
        self.trouble = trouble;
    }

    fn try_cover(&mut self, directories: &BTreeSet<PathBuf>) -> notify::Result<()> {
        self.discard_broken();
        if self.active.is_none() {
            self.active = Some(Active::new(&self.make, self.changed.clone())?);
        }
        self.active.as_mut().map_or(Ok(()), |active| active.cover(directories))
    }

    /// Drops a watcher that has failed, so that another is made.
    fn discard_broken(&mut self) {
        let Some(active) = self.active.take_if(|active| active.is_broken()) else {
            return;
        };
        if active.has_ended() {
            // Dropping a watcher of `notify` panics if its thread is gone. The thread has closed the descriptors.
            std::mem::forget(active);
        }
    }
}

impl Active {
    fn has_ended(&self) -> bool {
        self.health.has_ended.load(Ordering::Acquire)
    }

    fn is_broken(&self) -> bool {
        self.has_ended() || self.health.has_failed.load(Ordering::Acquire)
    }

    fn new(make: &MakeWatcher, changed: mpsc::Sender<()>) -> notify::Result<Self> {
        let health = Arc::<Health>::default();
        let handler = Handler {
            changed,
            health: Arc::clone(&health),
        };
        let watcher = make(handler)?;
        let active = Self {
            watcher,
            health,
            directories: BTreeSet::new(),
        };
        if active.has_ended() {
            // Forgotten as in `discard_broken`, because `notify` does not report that its thread could not be started.
            std::mem::forget(active);
            return Err(notify::Error::generic("the watcher's thread could not be started"));
        }
        Ok(active)
    }

    fn cover(&mut self, directories: &BTreeSet<PathBuf>) -> notify::Result<()> {
        for gone in self.directories.difference(directories) {
            // The watch may have ended with the directory.
            let _ = self.watcher.unwatch(gone);
        }
        self.directories.clear();
        let mut covered = Ok(());
        for directory in directories {
            // Watching a directory again changes nothing, unless another directory has its name now.
            match self.watcher.watch(directory, RecursiveMode::NonRecursive) {
                Ok(()) => drop(self.directories.insert(directory.clone())),
                Err(error) if is_missing(&error) => {
                    let _ = self.watcher.unwatch(directory);
                }
                Err(error) => covered = covered.and(Err(error)),
            }
        }
        covered
    }
}

fn is_missing(error: &notify::Error) -> bool {
    match &error.kind {
        ErrorKind::PathNotFound => true,
        ErrorKind::Io(error) => error.kind() == io::ErrorKind::NotFound,
        _ => false,
    }
}

/// The error, with the setting to change if a limit is reached.
fn describe(error: &notify::Error) -> String {
    match &error.kind {
        ErrorKind::MaxFilesWatch => {
            "the limit of inotify watches is reached: raise the sysctl fs.inotify.max_user_watches".to_owned()
        }
        ErrorKind::Io(io) if io.raw_os_error() == Some(Errno::EMFILE as i32) => {
            "the limit of inotify instances is reached: raise the sysctl fs.inotify.max_user_instances (or the \
             process's limit of open files)"
                .to_owned()
        }
        _ => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use notify::event::{CreateKind, DataChange, ModifyKind};

    #[test]
    fn reading_is_no_change() {
        let access = EventKind::Access;
        assert!(!is_change(access(AccessKind::Open(AccessMode::Any))));
        assert!(!is_change(access(AccessKind::Close(AccessMode::Read))));
        assert!(is_change(access(AccessKind::Close(AccessMode::Write))));
        assert!(is_change(EventKind::Create(CreateKind::File)));
        assert!(is_change(EventKind::Modify(ModifyKind::Data(DataChange::Any))));
        // The kernel's queue of events overflowed.
        assert!(is_change(EventKind::Other));
    }

    #[test]
    fn a_limit_is_reported_with_its_setting() {
        let instances = io::Error::from_raw_os_error(Errno::EMFILE as i32).into();
        assert!(describe(&instances).contains("fs.inotify.max_user_instances"));
        let watches = notify::Error::new(ErrorKind::MaxFilesWatch);
        assert!(describe(&watches).contains("fs.inotify.max_user_watches"));
    }
}
