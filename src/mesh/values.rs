//! Values of Cilium's Helm chart that keep a connection: what an operator commits where Helm or GitOps owns the objects.

use super::facts::{Facts, Version};
use super::record::Record;
use super::trust;
use std::fmt::Write as _;

/// The first chart that takes the clusters as a map.
const WITH_MAP: Version = Version { major: 1, minor: 20 };

/// The values for the peers of a cluster, YAML.
pub fn of(facts: &Facts, record: &Record) -> String {
    let read = record
        .peers
        .iter()
        .filter_map(|(name, peer)| Some((name, peer.endpoints.as_ref()?)));
    let entries: Vec<(&String, Vec<String>)> = read
        .map(|(name, endpoints)| {
            let mut lines = vec![];
            if let Some(address) = &endpoints.address {
                lines.push(format!("address: {address}"));
            }
            if !endpoints.ips.is_empty() {
                let ips: Vec<_> = endpoints.ips.iter().map(|ip| format!("\"{ip}\"")).collect();
                lines.push(format!("ips: [{}]", ips.join(", ")));
            }
            lines.push(format!("port: {}", endpoints.port));
            (name, lines)
        })
        .collect();
    let is_map = facts.cilium_version().is_none_or(|version| version >= WITH_MAP);
    let mut text = format!(
        "# Values of the Cilium chart for cluster {} (context {})\nclustermesh:\n  config:\n    enabled: true\n",
        facts.name(),
        facts.context
    );
    match (entries.is_empty(), is_map) {
        (true, _) => text += "    clusters: {}\n",
        (false, true) => text += &map(&entries, ""),
        (false, false) => text += &list(&entries, ""),
    }
    if !entries.is_empty() {
        // The version of the chart may be another than that of the agents.
        let (form, other) = match is_map {
            true => ("before 1.20", list(&entries, "# ")),
            false => ("from 1.20 on", map(&entries, "# ")),
        };
        text += &format!("# The same for charts {form}:\n{other}");
    }
    text += &trust::values(facts, record);
    text
}

fn map(entries: &[(&String, Vec<String>)], mark: &str) -> String {
    let mut text = format!("{mark}    clusters:\n");
    for (name, lines) in entries {
        let _ = writeln!(text, "{mark}      {name}:");
        for line in lines {
            let _ = writeln!(text, "{mark}        {line}");
        }
    }
    text
}

fn list(entries: &[(&String, Vec<String>)], mark: &str) -> String {
    let mut text = format!("{mark}    clusters:\n");
    for (name, lines) in entries {
        let _ = writeln!(text, "{mark}    - name: {name}");
        for line in lines {
            let _ = writeln!(text, "{mark}      {line}");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::super::endpoints::Endpoints;
    use super::super::facts::secret;
    use super::super::pki::{self, Authority};
    use super::super::record::Peer;
    use super::*;
    use serde_json::{Value, json};
    use std::collections::BTreeMap;

    fn facts(image: &str) -> Facts {
        let containers = json!([{"name": "cilium-agent", "image": image}]);
        let agents = json!({"spec": {"selector": {}, "template": {"spec": {"containers": containers}}}});
        serde_json::from_value(json!({"context": "tokyo", "agents": agents})).unwrap()
    }

    fn record() -> Record {
        let hk = Peer {
            endpoints: Some(Endpoints::of_ips(vec!["10.14.1.128".parse().unwrap()], 32379)),
            ..Peer::default()
        };
        let lb = Endpoints {
            address: Some("lb.example".to_owned()),
            port: 2379,
            ..Endpoints::default()
        };
        let named = Peer {
            endpoints: Some(lb),
            ..Peer::default()
        };
        Record {
            peers: BTreeMap::from([("hk".to_owned(), hk), ("paris".to_owned(), named)]),
        }
    }

    #[test]
    fn the_form_follows_the_version_and_the_other_form_is_a_comment() {
        let parsed = |image: &str| -> Value { serde_saphyr::from_str(&of(&facts(image), &record())).unwrap() };
        let map = parsed("quay.io/cilium/cilium:v1.20.2");
        let expected =
            json!({"hk": {"ips": ["10.14.1.128"], "port": 32379}, "paris": {"address": "lb.example", "port": 2379}});
        assert_eq!(
            map["clustermesh"]["config"],
            json!({"enabled": true, "clusters": expected})
        );
        let list = parsed("quay.io/cilium/cilium:v1.18.1");
        let clusters = &list["clustermesh"]["config"]["clusters"];
        assert_eq!(
            clusters[0],
            json!({"name": "hk", "ips": ["10.14.1.128"], "port": 32379})
        );
        assert!(
            of(&facts(""), &record())
                .contains("# The same for charts before 1.20:\n#     clusters:\n#     - name: hk\n")
        );
        let none: Value = serde_saphyr::from_str(&of(&facts(""), &Record::default())).unwrap();
        assert_eq!(none.get("tls"), None);
        assert_eq!(none["clustermesh"]["config"]["clusters"], json!({}));
    }

    #[test]
    fn the_bundle_has_the_ca_of_the_cluster_and_those_of_its_peers() {
        let [own, other] = ["own", "other"].map(|name| Authority::generate(name, jiff::Timestamp::now()).unwrap());
        let mut record = record();
        record.peers.get_mut("hk").unwrap().authorities = Some(other.cert().to_owned());
        for (name, key) in [
            (secret::CA, "ca.crt"),
            (secret::CA, "tls.crt"),
            (secret::SERVER, "ca.crt"),
        ] {
            let mut facts = facts("");
            let value = k8s_openapi::ByteString(own.cert().as_bytes().to_vec());
            let ca = k8s_openapi::api::core::v1::Secret {
                data: Some(BTreeMap::from([(key.to_owned(), value)])),
                ..Default::default()
            };
            facts.secrets.insert(name.to_owned(), ca);
            let values: Value = serde_saphyr::from_str(&of(&facts, &record)).unwrap();
            let content = values["tls"]["caBundle"]["content"].as_str().unwrap();
            assert!(
                pki::contains(content, own.cert()) && pki::contains(content, other.cert()),
                "{name} {key}"
            );
        }
        assert!(of(&facts(""), &record).contains("# The CA of this cluster is unknown"));
    }
}
