//! Why a data directory could not be opened.

use super::FOLLOWER_FORMAT;
use super::damage::Damage;
use super::engine::LoadError;
use super::engines::EngineKind;
use std::io;
use std::path::{Path, PathBuf};

/// Why a data directory could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(
        "data directory {} is in use by another process: stop that process, or use another directory",
        .0.display()
    )]
    InUse(PathBuf),
    /// An etcd has written the directory.
    #[error(
        "data directory {} holds data of etcd (member/): save a snapshot of that etcd, and use `snapshot restore` \
         with another directory",
        .0.display()
    )]
    Foreign(PathBuf),
    /// Neither this program nor etcd can have written something in the directory.
    #[error(
        "data directory {} holds {name:?}, which neither this program nor etcd has made: nothing was changed; \
         remove {name:?}, or use an empty directory",
        path.display()
    )]
    UnknownContent {
        path: PathBuf,
        /// The name of the file or directory that is not known.
        name: String,
    },
    /// A later version has written the directory.
    #[error(
        "data directory {} has format {format}, and this version reads formats up to {FOLLOWER_FORMAT}: use the \
         version that wrote it, or a later one",
        path.display()
    )]
    Newer { path: PathBuf, format: u32 },
    #[error(
        "data directory {} is kept by the engine {is}, not {asked}: use --data-engine={is}, or copy the data to \
         another directory with `snapshot save` and `snapshot restore`",
        path.display()
    )]
    OtherEngine {
        path: PathBuf,
        is: EngineKind,
        asked: EngineKind,
    },
    /// The directory of a replica, and the store should be one of its own.
    #[error(
        "data directory {} is a replica's copy of cluster {cluster_id:x}: start the replica with --follow, or use \
         another directory",
        path.display()
    )]
    Follower { path: PathBuf, cluster_id: u64 },
    /// The directory of a store of its own, and the store should be a replica.
    #[error(
        "data directory {} holds a store of its own, which --follow would replace with that of another cluster: use \
         another directory",
        .0.display()
    )]
    NotFollower(PathBuf),
    #[error("data directory {} holds no store: check the path", .0.display())]
    Missing(PathBuf),
    #[error("data directory {} already holds a store: use another directory", .0.display())]
    Exists(PathBuf),
    #[error(
        "the stored data is damaged: {0}; restore a snapshot, or use --on-corruption=rebuild to set the data aside"
    )]
    Damaged(Damage),
    #[error("{action}: {error}")]
    Io { action: String, error: io::Error },
}

impl Error {
    /// `action` names the failed operation and its path.
    pub(super) fn io(action: impl Into<String>, error: io::Error) -> Self {
        let action = action.into();
        Self::Io { action, error }
    }

    pub(super) fn load(path: &Path, error: LoadError) -> Self {
        match error {
            LoadError::Damage(damage) => Self::Damaged(damage.at(path)),
            LoadError::Io(e) => Self::read(path, e),
        }
    }

    /// Failing to read is damage, unless another attempt may succeed: with other permissions, or more memory.
    pub(super) fn read(path: &Path, error: io::Error) -> Self {
        use io::ErrorKind as K;
        let unreadable = error.raw_os_error() == Some(nix::errno::Errno::EIO as i32);
        match error.kind() {
            K::IsADirectory | K::NotADirectory | K::NotFound | K::UnexpectedEof | K::InvalidData => {
                Self::Damaged(Damage::of(path, &error.to_string()))
            }
            _ if unreadable => Self::Damaged(Damage::of(path, &error.to_string())),
            _ => Self::io(format!("cannot read {}", path.display()), error),
        }
    }
}
