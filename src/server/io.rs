//! The bytes of an accepted connection.

use crate::http2::PREFACE;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
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
    /// The first bytes, which [`Io::poll_version`] has looked at, until they are read.
    first: Vec<u8>,
}

/// The version of HTTP that a client speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Version {
    Http1,
    /// The preface has been read.
    Http2,
}

impl Io {
    pub(super) fn plain(stream: Stream) -> Self {
        Self::new(Either::Left(stream))
    }

    pub(super) fn tls(stream: TlsStream<Stream>) -> Self {
        Self::new(Either::Right(Box::new(stream)))
    }

    fn new(io: Either<Stream, Box<TlsStream<Stream>>>) -> Self {
        Self {
            io,
            read: 0,
            first: Vec::new(),
        }
    }

    /// Reads until the first bytes tell the version of HTTP. Nothing may be read before.
    pub(super) fn poll_version(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Version>> {
        while PREFACE.starts_with(&self.first) {
            let mut bytes = [0; PREFACE.len()];
            let mut buffer = ReadBuf::new(&mut bytes[self.first.len()..]);
            if buffer.remaining() == 0 {
                self.first = Vec::new();
                return Poll::Ready(Ok(Version::Http2));
            }
            ready!(Pin::new(&mut self.io).poll_read(cx, &mut buffer))?;
            match buffer.filled() {
                // HTTP/1 deals with the end.
                [] => break,
                read => self.first.extend_from_slice(read),
            }
        }
        Poll::Ready(Ok(Version::Http1))
    }
}

impl AsyncRead for Io {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if !self.first.is_empty() {
            let length = self.first.len().min(buf.remaining());
            buf.put_slice(&self.first[..length]);
            self.first.drain(..length);
            return Poll::Ready(Ok(()));
        }
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

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    /// The version of a client that writes these pieces, and what is read after it.
    async fn read(pieces: &[&[u8]]) -> (Version, Vec<u8>) {
        let (mut client, server) = UnixStream::pair().unwrap();
        let mut io = Io::plain(Either::Right(server));
        let write = async {
            for piece in pieces {
                client.write_all(piece).await.unwrap();
                tokio::task::yield_now().await;
            }
            drop(client);
        };
        let read = async {
            let version = std::future::poll_fn(|cx| io.poll_version(cx)).await.unwrap();
            let mut rest = Vec::new();
            io.read_to_end(&mut rest).await.unwrap();
            (version, rest)
        };
        tokio::join!(write, read).1
    }

    #[tokio::test]
    async fn the_preface_tells_http2_and_everything_else_is_read_again() {
        for at in 0..PREFACE.len() {
            let (first, second) = PREFACE.split_at(at);
            assert_eq!(
                read(&[first, second, b"frames"]).await,
                (Version::Http2, b"frames".to_vec())
            );
            assert_eq!(read(&[first]).await, (Version::Http1, first.to_vec()));
        }
        for other in [&b"PUT / HTTP/1.1\r\n"[..], b"PRI * HTTP/1.1\r\n\r\nbody", b"G", b""] {
            assert_eq!(read(&[other]).await, (Version::Http1, other.to_vec()));
        }
    }
}
