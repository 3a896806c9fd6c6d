//! The store in this process: no socket, no lease, no limit.

use super::{Backend, Class, Error, StoredKey, Write};
use crate::mvcc::{KeyRange, RangeOptions, Store, Taken, Wake, WatchFilter};
use crate::util::outage::Outage;
use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream::{BoxStream, StreamExt};
use parking_lot::Mutex;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::Instant;

/// A disk that takes longer has failed.
const DEADLINE: Duration = Duration::from_secs(30);

/// Writes straight into a store.
pub struct LocalBackend {
    store: Arc<Store>,
    /// Nothing to wait for without.
    safety: Option<Arc<dyn Safety>>,
    /// Since when writes are known to be refused.
    refused_since: Mutex<Option<Instant>>,
}

/// What makes writes survive a crash.
pub trait Safety: Send + Sync {
    /// Whether another write can be made; if not, why.
    fn admit(&self) -> Result<(), String>;
    /// Returns when a revision survives a crash.
    fn safe(&self, revision: i64) -> BoxFuture<'_, Result<(), String>>;
}

struct NotifyWake(Notify);

impl Wake for NotifyWake {
    fn wake(&self) {
        self.0.notify_one();
    }
}

impl LocalBackend {
    /// A writer of `store`.
    pub fn new(store: Arc<Store>) -> Self {
        Self {
            store,
            safety: None,
            refused_since: Mutex::default(),
        }
    }

    /// A writer of `store` whose writes are done once they are safe.
    pub fn durable(store: Arc<Store>, safety: Arc<dyn Safety>) -> Self {
        Self {
            safety: Some(safety),
            ..Self::new(store)
        }
    }

    /// Makes a write, and returns when it is safe.
    async fn commit(&self, write: impl FnOnce(&Store) -> i64) -> Result<(), Error> {
        let Some(safety) = &self.safety else {
            write(&self.store);
            return Ok(());
        };
        safety.admit().map_err(Error::Unavailable)?;
        let revision = write(&self.store);
        let safe = tokio::time::timeout(DEADLINE, safety.safe(revision)).await;
        let late = |_| Err(format!("not on the disk in {} s", DEADLINE.as_secs()));
        safe.unwrap_or_else(late).map_err(Error::Unavailable)
    }
}

#[async_trait::async_trait]
impl Backend for LocalBackend {
    async fn list(&self, prefix: &str) -> Result<Vec<StoredKey>, Error> {
        let range = KeyRange::prefix(prefix.to_owned());
        let result = self.store.range(&RangeOptions::new(range));
        let kvs = result.map_err(|e| Error::Unavailable(e.to_string()))?.kvs;
        let found = kvs.iter().map(|kv| StoredKey {
            key: Bytes::copy_from_slice(kv.key()),
            value: Bytes::copy_from_slice(kv.value()),
        });
        Ok(found.collect())
    }

    async fn get(&self, key: &str) -> Result<Option<Bytes>, Error> {
        Ok(self
            .store
            .get(key.as_bytes())
            .map(|kv| Bytes::copy_from_slice(kv.value())))
    }

    async fn write(&self, _: Class, writes: &[Write]) -> Result<(), Error> {
        self.commit(|store| store.apply(writes)).await
    }

    async fn delete_prefix(&self, prefix: &str) -> Result<(), Error> {
        let prefix = KeyRange::prefix(prefix.to_owned());
        self.commit(|store| store.delete(&prefix).1).await
    }

    fn changes(&self, key: &str) -> BoxStream<'static, ()> {
        let wake = Arc::new(NotifyWake(Notify::new()));
        let filter = WatchFilter::new(KeyRange::key(key.to_owned()));
        let (watcher, _) = self.store.watch(filter, 0, Arc::clone(&wake) as _);
        let stream = futures::stream::unfold((watcher, wake), |(mut watcher, wake)| async move {
            while watcher.take(usize::MAX) == Taken::Nothing {
                wake.0.notified().await;
            }
            Some(((), (watcher, wake)))
        });
        stream.boxed()
    }

    fn outage(&self) -> Option<Outage> {
        let refused = self.safety.as_ref().map(|safety| safety.admit())?.err();
        let since = &mut *self.refused_since.lock();
        let Some(why) = refused else {
            *since = None;
            return None;
        };
        Some(Outage {
            lasted: since.get_or_insert_with(Instant::now).elapsed(),
            reason: why,
        })
    }

    fn describe(&self) -> String {
        "local store".to_owned()
    }
}
