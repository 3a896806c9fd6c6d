//! Desired state, diffed: what should be in a store, and the writes that make it so.
//!
//! A writer owns prefixes. It says what each key should be; only differences are written, in batches and
//! in the order they came up, so a canary queued behind its data is written after it. What was there
//! before counts: the owned prefixes are listed first, so a restart writes nothing that did not change,
//! and keys of a former life go once the first list is complete.

use super::{BATCH_MAX, Backend, Error, Write};
use crate::util::backoff::Backoff;
use bytes::Bytes;
use parking_lot::Mutex;
use std::collections::{BTreeMap, BTreeSet, HashSet, VecDeque};
use std::hash::{BuildHasher, RandomState};
use std::ops::Bound;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Notify;

/// A write that takes longer has failed.
const WRITE_TIMEOUT: Duration = Duration::from_secs(30);
/// Bytes of values in one batch: below etcd's largest request.
const BATCH_BYTES: usize = 1 << 20;

/// A key's value by its hash; values themselves are kept only until they are written.
type Digest = (u64, u64);

/// What a key is in the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Written {
    /// This, or absent.
    Known(Option<Digest>),
    /// A write is on its way, or its outcome is not known: only another write makes sure.
    Unknown,
}

/// See the module's text.
pub struct SyncStore {
    name: String,
    backend: Arc<dyn Backend>,
    prefixes: Vec<String>,
    /// Whether values are kept after they are written, because the store may lose them.
    retain: bool,
    hashers: (RandomState, RandomState),
    state: Mutex<State>,
    wake: Notify,
    /// Told when writes are in the store.
    progress: Notify,
}

#[derive(Default)]
struct State {
    keys: BTreeMap<Bytes, Entry>,
    queue: VecDeque<Bytes>,
    /// Lists begun so far.
    generation: u64,
    /// Prefixes whose list has ended at least once: what nobody named there is stale.
    ended: BTreeSet<String>,
    stats: Stats,
}

struct Entry {
    /// What it should be; none: absent.
    desired: Option<Digest>,
    /// What it is, as far as known.
    written: Written,
    /// The value to write, while it differs.
    value: Option<Bytes>,
    queued: bool,
    /// The list that last named it.
    generation: u64,
    /// Written even if unchanged: a canary.
    always: bool,
}

impl Default for Entry {
    fn default() -> Self {
        Self {
            desired: None,
            written: Written::Known(None),
            value: None,
            queued: false,
            generation: 0,
            always: false,
        }
    }
}

impl Entry {
    fn is_as_desired(&self) -> bool {
        self.written == Written::Known(self.desired)
    }
}

/// What has been done, and what is waiting.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Keys written or deleted.
    pub writes: u64,
    /// Batches that failed and were tried again.
    pub failures: u64,
    /// Writes that the store will never take.
    pub rejected: u64,
    /// Keys waiting.
    pub queued: usize,
}

impl SyncStore {
    /// A writer that owns `prefixes` of `backend`, and the single keys it is told to write.
    pub fn new(name: impl Into<String>, backend: Arc<dyn Backend>, prefixes: Vec<String>) -> Self {
        Self {
            name: name.into(),
            retain: backend.can_lose(),
            backend,
            prefixes,
            hashers: Default::default(),
            state: Mutex::default(),
            wake: Notify::new(),
            progress: Notify::new(),
        }
    }

    fn digest(&self, value: &[u8]) -> Digest {
        (self.hashers.0.hash_one(value), self.hashers.1.hash_one(value))
    }

    /// The key should have this value.
    pub fn upsert(&self, key: impl Into<Bytes>, value: impl Into<Bytes>) {
        self.desire(key.into(), Some(value.into()), false);
    }

    /// The key should be absent.
    pub fn delete(&self, key: impl Into<Bytes>) {
        self.desire(key.into(), None, false);
    }

    /// Writes the key behind everything queued so far, even if it has this value already.
    pub fn canary(&self, key: impl Into<Bytes>, value: impl Into<Bytes>) {
        self.desire(key.into(), Some(value.into()), true);
    }

