//! The files of the image, by path, and how they are written: as a tar layer, or into a directory.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use anyhow::{Context, Result, ensure};

/// The user and group of the image. Cilium's chart runs its containers as this user, and the image's own files belong to root.
pub const NONROOT: u64 = 65532;

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    Directory,
    File(Vec<u8>),
    Link(String),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    pub mode: u32,
    /// User and group alike.
    pub owner: u64,
    pub content: Content,
}

/// Sorted by path, without leading slash: the order of a layer must not depend on the order of insertion.
#[derive(Debug, Default)]
pub struct Tree {
    pub entries: BTreeMap<String, Entry>,
}

impl Tree {
    pub fn directory(&mut self, path: &str, mode: u32, owner: u64) {
        self.insert(
            path,
            Entry {
                mode,
                owner,
                content: Content::Directory,
            },
        );
    }

    pub fn file(&mut self, path: &str, mode: u32, bytes: impl Into<Vec<u8>>) {
        self.insert(
            path,
            Entry {
                mode,
                owner: 0,
                content: Content::File(bytes.into()),
            },
        );
    }

    pub fn link(&mut self, path: &str, target: &str) {
        self.insert(
            path,
            Entry {
                mode: 0o777,
                owner: 0,
                content: Content::Link(target.to_owned()),
            },
        );
    }

    fn insert(&mut self, path: &str, entry: Entry) {
        for (at, _) in path.match_indices('/') {
            let parent = Entry {
                mode: 0o755,
                owner: 0,
                content: Content::Directory,
            };
            self.entries.entry(path[..at].to_owned()).or_insert(parent);
        }
        self.entries.insert(path.to_owned(), entry);
    }

    /// Writes the files as an uncompressed tar archive. `mtime` is in seconds since 1970.
    pub fn write_tar(&self, out: impl Write, mtime: u64) -> Result<()> {
        let mut tar = tar::Builder::new(out);
        for (path, entry) in &self.entries {
            append(&mut tar, path, entry, mtime).with_context(|| format!("cannot add {path} to the layer"))?;
        }
        tar.into_inner()?.flush()?;
        Ok(())
    }

    /// Writes the files below `directory`, which must be empty. Owners stay those of this process.
    pub fn write_directory(&self, directory: &Path) -> Result<()> {
        fs::create_dir_all(directory).with_context(|| format!("cannot make {}", directory.display()))?;
        let empty = fs::read_dir(directory)?.next().is_none();
        ensure!(
            empty,
            "the directory {} is not empty: remove its content, or name another one",
            directory.display()
        );
        for (path, entry) in &self.entries {
            let target = directory.join(path);
            let written = match &entry.content {
                Content::Directory => fs::create_dir(&target),
                Content::File(bytes) => fs::write(&target, bytes),
                Content::Link(to) => symlink(to, &target),
            };
            written.with_context(|| format!("cannot write {}", target.display()))?;
            if !matches!(entry.content, Content::Link(_)) {
                // After creation, because the umask takes bits off.
                fs::set_permissions(&target, fs::Permissions::from_mode(entry.mode))?;
            }
        }
        Ok(())
    }
}

fn append<W: Write>(tar: &mut tar::Builder<W>, path: &str, entry: &Entry, mtime: u64) -> std::io::Result<()> {
    let mut header = tar::Header::new_gnu();
    header.set_mode(entry.mode);
    header.set_uid(entry.owner);
    header.set_gid(entry.owner);
    header.set_mtime(mtime);
    header.set_size(0);
    match &entry.content {
        Content::Directory => {
            header.set_entry_type(tar::EntryType::Directory);
            tar.append_data(&mut header, format!("{path}/"), std::io::empty())
        }
        Content::File(bytes) => {
            header.set_entry_type(tar::EntryType::Regular);
            header.set_size(bytes.len() as u64);
            tar.append_data(&mut header, path, bytes.as_slice())
        }
        Content::Link(target) => {
            header.set_entry_type(tar::EntryType::Symlink);
            tar.append_link(&mut header, path, target)
        }
    }
}
