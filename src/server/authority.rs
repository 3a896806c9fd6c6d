//! Accepts requests with an invalid `:authority`, as etcd does.
//!
//! etcd ignores the authority of a request. Clients in use send `#initially=[http://127.0.0.1:2379]` (etcd's own client
//! 3.5.0), several joined endpoints, or the path of a socket. The HTTP library resets such calls before a handler runs.
//! A filter below the library therefore reads the first header block of each connection. If the authority is valid, the
//! filter removes itself and has altered no byte. Otherwise, the filter replaces invalid authorities in every header
//! block of the connection.
//!
//! The library still refuses an invalid authority in these cases, which no known client causes:
//! - The first call of the connection had a valid authority.
//! - The authority is empty, and the client adds the field to its dynamic table.
//! - The name `:authority` is Huffman-coded, or an index of the dynamic table.

mod block;
mod frames;
mod huffman;
#[cfg(test)]
mod tests;

use bytes::{Buf, BytesMut};
use frames::Frames;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// A connection whose requests have valid authorities for the library that reads them.
pub(super) struct AnyAuthority<I> {
    io: I,
    /// `None` once all bytes pass unaltered.
    filter: Option<Box<Filter>>,
}

#[derive(Default)]
struct Filter {
    frames: Frames,
    /// Bytes that the library has not read yet.
    passed: BytesMut,
}

impl<I> AnyAuthority<I> {
    pub(super) fn new(io: I) -> Self {
        Self {
            io,
            filter: Some(Box::default()),
        }
    }
}

impl<I: AsyncRead + Unpin> AsyncRead for AnyAuthority<I> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let Some(filter) = &mut this.filter else {
            return Pin::new(&mut this.io).poll_read(cx, buf);
        };
        if buf.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        while filter.passed.is_empty() {
            if filter.frames.is_done() {
                this.filter = None;
                return Pin::new(&mut this.io).poll_read(cx, buf);
            }
            let before = buf.filled().len();
            ready!(Pin::new(&mut this.io).poll_read(cx, buf))?;
            match &buf.filled()[before..] {
                [] => filter.frames.end(&mut filter.passed),
                read => filter.frames.push(read, &mut filter.passed),
            }
            buf.set_filled(before);
        }
        let length = filter.passed.len().min(buf.remaining());
        buf.put_slice(&filter.passed[..length]);
        filter.passed.advance(length);
        Poll::Ready(Ok(()))
    }
}

impl<I: AsyncWrite + Unpin> AsyncWrite for AnyAuthority<I> {
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
