//! Frames: the records on disk, each with a checksum, the same for every engine.
//!
//! ```text
//! 0      4      8        12    13       14            16      24
//! magic  crc32c len low  kind  len high header check  number  body …   zeros up to a multiple of 8
//! ```
//!
//! Integers are little endian. The checksum covers everything after it, and is seeded with the salt of the data
//! directory, so that a file of another directory is recognized. The header has a check of its own, so that a damaged
//! length is never trusted.
//!
//! The body is the payload with a mark, a byte that is not zero, after every 511 bytes and at the end. So every sector
//! that a frame was written to holds a byte that is not zero, whatever the payload is, and a sector of zeros was never
//! written. Format 1 had no marks and no header check; its frames have another magic, and are still read.

use super::damage::Damage;
use std::borrow::Cow;

/// Bytes before the payload.
pub(super) const HEADER: usize = 24;
/// Frames begin at multiples of this.
const ALIGN: usize = 8;
/// The magic of format 1.
const MAGIC_1: [u8; 4] = *b"IsTh";
/// Every bit of the last byte differs from format 1, so that damage does not turn one format into the other.
const MAGIC: [u8; 4] = *b"IsT\x97";
/// Bytes that a disk writes atomically.
const SECTOR: usize = 512;
/// Bytes of payload before a mark.
const PIECE: usize = SECTOR - 1;
/// A byte that no single flipped bit turns into zero.
const MARK: u8 = 0xa5;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Changes that were synced together; numbered from 1 without gaps.
    Group = 1,
    /// The beginning of a checkpoint: everything but the keys. Its number is that of the last group in the checkpoint.
    Head = 2,
    /// Keys of a checkpoint; numbered from 0.
    Chunk = 3,
    /// The end of a checkpoint; its number is the number of chunks.
    End = 4,
    /// The beginning of a log file. Its number is that of the first group, its payload the length of the file.
    Segment = 5,
    /// The end of a log file; its number is that of the first group of the next file.
    Seal = 6,
    /// The log was closed; its number is that of the next group.
    Closed = 7,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Frame<'a> {
    pub(super) kind: Kind,
    pub(super) number: u64,
    pub(super) payload: Cow<'a, [u8]>,
}

/// The content of a file at one offset.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Parsed<'a> {
    /// A frame, and its length in bytes.
    Whole(Frame<'a>, usize),
    /// Zeros: nothing was written here.
    Empty,
    /// A frame of which a sector never reached the disk: the sector is still zero.
    Torn,
    /// Damage, with the reason.
    Wrong(&'static str),
}

impl Kind {
    fn of(byte: u8) -> Option<Self> {
        use Kind::{Chunk, Closed, End, Group, Head, Seal, Segment};
        let all = [Group, Head, Chunk, End, Segment, Seal, Closed];
        all.into_iter().find(|kind| *kind as u8 == byte)
    }
}

/// Appends a frame whose payload `fill` writes.
pub(super) fn write(out: &mut Vec<u8>, salt: u64, kind: Kind, number: u64, fill: impl FnOnce(&mut Vec<u8>)) {
    let start = out.len();
    out.extend_from_slice(&MAGIC);
    out.extend_from_slice(&[0; 8]);
    out.extend_from_slice(&[kind as u8, 0, 0, 0]);
    out.extend_from_slice(&number.to_le_bytes());
    fill(out);
    mark(out, start + HEADER);
    // 40 bits are a thousand times the memory of a machine.
    let len = (out.len() - start - HEADER).to_le_bytes();
    out[start + 8..start + 12].copy_from_slice(&len[..4]);
    out[start + 13] = len[4];
    let check = header_check(salt, &out[start..]);
    out[start + 14..start + 16].copy_from_slice(&check);
    let crc = checksum(salt, &out[start + 8..]);
    out[start + 4..start + 8].copy_from_slice(&crc.to_le_bytes());
    out.resize(start + (out.len() - start).next_multiple_of(ALIGN), 0);
}

/// Turns the payload that begins at `start` into a body.
fn mark(out: &mut Vec<u8>, start: usize) {
    let len = out.len() - start;
    let pieces = len.div_ceil(PIECE);
    out.resize(out.len() + pieces, MARK);
    // From the last piece to the first, so that no piece is overwritten before it is moved.
    for piece in (0..pieces).rev() {
        let (from, to) = (start + piece * PIECE, start + piece * SECTOR);
        let end = (from + PIECE).min(start + len);
        out.copy_within(from..end, to);
        out[to + end - from] = MARK;
    }
}

/// The payload of a body.
fn unmarked(body: &[u8]) -> Vec<u8> {
    let mut payload = Vec::with_capacity(body.len());
    for piece in body.chunks(SECTOR) {
        payload.extend_from_slice(&piece[..piece.len() - 1]);
    }
    payload
}

/// Parses the beginning of `bytes`, which are at `offset` in their file.
pub(super) fn parse(bytes: &[u8], salt: u64, offset: u64) -> Parsed<'_> {
    let Some(head) = bytes.get(..HEADER) else {
        return match is_empty(bytes) {
            true => Parsed::Empty,
            false => Parsed::Wrong("the file ends within a frame"),
        };
    };
    let is_marked = head[..4] == MAGIC;
    if !is_marked && head[..4] != MAGIC_1 {
        // The disk may write the first sector last; then the first sector is still zero.
        let (first, _) = bytes.split_at(to_sector(offset).min(bytes.len()));
        return match (is_empty(first), is_empty(bytes)) {
            (_, true) => Parsed::Empty,
            (true, false) => Parsed::Torn,
            (false, false) => Parsed::Wrong("there is no frame where one should begin"),
        };
    }
    if is_marked && head[14..16] != header_check(salt, head) {
        // The rest of the header may be in a sector that never reached the disk.
        let rest = bytes.get(to_sector(offset)..).filter(|_| to_sector(offset) < HEADER);
        return match rest.is_some_and(|rest| is_empty(&rest[..SECTOR.min(rest.len())])) {
            true => Parsed::Torn,
            false => Parsed::Wrong("the header of a frame is damaged"),
        };
    }
    let end = end(head);
    let Some(whole) = bytes.get(..end) else {
        return Parsed::Wrong("the file ends within a frame");
    };
    if checksum(salt, &whole[8..]) != word(head, 4) {
        return match has_empty_sector(whole, offset) {
            true => Parsed::Torn,
            false => Parsed::Wrong("a checksum does not match"),
        };
    }
    let mut number = [0; 8];
    number.copy_from_slice(&head[16..24]);
    let Some(kind) = Kind::of(head[12]) else {
        return Parsed::Wrong("a frame of an unknown kind");
    };
    let body = &whole[HEADER..];
    let frame = Frame {
        kind,
        number: u64::from_le_bytes(number),
        payload: match is_marked {
            true => Cow::Owned(unmarked(body)),
            false => Cow::Borrowed(body),
        },
    };
    Parsed::Whole(frame, end.next_multiple_of(ALIGN).min(bytes.len()))
}

