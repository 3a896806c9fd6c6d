//! The bytes that wait for the socket. A connection that has sent everything holds no buffer.

use bytes::{Buf, Bytes};
use std::cell::RefCell;
use std::collections::VecDeque;
use std::io::IoSlice;

/// Payloads up to this length are copied, so that many small frames are one piece for the socket.
const COPIED: usize = 4 << 10;
/// Sent bytes that a buffer may begin with. Removing them moves the rest.
const SENT_KEPT: usize = 16 << 10;
/// Pieces for one write.
pub(super) const PIECES: usize = 32;
/// Buffers that a thread keeps for its connections, and the largest capacity that is kept.
const KEPT: usize = 4;
const KEPT_CAPACITY: usize = 256 << 10;

thread_local! {
    static BUFFERS: RefCell<Vec<Vec<u8>>> = const { RefCell::new(Vec::new()) };
}

/// Takes an empty buffer.
pub(super) fn take_buffer() -> Vec<u8> {
    BUFFERS.with_borrow_mut(Vec::pop).unwrap_or_default()
}

/// Gives a buffer back for other connections of this thread.
pub(super) fn give_buffer(mut buffer: Vec<u8>) {
    if buffer.capacity() == 0 || buffer.capacity() > KEPT_CAPACITY {
        return;
    }
    buffer.clear();
    BUFFERS.with_borrow_mut(|buffers| {
        if buffers.len() < KEPT {
            buffers.push(buffer);
        }
    });
}

/// Frames in the order in which they are sent.
#[derive(Debug, Default)]
pub(super) struct Output {
    /// What is sent before `tail`.
    pieces: VecDeque<Bytes>,
    /// Small frames, which end the output.
    tail: Vec<u8>,
    /// Bytes of `tail` that were sent.
    sent: usize,
    /// Bytes in `pieces`.
    pieces_len: usize,
}

impl Output {
    pub fn len(&self) -> usize {
        self.pieces_len + self.tail.len() - self.sent
    }

    pub fn is_empty(&self) -> bool {
        self.pieces.is_empty() && self.tail.len() == self.sent
    }

    /// The buffer that frames are appended to.
    pub fn buffer(&mut self) -> &mut Vec<u8> {
        if self.tail.capacity() == 0 {
            self.tail = take_buffer();
        }
        &mut self.tail
    }

    /// Appends the payload of a frame.
    pub fn payload(&mut self, payload: Bytes) {
        if payload.len() <= COPIED {
            self.buffer().extend_from_slice(&payload);
            return;
        }
        if self.tail.len() > self.sent {
            let head = Bytes::copy_from_slice(&self.tail[self.sent..]);
            self.pieces_len += head.len();
            self.pieces.push_back(head);
        }
        self.tail.clear();
        self.sent = 0;
        self.pieces_len += payload.len();
        self.pieces.push_back(payload);
    }

    /// The next bytes for the socket. Returns the number of pieces.
    pub fn slices<'a>(&'a self, slices: &mut [IoSlice<'a>; PIECES]) -> usize {
        let mut count = 0;
        for piece in self.pieces.iter().take(PIECES) {
            slices[count] = IoSlice::new(piece);
            count += 1;
        }
        if count < PIECES && self.tail.len() > self.sent {
            slices[count] = IoSlice::new(&self.tail[self.sent..]);
            count += 1;
        }
        count
    }

    /// Notes that the socket took so many bytes.
    pub fn advance(&mut self, mut bytes: usize) {
        while let Some(piece) = self.pieces.front_mut() {
            let taken = bytes.min(piece.len());
            piece.advance(taken);
            bytes -= taken;
            self.pieces_len -= taken;
            if !piece.is_empty() {
                return;
            }
            self.pieces.pop_front();
        }
        self.sent += bytes;
        if self.sent >= self.tail.len() {
            self.sent = 0;
            give_buffer(std::mem::take(&mut self.tail));
            self.pieces = VecDeque::new();
        } else if self.sent >= SENT_KEPT.max(self.tail.len() / 2) {
            // A client that always leaves something would make the buffer as long as everything that was sent.
            self.tail.drain(..self.sent);
            self.sent = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Takes everything out, in writes of `size` bytes.
    fn written(output: &mut Output, size: usize) -> Vec<u8> {
        let mut written = Vec::new();
        while !output.is_empty() {
            let mut slices = [IoSlice::new(&[]); PIECES];
            let count = output.slices(&mut slices);
            let mut taken = 0;
            for slice in &slices[..count] {
                let bytes = &slice[..slice.len().min(size - taken)];
                written.extend_from_slice(bytes);
                taken += bytes.len();
            }
            output.advance(taken);
        }
        written
    }

    #[test]
    fn frames_leave_in_order_whatever_the_size_of_the_writes() {
        for size in [1, 7, 5000, 1 << 20] {
            let (mut output, mut expected) = (Output::default(), Vec::new());
            for n in 0..10_u8 {
                let payload = vec![n; if n % 3 == 0 { COPIED + 1 } else { usize::from(n) }];
                output.buffer().push(n);
                expected.push(n);
                expected.extend_from_slice(&payload);
                output.payload(payload.into());
                assert_eq!(output.len(), expected.len());
            }
            assert_eq!(written(&mut output, size), expected, "in writes of {size}");
            assert_eq!((output.len(), output.tail.capacity()), (0, 0));
        }
    }

    #[test]
    fn an_output_that_is_never_empty_does_not_grow() {
        let mut output = Output::default();
        output.buffer().push(0);
        for _ in 0..10_000 {
            output.buffer().extend_from_slice(&[7; 100]);
            output.advance(100);
        }
        assert_eq!(output.len(), 1);
        assert!(output.tail.capacity() <= 8 * SENT_KEPT, "{}", output.tail.capacity());
    }

    #[test]
    fn a_long_payload_is_not_copied() {
        let (mut output, payload) = (Output::default(), Bytes::from(vec![7; COPIED + 1]));
        output.buffer().push(1);
        output.payload(payload.clone());
        let mut slices = [IoSlice::new(&[]); PIECES];
        assert_eq!(output.slices(&mut slices), 2);
        assert_eq!(slices[1].as_ptr(), payload.as_ptr());
    }
}
