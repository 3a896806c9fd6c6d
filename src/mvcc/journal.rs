//! What a store tells of itself so that it can be made again, and how it is made again: the changes of its
//! journal, and all that it holds at one revision.

use super::encoded::Kv;
use super::hash::Stored;
use super::index::Version;
use super::log::{Batch, Event, EventKind, Log};
use super::range::KeyRange;
use super::store::{State, Store};
use super::txn::WriteTxn;
use super::walk::Walk;
use std::sync::Arc;

/// One change, in the order of commits.
#[derive(Clone, Debug)]
pub enum Change {
    /// One revision, or the end of a lease, or both.
    Commit {
        /// What changed; nothing, if a lease without keys ended.
        batch: Option<Batch>,
        /// The lease that ended.
        revoked: Option<i64>,
    },
    /// A new lease.
    Grant {
        /// Its id.
        lease: i64,
        /// Seconds granted.
        ttl_secs: i64,
    },
    /// Revisions before this one are gone.
    Compact(i64),
}

/// Takes down changes. Whoever attaches one has to [`Store::publish`] what it holds.
pub trait Journal: Send + Sync {
    /// Called under the store's lock: must be quick.
    fn record(&self, change: Change);
}

/// A replayed change that cannot come after what is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("revision {found} does not follow revision {current}")]
pub struct Misfit {
    /// The revision of the change.
    pub found: i64,
    /// The store's.
    pub current: i64,
}

/// Everything that a store holds, at one revision, while the store goes on.
pub struct Frozen {
    walk: Walk,
    /// The revision.
    pub revision: i64,
    /// The compact revision, −1 if never compacted.
    pub compacted: i64,
    /// Lease id and seconds granted.
    pub leases: Vec<(i64, i64)>,
}

/// Builds a store from what a [`Frozen`] gave.
pub struct Loader {
    state: State,
    last: Option<Stored>,
    /// Whether the last key has earlier changes.
    several: bool,
}

// === impl Store ===

impl Store {
    /// From now on every change is recorded, and seen once it is published. Only the first call has an
    /// effect.
    pub fn attach(&self, journal: Arc<dyn Journal>) {
        // Under the lock, so that nothing is committed in between.
        let _state = self.state.write();
        let _ = self.journal.set(journal);
    }

    /// Does a commit of a former life again, before a journal is attached.
    pub fn replay(
        &self,
        revision: i64,
        changes: impl Iterator<Item = (EventKind, Kv)>,
        revoked: Option<i64>,
    ) -> Result<(), Misfit> {
        let mut state = self.state.write();
        let misfit = Misfit {
            found: revision,
            current: state.current,
        };
        let mut txn = WriteTxn::new(&mut state);
        let mut fits = true;
        for (kind, kv) in changes {
            fits &= fits && txn.replay(kind, kv);
        }
        let (batch, _) = txn.finish();
        let expected = state.current;
        if let Some(lease) = revoked {
            // Its keys went with the changes above.
            state.leases.take(lease);
        }
        state.visible = state.current;
        // A lease may end without keys; then there is no revision.
        match fits && (batch.is_none() || revision == expected) && (batch.is_some() || revoked.is_some()) {
            true => Ok(()),
            false => Err(misfit),
        }
    }

    /// Every lease with the seconds granted.
    pub fn leases(&self) -> Vec<(i64, i64)> {
        self.state.read().leases.ttls()
    }

    /// All that is there now, read later, piece by piece. Nothing is committed while `f` runs, and nothing
    /// that it finds recorded is missing.
    pub fn freeze<T>(self: &Arc<Self>, f: impl FnOnce() -> T) -> (Frozen, T) {
        let state = self.state.read();
        let frozen = Frozen {
            walk: Walk::new(self, &state, state.current),
            revision: state.current,
            compacted: state.compacted,
            leases: state.leases.ttls(),
        };
        (frozen, f())
    }
}

// === impl Frozen ===

impl Frozen {
    /// The next keys with all their changes kept, in order of key and revision, about `bytes` of them;
    /// `None` at the end. Writers wait for a few thousand keys at most.
    pub fn next(&mut self, bytes: usize) -> Option<Vec<Stored>> {
        self.walk.next(bytes)
    }
}

// === impl Loader ===

impl Loader {
    /// Begins a store that is at `revision`.
    pub fn new(revision: i64, compacted: i64, leases: impl IntoIterator<Item = (i64, i64)>) -> Self {
        let mut state = State::new();
        (state.current, state.visible, state.compacted) = (revision, revision, compacted);
        for (lease, ttl_secs) in leases {
            state.leases.grant(lease, ttl_secs);
        }
        Self {
            state,
            last: None,
            several: false,
        }
    }

