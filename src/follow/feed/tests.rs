//! The feed by example, and against generated histories of an upstream that compacts, forgets, repeats and goes back.

use super::*;
use crate::mvcc::{
    Compared, EventKind, Fields, Hooks, KeyRange, Kv, Loader, RangeOptions, Recovery, Store, Version, Write,
};
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::sync::Arc;

fn put(revision: i64, key: &str) -> Followed {
    let kv = Kv::new(&Fields {
        key: key.as_bytes(),
        create_revision: revision,
        mod_revision: revision,
        version: 1,
        value: b"v",
        lease: 0,
    });
    Followed {
        kind: EventKind::Put,
        kv,
    }
}

fn message(header_revision: i64, events: &[(i64, &str)]) -> Input {
    Input::Message(FeedMessage {
        header_revision,
        fragment: false,
        events: events.iter().map(|(revision, key)| put(*revision, key)).collect(),
    })
}

fn fragment(header_revision: i64, events: &[(i64, &str)]) -> Input {
    match message(header_revision, events) {
        Input::Message(message) => Input::Message(FeedMessage {
            fragment: true,
            ..message
        }),
        other => other,
    }
}

/// The actions in short: `+` adopt, `=` compare, `*` complete, each with its revision and the number of events.
fn short(actions: &[Action]) -> String {
    let of = |action: &Action| match action {
        Action::Adopt { revision, events } => format!("+{revision}/{}", events.len()),
        Action::Compare { revision, events } => format!("={revision}/{}", events.len()),
        Action::Complete { revision, events } => format!("*{revision}/{}", events.len()),
        Action::AskProgress => "progress?".to_owned(),
        Action::AskIndex => "index?".to_owned(),
        Action::Reconnect { from, why } => format!("reconnect {from} {}", why.as_str()),
        Action::Reload { why } => format!("reload {}", why.as_str()),
    };
    actions.iter().map(of).collect::<Vec<_>>().join(" ")
}

/// A feed at revision 5 whose watch has shown revision 5.
fn at_five() -> Feed {
    let mut feed = Feed::new(5);
    assert_eq!(feed.start(), 5);
    assert_eq!(short(&feed.input(Input::Created { revision: 9 })), "");
    assert_eq!(short(&feed.input(message(9, &[(5, "a")]))), "=5/1");
    feed
}

#[test]
fn revisions_are_adopted_in_order_whatever_the_header_says() {
    let mut feed = at_five();
    let batch = [(6, "a"), (6, "b"), (7, "a"), (8, "c")];
    assert_eq!(short(&feed.input(message(30_401, &batch))), "+6/2 +7/1 +8/1");
    assert_eq!(feed.applied(), 8);
    // Old events are compared, not adopted again.
    assert_eq!(
        short(&feed.input(message(9, &[(7, "a"), (8, "c"), (9, "d")]))),
        "=7/1 =8/1 +9/1"
    );
}

#[test]
fn fragments_are_joined_and_a_revision_waits_for_its_last_part() {
    let mut feed = at_five();
    assert_eq!(short(&feed.input(fragment(7, &[(6, "a"), (6, "b")]))), "");
    assert_eq!(short(&feed.input(fragment(7, &[(6, "c"), (7, "a")]))), "+6/3");
    assert_eq!(short(&feed.input(message(7, &[(7, "b")]))), "+7/2");
    // Parts of a message are not mixed with anything, and what is begun ends with its stream.
    assert_eq!(short(&feed.input(fragment(8, &[(8, "a")]))), "");
    assert_eq!(short(&feed.input(Input::Broken(Why::Broken))), "reconnect 7 broken");
    feed.input(Input::Created { revision: 8 });
    assert_eq!(
        short(&feed.input(message(8, &[(7, "a"), (7, "b"), (8, "a"), (8, "b")]))),
        "=7/2 +8/2"
    );
    feed.input(fragment(9, &[(9, "a")]));
    assert_eq!(
        short(&feed.input(Input::Progress { revision: 9 })),
        "reconnect 8 disorder"
    );
}