    fn desire(&self, key: Bytes, value: Option<Bytes>, always: bool) {
        let desired = value.as_ref().map(|v| self.digest(v));
        let mut state = self.state.lock();
        let State {
            keys,
            queue,
            generation,
            ..
        } = &mut *state;
        if desired.is_none() && !keys.contains_key(&key) {
            return;
        }
        let entry = keys.entry(key.clone()).or_default();
        (entry.desired, entry.generation, entry.always) = (desired, *generation, always);
        if entry.is_as_desired() && !always {
            // As it is already; a queued write of something else is skipped when its turn comes.
            entry.value = value.filter(|_| self.retain);
            return;
        }
        entry.value = value;
        if !entry.queued {
            entry.queued = true;
            queue.push_back(key);
            self.wake.notify_one();
        }
    }

    /// Begins a list: keys desired from now on count as named by it.
    pub fn begin_list(&self) -> u64 {
        let mut state = self.state.lock();
        state.generation += 1;
        state.generation
    }

    /// Ends a list of `prefix`: whatever there is under it that was not named since should be absent.
    pub fn end_list(&self, prefix: &str, generation: u64) {
        let mut state = self.state.lock();
        let State { keys, queue, ended, .. } = &mut *state;
        ended.insert(prefix.to_owned());
        let range = (Bound::Included(prefix.as_bytes()), Bound::Unbounded);
        let under = keys
            .range_mut::<[u8], _>(range)
            .take_while(|(k, _)| k.starts_with(prefix.as_bytes()));
        for (key, entry) in under.filter(|(_, e)| e.generation < generation) {
            (entry.desired, entry.value) = (None, None);
            if !entry.is_as_desired() && !entry.queued {
                entry.queued = true;
                queue.push_back(key.clone());
            }
        }
        self.wake.notify_one();
    }

    /// What has been done, and what is waiting.
    pub fn stats(&self) -> Stats {
        let state = self.state.lock();
        Stats {
            queued: state.queue.len(),
            ..state.stats
        }
    }

    /// How many keys under `prefix` should be there.
    pub fn desired(&self, prefix: &str) -> usize {
        let state = self.state.lock();
        let range = (Bound::Included(prefix.as_bytes()), Bound::Unbounded);
        let under = state
            .keys
            .range::<[u8], _>(range)
            .take_while(|(k, _)| k.starts_with(prefix.as_bytes()));
        under.filter(|(_, e)| e.desired.is_some()).count()
    }

    /// Whether `key` is in the store as it should be.
    pub fn is_written(&self, key: &str) -> bool {
        let state = self.state.lock();
        state
            .keys
            .get(key.as_bytes())
            .is_some_and(|e| e.desired.is_some() && e.is_as_desired() && !e.queued)
    }

    /// Waits until `key` is in the store as it should be.
    pub async fn written(&self, key: &str) {
        loop {
            let progress = self.progress.notified();
            tokio::pin!(progress);
            progress.as_mut().enable();
            if self.is_written(key) {
                return;
            }
            progress.await;
        }
    }

    /// Looks at what is there, then writes, for ever.
    pub async fn run(&self) {
        let mut losses = self.adopt().await;
        let mut backoff = Backoff::write();
        loop {
            if self.backend.losses() != losses {
                tracing::warn!(store = self.name, "leases ran out: looking at what is left");
                losses = self.adopt().await;
            }
            let batch = self.next_batch();
            if batch.is_empty() {
                tokio::select! {
                    () = self.wake.notified() => {}
                    // A loss is noticed even when there is nothing to write.
                    () = tokio::time::sleep(Duration::from_secs(5)) => {}
                }
                continue;
            }
            match self.write(&batch).await {
                Ok(()) => {
                    backoff.reset();
                    self.done(&batch);
                }
                Err(Error::Rejected(error)) if batch.len() == 1 => {
                    let key = String::from_utf8_lossy(key_of(&batch[0]));
                    tracing::error!(store = self.name, %key, error, "the store refuses this key: skipped");
                    self.refused(&batch[0]);
                }
                Err(Error::Rejected(_)) => self.write_one_by_one(&batch).await,
                Err(Error::Unavailable(error)) => {
                    self.state.lock().stats.failures += 1;
                    if backoff.attempts().is_multiple_of(10) {
                        tracing::warn!(
                            store = self.name,
                            error,
                            keys = batch.len(),
                            "writing failed, trying again"
                        );
                    }
                    self.requeue(&batch);
                    backoff.wait().await;
                }
            }
        }
    }

    async fn write(&self, batch: &[Write]) -> Result<(), Error> {
        let write = tokio::time::timeout(WRITE_TIMEOUT, self.backend.write(batch)).await;
        write.unwrap_or_else(|_| Err(Error::Unavailable("no answer in time".to_owned())))
    }

