//! CiliumNodes: `cilium/state/nodes/v1/<cluster>/<node>`. Every node is published; nodes have no namespace.
//!
//! Cilium: pkg/node/types/node.go, `ParseCiliumNode`.

use super::value::{Problems, json, narrow_u8};
use super::{Effects, Resource, State};
use crate::k8s::types::{self as k8s, ObjectKey};
use crate::model::cluster::ClusterInfo;
use crate::model::ip::{Cidr, GoIp};
use crate::model::keys::Scope;
use crate::model::values;
use bytes::Bytes;

pub(super) struct Nodes;

impl Resource for Nodes {
    type Object = k8s::CiliumNode;
    const SCOPES: &'static [Scope] = &[Scope::Nodes];

    fn apply(state: &mut State, key: &ObjectKey, node: k8s::CiliumNode, out: &mut Effects) {
        let value = value(&node, &state.options.cluster, &mut out.problems);
        out.upsert(Scope::Nodes, &key.name, value);
    }

    fn delete(_: &mut State, key: &ObjectKey, out: &mut Effects) {
        out.delete(Scope::Nodes, &key.name);
    }
}

fn value(node: &k8s::CiliumNode, cluster: &ClusterInfo, problems: &mut Problems) -> Bytes {
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
        encryption_key: narrow_u8(spec.encryption.key, "encryption key", problems),
        labels: non_empty(&node.metadata.labels),
        annotations: non_empty(&node.metadata.annotations),
        wireguard_pub_key: key
            .or_else(|| annotation("io.cilium.network.wg-pub-key"))
            .unwrap_or_default(),
        boot_id: spec.boot_id.clone(),
    })
}

fn non_empty(map: &k8s::Strings) -> Option<k8s::Strings> {
    (!map.is_empty()).then(|| map.clone())
}
