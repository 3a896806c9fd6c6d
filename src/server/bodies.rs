//! The bodies of calls, within the budgets of their connection.
//!
//! A request message takes its whole length from the connection's budget before its first byte is passed on, so that
//! messages that have begun can always be completed. An answer is produced while the connection's answers are within
//! their budget; a single long one is handed to the transport in pieces, so that progress can be seen.

use super::connection::{Length, OpenCall, UNIT};
use super::frames::Frames;
use super::own_body::trailers;
use super::peer::Peer;
use super::refusals::{Budget, Refusals};
use super::status;
use axum::body::{Body, Bytes, HttpBody};
use http_body::Frame;
use parking_lot::Mutex;
use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Sleep;
use tokio_util::sync::PollSemaphore;

/// Request messages and pieces of answers up to this length are not counted: the number of calls of a connection bounds
/// those that wait for the client, and the transport bounds what it has taken.
const SMALL: usize = 4 << 10;
/// Bytes that a frame takes in the transport, beside its own.
const FRAME: usize = 256;
/// Request bodies of a connection that may wait for the budget. The rest of a waiting body fills the window of the
/// connection, which the bodies that have begun need as well.
const WAITING_MAX: usize = 48;
/// Answers are handed to the transport in pieces of at most this many bytes.
const PIECE: usize = 64 << 10;

/// What is held until the transport has been given all of an answer; attached to a response as an extension.
#[derive(Clone)]
pub(super) struct Held(#[allow(dead_code, reason = "held, not read")] pub(super) Arc<Vec<OwnedSemaphorePermit>>);

/// A call with everything that it holds of its connection's budgets.
pub(super) struct Budgeted {
    call: OpenCall,
    /// The bytes of requests.
    requests: Mutex<Vec<OwnedSemaphorePermit>>,
}

/// The limits of a request body.
pub(super) struct RequestLimits {
    pub(super) timeout: Duration,
    /// Whether the client sends many messages, one at a time.
    pub(super) streaming: bool,
    /// Whether the body consists of gRPC messages. Any other body is counted by its bytes.
    pub(super) grpc: bool,
}

/// A request body.
pub(super) struct RequestBody {
    inner: Body,
    call: Arc<Budgeted>,
    limits: RequestLimits,
    peer: Peer,
    refusals: Arc<Refusals>,
    budget: PollSemaphore,
    frames: Frames,
    /// Units of the budget that a stream of messages has taken.
    taken: u32,
    /// A frame that waits until the budget has room for the messages that begin in the frame.
    waiting: Option<Waiting>,
    /// Ends the call if a long message stays incomplete.
    deadline: Option<Pin<Box<Sleep>>>,
}

struct Waiting {
    frame: Frame<Bytes>,
    units: u32,
    _count: WaitingCount,
}

/// Counts a waiting body of a connection until it is dropped.
struct WaitingCount(Arc<Budgeted>);

impl WaitingCount {
    fn begin(call: &Arc<Budgeted>) -> Option<Self> {
        let waiting = &call.call.connection().requests_waiting;
        let fits = |n: usize| (n < WAITING_MAX).then_some(n + 1);
        let counted = waiting.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits);
        counted.ok().map(|_| Self(Arc::clone(call)))
    }
}

impl Drop for WaitingCount {
    fn drop(&mut self) {
        self.0
            .call
            .connection()
            .requests_waiting
            .fetch_sub(1, Ordering::Relaxed);
    }
}

/// Whether an answer ends by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Span {
    Finite,
    /// Messages of gRPC until one side has enough: a watch. The answer ends with an error when the connection is ending, so
    /// that the client goes on with another one.
    Endless,
    /// The same as a document of the JSON gateway, which just ends.
    EndlessDocument,
}

/// An answer body.
pub(super) struct AnswerBody {
    inner: Body,
    span: Span,
    call: Arc<Budgeted>,
    /// The rest of a long frame.
    rest: VecDeque<Bytes>,
    urgent: bool,
    held: Option<Held>,
    /// Bytes that count as held, because their body has announced them, and have not been produced yet.
    announced: usize,
}

/// A part of an answer, which counts as held by the connection until the transport has written and dropped the part.
struct Piece {
    bytes: Bytes,
    counted: usize,
    length: Length,
    call: Arc<Budgeted>,
}

impl AsRef<[u8]> for Piece {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Piece {
    fn drop(&mut self) {
        self.call.call.connection().answers.release(self.counted, self.length);
    }
}

impl Budgeted {
    pub(super) fn new(call: OpenCall) -> Arc<Self> {
        Arc::new(Self {
            call,
            requests: Mutex::default(),
        })
    }
}

// === impl RequestBody ===

impl RequestBody {
    pub(super) fn new(
        inner: Body,
        call: Arc<Budgeted>,
        limits: RequestLimits,
        peer: Peer,
        refusals: Arc<Refusals>,
    ) -> Self {
        let budget = PollSemaphore::new(Arc::clone(&call.call.connection().requests));
        Self {
            inner,
            call,
            limits,
            peer,
            refusals,
            budget,
            frames: Frames::default(),
            taken: 0,
            waiting: None,
            deadline: None,
        }
    }

    /// The units of the budget that the messages which begin in `data` take.
    fn units(&mut self, data: &[u8]) -> u32 {
        let mut bytes = 0;
        match self.limits.grpc {
            true => self.frames.read(data, |len| bytes += if len > SMALL { len } else { 0 }),
            false => bytes = data.len(),
        }
        let units = u32::try_from(bytes.div_ceil(UNIT)).unwrap_or(u32::MAX);
        units.min(self.call.call.connection().request_units)
    }

