//! How other clusters reach the store of this one.

use crate::mesh::endpoints::{self, AddressType, Endpoints, NODE_PORT_WARNING};
use crate::mesh::facts::{APISERVER, Facts, secret};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Serialize;

/// The access information of a cluster. The names are those of Cilium's CLI.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Access {
    pub service_type: String,
    /// IP addresses and host names.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub service_ips: Vec<String>,
    /// Host names of the load balancer that other clusters are not given.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub unused_names: Vec<String>,
    pub service_port: u16,
    pub cluster_id: String,
    pub cluster_name: String,
    /// The authority, PEM in base64.
    pub ca: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub tunnel: String,
    pub max_connected_clusters: u32,
    #[serde(skip)]
    pub endpoints: Endpoints,
}

/// The flag that names addresses for other clusters.
const FLAG: &str = "--source-endpoint";

/// The access information, or why there is none yet.
pub fn of(facts: &Facts, tool: &str) -> Result<Access, String> {
    let namespace = &facts.namespace;
    if facts.service.is_none() {
        return Err(format!(
            "unable to get clustermesh service \"{APISERVER}\": there is none in namespace {namespace}; \
             run '{tool} enable' to deploy it"
        ));
    }
    let max_connected_clusters = facts.max_connected().map_err(|why| {
        format!("unable to parse max-connected-clusters in ConfigMap {namespace}/cilium-config: {why}")
    })?;
    let names = [
        secret::REMOTE,
        secret::DEPRECATED_REMOTE[0],
        secret::DEPRECATED_REMOTE[1],
    ];
    let Some(remote) = names.into_iter().find(|name| facts.secrets.contains_key(*name)) else {
        return Err(format!(
            "unable to get client secret to access clustermesh service: Secret {namespace}/{} does not exist; \
             run '{tool} enable' to issue it",
            secret::REMOTE
        ));
    };
    let cas = [(secret::CA, "ca.crt"), (secret::CA, "tls.crt"), (remote, "ca.crt")];
    let Some(ca) = cas.into_iter().find_map(|(name, key)| facts.secret(name, key)) else {
        return Err(format!(
            "unable to retrieve the CA certificate: neither Secret {namespace}/{} nor Secret {namespace}/{remote} has ca.crt",
            secret::CA
        ));
    };
    let endpoints = endpoints::discover(facts, AddressType::Auto, FLAG).map_err(|why| why.to_string())?;
    Ok(Access {
        service_type: facts.service_type().unwrap_or_default().to_owned(),
        service_ips: endpoints.hosts(),
        unused_names: endpoints::not_dialled(facts),
        service_port: endpoints.port,
        cluster_id: facts.setting("cluster-id").to_owned(),
        cluster_name: facts.setting("cluster-name").to_owned(),
        ca: STANDARD.encode(ca),
        tunnel: tunnel(facts),
        max_connected_clusters,
        endpoints,
    })
}

/// The tunnel protocol, unless packets are routed natively.
fn tunnel(facts: &Facts) -> String {
    match (facts.setting("routing-mode"), facts.setting("tunnel-protocol")) {
        ("tunnel", "") => "vxlan".to_owned(),
        ("tunnel", protocol) => protocol.to_owned(),
        _ => String::new(),
    }
}

// === impl Access ===

impl Access {
    /// The lines of Cilium's CLI.
    pub fn lines(&self) -> Vec<String> {
        let mut lines = vec![];
        if self.service_type == "NodePort" {
            lines.push(NODE_PORT_WARNING.to_owned());
        }
        lines.push(format!(
            "✅ Service \"{APISERVER}\" of type \"{}\" found",
            self.service_type
        ));
        lines.push("✅ Cluster access information is available:".to_owned());
        lines.extend(
            self.endpoints
                .addresses()
                .iter()
                .map(|address| format!("  - {address}")),
        );
        let unused = self.unused_names.iter();
        lines.extend(
            unused.map(|name| format!("  - {name} (not used: a client file takes one host name, or IP addresses)")),
        );
        lines
    }
}
