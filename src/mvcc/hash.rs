//! Everything the store has kept, in the order it was written: for hashes and snapshots.

use super::Error;
use super::encoded::{Fields, Kv};
use super::store::Store;
use super::walk::Walk;
use std::collections::HashMap;
use std::sync::Arc;

/// One stored change.
#[derive(Clone, Debug)]
pub struct Stored {
    /// Main revision.
    pub main: i64,
    /// Place in its revision, from 0.
    pub sub: u32,
    /// Whether it deletes the key.
    pub tombstone: bool,
    /// The key-value, or the tombstone as delete events carry it.
    pub kv: Kv,
}

/// All changes kept up to one revision, ordered by (main, sub).
#[derive(Clone, Debug)]
pub struct History {
    /// The changes.
    pub changes: Vec<Stored>,
    /// The revision up to which they go.
    pub revision: i64,
    /// The store's revision when it was asked.
    pub current: i64,
    /// The compact revision, −1 if never compacted.
    pub compacted: i64,
}

// === impl Stored ===

impl Stored {
    /// The key under which etcd stores the change: main revision, `_`, sub revision, big endian, and a
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

// === impl History ===

impl History {
    /// etcd's HashKV: CRC-32C over the bucket's name, then key and value of each change, without what a
    /// compaction drops (etcd: server/storage/mvcc/hash.go, so that both agree bit by bit).
    pub fn hash(&self) -> u32 {
        let mut newest = HashMap::new();
        for (at, change) in self.changes.iter().enumerate() {
            newest.insert(change.kv.key(), at);
        }
        newest.retain(|_, at| !self.changes[*at].tombstone);
        let kept = |at: usize, key: &[u8]| newest.is_empty() || newest.get(key) == Some(&at);
        let mut hash = crc32c::crc32c(b"key");
        for (at, change) in self.changes.iter().enumerate() {
            let compacted = change.main <= self.compacted && !kept(at, change.kv.key());
            if compacted || (change.tombstone && change.main == self.compacted) {
                continue;
            }
            hash = crc32c::crc32c_append(hash, &change.revision_key());
            hash = crc32c::crc32c_append(hash, change.value().as_bytes());
        }
        hash
    }
}

// === impl Store ===

impl Store {
    /// Everything kept up to `revision` (0: up to now). Writers wait for a few thousand keys at most.
    pub fn history(self: &Arc<Self>, revision: i64) -> Result<History, Error> {
        let (mut walk, revision, current, compacted) = {
            let state = self.state.read();
            let (current, compacted) = (state.visible, state.compacted);
            // Parity: before the first revision there is nothing, and that is no error.
            match if revision == 0 { current } else { revision } {
                r if r > current => return Err(Error::FutureRevision),
                _ if revision > 0 && revision < compacted => return Err(Error::Compacted),
                r => (Walk::new(self, &state, r), r, current, compacted),
            }
        };
        let mut changes = walk.next(usize::MAX).unwrap_or_default();
        drop(walk);
        changes.sort_unstable_by_key(|c: &Stored| (c.main, c.sub));
        Ok(History {
            changes,
            revision,
            current,
            compacted,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mvcc::{KeyRange, Put};

    #[test]
    fn history_is_in_the_order_of_writing_and_hashes_do_not_depend_on_purging() {
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
        let history = store.history(0).unwrap();
        let order: Vec<_> = history.changes.iter().map(|c| (c.main, c.tombstone)).collect();
        assert_eq!(order, [(2, false), (3, false), (4, false), (5, true)]);
        assert_eq!(store.history(3).unwrap().changes.len(), 2);
        assert_eq!(store.history(-1).unwrap().changes.len(), 0);
        assert_eq!(store.history(6).unwrap_err(), Error::FutureRevision);

        store.compact(4).unwrap();
        assert_eq!(store.history(3).unwrap_err(), Error::Compacted);
        let before = store.history(0).unwrap();
        while store.purge() {}
        let after = store.history(0).unwrap();
        assert!(after.changes.len() < before.changes.len());
        assert_eq!(before.hash(), after.hash());
    }
}
