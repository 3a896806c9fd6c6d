//! The reaction of the writer to errors of the file system, one errno at a time.

use super::*;
use crate::durable::engine::{Engine, LoadError, Sizes, Visit};
use crate::durable::files::{Step, faults};
use crate::durable::open::open_with;
use nix::errno::Errno;
use parking_lot::Mutex;
use std::io;
use std::time::Duration;

pub(super) type Fault = Arc<Mutex<Option<(Step, Errno)>>>;

/// An engine whose disk fails as a test asks.
struct Faulty {
    engine: Box<dyn Engine>,
    fault: Fault,
}

impl Faulty {
    fn engine(&mut self) -> &mut dyn Engine {
        faults::set(*self.fault.lock());
        &mut *self.engine
    }
}

impl Engine for Faulty {
    fn load(&mut self, options: LoadOptions, visit: &mut Visit<'_>) -> Result<Sizes, LoadError> {
        self.engine().load(options, visit)
    }
    fn append(&mut self, number: u64, frame: &[u8]) -> io::Result<()> {
        self.engine().append(number, frame)
    }
    fn sync(&mut self) -> io::Result<()> {
        self.engine().sync()
    }
    fn reserve(&mut self) -> io::Result<()> {
        self.engine().reserve()
    }
    fn has_room(&self) -> bool {
        self.engine.has_room()
    }
    fn begin(&mut self, number: u64) -> io::Result<()> {
        self.engine().begin(number)
    }
    fn add(&mut self, frame: &[u8]) -> io::Result<()> {
        self.engine().add(frame)
    }
    fn finish(&mut self) -> io::Result<()> {
        self.engine().finish()
    }
    fn abandon(&mut self) {
        self.engine().abandon();
    }
    fn close(&mut self, next: u64) -> io::Result<()> {
        self.engine().close(next)
    }
}

pub(super) fn start_faulty(config: &Config) -> (Running, Fault) {
    let fault = Fault::default();
    let given = Arc::clone(&fault);
    let wrap = |engine| Box::new(Faulty { engine, fault: given }) as Box<dyn Engine>;
    let (durable, loaded) = open_with(config, Hooks::default(), wrap).unwrap();
    (Running { durable, loaded }, fault)
}

impl Running {
    /// Puts as a client does: refused before the write, or afterwards while the disk takes no writes.
    fn try_put(&self, key: &str, size: usize) -> Result<(), Refused> {
        self.durable.admit()?;
        let put = Put {
            key: key.to_owned().into(),
            value: vec![7; size].into(),
            ..Put::default()
        };
        let revision = self.loaded.store.put(put).unwrap().revision;
        wait(self.durable.reached_or_refused(Point::Revision(revision)))
    }
}

