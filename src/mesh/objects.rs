//! The objects that connect a cluster, as they should be: client files, users, and the record. They are what Cilium's chart
//! renders for the same peers.

use super::endpoints::Endpoints;
use super::facts::{self, APISERVER, Facts, MANAGED_BY, MANAGER, MirrorMode, USERS, USERS_KEY, secret};
use super::record::{Peer, Record};
use crate::kvstore::config::ClientConfig;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

/// The directory of the client files in agents and mirrors.
const DIRECTORY: &str = "/var/lib/cilium/clustermesh/";
/// Prefix of the user that a cluster is, in the stores of other clusters.
const REMOTE: &str = "remote-";
/// A users file without users.
pub const NO_USERS: &str = "users: []\n";
/// The role of these users.
const ROLE: &str = "remote";

/// The users file cannot be read.
#[derive(Debug, thiserror::Error)]
#[error(
    "ConfigMap {namespace}/{USERS} of context {context:?}, key {USERS_KEY}: {why}; correct it first, it is read by the store"
)]
pub struct BadUsers {
    namespace: String,
    context: String,
    why: String,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct UsersFile {
    users: Option<Vec<User>>,
}

#[derive(Clone, Default, Deserialize)]
#[serde(default)]
struct User {
    name: String,
    role: String,
}

/// Name of the key with the authorities of a peer, beside its client file.
pub fn authorities_key(peer: &str) -> String {
    format!("{peer}.etcd-client-ca.crt")
}

/// The client files and authorities of the agents' Secret.
pub fn agents(facts: &Facts, record: &Record) -> BTreeMap<String, String> {
    match facts.mirror() {
        MirrorMode::Off => direct(record),
        MirrorMode::On => {
            let file = own_store(facts);
            read(record).map(|(name, ..)| (name.to_owned(), file.clone())).collect()
        }
    }
}

/// The client files and authorities of the mirror's Secret.
pub fn mirror(facts: &Facts, record: &Record) -> BTreeMap<String, String> {
    match facts.mirror() {
        MirrorMode::Off => BTreeMap::new(),
        MirrorMode::On => direct(record),
    }
}

/// The peers whose stores are read.
fn read(record: &Record) -> impl Iterator<Item = (&str, &Peer, &Endpoints)> {
    record
        .peers
        .iter()
        .filter_map(|(name, peer)| Some((&**name, peer, peer.endpoints.as_ref()?)))
}

/// Files for reading the peers' stores themselves.
fn direct(record: &Record) -> BTreeMap<String, String> {
    let mut files = BTreeMap::new();
    for (name, peer, endpoints) in read(record) {
        let authorities = peer.authorities.as_ref().map(|_| authorities_key(name));
        files.insert(name.to_owned(), peers_store(name, endpoints, authorities.as_deref()));
        if let (Some(key), Some(pem)) = (authorities, &peer.authorities) {
            files.insert(key, pem.clone());
        }
    }
    files
}

/// The client file for the store of a peer. `authorities` is the file of its own authorities.
fn peers_store(name: &str, endpoints: &Endpoints, authorities: Option<&str>) -> String {
    let mut text = client_file(
        &endpoints.url(name),
        authorities.unwrap_or("common-etcd-client-ca.crt"),
        "common",
    );
    if !endpoints.ips.is_empty() {
        // Writing to a string does not fail.
        let _ = write!(
            text,
            "cilium-host-aliases:\n- hostname: {}\n  ips:\n",
            endpoints.host(name)
        );
        for ip in &endpoints.ips {
            let _ = writeln!(text, "  - {}", quoted_ip(*ip));
        }
    }
    text
}

/// An address as a YAML string: one that begins with `::` is none without quotes.
fn quoted_ip(ip: std::net::IpAddr) -> String {
    match ip.is_ipv6() {
        true => format!("\"{ip}\""),
        false => ip.to_string(),
    }
}

/// The client file for the store of this cluster, where the mirror has the keys of all peers.
fn own_store(facts: &Facts) -> String {
    let spec = facts.service.as_ref().and_then(|service| service.spec.as_ref());
    let port = spec
        .and_then(|spec| spec.ports.as_ref()?.first())
        .map_or(2379, |port| port.port);
    let url = format!("https://{APISERVER}.{}.svc:{port}", facts.namespace);
    client_file(&url, "local-etcd-client-ca.crt", "local")
}

fn client_file(url: &str, authorities: &str, credentials: &str) -> String {
    format!(
        "endpoints:\n- {url}\ntrusted-ca-file: {DIRECTORY}{authorities}\nkey-file: {DIRECTORY}{credentials}-etcd-client.key\n\
         cert-file: {DIRECTORY}{credentials}-etcd-client.crt\n"
    )
}

/// The endpoints of the peers that client files name and the record does not.
pub fn endpoints_of_others(facts: &Facts, record: &Record) -> BTreeMap<String, Endpoints> {
    let secret = match facts.mirror() {
        MirrorMode::On => secret::MIRROR,
        MirrorMode::Off => secret::AGENTS,
    };
    let others = facts
        .peers_in(secret)
        .into_iter()
        .filter(|name| !record.peers.contains_key(name));
    let endpoints = |name: String| {
        let file = ClientConfig::parse(facts.secret_text(secret, &name)?).ok()?;
        let url: http::Uri = file.endpoints.first()?.parse().ok()?;
        let ips: Vec<_> = file
            .cilium_host_aliases
            .iter()
            .flat_map(|alias| alias.ips.clone())
            .collect();
        let host = url.host()?.to_owned();
        let address = ips.is_empty().then_some(host);
        let port = url.port_u16()?;
        Some((name, Endpoints { ips, address, port }))
    };
    others.filter_map(endpoints).collect()
}

/// The users file: the users that are there, without those that this program gave to peers in `before`, and with those
/// that `after` lets read. A peer that is only read may have got its user from somebody else.
pub fn users(facts: &Facts, before: &Record, after: &Record) -> Result<String, BadUsers> {
    let data = facts.users.as_ref().and_then(|map| map.data.as_ref());
    let text = data.and_then(|data| data.get(USERS_KEY)).map_or("", String::as_str);
    let bad = |why: String| BadUsers {
        namespace: facts.namespace.clone(),
        context: facts.context.clone(),
        why: crate::util::yaml::first_line(&why),
    };
    let file: UsersFile = match text.trim().is_empty() {
        true => UsersFile::default(),
        false => serde_saphyr::from_str(text).map_err(|error| bad(error.to_string()))?,
    };
    let ours: BTreeSet<String> = before
        .peers
        .iter()
        .chain(&after.peers)
        .filter(|(_, peer)| peer.reads)
        .map(|(name, _)| user(name))
        .collect();
    let kept = file
        .users
        .unwrap_or_default()
        .into_iter()
        .filter(|entry| !ours.contains(&entry.name));
    let readers = after.peers.iter().filter(|(_, peer)| peer.reads);
    let added = readers.map(|(name, _)| User {
        name: user(name),
        role: ROLE.to_owned(),
    });
    let mut all: Vec<User> = kept.chain(added).collect();
    all.sort_by(|a, b| a.name.cmp(&b.name));
    if all.is_empty() {
        return Ok(NO_USERS.to_owned());
    }
    let entry = |user: User| format!("- name: {}\n  role: {}\n", quoted(&user.name), quoted(&user.role));
    Ok(format!("users:\n{}", all.into_iter().map(entry).collect::<String>()))
}

/// A text as a YAML string, in quotes where it could be read as something else.
fn quoted(text: &str) -> String {
    let is_plain = text.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c));
    let parsed: Result<Value, _> = serde_saphyr::from_str(text);
    match is_plain && parsed.is_ok_and(|parsed| parsed == json!(text)) {
        true => text.to_owned(),
        // A string of JSON is one of YAML.
        false => json!(text).to_string(),
    }
}

