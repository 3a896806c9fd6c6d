//! What connecting clusters changes, and what speaks against it. Without IO.

use super::super::change::{Plan, Target};
use super::super::checks::{self, Profile, Topic};
use super::super::endpoints::Endpoints;
use super::super::facts::{self, APISERVER, Facts, Keeper, secret};
use super::super::objects;
use super::super::pki;
use super::super::profile;
use super::super::record::{Peer, Record};
use super::super::trust;
use super::{Error, Mode};
use jiff::Timestamp;
use serde_json::Value;
use std::collections::BTreeMap;

/// The common name that needs no user of its own in other stores.
const SHARED_USER: &str = "remote";

/// A cluster that is to be connected.
#[derive(Clone, Debug)]
pub struct Member {
    pub facts: Facts,
    /// Where the others reach its store.
    pub endpoints: Endpoints,
    /// What this program has connected before.
    pub record: Record,
    /// The ids of its other peers, as far as its pods tell.
    pub ids: BTreeMap<String, u32>,
}

/// A cluster learns of another one: their indices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Edge {
    pub reader: usize,
    pub read: usize,
}

/// The changes.
#[derive(Clone, Debug, Default)]
pub struct Work {
    /// Makes stores trust the CAs of their new readers. Comes first, in all clusters.
    pub trust: Vec<Plan>,
    /// Connects; one plan for each member, in their order.
    pub connect: Vec<Plan>,
    /// The records after the changes, one for each member.
    pub records: Vec<Record>,
}

/// Which member learns of which; the first member is the source.
pub fn edges(mode: Mode, members: usize) -> Vec<Edge> {
    let mut edges = vec![];
    for reader in 0..members {
        for read in (0..members).filter(|read| *read != reader) {
            let is_wanted = match mode {
                Mode::Unicast => reader == 0,
                Mode::Bidirectional => reader == 0 || read == 0,
                Mode::Mesh => true,
            };
            if is_wanted {
                edges.push(Edge { reader, read });
            }
        }
    }
    edges
}

/// The records of all members after they are connected.
pub fn records(members: &[Member], edges: &[Edge], share: bool, now: Timestamp) -> Result<Vec<Record>, Error> {
    let profiles: Vec<Profile> = members.iter().map(profile_of).collect();
    let mut records: Vec<Record> = members.iter().map(|member| member.record.clone()).collect();
    for edge in edges {
        let (reader, read) = (&members[edge.reader], &members[edge.read]);
        peer(&mut records[edge.reader], read).endpoints = Some(read.endpoints.clone());
        peer(&mut records[edge.read], reader).reads = true;
    }
    if !share {
        return Ok(records);
    }
    for Edge { reader, read } in edges.iter().copied() {
        let pair = trusting(&profiles, &records, members, Edge { reader, read });
        let refuses = checks::pair(&pair.0, &pair.1, now)
            .iter()
            .any(|finding| finding.topic == Topic::Handshake);
        if refuses {
            for (owner, other) in [(reader, read), (read, reader)] {
                let authorities = authorities(&profiles[other])?;
                peer(&mut records[owner], &members[other]).authorities = Some(authorities);
            }
        }
    }
    Ok(records)
}

/// The entry of `member` in a record.
fn peer<'a>(record: &'a mut Record, member: &Member) -> &'a mut Peer {
    let peer = record.peers.entry(member.facts.name().to_owned()).or_default();
    peer.id = member.facts.id().unwrap_or_default();
    peer.context.clone_from(&member.facts.context);
    peer
}

// === impl Member ===

impl Member {
    /// The ids of all peers, by name.
    pub(super) fn known(&self) -> BTreeMap<&str, u32> {
        let ids = self.ids.iter().map(|(name, id)| (&**name, *id));
        let recorded = self.record.peers.iter().map(|(name, peer)| (&**name, peer.id));
        ids.chain(recorded).collect()
    }
}

pub(super) fn profile_of(member: &Member) -> Profile {
    Profile {
        hosts: member.endpoints.hosts(),
        ..profile::of(&member.facts)
    }
}

/// The authorities that have issued the certificates of a cluster; all that it trusts where the issuers are unknown.
fn authorities(profile: &Profile) -> Result<String, Error> {
    let leaves = [&profile.server, &profile.remote].into_iter().flatten();
    let trusted = leaves
        .clone()
        .map(|leaf| leaf.ca.as_str())
        .chain(profile.bundle.as_deref())
        .chain(profile.authority.as_deref());
    let texts: Vec<&str> = trusted.filter(|text| !text.trim().is_empty()).collect();
    let bad = |why: pki::Error| Error::Authorities {
        cluster: profile.name.clone(),
        why,
    };
    let bundle = pki::bundle(&texts).map_err(bad)?;
    let signed: Vec<pki::Certificate> = leaves
        .flat_map(|leaf| pki::certificates(&leaf.cert))
        .flatten()
        .collect();
    let issues = |authority: &pki::Certificate| {
        signed.iter().any(
            |leaf| match leaf.authority_key.is_empty() || authority.subject_key.is_empty() {
                true => leaf.issuer == authority.subject,
                false => leaf.authority_key == authority.subject_key,
            },
        )
    };
    let all = pki::certificates(&bundle).map_err(bad)?;
    let issuers: String = all
        .iter()
        .filter(|one| issues(one))
        .map(|one| pki::encode(&one.der))
        .collect();
    Ok(if issuers.is_empty() { bundle } else { issuers })
}

