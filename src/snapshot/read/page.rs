//! The pages of a bbolt file (bbolt: internal/common/{page,meta,inode}.go).

use super::{Result, fault};
use crate::snapshot::bolt::{BRANCH, ELEMENT, HEADER, LEAF, MAGIC, VERSION, fnv1a};

/// Bytes of a meta page before its checksum, without the header.
const META: usize = 56;
/// Bytes of a meta page that are used.
pub(super) const META_PAGE: usize = HEADER + META + size_of::<u64>();
/// The smallest and the largest page size, as powers of two.
pub(super) const PAGE_BITS: std::ops::RangeInclusive<u32> = 9..=31;

pub(super) struct Page {
    pub(super) id: u64,
    bytes: Vec<u8>,
    pub(super) leaf: bool,
    pub(super) count: usize,
    pub(super) next: usize,
    /// The end of the data of the entries before `next`. Entries may not overlap, or a small file could yield any
    /// amount of data.
    end: usize,
}

/// An entry of a leaf page.
pub(super) struct Leaf {
    pub(super) page: u64,
    pub(super) flags: u32,
    pub(super) key: Vec<u8>,
    pub(super) value: Vec<u8>,
}

pub(super) struct Meta {
    pub(super) page_size: u32,
    pub(super) root: u64,
    pub(super) pages: u64,
    pub(super) transaction: u64,
}

// === impl Page ===

impl Page {
    pub(super) fn parse(id: u64, bytes: Vec<u8>) -> Result<Self> {
        let (flags, count) = (u16_at(&bytes, 8).unwrap_or(0), u16_at(&bytes, 10).unwrap_or(0));
        if flags != LEAF && flags != BRANCH {
            return Err(fault(id, format!("is neither leaf nor branch: flags {flags:#x}")));
        }
        let (leaf, count) = (flags == LEAF, usize::from(count));
        let end = HEADER + count * ELEMENT;
        if end > bytes.len() {
            return Err(fault(id, format!("has no room for {count} entries")));
        }
        Ok(Self {
            id,
            bytes,
            leaf,
            count,
            next: 0,
            end,
        })
    }

    /// The next entry of a leaf page.
    pub(super) fn entry(&mut self) -> Result<Leaf> {
        let at = HEADER + self.next * ELEMENT;
        let field = |n: usize| u32_at(&self.bytes, at + 4 * n).map_or(usize::MAX, |n| n as usize);
        // Positions are relative to their element.
        let from = at.saturating_add(field(1));
        let data = self.bytes.get(from..).filter(|_| from >= self.end);
        let split = data.and_then(|data| data.split_at_checked(field(2)));
        let Some((key, Some(value))) = split.map(|(key, rest)| (key, rest.get(..field(3)))) else {
            return Err(fault(self.id, format!("entry {} is not within the page", self.next)));
        };
        let leaf = Leaf {
            page: self.id,
            flags: field(0) as u32,
            key: key.to_vec(),
            value: value.to_vec(),
        };
        self.end = from + key.len() + value.len();
        self.next += 1;
        Ok(leaf)
    }

    /// The next child of a branch page.
    pub(super) fn child(&mut self) -> Result<u64> {
        let child = u64_at(&self.bytes, HEADER + self.next * ELEMENT + 8);
        self.next += 1;
        child.ok_or_else(|| fault(self.id, "has a child entry outside the page"))
    }
}

// === impl Meta ===

impl Meta {
    /// Parses a page of at least [`META_PAGE`] bytes; `None` if it is not an intact meta page.
    pub(super) fn parse(page: &[u8]) -> Option<Self> {
        let meta = page.get(HEADER..)?;
        let page_size = u32_at(meta, 8)?;
        let valid = u32_at(meta, 0)? == MAGIC
            && u32_at(meta, 4)? == VERSION
            && u64_at(meta, META)? == fnv1a(meta.get(..META)?)
            && page_size.is_power_of_two()
            && PAGE_BITS.contains(&page_size.ilog2());
        valid.then_some(())?;
        let (root, pages, transaction) = (u64_at(meta, 16)?, u64_at(meta, 40)?, u64_at(meta, 48)?);
        Some(Self {
            page_size,
            root,
            pages,
            transaction,
        })
    }
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..)?.first_chunk().map(|b| u16::from_le_bytes(*b))
}

pub(super) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().map(|b| u32::from_le_bytes(*b))
}

pub(super) fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    bytes.get(at..)?.first_chunk().map(|b| u64::from_le_bytes(*b))
}