/// The user that a cluster is in the stores of its peers.
pub fn user(cluster: &str) -> String {
    format!("{REMOTE}{cluster}")
}

/// The ConfigMap of the record.
pub fn record_object(facts: &Facts, record: &Record) -> Value {
    let live = facts.record.as_ref().map(|map| &map.metadata);
    config_map(facts, facts::RECORD, &record.data(), live)
}

/// The ConfigMap of the users of other clusters.
pub fn users_object(facts: &Facts, before: &Record, after: &Record) -> Result<Value, BadUsers> {
    let data = BTreeMap::from([(USERS_KEY.to_owned(), users(facts, before, after)?)]);
    let live = facts.users.as_ref().map(|map| &map.metadata);
    Ok(config_map(facts, USERS, &data, live))
}

/// All objects of a connected cluster, for server-side apply: the fields that this program owns.
pub fn all(facts: &Facts, before: &Record, after: &Record) -> Result<Vec<Value>, BadUsers> {
    let mut objects = vec![record_object(facts, after), users_object(facts, before, after)?];
    if facts.mirror() == MirrorMode::On || facts.secrets.contains_key(secret::MIRROR) {
        objects.push(secret_of(facts, secret::MIRROR, &mirror(facts, after)));
    }
    objects.push(secret_of(facts, secret::AGENTS, &agents(facts, after)));
    Ok(objects)
}

