//! Conditions of the environment that keep the data directory from taking writes, and that can end.
//!
//! A write that meets an obstacle is tried again, and new writes are refused meanwhile. Every other error of the disk
//! ends the process: after EIO, for example, nobody knows what the disk holds.

use nix::errno::Errno;
use std::io;

/// Why the data directory takes no writes at present.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Obstacle {
    #[error("no room on the disk of the data directory (ENOSPC); free space there, or enlarge the volume")]
    NoSpace,
    #[error(
        "the disk quota of the user or project that owns the data directory is used up (EDQUOT); raise that quota, \
         or free space"
    )]
    DiskQuota,
    #[error("a file of the data directory would be longer than allowed (EFBIG); raise the limit (ulimit -f)")]
    FileSize,
    #[error(
        "the process has no free file descriptors (EMFILE) for a file of the data directory; raise the limit \
         (ulimit -n), or close connections"
    )]
    ProcessFiles,
    #[error("the machine has no free file descriptors (ENFILE) for a file of the data directory; raise fs.file-max")]
    SystemFiles,
    #[error("the kernel has no memory (ENOMEM) for a write to the data directory; free memory on this machine")]
    Memory,
    #[error("the data directory is busy (EAGAIN, EBUSY or EINTR); the write is tried again")]
    Busy,
    #[error("the file system of the data directory is read-only (EROFS); remount the file system for writing")]
    ReadOnly,
    #[error(
        "the process may not write to the data directory (EACCES or EPERM); give the user of the process access again"
    )]
    Denied,
}

impl Obstacle {
    pub(super) const ALL: [Self; 9] = [
        Self::NoSpace,
        Self::DiskQuota,
        Self::FileSize,
        Self::ProcessFiles,
        Self::SystemFiles,
        Self::Memory,
        Self::Busy,
        Self::ReadOnly,
        Self::Denied,
    ];

    /// The obstacle behind `error`; `None` if waiting does not help.
    pub(super) fn of(error: &io::Error) -> Option<Self> {
        Some(match Errno::from_raw(error.raw_os_error()?) {
            Errno::ENOSPC => Self::NoSpace,
            Errno::EDQUOT => Self::DiskQuota,
            Errno::EFBIG => Self::FileSize,
            Errno::EMFILE => Self::ProcessFiles,
            Errno::ENFILE => Self::SystemFiles,
            Errno::ENOMEM => Self::Memory,
            Errno::EAGAIN | Errno::EBUSY | Errno::EINTR => Self::Busy,
            Errno::EROFS => Self::ReadOnly,
            Errno::EACCES | Errno::EPERM => Self::Denied,
            _ => return None,
        })
    }

    /// Whether the disk, or a share of the disk, is full.
    pub fn is_full(self) -> bool {
        matches!(self, Self::NoSpace | Self::DiskQuota)
    }

    /// The name of the obstacle in metrics.
    pub(super) fn label(self) -> &'static str {
        match self {
            Self::NoSpace => "no_space",
            Self::DiskQuota => "disk_quota",
            Self::FileSize => "file_size",
            Self::ProcessFiles => "process_files",
            Self::SystemFiles => "system_files",
            Self::Memory => "memory",
            Self::Busy => "busy",
            Self::ReadOnly => "read_only",
            Self::Denied => "denied",
        }
    }
}