/// The reader and the read cluster, with the trust that the records give them. What only the other direction needs is
/// left out.
pub(super) fn trusting(profiles: &[Profile], records: &[Record], members: &[Member], edge: Edge) -> (Profile, Profile) {
    let (mut reader, mut read) = (profiles[edge.reader].clone(), profiles[edge.read].clone());
    let known = |owner: usize, other: usize| {
        let peer = records[owner].peers.get(members[other].facts.name())?;
        peer.authorities.clone()
    };
    if let (Some(own), Some(pem)) = (&mut reader.remote, known(edge.reader, edge.read)) {
        // The client file names the file of these authorities.
        own.ca = pem;
        reader.bundle = None;
    }
    if let (Some(own), Some(pem)) = (&mut read.server, known(edge.read, edge.reader)) {
        let trusted = read.bundle.as_mut().unwrap_or(&mut own.ca);
        if let Ok(both) = pki::bundle(&[trusted, &pem]) {
            *trusted = both;
        }
    }
    // The trust of the records, which are those after the changes.
    reader.peer_authorities.clear();
    reader.server = None;
    read.remote = None;
    (reader, read)
}

/// The tool that keeps the objects of a member's connections, other than this program.
pub fn keeper(facts: &Facts) -> Option<(String, Keeper)> {
    let secrets = [secret::AGENTS, secret::MIRROR].into_iter();
    let secrets = secrets.filter_map(|name| Some(("Secret", name, &facts.secrets.get(name)?.metadata)));
    let users = facts.users.iter().map(|map| ("ConfigMap", facts::USERS, &map.metadata));
    let kept = |(kind, name, meta)| match facts::keeper(meta)? {
        Keeper::Isthmus => None,
        keeper => Some((format!("{kind} {}/{name}", facts.namespace), keeper)),
    };
    secrets.chain(users).find_map(kept)
}

/// The changes that lead to `records`.
pub fn work(members: &[Member], edges: &[Edge], records: Vec<Record>, adopt: bool) -> Result<Work, Error> {
    let mut work = Work::default();
    for (at, member) in members.iter().enumerate() {
        let facts = &member.facts;
        let mut plan = Plan::new(&facts.context, facts.name());
        let is_reader = edges.iter().any(|edge| edge.reader == at);
        let mut readers = edges.iter().filter(|edge| edge.read == at);
        // In mode unicast, a destination notes who reads it, and changes more only if it has to know the user of the source.
        let objects = match is_reader || readers.any(|edge| needs_user(&members[edge.reader].facts)) {
            true => objects::all(facts, &member.record, &records[at])?,
            false => vec![objects::record_object(facts, &records[at])],
        };
        for object in objects {
            let live = live(facts, &object);
            plan.apply(object, live.as_ref(), adopt);
        }
        work.connect.push(plan);
        let mut plan = Plan::new(&facts.context, facts.name());
        trust(facts, &records[at], &mut plan)?;
        work.trust.push(plan);
    }
    work.records = records;
    Ok(work)
}

/// Whether the stores of other clusters must have a user for this cluster.
fn needs_user(facts: &Facts) -> bool {
    let certificates = facts.secret_text(secret::REMOTE, "tls.crt").map(pki::certificates);
    let name = certificates
        .and_then(Result::ok)
        .and_then(|mut all| Some(all.drain(..).next()?.common_name));
    name.is_some_and(|name| name != SHARED_USER)
}

/// Makes the store of a cluster trust the authorities of its peers.
fn trust(facts: &Facts, record: &Record, plan: &mut Plan) -> Result<(), Error> {
    let Some(own) = facts.trusted() else {
        return Ok(());
    };
    let readers = record.peers.values().filter(|peer| peer.reads);
    let texts: Vec<&str> = readers.filter_map(|peer| peer.authorities.as_deref()).collect();
    let missing: Vec<&str> = texts.into_iter().filter(|text| !pki::contains(own, text)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let bundle = pki::bundle(&[&[own], &missing[..]].concat()).map_err(|why| Error::Authorities {
        cluster: facts.name().to_owned(),
        why,
    })?;
    let (target, key) = trust::target(facts);
    plan.set_text(target, &key, &bundle, trust::version(facts));
    if !facts.follows_trust() {
        let target = Target {
            api_version: "apps/v1".to_owned(),
            kind: "Deployment".to_owned(),
            namespace: Some(facts.namespace.clone()),
            name: APISERVER.to_owned(),
        };
        plan.restart(target, "etcd reads the CAs that it trusts only when it starts");
    }
    Ok(())
}

/// The object as it was read.
pub fn live(facts: &Facts, object: &Value) -> Option<Value> {
    let target = Target::of(object);
    let read = match (&*target.kind, &*target.name) {
        ("Secret", name) => serde_json::to_value(facts.secrets.get(name)?),
        ("ConfigMap", facts::USERS) => serde_json::to_value(facts.users.as_ref()?),
        ("ConfigMap", facts::RECORD) => serde_json::to_value(facts.record.as_ref()?),
        ("Service", APISERVER) => serde_json::to_value(facts.service.as_ref()?),
        ("Deployment", APISERVER) => serde_json::to_value(facts.deployment.as_ref()?),
        _ => return None,
    };
    // An object of the API is representable.
    read.ok()
}
