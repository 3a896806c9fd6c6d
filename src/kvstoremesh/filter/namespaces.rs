//! The namespaces of a remote cluster that its keys name, each with what a list of rules says about it.

use crate::scope::rules::{Bits, NamespaceFacts, Rules};
use std::collections::{BTreeSet, HashMap};

/// The longest name of a namespace that Kubernetes allows, in bytes. Rules see a longer one as no namespace, so that a remote
/// cluster cannot make names large.
const NAME_MAX: usize = 63;

/// The number of a namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Place(u32);

/// The names of the namespaces of this cluster; `None` while they are not known.
pub(in super::super) type Existing = Option<std::sync::Arc<BTreeSet<String>>>;

/// The rules for a kind of keys, and the namespaces that they ask for.
#[derive(Clone, Copy)]
pub(super) struct Judge<'a> {
    pub(super) rules: &'a Rules,
    pub(super) existing: &'a Existing,
}

#[derive(Debug)]
struct Namespace {
    name: Box<str>,
    bits: Bits,
    /// How often the namespace is held.
    holders: usize,
}

/// Namespaces by number. A namespace that nothing holds is forgotten, and its number is used again.
#[derive(Debug, Default)]
pub(super) struct Namespaces {
    namespaces: Vec<Namespace>,
    free: Vec<u32>,
    places: HashMap<Box<str>, Place>,
}

// === impl Judge ===

impl Judge<'_> {
    /// Whether decisions must wait until the namespaces of this cluster are known.
    pub(super) fn is_waiting(self) -> bool {
        self.existing.is_none() && self.rules.need_existing() && !self.rules.keep_all()
    }

    pub(super) fn bits(self, namespace: &str) -> Bits {
        let exists = self.existing.as_ref().is_some_and(|all| all.contains(namespace));
        let facts = NamespaceFacts {
            exists,
            ..NamespaceFacts::default()
        };
        self.rules.namespace(namespace, facts)
    }
}

// === impl Namespaces ===

impl Namespaces {
    /// The place of a namespace. A new one must be held.
    pub(super) fn place(&mut self, judge: Judge<'_>, name: &str) -> Place {
        let name = if name.len() > NAME_MAX { "" } else { name };
        if let Some(place) = self.places.get(name) {
            return *place;
        }
        let namespace = Namespace {
            name: name.into(),
            bits: judge.bits(name),
            holders: 0,
        };
        let place = match self.free.pop() {
            Some(at) => {
                self.namespaces[at as usize] = namespace;
                Place(at)
            }
            None => {
                self.namespaces.push(namespace);
                Place(self.namespaces.len() as u32 - 1)
            }
        };
        self.places.insert(name.into(), place);
        place
    }

    /// Bytes that are remembered, at most.
    pub(super) fn bytes(&self) -> usize {
        self.namespaces.len() * (size_of::<Namespace>() + size_of::<(Box<str>, Place)>() + 2 * NAME_MAX)
    }

    pub(super) fn bits(&self, Place(at): Place) -> Bits {
        self.namespaces[at as usize].bits
    }

    pub(super) fn hold(&mut self, Place(at): Place) {
        self.namespaces[at as usize].holders += 1;
    }

    pub(super) fn release(&mut self, Place(at): Place) {
        let namespace = &mut self.namespaces[at as usize];
        namespace.holders -= 1;
        if namespace.holders == 0 {
            self.places.remove(&namespace.name);
            self.free.push(at);
        }
    }

    /// The rules or the namespaces of this cluster have changed.
    pub(super) fn judge_again(&mut self, judge: Judge<'_>) {
        for Place(at) in self.places.values() {
            let namespace = &mut self.namespaces[*at as usize];
            namespace.bits = judge.bits(&namespace.name);
        }
    }
}
