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
//! is noticed while accepted writes still fit. The first file is short, and each next file is twice as long, up to a
//! limit: a small store takes little space. The spare file stays open, so that a change to the next file needs no file
//! descriptor.
//!
//! An error leaves every operation as one that can be repeated: the data directory may be full, or the process out of
//! descriptors, for a while.

mod read;

use super::damage::Damage;
use super::engine::{Engine, LoadError, LoadOptions, Sizes, Visit};
use super::files::{Step, allocate, new_file, step};
use super::frame::{self, Kind};
use super::obstacle::Obstacle;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// The next log file is made once less than this fraction (1/n) of the current file is left.
const AHEAD: u64 = 2;
/// The disk counts as full once less than this fraction (1/n) of the current file is left and no next file can be
/// made.
const ROOM: u64 = 8;
/// Length of the first log file, and of the shortest file on a disk that is nearly full.
const FIRST: u64 = 1 << 20;
/// Bytes of a checkpoint between syncs, for which the groups wait. A sync of so many takes hardly longer than that of a group:
/// 4.9 ms against 4.4 on a virtual disk, where 8 MiB take 11.
const SYNC_EVERY: u64 = 1 << 20;

pub(super) struct LogEngine {
    directory: PathBuf,
    /// The open directory, once it is needed.
    handle: Option<File>,
    salt: u64,
    /// Length of the longest log file, in bytes, unless one group needs more.
    length: u64,
    current: Option<Segment>,
    /// The next current file, which has its name already, until the switch is complete.
    switching: Option<Switch>,
    spare: Option<Spare>,
    /// The last spare file had to be shorter than wanted, because the disk is nearly full.
    tight: bool,
    checkpoint: Option<Checkpoint>,
}

/// The file `spare`.
struct Spare {
    file: File,
    length: u64,
}

/// A switch to the next log file that has not been completed.
struct Switch {
    /// The first group of the next file.
    first: u64,
    segment: Segment,
}

