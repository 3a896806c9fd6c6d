//! What must be true of clusters before they are connected. Without IO: a [`Profile`] is what was read of a cluster.
//!
//! Parity: the first findings of a pair are those of `cilium clustermesh connect`, in its order and words. Everything
//! after them is what that command does not look at, and what users then find out later (the complaints 3, 6 and 9 of
//! the field).

mod certificates;
mod networks;

use super::pki::{self, Material};
use crate::model::cluster::ClusterName;
use ipnet::IpNet;
use jiff::Timestamp;
use std::collections::BTreeMap;
use std::net::IpAddr;

/// A certificate with fewer days left is worth a warning.
pub const FEW_DAYS: i64 = 30;
/// The clusters' names for the store's certificate: any name below this domain.
const MESH_DOMAIN: &str = "mesh.cilium.io";
/// How clusters are made to trust each other.
pub const SHARE: &str = "connect with --share-ca";

/// What was read of one cluster. Empty fields are unknown and are not compared.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Profile {
    /// The context, for remedies.
    pub context: String,
    pub name: String,
    /// As in `cilium-config`: the text may be no number.
    pub id: String,
    pub max_clusters: u32,
    /// The version of the agents, such as `1.20.2`.
    pub version: String,
    /// `routing-mode`, `tunnel-protocol`, `identity-allocation-mode` and the settings of encryption.
    pub modes: BTreeMap<&'static str, String>,
    pub pod_cidrs: Vec<IpNet>,
    pub service_cidrs: Vec<IpNet>,
    pub nodes: BTreeMap<String, Vec<IpAddr>>,
    /// Hosts that other clusters dial: addresses, and names of load balancers.
    pub hosts: Vec<String>,
    /// `clustermesh-apiserver-server-cert`.
    pub server: Option<Material>,
    /// `clustermesh-apiserver-remote-cert`.
    pub remote: Option<Material>,
    /// The bundle that is used instead of `ca.crt` where the chart's `tls.caBundle` is on.
    pub bundle: Option<String>,
    /// The certificate of `cilium-ca`.
    pub authority: Option<String>,
    /// The authorities that this cluster trusts in the servers of single peers, by their names: after `connect --share-ca`.
    pub peer_authorities: BTreeMap<String, String>,
}

/// How grave a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Gravity {
    /// The clusters can be connected, and something will surprise.
    Warning,
    /// The connection would not work, or would damage what works.
    Fatal,
}

/// What the finding is about, so that commands can choose.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Topic {
    Identity,
    Version,
    Modes,
    Networks,
    Authority,
    Handshake,
    Expiry,
    Names,
}

/// A fault, and what to do about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    pub topic: Topic,
    pub gravity: Gravity,
    pub what: String,
    pub remedy: String,
}

/// Settings that must be equal in all clusters, and what happens otherwise.
const EQUAL: [(&str, Gravity, &str); 4] = [
    (
        "routing-mode",
        Gravity::Fatal,
        "pods of one cluster could not reach those of the other",
    ),
    (
        "tunnel-protocol",
        Gravity::Fatal,
        "nodes of the clusters could not read each other's packets",
    ),
    (
        "encryption",
        Gravity::Warning,
        "traffic between the clusters is encrypted in one direction, or dropped",
    ),
    (
        "identity-allocation-mode",
        Gravity::Warning,
        "the clusters keep their identities in different places",
    ),
];

fn fatal(topic: Topic, what: impl Into<String>, remedy: impl Into<String>) -> Finding {
    Finding {
        topic,
        gravity: Gravity::Fatal,
        what: what.into(),
        remedy: remedy.into(),
    }
}

fn warning(topic: Topic, what: impl Into<String>, remedy: impl Into<String>) -> Finding {
    Finding {
        gravity: Gravity::Warning,
        ..fatal(topic, what, remedy)
    }
}

/// The findings about two clusters that are to be connected, the local one first.
pub fn pair(local: &Profile, remote: &Profile, now: Timestamp) -> Vec<Finding> {
    let mut findings = identities(local, remote);
    findings.extend(versions(local, remote));
    findings.extend(modes(local, remote));
    findings.extend(networks::overlaps(local, remote));
    findings.extend(certificates::authorities(local, remote));
    for (client, server) in [(local, remote), (remote, local)] {
        findings.extend(certificates::handshake(client, server, now));
    }
    findings
}

/// The findings about one cluster alone.
pub fn alone(cluster: &Profile, now: Timestamp) -> Vec<Finding> {
    let mut findings: Vec<_> = own_identity(cluster).into_iter().collect();
    for (what, material) in [("server", &cluster.server), ("remote", &cluster.remote)] {
        let Some(material) = material else { continue };
        let secret = format!("Secret clustermesh-apiserver-{what}-cert of cluster {}", cluster.name);
        findings.extend(certificates::expiry(&secret, "tls.crt", &material.cert, now));
        // With a bundle, nobody reads this key.
        if cluster.bundle.is_none() {
            findings.extend(certificates::expiry(&secret, "ca.crt", &material.ca, now));
        }
    }
    if let Some(bundle) = &cluster.bundle {
        // An authority that has ended harms nobody beside one that lives; the handshakes tell otherwise.
        let of_bundle = certificates::expiry(
            &format!("CA bundle of cluster {}", cluster.name),
            "content",
            bundle,
            now,
        );
        let is_readable = pki::certificates(bundle).is_ok();
        findings.extend(of_bundle.into_iter().map(|finding| Finding {
            gravity: if is_readable { Gravity::Warning } else { finding.gravity },
            remedy: "replace the certificate in the bundle (tls.caBundle) of every cluster".to_owned(),
            ..finding
        }));
    }
    if let Some(authority) = &cluster.authority {
        findings.extend(certificates::expiry(
            &format!("Secret cilium-ca of cluster {}", cluster.name),
            "ca.crt",
            authority,
            now,
        ));
    }
    findings.extend(certificates::names(cluster));
    findings
}

