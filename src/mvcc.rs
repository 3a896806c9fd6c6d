//! Multi-version key-value store: no clock, no IO, no `async`, no gRPC, so that property tests and fuzzing
//! drive it at memory speed and every result is deterministic.
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

mod encoded;
mod group;
mod hash;
mod hooks;
mod index;
mod journal;
mod key_history;
mod lease_book;
mod log;
mod pages;
mod pins;
mod range;
mod reads;
mod recovery;
mod state;
mod stats;
mod store;
#[cfg(test)]
mod tests;
mod txn;
mod walk;
mod watcher;

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
pub use stats::Stats;
pub use store::{RevokeResult, Store, Write};
pub use txn::{Compare, CompareResult, DeleteResult, Op, OpResult, Put, PutResult, Target, Txn, TxnResult};
pub use walk::Frozen;
pub use watcher::{WatchUpdate, Watcher};

/// Why the store refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The revision is before the compaction point, or already compacted.
    #[error("required revision has been compacted")]
    Compacted,
    /// The revision is not there yet.
    #[error("required revision is a future revision")]
    FutureRevision,
    /// The lease does not exist.
    #[error("requested lease not found")]
    LeaseNotFound,
    /// The key does not exist, but the request builds on it.
    #[error("key not found")]
    KeyNotFound,
}
