//! The store against a model that keeps a whole map per revision, and etcd's watch guarantees.

use super::*;
use crate::mvcc::txn::Target;
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Key → (create, mod, version, value, lease).
type Map = BTreeMap<Vec<u8>, (i64, i64, i64, Vec<u8>, i64)>;

/// (key, create, mod, version, value).
type Row = (Vec<u8>, i64, i64, i64, Vec<u8>);

/// Every revision's whole content, from revision 1.
struct Model(Vec<Map>);

#[derive(Clone, Debug)]
enum Step {
    Put(String, String),
    Delete(KeyRange),
    Apply(Vec<(String, Option<String>)>),
    Guarded { key: String, version: i64, value: String },
    Compact(prop::sample::Index),
    Purge,
}

struct NoWake;

impl Wake for NoWake {
    fn wake(&self) {}
}

impl Model {
    fn now(&self) -> &Map {
        self.0.last().unwrap()
    }

    fn revision(&self) -> i64 {
        self.0.len() as i64
    }

    fn put(map: &mut Map, rev: i64, key: &str, value: &str) {
        let e = map.entry(key.into()).or_insert((rev, rev, 0, vec![], 0));
        *e = (e.0, rev, e.2 + 1, value.into(), 0);
    }

    /// Applies `f` to a copy of the present; it becomes a revision if it changed anything.
    fn change(&mut self, f: impl FnOnce(&mut Map, i64) -> bool) {
        let mut map = self.now().clone();
        let rev = self.revision() + 1;
        if f(&mut map, rev) {
            self.0.push(map);
        }
    }

    fn apply(&mut self, step: &Step) {
        match step {
            Step::Put(k, v) => self.change(|map, rev| {
                Self::put(map, rev, k, v);
                true
            }),
            Step::Delete(range) => self.change(|map, _| {
                let n = map.len();
                map.retain(|k, _| !range.contains(k));
                map.len() < n
            }),
            Step::Apply(writes) => self.change(|map, rev| {
                let mut changed = false;
                for (k, v) in writes {
                    changed |= match v {
                        Some(v) => {
                            Self::put(map, rev, k, v);
                            true
                        }
                        None => map.remove(k.as_bytes()).is_some(),
                    };
                }
                changed
            }),
            Step::Guarded { key, version, value } => {
                let is = self.now().get(key.as_bytes()).map_or(0, |e| e.2);
                if is == *version {
                    self.apply(&Step::Put(key.clone(), value.clone()));
                }
            }
            Step::Compact(_) | Step::Purge => {}
        }
    }

    fn read(&self, range: &KeyRange, at: i64) -> Vec<Row> {
        let map = &self.0[at as usize - 1];
        let hits = map.iter().filter(|(k, _)| range.contains(k));
        hits.map(|(k, e)| (k.clone(), e.0, e.1, e.2, e.3.clone())).collect()
    }
}

fn apply(store: &Store, step: &Step) {
    match step {
        Step::Put(k, v) => {
            let (key, value) = (k.clone().into(), v.clone().into());
            store
                .put(Put {
                    key,
                    value,
                    ..Put::default()
                })
                .unwrap();
        }
        Step::Delete(range) => {
            store.delete(range);
        }
        Step::Apply(writes) => {
            let to_write = |(k, v): &(String, Option<String>)| match v {
                Some(v) => Write::Put(k.clone().into(), v.clone().into()),
                None => Write::Delete(k.clone().into()),
            };
            store.apply(&writes.iter().map(to_write).collect::<Vec<_>>());
        }
        Step::Guarded { key, version, value } => {
            let range = KeyRange::key(key.clone());
            let put = Put {
                key: key.clone().into(),
                value: value.clone().into(),
                ..Put::default()
            };
            let txn = Txn {
                compares: vec![Compare {
                    range: range.clone(),
                    target: Target::Version(*version),
                    result: CompareResult::Equal,
                }],
                success: vec![Op::Put(put)],
                failure: vec![Op::Range(RangeOptions::new(range))],
            };
            store.txn(&txn).unwrap();
        }
        Step::Compact(index) => {
            let to = index.index(store.revision() as usize) as i64 + 1;
            let before = store.compacted();
            assert_eq!(store.compact(to).is_ok(), to > before);
        }
        Step::Purge => while store.purge() {},
    }
}

fn key() -> impl Strategy<Value = String> {
    "[a-c]{1,3}"
}

