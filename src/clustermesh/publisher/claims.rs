//! Ownership of keys that several objects claim.
//!
//! Addresses are reused: a new pod can report an address before the object of the old pod is deleted. The key has the
//! value of the object that claimed it first; the other claims wait in order, and the next claim takes effect when the
//! owner is deleted. So the address of a running pod is never deleted with the object of a former pod.
//! Cilium 1.20: clustermesh-apiserver/clustermesh, `entryGroup`.
//!
//! With a scope, the owner is the first claim that the rules keep. While the key is there, a claim about which nothing can
//! be decided yet may own it, too.

use super::Name;
use super::exports::{Exports, Facts, Standing};
use crate::k8s::types::ObjectKey;
use crate::scope::{Decision, Verdict};
use bytes::Bytes;
use smallvec::SmallVec;
use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap};

/// A key with the value that an object gives it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ClaimedKey {
    pub(super) name: Name,
    pub(super) value: Bytes,
    /// The number of the pod's identity.
    pub(super) identity: u32,
    /// What the pod's annotation says about its export.
    pub(super) sync: Option<bool>,
}

/// The new value of a key, or `None` if no object claims the key any more.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct OwnedKey {
    pub(super) name: Name,
    pub(super) value: Option<Bytes>,
}

#[derive(Default)]
pub(super) struct Claims {
    /// Key → claims in the order in which they were made; never empty.
    by_key: HashMap<Name, Slot>,
    /// Object → the keys it claims.
    by_object: HashMap<ObjectKey, Box<[Name]>>,
}

/// The claims of one key.
type Slot = SmallVec<[Claim; 1]>;

struct Claim {
    object: ObjectKey,
    value: Bytes,
    /// Only with a scope.
    facts: Option<Box<Facts>>,
}

/// What judges claims: the scope, if there is one, and the namespace of the object.
pub(super) type Judge<'a> = Option<(&'a mut Exports, &'a Name)>;

impl Claims {
    /// Replaces everything that `object` claims by `entries`. Returns the keys whose value changes: first those that
    /// have a value now, then those that have none any more.
    pub(super) fn set(&mut self, object: &ObjectKey, entries: &[ClaimedKey], mut judge: Judge<'_>) -> Vec<OwnedKey> {
        let entries: BTreeMap<_, _> = entries.iter().map(|e| (e.name.clone(), e)).collect();
        let (mut changes, mut deleted) = (vec![], vec![]);
        let before = self.by_object.remove(object).unwrap_or_default();
        let stale: Vec<_> = before.into_iter().filter(|name| !entries.contains_key(name)).collect();
        if !entries.is_empty() {
            self.by_object.insert(object.clone(), entries.keys().cloned().collect());
        }
        for (name, entry) in entries {
            let change = self.claim(object, name, entry, &mut judge);
            match &change {
                Some(OwnedKey { value: None, .. }) => deleted.extend(change),
                _ => changes.extend(change),
            }
        }
        changes.append(&mut deleted);
        for name in stale {
            changes.extend(self.release(object, name, &mut judge));
        }
        changes
    }

    /// Makes or renews one claim. Returns the value of the key if `object` owns it now, or owned it before.
    fn claim(&mut self, object: &ObjectKey, name: Name, entry: &ClaimedKey, judge: &mut Judge<'_>) -> Option<OwnedKey> {
        let slot = self.by_key.entry(name.clone()).or_default();
        let (was, standing) = (owner(slot).map(|owner| owner.object == *object), standing(&name, slot));
        let facts = judge.as_mut().map(|(exports, namespace)| {
            exports.link(entry.identity, &name);
            let mut facts = Box::new(Facts::new(namespace, entry.identity, entry.sync));
            exports.judge(&mut facts, &name);
            facts
        });
        let value = entry.value.clone();
        let former = match slot.iter_mut().find(|claim| claim.object == *object) {
            Some(claim) => {
                claim.value = value;
                std::mem::replace(&mut claim.facts, facts)
            }
            None => {
                let object = object.clone();
                slot.push(Claim { object, value, facts });
                None
            }
        };
        elect(slot, was.is_some() || is_former(judge, &name));
        if let Some((exports, _)) = judge {
            unlink(exports, &name, slot, former.as_deref());
            exports.recount(standing, self::standing(&name, slot));
        }
        match owner(slot) {
            Some(owner) if owner.object == *object || was != Some(false) => {
                let value = Some(owner.value.clone());
                Some(OwnedKey { name, value })
            }
            None if was.is_some() => Some(OwnedKey { name, value: None }),
            _ => None,
        }
    }

    /// Gives up one claim. Returns a change if `object` owned the key.
    fn release(&mut self, object: &ObjectKey, name: Name, judge: &mut Judge<'_>) -> Option<OwnedKey> {
        let Entry::Occupied(mut entry) = self.by_key.entry(name) else {
            return None;
        };
        let name = entry.key().clone();
        let slot = entry.get_mut();
        let at = slot.iter().position(|claim| claim.object == *object)?;
        let (was, standing) = (owner(slot).map(|owner| owner.object == *object), standing(&name, slot));
        let former = slot.remove(at).facts;
        elect(slot, was.is_some() || is_former(judge, &name));
        if let Some((exports, _)) = judge {
            unlink(exports, &name, slot, former.as_deref());
            exports.recount(standing, self::standing(&name, slot));
        }
        let value = owner(slot).map(|owner| owner.value.clone());
        if slot.is_empty() {
            entry.remove();
        }
        (was == Some(true)).then_some(OwnedKey { name, value })
    }

