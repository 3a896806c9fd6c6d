//! Drift: differences between the objects of a cluster and what this program has recorded. Another tool, such as a Helm
//! upgrade or a Git sync, has changed or removed what a connection consists of.

use super::facts::{Facts, MANAGER, USERS, secret};
use super::objects;
use super::pki;
use super::record::Record;
use super::trust;
use crate::kvstore::config::ClientConfig;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use std::collections::BTreeMap;

/// Something that is not as it was recorded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Drift {
    /// The peer that is concerned.
    pub peer: String,
    /// Kind, namespace and name.
    pub object: String,
    /// What is wrong, and who was there last.
    pub what: String,
}

// === impl Drift ===

impl Drift {
    /// The difference, in one sentence. `tool` is how the commands of this program are typed.
    pub fn problem(&self, tool: &str) -> String {
        let Self { peer, object, what } = self;
        format!("{object} is not as '{tool} connect' wrote it for cluster {peer}: {what}")
    }

    /// What to do, without a capital and a full stop.
    pub fn remedy(&self, tool: &str) -> String {
        format!(
            "connect {} again, and keep the values that '{tool} connect --print=values' prints where the other tool reads its values",
            self.peer
        )
    }
}

/// Finds what was changed or removed. The remedy is always to connect the peer again.
pub fn find(facts: &Facts, record: &Record) -> Vec<Drift> {
    let mut found = vec![];
    for (name, wanted) in [
        (secret::AGENTS, objects::agents(facts, record)),
        (secret::MIRROR, objects::mirror(facts, record)),
    ] {
        files(facts, record, name, &wanted, &mut found);
    }
    let data = facts.users.as_ref().and_then(|map| map.data.as_ref());
    let users: String = data.into_iter().flatten().map(|(_, text)| text.as_str()).collect();
    let readers = record.peers.iter().filter(|(_, peer)| peer.reads);
    for (peer, entry) in readers {
        let user = objects::user(peer);
        let is_listed = users.split(['\n', ' ', ',', '}', '"']).any(|word| word == user);
        if !is_listed {
            found.push(Drift {
                peer: peer.clone(),
                object: format!("ConfigMap {}/{USERS}", facts.namespace),
                what: format!(
                    "the user {user} is gone{}",
                    last(facts.users.as_ref().map(|map| &map.metadata))
                ),
            });
        }
        let trusted = facts.trusted().unwrap_or_default();
        if entry
            .authorities
            .as_deref()
            .is_some_and(|pem| !pki::contains(trusted, pem))
        {
            let (target, key) = trust::target(facts);
            found.push(Drift {
                peer: peer.clone(),
                object: target.to_string(),
                what: format!(
                    "{key} does not have the CA of cluster {peer} any more{}",
                    last(trust::metadata(facts))
                ),
            });
        }
    }
    found
}

/// Compares client files and CAs.
fn files(facts: &Facts, record: &Record, name: &str, wanted: &BTreeMap<String, String>, found: &mut Vec<Drift>) {
    let live = facts.secrets.get(name);
    for (key, text) in wanted {
        let is_peer = |peer: &&String| key == *peer || *key == objects::authorities_key(peer);
        let peer = record.peers.keys().find(is_peer).unwrap_or(key);
        let what = match facts.secret_text(name, key) {
            None if live.is_none() => "the Secret is gone".to_owned(),
            None => format!("the key {key} is gone"),
            Some(present) if is_same(present, text) => continue,
            Some(_) => format!("the key {key} was changed"),
        };
        found.push(Drift {
            peer: peer.clone(),
            object: format!("Secret {}/{name}", facts.namespace),
            what: format!("{what}{}", last(live.map(|secret| &secret.metadata))),
        });
    }
}

/// Whether two client files lead to the same store in the same way.
fn is_same(one: &str, other: &str) -> bool {
    one == other
        || match (ClientConfig::parse(one), ClientConfig::parse(other)) {
            (Ok(one), Ok(other)) => one == other,
            _ => false,
        }
}

/// Who wrote the object last, if it was another tool.
fn last(meta: Option<&ObjectMeta>) -> String {
    let entries = meta.and_then(|meta| meta.managed_fields.as_ref());
    let others = entries
        .into_iter()
        .flatten()
        .filter(|entry| entry.manager.as_deref() != Some(MANAGER));
    let newest = others.max_by_key(|entry| entry.time.as_ref().map(|time| time.0));
    let manager = newest.and_then(|entry| Some((entry.manager.as_deref()?, entry.time.as_ref()?)));
    manager.map_or_else(String::new, |(manager, time)| {
        format!(" (last written by {manager} at {})", time.0)
    })
}

