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
    async fn write(&self, class: Class, writes: &[Write]) -> Result<(), Error> {
        if self.1.fetch_add(1, Ordering::Relaxed) < 3 {
            return Err(Error::Unavailable("away".to_owned()));
        }
        if writes.iter().any(|w| !is_delete(w) && key_of(w) == b"p/huge") {
            return Err(Error::Rejected("too large".to_owned()));
        }
        self.0.write(class, writes).await
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
    struct Full(LocalBackend, usize);
    #[async_trait::async_trait]
    impl Backend for Full {
        async fn list(&self, prefix: &str) -> Result<Vec<(Bytes, Bytes)>, Error> {
            self.0.list(prefix).await
        }
        async fn get(&self, key: &str) -> Result<Option<Bytes>, Error> {
            self.0.get(key).await
        }
        async fn write(&self, class: Class, writes: &[Write]) -> Result<(), Error> {
            if self.list("p/").await?.len() >= self.1 && !writes.iter().all(is_delete) {
                return Err(Error::Full("no room".to_owned()));
            }
            self.0.write(class, writes).await
        }
        async fn delete_prefix(&self, prefix: &str) -> Result<(), Error> {
            self.0.delete_prefix(prefix).await
        }
        fn changes(&self, key: &str) -> BoxStream<'static, ()> {
            self.0.changes(key)
        }
        fn describe(&self) -> String {
            String::new()
        }
    }
    let store = Store::new();
    store.apply(&[put("p/1", "old"), put("p/2", "old"), put("p/3", "old")]);
    let backend = Full(LocalBackend::new(Arc::clone(&store)), 3);
    let sync = SyncStore::new("test", Arc::new(backend), vec!["p/".to_owned()]);
    let list = sync.begin_list();
    sync.upsert("p/1", "old");
    sync.upsert("p/new", "1");
    sync.canary("canary", "t");
    sync.end_list("p/", list);
    run_until(&sync, || store.get(b"canary").is_some()).await;
    let revision = |key: &[u8]| store.get(key).map(|kv| kv.fields().mod_revision);
    assert_eq!((revision(b"p/2"), revision(b"p/3")), (None, None));
    assert!(revision(b"p/new") > Some(2) && revision(b"p/new") <= revision(b"canary"));
    assert!(!sync.full());
}

#[tokio::test]
async fn keys_that_come_and_go_unwritten_leave_nothing_behind() {
    let store = Store::new();
    let sync = sync_store(&store);
    for n in 0..100 {
        sync.upsert(format!("p/{n}"), "1");
        assert_eq!(sync.desired_size("p/"), (1, 1));
        sync.upsert(format!("p/{n}"), "234");
        assert_eq!(sync.desired_size("p/"), (1, 3));
        sync.delete(format!("p/{n}"));
    }
    sync.upsert("p/stays", "1");
    run_until(&sync, || sync.is_written("p/stays")).await;
    assert_eq!(store.revision(), 2);
    assert_eq!(sync.state.lock().keys.len(), 1);
    assert_eq!(sync.desired_size("p/"), (1, 1));
}

#[test]
fn an_entry_is_small() {
    assert_eq!(std::mem::size_of::<Entry>(), 72);
}
