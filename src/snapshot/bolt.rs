//! Writes a bbolt file in one pass from sorted entries.
//!
//! Layout (bbolt: internal/common/{page,meta,bucket}.go): two meta pages, an empty freelist, then the leaves and
//! branches of each bucket, then the root bucket, which holds the names of the other buckets.

use crate::util::pace::Rests;
use std::fs::File;
use std::io::{self, BufWriter, Seek, SeekFrom, Write};

const PAGE: usize = 4096;
pub(super) const HEADER: usize = 16;
/// Bytes of an entry besides its key and value.
pub(super) const ELEMENT: usize = 16;
pub(super) const BRANCH: u16 = 0x01;
pub(super) const LEAF: u16 = 0x02;
const META: u16 = 0x04;
const FREELIST: u16 = 0x10;
pub(super) const MAGIC: u32 = 0xED0C_DAED;
pub(super) const VERSION: u32 = 2;
pub(super) const IS_BUCKET: u32 = 1;
const FREELIST_PAGE: u64 = 2;
const FIRST_PAGE: u64 = 3;

/// A file being written.
pub(super) struct Writer {
    out: BufWriter<File>,
    /// The id of the next page.
    next: u64,
    buckets: Vec<(Vec<u8>, u64)>,
    rests: Rests,
}

/// An entry of a page: in a leaf, a key and its value; in a branch, a child and its first key.
struct Entry {
    key: Vec<u8>,
    value: Vec<u8>,
    child: u64,
    flags: u32,
}

/// A level of a tree that is being written: the entries of the next page, and the pages so far.
struct Level<'a> {
    writer: &'a mut Writer,
    kind: u16,
    entries: Vec<Entry>,
    bytes: usize,
    pages: Vec<Entry>,
}

// === impl Writer ===

impl Writer {
    /// Begins a file at the start of `file`.
    pub(super) fn new(file: File) -> io::Result<Self> {
        let mut out = BufWriter::with_capacity(1 << 20, file);
        out.seek(SeekFrom::Start(FIRST_PAGE * PAGE as u64))?;
        Ok(Self {
            out,
            next: FIRST_PAGE,
            buckets: vec![],
            rests: Rests::begin(),
        })
    }

    /// Adds a bucket. `entries` must be sorted by key, without duplicates.
    pub(super) fn bucket(
        &mut self,
        name: &str,
        entries: impl IntoIterator<Item = (Vec<u8>, Vec<u8>)>,
    ) -> io::Result<()> {
        let entries = entries.into_iter().map(|(key, value)| Entry {
            key,
            value,
            child: 0,
            flags: 0,
        });
        let root = self.tree(entries)?;
        self.buckets.push((name.as_bytes().to_vec(), root));
        Ok(())
    }

    /// Writes the root bucket and the meta pages; returns the file, at its start, and its length in bytes.
    pub(super) fn finish(mut self) -> io::Result<(File, u64)> {
        let mut buckets = std::mem::take(&mut self.buckets);
        buckets.sort();
        let entries = buckets.into_iter().map(|(key, root)| {
            // The value of a bucket is its root page and a sequence, which etcd does not use.
            let value = [root.to_le_bytes(), [0; 8]].concat();
            Entry {
                key,
                value,
                child: 0,
                flags: IS_BUCKET,
            }
        });
        let root = self.tree(entries)?;
        let pages = self.next;
        self.out.seek(SeekFrom::Start(0))?;
        for id in 0..2 {
            let mut page = header(id, META, 0, 0);
            page.extend(meta(root, pages, id));
            self.page(page)?;
        }
        self.page(header(FREELIST_PAGE, FREELIST, 0, 0))?;
        let mut file = self.out.into_inner().map_err(io::IntoInnerError::into_error)?;
        file.seek(SeekFrom::Start(0))?;
        Ok((file, pages * PAGE as u64))
    }

    /// Writes a tree bottom-up; returns its root page.
    fn tree(&mut self, entries: impl Iterator<Item = Entry>) -> io::Result<u64> {
        let mut level = Level::new(self, LEAF);
        for entry in entries {
            level.push(entry)?;
        }
        let mut pages = level.finish()?;
        while pages.len() > 1 {
            let mut level = Level::new(self, BRANCH);
            for page in pages {
                level.push(page)?;
            }
            pages = level.finish()?;
        }
        Ok(pages[0].child)
    }

    /// Writes `page` and fills it up to whole pages.
    fn page(&mut self, mut page: Vec<u8>) -> io::Result<()> {
        page.resize(page.len().next_multiple_of(PAGE), 0);
        self.rests.rest();
        self.out.write_all(&page)
    }
}

// === impl Level ===

impl<'a> Level<'a> {
    fn new(writer: &'a mut Writer, kind: u16) -> Self {
        Self {
            writer,
            kind,
            entries: vec![],
            bytes: HEADER,
            pages: vec![],
        }
    }

    fn push(&mut self, entry: Entry) -> io::Result<()> {
        let size = ELEMENT + entry.key.len() + entry.value.len();
        // A branch has at least two children, however long the keys are, or the tree would never end in one root.
        let fewest = if self.kind == BRANCH { 2 } else { 1 };
        if self.entries.len() >= fewest && self.bytes + size > PAGE {
            self.flush()?;
        }
        self.bytes += size;
        self.entries.push(entry);
        Ok(())
    }

