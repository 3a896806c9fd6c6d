//! Messages that are passed on as bytes.

use bytes::{Buf, BufMut, Bytes};
use prost::Message;
use std::marker::PhantomData;
use tonic::Status;
use tonic::codec::{BufferSettings, Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};

/// Bytes that a call reserves for messages before there is one. As in [`crate::pb::Codec`].
const BUFFER: usize = 512;
/// Bytes of messages after which an answer is handed to the transport.
const YIELD: usize = 32 << 10;

/// An answer: upstream's, or one that was made here.
pub(super) enum Reply<T> {
    Passed(Bytes),
    Made(T),
}

/// Requests as bytes, answers as [`Reply`].
pub(super) struct Raw<T>(PhantomData<T>);

/// Encodes answers, each into memory of its exact size.
pub(super) struct RawEncoder<T>(PhantomData<T>);

/// Takes each message as it is.
pub(super) struct RawDecoder;

impl<T> Default for Raw<T> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<T: Message + Send + 'static> Codec for Raw<T> {
    type Encode = Reply<T>;
    type Decode = Bytes;
    type Encoder = RawEncoder<T>;
    type Decoder = RawDecoder;

    fn encoder(&mut self) -> RawEncoder<T> {
        RawEncoder(PhantomData)
    }

    fn decoder(&mut self) -> RawDecoder {
        RawDecoder
    }
}

impl<T: Message> Encoder for RawEncoder<T> {
    type Item = Reply<T>;
    type Error = Status;

    fn encode(&mut self, item: Reply<T>, buf: &mut EncodeBuf<'_>) -> Result<(), Status> {
        match item {
            Reply::Passed(bytes) => {
                buf.reserve(bytes.len());
                buf.put(bytes);
            }
            Reply::Made(message) => {
                buf.reserve(message.encoded_len());
                message.encode_raw(buf);
            }
        }
        Ok(())
    }

    fn buffer_settings(&self) -> BufferSettings {
        BufferSettings::new(BUFFER, YIELD)
    }
}

impl Decoder for RawDecoder {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, buf: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(buf.copy_to_bytes(buf.remaining())))
    }

    fn buffer_settings(&self) -> BufferSettings {
        BufferSettings::new(BUFFER, YIELD)
    }
}
