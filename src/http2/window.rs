//! Reading without a buffer of one's own: the connections of a thread read into one buffer, one after another.

use super::frame::{HEAD, PAYLOAD_MAX};
use std::cell::Cell;
use tokio::io::ReadBuf;

/// Bytes that are read at once. Frames in them may be small, and much work.
const READ: usize = 8 << 10;

thread_local! {
    static BUFFER: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// A place in the buffer of the thread.
pub(super) struct Window {
    buffer: Vec<u8>,
    from: usize,
    to: usize,
}

impl Window {
    /// A window that begins with `rest`.
    pub fn new(rest: &mut Vec<u8>) -> Self {
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

    pub fn bytes(&self) -> &[u8] {
        &self.buffer[self.from..self.to]
    }

    /// Space for a read, when a frame of `wanted` bytes is being read.
    pub fn space(&mut self, wanted: usize) -> ReadBuf<'_> {
        if self.from > 0 {
            self.buffer.copy_within(self.from..self.to, 0);
            (self.from, self.to) = (0, self.to - self.from);
        }
        let end = wanted.max(self.to + READ).min(self.buffer.len());
        ReadBuf::new(&mut self.buffer[self.to..end])
    }

    /// Gives the buffer back. What was not used is the next beginning.
    pub fn close(self, rest: &mut Vec<u8>) {
        match self.bytes() {
            [] => *rest = Vec::new(),
            bytes => rest.extend_from_slice(bytes),
        }
        BUFFER.set(self.buffer);
    }

    /// Notes that so many bytes were read into the space.
    pub fn filled(&mut self, bytes: usize) {
        self.to += bytes;
    }

    /// Notes that so many bytes at the beginning are done with.
    pub fn used(&mut self, bytes: usize) {
        self.from += bytes;
    }
}
