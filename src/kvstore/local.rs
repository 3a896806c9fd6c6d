//! The store of this process as a [`Backend`]: without sockets, leases and limits.

use super::{Backend, Class, Error, HistoryMark, StoredKey, Write, Written};
use crate::model::keys;
use crate::mvcc::{KeyRange, RangeOptions, Store, Wake, WatchFilter, WatchUpdate};
use crate::util::deliveries::{Change, Deliveries};
use crate::util::outage::Outage;
use crate::util::trace::Cause;
use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream::{BoxStream, StreamExt};
use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::Instant;

/// Bytes that a put takes beside its key and value, as for a client's put.
const PUT_OVERHEAD: usize = 256;
/// A write that is not durable after this time is reported as failed.
const DEADLINE: Duration = Duration::from_secs(30);

pub struct LocalBackend {
    store: Arc<Store>,
    /// `None`: the store is kept in memory only, and writes wait for nothing.
    durability: Option<Arc<dyn LocalDisk>>,
    /// Bytes that the store may take.
    quota_bytes: usize,
    /// Set when a writer waits for a compaction.
    compaction_wanted: Arc<AtomicBool>,
    /// Since when writes have been refused.
    refused_since: Mutex<Option<Instant>>,
    /// When watchers receive what was written.
    deliveries: Arc<Deliveries>,
    /// The cluster id of the store; 0 if it is not known.
    store_id: u64,
}

/// Makes writes survive a crash.
pub trait LocalDisk: Send + Sync {
    /// Whether the disk accepts another write; if not, the reason.
    fn admit(&self) -> Result<(), String>;
    /// Waits until `revision` survives a crash.
    fn wait_durable(&self, revision: i64) -> BoxFuture<'_, Result<(), String>>;
}

struct NotifyWake(Notify);

impl Wake for NotifyWake {
    fn wake(&self) {
        self.0.notify_one();
    }
}

impl LocalBackend {
    /// A backend for a store in memory.
    pub fn new(store: Arc<Store>) -> Self {
        Self {
            store,
            durability: None,
            quota_bytes: usize::MAX,
            compaction_wanted: Arc::default(),
            refused_since: Mutex::default(),
            deliveries: Arc::default(),
            store_id: 0,
        }
    }

    /// A backend whose writes return once they are durable.
    pub fn durable(store: Arc<Store>, durability: Arc<dyn LocalDisk>) -> Self {
        Self {
            durability: Some(durability),
            ..Self::new(store)
        }
    }

    /// Refuses puts that the store has no quota for. The alarm of the quota is left to clients: the keys of a remote
    /// cluster must not raise it.
    pub fn with_quota(self, bytes: usize) -> Self {
        Self {
            quota_bytes: bytes,
            ..self
        }
    }

    /// Sets `wanted` when a writer waits for a compaction.
    pub fn with_compaction(self, wanted: Arc<AtomicBool>) -> Self {
        Self {
            compaction_wanted: wanted,
            ..self
        }
    }

    /// Tells `deliveries` of writes to the store, whose cluster id is `store_id`.
    pub fn with_deliveries(self, deliveries: Arc<Deliveries>, store_id: u64) -> Self {
        Self {
            deliveries,
            store_id,
            ..self
        }
    }

    /// Whether `growth` more bytes are within the quota.
    fn admit_growth(&self, growth: usize) -> Result<(), Error> {
        match self.store.size().saturating_add(growth) < self.quota_bytes {
            true => Ok(()),
            false => Err(Error::Full(format!(
                "the store is over its quota of {} bytes (--quota-backend-bytes); raise the quota, or delete keys",
                self.quota_bytes
            ))),
        }
    }

    /// Why puts or all writes are refused.
    fn refusal(&self) -> Option<String> {
        let disk = self.durability.as_ref().and_then(|durability| durability.admit().err());
        disk.or_else(|| self.admit_growth(0).err().map(|full| full.to_string()))
    }

