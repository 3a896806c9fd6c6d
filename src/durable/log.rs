//! The log engine: groups are appended to files of a fixed length; a checkpoint is one file.
//!
//! ```text
//! log-<first group>          Segment, Group …, Seal        full, or older than a checkpoint
//! log-<first group>          Segment, Group …, zeros       the current file
//! checkpoint-<last group>    Head, Chunk …, End
//! spare                      zeros: becomes the next log file
//! *.tmp                      incomplete files: removed
//! ```
//!
//! A log file has its full length from the beginning. So syncing an append need not write metadata, and a full disk
//! is noticed while accepted writes still fit.

mod read;

use super::damage::Damage;
use super::engine::{Engine, LoadError, LoadOptions, Sizes, Visit};
use super::files::{new_file, sync_directory};
use super::frame::{self, Kind};
use nix::fcntl::{FallocateFlags, fallocate};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// The next log file is made once less than this fraction (1/n) of the current file is left.
const AHEAD: u64 = 2;
/// The disk counts as full once less than this fraction (1/n) of the current file is left and no next file can be
/// made.
const ROOM: u64 = 8;
/// Bytes of a checkpoint between syncs, so that the log never waits for a long sync.
const SYNC_EVERY: u64 = 8 << 20;

pub(super) struct LogEngine {
    directory: PathBuf,
    salt: u64,
    /// Length of a log file, in bytes, unless one group needs more.
    length: u64,
    current: Option<Segment>,
    /// Whether the file `spare` is ready.
    spare: bool,
    checkpoint: Option<Checkpoint>,
}

/// The current log file.
struct Segment {
    file: File,
    length: u64,
    end: u64,
    last: LastGroup,
}

/// The group appended last.
#[derive(Clone, Copy, Default)]
struct LastGroup {
    number: u64,
    /// Offset of the group in the file, in bytes.
    start: u64,
}

/// A checkpoint that is being written.
struct Checkpoint {
    file: File,
    number: u64,
    unsynced: u64,
}

/// The numbers in the names of log files and checkpoints, in order.
#[derive(Default)]
struct Files {
    segments: Vec<u64>,
    checkpoints: Vec<u64>,
}

impl LogEngine {
    pub(super) fn create(directory: &Path, salt: u64, length: u64) -> io::Result<()> {
        let mut engine = Self::open(directory, salt, length);
        engine.rotate(1, length)
    }

    pub(super) fn open(directory: &Path, salt: u64, length: u64) -> Self {
        Self {
            directory: directory.to_owned(),
            salt,
            length,
            current: None,
            spare: false,
            checkpoint: None,
        }
    }

    fn segment_path(&self, first: u64) -> PathBuf {
        self.directory.join(format!("log-{first:016x}"))
    }

    fn checkpoint_path(&self, number: u64) -> PathBuf {
        self.directory.join(format!("checkpoint-{number:016x}"))
    }

    fn files(&self) -> io::Result<Files> {
        let mut files = Files::default();
        for entry in fs::read_dir(&self.directory)? {
            let name = entry?.file_name();
            let number = |prefix| u64::from_str_radix(name.to_str()?.strip_prefix(prefix)?, 16).ok();
            files.segments.extend(number("log-"));
            files.checkpoints.extend(number("checkpoint-"));
        }
        files.segments.sort_unstable();
        files.checkpoints.sort_unstable();
        Ok(files)
    }

