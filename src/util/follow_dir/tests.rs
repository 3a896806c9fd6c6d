//! Tests on real directories. Looks get their time as an argument; followers run until they report the expected
//! changes.

use super::watch::Handler;
use super::*;
use notify::{RecursiveMode, Watcher};
use parking_lot::Mutex;
use std::os::unix::fs::symlink;
use std::sync::Arc;

const HOUR: Duration = Duration::from_secs(3600);

/// A directory and a looker, with changes as text.
struct Fixture {
    dir: tempfile::TempDir,
    looker: Looker,
}

fn config(scope: Scope) -> Config {
    Config {
        subject: "test files",
        scope,
        wants: |_| true,
        inspect: |_| Inspected::Followed { companions: vec![] },
        removal: Removal::AtOnce,
        length_max: 100,
        period: Duration::from_secs(5),
    }
}

impl Fixture {
    fn new(scope: fn(PathBuf) -> Scope, change: impl FnOnce(&mut Config)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut config = config(scope(dir.path().to_owned()));
        change(&mut config);
        let looker = Looker::new(config);
        Self { dir, looker }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.path(name), text).unwrap();
    }

    fn remove(&self, name: &str) {
        std::fs::remove_file(self.path(name)).unwrap();
    }

    /// Replaces a file as a careful program does.
    fn replace(&self, name: &str, text: &str) {
        self.write(".new", text);
        std::fs::rename(self.path(".new"), self.path(name)).unwrap();
    }

    /// A look long after everything was written.
    fn look(&mut self) -> Vec<String> {
        self.try_look().unwrap()
    }

    fn try_look(&mut self) -> io::Result<Vec<String>> {
        let look = self.looker.look(&|| SystemTime::now() + HOUR)?;
        Ok(shown(&look.changes, self.dir.path()))
    }

    /// Like [`Fixture::look`], at `now`, and returns the pause before the next look.
    fn look_and_pause(&mut self, now: SystemTime) -> (Vec<String>, NextLook) {
        let look = self.looker.look(&|| now).unwrap();
        (shown(&look.changes, self.dir.path()), look.next)
    }
}

/// `+path=content`, `=path` if readable again, `!path: error`, `-path`.
fn shown(changes: &[FileChange], root: &Path) -> Vec<String> {
    let name = |path: &Path| path.strip_prefix(root).unwrap_or(path).display().to_string();
    let show = |change: &FileChange| match change {
        FileChange::Content(file) => format!("+{}={}", name(&file.path), String::from_utf8_lossy(&file.content)),
        FileChange::ReadableAgain(file) => format!("={}", name(&file.path)),
        FileChange::Unreadable { path, error } => format!("!{}: {error}", name(path)),
        FileChange::Removed(path) => format!("-{}", name(path)),
    };
    changes.iter().map(show).collect()
}

const NOTHING: [&str; 0] = [];

/// A volume as kubelet mounts it: files are links through `..data`, which links to a directory per version.
fn mount(dir: &Path, version: &str, files: &[(&str, &str)]) {
    std::fs::create_dir(dir.join(version)).unwrap();
    for (name, text) in files {
        std::fs::write(dir.join(version).join(name), text).unwrap();
        let _ = symlink(format!("..data/{name}"), dir.join(name));
    }
    symlink(version, dir.join("..data_tmp")).unwrap();
    std::fs::rename(dir.join("..data_tmp"), dir.join("..data")).unwrap();
}

// === looks ===

#[test]
fn only_changed_contents_are_reported() {
    let mut files = Fixture::new(Scope::Directory, |_| ());
    files.write("b", "1");
    files.write("a", "1");
    assert_eq!(files.look(), ["+a=1", "+b=1"]);
    assert_eq!(files.look(), NOTHING);
    files.write("a", "1");
    assert_eq!(files.look(), NOTHING, "written again with the same content");
    files.write("a", "2");
    files.remove("b");
    assert_eq!(files.look(), ["+a=2", "-b"]);
    assert_eq!(files.look(), NOTHING);
}

#[test]
fn a_file_that_is_being_written_is_read_later() {
    let mut files = Fixture::new(Scope::Directory, |_| ());
    files.write("a", "1");
    files.look();
    // The file is truncated and not yet filled.
    files.write("a", "");
    let written = std::fs::metadata(files.path("a")).unwrap().modified().unwrap();
    let early = written + SETTLE - Duration::from_millis(1);
    assert_eq!(files.look_and_pause(early), (vec![], NextLook::SoonToSettle));
    files.write("a", "2");
    let (changes, next) = files.look_and_pause(SystemTime::now() + SETTLE);
    assert_eq!((changes, next), (vec!["+a=2".to_owned()], NextLook::AfterPeriod));
    files.write("a", "3");
    assert_eq!(
        files.look_and_pause(SystemTime::UNIX_EPOCH).0,
        ["+a=3"],
        "times in the future count as long ago"
    );
}

