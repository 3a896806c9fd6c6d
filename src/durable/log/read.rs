//! Reading the files of the log engine: the newest checkpoint, then the log files after it.

use super::{Files, LogEngine, Segment, useless};
use crate::durable::damage::Damage;
use crate::durable::engine::{LoadError, LoadOptions, Sizes, Visit};
use crate::durable::frame::{self, Kind, Parsed};
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::PathBuf;

/// How a log file ends.
struct SegmentEnd {
    /// Offset of the end of the frames, in bytes.
    at: usize,
    /// The first group of the next file, if this file announces one.
    next: Option<u64>,
}

impl LogEngine {
    pub(super) fn read_checkpoint(&self, number: u64, visit: &mut Visit<'_>) -> Result<u64, LoadError> {
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
            // Read frame by frame: the file may be larger than the free memory.
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
            let is_last = frame.kind == Kind::End;
            visit(frame).map_err(|d| d.at(&path))?;
            if is_last {
                break;
            }
        }
        match at == length {
            true => Ok(length),
            false => Err(bad("the file goes on after its end")),
        }
    }

    /// Reads one log file.
    fn read_segment(
        &self,
        first: u64,
        bytes: &[u8],
        options: LoadOptions,
        visit: &mut Visit<'_>,
    ) -> Result<SegmentEnd, LoadError> {
        let path = self.segment_path(first);
        let bad = |why: &str| LoadError::Damage(Damage::of(&path, why));
        let (mut at, mut begun) = (0, false);
        loop {
            match frame::parse(&bytes[at..], self.salt, at as u64) {
                Parsed::Whole(frame, len) => {
                    match frame.kind {
                        Kind::Segment if at == 0 && frame.number == first => {
                            begun = true;
                            if *frame.payload != (bytes.len() as u64).to_le_bytes() {
                                return Err(bad("the file does not have the length with which it was made"));
                            }
                        }
                        Kind::Group if begun => visit(frame).map_err(|d| d.at(&path))?,
                        Kind::Closed if begun => {}
                        Kind::Seal if begun => {
                            return Ok(SegmentEnd {
                                at,
                                next: Some(frame.number),
                            });
                        }
                        _ => return Err(bad("a frame is out of place")),
                    }
                    at += len;
                }
                Parsed::Empty | Parsed::Torn if begun => {
                    // A later group is written only after this one is on the disk.
                    if !options.lenient && frame::find(&bytes[at..], self.salt, at as u64).is_some() {
                        return Err(bad("a group in the middle is lost"));
                    }
                    return Ok(SegmentEnd { at, next: None });
                }
                Parsed::Wrong(_) if begun && options.lenient => {
                    return Ok(SegmentEnd { at, next: None });
                }
                Parsed::Wrong(why) => return Err(bad(why)),
                Parsed::Empty | Parsed::Torn => return Err(bad("the file is empty")),
            }
        }
    }

    pub(super) fn read_segments(
        &mut self,
        files: &Files,
        options: LoadOptions,
        visit: &mut Visit<'_>,
    ) -> Result<Sizes, LoadError> {
        let useless = files.checkpoints.last().map_or(0, |n| useless(&files.segments, *n));
        let mut sizes = Sizes::default();
        // The first file that does not announce a next file is the current one; the files after it are unused.
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
            if options.lenient && open.is_some() {
                // Groups after a lost group are void.
                after.push(path);
                continue;
            }
            let bytes = fs::read(&path)?;
            let mut groups = 0u64;
            let mut counted = |frame: frame::Frame<'_>| {
                groups += 1;
                visit(frame)
            };
            let SegmentEnd { at: end, next: sealed } = self.read_segment(first, &bytes, options, &mut counted)?;
            sizes.log += end as u64;
            if open.is_some() {
                // The file was made before the crash, but not used.
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
        if options.repair {
            for path in after {
                fs::remove_file(path)?;
            }
            self.current = Some(Segment::reopen(&path, end, sizes.torn)?);
            self.sync_directory()?;
        }
        Ok(sizes)
    }
}
