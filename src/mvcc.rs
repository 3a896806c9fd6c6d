//! The multi-version key-value store. The room has no clock, no IO, no `async` and no gRPC, so that results are
//! deterministic, and property tests and fuzzing run at memory speed.
//!
//! A write goes `store` → `write_txn` (changes the `state`) → `log` (one batch per revision). Publishing the revision
//! leaves a frame in each interested `group`, and `watcher` cursors take the frames. With a `journal`, a revision is
//! published only once it is durable. `recovery` makes a store again from a checkpoint and the changes recorded after.
//! `adopt` is for a store that follows another one: it repeats revisions, and swaps the state for one with another past; `seam`
//! tells whether a state from beyond a compaction is of the same past.
//!
//! ```
//! use isthmus::mvcc::{KeyRange, Put, RangeOptions, Store};
//!
//! let store = Store::new();
//! assert_eq!(store.revision(), 1);
//! store.put(Put { key: "a".into(), value: "1".into(), ..Put::default() })?;
//! let rev = store.revision();
//! store.delete(&KeyRange::key("a"));
//! let now = store.range(&RangeOptions::new(KeyRange::all()))?;
//! assert_eq!((now.count, now.revision), (0, 3));
//! let then = store.range(&RangeOptions { revision: rev, ..RangeOptions::new(KeyRange::all()) })?;
//! assert_eq!(then.kvs[0].value(), b"1");
//! # Ok::<(), isthmus::mvcc::Error>(())
//! ```

mod adopt;
mod branches;
mod chunks;
mod encoded;
mod frame;
mod group;
mod groups;
mod hash;
mod hooks;
mod index;
mod journal;
mod key_history;
mod lease_book;
mod log;
mod pages;
mod pins;
mod purge;
mod range;
mod read_txn;
mod reader;
mod reads;
mod recovery;
mod seam;
mod state;
mod stats;
mod store;
#[cfg(test)]
mod tests;
mod txn;
mod waking;
mod walk;
mod watcher;
mod work;
mod write_txn;

pub use adopt::{Compared, Divergence, Followed};
pub use encoded::{Fields, Kv, put_varint, take_varint, varint_len};
pub use group::{Wake, WatchFilter};
pub use hash::Versions;
pub use hooks::Hooks;
pub use journal::{Change, Journal};
pub use key_history::Version;
pub use lease_book::GrantedLease;
pub use log::{Batch, Event, EventKind};
pub use range::{KeyRange, RangeOptions, RangeResult, RevisionBounds, SortOrder, SortTarget, prefix_end};
pub use recovery::{Loader, OutOfOrder, Recovery};
pub use seam::Seam;
pub use stats::Stats;
pub use store::{RevokeResult, Store, Write};
pub use txn::{Compare, CompareResult, DeleteResult, Op, OpResult, Put, PutResult, Target, Txn, TxnResult};
pub use waking::{Gathering, Woken};
pub use walk::Frozen;
pub use watcher::{WatchUpdate, Watcher};
pub use work::Work;

/// Why the store refuses a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The revision is below the compact revision, or was compacted already.
    #[error("required revision has been compacted")]
    Compacted,
    /// The revision is above the store's revision.
    #[error("required revision is a future revision")]
    FutureRevision,
    #[error("requested lease not found")]
    LeaseNotFound,
    /// A put keeps the value or the lease of a key that does not exist.
    #[error("key not found")]
    KeyNotFound,
    /// The caller has stopped a long read.
    #[error("the read was stopped")]
    Stopped,
}