#[test]
fn a_file_that_is_truncated_during_a_look_is_not_read() {
    let mut files = Fixture::new(Scope::Directory, |_| ());
    for name in ["a", "b"] {
        files.write(name, "1");
    }
    files.look();
    // "b" is truncated while "a" is being read; the clock advances.
    let truncated = files.path("b");
    let reads = std::cell::Cell::new(0);
    let clock = || {
        reads.set(reads.get() + 1);
        if reads.get() == 1 {
            std::fs::write(&truncated, "").unwrap();
            return SystemTime::now() + HOUR;
        }
        SystemTime::now()
    };
    let look = files.looker.look(&clock).unwrap();
    assert_eq!(shown(&look.changes, files.dir.path()), NOTHING);
    assert_eq!(look.next, NextLook::SoonToSettle);
    files.write("b", "2");
    assert_eq!(files.look(), ["+b=2"]);
}

#[test]
fn an_atomic_replacement_is_a_change_of_content() {
    let mut files = Fixture::new(Scope::Tree, |_| ());
    files.write("a", "1");
    files.look();
    files.replace("a", "2");
    assert_eq!(files.look(), ["+a=2"]);
    std::fs::rename(files.path("a"), files.path("b")).unwrap();
    assert_eq!(files.look(), ["+b=2", "-a"]);
}

#[test]
fn kubelets_swap_of_a_link_is_a_change_in_every_scope() {
    let scopes: [fn(PathBuf) -> Scope; 3] = [Scope::Directory, Scope::Tree, |dir| Scope::File(dir.join("a"))];
    for (scope, only) in scopes.into_iter().zip([false, false, true]) {
        let mut files = Fixture::new(scope, |_| ());
        mount(files.dir.path(), "..1", &[("a", "1"), ("b", "1")]);
        assert_eq!(files.look(), if only { vec!["+a=1"] } else { vec!["+a=1", "+b=1"] });
        mount(files.dir.path(), "..2", &[("a", "2"), ("b", "1")]);
        assert_eq!(files.look(), ["+a=2"]);
        mount(files.dir.path(), "..3", &[("b", "1")]);
        assert_eq!(files.look(), ["-a"], "its link leads nowhere");
    }
}

#[test]
fn a_removal_can_be_confirmed_by_a_second_look() {
    let mut files = Fixture::new(Scope::Directory, |config| config.removal = Removal::Confirmed);
    files.write("a", "1");
    files.look();
    let later = SystemTime::now() + HOUR;
    files.remove("a");
    assert_eq!(files.look_and_pause(later), (vec![], NextLook::SoonToSettle));
    files.write("a", "1");
    assert_eq!(
        files.look_and_pause(later),
        (vec![], NextLook::AfterPeriod),
        "back in time"
    );
    files.remove("a");
    assert_eq!(files.look(), NOTHING, "absent for the first time again");
    assert_eq!(files.look(), ["-a"]);
}

#[test]
fn a_directory_that_vanishes_takes_nothing_with_it() {
    for scope in [Scope::Directory, Scope::Tree] {
        let mut files = Fixture::new(|dir| Scope::Directory(dir.join("d")), |_| ());
        files.looker = Looker::new(config(scope(files.path("d"))));
        assert_eq!(files.try_look().unwrap_err().kind(), io::ErrorKind::NotFound);
        std::fs::create_dir(files.path("d")).unwrap();
        files.write("d/a", "1");
        files.write("d/b", "1");
        assert_eq!(files.look(), ["+d/a=1", "+d/b=1"]);
        std::fs::rename(files.path("d"), files.path("away")).unwrap();
        assert_eq!(files.try_look().unwrap_err().kind(), io::ErrorKind::NotFound);
        std::fs::create_dir(files.path("d")).unwrap();
        files.write("d/a", "1");
        assert_eq!(files.look(), ["-d/b"], "compared with what was known");
    }
}

#[test]
fn a_missing_file_or_directory_of_a_single_file_is_no_error() {
    let mut files = Fixture::new(|dir| Scope::File(dir.join("d/a")), |_| ());
    assert_eq!(files.look(), NOTHING);
    std::fs::create_dir(files.path("d")).unwrap();
    files.write("d/a", "1");
    assert_eq!(files.look(), ["+d/a=1"]);
    std::fs::remove_dir_all(files.path("d")).unwrap();
    assert_eq!(files.look(), ["-d/a"]);
}