    /// Ready at the deadline, which `budget` is noted for.
    fn poll_deadline(&mut self, cx: &mut Context<'_>, budget: Budget) -> Poll<()> {
        let Some(deadline) = &mut self.deadline else {
            return Poll::Pending;
        };
        ready!(deadline.as_mut().poll(cx));
        self.refusals.note(budget, &self.peer);
        Poll::Ready(())
    }
}

impl HttpBody for RequestBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let this = &mut *self;
        if this.waiting.is_none() {
            if this.limits.grpc && this.frames.is_between() {
                this.deadline = None;
            }
            let frame = match Pin::new(&mut this.inner).poll_frame(cx) {
                Poll::Ready(Some(Ok(frame))) => frame,
                Poll::Pending if this.poll_deadline(cx, Budget::Request).is_ready() => {
                    return Poll::Ready(Some(Err(axum::Error::new(status::incomplete_request()))));
                }
                other => return other,
            };
            let mut units = frame.data_ref().cloned().map_or(0, |data| this.units(&data));
            if this.limits.streaming {
                // The next message reuses the memory of the last one, which stays allocated in between.
                let more = units.saturating_sub(this.taken);
                this.taken += more;
                units = more;
            }
            if units == 0 {
                return Poll::Ready(Some(Ok(frame)));
            }
            if this.limits.grpc || !this.limits.streaming {
                let timeout = this.limits.timeout;
                this.deadline
                    .get_or_insert_with(|| Box::pin(tokio::time::sleep(timeout)));
            }
            if let Ok(permit) = this.budget.clone_inner().try_acquire_many_owned(units) {
                this.call.requests.lock().push(permit);
                return Poll::Ready(Some(Ok(frame)));
            }
            let Some(count) = WaitingCount::begin(&this.call) else {
                this.refusals.note(Budget::WaitingRequests, &this.peer);
                return Poll::Ready(Some(Err(axum::Error::new(status::too_many_requests()))));
            };
            this.waiting = Some(Waiting {
                frame,
                units,
                _count: count,
            });
        }
        if let Some(waiting) = &this.waiting {
            match this.budget.poll_acquire_many(cx, waiting.units) {
                Poll::Ready(permit) => this.call.requests.lock().extend(permit),
                Poll::Pending if this.poll_deadline(cx, Budget::WaitingRequests).is_ready() => {
                    return Poll::Ready(Some(Err(axum::Error::new(status::too_many_requests()))));
                }
                Poll::Pending => return Poll::Pending,
            }
        }
        Poll::Ready(this.waiting.take().map(|waiting| Ok(waiting.frame)))
    }

    fn is_end_stream(&self) -> bool {
        self.waiting.is_none() && self.inner.is_end_stream()
    }

    fn size_hint(&self) -> http_body::SizeHint {
        self.inner.size_hint()
    }
}

// === impl AnswerBody ===

impl AnswerBody {
    pub(super) fn new(inner: Body, call: Arc<Budgeted>, span: Span, urgent: bool, held: Option<Held>) -> Self {
        Self {
            inner,
            span,
            call,
            rest: VecDeque::new(),
            urgent,
            held,
            announced: 0,
        }
    }

    /// Ends an answer that would not end by itself. What the client has not had comes with another connection.
    fn end(&mut self) -> Option<Result<Frame<Bytes>, axum::Error>> {
        self.inner = Body::empty();
        match std::mem::replace(&mut self.span, Span::Finite) {
            Span::Finite | Span::EndlessDocument => None,
            Span::Endless => Some(Ok(Frame::trailers(trailers(status::stopped())))),
        }
    }

    /// Cuts a frame into pieces, all of which count as held, and so does what the body has announced: a client that takes
    /// the pieces slowly is slow, although the pieces are produced as it takes them.
    fn cut(&mut self, mut data: Bytes) {
        let length = match self.held {
            Some(_) => Length::Long,
            None => Length::Usual,
        };
        let answers = &self.call.call.connection().answers;
        if length == Length::Long && self.announced == 0 {
            let rest = usize::try_from(self.inner.size_hint().lower()).unwrap_or(usize::MAX);
            self.announced = data.len() + rest;
            answers.hold(self.announced, length);
        }
        while !data.is_empty() {
            let bytes = data.split_to(PIECE.min(data.len()));
            let counted = bytes.len() + FRAME;
            let announced = bytes.len().min(self.announced);
            self.announced -= announced;
            answers.hold(counted - announced, length);
            let piece = Piece {
                bytes,
                counted,
                length,
                call: Arc::clone(&self.call),
            };
            self.rest.push_back(Bytes::from_owner(piece));
        }
    }
}

impl Drop for AnswerBody {
    fn drop(&mut self) {
        if self.announced > 0 {
            let answers = &self.call.call.connection().answers;
            answers.release(self.announced, Length::Long);
        }
    }
}

impl HttpBody for AnswerBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let this = &mut *self;
        if this.rest.is_empty() {
            // A message is not cut off: see `OwnBody`.
            let between = this.inner.size_hint().lower() == 0;
            if this.span != Span::Finite && between && this.call.call.connection().is_moving() {
                return Poll::Ready(this.end());
            }
            if !this.urgent {
                ready!(this.call.call.connection().answers.poll_room(cx));
            }
            let frame = ready!(Pin::new(&mut this.inner).poll_frame(cx));
            let data = match frame.map(|frame| frame.map(Frame::into_data)) {
                Some(Ok(Ok(data))) if data.len() > SMALL => data,
                Some(Ok(Ok(data))) => return Poll::Ready(Some(Ok(Frame::data(data)))),
                Some(Ok(Err(trailers))) => return Poll::Ready(Some(Ok(trailers))),
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                None => return Poll::Ready(None),
            };
            this.cut(data);
        }
        Poll::Ready(this.rest.pop_front().map(|piece| Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.inner.is_end_stream()
    }
}
