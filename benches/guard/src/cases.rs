//! The operations whose instructions are counted.

use crate::mvcc::{KeyRange, Put, RangeOptions, Store, Wake, WatchFilter, WatchUpdate, Watcher};
use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Keys of the store, of 256 bytes, in 250 clusters.
const KEYS: usize = 100_000;
const VALUE: usize = 256;
const PREFIX: &str = "cilium/";
/// The names of the functions within which instructions are counted, and before which counts are written to a file.
pub const COUNTED: &str = "instructions_are_counted_here";
pub const WRITTEN: &str = "counts_are_written_here";

/// An operation, repeated.
pub struct Case {
    pub name: &'static str,
    pub operations: u64,
    /// Prepares the operations, and calls [`instructions_are_counted_here`] once.
    run: fn(&Arc<Store>, usize),
}

/// All cases, in the order in which they run. They share one store.
pub const ALL: [Case; 9] = [
    Case {
        name: "put over an existing key",
        operations: 1000,
        run: put_existing,
    },
    Case {
        name: "put of a new key",
        operations: 1000,
        run: put_new,
    },
    Case {
        name: "get of one key",
        operations: 1000,
        run: get,
    },
    Case {
        name: "page of 256 keys with the count of the rest",
        operations: 100,
        run: page,
    },
    Case {
        name: "list of 100,000 keys, per key",
        operations: KEYS as u64,
        run: list,
    },
    Case {
        name: "list of 100,000 keys by 256, per key",
        operations: KEYS as u64,
        run: paged,
    },
    Case {
        name: "commit, and delivery to 1 watcher",
        operations: 1000,
        run: one_watcher,
    },
    Case {
        name: "commit, and delivery to 1,000 watchers",
        operations: 100,
        run: many_watchers,
    },
    Case {
        name: "compaction, per change",
        operations: 4100,
        run: compact,
    },
];

/// Changes that the cases before the last have made: that many are purged.
const CHANGES: usize = 1000 + 1000 + 1000 + 100;

/// Runs all cases.
pub fn run() {
    let store = filled();
    for case in &ALL {
        (case.run)(&store, case.operations as usize);
        counts_are_written_here(case.name);
    }
}

/// Callgrind counts from the beginning of this function to its end.
#[inline(never)]
fn instructions_are_counted_here(operation: &mut dyn FnMut()) {
    operation();
}

/// Callgrind writes a file before it executes this function, and counts from 0 again.
#[inline(never)]
fn counts_are_written_here(case: &str) {
    black_box(case);
}

fn key(i: usize) -> String {
    let [a, b, c] = [i >> 16 & 255, i >> 8 & 255, i & 255];
    format!("{PREFIX}cache/ip/v1/c{:03}/10.{a}.{b}.{c}", i % 250)
}

fn put(key: String) -> Put {
    Put {
        key: key.into(),
        value: vec![b'x'; VALUE].into(),
        ..Put::default()
    }
}

/// Keys that exist, far from each other.
fn existing(n: usize) -> Vec<String> {
    (0..n).map(|i| key(i * 7919 % KEYS)).collect()
}

fn filled() -> Arc<Store> {
    let store = Store::new();
    for i in 0..KEYS {
        // In the order of a mesh: clusters in turns.
        store.put(put(key(i))).expect("a put without a lease");
    }
    store
}

fn put_all(store: &Store, keys: Vec<String>) {
    let mut puts: Vec<Put> = keys.into_iter().map(put).collect();
    instructions_are_counted_here(&mut || {
        for put in puts.drain(..) {
            black_box(store.put(put)).expect("a put without a lease");
        }
    });
}

fn put_existing(store: &Arc<Store>, n: usize) {
    put_all(store, existing(n));
}

fn put_new(store: &Arc<Store>, n: usize) {
    put_all(store, (0..n).map(|i| key(KEYS + i * 17)).collect());
}

fn get(store: &Arc<Store>, n: usize) {
    let gets: Vec<_> = existing(n)
        .into_iter()
        .map(|key| RangeOptions::new(KeyRange::key(key)))
        .collect();
    instructions_are_counted_here(&mut || {
        for get in &gets {
            let found = black_box(store.range(get)).expect("the present is not compacted");
            assert_eq!(found.kvs.len(), 1);
        }
    });
}

fn page(store: &Arc<Store>, n: usize) {
    let pages: Vec<_> = existing(n)
        .into_iter()
        .map(|from| RangeOptions {
            limit: 256,
            ..RangeOptions::new(KeyRange::new(from, "cilium0"))
        })
        .collect();
    instructions_are_counted_here(&mut || {
        for page in &pages {
            black_box(store.range(page)).expect("the present is not compacted");
        }
    });
}

fn list(store: &Arc<Store>, _: usize) {
    let options = RangeOptions::new(KeyRange::prefix(PREFIX));
    instructions_are_counted_here(&mut || {
        let all = black_box(store.range(&options)).expect("the present is not compacted");
        assert!(all.kvs.len() >= KEYS);
    });
}

fn paged(store: &Arc<Store>, _: usize) {
    instructions_are_counted_here(&mut || {
        let (mut from, mut revision) = (PREFIX.as_bytes().to_vec(), 0);
        loop {
            let page = store.range(&RangeOptions {
                limit: 256,
                revision,
                ..RangeOptions::new(KeyRange::new(from, "cilium0"))
            });
            let page = black_box(page).expect("the revision is not compacted");
            revision = page.revision;
            match page.kvs.last().filter(|_| page.more) {
                Some(kv) => from = [kv.key(), &[0]].concat(),
                None => return,
            }
        }
    });
}

/// Counts how often watchers are woken.
#[derive(Default)]
struct Woken(AtomicUsize);

impl Wake for Woken {
    fn wake(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

/// Commits `n` puts, each of which every watcher takes.
fn deliver(store: &Arc<Store>, n: usize, watchers: usize) {
    let woken = Arc::new(Woken::default());
    let watch = |_| {
        store.watch(
            WatchFilter::new(KeyRange::prefix(PREFIX)),
            0,
            Arc::<Woken>::clone(&woken),
        )
    };
    let mut watchers: Vec<Watcher> = (0..watchers).map(watch).collect();
    let mut puts: Vec<Put> = existing(n).into_iter().map(put).collect();
    instructions_are_counted_here(&mut || {
        for put in puts.drain(..) {
            store.put(put).expect("a put without a lease");
            store.wake_watchers();
            for watcher in &mut watchers {
                let taken = black_box(watcher.take(1 << 20));
                assert!(matches!(taken, WatchUpdate::Events { .. }));
            }
        }
    });
    assert_eq!(woken.0.load(Ordering::Relaxed), n * watchers.len());
}

fn one_watcher(store: &Arc<Store>, n: usize) {
    deliver(store, n, 1);
}

fn many_watchers(store: &Arc<Store>, n: usize) {
    deliver(store, n, 1000);
}

fn compact(store: &Arc<Store>, n: usize) {
    // What was written before the cases is of no interest.
    let before = store.revision() - CHANGES as i64;
    store.compact(before).expect("nothing is compacted yet");
    while store.purge() {}
    let last = store.revision();
    assert_eq!(last - before, n as i64 - 1000);
    instructions_are_counted_here(&mut || {
        store.compact(last).expect("the revision exists");
        while store.purge() {}
    });
}
