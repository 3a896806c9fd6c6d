//! The store in this process: no socket, no lease, no limit.

use super::{Backend, Error, Write};
use crate::mvcc::{KeyRange, RangeOptions, Store, Taken, Wake, WatchFilter};
use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream::{BoxStream, StreamExt};
use std::sync::Arc;
use tokio::sync::Notify;

/// Writes straight into a store.
pub struct LocalBackend {
    store: Arc<Store>,
    /// Returns when a revision survives a crash; nothing to wait for without.
    safe: Option<Safe>,
}

/// See [`LocalBackend::durable`].
pub type Safe = Arc<dyn Fn(i64) -> BoxFuture<'static, Result<(), String>> + Send + Sync>;

struct NotifyWake(Notify);

impl Wake for NotifyWake {
    fn wake(&self) {
        self.0.notify_one();
    }
}

impl LocalBackend {
    /// A writer of `store`.
    pub fn new(store: Arc<Store>) -> Self {
        Self { store, safe: None }
    }

    /// A writer of `store` that waits until `safe` says of its revision that it survives a crash.
    pub fn durable(store: Arc<Store>, safe: Safe) -> Self {
        let safe = Some(safe);
        Self { store, safe }
    }

    async fn committed(&self, revision: i64) -> Result<(), Error> {
        match &self.safe {
            Some(safe) => safe(revision).await.map_err(Error::Unavailable),
            None => Ok(()),
        }
    }
}

#[async_trait::async_trait]
impl Backend for LocalBackend {
    async fn list(&self, prefix: &str) -> Result<Vec<(Bytes, Bytes)>, Error> {
        let range = KeyRange::prefix(prefix.to_owned());
        let result = self.store.range(&RangeOptions::new(range));
        let kvs = result.map_err(|e| Error::Unavailable(e.to_string()))?.kvs;
        let copy = Bytes::copy_from_slice;
        Ok(kvs.iter().map(|kv| (copy(kv.key()), copy(kv.value()))).collect())
    }

    async fn get(&self, key: &str) -> Result<Option<Bytes>, Error> {
        Ok(self
            .store
            .get(key.as_bytes())
            .map(|kv| Bytes::copy_from_slice(kv.value())))
    }

    async fn write(&self, writes: &[Write]) -> Result<(), Error> {
        self.committed(self.store.apply(writes)).await
    }

    async fn delete_prefix(&self, prefix: &str) -> Result<(), Error> {
        let (_, revision) = self.store.delete(&KeyRange::prefix(prefix.to_owned()));
        self.committed(revision).await
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

    fn describe(&self) -> String {
        "local store".to_owned()
    }
}
