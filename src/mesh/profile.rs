//! What checks compare of a cluster, taken from its objects.

use super::checks::Profile;
use super::endpoints;
use super::facts::{Facts, secret};
use super::pki::Material;
use super::record::Record;
use ipnet::IpNet;
use k8s_openapi::api::core::v1::Node;
use std::collections::BTreeMap;
use std::net::IpAddr;

/// The profile of a cluster.
pub fn of(facts: &Facts) -> Profile {
    Profile {
        context: facts.context.clone(),
        name: facts.setting("cluster-name").to_owned(),
        id: facts.setting("cluster-id").to_owned(),
        max_clusters: facts.max_connected().unwrap_or_default(),
        version: facts
            .cilium_version()
            .map(|version| version.to_string())
            .unwrap_or_default(),
        modes: modes(facts),
        pod_cidrs: pod_cidrs(facts),
        service_cidrs: vec![],
        nodes: facts
            .nodes
            .iter()
            .filter_map(|node| Some((node.metadata.name.clone()?, internal(node))))
            .collect(),
        hosts: endpoints::dialled(facts),
        server: material(facts, secret::SERVER),
        remote: secret::DEPRECATED_REMOTE
            .into_iter()
            .fold(material(facts, secret::REMOTE), |found, name| {
                found.or_else(|| material(facts, name))
            }),
        bundle: facts.bundle.as_ref().and_then(|bundle| bundle.pem.clone()),
        authority: ["ca.crt", "tls.crt"]
            .into_iter()
            .find_map(|key| facts.secret_text(secret::CA, key))
            .map(str::to_owned),
        peer_authorities: peer_authorities(facts),
    }
}

/// The authorities of the peers that were connected with other ones than those of this cluster.
fn peer_authorities(facts: &Facts) -> BTreeMap<String, String> {
    let record = Record::read(facts).unwrap_or_default();
    let peers = record.peers.into_iter();
    peers
        .filter_map(|(name, peer)| Some((name, peer.authorities?)))
        .collect()
}

/// The settings that must be equal, as far as they are known.
fn modes(facts: &Facts) -> BTreeMap<&'static str, String> {
    let mut modes = BTreeMap::new();
    if facts.cilium_config.is_none() {
        return modes;
    }
    let or = |key, default: &str| match facts.setting(key) {
        "" => default.to_owned(),
        value => value.to_owned(),
    };
    let routing = or("routing-mode", "tunnel");
    if routing == "tunnel" {
        modes.insert("tunnel-protocol", or("tunnel-protocol", "vxlan"));
    }
    modes.insert("routing-mode", routing);
    modes.insert("identity-allocation-mode", or("identity-allocation-mode", "crd"));
    let kinds = [
        ("enable-wireguard", "wireguard"),
        ("enable-ipsec", "ipsec"),
        ("enable-ztunnel", "ztunnel"),
    ];
    let on = kinds.iter().find(|(key, _)| facts.setting(key) == "true");
    modes.insert("encryption", on.map_or("off", |(_, kind)| *kind).to_owned());
    modes
}

/// The networks of the pods, as few as possible.
fn pod_cidrs(facts: &Facts) -> Vec<IpNet> {
    let pools = ["cluster-pool-ipv4-cidr", "cluster-pool-ipv6-cidr"].map(|key| facts.setting(key));
    let pools = pools.iter().flat_map(|text| text.split([' ', ',']));
    let agents = facts
        .cilium_nodes
        .iter()
        .flat_map(|node| &node.pod_cidrs)
        .map(String::as_str);
    // Kubernetes may give networks to nodes that Cilium does not use.
    let is_used = facts.setting("ipam") == "kubernetes";
    let nodes = facts
        .nodes
        .iter()
        .filter(|_| is_used)
        .filter_map(|node| node.spec.as_ref());
    let nodes = nodes.flat_map(|spec| {
        let many = spec.pod_cidrs.iter().flatten();
        many.chain(&spec.pod_cidr).map(String::as_str)
    });
    let all: Vec<IpNet> = pools
        .chain(agents)
        .chain(nodes)
        .filter_map(|text| text.trim().parse().ok())
        .collect();
    IpNet::aggregate(&all)
}

/// The addresses at which nodes send each other packets.
pub fn internal(node: &Node) -> Vec<IpAddr> {
    let addresses = node.status.as_ref().and_then(|status| status.addresses.as_ref());
    let internal = addresses
        .into_iter()
        .flatten()
        .filter(|address| address.type_ == "InternalIP");
    internal.filter_map(|address| address.address.parse().ok()).collect()
}

fn material(facts: &Facts, name: &str) -> Option<Material> {
    let text = |key| facts.secret_text(name, key).map(str::to_owned);
    Some(Material {
        cert: text("tls.crt")?,
        key: text("tls.key")?,
        ca: text("ca.crt").unwrap_or_default(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn facts(config: &Value, more: &Value) -> Facts {
        let mut facts = json!({"context": "tokyo", "ciliumConfig": {"data": config}});
        facts.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        serde_json::from_value(facts).unwrap()
    }

    #[test]
    fn the_networks_of_pods_are_those_that_cilium_uses() {
        let nodes = json!({"nodes": [{"metadata": {"name": "n1"}, "spec": {"podCIDRs": ["10.244.0.0/24", "fd00::/64"]},
            "status": {"addresses": [{"type": "InternalIP", "address": "10.13.1.243"},
                {"type": "Hostname", "address": "n1"}]}}],
            "ciliumNodes": [{"name": "n1", "podCidrs": ["10.245.1.0/24"]}]});
        let pool = profile(
            &json!({"ipam": "cluster-pool", "cluster-pool-ipv4-cidr": "10.245.0.0/16 10.246.0.0/16"}),
            &nodes,
        );
        assert_eq!(pool, ["10.245.0.0/16", "10.246.0.0/16"]);
        let kubernetes = profile(&json!({"ipam": "kubernetes"}), &nodes);
        assert_eq!(kubernetes, ["10.244.0.0/24", "10.245.1.0/24", "fd00::/64"]);
        let of = of(&facts(&json!({}), &nodes));
        assert_eq!(of.nodes["n1"], ["10.13.1.243".parse::<IpAddr>().unwrap()]);
    }

    fn profile(config: &Value, more: &Value) -> Vec<String> {
        of(&facts(config, more))
            .pod_cidrs
            .iter()
            .map(ToString::to_string)
            .collect()
    }

    #[test]
    fn settings_that_are_absent_have_ciliums_defaults() {
        let none = json!({});
        let modes = of(&facts(&json!({"enable-wireguard": "true"}), &none)).modes;
        assert_eq!(modes["routing-mode"], "tunnel");
        assert_eq!(modes["tunnel-protocol"], "vxlan");
        assert_eq!(modes["identity-allocation-mode"], "crd");
        assert_eq!(modes["encryption"], "wireguard");
        let native = of(&facts(
            &json!({"routing-mode": "native", "tunnel-protocol": "geneve"}),
            &none,
        ))
        .modes;
        assert!(!native.contains_key("tunnel-protocol") && native["encryption"] == "off");
    }
}