/// The outcome of an error.
#[derive(Clone, Copy, Debug)]
enum Outcome {
    /// Writes are refused with this text until the error is gone.
    Refuses(&'static str),
    /// The process ends.
    Ends,
    /// No writer notices.
    Unnoticed,
}

fn outcome(errno: Errno, step: Step) -> Outcome {
    match (errno, step) {
        // The log goes on without a checkpoint.
        (_, Step::WriteCheckpoint) => Outcome::Unnoticed,
        (errno, Step::CreateCheckpoint) if !BROKEN.contains(&errno) => Outcome::Unnoticed,
        (Errno::ENOSPC, _) => Outcome::Refuses("no room on the disk of the data directory (ENOSPC)"),
        (Errno::EDQUOT, _) => Outcome::Refuses("is used up (EDQUOT)"),
        (Errno::EFBIG, _) => Outcome::Refuses("would be longer than allowed (EFBIG)"),
        (Errno::EMFILE, _) => Outcome::Refuses("the process has no free file descriptors (EMFILE)"),
        (Errno::ENFILE, _) => Outcome::Refuses("the machine has no free file descriptors (ENFILE)"),
        (Errno::ENOMEM, _) => Outcome::Refuses("the kernel has no memory (ENOMEM)"),
        (Errno::EAGAIN | Errno::EBUSY | Errno::EINTR, _) => Outcome::Refuses("the data directory is busy"),
        (Errno::EROFS, _) => Outcome::Refuses("is read-only (EROFS)"),
        (Errno::EACCES | Errno::EPERM, _) => Outcome::Refuses("may not write to the data directory"),
        _ => Outcome::Ends,
    }
}

const ERRNOS: [Errno; 14] = [
    Errno::ENOSPC,
    Errno::EDQUOT,
    Errno::EFBIG,
    Errno::EMFILE,
    Errno::ENFILE,
    Errno::ENOMEM,
    Errno::EAGAIN,
    Errno::EBUSY,
    Errno::EINTR,
    Errno::EROFS,
    Errno::EACCES,
    Errno::EPERM,
    Errno::EIO,
    Errno::ENODEV,
];

/// Errors of a broken disk.
const BROKEN: [Errno; 2] = [Errno::EIO, Errno::ENODEV];

const STEPS: [Step; 11] = [
    Step::CreateSpare,
    Step::WriteHead,
    Step::SyncHead,
    Step::Rename,
    Step::SyncDirectory,
    Step::WriteSeal,
    Step::SyncSeal,
    Step::WriteGroup,
    Step::SyncGroup,
    Step::CreateCheckpoint,
    Step::WriteCheckpoint,
];

/// Writes until a write is refused, and fails if none is.
fn refused(running: &Running, case: &str) -> Refused {
    // The values are longer than the room that is kept, so that a group does not fit.
    let refused = (0..100).find_map(|n| running.try_put(&format!("k{}", n % 40), 200_000).err());
    refused.unwrap_or_else(|| panic!("{case}: no write was refused"))
}

fn eventually(case: &str, done: impl Fn() -> bool) {
    let begun = tokio::time::Instant::now();
    while !done() {
        assert!(begun.elapsed() < Duration::from_secs(20), "{case}: did not happen");
        std::thread::yield_now();
    }
}

#[test]
fn an_error_of_the_environment_refuses_writes_until_it_is_gone_and_a_broken_disk_ends_the_process() {
    std::thread::scope(|scope| {
        for step in STEPS {
            // The cases wait for retries, so they run side by side.
            scope.spawn(move || ERRNOS.into_iter().for_each(|errno| meet(errno, step)));
        }
    });
}

fn meet(errno: Errno, step: Step) {
    let case = format!("{errno} at {step:?}");
    let home = tempfile::tempdir().unwrap();
    let config = match step {
        Step::CreateCheckpoint | Step::WriteCheckpoint => config(home.path()),
        // No checkpoint, which could remove files while the test copies them.
        _ => Config::new(home.path().to_owned()),
    };
    let (running, fault) = start_faulty(&config);
    running.put("before", b"1");
    *fault.lock() = Some((step, errno));
    match outcome(errno, step) {
        Outcome::Refuses(text) => {
            let refused = refused(&running, &case);
            assert!(matches!(refused, Refused::Obstacle(_)), "{case}: {refused}");
            assert!(refused.to_string().contains(text), "{case}: {refused}");
            assert!(running.durable.obstacle().is_some(), "{case}");
            *fault.lock() = None;
            eventually(&case, || running.durable.admit().is_ok());
        }
        Outcome::Ends => {
            assert_eq!(refused(&running, &case), Refused::Ended, "{case}");
            assert!(!wait(running.durable.failed()).is_empty(), "{case}");
            return;
        }
        Outcome::Unnoticed => {
            for n in 0..60 {
                running.try_put(&format!("k{}", n % 40), 9_000).unwrap();
            }
            assert_eq!(running.durable.metrics().checkpoints.get(), 0, "{case}");
            return;
        }
    }
    running.put("after", b"1");
    running.flushed();
    // The change that was refused after it was made is written, too.
    let (identity, expected) = (running.loaded.identity, content(&running.loaded.store));
    let crash = tempfile::tempdir().unwrap();
    crashed(&running, home.path(), crash.path());
    drop(running);
    for path in [home.path(), crash.path()] {
        let again = start(&Config {
            directory: path.to_owned(),
            ..config.clone()
        });
        assert_eq!(again.loaded.identity, identity, "{case}");
        assert_eq!(content(&again.loaded.store), expected, "{case}");
    }
}

#[test]
fn answers_about_users_do_not_wait_for_a_disk_that_takes_no_writes() {
    let home = tempfile::tempdir().unwrap();
    let (running, fault) = start_faulty(&config(home.path()));
    *fault.lock() = Some((Step::WriteGroup, Errno::ENOSPC));
    assert!(running.try_put("a", 1).is_err());
    wait(running.durable.reached_or_refused(running.durable.last_metadata())).unwrap();
    let told = wait(running.durable.reached_or_refused(running.durable.last_change()));
    assert_eq!(told, Err(Refused::Obstacle(Obstacle::NoSpace)));
    *fault.lock() = None;
    running.flushed();
    assert_eq!(running.value("a"), Some(vec![7]));
}

#[test]
fn a_new_store_takes_little_space_and_its_log_files_grow() {
    let home = tempfile::tempdir().unwrap();
    let config = Config::new(home.path().to_owned());
    let running = start(&config);
    let lengths = || {
        let files = fs::read_dir(home.path().join("store")).unwrap().map(|e| e.unwrap());
        let logs = files.filter(|e| e.file_name().to_string_lossy().starts_with("log-"));
        let mut lengths: Vec<_> = logs.map(|e| e.metadata().unwrap().len()).collect();
        lengths.sort_unstable();
        lengths
    };
    assert_eq!(lengths(), [1 << 20]);
    for n in 0..10 {
        running.put(&format!("k{n}"), &[7; 600_000]);
    }
    assert_eq!(lengths(), [1 << 20, 2 << 20, 4 << 20]);
    // A group that is longer than a log file gets a file of its own length.
    running.put("large", &vec![7; 9 << 20]);
    assert!(lengths().last().is_some_and(|last| *last > 9 << 20));
    drop(running);
    assert!(start(&config).value("large").is_some());
}