    /// Removes files that the newest checkpoint replaces, and incomplete files.
    fn clean(&self) -> io::Result<()> {
        let files = self.files()?;
        let mut old = vec![self.directory.join("spare.tmp")];
        if !self.spare {
            old.push(self.directory.join("spare"));
        }
        if let Some((newest, older)) = files.checkpoints.split_last() {
            old.extend(older.iter().map(|n| self.checkpoint_path(*n)));
            let useless = useless(&files.segments, *newest);
            old.extend(files.segments[..useless].iter().map(|n| self.segment_path(*n)));
        }
        old.push(self.directory.join("checkpoint.tmp"));
        for path in old {
            match fs::remove_file(&path) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
                _ => {}
            }
        }
        Ok(())
    }

    /// Makes the file `spare`, which becomes the next log file, with a length of `length` bytes.
    fn make_spare(&mut self, length: u64) -> io::Result<()> {
        let path = self.directory.join("spare.tmp");
        let made = allocate(&path, length).and_then(|()| fs::rename(&path, self.directory.join("spare")));
        if made.is_err() {
            let _ = fs::remove_file(&path);
        }
        self.spare |= made.is_ok();
        made
    }

    /// Continues in a new log file that begins with group `first` and has at least `length` bytes.
    fn rotate(&mut self, first: u64, length: u64) -> io::Result<()> {
        if !self.spare || length > self.length {
            self.make_spare(length.max(self.length))?;
        }
        let spare = self.directory.join("spare");
        let file = OpenOptions::new().read(true).write(true).open(&spare)?;
        let length = file.metadata()?.len();
        let mut head = vec![];
        let payload = length.to_le_bytes();
        frame::write(&mut head, self.salt, Kind::Segment, first, |out| {
            out.extend_from_slice(&payload);
        });
        file.write_all_at(&head, 0)?;
        file.sync_all()?;
        // From here on an error leaves a state that only a restart repairs, so the error must not look retryable.
        let fatal = |e: io::Error| io::Error::other(format!("cannot switch to a new log file: {e}"));
        fs::rename(&spare, self.segment_path(first)).map_err(fatal)?;
        self.spare = false;
        sync_directory(&self.directory).map_err(fatal)?;
        if let Some(old) = &mut self.current {
            // The old file must announce the new one before a group is written to the new one.
            old.mark(self.salt, Kind::Seal, first).map_err(fatal)?;
        }
        self.current = Some(Segment {
            file,
            length,
            end: head.len() as u64,
            last: LastGroup::default(),
        });
        Ok(())
    }
}

/// How many of the log files, which begin with the groups `firsts`, hold only groups up to `checkpoint`.
fn useless(firsts: &[u64], checkpoint: u64) -> usize {
    firsts
        .partition_point(|first| *first <= checkpoint + 1)
        .saturating_sub(1)
}

/// Makes a file of zeros, with all of its blocks allocated.
fn allocate(path: &Path, length: u64) -> io::Result<()> {
    let file = new_file().truncate(true).open(path)?;
    reserve(&file, length)?;
    file.sync_all()
}

fn reserve(file: &File, length: u64) -> io::Result<()> {
    let len = i64::try_from(length).map_err(io::Error::other)?;
    match fallocate(file, FallocateFlags::empty(), 0, len) {
        // On a file system without fallocate, a full disk is noticed later.
        Err(nix::errno::Errno::EOPNOTSUPP | nix::errno::Errno::ENOSYS) => file.set_len(length),
        done => Ok(done?),
    }
}

impl Segment {
    /// Opens a file to continue at `end`, and zeroes the `torn` bytes after it. The file keeps its length: after a
    /// crash in between, a shorter file would look like damage.
    fn reopen(path: &Path, end: u64, torn: u64) -> io::Result<Self> {
        let file = OpenOptions::new().read(true).write(true).open(path)?;
        let length = file.metadata()?.len();
        if torn > 0 {
            file.write_all_at(&vec![0; usize::try_from(torn).map_err(io::Error::other)?], end)?;
            file.sync_data()?;
        }
        Ok(Self {
            file,
            length,
            end,
            last: LastGroup::default(),
        })
    }

    /// Writes a frame without payload at the end, and syncs.
    fn mark(&mut self, salt: u64, kind: Kind, number: u64) -> io::Result<()> {
        let mut mark = vec![];
        frame::write(&mut mark, salt, kind, number, |_| {});
        self.file.write_all_at(&mark, self.end)?;
        self.end += mark.len() as u64;
        self.file.sync_data()
    }

