//! CiliumEndpoints: one key for each address of a pod, see [`addresses`](super::addresses).

use super::addresses::Endpoint;
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
        let endpoint = Endpoint {
            namespace: &key.namespace,
            pod: &key.name,
            identity: status.identity.id,
            networking: &status.networking,
            encryption_key: status.encryption.key,
            service_account: &status.service_account,
            named_ports: &status.named_ports,
        };
        let entries = endpoint.entries(&mut out.problems);
        state
            .addresses
            .set(key, &key.namespace, entries, &state.namespaces, out);
    }

    fn delete(state: &mut State, key: &ObjectKey, out: &mut Effects) {
        state.addresses.remove(key, &key.namespace, out);
    }

    fn namespace_changed(state: &mut State, namespace: &Name, out: &mut Effects) {
        let State {
            addresses, namespaces, ..
        } = state;
        addresses.namespace_changed(Kind::Endpoint, namespace, namespaces, out);
    }
}
