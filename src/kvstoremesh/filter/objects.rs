//! The services, endpoint slices or service exports of a remote cluster, whose names begin with their namespace.

use super::addresses::Address;
use super::backends::Backends;
use super::classes::Tally;
use super::identities::Sizes;
use super::namespaces::{Judge, Namespaces, Place};
use crate::scope::rules::{Cause, Decision, Verdict};
use std::collections::{BTreeSet, HashMap};

type Name = Box<[u8]>;

#[derive(Debug)]
struct Object {
    namespace: Place,
    is_kept: bool,
    /// Whether the present list of the remote has contained the key.
    is_seen: bool,
    /// The backends, where rules ask for them and the key is mirrored.
    backends: Box<[Address]>,
}

/// See the module's documentation.
#[derive(Debug, Default)]
pub(super) struct Objects {
    objects: HashMap<Name, Object>,
    namespaces: Namespaces,
    tallies: HashMap<Place, Tally>,
    /// Objects that should be mirrored, and whose values must be read.
    wanted: BTreeSet<Name>,
    left_out: Sizes,
    /// Bytes of the names and the backends.
    variable: usize,
}

/// The namespace in the name of a key.
fn namespace_of(name: &[u8]) -> &str {
    let end = name.iter().position(|byte| *byte == b'/').unwrap_or(0);
    std::str::from_utf8(&name[..end]).unwrap_or_default()
}

fn verdict(judge: Judge<'_>, namespaces: &Namespaces, place: Place) -> Verdict {
    match judge.is_waiting() {
        true => Verdict::new(Decision::Pending, Cause::Default),
        false => judge.rules.name(namespaces.bits(place)),
    }
}

impl Object {
    /// Bytes that differ from object to object.
    fn variable(&self, name: &[u8]) -> usize {
        name.len() + size_of_val(&*self.backends)
    }
}

impl Objects {
    fn count(&mut self, place: Place, is_kept: bool) {
        let tally = self.tallies.entry(place).or_default();
        tally.keys += 1;
        tally.kept += usize::from(is_kept);
        self.namespaces.hold(place);
    }

    fn uncount(&mut self, object: &Object) {
        if let Some(tally) = self.tallies.get_mut(&object.namespace) {
            tally.keys -= 1;
            tally.kept -= usize::from(object.is_kept);
            if tally.keys == 0 {
                self.tallies.remove(&object.namespace);
            }
        }
        self.namespaces.release(object.namespace);
    }

    /// The number of keys that the remote cluster has.
    pub(super) fn len(&self) -> usize {
        self.objects.len()
    }

    /// Bytes that are remembered, about.
    pub(super) fn bytes(&self) -> usize {
        let fixed = size_of::<(Name, Object)>() + size_of::<(Place, Tally)>();
        self.objects.len() * fixed + self.variable + self.namespaces.bytes()
    }

    /// The remote cluster has this key. `is_stored` says whether the mirror holds the key, and `backends` reads them in
    /// the value. Returns whether the key is mirrored, and whether the key was mirrored before.
    pub(super) fn put(
        &mut self,
        judge: Judge<'_>,
        name: &[u8],
        bytes: usize,
        is_stored: impl FnOnce() -> bool,
        backends: (&mut Backends, impl FnOnce() -> Vec<Address>),
    ) -> (bool, bool) {
        let before = self.objects.remove(name);
        let place = self.namespaces.place(judge, namespace_of(name));
        let was_kept = before.as_ref().is_some_and(|object| object.is_kept);
        let is_kept = match (verdict(judge, &self.namespaces, place).decision, &before) {
            (Decision::Keep, _) => true,
            (Decision::LeaveOut, _) => false,
            (Decision::Pending, Some(object)) => object.is_kept,
            (Decision::Pending, None) => is_stored(),
        };
        let (all, read) = backends;
        let new: Box<[Address]> = if is_kept { read().into() } else { Box::default() };
        let old = before.as_ref().map(|object| &*object.backends);
        all.replace(old.unwrap_or_default(), &new);
        self.count(place, is_kept);
        if let Some(object) = before {
            self.variable -= object.variable(name);
            self.uncount(&object);
        }
        let object = Object {
            namespace: place,
            is_kept,
            is_seen: true,
            backends: new,
        };
        self.variable += object.variable(name);
        self.objects.insert(name.into(), object);
        self.wanted.remove(name);
        if !is_kept {
            self.left_out.add(bytes);
        }
        (is_kept, was_kept)
    }

