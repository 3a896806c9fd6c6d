//! Key-values as encoded `mvccpb.KeyValue` messages.
//!
//! A put encodes the key-value once. Every range response and watch event copies these bytes. Fields are in the
//! order of their numbers and zero fields are omitted, as etcd writes them, so that hashes are equal.

use std::fmt;
use std::sync::Arc;

const KEY: u8 = 0x0a;
const CREATE: u8 = 0x10;
const MOD: u8 = 0x18;
const VERSION: u8 = 0x20;
const VALUE: u8 = 0x2a;
const LEASE: u8 = 0x30;

/// One immutable, encoded key-value; cloning shares the bytes.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Kv(Arc<[u8]>);

/// The decoded fields of a [`Kv`], borrowed from it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Fields<'a> {
    pub key: &'a [u8],
    /// Main revision of the put that created the key.
    pub create_revision: i64,
    /// Main revision of the last change.
    pub mod_revision: i64,
    /// Number of puts since creation, from 1; 0 in a tombstone.
    pub version: i64,
    pub value: &'a [u8],
    /// The lease of the key, or 0.
    pub lease: i64,
}

// === impl Kv ===

impl Kv {
    /// Encodes `fields`.
    pub fn new(fields: &Fields<'_>) -> Self {
        let mut buf = Vec::with_capacity(fields.key.len() + fields.value.len() + 48);
        put_bytes(&mut buf, KEY, fields.key);
        put_int(&mut buf, CREATE, fields.create_revision);
        put_int(&mut buf, MOD, fields.mod_revision);
        put_int(&mut buf, VERSION, fields.version);
        put_bytes(&mut buf, VALUE, fields.value);
        put_int(&mut buf, LEASE, fields.lease);
        Self(buf.into())
    }

    /// The key-value of a delete event: key and mod revision only.
    pub fn tombstone(key: &[u8], mod_revision: i64) -> Self {
        Self::new(&Fields {
            key,
            mod_revision,
            ..Fields::default()
        })
    }

    /// Checks stored bytes; `None` if [`Kv::new`] cannot have written them.
    pub fn checked(bytes: &[u8]) -> Option<Self> {
        let (mut at, mut last) = (0, 0);
        while let Some(&tag) = bytes.get(at) {
            at += 1;
            let known = matches!(tag, KEY | CREATE | MOD | VERSION | VALUE | LEASE);
            let more = &bytes[at..];
            let len = more.iter().take(10).position(|b| *b < 0x80)? + 1;
            let n = take_varint(bytes, &mut at);
            if !known || tag <= last || n == 0 || len != varint_len(n) {
                return None;
            }
            if matches!(tag, KEY | VALUE) {
                at = at
                    .checked_add(usize::try_from(n).ok()?)
                    .filter(|at| *at <= bytes.len())?;
            }
            last = tag;
        }
        Some(Self(bytes.into()))
    }

    /// The encoded message.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The key. Cheaper than [`Kv::fields`].
    pub fn key(&self) -> &[u8] {
        match self.0.first() {
            Some(&KEY) => take_bytes(&self.0, &mut 1),
            _ => &[],
        }
    }

    /// Decodes all fields. Cannot fail, because [`Kv::new`] has written the bytes or [`Kv::checked`] has checked them.
    pub fn fields(&self) -> Fields<'_> {
        let buf = &self.0;
        let mut fields = Fields::default();
        let mut at = 0;
        while let Some(&tag) = buf.get(at) {
            at += 1;
            match tag {
                KEY => fields.key = take_bytes(buf, &mut at),
                VALUE => fields.value = take_bytes(buf, &mut at),
                CREATE => fields.create_revision = take_int(buf, &mut at),
                MOD => fields.mod_revision = take_int(buf, &mut at),
                VERSION => fields.version = take_int(buf, &mut at),
                LEASE => fields.lease = take_int(buf, &mut at),
                _ => unreachable!("a Kv holds only what Kv::new wrote"),
            }
        }
        fields
    }

    pub fn value(&self) -> &[u8] {
        self.fields().value
    }

    /// The lease of the key, or 0.
    pub fn lease(&self) -> i64 {
        self.fields().lease
    }
}