fn range() -> impl Strategy<Value = KeyRange> {
    prop_oneof![
        key().prop_map(KeyRange::key),
        key().prop_map(KeyRange::prefix),
        (key(), key()).prop_map(|(a, b)| KeyRange::new(a, b)),
        Just(KeyRange::all()),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (key(), "[x-z]{0,2}").prop_map(|(k, v)| Step::Put(k, v)),
        2 => range().prop_map(Step::Delete),
        3 => proptest::collection::vec((key(), proptest::option::of("[x-z]")), 1..5).prop_map(Step::Apply),
        2 => (key(), 0i64..3, "[x-z]").prop_map(|(key, version, value)| Step::Guarded { key, version, value }),
        1 => any::<prop::sample::Index>().prop_map(Step::Compact),
        1 => Just(Step::Purge),
    ]
}

fn rows(result: &RangeResult) -> Vec<Row> {
    let row = |kv: &Kv| {
        let f = kv.fields();
        (
            f.key.to_vec(),
            f.create_revision,
            f.mod_revision,
            f.version,
            f.value.to_vec(),
        )
    };
    result.kvs.iter().map(row).collect()
}

/// Splits encoded `WatchResponse.events` fields into (is delete, key, mod revision, has prev).
fn decode(frames: &[bytes::Bytes]) -> Vec<(bool, Vec<u8>, i64, Option<i64>)> {
    let buf: Vec<u8> = frames.concat();
    let (mut at, mut out) = (0, vec![]);
    while at < buf.len() {
        assert_eq!(buf[at], 0x5a);
        at += 1;
        let end = {
            let n = take_varint(&buf, &mut at) as usize;
            at + n
        };
        let (mut delete, mut kv, mut prev) = (false, None, None);
        while at < end {
            let tag = buf[at];
            at += 1;
            let n = take_varint(&buf, &mut at) as usize;
            if tag == 8 {
                delete = n == 1;
                continue;
            }
            let msg = &buf[at..at + n];
            at += n;
            let key_len = msg[1] as usize;
            let mut i = 2 + key_len;
            let (mut modrev, mut first) = (0, true);
            while i < msg.len() && (msg[i] == 0x10 || msg[i] == 0x18) {
                let is_mod = msg[i] == 0x18;
                i += 1;
                let n = take_varint(msg, &mut i) as i64;
                if is_mod || first {
                    modrev = n;
                }
                first = false;
            }
            let parsed = (msg[2..2 + key_len].to_vec(), modrev);
            if tag == 0x12 {
                kv = Some(parsed)
            } else {
                prev = Some(parsed.1)
            }
        }
        let (key, modrev) = kv.unwrap();
        out.push((delete, key, modrev, prev));
    }
    out
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

    #[test]
    fn every_read_at_every_revision_agrees_with_the_model(
        steps in proptest::collection::vec(step(), 1..60), ranges in proptest::collection::vec(range(), 1..5), limit in 0i64..4,
    ) {
        let store = Store::new();
        let mut model = Model(vec![Map::new()]);
        for step in &steps {
            apply(&store, step);
            model.apply(step);
            prop_assert_eq!(store.revision(), model.revision());
        }
        let compacted = store.compacted();
        for range in &ranges {
            for at in 1..=model.revision() {
                let options = RangeOptions { revision: at, limit, ..RangeOptions::new(range.clone()) };
                let read = store.range(&options);
                if at < compacted {
                    prop_assert_eq!(read, Err(Error::Compacted));
                    continue;
                }
                let (read, expected) = (read.unwrap(), model.read(range, at));
                prop_assert_eq!(read.count, expected.len());
                let cut = if limit > 0 { expected.len().min(limit as usize) } else { expected.len() };
                prop_assert_eq!(read.more, cut < expected.len());
                prop_assert_eq!(rows(&read), &expected[..cut]);
            }
        }
    }

    #[test]
    fn a_watcher_sees_every_change_once_in_order_whatever_its_pace(
        steps in proptest::collection::vec(step(), 1..60), range in range(), start in 0i64..8,
        paces in proptest::collection::vec(0usize..4, 60), max in 1usize..200,
    ) {
        let store = Store::new();
        let filter = WatchFilter { prev_kv: true, ..WatchFilter::new(range.clone()) };
        let (mut watcher, now) = store.watch(filter, start, Arc::new(NoWake));
        let first = if start == 0 { now + 1 } else { start };
        let (mut seen, mut model, mut delivered, mut cancelled) = (vec![], Model(vec![Map::new()]), 0, false);
        for (i, step) in steps.iter().enumerate() {
            apply(&store, step);
            model.apply(step);
            let takes = if i + 1 == steps.len() { usize::MAX } else { paces[i] };
            for _ in 0..takes {
                match watcher.take(max) {
                    Taken::Nothing => break,
                    Taken::Compacted(at) => { prop_assert!(delivered < at); cancelled = true; break; }
                    Taken::Events { frames, revision } => {
                        prop_assert!(revision > delivered);
                        let events = decode(&frames);
                        prop_assert!(!events.is_empty());
                        prop_assert!(events.iter().all(|e| e.2 > delivered && e.2 <= revision));
                        seen.extend(events);
                        delivered = revision;
                    }
                }
            }
            if cancelled { break; }
        }
        if !cancelled {
            prop_assert_eq!(store.synced([&watcher]), (first <= store.revision() + 1).then(|| store.revision()));
        }
        // What the model says happened, revision by revision, as far as the watcher got.
        let upto = if cancelled { delivered } else { store.revision() };
        let mut expected = vec![];
        for rev in first.max(2)..=upto {
            let (before, after) = (&model.0[rev as usize - 2], &model.0[rev as usize - 1]);
            for (k, e) in after {
                if e.1 == rev && range.contains(k) {
                    // What creates a key has nothing before it, even if the key was there a revision ago.
                    let prev = before.get(k).filter(|_| e.0 != rev);
                    expected.push((false, k.clone(), rev, prev.map(|b| b.1)));
                }
            }
            for k in before.keys() { if !after.contains_key(k) && range.contains(k) { expected.push((true, k.clone(), rev, before.get(k).map(|b| b.1))); } }
        }
        // Inside one revision a key may change more than once (an applied batch): compare final states.
        let mut last: Vec<(bool, Vec<u8>, i64, Option<i64>)> = vec![];
        for e in seen {
            if let Some(at) = last.iter().position(|l| l.1 == e.1 && l.2 == e.2) { last.remove(at); }
            last.push(e);
        }
        last.retain(|e| !e.0 || model.0[e.2 as usize - 2].contains_key(&e.1));
        let compacted = store.compacted();
        for e in last.iter_mut().chain(expected.iter_mut()) { if e.2 <= compacted { e.3 = None; } }
        last.sort_by(|a, b| (a.2, a.0, &a.1).cmp(&(b.2, b.0, &b.1)));
        expected.sort_by(|a, b| (a.2, a.0, &a.1).cmp(&(b.2, b.0, &b.1)));
        prop_assert_eq!(last, expected);
    }
}

