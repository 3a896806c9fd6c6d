//! A store is made again in two steps: a [`Loader`] takes the versions of a checkpoint, then a [`Recovery`] takes
//! the changes that were recorded after the checkpoint. Only a recovered store gets hooks, so that no journal
//! records its own replay.

use super::Error;
use super::encoded::Kv;
use super::hooks::Hooks;
use super::key_history::Version;
use super::lease_book::GrantedLease;
use super::log::{EventKind, Log};
use super::purge::Purge;
use super::range::KeyRange;
use super::state::State;
use super::store::Store;
use super::write_txn::WriteTxn;
use std::sync::Arc;

/// A change that cannot come after the changes before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("revision {found} does not follow revision {current}")]
pub struct OutOfOrder {
    /// The revision of the change.
    pub found: i64,
    /// The revision of the store.
    pub current: i64,
}

/// Builds a store from the contents of a checkpoint or a snapshot; see [`Frozen`](super::Frozen).
pub struct Loader {
    state: State,
    last: Option<Kv>,
    /// Whether the last key has more than one version.
    several: bool,
}

/// A store that is being made again and is not in use yet.
pub struct Recovery(State);

// === impl Loader ===

impl Loader {
    /// Begins a store at `revision`.
    pub fn new(revision: i64, compacted: i64, leases: impl IntoIterator<Item = GrantedLease>) -> Self {
        let mut state = State::new();
        (state.current, state.visible, state.compacted) = (revision, revision, compacted);
        for GrantedLease { id, ttl_secs } in leases {
            state.leases.grant(id, ttl_secs);
        }
        Self {
            state,
            last: None,
            several: false,
        }
    }

    /// Begins the store at `revision` of a follower, whose history is complete from `floor` on.
    pub fn following(revision: i64, floor: i64) -> Self {
        let mut loader = Self::new(revision, floor, []);
        loader.state.leases = State::following().leases;
        loader
    }

    /// Begins the store at `revision` of a follower whose state comes from lists, in order, by [`Loader::push_listed`]. No
    /// list tells what the revision has deleted.
    pub fn listed(revision: i64) -> Self {
        Self::following(revision, revision).partial()
    }

    /// Notes that a part of the first revision of the history is missing.
    pub fn partial(mut self) -> Self {
        self.state.partial = true;
        self
    }

    /// Adds a key-value of a list at the store's revision. Keys come in order; false if this one is out of order.
    pub fn push_listed(&mut self, kv: Kv) -> bool {
        self.push(Version {
            main: kv.mod_revision(),
            sub: Version::UNORDERED,
            tombstone: false,
            kv,
        })
    }

    /// Adds a version. Versions come in order of key and revision; false if this one is out of order, or if its key-value is
    /// that of another change.
    pub fn push(&mut self, version: Version) -> bool {
        let main = version.main;
        let Some(kv) = version.into_kv() else { return false };
        let place = |kv: &Kv| (kv.mod_revision(), kv.sub());
        let in_order = match &self.last {
            Some(last) => match last.key().cmp(kv.key()) {
                std::cmp::Ordering::Less => {
                    self.end_key();
                    true
                }
                std::cmp::Ordering::Equal => {
                    self.several = true;
                    place(last) < place(&kv)
                }
                std::cmp::Ordering::Greater => false,
            },
            None => true,
        };
        if !in_order || kv.key().is_empty() || !(2..=self.state.current).contains(&main) {
            return false;
        }
        self.state.bytes += kv.as_bytes().len();
        self.state.index.append(kv.clone());
        self.last = Some(kv);
        true
    }

    /// Attaches and compacts the last key, once all of its versions are there.
    fn end_key(&mut self) {
        let Some(last) = self.last.take() else { return };
        let (state, key, is_tombstone) = (&mut self.state, last.key(), last.is_tombstone());
        if !is_tombstone {
            state.live_bytes += last.as_bytes().len();
            state.leases.attach(key, 0, last.lease());
        }
        if std::mem::take(&mut self.several) || is_tombstone {
            // The purge of a compaction may have been cut short.
            state.bytes = state.bytes.saturating_sub(state.index.compact(key, state.compacted));
        }
    }

    /// Ends the checkpoint and rebuilds the revision log from the versions. Fails if a revision is missing.
    pub fn finish(mut self) -> Result<Recovery, OutOfOrder> {
        self.end_key();
        let mut state = self.state;
        let first = state.compacted.max(2);
        state.log = log(&state, first)?;
        state.purge = Purge::done(state.compacted.max(0));
        // Revision 1 has no content.
        state.partial &= state.compacted > 1;
        Ok(Recovery(state))
    }
}

// === impl Recovery ===

