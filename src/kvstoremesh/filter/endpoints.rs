//! The endpoints of a remote cluster: which of them are mirrored, and which of them should be.

use super::addresses::{Address, Addresses, Name, Slot};
use super::backends::Backends;
use super::classes::{Class, Classes, Facts, Tally};
use super::identities::{Identities, Sizes};
use super::namespaces::{self, Namespaces};
use crate::scope::rules::{Bits, Cause, Decision, Verdict};
use std::collections::BTreeSet;

/// What decides about endpoints.
#[derive(Clone, Copy)]
pub(super) struct Judge<'a> {
    pub(super) names: namespaces::Judge<'a>,
    /// Whether endpoints for readers of another region are left out.
    pub(super) leaves_regional: bool,
    /// Whether the rules keep every endpoint.
    pub(super) keeps_all: bool,
    /// Whether the backends of all services are known, or no rule asks for them.
    pub(super) knows_backends: bool,
    pub(super) identities: &'a Identities,
    pub(super) backends: &'a Backends,
}

/// What changes about the mirror of one endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Change {
    /// The identity that is used from now on.
    pub(super) begins: Option<u32>,
    pub(super) is_kept: bool,
    /// The identity that was used until now.
    pub(super) ends: Option<u32>,
}

/// See the module's documentation.
#[derive(Debug, Default)]
pub(super) struct Endpoints {
    addresses: Addresses,
    classes: Classes,
    namespaces: Namespaces,
    /// Endpoints that should be mirrored, and whose values must be read.
    wanted: BTreeSet<Name>,
    left_out: Sizes,
}

/// Which endpoints to decide about again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Again {
    All,
    /// Those with these identities.
    OfIdentities(BTreeSet<u32>),
}

// === impl Judge ===

impl Judge<'_> {
    fn verdict(self, class: &Class, namespaces: &Namespaces, is_backend: bool) -> Verdict {
        if class.is_regional && self.leaves_regional {
            return Verdict::new(Decision::LeaveOut, Cause::Region);
        }
        if self.keeps_all {
            return Verdict::new(Decision::Keep, Cause::Default);
        }
        if self.names.is_waiting() || !self.knows_backends {
            return Verdict::new(Decision::Pending, Cause::Default);
        }
        let rules = self.names.rules;
        let identity: Option<Bits> = self.identities.bits(rules, class.identity);
        rules.endpoint(namespaces.bits(class.namespace), identity, is_backend)
    }
}

// === impl Endpoints ===

impl Endpoints {
    /// The number of endpoints that the remote cluster has.
    pub(super) fn len(&self) -> usize {
        self.addresses.len()
    }

    /// Bytes that are remembered, about.
    pub(super) fn bytes(&self) -> usize {
        self.addresses.bytes() + self.classes.bytes() + self.namespaces.bytes()
    }

    /// The remote cluster has an endpoint with this value. `is_stored` says whether the mirror holds the key.
    pub(super) fn put(
        &mut self,
        judge: Judge<'_>,
        name: &Name,
        facts: Facts<'_>,
        bytes: usize,
        is_stored: impl FnOnce() -> bool,
    ) -> Change {
        let before = self.addresses.get(name);
        let is_backend = judge.backends.contains(name.address());
        let place = self.namespaces.place(judge.names, facts.namespace);
        let number = self.classes.number(facts, place, &mut self.namespaces);
        let verdict = judge.verdict(self.classes.get(number), &self.namespaces, is_backend);
        let is_kept = match (verdict.decision, before) {
            (Decision::Keep, _) => true,
            (Decision::LeaveOut, _) => false,
            (Decision::Pending, Some(slot)) => slot.is_kept,
            (Decision::Pending, None) => is_stored(),
        };
        let slot = Slot {
            class: number,
            is_kept,
            is_seen: true,
            is_backend,
        };
        self.classes.add(slot);
        self.addresses.set(name, slot);
        self.wanted.remove(name);
        if !is_kept {
            self.left_out.add(bytes);
        }
        Change {
            begins: is_kept.then_some(facts.identity),
            is_kept,
            ends: before.and_then(|slot| self.release(slot)),
        }
    }

    /// The remote cluster does not have the endpoint any more. Returns the identity that is no longer used.
    pub(super) fn remove(&mut self, name: &Name) -> Option<u32> {
        self.wanted.remove(name);
        let slot = self.addresses.remove(name)?;
        self.release(slot)
    }

    /// Takes a slot out of its class. Returns the identity that is no longer used.
    fn release(&mut self, slot: Slot) -> Option<u32> {
        let identity = self.classes.get(slot.class).identity;
        self.classes.remove(slot, &mut self.namespaces);
        slot.is_kept.then_some(identity)
    }

    /// A list of the remote begins.
    pub(super) fn list_begun(&mut self) {
        self.addresses.forget_seen();
        self.wanted.clear();
        self.left_out = Sizes::default();
    }

