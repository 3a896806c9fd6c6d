//! fjall as a database of frames, for comparisons.

use super::damage::Damage;
use super::engine::LoadError;
use super::keyed::{Database, Each, KeyedEngine, guarded};
use fjall::{Keyspace, KeyspaceCreateOptions, PersistMode};
use std::io;
use std::path::Path;

/// fjall's cache, in bytes. Small, because frames are read only once, at the start.
const CACHE: u64 = 8 << 20;

pub(super) struct Fjall {
    database: fjall::Database,
    frames: Keyspace,
}

fn failed(error: fjall::Error) -> io::Error {
    match error {
        fjall::Error::Io(error) => error,
        other => io::Error::other(other),
    }
}

fn unreadable(error: fjall::Error) -> LoadError {
    match error {
        fjall::Error::Io(error) => error.into(),
        other => Damage::new(other.to_string()).into(),
    }
}

/// Opens or makes the database in `directory`.
pub(super) fn open(directory: &Path, salt: u64) -> Result<KeyedEngine<Fjall>, LoadError> {
    let path = directory.join("fjall");
    guarded(&path, || {
        let database = fjall::Database::builder(&path).cache_size(CACHE).open();
        let database = database.map_err(unreadable)?;
        let frames = database.keyspace("frames", KeyspaceCreateOptions::default);
        let frames = frames.map_err(unreadable)?;
        Ok(KeyedEngine::new(path.clone(), salt, Fjall { database, frames }))
    })
}

impl Database for Fjall {
    fn put(&self, key: &[u8], value: &[u8]) -> io::Result<()> {
        self.frames.insert(key, value).map_err(failed)
    }

    fn remove(&self, key: &[u8]) -> io::Result<()> {
        self.frames.remove(key).map_err(failed)
    }

    fn scan(&self, from: &[u8], to: &[u8], each: &mut Each<'_>) -> Result<(), LoadError> {
        for entry in self.frames.range(from..to) {
            let (key, value) = entry.into_inner().map_err(unreadable)?;
            each(&key, &value)?;
        }
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        self.database.persist(PersistMode::SyncData).map_err(failed)
    }
}
