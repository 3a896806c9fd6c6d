//! What disconnecting a cluster changes. Without IO.

use super::super::change::{Plan, Target};
use super::super::connect::live;
use super::super::facts::{Facts, secret};
use super::super::objects;
use super::super::pki;
use super::super::record::{Peer, Record};
use super::super::trust;
use super::Error;
use serde_json::Value;
use std::collections::BTreeSet;

/// The changes that make a cluster forget the peers in `lost`, whoever has connected them.
pub fn plan(facts: &Facts, record: &Record, lost: &BTreeSet<String>) -> Result<Plan, Error> {
    let mut plan = Plan::new(&facts.context, facts.name());
    // The agents stop reading first, and the record comes last: a command that was interrupted knows what to continue.
    for name in [secret::AGENTS, secret::MIRROR] {
        let keys: Vec<String> = keys(facts, name, lost);
        if !keys.is_empty() {
            plan.remove_keys(target(facts, "Secret", name), keys);
        }
    }
    untrust(facts, record, lost, &mut plan)?;
    let mut before = record.clone();
    for (name, reader) in readers(lost).peers {
        before.peers.entry(name).or_insert(reader);
    }
    let mut after = record.clone();
    after.peers.retain(|name, _| !lost.contains(name));
    if facts.users.is_some() {
        apply(facts, objects::users_object(facts, &before, &after)?, &mut plan);
    }
    if after != *record {
        apply(facts, objects::record_object(facts, &after), &mut plan);
    }
    Ok(plan)
}

/// Whether anything of the cluster `name` is in the objects of another cluster: an entry, a user, a record.
pub fn knows(facts: &Facts, record: &Record, name: &str) -> Result<bool, Error> {
    let one = BTreeSet::from([name.to_owned()]);
    let nobody = Record::default();
    let has_user = || -> Result<bool, Error> {
        let all = objects::users(facts, &nobody, &nobody)?;
        Ok(objects::users(facts, &readers(&one), &nobody)? != all)
    };
    let has_keys = |secret: &&str| !keys(facts, secret, &one).is_empty();
    Ok(record.peers.contains_key(name) || [secret::AGENTS, secret::MIRROR].iter().any(has_keys) || has_user()?)
}

/// A record in which these clusters read, and nothing else.
fn readers(names: &BTreeSet<String>) -> Record {
    let reader = || Peer {
        reads: true,
        ..Peer::default()
    };
    Record {
        peers: names.iter().map(|name| (name.clone(), reader())).collect(),
    }
}

fn apply(facts: &Facts, object: Value, plan: &mut Plan) {
    let live = live(facts, &object);
    plan.apply(object, live.as_ref(), true);
}

fn target(facts: &Facts, kind: &str, name: &str) -> Target {
    Target {
        api_version: "v1".to_owned(),
        kind: kind.to_owned(),
        namespace: Some(facts.namespace.clone()),
        name: name.to_owned(),
    }
}

/// The keys of the lost peers in a Secret of client files: the file, and the TLS files beside it.
fn keys(facts: &Facts, name: &str, lost: &BTreeSet<String>) -> Vec<String> {
    let data = facts.secrets.get(name).and_then(|secret| secret.data.as_ref());
    let is_of = |key: &str, peer: &String| {
        key == peer
            || key
                .strip_prefix(&**peer)
                .is_some_and(|rest| rest.starts_with(".etcd-client"))
    };
    let keys = data.into_iter().flatten().map(|(key, _)| key);
    keys.filter(|key| lost.iter().any(|peer| is_of(key, peer)))
        .cloned()
        .collect()
}

/// Removes the CAs of the lost peers from those that the store trusts, unless another peer or this cluster has them.
fn untrust(facts: &Facts, record: &Record, lost: &BTreeSet<String>, plan: &mut Plan) -> Result<(), Error> {
    let of = |is_lost: bool| {
        let peers = record
            .peers
            .iter()
            .filter(move |(name, _)| lost.contains(*name) == is_lost);
        peers.filter_map(|(_, peer)| peer.authorities.as_deref())
    };
    let (Some(trusted), true) = (facts.trusted(), of(true).next().is_some()) else {
        return Ok(());
    };
    let bad = |why| Error::Authorities {
        cluster: facts.name().to_owned(),
        why,
    };
    let own = ["ca.crt", "tls.crt"]
        .into_iter()
        .filter_map(|key| facts.secret_text(secret::CA, key));
    let kept: Vec<&str> = of(false).chain(own).collect();
    let unwanted: Vec<&str> = of(true).collect();
    let (kept, unwanted) = (kept.join("\n"), unwanted.join("\n"));
    let all = pki::certificates(trusted).map_err(bad)?;
    let is_kept = |pem: &str| pki::contains(&kept, pem) || !pki::contains(&unwanted, pem);
    let pems = all.iter().map(|one| pki::encode(&one.der));
    let rest: Vec<String> = pems.filter(|pem| is_kept(pem)).collect();
    if !rest.is_empty() && rest.len() < all.len() {
        let (target, key) = trust::target(facts);
        plan.set_text(target, &key, &rest.concat(), trust::version(facts));
    }
    Ok(())
}