#[test]
fn an_error_is_no_content() {
    let mut files = Fixture::new(Scope::Directory, |_| ());
    files.write("a", "1");
    files.look();
    // Reading this file fails with an I/O error.
    files.remove("a");
    symlink("/proc/self/mem", files.path("a")).unwrap();
    assert_eq!(files.look(), ["!a: Input/output error (os error 5)"]);
    assert_eq!(files.look(), NOTHING, "reported once");
    // Even the metadata of this file cannot be read.
    files.remove("a");
    symlink("a", files.path("a")).unwrap();
    let looped = files.look();
    assert!(
        looped[0].starts_with("!a: Too many levels of symbolic links"),
        "{looped:?}"
    );
    files.replace("a", "1");
    assert_eq!(files.look(), ["=a"]);
    files.write("a", &"x".repeat(101));
    assert_eq!(files.look(), ["!a: the file is longer than 100 bytes"]);
    files.replace("a", "2");
    assert_eq!(files.look(), ["+a=2"]);
    // The file is removed while it is unreadable.
    files.write("a", &"x".repeat(101));
    files.look();
    files.remove("a");
    assert_eq!(files.look(), ["-a"]);
    // The file was never read, so its content was never reported.
    symlink("/proc/self/mem", files.path("b")).unwrap();
    assert_eq!(files.look().len(), 1);
    files.remove("b");
    assert_eq!(files.look(), NOTHING);
}

#[test]
fn a_single_path_that_is_no_file_is_unreadable() {
    let mut files = Fixture::new(|dir| Scope::File(dir.join("a")), |_| ());
    std::fs::create_dir(files.path("a")).unwrap();
    assert_eq!(files.look(), ["!a: is a directory"]);
    std::fs::remove_dir(files.path("a")).unwrap();
    symlink("/dev/zero", files.path("a")).unwrap();
    assert_eq!(files.look(), ["!a: not a regular file"]);
}

/// Runs itself again in a process that may open only a few files.
#[test]
fn without_file_descriptors_nothing_changes() {
    const CHILD: &str = "ISTHMUS_TEST_FEW_FILES";
    if std::env::var_os(CHILD).is_none() {
        let name = "util::follow_dir::tests::without_file_descriptors_nothing_changes";
        let script = format!("ulimit -n 40; exec \"$0\" --exact {name} --test-threads=1");
        let mut child = std::process::Command::new("sh");
        child.args(["-c", &script]).arg(std::env::current_exe().unwrap());
        let output = child.env(CHILD, "1").output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
        return;
    }
    let mut files = Fixture::new(Scope::Tree, |_| ());
    files.write("a", "1");
    files.write("b", "1");
    assert_eq!(files.look(), ["+a=1", "+b=1"]);
    let mut held: Vec<_> = std::iter::from_fn(|| std::fs::File::open("/dev/null").ok()).collect();
    let error = files.try_look().unwrap_err();
    assert!(error.to_string().starts_with("Too many open files"), "{error}");
    drop(held);
    assert_eq!(files.look(), NOTHING);
    // A single file needs no descriptor for its directory.
    let mut single = Looker::new(config(Scope::File(files.path("a"))));
    single.look(&|| SystemTime::now() + HOUR).unwrap();
    held = std::iter::from_fn(|| std::fs::File::open("/dev/null").ok()).collect();
    let look = single.look(&|| SystemTime::now() + HOUR).unwrap();
    let changes = shown(&look.changes, files.dir.path());
    assert!(changes[0].starts_with("!a: Too many open files"), "{changes:?}");
    drop(held);
    let look = single.look(&|| SystemTime::now() + HOUR).unwrap();
    assert_eq!(shown(&look.changes, files.dir.path()), ["=a"]);
}

#[test]
fn a_file_is_followed_by_its_content_and_by_its_companions() {
    let inspect = |content: &[u8]| match content.strip_prefix(b"with ") {
        Some(companion) => Inspected::Followed {
            companions: vec![PathBuf::from(String::from_utf8_lossy(companion).into_owned())],
        },
        None => Inspected::Ignored,
    };
    let mut files = Fixture::new(Scope::Directory, |config| {
        config.inspect = inspect;
        config.wants = |path| path.ends_with("a");
    });
    files.write("c", "1");
    let text = format!("with {}", files.path("c").display());
    files.write("a", &text);
    assert_eq!(files.look(), [format!("+a={text}")]);
    assert_eq!(files.look(), NOTHING);
    files.write("c", "2");
    assert_eq!(files.look(), [format!("+a={text}")]);
    files.remove("c");
    symlink("c", files.path("c")).unwrap();
    assert_eq!(files.look(), NOTHING, "an unreadable companion is no news");
    files.remove("c");
    assert_eq!(files.look(), [format!("+a={text}")], "a missing companion is");
    files.write("a", "without");
    assert_eq!(files.look(), ["-a"]);
}

