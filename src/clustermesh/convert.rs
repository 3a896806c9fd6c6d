//! From one object to its values. Pure functions; what is wrong with an object goes to `problems`.

use super::owners::Name;
use crate::k8s::types as k8s;
use crate::model::cluster::ClusterInfo;
use crate::model::gojson;
use crate::model::ip::{Cidr, GoIp};
use crate::model::values::{self, slice};
use bytes::Bytes;
use prost::Message;
use serde::Serialize;
use std::collections::BTreeMap;
use std::net::IpAddr;

/// Collects what is wrong with an object, in words for its owner.
pub(super) type Problems = Vec<String>;

fn non_empty(map: &k8s::Strings) -> Option<k8s::Strings> {
    (!map.is_empty()).then(|| map.clone())
}

fn json(value: &impl Serialize) -> Bytes {
    let mut json = gojson::to_vec(value);
    // It is kept for long.
    json.shrink_to_fit();
    json.into()
}

/// Cilium narrows integers as Go's conversions do; ours says so.
macro_rules! wrap {
    ($value:expr, $type:ty) => {
        ($value & i64::from(<$type>::MAX)) as $type
    };
    ($value:expr, $type:ty, $what:literal, $problems:expr) => {{
        let (value, most) = ($value, i64::from(<$type>::MAX));
        if !(0..=most).contains(&value) {
            $problems.push(format!("its {} {value} is not from 0 to {most}, and is cut", $what));
        }
        wrap!(value, $type)
    }};
}

/// The value of a node (Cilium: pkg/node/types/node.go, ParseCiliumNode).
pub(super) fn node(node: &k8s::CiliumNode, cluster: &ClusterInfo, problems: &mut Problems) -> Bytes {
    let spec = &node.spec;
    let addresses: Vec<_> = spec
        .addresses
        .iter()
        .filter_map(|a| {
            let ip = GoIp::parse(&a.ip);
            if ip.0.is_none() {
                problems.push(format!("address {:?} is not an IP address", a.ip));
                return None;
            }
            Some(values::NodeAddress {
                kind: a.kind.clone(),
                ip,
            })
        })
        .collect();
    let pools = spec.ipam.pools.allocated.iter().flat_map(|p| &p.cidrs);
    let (mut v4, mut v6) = (vec![], vec![]);
    for text in spec.ipam.pod_cidrs.iter().chain(pools) {
        match Cidr::parse(text) {
            Some(cidr) if cidr.is_v4() => v4.push(cidr),
            Some(cidr) => v6.push(cidr),
            None => problems.push(format!("pod CIDR {text:?} is not a network")),
        }
    }
    let first_and_rest = |mut all: Vec<Cidr>| {
        let rest = if all.len() > 1 { Some(all.split_off(1)) } else { None };
        (all.pop(), rest)
    };
    let (ipv4_alloc_cidr, ipv4_secondary_alloc_cidrs) = first_and_rest(v4);
    let (ipv6_alloc_cidr, ipv6_secondary_alloc_cidrs) = first_and_rest(v6);
    let annotation = |name: &str| node.metadata.annotations.get(name).cloned();
    let key = annotation("network.cilium.io/wg-pub-key");
    json(&values::Node {
        name: node.metadata.name.clone(),
        cluster: cluster.name.to_string(),
        ip_addresses: (!addresses.is_empty()).then_some(addresses),
        ipv4_alloc_cidr,
        ipv4_secondary_alloc_cidrs,
        ipv6_alloc_cidr,
        ipv6_secondary_alloc_cidrs,
        ipv4_health_ip: GoIp::parse(&spec.health.ipv4),
        ipv6_health_ip: GoIp::parse(&spec.health.ipv6),
        ipv4_ingress_ip: GoIp::parse(&spec.ingress.ipv4),
        ipv6_ingress_ip: GoIp::parse(&spec.ingress.ipv6),
        cluster_id: cluster.id,
        source: "custom-resource",
        encryption_key: wrap!(spec.encryption.key, u8, "encryption key", problems),
        labels: non_empty(&node.metadata.labels),
        annotations: non_empty(&node.metadata.annotations),
        wireguard_pub_key: key
            .or_else(|| annotation("io.cilium.network.wg-pub-key"))
            .unwrap_or_default(),
        boot_id: spec.boot_id.clone(),
    })
}