#[cfg(test)]
mod tests {
    use super::super::endpoints::Endpoints;
    use super::super::record::Peer;
    use super::*;
    use base64::Engine;
    use base64::engine::general_purpose::STANDARD;
    use serde_json::{Value, json};

    fn record() -> Record {
        let hk = Peer {
            id: 2,
            endpoints: Some(Endpoints::of_ips(vec!["10.14.1.128".parse().unwrap()], 32379)),
            reads: true,
            ..Peer::default()
        };
        Record {
            peers: BTreeMap::from([("hk".to_owned(), hk)]),
        }
    }

    fn facts(data: Value, users: &str) -> Facts {
        let managed = json!([{"manager": "helm", "operation": "Update", "time": "2026-11-27T10:00:00Z", "apiVersion": "v1",
            "fieldsType": "FieldsV1", "fieldsV1": {}}]);
        let meta = json!({"name": "cilium-clustermesh", "managedFields": managed});
        serde_json::from_value(json!({"namespace": "kube-system", "ciliumConfig": {"data": {"cluster-name": "tokyo"}},
            "secrets": {"cilium-clustermesh": {"metadata": meta, "data": data}}, "users": {"data": {"users.yaml": users}}}))
        .unwrap()
    }

    #[test]
    fn an_authority_is_looked_for_where_the_store_reads_it() {
        let authority = super::pki::Authority::generate("hk", jiff::Timestamp::now()).unwrap();
        let mut record = record();
        let peer = record.peers.get_mut("hk").unwrap();
        (peer.endpoints, peer.authorities) = (None, Some(authority.cert().to_owned()));
        let users = "users:\n- name: remote-hk\n  role: remote\n";
        let mut facts = facts(json!({}), users);
        let whats = |facts: &Facts| -> Vec<(String, String)> {
            let found = find(facts, &record).into_iter();
            found.map(|drift| (drift.object, drift.what)).collect()
        };
        let in_secret = (
            "Secret kube-system/clustermesh-apiserver-server-cert",
            "ca.crt does not have the CA of cluster hk any more",
        );
        assert_eq!(whats(&facts), [(in_secret.0.to_owned(), in_secret.1.to_owned())]);
        let place = json!({"kind": "ConfigMap", "name": "roots", "key": "all.pem"});
        facts.bundle = Some(serde_json::from_value(json!({"place": place, "pem": ""})).unwrap());
        let in_bundle = (
            "ConfigMap kube-system/roots",
            "all.pem does not have the CA of cluster hk any more",
        );
        assert_eq!(whats(&facts), [(in_bundle.0.to_owned(), in_bundle.1.to_owned())]);
        facts.bundle.as_mut().unwrap().pem = Some(authority.cert().to_owned());
        assert_eq!(whats(&facts), []);
    }

    #[test]
    fn what_another_tool_removed_is_named_with_the_tool() {
        let users = "users:\n- name: remote-hk\n  role: remote\n";
        let none = facts(json!({}), users);
        let wanted = objects::agents(&none, &record());
        let found = find(&none, &record());
        assert_eq!(found.len(), 1, "{found:?}");
        assert_eq!(
            (&*found[0].peer, &*found[0].object),
            ("hk", "Secret kube-system/cilium-clustermesh")
        );
        assert_eq!(
            found[0].what,
            "the key hk is gone (last written by helm at 2026-11-27T10:00:00Z)"
        );
        let file = &wanted["hk"];
        assert_eq!(find(&facts(json!({"hk": STANDARD.encode(file)}), users), &record()), []);
        // The chart writes the same fields in another order.
        let (first, rest) = file.split_once("trusted-ca-file").unwrap();
        let reordered = format!("trusted-ca-file{rest}{first}");
        assert_eq!(
            find(&facts(json!({"hk": STANDARD.encode(reordered)}), users), &record()),
            []
        );
        let other = file.replace("10.14.1.128", "10.14.1.129");
        let found = find(&facts(json!({"hk": STANDARD.encode(other)}), "users: []\n"), &record());
        let whats: Vec<_> = found
            .iter()
            .map(|drift| drift.what.split(" (").next().unwrap())
            .collect();
        assert_eq!(whats, ["the key hk was changed", "the user remote-hk is gone"]);
    }
}