#[test]
fn a_tree_is_read_without_hidden_names_and_without_end_only_once() {
    let mut files = Fixture::new(Scope::Tree, |config| {
        config.wants = |path| path.extension().is_some_and(|e| e == "yaml");
    });
    std::fs::create_dir_all(files.path("x/y")).unwrap();
    std::fs::create_dir(files.path(".hidden")).unwrap();
    for name in ["a.yaml", "b.txt", ".c.yaml", ".hidden/d.yaml", "x/y/e.yaml"] {
        files.write(name, "1");
    }
    symlink("..", files.path("x/up")).unwrap();
    symlink("nowhere", files.path("dangling.yaml")).unwrap();
    let later = SystemTime::now() + HOUR;
    let (changes, next) = files.look_and_pause(later);
    assert_eq!(changes, ["+a.yaml=1", "+x/y/e.yaml=1"]);
    assert_eq!(next, NextLook::SoonToWatch, "the subdirectories");
    assert_eq!(files.look_and_pause(later), (vec![], NextLook::AfterPeriod));
    std::fs::remove_dir_all(files.path("x")).unwrap();
    assert_eq!(files.look(), ["-x/y/e.yaml"]);
}

// === followers ===

async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(20), future).await.unwrap()
}

/// A follower of a directory that would look only once without notifications.
fn notified(scope: Scope) -> Follower {
    let mut config = config(scope);
    config.period = HOUR;
    Follower::new(config)
}

async fn next(follower: &mut Follower, root: &Path) -> Vec<String> {
    let update = soon(follower.next()).await.unwrap();
    shown(&update.changes, root)
}

#[tokio::test]
async fn changes_are_noticed_without_waiting_for_the_period() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    std::fs::write(at("a"), "1").unwrap();
    let mut follower = notified(Scope::Tree(dir.path().to_owned()));
    let first = soon(follower.next()).await.unwrap();
    assert!(first.listed);
    assert_eq!(shown(&first.changes, dir.path()), ["+a=1"]);
    std::fs::write(at("a"), "2").unwrap();
    assert_eq!(next(&mut follower, dir.path()).await, ["+a=2"]);
    std::fs::rename(at("a"), at("b")).unwrap();
    assert_eq!(next(&mut follower, dir.path()).await, ["+b=2", "-a"]);
    std::fs::create_dir(at("d")).unwrap();
    std::fs::write(at("d/c"), "1").unwrap();
    assert_eq!(next(&mut follower, dir.path()).await, ["+d/c=1"]);
    std::fs::write(at("d/c"), "2").unwrap();
    assert_eq!(next(&mut follower, dir.path()).await, ["+d/c=2"]);
    std::fs::remove_dir_all(at("d")).unwrap();
    std::fs::create_dir(at("d")).unwrap();
    assert_eq!(next(&mut follower, dir.path()).await, ["-d/c"]);
    std::fs::write(at("d/c"), "3").unwrap();
    assert_eq!(
        next(&mut follower, dir.path()).await,
        ["+d/c=3"],
        "another directory of the same name"
    );
}

#[tokio::test]
async fn kubelets_swap_of_a_link_is_noticed() {
    let dir = tempfile::tempdir().unwrap();
    mount(dir.path(), "..1", &[("a", "1")]);
    let mut follower = notified(Scope::File(dir.path().join("a")));
    assert_eq!(next(&mut follower, dir.path()).await, ["+a=1"]);
    mount(dir.path(), "..2", &[("a", "2")]);
    assert_eq!(next(&mut follower, dir.path()).await, ["+a=2"]);
}

#[tokio::test(start_paused = true)]
async fn a_cancelled_wait_loses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let mut follower = Follower::new(config(Scope::Directory(dir.path().to_owned())));
    assert!(follower.next().await.unwrap().listed);
    std::fs::write(dir.path().join("a"), "1").unwrap();
    let update = loop {
        tokio::select! {
            biased;
            update = follower.next() => break update.unwrap(),
            () = tokio::task::yield_now() => {}
        }
        // Lets the looks become due.
        tokio::time::sleep(SETTLE).await;
    };
    assert_eq!(shown(&update.changes, dir.path()), ["+a=1"]);
    assert!(!update.listed);
}

