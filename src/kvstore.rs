//! A key-value store to write to: our own in this process (`local`), or any etcd (`etcd`).
//!
//! [`SyncStore`](sync_store::SyncStore) makes a part of a store equal to a desired state, `keeper` keeps single keys, and
//! `election` chooses the writer where several instances run.

mod answers;
mod availability;
pub mod client;
mod client_error;
pub mod config;
pub mod dial;
pub mod election;
pub mod etcd;
pub mod explain;
pub mod keeper;
pub mod labels;
mod leases;
pub mod limiter;
pub mod local;
pub mod metrics;
pub mod sync_store;
pub mod users;
mod watching;

use crate::util::deliveries::Deliveries;
use crate::util::outage::Outage;
use crate::util::trace::Cause;
use bytes::Bytes;
use futures::stream::BoxStream;
use tokio::sync::watch;

pub use crate::mvcc::Write;
pub use limiter::Class;
pub use metrics::Metrics;

/// Default of [`Backend::batch_max`].
pub const BATCH_MAX: usize = 1000;

/// Why a request to a store failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The store cannot be reached, or did not answer in time: the same request can succeed later.
    #[error("{0}")]
    Unavailable(String),
    /// The store has reached its quota: only deletions succeed.
    #[error("{0}")]
    Full(String),
    /// The store will never accept this request.
    #[error("{0}")]
    Rejected(String),
}

/// A key found in a store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredKey {
    pub key: Bytes,
    pub value: Bytes,
}

/// The ends of a store's history.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HistoryMark {
    /// The last revision.
    pub revision: i64,
    /// The history before this revision is gone.
    pub compacted: i64,
}

/// Where a write is in the history of a store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Written {
    /// The cluster id of the store; 0 if it is not known.
    pub store_id: u64,
    pub revision: i64,
}

/// A store to write to. Each key has one writer.
#[async_trait::async_trait]
pub trait Backend: Send + Sync {
    /// Returns all keys that begin with `prefix`. Their leases stay with their writers.
    async fn list(&self, prefix: &str) -> Result<Vec<StoredKey>, Error>;

    /// Returns all keys that begin with `prefix` and renews their leases from now on: for keys that an earlier run
    /// of this writer left behind.
    async fn list_and_adopt(&self, prefix: &str) -> Result<Vec<StoredKey>, Error> {
        self.list(prefix).await
    }

    /// Returns the value of `key`. Its lease stays with its writer.
    async fn get(&self, key: &str) -> Result<Option<Bytes>, Error>;

    /// Returns the value of `key` and renews its lease from now on.
    async fn get_and_adopt(&self, key: &str) -> Result<Option<Bytes>, Error> {
        self.get(key).await
    }

    /// The number of writes that currently fit into one request.
    fn batch_max(&self) -> usize {
        BATCH_MAX
    }

    /// Applies `writes`, whose keys are distinct, in order; atomically if they fit into one request. Fails if the
    /// store does not answer in time. Waiting for a rate limit does not count as waiting for the store.
    /// `cause` is what the writes follow from. Returns the last revision that was written.
    async fn write(&self, class: Class, writes: &[Write], cause: Cause<'_>) -> Result<Written, Error>;

    /// Deletes all keys that begin with `prefix`.
    async fn delete_prefix(&self, prefix: &str) -> Result<(), Error>;

    /// Yields whenever `key` may have changed.
    fn changes(&self, key: &str) -> BoxStream<'static, ()>;

    /// The number of leases that expired while keys were attached to them. When the number grows, the writer must list
    /// its keys again. `None` if keys never expire.
    fn expired_leases(&self) -> Option<watch::Receiver<u64>> {
        None
    }

    /// The duration and the reason of the store's present outage; `None` if no outage is known.
    fn outage(&self) -> Option<Outage> {
        None
    }

    /// When watchers receive what was written, if the store is in this process.
    fn deliveries(&self) -> Option<&Deliveries> {
        None
    }

    /// How far the history of the store reaches; `None` if the store does not say.
    fn history(&self) -> Option<HistoryMark> {
        None
    }

    /// Asks the store to compact its history soon, because a writer waits for that.
    fn request_compaction(&self) {}

    /// The store's name in status texts.
    fn describe(&self) -> String;
}
