//! CiliumEndpoints: one key for each address of a pod, see [`addresses`](super::addresses).

use super::addresses::{Annotations, Endpoint};
use super::{Effects, Name, Options, Resource, State};
use crate::k8s::types::{self as k8s, Kind, ObjectKey};
use crate::model::keys::Scope;

pub(super) struct CiliumEndpoints;

impl Resource for CiliumEndpoints {
    type Object = k8s::CiliumEndpoint;
    const SCOPES: &'static [Scope] = &[Scope::Endpoints];

    fn is_wanted(options: &Options) -> bool {
        !options.endpoint_slices
    }

    fn apply(state: &mut State, key: &ObjectKey, object: k8s::CiliumEndpoint, out: &mut Effects) {
        let status = &object.status;
        let annotations = match &state.exports {
            Some(_) => Annotations::parse(&object.metadata.annotations, &mut out.problems),
            None => Annotations::default(),
        };
        let endpoint = Endpoint {
            namespace: &key.namespace,
            pod: &key.name,
            identity: status.identity.id,
            networking: &status.networking,
            encryption_key: status.encryption.key,
            service_account: &status.service_account,
            named_ports: &status.named_ports,
            annotations,
        };
        let entries = endpoint.entries(&mut out.problems);
        let surroundings = (&state.namespaces, state.exports.as_deref_mut());
        state.addresses.set(key, &key.namespace, entries, surroundings, out);
    }

    fn delete(state: &mut State, key: &ObjectKey, out: &mut Effects) {
        let exports = state.exports.as_deref_mut();
        state.addresses.remove(key, &key.namespace, exports, out);
    }

    fn namespace_changed(state: &mut State, namespace: &Name, out: &mut Effects) {
        let surroundings = (&state.namespaces, state.exports.as_deref_mut());
        let addresses = &mut state.addresses;
        addresses.namespace_changed(Kind::Endpoint, namespace, surroundings, out);
    }
}