fn is_empty(bytes: &[u8]) -> bool {
    bytes.iter().all(|b| *b == 0)
}

/// Bytes from `offset` in a file to the next sector.
fn to_sector(offset: u64) -> usize {
    SECTOR - (offset as usize) % SECTOR
}

fn word(head: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]])
}

/// The check of the header that `frame` begins with.
fn header_check(salt: u64, frame: &[u8]) -> [u8; 2] {
    let crc = crc32c::crc32c_append(checksum(salt, &frame[8..14]), &frame[16..HEADER]);
    ((crc >> 16) as u16 ^ crc as u16).to_le_bytes()
}

/// Length in bytes of header and body of the frame with this header.
fn end(head: &[u8]) -> usize {
    HEADER + word(head, 8) as usize + (usize::from(head[13]) << 32)
}

/// Length in bytes of the frame with this header, if the header is not damaged.
pub(super) fn length(head: &[u8]) -> usize {
    end(head).next_multiple_of(ALIGN)
}

/// Parses `bytes` as exactly one frame.
pub(super) fn single(bytes: &[u8], salt: u64) -> Result<Frame<'_>, Damage> {
    match parse(bytes, salt, 0) {
        Parsed::Whole(frame, len) if len == bytes.len() => Ok(frame),
        Parsed::Whole(..) => Err(Damage::new("a record is longer than its frame")),
        Parsed::Empty | Parsed::Torn => Err(Damage::new("a record is empty")),
        Parsed::Wrong(why) => Err(Damage::new(why)),
    }
}

/// Finds the first whole frame in `bytes`, which are at `offset` in their file.
pub(super) fn find(bytes: &[u8], salt: u64, offset: u64) -> Option<usize> {
    let starts = (0..bytes.len()).step_by(ALIGN);
    starts
        .filter(|at| [MAGIC, MAGIC_1].iter().any(|magic| bytes[*at..].starts_with(magic)))
        .find(|at| matches!(parse(&bytes[*at..], salt, offset + *at as u64), Parsed::Whole(..)))
}

fn checksum(salt: u64, bytes: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&salt.to_le_bytes()), bytes)
}

