//! What speaks against a connection of clusters: how they are set up, and what they already know or lack.

use super::plan::{Edge, Member, profile_of, trusting};
use crate::mesh::checks::{self, Finding, Gravity, Profile, Topic};
use crate::mesh::facts::{MirrorMode, Version, secret};
use crate::mesh::objects;
use crate::mesh::record::Record;
use crate::mesh::trust;
use jiff::Timestamp;
use std::collections::{BTreeMap, BTreeSet};

/// The first Cilium whose agents and mirrors read the addresses of a host from the client file.
const WITH_ALIASES: Version = Version { major: 1, minor: 20 };

/// What speaks against connecting the members, or should be known.
pub(super) fn findings(
    members: &[Member],
    edges: &[Edge],
    records: &[Record],
    adopt: bool,
    now: Timestamp,
) -> Vec<Finding> {
    let profiles: Vec<Profile> = members.iter().map(profile_of).collect();
    let mut found: Vec<Finding> = vec![];
    let mut add = |finding: Finding| {
        if !found.contains(&finding) {
            found.push(finding);
        }
    };
    for at in 0..members.len() {
        for other in at + 1..members.len() {
            let is_edge =
                |edge: &&Edge| [edge.reader, edge.read] == [at, other] || [edge.reader, edge.read] == [other, at];
            let between: Vec<Edge> = edges.iter().filter(is_edge).copied().collect();
            let (mut local, mut remote) = (profiles[at].clone(), profiles[other].clone());
            // Handshakes are tried below, with the trust that the clusters will have.
            (local.server, local.remote, remote.server, remote.remote) = (None, None, None, None);
            let pair = checks::pair(&local, &remote, now).into_iter();
            let is_near = !between.is_empty();
            pair.filter(|finding| is_near || finding.topic == Topic::Identity)
                .filter(|finding| finding.topic != Topic::Authority)
                .for_each(&mut add);
            for edge in between {
                let (reader, read) = trusting(&profiles, records, members, edge);
                let tried: Vec<_> = checks::pair(&reader, &read, now).into_iter().collect();
                let refuses = tried.iter().any(|finding| finding.topic == Topic::Handshake);
                tried
                    .into_iter()
                    .filter(|finding| match finding.topic {
                        Topic::Handshake => true,
                        // One direction tells of both.
                        Topic::Authority => refuses && edge.reader == at,
                        _ => false,
                    })
                    .for_each(&mut add);
            }
        }
    }
    profiles
        .iter()
        .flat_map(|profile| checks::alone(profile, now))
        .for_each(&mut add);
    members.iter().flat_map(known_peers).for_each(&mut add);
    conflicts(members, edges, adopt).into_iter().for_each(&mut add);
    members.iter().filter_map(unknown_ids).for_each(&mut add);
    lacking(members, edges).into_iter().for_each(&mut add);
    members.iter().filter_map(absent_bundle).for_each(&mut add);
    found
}

fn fatal(topic: Topic, what: String, remedy: String) -> Finding {
    Finding {
        topic,
        gravity: Gravity::Fatal,
        what,
        remedy,
    }
}

/// Conflicts of the members with clusters that were connected before.
fn known_peers(member: &Member) -> Vec<Finding> {
    let own = (member.facts.name(), member.facts.id());
    let mut owners: BTreeMap<u32, &str> = own.1.map(|id| (id, own.0)).into_iter().collect();
    let mut found = vec![];
    for (name, peer) in &member.record.peers {
        match owners.insert(peer.id, name) {
            Some(other) if peer.id != 0 => found.push(fatal(
                Topic::Identity,
                format!(
                    "clusters {other} and {name}, which cluster {} knows, have the same, non-unique ID: {}",
                    own.0, peer.id
                ),
                format!("give one of them another cluster.id, or disconnect it: --destination-name {name}"),
            )),
            _ => {}
        }
    }
    found
}

/// Conflicts between the members and the clusters that each of them already knows.
fn conflicts(members: &[Member], edges: &[Edge], adopt: bool) -> Vec<Finding> {
    let mut found = vec![];
    for edge in edges {
        let (reader, read) = (&members[edge.reader], &members[edge.read]);
        let (name, id) = (read.facts.name(), read.facts.id().unwrap_or_default());
        found.extend(replaced(reader, read, adopt));
        for (known, known_id) in reader.known() {
            if known == name && known_id != id && known_id != 0 && id != 0 {
                found.push(fatal(
                    Topic::Identity,
                    format!(
                        "a cluster {name} with the ID {known_id} is connected to cluster {} already, and this cluster {name} \
                         has the ID {id}",
                        reader.facts.name()
                    ),
                    format!(
                        "give the new cluster another cluster.name, or disconnect the other one first: disconnect --context {} \
                         --destination-name {name}",
                        reader.facts.context
                    ),
                ));
            }
            if known != name && known_id == id && id != 0 {
                found.push(fatal(
                    Topic::Identity,
                    format!(
                        "cluster {name} has the ID {id}, which is that of cluster {known}, to which cluster {} is connected",
                        reader.facts.name()
                    ),
                    format!("give cluster {name} another cluster.id, or disconnect {known} first"),
                ));
            }
        }
    }
    found
}

