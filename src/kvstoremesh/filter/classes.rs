//! The classes of a remote cluster's endpoints. Endpoints of one class have the same namespace and identity, so that rules
//! say the same about all of them, or about those among them that are backends. A cluster has about as many classes as
//! identities.

use super::addresses::Slot;
use super::namespaces::{Namespaces, Place};
use std::collections::HashMap;

/// What the value of an endpoint says to the rules.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Facts<'a> {
    pub(super) namespace: &'a str,
    pub(super) identity: u32,
    /// Whether the endpoint is for clusters of its own region only.
    pub(super) is_regional: bool,
}

/// The number of endpoints, and how many of them are mirrored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Tally {
    pub(super) keys: usize,
    pub(super) kept: usize,
}

/// Endpoints of one namespace and identity.
#[derive(Debug)]
pub(super) struct Class {
    pub(super) namespace: Place,
    pub(super) identity: u32,
    pub(super) is_regional: bool,
    /// Of endpoints that are no backends, and of those that are.
    pub(super) tallies: [Tally; 2],
}

/// All classes, by number. The number of a class without endpoints is used again.
#[derive(Debug, Default)]
pub(super) struct Classes {
    classes: Vec<Class>,
    free: Vec<u32>,
    numbers: HashMap<(Place, u32, bool), u32>,
}

// === impl Class ===

impl Class {
    fn is_empty(&self) -> bool {
        self.tallies.iter().all(|tally| tally.keys == 0)
    }
}

// === impl Classes ===

impl Classes {
    pub(super) fn get(&self, number: u32) -> &Class {
        &self.classes[number as usize]
    }

    /// The class of these facts. A new class must get an endpoint by [`Self::add`].
    pub(super) fn number(&mut self, facts: Facts<'_>, place: Place, namespaces: &mut Namespaces) -> u32 {
        let key = (place, facts.identity, facts.is_regional);
        if let Some(number) = self.numbers.get(&key) {
            return *number;
        }
        namespaces.hold(place);
        let class = Class {
            namespace: place,
            identity: facts.identity,
            is_regional: facts.is_regional,
            tallies: Default::default(),
        };
        let number = match self.free.pop() {
            Some(number) => {
                self.classes[number as usize] = class;
                number
            }
            None => {
                self.classes.push(class);
                self.classes.len() as u32 - 1
            }
        };
        self.numbers.insert(key, number);
        number
    }

    /// Counts an endpoint.
    pub(super) fn add(&mut self, slot: Slot) {
        let tally = &mut self.classes[slot.class as usize].tallies[usize::from(slot.is_backend)];
        tally.keys += 1;
        tally.kept += usize::from(slot.is_kept);
    }

    /// Takes back what [`Self::add`] counted. A class without endpoints is forgotten.
    pub(super) fn remove(&mut self, slot: Slot, namespaces: &mut Namespaces) {
        let class = &mut self.classes[slot.class as usize];
        let tally = &mut class.tallies[usize::from(slot.is_backend)];
        tally.keys -= 1;
        tally.kept -= usize::from(slot.is_kept);
        if class.is_empty() {
            self.numbers
                .remove(&(class.namespace, class.identity, class.is_regional));
            namespaces.release(class.namespace);
            self.free.push(slot.class);
        }
    }

    /// The classes with endpoints, with their numbers.
    pub(super) fn iter(&self) -> impl Iterator<Item = (u32, &Class)> {
        let all = (0_u32..).zip(&self.classes);
        all.filter(|(_, class)| !class.is_empty())
    }

    /// Bytes that are remembered, about.
    pub(super) fn bytes(&self) -> usize {
        self.classes.len() * (size_of::<Class>() + size_of::<((Place, u32, bool), u32)>())
    }

    /// The number above the highest number of a class.
    pub(super) fn bound(&self) -> usize {
        self.classes.len()
    }
}
