//! The data directory: whose it is, what it is, and what becomes of it when it is damaged.
//!
//! ```text
//! LOCK                       held while a process uses the directory
//! store/identity             who the store is, and how it is written
//! store/running              the mode and boot of a process that did not end, unless every group was synced
//! store/…                    the engine's
//! damaged-<date>/            a former store/
//! ```

use super::engine::{EngineKind, new_file, sync_directory};
use super::{Damage, Error, FORMAT, Mode};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

/// Damaged stores that are kept; older ones are removed.
const DAMAGED_KEPT: usize = 3;
/// Where Linux tells one boot from another.
const BOOT: &str = "/proc/sys/kernel/random/boot_id";

/// A locked data directory.
pub(super) struct Directory {
    path: PathBuf,
    _lock: File,
}

/// Who a store is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// Version of what is written.
    pub format: u32,
    /// What keeps it.
    pub engine: EngineKind,
    /// Checksums begin with it, so that files of another store are not taken for this one's.
    pub salt: u64,
    /// The cluster.
    pub cluster_id: u64,
    /// The member.
    pub member_id: u64,
}

/// The identity with its checksum, which is that of the text, whatever it says.
#[derive(Serialize, Deserialize)]
struct Signed {
    identity: Box<RawValue>,
    crc32c: u32,
}

/// What every version says.
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

/// Replaces a file at once, and durably.
fn replace(path: &Path, content: &[u8]) -> io::Result<()> {
    let new = path.with_extension("tmp");
    let mut file = new_file().truncate(true).open(&new)?;
    file.write_all(content)?;
    file.sync_all()?;
    fs::rename(&new, path)?;
    path.parent().map_or(Ok(()), sync_directory)
}

impl Directory {
    /// Makes the directory if it is missing, and locks it.
    pub(super) fn lock(path: &Path) -> Result<Self, Error> {
        let mut builder = fs::DirBuilder::new();
        let made = builder.recursive(true).mode(0o700).create(path);
        made.map_err(|e| Error::io(format!("cannot make {}", path.display()), e))?;
        let directory = Self::lock_any(path)?;
        if path.join("member").exists() && !path.join("store").exists() {
            return Err(Error::Foreign(path.to_owned()));
        }
        Ok(directory)
    }

    /// Locks a directory that is there, whatever is in it.
    pub(super) fn lock_any(path: &Path) -> Result<Self, Error> {
        let failed = |what: &str, e: io::Error| Error::io(format!("{what} {}", path.display()), e);
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

    /// Where the engine's files are.
    pub(super) fn store(&self) -> PathBuf {
        self.path.join("store")
    }

    /// Makes a store with nothing in it; `fill` makes the engine's files. It is there whole, or not.
    pub(super) fn create(&self, identity: &Identity, fill: impl FnOnce(&Path) -> io::Result<()>) -> Result<(), Error> {
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
        made().map_err(|e| Error::io(format!("cannot make a store in {}", self.path.display()), e))
    }

    fn write_identity(&self, store: &Path, identity: &Identity) -> io::Result<()> {
        let identity = serde_json::value::to_raw_value(identity)?;
        let crc32c = crc32c::crc32c(identity.get().as_bytes());
        let signed = Signed { identity, crc32c };
        let mut text = serde_json::to_vec(&signed)?;
        text.push(b'\n');
        replace(&store.join("identity"), &text)
    }

    /// Says that the store is another one now.
    pub(super) fn change_identity(&self, identity: &Identity) -> Result<(), Error> {
        let written = self.write_identity(&self.store(), identity);
        written.map_err(|e| Error::io(format!("cannot write to {}", self.path.display()), e))
    }

    /// Who the store is; `None` if there is no store.
    pub(super) fn identity(&self) -> Result<Option<Identity>, Error> {
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
            Ok(Version { format }) if format > FORMAT => {
                let path = self.path.clone();
                return Err(Error::Newer { path, format });
            }
            _ => {}
        }
        let identity = serde_json::from_str(identity.get());
        identity.map(Some).map_err(|e| damaged(&e.to_string()))
    }

    /// Puts the store aside under a name with the date; returns where it is.
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
                .filter(|path| {
                    path.file_name()
                        .is_some_and(|n| n.to_string_lossy().starts_with("damaged-"))
                })
                .collect();
            damaged.sort();
            for old in &damaged[..damaged.len().saturating_sub(DAMAGED_KEPT)] {
                tracing::warn!(path = %old.display(), "removing the oldest of the damaged stores");
                fs::remove_dir_all(old)?;
            }
            Ok(())
        };
        moved().map_err(|e| Error::io(format!("cannot set {} aside", self.store().display()), e))?;
        Ok(aside)
    }

    /// Whether the process before may have lost groups: it did not sync them all, did not end by itself, and
    /// the machine has been started since.
    pub(super) fn may_have_lost(&self) -> bool {
        let Ok(before) = fs::read(self.store().join("running")) else {
            return false;
        };
        serde_json::from_slice::<Running>(&before).map_or(true, |before| {
            before.mode != Mode::Sync && (before.boot.is_empty() || before.boot != boot())
        })
    }

    /// Notes that a process runs, if it does not sync every group.
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

    /// Nothing can be lost any more: all groups have been synced.
    pub(super) fn end_run(&self) -> io::Result<()> {
        let path = self.store().join("running");
        match fs::remove_file(path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
            Err(_) => Ok(()),
            Ok(()) => sync_directory(&self.store()),
        }
    }
}
