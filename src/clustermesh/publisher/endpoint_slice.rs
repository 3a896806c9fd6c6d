//! EndpointSlices: `cilium/state/endpointslices/v1/<cluster>/<namespace>/<slice>`, as Cilium 1.20 exports them.
//!
//! A slice is published while the service that its label names is shared; its addresses are also part of that service's
//! key. `service::publish` writes both.

use super::{Effects, Name, NamespacedName, Resource, State};
use crate::k8s::types::{self as k8s, ObjectKey};
use crate::model::cluster::ClusterInfo;
use crate::model::keys::Scope;
use crate::model::values::slice;
use bytes::Bytes;
use prost::Message;
use std::collections::{BTreeSet, HashMap};
use std::net::{Ipv4Addr, Ipv6Addr};

/// The label by which a slice names its service.
const SERVICE_LABEL: &str = "kubernetes.io/service-name";

#[derive(Default)]
pub(super) struct EndpointSlices {
    slices: HashMap<NamespacedName, k8s::EndpointSlice>,
    /// Service → names of its slices.
    by_service: HashMap<NamespacedName, BTreeSet<Name>>,
}

impl EndpointSlices {
    /// The slices of a service, in the order of their names.
    pub(super) fn of_service(&self, service: &NamespacedName) -> impl Iterator<Item = &k8s::EndpointSlice> {
        let names = self.by_service.get(service).into_iter().flatten();
        names.filter_map(|name| self.slices.get(&NamespacedName::new(&service.namespace, name)))
    }

    fn unlink(&mut self, service: &NamespacedName, slice: &Name) {
        if let Some(names) = self.by_service.get_mut(service) {
            names.remove(slice);
            if names.is_empty() {
                self.by_service.remove(service);
            }
        }
    }
}

impl Resource for EndpointSlices {
    type Object = k8s::EndpointSlice;
    const SCOPES: &'static [Scope] = &[Scope::Services, Scope::EndpointSlices];

    fn apply(state: &mut State, key: &ObjectKey, slice: k8s::EndpointSlice, out: &mut Effects) {
        let service = service_of(key, &slice);
        let before = state.endpoint_slices.slices.insert(NamespacedName::of(key), slice);
        let before = before.and_then(|slice| service_of(key, &slice));
        if let Some(before) = before.filter(|before| Some(before) != service.as_ref()) {
            moved(state, key, before, out);
        }
        if let Some(service) = service {
            let names = state.endpoint_slices.by_service.entry(service.clone()).or_default();
            names.insert(key.name.clone());
            if state.services.get(&service).is_some() {
                out.republish_service(service);
            }
        }
    }

    fn delete(state: &mut State, key: &ObjectKey, out: &mut Effects) {
        let before = state.endpoint_slices.slices.remove(&NamespacedName::of(key));
        if let Some(service) = before.and_then(|slice| service_of(key, &slice)) {
            moved(state, key, service, out);
        }
    }
}

/// The slice no longer belongs to `service`.
fn moved(state: &mut State, key: &ObjectKey, service: NamespacedName, out: &mut Effects) {
    state.endpoint_slices.unlink(&service, &key.name);
    out.withdraw(Scope::EndpointSlices, &self::key(&key.namespace, &key.name));
    out.republish_service(service);
}

fn service_of(key: &ObjectKey, slice: &k8s::EndpointSlice) -> Option<NamespacedName> {
    let service = slice.metadata.labels.get(SERVICE_LABEL)?;
    Some(NamespacedName::new(&key.namespace, &(&**service).into()))
}

/// The name of a slice's key.
pub(super) fn key(namespace: &str, name: &str) -> Name {
    format!("{namespace}/{name}").into()
}

/// Whether readers accept the address in a slice of this type. They refuse the whole slice because of one other address.
fn is_readable(address: &str, kind: &str) -> bool {
    // As readers want it, Rust's addresses have no zone.
    match kind {
        "IPv4" => address.parse::<Ipv4Addr>().is_ok(),
        "IPv6" => address.parse::<Ipv6Addr>().is_ok(),
        _ => true,
    }
}

/// The value of a slice: protobuf in one zstd frame. Addresses that readers refuse are left out; `service::publish`
/// reports them.
pub(super) fn value<'a>(slice: &'a k8s::EndpointSlice, cluster: &ClusterInfo) -> Bytes {
    let meta = &slice.metadata;
    let addresses = |e: &'a k8s::SliceEndpoint| e.addresses.iter().filter(|a| is_readable(a, &slice.address_type));
    let readable = |e: &&'a k8s::SliceEndpoint| e.addresses.is_empty() || addresses(e).next().is_some();
    let endpoint = |e: &'a k8s::SliceEndpoint| slice::Endpoint {
        addresses: addresses(e).cloned().collect(),
        conditions: Some(slice::EndpointConditions {
            ready: e.conditions.ready,
            serving: e.conditions.serving,
            terminating: e.conditions.terminating,
        }),
        hostname: e.hostname.clone(),
        deprecated_topology: e.deprecated_topology.clone(),
        node_name: e.node_name.clone(),
        zone: e.zone.clone(),
        hints: e.hints.as_ref().map(|h| slice::EndpointHints {
            for_zones: h
                .for_zones
                .iter()
                .map(|z| slice::ForZone {
                    name: Some(z.name.clone()),
                })
                .collect(),
        }),
    };
    // The API server fills in these defaults; a manifest may leave them out.
    let port = |p: &k8s::SlicePort| slice::EndpointPort {
        name: Some(p.name.clone().unwrap_or_default()),
        protocol: Some(p.protocol.clone().unwrap_or_else(|| "TCP".to_owned())),
        port: p.port,
        app_protocol: p.app_protocol.clone(),
    };
    let message = slice::ClusterEndpointSlice {
        cluster: Some(cluster.name.to_string()),
        cluster_id: Some(cluster.id),
        namespace: Some(meta.namespace.clone()),
        name: Some(meta.name.clone()),
        labels: meta.labels.clone(),
        annotations: meta.annotations.clone(),
        address_type: Some(slice.address_type.clone()),
        endpoints: slice.endpoints.iter().filter(readable).map(endpoint).collect(),
        ports: slice.ports.iter().map(port).collect(),
    };
    let compressed = zstd::bulk::compress(&message.encode_to_vec(), 1);
    compressed.expect("compressing to memory cannot fail").into()
}
