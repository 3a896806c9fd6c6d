//! A model of the store that keeps the whole content of every revision, and random steps for both.

use super::super::*;
use super::put_of;
use proptest::prelude::*;
use std::collections::BTreeMap;

/// The fields of a key-value, without its key and lease.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Entry {
    pub(super) create_revision: i64,
    pub(super) mod_revision: i64,
    pub(super) version: i64,
    pub(super) value: Vec<u8>,
}

/// All key-values of one revision.
pub(super) type Content = BTreeMap<Vec<u8>, Entry>;

/// The content of every revision, from revision 1 on.
pub(super) struct Model(Vec<Content>);

/// One step of a random history.
#[derive(Clone, Debug)]
pub(super) enum Step {
    Put(String, String),
    Delete(KeyRange),
    /// [`Store::apply`]: puts, and deletes for `None`.
    Apply(Vec<(String, Option<String>)>),
    /// A transaction that puts `value` if `key` has `version`.
    PutIf {
        key: String,
        version: i64,
        value: String,
    },
    /// A compaction to any revision so far.
    Compact(prop::sample::Index),
    Purge,
}

impl Model {
    pub(super) fn new() -> Self {
        Self(vec![Content::new()])
    }

    pub(super) fn revision(&self) -> i64 {
        self.0.len() as i64
    }

    /// The content at `revision`.
    pub(super) fn at(&self, revision: i64) -> &Content {
        &self.0[revision as usize - 1]
    }

    /// The key-values of `range` at `revision`.
    pub(super) fn read(&self, range: &KeyRange, revision: i64) -> Vec<(Vec<u8>, Entry)> {
        let found = self.at(revision).iter().filter(|(key, _)| range.contains(key));
        found.map(|(key, entry)| (key.clone(), entry.clone())).collect()
    }

    pub(super) fn apply(&mut self, step: &Step) {
        match step {
            Step::Put(key, value) => self.change(|content, revision| {
                Self::put(content, revision, key, value);
                true
            }),
            Step::Delete(range) => self.change(|content, _| {
                let before = content.len();
                content.retain(|key, _| !range.contains(key));
                content.len() < before
            }),
            Step::Apply(writes) => self.change(|content, revision| {
                let mut changed = false;
                for (key, value) in writes {
                    changed |= match value {
                        Some(value) => {
                            Self::put(content, revision, key, value);
                            true
                        }
                        None => content.remove(key.as_bytes()).is_some(),
                    };
                }
                changed
            }),
            Step::PutIf { key, version, value } => {
                let now = self.at(self.revision());
                if now.get(key.as_bytes()).map_or(0, |entry| entry.version) == *version {
                    self.apply(&Step::Put(key.clone(), value.clone()));
                }
            }
            Step::Compact(_) | Step::Purge => {}
        }
    }

    /// Applies `f` to a copy of the newest content, which becomes a revision if `f` changed it.
    fn change(&mut self, f: impl FnOnce(&mut Content, i64) -> bool) {
        let mut content = self.at(self.revision()).clone();
        if f(&mut content, self.revision() + 1) {
            self.0.push(content);
        }
    }

    fn put(content: &mut Content, revision: i64, key: &str, value: &str) {
        let entry = content.entry(key.into()).or_insert(Entry {
            create_revision: revision,
            mod_revision: revision,
            version: 0,
            value: vec![],
        });
        entry.mod_revision = revision;
        entry.version += 1;
        entry.value = value.into();
    }
}

impl Step {
    /// Does the step on a store.
    pub(super) fn apply(&self, store: &Store) {
        match self {
            Self::Put(key, value) => drop(store.put(put_of(key, value)).unwrap()),
            Self::Delete(range) => drop(store.delete(range)),
            Self::Apply(writes) => {
                let write = |(key, value): &(String, Option<String>)| match value {
                    Some(value) => Write::Put(key.clone().into(), value.clone().into()),
                    None => Write::Delete(key.clone().into()),
                };
                store.apply(&writes.iter().map(write).collect::<Vec<_>>());
            }
            Self::PutIf { key, version, value } => {
                let range = KeyRange::key(key.clone());
                let txn = Txn {
                    compares: vec![Compare {
                        range: range.clone(),
                        target: Target::Version(*version),
                        result: CompareResult::Equal,
                    }],
                    success: vec![Op::Put(put_of(key, value))],
                    failure: vec![Op::Range(RangeOptions::new(range))],
                };
                store.txn(&txn).unwrap();
            }
            Self::Compact(index) => {
                let to = index.index(store.revision() as usize) as i64 + 1;
                let before = store.compacted();
                assert_eq!(store.compact(to).is_ok(), to > before);
            }
            Self::Purge => while store.purge() {},
        }
    }
}

pub(super) fn key() -> impl Strategy<Value = String> {
    "[a-c]{1,3}"
}

pub(super) fn range() -> impl Strategy<Value = KeyRange> {
    prop_oneof![
        key().prop_map(KeyRange::key),
        key().prop_map(KeyRange::prefix),
        (key(), key()).prop_map(|(a, b)| KeyRange::new(a, b)),
        Just(KeyRange::all()),
    ]
}

pub(super) fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (key(), "[x-z]{0,2}").prop_map(|(key, value)| Step::Put(key, value)),
        2 => range().prop_map(Step::Delete),
        3 => proptest::collection::vec((key(), proptest::option::of("[x-z]")), 1..5).prop_map(Step::Apply),
        2 => (key(), 0i64..3, "[x-z]").prop_map(|(key, version, value)| Step::PutIf { key, version, value }),
        1 => any::<prop::sample::Index>().prop_map(Step::Compact),
        1 => Just(Step::Purge),
    ]
}
