//! How members of groups are woken, and what they share.

use super::super::*;
use super::watch::{Count, seen, woken_is_true};
use super::{NoWake, limit_frames, put};
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
        let Woken { groups, next, more, .. } = store.wake_due_watchers(now, GATHERING, usize::MAX);
        assert!(!more);
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
fn members_are_woken_in_two_parts_and_those_that_have_taken_everything_are_not_woken() {
    let store = Store::new();
    let wakes: Vec<_> = (0..5).map(|_| Arc::new(Count(AtomicUsize::new(0), || {}))).collect();
    let filter = || WatchFilter::new(KeyRange::prefix("k"));
    let mut watchers: Vec<_> = wakes
        .iter()
        .map(|wake| store.watch(filter(), 0, Arc::clone(wake) as _))
        .collect();
    let woken = || wakes.iter().map(|wake| wake.0.load(Ordering::SeqCst)).sum::<usize>();
    let wake = || {
        let Woken { groups, more, .. } = store.wake_due_watchers(0, Gathering::default(), 2);
        (groups, more, woken(), store.woken())
    };
    put(&store, "k1", "1");
    assert_eq!(wake(), (1, true, 2, 1), "three members are not told of revision 2");
    put(&store, "k2", "2");
    let early: Vec<bool> = wakes.iter().map(|wake| wake.0.load(Ordering::SeqCst) > 0).collect();
    for (watcher, _) in watchers.iter_mut().zip(&early).filter(|(_, early)| !**early) {
        let WatchUpdate::Events { frames, revision } = watcher.take_now(1000) else {
            panic!("no events");
        };
        assert_eq!((seen(&frames).len(), revision), (2, 3));
    }
    assert_eq!(wake(), (0, true, 5, 2), "the others");
    assert_eq!(wake(), (1, false, 7, 3), "only two members lack revision 3");
    put(&store, "k3", "3");
    assert_eq!(store.wake_watchers(), 1);
    assert_eq!(woken(), 12);
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
        most: 2000,
        per_member: 400,
    };
    let clock = AtomicU64::new(0);
    woken_is_true(5, |store| {
        store.wake_due_watchers(clock.fetch_add(300, Ordering::Relaxed), gathering, 1);
    });
}

#[test]
fn the_first_part_of_a_large_group_has_time_and_a_small_group_does_not_wait_for_it() {
    let store = Store::new();
    let wakes: Vec<_> = (0..20).map(|_| Arc::new(Count(AtomicUsize::new(0), || {}))).collect();
    let watch = |(at, wake): (usize, &Arc<Count<_>>)| {
        let filter = WatchFilter::new(KeyRange::key(if at < 18 { "large" } else { "small" }));
        store.watch(filter, 0, Arc::clone(wake) as _)
    };
    let _watchers: Vec<_> = wakes.iter().enumerate().map(watch).collect();
    let woken = |of: &[Arc<Count<_>>]| of.iter().map(|wake| wake.0.load(Ordering::SeqCst)).sum::<usize>();
    let wake = |now| {
        let gathering = Gathering { most: 1, per_member: 1 };
        let Woken { next, more, .. } = store.wake_due_watchers(now, gathering, 2);
        (next, more, woken(&wakes[..18]), woken(&wakes[18..]), store.woken())
    };
    put(&store, "large", "1");
    let part = 1_000_000;
    assert_eq!(wake(5), (Some(5 + part), false, 2, 0, 1), "the others are due later");
    put(&store, "small", "2");
    assert_eq!(wake(6), (Some(5 + part), false, 2, 2, 1));
    assert_eq!(wake(5 + part), (None, false, 18, 2, 3));
    put(&store, "large", "3");
    assert_eq!(wake(5 + part), (Some(6 + part), false, 18, 2, 3), "gathers now");
    assert_eq!(wake(6 + part), (None, true, 20, 2, 3), "no time for the first part now");
}