    /// Adds a change; they come in order of key and revision. False if this one cannot be next.
    pub fn push(&mut self, change: Stored) -> bool {
        let place = |c: &Stored| (c.main, c.sub);
        let in_order = match &self.last {
            Some(last) => match last.kv.key().cmp(change.kv.key()) {
                std::cmp::Ordering::Less => {
                    self.end_key();
                    true
                }
                std::cmp::Ordering::Equal => {
                    self.several = true;
                    place(last) < place(&change)
                }
                std::cmp::Ordering::Greater => false,
            },
            None => true,
        };
        if !in_order || change.kv.key().is_empty() || !(2..=self.state.current).contains(&change.main) {
            return false;
        }
        self.state.bytes += change.kv.as_bytes().len();
        let version = Version {
            main: change.main,
            sub: change.sub,
            tombstone: change.tombstone,
            kv: change.kv.clone(),
        };
        self.state.index.append(version);
        self.last = Some(change);
        true
    }

    /// All changes of the last key are there.
    fn end_key(&mut self) {
        let Some(last) = self.last.take() else { return };
        let (state, key) = (&mut self.state, last.kv.key());
        if !last.tombstone {
            state.leases.attach(key, 0, last.kv.lease());
        }
        if std::mem::take(&mut self.several) || last.tombstone {
            // A compaction may have been cut short.
            state.bytes = state.bytes.saturating_sub(state.index.compact(key, state.compacted));
        }
    }

    /// The store, with its history.
    pub fn finish(mut self) -> Result<Arc<Store>, Misfit> {
        self.end_key();
        let mut state = self.state;
        let first = state.compacted.max(2);
        state.log = log(&state, first)?;
        state.purged = state.compacted.max(0);
        Ok(Store::of(state))
    }
}

