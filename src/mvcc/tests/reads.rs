//! Range reads at any revision, pages, counts, sorts.

use super::super::*;
use super::model::{Entry, Model, range, step};
use super::{compact_and_purge, put, put_of};
use proptest::prelude::*;
use std::sync::Arc;

fn rows(result: &RangeResult) -> Vec<(Vec<u8>, Entry)> {
    let row = |kv: &Kv| {
        let fields = kv.fields();
        let entry = Entry {
            create_revision: fields.create_revision,
            mod_revision: fields.mod_revision,
            version: fields.version,
            value: fields.value.to_vec(),
        };
        (fields.key.to_vec(), entry)
    };
    result.kvs.iter().map(row).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

    #[test]
    fn every_read_at_every_revision_agrees_with_the_model(
        steps in proptest::collection::vec(step(), 1..60), ranges in proptest::collection::vec(range(), 1..5), limit in 0i64..4,
    ) {
        let (store, mut model) = (Store::new(), Model::new());
        for step in &steps {
            step.apply(&store);
            model.apply(step);
            prop_assert_eq!(store.revision(), model.revision());
        }
        let compacted = store.compacted();
        for range in &ranges {
            for revision in 1..=model.revision() {
                let options = RangeOptions { revision, limit, ..RangeOptions::new(range.clone()) };
                let read = store.range(&options);
                if revision < compacted {
                    prop_assert_eq!(read, Err(Error::Compacted));
                    continue;
                }
                let (read, expected) = (read.unwrap(), model.read(range, revision));
                prop_assert_eq!(read.count, expected.len());
                let cut = if limit > 0 { expected.len().min(limit as usize) } else { expected.len() };
                prop_assert_eq!(read.more, cut < expected.len());
                prop_assert_eq!(rows(&read), &expected[..cut]);
                // A transaction reads the same, and a nested one as well.
                let inner = Txn::from(vec![Op::Range(options)]);
                let outer = Txn::from(vec![Op::Txn(inner.clone())]);
                for txn in [inner, outer] {
                    prop_assert!(txn.is_read_only());
                    prop_assert_eq!(ranges_of(store.txn(&txn).unwrap()), [read.clone()]);
                }
            }
        }
    }

    #[test]
    fn compares_of_a_read_and_of_a_write_agree(
        steps in proptest::collection::vec(step(), 1..40), range in range(), version in 0i64..4, result in 0..4usize,
    ) {
        let store = Store::new();
        steps.iter().for_each(|step| step.apply(&store));
        let result = [CompareResult::Equal, CompareResult::NotEqual, CompareResult::Less, CompareResult::Greater][result];
        let compare = Compare { range, target: Target::Version(version), result };
        let mut txn = Txn { compares: vec![compare], ..Txn::default() };
        let read = store.txn(&txn).unwrap().succeeded;
        let nested = Txn::from(vec![Op::Txn(txn.clone())]);
        let OpResult::Txn(nested) = store.txn(&nested).unwrap().results.remove(0) else { panic!("a transaction") };
        // Deletes nothing, but makes the transaction a write.
        txn.failure = vec![Op::Delete(KeyRange::key("z"))];
        prop_assert!(!txn.is_read_only());
        prop_assert_eq!((read, nested.succeeded), (store.txn(&txn).unwrap().succeeded, read));
    }
}

/// The results of the ranges in a transaction, nested ones included.
fn ranges_of(result: TxnResult) -> Vec<RangeResult> {
    let of = |result| match result {
        OpResult::Range(result) => vec![result],
        OpResult::Txn(nested) => ranges_of(nested),
        OpResult::Put(_) | OpResult::Delete(_) => vec![],
    };
    result.results.into_iter().flat_map(of).collect()
}

fn options(range: KeyRange) -> RangeOptions {
    RangeOptions::new(range)
}

/// A store with the keys `k000` to `k199`, put one by one.
fn two_hundred() -> Arc<Store> {
    let store = Store::new();
    (0..200).for_each(|i| drop(store.put(put_of(&format!("k{i:03}"), "v"))));
    store
}

