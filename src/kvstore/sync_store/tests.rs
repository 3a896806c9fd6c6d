mod counters;
mod limits;

use super::entry::Entry;
use super::*;
use crate::kvstore::local::LocalBackend;
use crate::kvstore::{Class, Error, StoredKey, Written};
use crate::mvcc::Store;
use crate::util::trace::Cause;
use futures::stream::BoxStream;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::sync::watch;

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
    tokio::select! {
        () = sync.run() => {}
        () = until(&sync.progress, done) => {}
        () = tokio::time::sleep(Duration::from_secs(10)) => panic!("did not settle"),
    }
}

/// The list that ends first.
#[derive(PartialEq)]
enum Order {
    StoreFirst,
    SourceFirst,
}

#[tokio::test]
async fn a_restart_writes_only_differences_and_deletes_stale_keys() {
    restart(Order::StoreFirst).await;
    restart(Order::SourceFirst).await;
}

/// The list of the source may end before or after the list of the store.
async fn restart(order: Order) {
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
    if order == Order::SourceFirst {
        sync.end_list("p/", list);
        sync.queue_canary("canary", "t");
    } else {
        run_until(&sync, || store.get(b"p/new").is_some()).await;
        assert_eq!(store.revision(), 3, "one batch");
        sync.end_list("p/", list);
        sync.queue_canary("canary", "t");
    }
    run_until(&sync, || store.get(b"canary").is_some()).await;
    let revision = |key: &[u8]| store.get(key).map(|kv| kv.fields().mod_revision);
    assert_eq!(revision(b"p/same"), Some(2));
    assert_eq!(revision(b"p/gone"), None);
    assert_eq!(revision(b"q/other"), Some(2));
    assert!(sync.is_written("canary") && sync.is_written("p/same"));
    assert_eq!(sync.desired("p/").keys, 3);
}

#[tokio::test]
async fn a_key_that_changes_back_before_its_write_is_not_written() {
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

/// A store whose writes fail as a test configures, and that reports expired leases.
struct Faulty<F> {
    store: LocalBackend,
    refuse: F,
    expired: watch::Sender<u64>,
}

impl<F> Faulty<F> {
    fn new(store: &Arc<Store>, refuse: F) -> Arc<Self> {
        Arc::new(Self {
            store: LocalBackend::new(Arc::clone(store)),
            refuse,
            expired: watch::Sender::new(0),
        })
    }
}

#[async_trait::async_trait]
impl<F: Fn(&[Write]) -> Result<(), Error> + Send + Sync> Backend for Faulty<F> {
    async fn list(&self, prefix: &str) -> Result<Vec<StoredKey>, Error> {
        self.store.list(prefix).await
    }
    async fn get(&self, key: &str) -> Result<Option<Bytes>, Error> {
        self.store.get(key).await
    }
    async fn write(&self, class: Class, writes: &[Write], cause: Cause<'_>) -> Result<Written, Error> {
        (self.refuse)(writes)?;
        self.store.write(class, writes, cause).await
    }
    async fn delete_prefix(&self, prefix: &str) -> Result<(), Error> {
        self.store.delete_prefix(prefix).await
    }
    fn changes(&self, key: &str) -> BoxStream<'static, ()> {
        self.store.changes(key)
    }
    fn expired_leases(&self) -> Option<watch::Receiver<u64>> {
        Some(self.expired.subscribe())
    }
    fn describe(&self) -> String {
        String::new()
    }
}

/// A key that changes while a write of it is in flight, in every order that could lose the change.
#[tokio::test]
async fn a_change_during_a_write_is_not_lost() {
    let store = Store::new();
    let sync = sync_store(&store);
    sync.adopted(vec![StoredKey {
        key: "p/old".into(),
        value: "1".into(),
    }]);
    store.apply(&[put("p/old", "1")]);
    let in_flight = |sync: &SyncStore| sync.next_batch();
    // Created, then deleted while the put is in flight.
    sync.upsert("p/new", "1");
    let batch = in_flight(&sync);
    sync.delete("p/new");
    store.apply(&batch);
    sync.done(&batch);
    let batch = in_flight(&sync);
    assert_eq!(batch, [Write::Delete("p/new".into())]);
    sync.done(&batch);
    // Deleted, then created again with its old value while the deletion is in flight.
    let list = sync.begin_list();
    sync.end_list("p/", list);
    let batch = in_flight(&sync);
    assert_eq!(batch, [Write::Delete("p/old".into())]);
    sync.upsert("p/old", "1");
    sync.done(&batch);
    let batch = in_flight(&sync);
    assert_eq!(batch, [put("p/old", "1")]);
    sync.done(&batch);
    // A list that ends while a key that it does not contain is in flight.
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
    sync.queue_canary("canary", "t");
    sync.upsert("p/a", "2");
    sync.requeue(&batch);
    assert_eq!(sync.next_batch(), [put("p/a", "2"), put("canary", "t")]);
    // A write that failed may have taken place: the deletion of its key is written although the key seems absent.
    sync.upsert("p/b", "1");
    let batch = sync.next_batch();
    sync.requeue(&batch);
    sync.delete("p/b");
    assert_eq!(sync.next_batch(), [Write::Delete("p/b".into())]);
}

