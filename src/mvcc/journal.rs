//! The changes that a store reports to its journal, from which the store can be made again.

use super::log::Batch;

/// One change, in the order of commits.
#[derive(Clone, Debug)]
pub enum Change {
    /// One revision, or the end of a lease, or both.
    Commit {
        /// The revision; `None` if a lease without keys ended.
        batch: Option<Batch>,
        /// The lease that ended.
        revoked: Option<i64>,
    },
    /// A new lease.
    Grant {
        lease: i64,
        /// The granted TTL, in seconds.
        ttl_secs: i64,
    },
    /// A compaction to this revision.
    Compact(i64),
    /// Another state was put into place: what was recorded before says nothing about the store any more.
    Swapped,
}

/// Records changes. The owner of a journal has to call [`Store::publish`](super::Store::publish) for the revisions
/// that are durable.
pub trait Journal: Send + Sync {
    /// Records one change. Called under the store's lock, so it must not block.
    fn record(&self, change: Change);
}
