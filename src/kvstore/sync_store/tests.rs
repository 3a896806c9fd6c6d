use super::*;
use crate::kvstore::local::LocalBackend;
use crate::kvstore::{Class, Error, StoredKey};
use crate::mvcc::Store;
use futures::stream::BoxStream;
use std::sync::atomic::{AtomicU64, Ordering};

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
            tokio::time::sleep(Duration::from_millis(1)).await;
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

/// A store that refuses what it is told to refuse, and loses something when it is told to.
struct Faulty<F> {
    store: LocalBackend,
    refuse: F,
    losses: AtomicU64,
}

impl<F> Faulty<F> {
    fn new(store: &Arc<Store>, refuse: F) -> Arc<Self> {
        Arc::new(Self {
            store: LocalBackend::new(Arc::clone(store)),
            refuse,
            losses: AtomicU64::new(0),
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
    async fn write(&self, class: Class, writes: &[Write]) -> Result<(), Error> {
        (self.refuse)(writes)?;
        self.store.write(class, writes).await
    }
    async fn delete_prefix(&self, prefix: &str) -> Result<(), Error> {
        self.store.delete_prefix(prefix).await
    }
    fn changes(&self, key: &str) -> BoxStream<'static, ()> {
        self.store.changes(key)
    }
    fn keys_can_expire(&self) -> bool {
        true
    }
    fn expired_leases(&self) -> u64 {
        self.losses.load(Ordering::Relaxed)
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
    sync.adopted(vec![StoredKey {
        key: "p/old".into(),
        value: "1".into(),
    }]);
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
    sync.queue_canary("canary", "t");
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
    let lossy = Faulty::new(&store, |_: &[Write]| Ok(()));
    let sync = SyncStore::new("test", Arc::clone(&lossy) as _, vec!["p/".to_owned()]);
    sync.upsert("p/a", "1");
    let gone = async {
        sync.wait_written("p/a").await;
        store.delete(&crate::mvcc::KeyRange::key("p/a"));
        lossy.losses.store(1, Ordering::Relaxed);
        while store.get(b"p/a").is_none() {
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    };
    tokio::select! { () = sync.run() => {}, () = gone => {} }
}

#[tokio::test(start_paused = true)]
async fn failures_are_tried_again_in_order_and_one_bad_key_does_not_hold_up_the_rest() {
    let store = Store::new();
    // Fails at first, and never takes one key.
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
        // The canary, two keys, and the delete of what might have been there before the third.
        while sync.stats().writes < 4 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::select! { () = sync.run() => {}, () = done => {} }
    assert!(store.get(b"p/a").is_some() && store.get(b"p/b").is_some());
    assert!(store.get(b"canary").is_some());
    assert_eq!(
        sync.stats(),
        Stats {
            writes: 4,
            failures: 3,
            rejected: 1,
            queued: 0
        }
    );
}

/// A store without room takes what makes some, and nothing is forgotten.
#[tokio::test(start_paused = true)]
async fn a_full_store_is_relieved_of_what_goes() {
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
    // What makes room waits behind what needs it.
    sync.upsert("p/new", "1");
    sync.queue_canary("canary", "t");
    sync.delete("p/2");
    sync.delete("p/3");
    run_until(&sync, || store.get(b"canary").is_some()).await;
    let revision = |key: &[u8]| store.get(key).map(|kv| kv.fields().mod_revision);
    assert_eq!((revision(b"p/2"), revision(b"p/3")), (None, None));
    assert!(revision(b"p/new") > Some(2) && revision(b"p/new") <= revision(b"canary"));
    assert!(!sync.full());
}

/// A canary that waits does not go before what the store lost meanwhile, even if that was to change anyway.
#[tokio::test]
async fn what_is_lost_goes_before_the_canary() {
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
async fn keys_that_come_and_go_unwritten_leave_nothing_behind() {
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
    assert_eq!(sync.state.lock().keys.len(), 1);
    assert_eq!(sync.desired("p/"), PrefixSize { keys: 1, bytes: 1 });
}

#[test]
fn an_entry_is_small() {
    assert_eq!(std::mem::size_of::<Entry>(), 72);
}
