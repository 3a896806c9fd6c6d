//! The record of what this program has connected: the ConfigMap `isthmus-mesh`, one key for each peer.
//!
//! The objects of a mesh follow from the facts of the cluster and this record. A difference between them and the objects
//! that exist is drift: another tool has changed or removed them.

use super::endpoints::Endpoints;
use super::facts::{Facts, RECORD};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The peers of one cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Record {
    pub peers: BTreeMap<String, Peer>,
}

/// What one cluster knows of a peer.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Peer {
    pub id: u32,
    /// The kubeconfig context that led to the peer, as a hint for the operator.
    pub context: String,
    /// Where this cluster reads the peer's store; `None` if only the peer reads.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub endpoints: Option<Endpoints>,
    /// Whether the peer may read this cluster's store.
    pub reads: bool,
    /// The authorities of the peer, PEM, where they are not those of this cluster.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub authorities: Option<String>,
}

/// The record cannot be read.
#[derive(Debug, thiserror::Error)]
#[error(
    "ConfigMap {namespace}/{RECORD} of context {context:?}, key {peer:?}: {why}; it is written by this program alone: remove \
     the key, and connect the peer again"
)]
pub struct Invalid {
    namespace: String,
    context: String,
    peer: String,
    why: String,
}

// === impl Record ===

impl Record {
    /// The record of a cluster; empty if there is none.
    pub fn read(facts: &Facts) -> Result<Self, Invalid> {
        let data = facts.record.as_ref().and_then(|map| map.data.as_ref());
        let mut record = Self::default();
        for (peer, text) in data.into_iter().flatten() {
            let parsed = serde_json::from_str(text).map_err(|why| Invalid {
                namespace: facts.namespace.clone(),
                context: facts.context.clone(),
                peer: peer.clone(),
                why: why.to_string(),
            })?;
            record.peers.insert(peer.clone(), parsed);
        }
        Ok(record)
    }

    /// The data of the ConfigMap.
    pub fn data(&self) -> BTreeMap<String, String> {
        let text = |peer: &Peer| serde_json::to_string(peer).unwrap_or_default();
        self.peers
            .iter()
            .map(|(name, peer)| (name.clone(), text(peer)))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_record_is_read_as_it_was_written_and_a_broken_one_is_named() {
        let peer = Peer {
            id: 2,
            context: "hk-cluster".to_owned(),
            endpoints: Some(Endpoints::of_ips(vec!["10.14.1.128".parse().unwrap()], 32379)),
            reads: true,
            authorities: None,
        };
        let record = Record {
            peers: BTreeMap::from([("hk-cluster".to_owned(), peer)]),
        };
        let data = record.data();
        let text = r#"{"id":2,"context":"hk-cluster","endpoints":{"ips":["10.14.1.128"],"port":32379},"reads":true}"#;
        assert_eq!(data["hk-cluster"], text);
        let facts = |data: serde_json::Value| -> Facts {
            serde_json::from_value(json!({"namespace": "cilium", "record": {"data": data}})).unwrap()
        };
        assert_eq!(Record::read(&facts(json!(data))).unwrap(), record);
        assert_eq!(Record::read(&Facts::default()).unwrap(), Record::default());
        let error = Record::read(&facts(json!({"hk": "{"}))).unwrap_err().to_string();
        assert!(
            error.contains("cilium/isthmus-mesh") && error.contains("\"hk\""),
            "{error}"
        );
    }
}
