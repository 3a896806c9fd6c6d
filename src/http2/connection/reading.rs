//! Reads frames and passes them on.

use super::Connection;
use crate::http2::error::Error;
use crate::http2::frame::{self, HEAD, PAYLOAD_MAX, Split};
use crate::http2::inbound::RequestStream;
use bytes::Bytes;
use http::{Request, Response};
use http_body::Body;
use std::cell::Cell;
use std::pin::Pin;
use std::task::Context;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Bytes that are read at once. Frames in them may be small, and much work.
const READ: usize = 8 << 10;
/// Bytes that are read in a turn of the connection. Then others of the thread go first.
const TURN: usize = 16 << 10;

thread_local! {
    /// The buffer that the connections of a thread read into, one after another.
    static BUFFER: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// What a turn has received.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Received {
    Nothing,
    Some,
    /// The client will send nothing more.
    End,
}

/// A place in the buffer of the thread.
struct Window {
    buffer: Vec<u8>,
    from: usize,
    to: usize,
}

impl Window {
    /// A window that begins with `rest`.
    fn new(rest: &mut Vec<u8>) -> Self {
        let mut buffer = BUFFER.take();
        // A frame, or the beginning of one and a read.
        buffer.resize(HEAD + PAYLOAD_MAX + READ, 0);
        let to = rest.len();
        match buffer.get_mut(..to) {
            Some(beginning) => beginning.copy_from_slice(rest),
            None => buffer = [&rest[..], &[0; READ]].concat(),
        }
        rest.clear();
        Self { buffer, from: 0, to }
    }

    fn bytes(&self) -> &[u8] {
        &self.buffer[self.from..self.to]
    }

    /// Space for a read, when a frame of `wanted` bytes is being read.
    fn space(&mut self, wanted: usize) -> ReadBuf<'_> {
        if self.from > 0 {
            self.buffer.copy_within(self.from..self.to, 0);
            (self.from, self.to) = (0, self.to - self.from);
        }
        let end = wanted.max(self.to + READ).min(self.buffer.len());
        ReadBuf::new(&mut self.buffer[self.to..end])
    }

    /// Gives the buffer back. What was not used is the next beginning.
    fn close(self, rest: &mut Vec<u8>) {
        match self.bytes() {
            [] => *rest = Vec::new(),
            bytes => rest.extend_from_slice(bytes),
        }
        BUFFER.set(self.buffer);
    }
}

impl<I, S, F, B> Connection<I, S, F, B>
where
    I: AsyncRead + AsyncWrite + Unpin,
    S: Fn(Request<RequestStream>) -> F,
    F: Future<Output = Response<B>>,
    B: Body<Data = Bytes> + Unpin,
{
    /// Takes the frames that can be read now, as long as the output has room for what they cause.
    pub(super) fn receive(&mut self, cx: &mut Context<'_>) -> Result<Received, Error> {
        let mut window = Window::new(&mut self.rest);
        let received = self.receive_into(&mut window, cx);
        window.close(&mut self.rest);
        received
    }

    fn receive_into(&mut self, window: &mut Window, cx: &mut Context<'_>) -> Result<Received, Error> {
        let (mut turn, mut received) = (0, Received::Nothing);
        loop {
            let Some(wanted) = self.take_frames(window)? else {
                return Ok(received);
            };
            if turn >= TURN {
                cx.waker().wake_by_ref();
                return Ok(received);
            }
            let mut space = window.space(wanted);
            if Pin::new(&mut self.io).poll_read(cx, &mut space)?.is_pending() {
                return Ok(received);
            }
            let read = space.filled().len();
            if read == 0 {
                return Ok(Received::End);
            }
            received = Received::Some;
            turn += read;
            window.to += read;
        }
    }

    /// Takes the complete frames of the window. Returns the length of the next one as far as it is known, or `None` if the
    /// output is full.
    fn take_frames(&mut self, window: &mut Window) -> Result<Option<usize>, Error> {
        self.suspended = false;
        while self.core.may_receive() {
            let (head, payload) = match frame::split(window.bytes())? {
                Split::Incomplete(length) => return Ok(Some(length)),
                Split::Frame { head, payload } => (head, payload),
            };
            let length = HEAD + payload.len();
            let event = self.core.receive(head, payload)?;
            self.calls.take(event, &mut self.core, &self.service);
            window.from += length;
        }
        self.suspended = true;
        Ok(None)
    }
}