impl Recovery {
    /// Begins with an empty store at revision 1.
    pub fn empty() -> Self {
        Self(State::new())
    }

    /// Begins with an empty store that follows another one.
    pub fn following() -> Self {
        Self(State::following())
    }

    /// The revision of the store.
    pub fn revision(&self) -> i64 {
        self.0.current
    }

    /// The first revision from which the history is complete.
    pub fn floor(&self) -> i64 {
        self.0.floor()
    }

    pub(super) fn state(&self) -> &State {
        &self.0
    }

    pub(super) fn into_state(self) -> State {
        self.0
    }

    /// Repeats a recorded commit. After an error the recovery is of no use.
    pub fn commit(
        &mut self,
        revision: i64,
        changes: impl Iterator<Item = (EventKind, Kv)>,
        revoked: Option<i64>,
    ) -> Result<(), OutOfOrder> {
        let state = &mut self.0;
        let out_of_order = OutOfOrder {
            found: revision,
            current: state.current,
        };
        let mut txn = WriteTxn::new(state);
        let mut fits = true;
        for (kind, kv) in changes {
            fits &= fits && txn.replay(kind, kv);
        }
        let is_revision = txn.finish().events > 0;
        if let Some(lease) = revoked {
            // The changes above have deleted the keys of the lease.
            state.leases.take(lease);
        }
        state.visible = state.current;
        // The end of a lease without keys makes no revision.
        match fits && (!is_revision || revision == state.current) && (is_revision || revoked.is_some()) {
            true => Ok(()),
            false => Err(out_of_order),
        }
    }

    /// Repeats the grant of a lease; false if the id is taken.
    pub fn grant(&mut self, lease: i64, ttl_secs: i64) -> bool {
        self.0.leases.grant(lease, ttl_secs)
    }

    /// Repeats a compaction, and frees the compacted history.
    pub fn compact(&mut self, revision: i64) -> Result<(), Error> {
        self.0.compact(revision)?;
        while self.0.purge(i64::MAX, &mut || true) {}
        Ok(())
    }

    /// Ends the recovery: the store is ready for use.
    pub fn open(self, hooks: Hooks) -> Arc<Store> {
        Store::open(self.0, hooks)
    }
}

