//! The messages of a watch stream as a body. Watchers that send the same long events pass the same bytes on.

use super::WatchSession;
use crate::pb::WatchResponse;
use crate::server::frames;
use crate::server::own_body::trailers;
use axum::body::{Bytes, HttpBody};
use http_body::{Frame, SizeHint};
use prost::Message;
use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tokio_stream::Stream;
use tonic::Status;

/// Events up to this length, in bytes, are copied behind the head of their message: a frame more would cost more.
const COPIED: usize = 4 << 10;

/// The body of a watch stream.
pub(super) struct WatchAnswer {
    responses: Pin<Box<dyn Stream<Item = Result<WatchResponse, Status>> + Send>>,
    /// The events of the message whose head was sent; else empty.
    events: Bytes,
    over: bool,
}

impl WatchAnswer {
    pub(super) fn new(mut session: WatchSession) -> Self {
        let responses = async_stream::stream! {
            while let Some(response) = session.next().await {
                yield response;
            }
        };
        Self {
            responses: Box::pin(responses),
            events: Bytes::new(),
            over: false,
        }
    }

    /// The beginning of a message, and the rest.
    fn encode(WatchResponse { head, mut events }: WatchResponse) -> (Bytes, Bytes) {
        let head_len = head.encoded_len();
        let events_len = events.iter().map(Bytes::len).sum::<usize>();
        let rest = match &mut events[..] {
            [events] if events_len > COPIED => std::mem::take(events),
            _ => Bytes::new(),
        };
        let length = head_len + events_len;
        let mut message = frames::begin(length, length - rest.len());
        head.encode_raw(&mut message);
        events.iter().for_each(|events| message.extend_from_slice(events));
        (message.into(), rest)
    }
}

impl HttpBody for WatchAnswer {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if self.over {
            return Poll::Ready(None);
        }
        if !self.events.is_empty() {
            return Poll::Ready(Some(Ok(Frame::data(std::mem::take(&mut self.events)))));
        }
        let status = match ready!(self.responses.as_mut().poll_next(cx)) {
            Some(Ok(response)) => {
                let (message, events) = Self::encode(response);
                self.events = events;
                return Poll::Ready(Some(Ok(Frame::data(message))));
            }
            Some(Err(status)) => status,
            None => Status::ok(""),
        };
        self.over = true;
        Poll::Ready(Some(Ok(Frame::trailers(trailers(status)))))
    }

    fn size_hint(&self) -> SizeHint {
        let mut hint = SizeHint::new();
        hint.set_lower(self.events.len() as u64);
        hint
    }

    fn is_end_stream(&self) -> bool {
        self.over
    }
}
