//! What a user may read and write: unions of key ranges.

use crate::pb::authpb;
use authpb::permission::Type;

/// Kinds of access a permission grants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Range and watch.
    Read,
    /// Put and delete.
    Write,
    /// Both.
    ReadWrite,
}

/// `[start, end)`, or everything from `start` without an end.
pub type Span<'a> = (&'a [u8], Option<&'a [u8]>);

/// One permission of a role, as granted: with etcd's raw `range_end`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Permission {
    /// What may be done.
    pub access: Access,
    /// First key.
    pub key: Vec<u8>,
    /// Empty: that key alone. One zero byte: every key from it on. Else the first key after.
    pub range_end: Vec<u8>,
}

/// The merged ranges of all roles of one user.
#[derive(Clone, Debug, Default)]
pub struct Ranges {
    read: Vec<(Vec<u8>, Option<Vec<u8>>)>,
    write: Vec<(Vec<u8>, Option<Vec<u8>>)>,
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
    fn span(&self) -> (Vec<u8>, Option<Vec<u8>>) {
        let end = match &self.range_end[..] {
            [] => Some([&self.key[..], &[0]].concat()),
            [0] => None,
            end => Some(end.to_vec()),
        };
        (self.key.clone(), end)
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
    /// Merges `permissions`.
    pub fn merge<'a>(permissions: impl Iterator<Item = &'a Permission> + Clone) -> Self {
        let of = |wanted: fn(Access) -> bool| {
            union(
                permissions
                    .clone()
                    .filter(|p| wanted(p.access))
                    .map(Permission::span)
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
}

/// Joins overlapping and adjacent spans; the result is sorted.
fn union(mut spans: Vec<(Vec<u8>, Option<Vec<u8>>)>) -> Vec<(Vec<u8>, Option<Vec<u8>>)> {
    spans.sort();
    let mut out: Vec<(Vec<u8>, Option<Vec<u8>>)> = Vec::new();
    for (start, end) in spans {
        match out.last_mut() {
            Some((_, last)) if last.as_ref().is_none_or(|last| start <= *last) => {
                if last.is_some() && (end.is_none() || end > *last) {
                    *last = end;
                }
            }
            _ => out.push((start, end)),
        }
    }
    out
}

fn covers(spans: &[(Vec<u8>, Option<Vec<u8>>)], (start, end): Span<'_>) -> bool {
    let at = spans.partition_point(|(s, _)| &s[..] <= start);
    let Some((_, span_end)) = at.checked_sub(1).map(|at| &spans[at]) else {
        return false;
    };
    // Parity: an end before the start is no range, which a grant covers only if it reaches down to it.
    if end.is_some_and(|end| &spans[at - 1].0[..] >= end) {
        return false;
    }
    match (span_end, end) {
        (None, _) => true,
        (Some(_), None) => false,
        (Some(span_end), Some(end)) => start < &span_end[..] && end <= &span_end[..],
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

    #[test]
    fn adjacent_ranges_of_several_roles_join() {
        let r = ranges(&[
            (Access::Read, "a", "c"),
            (Access::ReadWrite, "c", "e"),
            (Access::Write, "x", ""),
        ]);
        assert!(r.may_read((b"a", Some(b"e"))));
        assert!(!r.may_read((b"a", Some(b"f"))));
        assert!(!r.may_write((b"b", Some(b"d"))));
        assert!(r.may_write((b"x", Some(b"x\0"))));
        assert!(!r.may_read((b"x", Some(b"x\0"))));
    }

    #[test]
    fn an_open_range_needs_an_open_grant() {
        let r = ranges(&[(Access::Read, "a", "\0")]);
        assert!(r.may_read((b"b", None)));
        assert!(!ranges(&[(Access::Read, "a", "z")]).may_read((b"a", None)));
        // A grant of one key is not a grant of what follows it.
        assert!(!ranges(&[(Access::Read, "a", "")]).may_read((b"a", None)));
        assert!(!r.may_read((b"A", Some(b"A\0"))));
    }
}
