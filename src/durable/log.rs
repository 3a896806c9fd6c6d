//! The plain log: files of a fixed length that groups are appended to, and a checkpoint in one file.
//!
//! ```text
//! log-<first group>          Segment, Group …, Seal        full, or from before a checkpoint
//! log-<first group>          Segment, Group …, zeros       the one appended to
//! checkpoint-<last group>    Head, Chunk …, End
//! spare                      zeros: becomes the next log file
//! *.tmp                      half made: removed
//! ```
//!
//! A log file has its length from the beginning, so that syncing an append need not write metadata, and so
//! that a disk that fills up is noticed while there is still room for what has been accepted.

use super::Damage;
use super::engine::{Engine, Load, LoadError, Sizes, Visit, new_file, sync_directory};
use super::frame::{self, Kind, Parsed};
use nix::fcntl::{FallocateFlags, fallocate};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// With less than this part of a file left the next one is made.
const AHEAD: u64 = 2;
/// With less than this part left, and no next file, there is no room.
const ROOM: u64 = 8;
/// A checkpoint is synced this often, so that the log need not wait for all of it.
const SYNC_EVERY: u64 = 8 << 20;

/// See the module's text.
pub(super) struct LogEngine {
    directory: PathBuf,
    salt: u64,
    /// Length of a log file, unless a group needs more.
    length: u64,
    current: Option<Segment>,
    spare: bool,
    checkpoint: Option<Checkpoint>,
}

/// The log file that is appended to.
struct Segment {
    file: File,
    length: u64,
    end: u64,
    /// The group appended last, and where it begins.
    last: (u64, u64),
}

/// A checkpoint that is being written.
struct Checkpoint {
    file: File,
    number: u64,
    unsynced: u64,
}

/// The files of a directory, in order.
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

    /// Removes what a checkpoint has made useless, and what was never finished.
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

    /// Makes the file that becomes the next one, of `length`.
    fn make_spare(&mut self, length: u64) -> io::Result<()> {
        let path = self.directory.join("spare.tmp");
        let made = allocate(&path, length).and_then(|()| fs::rename(&path, self.directory.join("spare")));
        if made.is_err() {
            let _ = fs::remove_file(&path);
        }
        self.spare |= made.is_ok();
        made
    }

    /// Goes on in a new file, whose first group is `first` and that has room for `length`.
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
        // From here on half of it is done: no error will pass by itself, but a start copes with each state.
        let fatal = |e: io::Error| io::Error::other(format!("cannot go on in a new log file: {e}"));
        fs::rename(&spare, self.segment_path(first)).map_err(fatal)?;
        self.spare = false;
        sync_directory(&self.directory).map_err(fatal)?;
        if let Some(old) = &mut self.current {
            // Nothing is in the new file before the old one says that it is there.
            old.mark(self.salt, Kind::Seal, first).map_err(fatal)?;
        }
        self.current = Some(Segment {
            file,
            length,
            end: head.len() as u64,
            last: (0, 0),
        });
        Ok(())
    }

    fn read_checkpoint(&self, number: u64, visit: &mut Visit<'_>) -> Result<u64, LoadError> {
        let path = self.checkpoint_path(number);
        let bad = |why: &str| LoadError::Damage(Damage::of(&path, why));
        let ended = |e: io::Error| match e.kind() {
            io::ErrorKind::UnexpectedEof => bad("the file ends early"),
            _ => e.into(),
        };
        let mut file = File::open(&path)?;
        let length = file.metadata()?.len();
        let (mut at, mut buffer) = (0, vec![]);
        loop {
            // A frame at a time: the file may be larger than the memory that is free.
            buffer.resize(frame::HEADER, 0);
            file.read_exact(&mut buffer).map_err(ended)?;
            let whole = frame::length(&buffer);
            if at + whole as u64 > length {
                return Err(bad("the file ends early"));
            }
            buffer.resize(whole, 0);
            file.read_exact(&mut buffer[frame::HEADER..]).map_err(ended)?;
            at += whole as u64;
            let frame = frame::single(&buffer, self.salt).map_err(|d| d.at(&path))?;
            if frame.kind == Kind::Head && frame.number != number {
                return Err(bad("the file is named after another checkpoint"));
            }
            visit(frame).map_err(|d| d.at(&path))?;
            if frame.kind == Kind::End {
                break;
            }
        }
        match at == length {
            true => Ok(length),
            false => Err(bad("the file goes on after its end")),
        }
    }

    /// Reads one log file. Returns where its frames end, and the first group of the next file, if it says that
    /// there is one.
    fn read_segment(
        &self,
        first: u64,
        bytes: &[u8],
        how: Load,
        visit: &mut Visit<'_>,
    ) -> Result<(usize, Option<u64>), LoadError> {
        let path = self.segment_path(first);
        let bad = |why: &str| LoadError::Damage(Damage::of(&path, why));
        let (mut at, mut begun) = (0, false);
        loop {
            match frame::parse(&bytes[at..], self.salt, at as u64) {
                Parsed::Whole(frame, len) => {
                    match frame.kind {
                        Kind::Segment if at == 0 && frame.number == first => {
                            begun = true;
                            if frame.payload != (bytes.len() as u64).to_le_bytes() {
                                return Err(bad("the file has not the length that it was made with"));
                            }
                        }
                        Kind::Group if begun => visit(frame).map_err(|d| d.at(&path))?,
                        Kind::Closed if begun => {}
                        Kind::Seal if begun => return Ok((at, Some(frame.number))),
                        _ => return Err(bad("a frame is out of place")),
                    }
                    at += len;
                }
                Parsed::Empty | Parsed::Torn if begun => {
                    // What comes after is written only once what was here is on the disk.
                    if !how.lenient && frame::find(&bytes[at..], self.salt, at as u64).is_some() {
                        return Err(bad("a group in the middle is lost"));
                    }
                    return Ok((at, None));
                }
                Parsed::Wrong(_) if begun && how.lenient => return Ok((at, None)),
                Parsed::Wrong(why) => return Err(bad(why)),
                Parsed::Empty | Parsed::Torn => return Err(bad("the file is empty")),
            }
        }
    }

    fn read_segments(&mut self, files: &Files, how: Load, visit: &mut Visit<'_>) -> Result<Sizes, LoadError> {
        let useless = files.checkpoints.last().map_or(0, |n| useless(&files.segments, *n));
        let mut sizes = Sizes::default();
        // Where to go on: the first file that does not say that another one follows, and the files after it.
        let mut open: Option<(PathBuf, u64)> = None;
        let mut after = vec![];
        let mut next = files.checkpoints.last().map_or(0, |n| n + 1).max(1);
        for &first in &files.segments[useless..] {
            let path = self.segment_path(first);
            let continues = match sizes.log {
                0 => first <= next,
                _ => first == next || open.is_some(),
            };
            if !continues {
                return Err(Damage::of(&path, "a log file before this one is missing").into());
            }
            if how.lenient && open.is_some() {
                // After a gap nothing counts.
                after.push(path);
                continue;
            }
            let bytes = fs::read(&path)?;
            let mut groups = 0u64;
            let mut counted = |frame: frame::Frame<'_>| {
                groups += 1;
                visit(frame)
            };
            let (end, sealed) = self.read_segment(first, &bytes, how, &mut counted)?;
            sizes.log += end as u64;
            if open.is_some() {
                // Made ahead, and not used before the crash.
                if groups > 0 {
                    return Err(Damage::of(&path, "the log file before this one has lost its end").into());
                }
                after.push(path);
            } else if let Some(first) = sealed {
                next = first;
            } else {
                let lost = bytes[end..].iter().rposition(|b| *b != 0);
                sizes.torn = lost.map_or(0, |n| n as u64 + 1);
                open = Some((path, end as u64));
            }
        }
        let Some((path, end)) = open else {
            return Err(Damage::of(&self.directory, "the last log file is missing").into());
        };
        if how.repair {
            for path in after {
                fs::remove_file(path)?;
            }
            self.current = Some(Segment::reopen(&path, end, sizes.torn)?);
            sync_directory(&self.directory)?;
        }
        Ok(sizes)
    }
}

