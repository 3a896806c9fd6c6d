//! Writers whose changes are limited.

use super::*;
use crate::kvstore::sync_store::budget::{ChangeLimits, ReachedLimit};

const VALUE: usize = 1000;

fn limited(store: &Arc<Store>, limits: ChangeLimits) -> SyncStore {
    sync_store(store).limited(limits)
}

fn value(n: usize) -> Vec<u8> {
    let mut value = vec![7; VALUE];
    value[..8].copy_from_slice(&n.to_le_bytes());
    value
}

/// The number of versions that `key` has had in the store.
fn versions(store: &Store, key: &str) -> i64 {
    store.get(key.as_bytes()).unwrap().fields().version
}

#[tokio::test(start_paused = true)]
async fn a_first_list_is_written_at_once_and_only_the_newest_of_many_changes_follows() {
    let store = Store::new();
    let limits = ChangeLimits {
        keys_per_second: 10,
        ..ChangeLimits::default()
    };
    let sync = limited(&store, limits);
    for n in 0..5000 {
        sync.upsert(format!("p/{n}"), value(0));
    }
    let begun = Instant::now();
    run_until(&sync, || sync.is_written("p/4999")).await;
    assert!(begun.elapsed() < Duration::from_secs(1));
    // Changes every millisecond, for ten seconds.
    let flip = async {
        for n in 1..=10_000 {
            sync.upsert("p/0", value(n));
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        assert_eq!(sync.slowed_by(), Some(ReachedLimit::Keys));
        sync.wait_written("p/0").await;
    };
    tokio::select! { () = sync.run() => {}, () = flip => {} }
    assert_eq!(store.get(b"p/0").unwrap().value(), value(10_000));
    // A burst of five seconds, and ten seconds at the rate.
    let versions = versions(&store, "p/0");
    assert!((140..=160).contains(&versions), "{versions}");
    let stats = sync.stats();
    assert!(stats.slowed > Duration::from_secs(5), "{stats:?}");
    assert!(stats.coalesced_bytes > 9000 * VALUE as u64, "{stats:?}");
}

#[tokio::test(start_paused = true)]
async fn changes_wait_while_their_history_is_in_the_store_and_go_on_after_a_compaction() {
    let store = Store::new();
    let limits = ChangeLimits {
        history_bytes: 20 * VALUE as u64,
        ..ChangeLimits::default()
    };
    let sync = limited(&store, limits);
    let (last, done) = (std::cell::Cell::new(0), std::cell::Cell::new(false));
    let flip = async {
        while !done.get() {
            last.set(last.get() + 1);
            // Deleting and creating the key again is a change, too.
            match last.get() % 3 {
                0 => sync.delete("p/0"),
                _ => sync.upsert("p/0", value(last.get())),
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    let watch = async {
        for _ in 0..5 {
            tokio::time::sleep(Duration::from_secs(10)).await;
            assert_eq!(sync.slowed_by(), Some(ReachedLimit::History));
            assert!(store.history_bytes() < 25 * (VALUE + 100), "{}", store.history_bytes());
            store.compact(store.revision()).unwrap();
            while store.purge() {}
        }
        done.set(true);
        sync.upsert("p/0", value(0));
        sync.wait_written("p/0").await;
        assert!(store.revision() > 60, "{}", store.revision());
    };
    tokio::select! { () = sync.run() => {}, ((), ()) = async { tokio::join!(flip, watch) } => {} }
    assert_eq!(store.get(b"p/0").unwrap().value(), value(0));
}

#[tokio::test(start_paused = true)]
async fn a_canary_does_not_overtake_changes_that_wait_for_the_budget() {
    let store = Store::new();
    let limits = ChangeLimits {
        bytes_per_second: 5000,
        ..ChangeLimits::default()
    };
    let sync = limited(&store, limits);
    // Two rounds of changes use the burst up.
    for round in 0..3 {
        for n in 0..20 {
            sync.upsert(format!("p/{n:02}"), value(round));
        }
        run_until(&sync, || sync.is_written("p/19")).await;
    }
    for n in 0..20 {
        sync.upsert(format!("p/{n:02}"), value(9));
    }
    sync.upsert("p/new", "1");
    sync.queue_canary("canary", "t");
    let begun = Instant::now();
    run_until(&sync, || store.get(b"canary").is_some()).await;
    assert!((0..20).all(|n| store.get(format!("p/{n:02}").as_bytes()).unwrap().value() == value(9)));
    let secs = begun.elapsed().as_secs();
    assert!((2..9).contains(&secs), "{secs}");
}
