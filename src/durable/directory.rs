//! The data directory: its lock, the identity of its store, and damaged stores that were set aside.
//!
//! ```text
//! LOCK                       locked while a process uses the directory
//! store/identity             ids, format and engine of the store
//! store/running              mode and boot id of a process that runs without syncing every group
//! store/…                    files of the engine
//! damaged-<date>/            a former store/
//! ```

use super::damage::Damage;
use super::engines::EngineKind;
use super::error::Error;
use super::files::{new_file, sync_directory};
use super::obstacle::Obstacle;
use super::{FOLLOWER_FORMAT, FORMAT, Mode};
use crate::util::access;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

/// Damaged stores to keep; older ones are removed.
const DAMAGED_KEPT: usize = 3;
/// Linux's id of the present boot.
const BOOT: &str = "/proc/sys/kernel/random/boot_id";

/// A locked data directory.
pub(super) struct Directory {
    path: PathBuf,
    _lock: File,
}

/// The identity of a store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoreIdentity {
    /// Format version of the directory.
    pub format: u32,
    pub engine: EngineKind,
    /// Seed of all checksums, so that files of another store are recognized.
    pub salt: u64,
    /// The cluster of the store. A replica has the id of the cluster that it follows.
    pub cluster_id: u64,
    pub member_id: u64,
    #[serde(default, skip_serializing_if = "StoreRole::is_own")]
    pub role: StoreRole,
}

/// Whose data a store holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StoreRole {
    /// A cluster of its own.
    #[default]
    Own,
    /// A copy of the cluster that it follows.
    Follower,
}

/// The identity with the checksum of its JSON text. The text may have fields of a later version.
#[derive(Serialize, Deserialize)]
struct Signed {
    identity: Box<RawValue>,
    crc32c: u32,
}

/// The field of an identity that every version has.
#[derive(Deserialize)]
struct Version {
    format: u32,
}

#[derive(Serialize, Deserialize)]
struct Running {
    mode: Mode,
    boot: String,
}

fn boot() -> String {
    let boot = fs::read_to_string(BOOT).unwrap_or_default();
    boot.trim().to_owned()
}

/// Replaces a file atomically and durably.
fn replace(path: &Path, content: &[u8]) -> io::Result<()> {
    let new = path.with_extension("tmp");
    let mut file = new_file().truncate(true).open(&new)?;
    file.write_all(content)?;
    file.sync_all()?;
    fs::rename(&new, path)?;
    path.parent().map_or(Ok(()), sync_directory)
}

/// Whether a path is that of a damaged store that was set aside.
fn is_damaged(path: &Path) -> bool {
    path.file_name()
        .is_some_and(|n| n.to_string_lossy().starts_with("damaged-"))
}

impl StoreIdentity {
    /// The identity of a new store, different from every other.
    pub(super) fn random(engine: EngineKind) -> Self {
        let id = || rand::random::<u64>() | 1;
        Self {
            format: FORMAT,
            engine,
            salt: id(),
            cluster_id: id(),
            member_id: id(),
            role: StoreRole::Own,
        }
    }

    /// The identity of a new copy of a cluster.
    pub(super) fn follower_of(cluster_id: u64, engine: EngineKind) -> Self {
        Self {
            format: FOLLOWER_FORMAT,
            cluster_id,
            role: StoreRole::Follower,
            ..Self::random(engine)
        }
    }
}

impl StoreRole {
    fn is_own(&self) -> bool {
        *self == Self::Own
    }
}

impl Directory {
    /// Makes the directory if it is missing, and locks it.
    pub(super) fn lock(path: &Path) -> Result<Self, Error> {
        let mut builder = fs::DirBuilder::new();
        let made = builder.recursive(true).mode(0o700).create(path);
        made.map_err(|e| {
            Error::io(
                format!("cannot create data directory {}", path.display()),
                access::explained(e, path),
            )
        })?;
        let directory = Self::lock_any(path)?;
        if path.join("member").exists() && !path.join("store").exists() {
            return Err(Error::Foreign(path.to_owned()));
        }
        Ok(directory)
    }

    /// Locks an existing directory with any content.
    pub(super) fn lock_any(path: &Path) -> Result<Self, Error> {
        let failed =
            |what: &str, e: io::Error| Error::io(format!("{what} {}", path.display()), access::explained(e, path));
        let lock = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .open(path.join("LOCK"));
        let lock = lock.map_err(|e| failed("cannot write to", e))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(fs::TryLockError::WouldBlock) => return Err(Error::InUse(path.to_owned())),
            Err(fs::TryLockError::Error(e)) => return Err(failed("cannot lock", e)),
        }
        let path = path.to_owned();
        Ok(Self { path, _lock: lock })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The directory of the store and its engine.
    pub(super) fn store(&self) -> PathBuf {
        self.path.join("store")
    }

    /// Makes a store atomically; `fill` makes the engine's files.
    pub(super) fn create(
        &self,
        identity: &StoreIdentity,
        fill: impl FnOnce(&Path) -> io::Result<()>,
    ) -> Result<(), Error> {
        let made = || -> io::Result<()> {
            let new = self.path.join("store.tmp");
            if new.exists() {
                fs::remove_dir_all(&new)?;
            }
            fs::DirBuilder::new().mode(0o700).create(&new)?;
            fill(&new)?;
            self.write_identity(&new, identity)?;
            fs::rename(&new, self.store())?;
            sync_directory(&self.path)
        };
        made().map_err(|e| {
            let full = Obstacle::of(&e).is_some_and(Obstacle::is_full);
            let needs = if full {
                ": a new store takes 2 MiB and grows with use"
            } else {
                ""
            };
            Error::io(format!("cannot create a store in {}{needs}", self.path.display()), e)
        })
    }

