//! A connection as one task: it reads frames, polls the calls that were woken, and writes everything that is ready at once.

mod calls;
mod late;
mod liveness;
mod reading;
#[cfg(test)]
mod tests;

use super::config::Config;
use super::core::Core;
use super::error::{Error, Violation};
use super::inbound::RequestStream;
use super::output::{Output, PIECES};
use bytes::Bytes;
use calls::Calls;
use http::{Request, Response};
use http_body::Body;
use late::LateAnswer;
use liveness::Liveness;
use reading::Received;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};

/// Polls of calls in a turn of the connection. Then others of the thread go first.
const TURN_POLLS: usize = 64;
/// The time for the last bytes of a connection.
const LAST_BYTES: Duration = Duration::from_secs(5);
/// The time after the last bytes in which the client is expected to close the connection.
const LINGER: Duration = Duration::from_secs(2);

/// A connection whose client has sent the preface. It ends when the client closes it, breaks a rule, does not answer a
/// ping, or has no more calls after [`Connection::shut_down`]. Dropping it drops its calls.
///
/// `S` is called with each request; its futures and the bodies of its answers are polled by the connection.
pub struct Connection<I, S, F, B> {
    io: I,
    service: S,
    core: Core,
    calls: Calls<F, B>,
    /// An incomplete frame, or complete ones that wait because the output is full.
    rest: Vec<u8>,
    /// Whether `rest` has complete frames, and the output had no room for what they cause.
    suspended: bool,
    /// Whether bytes were written that were not flushed.
    unflushed: bool,
    liveness: Option<Liveness>,
    late_answer: LateAnswer,
    ending: Option<Box<Ending>>,
}

/// The last bytes of a connection are being written.
struct Ending {
    result: Option<Result<(), Error>>,
    deadline: Pin<Box<Sleep>>,
    /// Whether everything was written, and the client has closed its side.
    written: bool,
    /// Whether this side is closed.
    closed: bool,
}

impl<I, S, F, B> Connection<I, S, F, B>
where
    I: AsyncRead + AsyncWrite + Unpin,
    S: Fn(Request<RequestStream>) -> F,
    F: Future<Output = Response<B>>,
    B: Body<Data = Bytes> + Unpin,
{
    pub fn new(io: I, service: S, config: Arc<Config>) -> Self {
        Self {
            io,
            service,
            liveness: config.keepalive.map(Liveness::new),
            late_answer: LateAnswer::default(),
            core: Core::new(config),
            calls: Calls::default(),
            rest: Vec::new(),
            suspended: false,
            unflushed: false,
            ending: None,
        }
    }

    /// Tells the client to make no more calls, and why. The connection ends with the last one.
    /// All calls are polled once more, since some of them end with the connection.
    pub fn shut_down(&mut self, reason: &'static str) {
        self.core.shut_down(reason);
        self.calls.queue_all();
    }

    /// Ends the connection at once: drops all calls, and tells the client why, unless the client would have to be waited for.
    /// Nothing may be done with the connection afterwards but to drop it.
    pub fn abort(&mut self, violation: Violation, cx: &mut Context<'_>) {
        if self.ending.is_none() {
            self.calls.clear();
            self.core.fail(violation);
        }
        let mut io = Pin::new(&mut self.io);
        if let Poll::Ready(Ok(())) = write(io.as_mut(), &mut self.core.output, &mut self.unflushed, cx)
            && let Poll::Ready(Ok(())) = io.as_mut().poll_shutdown(cx)
        {
            // Bytes that nobody has read would reset the connection, and GOAWAY could be lost.
            let _ = discard(io, cx);
        }
    }

    /// Serves until nothing more can be done. Returns true when the connection is over.
    fn serve(&mut self, cx: &mut Context<'_>) -> Result<bool, Error> {
        let mut polls = TURN_POLLS;
        loop {
            let received = self.receive(cx)?;
            self.check_liveness(cx, received == Received::Nothing)?;
            self.calls.run(&mut self.core, &mut polls);
            self.late_answer.poll(&mut self.core, cx);
            let written = self.poll_write(cx)?;
            match received {
                Received::End if self.core.has_streams() => return Err(Error::ClosedAmidCalls),
                Received::End => return Ok(true),
                Received::Nothing | Received::Some => {}
            }
            if self.core.is_done() {
                return Ok(true);
            }
            let more = self.calls.are_ready() || self.suspended;
            if written.is_pending() || !more {
                return Ok(false);
            }
            if polls == 0 {
                cx.waker().wake_by_ref();
                return Ok(false);
            }
        }
    }

    /// Pings a silent client. Returns an error if a ping was not answered in time.
    fn check_liveness(&mut self, cx: &mut Context<'_>, silent: bool) -> Result<(), Error> {
        let Some(liveness) = &mut self.liveness else {
            return Ok(());
        };
        if !silent {
            liveness.heard();
        }
        if liveness.poll(cx)? {
            self.core.ping();
        }
        Ok(())
    }

    /// Writes everything that waits for the socket.
    fn poll_write(&mut self, cx: &mut Context<'_>) -> Result<Poll<()>, Error> {
        let polled = write(Pin::new(&mut self.io), &mut self.core.output, &mut self.unflushed, cx);
        self.calls.output_changed(&mut self.core);
        match polled {
            Poll::Ready(Err(error)) => Err(error.into()),
            Poll::Ready(Ok(())) => Ok(Poll::Ready(())),
            Poll::Pending => Ok(Poll::Pending),
        }
    }

    /// Drops all calls, and lets the client know why.
    fn end(&mut self, result: Result<(), Error>) {
        self.calls.clear();
        self.rest = Vec::new();
        let last_words = match &result {
            Ok(()) => {
                self.core.answer_late();
                true
            }
            Err(Error::Violation(violation)) => {
                let violation: Violation = *violation;
                self.core.fail(violation);
                true
            }
            Err(_) => false,
        };
        self.ending = Some(Box::new(Ending {
            result: Some(result),
            deadline: Box::pin(tokio::time::sleep(LAST_BYTES)),
            written: !last_words,
            closed: false,
        }));
    }

    fn poll_end(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        let Some(ending) = &mut self.ending else {
            return Poll::Pending;
        };
        if !ending.written {
            let mut io = Pin::new(&mut self.io);
            let mut over = Poll::Ready(Ok(()));
            if !ending.closed {
                over = write(io.as_mut(), &mut self.core.output, &mut self.unflushed, cx);
                if let Poll::Ready(Ok(())) = over {
                    over = io.as_mut().poll_shutdown(cx);
                }
                if let Poll::Ready(Ok(())) = over {
                    ending.closed = true;
                    ending.deadline.as_mut().reset(Instant::now() + LINGER);
                }
            }
            if ending.closed && matches!(over, Poll::Ready(Ok(()))) {
                over = discard(io, cx);
            }
            if over.is_pending() {
                // A client that does not take the last bytes does without them.
                ready!(ending.deadline.as_mut().poll(cx));
            }
            ending.written = true;
        }
        Poll::Ready(ending.result.take().unwrap_or(Ok(())))
    }
}

