//! etcd's watch guarantees: every change once, in order, whole revisions, whatever the pace of the watcher.

use super::super::*;
use super::message::{self, EventType};
use super::model::{Model, Step, range, step};
use super::{compact_and_purge, limit_frames, put, watch, watch_all, with_previous};
use proptest::prelude::*;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// An event, with the fields by which the property orders and compares events.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Seen {
    revision: i64,
    kind: EventType,
    key: Vec<u8>,
    value: Vec<u8>,
    prev_revision: Option<i64>,
}

pub(super) fn seen(frames: &[bytes::Bytes]) -> Vec<Seen> {
    let seen = |event: message::Event| {
        let kind = event.r#type();
        let kv = event.kv.unwrap();
        Seen {
            revision: kv.mod_revision,
            kind,
            key: kv.key,
            value: kv.value,
            prev_revision: event.prev_kv.map(|prev| prev.mod_revision),
        }
    };
    message::events(frames).into_iter().map(seen).collect()
}

/// A store, its model, and one watcher that takes now and then.
struct Story {
    store: Arc<Store>,
    model: Model,
    range: KeyRange,
    watcher: Watcher,
    /// The first revision that the watcher has to see.
    first: i64,
    seen: Vec<Seen>,
    /// The revision up to which the watcher has seen everything.
    delivered: i64,
    cancelled: bool,
}

impl Story {
    fn new(range: KeyRange, start: i64) -> Self {
        let store = Store::new();
        let filter = with_previous(range.clone());
        let watcher = watch(&store, filter, start);
        let first = if start == 0 { watcher.created_at() + 1 } else { start };
        Self {
            store,
            model: Model::new(),
            range,
            watcher,
            first,
            seen: vec![],
            delivered: 0,
            cancelled: false,
        }
    }

    fn step(&mut self, step: &Step) {
        step.apply(&self.store);
        self.model.apply(step);
    }

    /// Lets the watcher take up to `times`, about `max` bytes each time, and checks each delivery by itself.
    fn take(&mut self, times: usize, max: usize) -> Result<(), TestCaseError> {
        for _ in 0..times {
            match self.watcher.take(max) {
                WatchUpdate::Nothing => break,
                WatchUpdate::Later => {}
                WatchUpdate::Compacted(compacted) => {
                    prop_assert!(self.delivered < compacted);
                    self.cancelled = true;
                    break;
                }
                WatchUpdate::Events { frames, revision } => {
                    let events = seen(&frames);
                    prop_assert!(revision > self.delivered);
                    prop_assert!(!events.is_empty());
                    prop_assert!(events.is_sorted_by_key(|event| event.revision));
                    let inside = |event: &Seen| event.revision > self.delivered && event.revision <= revision;
                    prop_assert!(events.iter().all(inside));
                    self.seen.extend(events);
                    self.delivered = revision;
                }
            }
        }
        Ok(())
    }

    /// The revision up to which the watcher must have seen everything.
    fn end(&self) -> i64 {
        if self.cancelled {
            self.delivered
        } else {
            self.store.revision()
        }
    }

    /// The events that follow from the model's contents before and after each revision.
    fn expected(&self) -> Vec<Seen> {
        let mut expected = vec![];
        for revision in self.first.max(2)..=self.end() {
            let (before, after) = (self.model.at(revision - 1), self.model.at(revision));
            for (key, entry) in after {
                if entry.mod_revision != revision || !self.range.contains(key) {
                    continue;
                }
                // A revision that creates a key reports no previous key-value, even if the same revision deleted it.
                let prev = before.get(key).filter(|_| entry.create_revision != revision);
                expected.push(Seen {
                    revision,
                    kind: EventType::Put,
                    key: key.clone(),
                    value: entry.value.clone(),
                    prev_revision: prev.map(|prev| prev.mod_revision),
                });
            }
            for (key, entry) in before {
                if after.contains_key(key) || !self.range.contains(key) {
                    continue;
                }
                expected.push(Seen {
                    revision,
                    kind: EventType::Delete,
                    key: key.clone(),
                    value: vec![],
                    prev_revision: Some(entry.mod_revision),
                });
            }
        }
        self.comparable(expected)
    }

    /// The events that the watcher has seen, reduced to those that the model can predict: one revision may change a
    /// key several times, but the model only has the result.
    fn observed(&self) -> Vec<Seen> {
        let mut last: Vec<Seen> = vec![];
        for event in &self.seen {
            last.retain(|earlier| (&earlier.key, earlier.revision) != (&event.key, event.revision));
            last.push(event.clone());
        }
        // A revision that creates and deletes a key leaves no trace in the model.
        last.retain(|event| event.kind == EventType::Put || self.model.at(event.revision - 1).contains_key(&event.key));
        self.comparable(last)
    }

