//! Permissions of roles, and their union: the ranges that a user may read and write.

use crate::pb::authpb;
use authpb::permission::Type;

/// The kind of access that a permission grants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Range and watch.
    Read,
    /// Put and delete.
    Write,
    ReadWrite,
}

/// The keys of a request: `[start, end)`, or every key from `start` on if there is no end.
#[derive(Clone, Copy, Debug)]
pub struct Span<'a> {
    pub start: &'a [u8],
    pub end: Option<&'a [u8]>,
}

/// One permission of a role, with the `range_end` of the grant request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Permission {
    pub access: Access,
    /// The first key.
    pub key: Vec<u8>,
    /// Empty for `key` alone, one zero byte for every key from `key` on, else the first key after the range.
    pub range_end: Vec<u8>,
}

/// Keys that a user may access: a span that owns its bounds.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Allowed {
    start: Vec<u8>,
    end: Option<Vec<u8>>,
}

/// The merged permissions of all roles of one user, sorted and without overlap.
#[derive(Clone, Debug, Default)]
pub struct Ranges {
    read: Vec<Allowed>,
    write: Vec<Allowed>,
}

impl<'a> Span<'a> {
    pub fn new(start: &'a [u8], end: &'a [u8]) -> Self {
        let end = Some(end);
        Self { start, end }
    }
}

impl Access {
    fn reads(self) -> bool {
        self != Self::Write
    }

    fn writes(self) -> bool {
        self != Self::Read
    }
}

impl Permission {
    fn allowed(&self) -> Allowed {
        let end = match &self.range_end[..] {
            [] => Some([&self.key[..], &[0]].concat()),
            [0] => None,
            end => Some(end.to_vec()),
        };
        let start = self.key.clone();
        Allowed { start, end }
    }
}

impl From<&Permission> for authpb::Permission {
    fn from(permission: &Permission) -> Self {
        let kind = match permission.access {
            Access::Read => Type::Read,
            Access::Write => Type::Write,
            Access::ReadWrite => Type::Readwrite,
        };
        Self {
            perm_type: kind.into(),
            key: permission.key.clone().into(),
            range_end: permission.range_end.clone().into(),
        }
    }
}

impl From<authpb::Permission> for Permission {
    fn from(permission: authpb::Permission) -> Self {
        let access = match permission.perm_type() {
            Type::Read => Access::Read,
            Type::Write => Access::Write,
            Type::Readwrite => Access::ReadWrite,
        };
        Self {
            access,
            key: permission.key.into(),
            range_end: permission.range_end.into(),
        }
    }
}

impl Ranges {
    pub fn merge<'a>(permissions: impl Iterator<Item = &'a Permission> + Clone) -> Self {
        let of = |wanted: fn(Access) -> bool| {
            union(
                permissions
                    .clone()
                    .filter(|p| wanted(p.access))
                    .map(Permission::allowed)
                    .collect(),
            )
        };
        Self {
            read: of(Access::reads),
            write: of(Access::writes),
        }
    }

    /// Whether all of `span` may be read.
    pub fn may_read(&self, span: Span<'_>) -> bool {
        covers(&self.read, span)
    }

    /// Whether all of `span` may be written.
    pub fn may_write(&self, span: Span<'_>) -> bool {
        covers(&self.write, span)
    }

    /// The readable span around `key`; `None` if the key may not be read. Spans neither overlap nor touch.
    pub fn readable_around(&self, key: &[u8]) -> Option<Span<'_>> {
        around(&self.read, key)
    }

    /// The writable span around `key`; `None` if the key may not be written.
    pub fn writable_around(&self, key: &[u8]) -> Option<Span<'_>> {
        around(&self.write, key)
    }
}

fn around<'a>(ranges: &'a [Allowed], key: &[u8]) -> Option<Span<'a>> {
    let at = ranges.partition_point(|range| &range.start[..] <= key);
    let range = &ranges[at.checked_sub(1)?];
    let span = Span {
        start: &range.start,
        end: range.end.as_deref(),
    };
    span.end.is_none_or(|end| key < end).then_some(span)
}

/// Joins overlapping and adjacent ranges; the result is sorted.
fn union(mut ranges: Vec<Allowed>) -> Vec<Allowed> {
    ranges.sort();
    let mut out: Vec<Allowed> = Vec::new();
    for next in ranges {
        match out.last_mut() {
            Some(last) if last.end.as_ref().is_none_or(|end| next.start <= *end) => {
                if last.end.is_some() && (next.end.is_none() || next.end > last.end) {
                    last.end = next.end;
                }
            }
            _ => out.push(next),
        }
    }
    out
}

fn covers(ranges: &[Allowed], span: Span<'_>) -> bool {
    let at = ranges.partition_point(|range| &range.start[..] <= span.start);
    let Some(range) = at.checked_sub(1).map(|at| &ranges[at]) else {
        return false;
    };
    // As in etcd, a span whose end is before its start is covered only by a range that begins before that end.
    if span.end.is_some_and(|end| &range.start[..] >= end) {
        return false;
    }
    match (&range.end, span.end) {
        (None, _) => true,
        (Some(_), None) => false,
        (Some(range_end), Some(end)) => span.start < &range_end[..] && end <= &range_end[..],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ranges(list: &[(Access, &str, &str)]) -> Ranges {
        let list: Vec<_> = list
            .iter()
            .map(|(access, key, end)| Permission {
                access: *access,
                key: (*key).into(),
                range_end: (*end).into(),
            })
            .collect();
        Ranges::merge(list.iter())
    }

    fn from(start: &[u8]) -> Span<'_> {
        Span { start, end: None }
    }

    #[test]
    fn adjacent_ranges_of_several_roles_join() {
        let r = ranges(&[
            (Access::Read, "a", "c"),
            (Access::ReadWrite, "c", "e"),
            (Access::Write, "x", ""),
        ]);
        assert!(r.may_read(Span::new(b"a", b"e")));
        assert!(!r.may_read(Span::new(b"a", b"f")));
        assert!(!r.may_write(Span::new(b"b", b"d")));
        assert!(r.may_write(Span::new(b"x", b"x\0")));
        assert!(!r.may_read(Span::new(b"x", b"x\0")));
    }

    #[test]
    fn the_span_around_a_key_is_the_whole_union() {
        let r = ranges(&[
            (Access::Read, "a", "c"),
            (Access::Read, "b", "e"),
            (Access::Write, "x", "\0"),
        ]);
        let around = |key: &[u8]| r.readable_around(key).map(|span| (span.start, span.end));
        assert_eq!(around(b"d"), Some((&b"a"[..], Some(&b"e"[..]))));
        assert_eq!((around(b"A"), around(b"e")), (None, None));
        assert!(r.writable_around(b"z").is_some_and(|span| span.end.is_none()));
        assert!(r.writable_around(b"w").is_none());
    }

    #[test]
    fn an_open_range_needs_an_open_grant() {
        let r = ranges(&[(Access::Read, "a", "\0")]);
        assert!(r.may_read(from(b"b")));
        assert!(!ranges(&[(Access::Read, "a", "z")]).may_read(from(b"a")));
        // A permission for one key does not cover the keys after it.
        assert!(!ranges(&[(Access::Read, "a", "")]).may_read(from(b"a")));
        assert!(!r.may_read(Span::new(b"A", b"A\0")));
    }
}
