//! Stores that follow another one: revisions that are adopted, states that are swapped.

use super::super::*;
use super::message::events;
use super::model::step;
use super::{NoWake, limit_frames, put, put_of, watch, watch_all, with_previous};
use bytes::Bytes;
use parking_lot::Mutex;
use proptest::prelude::*;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// A store that follows nothing so far.
pub(super) fn follower() -> Arc<Store> {
    Recovery::following().open(Hooks::default())
}

/// Repeats everything that `leader` has beyond `follower`.
pub(super) fn catch_up(follower: &Store, leader: &Store) {
    for batch in leader.batches(follower.revision() + 1, usize::MAX) {
        let events = batch.events.iter().map(Followed::from).collect();
        follower.adopt(batch.revision, events).unwrap();
    }
}

/// A store with `revisions` puts of 200 keys, with values that begin with `past`.
pub(super) fn past(past: &str, revisions: usize) -> Arc<Store> {
    let store = Store::new();
    for n in 0..revisions {
        put(&store, &format!("k{:03}", n % 200), &format!("{past} {n}"));
    }
    store
}

/// The state of a store that has followed `leader` from its beginning.
pub(super) fn state_of(leader: &Store) -> Recovery {
    let mut recovery = Recovery::following();
    for batch in leader.batches(2, usize::MAX) {
        let events = batch.events.iter().map(|e| (e.kind, e.kv.clone()));
        recovery.commit(batch.revision, events, None).unwrap();
    }
    recovery
}

fn versions(store: &Arc<Store>) -> Vec<(i64, u32, bool, Kv)> {
    let all = store.versions(0).unwrap().all.into_iter();
    all.map(|v| (v.main, v.sub, v.tombstone, v.kv)).collect()
}

/// All events from revision 2 on, with previous key-values, encoded.
fn history(store: &Arc<Store>) -> Vec<Bytes> {
    let filter = with_previous(KeyRange::all());
    let (mut watcher, mut all) = (watch(store, filter, 2), vec![]);
    while let WatchUpdate::Events { frames, .. } = watcher.take_now(1) {
        all.extend(frames);
    }
    all
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, ..ProptestConfig::default() })]

    #[test]
    fn a_follower_has_every_version_and_every_event_of_its_leader(
        steps in proptest::collection::vec((step(), 0i64..4), 1..60),
    ) {
        let (leader, follower) = (Store::new(), follower());
        let mut watcher = watch_all(&follower, 0);
        let mut revisions = vec![];
        for (step, lease) in &steps {
            if let (1.., super::model::Step::Put(key, value)) = (*lease, step) {
                leader.grant(*lease, 60);
                leader.put(Put { lease: *lease, ..put_of(key, value) }).unwrap();
            } else if !matches!(step, super::model::Step::Compact(_)) {
                step.apply(&leader);
            }
            catch_up(&follower, &leader);
            prop_assert_eq!(follower.revision(), leader.revision());
            while let WatchUpdate::Events { frames, .. } = watcher.take(1) {
                revisions.extend(events(&frames).into_iter().map(|event| event.kv.unwrap().mod_revision));
            }
        }
        prop_assert_eq!(versions(&follower), versions(&leader));
        prop_assert_eq!(history(&follower), history(&leader));
        prop_assert_eq!(follower.versions(0).unwrap().hash(), leader.versions(0).unwrap().hash());
        let expected: Vec<i64> = leader.batches(2, usize::MAX).iter().flat_map(|b| vec![b.revision; b.events.len()]).collect();
        prop_assert_eq!(revisions, expected);
        for lease in 1..4 {
            let keys = leader.lease_keys(lease).filter(|keys| !keys.is_empty());
            prop_assert_eq!(follower.lease_keys(lease), keys);
        }
        prop_assert!(follower.leases().is_empty(), "nothing here may end a lease");
        // The state made again is the same.
        let again = state_of(&follower).open(Hooks::default());
        prop_assert_eq!(versions(&again), versions(&follower));
        for revision in 2..=leader.revision() {
            let theirs = leader.events_of(revision).unwrap();
            prop_assert_eq!(follower.compare(revision, &theirs), Compared::Same);
        }
    }
}

