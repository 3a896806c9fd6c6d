//! Every version that a store holds, in the order of writing: for etcd's HashKV and for snapshots.

use super::Error;
use super::encoded::{Fields, Kv};
use super::key_history::Version;
use super::range::KeyRange;
use super::recovery::Recovery;
use super::store::{READ_CHUNK, Store};
use super::walk::Walk;
use std::collections::HashMap;
use std::sync::Arc;

/// Versions between two rests while they are hashed.
const HASH_STEP: usize = 512;
/// Bytes of keys between two rests while versions are collected.
const STEP_BYTES: usize = 1 << 20;

/// All versions up to one revision that compaction has kept, ordered by (main, sub).
#[derive(Clone, Debug)]
pub struct Versions {
    pub all: Vec<Version>,
    /// The revision of the newest version that may be included.
    pub revision: i64,
    /// The store's revision at the time of the call.
    pub current: i64,
    /// The compact revision, −1 if never compacted.
    pub compacted: i64,
}

// === impl Version ===

impl Version {
    /// The key under which etcd stores the version: main revision, `_`, sub revision, big endian, and a
    /// `t` for a tombstone (etcd: server/storage/mvcc/revision.go).
    pub fn revision_key(&self) -> Vec<u8> {
        let mut key = Vec::with_capacity(18);
        key.extend_from_slice(&self.main.to_be_bytes());
        key.push(b'_');
        key.extend_from_slice(&i64::from(self.sub).to_be_bytes());
        if self.tombstone {
            key.push(b't');
        }
        key
    }

    /// The value that etcd stores: the encoded key-value, of a tombstone only the key.
    pub fn value(&self) -> Kv {
        if self.tombstone {
            let key = self.kv.key();
            return Kv::new(&Fields {
                key,
                ..Fields::default()
            });
        }
        self.kv.clone()
    }
}

// === impl Versions ===

impl Versions {
    fn new(mut all: Vec<Version>, revision: i64, current: i64, compacted: i64) -> Self {
        all.sort_unstable_by_key(|v| (v.main, v.sub));
        Self {
            all,
            revision,
            current,
            compacted,
        }
    }

    /// etcd's HashKV: CRC-32C over the bucket's name, then over key and value of each version that a compaction
    /// does not drop. Equal bit by bit to etcd's hash (etcd: server/storage/mvcc/hash.go).
    pub fn hash(&self) -> u32 {
        self.hash_by_steps(&mut || ())
    }

    /// Like [`Versions::hash`], and calls `rest` after every few versions.
    pub fn hash_by_steps(&self, rest: &mut dyn FnMut()) -> u32 {
        self.hash_of(self.compacted, rest)
    }

    /// The hash that a store with the same past has whose compact revision is `compacted`; `None` if that cannot be known,
    /// because too much history is gone here, or because the order inside of a revision is unknown.
    pub fn hash_compacted(&self, compacted: i64) -> Option<u32> {
        self.hash_compacted_by_steps(compacted, &mut || ())
    }

    /// Like [`Versions::hash_compacted`], and calls `rest` after every few versions.
    pub fn hash_compacted_by_steps(&self, compacted: i64, rest: &mut dyn FnMut()) -> Option<u32> {
        // −1, 0 and 1 all mean that nothing was compacted.
        let can_be_known = compacted.max(1) >= self.compacted.max(1) && self.is_exact();
        can_be_known.then(|| self.hash_of(compacted, rest))
    }

    /// Whether the place of every version in its revision is known. A state from lists does not know the place of
    /// versions until they are replaced.
    pub fn is_exact(&self) -> bool {
        self.all.iter().all(|version| version.sub != Version::UNORDERED)
    }