type Meta = k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

/// Name, namespace, and labels where the object is ours. The version makes a write fail if somebody else wrote meanwhile.
pub fn metadata(facts: &Facts, name: &str, live: Option<&Meta>) -> Value {
    let mut meta = json!({"name": name, "namespace": facts.namespace});
    let is_ours = live.is_none_or(|live| facts::keeper(live) == Some(facts::Keeper::Isthmus));
    if is_ours {
        meta["labels"] = json!({MANAGED_BY: MANAGER, "app.kubernetes.io/part-of": "cilium"});
    }
    if let Some(version) = live.and_then(|live| live.resource_version.as_ref()) {
        meta["resourceVersion"] = json!(version);
    }
    meta
}

fn config_map(facts: &Facts, name: &str, data: &BTreeMap<String, String>, live: Option<&Meta>) -> Value {
    let object =
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata(facts, name, live), "data": data});
    without_empty_data(object)
}

/// A Secret with these values, for server-side apply.
pub fn secret_of(facts: &Facts, name: &str, data: &BTreeMap<String, String>) -> Value {
    let live = facts.secrets.get(name);
    let data: BTreeMap<&String, String> = data.iter().map(|(key, text)| (key, STANDARD.encode(text))).collect();
    let meta = metadata(facts, name, live.map(|secret| &secret.metadata));
    let mut object = json!({"apiVersion": "v1", "kind": "Secret", "metadata": meta, "data": data});
    // Without a type, the API takes the default for a change of the type, and refuses it.
    if let Some(kind) = live.and_then(|secret| secret.type_.as_ref()) {
        object["type"] = json!(kind);
    }
    without_empty_data(object)
}

