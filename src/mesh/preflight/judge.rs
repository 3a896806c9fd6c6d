//! The checks that follow from what was read.

use super::Check;
use crate::mesh::checks::{self, Finding, Gravity, Profile, Topic};
use crate::mesh::drift::{self, Drift};
use crate::mesh::facts::{self, Facts, Keeper, secret};
use crate::mesh::record::Record;
use crate::mesh::status;
use jiff::Timestamp;
use std::collections::{BTreeMap, BTreeSet};

/// The ids of the clusters that a cluster is connected to, by name. Zero is unknown.
pub type Peers = BTreeMap<String, u32>;

/// The topics of two clusters, with the words for the case that nothing was found.
const TOPICS: [(Topic, &str, &str); 7] = [
    (
        Topic::Identity,
        "identity",
        "names and ids differ, and the greatest number of clusters is the same",
    ),
    (
        Topic::Version,
        "version",
        "the Cilium versions are at most one minor release apart",
    ),
    (
        Topic::Modes,
        "modes",
        "routing, tunnel protocol, encryption and identity mode are the same",
    ),
    (
        Topic::Networks,
        "networks",
        "the networks of pods and the addresses of nodes do not overlap",
    ),
    (Topic::Authority, "authority", "the CA is the same"),
    (
        Topic::Handshake,
        "handshake",
        "each cluster accepts the certificate of the other (TLS handshake both ways)",
    ),
    (
        Topic::Names,
        "names",
        "the server certificates are valid for the names that clusters dial",
    ),
];

/// The checks of one cluster.
pub fn alone(facts: &Facts, tool: &str, now: Timestamp) -> Vec<Check> {
    let mut checks = vec![identity(facts), service(facts, tool)];
    checks.extend(deployment(facts, tool));
    checks.push(certificates(facts, tool));
    let profile = crate::mesh::profile::of(facts);
    let found = checks::alone(&profile, now);
    // The identity has a check of its own.
    let found: Vec<_> = found
        .iter()
        .filter(|finding| finding.topic != Topic::Identity)
        .collect();
    if found.is_empty() && !facts.secrets.is_empty() {
        checks.push(Check::ok(
            &[facts.name()],
            "expiry",
            "no certificate expires in the next 30 days",
        ));
    }
    checks.extend(found.into_iter().map(|finding| check(&[facts.name()], finding)));
    checks.extend(keepers(facts, tool));
    checks.extend(drift(facts, tool));
    checks
}

fn identity(facts: &Facts) -> Check {
    let (name, id) = (facts.setting("cluster-name"), facts.setting("cluster-id"));
    let of = |what: String| Check::ok(&[facts.name()], "identity", what);
    let version = facts
        .cilium_version()
        .map_or("of unknown version".to_owned(), |version| version.to_string());
    let max = facts.max_connected().unwrap_or_default();
    match facts.is_named() {
        true => of(format!("name {name}, id {id} of at most {max}, Cilium {version}, context {}", facts.context)),
        false => of(format!("the cluster has the default name or id (name {name:?}, id {id:?})")).failed(format!(
            "Set the values cluster.name and cluster.id of the Cilium chart in context {}, different in every cluster, and restart \
             all pods: their identities contain the id.",
            facts.context
        )),
    }
}

fn service(facts: &Facts, tool: &str) -> Check {
    let of = |what: String| Check::ok(&[facts.name()], "service", what);
    match status::access(facts, tool) {
        Ok(access) => of(format!(
            "Service {}/{} of type {} is reached at {}, port {}",
            facts.namespace,
            facts::APISERVER,
            access.service_type,
            access.service_ips.join(", "),
            access.service_port
        )),
        Err(why) => of(why).failed(format!(
            "'{tool} status --wait' waits for the Service and says what it waits for."
        )),
    }
}

fn deployment(facts: &Facts, tool: &str) -> Option<Check> {
    let of = |what: String| Check::ok(&[facts.name()], "deployment", what);
    let name = format!("Deployment {}/{}", facts.namespace, facts::APISERVER);
    let Some(deployment) = &facts.deployment else {
        // The missing Service has been reported.
        facts.service.as_ref()?;
        let remedy = format!("Run '{tool} enable' to deploy it.");
        return Some(of(format!("{name} does not exist")).failed(remedy));
    };
    Some(match status::deployment_problem(deployment) {
        None => of(format!("{name} is ready")),
        Some(why) => of(format!("{name} is not ready: {why}")).failed(format!("'{tool} status' shows the pods.")),
    })
}

/// Whether the certificates for connections to and from other clusters exist.
fn certificates(facts: &Facts, tool: &str) -> Check {
    let of = |what: String| Check::ok(&[facts.name()], "certificates", what);
    let has = |name: &&str| facts.secret(name, "tls.crt").is_some() && facts.secret(name, "tls.key").is_some();
    let missing: Vec<_> = [secret::SERVER, secret::REMOTE]
        .into_iter()
        .filter(|name| !has(name))
        .collect();
    match missing.is_empty() {
        true => of("the certificates of the store and for other clusters exist".to_owned()),
        false => of(format!(
            "Secrets without certificate in namespace {}: {}",
            facts.namespace,
            missing.join(", ")
        ))
        .failed(format!("Run '{tool} enable' to issue what is missing.")),
    }
}

