//! Services: `cilium/state/services/v1/<cluster>/<namespace>/<name>` → frontends and backends of a global service.
//!
//! The value has the addresses of the service's EndpointSlices, and the slices and exports of a service are published
//! only while the service is, so [`publish`] decides about all of them.

use super::value::{Problems, is_external_name, json, port_u16};
use super::{
    Effects, Name, NamespacedName, Note, Resource, ServiceMode, State, endpoint_slice, of_namespace, service_export,
};
use crate::k8s::types::{self as k8s, ObjectKey};
use crate::model::cluster::ClusterInfo;
use crate::model::ip::GoIp;
use crate::model::keys::Scope;
use crate::model::values;
use crate::scope::Verdict;
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

#[derive(Default)]
pub(super) struct Services(BTreeMap<NamespacedName, k8s::Service>);

impl Services {
    pub(super) fn get(&self, name: &NamespacedName) -> Option<&k8s::Service> {
        self.0.get(name)
    }
}

impl Resource for Services {
    type Object = k8s::Service;
    const SCOPES: &'static [Scope] = &[Scope::Services, Scope::EndpointSlices, Scope::ServiceExports];

    fn apply(state: &mut State, key: &ObjectKey, service: k8s::Service, out: &mut Effects) {
        if is_shared(&service) && is_external_name(&service) {
            out.problem("the service is global, but an ExternalName service has no address to share".to_owned());
        }
        let name = NamespacedName::of(key);
        state.services.0.insert(name.clone(), service);
        publish(state, &name, out);
    }

    fn delete(state: &mut State, key: &ObjectKey, out: &mut Effects) {
        let name = NamespacedName::of(key);
        state.services.0.remove(&name);
        publish(state, &name, out);
    }

    fn namespace_changed(state: &mut State, namespace: &Name, out: &mut Effects) {
        let state = &*state;
        for (name, _) in of_namespace(&state.services.0, namespace) {
            publish(state, name, out);
        }
    }
}

/// Publishes or withdraws the keys of a service, of its slices and of its export, in this order.
pub(super) fn publish(state: &State, name: &NamespacedName, out: &mut Effects) {
    let cluster = &state.options.cluster;
    let service = state.services.get(name);
    let shared = service.filter(|s| is_shared(s) && state.namespaces.is_global(&name.namespace));
    let verdict = shared.and_then(|s| verdict(state, name, s));
    if state.exports.is_some() {
        note(state, name, verdict, out);
    }
    let slices = || state.endpoint_slices.of_service(name);
    match shared.filter(|s| has_own_key(state, s)) {
        Some(service) => {
            let value = value(service, slices(), cluster, &mut out.problems);
            out.export(Scope::Services, &name.key(), verdict, value);
        }
        None => out.withdraw(Scope::Services, &name.key()),
    }
    for slice in slices() {
        let key = endpoint_slice::key(&name.namespace, &slice.metadata.name);
        match shared {
            Some(_) => out.export(
                Scope::EndpointSlices,
                &key,
                verdict,
                endpoint_slice::value(slice, cluster),
            ),
            None => out.withdraw(Scope::EndpointSlices, &key),
        }
    }
    if state.service_exports.contains(name) {
        service_export::publish(state, name, out);
    }
}

/// Whether a global service has a key beside those of its slices.
fn has_own_key(state: &State, service: &k8s::Service) -> bool {
    state.options.service_mode != ServiceMode::OnlyEndpointSlice && !is_external_name(service)
}

/// What the scope says about a global service and its slices; `None` without a scope.
fn verdict(state: &State, name: &NamespacedName, service: &k8s::Service) -> Option<Verdict> {
    let exports = state.exports.as_ref()?;
    Some(exports.service(&name.namespace, &service.metadata.labels))
}

/// Notes what was decided about a global service, and the addresses behind it: those of all endpoints of its slices, so that
/// an address does not come and go with the readiness of its pod.
fn note(state: &State, name: &NamespacedName, verdict: Option<Verdict>, out: &mut Effects) {
    let slices = state.endpoint_slices.of_service(name);
    let addresses = || {
        let endpoints = slices.flat_map(|slice| &slice.endpoints);
        let addresses = endpoints
            .flat_map(|endpoint| &endpoint.addresses)
            .map(|a| GoIp::parse(a));
        let unique: BTreeSet<String> = addresses.filter(|a| a.0.is_some()).map(GoIp::text).collect();
        unique.into_iter().map(Name::from).collect()
    };
    let decided = verdict.map(|verdict| (verdict, if verdict.keeps() { addresses() } else { Box::default() }));
    let name = name.clone();
    out.notes.push(Note::Service { name, decided });
}

/// Publishes or withdraws the keys of a global service and of its slices if the scope decides otherwise than `before`.
pub(super) fn judge_again(state: &State, name: &NamespacedName, before: Verdict, out: &mut Effects) {
    let service = state.services.get(name);
    let Some(now) = service
        .and_then(|s| verdict(state, name, s))
        .filter(|now| *now != before)
    else {
        return;
    };
    if now.keeps() != before.keeps() {
        publish(state, name, out);
        return;
    }
    note(state, name, Some(now), out);
    let slices = state.endpoint_slices.of_service(name);
    let slices = slices.map(|slice| endpoint_slice::key(&name.namespace, &slice.metadata.name));
    let slices = slices.map(|key| (Scope::EndpointSlices, key));
    let own = service
        .filter(|s| has_own_key(state, s))
        .map(|_| (Scope::Services, name.key()));
    for (scope, name) in own.into_iter().chain(slices) {
        let verdict = now;
        out.notes.push(Note::Cause { scope, name, verdict });
    }
}