    /// Sorts events, and removes previous key-values that a compaction may or may not have hidden.
    fn comparable(&self, mut events: Vec<Seen>) -> Vec<Seen> {
        let compacted = self.store.compacted();
        for event in events.iter_mut().filter(|event| event.revision <= compacted) {
            event.prev_revision = None;
        }
        events.sort();
        events
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

    #[test]
    fn a_watcher_sees_every_change_once_in_order_whatever_its_pace(
        steps in proptest::collection::vec(step(), 1..60), range in range(), start in 0i64..8,
        paces in proptest::collection::vec(0usize..4, 60), max in 1usize..200,
        budget in prop_oneof![Just(64 << 20), 0usize..4000], idle in proptest::collection::vec(range(), 0..4),
    ) {
        let mut story = Story::new(range, start);
        limit_frames(&story.store, budget);
        let idle: Vec<_> = idle.into_iter().map(|range| watch(&story.store, WatchFilter::new(range), 0)).collect();
        // What one revision may take beyond the budget: a frame in each group, and what shared bytes cost.
        let one_revision = 96 + 32 * (idle.len() + 1);
        for (step, pace) in steps.iter().zip(paces) {
            story.step(step);
            prop_assert!(story.store.stats().frame_bytes <= budget + one_revision);
            story.take(pace, max)?;
            if story.cancelled {
                break;
            }
        }
        if !story.cancelled {
            story.take(usize::MAX, max)?;
        }
        if !story.cancelled {
            let revision = story.store.revision();
            let synced = (story.first <= revision + 1).then_some(revision);
            prop_assert_eq!(story.store.synced([&story.watcher]), synced);
        }
        prop_assert_eq!(story.observed(), story.expected());
        let Story { store, watcher, .. } = story;
        drop((watcher, idle));
        prop_assert_eq!(store.stats().frame_bytes, 0);
    }
}

#[test]
fn a_tombstone_at_the_compact_revision_survives_and_an_older_one_does_not() {
    let store = Store::new();
    put(&store, "a", "1");
    put(&store, "b", "1");
    store.delete(&KeyRange::key("a"));
    let revision = store.delete(&KeyRange::key("b")).revision;
    compact_and_purge(&store, revision);
    let WatchUpdate::Events { frames, .. } = watch_all(&store, revision).take_now(1 << 20) else {
        panic!("no events")
    };
    let deleted = Seen {
        revision,
        kind: EventType::Delete,
        key: b"b".to_vec(),
        value: vec![],
        prev_revision: None,
    };
    assert_eq!(seen(&frames), [deleted]);
    assert_eq!(store.compact(revision), Err(Error::Compacted));
    assert_eq!(store.compact(revision + 1), Err(Error::FutureRevision));
    assert_eq!(store.versions(0).unwrap().all.len(), 1, "the tombstone of a is purged");
    let now = put(&store, "c", "1");
    compact_and_purge(&store, now);
    assert_eq!(store.versions(0).unwrap().all.len(), 1, "the tombstone of b is purged");
}

#[test]
fn a_new_watcher_from_before_the_compaction_is_cancelled_although_its_group_has_the_frames() {
    let store = Store::new();
    let _group = watch_all(&store, 0);
    let first = put(&store, "a", "1");
    let last = put(&store, "a", "2");
    store.compact(last).unwrap();
    assert_eq!(watch_all(&store, first).take(1 << 20), WatchUpdate::Compacted(last));
    let update = watch_all(&store, last).take(1 << 20);
    assert!(matches!(update, WatchUpdate::Events { revision, .. } if revision == last));
}

#[test]
fn a_new_watcher_sees_no_previous_value_from_before_the_compaction_although_its_group_has_the_frames() {
    let store = Store::new();
    let filter = with_previous(KeyRange::all());
    let mut early = watch(&store, filter.clone(), 0);
    let first = put(&store, "a", "1");
    let compacted = put(&store, "a", "2");
    let last = put(&store, "a", "3");
    store.compact(compacted).unwrap();
    let previous = |watcher: &mut Watcher, max| {
        let mut previous = vec![];
        while let WatchUpdate::Events { frames, .. } = watcher.take_now(max) {
            previous.extend(seen(&frames).into_iter().map(|event| event.prev_revision));
        }
        previous
    };
    let mut new = watch(&store, filter.clone(), compacted);
    assert_eq!(previous(&mut new, 1), [None, Some(compacted)]);
    assert_eq!(previous(&mut watch(&store, filter, last), 1), [Some(compacted)]);
    assert_eq!(
        previous(&mut early, 1 << 20),
        [None, Some(first), Some(compacted)],
        "an earlier watcher was owed the value"
    );
    put(&store, "a", "4");
    assert_eq!(previous(&mut new, 1), [Some(last)]);
}

#[test]
fn a_slow_member_does_not_make_its_group_hold_more_than_the_bound() {
    let store = Store::new();
    let filter = WatchFilter::new(KeyRange::prefix("p/"));
    let mut slow = watch(&store, filter.clone(), 0);
    let mut fast = watch(&store, filter, 0);
    let big = "x".repeat(100_000);
    for i in 0..100 {
        put(&store, &format!("p/{i}"), &big);
        assert!(matches!(fast.take(usize::MAX), WatchUpdate::Events { .. }));
    }
    let mut events = 0;
    while let WatchUpdate::Events { frames, .. } = slow.take_now(1 << 20) {
        events += seen(&frames).len();
    }
    assert_eq!(events, 100);
}

#[test]
fn idle_watchers_of_many_ranges_hold_no_more_than_the_budget_and_see_every_change() {
    const BUDGET: usize = 1 << 20;
    let store = Store::new();
    limit_frames(&store, BUDGET);
    let ranges = (0..50).map(|i| KeyRange::prefix(format!("p/{i:02}/")));
    let mut watchers: Vec<_> = ranges.map(|range| watch(&store, WatchFilter::new(range), 0)).collect();
    let big = "x".repeat(50_000);
    for i in 0..200 {
        put(&store, &format!("p/{:02}/{i}", i % 50), &big);
        assert!(store.stats().frame_bytes <= BUDGET);
    }
    let stats = store.stats();
    assert!(
        stats.frames_dropped > 150 && stats.frame_bytes > BUDGET / 4,
        "{stats:?}"
    );
    assert_eq!(stats.log_reads, 0);
    for watcher in &mut watchers {
        let mut events = 0;
        while let WatchUpdate::Events { frames, .. } = watcher.take_now(1) {
            events += seen(&frames).len();
        }
        assert_eq!(events, 4);
    }
    assert!(store.stats().log_reads > 30);
    drop(watchers);
    assert_eq!(store.stats().frame_bytes, 0);
}

#[test]
fn watchers_of_nested_ranges_share_the_bytes_of_a_frame() {
    let store = Store::new();
    let range = |i: usize| KeyRange::new(format!("a{i:04}"), format!("b{i:04}"));
    let mut watchers: Vec<_> = (0..1000)
        .map(|i| watch(&store, WatchFilter::new(range(i)), 0))
        .collect();
    put(&store, "a9999", &"x".repeat(100_000));
    let bytes = store.stats().frame_bytes;
    assert!((100_000..200_000).contains(&bytes), "{bytes}");
    let puts: Vec<_> = ["a9", "c", "a99", "b"]
        .map(|key| Write::Put(key.into(), "v".into()))
        .into();
    store.apply(&puts);
    for watcher in &mut watchers {
        let WatchUpdate::Events { frames, revision: 3 } = watcher.take_now(usize::MAX) else {
            panic!("no events")
        };
        let keys: Vec<_> = seen(&frames).into_iter().map(|event| event.key).collect();
        assert_eq!(keys, [&b"a9999"[..], b"a9", b"a99", b"b"]);
    }
}

#[test]
fn a_revision_that_is_longer_than_all_frames_may_be_is_read_from_the_log() {
    let store = Store::new();
    let filter = with_previous(KeyRange::all());
    let mut watcher = watch(&store, filter, 0);
    let big = "x".repeat(3 << 20);
    for _ in 0..2 {
        put(&store, "a", &big);
        put(&store, "b", "small");
    }
    assert!(store.stats().frame_bytes < 1000, "the last revision alone");
    let mut keys = vec![];
    while let WatchUpdate::Events { frames, .. } = watcher.take_now(1) {
        keys.extend(seen(&frames).into_iter().map(|event| event.key));
    }
    assert_eq!(keys, [b"a", b"b", b"a", b"b"]);
}

/// Counts calls, and calls something else as well.
pub(super) struct Count<F>(pub(super) AtomicUsize, pub(super) F);

impl<F: Fn() + Send + Sync> Wake for Count<F> {
    fn wake(&self) {
        self.0.fetch_add(1, Ordering::SeqCst);
        (self.1)();
    }
}

#[test]
fn a_revision_is_woken_once_every_watcher_that_wants_it_was_woken() {
    let store = Store::new();
    assert_eq!(store.woken(), 1);
    put(&store, "a", "");
    assert_eq!(store.woken(), 2, "no watcher wants the revision");
    let during = {
        let store = Arc::downgrade(&store);
        move || {
            let store = store.upgrade().unwrap();
            assert_eq!(store.woken(), 3);
            put(&store, "b", "while the first watcher is being woken");
        }
    };
    let (a, b) = (
        Arc::new(Count(AtomicUsize::new(0), during)),
        Arc::new(Count(AtomicUsize::new(0), || {})),
    );
    let _watchers = [
        store.watch(WatchFilter::new(KeyRange::key("a")), 0, Arc::clone(&a) as _),
        store.watch(WatchFilter::new(KeyRange::key("b")), 0, Arc::clone(&b) as _),
    ];
    put(&store, "c", "");
    assert_eq!(store.woken(), 3);
    put(&store, "a", "");
    put(&store, "c", "");
    assert_eq!((store.woken(), store.revision()), (3, 5));
    assert_eq!(store.wake_watchers(), 1);
    assert_eq!((store.woken(), store.revision()), (5, 6));
    assert_eq!((a.0.load(Ordering::SeqCst), b.0.load(Ordering::SeqCst)), (1, 0));
    assert_eq!(store.wake_watchers(), 1);
    assert_eq!((store.woken(), b.0.load(Ordering::SeqCst)), (6, 1));
    assert_eq!((store.wake_watchers(), store.woken()), (0, 6));
}

/// Writes, and wakes with `wake`, on several threads. A watcher that was not woken has nothing to take up to [`Store::woken`].
pub(super) fn woken_is_true(watchers: usize, wake: impl Fn(&Store) + Sync) {
    const WRITES: i64 = 500;
    let store = Store::new();
    let woken: Vec<_> = (0..watchers).map(|_| Arc::new(AtomicBool::new(false))).collect();
    let watch = |woken: &Arc<AtomicBool>| {
        let woken = Arc::clone(woken);
        let wake = Count(AtomicUsize::new(0), move || woken.store(true, Ordering::SeqCst));
        store.watch(WatchFilter::new(KeyRange::prefix("k")), 0, Arc::new(wake))
    };
    let mut watchers: Vec<_> = woken.iter().map(|woken| (watch(woken), woken, 0)).collect();
    let last = 1 + 3 * WRITES;
    std::thread::scope(|scope| {
        for key in ["k1", "k2", "other"] {
            let store = &store;
            scope.spawn(move || {
                for _ in 0..WRITES {
                    put(store, key, "");
                }
            });
        }
        for _ in 0..2 {
            scope.spawn(|| {
                while store.woken() < last {
                    wake(&store);
                    std::thread::yield_now();
                }
            });
        }
        while watchers.iter().any(|(.., events)| *events < 2 * WRITES) {
            for (watcher, woken, events) in &mut watchers {
                let revision = store.woken();
                let was_woken = woken.swap(false, Ordering::SeqCst);
                while let WatchUpdate::Events { frames, .. } = watcher.take_now(100) {
                    let seen = seen(&frames);
                    assert!(was_woken || seen[0].revision > revision, "{revision}: {:?}", seen[0]);
                    *events += seen.len() as i64;
                }
            }
        }
        assert!(watchers.iter().all(|(.., events)| *events == 2 * WRITES));
    });
}

#[test]
fn a_watcher_that_was_not_woken_has_nothing_to_take_up_to_the_woken_revision() {
    woken_is_true(1, |store| {
        store.wake_watchers();
    });
}

#[test]
fn a_revision_is_delivered_once_every_watcher_of_its_keys_has_taken_it() {
    let store = Store::new();
    let prefix = WatchFilter::new(KeyRange::prefix("a/".to_owned()));
    let mut watchers = [
        watch(&store, prefix.clone(), 0),
        watch(&store, prefix, 0),
        watch(&store, WatchFilter::new(KeyRange::key("a/1".to_owned())), 0),
    ];
    let other = watch(&store, WatchFilter::new(KeyRange::prefix("b/".to_owned())), 0);
    put(&store, "a/1", "x");
    let revision = store.revision();
    for watcher in &mut watchers {
        assert!(!store.is_delivered(b"a/1", revision));
        watcher.take(usize::MAX);
    }
    assert!(store.is_delivered(b"a/1", revision));
    assert!(!store.is_delivered(b"a/1", revision + 1), "nobody can have the future");
    put(&store, "b/1", "x");
    assert!(store.is_delivered(b"a/1", store.revision()));
    assert!(!store.is_delivered(b"b/1", store.revision()));
    drop(other);
    assert!(store.is_delivered(b"b/1", store.revision()));
}