    /// Judges all claims of a key again. Returns a change if the key has another owner, or none any more.
    pub(super) fn judge_again(&mut self, name: &Name, exports: &mut Exports) -> Option<OwnedKey> {
        let slot = self.by_key.get_mut(name)?;
        let before = owner(slot).map(|owner| owner.object.clone());
        let standing = standing(name, slot);
        for facts in slot.iter_mut().filter_map(|claim| claim.facts.as_deref_mut()) {
            exports.judge(facts, name);
        }
        elect(slot, before.is_some() || exports.is_former(name));
        exports.recount(standing, self::standing(name, slot));
        let now = owner(slot);
        (before.as_ref() != now.map(|owner| &owner.object)).then(|| OwnedKey {
            name: name.clone(),
            value: now.map(|owner| owner.value.clone()),
        })
    }

    /// What the scope says about the owner of a key, or about its first claim if it has no owner.
    pub(super) fn verdict(&self, name: &Name) -> Option<Verdict> {
        let slot = self.by_key.get(name)?;
        let claim = owner(slot).or_else(|| slot.first())?;
        Some(claim.facts.as_ref()?.verdict)
    }

    /// The keys that pods of `namespace` claim; of all namespaces with `None`.
    pub(super) fn names(&self, namespace: Option<&Name>) -> impl Iterator<Item = &Name> {
        let is_of = move |claim: &Claim| {
            let facts = claim.facts.as_deref();
            namespace.is_none_or(|namespace| facts.is_some_and(|facts| facts.namespace == *namespace))
        };
        let slots = self.by_key.iter();
        slots.filter_map(move |(name, slot)| slot.iter().any(is_of).then_some(name))
    }
}

/// The claim whose value the key has.
fn owner(slot: &Slot) -> Option<&Claim> {
    slot.iter()
        .find(|claim| claim.facts.as_ref().is_none_or(|facts| facts.owns))
}

/// Whether an earlier run left the key in the store.
fn is_former(judge: &Judge<'_>, name: &Name) -> bool {
    judge.as_ref().is_some_and(|(exports, _)| exports.is_former(name))
}

/// Chooses the owner of a key, which may be there before.
fn elect(slot: &mut Slot, is_there: bool) {
    let first = |wanted| {
        let has = |claim: &Claim| claim.facts.as_ref().is_some_and(|f| f.verdict.decision == wanted);
        slot.iter().position(has)
    };
    let pending = || first(Decision::Pending).filter(|_| is_there);
    let owner = first(Decision::Keep).or_else(pending);
    for (at, claim) in slot.iter_mut().enumerate() {
        if let Some(facts) = &mut claim.facts {
            facts.owns = Some(at) == owner;
        }
    }
}

/// How a key counts: by its owner, or by its first claim if it has no owner.
fn standing(name: &Name, slot: &Slot) -> Option<Standing> {
    let claim = owner(slot).or_else(|| slot.first())?;
    let facts = claim.facts.as_deref()?;
    Some(Standing::new(facts, name, &claim.value))
}

/// The identity of a former claim has one claim of this key less.
fn unlink(exports: &mut Exports, name: &Name, slot: &Slot, former: Option<&Facts>) {
    let Some(identity) = former.map(|facts| facts.identity) else {
        return;
    };
    let mut present = slot.iter().filter_map(|claim| claim.facts.as_deref());
    if !present.any(|facts| facts.identity == identity) {
        exports.unlink(identity, name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::k8s::types::Kind;

    fn object(name: &str) -> ObjectKey {
        ObjectKey {
            kind: Kind::Endpoint,
            namespace: "ns".into(),
            name: name.into(),
        }
    }

    fn entry(name: &str, value: &str) -> ClaimedKey {
        ClaimedKey {
            name: name.into(),
            value: value.to_owned().into(),
            identity: 0,
            sync: None,
        }
    }

    fn set(name: &str, value: &str) -> OwnedKey {
        OwnedKey {
            name: name.into(),
            value: Some(value.to_owned().into()),
        }
    }

    fn deleted(name: &str) -> OwnedKey {
        OwnedKey {
            name: name.into(),
            value: None,
        }
    }

    #[test]
    fn a_reused_address_passes_from_the_old_pod_to_the_new_one() {
        let mut claims = Claims::default();
        let (old, new, third) = (object("old"), object("new"), object("third"));
        assert_eq!(claims.set(&old, &[entry("ip", "old")], None), [set("ip", "old")]);
        assert_eq!(claims.set(&new, &[entry("ip", "new")], None), []);
        assert_eq!(claims.set(&third, &[entry("ip", "third")], None), []);
        assert_eq!(claims.set(&new, &[entry("ip", "newer")], None), []);
        assert_eq!(claims.set(&old, &[], None), [set("ip", "newer")]);
        assert_eq!(claims.set(&third, &[], None), []);
        assert_eq!(claims.set(&new, &[], None), [deleted("ip")]);
        assert!(claims.by_key.is_empty() && claims.by_object.is_empty());
    }

    #[test]
    fn a_key_that_an_object_no_longer_claims_is_deleted() {
        let mut claims = Claims::default();
        let o = object("o");
        claims.set(&o, &[entry("a", "1"), entry("b", "1")], None);
        assert_eq!(claims.set(&o, &[entry("b", "2")], None), [set("b", "2"), deleted("a")]);
    }
}