#[test]
fn a_gap_is_a_fault_and_the_second_in_a_row_loads_anew() {
    let mut feed = at_five();
    assert_eq!(short(&feed.input(message(7, &[(7, "a")]))), "reconnect 5 gap");
    feed.input(Input::Created { revision: 7 });
    let answer = feed.input(message(8, &[(5, "a"), (6, "a"), (8, "b")]));
    assert_eq!(short(&answer), "=5/1 +6/1 reconnect 6 gap", "revision 6 was new");
    feed.input(Input::Created { revision: 8 });
    // The watch must begin with revision 6.
    assert_eq!(short(&feed.input(message(8, &[(7, "a")]))), "reload unproven");
    assert!(feed.is_loading());
    assert_eq!(feed.start(), 0);
}

#[test]
fn progress_beyond_the_last_event_means_that_events_were_lost() {
    let mut feed = at_five();
    assert_eq!(short(&feed.input(Input::Progress { revision: 5 })), "");
    assert_eq!(short(&feed.input(Input::Progress { revision: 4 })), "");
    assert_eq!(short(&feed.input(Input::Progress { revision: 6 })), "reconnect 5 lost");
    feed.input(Input::Created { revision: 6 });
    let unproven = feed.input(Input::Progress { revision: 5 });
    assert_eq!(short(&unproven), "reload unproven", "revision 5 did not come");
}

#[test]
fn silence_asks_for_progress_and_then_reconnects() {
    let mut feed = Feed::new(5);
    assert_eq!(short(&feed.input(Input::Silence)), "", "the watch is not created");
    assert_eq!(short(&feed.input(Input::Silence)), "reconnect 5 silent");
    let mut feed = at_five();
    for _ in 0..3 {
        assert_eq!(short(&feed.input(Input::Silence)), "progress?");
        assert_eq!(short(&feed.input(Input::Progress { revision: 5 })), "");
    }
    feed.input(Input::Silence);
    assert_eq!(short(&feed.input(Input::Silence)), "reconnect 5 silent");
}

#[test]
fn a_member_that_is_behind_is_waited_for_and_a_rewound_upstream_is_not() {
    let mut feed = Feed::new(5);
    assert_eq!(short(&feed.input(Input::Created { revision: 4 })), "index?");
    assert_eq!(short(&feed.input(Input::Index { revision: 5 })), "");
    assert_eq!(short(&feed.input(message(6, &[(5, "a"), (6, "a")]))), "=5/1 +6/1");
    // An answer is about the revision at the time of the question.
    assert_eq!(short(&feed.input(Input::Index { revision: 5 })), "");
    for expected in ["reconnect 6 rewound", "reload rewound"] {
        feed.input(Input::Broken(Why::Broken));
        assert_eq!(short(&feed.input(Input::Created { revision: 4 })), "index?");
        assert_eq!(short(&feed.input(Input::Index { revision: 5 })), expected);
    }
}

#[test]
fn a_refused_action_counts_as_a_fault_although_a_revision_was_passed_on() {
    let mut feed = at_five();
    assert_eq!(short(&feed.input(message(7, &[(6, "a"), (7, "a")]))), "+6/1 +7/1");
    assert_eq!(
        short(&feed.input(Input::Refused { applied: 6 })),
        "reconnect 6 diverged"
    );
    assert_eq!(feed.applied(), 6);
    feed.input(Input::Created { revision: 7 });
    assert_eq!(short(&feed.input(message(7, &[(6, "a"), (7, "a")]))), "=6/1 +7/1");
    assert_eq!(short(&feed.input(Input::Refused { applied: 6 })), "reload diverged");
}

#[test]
fn a_compaction_beyond_the_applied_revision_loads_anew() {
    let mut feed = Feed::new(5);
    let cancelled = |compact_revision| Input::Cancelled {
        compact_revision,
        reason: String::new(),
    };
    assert_eq!(short(&feed.input(cancelled(5))), "reconnect 5 cancelled");
    assert_eq!(short(&feed.input(cancelled(0))), "reconnect 5 cancelled");
    assert_eq!(short(&feed.input(cancelled(6))), "reload compacted");
}