#[test]
fn a_long_read_sees_one_revision_whatever_is_written_compacted_and_purged_meanwhile() {
    let store = two_hundred();
    let whole = Txn {
        compares: vec![Compare {
            range: KeyRange::all(),
            target: Target::Version(1),
            result: CompareResult::Equal,
        }],
        success: vec![
            Op::Range(options(KeyRange::all())),
            Op::Range(RangeOptions {
                revision: 101,
                ..options(KeyRange::all())
            }),
        ],
        failure: vec![],
    };
    let mut asked = 0;
    let mut disturb = || {
        asked += 1;
        put(&store, &format!("k{:03}", asked * 7 % 200), "later");
        store.delete(&KeyRange::key(format!("k{:03}", asked * 11 % 200)));
        compact_and_purge(&store, store.revision());
        true
    };
    let result = store.txn_while(&whole, &mut disturb).unwrap();
    assert!(result.succeeded && result.revision == 201);
    assert!(asked > 50, "{asked}");
    let [now, then] = &ranges_of(result)[..] else {
        panic!("two ranges")
    };
    assert_eq!(
        (now.count, now.kvs.len(), then.count, then.kvs.len()),
        (200, 200, 100, 100)
    );
    assert!(now.kvs.iter().all(|kv| kv.value() == b"v"));
    // Nothing is pinned any more.
    let last = put(&store, "a", "");
    compact_and_purge(&store, last);
    let live = store.range(&options(KeyRange::all())).unwrap().count;
    let versions = store.versions(0).unwrap().all;
    assert!(versions.len() <= live + 1, "{} versions of {live} keys", versions.len());
}

#[test]
fn a_read_stops_when_it_is_told_to() {
    let store = two_hundred();
    let stop_after = |n: usize| {
        let mut asked = 0;
        move || {
            asked += 1;
            asked <= n
        }
    };
    let all = options(KeyRange::all());
    assert_eq!(store.range_while(&all, &mut stop_after(5)), Err(Error::Stopped));
    assert_eq!(store.range_while(&all, &mut stop_after(99)).unwrap().count, 200);
    let old = RangeOptions {
        revision: 50,
        count_only: true,
        ..all.clone()
    };
    assert_eq!(store.range_while(&old, &mut stop_after(5)), Err(Error::Stopped));
    assert_eq!(store.range_while(&old, &mut stop_after(99)).unwrap().count, 49);
    let few = RangeOptions {
        limit: 3,
        ..all.clone()
    };
    assert_eq!(store.range_while(&few, &mut || false).unwrap().kvs.len(), 3);
    store.delete(&KeyRange::prefix("k1"));
    let after = RangeOptions {
        limit: 1,
        ..options(KeyRange::prefix("k1"))
    };
    assert_eq!(
        store.range_while(&after, &mut || false).unwrap().count,
        0,
        "no key to look for"
    );
    put(&store, "k1a", "behind a hundred deleted keys");
    assert_eq!(store.range_while(&after, &mut stop_after(5)), Err(Error::Stopped));
    let compares = (0..30).map(|_| Compare {
        range: KeyRange::key("k000"),
        target: Target::Version(1),
        result: CompareResult::Equal,
    });
    let many = Txn {
        compares: compares.collect(),
        ..Txn::default()
    };
    let nested = Txn::from(vec![Op::Txn(many)]);
    assert_eq!(
        store.txn_while(&nested, &mut stop_after(2)).unwrap_err(),
        Error::Stopped
    );
    assert!(store.txn_while(&nested, &mut stop_after(9)).unwrap().succeeded);
}