/// The label of an identity that names its namespace.
pub(super) const NAMESPACE_LABEL: &str = "k8s:io.kubernetes.pod.namespace";

/// The value of an identity: its labels, sorted by key without source (pkg/labels/labels.go).
pub(super) fn identity(labels: &k8s::Strings) -> Bytes {
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
        // A reserved label without a key has it in the value.
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

/// One endpoint, of either kind of object.
pub(super) struct Endpoint<'a> {
    pub(super) namespace: &'a str,
    pub(super) pod: &'a str,
    pub(super) identity: i64,
    pub(super) networking: &'a k8s::Networking,
    pub(super) encryption_key: i64,
    pub(super) service_account: &'a str,
    pub(super) named_ports: &'a [k8s::NamedPort],
}

/// An endpoint's addresses, as key names, with their values.
pub(super) fn endpoint(endpoint: &Endpoint<'_>, problems: &mut Problems) -> Vec<(Name, Bytes)> {
    let host_ip = GoIp::parse(&endpoint.networking.node);
    let texts = endpoint
        .networking
        .addressing
        .iter()
        .flat_map(|pair| [&pair.ipv4, &pair.ipv6]);
    let mut entries = vec![];
    for text in texts.filter(|t| !t.is_empty()) {
        let ip = GoIp::parse(text);
        if ip.0.is_none() {
            // Cilium writes it under the key `<nil>`, which readers reject, and where two collide.
            problems.push(format!(
                "address {text:?} of pod {:?} is not an IP address",
                endpoint.pod
            ));
            continue;
        }
        let mut named_ports = vec![];
        for port in endpoint.named_ports {
            let Ok(number) = u16::try_from(port.port) else {
                problems.push(format!("port {} of pod {:?} is not a port", port.port, endpoint.pod));
                continue;
            };
            named_ports.push(values::NamedPort {
                name: port.name.clone(),
                port: number,
                protocol: port.protocol.clone(),
            });
        }
        let value = values::IpIdentity {
            ip,
            mask: None,
            host_ip,
            id: wrap!(endpoint.identity, u32, "identity", problems),
            key: wrap!(endpoint.encryption_key, u8, "encryption key", problems),
            metadata: "",
            k8s_namespace: endpoint.namespace.to_owned(),
            k8s_pod_name: endpoint.pod.to_owned(),
            k8s_service_account: endpoint.service_account.to_owned(),
            named_ports,
        };
        entries.push((ip.text().into(), json(&value)));
    }
    entries
}

/// The addresses of all endpoints of a slice, as key names, with their values.
pub(super) fn endpoints_of_slice(slice: &k8s::CiliumEndpointSlice, problems: &mut Problems) -> Vec<(Name, Bytes)> {
    let one = |e: &k8s::CoreEndpoint, problems: &mut Problems| {
        let of = Endpoint {
            namespace: &slice.namespace,
            pod: &e.name,
            identity: e.id,
            networking: &e.networking,
            encryption_key: e.encryption.key,
            service_account: &e.service_account,
            named_ports: &e.named_ports,
        };
        endpoint(&of, problems)
    };
    slice.endpoints.iter().flat_map(|e| one(e, problems)).collect()
}

/// Whether a service is global and shared, by its annotations (pkg/annotation/clustermesh.go).
pub(super) fn is_shared(service: &k8s::Service) -> bool {
    let flag = |names: [&str; 2]| {
        let value = names.iter().find_map(|n| service.metadata.annotations.get(*n));
        value.map(|v| v.eq_ignore_ascii_case("true"))
    };
    flag(["service.cilium.io/global", "io.cilium/global-service"]) == Some(true)
        && flag(["service.cilium.io/shared", "io.cilium/shared-service"]) != Some(false)
}

/// Whether a service only names something outside the cluster. Cilium exports it with an empty address, for
/// which readers reject the whole entry.
pub(super) fn is_name_outside(service: &k8s::Service) -> bool {
    service.spec.kind == "ExternalName"
}

/// The value of a shared service with the backends of its slices, which come in name order: where
/// slices share an address, their ports add up.
pub(super) fn service<'a>(
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
        frontends: frontends(service),
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