#[test]
fn a_load_is_joined_with_the_watch_that_was_buffered() {
    let loaded = |revision, how| Input::Loaded { revision, how };
    let buffered = || {
        let mut feed = Feed::new(0);
        assert_eq!((feed.start(), feed.applied()), (0, 0));
        feed.input(Input::Created { revision: 3 });
        assert_eq!(
            short(&feed.input(message(6, &[(4, "a"), (5, "a"), (5, "b"), (6, "a")]))),
            ""
        );
        feed
    };
    assert_eq!(short(&buffered().input(loaded(5, Load::Exact))), "=4/1 =5/2 +6/1");
    assert_eq!(short(&buffered().input(loaded(3, Load::Exact))), "+4/1 +5/2 +6/1");
    assert_eq!(short(&buffered().input(loaded(5, Load::Listed))), "=4/1 *5/2 +6/1");
    // A member was behind: revisions between the load and the watch are missing.
    assert_eq!(short(&buffered().input(loaded(2, Load::Exact))), "reconnect 2 buffer");
    // The events of revision 3 are not in the buffer.
    let mut feed = buffered();
    assert_eq!(short(&feed.input(loaded(3, Load::Listed))), "reconnect 3 buffer");
    feed.input(Input::Created { revision: 6 });
    assert_eq!(short(&feed.input(message(6, &[(3, "a"), (4, "a")]))), "*3/1 +4/1");
    // Revision 7 is still on its way.
    let mut feed = buffered();
    assert_eq!(short(&feed.input(loaded(7, Load::Listed))), "=4/1 =5/2 =6/1");
    assert_eq!(short(&feed.input(message(8, &[(7, "a"), (8, "a")]))), "*7/1 +8/1");
    let mut feed = Feed::new(0);
    feed.input(Input::Created { revision: 1 });
    assert_eq!(short(&feed.input(loaded(1, Load::Listed))), "", "an empty store");
    assert_eq!(short(&feed.input(message(2, &[(2, "a")]))), "+2/1");
}

#[test]
fn a_buffer_that_is_full_or_broken_begins_anew_at_the_load() {
    type Harm = fn(&mut Feed);
    let harms: [(&str, Harm); 4] = [
        ("full", |feed| {
            for revision in 4..400 {
                assert_eq!(short(&feed.input(message(revision, &[(revision, "a")]))), "");
            }
        }),
        ("broken", |feed| drop(feed.input(Input::Broken(Why::Broken)))),
        ("a gap", |feed| drop(feed.input(message(9, &[(9, "a")])))),
        ("lost events", |feed| drop(feed.input(Input::Progress { revision: 9 }))),
    ];
    for (what, harm) in harms {
        let mut feed = Feed::new(0);
        feed.input(Input::Created { revision: 3 });
        harm(&mut feed);
        let loaded = feed.input(Input::Loaded {
            revision: 500,
            how: Load::Exact,
        });
        assert_eq!(short(&loaded), "reconnect 500 buffer", "{what}");
        feed.input(Input::Created { revision: 501 });
        assert_eq!(
            short(&feed.input(message(501, &[(500, "a"), (501, "a")]))),
            "=500/1 +501/1"
        );
    }
}

// === generated histories ===

/// One past of upstream: the events of each revision, from revision 2 on.
#[derive(Clone, Default)]
struct Past(Vec<Vec<Followed>>);

impl Past {
    fn head(&self) -> i64 {
        self.0.len() as i64 + 1
    }

    fn events(&self, revision: i64) -> &[Followed] {
        &self.0[revision as usize - 2]
    }

    /// The live keys at a revision.
    fn content(&self, revision: i64) -> BTreeMap<Vec<u8>, Kv> {
        let mut live = BTreeMap::new();
        for event in self.0[..revision as usize - 1].iter().flatten() {
            let key = event.kv.key().to_vec();
            match event.kind {
                EventKind::Put => drop(live.insert(key, event.kv.clone())),
                EventKind::Delete => drop(live.remove(&key)),
            }
        }
        live
    }