#[test]
fn an_event_that_does_not_follow_changes_nothing() {
    let store = follower();
    catch_up(&store, &past("a", 3));
    let event = |kind, key: &str, create_revision, mod_revision, version| {
        let kv = Kv::new(&Fields {
            key: key.as_bytes(),
            create_revision,
            mod_revision,
            version,
            ..Fields::default()
        });
        Followed { kind, kv }
    };
    let put = |key: &str, create, version| event(EventKind::Put, key, create, 5, version);
    let delete = |key: &str| event(EventKind::Delete, key, 0, 5, 0);
    let fits = || put("k000", 2, 2);
    let before = versions(&store);
    let refused = |revision, events: Vec<Followed>| {
        let refused = store.adopt(revision, events).unwrap_err();
        assert_eq!((store.revision(), versions(&store)), (4, before.clone()), "{refused}");
        refused
    };
    let gap = |found| Divergence::Gap { found, current: 4 };
    assert_eq!(refused(6, vec![fits()]), gap(6));
    assert_eq!(refused(4, vec![fits()]), gap(4));
    assert_eq!(refused(5, vec![]), Divergence::Empty { revision: 5 });
    let key = "\"k000\"".to_owned();
    let malformed = Divergence::Malformed {
        revision: 5,
        key: key.clone(),
    };
    // Of another revision, and a deletion with a version.
    assert_eq!(refused(5, vec![event(EventKind::Put, "k000", 2, 4, 2)]), malformed);
    assert_eq!(refused(5, vec![event(EventKind::Delete, "k000", 0, 5, 1)]), malformed);
    for (found, found_created) in [(1, 5), (3, 2), (2, 3)] {
        let expected = Divergence::Version {
            revision: 5,
            key: key.clone(),
            found,
            found_created,
            expected: 2,
            expected_created: 2,
        };
        // The events before it are not applied, either.
        assert_eq!(
            refused(5, vec![put("new", 5, 1), put("k000", found_created, found)]),
            expected
        );
    }
    let absent = refused(5, vec![delete("nothing")]);
    assert_eq!(
        absent.to_string(),
        "revision 5 deletes key \"nothing\", which does not exist here"
    );
    refused(5, vec![delete("k000"), delete("k000")]);
    refused(5, vec![delete("k000"), put("k000", 2, 2)]);
    // Several changes of a key in one revision follow each other.
    store
        .adopt(5, vec![delete("k000"), put("k000", 5, 1), put("k000", 5, 2)])
        .unwrap();
    assert_eq!(store.get(b"k000").unwrap().fields().version, 2);
}

#[test]
fn revisions_are_adopted_from_a_newer_state_with_the_same_past() {
    let leader = past("a", 300);
    let store = follower();
    store.swap(state_of(&past("a", 250)));
    let mut watcher = watch_all(&store, 0);
    store.adopt_from(&state_of(&leader)).unwrap();
    assert_eq!((store.revision(), versions(&store)), (301, versions(&leader)));
    let mut seen = 0;
    while let WatchUpdate::Events { frames, .. } = watcher.take_now(1 << 20) {
        seen += events(&frames).len();
    }
    assert_eq!(seen, 50, "no watcher notices more than events");
    // Another past, and one whose history begins too late.
    let other = store.adopt_from(&state_of(&past("b", 400)));
    assert_eq!(other, Err(Divergence::Different { revision: 301 }));
    let mut late = state_of(&past("a", 400));
    late.compact(302).unwrap();
    let gap = Divergence::Gap {
        found: 302,
        current: 301,
    };
    assert_eq!(store.adopt_from(&late), Err(gap));
    let mut exactly = state_of(&past("a", 400));
    exactly.compact(301).unwrap();
    store.adopt_from(&exactly).unwrap();
    assert_eq!(store.revision(), 401);
}

