//! Transactions, leases, compaction.

use super::super::*;
use super::{put, put_of};

#[test]
fn compacting_to_zero_works_exactly_once_on_a_new_store() {
    let store = Store::new();
    assert_eq!(store.compact(0), Ok(()));
    assert_eq!(store.compact(0), Err(Error::Compacted));
}

#[test]
fn nested_compares_look_at_the_state_before_the_transaction() {
    let store = Store::new();
    let nested = Txn {
        compares: vec![Compare {
            range: KeyRange::key("k"),
            target: Target::Value("1".into()),
            result: CompareResult::Equal,
        }],
        success: vec![Op::Put(put_of("yes", ""))],
        failure: vec![Op::Put(put_of("no", ""))],
    };
    let first = Op::Put(put_of("k", "1"));
    let done = store.txn(&vec![first, Op::Txn(nested)].into()).unwrap();
    assert_eq!(done.revision, 2);
    assert!(store.get(b"no").is_some() && store.get(b"yes").is_none());
}

#[test]
fn a_range_delete_and_a_put_of_one_key_share_a_revision_in_order() {
    let store = Store::new();
    let put_b = || Op::Put(put_of("b", "v"));
    let delete = || Op::Delete(KeyRange::new("a", "\0"));
    let done = store.txn(&vec![put_b(), delete()].into()).unwrap();
    assert_eq!(done.revision, 2);
    assert!(store.get(b"b").is_none());
    let done = store.txn(&vec![delete(), put_b()].into()).unwrap();
    let OpResult::Delete(deleted) = &done.results[0] else {
        panic!("the first operation deletes")
    };
    assert_eq!((deleted.prev.len(), deleted.revision), (0, 2));
    let b = store.get(b"b").unwrap();
    assert_eq!((b.fields().create_revision, b.fields().version), (3, 1));
}

#[test]
fn revoking_a_lease_deletes_its_keys_in_one_revision_and_an_empty_lease_changes_nothing() {
    let store = Store::new();
    assert!(store.grant(7, 60) && !store.grant(7, 60));
    for key in ["b", "a"] {
        let leased = Put {
            lease: 7,
            ..put_of(key, "")
        };
        store.put(leased).unwrap();
    }
    put(&store, "b", "moved off the lease");
    assert_eq!(store.lease_keys(7).unwrap(), ["a"]);
    let revoked = |deleted| Ok(RevokeResult { deleted, revision: 5 });
    assert_eq!(store.revoke(7), revoked(1));
    assert_eq!(store.revision(), 5);
    assert_eq!(store.revoke(7), Err(Error::LeaseNotFound));
    assert!(store.grant(8, 60));
    assert_eq!((store.revoke(8), store.revision()), (revoked(0), 5));
    let lost = Put {
        lease: 9,
        ..put_of("c", "")
    };
    assert_eq!(store.put(lost), Err(Error::LeaseNotFound));
}

#[test]
fn ignore_value_keeps_the_value_and_needs_the_key() {
    let store = Store::new();
    let keep = Put {
        ignore_value: true,
        ..put_of("k", "")
    };
    assert_eq!(store.put(keep.clone()), Err(Error::KeyNotFound));
    put(&store, "k", "v");
    store.put(keep).unwrap();
    let kv = store.get(b"k").unwrap();
    assert_eq!((kv.value(), kv.fields().version), (&b"v"[..], 2));
}

#[test]
fn an_unknown_lease_is_reported_before_a_missing_key_also_in_a_transaction() {
    let store = Store::new();
    let both = Put {
        lease: 9,
        ignore_value: true,
        ..put_of("missing", "")
    };
    assert_eq!(store.put(both.clone()), Err(Error::LeaseNotFound));
    let txn = vec![Op::Put(both)].into();
    assert_eq!(store.txn(&txn).unwrap_err(), Error::LeaseNotFound);
}

#[test]
fn the_bytes_of_history_are_those_of_replaced_versions_and_tombstones() {
    let store = Store::new();
    let put = |value: &str| store.apply(&[Write::Put("k".into(), value.to_owned().into())]);
    let size = || store.get(b"k").unwrap().as_bytes().len();
    put("1");
    assert_eq!(store.history_bytes(), 0, "nothing was replaced");
    let first = size();
    put("another");
    let second = size();
    assert_eq!(store.history_bytes(), first);
    store.delete(&KeyRange::key("k"));
    assert!(store.history_bytes() > first + second);
    store.compact(store.revision()).unwrap();
    while store.purge() {}
    put("again");
    // The batch at the compact revision stays in the log.
    assert!(store.history_bytes() <= second + 64);
    store.compact(store.revision()).unwrap();
    while store.purge() {}
    assert_eq!(store.history_bytes(), 0);
}

#[test]
fn revisions_with_more_changes_than_a_step_are_purged_to_the_end() {
    let store = Store::new();
    let (rounds, keys) = (3, 600);
    for round in 0..rounds {
        let writes: Vec<_> = (0..keys)
            .map(|n| Write::Put(format!("k{n}").into(), round.to_string().into()))
            .collect();
        store.apply(&writes);
    }
    assert!(store.history_bytes() > 0);
    store.compact(store.revision()).unwrap();
    let changes = rounds * keys;
    let steps = (0..=changes).take_while(|_| store.purge()).count();
    assert!(steps > rounds, "a step ends inside a revision");
    assert!(steps < changes, "a step visits a change at least");
    assert_eq!((store.purged(), store.history_bytes()), (store.revision(), 0));
    put(&store, "other", "");
    store.compact(store.revision()).unwrap();
    while store.purge_while(&mut || false) {}
    assert_eq!((store.purged(), store.history_bytes()), (store.revision(), 0));
}

#[test]
fn a_compaction_during_a_purge_misses_no_tombstone() {
    let store = Store::new();
    // Each revision deletes what the one before has put.
    for round in 0..6 {
        let writes = (0..4).flat_map(|n| {
            [
                Write::Delete(format!("k{}-{n}", round - 1).into()),
                Write::Put(format!("k{round}-{n}").into(), "v".into()),
            ]
        });
        store.apply(&writes.collect::<Vec<_>>());
    }
    // Each purge is still inside of a revision when the next compaction comes.
    for revision in 3..=store.revision() {
        store.compact(revision).unwrap();
        assert!((0..5).all(|_| store.purge_while(&mut || false)));
    }
    while store.purge() {}
    let all = store.versions(0).unwrap().all;
    let tombstones = all.iter().filter(|version| version.tombstone);
    assert!(tombstones.into_iter().all(|version| version.main == store.revision()));
    assert_eq!(
        all.len(),
        4 + 4,
        "what is live, and the tombstones of the last revision"
    );
}
