//! Who owns a key that several objects claim.
//!
//! Addresses are reused: a new pod may show up with an address before the old one is gone. The first
//! claimant is written; the others wait in line, and the next one takes over when it goes. So a live
//! address is never deleted because a dead owner of it was (Cilium 1.20, entryGroup).

use crate::k8s::types::ObjectKey;
use bytes::Bytes;
use smallvec::SmallVec;
use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

/// A key's change, if any: its new value, or its end.
pub(super) type Change = (Name, Option<Bytes>);
/// The name of a key. Several maps have it.
pub(super) type Name = Arc<str>;
/// Keys with their values.
pub(super) type Entries = Box<[(Name, Bytes)]>;

/// Claims on keys.
#[derive(Default)]
pub(super) struct Owners {
    /// Key → claims, the owner's first; never empty.
    claims: HashMap<Name, SmallVec<[(ObjectKey, Bytes); 1]>>,
    /// Object → the keys it claims.
    keys: HashMap<ObjectKey, Box<[Name]>>,
}

impl Owners {
    /// Makes `entries` all that `object` claims; returns what changes.
    pub(super) fn set(&mut self, object: &ObjectKey, entries: &[(Name, Bytes)]) -> Vec<Change> {
        let entries: BTreeMap<_, _> = entries.iter().cloned().collect();
        let mut changes = vec![];
        let before = self.keys.remove(object).unwrap_or_default();
        let stale = before
            .into_iter()
            .filter(|k| !entries.contains_key(&**k))
            .collect::<Vec<_>>();
        if !entries.is_empty() {
            self.keys.insert(object.clone(), entries.keys().cloned().collect());
        }
        for (key, value) in entries {
            let claims = self.claims.entry(key.clone()).or_default();
            match claims.iter_mut().position(|(o, _)| o == object) {
                Some(at) => claims[at].1.clone_from(&value),
                None => claims.push((object.clone(), value.clone())),
            }
            if claims[0].0 == *object {
                changes.push((key, Some(value)));
            }
        }
        for key in stale {
            changes.extend(self.release(object, key));
        }
        changes
    }

    fn release(&mut self, object: &ObjectKey, key: Name) -> Option<Change> {
        let Entry::Occupied(mut claims) = self.claims.entry(key) else {
            return None;
        };
        let at = claims.get().iter().position(|(o, _)| o == object)?;
        claims.get_mut().remove(at);
        let key = claims.key().clone();
        match claims.get().first() {
            None => {
                claims.remove();
                Some((key, None))
            }
            Some((_, value)) if at == 0 => Some((key, Some(value.clone()))),
            Some(_) => None,
        }
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

    fn entry(key: &str, value: &str) -> (Name, Bytes) {
        (key.into(), value.to_owned().into())
    }

    fn set(key: &str, value: &str) -> Change {
        (key.into(), Some(value.to_owned().into()))
    }

    #[test]
    fn an_address_outlives_its_old_owner_under_its_new_one() {
        let mut owners = Owners::default();
        let (old, new, third) = (object("old"), object("new"), object("third"));
        assert_eq!(owners.set(&old, &[entry("ip", "old")]), [set("ip", "old")]);
        assert_eq!(owners.set(&new, &[entry("ip", "new")]), []);
        assert_eq!(owners.set(&third, &[entry("ip", "third")]), []);
        assert_eq!(owners.set(&new, &[entry("ip", "newer")]), []);
        assert_eq!(owners.set(&old, &[]), [set("ip", "newer")]);
        assert_eq!(owners.set(&third, &[]), []);
        assert_eq!(owners.set(&new, &[]), [("ip".into(), None)]);
        assert!(owners.claims.is_empty() && owners.keys.is_empty());
    }

    #[test]
    fn an_object_drops_what_it_no_longer_claims() {
        let mut owners = Owners::default();
        let o = object("o");
        owners.set(&o, &[entry("a", "1"), entry("b", "1")]);
        assert_eq!(owners.set(&o, &[entry("b", "2")]), [set("b", "2"), ("a".into(), None)]);
    }
}