fn put(store: &Store, key: &str, value: &str) -> i64 {
    store
        .put(Put {
            key: key.to_owned().into(),
            value: value.to_owned().into(),
            ..Put::default()
        })
        .unwrap()
        .1
}

#[test]
fn a_page_of_a_big_store_and_its_count_agree_with_the_whole() {
    let store = Store::new();
    let writes: Vec<_> = (0..10_000)
        .map(|i| Write::Put(format!("k/{i:05}").into(), "v".into()))
        .collect();
    for chunk in writes.chunks(997) {
        store.apply(chunk);
    }
    let (whole, pinned) = (KeyRange::prefix("k/"), store.revision());
    let (mut rest, mut seen) = (whole.clone(), vec![]);
    loop {
        let options = RangeOptions {
            limit: 256,
            revision: pinned,
            ..RangeOptions::new(rest.clone())
        };
        let page = store.range(&options).unwrap();
        assert_eq!(page.count, 10_000 - seen.len());
        seen.extend(page.kvs.iter().map(|kv| kv.key().to_vec()));
        // Changes between pages stay out of them.
        store.delete(&KeyRange::key(format!("k/{:05}", 9_999 - seen.len() / 2)));
        put(&store, &format!("k/new{}", seen.len()), "x");
        if !page.more {
            break;
        }
        rest = rest.after(seen.last().unwrap());
    }
    assert_eq!(seen.len(), 10_000);
    assert!(seen.is_sorted());
    let all = store
        .range(&RangeOptions {
            revision: pinned,
            ..RangeOptions::new(whole)
        })
        .unwrap();
    assert_eq!(all.kvs.len(), 10_000);
}

#[test]
fn a_tombstone_at_the_compact_revision_survives_and_an_older_one_does_not() {
    let store = Store::new();
    put(&store, "a", "1");
    put(&store, "b", "1");
    store.delete(&KeyRange::key("a"));
    let (_, at) = store.delete(&KeyRange::key("b"));
    store.compact(at).unwrap();
    while store.purge() {}
    let (mut w, _) = store.watch(WatchFilter::new(KeyRange::all()), at, Arc::new(NoWake));
    let Taken::Events { frames, .. } = w.take(1 << 20) else {
        panic!("no events")
    };
    assert_eq!(decode(&frames), [(true, b"b".to_vec(), at, None)]);
    assert_eq!(store.compact(at), Err(Error::Compacted));
    assert_eq!(store.compact(at + 1), Err(Error::FutureRevision));
    assert_eq!(store.versions(0).unwrap().all.len(), 1, "of a nothing is left");
    let now = put(&store, "c", "1");
    store.compact(now).unwrap();
    while store.purge() {}
    assert_eq!(store.versions(0).unwrap().all.len(), 1, "of b neither");
}