    /// A store with the first revisions of this past, compacted, whose further writes make another past.
    fn store(&self, revision: i64) -> Recovery {
        let mut recovery = Recovery::following();
        for revision in 2..=revision {
            let events = self.events(revision).iter().map(|e| (e.kind, e.kv.clone()));
            recovery.commit(revision, events, None).unwrap();
        }
        recovery
    }

    fn listed(&self, revision: i64) -> Recovery {
        let mut loader = Loader::listed(revision);
        for kv in self.content(revision).into_values() {
            assert!(loader.push_listed(kv));
        }
        loader.finish().unwrap()
    }

    fn exact(&self, revision: i64, compacted: i64) -> Recovery {
        let mut recovery = self.store(revision);
        if compacted > 1 && compacted <= revision {
            recovery.compact(compacted).unwrap();
        }
        recovery
    }
}

/// A watch as a member of upstream serves it.
#[derive(Default)]
struct Served {
    next: i64,
    is_open: bool,
    /// How many watches there were before.
    number: usize,
}

/// An upstream, a feed, and the store that the feed fills.
struct Bench {
    /// All pasts that upstream had; the last is the present one.
    pasts: Vec<Past>,
    upstream: Arc<Store>,
    compacted: i64,
    written: usize,
    watch: Served,
    feed: Feed,
    store: Arc<Store>,
    loading: bool,
    reloads: usize,
    /// Whether upstream may go back. Then each revision has a put that no other past has.
    rewinds: bool,
}

impl Bench {
    fn new(rewinds: bool) -> Self {
        let mut bench = Self {
            pasts: vec![Past::default()],
            upstream: Store::new(),
            compacted: 1,
            written: 0,
            watch: Served::default(),
            feed: Feed::new(0),
            store: Recovery::following().open(Hooks::default()),
            loading: true,
            reloads: 0,
            rewinds,
        };
        bench.open(0);
        bench
    }

    fn past(&self) -> &Past {
        &self.pasts[self.pasts.len() - 1]
    }

    fn head(&self) -> i64 {
        self.past().head()
    }

    /// Writes one revision, whose events no other past has.
    fn write(&mut self, seed: usize) {
        self.written += 1;
        let key = |n: usize| format!("k{}", n % 5);
        let value = format!("{}", self.written);
        let mut writes = vec![Write::Put(key(seed).into(), value.into())];
        if seed % 11 == 5 && !self.rewinds {
            // Another past could have the same revision.
            writes = vec![Write::Delete(key(seed).into())];
        } else if seed.is_multiple_of(3) {
            writes.push(Write::Delete(key(seed / 3).into()));
        }
        if seed.is_multiple_of(7) {
            writes.push(Write::Put(key(seed / 7).into(), "again".into()));
        }
        let revision = self.upstream.apply(&writes);
        if revision == self.head() {
            return;
        }
        let events = self.upstream.events_of(revision).unwrap();
        let present = self.pasts.len() - 1;
        self.pasts[present].0.push(events);
    }

    /// Upstream is restored to an earlier revision, and goes on from there.
    fn rewind(&mut self, back: i64, writes: usize) {
        let to = (self.head() - back).max(1);
        let past = Past(self.past().0[..to as usize - 1].to_vec());
        self.upstream = past.store(to).open(Hooks::default());
        self.pasts.push(past);
        self.compacted = self.compacted.min(to);
        self.watch.is_open = false;
        (0..writes).for_each(|n| self.write(n + back as usize));
        self.input(Input::Broken(Why::Broken));
    }

    fn open(&mut self, from: i64) {
        if from != 0 && from < self.compacted {
            self.watch.is_open = false;
            let compact_revision = self.compacted;
            let reason = String::new();
            return self.input(Input::Cancelled {
                compact_revision,
                reason,
            });
        }
        let next = if from == 0 { self.head() + 1 } else { from };
        let number = self.watch.number + 1;
        self.watch = Served {
            next,
            is_open: true,
            number,
        };
        self.input(Input::Created { revision: self.head() });
    }

    fn input(&mut self, input: Input) {
        let actions = self.feed.input(input);
        self.act(actions);
    }

