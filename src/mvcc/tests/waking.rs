//! How members of groups are woken, and what they share.

use super::super::*;
use super::watch::{Count, seen, woken_is_true};
use super::{NoWake, limit_frames, put};
use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

#[test]
fn a_range_with_many_watchers_gathers_events_and_a_quiet_one_does_not_wait() {
    const GATHERING: Gathering = Gathering {
        most: 1000,
        per_member: 400,
    };
    let store = Store::new();
    let wakes: Vec<_> = (0..5).map(|_| Arc::new(Count(AtomicUsize::new(0), || {}))).collect();
    let watch = |key: &str, wake: &Arc<Count<_>>| {
        let filter = WatchFilter::new(KeyRange::key(key.to_owned()));
        store.watch(filter, 0, Arc::clone(wake) as _)
    };
    let mut many: Vec<_> = wakes[1..].iter().map(|wake| watch("many", wake)).collect();
    let _one = watch("one", &wakes[0]);
    let wake = |now| {
        let Woken { groups, next } = store.wake_due_watchers(now, GATHERING, usize::MAX);
        (groups, next, store.woken())
    };
    put(&store, "many", "1");
    put(&store, "one", "1");
    assert_eq!(wake(5000), (2, None, 3), "both were quiet");
    put(&store, "other", "");
    put(&store, "many", "2");
    put(&store, "one", "2");
    assert_eq!(
        wake(5100),
        (0, Some(5400), 4),
        "one watcher gathers for 400, four for 1000"
    );
    put(&store, "many", "3");
    assert_eq!(wake(5400), (1, Some(6000), 4), "the range with one watcher is due");
    assert_eq!(wake(5999), (0, Some(6000), 4));
    assert_eq!(wakes[1].0.load(Ordering::SeqCst), 1);
    assert_eq!(wake(6000), (1, None, 7));
    assert_eq!(wakes[1].0.load(Ordering::SeqCst), 2);
    let WatchUpdate::Events { frames, revision } = many[0].take_now(1000) else {
        panic!("no events");
    };
    assert_eq!((seen(&frames).len(), revision), (3, 7), "gathered in one message");
    put(&store, "many", "4");
    assert_eq!(store.wake_watchers(), 1, "without gathering");
    put(&store, "many", "5");
    assert_eq!(wake(6001), (1, None, 9), "the range gathers nothing after that");
}

#[test]
fn members_that_have_taken_everything_are_not_woken() {
    let store = Store::new();
    let wakes: Vec<_> = (0..5).map(|_| Arc::new(Count(AtomicUsize::new(0), || {}))).collect();
    let filter = || WatchFilter::new(KeyRange::prefix("k"));
    let mut watchers: Vec<_> = wakes
        .iter()
        .map(|wake| store.watch(filter(), 0, Arc::clone(wake) as _))
        .collect();
    let woken = || {
        wakes
            .iter()
            .map(|wake| wake.0.load(Ordering::SeqCst))
            .collect::<Vec<_>>()
    };
    put(&store, "k1", "1");
    for watcher in &mut watchers[..3] {
        let WatchUpdate::Events { revision, .. } = watcher.take_now(1000) else {
            panic!("no events");
        };
        assert_eq!(revision, 2);
    }
    assert_eq!(store.wake_watchers(), 1);
    assert_eq!(woken(), [0, 0, 0, 1, 1]);
    put(&store, "k2", "2");
    assert_eq!(store.wake_watchers(), 1);
    assert_eq!(woken(), [1, 1, 1, 2, 2]);
}

#[test]
fn members_of_a_range_share_the_bytes_of_a_burst_while_some_have_not_read_it() {
    let store = Store::new();
    let filter = || WatchFilter::new(KeyRange::prefix("k"));
    let mut watchers: Vec<_> = (0..4).map(|_| store.watch(filter(), 0, Arc::new(NoWake))).collect();
    let _later = store.watch(filter(), 100, Arc::new(NoWake));
    let held = || store.state.read().groups.budget.held();
    let take = |watcher: &mut Watcher, max| match watcher.take_now(max) {
        WatchUpdate::Events { frames, revision } => (frames, revision),
        other => panic!("{other:?}"),
    };
    let text = |of: &str| of.repeat(100);
    put(&store, "k1", &text("1"));
    let (first, _) = take(&mut watchers[3], 4096);
    put(&store, "k2", &text("2"));
    put(&store, "k3", &text("3"));
    let unread = held();
    let [one, two, three, four] = &mut watchers[..] else {
        panic!("four watchers");
    };
    // Whoever has read the beginning shares the end, before and after the others.
    let (end, _) = take(four, 4096);
    let (burst, revision) = take(one, 4096);
    assert_eq!((burst.len(), revision), (1, 4));
    assert_eq!(seen(&burst), seen(&[first, end].concat()));
    let (same, _) = take(two, 4096);
    assert_eq!((same[0].as_ptr(), same[0].len()), (burst[0].as_ptr(), burst[0].len()));
    assert!(held() > unread + 300, "what is shared counts");
    assert_eq!(take(three, 120).1, 2, "the burst does not fit into the message");
    let (end, revision) = take(three, 4096);
    assert_eq!((end.len(), revision), (1, 4));
    assert_eq!(end[0].as_ptr_range().end, burst[0].as_ptr_range().end);
    assert_eq!(held(), unread, "nobody else has anything to read");
    put(&store, "k4", &text("4"));
    put(&store, "k5", &text("5"));
    take(one, 4096);
    assert!(held() > unread + 400);
    let shared = held();
    put(&store, "k6", "6");
    assert!(held() < shared, "the next event ends it");
    limit_frames(&store, held() + 200);
    assert_eq!(take(two, 4096).0.len(), 3, "the budget has no room");
}