impl<I, S, F, B> Future for Connection<I, S, F, B>
where
    I: AsyncRead + AsyncWrite + Unpin,
    S: Fn(Request<RequestStream>) -> F + Unpin,
    F: Future<Output = Response<B>>,
    B: Body<Data = Bytes> + Unpin,
{
    type Output = Result<(), Error>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        let this = &mut *self;
        if this.ending.is_none() {
            this.core.wakes().begin(cx.waker());
            let served = this.serve(cx);
            if this.core.wakes().end() {
                cx.waker().wake_by_ref();
            }
            match served {
                Ok(false) => return Poll::Pending,
                Ok(true) => this.end(Ok(())),
                // A client may leave between two calls.
                Err(Error::Io(_)) if !this.core.has_streams() => this.end(Ok(())),
                Err(error) => this.end(Err(error)),
            }
        }
        this.poll_end(cx)
    }
}

/// Reads to the end. A socket that is closed before the client has said its last word resets the connection, and what the
/// client has not taken is lost.
fn discard<I: AsyncRead>(mut io: Pin<&mut I>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
    let mut bytes = [0; 1 << 10];
    loop {
        let mut buffer = ReadBuf::new(&mut bytes);
        ready!(io.as_mut().poll_read(cx, &mut buffer))?;
        if buffer.filled().is_empty() {
            return Poll::Ready(Ok(()));
        }
    }
}

/// Writes and flushes all of `output`.
pub(super) fn write<I: AsyncWrite>(
    mut io: Pin<&mut I>,
    output: &mut Output,
    unflushed: &mut bool,
    cx: &mut Context<'_>,
) -> Poll<io::Result<()>> {
    while !output.is_empty() {
        let mut slices = [IoSlice::new(&[]); PIECES];
        let count = output.slices(&mut slices);
        let written = match io.is_write_vectored() && count > 1 {
            true => ready!(io.as_mut().poll_write_vectored(cx, &slices[..count]))?,
            false => ready!(io.as_mut().poll_write(cx, &slices[0]))?,
        };
        if written == 0 {
            return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
        }
        *unflushed = true;
        output.advance(written);
    }
    if *unflushed {
        ready!(io.poll_flush(cx))?;
        *unflushed = false;
    }
    Poll::Ready(Ok(()))
}
