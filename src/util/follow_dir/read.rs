//! Lists and reads the files. Blocks.

use super::snapshot::{Found, Print, Snapshot};
use super::{Clock, Config, File, Inspected, SETTLE, Scope};
use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{self, ErrorKind, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// The files that a scope names.
#[derive(Debug, Default)]
pub(super) struct Listing {
    /// The files; with the error, if even the metadata of a file cannot be read.
    pub(super) files: BTreeMap<PathBuf, Option<io::Error>>,
    /// The directories that were listed.
    pub(super) directories: BTreeSet<PathBuf>,
}

/// Identifies a file or directory.
#[derive(PartialEq, Eq)]
struct Identity {
    device: u64,
    inode: u64,
}

pub(super) fn list(config: &Config) -> io::Result<Listing> {
    let mut listing = Listing::default();
    match &config.scope {
        Scope::File(path) => {
            listing.directories.insert(config.scope.root().to_owned());
            listing.files.insert(path.clone(), None);
        }
        Scope::Directory(directory) => listing.add(config, directory, None)?,
        Scope::Tree(directory) => {
            let meta = std::fs::metadata(directory)?;
            listing.add(config, directory, Some(&mut vec![identity(&meta)]))?;
        }
    }
    Ok(listing)
}

impl Listing {
    /// Adds the files of `directory`; with `ancestors`, which ends with the directory itself, also those of its
    /// subdirectories.
    fn add(&mut self, config: &Config, directory: &Path, mut ancestors: Option<&mut Vec<Identity>>) -> io::Result<()> {
        let entries = std::fs::read_dir(directory)?;
        self.directories.insert(directory.to_owned());
        for entry in entries {
            let path = entry?.path();
            let is_hidden = path.file_name().is_some_and(|n| n.as_encoded_bytes().starts_with(b"."));
            if is_hidden && ancestors.is_some() {
                continue;
            }
            // Follows links: a mounted ConfigMap consists of them.
            match (std::fs::metadata(&path), &mut ancestors) {
                // A link to an ancestor would never end.
                (Ok(meta), Some(ancestors)) if meta.is_dir() && !ancestors.contains(&identity(&meta)) => {
                    ancestors.push(identity(&meta));
                    self.add_subdirectory(config, &path, ancestors)?;
                    ancestors.pop();
                }
                (Ok(meta), _) if meta.is_file() && (config.wants)(&path) => {
                    self.files.insert(path, None);
                }
                (Err(error), _) if error.kind() != ErrorKind::NotFound && (config.wants)(&path) => {
                    self.files.insert(path, Some(error));
                }
                // Not a regular file, a broken link, or a file that was removed meanwhile.
                _ => {}
            }
        }
        Ok(())
    }

    fn add_subdirectory(&mut self, config: &Config, path: &Path, ancestors: &mut Vec<Identity>) -> io::Result<()> {
        match self.add(config, path, Some(ancestors)) {
            // The directory was removed meanwhile.
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
            added => added,
        }
    }
}

fn identity(meta: &std::fs::Metadata) -> Identity {
    Identity {
        device: meta.dev(),
        inode: meta.ino(),
    }
}

/// Reads the listed files. Files that are not there or not followed are left out.
pub(super) fn read(
    config: &Config,
    files: BTreeMap<PathBuf, Option<io::Error>>,
    known: &Snapshot,
    clock: Clock<'_>,
) -> BTreeMap<PathBuf, Found> {
    let mut found = BTreeMap::new();
    for (path, error) in files {
        let read = match error {
            Some(error) => Err(error),
            None => read_file(config, &path, known, clock),
        };
        match read {
            Ok(Some(state)) => drop(found.insert(path, state)),
            Ok(None) => {}
            Err(error) if error.kind() == ErrorKind::NotFound => match config.scope {
                // The scope has no list that could be outdated, so the file is absent.
                Scope::File(_) => {}
                // The file was listed a moment ago, so it may be about to be replaced: the next look decides.
                Scope::Directory(_) | Scope::Tree(_) => drop(found.insert(path, Found::BeingWritten)),
            },
            Err(error) => drop(found.insert(path, Found::Unreadable(error))),
        }
    }
    found
}

/// Reads a file; `None` if it is not followed.
fn read_file(config: &Config, path: &Path, known: &Snapshot, clock: Clock<'_>) -> io::Result<Option<Found>> {
    // The type is checked before the file is opened, because opening a pipe blocks.
    let before = std::fs::metadata(path)?;
    if before.is_dir() {
        return Err(ErrorKind::IsADirectory.into());
    }
    if !before.is_file() {
        return Err(io::Error::other("not a regular file"));
    }
    // Compares with the present time rather than the start of the look: a file that is written during a long look is
    // not complete.
    if !is_settled(&before, clock())? {
        return Ok(Some(Found::BeingWritten));
    }
    let (content, after) = read_content(path, config.length_max)?;
    if identity(&before) != identity(&after) || before.modified()? != after.modified()? {
        return Ok(Some(Found::BeingWritten));
    }
    let Inspected::Followed { companions } = (config.inspect)(&content) else {
        return Ok(None);
    };
    let before = known.print(path);
    let print = Print {
        content: hash(&content),
        companions: companions
            .into_iter()
            .map(|companion| {
                let hash = companion_hash(&companion, before, config.length_max);
                (companion, hash)
            })
            .collect(),
    };
    if before == Some(&print) && known.is_readable(path) {
        return Ok(Some(Found::Unchanged));
    }
    let file = File {
        path: path.to_owned(),
        content,
        modified: after.modified()?,
    };
    Ok(Some(Found::Read { file, print }))
}

/// Whether a file is old enough to be complete. A time in the future counts as old.
fn is_settled(meta: &std::fs::Metadata, now: SystemTime) -> io::Result<bool> {
    let age = now.duration_since(meta.modified()?);
    Ok(age.map_or(true, |age| age >= SETTLE))
}

/// The content, and the metadata after it was read.
fn read_content(path: &Path, length_max: u64) -> io::Result<(Vec<u8>, std::fs::Metadata)> {
    let file = std::fs::File::open(path)?;
    let mut content = vec![];
    (&file).take(length_max.saturating_add(1)).read_to_end(&mut content)?;
    match content.len() as u64 > length_max {
        true => Err(io::Error::other(format!("the file is longer than {length_max} bytes"))),
        false => Ok((content, file.metadata()?)),
    }
}

/// A companion that exists but cannot be read counts as unchanged.
fn companion_hash(path: &Path, before: Option<&Print>, length_max: u64) -> Option<u64> {
    match read_content(path, length_max) {
        Ok((content, _)) => Some(hash(&content)),
        Err(error) if error.kind() == ErrorKind::NotFound => None,
        Err(_) => *before?.companions.get(path)?,
    }
}

fn hash(content: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    content.hash(&mut hasher);
    hasher.finish()
}