    /// After a batch was refused: finds the key at fault, so that it does not hold up the others.
    async fn write_one_by_one(&self, batch: &[Write]) {
        for (at, write) in batch.iter().enumerate() {
            match self.write(std::slice::from_ref(write)).await {
                Ok(()) => self.done(std::slice::from_ref(write)),
                Err(Error::Rejected(error)) => {
                    let key = String::from_utf8_lossy(key_of(write));
                    tracing::error!(store = self.name, %key, error, "the store refuses this key: skipped");
                    self.refused(write);
                }
                Err(Error::Unavailable(_)) => return self.requeue(&batch[at..]),
            }
        }
    }

    /// Learns what is under the owned prefixes; returns the backend's losses it has thereby covered.
    async fn adopt(&self) -> u64 {
        let mut backoff = Backoff::write();
        'again: loop {
            let losses = self.backend.losses();
            let mut found = vec![];
            for prefix in &self.prefixes {
                match self.backend.list(prefix).await {
                    Ok(kvs) => found.extend(kvs),
                    Err(error) => {
                        if backoff.attempts().is_multiple_of(10) {
                            tracing::warn!(store = self.name, %error, prefix, "listing failed, trying again");
                        }
                        backoff.wait().await;
                        continue 'again;
                    }
                }
            }
            self.adopted(found);
            return losses;
        }
    }

    fn adopted(&self, found: Vec<(Bytes, Bytes)>) {
        let mut state = self.state.lock();
        let State { keys, queue, ended, .. } = &mut *state;
        keys.values_mut().for_each(|e| e.written = Written::Known(None));
        for (key, value) in found {
            keys.entry(key).or_default().written = Written::Known(Some(self.digest(&value)));
        }
        for (key, entry) in keys.iter_mut().filter(|(_, e)| !e.is_as_desired() && !e.queued) {
            let stale = || ended.iter().any(|p| key.starts_with(p.as_bytes()));
            if entry.value.is_some() {
                entry.queued = true;
                queue.push_back(key.clone());
            } else if entry.desired.is_none() && stale() {
                // Before anything that waits, the canary of a list that has ended among it.
                entry.queued = true;
                queue.push_front(key.clone());
            }
        }
    }

    /// Takes the next writes off the queue.
    fn next_batch(&self) -> Vec<Write> {
        let mut state = self.state.lock();
        let State { keys, queue, .. } = &mut *state;
        let (mut batch, mut bytes) = (Vec::new(), 0);
        while batch.len() < BATCH_MAX && bytes < BATCH_BYTES {
            let Some(key) = queue.pop_front() else { break };
            let Some(entry) = keys.get_mut(&key) else { continue };
            entry.queued = false;
            match (&entry.value, entry.desired) {
                _ if entry.is_as_desired() && !entry.always => {
                    entry.value = entry.value.take().filter(|_| self.retain);
                }
                (Some(value), Some(_)) => {
                    bytes += key.len() + value.len();
                    entry.written = Written::Unknown;
                    batch.push(Write::Put(key, value.clone()));
                }
                (_, None) => {
                    entry.written = Written::Unknown;
                    batch.push(Write::Delete(key));
                }
                (None, Some(_)) => {}
            }
        }
        batch
    }

    /// Notes that a batch is in the store. A key that was asked to change since is queued again.
    fn done(&self, batch: &[Write]) {
        let mut state = self.state.lock();
        let State { keys, queue, stats, .. } = &mut *state;
        stats.writes += batch.len() as u64;
        for write in batch {
            let (key, written) = match write {
                Write::Put(key, value) => (key, Some(self.digest(value))),
                Write::Delete(key) => (key, None),
            };
            let Some(entry) = keys.get_mut(key) else { continue };
            entry.written = Written::Known(written);
            if entry.queued {
                continue;
            }
            if !entry.is_as_desired() {
                entry.queued = true;
                queue.push_back(key.clone());
                continue;
            }
            entry.always = false;
            if !self.retain {
                entry.value = None;
            }
            if written.is_none() {
                keys.remove(key);
            }
        }
        drop(state);
        self.progress.notify_waiters();
    }

    fn refused(&self, write: &Write) {
        let mut state = self.state.lock();
        state.stats.rejected += 1;
        if let Some(entry) = state.keys.get_mut(key_of(write)).filter(|e| !e.queued) {
            entry.value = None;
        }
    }

    /// Puts a failed batch back at the front, in its order. What was queued again meanwhile moves there,
    /// too, or a canary that waits behind the batch would go first.
    fn requeue(&self, batch: &[Write]) {
        let mut state = self.state.lock();
        let State { keys, queue, .. } = &mut *state;
        let failed: HashSet<&[u8]> = batch.iter().map(key_of).collect();
        queue.retain(|key| !failed.contains(&key[..]));
        for write in batch.iter().rev() {
            let (Write::Put(key, _) | Write::Delete(key)) = write;
            if let Some(entry) = keys.get_mut(key) {
                entry.queued = true;
                queue.push_front(key.clone());
            }
        }
    }
}

