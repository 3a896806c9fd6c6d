//! Stores whose upstream has compacted revisions that are missing here: no watcher goes on with events of another past, or
//! without an event that it should have seen.

use super::super::*;
use super::follow::{catch_up, follower, past, state_of};
use super::message::{EventType, KeyValue, events};
use super::model::{Step, step};
use super::{compact_and_purge, put, watch_all};
use proptest::prelude::*;
use prost::Message;
use std::collections::BTreeMap;
use std::sync::Arc;

/// The state of a follower of `leader` that was loaded after a compaction to `compacted`, from a snapshot.
fn compacted(leader: &Arc<Store>, compacted: i64, has_deletions: bool) -> Recovery {
    let mut versions = leader.versions(0).unwrap().all;
    versions.sort_by(|a, b| (a.kv.key(), a.main, a.sub).cmp(&(b.kv.key(), b.main, b.sub)));
    let mut loader = Loader::following(leader.revision(), compacted);
    let mut kept: Vec<Version> = vec![];
    for version in versions {
        let is_older = |last: &Version| last.kv.key() == version.kv.key() && version.main <= compacted;
        if kept.last().is_some_and(is_older) {
            kept.pop();
        }
        kept.push(version);
    }
    let is_gone = |v: &Version| v.tombstone && (v.main < compacted || (v.main == compacted && !has_deletions));
    for version in kept.into_iter().filter(|version| !is_gone(version)) {
        assert!(loader.push(version));
    }
    loader.finish().unwrap()
}

fn listed(leader: &Store) -> Recovery {
    let all = leader.range(&RangeOptions::new(KeyRange::all())).unwrap();
    let mut loader = Loader::listed(all.revision);
    all.kvs.into_iter().for_each(|kv| assert!(loader.push_listed(kv)));
    loader.finish().unwrap()
}

/// A follower that has everything of `leader`.
fn follower_of(leader: &Store) -> Arc<Store> {
    let store = follower();
    catch_up(&store, leader);
    store
}

fn content(store: &Store) -> BTreeMap<Vec<u8>, KeyValue> {
    let all = store.range(&RangeOptions::new(KeyRange::all())).unwrap();
    let decoded = |kv: Kv| (kv.key().to_vec(), KeyValue::decode(kv.as_bytes()).unwrap());
    all.kvs.into_iter().map(decoded).collect()
}

/// What a client sees that has seen `view`, and the events since; an error if it is told that they are compacted.
fn seen(watcher: &mut Watcher, view: &mut BTreeMap<Vec<u8>, KeyValue>) -> Result<(), i64> {
    loop {
        match watcher.take_now(1) {
            WatchUpdate::Events { frames, .. } => {
                for event in events(&frames) {
                    let kv = event.kv.unwrap();
                    match event.r#type {
                        kind if kind == EventType::Put as i32 => drop(view.insert(kv.key.clone(), kv)),
                        _ => assert!(view.remove(&kv.key).is_some(), "{kv:?} is deleted and was not there"),
                    }
                }
            }
            WatchUpdate::Compacted(at) => return Err(at),
            WatchUpdate::Nothing | WatchUpdate::Later => return Ok(()),
        }
    }
}

/// Puts `newer` into place as a replica does, under a client that has seen all that `store` has; returns how it joined.
fn join(store: &Arc<Store>, newer: Recovery) -> Result<Seam, Divergence> {
    let (mut watcher, mut view) = (watch_all(store, 0), content(store));
    let seam = store.seam(&newer).and_then(|seam| match seam {
        Seam::Met => store.adopt_from(&newer).map(|()| seam),
        Seam::Closed | Seam::Open | Seam::Torn => Ok(seam),
    });
    match seam {
        Ok(Seam::Met) => {}
        Ok(Seam::Closed | Seam::Open) => store.skip_to(newer),
        Ok(Seam::Torn) | Err(_) => store.swap(newer),
    }
    let told = seen(&mut watcher, &mut view);
    match seam {
        Ok(Seam::Met | Seam::Closed) => {
            told.unwrap();
            assert_eq!(view, content(store), "the client has missed something");
        }
        _ => assert_eq!(told, Err(store.floor()), "{seam:?}"),
    }
    seam
}

