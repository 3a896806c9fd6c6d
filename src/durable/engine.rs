//! The interface of storage engines. `engines.rs` chooses one.
//!
//! An engine stores frames and does not know their content. An engine keeps groups in order until a checkpoint
//! replaces them, and a checkpoint as a head, chunks and an end. The writer appends a group only after the group
//! before was synced, except in the modes that do not sync.

use super::damage::Damage;
use super::frame::Frame;
use std::io;

/// Why an engine could not be read.
#[derive(Debug, thiserror::Error)]
pub(super) enum LoadError {
    #[error(transparent)]
    Damage(#[from] Damage),
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Options of [`Engine::load`].
#[derive(Clone, Copy, Debug)]
pub(super) struct LoadOptions {
    /// Cut off a partly written group at the end, so that writing can continue.
    pub(super) repair: bool,
    /// Accept the loss of several groups at the end: the machine stopped before they were synced.
    pub(super) lenient: bool,
}

/// Sizes, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sizes {
    /// Groups since the checkpoint.
    pub log: u64,
    pub checkpoint: u64,
    /// The partly written group at the end.
    pub torn: u64,
}

/// Takes one frame of the checkpoint or of the log, in order.
pub(super) type Visit<'a> = dyn FnMut(Frame<'_>) -> Result<(), Damage> + 'a;

/// Stores frames. The numbers of groups grow by one.
pub(super) trait Engine: Send {
    /// Reads the last complete checkpoint and every group after it. May also visit groups before the checkpoint.
    fn load(&mut self, options: LoadOptions, visit: &mut Visit<'_>) -> Result<Sizes, LoadError>;

    /// Writes the frame of group `number`. After an error, may be called again with the same frame.
    fn append(&mut self, number: u64, frame: &[u8]) -> io::Result<()>;

    /// Returns when everything appended is on the disk.
    fn sync(&mut self) -> io::Result<()>;

    /// Allocates space for the next groups. Fails if the disk has no space for them.
    fn reserve(&mut self) -> io::Result<()>;

    /// Whether the next few megabytes of groups certainly fit.
    fn has_room(&self) -> bool;

    /// Whether space is so scarce that a checkpoint, which frees the log, should not wait.
    fn is_tight(&self) -> bool {
        false
    }

    /// Begins a checkpoint of all groups up to `number`, the last group appended.
    fn begin(&mut self, number: u64) -> io::Result<()>;

    /// Adds a frame to the checkpoint: its head, a chunk, or its end.
    fn add(&mut self, frame: &[u8]) -> io::Result<()>;

    /// Completes the checkpoint, which replaces the groups in it and the checkpoint before, atomically.
    fn finish(&mut self) -> io::Result<()>;

    /// Removes the checkpoint that was begun.
    fn abandon(&mut self);

    /// Ends the log; `next` is the number of the next group, of a later process.
    fn close(&mut self, next: u64) -> io::Result<()>;
}

impl From<LoadError> for io::Error {
    fn from(error: LoadError) -> Self {
        match error {
            LoadError::Io(error) => error,
            LoadError::Damage(damage) => Self::other(damage),
        }
    }
}
