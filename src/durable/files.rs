//! File operations that the directory and the engines share.

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// Options to create a file that only its owner may read.
pub(super) fn new_file() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.write(true).create(true).mode(0o600);
    options
}

/// Makes the entries of a directory as durable as the synced files in it.
pub(super) fn sync_directory(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

/// Makes a file of zeros, with all of its blocks allocated.
pub(super) fn allocate(path: &Path, length: u64) -> io::Result<File> {
    let file = new_file().truncate(true).open(path)?;
    let len = i64::try_from(length).map_err(io::Error::other)?;
    loop {
        match fallocate(&file, FallocateFlags::empty(), 0, len) {
            Err(Errno::EINTR) => {}
            // On a file system without fallocate, a full disk is noticed later.
            Err(Errno::EOPNOTSUPP | Errno::ENOSYS) => break file.set_len(length)?,
            done => break done?,
        }
    }
    file.sync_all()?;
    Ok(file)
}

/// A place where tests let the disk fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    CreateSpare,
    WriteHead,
    SyncHead,
    Rename,
    SyncDirectory,
    WriteSeal,
    SyncSeal,
    WriteGroup,
    SyncGroup,
    CreateCheckpoint,
    WriteCheckpoint,
}

/// Fails where a test wants the disk to fail.
#[cfg(not(test))]
#[inline(always)]
pub(super) fn step(_: Step) -> io::Result<()> {
    Ok(())
}

#[cfg(test)]
pub(super) use faults::step;

/// Faults of the disk that tests ask for, in the thread that writes.
#[cfg(test)]
pub(super) mod faults {
    use super::{Errno, Step, io};
    use std::cell::Cell;

    thread_local! {
        static FAULT: Cell<Option<(Step, Errno)>> = const { Cell::new(None) };
    }

    pub(in crate::durable) fn set(fault: Option<(Step, Errno)>) {
        FAULT.set(fault);
    }

    pub(in crate::durable) fn step(step: Step) -> io::Result<()> {
        match FAULT.get() {
            Some((at, errno)) if at == step => Err(errno.into()),
            _ => Ok(()),
        }
    }
}
