//! Who owns a key that several objects claim.
//!
//! Addresses are reused: a new pod may show up with an address before the old one is gone. The first
//! claimant is written; the others wait in line, and the next one takes over when it goes. So a live
//! address is never deleted because a dead owner of it was (Cilium 1.20, entryGroup).

use crate::k8s::types::ObjectKey;
use bytes::Bytes;
use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap};

/// A key's change, if any: its new value, or its end.
pub(super) type Change = (String, Option<Bytes>);

/// Claims on keys.
#[derive(Default)]
pub(super) struct Owners {
    /// Key → claims, the owner's first; never empty.
    claims: HashMap<String, Vec<(ObjectKey, Bytes)>>,
    /// Object → the keys it claims.
    keys: HashMap<ObjectKey, Vec<String>>,
}

impl Owners {
    /// Makes `entries` all that `object` claims; returns what changes.
    pub(super) fn set(&mut self, object: &ObjectKey, entries: Vec<(String, Bytes)>) -> Vec<Change> {
        let entries: BTreeMap<_, _> = entries.into_iter().collect();
        let mut changes = vec![];
        let before = self.keys.remove(object).unwrap_or_default();
        let stale = before
            .into_iter()
            .filter(|k| !entries.contains_key(k))
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

    fn release(&mut self, object: &ObjectKey, key: String) -> Option<Change> {
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
            namespace: "ns".to_owned(),
            name: name.to_owned(),
        }
    }

    fn entry(key: &str, value: &str) -> (String, Bytes) {
        (key.to_owned(), value.to_owned().into())
    }

    fn set(key: &str, value: &str) -> Change {
        (key.to_owned(), Some(value.to_owned().into()))
    }

    #[test]
    fn an_address_outlives_its_old_owner_under_its_new_one() {
        let mut owners = Owners::default();
        let (old, new, third) = (object("old"), object("new"), object("third"));
        assert_eq!(owners.set(&old, vec![entry("ip", "old")]), [set("ip", "old")]);
        assert_eq!(owners.set(&new, vec![entry("ip", "new")]), []);
        assert_eq!(owners.set(&third, vec![entry("ip", "third")]), []);
        assert_eq!(owners.set(&new, vec![entry("ip", "newer")]), []);
        assert_eq!(owners.set(&old, vec![]), [set("ip", "newer")]);
        assert_eq!(owners.set(&third, vec![]), []);
        assert_eq!(owners.set(&new, vec![]), [("ip".to_owned(), None)]);
        assert!(owners.claims.is_empty() && owners.keys.is_empty());
    }

    #[test]
    fn an_object_drops_what_it_no_longer_claims() {
        let mut owners = Owners::default();
        let o = object("o");
        owners.set(&o, vec![entry("a", "1"), entry("b", "1")]);
        assert_eq!(
            owners.set(&o, vec![entry("b", "2")]),
            [set("b", "2"), ("a".to_owned(), None)]
        );
    }
}
