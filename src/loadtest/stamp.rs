//! The stamp at the beginning of every value that the tester writes. By the stamps a reader knows without any memory of
//! the keys whether an event is missing, and in what state the store is.

/// Marks a value of the tester.
const MAGIC: &[u8; 4] = b"ISLT";
/// Bytes of a stamp, and so the smallest value.
pub const STAMP_BYTES: usize = 56;
/// Instead of the number of a key: no key.
pub const NO_KEY: u32 = u32::MAX;

/// Who wrote a value, and after which other writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    /// The run that wrote the value: two runs against one store ignore each other.
    pub run: u32,
    /// The lane within its prefix. The writes of a lane follow each other: each has the next sequence number.
    pub lane: u16,
    /// Counts the attempts at this write beyond the first. A write whose answer was lost is repeated, so its event may come twice.
    pub attempt: u16,
    /// The number of the key within its lane.
    pub key: u32,
    pub sequence: u64,
    /// The sequence number of the value that this one replaces; 0 for a new key.
    pub replaces: u64,
    /// The key that the same transaction deletes, with the sequence number of its value; [`NO_KEY`] for none.
    pub deletes: u32,
    pub deleted_sequence: u64,
    /// When the writer sent the request, in nanoseconds since 1970.
    pub sent_nanos: u64,
    /// Number of the prefix within the run.
    pub prefix: u32,
}

impl Stamp {
    /// A value of at least [`STAMP_BYTES`] that begins with this stamp.
    pub fn value(&self, bytes: usize) -> Vec<u8> {
        let mut value = Vec::with_capacity(bytes.max(STAMP_BYTES));
        value.extend_from_slice(MAGIC);
        value.extend_from_slice(&self.run.to_le_bytes());
        value.extend_from_slice(&self.lane.to_le_bytes());
        value.extend_from_slice(&self.attempt.to_le_bytes());
        value.extend_from_slice(&self.key.to_le_bytes());
        value.extend_from_slice(&self.sequence.to_le_bytes());
        value.extend_from_slice(&self.replaces.to_le_bytes());
        value.extend_from_slice(&self.deletes.to_le_bytes());
        value.extend_from_slice(&self.deleted_sequence.to_le_bytes());
        value.extend_from_slice(&self.sent_nanos.to_le_bytes());
        value.extend_from_slice(&self.prefix.to_le_bytes());
        // Stores may compress pages, so the rest is not one repeated byte.
        let mut noise = self.sequence ^ u64::from(self.key) << 32 | 1;
        while value.len() < bytes {
            noise = noise
                .wrapping_mul(0x5851_F42D_4C95_7F2D)
                .wrapping_add(0x1405_7B7E_F767_814F);
            let piece = noise.to_be_bytes();
            let room = bytes - value.len();
            value.extend_from_slice(&piece[..room.min(4)]);
        }
        value
    }

    /// The stamp of a value; `None` for a value of somebody else.
    pub fn read(value: &[u8]) -> Option<Self> {
        let rest = value.strip_prefix(MAGIC)?.first_chunk::<{ STAMP_BYTES - 4 }>()?;
        let mut rest = &rest[..];
        Some(Self {
            run: u32::from_le_bytes(take(&mut rest)?),
            lane: u16::from_le_bytes(take(&mut rest)?),
            attempt: u16::from_le_bytes(take(&mut rest)?),
            key: u32::from_le_bytes(take(&mut rest)?),
            sequence: u64::from_le_bytes(take(&mut rest)?),
            replaces: u64::from_le_bytes(take(&mut rest)?),
            deletes: u32::from_le_bytes(take(&mut rest)?),
            deleted_sequence: u64::from_le_bytes(take(&mut rest)?),
            sent_nanos: u64::from_le_bytes(take(&mut rest)?),
            prefix: u32::from_le_bytes(take(&mut rest)?),
        })
    }
}

fn take<const N: usize>(rest: &mut &[u8]) -> Option<[u8; N]> {
    let (first, after) = rest.split_first_chunk::<N>()?;
    *rest = after;
    Some(*first)
}

/// The share of one key in the fingerprint of a prefix: a number that depends on the lane, the key and its value.
pub fn share(lane: u16, key: u32, sequence: u64) -> u64 {
    let mut x = sequence ^ (u64::from(key) << 24) ^ (u64::from(lane) << 56);
    x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stamp_is_read_from_the_value_that_it_begins() {
        let stamp = Stamp {
            run: 1,
            lane: 2,
            attempt: 3,
            key: 4,
            sequence: 5,
            replaces: 6,
            deletes: NO_KEY,
            deleted_sequence: 8,
            sent_nanos: 9,
            prefix: 10,
        };
        for bytes in [0, STAMP_BYTES, 61, 400] {
            let value = stamp.value(bytes);
            assert_eq!(
                (value.len(), Stamp::read(&value)),
                (bytes.max(STAMP_BYTES), Some(stamp))
            );
        }
        assert_eq!(Stamp::read(b"{\"cluster\":\"hk\"}"), None);
        assert_eq!(Stamp::read(&stamp.value(0)[..STAMP_BYTES - 1]), None);
    }
}