/// Rebuilds the log from revision `first` on from the versions of all keys.
fn log(state: &State, first: i64) -> Result<Log, OutOfOrder> {
    let mut changes: Vec<(i64, u32, &Kv)> = Vec::new();
    let all = KeyRange::all();
    for history in state.index.range(&all) {
        let versions = history.versions().iter().map(|kv| (kv.mod_revision(), kv.sub(), kv));
        changes.extend(versions.filter(|(main, ..)| *main >= first));
    }
    changes.sort_unstable_by_key(|(main, sub, _)| (*main, *sub));
    // An etcd that compacted to revision `first` may have kept nothing of that revision.
    let begins = changes.first().is_some_and(|(main, ..)| *main == first);
    let mut log = Log::new(if begins || state.compacted < first {
        first
    } else {
        first + 1
    });
    for revision in changes.chunk_by(|a, b| a.0 == b.0) {
        let (found, next) = (revision[0].0, log.next());
        if found != next {
            return Err(OutOfOrder {
                found,
                current: next - 1,
            });
        }
        log.push(found, revision.iter().map(|(.., kv)| (*kv).clone()));
    }
    match log.next() - 1 {
        last if last == state.current => Ok(log),
        last => Err(OutOfOrder {
            found: state.current,
            current: last,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mvcc::tests::NoWake;
    use crate::mvcc::{Change, Journal, Put, RangeOptions, WatchFilter, WatchUpdate, Write};
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

    /// Everything that a client can see: the content and the events of each revision, and the leases.
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
        // A watch from the compact revision itself sees only the events of that revision that purging has kept.
        let mut watcher = store.watch(filter, from + 1, Arc::new(NoWake));
        let mut events = Vec::new();
        while let WatchUpdate::Events { frames, revision } = watcher.take_now(1) {
            events.push(format!("{revision}: {frames:?}"));
        }
        let mut leases: Vec<_> = store.leases().into_iter().map(|lease| lease.id).collect();
        leases.sort_unstable();
        let leases = leases.into_iter().map(|id| format!("{id}: {:?}", store.lease_keys(id)));
        [content.collect(), events, leases.collect()]
    }

    fn recorded_by(journal: &Arc<Tape>) -> Arc<Store> {
        Store::with_hooks(Hooks {
            journal: Some(Arc::clone(journal) as _),
            ..Hooks::default()
        })
    }

    /// The store made again from a checkpoint in pieces of about `piece` bytes.
    fn reloaded(store: &Arc<Store>, piece: usize) -> Recovery {
        let (mut frozen, ()) = store.freeze(|| ());
        let mut loader = Loader::new(frozen.revision, frozen.compacted, frozen.leases.clone());
        while let Some(changes) = frozen.next(piece).unwrap() {
            for change in changes {
                assert!(loader.push(change));
            }
        }
        loader.finish().unwrap()
    }

    fn replay(recovery: &mut Recovery, changes: &[Change]) {
        for change in changes {
            match change {
                Change::Commit { batch, revoked } => {
                    let events = batch.iter().flat_map(|b| b.events.iter());
                    let revision = batch.as_ref().map_or(0, |b| b.revision);
                    let events = events.map(|e| (e.kind, Kv::checked(e.kv.as_bytes()).unwrap()));
                    recovery.commit(revision, events, *revoked).unwrap();
                }
                Change::Grant { lease, ttl_secs } => assert!(recovery.grant(*lease, *ttl_secs)),
                Change::Compact(revision) => recovery.compact(*revision).unwrap(),
                Change::Swapped => unreachable!("nothing is swapped"),
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

        #[test]
        fn a_journal_and_a_checkpoint_make_the_same_store(
            ops in proptest::collection::vec((0u8..10, 0u8..6, 0i64..3), 1..60), half in 0usize..60, piece in 1usize..400,
        ) {
            let tape = Arc::new(Tape::default());
            let store = recorded_by(&tape);
            let mut saved = (reloaded(&store, piece), 0);
            for (i, (op, key, lease)) in ops.into_iter().enumerate() {
                let key = Bytes::from(format!("k{key}"));
                match op {
                    0 => drop(store.grant(lease + 1, 60)),
                    1 => drop(store.revoke(lease + 1)),
                    2 => drop(store.compact(store.revision() - lease)),
                    3 => drop(store.delete(&KeyRange::new(key, "k4"))),
                    4 => drop(store.purge()),
                    5 => {
                        let put = || Write::Put(key.clone(), Bytes::from(i.to_string()));
                        store.apply(&[put(), Write::Delete(key.clone()), put(), put()]);
                    }
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
            let (mut saved, from) = saved;
            let mut again = Recovery::empty();
            replay(&mut again, &tape.0.lock());
            prop_assert_eq!(seen(&again.open(Hooks::default())), seen(&store));
            prop_assert_eq!(seen(&reloaded(&store, piece).open(Hooks::default())), seen(&store));
            replay(&mut saved, &tape.0.lock()[from..]);
            prop_assert_eq!(seen(&saved.open(Hooks::default())), seen(&store));
        }
    }

    #[test]
    fn readers_and_watchers_see_a_commit_once_it_is_published() {
        let store = recorded_by(&Arc::default());
        let mut watcher = store.watch(WatchFilter::new(KeyRange::all()), 0, Arc::new(NoWake));
        let put = || Put {
            key: "a".into(),
            value: "1".into(),
            ..Put::default()
        };
        let first = store.put(put()).unwrap().revision;
        let second = store.put(put()).unwrap();
        assert!(
            second.prev.is_some(),
            "a writer sees what was committed, published or not"
        );
        assert_eq!((first, second.revision, store.revision()), (2, 3, 1));
        assert!(store.get(b"a").is_none());
        assert_eq!(watcher.take_now(1), WatchUpdate::Nothing);
        store.publish(2);
        assert_eq!(store.range(&RangeOptions::new(KeyRange::all())).unwrap().count, 1);
        assert!(matches!(watcher.take(1 << 20), WatchUpdate::Events { revision: 2, .. }));
        let mut late = store.watch(WatchFilter::new(KeyRange::key("a")), 2, Arc::new(NoWake));
        assert_eq!(late.created_at(), 2);
        assert!(matches!(late.take(1 << 20), WatchUpdate::Events { revision: 2, .. }));
        assert_eq!(late.take_now(1 << 20), WatchUpdate::Nothing);
        store.publish(3);
        assert!(matches!(late.take(1 << 20), WatchUpdate::Events { revision: 3, .. }));
        assert!(matches!(watcher.take(1 << 20), WatchUpdate::Events { revision: 3, .. }));
    }

    #[test]
    fn changes_out_of_order_are_refused() {
        let mut recovery = Recovery::empty();
        let put = |main| {
            Kv::new(&crate::mvcc::Fields {
                key: b"a",
                mod_revision: main,
                create_revision: main,
                version: 1,
                ..Default::default()
            })
        };
        assert!(recovery.commit(2, [(EventKind::Put, put(2))].into_iter(), None).is_ok());
        assert!(
            recovery
                .commit(4, [(EventKind::Put, put(4))].into_iter(), None)
                .is_err()
        );
        let change = |main| Version {
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