/// How many of the log files that begin with the groups `firsts` hold nothing after group `checkpoint`.
fn useless(firsts: &[u64], checkpoint: u64) -> usize {
    firsts
        .partition_point(|first| *first <= checkpoint + 1)
        .saturating_sub(1)
}

/// Makes a file of zeros that has its blocks.
fn allocate(path: &Path, length: u64) -> io::Result<()> {
    let file = new_file().truncate(true).open(path)?;
    reserve(&file, length)?;
    file.sync_all()
}

fn reserve(file: &File, length: u64) -> io::Result<()> {
    let len = i64::try_from(length).map_err(io::Error::other)?;
    match fallocate(file, FallocateFlags::empty(), 0, len) {
        // Not every file system can: then a disk that fills up is noticed later.
        Err(nix::errno::Errno::EOPNOTSUPP | nix::errno::Errno::ENOSYS) => file.set_len(length),
        done => Ok(done?),
    }
}

impl Segment {
    /// Opens a file to go on at `end`; the `torn` bytes after it are emptied. The file keeps its length, or a
    /// crash in between would look like damage.
    fn reopen(path: &Path, end: u64, torn: u64) -> io::Result<Self> {
        let file = OpenOptions::new().read(true).write(true).open(path)?;
        let length = file.metadata()?.len();
        if torn > 0 {
            file.write_all_at(&vec![0; usize::try_from(torn).map_err(io::Error::other)?], end)?;
            file.sync_data()?;
        }
        let last = (0, 0);
        Ok(Self {
            file,
            length,
            end,
            last,
        })
    }

    /// Writes a frame without content at the end, if there is room, and syncs.
    fn mark(&mut self, salt: u64, kind: Kind, number: u64) -> io::Result<()> {
        let mut mark = vec![];
        frame::write(&mut mark, salt, kind, number, |_| {});
        self.file.write_all_at(&mark, self.end)?;
        self.end += mark.len() as u64;
        self.file.sync_data()
    }

    fn left(&self) -> u64 {
        // The last frame is a mark.
        self.length.saturating_sub(self.end + 2 * frame::HEADER as u64)
    }
}

impl Engine for LogEngine {
    fn load(&mut self, how: Load, visit: &mut Visit<'_>) -> Result<Sizes, LoadError> {
        if how.repair {
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
        let sizes = self.read_segments(&files, how, visit)?;
        Ok(Sizes { checkpoint, ..sizes })
    }

    fn append(&mut self, number: u64, frame: &[u8]) -> io::Result<()> {
        let len = frame.len() as u64;
        if let Some(segment) = self.current.as_mut().filter(|s| s.last.0 == number) {
            // Again, since it could not be synced: what the kernel had of it may be gone.
            segment.end = segment.last.1;
        }
        if self.current.as_ref().is_none_or(|segment| segment.left() < len) {
            self.rotate(number, len + 4 * frame::HEADER as u64)?;
        }
        let segment = self.current.as_mut().ok_or_else(|| io::Error::other("no log file"))?;
        segment.file.write_all_at(frame, segment.end)?;
        segment.last = (number, segment.end);
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
        // A file that has room left goes on, or checkpoints that fail again and again would fill the disk; but
        // only with the checkpoint's last group in it, so that it does not look whole without the checkpoint.
        let goes_on = |s: &Segment| s.end < s.length / 4 && s.last.0 == number;
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
