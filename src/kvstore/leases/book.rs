//! Which key is on which lease, for millions of keys.
//!
//! The writer has the keys already, so the book keeps a digest of each: about 25 bytes, where a key with its memory takes
//! 150. The digest has a random key, so that nobody can construct keys of the same digest. Two keys of one directory that have
//! the same by chance (one of 10⁹ books of 100,000 keys) count as one: their lease may then end too early, which its writer
//! notices and mends.

use std::collections::HashMap;
use std::hash::{BuildHasher, BuildHasherDefault, Hasher, RandomState};

/// The digests of the keys of one directory, with their leases.
type Directory = HashMap<u64, i64, BuildHasherDefault<Digested>>;

/// See the module's documentation.
#[derive(Default)]
pub(super) struct Book {
    hasher: RandomState,
    /// The keys by their text up to the last `/`.
    directories: HashMap<Box<[u8]>, Directory>,
}

/// Takes a digest as its own hash.
#[derive(Default)]
struct Digested(u64);

impl Hasher for Digested {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        bytes
            .iter()
            .for_each(|byte| self.0 = self.0.rotate_left(8) ^ u64::from(*byte));
    }

    fn write_u64(&mut self, digest: u64) {
        self.0 = digest;
    }
}

/// A key as its directory, with the slash, and the rest.
fn split(key: &[u8]) -> (&[u8], &[u8]) {
    let slash = key.iter().rposition(|byte| *byte == b'/');
    key.split_at(slash.map_or(0, |at| at + 1))
}

impl Book {
    /// The lease of a key.
    pub(super) fn get(&self, key: &[u8]) -> Option<i64> {
        let (directory, rest) = split(key);
        let found = self.directories.get(directory)?.get(&self.hasher.hash_one(rest));
        found.copied()
    }

    /// Notes the lease of a key. Returns the one before.
    pub(super) fn insert(&mut self, key: &[u8], lease: i64) -> Option<i64> {
        let (directory, rest) = split(key);
        let digest = self.hasher.hash_one(rest);
        // Most directories are there, and need no copy of their name.
        match self.directories.get_mut(directory) {
            Some(keys) => keys.insert(digest, lease),
            None => self
                .directories
                .entry(directory.into())
                .or_default()
                .insert(digest, lease),
        }
    }

    /// Forgets a key. Returns its lease.
    pub(super) fn remove(&mut self, key: &[u8]) -> Option<i64> {
        let (directory, rest) = split(key);
        let keys = self.directories.get_mut(directory)?;
        let lease = keys.remove(&self.hasher.hash_one(rest));
        if keys.is_empty() {
            self.directories.remove(directory);
        }
        lease
    }

    /// Forgets all keys below a prefix, which ends with a slash. `on` is called with the lease of each.
    pub(super) fn remove_prefix(&mut self, prefix: &[u8], mut on: impl FnMut(i64)) {
        self.directories.retain(|directory, keys| {
            let is_below = directory.starts_with(prefix);
            if is_below {
                keys.values().for_each(|lease| on(*lease));
            }
            !is_below
        });
    }

    /// Forgets all keys of a lease.
    pub(super) fn remove_lease(&mut self, lease: i64) {
        self.directories.retain(|_, keys| {
            keys.retain(|_, of| *of != lease);
            !keys.is_empty()
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    #[derive(Clone, Debug)]
    enum Step {
        Insert(String, i64),
        Remove(String),
        RemovePrefix(String),
        RemoveLease(i64),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let key = || "[ab](/[ab]){0,3}";
        let step = prop_oneof![
            4 => (key(), 0..4_i64).prop_map(|(key, lease)| Step::Insert(key, lease)),
            2 => key().prop_map(Step::Remove),
            1 => "([ab]/){1,2}".prop_map(Step::RemovePrefix),
            1 => (0..4_i64).prop_map(Step::RemoveLease),
        ];
        prop::collection::vec(step, 0..60)
    }

    proptest! {
        #[test]
        fn a_book_answers_as_a_map_of_whole_keys(steps in steps()) {
            let (mut book, mut model) = (Book::default(), BTreeMap::new());
            for step in steps {
                match step {
                    Step::Insert(key, lease) => {
                        prop_assert_eq!(book.insert(key.as_bytes(), lease), model.insert(key, lease));
                    }
                    Step::Remove(key) => prop_assert_eq!(book.remove(key.as_bytes()), model.remove(&key)),
                    Step::RemovePrefix(prefix) => {
                        let mut removed = vec![];
                        book.remove_prefix(prefix.as_bytes(), |lease| removed.push(lease));
                        let (gone, left) = model.into_iter().partition(|(key, _)| key.starts_with(&prefix));
                        let gone: BTreeMap<String, i64> = gone;
                        let mut wanted: Vec<i64> = gone.into_values().collect();
                        wanted.sort_unstable();
                        removed.sort_unstable();
                        prop_assert_eq!(removed, wanted);
                        model = left;
                    }
                    Step::RemoveLease(lease) => {
                        book.remove_lease(lease);
                        model.retain(|_, of| *of != lease);
                    }
                }
                for (key, lease) in &model {
                    prop_assert_eq!(book.get(key.as_bytes()), Some(*lease));
                }
                let kept: usize = book.directories.values().map(HashMap::len).sum();
                prop_assert_eq!(kept, model.len());
                prop_assert!(book.directories.values().all(|keys| !keys.is_empty()));
            }
        }
    }
}
