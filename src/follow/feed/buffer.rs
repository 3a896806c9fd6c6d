//! What comes on the watch while the state is being loaded.

use super::messages::Revision;
use super::why::Why;
use crate::mvcc::Followed;

/// Bytes of events that are buffered while the state is being loaded.
const BUFFER_MAX: usize = if cfg!(test) { 16 << 10 } else { 256 << 20 };
/// Memory that a buffered event takes beside its key-value, in bytes.
const EVENT_COST: usize = 48;

/// What came on the watch while the state is being loaded.
#[derive(Debug, Default)]
pub(super) struct Buffer {
    /// Whole revisions, dense.
    pub(super) revisions: Vec<Revision>,
    bytes: usize,
    /// Upstream's revision when the watch was created: later revisions are in the buffer, or still come.
    pub(super) created: Option<i64>,
    /// The watch ended, or the buffer was full.
    pub(super) is_lost: bool,
}

// === impl Buffer ===

impl Buffer {
    pub(super) fn push(&mut self, revision: Revision) -> Result<(), Why> {
        if self.is_lost {
            return Ok(());
        }
        if revision.number != self.last() + 1 {
            return Err(Why::Gap);
        }
        let cost = |event: &Followed| event.kv.as_bytes().len() + EVENT_COST;
        self.bytes += revision.events.iter().map(cost).sum::<usize>();
        self.revisions.push(revision);
        match self.bytes > BUFFER_MAX {
            true => Err(Why::Buffer),
            false => Ok(()),
        }
    }

    /// The revision up to which everything has come.
    pub(super) fn last(&self) -> i64 {
        self.revisions.last().map_or(self.created.unwrap_or(0), |r| r.number)
    }

    /// Forgets what came: the watch begins anew once the state is loaded.
    pub(super) fn lose(&mut self) {
        *self = Self {
            is_lost: true,
            ..Self::default()
        };
    }
}
