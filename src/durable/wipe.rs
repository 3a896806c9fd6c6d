//! Empties a data directory for a new store: removes data of this program and of etcd. A directory that holds
//! anything else is not changed.

use super::directory::Directory;
use super::error::Error;
use super::files::sync_directory;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::path::Path;

/// Made by the file system; never removed.
const LOST: &str = "lost+found";

/// Empties an existing directory, and returns it locked.
pub(super) fn empty(path: &Path) -> Result<Directory, Error> {
    // Check the content before locking, because locking creates a file.
    let names = known(path)?;
    // A running etcd holds a lock on its database.
    let _etcd = names.iter().any(|name| name == "member").then(|| lock_etcd(path));
    let _etcd = _etcd.transpose()?;
    let directory = Directory::lock_any(path)?;
    let names = known(path)?;
    let removed = || -> io::Result<()> {
        let half = path.join("store.tmp");
        remove(&half)?;
        if names.iter().any(|name| name == "store") {
            // Rename first: if the process ends here, no store with missing files is left.
            fs::rename(path.join("store"), &half)?;
            remove(&half)?;
        }
        for name in names.iter().filter(|name| *name != "LOCK" && *name != "store") {
            tracing::debug!(path = %path.join(name).display(), "removing");
            remove(&path.join(name))?;
        }
        sync_directory(path)
    };
    removed().map_err(|e| Error::io(format!("cannot empty {}", path.display()), e))?;
    Ok(directory)
}

