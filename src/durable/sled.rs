//! sled as a database of frames. After a disk error sled stays in error, so only the log engine survives a full
//! disk.

use super::damage::Damage;
use super::engine::LoadError;
use super::keyed::{Database, Each, KeyedEngine, guarded};
use std::io;
use std::path::Path;
use std::time::Duration;
use tokio::time::Instant;

/// sled's cache, in bytes. Small, because frames are read only once, at the start.
const CACHE: u64 = 8 << 20;

/// Longest wait for the lock of a database that was just closed.
const PATIENCE: Duration = Duration::from_secs(5);

pub(super) struct Sled(sled::Db);

/// sled reports the lock as an error text only.
fn is_locked(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::WouldBlock || error.to_string().contains("could not acquire lock")
}

fn failed(error: sled::Error) -> io::Error {
    match error {
        sled::Error::Io(error) => error,
        other => io::Error::other(other),
    }
}

fn unreadable(error: sled::Error) -> LoadError {
    match error {
        sled::Error::Io(error) => error.into(),
        other => Damage::new(other.to_string()).into(),
    }
}

/// Opens or makes the database in `directory`.
pub(super) fn open(directory: &Path, salt: u64) -> Result<KeyedEngine<Sled>, LoadError> {
    let path = directory.join("sled");
    guarded(&path, || {
        let config = sled::Config::new().path(&path);
        let config = config.cache_capacity(CACHE).flush_every_ms(None);
        let begun = Instant::now();
        loop {
            match config.open() {
                // Threads of a database that was just closed may still hold the lock. Another process cannot: the
                // data directory is locked.
                Err(sled::Error::Io(e)) if is_locked(&e) && begun.elapsed() < PATIENCE => {
                    std::thread::park_timeout(Duration::from_millis(20));
                }
                opened => {
                    let database = Sled(opened.map_err(unreadable)?);
                    return Ok(KeyedEngine::new(path.clone(), salt, database));
                }
            }
        }
    })
}

impl Database for Sled {
    fn put(&self, key: &[u8], value: &[u8]) -> io::Result<()> {
        self.0.insert(key, value).map(drop).map_err(failed)
    }

    fn remove(&self, key: &[u8]) -> io::Result<()> {
        self.0.remove(key).map(drop).map_err(failed)
    }

    fn scan(&self, from: &[u8], to: &[u8], each: &mut Each<'_>) -> Result<(), LoadError> {
        for entry in self.0.range(from..to) {
            let (key, value) = entry.map_err(unreadable)?;
            each(&key, &value)?;
        }
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        self.0.flush().map(drop).map_err(failed)
    }
}