/// The current log file.
struct Segment {
    file: File,
    length: u64,
    end: u64,
    last: LastGroup,
    /// Whether a group was written after the last sync.
    dirty: bool,
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
        engine.make_spare(engine.shortest())?;
        engine.rotate(1, 0)
    }

    pub(super) fn open(directory: &Path, salt: u64, length: u64) -> Self {
        Self {
            directory: directory.to_owned(),
            handle: None,
            salt,
            length,
            current: None,
            switching: None,
            spare: None,
            tight: false,
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
        if self.spare.is_none() {
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

    /// Length of the shortest log file, in bytes.
    fn shortest(&self) -> u64 {
        FIRST.min(self.length)
    }

    /// Makes the entries of the directory durable. Keeps the directory open, so that a later call needs no descriptor.
    fn sync_directory(&mut self) -> io::Result<()> {
        step(Step::SyncDirectory)?;
        match &self.handle {
            Some(handle) => handle.sync_all(),
            None => self.handle.insert(File::open(&self.directory)?).sync_all(),
        }
    }

    /// Makes the file `spare`, which becomes the next log file: twice as long as the current file, or shorter if the
    /// disk is nearly full, but with at least `least` bytes.
    fn make_spare(&mut self, least: u64) -> io::Result<()> {
        let next = self.current.as_ref().map_or(least, |segment| segment.length * 2);
        let least = least.max(self.shortest());
        let mut length = next.min(self.length).max(least);
        self.tight = false;
        loop {
            match self.try_spare(length) {
                Err(error) if length > least && Obstacle::of(&error).is_some_and(Obstacle::is_full) => {
                    self.tight = true;
                    length = (length / 2).max(least);
                }
                made => return made,
            }
        }
    }

    fn try_spare(&mut self, length: u64) -> io::Result<()> {
        step(Step::CreateSpare)?;
        let path = self.directory.join("spare.tmp");
        let made = allocate(&path, length).and_then(|file| {
            fs::rename(&path, self.directory.join("spare"))?;
            Ok(file)
        });
        match made {
            Ok(file) => self.spare = Some(Spare { file, length }),
            Err(error) => {
                let _ = fs::remove_file(&path);
                return Err(error);
            }
        }
        Ok(())
    }

    /// Continues in a new log file that begins with group `first` and has at least `least` bytes.
    fn rotate(&mut self, first: u64, least: u64) -> io::Result<()> {
        if self.switching.is_none() {
            if self.spare.as_ref().is_none_or(|spare| spare.length < least) {
                self.make_spare(least)?;
            }
            self.begin_switch(first)?;
        }
        self.finish_switch()
    }

    /// Gives the spare file its name as log file.
    fn begin_switch(&mut self, first: u64) -> io::Result<()> {
        let path = self.segment_path(first);
        let Some(Spare { file, length }) = &self.spare else {
            return Err(io::Error::other("there is no spare log file"));
        };
        let mut head = vec![];
        let payload = length.to_le_bytes();
        frame::write(&mut head, self.salt, Kind::Segment, first, |out| {
            out.extend_from_slice(&payload);
        });
        step(Step::WriteHead)?;
        file.write_all_at(&head, 0)?;
        step(Step::SyncHead)?;
        file.sync_all()?;
        step(Step::Rename)?;
        fs::rename(self.directory.join("spare"), path)?;
        self.switching = self.spare.take().map(|Spare { file, length }| Switch {
            first,
            segment: Segment {
                file,
                length,
                end: head.len() as u64,
                last: LastGroup::default(),
                dirty: false,
            },
        });
        Ok(())
    }

    /// Completes a switch that was begun: the old file announces the new one before a group is written to the new one.
    fn finish_switch(&mut self) -> io::Result<()> {
        let Some(Switch { first, .. }) = self.switching else {
            return Ok(());
        };
        self.sync_directory()?;
        if let Some(old) = &mut self.current {
            old.mark(self.salt, Kind::Seal, first)?;
        }
        self.current = self.switching.take().map(|switch| switch.segment);
        Ok(())
    }
}

/// How many of the log files, which begin with the groups `firsts`, hold only groups up to `checkpoint`.
fn useless(firsts: &[u64], checkpoint: u64) -> usize {
    firsts
        .partition_point(|first| *first <= checkpoint + 1)
        .saturating_sub(1)
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
            dirty: false,
        })
    }

    /// Writes a frame without payload at the end, and syncs.
    fn mark(&mut self, salt: u64, kind: Kind, number: u64) -> io::Result<()> {
        let mut mark = vec![];
        frame::write(&mut mark, salt, kind, number, |_| {});
        step(Step::WriteSeal)?;
        self.file.write_all_at(&mark, self.end)?;
        match step(Step::SyncSeal).and_then(|()| self.file.sync_data()) {
            // The kernel may have dropped groups that were not synced yet, and that nobody can write again.
            Err(error) if self.dirty => Err(io::Error::other(format!("cannot sync a log file: {error}"))),
            synced => synced,
        }
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
            self.sync_directory()?;
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
        self.finish_switch()?;
        if let Some(segment) = self.current.as_mut().filter(|s| s.last.number == number) {
            // A retry after a failed sync: the kernel may have dropped the first attempt.
            segment.end = segment.last.start;
        }
        if self.current.as_ref().is_none_or(|segment| segment.left() < len) {
            self.rotate(number, len + 4 * frame::HEADER as u64)?;
        }
        let segment = self.current.as_mut().ok_or_else(|| io::Error::other("no log file"))?;
        step(Step::WriteGroup)?;
        segment.file.write_all_at(frame, segment.end)?;
        segment.last = LastGroup {
            number,
            start: segment.end,
        };
        segment.end += len;
        segment.dirty = true;
        Ok(())
    }

    fn sync(&mut self) -> io::Result<()> {
        let Some(segment) = &mut self.current else {
            return Ok(());
        };
        step(Step::SyncGroup)?;
        segment.file.sync_data()?;
        segment.dirty = false;
        Ok(())
    }

    fn reserve(&mut self) -> io::Result<()> {
        let is_due = |s: &Segment| s.left() < s.length / AHEAD;
        match self.spare.is_none() && self.current.as_ref().is_some_and(is_due) {
            true => self.make_spare(0),
            false => Ok(()),
        }
    }

    fn has_room(&self) -> bool {
        let has_room = |s: &Segment| s.left() >= s.length / ROOM;
        self.spare.is_some() || self.current.as_ref().is_some_and(has_room)
    }

    fn is_tight(&self) -> bool {
        self.tight
    }

    fn begin(&mut self, number: u64) -> io::Result<()> {
        self.finish_switch()?;
        // A file with room left stays the current one, or checkpoints that fail repeatedly would fill the disk. But
        // the file must hold the checkpoint's last group, or the log would look complete without the checkpoint.
        let goes_on = |s: &Segment| s.end < s.length / 4 && s.last.number == number;
        if !self.current.as_ref().is_some_and(goes_on) {
            self.rotate(number + 1, 0)?;
        }
        step(Step::CreateCheckpoint)?;
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
        step(Step::WriteCheckpoint)?;
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
        self.sync_directory()?;
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