#[test]
fn a_part_of_a_revision_is_recognized_and_another_one_is_not() {
    let leader = Store::new();
    leader.apply(&[Write::Put("a".into(), "1".into()), Write::Put("b".into(), "1".into())]);
    let writes = [
        Write::Put("a".into(), "2".into()),
        Write::Delete("b".into()),
        Write::Put("c".into(), "2".into()),
    ];
    leader.apply(&writes);
    let store = follower();
    catch_up(&store, &leader);
    let whole = leader.events_of(3).unwrap();
    assert_eq!(store.compare(3, &whole), Compared::Same);
    let [a, b, c] = &whole[..] else { panic!("three events") };
    // A compaction may remove tombstones.
    assert_eq!(store.compare(3, &[a.clone(), c.clone()]), Compared::Part);
    for other in [
        vec![a.clone(), b.clone()],
        vec![c.clone(), a.clone()],
        vec![b.clone()],
        vec![],
    ] {
        assert_eq!(store.compare(3, &other), Compared::Different, "{other:?}");
    }
    for unknown in [0, 1, 4] {
        assert_eq!(store.compare(unknown, &whole), Compared::Unknown);
    }
    assert_eq!(store.events_of(2).unwrap().len(), 2);
    store.compact(3).unwrap();
    assert_eq!(
        (store.events_of(2), store.compare(2, &whole)),
        (None, Compared::Unknown)
    );
}

#[test]
fn a_state_from_lists_is_completed_by_the_events_of_its_revision() {
    let leader = past("a", 20);
    let list = |leader: &Store| {
        let all = leader.range(&RangeOptions::new(KeyRange::all())).unwrap();
        let mut loader = Loader::listed(all.revision);
        all.kvs.into_iter().for_each(|kv| assert!(loader.push_listed(kv)));
        loader.finish().unwrap()
    };
    let writes = [
        Write::Put("z".into(), "1".into()),
        Write::Delete("k003".into()),
        Write::Put("a".into(), "1".into()),
    ];
    leader.apply(&writes);
    let store = list(&leader).open(Hooks::default());
    assert_eq!((store.revision(), store.floor(), store.events_of(22)), (22, 23, None));
    assert!(!store.versions(0).unwrap().is_exact() && !store.is_exact() && leader.is_exact());
    assert_eq!(store.versions(0).unwrap().hash_compacted(22), None);
    // A watch from there would miss a part.
    let mut early = watch_all(&store, 22);
    assert_eq!(early.take(1), WatchUpdate::Compacted(23));
    let whole = leader.events_of(22).unwrap();
    let mut other = whole.clone();
    other.swap(0, 1);
    other.pop();
    assert_eq!(store.complete(22, &other), Err(Divergence::Different { revision: 22 }));
    store.complete(22, &whole).unwrap();
    assert_eq!((store.floor(), store.events_of(22)), (22, Some(whole.clone())));
    assert_eq!(store.compare(22, &whole), Compared::Same);
    store.complete(22, &whole).unwrap();
    let mut watcher = watch_all(&store, 22);
    let WatchUpdate::Events { frames, revision } = watcher.take_now(1) else {
        panic!("no events")
    };
    assert_eq!((events(&frames).len(), revision), (3, 22));
    // Deletions by later compactions, and all reads, are as upstream's.
    put(&leader, "k003", "again");
    catch_up(&store, &leader);
    leader.compact(22).unwrap();
    while leader.purge() {}
    let newest = |store: &Arc<Store>| versions(store).into_iter().filter(|v| v.0 >= 22).collect::<Vec<_>>();
    assert_eq!(newest(&store), newest(&leader));
    // Late events leave the floor one above.
    let store = list(&leader).open(Hooks::default());
    let events = leader.events_of(23).unwrap();
    put(&leader, "k003", "and again");
    catch_up(&store, &leader);
    store.complete(23, &events).unwrap();
    assert_eq!(store.floor(), 24);
    // A compaction beyond it ends that.
    store.compact(24).unwrap();
    assert_eq!(store.floor(), 24);
    assert!(!matches!(watch_all(&store, 24).take_now(1), WatchUpdate::Compacted(_)));
    // So it is if the revision has left nothing.
    let gone = Store::new();
    put(&gone, "a", "1");
    gone.delete(&KeyRange::key("a"));
    let store = list(&gone).open(Hooks::default());
    assert_eq!((store.revision(), store.floor()), (3, 4));
    let put_instead = vec![Followed::from(&leader.batches(3, 1)[0].events[0])];
    assert_eq!(store.compare(3, &put_instead), Compared::Different);
    store.complete(3, &gone.events_of(3).unwrap()).unwrap();
    assert_eq!(
        (store.floor(), store.compare(3, &gone.events_of(3).unwrap())),
        (3, Compared::Same)
    );
    // An empty store has nothing to complete.
    let store = list(&Store::new()).open(Hooks::default());
    assert_eq!((store.revision(), store.floor()), (1, 1));
}