#[tokio::test(start_paused = true)]
async fn a_key_that_expired_is_written_again() {
    let store = Store::new();
    let lossy = Faulty::new(&store, |_: &[Write]| Ok(()));
    let sync = SyncStore::new("test", Arc::clone(&lossy) as _, vec!["p/".to_owned()]);
    sync.upsert("p/a", "1");
    let gone = async {
        sync.wait_written("p/a").await;
        store.delete(&crate::mvcc::KeyRange::key("p/a"));
        lossy.expired.send_replace(1);
        until(&sync.progress, || store.get(b"p/a").is_some()).await;
    };
    tokio::select! { () = sync.run() => {}, () = gone => {} }
}

#[tokio::test(start_paused = true)]
async fn failed_writes_are_retried_in_order_and_a_refused_key_does_not_hold_up_the_rest() {
    let store = Store::new();
    // Unavailable at first; refuses one key for ever.
    let calls = AtomicU64::new(0);
    let flaky = Faulty::new(&store, move |writes: &[Write]| {
        let huge = |w: &Write| !is_delete(w) && key_of(w) == b"p/huge";
        match calls.fetch_add(1, Ordering::Relaxed) {
            0..3 => Err(Error::Unavailable("away".to_owned())),
            _ if writes.iter().any(huge) => Err(Error::Rejected("too large".to_owned())),
            _ => Ok(()),
        }
    });
    let sync = SyncStore::new("test", flaky, vec!["p/".to_owned()]);
    for key in ["p/a", "p/huge", "p/b"] {
        sync.upsert(key, "1");
    }
    sync.queue_canary("canary", "t");
    let done = async {
        // The canary, two keys, and the deletion of the refused key.
        until(&sync.progress, || sync.stats().writes >= 4).await;
    };
    tokio::select! { () = sync.run() => {}, () = done => {} }
    assert!(store.get(b"p/a").is_some() && store.get(b"p/b").is_some());
    assert!(store.get(b"canary").is_some());
    assert_eq!(
        sync.stats(),
        WriterStats {
            writes: 4,
            failures: 3,
            rejected: 1,
            ..WriterStats::default()
        }
    );
}

/// A full store takes deletions only; the rest is written once they have made room.
#[tokio::test(start_paused = true)]
async fn deletions_make_room_in_a_full_store() {
    let store = Store::new();
    store.apply(&[put("p/1", "old"), put("p/2", "old"), put("p/3", "old")]);
    let all = Arc::clone(&store);
    let full = Faulty::new(&store, move |writes: &[Write]| {
        let there = ["p/1", "p/2", "p/3", "p/new"]
            .iter()
            .filter(|k| all.get(k.as_bytes()).is_some());
        match there.count() >= 3 && !writes.iter().all(is_delete) {
            true => Err(Error::Full("no room".to_owned())),
            false => Ok(()),
        }
    });
    let sync = SyncStore::new("test", full, vec!["p/".to_owned()]);
    for key in ["p/1", "p/2", "p/3"] {
        sync.upsert(key, "old");
    }
    run_until(&sync, || sync.is_written("p/3")).await;
    // The deletions that make room are queued behind the put that needs the room.
    sync.upsert("p/new", "1");
    sync.queue_canary("canary", "t");
    sync.delete("p/2");
    sync.delete("p/3");
    run_until(&sync, || store.get(b"canary").is_some()).await;
    let revision = |key: &[u8]| store.get(key).map(|kv| kv.fields().mod_revision);
    assert_eq!((revision(b"p/2"), revision(b"p/3")), (None, None));
    assert!(revision(b"p/new") > Some(2) && revision(b"p/new") <= revision(b"canary"));
    assert!(!sync.is_full());
}

/// A queued canary is written after the keys that the store has lost in the meantime, also if they were queued anyway.
#[tokio::test]
async fn lost_keys_are_written_before_a_queued_canary() {
    let store = Store::new();
    let sync = SyncStore::new("test", Faulty::new(&store, |_: &[Write]| Ok(())), vec!["p/".to_owned()]);
    sync.upsert("p/a", "1");
    sync.upsert("p/b", "1");
    let batch = sync.next_batch();
    sync.done(&batch);
    sync.upsert("p/c", "1");
    sync.queue_canary("canary", "t");
    sync.upsert("p/a", "2");
    sync.adopted(vec![]);
    let order: Vec<_> = sync
        .next_batch()
        .iter()
        .map(|w| String::from_utf8_lossy(key_of(w)).into_owned())
        .collect();
    assert_eq!(order, ["p/a", "p/b", "p/c", "canary"]);
}

#[tokio::test]
async fn keys_deleted_before_their_write_leave_no_entry() {
    let store = Store::new();
    let sync = sync_store(&store);
    for n in 0..100 {
        sync.upsert(format!("p/{n}"), "1");
        assert_eq!(sync.desired("p/"), PrefixSize { keys: 1, bytes: 1 });
        sync.upsert(format!("p/{n}"), "234");
        assert_eq!(sync.desired("p/"), PrefixSize { keys: 1, bytes: 3 });
        sync.delete(format!("p/{n}"));
    }
    sync.upsert("p/stays", "1");
    run_until(&sync, || sync.is_written("p/stays")).await;
    assert_eq!(store.revision(), 2);
    assert_eq!(sync.state.lock().table.len(), 1);
    assert_eq!(sync.desired("p/"), PrefixSize { keys: 1, bytes: 1 });
}

#[test]
fn an_entry_has_40_bytes() {
    assert_eq!(std::mem::size_of::<Entry>(), 40);
}