/// Whether a sector of a frame at `offset` is all zeros, as the file was before: never written, or, in format 1, part of
/// a payload of zeros. The first and the last sector may also hold parts of other frames.
fn has_empty_sector(frame: &[u8], offset: u64) -> bool {
    let (head, rest) = frame.split_at(to_sector(offset).min(frame.len()));
    std::iter::once(head).chain(rest.chunks(SECTOR)).any(is_empty)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    const SALT: u64 = 7;

    fn frame(payload: &[u8]) -> Vec<u8> {
        let mut out = vec![];
        write(&mut out, SALT, Kind::Group, 42, |out| out.extend_from_slice(payload));
        out
    }

    #[test]
    fn a_frame_is_read_as_it_was_written_and_only_in_its_own_directory() {
        for len in [0, 1, 7, 8, 510, 511, 512, 1000, 1022, 1023, 5000] {
            let payload = vec![1; len];
            let bytes = frame(&payload);
            let whole = Frame {
                kind: Kind::Group,
                number: 42,
                payload: Cow::Borrowed(&payload[..]),
            };
            assert_eq!(parse(&bytes, SALT, 0), Parsed::Whole(whole, bytes.len()));
            assert!(matches!(parse(&bytes, SALT + 1, 0), Parsed::Wrong(_)));
            assert_eq!(bytes.len() % ALIGN, 0);
            let mut later = vec![0xff; 64];
            later.extend(&bytes);
            assert_eq!(find(&later, SALT, 0), Some(64));
        }
    }

    #[test]
    fn a_lost_sector_is_torn_and_a_flipped_bit_is_wrong() {
        let bytes = frame(&[9; 2000]);
        for sector in 0..4 {
            let mut torn = bytes.clone();
            let end = (sector * SECTOR + SECTOR).min(torn.len());
            torn[sector * SECTOR..end].fill(0);
            assert_eq!(parse(&torn, SALT, 0), Parsed::Torn, "sector {sector}");
        }
        for at in [0, 5, 9, 12, 17, 24, 2000] {
            let mut flipped = bytes.clone();
            flipped[at] ^= 1;
            assert!(matches!(parse(&flipped, SALT, 0), Parsed::Wrong(_)), "byte {at}");
        }
        assert_eq!(parse(&[0; 4096], SALT, 0), Parsed::Empty);
        assert_eq!(parse(&[0; 4], SALT, 0), Parsed::Empty);
    }

    /// A frame of format 1.
    pub(crate) fn old_frame(salt: u64, kind: Kind, number: u64, payload: &[u8]) -> Vec<u8> {
        let mut out = MAGIC_1.to_vec();
        out.extend_from_slice(&[0; 4]);
        out.extend_from_slice(&(payload.len() as u32).to_le_bytes());
        out.extend_from_slice(&[kind as u8, 0, 0, 0]);
        out.extend_from_slice(&number.to_le_bytes());
        out.extend_from_slice(payload);
        let crc = checksum(salt, &out[8..]);
        out[4..8].copy_from_slice(&crc.to_le_bytes());
        out.resize(out.len().next_multiple_of(ALIGN), 0);
        out
    }

    #[test]
    fn frames_of_format_1_are_read() {
        let payload = [0; 1000];
        let whole = Frame {
            kind: Kind::Group,
            number: 42,
            payload: Cow::Borrowed(&payload[..]),
        };
        let bytes = old_frame(SALT, Kind::Group, 42, &payload);
        assert_eq!(parse(&bytes, SALT, 0), Parsed::Whole(whole, bytes.len()));
        assert_eq!(find(&bytes, SALT, 0), Some(0));
    }

    /// Every flipped bit of every frame, with values of zeros and unwritten space behind the frame.
    #[test]
    fn no_flipped_bit_of_a_value_of_zeros_looks_like_a_sector_that_was_not_written() {
        for offset in [0, 8, 496, 504] {
            let mut file = frame(&[0; 3000]);
            let len = file.len();
            file.resize(len + 100_000, 0);
            for bit in 0..len * 8 {
                file[bit / 8] ^= 1 << (bit % 8);
                let parsed = parse(&file, SALT, offset);
                // The zeros that fill the frame up are no part of it.
                let is_fill = bit / 8 >= len - 7 && matches!(parsed, Parsed::Whole(..));
                assert!(is_fill || matches!(parsed, Parsed::Wrong(_)), "bit {bit}: {parsed:?}");
                file[bit / 8] ^= 1 << (bit % 8);
            }
        }
    }

    proptest::proptest! {
        /// A frame of any payload at any place, of which any sectors did not reach the disk.
        #[test]
        fn lost_sectors_are_torn_whatever_the_payload_is(
            payload in proptest::collection::vec(proptest::prop_oneof![9 => proptest::strategy::Just(0u8), 1 => 0u8..], 0..4000),
            at in 0u64..64, lost in 0usize..512,
        ) {
            let offset = at * ALIGN as u64;
            let bytes = frame(&payload);
            let mut torn = bytes.clone();
            let mut any_lost = false;
            let first = to_sector(offset).min(bytes.len());
            let cuts = std::iter::once(0..first).chain((first..bytes.len()).step_by(SECTOR).map(|s| s..(s + SECTOR).min(bytes.len())));
            for (n, sector) in cuts.enumerate() {
                if lost >> (n % 9) & 1 == 1 {
                    torn[sector.clone()].fill(0);
                    any_lost = true;
                }
            }
            match parse(&torn, SALT, offset) {
                Parsed::Whole(frame, _) => proptest::prop_assert!(!any_lost && *frame.payload == payload),
                Parsed::Torn => proptest::prop_assert!(any_lost),
                Parsed::Empty => proptest::prop_assert!(is_empty(&torn)),
                Parsed::Wrong(why) => proptest::prop_assert!(false, "{}", why),
            }
        }

        #[test]
        fn any_bytes_can_be_looked_at(bytes in proptest::collection::vec(0u8.., 0..200), offset in 0u64..4096) {
            let _ = parse(&bytes, SALT, offset);
            let _ = find(&bytes, SALT, offset);
        }
    }
}
