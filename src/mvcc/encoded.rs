//! Key-values as encoded `mvccpb.KeyValue` messages.
//!
//! A put encodes the key-value once. Every range response and watch event copies these bytes. Fields are in the
//! order of their numbers and zero fields are omitted, as etcd writes them, so that hashes are equal.
//!
//! A store has millions of key-values, in the index, the revision log and answers. So a [`Kv`] is one pointer, to memory
//! that also has what the store has to know of a version at once. A change that is not the first of its transaction has its
//! place behind the message:
//!
//! ```text
//! ┌───────┬─────────────────────────────────────┬────────┬──────────────────────────────┬─────────┐
//! │ count │ mod revision, tombstone, has place? │ length │ message: key, revisions, ... │ (place) │
//! └───────┴─────────────────────────────────────┴────────┴──────────────────────────────┴─────────┘
//! ```

use smallvec::SmallVec;
use std::fmt;
use std::hash::{Hash, Hasher};
use triomphe::ThinArc;

const KEY: u8 = 0x0a;
const CREATE: u8 = 0x10;
const MOD: u8 = 0x18;
const VERSION: u8 = 0x20;
const VALUE: u8 = 0x2a;
const LEASE: u8 = 0x30;

/// One immutable, encoded key-value; cloning shares the bytes.
#[derive(Clone)]
pub struct Kv(ThinArc<Head, u8>);

/// The mod revision, and two flags in the lowest bits.
#[derive(Clone, Copy)]
struct Head(u64);

/// The key-value is that of a deletion.
const TOMBSTONE: u64 = 1;
/// The place of the change follows the message.
const HAS_SUB: u64 = 2;
const FLAGS: u32 = 2;
/// Bytes of a place.
const SUB: usize = size_of::<u32>();

/// Memory for an encoding that is not copied to its own memory yet.
type Scratch = SmallVec<[u8; 512]>;

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
        Self::placed(fields, 0)
    }

    /// Encodes `fields`, the change at place `sub` of its transaction.
    pub(super) fn placed(fields: &Fields<'_>, sub: u32) -> Self {
        let mut buf = Scratch::new();
        put_bytes(&mut buf, KEY, fields.key);
        put_int(&mut buf, CREATE, fields.create_revision);
        put_int(&mut buf, MOD, fields.mod_revision);
        put_int(&mut buf, VERSION, fields.version);
        put_bytes(&mut buf, VALUE, fields.value);
        put_int(&mut buf, LEASE, fields.lease);
        Self::of(buf, fields.mod_revision, fields.create_revision == 0, sub)
    }

    /// The key-value of a delete event: key and mod revision only.
    pub fn tombstone(key: &[u8], mod_revision: i64) -> Self {
        Self::new(&Fields {
            key,
            mod_revision,
            ..Fields::default()
        })
    }

    /// The key-value of an encoded message.
    fn of(mut message: Scratch, mod_revision: i64, is_tombstone: bool, sub: u32) -> Self {
        let mut head = (mod_revision as u64) << FLAGS;
        if is_tombstone {
            head |= TOMBSTONE;
        }
        if sub > 0 {
            head |= HAS_SUB;
            message.extend_from_slice(&sub.to_le_bytes());
        }
        Self(ThinArc::from_header_and_slice(Head(head), &message))
    }

    /// The same key-value at place `sub` of its transaction.
    pub(super) fn with_sub(self, sub: u32) -> Self {
        if self.sub() == sub {
            return self;
        }
        let message = Scratch::from_slice(self.as_bytes());
        Self::of(message, self.mod_revision(), self.is_tombstone(), sub)
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
        // A put has a create revision.
        let [create, modified, _] = numbers(bytes);
        Some(Self::of(Scratch::from_slice(bytes), modified, create == 0, 0))
    }

    fn head(&self) -> u64 {
        self.0.header.header.0
    }

    /// The encoded message.
    pub fn as_bytes(&self) -> &[u8] {
        let bytes = &self.0.slice;
        match self.head() & HAS_SUB {
            0 => bytes,
            _ => &bytes[..bytes.len() - SUB],
        }
    }

    /// The place of the change in its transaction, from 0.
    pub(super) fn sub(&self) -> u32 {
        match self.0.slice.last_chunk::<SUB>() {
            Some(sub) if self.head() & HAS_SUB != 0 => u32::from_le_bytes(*sub),
            _ => 0,
        }
    }

    /// The key. Cheaper than [`Kv::fields`].
    pub fn key(&self) -> &[u8] {
        match self.as_bytes() {
            // Searches compare keys more often than they do anything else, and most keys are short.
            [KEY, len, rest @ ..] if *len < 0x80 => &rest[..usize::from(*len)],
            bytes @ [KEY, ..] => take_bytes(bytes, &mut 1),
            _ => &[],
        }
    }

    /// The main revision of the change.
    pub fn mod_revision(&self) -> i64 {
        (self.head() as i64) >> FLAGS
    }

    /// Whether the key-value is that of a deletion.
    pub fn is_tombstone(&self) -> bool {
        self.head() & TOMBSTONE != 0
    }

    /// Whether this is a put of a key that was absent before the revision, or that the revision has deleted before.
    pub(super) fn is_created(&self) -> bool {
        let [create, modified, _] = numbers(self.as_bytes());
        create == modified
    }

    /// Whether this is a put of a key that was absent right before, so that the number of live keys grew.
    pub(super) fn is_first(&self) -> bool {
        numbers(self.as_bytes())[2] == 1
    }

    /// Decodes all fields. Cannot fail, because [`Kv::new`] has written the bytes or [`Kv::checked`] has checked them.
    pub fn fields(&self) -> Fields<'_> {
        let buf = self.as_bytes();
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

