//! The client side of HTTP/2: a few calls on each of tens of thousands of connections that wait most of the time.
//!
//! A connection and everything that uses its calls run in one task, which [`Connection::drive`] polls: nobody has to be woken
//! but the task, and a connection that waits holds no buffer. Outside of `drive`, a call never gets further.

mod core;
#[cfg(test)]
mod tests;

use self::core::Core;
pub use self::core::Fields;
use super::connection::write;
use super::error::Violation;
use super::frame::{self, HEAD, Split};
use super::output::give_buffer;
use super::window::Window;
use bytes::Bytes;
use http::HeaderMap;
use parking_lot::Mutex;
use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncWrite};

/// Bytes that are read before the calls are polled.
const TURN: usize = 64 << 10;
/// How a TLS alert begins, which is how a port of TLS answers a plain client.
const TLS_ALERT: [u8; 2] = [0x15, 3];
const HTTP_1: &[u8] = b"HTTP/1";

/// Why a connection or a call ended.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the server closed the connection")]
    Closed,
    #[error("the server asks for TLS")]
    AsksForTls,
    #[error("the server does not speak HTTP/2")]
    NotHttp2,
    #[error("the server broke a rule of HTTP/2: {0}")]
    Violation(#[from] Violation),
    /// The server has said why it ends the connection; `reason` may be empty.
    #[error("the server ended the connection: {reason} (code {code} of HTTP/2)")]
    GoAway { code: u32, reason: String },
    #[error("the server reset the call (code {0} of HTTP/2)")]
    Reset(u32),
    #[error(transparent)]
    Io(io::Error),
}

impl From<io::Error> for Error {
    fn from(error: io::Error) -> Self {
        use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, UnexpectedEof};
        match error.kind() {
            BrokenPipe | ConnectionAborted | ConnectionReset | UnexpectedEof => Self::Closed,
            _ => Self::Io(error),
        }
    }
}

/// A connection.
#[derive(Debug)]
pub struct Connection<I> {
    io: I,
    core: Arc<Mutex<Core>>,
    /// The beginning of a frame that is not complete.
    rest: Vec<u8>,
    unflushed: bool,
}

/// Begins calls on a connection.
#[derive(Clone, Debug)]
pub struct Calls(Arc<Mutex<Core>>);

/// A call. Dropping it cancels it.
#[derive(Debug)]
pub struct Call {
    core: Arc<Mutex<Core>>,
    id: u32,
}

/// Begins HTTP/2 on `io`.
pub fn connect<I>(io: I) -> (Connection<I>, Calls) {
    let core = Arc::new(Mutex::new(Core::new()));
    let connection = Connection {
        io,
        core: Arc::clone(&core),
        rest: Vec::new(),
        unflushed: false,
    };
    (connection, Calls(core))
}

impl<I: AsyncRead + AsyncWrite + Unpin> Connection<I> {
    /// Runs `work`, which makes calls on this connection, until `work` ends or the connection does. While `paused` is set,
    /// nothing is read or written.
    pub async fn drive<T, E: From<Error>>(
        &mut self,
        paused: &AtomicBool,
        work: impl Future<Output = Result<T, E>>,
    ) -> Result<T, E> {
        let mut work = pin!(work);
        poll_fn(move |cx| {
            loop {
                let was_paused = paused.load(Relaxed);
                // First what can be received; `work` then finds it. What `work` sends is written afterwards.
                let received = if was_paused { Ok(()) } else { self.receive(cx) };
                if let Poll::Ready(done) = work.as_mut().poll(cx) {
                    return Poll::Ready(done);
                }
                if let Err(error) = received {
                    return Poll::Ready(Err(error.into()));
                }
                match (was_paused, paused.load(Relaxed)) {
                    (_, true) => return Poll::Pending,
                    (true, false) => {}
                    (false, false) => {
                        return match self.send(cx) {
                            Err(error) => Poll::Ready(Err(error.into())),
                            Ok(()) => Poll::Pending,
                        };
                    }
                }
            }
        })
        .await
    }

    /// Takes the frames that can be read now.
    fn receive(&mut self, cx: &mut Context<'_>) -> Result<(), Error> {
        let mut window = Window::new(&mut self.rest);
        let received = self.receive_into(&mut window, cx);
        window.close(&mut self.rest);
        received
    }

