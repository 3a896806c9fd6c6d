//! Watches of the client.
//!
//! A mirror has ten watches of each of hundreds of stores, and nearly all of them wait. So a watch reserves little until
//! there is a message; etcd-client's own reserve 20 KiB each.

use super::answers::{Changes, Event, KeyValue, Pinned};
use super::client_error::Error;
use etcd_client::{Client, EventType, WatchOptions, WatchStream};
use futures::StreamExt;
use futures::stream;
use std::marker::PhantomData;
use tonic::codec::{BufferSettings, Codec};
use tonic::codegen::http::uri::PathAndQuery;
use tonic::metadata::MetadataValue;
use tonic::transport::Channel;
use tonic::{Status, Streaming};
use tonic_prost::{ProstCodec, ProstDecoder, ProstEncoder};

/// Largest message of a watch, in bytes: etcd puts up to 1,000 revisions into one.
const CHANGES_MAX: usize = 128 << 20;
/// Bytes that a watch reserves for each direction before there is a message.
const BUFFER: usize = 512;
const PATH: &str = "/etcdserverpb.Watch/Watch";

/// A watch on a key or a prefix.
pub struct Watch {
    messages: Messages,
    /// The store that the connection belongs to.
    pinned: Pinned,
}

/// What to watch, and from which revision on; 0 watches later changes only.
pub(super) struct Watched {
    pub(super) key: Vec<u8>,
    /// The end of the range; empty: one key.
    pub(super) range_end: Vec<u8>,
    pub(super) from: i64,
    pub(super) with_progress: bool,
}

enum Messages {
    Small(Box<Streaming<Answer>>),
    /// Of a user with a password, whose token etcd-client attaches and renews.
    WithToken(Box<WatchStream>),
}

/// `etcdserverpb.WatchRequest` that creates a watch.
#[derive(Clone, PartialEq, prost::Message)]
struct Request {
    #[prost(message, optional, tag = "1")]
    create: Option<Create>,
}

/// `etcdserverpb.WatchCreateRequest`.
#[derive(Clone, PartialEq, prost::Message)]
struct Create {
    #[prost(bytes = "vec", tag = "1")]
    key: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    range_end: Vec<u8>,
    #[prost(int64, tag = "3")]
    start_revision: i64,
    #[prost(bool, tag = "4")]
    progress_notify: bool,
}

/// `etcdserverpb.WatchResponse`.
#[derive(Clone, PartialEq, prost::Message)]
struct Answer {
    #[prost(message, optional, tag = "1")]
    header: Option<Header>,
    #[prost(bool, tag = "3")]
    created: bool,
    #[prost(bool, tag = "4")]
    canceled: bool,
    #[prost(int64, tag = "5")]
    compact_revision: i64,
    #[prost(string, tag = "6")]
    cancel_reason: String,
    #[prost(message, repeated, tag = "11")]
    events: Vec<SentEvent>,
}

/// `etcdserverpb.ResponseHeader`.
#[derive(Clone, Copy, PartialEq, prost::Message)]
struct Header {
    #[prost(uint64, tag = "1")]
    cluster_id: u64,
    #[prost(int64, tag = "3")]
    revision: i64,
}

/// `mvccpb.Event`, without the previous key-value, which is never asked for.
#[derive(Clone, PartialEq, prost::Message)]
struct SentEvent {
    /// 0 for a put, 1 for a deletion.
    #[prost(int32, tag = "1")]
    kind: i32,
    #[prost(message, optional, tag = "2")]
    kv: Option<KeyValue>,
}

/// A codec that reserves [`BUFFER`].
struct Small<T, U>(PhantomData<(T, U)>);

// === impl Watch ===

impl Watch {
    /// Watches by calls of etcd-client.
    pub(super) async fn with_token(client: &Client, pinned: Pinned, watched: Watched) -> Result<Self, Error> {
        let mut options = WatchOptions::new().with_start_revision(watched.from);
        if !watched.range_end.is_empty() {
            options = options.with_range(watched.range_end);
        }
        if watched.with_progress {
            options = options.with_progress_notify();
        }
        let mut raw = client.watch_client().max_decoding_message_size(CHANGES_MAX);
        let messages = Messages::WithToken(Box::new(raw.watch(watched.key, Some(options)).await?));
        Ok(Self { messages, pinned })
    }

    /// Watches by a call that reserves little.
    pub(super) async fn small(channel: Channel, pinned: Pinned, watched: Watched) -> Result<Self, Error> {
        let create = Create {
            key: watched.key,
            range_end: watched.range_end,
            start_revision: watched.from,
            progress_notify: watched.with_progress,
        };
        let opened = open(channel, Request { create: Some(create) }).await?;
        let messages = Messages::Small(Box::new(opened));
        Ok(Self { messages, pinned })
    }

