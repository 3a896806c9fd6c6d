//! The answers of etcd's API that the tester reads, field by field and without copying.
//!
//! Requests are encoded by `pb`. Answers are not decoded into messages, because an agent looks at a value and forgets it.

use crate::pb::etcdserverpb::ResponseHeader;
use prost::Message;

/// A message that does not follow the rules of protobuf.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the store sent a message that is not valid protobuf")]
pub struct Malformed;

/// The value of a field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Field<'a> {
    Number(u64),
    Bytes(&'a [u8]),
}

impl<'a> Field<'a> {
    /// The number as protobuf's int64.
    pub fn signed(self) -> i64 {
        match self {
            Self::Number(n) => n.cast_signed(),
            Self::Bytes(_) => 0,
        }
    }

    pub fn bytes(self) -> &'a [u8] {
        match self {
            Self::Bytes(bytes) => bytes,
            Self::Number(_) => &[],
        }
    }

    pub fn flag(self) -> bool {
        self.signed() != 0
    }
}

/// The first field of `buffer` as its tag, its value and its length; `None` while it is incomplete. `room` is how many bytes
/// the message has left, of which `buffer` may hold only some.
pub fn first_field(buffer: &[u8], room: usize) -> Result<Option<(u32, Field<'_>, usize)>, Malformed> {
    let Some((key, mut used)) = varint(buffer)? else {
        return incomplete(buffer.len(), room);
    };
    let tag = u32::try_from(key >> 3).map_err(|_| Malformed)?;
    let rest = &buffer[used..];
    let (field, length) = match key & 7 {
        0 => match varint(rest)? {
            Some((number, length)) => (Field::Number(number), length),
            None => return incomplete(buffer.len(), room),
        },
        2 => {
            let Some((length, digits)) = varint(rest)? else {
                return incomplete(buffer.len(), room);
            };
            let length = usize::try_from(length).map_err(|_| Malformed)?;
            used += digits;
            if length > room.saturating_sub(used) {
                return Err(Malformed);
            }
            match rest[digits..].get(..length) {
                Some(bytes) => (Field::Bytes(bytes), length),
                None => return incomplete(buffer.len(), room),
            }
        }
        // Fixed widths, which etcd does not use: passed over.
        wire @ (1 | 5) => {
            let width = if wire == 1 { 8 } else { 4 };
            match rest.get(..width) {
                Some(bytes) => (Field::Bytes(bytes), width),
                None => return incomplete(buffer.len(), room),
            }
        }
        _ => return Err(Malformed),
    };
    Ok(Some((tag, field, used + length)))
}

/// More bytes are to come, unless the message is all there.
fn incomplete<T>(present: usize, room: usize) -> Result<Option<T>, Malformed> {
    if present < room { Ok(None) } else { Err(Malformed) }
}

fn varint(buffer: &[u8]) -> Result<Option<(u64, usize)>, Malformed> {
    let mut value = 0;
    for (at, byte) in buffer.iter().take(10).enumerate() {
        value |= u64::from(byte & 0x7F) << (7 * at);
        if byte & 0x80 == 0 {
            return Ok(Some((value, at + 1)));
        }
    }
    if buffer.len() >= 10 { Err(Malformed) } else { Ok(None) }
}

/// Calls `on` for every field of a complete message.
pub fn fields<'a>(mut message: &'a [u8], mut on: impl FnMut(u32, Field<'a>)) -> Result<(), Malformed> {
    while !message.is_empty() {
        let (tag, field, length) = first_field(message, message.len())?.ok_or(Malformed)?;
        on(tag, field);
        message = &message[length..];
    }
    Ok(())
}

/// What the tester uses of a header.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Header {
    pub cluster_id: u64,
    pub revision: i64,
}

impl Header {
    pub fn read(message: &[u8]) -> Result<Self, Malformed> {
        let mut header = Self::default();
        fields(message, |tag, field| match tag {
            1 => header.cluster_id = field.signed().cast_unsigned(),
            3 => header.revision = field.signed(),
            _ => {}
        })?;
        Ok(header)
    }

