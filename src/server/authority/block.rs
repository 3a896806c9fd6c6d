//! Finds and replaces the `:authority` in header blocks (HPACK, RFC 7541).
//!
//! The reader skips all other fields and keeps no dynamic table. An invalid value is replaced by a valid value *of the
//! same length*. The size of an entry of the dynamic table depends on lengths alone. The tables of client and library
//! thus keep the same entries at the same indexes, and all other fields, in this block and in later blocks, stay as
//! they are. A later block that refers to the entry by its index gets the valid value.

use super::huffman;
use axum::http::uri;
use std::borrow::Cow;

/// The index of `:authority`, with an empty value, in the static table. Encoders refer to the name by this index.
const AUTHORITY: usize = 1;
/// Longest encoded value that is replaced, in bytes. Clients send paths of sockets and lists of a few URLs.
const VALUE_MAX: usize = 8 << 10;
/// Longest integer, in bytes: the limit of the crate `h2`.
const INTEGER_MAX: usize = 5;
/// The text that replaces an invalid value, cut or repeated to the length of the value.
const VALID: &[u8] = b"localhost.";

/// The result of a look at a block.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Look {
    /// The block needs no change, or its authority cannot be replaced.
    Fine,
    /// The same block with a valid authority.
    Replaced(Vec<u8>),
    /// The block is not HPACK, or has several authorities.
    Malformed,
}

/// Checks a complete header block: the fragments of a HEADERS frame and its CONTINUATION frames.
pub(super) fn look(block: &[u8]) -> Look {
    let mut reader = Reader { block, at: 0 };
    let mut replaced = None;
    let mut found = false;
    while reader.at < block.len() {
        let Some(field) = reader.field() else {
            return Look::Malformed;
        };
        let Field::Authority { from, value, shared } = field else {
            continue;
        };
        if std::mem::replace(&mut found, true) {
            return Look::Malformed;
        }
        replaced = replacement(&value, shared).map(|value| [&block[..from], &value, &block[reader.at..]].concat());
    }
    replaced.map_or(Look::Fine, Look::Replaced)
}

/// Returns the encoded string that replaces an invalid value.
fn replacement(value: &Value<'_>, shared: Shared) -> Option<Vec<u8>> {
    let decoded = match value {
        Value::Implied => Cow::default(),
        Value::Text(text) if text.bytes.len() > VALUE_MAX => return None,
        Value::Text(text) => text.decode()?,
    };
    if uri::Authority::try_from(decoded.as_ref()).is_ok() {
        return None;
    }
    let length = match shared {
        // The entry of the dynamic table must keep its size. An empty authority is never valid.
        Shared::Table => Some(decoded.len()).filter(|&length| length > 0)?,
        Shared::No => VALID.len() - 1,
    };
    let mut encoded = Vec::with_capacity(length + INTEGER_MAX + 1);
    if matches!(value, Value::Implied) {
        // A literal without indexing, whose name is in the static table.
        encoded.push(u8::try_from(AUTHORITY).ok()?);
    }
    push_length(&mut encoded, length);
    encoded.extend(VALID.iter().cycle().take(length));
    Some(encoded)
}

/// Appends the length of a string without Huffman code (RFC 7541, sections 5.1 and 5.2).
fn push_length(encoded: &mut Vec<u8>, length: usize) {
    const PREFIX: usize = 0x7f;
    if length < PREFIX {
        encoded.push(length as u8);
        return;
    }
    encoded.push(PREFIX as u8);
    let mut rest = length - PREFIX;
    while rest >= 0x80 {
        encoded.push((rest & 0x7f) as u8 | 0x80);
        rest >>= 7;
    }
    encoded.push(rest as u8);
}

/// A field of a block, or a change of the size of the dynamic table.
enum Field<'a> {
    Other,
    Authority {
        /// Start of the bytes that a replacement replaces. The bytes end with the field.
        from: usize,
        value: Value<'a>,
        shared: Shared,
    },
}

enum Value<'a> {
    /// The empty value of the static table.
    Implied,
    Text(Text<'a>),
}

/// Whether client and library add the field to their dynamic tables.
#[derive(Clone, Copy)]
enum Shared {
    Table,
    No,
}

struct Text<'a> {
    huffman: bool,
    bytes: &'a [u8],
}

impl<'a> Text<'a> {
    fn decode(&self) -> Option<Cow<'a, [u8]>> {
        match self.huffman {
            true => huffman::decode(self.bytes).map(Cow::Owned),
            false => Some(Cow::Borrowed(self.bytes)),
        }
    }
}

struct Reader<'a> {
    block: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    /// Reads a field (RFC 7541, section 6). Returns `None` if the field is cut off or an integer is too long.
    fn field(&mut self) -> Option<Field<'a>> {
        let from = self.at;
        let first = *self.block.get(from)?;
        let shared = match first {
            0x80.. => {
                return Some(match self.integer(7)? {
                    AUTHORITY => Field::Authority {
                        from,
                        value: Value::Implied,
                        shared: Shared::No,
                    },
                    _ => Field::Other,
                });
            }
            0x40.. => Shared::Table,
            0x20.. => {
                self.integer(5)?;
                return Some(Field::Other);
            }
            _ => Shared::No,
        };
        let name = match self.integer(if matches!(shared, Shared::Table) { 6 } else { 4 })? {
            0 => self.string()?.bytes == b":authority",
            index => index == AUTHORITY,
        };
        let from = self.at;
        let text = self.string()?;
        Some(match name {
            true => Field::Authority {
                from,
                value: Value::Text(text),
                shared,
            },
            false => Field::Other,
        })
    }

    /// Reads an integer that starts in the last `prefix` bits of a byte (RFC 7541, section 5.1).
    fn integer(&mut self, prefix: u32) -> Option<usize> {
        let mask = (1_usize << prefix) - 1;
        let mut bytes = self.block.get(self.at..)?.iter().map(|&byte| usize::from(byte));
        let mut value = bytes.next()? & mask;
        self.at += 1;
        if value < mask {
            return Some(value);
        }
        for (n, byte) in bytes.take(INTEGER_MAX - 1).enumerate() {
            value += (byte & 0x7f) << (7 * n);
            self.at += 1;
            if byte < 0x80 {
                return Some(value);
            }
        }
        None
    }

    fn string(&mut self) -> Option<Text<'a>> {
        let huffman = *self.block.get(self.at)? >= 0x80;
        let length = self.integer(7)?;
        let bytes = self.block.get(self.at..)?.get(..length)?;
        self.at += length;
        Some(Text { huffman, bytes })
    }
}