#[test]
fn work_is_known_before_it_is_done() {
    let store = two_hundred();
    let all = options(KeyRange::all());
    let work = |options: &RangeOptions| store.work_of_range(options);
    let limit = |limit| RangeOptions { limit, ..all.clone() };
    let old = |revision, limit| RangeOptions {
        revision,
        limit,
        ..all.clone()
    };
    assert_eq!(work(&all), 200);
    assert_eq!(work(&options(KeyRange::key("k000"))), 1);
    assert_eq!((work(&limit(10)), work(&limit(1000))), (11, 200));
    let sorted = RangeOptions {
        order: SortOrder::Descend,
        ..limit(10)
    };
    assert_eq!(work(&sorted), 200, "everything is sorted before the limit cuts");
    let count = RangeOptions {
        count_only: true,
        ..all.clone()
    };
    assert_eq!(work(&count), 1);
    assert_eq!((work(&old(191, 10)), work(&old(2, 10))), (10 + 11, 199 + 11));
    store.delete(&KeyRange::prefix("k1"));
    assert_eq!((work(&all), work(&limit(10))), (200, 111), "tombstones may come first");
    let reads = Txn {
        compares: vec![Compare {
            range: KeyRange::prefix("k0"),
            target: Target::Version(1),
            result: CompareResult::Equal,
        }],
        success: vec![Op::Range(all), Op::Put(put_of("a", ""))],
        failure: vec![Op::Delete(KeyRange::prefix("k00"))],
    };
    assert_eq!(store.work_of_txn(&reads), Work { keys: 311, ops: 4 });
    let twice = Txn::from(vec![Op::Txn(reads.clone()), Op::Txn(reads)]);
    assert_eq!(store.work_of_txn(&twice), Work { keys: 624, ops: 10 });
}

#[test]
fn the_pages_of_a_large_list_and_their_counts_agree_with_the_whole_list() {
    let store = Store::new();
    let writes: Vec<_> = (0..10_000)
        .map(|i| Write::Put(format!("k/{i:05}").into(), "v".into()))
        .collect();
    for chunk in writes.chunks(997) {
        store.apply(chunk);
    }
    let (whole, revision) = (KeyRange::prefix("k/"), store.revision());
    let (mut rest, mut seen) = (whole.clone(), vec![]);
    loop {
        let options = RangeOptions {
            limit: 256,
            revision,
            ..RangeOptions::new(rest.clone())
        };
        let page = store.range(&options).unwrap();
        assert_eq!(page.count, 10_000 - seen.len());
        seen.extend(page.kvs.iter().map(|kv| kv.key().to_vec()));
        // Later changes do not appear in the pages at `revision`.
        store.delete(&KeyRange::key(format!("k/{:05}", 9_999 - seen.len() / 2)));
        put(&store, &format!("k/new{}", seen.len()), "x");
        if !page.more {
            break;
        }
        rest = rest.after(seen.last().unwrap());
    }
    assert_eq!(seen.len(), 10_000);
    assert!(seen.is_sorted());
    let options = RangeOptions {
        revision,
        ..RangeOptions::new(whole)
    };
    assert_eq!(store.range(&options).unwrap().kvs.len(), 10_000);
}

#[test]
fn the_sort_with_no_order_and_a_limit_sorts_only_the_first_keys() {
    let store = Store::new();
    for (key, value) in [("a", "3"), ("b", "2"), ("c", "1")] {
        put(&store, key, value);
    }
    let read = |order, limit| {
        let options = RangeOptions {
            order,
            limit,
            target: SortTarget::Value,
            ..RangeOptions::new(KeyRange::all())
        };
        let result = store.range(&options).unwrap();
        result.kvs.iter().map(|kv| kv.value()[0]).collect::<Vec<_>>()
    };
    assert_eq!(read(SortOrder::None, 1), b"2");
    assert_eq!(read(SortOrder::Ascend, 1), b"1");
    assert_eq!(read(SortOrder::Descend, 0), b"321");
}

#[test]
fn a_read_of_keys_shows_the_leases_only_where_it_sorts_by_value() {
    let store = Store::new();
    assert!(store.grant(7, 60));
    let leased = Put {
        lease: 7,
        ..put_of("k", "v")
    };
    store.put(leased).unwrap();
    let read = |target| {
        let options = RangeOptions {
            keys_only: true,
            target,
            ..RangeOptions::new(KeyRange::all())
        };
        let kv = store.range(&options).unwrap().kvs.remove(0);
        let fields = kv.fields();
        (fields.value.to_vec(), fields.lease, fields.version)
    };
    assert_eq!(read(SortTarget::Key), (vec![], 0, 1));
    assert_eq!(read(SortTarget::Mod), (vec![], 0, 1));
    assert_eq!(read(SortTarget::Value), (vec![], 7, 1));
}
