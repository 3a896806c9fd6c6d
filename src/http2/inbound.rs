//! The body of a request, between the connection that receives it and the call that reads it.

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};
use parking_lot::Mutex;
use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

/// A received payload up to this length is appended to one that waits. A client that sends single bytes makes the server
/// hold bytes, and not a structure for each.
const APPENDED: usize = 4 << 10;

/// Why a body ended before its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BodyError {
    #[error("the call was cancelled")]
    Cancelled,
    #[error("the request is malformed")]
    Malformed,
    #[error("the connection ended")]
    ConnectionEnded,
}

/// What was received of a body and has not been read.
#[derive(Debug)]
pub(super) struct Inbound {
    state: Mutex<State>,
    /// Wakes the stream in its connection.
    stream: Waker,
    /// Bytes after which the stream is woken to give the client more window.
    window: u32,
}

#[derive(Debug, Default)]
struct State {
    pieces: VecDeque<Bytes>,
    /// Small payloads behind `pieces`.
    tail: Vec<u8>,
    trailers: Option<HeaderMap>,
    end: Option<Result<(), BodyError>>,
    /// Bytes that were read and not yet taken by [`Inbound::take_read`].
    read: u32,
    reader: Option<Waker>,
    /// Nobody will read.
    dropped: bool,
}

impl State {
    fn pop(&mut self) -> Option<Bytes> {
        let piece = self.pieces.pop_front().or_else(|| match self.tail.is_empty() {
            true => None,
            false => Some(std::mem::take(&mut self.tail).into()),
        });
        self.read += piece.as_ref().map_or(0, |piece| piece.len() as u32);
        piece
    }

    /// Drops what nobody will read.
    fn clear(&mut self) {
        while self.pop().is_some() {}
        self.pieces = VecDeque::new();
        self.trailers = None;
    }

    fn is_finished(&self) -> bool {
        self.end.is_some() && self.pieces.is_empty() && self.tail.is_empty() && self.trailers.is_none()
    }
}

impl Inbound {
    pub fn new(stream: Waker, window: u32) -> Arc<Self> {
        Arc::new(Self {
            state: Mutex::default(),
            stream,
            window,
        })
    }

    /// Adds received bytes, unless nobody will read them.
    pub fn push(&self, data: &[u8]) {
        if data.is_empty() {
            return;
        }
        let mut state = self.state.lock();
        if state.dropped {
            state.read += data.len() as u32;
            return;
        }
        if data.len() > APPENDED {
            if !state.tail.is_empty() {
                let tail = std::mem::take(&mut state.tail);
                state.pieces.push_back(tail.into());
            }
            state.pieces.push_back(Bytes::copy_from_slice(data));
        } else if state.tail.is_empty() {
            state.tail = data.to_vec();
        } else {
            state.tail.extend_from_slice(data);
        }
        wake(state);
    }

    /// Notes the end of the body.
    pub fn end(&self, trailers: Option<HeaderMap>) {
        let mut state = self.state.lock();
        if state.end.is_none() {
            state.end = Some(Ok(()));
            state.trailers = trailers.filter(|_| !state.dropped);
        }
        wake(state);
    }

    /// Ends the body with an error. What was not read is dropped.
    pub fn fail(&self, error: BodyError) {
        let mut state = self.state.lock();
        if !matches!(state.end, Some(Ok(()))) {
            state.clear();
            state.end = Some(Err(error));
        }
        wake(state);
    }

    /// Takes the number of bytes that were read, or dropped, since the last call.
    pub fn take_read(&self) -> u32 {
        std::mem::take(&mut self.state.lock().read)
    }

    /// Whether nobody will read.
    pub fn is_dropped(&self) -> bool {
        self.state.lock().dropped
    }
}

/// Wakes the reader.
fn wake(mut state: parking_lot::MutexGuard<'_, State>) {
    let reader = state.reader.take();
    drop(state);
    if let Some(reader) = reader {
        reader.wake();
    }
}

/// The body of a request.
#[derive(Debug)]
pub struct RequestStream {
    /// `None` if the request has no body.
    inbound: Option<Arc<Inbound>>,
    /// Bytes that are still expected, if the request says so.
    length: Option<u64>,
}

impl RequestStream {
    pub(super) fn new(inbound: Option<Arc<Inbound>>, length: Option<u64>) -> Self {
        Self { inbound, length }
    }
}

