//! CiliumEndpointSlices: one key for each address of each pod of a slice, see [`addresses`](super::addresses).

use super::addresses::{Annotations, Endpoint};
use super::{Effects, Name, Options, Resource, State};
use crate::k8s::types::{self as k8s, Kind, ObjectKey};
use crate::model::keys::Scope;
use std::collections::HashMap;

#[derive(Default)]
pub(super) struct CiliumEndpointSlices {
    /// Slice → the namespace of its pods, which can change: it is a field of the slice, not part of its name.
    namespaces: HashMap<ObjectKey, Name>,
}

impl Resource for CiliumEndpointSlices {
    type Object = k8s::CiliumEndpointSlice;
    const SCOPES: &'static [Scope] = &[Scope::Endpoints];

    fn is_wanted(options: &Options) -> bool {
        options.endpoint_slices
    }

    fn apply(state: &mut State, key: &ObjectKey, slice: k8s::CiliumEndpointSlice, out: &mut Effects) {
        if slice.namespace.is_empty() {
            // As in Cilium, the slice is ignored: its pods may still run where they were.
            out.problem("the slice has no namespace: its last valid endpoints, if any, stay published".to_owned());
            return;
        }
        let endpoints = slice.endpoints.iter().map(|endpoint| Endpoint {
            namespace: &slice.namespace,
            pod: &endpoint.name,
            identity: endpoint.id,
            networking: &endpoint.networking,
            encryption_key: endpoint.encryption.key,
            service_account: &endpoint.service_account,
            named_ports: &endpoint.named_ports,
            // Core endpoints have no annotations.
            annotations: Annotations::default(),
        });
        let entries = endpoints.flat_map(|e| e.entries(&mut out.problems)).collect();
        let namespace = Name::from(&*slice.namespace);
        let before = state
            .cilium_endpoint_slices
            .namespaces
            .insert(key.clone(), namespace.clone());
        if let Some(before) = before.filter(|before| *before != namespace) {
            state.addresses.forget(key, &before);
        }
        let surroundings = (&state.namespaces, state.exports.as_deref_mut());
        state.addresses.set(key, &namespace, entries, surroundings, out);
    }

    fn delete(state: &mut State, key: &ObjectKey, out: &mut Effects) {
        let namespace = state.cilium_endpoint_slices.namespaces.remove(key);
        let exports = state.exports.as_deref_mut();
        state
            .addresses
            .remove(key, &namespace.unwrap_or_default(), exports, out);
    }

    fn namespace_changed(state: &mut State, namespace: &Name, out: &mut Effects) {
        let surroundings = (&state.namespaces, state.exports.as_deref_mut());
        let addresses = &mut state.addresses;
        addresses.namespace_changed(Kind::CiliumEndpointSlice, namespace, surroundings, out);
    }
}