fn remove(path: &Path) -> io::Result<()> {
    let removed = match fs::symlink_metadata(path) {
        Ok(meta) if meta.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    match removed {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// The names in a directory, if this program or etcd can have made all of them.
fn known(path: &Path) -> Result<Vec<String>, Error> {
    let unreadable = |e| Error::io(format!("cannot read {}", path.display()), e);
    let mut names = vec![];
    for entry in fs::read_dir(path).map_err(unreadable)? {
        let name = entry.map_err(unreadable)?.file_name();
        match name.to_str() {
            Some(LOST) => {}
            Some(text) if is_known(path, text).map_err(unreadable)? => names.push(text.to_owned()),
            _ => {
                return Err(Error::UnknownContent {
                    path: path.to_owned(),
                    name: name.to_string_lossy().into_owned(),
                });
            }
        }
    }
    Ok(names)
}

/// Whether this program or etcd can have made the entry `name`.
fn is_known(directory: &Path, name: &str) -> io::Result<bool> {
    let path = directory.join(name);
    let meta = fs::symlink_metadata(&path)?;
    if meta.is_file() {
        // etcd creates .touch to find out whether it may write.
        return Ok((name == "LOCK" || name == ".touch") && meta.len() == 0);
    }
    if !meta.is_dir() {
        return Ok(false);
    }
    match name {
        "store" => Ok(path.join("identity").is_file() || holds_only(&path, is_of_store)?),
        "store.tmp" | "damaged" => Ok(true),
        "member" => holds_only(&path, |name| {
            name.starts_with("wal") || name.starts_with("snap") || name == ".touch"
        }),
        // Certificates of etcd's --auto-tls.
        "fixtures" => holds_only(&path, |name| name == "client" || name == "peer"),
        _ => Ok(is_damaged(name)),
    }
}

/// Whether a file belongs to a store, for stores whose identity is lost.
fn is_of_store(name: &str) -> bool {
    let begins = ["log-", "checkpoint-"].iter().any(|p| name.starts_with(p));
    begins || name == "running" || name == "spare" || name.ends_with(".tmp")
}

/// Whether `name` is like `damaged-20261123T031034Z` or `damaged-20261123T031034Z-1`.
fn is_damaged(name: &str) -> bool {
    let mut parts = name.split('-');
    let digits = |s: &str| !s.is_empty() && s.bytes().all(|b| b.is_ascii_digit());
    let is_time = |s: &str| {
        let time = s.strip_suffix('Z').and_then(|s| s.split_once('T'));
        time.is_some_and(|(day, time)| day.len() == 8 && time.len() == 6 && digits(day) && digits(time))
    };
    parts.next() == Some("damaged")
        && parts.next().is_some_and(is_time)
        && parts.next().is_none_or(digits)
        && parts.next().is_none()
}

fn holds_only(directory: &Path, is_right: impl Fn(&str) -> bool) -> io::Result<bool> {
    for entry in fs::read_dir(directory)? {
        if !entry?.file_name().to_str().is_some_and(&is_right) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Locks etcd's database, so that no etcd starts; fails if an etcd runs. `None` if there is no database.
fn lock_etcd(path: &Path) -> Result<Option<File>, Error> {
    let database: std::path::PathBuf = [path.as_os_str(), OsStr::new("member/snap/db")].iter().collect();
    let Ok(file) = File::open(&database) else {
        return Ok(None);
    };
    match file.try_lock() {
        Err(fs::TryLockError::WouldBlock) => Err(Error::InUse(path.to_owned())),
        // etcd cannot run on a file system without locks.
        Err(fs::TryLockError::Error(_)) => Ok(None),
        Ok(()) => Ok(Some(file)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::AuthState;
    use crate::durable::{EngineKind, Import, replace};
    use crate::mvcc::Store;

    fn anew(path: &Path) -> Result<u64, Error> {
        let import = Import {
            store: &Store::new(),
            auth: &AuthState::default(),
            alarms: vec![],
        };
        replace(path, EngineKind::Log, import).map(|identity| identity.cluster_id)
    }

    fn names(path: &Path) -> Vec<String> {
        let entries = fs::read_dir(path).unwrap();
        let mut names: Vec<_> = entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn data_of_ours_or_of_etcd_is_replaced_by_a_store_with_new_ids() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let first = anew(dir.path()).unwrap();
        for made in [
            "member/snap",
            "member/wal",
            "lost+found",
            "store.tmp/x",
            "fixtures/client",
        ] {
            fs::create_dir_all(at(made)).unwrap();
        }
        fs::write(at("member/snap/db"), "").unwrap();
        fs::rename(at("store"), at("damaged-20261123T031034Z")).unwrap();
        fs::create_dir(at("store")).unwrap();
        fs::write(at("store/log-0000000000000001"), "its identity is lost").unwrap();
        let second = anew(dir.path()).unwrap();
        assert_eq!(names(dir.path()), ["LOCK", "lost+found", "store"]);
        assert_ne!(first, second);
    }

    #[test]
    fn a_directory_with_anything_else_is_not_changed() {
        for stranger in [
            "notes.txt",
            "LOCK",
            "member/notes.txt",
            "store/photos/1",
            "fixtures/users.json",
            "damaged-goods/1",
        ] {
            let dir = tempfile::tempdir().unwrap();
            fs::create_dir_all(dir.path().join("store.tmp")).unwrap();
            let file = dir.path().join(stranger);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(&file, "mine").unwrap();
            let before = names(dir.path());
            let error = anew(dir.path()).unwrap_err().to_string();
            let name = stranger.split('/').next().unwrap();
            assert!(error.contains(&format!("{name:?}")), "{error}");
            assert_eq!(names(dir.path()), before, "{stranger}");
            assert_eq!(fs::read(&file).unwrap(), b"mine");
        }
    }

    #[test]
    fn a_directory_that_is_missing_or_in_use_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let missing = dir.path().join("missing");
        assert!(anew(&missing).unwrap_err().to_string().contains("missing"));
        assert!(!missing.exists());
        let link = dir.path().join("store");
        std::os::unix::fs::symlink("/tmp", &link).unwrap();
        assert!(
            matches!(anew(dir.path()), Err(Error::UnknownContent { .. })),
            "a link to elsewhere"
        );
        fs::remove_file(link).unwrap();
        let database = dir.path().join("member/snap/db");
        fs::create_dir_all(database.parent().unwrap()).unwrap();
        fs::write(&database, "").unwrap();
        let etcd = File::open(&database).unwrap();
        etcd.lock().unwrap();
        assert!(matches!(anew(dir.path()), Err(Error::InUse(_))));
        drop(etcd);
        let held = empty(dir.path()).unwrap();
        assert!(matches!(anew(dir.path()), Err(Error::InUse(_))));
        drop(held);
        anew(dir.path()).unwrap();
    }
}