    /// Waits for the next message with events, or for a progress notification.
    pub async fn next(&mut self) -> Result<Changes, Error> {
        loop {
            let answer = self.messages.next().await?;
            let header = answer.header.ok_or(Error::NoHeader)?;
            self.pinned.check(header.cluster_id)?;
            if answer.canceled {
                return Err(match answer.compact_revision {
                    0 => Error::Cancelled(answer.cancel_reason),
                    at => Error::Compacted(at),
                });
            }
            let events: Vec<_> = answer.events.into_iter().filter_map(SentEvent::into_event).collect();
            // A message without events is a progress notification, unless it confirms the creation of the watch.
            if !events.is_empty() || !answer.created {
                return Ok(Changes {
                    events,
                    revision: header.revision,
                });
            }
        }
    }
}

fn failed(status: Status) -> Error {
    etcd_client::Error::from(status).into()
}

async fn open(channel: Channel, request: Request) -> Result<Streaming<Answer>, Error> {
    let mut grpc = tonic::client::Grpc::new(channel).max_decoding_message_size(CHANGES_MAX);
    grpc.ready().await.map_err(etcd_client::Error::TransportError)?;
    // The store ends a watch whose requests end.
    let mut request = tonic::Request::new(stream::iter([request]).chain(stream::pending()));
    // A member without a leader ends the stream, so that another member is tried.
    let metadata = request.metadata_mut();
    metadata.insert("hasleader", MetadataValue::from_static("true"));
    let answers = grpc.streaming(request, PathAndQuery::from_static(PATH), Small(PhantomData));
    Ok(answers.await.map_err(failed)?.into_inner())
}

// === impl Messages ===

impl Messages {
    async fn next(&mut self) -> Result<Answer, Error> {
        match self {
            Self::Small(answers) => answers.message().await.map_err(failed)?.ok_or(Error::Ended),
            Self::WithToken(stream) => stream.message().await?.ok_or(Error::Ended).map(Answer::from),
        }
    }
}

impl From<etcd_client::WatchResponse> for Answer {
    fn from(from: etcd_client::WatchResponse) -> Self {
        let event = |event: &etcd_client::Event| SentEvent {
            kind: i32::from(event.event_type() == EventType::Delete),
            kv: event.kv().cloned().map(KeyValue::from),
        };
        Self {
            header: from.header().map(|header| Header {
                cluster_id: header.cluster_id(),
                revision: header.revision(),
            }),
            created: from.created(),
            canceled: from.canceled(),
            compact_revision: from.compact_revision(),
            cancel_reason: from.cancel_reason().to_owned(),
            events: from.events().iter().map(event).collect(),
        }
    }
}

impl SentEvent {
    fn into_event(self) -> Option<Event> {
        let kv = self.kv?;
        Some(match self.kind {
            0 => Event::Put(kv),
            _ => Event::Delete {
                key: kv.key,
                mod_revision: kv.mod_revision,
            },
        })
    }
}

// === impl Small ===

impl<T, U> Codec for Small<T, U>
where
    T: prost::Message + Send + 'static,
    U: prost::Message + Default + Send + 'static,
{
    type Encode = T;
    type Decode = U;
    type Encoder = ProstEncoder<T>;
    type Decoder = ProstDecoder<U>;

    fn encoder(&mut self) -> Self::Encoder {
        ProstCodec::<T, U>::raw_encoder(BufferSettings::new(BUFFER, BUFFER))
    }

    fn decoder(&mut self) -> Self::Decoder {
        ProstCodec::<T, U>::raw_decoder(BufferSettings::new(BUFFER, BUFFER))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use prost::Message;

    #[test]
    fn messages_are_those_of_etcd() {
        // Header with cluster id 7 and revision 9; a deletion of `a` at revision 9, and a put of `b`.
        let bytes = b"\x0a\x06\x08\x07\x10\x01\x18\x09\x5a\x09\x08\x01\x12\x05\x0a\x01a\x18\x09\x5a\x0e\x12\x0c\x0a\x01b\x10\x03\x18\x09\x20\x02\x2a\x01v";
        let answer = Answer::decode(&bytes[..]).unwrap();
        assert_eq!(
            answer.header.map(|header| (header.cluster_id, header.revision)),
            Some((7, 9))
        );
        assert!(!answer.created && !answer.canceled);
        let events: Vec<_> = answer.events.into_iter().filter_map(SentEvent::into_event).collect();
        let put = KeyValue {
            key: b"b".to_vec(),
            value: b"v".to_vec(),
            create_revision: 3,
            mod_revision: 9,
            version: 2,
            lease: 0,
        };
        let delete = Event::Delete {
            key: b"a".to_vec(),
            mod_revision: 9,
        };
        assert_eq!(events, [delete, Event::Put(put)]);
        let create = Create {
            key: b"k".to_vec(),
            range_end: b"l".to_vec(),
            start_revision: 5,
            progress_notify: true,
        };
        let request = Request { create: Some(create) };
        assert_eq!(request.encode_to_vec(), b"\x0a\x0a\x0a\x01k\x12\x01l\x18\x05\x20\x01");
    }
}
