//! A key-value store to write to: our own in this process, or any etcd.

mod availability;
pub mod client;
mod client_error;
pub mod config;
pub mod dial;
pub mod election;
pub mod etcd;
pub mod keeper;
mod leases;
pub mod limiter;
pub mod local;
pub mod metrics;
pub mod sync_store;
pub mod users;

use crate::util::outage::Outage;
use bytes::Bytes;
use futures::stream::BoxStream;

pub use crate::mvcc::Write;
pub use limiter::Class;
pub use metrics::Metrics;

/// Most operations in one batch for [`Backend::write`], where the store does not say less.
pub const BATCH_MAX: usize = 1000;

/// Why a store did not do something.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It cannot be reached, or did not answer in time: the same may work later.
    #[error("{0}")]
    Unavailable(String),
    /// It has no room for more; what is deleted makes some.
    #[error("{0}")]
    Full(String),
    /// It will never take this.
    #[error("{0}")]
    Rejected(String),
}

/// A store to write to. There is one writer for each key.
#[async_trait::async_trait]
pub trait Backend: Send + Sync {
    /// Everything that begins with `prefix`, and is ours: it stays as long as we live.
    async fn list(&self, prefix: &str) -> Result<Vec<(Bytes, Bytes)>, Error>;

    /// Everything that begins with `prefix`, which may be others'.
    async fn look(&self, prefix: &str) -> Result<Vec<(Bytes, Bytes)>, Error> {
        self.list(prefix).await
    }

    /// The value of one key.
    async fn get(&self, key: &str) -> Result<Option<Bytes>, Error>;

    /// The value of one key that is ours: if it is there, it stays as long as we live.
    async fn own(&self, key: &str) -> Result<Option<Bytes>, Error> {
        self.get(key).await
    }

    /// Most writes that are worth giving it at once: those that fit one request now.
    fn batch(&self) -> usize {
        BATCH_MAX
    }

    /// Applies `writes` in order, at once where the store can. Keys are distinct. Fails if there is no answer in
    /// time; waiting for a limit is no failure.
    async fn write(&self, class: Class, writes: &[Write]) -> Result<(), Error>;

    /// Deletes everything that begins with `prefix`.
    async fn delete_prefix(&self, prefix: &str) -> Result<(), Error>;

    /// Yields whenever `key` may have changed.
    fn changes(&self, key: &str) -> BoxStream<'static, ()>;

    /// Whether the store may lose what was written while its writer lives.
    fn can_lose(&self) -> bool {
        false
    }

    /// How many times the store may have lost what was written, by a lease that ran out; who sees it
    /// change looks again at what is there.
    fn losses(&self) -> u64 {
        0
    }

    /// For how long the store has been unusable, and why; `None` while it is not known to be.
    fn outage(&self) -> Option<Outage> {
        None
    }

    /// What it is, for status texts.
    fn describe(&self) -> String;
}
