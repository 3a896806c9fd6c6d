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

/// One stored change of one key, as checkpoints, snapshots and hashes have it.
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

/// The versions of one key in (main, sub) order; never empty while it is in the index. A key with one version, as most
/// are, takes two words.
///
/// A transaction may delete a range and put a key of that range, so two versions may share a main revision. `sub`
/// orders them, and reads see the last one.
#[allow(
    clippy::box_collection,
    reason = "a vector takes three words, and most keys have one version"
)]
#[derive(Clone, Debug)]
pub(super) enum KeyHistory {
    One(Kv),
    /// Two versions at least.
    Many(Box<Vec<Kv>>),
}

/// What a compaction of a history has freed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Freed {
    /// Encoded bytes.
    pub(super) bytes: usize,
    /// Whether no version is left, so that the key has to leave the index. The last version is still there.
    pub(super) all: bool,
}

impl From<Kv> for Version {
    fn from(kv: Kv) -> Self {
        Self {
            main: kv.mod_revision(),
            sub: kv.sub(),
            tombstone: kv.is_tombstone(),
            kv,
        }
    }
}

impl Version {
    /// The sub revision of a version from a list, which does not tell the place. A key has one version in a list.
    pub const UNORDERED: u32 = u32::MAX;

    /// The key-value with the place of its change; `None` if it is not that of this change.
    pub(super) fn into_kv(self) -> Option<Kv> {
        let fits = self.kv.mod_revision() == self.main && self.kv.is_tombstone() == self.tombstone;
        fits.then(|| self.kv.with_sub(self.sub))
    }
}

impl KeyHistory {
    pub(super) fn new(first: Kv) -> Self {
        Self::One(first)
    }

    /// All versions, in order.
    pub(super) fn versions(&self) -> &[Kv] {
        match self {
            Self::One(only) => std::slice::from_ref(only),
            Self::Many(all) => all,
        }
    }

    /// The newest version.
    fn newest(&self) -> &Kv {
        match self {
            Self::One(only) => only,
            Self::Many(all) => &all[all.len() - 1],
        }
    }

    pub(super) fn key(&self) -> &[u8] {
        self.newest().key()
    }

    /// The key-value of the newest version, unless that is a tombstone.
    pub(super) fn live(&self) -> Option<&Kv> {
        Some(self.newest()).filter(|kv| !kv.is_tombstone())
    }

    /// The key-value at main revision `revision`, unless absent or deleted then.
    pub(super) fn at(&self, revision: i64) -> Option<&Kv> {
        let newest = self.newest();
        let kv = match newest.mod_revision() <= revision {
            true => newest,
            false => self.up_to(revision).last()?,
        };
        Some(kv).filter(|kv| !kv.is_tombstone())
    }

    /// The versions up to main revision `revision`, in order.
    pub(super) fn up_to(&self, revision: i64) -> &[Kv] {
        let all = self.versions();
        &all[..all.partition_point(|kv| kv.mod_revision() <= revision)]
    }

    pub(super) fn push(&mut self, kv: Kv) {
        let place = |kv: &Kv| (kv.mod_revision(), kv.sub());
        debug_assert!(place(self.newest()) < place(&kv));
        match self {
            Self::One(only) => *self = Self::Many(Box::new(vec![only.clone(), kv])),
            Self::Many(all) => all.push(kv),
        }
    }

    /// Gives the last version another place in its revision.
    pub(super) fn renumber(&mut self, sub: u32) {
        let last = match self {
            Self::One(only) => only,
            Self::Many(all) => {
                let last = all.len() - 1;
                &mut all[last]
            }
        };
        *last = last.clone().with_sub(sub);
    }

    /// Removes the versions that no read at `revision` or later can see. A tombstone at exactly `revision` stays, because a
    /// watch may still start there.
    pub(super) fn compact(&mut self, revision: i64) -> Freed {
        let newest = self.up_to(revision).len();
        let Some(keep) = newest.checked_sub(1) else {
            return Freed::default();
        };
        let all = self.versions();
        let gone = match &all[keep] {
            kv if kv.is_tombstone() && kv.mod_revision() < revision => newest,
            _ => keep,
        };
        let freed = Freed {
            bytes: all[..gone].iter().map(|kv| kv.as_bytes().len()).sum(),
            all: gone == all.len(),
        };
        if let Self::Many(all) = self
            && !freed.all
        {
            all.drain(..gone);
            match &all[..] {
                [only] => *self = Self::One(only.clone()),
                // What a burst of changes has left is given back.
                kept if all.capacity() > 4 * kept.len() => all.shrink_to_fit(),
                _ => {}
            }
        }
        freed
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mvcc::Fields;

    /// The history of the module's worked example.
    fn example() -> KeyHistory {
        let change = |create_revision, mod_revision| {
            Kv::new(&Fields {
                key: b"k",
                create_revision,
                mod_revision,
                ..Fields::default()
            })
        };
        let mut history = KeyHistory::new(change(2, 2));
        history.push(change(2, 4));
        history.push(Kv::tombstone(b"k", 6));
        history.push(change(8, 8));
        history
    }

    fn revisions(history: &KeyHistory) -> Vec<i64> {
        history.versions().iter().map(Kv::mod_revision).collect()
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
            assert_eq!(
                (freed.bytes > 0, freed.all),
                (kept.len() < 4, false),
                "compacted to {compacted}"
            );
            for revision in compacted..10 {
                assert_eq!(read(&history, revision), read(&example(), revision));
            }
        }
    }

    #[test]
    fn a_deleted_key_is_gone_after_a_compaction_past_its_tombstone() {
        let mut history = KeyHistory::new(example().at(4).unwrap().clone());
        history.push(Kv::tombstone(b"k", 6));
        assert!(!history.compact(6).all);
        assert_eq!(revisions(&history), [6]);
        assert!(history.compact(7).all);
    }

    #[test]
    fn a_key_with_one_version_takes_two_words() {
        assert_eq!(size_of::<KeyHistory>(), 2 * size_of::<usize>());
        let mut history = example();
        history.compact(8);
        assert!(matches!(history, KeyHistory::One(_)));
    }
}