impl Body for RequestStream {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = &mut *self;
        let Some(inbound) = &this.inbound else {
            return Poll::Ready(None);
        };
        let mut state = inbound.state.lock();
        if let Some(piece) = state.pop() {
            // The connection looks by itself after it has polled the stream; the body may be read elsewhere.
            let news = state.read >= inbound.window / 2 && state.end.is_none();
            drop(state);
            if news {
                inbound.stream.wake_by_ref();
            }
            this.length = this.length.map(|length| length.saturating_sub(piece.len() as u64));
            return Poll::Ready(Some(Ok(Frame::data(piece))));
        }
        if let Some(trailers) = state.trailers.take() {
            return Poll::Ready(Some(Ok(Frame::trailers(trailers))));
        }
        match state.end {
            Some(Ok(())) => Poll::Ready(None),
            Some(Err(error)) => Poll::Ready(Some(Err(error))),
            None => {
                if !state.reader.as_ref().is_some_and(|reader| reader.will_wake(cx.waker())) {
                    state.reader = Some(cx.waker().clone());
                }
                Poll::Pending
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        let Some(inbound) = &self.inbound else { return true };
        let state = inbound.state.lock();
        state.is_finished() && state.end == Some(Ok(()))
    }

    fn size_hint(&self) -> SizeHint {
        match (&self.inbound, self.length) {
            (None, _) => SizeHint::with_exact(0),
            (Some(_), Some(length)) => SizeHint::with_exact(length),
            (Some(_), None) => SizeHint::default(),
        }
    }
}

impl Drop for RequestStream {
    fn drop(&mut self) {
        let Some(inbound) = &self.inbound else { return };
        let mut state = inbound.state.lock();
        state.dropped = true;
        state.reader = None;
        let news = !state.is_finished();
        state.clear();
        drop(state);
        if news {
            inbound.stream.wake_by_ref();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::task::noop_waker;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::Wake;

    #[derive(Default)]
    struct Count(AtomicUsize);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn pair(length: Option<u64>) -> (Arc<Inbound>, RequestStream, Arc<Count>) {
        let count = Arc::new(Count::default());
        let inbound = Inbound::new(Arc::clone(&count).into(), 1000);
        let stream = RequestStream::new(Some(Arc::clone(&inbound)), length);
        (inbound, stream, count)
    }

    fn next(stream: &mut RequestStream) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        Pin::new(stream).poll_frame(&mut Context::from_waker(&noop_waker()))
    }

    fn data(stream: &mut RequestStream) -> Bytes {
        match next(stream) {
            Poll::Ready(Some(Ok(frame))) => frame.into_data().unwrap(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn small_payloads_are_read_together_and_in_order() {
        let (inbound, mut stream, _) = pair(None);
        let long = vec![7; APPENDED + 1];
        for piece in [&b"a"[..], b"b", &long, b"c", b"", b"d"] {
            inbound.push(piece);
        }
        inbound.end(Some(HeaderMap::new()));
        assert_eq!(data(&mut stream), "ab");
        assert_eq!(data(&mut stream), long);
        assert_eq!(data(&mut stream), "cd");
        assert_eq!(inbound.take_read(), long.len() as u32 + 4);
        assert!(!stream.is_end_stream());
        assert!(matches!(next(&mut stream), Poll::Ready(Some(Ok(frame))) if frame.is_trailers()));
        assert!(stream.is_end_stream());
        assert!(matches!(next(&mut stream), Poll::Ready(None)));
    }

    #[test]
    fn the_connection_hears_of_read_bytes_and_of_a_dropped_body() {
        let (inbound, mut stream, woken) = pair(Some(1500));
        let woken = || woken.0.load(Ordering::Relaxed);
        inbound.push(&[1; 400]);
        data(&mut stream);
        assert_eq!((woken(), stream.size_hint().exact()), (0, Some(1100)));
        inbound.push(&[1; 100]);
        data(&mut stream);
        assert_eq!((woken(), inbound.take_read()), (1, 500));
        inbound.push(&[1; 30]);
        drop(stream);
        assert_eq!((woken(), inbound.take_read()), (2, 30));
        inbound.push(&[1; 20]);
        assert_eq!(inbound.take_read(), 20, "nobody will read");
    }

    #[test]
    fn a_body_that_was_read_to_its_end_is_dropped_in_silence() {
        let (inbound, mut stream, woken) = pair(None);
        inbound.push(b"a");
        inbound.end(None);
        data(&mut stream);
        drop(stream);
        assert_eq!(woken.0.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn a_failed_body_drops_what_was_not_read() {
        let (inbound, mut stream, _) = pair(None);
        inbound.push(b"a");
        inbound.fail(BodyError::Cancelled);
        assert_eq!(inbound.take_read(), 1);
        let error = |stream| matches!(next(stream), Poll::Ready(Some(Err(BodyError::Cancelled))));
        assert!(error(&mut stream));
        let (inbound, mut stream, _) = pair(None);
        inbound.end(None);
        inbound.fail(BodyError::Cancelled);
        assert!(matches!(next(&mut stream), Poll::Ready(None)), "the end came first");
    }

    #[test]
    fn a_reader_that_waits_is_woken() {
        let (inbound, mut stream, _) = pair(None);
        let reader = Arc::new(Count::default());
        let waker = Arc::clone(&reader).into();
        let mut cx = Context::from_waker(&waker);
        assert!(Pin::new(&mut stream).poll_frame(&mut cx).is_pending());
        inbound.push(b"a");
        inbound.push(b"b");
        assert_eq!(reader.0.load(Ordering::Relaxed), 1);
    }
}
