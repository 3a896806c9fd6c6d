//! Frames: the records on disk, each with a checksum, the same for every engine.
//!
//! ```text
//! 0      4      8     12    13        16          24
//! magic  crc32c len   kind  reserved  number      payload …   zeros up to a multiple of 8
//! ```
//!
//! Integers are little endian. The checksum covers everything after it, and is seeded with the salt of the data
//! directory, so that a file of another directory is recognized.

use super::damage::Damage;

/// Bytes before the payload.
pub(super) const HEADER: usize = 24;
/// Frames begin at multiples of this.
const ALIGN: usize = 8;
const MAGIC: [u8; 4] = *b"IsTh";
/// Bytes that a disk writes atomically.
const SECTOR: usize = 512;

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

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Frame<'a> {
    pub(super) kind: Kind,
    pub(super) number: u64,
    pub(super) payload: &'a [u8],
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
    let len = u32::try_from(out.len() - start - HEADER).expect("a frame is less than 4 GiB");
    out[start + 8..start + 12].copy_from_slice(&len.to_le_bytes());
    let crc = checksum(salt, &out[start + 8..]);
    out[start + 4..start + 8].copy_from_slice(&crc.to_le_bytes());
    out.resize(start + (out.len() - start).next_multiple_of(ALIGN), 0);
}

/// Parses the beginning of `bytes`, which are at `offset` in their file.
pub(super) fn parse(bytes: &[u8], salt: u64, offset: u64) -> Parsed<'_> {
    let Some(head) = bytes.get(..HEADER) else {
        return match bytes.iter().all(|b| *b == 0) {
            true => Parsed::Empty,
            false => Parsed::Wrong("the file ends within a frame"),
        };
    };
    if head[..4] != MAGIC {
        // The disk may write the first sector last; then the first sector is still zero.
        let first = SECTOR - (offset as usize) % SECTOR;
        let sector = &bytes[..first.min(bytes.len())];
        return match (sector.iter().all(|b| *b == 0), bytes.iter().all(|b| *b == 0)) {
            (_, true) => Parsed::Empty,
            (true, false) => Parsed::Torn,
            (false, false) => Parsed::Wrong("there is no frame where one should begin"),
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
    let frame = Frame {
        kind,
        number: u64::from_le_bytes(number),
        payload: &whole[HEADER..],
    };
    Parsed::Whole(frame, end.next_multiple_of(ALIGN).min(bytes.len()))
}

fn word(head: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]])
}

/// Length in bytes of header and payload of the frame with this header.
fn end(head: &[u8]) -> usize {
    HEADER + word(head, 8) as usize
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
        .filter(|at| bytes[*at..].starts_with(&MAGIC))
        .find(|at| matches!(parse(&bytes[*at..], salt, offset + *at as u64), Parsed::Whole(..)))
}

fn checksum(salt: u64, bytes: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&salt.to_le_bytes()), bytes)
}

/// Whether a sector of a frame at `offset` is all zeros, as the file was before. The first and the last sector may
/// also hold parts of other frames.
fn has_empty_sector(frame: &[u8], offset: u64) -> bool {
    let first = SECTOR - (offset as usize) % SECTOR;
    let (head, rest) = frame.split_at(first.min(frame.len()));
    let mut sectors = std::iter::once(head).chain(rest.chunks(SECTOR));
    sectors.any(|s| s.iter().all(|b| *b == 0))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SALT: u64 = 7;

    fn frame(payload: &[u8]) -> Vec<u8> {
        let mut out = vec![];
        write(&mut out, SALT, Kind::Group, 42, |out| out.extend_from_slice(payload));
        out
    }

    #[test]
    fn a_frame_is_read_as_it_was_written_and_only_in_its_own_directory() {
        for len in [0, 1, 7, 8, 1000] {
            let payload = vec![1; len];
            let bytes = frame(&payload);
            let whole = Frame {
                kind: Kind::Group,
                number: 42,
                payload: &payload,
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

    proptest::proptest! {
        #[test]
        fn any_bytes_can_be_looked_at(bytes in proptest::collection::vec(0u8.., 0..200), offset in 0u64..4096) {
            let _ = parse(&bytes, SALT, offset);
            let _ = find(&bytes, SALT, offset);
        }
    }
}