#[test]
fn a_watcher_from_before_the_compaction_is_told_so_even_if_others_have_its_frames() {
    let store = Store::new();
    let watch = |start| {
        store
            .watch(WatchFilter::new(KeyRange::all()), start, Arc::new(NoWake))
            .0
    };
    let _others = watch(0);
    let first = put(&store, "a", "1");
    let last = put(&store, "a", "2");
    store.compact(last).unwrap();
    assert_eq!(watch(first).take(1 << 20), Taken::Compacted(last));
    assert!(matches!(watch(last).take(1 << 20), Taken::Events { revision, .. } if revision == last));
}

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
        success: vec![Op::Put(Put {
            key: "yes".into(),
            ..Put::default()
        })],
        failure: vec![Op::Put(Put {
            key: "no".into(),
            ..Put::default()
        })],
    };
    let first = Op::Put(Put {
        key: "k".into(),
        value: "1".into(),
        ..Put::default()
    });
    let done = store.txn(&vec![first, Op::Txn(nested)].into()).unwrap();
    assert_eq!(done.revision, 2);
    assert!(store.get(b"no").is_some() && store.get(b"yes").is_none());
}

#[test]
fn a_from_key_delete_and_a_put_of_one_key_share_a_revision_in_order() {
    let store = Store::new();
    let put_b = || {
        Op::Put(Put {
            key: "b".into(),
            value: "v".into(),
            ..Put::default()
        })
    };
    let delete = || Op::Delete(KeyRange::new("a", "\0"));
    let done = store.txn(&vec![put_b(), delete()].into()).unwrap();
    assert_eq!(done.revision, 2);
    assert!(store.get(b"b").is_none());
    let done = store.txn(&vec![delete(), put_b()].into()).unwrap();
    let OpResult::Delete { prev, revision } = &done.results[0] else {
        panic!()
    };
    assert_eq!((prev.len(), *revision), (0, 2));
    let b = store.get(b"b").unwrap();
    assert_eq!((b.fields().create_revision, b.fields().version), (3, 1));
}

#[test]
fn revoking_a_lease_deletes_its_keys_in_one_revision_and_an_empty_one_changes_nothing() {
    let store = Store::new();
    assert!(store.grant(7, 60) && !store.grant(7, 60));
    for key in ["b", "a"] {
        store
            .put(Put {
                key: key.into(),
                lease: 7,
                ..Put::default()
            })
            .unwrap();
    }
    put(&store, "b", "moved off the lease");
    assert_eq!(store.lease_keys(7).unwrap(), ["a"]);
    assert_eq!(store.revoke(7).map(|(keys, _)| keys), Ok(1));
    assert_eq!(store.revision(), 5);
    assert_eq!(store.revoke(7), Err(Error::LeaseNotFound));
    assert!(store.grant(8, 60));
    assert_eq!((store.revoke(8), store.revision()), (Ok((0, 5)), 5));
    let lost = Put {
        key: "c".into(),
        lease: 9,
        ..Put::default()
    };
    assert_eq!(store.put(lost), Err(Error::LeaseNotFound));
}

#[test]
fn ignore_value_keeps_the_value_and_needs_the_key() {
    let store = Store::new();
    let keep = Put {
        key: "k".into(),
        ignore_value: true,
        ..Put::default()
    };
    assert_eq!(store.put(keep.clone()), Err(Error::KeyNotFound));
    put(&store, "k", "v");
    store.put(keep).unwrap();
    let kv = store.get(b"k").unwrap();
    assert_eq!((kv.value(), kv.fields().version), (&b"v"[..], 2));
}

#[test]
fn the_sort_with_no_order_and_a_limit_sorts_only_the_first_keys() {
    let store = Store::new();
    for (k, v) in [("a", "3"), ("b", "2"), ("c", "1")] {
        put(&store, k, v);
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
fn a_slow_member_does_not_make_its_group_hold_more_than_the_bound() {
    let store = Store::new();
    let filter = WatchFilter::new(KeyRange::prefix("p/"));
    let (mut slow, _) = store.watch(filter.clone(), 0, Arc::new(NoWake));
    let (mut fast, _) = store.watch(filter, 0, Arc::new(NoWake));
    let big = "x".repeat(100_000);
    for i in 0..100 {
        put(&store, &format!("p/{i}"), &big);
        assert!(matches!(fast.take(usize::MAX), Taken::Events { .. }));
    }
    let mut seen = 0;
    while let Taken::Events { frames, .. } = slow.take(1 << 20) {
        seen += decode(&frames).len();
    }
    assert_eq!(seen, 100);
}
