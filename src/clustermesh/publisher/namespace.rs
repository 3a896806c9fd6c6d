//! Namespaces. A namespace has no key of its own: it decides whether the keys of its objects are published.
//!
//! Cilium: pkg/clustermesh/namespace/namespace.go.

use super::{Effects, Name, Resource, State};
use crate::k8s::types::{self as k8s, ObjectKey};
use crate::model::keys::Scope;
use std::collections::HashMap;

const GLOBAL_ANNOTATION: &str = "clustermesh.cilium.io/global";

#[derive(Default)]
pub(super) struct Namespaces {
    /// The namespaces that exist, and whether they are global.
    is_global: HashMap<Name, bool>,
}

impl Namespaces {
    /// A namespace that does not exist is not global.
    pub(super) fn is_global(&self, namespace: &str) -> bool {
        self.known(namespace).unwrap_or(false)
    }

    /// Whether a namespace is global; `None` if it does not exist. An object that moves to such a namespace keeps its
    /// keys, as in Cilium, until the namespace exists or the object is deleted.
    pub(super) fn known(&self, namespace: &str) -> Option<bool> {
        self.is_global.get(namespace).copied()
    }
}

impl Resource for Namespaces {
    type Object = k8s::Namespace;
    const SCOPES: &'static [Scope] = &[
        Scope::Identities,
        Scope::Endpoints,
        Scope::Services,
        Scope::ServiceExports,
        Scope::EndpointSlices,
    ];

    fn apply(state: &mut State, key: &ObjectKey, namespace: k8s::Namespace, out: &mut Effects) {
        let annotation = namespace.metadata.annotations.get(GLOBAL_ANNOTATION);
        let is_global = annotation.map_or(state.options.default_global_namespace, |value| {
            value.eq_ignore_ascii_case("true")
        });
        let exports = state.exports.as_deref_mut();
        let is_judged = exports.is_some_and(|e| e.namespace(&key.name, &namespace.metadata.labels));
        let is_changed = state.namespaces.is_global.insert(key.name.clone(), is_global) != Some(is_global);
        if is_changed || is_judged {
            match is_changed {
                true => state.namespace_changed(&key.name, out),
                false => state.judge_namespace(Some(&key.name), out),
            }
            // Each object reports its own problems when it changes; these are not the namespace's.
            out.problems.clear();
        }
    }

    fn delete(state: &mut State, key: &ObjectKey, out: &mut Effects) {
        if let Some(exports) = &mut state.exports {
            exports.remove_namespace(&key.name);
        }
        if state.namespaces.is_global.remove(&key.name).is_some() {
            state.namespace_changed(&key.name, out);
        }
    }
}