    /// The remote cluster does not have the key any more.
    pub(super) fn remove(&mut self, name: &[u8], backends: &mut Backends) {
        self.wanted.remove(name);
        if let Some(object) = self.objects.remove(name) {
            self.variable -= object.variable(name);
            self.uncount(&object);
            backends.replace(&object.backends, &[]);
        }
    }

    /// A list of the remote begins.
    pub(super) fn list_begun(&mut self) {
        self.wanted.clear();
        self.left_out = Sizes::default();
        for object in self.objects.values_mut() {
            object.is_seen = false;
        }
    }

    /// The list has ended: removes the keys that it did not contain. Returns their names.
    pub(super) fn list_ended(&mut self, backends: &mut Backends) -> Vec<Name> {
        let gone = self.objects.iter().filter(|(_, object)| !object.is_seen);
        let gone: Vec<Name> = gone.map(|(name, _)| name.clone()).collect();
        gone.iter().for_each(|name| self.remove(name, backends));
        gone
    }

    /// Nothing is known of the remote's keys any more.
    pub(super) fn clear(&mut self, backends: &mut Backends) {
        self.forget_backends(backends);
        *self = Self::default();
    }

    /// No rule asks for backends any more, or all values are read again.
    pub(super) fn forget_backends(&mut self, backends: &mut Backends) {
        for object in self.objects.values_mut() {
            self.variable -= size_of_val(&*object.backends);
            backends.replace(&std::mem::take(&mut object.backends), &[]);
        }
    }

    /// Decides again, because the rules or the namespaces of this cluster have changed. Returns the names of the keys that
    /// leave the mirror; those that should enter it are [wanted](Self::wanted).
    pub(super) fn judge_again(&mut self, judge: Judge<'_>, backends: &mut Backends) -> Vec<Name> {
        self.namespaces.judge_again(judge);
        self.wanted.clear();
        let mut gone = vec![];
        for (name, object) in &mut self.objects {
            let decision = verdict(judge, &self.namespaces, object.namespace).decision;
            match (decision, object.is_kept) {
                (Decision::Keep, false) => {
                    self.wanted.insert(name.clone());
                }
                (Decision::LeaveOut, true) => {
                    object.is_kept = false;
                    if let Some(tally) = self.tallies.get_mut(&object.namespace) {
                        tally.kept -= 1;
                    }
                    self.variable -= size_of_val(&*object.backends);
                    backends.replace(&std::mem::take(&mut object.backends), &[]);
                    gone.push(name.clone());
                }
                _ => {}
            }
        }
        gone
    }

    /// Keys that should be mirrored, and whose values must be read.
    pub(super) fn wanted(&self) -> &BTreeSet<Name> {
        &self.wanted
    }

    /// Whether any key is not mirrored.
    pub(super) fn any_left_out(&self) -> bool {
        self.tallies.values().any(|tally| tally.kept < tally.keys)
    }

    /// The verdict about one key; `None` if the remote cluster does not have the key.
    pub(super) fn verdict(&self, judge: Judge<'_>, name: &[u8]) -> Option<Verdict> {
        let object = self.objects.get(name)?;
        Some(verdict(judge, &self.namespaces, object.namespace))
    }

    /// The verdict about the keys of each namespace, with their number.
    pub(super) fn tallies(&self, judge: Judge<'_>) -> impl Iterator<Item = (Verdict, Tally)> {
        let tallies = self.tallies.iter();
        tallies.map(move |(place, tally)| (verdict(judge, &self.namespaces, *place), *tally))
    }

    pub(super) fn left_out(&self) -> Sizes {
        self.left_out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_namespace_is_the_part_before_the_first_slash() {
        for (name, namespace) in [
            ("shop/db", "shop"),
            ("shop/db/x", "shop"),
            ("db", ""),
            ("/db", ""),
            ("", ""),
        ] {
            assert_eq!(namespace_of(name.as_bytes()), namespace, "{name}");
        }
    }
}