    fn act(&mut self, actions: Vec<Action>) {
        for action in actions {
            let fits = match action {
                Action::Adopt { revision, events } => self.store.adopt(revision, events).is_ok(),
                Action::Compare { revision, events } => self.store.compare(revision, &events) != Compared::Different,
                Action::Complete { revision, events } => self.store.complete(revision, &events).is_ok(),
                Action::AskProgress => return self.progress(),
                Action::AskIndex => {
                    let revision = self.head();
                    return self.input(Input::Index { revision });
                }
                Action::Reconnect { from, .. } => return self.open(from),
                Action::Reload { .. } => {
                    (self.loading, self.reloads) = (true, self.reloads + 1);
                    return self.open(0);
                }
            };
            if !fits {
                let applied = self.store.revision();
                return self.input(Input::Refused { applied });
            }
        }
    }

    /// Sends up to `most` revisions as one message, in fragments.
    fn deliver(&mut self, most: i64, pieces: usize, is_behind: bool) {
        let from = self.watch.next.max(2);
        let to = self.head().min(from + most - 1);
        if !self.watch.is_open || from > to {
            return;
        }
        self.watch.next = to + 1;
        self.send(from, to, pieces, is_behind);
    }

    fn send(&mut self, from: i64, to: i64, pieces: usize, is_behind: bool) {
        let events: Vec<Followed> = (from..=to).flat_map(|r| self.past().events(r).to_vec()).collect();
        let header_revision = if is_behind { self.head() } else { to };
        let number = self.watch.number;
        let parts: Vec<_> = events.chunks(events.len().div_ceil(pieces).max(1)).collect();
        for (i, part) in parts.iter().enumerate() {
            self.input(Input::Message(FeedMessage {
                header_revision,
                fragment: i + 1 < parts.len(),
                events: part.to_vec(),
            }));
            if !self.watch.is_open || self.watch.number != number {
                // The feed has opened another watch.
                return;
            }
        }
    }

    fn progress(&mut self) {
        let revision = self.head();
        if self.watch.is_open && self.watch.next > revision {
            self.input(Input::Progress { revision });
        }
    }

    /// Ends a load.
    fn load(&mut self, behind: i64, listed: bool) {
        if !std::mem::take(&mut self.loading) {
            return;
        }
        let revision = (self.head() - behind).max(self.compacted).max(1);
        let (recovery, how) = match listed {
            true => (self.past().listed(revision), Load::Listed),
            false => (self.past().exact(revision, self.compacted), Load::Exact),
        };
        if self.store.revision() > revision || self.store.adopt_from(&recovery).is_err() {
            self.store.swap(recovery);
        }
        let revision = self.store.revision();
        self.input(Input::Loaded { revision, how });
    }

    /// The store is at a revision of a past that upstream had, whole and unmixed.
    fn check(&self) -> Result<(), TestCaseError> {
        let revision = self.store.revision();
        let all = self.store.range(&RangeOptions::new(KeyRange::all())).unwrap();
        let found: BTreeMap<_, _> = all.kvs.into_iter().map(|kv| (kv.key().to_vec(), kv)).collect();
        let is_of = |past: &&Past| past.head() >= revision && past.content(revision) == found;
        let past = self.pasts.iter().rev().find(is_of);
        prop_assert!(past.is_some(), "revision {}: {:?}", revision, found);
        // So is its history.
        for r in self.store.floor().max(2)..=revision {
            let events = self.store.events_of(r);
            let is_same = |past: &Past| past.head() >= r && events.as_deref() == Some(past.events(r));
            let is_part = r == self.store.floor();
            prop_assert!(
                is_part || self.pasts.iter().any(is_same),
                "revision {}: {:?}",
                r,
                events
            );
        }
        Ok(())
    }

