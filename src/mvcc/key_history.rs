//! The history of one key: its versions, from the first one that compaction kept to the newest.
//!
//! A history is a list of versions. A put appends a version with a value, a delete appends a tombstone. A worked
//! example, with puts at revisions 2 and 4, a delete at 6 and a put at 8:
//!
//! ```text
//! after put(2), put(4)   [2 4]          live: 4
//! after delete(6)        [2 4 6†]       live: none; a read at 5 finds 4, a read at 6 finds nothing
//! after put(8)           [2 4 6† 8]     live: 8
//! compact(3)             [2 4 6† 8]     2 stays: a read at 3 finds it
//! compact(4)             [4 6† 8]       2 goes: reads at 4 or later find 4
//! compact(6)             [6† 8]         the tombstone stays: a watch may still start at 6
//! compact(7)             [8]            reads and watches at 7 or later do not need the tombstone
//! ```
//!
//! etcd (server/storage/mvcc/key_index.go) groups the versions between two tombstones into a *generation*: here
//! `{2 4 6†}` and `{8}`. A list without groups gives the same reads, because a tombstone marks the end of its
//! generation. The key leaves the index when a compaction has removed all versions.

use super::encoded::Kv;
use super::log::{Event, EventKind};
use smallvec::SmallVec;

/// One stored change of one key.
#[derive(Clone, Debug)]
pub struct Version {
    /// Main revision.
    pub main: i64,
    /// Sub revision: the place of the change in its main revision, from 0, or [`UNORDERED`](Self::UNORDERED).
    pub sub: u32,
    /// Whether the change deletes the key.
    pub tombstone: bool,
    /// The key-value, or the tombstone as delete events carry it.
    pub kv: Kv,
}

/// The versions of one key in (main, sub) order; never empty while it is in the index.
///
/// A transaction may delete a range and put a key of that range, so two versions may share a main revision. `sub`
/// orders them, and reads see the last one.
#[derive(Clone, Debug, Default)]
pub(super) struct KeyHistory(SmallVec<[Version; 1]>);

impl Version {
    /// The sub revision of a version from a list, which does not tell the place. A key has one version in a list.
    pub const UNORDERED: u32 = u32::MAX;

    pub(super) fn kind(&self) -> EventKind {
        if self.tombstone {
            EventKind::Delete
        } else {
            EventKind::Put
        }
    }
}

impl Event {
    /// The event that a change of a key at main revision `main` makes. `before` has the versions of the key before the
    /// change; a deletion needs a live key.
    pub(super) fn after(before: &[Version], main: i64, kind: EventKind, kv: Kv) -> Self {
        let existed = before.last().is_some_and(|v| !v.tombstone);
        // Parity: a key that this revision has created has no previous key-value, even if the revision has deleted an
        // older one.
        let has_prev = existed && (kind == EventKind::Delete || kv.fields().create_revision < main);
        let prev = has_prev.then(|| at(before, main - 1)).flatten().cloned();
        Self {
            kind,
            kv,
            prev,
            created: kind == EventKind::Put && !existed,
        }
    }
}

/// The key-value at main revision `revision`, unless absent or deleted then.
fn at(versions: &[Version], revision: i64) -> Option<&Kv> {
    let newest = versions.iter().rev().find(|v| v.main <= revision);
    newest.filter(|v| !v.tombstone).map(|v| &v.kv)
}

impl From<Version> for KeyHistory {
    fn from(first: Version) -> Self {
        Self(smallvec::smallvec![first])
    }
}

impl KeyHistory {
    pub(super) fn key(&self) -> &[u8] {
        self.0.first().map_or(&[], |v| v.kv.key())
    }

    /// The key-value of the newest version, unless that is a tombstone.
    pub(super) fn live(&self) -> Option<&Kv> {
        self.0.last().filter(|v| !v.tombstone).map(|v| &v.kv)
    }

    /// The key-value at main revision `revision`, unless absent or deleted then.
    pub(super) fn at(&self, revision: i64) -> Option<&Kv> {
        at(&self.0, revision)
    }

    /// All versions, in order.
    pub(super) fn versions(&self) -> &[Version] {
        &self.0
    }

    /// The versions up to main revision `revision`, in order.
    pub(super) fn up_to(&self, revision: i64) -> &[Version] {
        &self.0[..self.0.partition_point(|v| v.main <= revision)]
    }

    pub(super) fn push(&mut self, version: Version) {
        debug_assert!(
            self.0
                .last()
                .is_none_or(|l| (l.main, l.sub) < (version.main, version.sub))
        );
        self.0.push(version);
    }

    /// Gives the last version another place in its revision.
    pub(super) fn renumber(&mut self, sub: u32) {
        if let Some(last) = self.0.last_mut() {
            last.sub = sub;
        }
    }

    /// Whether compaction has removed all versions.
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Removes the versions that no read at `revision` or later can see; returns the encoded bytes freed. A
    /// tombstone at exactly `revision` stays, because a watch may still start there.
    pub(super) fn compact(&mut self, revision: i64) -> usize {
        let newest = self.up_to(revision).len();
        let Some(keep) = newest.checked_sub(1) else { return 0 };
        let gone = match &self.0[keep] {
            v if v.tombstone && v.main < revision => newest,
            _ => keep,
        };
        self.0.drain(..gone).map(|v| v.kv.as_bytes().len()).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mvcc::Fields;

    /// The history of the module's worked example.
    fn example() -> KeyHistory {
        let mut history = KeyHistory::default();
        for (main, tombstone) in [(2, false), (4, false), (6, true), (8, false)] {
            let kv = Kv::new(&Fields {
                key: b"k",
                mod_revision: main,
                ..Fields::default()
            });
            history.push(Version {
                main,
                sub: 0,
                tombstone,
                kv,
            });
        }
        history
    }

    fn revisions(history: &KeyHistory) -> Vec<i64> {
        history.versions().iter().map(|v| v.main).collect()
    }

    fn read(history: &KeyHistory, revision: i64) -> Option<i64> {
        history.at(revision).map(|kv| kv.fields().mod_revision)
    }

    #[test]
    fn reads_find_the_newest_version_unless_it_is_a_tombstone() {
        let history = example();
        let found: Vec<_> = (1..=9).map(|revision| read(&history, revision)).collect();
        let (two, four, eight) = (Some(2), Some(4), Some(8));
        assert_eq!(found, [None, two, two, four, four, None, None, eight, eight]);
        assert_eq!(history.live().map(|kv| kv.fields().mod_revision), eight);
    }

    #[test]
    fn compaction_keeps_what_reads_and_watches_from_there_on_need() {
        for (compacted, kept) in [
            (1, &[2, 4, 6, 8][..]),
            (2, &[2, 4, 6, 8]),
            (3, &[2, 4, 6, 8]),
            (4, &[4, 6, 8]),
            (5, &[4, 6, 8]),
            (6, &[6, 8]),
            (7, &[8]),
            (9, &[8]),
        ] {
            let mut history = example();
            let freed = history.compact(compacted);
            assert_eq!(revisions(&history), kept, "compacted to {compacted}");
            assert_eq!(freed > 0, kept.len() < 4, "compacted to {compacted}");
            for revision in compacted..10 {
                assert_eq!(read(&history, revision), read(&example(), revision));
            }
        }
    }

    #[test]
    fn a_deleted_key_is_gone_after_a_compaction_past_its_tombstone() {
        let mut history = example();
        history.0.pop();
        history.compact(6);
        assert_eq!(revisions(&history), [6]);
        history.compact(7);
        assert!(history.is_empty());
    }
}
