//! Range reads at any revision, pages, counts, sorts.

use super::super::*;
use super::model::{Entry, Model, range, step};
use super::put;
use proptest::prelude::*;

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
            }
        }
    }
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
