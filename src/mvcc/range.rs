//! Key ranges with etcd's conventions, and the options of range reads: limits, sorting, filters, counting.

use super::encoded::{Fields, Kv};
use bytes::Bytes;

/// Consecutive keys: `[start, end)`, or all keys from `start` on if there is no end.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct KeyRange {
    start: Bytes,
    end: Option<Bytes>,
}

/// The options of a range read. [`RangeOptions::new`] reads a whole range now.
#[derive(Clone, Debug)]
pub struct RangeOptions {
    pub range: KeyRange,
    /// Most key-values in the result; 0 or less for all.
    pub limit: i64,
    /// Read at this revision; 0 or less for now.
    pub revision: i64,
    pub order: SortOrder,
    /// The field to sort by.
    pub target: SortTarget,
    /// Omit the values and, unless the values are sorted by, the leases.
    pub keys_only: bool,
    /// Return only the count.
    pub count_only: bool,
    pub mod_revision: RevisionBounds,
    pub create_revision: RevisionBounds,
}

/// Inclusive bounds on a revision of a key-value; 0 is no bound.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RevisionBounds {
    pub min: i64,
    pub max: i64,
}

/// Direction of a sort.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SortOrder {
    /// The default order of the target, which is ascending.
    None,
    Ascend,
    Descend,
}

/// Field to sort by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SortTarget {
    Key,
    Version,
    Create,
    Mod,
    Value,
}

/// The result of a range read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RangeResult {
    pub kvs: Vec<Kv>,
    /// Number of keys in the range at the revision read, without limit and filters.
    pub count: usize,
    /// Whether the limit has cut the result.
    pub more: bool,
    /// The store's revision at the time of the read, which may differ from the revision read.
    pub revision: i64,
}

// === impl RangeResult ===

impl RangeResult {
    /// Bytes of the key-values.
    pub fn bytes(&self) -> usize {
        self.kvs.iter().map(|kv| kv.as_bytes().len()).sum()
    }
}

// === impl KeyRange ===

impl KeyRange {
    /// A range by etcd's conventions: an empty `range_end` means one key, and `\0` means no end.
    pub fn new(key: impl Into<Bytes>, range_end: impl Into<Bytes>) -> Self {
        let (start, end) = (key.into(), range_end.into());
        match &end[..] {
            [] => Self::key(start),
            [0] => Self { start, end: None },
            _ => Self { start, end: Some(end) },
        }
    }

    pub fn key(key: impl Into<Bytes>) -> Self {
        let start = key.into();
        let mut end = Vec::with_capacity(start.len() + 1);
        end.extend_from_slice(&start);
        end.push(0);
        Self {
            start,
            end: Some(end.into()),
        }
    }

    pub fn prefix(prefix: impl Into<Bytes>) -> Self {
        let start = prefix.into();
        Self {
            end: prefix_end(&start),
            start,
        }
    }

    pub fn all() -> Self {
        Self {
            start: Bytes::new(),
            end: None,
        }
    }

    pub fn start(&self) -> &[u8] {
        &self.start
    }

    /// The first key after the range; `None` if the range has no end.
    pub fn end(&self) -> Option<&[u8]> {
        self.end.as_deref()
    }

    /// Start and end, to be shared.
    pub(super) fn bounds(&self) -> (&Bytes, Option<&Bytes>) {
        (&self.start, self.end.as_ref())
    }

    /// Whether the range cannot hold any key.
    pub fn is_empty(&self) -> bool {
        self.end.as_ref().is_some_and(|end| *end <= self.start)
    }

    /// Whether the range is exactly one key.
    pub fn is_single(&self) -> bool {
        let n = self.start.len();
        self.end
            .as_ref()
            .is_some_and(|e| e.len() == n + 1 && e[n] == 0 && e[..n] == self.start[..])
    }

    pub fn contains(&self, key: &[u8]) -> bool {
        key >= &self.start[..] && self.is_before_end(key)
    }

    pub(super) fn is_before_end(&self, key: &[u8]) -> bool {
        self.end.as_ref().is_none_or(|end| key < &end[..])
    }

    /// The same range in memory of its own. The keys of a request are slices of the connection's buffer and keep all of
    /// that buffer in memory, so whatever outlives the request copies them.
    pub fn detached(&self) -> Self {
        Self {
            start: Bytes::copy_from_slice(&self.start),
            end: self.end.as_deref().map(Bytes::copy_from_slice),
        }
    }

    /// The part of this range from `key` on.
    pub(super) fn from(&self, key: &[u8]) -> Self {
        Self {
            start: Bytes::copy_from_slice(key),
            end: self.end.clone(),
        }
    }