/// The findings about all pairs of `clusters`, each once; the order of the clusters decides who is called local.
pub fn mesh(clusters: &[&Profile], now: Timestamp) -> Vec<Finding> {
    let mut findings: Vec<Finding> = vec![];
    let single = clusters.iter().flat_map(|cluster| alone(cluster, now));
    let pairs = clusters.iter().enumerate().flat_map(|(at, local)| {
        clusters[at + 1..]
            .iter()
            .flat_map(move |remote| pair(local, remote, now))
    });
    for finding in single.chain(pairs) {
        if !findings.contains(&finding) {
            findings.push(finding);
        }
    }
    findings
}

fn own_identity(cluster: &Profile) -> Option<Finding> {
    let is_default = matches!(cluster.name.as_str(), "" | "default") || matches!(cluster.id.as_str(), "" | "0");
    if !is_default {
        return ClusterName::new(&cluster.name).err().map(|why| {
            fatal(
                Topic::Identity,
                format!("cluster of context {}: {why}", cluster.context),
                rename(cluster),
            )
        });
    }
    Some(fatal(
        Topic::Identity,
        format!(
            "local cluster has the default name (cluster name: {}) and/or ID 0 (cluster ID: {})",
            cluster.name, cluster.id
        ),
        rename(cluster),
    ))
}

/// How to give a cluster another name or id.
fn rename(cluster: &Profile) -> String {
    format!(
        "set the values cluster.name and cluster.id of the Cilium chart in context {}, each different in every cluster, and \
         restart all pods: their identities contain them",
        cluster.context
    )
}

fn identities(local: &Profile, remote: &Profile) -> Vec<Finding> {
    let (l, r) = (local, remote);
    let bad = |what: String, of: &Profile| fatal(Topic::Identity, what, rename(of));
    let mut findings = vec![];
    if matches!(r.name.as_str(), "" | "default") || matches!(r.id.as_str(), "" | "0") {
        findings.push(bad(
            format!("remote cluster has non-unique name ({}) and/or ID ({})", r.name, r.id),
            r,
        ));
    }
    findings.extend(own_identity(l));
    if !r.name.is_empty() && r.name != "default" && ClusterName::new(&r.name).is_err() {
        findings.extend(own_identity(&Profile {
            id: "1".to_owned(),
            ..r.clone()
        }));
    }
    match r.id.parse::<u32>() {
        Err(_) if r.id.is_empty() => {}
        Err(_) => findings.push(bad(
            format!(
                "remote cluster has non-numeric cluster ID {}. Only numeric values 1-255 are allowed",
                r.id
            ),
            r,
        )),
        Ok(id) if id > l.max_clusters => findings.push(bad(
            format!(
                "remote cluster has cluster ID {id} out of acceptable range (1-{})",
                l.max_clusters
            ),
            r,
        )),
        Ok(_) => {}
    }
    if r.max_clusters != l.max_clusters {
        findings.push(fatal(
            Topic::Identity,
            format!(
                "remote and local clusters have different max connected clusters: {} != {}",
                r.max_clusters, l.max_clusters
            ),
            "clustermesh.maxConnectedClusters must be the same in all clusters and cannot be changed while a cluster lives",
        ));
    }
    if r.name == l.name {
        findings.push(bad(
            format!("remote and local cluster have the same, non-unique name: {}", r.name),
            r,
        ));
    }
    if r.id == l.id {
        findings.push(bad(
            format!("remote and local cluster have the same, non-unique ID: {}", r.id),
            r,
        ));
    }
    findings
}

/// Major and minor of a version.
fn minor(version: &str) -> Option<(u32, u32)> {
    let mut parts = version.trim_start_matches('v').split(['.', '-', '+']);
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

fn versions(local: &Profile, remote: &Profile) -> Option<Finding> {
    let (l, r) = (minor(&local.version)?, minor(&remote.version)?);
    (l.0 != r.0 || l.1.abs_diff(r.1) > 1).then(|| {
        let older = if l < r { local } else { remote };
        fatal(
            Topic::Version,
            format!(
                "Cilium is {} in cluster {} and {} in cluster {}: more than one minor release apart",
                local.version, local.name, remote.version, remote.name
            ),
            format!("upgrade Cilium in cluster {} first", older.name),
        )
    })
}

fn modes(local: &Profile, remote: &Profile) -> Vec<Finding> {
    let differs = |(mode, gravity, effect): &(&'static str, Gravity, &str)| {
        let (l, r) = (local.modes.get(mode)?, remote.modes.get(mode)?);
        (l != r).then(|| Finding {
            topic: Topic::Modes,
            gravity: *gravity,
            what: format!(
                "{mode} is {l} in cluster {} and {r} in cluster {}: {effect}",
                local.name, remote.name
            ),
            remedy: format!("give both clusters the same {mode}"),
        })
    };
    EQUAL.iter().filter_map(differs).collect()
}

#[cfg(test)]
mod tests;
