//! The choice of a storage engine.

use super::engine::{Engine, LoadError};
use super::{log, sled};
use std::io;
use std::path::Path;

/// The storage engines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EngineKind {
    /// Isthmus's own append-only log with checkpoints.
    Log,
    /// A sled tree.
    Sled,
    /// A fjall keyspace.
    #[cfg(feature = "fjall")]
    Fjall,
}

impl EngineKind {
    /// All engines with their names.
    pub const NAMES: &[(&str, Self)] = &[
        ("log", Self::Log),
        ("sled", Self::Sled),
        #[cfg(feature = "fjall")]
        ("fjall", Self::Fjall),
    ];

    /// Creates an empty engine in `directory`, with log files of `length` bytes.
    pub(super) fn create(self, directory: &Path, salt: u64, length: u64) -> io::Result<()> {
        match self {
            Self::Log => log::LogEngine::create(directory, salt, length),
            // Opening these databases creates them.
            Self::Sled => sled::open(directory, salt)?.begin_anew(),
            #[cfg(feature = "fjall")]
            Self::Fjall => super::fjall::open(directory, salt)?.begin_anew(),
        }
    }

    /// Opens the engine in `directory`.
    pub(super) fn open(self, directory: &Path, salt: u64, length: u64) -> Result<Box<dyn Engine>, LoadError> {
        Ok(match self {
            Self::Log => Box::new(log::LogEngine::open(directory, salt, length)),
            Self::Sled => Box::new(sled::open(directory, salt)?),
            #[cfg(feature = "fjall")]
            Self::Fjall => Box::new(super::fjall::open(directory, salt)?),
        })
    }
}

impl std::fmt::Display for EngineKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let name = Self::NAMES.iter().find(|(_, kind)| kind == self);
        f.write_str(name.map_or("", |(name, _)| name))
    }
}
