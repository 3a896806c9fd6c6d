//! Messages of the upstream with key-values as the bytes that the upstream sent, and the codec that passes bytes through.
//!
//! A field of messages and a field of byte strings look the same on the wire, so a key-value is taken as it is: nothing
//! that a newer etcd adds to it is lost before [`Kv::checked`] has seen it.

use crate::mvcc::{EventKind, Kv};
use crate::pb::etcdserverpb as pb;
use bytes::{Buf, BufMut, Bytes};
use tonic::Status;
use tonic::codec::{BufferSettings, DecodeBuf, Decoder, EncodeBuf, Encoder};

/// Bytes that are read into one buffer. Messages of the feed are often many and small.
const BUFFER: usize = 64 << 10;

/// `etcdserverpb.RangeResponse`.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct RangeResponse {
    #[prost(message, optional, tag = "1")]
    pub(super) header: Option<pb::ResponseHeader>,
    /// Encoded key-values.
    #[prost(bytes = "bytes", repeated, tag = "2")]
    pub(super) kvs: Vec<Bytes>,
    #[prost(bool, tag = "3")]
    pub(super) more: bool,
    #[prost(int64, tag = "4")]
    pub(super) count: i64,
}

/// `etcdserverpb.RangeStreamResponse`.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct RangeStreamResponse {
    #[prost(message, optional, tag = "1")]
    pub(super) range: Option<RangeResponse>,
}

/// `etcdserverpb.WatchResponse`.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct WatchResponse {
    #[prost(message, optional, tag = "1")]
    pub(super) header: Option<pb::ResponseHeader>,
    #[prost(int64, tag = "2")]
    pub(super) watch_id: i64,
    #[prost(bool, tag = "3")]
    pub(super) created: bool,
    #[prost(bool, tag = "4")]
    pub(super) canceled: bool,
    #[prost(int64, tag = "5")]
    pub(super) compact_revision: i64,
    #[prost(string, tag = "6")]
    pub(super) cancel_reason: String,
    #[prost(bool, tag = "7")]
    pub(super) fragment: bool,
    #[prost(message, repeated, tag = "11")]
    pub(super) events: Vec<Event>,
}

/// `mvccpb.Event`, without the previous key-value, which is never asked for.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Event {
    /// 0 for a put, 1 for a deletion.
    #[prost(int32, tag = "1")]
    pub(super) kind: i32,
    /// The encoded key-value.
    #[prost(bytes = "bytes", tag = "2")]
    pub(super) kv: Bytes,
}

impl Event {
    /// The kind of the event, and its key-value; `None` if no etcd would send this event.
    pub(super) fn checked(&self) -> Option<(EventKind, Kv)> {
        let kind = match self.kind {
            0 => EventKind::Put,
            1 => EventKind::Delete,
            _ => return None,
        };
        Some((kind, Kv::checked(&self.kv)?))
    }
}

/// Passes encoded messages through.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Raw;

impl tonic::codec::Codec for Raw {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, buf: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buf.reserve(item.len());
        buf.put(item);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, buf: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(buf.copy_to_bytes(buf.remaining())))
    }

    fn buffer_settings(&self) -> BufferSettings {
        BufferSettings::new(BUFFER, BUFFER)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mvcc::Fields;
    use prost::Message;

    #[test]
    fn key_values_keep_their_bytes() {
        let fields = Fields {
            key: b"a",
            create_revision: 2,
            mod_revision: 7,
            version: 3,
            value: b"v",
            lease: 9,
        };
        let kv = Kv::new(&fields);
        let answer = pb::RangeResponse {
            header: Some(pb::ResponseHeader {
                revision: 7,
                ..Default::default()
            }),
            kvs: vec![kv.clone().into()],
            more: true,
            count: 2,
        };
        let taken = RangeResponse::decode(Bytes::from(answer.encode_to_vec())).unwrap();
        assert_eq!((taken.more, taken.count, taken.kvs.len()), (true, 2, 1));
        assert_eq!(Kv::checked(&taken.kvs[0]), Some(kv.clone()));
        let event = Event {
            kind: 1,
            kv: Bytes::copy_from_slice(kv.as_bytes()),
        };
        assert!(matches!(event.checked(), Some((EventKind::Delete, got)) if got == kv));
        assert!(Event { kind: 2, ..event }.checked().is_none());
    }
}
