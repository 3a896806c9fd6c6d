//! Reads frames and passes them on.

use super::Connection;
use crate::http2::error::Error;
use crate::http2::frame::{self, HEAD, Split};
use crate::http2::inbound::RequestStream;
use crate::http2::window::Window;
use bytes::Bytes;
use http::{Request, Response};
use http_body::Body;
use std::pin::Pin;
use std::task::Context;
use tokio::io::{AsyncRead, AsyncWrite};

/// Bytes that are read in a turn of the connection. Then others of the thread go first.
const TURN: usize = 16 << 10;

/// What a turn has received.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Received {
    Nothing,
    Some,
    /// The client will send nothing more.
    End,
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
            window.filled(read);
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
            window.used(length);
        }
        self.suspended = true;
        Ok(None)
    }
}
