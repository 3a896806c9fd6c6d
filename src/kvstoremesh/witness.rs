//! Detects that a store has a different history than the store that was read.

use crate::kvstore::client::KeyValue;
use std::hash::{DefaultHasher, Hash, Hasher};

/// A key-value that was read from a store. A store that has a different key-value at the same revision has a different
/// history, even if the cluster id is the same: a backup was restored, or a member lost its data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Witness {
    key: Vec<u8>,
    create_revision: i64,
    mod_revision: i64,
    version: i64,
    value_hash: u64,
}

// === impl Witness ===

impl Witness {
    pub(super) fn of(kv: &KeyValue) -> Self {
        let mut hasher = DefaultHasher::new();
        kv.value.hash(&mut hasher);
        Self {
            key: kv.key.clone(),
            create_revision: kv.create_revision,
            mod_revision: kv.mod_revision,
            version: kv.version,
            value_hash: hasher.finish(),
        }
    }

    /// The key to read from the store.
    pub(super) fn key(&self) -> &[u8] {
        &self.key
    }

    pub(super) fn mod_revision(&self) -> i64 {
        self.mod_revision
    }

    /// Whether `found`, which the store has under this key, is the key-value that was seen.
    pub(super) fn is(&self, found: Option<&KeyValue>) -> bool {
        found.is_some_and(|kv| Self::of(kv) == *self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_value_revision_or_version_is_another_past() {
        let kv = KeyValue {
            key: b"k".to_vec(),
            value: b"v".to_vec(),
            create_revision: 2,
            mod_revision: 3,
            version: 2,
            lease: 7,
        };
        let witness = Witness::of(&kv);
        // A lease can change without a new revision.
        assert!(witness.is(Some(&KeyValue { lease: 8, ..kv.clone() })));
        assert!(!witness.is(None));
        let others = [
            KeyValue {
                value: b"w".to_vec(),
                ..kv.clone()
            },
            KeyValue {
                create_revision: 1,
                ..kv.clone()
            },
            KeyValue {
                mod_revision: 4,
                ..kv.clone()
            },
            KeyValue {
                version: 1,
                ..kv.clone()
            },
        ];
        for other in &others {
            assert!(!witness.is(Some(other)), "{other:?}");
        }
    }
}