/// Whether the annotations make a service global and shared (Cilium: pkg/annotation/clustermesh.go).
fn is_shared(service: &k8s::Service) -> bool {
    let flag = |names: [&str; 2]| {
        let value = names.iter().find_map(|n| service.metadata.annotations.get(*n));
        value.map(|v| v.eq_ignore_ascii_case("true"))
    };
    flag(["service.cilium.io/global", "io.cilium/global-service"]) == Some(true)
        && flag(["service.cilium.io/shared", "io.cilium/shared-service"]) != Some(false)
}

/// The value of a shared service. `slices` come in the order of their names; the ports of an address that several of
/// them have are merged.
fn value<'a>(
    service: &k8s::Service,
    slices: impl Iterator<Item = &'a k8s::EndpointSlice>,
    cluster: &ClusterInfo,
    problems: &mut Problems,
) -> Bytes {
    let meta = &service.metadata;
    let mut value = values::Service {
        cluster: cluster.name.to_string(),
        namespace: meta.namespace.clone(),
        name: meta.name.clone(),
        frontends: frontends(service, problems),
        backends: BTreeMap::new(),
        hostnames: BTreeMap::new(),
        zones: BTreeMap::new(),
        labels: meta.labels.clone(),
        selector: service.spec.selector.clone(),
        include_external: true,
        shared: true,
        cluster_id: cluster.id,
    };
    for slice in slices.filter(|s| matches!(&*s.address_type, "IPv4" | "IPv6")) {
        add_backends(&mut value, slice, problems);
    }
    json(&value)
}

/// The cluster IPs. Readers refuse the whole service because of one invalid address, or one with a zone.
fn frontends(service: &k8s::Service, problems: &mut Problems) -> BTreeMap<String, values::Ports> {
    let spec = &service.spec;
    let label = service.metadata.labels.contains_key("service.kubernetes.io/headless");
    if label || spec.cluster_ip.eq_ignore_ascii_case("none") {
        return BTreeMap::new();
    }
    let port = |p: &k8s::ServicePort| {
        let port = values::Port {
            protocol: p.protocol.clone(),
            port: port_u16(p.port),
        };
        (p.name.clone(), port)
    };
    let ports: values::Ports = spec.ports.iter().map(port).collect();
    let addresses = match spec.cluster_ips.is_empty() {
        true => std::slice::from_ref(&spec.cluster_ip),
        false => &spec.cluster_ips,
    };
    let mut frontends = BTreeMap::new();
    for address in addresses {
        if address.parse::<IpAddr>().is_ok() {
            frontends.insert(address.clone(), ports.clone());
        } else if !address.is_empty() {
            problems.push(format!("cluster IP {address:?} is not an IP address without a zone"));
        }
    }
    frontends
}

fn add_backends(value: &mut values::Service, slice: &k8s::EndpointSlice, problems: &mut Problems) {
    let ports: values::Ports = slice
        .ports
        .iter()
        .filter_map(|p| {
            let protocol = p.protocol.clone().unwrap_or_else(|| "TCP".to_owned());
            let known = matches!(&*protocol, "TCP" | "UDP" | "SCTP");
            let port = port_u16(p.port.filter(|_| known)?);
            Some((p.name.clone().unwrap_or_default(), values::Port { protocol, port }))
        })
        .collect();
    // If several endpoints of a slice have the same address, the last one counts, whether it is usable or not.
    let mut endpoints: BTreeMap<String, &k8s::SliceEndpoint> = BTreeMap::new();
    for endpoint in &slice.endpoints {
        for address in &endpoint.addresses {
            let text = address.split_once('@').map_or(&**address, |(ip, _)| ip);
            let Ok(ip) = text.parse::<IpAddr>() else {
                let name = &slice.metadata.name;
                problems.push(format!(
                    "address {address:?} of EndpointSlice {name} is not an IP address without a zone"
                ));
                continue;
            };
            endpoints.insert(ip.to_string(), endpoint);
        }
    }
    let usable = |e: &k8s::SliceEndpoint| e.conditions.ready.unwrap_or(true) || e.conditions.serving.unwrap_or(true);
    for (ip, endpoint) in endpoints.into_iter().filter(|(_, e)| usable(e)) {
        value.backends.entry(ip.clone()).or_default().extend(ports.clone());
        if let Some(hostname) = endpoint.hostname.as_ref().filter(|h| !h.is_empty()) {
            value.hostnames.insert(ip.clone(), hostname.clone());
        }
        let old = endpoint.deprecated_topology.get("topology.kubernetes.io/zone");
        let zone = endpoint.zone.as_ref().filter(|z| !z.is_empty()).or(old);
        if let Some(zone) = zone.filter(|z| !z.is_empty()) {
            let hints = endpoint.hints.iter().flat_map(|h| &h.for_zones);
            let zone = values::Zone {
                zone: zone.clone(),
                for_zones: hints.map(|z| values::ForZone { name: z.name.clone() }).collect(),
            };
            value.zones.insert(ip, zone);
        }
    }
}