    /// The rest of this range after `key`.
    pub(super) fn after(&self, key: &[u8]) -> Self {
        let mut start = key.to_vec();
        start.push(0);
        Self {
            start: start.into(),
            end: self.end.clone(),
        }
    }
}

/// The first key after all keys that begin with `prefix`; `None` if no key follows them.
pub fn prefix_end(prefix: &[u8]) -> Option<Bytes> {
    let last = prefix.iter().rposition(|&b| b != 0xff)?;
    let mut end = prefix[..=last].to_vec();
    end[last] += 1;
    Some(end.into())
}

// === impl RangeOptions ===

impl RangeOptions {
    /// Reads all of `range`, now.
    pub fn new(range: KeyRange) -> Self {
        Self {
            range,
            limit: 0,
            revision: 0,
            order: SortOrder::None,
            target: SortTarget::Key,
            keys_only: false,
            count_only: false,
            mod_revision: RevisionBounds::default(),
            create_revision: RevisionBounds::default(),
        }
    }

    /// The number of key-values, in key order, that are enough for the result; `None` for all.
    ///
    /// Parity: order NONE counts as the default order even with a target other than KEY. Then only the first
    /// `limit + 1` keys in key order are sorted.
    pub(super) fn needed(&self) -> Option<usize> {
        let default_order =
            self.order == SortOrder::None || (self.order == SortOrder::Ascend && self.target == SortTarget::Key);
        let limit = usize::try_from(self.limit).ok().filter(|&l| l > 0)?;
        (default_order && !self.has_revision_bounds()).then(|| limit.saturating_add(1))
    }

    /// Whether the create or mod revision is bounded.
    pub fn has_revision_bounds(&self) -> bool {
        [self.mod_revision, self.create_revision] != [RevisionBounds::default(); 2]
    }

    /// Filters, sorts and cuts `kvs`, which are in key order. Also returns whether the limit has cut some.
    pub(super) fn finish(&self, mut kvs: Vec<Kv>) -> (Vec<Kv>, bool) {
        if self.has_revision_bounds() {
            kvs.retain(|kv| {
                let f = kv.fields();
                self.mod_revision.contains(f.mod_revision) && self.create_revision.contains(f.create_revision)
            });
        }
        self.sort(&mut kvs);
        let limit = usize::try_from(self.limit).unwrap_or(0);
        let more = limit > 0 && kvs.len() > limit;
        if more {
            kvs.truncate(limit);
        }
        if self.keys_only {
            // Parity: since 3.7, etcd answers from its index, which has no leases, unless it needs the values to sort.
            let leases = self.target == SortTarget::Value;
            for kv in &mut kvs {
                let fields = kv.fields();
                *kv = Kv::new(&Fields {
                    value: &[],
                    lease: if leases { fields.lease } else { 0 },
                    ..fields
                });
            }
        }
        (kvs, more)
    }

    fn sort(&self, kvs: &mut [Kv]) {
        if self.target != SortTarget::Key {
            kvs.sort_by(|a, b| compare(self.target, &a.fields(), &b.fields()));
        }
        if self.order == SortOrder::Descend {
            kvs.reverse();
        }
    }
}

impl RevisionBounds {
    fn contains(self, revision: i64) -> bool {
        (self.min == 0 || revision >= self.min) && (self.max == 0 || revision <= self.max)
    }
}

fn compare(target: SortTarget, a: &Fields<'_>, b: &Fields<'_>) -> std::cmp::Ordering {
    match target {
        SortTarget::Key => a.key.cmp(b.key),
        SortTarget::Version => a.version.cmp(&b.version),
        SortTarget::Create => a.create_revision.cmp(&b.create_revision),
        SortTarget::Mod => a.mod_revision.cmp(&b.mod_revision),
        SortTarget::Value => a.value.cmp(b.value),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn range_end_follows_etcds_conventions() {
        assert!(KeyRange::new("a", "").is_single());
        assert!(KeyRange::new("a", "\0").contains(b"zzz"));
        assert!(!KeyRange::new("b", "\0").contains(b"a"));
        assert!(KeyRange::new("\0", "\0").contains(b"\0"));
        assert!(KeyRange::new("b", "a").is_empty());
        assert_eq!(KeyRange::prefix("ab").end(), Some(&b"ac"[..]));
        assert_eq!(KeyRange::prefix(&b"a\xff"[..]).end(), Some(&b"b"[..]));
        assert_eq!(KeyRange::prefix(&b"\xff\xff"[..]).end(), None);
        assert!(KeyRange::prefix("cilium/.heartbeat").contains(b"cilium/.heartbeat"));
    }
}
