//! What keeps the frames: one interface, and the choice.
//!
//! An engine knows nothing of what frames say. It keeps groups in order until a checkpoint takes their place,
//! and a checkpoint as a head, chunks and an end. A group is only ever appended when the one before it was
//! synced, unless the mode is not to.

use super::frame::Frame;
use super::{Damage, log, sled};
use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// Which engine keeps the data.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EngineKind {
    /// A log of its own: files that are appended to, and replaced by a checkpoint.
    Log,
    /// A sled tree.
    Sled,
    /// A fjall keyspace.
    #[cfg(feature = "fjall")]
    Fjall,
}

/// Why an engine could not be read.
#[derive(Debug, thiserror::Error)]
pub(super) enum LoadError {
    #[error(transparent)]
    Damage(#[from] Damage),
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// How to read.
#[derive(Clone, Copy, Debug)]
pub(super) struct Load {
    /// What was lost at the end is made ready to be written again.
    pub(super) repair: bool,
    /// More than the last group may be lost: the machine stopped before it was synced.
    pub(super) lenient: bool,
}

/// Sizes, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sizes {
    /// Groups since the checkpoint.
    pub log: u64,
    /// The checkpoint.
    pub checkpoint: u64,
    /// What was cut off the end: it had been written in part.
    pub torn: u64,
}

/// Takes one frame of a checkpoint or of the log, in order.
pub(super) type Visit<'a> = dyn FnMut(Frame<'_>) -> Result<(), Damage> + 'a;

/// Keeps frames. Numbers of groups grow by one.
pub(super) trait Engine: Send {
    /// Reads the last whole checkpoint and every group after it. Groups from before it may come, too.
    fn load(&mut self, how: Load, visit: &mut Visit<'_>) -> Result<Sizes, LoadError>;

    /// Writes the frame of group `number`. It may be called again with the same frame after an error.
    fn append(&mut self, number: u64, frame: &[u8]) -> io::Result<()>;

    /// Returns when everything appended is on the disk.
    fn sync(&mut self) -> io::Result<()>;

    /// Makes room for what is appended next; an error says that there is none.
    fn reserve(&mut self) -> io::Result<()>;

    /// Whether a few megabytes can be appended for certain.
    fn has_room(&self) -> bool;

    /// Begins a checkpoint that holds all groups up to `number`, the last one appended.
    fn begin(&mut self, number: u64) -> io::Result<()>;

    /// Adds a frame to the checkpoint: its head, a chunk, its end.
    fn add(&mut self, frame: &[u8]) -> io::Result<()>;

    /// The checkpoint is whole: it takes the place of the groups in it and of the one before, at once.
    fn finish(&mut self) -> io::Result<()>;

    /// There will be no checkpoint.
    fn abandon(&mut self);

    /// Ends the log; `next` is the number of a group that may come some other time.
    fn close(&mut self, next: u64) -> io::Result<()>;
}

impl EngineKind {
    /// All there are, with their names.
    pub const NAMES: &[(&str, Self)] = &[
        ("log", Self::Log),
        ("sled", Self::Sled),
        #[cfg(feature = "fjall")]
        ("fjall", Self::Fjall),
    ];

    /// Makes a new one in `directory`, empty. Files that grow are made `length` bytes long.
    pub(super) fn create(self, directory: &Path, salt: u64, length: u64) -> io::Result<()> {
        match self {
            Self::Log => log::LogEngine::create(directory, salt, length),
            // These make themselves when they are opened.
            Self::Sled => sled::open(directory, salt)?.begin_anew(),
            #[cfg(feature = "fjall")]
            Self::Fjall => super::fjall::open(directory, salt)?.begin_anew(),
        }
    }

    /// Opens the one in `directory`.
    pub(super) fn open(self, directory: &Path, salt: u64, length: u64) -> Result<Box<dyn Engine>, LoadError> {
        Ok(match self {
            Self::Log => Box::new(log::LogEngine::open(directory, salt, length)),
            Self::Sled => Box::new(sled::open(directory, salt)?),
            #[cfg(feature = "fjall")]
            Self::Fjall => Box::new(super::fjall::open(directory, salt)?),
        })
    }
}

impl From<LoadError> for io::Error {
    fn from(error: LoadError) -> Self {
        match error {
            LoadError::Io(error) => error,
            LoadError::Damage(damage) => Self::other(damage),
        }
    }
}

impl std::fmt::Display for EngineKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let name = Self::NAMES.iter().find(|(_, kind)| kind == self);
        f.write_str(name.map_or("", |(name, _)| name))
    }
}

/// How a file is made that holds what only its owner may read.
pub(super) fn new_file() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.write(true).create(true).mode(0o600);
    options
}

/// Makes a directory's entries as durable as its files.
pub(super) fn sync_directory(path: &Path) -> io::Result<()> {
    std::fs::File::open(path)?.sync_all()
}
