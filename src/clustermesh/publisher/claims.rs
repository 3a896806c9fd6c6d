//! Ownership of keys that several objects claim.
//!
//! Addresses are reused: a new pod can report an address before the object of the old pod is deleted. The key has the
//! value of the object that claimed it first; the other claims wait in order, and the next claim takes effect when the
//! owner is deleted. So the address of a running pod is never deleted with the object of a former pod.
//! Cilium 1.20: clustermesh-apiserver/clustermesh, `entryGroup`.

use super::Name;
use crate::k8s::types::ObjectKey;
use bytes::Bytes;
use smallvec::SmallVec;
use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap};

/// A key with the value that an object gives it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ClaimedKey {
    pub(super) name: Name,
    pub(super) value: Bytes,
}

/// The new value of a key, or `None` if no object claims the key any more.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct OwnedKey {
    pub(super) name: Name,
    pub(super) value: Option<Bytes>,
}

#[derive(Default)]
pub(super) struct Claims {
    /// Key → claims, the owner's first; never empty.
    by_key: HashMap<Name, SmallVec<[Claim; 1]>>,
    /// Object → the keys it claims.
    by_object: HashMap<ObjectKey, Box<[Name]>>,
}

struct Claim {
    object: ObjectKey,
    value: Bytes,
}

impl Claims {
    /// Replaces everything that `object` claims by `entries`. Returns the keys whose value changes: first those that
    /// `object` owns now, then those that it gave up.
    pub(super) fn set(&mut self, object: &ObjectKey, entries: &[ClaimedKey]) -> Vec<OwnedKey> {
        let entries: BTreeMap<_, _> = entries.iter().map(|e| (e.name.clone(), e.value.clone())).collect();
        let mut changes = vec![];
        let before = self.by_object.remove(object).unwrap_or_default();
        let stale: Vec<_> = before.into_iter().filter(|name| !entries.contains_key(name)).collect();
        if !entries.is_empty() {
            self.by_object.insert(object.clone(), entries.keys().cloned().collect());
        }
        for (name, value) in entries {
            let claims = self.by_key.entry(name.clone()).or_default();
            match claims.iter_mut().find(|claim| claim.object == *object) {
                Some(claim) => claim.value.clone_from(&value),
                None => claims.push(Claim {
                    object: object.clone(),
                    value: value.clone(),
                }),
            }
            if claims[0].object == *object {
                let value = Some(value);
                changes.push(OwnedKey { name, value });
            }
        }
        for name in stale {
            changes.extend(self.release(object, name));
        }
        changes
    }

    /// Gives up one claim. Returns a change if `object` owned the key.
    fn release(&mut self, object: &ObjectKey, name: Name) -> Option<OwnedKey> {
        let Entry::Occupied(mut claims) = self.by_key.entry(name) else {
            return None;
        };
        let at = claims.get().iter().position(|claim| claim.object == *object)?;
        claims.get_mut().remove(at);
        let name = claims.key().clone();
        match claims.get().first() {
            None => {
                claims.remove();
                Some(OwnedKey { name, value: None })
            }
            Some(next) if at == 0 => {
                let value = Some(next.value.clone());
                Some(OwnedKey { name, value })
            }
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

    fn entry(name: &str, value: &str) -> ClaimedKey {
        ClaimedKey {
            name: name.into(),
            value: value.to_owned().into(),
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
        assert_eq!(claims.set(&old, &[entry("ip", "old")]), [set("ip", "old")]);
        assert_eq!(claims.set(&new, &[entry("ip", "new")]), []);
        assert_eq!(claims.set(&third, &[entry("ip", "third")]), []);
        assert_eq!(claims.set(&new, &[entry("ip", "newer")]), []);
        assert_eq!(claims.set(&old, &[]), [set("ip", "newer")]);
        assert_eq!(claims.set(&third, &[]), []);
        assert_eq!(claims.set(&new, &[]), [deleted("ip")]);
        assert!(claims.by_key.is_empty() && claims.by_object.is_empty());
    }

    #[test]
    fn a_key_that_an_object_no_longer_claims_is_deleted() {
        let mut claims = Claims::default();
        let o = object("o");
        claims.set(&o, &[entry("a", "1"), entry("b", "1")]);
        assert_eq!(claims.set(&o, &[entry("b", "2")]), [set("b", "2"), deleted("a")]);
    }
}