    fn left(&self) -> u64 {
        // Keep space for the mark at the end.
        self.length.saturating_sub(self.end + 2 * frame::HEADER as u64)
    }
}

impl Engine for LogEngine {
    fn load(&mut self, options: LoadOptions, visit: &mut Visit<'_>) -> Result<Sizes, LoadError> {
        if options.repair {
            self.clean()?;
        }
        let files = self.files()?;
        let checkpoint = match files.checkpoints.last() {
            Some(newest) => self.read_checkpoint(*newest, visit)?,
            None => 0,
        };
        if files.segments.is_empty() {
            return Err(Damage::of(&self.directory, "there is no log file").into());
        }
        let sizes = self.read_segments(&files, options, visit)?;
        Ok(Sizes { checkpoint, ..sizes })
    }

    fn append(&mut self, number: u64, frame: &[u8]) -> io::Result<()> {
        let len = frame.len() as u64;
        if let Some(segment) = self.current.as_mut().filter(|s| s.last.number == number) {
            // A retry after a failed sync: the kernel may have dropped the first attempt.
            segment.end = segment.last.start;
        }
        if self.current.as_ref().is_none_or(|segment| segment.left() < len) {
            self.rotate(number, len + 4 * frame::HEADER as u64)?;
        }
        let segment = self.current.as_mut().ok_or_else(|| io::Error::other("no log file"))?;
        segment.file.write_all_at(frame, segment.end)?;
        segment.last = LastGroup {
            number,
            start: segment.end,
        };
        segment.end += len;
        Ok(())
    }

    fn sync(&mut self) -> io::Result<()> {
        self.current.as_ref().map_or(Ok(()), |segment| segment.file.sync_data())
    }

    fn reserve(&mut self) -> io::Result<()> {
        match self.current.as_ref().is_some_and(|s| s.left() < self.length / AHEAD) && !self.spare {
            true => self.make_spare(self.length),
            false => Ok(()),
        }
    }

    fn has_room(&self) -> bool {
        self.spare || self.current.as_ref().is_some_and(|s| s.left() >= self.length / ROOM)
    }

    fn begin(&mut self, number: u64) -> io::Result<()> {
        // A file with room left stays the current one, or checkpoints that fail repeatedly would fill the disk. But
        // the file must hold the checkpoint's last group, or the log would look complete without the checkpoint.
        let goes_on = |s: &Segment| s.end < s.length / 4 && s.last.number == number;
        if !self.current.as_ref().is_some_and(goes_on) {
            self.rotate(number + 1, self.length)?;
        }
        let path = self.directory.join("checkpoint.tmp");
        let file = new_file().truncate(true).open(path)?;
        self.checkpoint = Some(Checkpoint {
            file,
            number,
            unsynced: 0,
        });
        Ok(())
    }

    fn add(&mut self, frame: &[u8]) -> io::Result<()> {
        let Some(checkpoint) = &mut self.checkpoint else {
            return Err(io::Error::other("no checkpoint was begun"));
        };
        checkpoint.file.write_all(frame)?;
        checkpoint.unsynced += frame.len() as u64;
        if checkpoint.unsynced >= SYNC_EVERY {
            checkpoint.file.sync_data()?;
            checkpoint.unsynced = 0;
        }
        Ok(())
    }

    fn finish(&mut self) -> io::Result<()> {
        let Some(Checkpoint { file, number, .. }) = self.checkpoint.take() else {
            return Err(io::Error::other("no checkpoint was begun"));
        };
        file.sync_all()?;
        fs::rename(self.directory.join("checkpoint.tmp"), self.checkpoint_path(number))?;
        sync_directory(&self.directory)?;
        self.clean()
    }

    fn abandon(&mut self) {
        if self.checkpoint.take().is_some() {
            let _ = fs::remove_file(self.directory.join("checkpoint.tmp"));
        }
    }

    fn close(&mut self, next: u64) -> io::Result<()> {
        match &mut self.current {
            Some(segment) => segment.mark(self.salt, Kind::Closed, next),
            None => Ok(()),
        }
    }
}