#[tokio::test(start_paused = true)]
async fn an_unreadable_directory_is_reported_once_and_its_return_is_found() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let mut follower = Follower::new(config(Scope::Directory(at("d"))));
    assert_eq!(follower.next().await.unwrap_err().kind(), io::ErrorKind::NotFound);
    assert!(tokio::time::timeout(HOUR, follower.next()).await.is_err());
    std::fs::create_dir(at("d")).unwrap();
    assert!(follower.next().await.unwrap().listed);
    std::fs::remove_dir(at("d")).unwrap();
    assert_eq!(follower.next().await.unwrap_err().kind(), io::ErrorKind::NotFound);
}

// === watchers ===

/// Makes watchers that cannot be made, and watchers that are controlled by a test.
#[derive(Clone, Default)]
struct Fakes(Arc<Mutex<FakesState>>);

#[derive(Default)]
struct FakesState {
    /// The error number of the next attempts to make a watcher.
    error: Option<i32>,
    attempts: usize,
    handlers: Vec<Option<Handler>>,
    watched: Vec<PathBuf>,
}

struct Fake(Fakes);

impl Watcher for Fake {
    fn new<F: notify::EventHandler>(_: F, _: notify::Config) -> notify::Result<Self> {
        unreachable!("made by the test")
    }

    fn watch(&mut self, path: &Path, _: RecursiveMode) -> notify::Result<()> {
        self.0.0.lock().watched.push(path.to_owned());
        Ok(())
    }

    fn unwatch(&mut self, _: &Path) -> notify::Result<()> {
        Ok(())
    }

    fn kind() -> notify::WatcherKind {
        notify::WatcherKind::NullWatcher
    }
}

impl Fakes {
    fn follower(&self, dir: &Path, period: Duration) -> Follower {
        let fakes = self.clone();
        let make = move |handler| {
            let mut state = fakes.0.lock();
            state.attempts += 1;
            if let Some(error) = state.error {
                return Err(io::Error::from_raw_os_error(error).into());
            }
            state.handlers.push(Some(handler));
            drop(state);
            Ok(Box::new(Fake(fakes.clone())) as Box<dyn Watcher + Send>)
        };
        let mut config = config(Scope::Directory(dir.to_owned()));
        config.period = period;
        Follower::with_watcher(config, Box::new(make))
    }
}

#[tokio::test(start_paused = true)]
async fn without_inotify_instances_the_files_are_looked_at_periodically() {
    let (dir, fakes) = (tempfile::tempdir().unwrap(), Fakes::default());
    fakes.0.lock().error = Some(nix::errno::Errno::EMFILE as i32);
    let mut follower = fakes.follower(dir.path(), Duration::from_secs(5));
    assert!(follower.next().await.unwrap().listed);
    std::fs::write(dir.path().join("a"), "1").unwrap();
    let update = follower.next().await.unwrap();
    assert_eq!(shown(&update.changes, dir.path()), ["+a=1"]);
    assert!(fakes.0.lock().attempts >= 2, "tried again at each look");
    fakes.0.lock().error = None;
    std::fs::write(dir.path().join("a"), "2").unwrap();
    follower.next().await.unwrap();
    let attempts = fakes.0.lock().attempts;
    std::fs::write(dir.path().join("a"), "3").unwrap();
    follower.next().await.unwrap();
    let state = fakes.0.lock();
    assert_eq!(state.attempts, attempts, "made once it can be");
    assert!(
        state.watched.iter().filter(|path| *path == dir.path()).count() >= 2,
        "watched before each look"
    );
}

#[tokio::test]
async fn a_watcher_that_fails_or_ends_is_replaced_at_once() {
    let (dir, fakes) = (tempfile::tempdir().unwrap(), Fakes::default());
    let mut follower = fakes.follower(dir.path(), HOUR);
    assert!(soon(follower.next()).await.unwrap().listed);
    let handler = || fakes.0.lock().handlers.last_mut().unwrap().take().unwrap();
    let mut failing = handler();
    std::fs::write(dir.path().join("a"), "1").unwrap();
    notify::EventHandler::handle_event(&mut failing, Err(notify::Error::generic("broken")));
    assert_eq!(next(&mut follower, dir.path()).await, ["+a=1"]);
    assert_eq!(fakes.0.lock().attempts, 2);
    std::fs::write(dir.path().join("a"), "2").unwrap();
    // The watcher's thread has ended.
    drop(handler());
    assert_eq!(next(&mut follower, dir.path()).await, ["+a=2"]);
    assert_eq!(fakes.0.lock().attempts, 3);
}
