//! Long lists as answers: key-values are encoded as the client takes them.
//!
//! An answer that is encoded as a whole takes its length in memory, which has to be written and read again. A piece is
//! still in the processor's cache when it is written to the socket, and its key-values are released one by one.

use super::frames;
use super::own_body::trailers;
use crate::mvcc::{Kv, RangeResult, put_varint, varint_len};
use crate::pb::etcdserverpb as pb;
use axum::body::{Bytes, HttpBody};
use http_body::{Frame, SizeHint};
use prost::Message;
use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};
use tonic::Status;

/// Bytes of a piece. Key-values are not cut.
const PIECE: usize = 64 << 10;
/// The field `kvs` of a `RangeResponse`.
const KVS: u8 = 2 << 3 | 2;

/// The body of an answer: one gRPC message with a list, then the trailers.
pub(super) struct List {
    /// What was encoded and not sent: the beginning of the message.
    ready: Vec<u8>,
    kvs: std::vec::IntoIter<Kv>,
    /// The fields behind the key-values.
    tail: Vec<u8>,
    /// Bytes that were not sent.
    left: usize,
    /// Whether the trailers were sent.
    over: bool,
}

impl List {
    /// The answer to a range read.
    pub(super) fn new(header: pb::ResponseHeader, result: RangeResult) -> Self {
        let RangeResult { kvs, count, more, .. } = result;
        let head = pb::RangeResponse {
            header: Some(header),
            ..pb::RangeResponse::default()
        };
        let tail = pb::RangeResponse {
            more,
            count: count as i64,
            ..pb::RangeResponse::default()
        };
        let tail = tail.encode_to_vec();
        let list = kvs.iter().map(|kv| field_len(kv.as_bytes().len())).sum::<usize>();
        let length = head.encoded_len() + list + tail.len();
        let mut ready = frames::begin(length, head.encoded_len());
        let left = ready.len() + length;
        // A Vec grows as it is written to.
        head.encode_raw(&mut ready);
        Self {
            ready,
            kvs: kvs.into_iter(),
            tail,
            left,
            over: false,
        }
    }

    /// Encodes the next piece; empty at the end.
    fn piece(&mut self) -> Vec<u8> {
        let mut piece = std::mem::take(&mut self.ready);
        piece.reserve_exact(PIECE.min(self.left).saturating_sub(piece.len()));
        while piece.len() < PIECE {
            let Some(next) = self.kvs.as_slice().first().map(|kv| kv.as_bytes().len()) else {
                piece.append(&mut self.tail);
                break;
            };
            if !piece.is_empty() && piece.len() + field_len(next) > PIECE {
                break;
            }
            let Some(kv) = self.kvs.next() else { break };
            piece.push(KVS);
            put_varint(&mut piece, next as u64);
            piece.extend_from_slice(kv.as_bytes());
        }
        self.left -= piece.len();
        piece
    }
}

fn field_len(len: usize) -> usize {
    1 + varint_len(len as u64) + len
}

impl HttpBody for List {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if self.over {
            return Poll::Ready(None);
        }
        let piece = self.piece();
        if !piece.is_empty() {
            return Poll::Ready(Some(Ok(Frame::data(piece.into()))));
        }
        self.over = true;
        Poll::Ready(Some(Ok(Frame::trailers(trailers(Status::ok(""))))))
    }

    /// The bytes that were not sent. The number is exact, but an exact one would add a header.
    fn size_hint(&self) -> SizeHint {
        let mut hint = SizeHint::new();
        hint.set_lower(self.left as u64);
        hint
    }

    fn is_end_stream(&self) -> bool {
        self.over
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mvcc::Fields;
    use crate::server::own_body::OwnBody;
    use axum::body::Body;
    use axum::response::Response;
    use http_body_util::BodyExt;

    fn result(kvs: impl Iterator<Item = usize>) -> RangeResult {
        let kv = |(at, bytes): (usize, usize)| {
            Kv::new(&Fields {
                key: format!("k{at:04}").as_bytes(),
                create_revision: 2,
                mod_revision: 3,
                version: 1,
                value: &vec![at as u8; bytes],
                lease: 0,
            })
        };
        let kvs: Vec<Kv> = kvs.enumerate().map(kv).collect();
        RangeResult {
            count: kvs.len() + 7,
            more: true,
            revision: 9,
            kvs,
        }
    }

    #[tokio::test]
    async fn a_list_in_pieces_is_the_message_as_a_whole() {
        let header = pb::ResponseHeader {
            revision: 9,
            ..pb::ResponseHeader::default()
        };
        for sizes in [vec![], vec![300; 1000], vec![0, PIECE * 3, 5, PIECE - 40, 1]] {
            let result = result(sizes.into_iter());
            let whole = pb::RangeResponse {
                header: Some(header),
                kvs: result.kvs.iter().cloned().map(Into::into).collect(),
                more: true,
                count: result.count as i64,
            };
            let mut response = Response::new(Body::empty());
            response
                .extensions_mut()
                .insert(OwnBody::new(List::new(header, result)));
            let mut body = OwnBody::take(response).into_body();
            let whole = whole.encode_to_vec();
            let mut sent: Vec<u8> = Vec::new();
            loop {
                assert_eq!(body.size_hint().lower() as usize, whole.len() + 5 - sent.len());
                match body.frame().await.unwrap().unwrap().into_data() {
                    Ok(data) => {
                        // A key-value that is longer than a piece is one, and so is what ends the message.
                        assert!((1..=PIECE + 16).contains(&data.len()) || data.len() > PIECE * 3);
                        sent.extend_from_slice(&data);
                    }
                    Err(trailers) => {
                        assert_eq!(trailers.trailers_ref().unwrap()["grpc-status"], "0");
                        break;
                    }
                }
            }
            assert_eq!(sent[..5], [&[0][..], &(whole.len() as u32).to_be_bytes()].concat());
            assert!(sent[5..] == whole);
            assert!(body.frame().await.is_none());
        }
    }
}