#[test]
fn the_same_past_is_recognized_behind_a_compaction() {
    let leader = past("a", 300);
    let before = || follower_of(&past("a", 250));
    // The store is at revision 251.
    let seams = [
        (2, Seam::Met),
        (251, Seam::Met),
        (252, Seam::Closed),
        (253, Seam::Open),
        (301, Seam::Open),
    ];
    for (at, seam) in seams {
        assert_eq!(join(&before(), compacted(&leader, at, true)), Ok(seam), "{at}");
    }
    assert_eq!(join(&before(), listed(&past("a", 250))), Ok(Seam::Closed));
    for n in [251, 252, 300] {
        assert_eq!(join(&before(), listed(&past("a", n))), Ok(Seam::Open), "{n}");
    }
    // A store without keys is the beginning of every past.
    assert_eq!(join(&follower(), compacted(&leader, 2, true)), Ok(Seam::Closed));
    assert_eq!(join(&follower(), compacted(&leader, 9, true)), Ok(Seam::Open));
}

/// A restored etcd with the ids of the former one, which was compacted to the next revision of the replica and beyond.
#[test]
fn another_past_is_recognized_behind_a_compaction() {
    let before = || follower_of(&past("a", 150));
    // The store is at revision 151, and each past has keys that are left from before.
    let other = past("b", 300);
    for at in [2, 151, 152, 153, 190] {
        let refused = join(&before(), compacted(&other, at, true)).unwrap_err();
        assert!(refused.to_string().contains("at revision 151"), "{refused}");
    }
    for n in [150, 151, 199] {
        join(&before(), listed(&past("b", n))).unwrap_err();
    }
    // They differ in one key, whose value, version, creation or absence is another one.
    let differing: [fn(&Store); 4] = [
        |store| {
            put(store, "k007", "another");
        },
        |store| {
            put(store, "new", "");
        },
        |store| drop(store.delete(&KeyRange::key("k007"))),
        |store| {
            let again = [Write::Delete("k007".into()), Write::Put("k007".into(), "a 7".into())];
            store.apply(&again);
        },
    ];
    for differs in differing {
        let (leader, other) = (past("a", 150), past("a", 150));
        put(&leader, "gone", "");
        differs(&other);
        for n in 0..20 {
            put(&other, &format!("k{}", 140 + n % 9), "later");
        }
        // The store is at revision 152. What is only here may have been deleted since: that proves nothing.
        let next = join(&follower_of(&leader), compacted(&other, 153, true));
        let later = join(&follower_of(&leader), compacted(&other, 160, true));
        let is_absent = other.get(b"k007").is_none();
        match is_absent {
            true => assert_eq!((next, later), (Ok(Seam::Torn), Ok(Seam::Open))),
            false => assert!(
                matches!(
                    (&next, &later),
                    (Err(Divergence::Key { .. }), Err(Divergence::Key { .. }))
                ),
                "{next:?} {later:?}"
            ),
        }
    }
    // The events of the last revision are the same.
    let (leader, other) = (past("a", 150), past("a", 150));
    put(&leader, "k001", "a");
    put(&other, "k001", "b");
    put(&leader, "k002", "the same");
    put(&other, "k002", "the same");
    let store = follower_of(&leader);
    put(&other, "k003", "");
    store.adopt_from(&compacted(&other, 153, true)).unwrap();
    let refused = join(&follower_of(&leader), compacted(&other, 153, true));
    assert!(matches!(refused, Err(Divergence::Key { .. })), "{refused:?}");
    // Nothing tells both pasts apart: all that they wrote differently was written again. Nobody goes on who needs that.
    let (leader, other) = (past("a", 150), past("a", 150));
    for store in [&leader, &other] {
        put(store, "k001", if Arc::ptr_eq(store, &leader) { "one" } else { "two" });
        put(store, "k002", "the same");
    }
    let store = follower_of(&leader);
    put(&other, "k001", "again");
    put(&other, "k003", "");
    assert_eq!(join(&store, compacted(&other, 155, true)), Ok(Seam::Open));
}

