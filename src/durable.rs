//! The data directory: every change of keys, leases, users and alarms, so that they survive the process.
//!
//! ```text
//! store ─commit─► write queue ─► writer ─ one frame per group ─► engine (log | sled) ─ sync ─► publish, answer
//!                                  └─ checkpoint, piece by piece, when the log has grown
//! ```
//!
//! A writer commits in memory and leaves its changes in the write queue, in order. One thread writes all
//! changes that are queued as one *group*, syncs the group, and only then publishes its revisions and releases the
//! answers: group commit. A start loads the last checkpoint and replays the groups after it.

mod checkpoint;
mod damage;
mod directory;
mod engine;
mod engines;
mod error;
mod files;
#[cfg(feature = "fjall")]
mod fjall;
mod frame;
mod handle;
mod keyed;
mod log;
mod metrics;
mod obstacle;
mod open;
mod queue;
mod record;
mod replay;
mod sled;
#[cfg(test)]
mod tests;
mod wipe;
mod writer;

pub use damage::Damage;
pub use directory::{StoreIdentity, StoreRole};
pub use engine::Sizes;
pub use engines::EngineKind;
pub use error::Error;
pub use handle::Durable;
pub use metrics::Metrics;
pub use obstacle::Obstacle;
pub use open::{Import, import, open, read, replace};
pub use queue::{Point, Refused};
pub use record::Metadata;

use crate::mvcc::Store;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// Format version of new data directories. Older formats are read, newer ones are refused.
pub const FORMAT: u32 = 2;
/// Format version of the directories of replicas, which hold marks and roles that [`FORMAT`] does not know.
pub const FOLLOWER_FORMAT: u32 = 3;
/// Length of a log file, in bytes, unless checkpoints are wanted sooner.
const SEGMENT_MAX: u64 = 64 << 20;
const SEGMENT_MIN: u64 = 64 << 10;

/// The moment at which a write is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Once the write is synced to the disk.
    Sync,
    /// Once the kernel has the write; the writer syncs at an interval. A crash of the process loses nothing. A crash
    /// of the machine may lose writes, and then the store continues as another cluster.
    Interval,
    /// Once the kernel has the write; the writer never syncs.
    None,
}

/// The reaction to a damaged store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnCorruption {
    /// Sets the store aside and begins an empty one as another cluster.
    Rebuild,
    /// Ends the process.
    Fail,
}

/// The location of a data directory, and its settings.
#[derive(Clone, Debug)]
pub struct Config {
    /// The data directory.
    pub directory: PathBuf,
    /// The storage engine; `None` for the directory's current engine, or the log in a new directory.
    pub engine: Option<EngineKind>,
    pub mode: Mode,
    /// Time between syncs in [`Mode::Interval`].
    pub interval: Duration,
    pub on_corruption: OnCorruption,
    /// The writer makes a checkpoint once the log has this many bytes and half the size of the last checkpoint.
    pub checkpoint_bytes: u64,
    /// The cluster that the store follows; `None` for a store of its own. The directory of a replica is a copy that is
    /// written behind: revisions are visible before they are written, and what is missing comes again from upstream.
    pub follows: Option<u64>,
}

/// A store as its data directory holds it.
pub struct Loaded {
    pub identity: StoreIdentity,
    /// Keys and leases.
    pub store: Arc<Store>,
    /// Users, roles, alarms and the rest.
    pub metadata: Metadata,
    /// The number of the last group.
    pub groups: u64,
    /// Sizes on disk.
    pub sizes: Sizes,
    /// The directory held nothing that counts, so a checkpoint is due.
    pub is_void: bool,
}

impl Config {
    /// Synced writes, the default engine, checkpoints from 64 MiB on.
    pub fn new(directory: PathBuf) -> Self {
        Self {
            directory,
            engine: None,
            mode: Mode::Sync,
            interval: Duration::from_millis(100),
            on_corruption: OnCorruption::Rebuild,
            checkpoint_bytes: 64 << 20,
            follows: None,
        }
    }

    /// Length of a log file, in bytes.
    fn segment(&self) -> u64 {
        self.checkpoint_bytes.clamp(SEGMENT_MIN, SEGMENT_MAX)
    }
}