/// The tools that would undo what `connect` writes.
fn keepers(facts: &Facts, tool: &str) -> Vec<Check> {
    let metas = [secret::AGENTS, secret::MIRROR].map(|name| (name, facts.secrets.get(name).map(|s| &s.metadata)));
    let users = (facts::USERS, facts.users.as_ref().map(|users| &users.metadata));
    let mut kept: BTreeMap<String, BTreeSet<&str>> = BTreeMap::new();
    for (name, meta) in metas.into_iter().chain([users]) {
        match meta.and_then(facts::keeper) {
            None | Some(Keeper::Isthmus) => {}
            Some(keeper) => _ = kept.entry(keeper.to_string()).or_default().insert(name),
        }
    }
    let check = |(keeper, objects): (String, BTreeSet<&str>)| {
        let objects = objects.into_iter().collect::<Vec<_>>().join(", ");
        let what = format!("{keeper} keeps {objects}, and will undo changes by others");
        let remedy =
            format!("Commit the values that '{tool} connect --print=values' prints, or let connect --adopt take over.");
        Check::ok(&[facts.name()], "ownership", what).warning(remedy)
    };
    kept.into_iter().map(check).collect()
}

/// What other tools have changed or removed of the recorded connections.
fn drift(facts: &Facts, tool: &str) -> Vec<Check> {
    let of = |what: String| Check::ok(&[facts.name()], "drift", what);
    let record = match Record::read(facts) {
        Ok(record) => record,
        Err(error) => return vec![of(error.to_string()).failed("Without the record nothing is known of connections.")],
    };
    let found = drift::find(facts, &record);
    match (found.is_empty(), record.peers.len()) {
        (true, 0) => vec![],
        (true, peers) => vec![of(format!(
            "the entries of {peers} connected clusters are as connect wrote them"
        ))],
        (false, _) => {
            let check = |one: Drift| of(one.problem(tool)).failed(sentence(&one.remedy(tool)));
            found.into_iter().map(check).collect()
        }
    }
}

/// `text` with a capital and a full stop.
fn sentence(text: &str) -> String {
    let mut chars = text.chars();
    let first = chars.next().map(|first| first.to_ascii_uppercase());
    first.into_iter().chain(chars).chain(['.']).collect()
}

/// The checks of each pair.
pub fn together(profiles: &[Profile], now: Timestamp) -> Vec<Check> {
    let mut all = vec![];
    for (at, local) in profiles.iter().enumerate() {
        for remote in &profiles[at + 1..] {
            let clusters = [&*local.name, &*remote.name];
            let found = checks::pair(local, remote, now);
            for (topic, name, fine) in TOPICS {
                let mut bad = found.iter().filter(|finding| finding.topic == topic).peekable();
                if bad.peek().is_none() && is_known(topic, local, remote) {
                    all.push(Check::ok(&clusters, name, fine));
                }
                all.extend(bad.map(|finding| check(&clusters, finding)));
            }
        }
    }
    all
}

/// Whether what a topic compares was read in both clusters.
fn is_known(topic: Topic, local: &Profile, remote: &Profile) -> bool {
    let both = |known: fn(&Profile) -> bool| known(local) && known(remote);
    match topic {
        Topic::Version => both(|cluster| !cluster.version.is_empty()),
        Topic::Networks => both(|cluster| !cluster.pod_cidrs.is_empty()),
        Topic::Authority => both(|cluster| cluster.authority.is_some() || cluster.remote.is_some()),
        Topic::Handshake => both(|cluster| cluster.server.is_some() && cluster.remote.is_some()),
        // Names are checked for each cluster alone.
        Topic::Names | Topic::Expiry => false,
        Topic::Identity | Topic::Modes => true,
    }
}

/// Compares the clusters with those that each of them is connected to already.
pub fn peers(facts: &[Facts], known: &[Peers]) -> Vec<Check> {
    let ids: BTreeMap<_, _> = facts
        .iter()
        .filter_map(|facts| Some((facts.id()?, facts.name())))
        .collect();
    let mut all = vec![];
    for (facts, peers) in facts.iter().zip(known) {
        for (peer, id) in peers.iter().filter(|(_, id)| **id != 0) {
            let Some(name) = ids.get(id).filter(|name| **name != peer) else {
                continue;
            };
            let what = format!(
                "cluster {peer}, to which it is connected, has the id {id}, which is that of cluster {name}, too"
            );
            let remedy = "Give each cluster of the mesh its own id (value cluster.id of the Cilium chart), and restart all pods of the \
                cluster that changes.";
            all.push(Check::ok(&[facts.name()], "identity", what).failed(remedy));
        }
    }
    all
}

fn check(clusters: &[&str], finding: &Finding) -> Check {
    let (_, topic, _) = TOPICS
        .into_iter()
        .find(|(topic, ..)| *topic == finding.topic)
        .unwrap_or((Topic::Expiry, "expiry", ""));
    let check = Check::ok(clusters, topic, finding.what.clone());
    match finding.gravity {
        Gravity::Warning => check.warning(finding.remedy.clone()),
        Gravity::Fatal => check.failed(finding.remedy.clone()),
    }
}

#[cfg(test)]
mod tests;