    fn hash_of(&self, compact_revision: i64, rest: &mut dyn FnMut()) -> u32 {
        let mut newest = HashMap::new();
        for (at, version) in self.all.iter().enumerate() {
            if at % HASH_STEP == 0 {
                rest();
            }
            newest.insert(version.kv.key(), at);
        }
        newest.retain(|_, at| !self.all[*at].tombstone);
        let kept = |at: usize, key: &[u8]| newest.is_empty() || newest.get(key) == Some(&at);
        let mut hash = crc32c::crc32c(b"key");
        for (at, version) in self.all.iter().enumerate() {
            if at % HASH_STEP == 0 {
                rest();
            }
            let compacted = version.main <= compact_revision && !kept(at, version.kv.key());
            if compacted || (version.tombstone && version.main == compact_revision) {
                continue;
            }
            hash = crc32c::crc32c_append(hash, &version.revision_key());
            hash = crc32c::crc32c_append(hash, version.value().as_bytes());
        }
        hash
    }
}

// === impl Store ===

impl Store {
    /// Whether the place of every version in its revision is known, as far as nothing is written meanwhile. Writers wait
    /// for at most a few thousand keys.
    pub fn is_exact(&self) -> bool {
        let mut rest = KeyRange::all();
        loop {
            let mut last = vec![];
            let state = self.state.read();
            for (n, history) in (1..).zip(state.index.range(&rest).take(READ_CHUNK)) {
                if history
                    .versions()
                    .iter()
                    .any(|version| version.sub() == Version::UNORDERED)
                {
                    return false;
                }
                if n == READ_CHUNK {
                    last = history.key().to_vec();
                }
            }
            drop(state);
            if last.is_empty() {
                return true;
            }
            rest = rest.after(&last);
        }
    }

    /// All versions up to `revision` (0: up to now). Writers wait for at most a few thousand keys.
    pub fn versions(self: &Arc<Self>, revision: i64) -> Result<Versions, Error> {
        self.versions_by_steps(revision, &mut || ())
    }

    /// Like [`Store::versions`], and calls `rest` after every few thousand keys, without a lock.
    pub fn versions_by_steps(self: &Arc<Self>, revision: i64, rest: &mut dyn FnMut()) -> Result<Versions, Error> {
        let (mut walk, revision, current, compacted) = {
            let state = self.state.read();
            let (current, compacted) = (state.visible, state.compacted);
            // Parity: a negative revision finds no versions and is no error.
            match if revision == 0 { current } else { revision } {
                r if r > current => return Err(Error::FutureRevision),
                _ if revision > 0 && revision < compacted => return Err(Error::Compacted),
                r => (Walk::new(self, &state, r), r, current, compacted),
            }
        };
        let mut all = vec![];
        while let Some(more) = walk.next(STEP_BYTES)? {
            all.extend(more);
            rest();
        }
        drop(walk);
        Ok(Versions::new(all, revision, current, compacted))
    }
}

// === impl Recovery ===

impl Recovery {
    /// The versions of this state, as [`Store::versions`] has them of a store with it.
    pub fn versions(&self) -> Versions {
        let (state, everything) = (self.state(), KeyRange::all());
        let histories = state.index.range(&everything);
        let all = histories.flat_map(|history| history.up_to(state.current).iter().cloned().map(Version::from));
        Versions::new(all.collect(), state.current, state.current, state.compacted)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mvcc::{KeyRange, Put};

    #[test]
    fn versions_are_in_the_order_of_writing_and_purging_does_not_change_the_hash() {
        let store = Store::new();
        let put = |key: &'static str| {
            let (key, value) = (key.into(), "v".into());
            store
                .put(Put {
                    key,
                    value,
                    ..Put::default()
                })
                .unwrap();
        };
        put("b");
        put("a");
        put("b");
        store.delete(&KeyRange::key("a"));
        let versions = store.versions(0).unwrap();
        let order: Vec<_> = versions.all.iter().map(|v| (v.main, v.tombstone)).collect();
        assert_eq!(order, [(2, false), (3, false), (4, false), (5, true)]);
        assert_eq!(store.versions(3).unwrap().all.len(), 2);
        assert_eq!(store.versions(-1).unwrap().all.len(), 0);
        assert_eq!(store.versions(6).unwrap_err(), Error::FutureRevision);

        store.compact(4).unwrap();
        assert_eq!(store.versions(3).unwrap_err(), Error::Compacted);
        let before = store.versions(0).unwrap();
        while store.purge() {}
        let after = store.versions(0).unwrap();
        assert!(after.all.len() < before.all.len());
        assert_eq!(before.hash(), after.hash());
    }
}