    /// The list has ended: removes the endpoints that it did not contain. Returns them, with the identities that are no
    /// longer used.
    pub(super) fn list_ended(&mut self) -> Vec<(Name, Option<u32>)> {
        let mut gone = vec![];
        self.addresses.for_each(|name, slot| {
            if !slot.is_seen {
                gone.push(name);
            }
        });
        let gone = gone.into_iter().map(|name| {
            let identity = self.remove(&name);
            (name, identity)
        });
        let gone = gone.collect();
        self.addresses.shrink();
        gone
    }

    /// The rules or the namespaces of this cluster have changed.
    pub(super) fn judge_namespaces_again(&mut self, judge: namespaces::Judge<'_>) {
        self.namespaces.judge_again(judge);
    }

    /// These addresses have become backends, or are none any more.
    pub(super) fn backends_changed(&mut self, judge: Judge<'_>, changed: &BTreeSet<Address>) -> Vec<(Name, Change)> {
        let mut changes = vec![];
        for address in changed {
            let name = Name::Address(*address);
            let Some(before) = self.addresses.get(&name) else {
                continue;
            };
            let slot = Slot {
                is_backend: judge.backends.contains(Some(*address)),
                ..before
            };
            self.classes.add(slot);
            self.classes.remove(before, &mut self.namespaces);
            self.addresses.set(&name, slot);
            let verdict = judge.verdict(self.classes.get(slot.class), &self.namespaces, slot.is_backend);
            self.act(name, slot, verdict.decision, &mut changes);
        }
        changes
    }

    /// Decides again. Returns the endpoints that leave the mirror; those that should enter it are [wanted](Self::wanted).
    pub(super) fn judge_again(&mut self, judge: Judge<'_>, again: &Again) -> Vec<(Name, Change)> {
        let mut decisions: Vec<Option<[Decision; 2]>> = vec![None; self.classes.bound()];
        let mut any = false;
        for (number, class) in self.classes.iter() {
            let is_concerned = match again {
                Again::All => true,
                Again::OfIdentities(identities) => identities.contains(&class.identity),
            };
            if is_concerned {
                let decide = |is_backend| judge.verdict(class, &self.namespaces, is_backend).decision;
                decisions[number as usize] = Some([decide(false), decide(true)]);
                any = true;
            }
        }
        let mut found = vec![];
        if any {
            self.addresses.for_each(|name, slot| {
                if let Some(decisions) = decisions[slot.class as usize] {
                    let decision = decisions[usize::from(slot.is_backend)];
                    if (decision == Decision::Keep) != slot.is_kept || !self.wanted.is_empty() {
                        found.push((name, slot, decision));
                    }
                }
            });
        }
        let mut changes = vec![];
        for (name, slot, decision) in found {
            self.act(name, slot, decision, &mut changes);
        }
        changes
    }

    /// Does what a decision about a known endpoint means.
    fn act(&mut self, name: Name, slot: Slot, decision: Decision, changes: &mut Vec<(Name, Change)>) {
        match (decision, slot.is_kept) {
            (Decision::Keep, false) => {
                self.wanted.insert(name);
            }
            (Decision::Keep | Decision::Pending, _) | (Decision::LeaveOut, false) => {
                self.wanted.remove(&name);
            }
            (Decision::LeaveOut, true) => {
                let slot_out = Slot { is_kept: false, ..slot };
                self.classes.add(slot_out);
                let ends = self.release(slot);
                self.addresses.set(&name, slot_out);
                let change = Change {
                    begins: None,
                    is_kept: false,
                    ends,
                };
                changes.push((name, change));
            }
        }
    }

    /// Endpoints that should be mirrored, and whose values must be read.
    pub(super) fn wanted(&self) -> &BTreeSet<Name> {
        &self.wanted
    }

    /// Whether any endpoint is not mirrored.
    pub(super) fn any_left_out(&self) -> bool {
        let mut classes = self.classes.iter();
        classes.any(|(_, class)| class.tallies.iter().any(|tally| tally.kept < tally.keys))
    }

    /// The verdict about one endpoint; `None` if the remote cluster does not have the endpoint.
    pub(super) fn verdict(&self, judge: Judge<'_>, name: &Name) -> Option<Verdict> {
        let slot = self.addresses.get(name)?;
        let class = self.classes.get(slot.class);
        Some(judge.verdict(class, &self.namespaces, slot.is_backend))
    }

    /// Whether the rules see an endpoint as a backend.
    pub(super) fn is_backend(&self, name: &Name) -> bool {
        self.addresses.get(name).is_some_and(|slot| slot.is_backend)
    }

    /// The verdict about the endpoints of each class, with their number.
    pub(super) fn tallies(&self, judge: Judge<'_>) -> impl Iterator<Item = (Verdict, Tally)> {
        self.classes.iter().flat_map(move |(_, class)| {
            [false, true].map(|is_backend| {
                let verdict = judge.verdict(class, &self.namespaces, is_backend);
                (verdict, class.tallies[usize::from(is_backend)])
            })
        })
    }

    pub(super) fn left_out(&self) -> Sizes {
        self.left_out
    }
}
