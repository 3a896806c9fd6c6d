//! Reads a bbolt file page by page, from disk or memory. The file is not trusted: any bytes yield entries or an
//! error, and each page is read at most once.
//!
//! Layout: see `bolt`, with two additions: a small bucket may be a page inside its value (an inline bucket), and one
//! of the two meta pages may be older or torn.

mod page;
#[cfg(test)]
mod tests;

use self::page::{Leaf, META_PAGE, Meta, PAGE_BITS, Page, u32_at, u64_at};
use super::bolt::IS_BUCKET;
use sha2::{Digest, Sha256};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// Pages before this one are meta pages.
const FIRST_PAGE: u64 = 2;
/// Bytes of a bucket's root page and sequence, before the page of an inline bucket.
const BUCKET: usize = 16;
/// Deepest tree: with two children per page, deeper trees exceed any file.
const MAX_DEPTH: usize = 64;
/// Bytes of the SHA-256 that `etcdctl snapshot save` appends.
const HASH: usize = 32;
/// Divides every page size, so that the length of the file shows whether a hash is appended.
const SECTOR: u64 = 512;
const CHUNK: usize = 1 << 20;

/// Why a file could not be read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot read the snapshot at byte {0}: {1}")]
    Io(u64, io::Error),
    #[error("not a bbolt file, or the start of the file is lost: neither meta page is valid")]
    NotBolt,
    #[error("the snapshot does not match its appended SHA-256: copy the snapshot again, or save a new one")]
    Hash,
    #[error("the snapshot is truncated: {needed} bytes are in use, but the file has only {len}")]
    Truncated {
        needed: u128,
        /// Length of the file without the hash, in bytes.
        len: u64,
    },
    /// A malformed page.
    #[error("page {page}: {what}")]
    Page {
        page: u64,
        /// The fault of the page.
        what: String,
    },
}

pub type Result<T> = std::result::Result<T, Error>;

enum Input {
    File(File),
    Bytes(Vec<u8>),
}

/// A bbolt file.
pub struct Reader {
    input: Input,
    page_size: u32,
    pages: u64,
    has_hash: bool,
    /// Sorted by name.
    buckets: Vec<Leaf>,
    /// The pages of the root bucket, by page id.
    seen: Vec<bool>,
}

/// The entries of a bucket, ordered by key. Like bbolt's cursor, shows a nested bucket (etcd has none) as a key with
/// an empty value. Ends after an error.
pub struct Entries<'a> {
    reader: &'a Reader,
    /// The pages from the root down to the current page.
    stack: Vec<Page>,
    /// The pages that were read, by page id: a page in two places is an error.
    seen: Vec<bool>,
    last: Option<Vec<u8>>,
}

// === impl Input ===

impl Input {
    fn read(&self, at: u64, len: usize) -> Result<Vec<u8>> {
        let bytes = match self {
            Self::File(file) => {
                let mut bytes = vec![0; len];
                file.read_exact_at(&mut bytes, at).map(|()| bytes)
            }
            Self::Bytes(bytes) => {
                let found = usize::try_from(at).ok().and_then(|at| bytes.get(at..)?.get(..len));
                found.map(<[u8]>::to_vec).ok_or(io::ErrorKind::UnexpectedEof.into())
            }
        };
        bytes.map_err(|e| Error::Io(at, e))
    }

    fn verify_hash(&self, len: u64) -> Result<()> {
        let mut sum = Sha256::new();
        for at in (0..len).step_by(CHUNK) {
            sum.update(self.read(at, (len - at).min(CHUNK as u64) as usize)?);
        }
        if sum.finalize()[..] != self.read(len, HASH)? {
            return Err(Error::Hash);
        }
        Ok(())
    }

    /// The intact meta page of the newer transaction, of a file of `len` bytes.
    fn meta(&self, len: u64) -> Result<Meta> {
        let meta = |at: u64| {
            if at.saturating_add(META_PAGE as u64) > len {
                return Ok(None);
            }
            self.read(at, META_PAGE).map(|page| Meta::parse(&page))
        };
        let first = meta(0)?;
        // The first meta page gives the page size, and so the place of the second. Without it, every size is tried.
        let sizes = match &first {
            Some(first) => vec![first.page_size],
            None => PAGE_BITS.map(|bits| 1 << bits).collect(),
        };
        for size in sizes {
            let second = meta(size.into())?.filter(|second| second.page_size == size);
            if let Some(second) = second {
                return Ok(first.filter(|f| f.transaction >= second.transaction).unwrap_or(second));
            }
        }
        first.ok_or(Error::NotBolt)
    }
}

// === impl Reader ===