impl PartialEq for Kv {
    fn eq(&self, other: &Self) -> bool {
        self.as_bytes() == other.as_bytes()
    }
}

impl Eq for Kv {}

impl Hash for Kv {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.as_bytes().hash(state);
    }
}

impl AsRef<[u8]> for Kv {
    fn as_ref(&self) -> &[u8] {
        self.as_bytes()
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

/// The create revision, the mod revision and the version of a message.
fn numbers(bytes: &[u8]) -> [i64; 3] {
    let mut at = 0;
    if bytes.first() == Some(&KEY) {
        at = 1;
        let len = take_varint(bytes, &mut at) as usize;
        at += len;
    }
    [CREATE, MOD, VERSION].map(|tag| match bytes.get(at) == Some(&tag) {
        true => {
            at += 1;
            take_int(bytes, &mut at)
        }
        false => 0,
    })
}

/// Appends a protobuf varint.
pub fn put_varint(buf: &mut Vec<u8>, n: u64) {
    each_of_varint(n, |byte| buf.push(byte));
}

fn each_of_varint(mut n: u64, mut push: impl FnMut(u8)) {
    while n >= 0x80 {
        push((n as u8 & 0x7f) | 0x80);
        n >>= 7;
    }
    push(n as u8);
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

fn put_int(buf: &mut Scratch, tag: u8, n: i64) {
    if n != 0 {
        buf.push(tag);
        each_of_varint(n as u64, |byte| buf.push(byte));
    }
}

fn put_bytes(buf: &mut Scratch, tag: u8, bytes: &[u8]) {
    if !bytes.is_empty() {
        buf.push(tag);
        each_of_varint(bytes.len() as u64, |byte| buf.push(byte));
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

    #[test]
    fn a_key_value_is_one_pointer() {
        assert_eq!(size_of::<Option<Kv>>(), size_of::<usize>());
    }

    proptest::proptest! {
        #[test]
        fn the_encoding_equals_that_of_prost(
            key in proptest::collection::vec(0u8.., 1..200),
            value in proptest::collection::vec(0u8.., 0..400),
            create_revision in 0i64.., mod_revision in 0i64..1 << 60, version in 0i64.., lease: i64,
        ) {
            let fields = Fields { key: &key, create_revision, mod_revision, version, value: &value, lease };
            let kv = Kv::new(&fields);
            let reference = KeyValue {
                key: key.clone(), create_revision, mod_revision, version, value: value.clone(), lease,
            };
            proptest::prop_assert_eq!(kv.as_bytes(), &reference.encode_to_vec()[..]);
            proptest::prop_assert_eq!(kv.fields(), fields);
            proptest::prop_assert_eq!(kv.key(), &key[..]);
            proptest::prop_assert_eq!(numbers(kv.as_bytes()), [create_revision, mod_revision, version]);
            proptest::prop_assert_eq!(Kv::checked(kv.as_bytes()), Some(kv));
        }

        #[test]
        fn checked_bytes_can_be_decoded(bytes in proptest::collection::vec(0u8.., 0..40)) {
            if let Some(kv) = Kv::checked(&bytes) {
                proptest::prop_assert_eq!(Kv::new(&kv.fields()), kv);
            }
        }

        #[test]
        fn the_place_of_a_change_is_no_part_of_the_message(key in proptest::collection::vec(0u8.., 0..9), sub: u32) {
            let kv = Kv::tombstone(&key, 7);
            let placed = Kv::placed(&kv.fields(), sub);
            proptest::prop_assert_eq!((placed.sub(), kv.clone().with_sub(sub).sub(), kv.sub()), (sub, sub, 0));
            proptest::prop_assert_eq!((placed.as_bytes(), placed.key()), (kv.as_bytes(), &key[..]));
            proptest::prop_assert!(placed == kv && placed.is_tombstone() && placed.mod_revision() == 7);
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
