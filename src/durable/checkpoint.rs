//! The frames of a checkpoint, made piece by piece while the store is in use.

use super::frame::{self, Kind};
use super::record::{self, Head, Metadata};
use crate::mvcc::{self, Frozen};
use prost::Message;

/// Bytes of keys in one piece of a checkpoint.
pub(super) const PIECE: usize = 256 << 10;

/// The frames of a checkpoint: its head, chunks of keys, its end.
pub(super) struct Pieces {
    frozen: Frozen,
    /// The content of the head, until the head is made.
    head: Option<Metadata>,
    /// The number of the last group in the checkpoint.
    number: u64,
    salt: u64,
    chunks: u64,
    ended: bool,
    frame: Vec<u8>,
}

impl Pieces {
    pub(super) fn new(frozen: Frozen, metadata: Metadata, number: u64, salt: u64) -> Self {
        Self {
            frozen,
            head: Some(metadata),
            number,
            salt,
            chunks: 0,
            ended: false,
            frame: vec![],
        }
    }

    /// The next frame; `None` after the end. Fails once another state was put into place: the frames so far are of no use.
    pub(super) fn next(&mut self) -> Result<Option<&[u8]>, mvcc::Error> {
        if self.ended {
            return Ok(None);
        }
        self.frame.clear();
        if let Some(metadata) = self.head.take() {
            let head = Head::new(&self.frozen, metadata);
            frame::write(&mut self.frame, self.salt, Kind::Head, self.number, |out| {
                head.encode_raw(out);
            });
        } else if let Some(versions) = self.frozen.next(PIECE)? {
            frame::write(&mut self.frame, self.salt, Kind::Chunk, self.chunks, |out| {
                record::write_chunk(&versions, out);
            });
            self.chunks += 1;
        } else {
            self.ended = true;
            frame::write(&mut self.frame, self.salt, Kind::End, self.chunks, |_| {});
        }
        Ok(Some(&self.frame))
    }
}