fn key_of(write: &Write) -> &[u8] {
    let (Write::Put(key, _) | Write::Delete(key)) = write;
    key
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kvstore::local::LocalBackend;
    use crate::mvcc::Store;
    use futures::stream::BoxStream;
    use std::sync::atomic::{AtomicU32, Ordering};

    fn put(key: &str, value: &str) -> Write {
        Write::Put(key.to_owned().into(), value.to_owned().into())
    }

    fn sync_store(store: &Arc<Store>) -> SyncStore {
        SyncStore::new(
            "test",
            Arc::new(LocalBackend::new(Arc::clone(store))),
            vec!["p/".to_owned()],
        )
    }

    async fn run_until(sync: &SyncStore, done: impl Fn() -> bool) {
        let wait = async {
            while !done() {
                tokio::task::yield_now().await;
            }
        };
        tokio::select! {
            () = sync.run() => {}
            () = wait => {}
            () = tokio::time::sleep(Duration::from_secs(10)) => panic!("did not settle"),
        }
    }

    #[tokio::test]
    async fn a_restart_writes_only_differences_and_deletes_what_went() {
        restart(false).await;
        restart(true).await;
    }

    /// The lists of the store and of the source may end in either order.
    async fn restart(list_ends_first: bool) {
        let store = Store::new();
        store.apply(&[
            put("p/same", "1"),
            put("p/changed", "1"),
            put("p/gone", "1"),
            put("q/other", "1"),
        ]);
        let sync = sync_store(&store);
        let list = sync.begin_list();
        sync.upsert("p/same", "1");
        sync.upsert("p/changed", "2");
        sync.upsert("p/new", "1");
        if list_ends_first {
            sync.end_list("p/", list);
            sync.canary("canary", "t");
        } else {
            run_until(&sync, || store.get(b"p/new").is_some()).await;
            assert_eq!(store.revision(), 3, "one batch");
            sync.end_list("p/", list);
            sync.canary("canary", "t");
        }
        run_until(&sync, || store.get(b"canary").is_some()).await;
        let revision = |key: &[u8]| store.get(key).map(|kv| kv.fields().mod_revision);
        assert_eq!(revision(b"p/same"), Some(2));
        assert_eq!(revision(b"p/gone"), None);
        assert_eq!(revision(b"q/other"), Some(2));
        assert!(sync.is_written("canary") && sync.is_written("p/same"));
        assert_eq!(sync.desired("p/"), 3);
    }

    #[tokio::test]
    async fn a_key_that_changes_back_before_its_turn_is_not_written() {
        let store = Store::new();
        store.apply(&[put("p/a", "1")]);
        let sync = sync_store(&store);
        sync.upsert("p/a", "1");
        run_until(&sync, || sync.is_written("p/a")).await;
        sync.upsert("p/a", "2");
        sync.upsert("p/a", "1");
        sync.upsert("p/b", "1");
        run_until(&sync, || store.get(b"p/b").is_some()).await;
        assert_eq!(store.get(b"p/a").unwrap().fields().version, 1);
    }

    /// Fails at first, and never takes one key.
    struct Flaky(LocalBackend, AtomicU32);

    #[async_trait::async_trait]
    impl Backend for Flaky {
        async fn list(&self, prefix: &str) -> Result<Vec<(Bytes, Bytes)>, Error> {
            self.0.list(prefix).await
        }
        async fn get(&self, key: &str) -> Result<Option<Bytes>, Error> {
            self.0.get(key).await
        }
        async fn write(&self, writes: &[Write]) -> Result<(), Error> {
            if self.1.fetch_add(1, Ordering::Relaxed) < 3 {
                return Err(Error::Unavailable("away".to_owned()));
            }
            if writes.iter().any(|w| key_of(w) == b"p/huge") {
                return Err(Error::Rejected("too large".to_owned()));
            }
            self.0.write(writes).await
        }
        async fn delete_prefix(&self, prefix: &str) -> Result<(), Error> {
            self.0.delete_prefix(prefix).await
        }
        fn changes(&self, key: &str) -> BoxStream<'static, ()> {
            self.0.changes(key)
        }
        fn can_lose(&self) -> bool {
            true
        }
        fn losses(&self) -> u64 {
            u64::from(self.1.load(Ordering::Relaxed) >= 100)
        }
        fn describe(&self) -> String {
            String::new()
        }
    }

    /// A key that changes while a write of it is on its way, in every order that could lose the change.
    #[tokio::test]
    async fn a_change_during_a_write_is_not_lost() {
        let store = Store::new();
        let sync = sync_store(&store);
        sync.adopted(vec![("p/old".into(), "1".into())]);
        store.apply(&[put("p/old", "1")]);
        let in_flight = |sync: &SyncStore| sync.next_batch();
        // Created, then deleted while the put is on its way.
        sync.upsert("p/new", "1");
        let batch = in_flight(&sync);
        sync.delete("p/new");
        store.apply(&batch);
        sync.done(&batch);
        let batch = in_flight(&sync);
        assert_eq!(batch, [Write::Delete("p/new".into())]);
        sync.done(&batch);
        // Deleted, then there again with its old value.
        let list = sync.begin_list();
        sync.end_list("p/", list);
        let batch = in_flight(&sync);
        assert_eq!(batch, [Write::Delete("p/old".into())]);
        sync.upsert("p/old", "1");
        sync.done(&batch);
        let batch = in_flight(&sync);
        assert_eq!(batch, [put("p/old", "1")]);
        sync.done(&batch);
        // A list that ends while a key it does not name is on its way.
        sync.upsert("p/late", "1");
        let batch = in_flight(&sync);
        let list = sync.begin_list();
        sync.end_list("p/", list);
        sync.done(&batch);
        assert!(in_flight(&sync).contains(&Write::Delete("p/late".into())));
    }

    #[tokio::test]
    async fn a_canary_does_not_overtake_a_batch_that_failed() {
        let store = Store::new();
        let sync = sync_store(&store);
        sync.upsert("p/a", "1");
        let batch = sync.next_batch();
        sync.canary("canary", "t");
        sync.upsert("p/a", "2");
        sync.requeue(&batch);
        assert_eq!(sync.next_batch(), [put("p/a", "2"), put("canary", "t")]);
        // Whether a write that failed took place is not known, so the old value is written again.
        sync.upsert("p/b", "1");
        let batch = sync.next_batch();
        sync.requeue(&batch);
        sync.delete("p/b");
        assert_eq!(sync.next_batch(), [Write::Delete("p/b".into())]);
    }

    #[tokio::test(start_paused = true)]
    async fn what_a_store_lost_is_written_again() {
        let store = Store::new();
        let lossy = Arc::new(Flaky(LocalBackend::new(Arc::clone(&store)), AtomicU32::new(3)));
        let sync = SyncStore::new("test", Arc::clone(&lossy) as _, vec!["p/".to_owned()]);
        sync.upsert("p/a", "1");
        let gone = async {
            sync.written("p/a").await;
            store.delete(&crate::mvcc::KeyRange::key("p/a"));
            // The next write is the hundredth, at which this store says it lost something.
            lossy.1.store(100, Ordering::Relaxed);
            while store.get(b"p/a").is_none() {
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        };
        tokio::select! { () = sync.run() => {}, () = gone => {} }
    }

    #[tokio::test(start_paused = true)]
    async fn failures_are_tried_again_in_order_and_one_bad_key_does_not_hold_up_the_rest() {
        let store = Store::new();
        let backend = Flaky(LocalBackend::new(Arc::clone(&store)), AtomicU32::new(0));
        let sync = SyncStore::new("test", Arc::new(backend), vec!["p/".to_owned()]);
        for key in ["p/a", "p/huge", "p/b"] {
            sync.upsert(key, "1");
        }
        sync.canary("canary", "t");
        let done = async {
            while store.get(b"canary").is_none() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::select! { () = sync.run() => {}, () = done => {} }
        assert!(store.get(b"p/a").is_some() && store.get(b"p/b").is_some());
        assert_eq!(
            sync.stats(),
            Stats {
                writes: 3,
                failures: 3,
                rejected: 1,
                queued: 0
            }
        );
    }
}
