//! The known state of the files, and the differences that a look has found. Pure: no files, no clock.

use super::{File, FileChange, Removal};
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

/// The files as of the last look.
#[derive(Debug, Default)]
pub(super) struct Snapshot(BTreeMap<PathBuf, Known>);

#[derive(Debug, Default)]
struct Known {
    /// `None` while the file has never been read.
    print: Option<Print>,
    /// Why the file cannot be read now.
    error: Option<String>,
    /// Whether the last look did not find the file.
    is_absent: bool,
}

/// Hashes of everything that counts as a file's content.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Print {
    pub(super) content: u64,
    /// `None` for a companion that is missing.
    pub(super) companions: BTreeMap<PathBuf, Option<u64>>,
}

/// The state in which a look found a file.
#[derive(Debug)]
pub(super) enum Found {
    /// Changed so recently that the content may be incomplete.
    BeingWritten,
    Unreadable(io::Error),
    /// Readable as before, and with the same print.
    Unchanged,
    Read {
        file: File,
        print: Print,
    },
}

/// The outcome of a comparison.
#[derive(Debug)]
pub(super) struct Comparison {
    pub(super) changes: Vec<FileChange>,
    /// Whether no file was being written or absent for the first time.
    pub(super) settled: bool,
}

impl Snapshot {
    /// The print of a file that could be read at the last look that found it.
    pub(super) fn print(&self, path: &Path) -> Option<&Print> {
        self.0.get(path)?.print.as_ref()
    }

    pub(super) fn is_readable(&self, path: &Path) -> bool {
        self.0.get(path).is_none_or(|known| known.error.is_none())
    }

    /// Replaces the known state by the files that a look found and that are followed. Returns the changes.
    pub(super) fn compare(&mut self, found: BTreeMap<PathBuf, Found>, removal: Removal) -> Comparison {
        let (mut changes, mut settled) = (vec![], true);
        let mut before = std::mem::take(&mut self.0);
        for (path, found) in found {
            let known = before.remove(&path);
            settled &= !matches!(found, Found::BeingWritten);
            if let Some(known) = after(known, &path, found, &mut changes) {
                self.0.insert(path, known);
            }
        }
        for (path, mut known) in before {
            // A file that was never read has not been reported as content either.
            if known.print.is_none() {
                continue;
            }
            if known.is_absent || removal == Removal::AtOnce {
                changes.push(FileChange::Removed(path));
            } else {
                settled = false;
                known.is_absent = true;
                self.0.insert(path, known);
            }
        }
        Comparison { changes, settled }
    }
}

/// What is known of a file after it was found.
fn after(known: Option<Known>, path: &Path, found: Found, changes: &mut Vec<FileChange>) -> Option<Known> {
    let known = known.map(|known| Known {
        is_absent: false,
        ..known
    });
    match found {
        Found::BeingWritten | Found::Unchanged => known,
        Found::Unreadable(error) => {
            let mut known = known.unwrap_or_default();
            let text = error.to_string();
            if known.error.as_ref() != Some(&text) {
                known.error = Some(text);
                let path = path.to_owned();
                changes.push(FileChange::Unreadable { path, error });
            }
            Some(known)
        }
        Found::Read { file, print } => {
            let known = known.unwrap_or_default();
            if known.print.as_ref() != Some(&print) {
                changes.push(FileChange::Content(file));
            } else if known.error.is_some() {
                changes.push(FileChange::ReadableAgain(file));
            }
            Some(Known {
                print: Some(print),
                ..Known::default()
            })
        }
    }
}