impl AsRef<[u8]> for Kv {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Kv {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let fields = self.fields();
        write!(
            f,
            "Kv({:?} create {} mod {} version {} lease {} value {} B)",
            String::from_utf8_lossy(fields.key),
            fields.create_revision,
            fields.mod_revision,
            fields.version,
            fields.lease,
            fields.value.len()
        )
    }
}

/// Appends a protobuf varint.
pub fn put_varint(buf: &mut Vec<u8>, mut n: u64) {
    while n >= 0x80 {
        buf.push((n as u8 & 0x7f) | 0x80);
        n >>= 7;
    }
    buf.push(n as u8);
}

/// Encoded length of a protobuf varint, in bytes.
pub fn varint_len(n: u64) -> usize {
    (64 - (n | 1).leading_zeros() as usize).div_ceil(7)
}

/// Reads the varint at `*at` and moves `*at` past it.
pub fn take_varint(buf: &[u8], at: &mut usize) -> u64 {
    let mut n = 0;
    let mut shift = 0;
    while let Some(&b) = buf.get(*at) {
        *at += 1;
        n |= u64::from(b & 0x7f) << shift;
        if b < 0x80 || shift == 63 {
            break;
        }
        shift += 7;
    }
    n
}

fn put_int(buf: &mut Vec<u8>, tag: u8, n: i64) {
    if n != 0 {
        buf.push(tag);
        put_varint(buf, n as u64);
    }
}

fn put_bytes(buf: &mut Vec<u8>, tag: u8, bytes: &[u8]) {
    if !bytes.is_empty() {
        buf.push(tag);
        put_varint(buf, bytes.len() as u64);
        buf.extend_from_slice(bytes);
    }
}

fn take_int(buf: &[u8], at: &mut usize) -> i64 {
    take_varint(buf, at) as i64
}

fn take_bytes<'a>(buf: &'a [u8], at: &mut usize) -> &'a [u8] {
    let len = take_varint(buf, at) as usize;
    let from = *at;
    *at += len;
    &buf[from..from + len]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mvcc::tests::message::KeyValue;
    use prost::Message;

    proptest::proptest! {
        #[test]
        fn the_encoding_equals_that_of_prost(
            key in proptest::collection::vec(0u8.., 1..200),
            value in proptest::collection::vec(0u8.., 0..400),
            create_revision in 0i64.., mod_revision in 0i64.., version in 0i64.., lease: i64,
        ) {
            let fields = Fields { key: &key, create_revision, mod_revision, version, value: &value, lease };
            let kv = Kv::new(&fields);
            let reference = KeyValue {
                key: key.clone(), create_revision, mod_revision, version, value: value.clone(), lease,
            };
            proptest::prop_assert_eq!(kv.as_bytes(), &reference.encode_to_vec()[..]);
            proptest::prop_assert_eq!(kv.fields(), fields);
            proptest::prop_assert_eq!(kv.key(), &key[..]);
            proptest::prop_assert_eq!(Kv::checked(kv.as_bytes()), Some(kv));
        }

        #[test]
        fn checked_bytes_can_be_decoded(bytes in proptest::collection::vec(0u8.., 0..40)) {
            if let Some(kv) = Kv::checked(&bytes) {
                proptest::prop_assert_eq!(Kv::new(&kv.fields()), kv);
            }
        }

        #[test]
        fn varint_len_is_the_length_written(n: u64) {
            let mut buf = Vec::new();
            put_varint(&mut buf, n);
            proptest::prop_assert_eq!(buf.len(), varint_len(n));
            proptest::prop_assert_eq!(take_varint(&buf, &mut 0), n);
        }
    }
}