    /// Without further faults, the store reaches upstream.
    fn settle(&mut self) -> Result<(), TestCaseError> {
        for round in 0..50 {
            match (self.loading, self.watch.is_open) {
                (true, _) => self.load(0, round % 2 == 1),
                (_, false) => self.input(Input::Broken(Why::Broken)),
                _ => {}
            }
            let number = self.watch.number;
            self.deliver(1000, 1, true);
            self.progress();
            self.check()?;
            // The watch has shown everything, and the feed was content with it.
            let is_content = self.watch.is_open && self.watch.number == number && self.watch.next > self.head();
            if !self.loading && is_content && self.store.revision() == self.head() {
                break;
            }
        }
        prop_assert_eq!(self.store.revision(), self.head());
        let all = self.store.range(&RangeOptions::new(KeyRange::all())).unwrap();
        let found: BTreeMap<_, _> = all.kvs.into_iter().map(|kv| (kv.key().to_vec(), kv)).collect();
        prop_assert_eq!(found, self.past().content(self.head()));
        Ok(())
    }

    fn step(&mut self, op: u8, n: usize) {
        let few = n as i64 % 6;
        match op {
            0..=3 => (0..=n % 4).for_each(|i| self.write(n + i)),
            4..=7 => self.deliver(1 + few, 1 + n % 3, n.is_multiple_of(2)),
            // An old message again.
            8 => {
                let to = self.watch.next.min(self.head() + 1) - 1;
                if self.watch.is_open && to >= 2 {
                    self.send((to - few).max(2), to, 1, true);
                }
            }
            // A lost revision, or several.
            9 => self.watch.next += 1 + few % 2,
            10 => self.progress(),
            11 => {
                self.watch.is_open = false;
                self.input(Input::Broken(Why::Broken));
            }
            12 => self.compacted = self.compacted.max(self.head() - few),
            13 => self.input(Input::Silence),
            14 | 15 => self.load(few % 4, n.is_multiple_of(2)),
            _ => self.rewind(few, n % 7),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

    #[test]
    fn a_feed_makes_the_store_of_the_model_or_asks_for_a_load(
        steps in proptest::collection::vec((0u8..18, 0usize..1000), 1..80), rewinds in any::<bool>(),
    ) {
        let mut bench = Bench::new(rewinds);
        for (op, n) in steps {
            if op < 16 || rewinds {
                bench.step(op, n);
            }
            bench.check()?;
        }
        bench.settle()?;
    }

    #[test]
    fn without_faults_nothing_is_ever_loaded_again(
        steps in proptest::collection::vec((0u8..12, 0usize..1000), 1..80), listed in any::<bool>(),
    ) {
        let mut bench = Bench::new(false);
        (0..7).for_each(|n| bench.write(n));
        bench.deliver(3, 2, true);
        bench.load(0, listed);
        for (op, n) in steps {
            if op != 9 {
                bench.step(op, n);
            }
            bench.check()?;
        }
        bench.settle()?;
        prop_assert_eq!(bench.reloads, 0);
        prop_assert!(bench.store.generation() <= 1, "only an empty state was replaced");
    }
}

#[test]
fn a_state_from_empty_lists_is_not_mixed_with_another_past() {
    let mut bench = Bench::new(true);
    // The only revision has deleted what it put, and then upstream is restored to before it.
    let steps = [
        (0, 540),
        (14, 610),
        (0, 0),
        (0, 0),
        (0, 288),
        (16, 88),
        (0, 0),
        (0, 0),
        (0, 0),
    ];
    for (op, n) in steps {
        bench.step(op, n);
        bench.check().unwrap();
    }
    bench.settle().unwrap();
    assert!(bench.reloads > 0);
}

#[test]
fn a_version_of_a_list_has_no_place_in_its_revision_until_it_is_completed() {
    let mut bench = Bench::new(true);
    (0..5).for_each(|n| bench.write(n * 3));
    let revision = bench.head();
    let store = bench.past().listed(revision).open(Hooks::default());
    let unordered = |store: &Arc<Store>| {
        let versions = store.versions(0).unwrap().all;
        versions.iter().filter(|v| v.sub == Version::UNORDERED).count()
    };
    let before = unordered(&store);
    assert_eq!((store.floor(), store.events_of(revision)), (revision + 1, None));
    store.complete(revision, bench.past().events(revision)).unwrap();
    assert_eq!(store.floor(), revision);
    assert_eq!(
        store.events_of(revision).as_deref(),
        Some(bench.past().events(revision))
    );
    assert!(unordered(&store) < before);
}