/// Counts its calls.
#[derive(Default)]
struct Woken(AtomicUsize);

impl Wake for Woken {
    fn wake(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

#[test]
fn watchers_of_an_older_generation_are_cancelled_as_compacted() {
    let store = follower();
    store.swap(state_of(&past("a", 100)));
    let woken = Arc::new(Woken::default());
    let wake = || Arc::clone(&woken) as Arc<dyn Wake>;
    let all = || WatchFilter::new(KeyRange::all());
    let key = || WatchFilter::new(KeyRange::key("k000"));
    let mut former = [
        store.watch(all(), 0, wake()),
        store.watch(all(), 2, wake()),
        store.watch(all(), 5000, wake()),
        store.watch(key(), 0, wake()),
        store.watch(WatchFilter { prev_kv: true, ..all() }, 0, wake()),
    ];
    catch_up(&store, &past("a", 150));
    // One watcher has taken a part of its events, and the events of the others are lost with the past.
    assert!(matches!(former[1].take(1), WatchUpdate::Events { .. }));
    let before = woken.0.load(Ordering::Relaxed);

    let mut next = state_of(&past("b", 120));
    next.compact(40).unwrap();
    store.swap(next);
    assert_eq!((store.revision(), store.floor(), store.generation()), (121, 40, 2));
    assert_eq!(store.woken(), 121, "no watcher of the new past waits");
    store.wake_watchers();
    assert!(woken.0.load(Ordering::Relaxed) >= before + former.len());
    // Watchers of the new past share no group with those of the old one.
    let mut present = [store.watch(all(), 0, wake()), store.watch(key(), 100, wake())];
    assert_eq!(store.synced([&present[0]]), Some(121));
    assert_eq!(store.synced([&former[0]]), None);
    for watcher in &mut former {
        assert_eq!(watcher.take(1 << 20), WatchUpdate::Compacted(40));
    }
    drop(former);
    catch_up(&store, &past("b", 230));
    assert_eq!(store.woken(), 121);
    store.wake_watchers();
    assert_eq!(store.woken(), 231);
    let mut seen = [vec![], vec![]];
    for (watcher, seen) in present.iter_mut().zip(&mut seen) {
        while let WatchUpdate::Events { frames, .. } = watcher.take_now(1) {
            seen.extend(events(&frames).into_iter().map(|event| event.kv.unwrap()));
        }
    }
    assert_eq!(seen[0].len(), 110);
    assert_eq!(seen[1].len(), 1, "the put of revision 202");
    assert!(seen.iter().flatten().all(|kv| kv.value.starts_with(b"b ")));
    // A watch from the compact revision that was told sees all that is known of the new past.
    let mut resumed = watch_all(&store, 40);
    assert!(matches!(resumed.take_now(1), WatchUpdate::Events { .. }));
    // A past without a compaction has a compact revision that clients take for one.
    store.swap(state_of(&past("c", 3)));
    assert_eq!(resumed.take(1), WatchUpdate::Compacted(1));
    assert_eq!(store.woken(), 4);
}

#[test]
fn watchers_that_miss_nothing_go_on_in_a_later_state_of_the_same_past() {
    let leader = past("a", 200);
    let (store, woken) = (follower(), Arc::new(Woken::default()));
    store.swap(state_of(&past("a", 100)));
    let watch = |filter, start| store.watch(filter, start, Arc::clone(&woken) as Arc<dyn Wake>);
    let all = || WatchFilter::new(KeyRange::all());
    let one = || WatchFilter::new(KeyRange::key("k105"));
    // The store is at revision 101. What lies between that and the floor of the later state is nowhere.
    let mut missing = [watch(all(), 0), watch(all(), 50), watch(all(), 102), watch(one(), 149)];
    let mut going_on = [
        watch(all(), 150),
        watch(all(), 195),
        watch(one(), 150),
        watch(all(), 202),
    ];
    let next = || {
        let mut next = state_of(&leader);
        next.compact(150).unwrap();
        next
    };
    assert!(matches!(
        store.adopt_from(&next()),
        Err(Divergence::Gap {
            found: 150,
            current: 101
        })
    ));
    let before = woken.0.load(Ordering::Relaxed);
    store.skip_to(next());
    assert_eq!((store.revision(), store.floor(), store.generation()), (201, 150, 2));
    assert_eq!(store.woken(), 101, "nobody knows of what the later state has");
    store.wake_watchers();
    assert_eq!(store.woken(), 201);
    // The watcher that begins at 202 has nothing to take.
    assert!(woken.0.load(Ordering::Relaxed) >= before + missing.len() + going_on.len() - 1);
    for watcher in &mut missing {
        assert_eq!(watcher.take_now(1 << 20), WatchUpdate::Compacted(150));
    }
    put(&leader, "k105", "later");
    catch_up(&store, &leader);
    store.wake_watchers();
    let seen = going_on.each_mut().map(|watcher| {
        let mut seen = vec![];
        while let WatchUpdate::Events { frames, .. } = watcher.take_now(1) {
            seen.extend(events(&frames).into_iter().map(|event| event.kv.unwrap().mod_revision));
        }
        seen
    });
    assert_eq!(seen[0], (150..=202).collect::<Vec<_>>());
    assert_eq!(seen[1], (195..=202).collect::<Vec<_>>());
    assert_eq!((&seen[2][..], &seen[3][..]), (&[202][..], &[202][..]));
    assert_eq!(store.synced(&going_on), Some(202));
}

/// A replica that has everything up to the compaction of its upstream misses nothing, although nothing can be compared.
#[test]
fn a_state_that_begins_with_the_next_revision_cancels_no_watcher_that_is_in_sync() {
    let (leader, store) = (past("a", 200), follower());
    store.swap(state_of(&past("a", 100)));
    let quiet = WatchFilter::new(KeyRange::key("k150"));
    let (mut synced, mut quiet) = (watch_all(&store, 50), watch(&store, quiet, 20));
    let mut behind = watch_all(&store, 50);
    while matches!(synced.take_now(1 << 20), WatchUpdate::Events { .. }) {}
    assert_eq!(quiet.take_now(1), WatchUpdate::Nothing);
    let mut next = state_of(&leader);
    next.compact(102).unwrap();
    store.skip_to(next);
    let mut seen = vec![];
    while let WatchUpdate::Events { frames, .. } = synced.take_now(1 << 20) {
        seen.extend(events(&frames).into_iter().map(|event| event.kv.unwrap().mod_revision));
    }
    assert_eq!(
        seen,
        (102..=201).collect::<Vec<_>>(),
        "the watcher has everything up to revision 101"
    );
    assert!(matches!(quiet.take_now(1), WatchUpdate::Events { .. }));
    assert_eq!(behind.take_now(1), WatchUpdate::Compacted(102));
}

#[test]
fn a_long_read_of_an_older_generation_ends_as_compacted() {
    let store = follower();
    let again = || state_of(&past("b", 250));
    store.swap(state_of(&past("a", 250)));
    let mut asked = 0;
    let mut swap_once = || {
        asked += 1;
        if asked == 3 {
            store.swap(again());
        }
        true
    };
    let options = RangeOptions::new(KeyRange::all());
    assert_eq!(store.range_while(&options, &mut swap_once), Err(Error::Compacted));
    asked = 0;
    let mut swap_once = || {
        asked += 1;
        if asked == 3 {
            store.swap(again());
        }
        true
    };
    let txn = Txn::from(vec![Op::Range(options.clone())]);
    assert!(matches!(store.txn_while(&txn, &mut swap_once), Err(Error::Compacted)));
    let (mut frozen, ()) = store.freeze(|| ());
    assert!(frozen.next(1).unwrap().is_some());
    store.swap(again());
    assert!(matches!(frozen.next(1), Err(Error::Compacted)));
    drop(frozen);
    // Counts of pages of the former past are not those of the present one.
    let page = RangeOptions {
        limit: 10,
        revision: 251,
        ..options
    };
    assert_eq!(store.range(&page).unwrap().count, 200);
    let last = store.range(&page).unwrap().kvs.pop().unwrap();
    let rest = RangeOptions {
        range: page.range.after(last.key()),
        ..page.clone()
    };
    assert_eq!(store.range(&rest).unwrap().count, 190);
    let fewer = Store::new();
    for n in 0..250 {
        put(&fewer, &format!("k{:03}", n % 50), "c");
    }
    store.swap(state_of(&fewer));
    assert_eq!(store.range(&rest).unwrap().count, 40);
    // Nothing is pinned any more.
    store.compact(251).unwrap();
    while store.purge() {}
    assert_eq!(store.versions(0).unwrap().all.len(), 50);
}

/// Records the marks of a journal.
#[derive(Default)]
struct Marks(Mutex<Vec<String>>);

impl Journal for Marks {
    fn record(&self, change: Change) {
        self.0.lock().push(match change {
            Change::Commit { batch, .. } => format!("commit {}", batch.unwrap().revision),
            Change::Swapped => "swapped".to_owned(),
            other => format!("{other:?}"),
        });
    }
}

#[test]
fn adopted_revisions_are_visible_before_their_journal_is_written() {
    let marks = Arc::new(Marks::default());
    let store = Recovery::following().open(Hooks {
        journal: Some(Arc::clone(&marks) as _),
        ..Hooks::default()
    });
    let mut watcher = watch_all(&store, 0);
    catch_up(&store, &past("a", 2));
    assert_eq!((store.revision(), store.get(b"k000").is_some()), (3, true));
    assert!(matches!(watcher.take(1), WatchUpdate::Events { revision: 2, .. }));
    store.publish(3);
    store.swap(state_of(&past("b", 1)));
    store.publish(3);
    assert_eq!(store.revision(), 2);
    catch_up(&store, &past("b", 2));
    assert_eq!(*marks.0.lock(), ["commit 2", "commit 3", "swapped", "commit 3"]);
}

/// While states are swapped and revisions adopted, nobody sees a mixture of pasts.
#[test]
fn readers_and_watchers_never_see_a_mixture_of_pasts() {
    let store = follower();
    store.swap(state_of(&past("0", 250)));
    limit_frames(&store, 4 << 10);
    let stop = AtomicBool::new(false);
    let tag = |value: &[u8]| String::from_utf8_lossy(value).split(' ').next().map(str::to_owned);
    std::thread::scope(|scope| {
        for reader in 0..2 {
            let (store, stop) = (&store, &stop);
            scope.spawn(move || {
                let mut reads = 0;
                while !stop.load(Ordering::Relaxed) || reads == 0 {
                    let options = RangeOptions::new(KeyRange::all());
                    let result = match reader {
                        0 => store.range(&options),
                        _ => store.versions(0).map(|versions| RangeResult {
                            kvs: versions.all.into_iter().map(|v| v.kv).collect(),
                            ..RangeResult::default()
                        }),
                    };
                    let Ok(result) = result else { continue };
                    let mut tags: Vec<_> = result.kvs.iter().map(|kv| tag(kv.value())).collect();
                    tags.dedup();
                    assert_eq!(tags.len(), 1, "{tags:?}");
                    reads += 1;
                }
            });
        }
        let (store, stop) = (&store, &stop);
        scope.spawn(move || {
            let mut watcher = store.watch(WatchFilter::new(KeyRange::all()), 0, Arc::new(NoWake));
            let (mut last, mut seen) = (watcher.created_at(), None);
            while !stop.load(Ordering::Relaxed) {
                match watcher.take(1) {
                    WatchUpdate::Nothing | WatchUpdate::Later => {}
                    WatchUpdate::Events { frames, revision } => {
                        for event in events(&frames) {
                            let kv = event.kv.unwrap();
                            assert_eq!(kv.mod_revision, last + 1, "dense");
                            last = kv.mod_revision;
                            let found = tag(&kv.value);
                            assert!(seen.is_none() || seen == found, "{seen:?} {found:?}");
                            seen = found;
                        }
                        assert_eq!(revision, last);
                    }
                    WatchUpdate::Compacted(_) => {
                        watcher = store.watch(WatchFilter::new(KeyRange::all()), 0, Arc::new(NoWake));
                        (last, seen) = (watcher.created_at(), None);
                    }
                }
            }
        });
        for n in 0..60 {
            let leader = past(&n.to_string(), 300 - n);
            let mut state = state_of(&leader);
            if n % 2 == 0 {
                state.compact(100).unwrap();
            }
            store.swap(state);
            for _ in 0..20 {
                put(&leader, "k000", &format!("{n} later"));
                catch_up(store, &leader);
                store.wake_watchers();
            }
        }
        stop.store(true, Ordering::Relaxed);
    });
}
