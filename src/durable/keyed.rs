//! An engine over any ordered key-value database: one record for each group and each frame of a checkpoint.
//!
//! ```text
//! c <checkpoint> <frame>     frames of checkpoints; only those of the current checkpoint count
//! g <group>                  groups
//! m                          the number of the current checkpoint
//! v                          marks a database that was created on purpose, not because its files were missing
//! ```

use super::damage::Damage;
use super::engine::{Engine, LoadError, LoadOptions, Sizes, Visit};
use super::frame;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;

/// Key of the number of the current checkpoint.
const CURRENT: &[u8] = b"m";
/// Key of the record that every database has.
const MADE: &[u8] = b"v";

/// Takes a key and its value.
pub(super) type Each<'a> = dyn FnMut(&[u8], &[u8]) -> Result<(), LoadError> + 'a;

/// A database of ordered keys. Its methods may panic over a damaged file.
pub(super) trait Database: Send {
    fn put(&self, key: &[u8], value: &[u8]) -> io::Result<()>;
    fn remove(&self, key: &[u8]) -> io::Result<()>;
    /// Calls `each` for the keys of `[from, to)`, in order.
    fn scan(&self, from: &[u8], to: &[u8], each: &mut Each<'_>) -> Result<(), LoadError>;
    /// Returns when everything put is on the disk.
    fn sync(&self) -> io::Result<()>;
}

/// An engine that keeps frames in a [`Database`].
pub(super) struct KeyedEngine<D> {
    path: PathBuf,
    salt: u64,
    database: D,
    checkpoint: Option<Checkpoint>,
}

/// A checkpoint that is being written.
struct Checkpoint {
    number: u64,
    /// Frames written so far.
    frames: u64,
}

fn group_key(number: u64) -> Vec<u8> {
    [&b"g"[..], &number.to_be_bytes()].concat()
}

fn frame_key(checkpoint: u64, frame: u64) -> Vec<u8> {
    [&b"c"[..], &checkpoint.to_be_bytes(), &frame.to_be_bytes()].concat()
}

/// Runs `f`, and turns a panic into damage of the files at `path`.
pub(super) fn guarded<T>(path: &std::path::Path, f: impl FnOnce() -> Result<T, LoadError>) -> Result<T, LoadError> {
    match catch_unwind(AssertUnwindSafe(f)) {
        Ok(done) => done,
        Err(_) => Err(Damage::of(path, "the database panicked").into()),
    }
}

impl<D: Database> KeyedEngine<D> {
    /// An engine over `database`, whose files are at `path`.
    pub(super) fn new(path: PathBuf, salt: u64, database: D) -> Self {
        Self {
            path,
            salt,
            database,
            checkpoint: None,
        }
    }

    /// Marks a new database as created on purpose.
    pub(super) fn begin_anew(&self) -> io::Result<()> {
        self.database.put(MADE, b"1")?;
        self.database.sync()
    }

    fn read(&self, visit: &mut Visit<'_>) -> Result<Sizes, LoadError> {
        let mut sizes = Sizes::default();
        let mut made = false;
        self.database.scan(MADE, b"w", &mut |_, _| {
            made = true;
            Ok(())
        })?;
        if !made {
            return Err(Damage::of(&self.path, "the database is missing").into());
        }
        let mut current = None;
        self.database.scan(CURRENT, b"n", &mut |_, value| {
            let number = value.try_into().map(u64::from_be_bytes);
            let number = number.map_err(|_| Damage::of(&self.path, "the number of the checkpoint is malformed"))?;
            current = Some(number);
            Ok(())
        })?;
        if let Some(current) = current {
            let (from, to) = (frame_key(current, 0), frame_key(current + 1, 0));
            self.database.scan(&from, &to, &mut |_, frame| {
                sizes.checkpoint += frame.len() as u64;
                Ok(visit(frame::single(frame, self.salt)?)?)
            })?;
            if sizes.checkpoint == 0 {
                return Err(Damage::of(&self.path, "the checkpoint is missing").into());
            }
        }
        let from = group_key(current.map_or(0, |n| n + 1));
        self.database.scan(&from, b"h", &mut |key, frame| {
            sizes.log += frame.len() as u64;
            let group = frame::single(frame, self.salt)?;
            if group_key(group.number) != key {
                return Err(Damage::of(&self.path, "a group is stored under the number of another group").into());
            }
            Ok(visit(group)?)
        })?;
        Ok(sizes)
    }

    fn remove(&self, from: &[u8], to: &[u8]) -> io::Result<()> {
        let mut keys = vec![];
        self.database.scan(from, to, &mut |key, _| {
            keys.push(key.to_vec());
            Ok(())
        })?;
        keys.iter().try_for_each(|key| self.database.remove(key))
    }
}

impl<D: Database> Engine for KeyedEngine<D> {
    fn load(&mut self, _: LoadOptions, visit: &mut Visit<'_>) -> Result<Sizes, LoadError> {
        guarded(&self.path, || self.read(visit))
    }

    fn append(&mut self, number: u64, frame: &[u8]) -> io::Result<()> {
        self.database.put(&group_key(number), frame)
    }

    fn sync(&mut self) -> io::Result<()> {
        self.database.sync()
    }

    fn reserve(&mut self) -> io::Result<()> {
        Ok(())
    }

    fn has_room(&self) -> bool {
        true
    }

    fn begin(&mut self, number: u64) -> io::Result<()> {
        self.checkpoint = Some(Checkpoint { number, frames: 0 });
        Ok(())
    }

    fn add(&mut self, frame: &[u8]) -> io::Result<()> {
        let Some(Checkpoint { number, frames }) = &mut self.checkpoint else {
            return Err(io::Error::other("no checkpoint was begun"));
        };
        self.database.put(&frame_key(*number, *frames), frame)?;
        *frames += 1;
        Ok(())
    }

    fn finish(&mut self) -> io::Result<()> {
        let Some(Checkpoint { number, .. }) = self.checkpoint.take() else {
            return Err(io::Error::other("no checkpoint was begun"));
        };
        // The frames must be on the disk before the record that names them.
        self.sync()?;
        self.database.put(CURRENT, &number.to_be_bytes())?;
        self.sync()?;
        self.remove(b"c", &frame_key(number, 0))?;
        self.remove(&frame_key(number + 1, 0), b"d")?;
        self.remove(b"g", &group_key(number + 1))
    }

    fn abandon(&mut self) {
        if let Some(Checkpoint { number, .. }) = self.checkpoint.take()
            && let Err(error) = self.remove(&frame_key(number, 0), &frame_key(number + 1, 0))
        {
            tracing::warn!(%error, path = %self.path.display(), "cannot remove the frames of an abandoned checkpoint");
        }
    }

    fn close(&mut self, _: u64) -> io::Result<()> {
        self.sync()
    }
}