#[test]
fn a_watcher_is_told_or_up_to_date_before_a_revision_counts_as_woken() {
    let gathering = Gathering {
        most: 2_000_000,
        per_member: 400_000,
    };
    let clock = AtomicU64::new(0);
    // So many that all but one are woken after a head start.
    woken_is_true(16, |store| {
        store.wake_due_watchers(clock.fetch_add(300_000, Ordering::Relaxed), gathering, 1);
    });
}

#[test]
fn the_first_members_of_a_large_quiet_group_have_a_head_start_and_other_groups_do_not_wait() {
    let store = Store::new();
    let wakes: Vec<_> = (0..18).map(|_| Arc::new(Count(AtomicUsize::new(0), || {}))).collect();
    let watch = |(at, wake): (usize, &Arc<Count<_>>)| {
        let filter = WatchFilter::new(KeyRange::key(if at < 16 { "large" } else { "small" }));
        store.watch(filter, 0, Arc::clone(wake) as _)
    };
    let mut watchers: Vec<_> = wakes.iter().enumerate().map(watch).collect();
    let told = |wake: &Arc<Count<_>>| wake.0.load(Ordering::SeqCst);
    let wake = |now| {
        let gathering = Gathering { most: 9, per_member: 1 };
        let Woken { groups, next } = store.wake_due_watchers(now, gathering, 2);
        let (large, small) = wakes.split_at(16);
        let sum = |of: &[_]| of.iter().map(told).sum::<usize>();
        (groups, next, sum(large), sum(small), store.woken())
    };
    let start = 1_000_000;
    put(&store, "large", "1");
    assert_eq!(
        wake(5),
        (1, Some(5 + start), 2, 0, 1),
        "14 members are not told of revision 2"
    );
    let early: Vec<_> = wakes.iter().map(|wake| told(wake) > 0).collect();
    put(&store, "small", "1");
    put(&store, "large", "2");
    assert_eq!(
        wake(6),
        (1, Some(5 + start), 2, 2, 1),
        "the first members wait as well now"
    );
    assert_eq!(
        wake(5 + start),
        (0, Some(14 + start), 16, 2, 3),
        "the others; the first are not told of revision 4"
    );
    for (at, watcher) in watchers.iter_mut().enumerate().filter(|(at, _)| !early[*at]) {
        let WatchUpdate::Events { frames, .. } = watcher.take_now(1000) else {
            panic!("no events");
        };
        assert_eq!(seen(&frames).len(), if at < 16 { 2 } else { 1 });
    }
    assert_eq!(
        wake(14 + start),
        (1, None, 18, 2, 4),
        "only the first members lack revision 4"
    );
    put(&store, "large", "3");
    assert_eq!(wake(15 + start), (0, Some(23 + start), 18, 2, 4));
    assert_eq!(
        wake(23 + start),
        (1, None, 34, 2, 5),
        "nobody has a head start once the group has gathered"
    );
    let later = 9 * start;
    for watcher in &mut watchers {
        while let WatchUpdate::Events { .. } = watcher.take_now(1000) {}
    }
    put(&store, "large", "4");
    assert_eq!(wake(later), (1, Some(later + start), 36, 2, 5));
    drop(watchers.remove(15));
    assert_eq!(store.wake_watchers(), 0, "only the others were left");
    assert_eq!(store.woken(), 6);
    put(&store, "large", "5");
    let (groups, ..) = wake(later + 1);
    assert_eq!(groups, 1, "the group gathers nothing after that");
}

#[test]
fn a_quiet_range_is_woken_before_the_others_of_a_large_one() {
    let (store, order) = (Store::new(), Arc::new(Mutex::new(vec![])));
    let watch = |key: &'static str| {
        let order = Arc::clone(&order);
        let wake = Count(AtomicUsize::new(0), move || order.lock().push(key));
        store.watch(WatchFilter::new(KeyRange::key(key)), 0, Arc::new(wake))
    };
    let _large: Vec<_> = (0..8).map(|_| watch("large")).collect();
    let _small = watch("small");
    let gathering = Gathering { most: 1, per_member: 1 };
    put(&store, "large", "");
    let next = store.wake_due_watchers(5, gathering, 1).next.unwrap();
    put(&store, "small", "");
    assert_eq!(store.wake_due_watchers(next, gathering, 1).groups, 1);
    let order = std::mem::take(&mut *order.lock());
    assert_eq!(order, [vec!["large", "small"], vec!["large"; 7]].concat());
}