    /// The header of an answer that the tester needs nothing else of.
    pub fn of(answer: &[u8]) -> Result<Self, Malformed> {
        let mut header = Ok(Self::default());
        fields(answer, |tag, field| {
            if tag == 1 {
                header = Self::read(field.bytes());
            }
        })?;
        header
    }
}

impl From<Header> for ResponseHeader {
    fn from(header: Header) -> Self {
        Self {
            cluster_id: header.cluster_id,
            revision: header.revision,
            ..Self::default()
        }
    }
}

/// A key-value, borrowed from its message.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KeyValue<'a> {
    pub key: &'a [u8],
    pub value: &'a [u8],
    pub create_revision: i64,
    pub mod_revision: i64,
}

impl<'a> KeyValue<'a> {
    pub fn read(message: &'a [u8]) -> Result<Self, Malformed> {
        let mut kv = Self::default();
        fields(message, |tag, field| match tag {
            1 => kv.key = field.bytes(),
            2 => kv.create_revision = field.signed(),
            3 => kv.mod_revision = field.signed(),
            5 => kv.value = field.bytes(),
            _ => {}
        })?;
        Ok(kv)
    }
}

/// An event of a watch, borrowed from its message.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Event<'a> {
    pub deleted: bool,
    pub kv: KeyValue<'a>,
}

impl<'a> Event<'a> {
    pub fn read(message: &'a [u8]) -> Result<Self, Malformed> {
        let (mut event, mut kv) = (Self::default(), None);
        fields(message, |tag, field| match tag {
            1 => event.deleted = field.flag(),
            2 => kv = Some(field.bytes()),
            _ => {}
        })?;
        event.kv = KeyValue::read(kv.ok_or(Malformed)?)?;
        Ok(event)
    }
}

/// A gRPC frame with `message`.
pub fn frame(message: &impl Message) -> bytes::Bytes {
    let length = message.encoded_len();
    let mut frame = Vec::with_capacity(5 + length);
    frame.push(0);
    frame.extend_from_slice(&u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes());
    message.encode_raw(&mut frame);
    frame.into()
}

/// A text of a server, which must not control a terminal.
pub fn shown(text: &[u8]) -> String {
    let text = String::from_utf8_lossy(text);
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pb::etcdserverpb::{LeaseGrantResponse, PutRequest};

    #[test]
    fn fields_of_an_encoded_message_are_found_and_a_part_is_incomplete() {
        let header = Header {
            cluster_id: u64::MAX - 1,
            revision: 300,
        };
        let answer = LeaseGrantResponse {
            header: Some(header.into()),
            id: 77,
            ttl: 600,
            error: String::new(),
        };
        let bytes = answer.encode_to_vec();
        assert_eq!(Header::of(&bytes), Ok(header));
        let mut numbers = vec![];
        fields(&bytes, |tag, field| numbers.push((tag, field.signed()))).unwrap();
        assert_eq!(numbers[1..], [(2, 77), (3, 600)]);
        let (_, _, length) = first_field(&bytes, bytes.len()).unwrap().unwrap();
        for part in 0..length {
            assert_eq!(first_field(&bytes[..part], bytes.len()), Ok(None), "{part}");
        }
        assert_eq!(first_field(&bytes[..3], 3), Err(Malformed));
    }

    #[test]
    fn nonsense_is_malformed() {
        for bad in [&[0x0A, 0x05, 1][..], &[0xFF; 11], &[0x0B], &[0x08]] {
            assert_eq!(fields(bad, |_, _| {}), Err(Malformed), "{bad:?}");
        }
    }

    #[test]
    fn a_frame_is_a_message_after_its_length() {
        let put = PutRequest {
            key: "k".into(),
            ..PutRequest::default()
        };
        assert_eq!(&frame(&put)[..], [0, 0, 0, 0, 3, 0x0A, 1, b'k']);
    }
}
