//! Pod networks and node addresses must be different in the whole mesh.

use super::{Finding, Profile, Topic, fatal};
use ipnet::IpNet;

fn overlap(one: &IpNet, other: &IpNet) -> bool {
    one.contains(other) || other.contains(one)
}

/// Networks and addresses that both clusters use.
pub(super) fn overlaps(local: &Profile, remote: &Profile) -> Vec<Finding> {
    let mut findings = vec![];
    for l in &local.pod_cidrs {
        for r in remote.pod_cidrs.iter().filter(|r| overlap(l, r)) {
            findings.push(fatal(
                Topic::Networks,
                format!(
                    "the pod networks {l} of cluster {} and {r} of cluster {} overlap",
                    local.name, remote.name
                ),
                "give one of the clusters another pod network; its nodes and pods must be made anew",
            ));
        }
    }
    for (cluster, other) in [(local, remote), (remote, local)] {
        for (node, addresses) in &cluster.nodes {
            let inside = addresses.iter().find_map(|ip| {
                let cidr = other.pod_cidrs.iter().find(|cidr| cidr.contains(ip))?;
                Some((ip, cidr))
            });
            if let Some((ip, cidr)) = inside {
                findings.push(fatal(
                    Topic::Networks,
                    format!(
                        "the address {ip} of node {node} of cluster {} is in the pod network {cidr} of cluster {}",
                        cluster.name, other.name
                    ),
                    format!("give cluster {} another pod network", other.name),
                ));
            }
        }
    }
    let shared = local.nodes.iter().find_map(|(node, addresses)| {
        let found = addresses.iter().find_map(|ip| {
            let (other, _) = remote.nodes.iter().find(|(_, theirs)| theirs.contains(ip))?;
            Some((*ip, other.clone()))
        });
        found.map(|(ip, other)| (node.clone(), ip, other))
    });
    if let Some((node, ip, other)) = shared {
        findings.push(fatal(
            Topic::Networks,
            format!(
                "node {node} of cluster {} and node {other} of cluster {} have the same address {ip}",
                local.name, remote.name
            ),
            "nodes of all clusters must reach each other by addresses that are different in the whole mesh",
        ));
    }
    findings
}