    /// Writes the entries as one page, which is longer than [`PAGE`] if it holds one large entry.
    fn flush(&mut self) -> io::Result<()> {
        let entries = std::mem::take(&mut self.entries);
        let count = u16::try_from(entries.len()).expect("a page has fewer than 2^16 entries");
        let pages = self.bytes.div_ceil(PAGE);
        let id = self.writer.next;
        let overflow = u32::try_from(pages - 1).expect("an entry is smaller than 2^44 bytes");
        let mut page = header(id, self.kind, count, overflow);
        // Positions are relative to their element.
        let mut data = entries.len() * ELEMENT;
        for (at, e) in entries.iter().enumerate() {
            let position = (data - at * ELEMENT) as u32;
            let (key, value) = (e.key.len() as u32, e.value.len() as u32);
            if self.kind == LEAF {
                [e.flags, position, key, value]
                    .map(u32::to_le_bytes)
                    .iter()
                    .for_each(|n| page.extend(n));
            } else {
                page.extend(position.to_le_bytes());
                page.extend(key.to_le_bytes());
                page.extend(e.child.to_le_bytes());
            }
            data += e.key.len() + e.value.len();
        }
        for e in &entries {
            page.extend_from_slice(&e.key);
            page.extend_from_slice(&e.value);
        }
        self.writer.page(page)?;
        self.writer.next += pages as u64;
        self.bytes = HEADER;
        let key = entries.into_iter().next().map(|e| e.key).unwrap_or_default();
        self.pages.push(Entry {
            key,
            value: vec![],
            child: id,
            flags: 0,
        });
        Ok(())
    }

    /// The pages of this level. Even an empty bucket has one page.
    fn finish(mut self) -> io::Result<Vec<Entry>> {
        if !self.entries.is_empty() || self.pages.is_empty() {
            self.flush()?;
        }
        Ok(self.pages)
    }
}

fn header(id: u64, flags: u16, count: u16, overflow: u32) -> Vec<u8> {
    let mut page = Vec::with_capacity(PAGE);
    page.extend(id.to_le_bytes());
    page.extend(flags.to_le_bytes());
    page.extend(count.to_le_bytes());
    page.extend(overflow.to_le_bytes());
    page
}

fn meta(root: u64, pages: u64, transaction: u64) -> Vec<u8> {
    let mut meta = Vec::with_capacity(64);
    for n in [MAGIC, VERSION, PAGE as u32, 0] {
        meta.extend(n.to_le_bytes());
    }
    for n in [root, 0, FREELIST_PAGE, pages, transaction] {
        meta.extend(n.to_le_bytes());
    }
    let checksum = fnv1a(&meta);
    meta.extend(checksum.to_le_bytes());
    meta
}

/// FNV-1a with 64 bits: bbolt's checksum of meta pages.
pub(super) fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, b| {
        (hash ^ u64::from(*b)).wrapping_mul(0x0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    /// All entries below `page`, leaves in order.
    fn read(file: &[u8], page: u64, out: &mut Vec<(Vec<u8>, Vec<u8>)>) {
        let base = page as usize * PAGE;
        let u32_at = |at: usize| u32::from_le_bytes(file[at..at + 4].try_into().unwrap()) as usize;
        let u16_at = |at: usize| u16::from_le_bytes(file[at..at + 2].try_into().unwrap());
        assert_eq!(&file[base..base + 8], &page.to_le_bytes());
        for i in 0..usize::from(u16_at(base + 10)) {
            let element = base + HEADER + i * ELEMENT;
            if u16_at(base + 8) == BRANCH {
                let child = u64::from_le_bytes(file[element + 8..element + 16].try_into().unwrap());
                read(file, child, out);
            } else {
                let key = element + u32_at(element + 4);
                let value = key + u32_at(element + 8);
                let end = value + u32_at(element + 12);
                out.push((file[key..value].to_vec(), file[value..end].to_vec()));
            }
        }
    }

    #[test]
    fn written_entries_are_found_again_through_branches_and_overflow_pages() {
        let mut writer = Writer::new(tempfile::tempfile().unwrap()).unwrap();
        let entries = |n: usize| (0..n).map(|i| (format!("{i:08}").into_bytes(), vec![b'v'; i % 300]));
        writer.bucket("many", entries(50_000)).unwrap();
        writer.bucket("empty", []).unwrap();
        let long = |n: u8| (vec![n; 5000], vec![n]);
        writer.bucket("long", (0..9).map(long)).unwrap();
        writer.bucket("big", [(b"k".to_vec(), vec![7; 3 << 20])]).unwrap();
        let (mut file, len) = writer.finish().unwrap();
        let mut bytes = vec![];
        file.read_to_end(&mut bytes).unwrap();
        assert_eq!(bytes.len() as u64, len);
        let u64_at = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
        let mut buckets = vec![];
        read(&bytes, u64_at(HEADER + 16), &mut buckets);
        let bucket = |name: &str| {
            let (_, value) = buckets.iter().find(|(key, _)| key == name.as_bytes()).unwrap();
            let mut out = vec![];
            read(&bytes, u64::from_le_bytes(value[..8].try_into().unwrap()), &mut out);
            out
        };
        assert!(bucket("many").into_iter().eq(entries(50_000)));
        assert_eq!(bucket("empty"), []);
        assert!(bucket("long").into_iter().eq((0..9).map(long)));
        assert_eq!(bucket("big")[0].1.len(), 3 << 20);
    }
}
