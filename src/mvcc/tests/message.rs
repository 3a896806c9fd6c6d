//! The messages of etcd's watch and key-values, as prost derives them, to check the store's own encoding.

use bytes::Bytes;
use prost::Message;

/// `mvccpb.KeyValue`.
#[derive(Clone, PartialEq, Message)]
pub(in crate::mvcc) struct KeyValue {
    #[prost(bytes = "vec", tag = "1")]
    pub(in crate::mvcc) key: Vec<u8>,
    #[prost(int64, tag = "2")]
    pub(in crate::mvcc) create_revision: i64,
    #[prost(int64, tag = "3")]
    pub(in crate::mvcc) mod_revision: i64,
    #[prost(int64, tag = "4")]
    pub(in crate::mvcc) version: i64,
    #[prost(bytes = "vec", tag = "5")]
    pub(in crate::mvcc) value: Vec<u8>,
    #[prost(int64, tag = "6")]
    pub(in crate::mvcc) lease: i64,
}

/// `mvccpb.Event.EventType`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub(super) enum EventType {
    Put = 0,
    Delete = 1,
}

/// `mvccpb.Event`.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Event {
    #[prost(enumeration = "EventType", tag = "1")]
    pub(super) r#type: i32,
    #[prost(message, optional, tag = "2")]
    pub(super) kv: Option<KeyValue>,
    #[prost(message, optional, tag = "3")]
    pub(super) prev_kv: Option<KeyValue>,
}

/// The events of `etcdserverpb.WatchResponse`.
#[derive(Clone, PartialEq, Message)]
struct WatchResponse {
    #[prost(message, repeated, tag = "11")]
    events: Vec<Event>,
}

/// Decodes the frames of a watcher.
pub(super) fn events(frames: &[Bytes]) -> Vec<Event> {
    WatchResponse::decode(&frames.concat()[..]).unwrap().events
}