    /// Runs `write`, which returns its revision, and waits until that is durable.
    async fn commit(&self, write: impl FnOnce(&Store) -> i64) -> Result<i64, Error> {
        let Some(durability) = &self.durability else {
            return Ok(write(&self.store));
        };
        durability.admit().map_err(Error::Unavailable)?;
        let revision = write(&self.store);
        let durable = tokio::time::timeout(DEADLINE, durability.wait_durable(revision)).await;
        let late = |_| Err(format!("not on the disk in {} s", DEADLINE.as_secs()));
        durable.unwrap_or_else(late).map_err(Error::Unavailable)?;
        Ok(revision)
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

    async fn write(&self, _: Class, writes: &[Write], cause: Cause<'_>) -> Result<Written, Error> {
        let growth = writes.iter().map(|write| match write {
            Write::Put(key, value) => PUT_OVERHEAD + key.len() + value.len(),
            Write::Delete(_) => 0,
        });
        match growth.sum() {
            0 => {}
            growth => self.admit_growth(growth)?,
        }
        let mut written = writes.iter().map(|(Write::Put(key, _) | Write::Delete(key))| key);
        // The configuration of a cluster and its canaries are written with its keys.
        let is_copy = |key: &&Bytes| keys::mirrored_from(key).is_some();
        let key = written.clone().find(is_copy).or_else(|| written.next());
        let change = Change {
            key: key.map_or(&[][..], |key| &key[..]),
            cluster: key.and_then(|key| keys::mirrored_from(key)),
            store_id: self.store_id,
            cause,
        };
        let apply = |store: &Store| {
            let revision = |revision: &i64| Some(*revision);
            self.deliveries.commit(change, revision, || store.apply(writes))
        };
        Ok(Written {
            store_id: self.store_id,
            revision: self.commit(apply).await?,
        })
    }

    async fn delete_prefix(&self, prefix: &str) -> Result<(), Error> {
        let prefix = KeyRange::prefix(prefix.to_owned());
        self.commit(|store| store.delete(&prefix).revision).await.map(drop)
    }

    fn changes(&self, key: &str) -> BoxStream<'static, ()> {
        let wake = Arc::new(NotifyWake(Notify::new()));
        let filter = WatchFilter::new(KeyRange::key(key.to_owned()));
        let watcher = self.store.watch(filter, 0, Arc::clone(&wake) as _);
        let stream = futures::stream::unfold((watcher, wake), |(mut watcher, wake)| async move {
            loop {
                match watcher.take(usize::MAX) {
                    WatchUpdate::Nothing => wake.0.notified().await,
                    WatchUpdate::Later => tokio::task::yield_now().await,
                    WatchUpdate::Events { .. } | WatchUpdate::Compacted(_) => break,
                }
            }
            Some(((), (watcher, wake)))
        });
        stream.boxed()
    }

    fn deliveries(&self) -> Option<&Deliveries> {
        Some(&self.deliveries)
    }

    fn outage(&self) -> Option<Outage> {
        let refused = self.refusal();
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

    fn history(&self) -> Option<HistoryMark> {
        Some(HistoryMark {
            revision: self.store.revision(),
            compacted: self.store.compacted(),
        })
    }

    fn request_compaction(&self) {
        self.compaction_wanted.store(true, Ordering::Relaxed);
    }

    fn describe(&self) -> String {
        "local store".to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_store_over_its_quota_takes_deletions_only_and_says_so() {
        let store = Store::new();
        let backend = LocalBackend::new(Arc::clone(&store)).with_quota(store.size() + 2000);
        let put = |key: &str| [Write::Put(key.to_owned().into(), vec![7; 500].into())];
        backend.write(Class::Live, &put("a"), Cause::Untraced).await.unwrap();
        assert!(backend.outage().is_none());
        backend.write(Class::Live, &put("b"), Cause::Untraced).await.unwrap();
        let refused = backend.write(Class::Live, &put("c"), Cause::Untraced).await;
        assert!(
            matches!(&refused, Err(Error::Full(why)) if why.contains("--quota-backend-bytes")),
            "{refused:?}"
        );
        store
            .put(crate::mvcc::Put {
                key: "client".into(),
                value: vec![7; 1000].into(),
                ..Default::default()
            })
            .unwrap();
        assert!(backend.outage().unwrap().reason.contains("over its quota of"));
        let delete = ["a", "b", "client"].map(|key| Write::Delete(key.into()));
        backend.write(Class::Live, &delete, Cause::Untraced).await.unwrap();
        store.compact(store.revision()).unwrap();
        while store.purge() {}
        backend.write(Class::Live, &put("c"), Cause::Untraced).await.unwrap();
        assert!(backend.outage().is_none());
    }
}