    fn write_identity(&self, store: &Path, identity: &StoreIdentity) -> io::Result<()> {
        let identity = serde_json::value::to_raw_value(identity)?;
        let crc32c = crc32c::crc32c(identity.get().as_bytes());
        let signed = Signed { identity, crc32c };
        let mut text = serde_json::to_vec(&signed)?;
        text.push(b'\n');
        replace(&store.join("identity"), &text)
    }

    /// Replaces the identity of the store.
    pub(super) fn change_identity(&self, identity: &StoreIdentity) -> Result<(), Error> {
        let written = self.write_identity(&self.store(), identity);
        written.map_err(|e| Error::io(format!("cannot write to {}", self.path.display()), e))
    }

    /// The identity of the store; `None` if there is no store.
    pub(super) fn identity(&self) -> Result<Option<StoreIdentity>, Error> {
        let store = self.store();
        if !store.exists() {
            return Ok(None);
        }
        let path = store.join("identity");
        let damaged = |why: &str| Error::Damaged(Damage::of(&path, why));
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(e) => return Err(Error::read(&path, e)),
        };
        let signed = serde_json::from_slice::<Signed>(&text).ok();
        let signed = signed.filter(|s| crc32c::crc32c(s.identity.get().as_bytes()) == s.crc32c);
        let identity = signed.ok_or_else(|| damaged("the checksum does not match"))?.identity;
        match serde_json::from_str::<Version>(identity.get()) {
            Ok(Version { format }) if format > FOLLOWER_FORMAT => {
                let path = self.path.clone();
                return Err(Error::Newer { path, format });
            }
            _ => {}
        }
        let identity = serde_json::from_str(identity.get());
        identity.map(Some).map_err(|e| damaged(&e.to_string()))
    }

    /// Removes the store.
    pub(super) fn remove(&self) -> Result<(), Error> {
        let removed = || -> io::Result<()> {
            // A store that is removed in part must not look like a damaged one.
            let gone = self.path.join("store.tmp");
            if gone.exists() {
                fs::remove_dir_all(&gone)?;
            }
            fs::rename(self.store(), &gone)?;
            sync_directory(&self.path)?;
            fs::remove_dir_all(&gone)
        };
        removed().map_err(|e| Error::io(format!("cannot remove {}", self.store().display()), e))
    }

    /// Moves the store to `damaged-<date>`; returns the new path.
    pub(super) fn set_aside(&self) -> Result<PathBuf, Error> {
        let now = jiff::Timestamp::now().strftime("%Y%m%dT%H%M%SZ");
        let names = (0..).map(|n| match n {
            0 => format!("damaged-{now}"),
            n => format!("damaged-{now}-{n}"),
        });
        let mut paths = names.map(|name| self.path.join(name));
        let aside = paths
            .find(|path| !path.exists())
            .unwrap_or_else(|| self.path.join("damaged"));
        let moved = || -> io::Result<()> {
            fs::rename(self.store(), &aside)?;
            sync_directory(&self.path)?;
            let mut damaged: Vec<PathBuf> = fs::read_dir(&self.path)?
                .filter_map(|entry| Some(entry.ok()?.path()))
                .filter(|path| is_damaged(path))
                .collect();
            damaged.sort();
            for old in &damaged[..damaged.len().saturating_sub(DAMAGED_KEPT)] {
                tracing::warn!(path = %old.display(), kept = DAMAGED_KEPT, "removing the oldest damaged store");
                fs::remove_dir_all(old)?;
            }
            Ok(())
        };
        moved().map_err(|e| Error::io(format!("cannot set {} aside", self.store().display()), e))?;
        Ok(aside)
    }

    /// The number of damaged stores that were set aside and are still there.
    pub(super) fn damaged(&self) -> usize {
        let entries = fs::read_dir(&self.path).into_iter().flatten().flatten();
        entries.filter(|entry| is_damaged(&entry.path())).count()
    }

    /// Whether groups may be lost: the last process did not sync every group and did not end in order, and the
    /// machine has been restarted since.
    pub(super) fn may_have_lost(&self) -> bool {
        let Ok(before) = fs::read(self.store().join("running")) else {
            return false;
        };
        serde_json::from_slice::<Running>(&before).map_or(true, |before| {
            before.mode != Mode::Sync && (before.boot.is_empty() || before.boot != boot())
        })
    }

    /// Notes that this process runs in a mode that does not sync every group.
    pub(super) fn begin_run(&self, mode: Mode) -> Result<(), Error> {
        let path = self.store().join("running");
        let noted = match mode {
            Mode::Sync => self.end_run(),
            Mode::Interval | Mode::None => serde_json::to_vec(&Running { mode, boot: boot() })
                .map_err(Into::into)
                .and_then(|text| replace(&path, &text)),
        };
        noted.map_err(|e| Error::io(format!("cannot write {}", path.display()), e))
    }

    /// Notes that all groups have been synced, so that none can be lost.
    pub(super) fn end_run(&self) -> io::Result<()> {
        let path = self.store().join("running");
        match fs::remove_file(path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
            Err(_) => Ok(()),
            Ok(()) => sync_directory(&self.store()),
        }
    }
}