impl Reader {
    /// Opens the file at `path`.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        Self::from_file(File::open(path).map_err(|e| Error::Io(0, e))?)
    }

    /// Reads `file` from its start.
    pub fn from_file(file: File) -> Result<Self> {
        let len = file.metadata().map_err(|e| Error::Io(0, e))?.len();
        Self::new(Input::File(file), len)
    }

    /// Reads from memory.
    pub fn from_bytes(bytes: Vec<u8>) -> Result<Self> {
        let len = bytes.len() as u64;
        Self::new(Input::Bytes(bytes), len)
    }

    fn new(input: Input, mut len: u64) -> Result<Self> {
        let has_hash = len % SECTOR == HASH as u64;
        if has_hash {
            len -= HASH as u64;
            input.verify_hash(len)?;
        }
        let meta = input.meta(len)?;
        let needed = u128::from(meta.pages) * u128::from(meta.page_size);
        if needed > len.into() {
            return Err(Error::Truncated { needed, len });
        }
        let mut reader = Self {
            input,
            page_size: meta.page_size,
            pages: meta.pages,
            has_hash,
            buckets: vec![],
            seen: vec![],
        };
        let mut seen = vec![false; meta.pages as usize];
        let root = reader.page(meta.root, &mut seen)?;
        let mut entries = Entries::new(&reader, root, seen);
        let mut buckets = vec![];
        while let Some(bucket) = entries.leaf()? {
            if bucket.flags & IS_BUCKET == 0 {
                return Err(fault(
                    bucket.page,
                    format!("\"{}\" is not a bucket", bucket.key.escape_ascii()),
                ));
            }
            buckets.push(bucket);
        }
        (reader.seen, reader.buckets) = (entries.seen, buckets);
        Ok(reader)
    }

    /// Whether a correct hash was appended. A copy of a member's database file has no hash.
    pub fn has_hash(&self) -> bool {
        self.has_hash
    }

    /// Bytes in use, without the hash.
    pub fn size(&self) -> u64 {
        self.pages * u64::from(self.page_size)
    }

    /// The names of the buckets, sorted.
    pub fn buckets(&self) -> impl Iterator<Item = &[u8]> {
        self.buckets.iter().map(|bucket| &bucket.key[..])
    }

    /// The entries of the bucket `name`, if there is one.
    pub fn bucket(&self, name: &[u8]) -> Result<Option<Entries<'_>>> {
        let bucket = self.buckets.iter().find(|bucket| bucket.key == name);
        bucket.map(|bucket| self.entries(bucket, self.seen.clone())).transpose()
    }

    /// Calls `visit` with the name and entries of each bucket. Unlike repeated calls of [`Reader::bucket`], refuses a
    /// page that is in two buckets.
    pub fn each_bucket<E: From<Error>>(
        &self,
        mut visit: impl FnMut(&[u8], &mut Entries<'_>) -> std::result::Result<(), E>,
    ) -> std::result::Result<(), E> {
        let mut seen = self.seen.clone();
        for bucket in &self.buckets {
            let mut entries = self.entries(bucket, seen)?;
            visit(&bucket.key, &mut entries)?;
            seen = entries.seen;
        }
        Ok(())
    }

    fn entries(&self, bucket: &Leaf, mut seen: Vec<bool>) -> Result<Entries<'_>> {
        let inline = bucket.value.get(BUCKET..);
        let root = match (u64_at(&bucket.value, 0), inline) {
            (Some(0), Some(page)) => Page::parse(bucket.page, page.to_vec())?,
            (Some(page), Some(_)) => self.page(page, &mut seen)?,
            _ => {
                return Err(fault(
                    bucket.page,
                    format!("\"{}\" has no root", bucket.key.escape_ascii()),
                ));
            }
        };
        Ok(Entries::new(self, root, seen))
    }

    fn page(&self, id: u64, seen: &mut [bool]) -> Result<Page> {
        if !(FIRST_PAGE..self.pages).contains(&id) {
            return Err(fault(id, format!("not among the file's {} pages", self.pages)));
        }
        let (at, len) = (id * u64::from(self.page_size), self.page_size as usize);
        let mut bytes = self.input.read(at, len)?;
        if u64_at(&bytes, 0) != Some(id) {
            return Err(fault(id, "holds another page's id"));
        }
        let more = u32_at(&bytes, 12).unwrap_or(0);
        let places = seen.get_mut(id as usize..=id as usize + more as usize);
        let (Some(places), Some(_)) = (places, more.checked_mul(self.page_size)) else {
            return Err(fault(id, format!("goes on for {more} pages, past the last")));
        };
        if places.contains(&true) {
            return Err(fault(id, "is in two places"));
        }
        places.fill(true);
        if more > 0 {
            bytes = self.input.read(at, (1 + more as usize) * len)?;
        }
        Page::parse(id, bytes)
    }
}

// === impl Entries ===

impl<'a> Entries<'a> {
    fn new(reader: &'a Reader, root: Page, seen: Vec<bool>) -> Self {
        Self {
            reader,
            stack: vec![root],
            seen,
            last: None,
        }
    }

    fn leaf(&mut self) -> Result<Option<Leaf>> {
        while let Some(page) = self.stack.last_mut() {
            if page.next == page.count {
                self.stack.pop();
            } else if page.leaf {
                let leaf = page.entry()?;
                if self.last.as_ref().is_some_and(|last| *last >= leaf.key) {
                    return Err(fault(leaf.page, format!("entry {} is out of order", page.next - 1)));
                }
                self.last = Some(leaf.key.clone());
                return Ok(Some(leaf));
            } else {
                let (id, child) = (page.id, page.child()?);
                if self.stack.len() == MAX_DEPTH {
                    return Err(fault(id, format!("has {MAX_DEPTH} levels above its children")));
                }
                let child = self.reader.page(child, &mut self.seen)?;
                self.stack.push(child);
            }
        }
        Ok(None)
    }
}

impl Iterator for Entries<'_> {
    type Item = Result<(Vec<u8>, Vec<u8>)>;

    fn next(&mut self) -> Option<Self::Item> {
        let leaf = self.leaf().transpose()?;
        if leaf.is_err() {
            self.stack.clear();
        }
        Some(leaf.map(|leaf| {
            (
                leaf.key,
                if leaf.flags & IS_BUCKET == 0 {
                    leaf.value
                } else {
                    vec![]
                },
            )
        }))
    }
}

fn fault(page: u64, what: impl Into<String>) -> Error {
    let what = what.into();
    Error::Page { page, what }
}