    fn receive_into(&mut self, window: &mut Window, cx: &mut Context<'_>) -> Result<(), Error> {
        let mut turn = 0;
        loop {
            let wanted = self.take_frames(window)?;
            if turn >= TURN {
                cx.waker().wake_by_ref();
                return Ok(());
            }
            let mut space = window.space(wanted);
            let polled = Pin::new(&mut self.io).poll_read(cx, &mut space);
            if polled.map_err(|error| self.ended(error.into()))?.is_pending() {
                return Ok(());
            }
            let read = space.filled().len();
            if read == 0 {
                return Err(self.ended(Error::Closed));
            }
            turn += read;
            window.filled(read);
        }
    }

    /// The end of a connection, with what the server has said about it.
    fn ended(&self, error: Error) -> Error {
        match error {
            Error::Closed => self.core.lock().closed(),
            other => other,
        }
    }

    /// Takes the complete frames of the window; returns the length of the next one as far as it is known.
    fn take_frames(&mut self, window: &mut Window) -> Result<usize, Error> {
        let mut core = self.core.lock();
        loop {
            if !core.greeted && window.bytes().starts_with(&TLS_ALERT) {
                return Err(Error::AsksForTls);
            }
            if !core.greeted && window.bytes().starts_with(HTTP_1) {
                return Err(Error::NotHttp2);
            }
            let (head, payload) = match frame::split(window.bytes())? {
                Split::Incomplete(length) => return Ok(length),
                Split::Frame { head, payload } => (head, payload),
            };
            let length = HEAD + payload.len();
            core.receive(head, payload)?;
            window.used(length);
        }
    }

    /// Writes what is to be sent, as far as the socket takes it.
    fn send(&mut self, cx: &mut Context<'_>) -> Result<(), Error> {
        let mut core = self.core.lock();
        loop {
            core.pump();
            match write(Pin::new(&mut self.io), &mut core.output, &mut self.unflushed, cx) {
                Poll::Ready(Err(error)) => {
                    drop(core);
                    // The server's last words may have come meanwhile.
                    self.receive(cx)?;
                    return Err(self.ended(error.into()));
                }
                Poll::Ready(Ok(())) if !core.has_more() => return Ok(()),
                Poll::Ready(Ok(())) => {}
                Poll::Pending => return Ok(()),
            }
        }
    }
}

impl Calls {
    /// Begins a call by POST.
    pub fn begin(&self, secure: bool, authority: &str, path: &str, headers: &HeaderMap) -> Result<Call, Error> {
        let id = self.0.lock().open(secure, authority, path, headers)?;
        Ok(Call {
            core: Arc::clone(&self.0),
            id,
        })
    }

    /// Sends a ping.
    pub fn ping(&self) {
        self.0.lock().ping();
    }

    /// Waits for the answer to a ping.
    pub async fn pong(&self) {
        poll_fn(|_| {
            let pongs = &mut self.0.lock().pongs;
            match pongs.checked_sub(1) {
                Some(left) => {
                    *pongs = left;
                    Poll::Ready(())
                }
                None => Poll::Pending,
            }
        })
        .await;
    }

    /// Whether the server has sent its settings, so that it speaks HTTP/2.
    pub fn has_answer(&self) -> bool {
        self.0.lock().greeted
    }
}

impl Call {
    /// Sends a part of the body, the last one if it `ends` the request.
    pub fn send(&self, bytes: Bytes, ends: bool) {
        self.core.lock().send(self.id, bytes, ends);
    }

    /// Waits for the headers of the answer.
    pub async fn head(&self) -> Result<Fields, Error> {
        poll_fn(|_| {
            self.core
                .lock()
                .head(self.id)
                .transpose()
                .map_or(Poll::Pending, Poll::Ready)
        })
        .await
    }

    /// Waits for bytes of the answer, and appends them to `buffer`; false at the end.
    pub async fn read(&self, buffer: &mut Vec<u8>) -> Result<bool, Error> {
        let taken = poll_fn(|_| match self.core.lock().take(self.id) {
            Ok(Some(taken)) if taken.is_empty() => Poll::Pending,
            taken => Poll::Ready(taken),
        });
        match taken.await? {
            Some(taken) if buffer.is_empty() => give_buffer(std::mem::replace(buffer, taken)),
            Some(taken) => {
                buffer.extend_from_slice(&taken);
                give_buffer(taken);
            }
            None => return Ok(false),
        }
        Ok(true)
    }

    /// What ended the answer, after its last byte.
    pub fn trailers(&self) -> Option<Fields> {
        self.core.lock().trailers(self.id)
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        self.core.lock().close(self.id);
    }
}

/// Gives a buffer of [`Call::read`] back for other calls of this thread.
pub fn give_back(buffer: &mut Vec<u8>) {
    give_buffer(std::mem::take(buffer));
}