/// A client file of another tool for another cluster of this name.
fn replaced(reader: &Member, read: &Member, adopt: bool) -> Option<Finding> {
    let name = read.facts.name();
    let others = objects::endpoints_of_others(&reader.facts, &reader.record);
    let present = others
        .get(name)
        .filter(|present| !adopt && **present != read.endpoints)?;
    Some(fatal(
        Topic::Identity,
        format!(
            "another tool has connected cluster {} to a cluster {name} at {}, and this cluster {name} is at {}",
            reader.facts.name(),
            present.addresses().join(", "),
            read.endpoints.addresses().join(", ")
        ),
        format!(
            "replace the entry with --adopt if it is the same cluster, or give cluster {name} another cluster.name"
        ),
    ))
}

/// Peers of other tools with unknown ids: a new cluster may have the same id.
fn unknown_ids(member: &Member) -> Option<Finding> {
    let known = member.known();
    let unknown: Vec<String> = member
        .facts
        .peers()
        .into_iter()
        .filter(|name| !known.contains_key(&**name))
        .collect();
    (!unknown.is_empty()).then(|| Finding {
        gravity: Gravity::Warning,
        ..fatal(
            Topic::Identity,
            format!(
                "cluster {} is connected to {}, whose IDs its pods do not tell: they are not compared",
                member.facts.name(),
                unknown.join(", ")
            ),
            "make sure that no new cluster has one of these IDs".to_owned(),
        )
    })
}

/// The objects without which a member cannot read or be read.
fn lacking(members: &[Member], edges: &[Edge]) -> Vec<Finding> {
    let mut found = vec![];
    let readers: BTreeSet<usize> = edges.iter().map(|edge| edge.reader).collect();
    for at in readers {
        let facts = &members[at].facts;
        let has = |name: &str| facts.secrets.contains_key(name);
        let missing = |name: &str, why: &str| {
            fatal(
                Topic::Names,
                format!(
                    "no Secret {}/{name} in context {:?}: {why}",
                    facts.namespace, facts.context
                ),
                format!("run enable --context {} first", facts.context),
            )
        };
        if !has(secret::REMOTE) && !secret::DEPRECATED_REMOTE.into_iter().any(has) {
            found.push(missing(secret::REMOTE, "the cluster cannot prove to others who it is"));
        }
        if facts.mirror() == MirrorMode::On && !has(secret::LOCAL) {
            found.push(missing(
                secret::LOCAL,
                "agents cannot read the store of their own cluster",
            ));
        }
        let names: Vec<&str> = facts.containers().iter().map(|container| &*container.name).collect();
        if facts.mirror() == MirrorMode::On && !facts.runs_isthmus() && !names.contains(&"etcd") {
            found.push(fatal(
                Topic::Modes,
                format!(
                    "the mirror of cluster {} writes into an external etcd (kvstoreMode external), which this program does not \
                     configure",
                    facts.name()
                ),
                "connect this cluster by the values of --print=values".to_owned(),
            ));
        }
        let has_ips = edges
            .iter()
            .any(|edge| edge.reader == at && !members[edge.read].endpoints.ips.is_empty());
        let is_old = facts.cilium_version().is_some_and(|version| version < WITH_ALIASES);
        if is_old && has_ips && !facts.runs_isthmus() {
            found.push(fatal(
                Topic::Version,
                format!(
                    "Cilium {} in cluster {} does not read addresses from client files: its pods need host aliases, which only \
                     the chart sets",
                    facts.cilium_version().map(|version| version.to_string()).unwrap_or_default(),
                    facts.name()
                ),
                "connect this cluster by the values of --print=values, name a host with --destination-endpoint, or run the \
                 mirror of this program (enable)"
                    .to_owned(),
            ));
        }
    }
    found
}

/// A CA bundle that the pods mount and that does not exist.
fn absent_bundle(member: &Member) -> Option<Finding> {
    let facts = &member.facts;
    facts.bundle.as_ref().filter(|bundle| bundle.pem.is_none())?;
    let (target, key) = trust::target(facts);
    Some(fatal(
        Topic::Authority,
        format!(
            "{target} in context {:?} has no key {key}, from which the pods of the mesh read the CAs that they trust",
            facts.context
        ),
        "create it with the CAs of all clusters, or set the value tls.caBundle.content of the chart".to_owned(),
    ))
}