/// etcd has removed the deletions of the revision to which it compacts, up to 3.5.18.
#[test]
fn a_next_revision_without_its_deletions_cancels_all() {
    let leader = past("a", 50);
    let store = follower_of(&leader);
    leader.apply(&[Write::Delete("k007".into()), Write::Put("k008".into(), "x".into())]);
    put(&leader, "k009", "x");
    assert_eq!(join(&store, compacted(&leader, 52, false)), Ok(Seam::Torn));
    let store = follower_of(&past("a", 50));
    assert_eq!(join(&store, compacted(&leader, 52, true)), Ok(Seam::Closed));
    // A replica that has seen the deletions misses nothing, also if nothing is left of their revision.
    let emptied = past("a", 50);
    emptied.delete(&KeyRange::all());
    let store = follower_of(&emptied);
    put(&emptied, "k009", "x");
    assert_eq!(join(&store, compacted(&emptied, 52, false)), Ok(Seam::Met));
    // The key is there again.
    put(&leader, "k007", "again");
    let store = follower_of(&past("a", 50));
    assert_eq!(join(&store, compacted(&leader, 52, false)), Ok(Seam::Torn));
    // Each key has its last change of the revision only.
    let changes: [&[Write]; 3] = [
        &[
            Write::Put("k007".into(), "1".into()),
            Write::Put("k007".into(), "2".into()),
        ],
        &[Write::Delete("k007".into()), Write::Put("k007".into(), "2".into())],
        &[Write::Put("new".into(), "1".into()), Write::Delete("new".into())],
    ];
    for writes in changes {
        let leader = past("a", 50);
        let store = follower_of(&leader);
        leader.apply(writes);
        put(&leader, "k009", "x");
        assert_eq!(join(&store, compacted(&leader, 52, true)), Ok(Seam::Torn), "{writes:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

    /// Whatever the past of the state is: a client that goes on has the content of the state afterwards.
    #[test]
    fn clients_that_go_on_have_missed_nothing(
        shared in proptest::collection::vec(step(), 0..30), ours in proptest::collection::vec(step(), 0..6),
        theirs in proptest::collection::vec(step(), 1..30), is_same in any::<bool>(), is_listed in any::<bool>(),
        has_deletions in any::<bool>(), ahead in -2i64..4,
    ) {
        let make = |parts: &[&[Step]]| {
            let store = Store::new();
            let steps = parts.iter().copied().flatten();
            steps.filter(|s| !matches!(s, Step::Compact(_) | Step::Purge)).for_each(|step| step.apply(&store));
            store
        };
        let leader = make(&[&shared, &ours]);
        let other = if is_same { make(&[&shared, &ours, &theirs]) } else { make(&[&shared, &theirs]) };
        let (store, at) = (follower_of(&leader), leader.revision() + ahead);
        let newer = match is_listed {
            true if other.revision() >= leader.revision() => listed(&other),
            false if at > 1 && other.revision() >= at.max(leader.revision() + 1) => compacted(&other, at, has_deletions),
            _ => return Ok(()),
        };
        let seam = join(&store, newer);
        prop_assert!(!is_same || seam.is_ok(), "{seam:?}");
    }

    /// The state as it is loaded is that of a store that has compacted itself.
    #[test]
    fn a_compacted_state_is_that_of_a_compacted_store(steps in proptest::collection::vec(step(), 1..30), at in 2i64..20) {
        let leader = Store::new();
        steps.iter().filter(|s| !matches!(s, Step::Compact(_) | Step::Purge)).for_each(|step| step.apply(&leader));
        if leader.revision() < at {
            return Ok(());
        }
        let loaded = compacted(&leader, at, true).open(Hooks::default());
        let mut repeated = state_of(&leader);
        repeated.compact(at).unwrap();
        compact_and_purge(&leader, at);
        let all = |store: &Arc<Store>| store.versions(0).unwrap().all.into_iter().map(|v| (v.main, v.sub, v.kv)).collect::<Vec<_>>();
        prop_assert_eq!(all(&loaded), all(&leader));
        prop_assert_eq!(all(&repeated.open(Hooks::default())), all(&leader));
    }
}
