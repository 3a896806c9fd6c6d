//! CiliumIdentities: `cilium/state/identities/v1/id/<id>` → the identity's labels.
//!
//! The keys do not name the cluster or the namespace; the namespace is one of the labels.

use super::{Effects, Name, NamespacedName, Resource, State, of_namespace};
use crate::k8s::types::{self as k8s, ObjectKey};
use crate::model::keys::Scope;
use bytes::Bytes;
use std::collections::{BTreeMap, HashMap};

/// The label with the namespace of an identity.
const NAMESPACE_LABEL: &str = "k8s:io.kubernetes.pod.namespace";

#[derive(Default)]
pub(super) struct Identities {
    values: BTreeMap<NamespacedName, Bytes>,
    /// Identity → its namespace, which can change with its labels.
    namespaces: HashMap<Name, Name>,
}

impl Identities {
    fn remove(&mut self, name: &Name) {
        if let Some(namespace) = self.namespaces.remove(name) {
            let name = name.clone();
            self.values.remove(&NamespacedName { namespace, name });
        }
    }

    /// All identities, with their labels as their keys have them.
    pub(super) fn all(&self) -> impl Iterator<Item = (&Name, &Bytes)> {
        self.values.iter().map(|(key, value)| (&key.name, value))
    }

    fn insert(&mut self, name: &Name, namespace: &Name, value: Bytes) {
        if self.namespaces.get(name).is_some_and(|before| before != namespace) {
            self.remove(name);
        }
        self.namespaces.insert(name.clone(), namespace.clone());
        self.values.insert(NamespacedName::new(namespace, name), value);
    }
}

impl Resource for Identities {
    type Object = k8s::CiliumIdentity;
    const SCOPES: &'static [Scope] = &[Scope::Identities];

    fn apply(state: &mut State, key: &ObjectKey, identity: k8s::CiliumIdentity, out: &mut Effects) {
        let labels = &identity.security_labels;
        let Some(namespace) = labels.get(NAMESPACE_LABEL).filter(|n| !n.is_empty()) else {
            // Parity: Cilium never exports an identity without a namespace. The key with the last valid labels stays:
            // without the key, other clusters would drop the traffic of pods that still run.
            out.problem(format!(
                "the identity has no label {NAMESPACE_LABEL}: its last valid labels, if any, stay published"
            ));
            return;
        };
        let (value, namespace) = (value(labels), Name::from(&**namespace));
        state.identities.insert(&key.name, &namespace, value.clone());
        if let (Some(exports), Some(number)) = (&mut state.exports, number(&key.name)) {
            exports.identity(number, Some(&value[..]));
        }
        publish(state, &key.name, value, state.namespaces.known(&namespace), out);
    }

    fn delete(state: &mut State, key: &ObjectKey, out: &mut Effects) {
        state.identities.remove(&key.name);
        if let (Some(exports), Some(number)) = (&mut state.exports, number(&key.name)) {
            exports.identity(number, None);
        }
        out.withdraw(Scope::Identities, &key.name);
    }

    fn namespace_changed(state: &mut State, namespace: &Name, out: &mut Effects) {
        let is_global = state.namespaces.is_global(namespace);
        for (key, value) in of_namespace(&state.identities.values, namespace) {
            publish(state, &key.name, value.clone(), Some(is_global), out);
        }
    }
}

/// Publishes or withdraws the key of an identity; does neither if its namespace does not exist.
fn publish(state: &State, name: &Name, value: Bytes, is_global: Option<bool>, out: &mut Effects) {
    match is_global {
        Some(true) => {
            let verdict = state.exports.as_ref().map(|e| e.identity_verdict(number(name)));
            out.export(Scope::Identities, name, verdict, value);
        }
        Some(false) => out.withdraw(Scope::Identities, name),
        None => {}
    }
}

/// Publishes or withdraws the key of an identity if the scope decides otherwise about it than before.
pub(super) fn judge_again(state: &State, name: &Name, out: &mut Effects) {
    let Some(exports) = &state.exports else {
        return;
    };
    let Some(before) = exports.decided(Scope::Identities, name) else {
        return;
    };
    let now = exports.identity_verdict(number(name));
    if now == before {
        return;
    }
    let known = state.identities.namespaces.get(name);
    let value = known.and_then(|namespace| state.identities.values.get(&NamespacedName::new(namespace, name)));
    if let Some(value) = value {
        out.decide_again(Scope::Identities, name, (before, now), || value.clone());
    }
}

/// The number of an identity, which is its name.
pub(super) fn number(name: &Name) -> Option<u32> {
    let number = name.parse::<u32>().ok()?;
    // Another spelling of the number is another name.
    (*number.to_string() == **name).then_some(number)
}

/// The labels as `source:key=value;`, sorted by key without source (Cilium: pkg/labels/labels.go).
fn value(labels: &k8s::Strings) -> Bytes {
    let mut sorted = BTreeMap::new();
    for (label, value) in labels {
        let (source, key) = match label.strip_prefix('$') {
            Some(key) => ("reserved", key),
            None => match label.split_once(':') {
                Some(("", key)) => ("unspec", key),
                Some((source, key)) => (source, key),
                None => ("unspec", &**label),
            },
        };
        // Cilium takes the value of a reserved label without a key as its key.
        let (key, value) = match (source, key.is_empty()) {
            ("reserved", true) => (&**value, ""),
            _ => (key, &**value),
        };
        sorted.insert(key, (source, value));
    }
    let labels = sorted
        .iter()
        .map(|(key, (source, value))| format!("{source}:{key}={value};"));
    labels.collect::<String>().into()
}