#[cfg(test)]
mod tests {
    use super::huffman::tests::encode;
    use super::*;
    use proptest::prelude::*;

    const ETCD: &[u8] = b"#initially=[http://127.0.0.1:2379]";

    fn string(text: &[u8]) -> Vec<u8> {
        let mut encoded = Vec::new();
        push_length(&mut encoded, text.len());
        [&encoded, text].concat()
    }

    fn huffman_string(text: &[u8]) -> Vec<u8> {
        let mut encoded = string(&encode(text));
        encoded[0] |= 0x80;
        encoded
    }

    /// POST, http, a path, the authority in the given form, and a field that the tables keep.
    fn block(authority: &[u8]) -> Vec<u8> {
        let path = [&[0x44][..], &huffman_string(b"/etcdserverpb.KV/Range")].concat();
        let field = [&[0x40][..], &string(b"a"), &huffman_string(b"b")].concat();
        [&[0x83, 0x86][..], &path, authority, &field].concat()
    }

    fn authority(form: u8, value: Vec<u8>) -> Vec<u8> {
        [vec![form], value].concat()
    }

    #[test]
    fn a_valid_authority_is_fine_in_each_form() {
        for text in ["localhost:2379", "127.0.0.1", "[::1]:2379", "user@etcd-0.etcd.svc:2379"] {
            for form in [0x41, 0x01, 0x11] {
                for value in [string(text.as_bytes()), huffman_string(text.as_bytes())] {
                    assert_eq!(look(&block(&authority(form, value))), Look::Fine, "{text} {form:#x}");
                }
            }
        }
        assert_eq!(look(&block(b"")), Look::Fine);
        assert_eq!(look(b""), Look::Fine);
    }

    #[test]
    fn an_invalid_authority_becomes_a_valid_one_of_the_same_length() {
        let longer = [b"/run/".as_slice(), &[b'x'; 300]].concat();
        for text in [
            ETCD,
            b"/run/etcd.sock",
            b"run%2Fetcd.sock",
            b"/",
            b"a,b:1,c:2",
            b"\xff\xfe",
            &longer,
        ] {
            let mut expected = VALID.to_vec();
            while expected.len() < text.len() {
                expected.extend(VALID);
            }
            expected.truncate(text.len());
            assert!(uri::Authority::try_from(expected.as_slice()).is_ok());
            let replaced = Look::Replaced(block(&authority(0x41, string(&expected))));
            assert_eq!(look(&block(&authority(0x41, string(text)))), replaced);
            assert_eq!(look(&block(&authority(0x41, huffman_string(text)))), replaced);
        }
    }

    #[test]
    fn an_invalid_authority_that_no_table_keeps_becomes_localhost() {
        for form in [0x01, 0x11] {
            let replaced = Look::Replaced(block(&authority(form, string(b"localhost"))));
            assert_eq!(look(&block(&authority(form, huffman_string(ETCD)))), replaced);
        }
        let localhost = Look::Replaced(block(&authority(0x01, string(b"localhost"))));
        assert_eq!(
            look(&block(&[0x81])),
            localhost,
            "the empty authority of the static table"
        );
    }

    #[test]
    fn an_authority_whose_name_is_spelled_out_is_replaced() {
        let field = |value: &[u8]| [&[0x00][..], &string(b":authority"), &string(value)].concat();
        let replaced = Look::Replaced(block(&field(b"localhost")));
        assert_eq!(look(&block(&field(ETCD))), replaced);
    }

    #[test]
    fn blocks_that_the_library_refuses_are_malformed() {
        let twice = [authority(0x41, string(ETCD)), authority(0x41, string(b"localhost"))].concat();
        assert_eq!(look(&block(&twice)), Look::Malformed, "two authorities");
        assert_eq!(look(&[0x3f]), Look::Malformed, "a size without its end");
        assert_eq!(
            look(&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01]),
            Look::Malformed,
            "a long integer"
        );
        let block = block(&authority(0x41, string(ETCD)));
        let cut = |n: usize| look(&block[..n]);
        assert!((1..block.len()).any(|n| cut(n) == Look::Malformed));
    }

    proptest! {
        #[test]
        fn random_blocks_never_panic(block in proptest::collection::vec(any::<u8>(), 0..200)) {
            look(&block);
        }

        #[test]
        fn an_authority_of_any_bytes_is_valid_after_one_look(
            text in proptest::collection::vec(any::<u8>(), 1..200),
            huffman: bool,
        ) {
            let value = if huffman { huffman_string(&text) } else { string(&text) };
            if let Look::Replaced(block) = look(&block(&authority(0x41, value))) {
                prop_assert_eq!(look(&block), Look::Fine);
            }
        }
    }
}
