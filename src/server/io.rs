//! The bytes of an accepted connection.

use super::settings::SettingsCount;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::server::TlsStream;
use tokio_util::either::Either;

/// Bytes that one connection may read in a turn. A turn of small frames is much work.
const TURN_BYTES: usize = 4 << 10;

/// A connection before its handshake, over TCP or a Unix socket.
pub(super) type Stream = Either<TcpStream, UnixStream>;

/// A connection after its handshake. After it has read [`TURN_BYTES`], other connections go first, so that a flood of
/// small frames takes only its share of the time.
pub(super) struct Io {
    io: Either<Stream, Box<TlsStream<Stream>>>,
    read: usize,
    settings: SettingsCount,
}

impl Io {
    pub(super) fn plain(stream: Stream) -> Self {
        Self {
            io: Either::Left(stream),
            read: 0,
            settings: SettingsCount::default(),
        }
    }

    pub(super) fn tls(stream: TlsStream<Stream>) -> Self {
        Self {
            io: Either::Right(Box::new(stream)),
            read: 0,
            settings: SettingsCount::default(),
        }
    }
}

impl AsyncRead for Io {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.read >= TURN_BYTES {
            self.read = 0;
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let before = buf.filled().len();
        let polled = Pin::new(&mut self.io).poll_read(cx, buf);
        match polled {
            Poll::Pending => self.read = 0,
            Poll::Ready(_) => self.read += buf.filled().len() - before,
        }
        if !self.settings.read(&buf.filled()[before..]) {
            return Poll::Ready(Err(io::Error::other("too many SETTINGS frames")));
        }
        polled
    }
}

impl AsyncWrite for Io {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}
