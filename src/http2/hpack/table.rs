//! The static and the dynamic table of a decoder (RFC 7541, section 2.3 and appendix A).

use bytes::Bytes;
use http::HeaderName;
use std::collections::VecDeque;
use std::sync::LazyLock;

/// What an entry takes beside its name and value (RFC 7541, section 4.1).
const OVERHEAD: usize = 32;
/// The initial value of SETTINGS_HEADER_TABLE_SIZE, which is not changed.
pub(super) const SIZE_MAX: usize = 4096;

/// The name of a field.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::http2) enum Name {
    Method,
    Scheme,
    Authority,
    Path,
    /// The pseudo-header of answers.
    Status,
    Header(HeaderName),
    /// A name that no message may have: capital letters, bytes that names cannot contain.
    Invalid,
}

impl Name {
    pub fn read(name: &[u8]) -> Self {
        match name {
            b":method" => Self::Method,
            b":scheme" => Self::Scheme,
            b":authority" => Self::Authority,
            b":path" => Self::Path,
            b":status" => Self::Status,
            name => HeaderName::from_lowercase(name).map_or(Self::Invalid, Self::Header),
        }
    }
}

/// A decoded field.
#[derive(Clone, Debug)]
pub(super) struct Field {
    pub name: Name,
    /// Length of the encoded name.
    pub name_len: usize,
    pub value: Bytes,
}

impl Field {
    pub fn size(&self) -> usize {
        self.name_len + self.value.len() + OVERHEAD
    }
}

/// The dynamic table: the newest entry first.
#[derive(Debug)]
pub(super) struct Table {
    entries: VecDeque<Field>,
    size: usize,
    max: usize,
}

impl Default for Table {
    fn default() -> Self {
        Self {
            entries: VecDeque::new(),
            size: 0,
            max: SIZE_MAX,
        }
    }
}

impl Table {
    /// The entry of an index of a header block.
    pub fn get(&self, index: usize) -> Option<&Field> {
        let index = index.checked_sub(1)?;
        let fixed: &[Field] = &STATIC;
        match fixed.get(index) {
            Some(field) => Some(field),
            None => self.entries.get(index - fixed.len()),
        }
    }

    /// Inserts an entry. One that is larger than the table empties it.
    pub fn insert(&mut self, field: Field) {
        self.size += field.size();
        self.entries.push_front(field);
        self.evict();
    }

    pub fn resize(&mut self, max: usize) {
        self.max = max;
        self.evict();
    }

    fn evict(&mut self) {
        while self.size > self.max {
            match self.entries.pop_back() {
                Some(field) => self.size -= field.size(),
                None => return,
            }
        }
    }
}

static STATIC: LazyLock<Vec<Field>> = LazyLock::new(|| {
    let field = |&(name, value): &(&str, &'static str)| Field {
        name: Name::read(name.as_bytes()),
        name_len: name.len(),
        value: Bytes::from_static(value.as_bytes()),
    };
    FIELDS.iter().map(field).collect()
});

const FIELDS: [(&str, &str); 61] = [
    (":authority", ""),
    (":method", "GET"),
    (":method", "POST"),
    (":path", "/"),
    (":path", "/index.html"),
    (":scheme", "http"),
    (":scheme", "https"),
    (":status", "200"),
    (":status", "204"),
    (":status", "206"),
    (":status", "304"),
    (":status", "400"),
    (":status", "404"),
    (":status", "500"),
    ("accept-charset", ""),
    ("accept-encoding", "gzip, deflate"),
    ("accept-language", ""),
    ("accept-ranges", ""),
    ("accept", ""),
    ("access-control-allow-origin", ""),
    ("age", ""),
    ("allow", ""),
    ("authorization", ""),
    ("cache-control", ""),
    ("content-disposition", ""),
    ("content-encoding", ""),
    ("content-language", ""),
    ("content-length", ""),
    ("content-location", ""),
    ("content-range", ""),
    ("content-type", ""),
    ("cookie", ""),
    ("date", ""),
    ("etag", ""),
    ("expect", ""),
    ("expires", ""),
    ("from", ""),
    ("host", ""),
    ("if-match", ""),
    ("if-modified-since", ""),
    ("if-none-match", ""),
    ("if-range", ""),
    ("if-unmodified-since", ""),
    ("last-modified", ""),
    ("link", ""),
    ("location", ""),
    ("max-forwards", ""),
    ("proxy-authenticate", ""),
    ("proxy-authorization", ""),
    ("range", ""),
    ("referer", ""),
    ("refresh", ""),
    ("retry-after", ""),
    ("server", ""),
    ("set-cookie", ""),
    ("strict-transport-security", ""),
    ("transfer-encoding", ""),
    ("user-agent", ""),
    ("vary", ""),
    ("via", ""),
    ("www-authenticate", ""),
];

#[cfg(test)]
mod tests {
    use super::*;

    fn field(name: &str, value: &str) -> Field {
        Field {
            name: Name::read(name.as_bytes()),
            name_len: name.len(),
            value: value.to_owned().into(),
        }
    }

    #[test]
    fn indexes_begin_at_one_and_continue_in_the_dynamic_table() {
        let mut table = Table::default();
        assert!(table.get(0).is_none() && table.get(62).is_none());
        table.insert(field("a", "1"));
        table.insert(field("b", "2"));
        let value = |index| table.get(index).map(|field| field.value.clone());
        assert_eq!([value(2), value(61)], [Some("GET".into()), Some("".into())]);
        assert_eq!(
            [value(62), value(63), value(64)],
            [Some("2".into()), Some("1".into()), None]
        );
    }

    #[test]
    fn old_entries_leave_when_the_table_is_full_or_shrinks() {
        let mut table = Table::default();
        for n in 0..200 {
            table.insert(field("name", &n.to_string()));
        }
        assert!(table.size <= SIZE_MAX && table.entries.len() > 100);
        table.resize(2 * (4 + 3 + OVERHEAD));
        assert_eq!(table.entries.len(), 2);
        table.insert(field("long", &"x".repeat(SIZE_MAX)));
        assert_eq!((table.entries.len(), table.size), (0, 0));
    }

    #[test]
    fn names_with_capitals_or_unknown_colons_are_invalid() {
        assert_eq!(Name::read(b":path"), Name::Path);
        assert_eq!(Name::read(b":status"), Name::Status);
        assert_eq!(Name::read(b"te"), Name::Header(http::header::TE));
        for name in [&b"Te"[..], b":x", b"", b"a b", b"\xff"] {
            assert_eq!(Name::read(name), Name::Invalid);
        }
    }
}