fn frontends(service: &k8s::Service) -> BTreeMap<String, values::Ports> {
    let spec = &service.spec;
    let label = service.metadata.labels.contains_key("service.kubernetes.io/headless");
    if label || spec.cluster_ip.eq_ignore_ascii_case("none") {
        return BTreeMap::new();
    }
    let port = |p: &k8s::ServicePort| {
        let port = values::Port {
            protocol: p.protocol.clone(),
            port: wrap!(i64::from(p.port), u16),
        };
        (p.name.clone(), port)
    };
    let ports: values::Ports = spec.ports.iter().map(port).collect();
    let addresses = match spec.cluster_ips.is_empty() {
        true => std::slice::from_ref(&spec.cluster_ip),
        false => &spec.cluster_ips,
    };
    addresses.iter().map(|ip| (ip.clone(), ports.clone())).collect()
}

fn add_backends(value: &mut values::Service, slice: &k8s::EndpointSlice, problems: &mut Problems) {
    let ports: values::Ports = slice
        .ports
        .iter()
        .filter_map(|p| {
            let protocol = p.protocol.clone().unwrap_or_else(|| "TCP".to_owned());
            let known = matches!(&*protocol, "TCP" | "UDP" | "SCTP");
            let port = wrap!(i64::from(p.port.filter(|_| known)?), u16);
            Some((p.name.clone().unwrap_or_default(), values::Port { protocol, port }))
        })
        .collect();
    // The last endpoint of a slice that has an address is the one that counts, usable or not.
    let mut endpoints: BTreeMap<String, &k8s::SliceEndpoint> = BTreeMap::new();
    for endpoint in &slice.endpoints {
        for address in &endpoint.addresses {
            let text = address.split_once('@').map_or(&**address, |(ip, _)| ip);
            let Ok(ip) = text.parse::<IpAddr>() else {
                let name = &slice.metadata.name;
                problems.push(format!(
                    "address {address:?} of EndpointSlice {name} is not an IP address"
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

/// The value of a slice: protobuf in one zstd frame, as Cilium 1.20 exports it.
pub(super) fn endpoint_slice(slice: &k8s::EndpointSlice, cluster: &ClusterInfo) -> Bytes {
    let meta = &slice.metadata;
    let endpoint = |e: &k8s::SliceEndpoint| slice::Endpoint {
        addresses: e.addresses.clone(),
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
    // The API server fills in what a manifest may leave out.
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
        endpoints: slice.endpoints.iter().map(endpoint).collect(),
        ports: slice.ports.iter().map(port).collect(),
    };
    let compressed = zstd::bulk::compress(&message.encode_to_vec(), 1);
    compressed.expect("compressing to memory cannot fail").into()
}

/// The value of an export with its service; none for one that has no addresses of its own.
pub(super) fn service_export(
    export: &k8s::ServiceExport,
    service: &k8s::Service,
    cluster: &ClusterInfo,
) -> Option<Bytes> {
    let spec = &service.spec;
    if is_name_outside(service) {
        return None;
    }
    let meta = &export.metadata;
    let port = |p: &k8s::ServicePort| values::ExportPort {
        name: p.name.clone(),
        protocol: p.protocol.clone(),
        app_protocol: p.app_protocol.clone(),
        port: p.port,
    };
    let timeout = spec.session_affinity_config.client_ip.timeout_seconds;
    let created = meta.creation_timestamp.as_ref();
    Some(json(&values::ServiceExport {
        cluster: cluster.name.to_string(),
        name: meta.name.clone(),
        namespace: meta.namespace.clone(),
        annotations: export.spec.exported_annotations.clone(),
        labels: export.spec.exported_labels.clone(),
        old_labels: export.spec.exported_labels.clone(),
        old_annotations: export.spec.exported_annotations.clone(),
        export_creation_timestamp: created.map(|t| t.0.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()),
        ports: spec.ports.iter().map(port).collect(),
        kind: if spec.cluster_ip == "None" {
            "Headless"
        } else {
            "ClusterSetIP"
        },
        session_affinity: spec.session_affinity.clone(),
        session_affinity_config: timeout.map(|timeout_seconds| values::SessionAffinityConfig {
            client_ip: values::ClientIp { timeout_seconds },
        }),
        ip_families: spec.ip_families.clone(),
        internal_traffic_policy: spec.internal_traffic_policy.clone(),
        traffic_distribution: spec.traffic_distribution.clone(),
    }))
}
