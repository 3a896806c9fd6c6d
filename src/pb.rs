//! The messages of the wire, generated from `proto/`, except two messages that carry the store's encoded bytes.

#![allow(unreachable_pub, clippy::all, clippy::pedantic)]

use crate::mvcc::Kv;
use bytes::{Buf, BufMut, Bytes};
use prost::DecodeError;
use prost::encoding::{DecodeContext, WireType, skip_field};

mod codec;

pub use codec::Codec;

pub mod mvccpb {
    tonic::include_proto!("mvccpb");
}
pub mod authpb {
    tonic::include_proto!("authpb");
}
pub mod etcdserverpb {
    tonic::include_proto!("etcdserverpb");
}
pub mod v3lockpb {
    tonic::include_proto!("v3lockpb");
}
pub mod v3electionpb {
    tonic::include_proto!("v3electionpb");
}

/// `mvccpb.KeyValue` in the store's encoding. The server only sends this message; decoding yields an empty one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct KeyValue(Option<Kv>);

/// The fields of `etcdserverpb.WatchResponse` before `events`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct WatchHead {
    #[prost(message, optional, tag = "1")]
    pub header: Option<etcdserverpb::ResponseHeader>,
    #[prost(int64, tag = "2")]
    pub watch_id: i64,
    #[prost(bool, tag = "3")]
    pub created: bool,
    #[prost(bool, tag = "4")]
    pub canceled: bool,
    #[prost(int64, tag = "5")]
    pub compact_revision: i64,
    #[prost(string, tag = "6")]
    pub cancel_reason: String,
    #[prost(bool, tag = "7")]
    pub fragment: bool,
}

/// `etcdserverpb.WatchResponse` with its events as frames, which all watchers of a group share. The server only sends
/// this message.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct WatchResponse {
    pub head: WatchHead,
    /// Encoded `events` fields, to be concatenated.
    pub events: Vec<Bytes>,
}

impl From<Kv> for KeyValue {
    fn from(kv: Kv) -> Self {
        Self(Some(kv))
    }
}

impl prost::Message for KeyValue {
    fn encode_raw(&self, buf: &mut impl BufMut) {
        if let Some(kv) = &self.0 {
            buf.put_slice(kv.as_bytes());
        }
    }

    fn merge_field(
        &mut self,
        tag: u32,
        wire: WireType,
        buf: &mut impl Buf,
        ctx: DecodeContext,
    ) -> Result<(), DecodeError> {
        skip_field(wire, tag, buf, ctx)
    }

    fn encoded_len(&self) -> usize {
        self.0.as_ref().map_or(0, |kv| kv.as_bytes().len())
    }

    fn clear(&mut self) {
        self.0 = None;
    }
}

impl prost::Message for WatchResponse {
    fn encode_raw(&self, buf: &mut impl BufMut) {
        self.head.encode_raw(buf);
        for frame in &self.events {
            buf.put_slice(frame);
        }
    }

    fn merge_field(
        &mut self,
        tag: u32,
        wire: WireType,
        buf: &mut impl Buf,
        ctx: DecodeContext,
    ) -> Result<(), DecodeError> {
        self.head.merge_field(tag, wire, buf, ctx)
    }

    fn encoded_len(&self) -> usize {
        self.head.encoded_len() + self.events.iter().map(Bytes::len).sum::<usize>()
    }

    fn clear(&mut self) {
        *self = Self::default();
    }
}