/// Leaves an empty map out: applying one would own the whole map, keys of others included.
fn without_empty_data(mut object: Value) -> Value {
    if object["data"].as_object().is_some_and(|data| data.is_empty()) {
        object.as_object_mut().and_then(|object| object.remove("data"));
    }
    object
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(authorities: Option<&str>) -> Record {
        let ips = ["192.0.2.7", "192.0.2.8"].map(|ip| ip.parse().unwrap()).to_vec();
        let west = Peer {
            id: 2,
            endpoints: Some(Endpoints::of_ips(ips, 2379)),
            reads: true,
            authorities: authorities.map(str::to_owned),
            ..Peer::default()
        };
        let reader = Peer {
            id: 3,
            reads: true,
            ..Peer::default()
        };
        Record {
            peers: BTreeMap::from([("west".to_owned(), west), ("reader".to_owned(), reader)]),
        }
    }

    fn facts(containers: &[&str], users: Option<&str>) -> Facts {
        let containers: Vec<_> = containers.iter().map(|name| json!({"name": name})).collect();
        let mut facts = json!({"namespace": "kube-system", "ciliumConfig": {"data": {"cluster-name": "east"}},
            "deployment": {"spec": {"selector": {}, "template": {"spec": {"containers": containers}}}}});
        if let Some(users) = users {
            facts["users"] = json!({"data": {"users.yaml": users}});
        }
        serde_json::from_value(facts).unwrap()
    }

    const DIRECT: &str = "endpoints:\n- https://west.mesh.cilium.io:2379\n\
        trusted-ca-file: /var/lib/cilium/clustermesh/common-etcd-client-ca.crt\n\
        key-file: /var/lib/cilium/clustermesh/common-etcd-client.key\n\
        cert-file: /var/lib/cilium/clustermesh/common-etcd-client.crt\n\
        cilium-host-aliases:\n- hostname: west.mesh.cilium.io\n  ips:\n  - 192.0.2.7\n  - 192.0.2.8\n";

    #[test]
    fn client_files_are_those_of_the_chart() {
        let with = facts(&["etcd", "apiserver", "kvstoremesh"], None);
        let local = "endpoints:\n- https://clustermesh-apiserver.kube-system.svc:2379\n\
            trusted-ca-file: /var/lib/cilium/clustermesh/local-etcd-client-ca.crt\n\
            key-file: /var/lib/cilium/clustermesh/local-etcd-client.key\n\
            cert-file: /var/lib/cilium/clustermesh/local-etcd-client.crt\n";
        let of = |name: &str, text: &str| BTreeMap::from([(name.to_owned(), text.to_owned())]);
        assert_eq!(agents(&with, &record(None)), of("west", local));
        assert_eq!(mirror(&with, &record(None)), of("west", DIRECT));
        let without = facts(&["etcd", "apiserver"], None);
        assert_eq!(agents(&without, &record(None)), of("west", DIRECT));
        assert_eq!(mirror(&without, &record(None)), BTreeMap::new());
        let parsed = ClientConfig::parse(DIRECT).unwrap();
        assert_eq!(parsed.cilium_host_aliases[0].ips.len(), 2);
    }

    #[test]
    fn authorities_of_a_peer_are_a_file_of_its_own_that_is_no_peer() {
        let with = facts(&["kvstoremesh"], None);
        let files = mirror(&with, &record(Some("PEM")));
        assert_eq!(files["west.etcd-client-ca.crt"], "PEM");
        assert!(files["west"].contains("trusted-ca-file: /var/lib/cilium/clustermesh/west.etcd-client-ca.crt\n"));
        assert!(!files["west.etcd-client-ca.crt"].contains("endpoints:"));
    }

    #[test]
    fn users_of_others_stay_and_those_of_lost_peers_leave() {
        let facts = facts(
            &[],
            Some("users:\n- name: remote-old\n  role: remote\n- name: monitoring\n  role: root\n"),
        );
        let before = Record {
            peers: BTreeMap::from([("old".to_owned(), reader())]),
        };
        let text = users(&facts, &before, &record(None)).unwrap();
        assert_eq!(
            text,
            "users:\n- name: monitoring\n  role: root\n- name: remote-reader\n  role: remote\n- name: remote-west\n  role: remote\n"
        );
        let empty = super::tests::facts(&[], Some("users:\n"));
        assert_eq!(users(&empty, &before, &Record::default()).unwrap(), "users: []\n");
        let broken = super::tests::facts(&[], Some("users: ["));
        assert!(
            users(&broken, &before, &before)
                .unwrap_err()
                .to_string()
                .contains("clustermesh-remote-users")
        );
    }

    fn reader() -> Peer {
        Peer {
            reads: true,
            ..Peer::default()
        }
    }

    #[test]
    fn a_user_that_somebody_else_gave_to_a_peer_that_is_only_read_stays() {
        let given = "users:\n- name: remote-west\n  role: remote\n";
        let facts = facts(&[], Some(given));
        let only_read = Record {
            peers: BTreeMap::from([("west".to_owned(), Peer::default())]),
        };
        assert_eq!(users(&facts, &only_read, &only_read).unwrap(), given);
        assert_eq!(users(&facts, &only_read, &Record::default()).unwrap(), given);
        let reads = Record {
            peers: BTreeMap::from([("west".to_owned(), reader())]),
        };
        assert_eq!(users(&facts, &only_read, &reads).unwrap(), given);
        assert_eq!(users(&facts, &reads, &Record::default()).unwrap(), "users: []\n");
    }

    #[test]
    fn names_of_users_are_read_as_they_were() {
        let odd = "users:\n- name: \"*\"\n  role: \"a: #b\"\n- name: \"123\"\n  role: \"true\"\n";
        let facts = facts(&[], Some(odd));
        let empty = Record::default();
        assert_eq!(users(&facts, &empty, &empty).unwrap(), odd);
    }

    #[test]
    fn an_address_of_version_six_is_quoted() {
        let endpoints = Endpoints::of_ips(vec!["::1".parse().unwrap()], 2379);
        let text = peers_store("west", &endpoints, None);
        let parsed = ClientConfig::parse(&text).unwrap();
        assert_eq!(
            parsed.cilium_host_aliases[0].ips,
            ["::1".parse::<std::net::IpAddr>().unwrap()]
        );
    }
}