/// The batches from revision `first` on, made of what each key remembers.
fn log(state: &State, first: i64) -> Result<Log, Misfit> {
    let mut events: Vec<(i64, u32, Event)> = Vec::new();
    let all = KeyRange::all();
    for history in state.index.range(&all) {
        let versions = history.versions();
        for (i, version) in versions.iter().enumerate().filter(|(_, v)| v.main >= first) {
            let before = i.checked_sub(1).map(|i| &versions[i]).filter(|v| !v.tombstone);
            // What this revision created has nothing before it.
            let older = version.tombstone || version.kv.fields().create_revision < version.main;
            let event = Event {
                kind: version.kind(),
                kv: version.kv.clone(),
                prev: before
                    .filter(|_| older)
                    .and_then(|_| history.at(version.main - 1))
                    .cloned(),
                created: !version.tombstone && before.is_none(),
            };
            events.push((version.main, version.sub, event));
        }
    }
    events.sort_unstable_by_key(|(main, sub, _)| (*main, *sub));
    // Of the revision compacted to there may be nothing left, if another store compacted.
    let begins = events.first().is_some_and(|(main, ..)| *main == first);
    let mut log = Log::new(if begins || state.compacted < first {
        first
    } else {
        first + 1
    });
    for revision in events.chunk_by(|a, b| a.0 == b.0) {
        let (found, next) = (revision[0].0, log.next());
        if found != next {
            return Err(Misfit {
                found,
                current: next - 1,
            });
        }
        let events = revision.iter().map(|(_, _, event)| event.clone()).collect();
        log.push(Batch {
            revision: found,
            events,
        });
    }
    match log.next() - 1 {
        last if last == state.current => Ok(log),
        last => Err(Misfit {
            found: state.current,
            current: last,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mvcc::{Put, RangeOptions, Taken, Wake, WatchFilter};
    use bytes::Bytes;
    use parking_lot::Mutex;
    use proptest::prelude::*;

    #[derive(Default)]
    struct Tape(Mutex<Vec<Change>>);

    impl Journal for Tape {
        fn record(&self, change: Change) {
            self.0.lock().push(change);
        }
    }

    struct Nobody;

    impl Wake for Nobody {
        fn wake(&self) {}
    }

    /// All that a client could see: each revision's content, the events of each, leases.
    fn seen(store: &Arc<Store>) -> [Vec<String>; 3] {
        let from = store.compacted().max(1);
        let content = (from..=store.revision()).map(|revision| {
            let options = RangeOptions {
                revision,
                ..RangeOptions::new(KeyRange::all())
            };
            let result = store.range(&options).unwrap();
            format!("{revision}: {} {:?}", result.count, result.kvs)
        });
        let filter = WatchFilter {
            prev_kv: true,
            ..WatchFilter::new(KeyRange::all())
        };
        // A watch from the compact revision itself sees what happens to be left of it.
        let (mut watcher, _) = store.watch(filter, from + 1, Arc::new(Nobody));
        let mut events = Vec::new();
        while let Taken::Events { frames, revision } = watcher.take(1) {
            events.push(format!("{revision}: {frames:?}"));
        }
        let mut leases: Vec<_> = store.leases().into_iter().map(|(id, _)| id).collect();
        leases.sort_unstable();
        let leases = leases.into_iter().map(|id| format!("{id}: {:?}", store.lease_keys(id)));
        [content.collect(), events, leases.collect()]
    }

    fn reloaded(store: &Arc<Store>, piece: usize) -> Arc<Store> {
        let (mut frozen, ()) = store.freeze(|| ());
        let mut loader = Loader::new(frozen.revision, frozen.compacted, frozen.leases.clone());
        while let Some(changes) = frozen.next(piece) {
            for change in changes {
                assert!(loader.push(change));
            }
        }
        loader.finish().unwrap()
    }

    fn replay(store: &Arc<Store>, changes: &[Change]) {
        for change in changes {
            match change {
                Change::Commit { batch, revoked } => {
                    let events = batch.iter().flat_map(|b| b.events.iter());
                    let revision = batch.as_ref().map_or(0, |b| b.revision);
                    let events = events.map(|e| (e.kind, Kv::checked(e.kv.as_bytes()).unwrap()));
                    store.replay(revision, events, *revoked).unwrap();
                }
                Change::Grant { lease, ttl_secs } => assert!(store.grant(*lease, *ttl_secs)),
                Change::Compact(revision) => store.compact(*revision).unwrap(),
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

        #[test]
        fn what_was_recorded_or_frozen_makes_the_same_store(
            ops in proptest::collection::vec((0u8..9, 0u8..6, 0i64..3), 1..60), half in 0usize..60, piece in 1usize..400,
        ) {
            let (store, tape) = (Store::new(), Arc::new(Tape::default()));
            store.attach(Arc::clone(&tape) as _);
            let mut saved = (reloaded(&store, piece), 0);
            for (i, (op, key, lease)) in ops.into_iter().enumerate() {
                let key = Bytes::from(format!("k{key}"));
                match op {
                    0 => drop(store.grant(lease + 1, 60)),
                    1 => drop(store.revoke(lease + 1)),
                    2 => drop(store.compact(store.revision() - lease)),
                    3 => drop(store.delete(&KeyRange::new(key, "k4"))),
                    4 => drop(store.purge()),
                    _ => {
                        let lease = if store.lease_keys(lease).is_some() { lease } else { 0 };
                        let value = Bytes::from(i.to_string());
                        store.put(Put { key, value, lease, ..Put::default() }).unwrap();
                    }
                }
                store.publish(i64::MAX);
                if i == half {
                    saved = (reloaded(&store, piece), tape.0.lock().len());
                }
            }
            let again = Store::new();
            replay(&again, &tape.0.lock());
            prop_assert_eq!(seen(&again), seen(&store));
            prop_assert_eq!(seen(&reloaded(&store, piece)), seen(&store));
            replay(&saved.0, &tape.0.lock()[saved.1..]);
            prop_assert_eq!(seen(&saved.0), seen(&store));
        }
    }

    #[test]
    fn a_commit_is_seen_once_it_is_published() {
        let store = Store::new();
        store.attach(Arc::new(Tape::default()));
        let (mut watcher, _) = store.watch(WatchFilter::new(KeyRange::all()), 0, Arc::new(Nobody));
        let put = || Put {
            key: "a".into(),
            value: "1".into(),
            ..Put::default()
        };
        let (_, revision) = store.put(put()).unwrap();
        let (prev, second) = store.put(put()).unwrap();
        assert!(prev.is_some(), "a writer goes on from what was committed");
        assert_eq!((revision, second, store.revision()), (2, 3, 1));
        assert!(store.get(b"a").is_none());
        assert_eq!(watcher.take(1), Taken::Nothing);
        store.publish(2);
        assert_eq!(store.range(&RangeOptions::new(KeyRange::all())).unwrap().count, 1);
        assert!(matches!(watcher.take(1 << 20), Taken::Events { revision: 2, .. }));
        let (mut late, revision) = store.watch(WatchFilter::new(KeyRange::key("a")), 2, Arc::new(Nobody));
        assert_eq!(revision, 2);
        assert!(matches!(late.take(1 << 20), Taken::Events { revision: 2, .. }));
        assert_eq!(late.take(1 << 20), Taken::Nothing);
        store.publish(3);
        assert!(matches!(late.take(1 << 20), Taken::Events { revision: 3, .. }));
        assert!(matches!(watcher.take(1 << 20), Taken::Events { revision: 3, .. }));
    }

    #[test]
    fn what_does_not_follow_is_refused() {
        let store = Store::new();
        let put = |main| {
            Kv::new(&crate::mvcc::Fields {
                key: b"a",
                mod_revision: main,
                create_revision: main,
                version: 1,
                ..Default::default()
            })
        };
        assert!(store.replay(2, [(EventKind::Put, put(2))].into_iter(), None).is_ok());
        assert!(store.replay(4, [(EventKind::Put, put(4))].into_iter(), None).is_err());
        let change = |main| Stored {
            main,
            sub: 0,
            tombstone: false,
            kv: put(main),
        };
        let mut loader = Loader::new(3, -1, []);
        assert!(loader.push(change(2)));
        assert!(!loader.push(change(2)), "not twice");
        assert!(!loader.push(change(4)), "not from the future");
        assert!(loader.finish().is_err(), "revision 3 is missing");
    }
}
