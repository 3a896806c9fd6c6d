//! The addresses at which other clusters reach the store of a cluster.
//!
//! Addresses of a LoadBalancer that are host names stay host names: the machine that runs the command may resolve them
//! otherwise than the other cluster, and a cloud changes their addresses.

use super::facts::{APISERVER, Facts};
use k8s_openapi::api::core::v1::{Node, ServiceSpec};
use serde::{Deserialize, Serialize};
use std::net::IpAddr;

/// The domain of the host names that stand for a cluster's addresses; server certificates have a wildcard for it.
pub const DOMAIN: &str = "mesh.cilium.io";

/// How a store is reached. All addresses have one port.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Endpoints {
    /// Addresses, which clients dial for the name `<cluster>.mesh.cilium.io`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ips: Vec<IpAddr>,
    /// A host name, which clients resolve, and which the server certificate must contain.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
    pub port: u16,
}

/// Which address of a node is used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AddressType {
    /// The ExternalIP of a node that has one, else the InternalIP.
    #[default]
    Auto,
    Internal,
    External,
}

/// Why a cluster has no addresses.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error(
        "unable to get clustermesh service \"{APISERVER}\": no Service {namespace}/{APISERVER} in context {context:?}; \
         enable the mesh in this cluster first, or name its address with {flag}"
    )]
    NoService {
        namespace: String,
        context: String,
        flag: &'static str,
    },
    #[error(
        "port of service could not be derived, service has no ports (Service {0}); give it the port 2379 of the store, or run enable again"
    )]
    NoPort(String),
    #[error(
        "IP of service could not be derived, service has no ClusterIP (Service {0}); set its type to NodePort or LoadBalancer"
    )]
    Headless(String),
    #[error("nodeport is not set in service {0}: Kubernetes has not allocated a node port yet; try again")]
    NoNodePort(String),
    #[error(
        "unable to derive service IPs automatically: none of the {nodes} nodes of context {context:?} is Ready and has an \
         address of type {wanted}; choose another --node-address-type, or name the addresses with {flag}"
    )]
    NoNode {
        nodes: usize,
        wanted: &'static str,
        context: String,
        flag: &'static str,
    },
    #[error(
        "the LoadBalancer Service {service} in context {context:?} has no address yet: no load balancer has answered for it; \
         look at the events of the Service, or name the address with {flag}"
    )]
    Pending {
        service: String,
        context: String,
        flag: &'static str,
    },
    #[error("service type {kind:?} of Service {service} is not supported; use LoadBalancer, NodePort or ClusterIP")]
    Kind { kind: String, service: String },
    #[error("invalid endpoint {0:?}, must be HOST:PORT, such as 192.0.2.7:2379 or [2001:db8::7]:2379")]
    Invalid(String),
    #[error("port mismatch ({0} != {1}), all endpoints must use the same port number")]
    Ports(u16, u16),
    #[error("the endpoints {0} mix host names and addresses, or name several hosts; give addresses, or one host name")]
    Mixed(String),
}

/// What else an operator should know about the addresses.
pub const NODE_PORT_WARNING: &str =
    "⚠️  Service type NodePort detected! Service may fail when nodes are removed from the cluster!";

/// Finds the addresses of a cluster's store. `flag` is the flag that names them otherwise.
pub fn discover(facts: &Facts, nodes: AddressType, flag: &'static str) -> Result<Endpoints, Error> {
    let context = || facts.context.clone();
    let spec = facts.service.as_ref().and_then(|service| service.spec.as_ref());
    let spec = spec.ok_or_else(|| Error::NoService {
        namespace: facts.namespace.clone(),
        context: context(),
        flag,
    })?;
    let service = format!("{}/{APISERVER}", facts.namespace);
    let ports = spec.ports.as_deref().unwrap_or_default();
    let port = ports.first().ok_or_else(|| Error::NoPort(service.clone()))?;
    match facts.service_type().unwrap_or_default() {
        "ClusterIP" => Ok(Endpoints::of_ips(cluster_ips(spec), number(port.port)))
            .and_then(|found| (!found.ips.is_empty()).then_some(found).ok_or(Error::Headless(service))),
        "NodePort" => {
            let port = port
                .node_port
                .filter(|port| *port != 0)
                .ok_or(Error::NoNodePort(service))?;
            let ips: Vec<IpAddr> = facts.ready_nodes().filter_map(|node| nodes.of(node)).collect();
            match ips.is_empty() {
                true => Err(Error::NoNode {
                    nodes: facts.nodes.len(),
                    wanted: nodes.name(),
                    context: context(),
                    flag,
                }),
                false => Ok(Endpoints::of_ips(ips, number(port))),
            }
        }
        "LoadBalancer" => load_balancer(facts, number(port.port), service, flag),
        kind => Err(Error::Kind {
            kind: kind.to_owned(),
            service,
        }),
    }
}

fn load_balancer(facts: &Facts, port: u16, service: String, flag: &'static str) -> Result<Endpoints, Error> {
    let Ingress { ips, names } = Ingress::of(facts);
    match (ips.is_empty(), names.into_iter().next()) {
        (false, _) => Ok(Endpoints::of_ips(ips, port)),
        (true, address @ Some(_)) => Ok(Endpoints { ips, address, port }),
        (true, None) => Err(Error::Pending {
            service,
            context: facts.context.clone(),
            flag,
        }),
    }
}

/// The addresses of a load balancer. It may have several of each kind.
struct Ingress {
    ips: Vec<IpAddr>,
    /// The host names of entries without an IP address.
    names: Vec<String>,
}

/// What clients dial at the load balancer of a cluster: all IP addresses, or else the first host name. A client file takes
/// one host name.
pub fn dialled(facts: &Facts) -> Vec<String> {
    let Ingress { ips, names } = Ingress::of(facts);
    match ips.is_empty() {
        true => names.into_iter().take(1).collect(),
        false => ips.iter().map(ToString::to_string).collect(),
    }
}

/// The other host names of the load balancer of a cluster.
pub fn not_dialled(facts: &Facts) -> Vec<String> {
    let Ingress { ips, names } = Ingress::of(facts);
    let dialled = usize::from(ips.is_empty());
    names.into_iter().skip(dialled).collect()
}

/// The line about them; `flag` is the flag that names another address.
pub fn not_dialled_line(facts: &Facts, flag: &str) -> Option<String> {
    let names = not_dialled(facts);
    (!names.is_empty()).then(|| {
        format!(
            "ℹ️  The load balancer has the host names {} as well, which are not used; {flag} names another address",
            names.join(", ")
        )
    })
}

fn number(port: i32) -> u16 {
    u16::try_from(port).unwrap_or_default()
}

fn cluster_ips(spec: &ServiceSpec) -> Vec<IpAddr> {
    let all = spec.cluster_ips.iter().flatten().chain(&spec.cluster_ip);
    let mut ips: Vec<IpAddr> = vec![];
    for ip in all.filter_map(|ip| ip.parse().ok()) {
        if !ips.contains(&ip) {
            ips.push(ip);
        }
    }
    ips
}

// === impl Ingress ===

impl Ingress {
    /// Nothing unless the Service is a load balancer with an address.
    fn of(facts: &Facts) -> Self {
        let service = facts
            .service
            .as_ref()
            .filter(|_| facts.service_type() == Some("LoadBalancer"));
        let status = service.and_then(|service| service.status.as_ref());
        let ingress = status.and_then(|status| status.load_balancer.as_ref()?.ingress.as_ref());
        let (mut ips, mut names) = (vec![], vec![]);
        for ingress in ingress.into_iter().flatten() {
            match (ingress.ip.as_deref().and_then(|ip| ip.parse().ok()), &ingress.hostname) {
                (Some(ip), _) if !ips.contains(&ip) => ips.push(ip),
                (None, Some(name)) if !name.is_empty() && !names.contains(name) => names.push(name.clone()),
                _ => {}
            }
        }
        Self { ips, names }
    }
}

// === impl AddressType ===

impl AddressType {
    /// The address of a node.
    fn of(self, node: &Node) -> Option<IpAddr> {
        let addresses = node.status.as_ref().and_then(|status| status.addresses.as_ref());
        let of = |kind: &str| {
            let mut addresses = addresses.into_iter().flatten().filter(|address| address.type_ == kind);
            addresses.find_map(|address| address.address.parse().ok())
        };
        match self {
            Self::Auto => of("ExternalIP").or_else(|| of("InternalIP")),
            Self::Internal => of("InternalIP"),
            Self::External => of("ExternalIP"),
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Auto => "ExternalIP or InternalIP",
            Self::Internal => "InternalIP",
            Self::External => "ExternalIP",
        }
    }
}

// === impl Endpoints ===

impl Endpoints {
    pub fn of_ips(ips: Vec<IpAddr>, port: u16) -> Self {
        Self {
            ips,
            address: None,
            port,
        }
    }

    /// Parses endpoints that an operator names.
    pub fn parse(texts: &[String]) -> Result<Self, Error> {
        let mut parsed = Self::default();
        let mut names: Vec<&str> = vec![];
        for text in texts {
            let invalid = || Error::Invalid(text.clone());
            let (host, port) = text.rsplit_once(':').ok_or_else(invalid)?;
            let port: u16 = port.parse().ok().filter(|port| *port != 0).ok_or_else(invalid)?;
            if parsed.port != 0 && parsed.port != port {
                return Err(Error::Ports(parsed.port, port));
            }
            parsed.port = port;
            let bare = host
                .strip_prefix('[')
                .and_then(|host| host.strip_suffix(']'))
                .unwrap_or(host);
            match bare.parse() {
                Ok(IpAddr::V6(_)) if bare == host => return Err(invalid()),
                Ok(ip) => parsed.ips.push(ip),
                Err(_) if is_host_name(bare) => names.push(bare),
                Err(_) => return Err(invalid()),
            }
        }
        match (parsed.ips.is_empty(), &names[..]) {
            (false, []) => {}
            (true, [name]) => parsed.address = Some((*name).to_owned()),
            _ => return Err(Error::Mixed(texts.join(", "))),
        }
        Ok(parsed)
    }

    /// The host name that clients dial for the cluster `name`, and that they look for in the server certificate.
    pub fn host(&self, name: &str) -> String {
        self.address.clone().unwrap_or_else(|| format!("{name}.{DOMAIN}"))
    }

    /// The URL that a client's file names.
    pub fn url(&self, name: &str) -> String {
        format!("https://{}:{}", self.host(name), self.port)
    }

    /// The hosts, for the line about them.
    pub fn hosts(&self) -> Vec<String> {
        let ips = self.ips.iter().map(ToString::to_string);
        ips.chain(self.address.clone()).collect()
    }

    /// The line about the addresses.
    pub fn line(&self) -> String {
        match &self.address {
            Some(name) => format!("ℹ️  Found ClusterMesh service address: {name}"),
            None => format!("ℹ️  Found ClusterMesh service IPs: [{}]", self.hosts().join(" ")),
        }
    }

    /// Host and port of each address: `192.0.2.7:2379`, `[2001:db8::7]:2379`, `store.example:2379`.
    pub fn addresses(&self) -> Vec<String> {
        let of_ip = |ip: &IpAddr| std::net::SocketAddr::new(*ip, self.port).to_string();
        let named = self.address.iter().map(|name| format!("{name}:{}", self.port));
        self.ips.iter().map(of_ip).chain(named).collect()
    }
}

/// Whether `text` is a DNS name.
fn is_host_name(text: &str) -> bool {
    let is_label = |label: &str| {
        let is_valid = |c: char| c.is_ascii_alphanumeric() || c == '-';
        !label.is_empty() && label.len() <= 63 && label.chars().all(is_valid) && !label.starts_with('-')
    };
    text.len() <= 253 && text.trim_end_matches('.').split('.').all(is_label)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    const FLAG: &str = "--source-endpoint";

    fn facts(service: Value, nodes: Value) -> Facts {
        serde_json::from_value(
            json!({"context": "tokyo", "namespace": "kube-system", "service": service, "nodes": nodes}),
        )
        .unwrap()
    }

    fn node(name: &str, ready: &str, addresses: &[(&str, &str)]) -> Value {
        let addresses: Vec<_> = addresses
            .iter()
            .map(|(kind, ip)| json!({"type": kind, "address": ip}))
            .collect();
        json!({"metadata": {"name": name}, "status": {"addresses": addresses,
            "conditions": [{"type": "Ready", "status": ready}]}})
    }

    fn found(facts: &Facts, nodes: AddressType) -> Result<Vec<String>, String> {
        discover(facts, nodes, FLAG)
            .map(|found| found.addresses())
            .map_err(|error| error.to_string())
    }

    #[test]
    fn a_node_port_is_reached_at_all_ready_nodes_and_the_address_type_is_chosen() {
        let nodes = json!([
            node("a", "True", &[("InternalIP", "10.0.0.1"), ("ExternalIP", "192.0.2.1")]),
            node("b", "False", &[("InternalIP", "10.0.0.2")]),
            node("c", "True", &[("Hostname", "c"), ("InternalIP", "10.0.0.3")]),
        ]);
        let facts = facts(
            json!({"spec": {"type": "NodePort", "ports": [{"port": 2379, "nodePort": 32379}]}}),
            nodes,
        );
        assert_eq!(
            found(&facts, AddressType::Auto).unwrap(),
            ["192.0.2.1:32379", "10.0.0.3:32379"]
        );
        assert_eq!(
            found(&facts, AddressType::Internal).unwrap(),
            ["10.0.0.1:32379", "10.0.0.3:32379"]
        );
        assert_eq!(found(&facts, AddressType::External).unwrap(), ["192.0.2.1:32379"]);
        let line = discover(&facts, AddressType::Internal, FLAG).unwrap().line();
        assert_eq!(line, "ℹ️  Found ClusterMesh service IPs: [10.0.0.1 10.0.0.3]");
    }

    #[test]
    fn the_host_name_of_a_load_balancer_stays_a_name_and_a_pending_one_is_an_error() {
        let service = |ingress: Value| {
            let spec = json!({"type": "LoadBalancer", "ports": [{"port": 2379, "nodePort": 30000}]});
            facts(
                json!({"spec": spec, "status": {"loadBalancer": {"ingress": ingress}}}),
                json!([]),
            )
        };
        let named = service(json!([{"hostname": "a.elb.amazonaws.com"}]));
        let endpoints = discover(&named, AddressType::Auto, FLAG).unwrap();
        assert_eq!(endpoints.url("hk"), "https://a.elb.amazonaws.com:2379");
        assert_eq!(
            endpoints.line(),
            "ℹ️  Found ClusterMesh service address: a.elb.amazonaws.com"
        );
        let both = service(json!([{"ip": "192.0.2.7"}, {"ip": "2001:db8::7"}]));
        assert_eq!(
            found(&both, AddressType::Auto).unwrap(),
            ["192.0.2.7:2379", "[2001:db8::7]:2379"]
        );
        let several = service(json!([{"hostname": "a.example"}, {"hostname": "b.example"}, {"hostname": "b.example"}]));
        assert_eq!(found(&several, AddressType::Auto).unwrap(), ["a.example:2379"]);
        assert_eq!(
            (dialled(&several), not_dialled(&several)),
            (vec!["a.example".to_owned()], vec!["b.example".to_owned()])
        );
        let line = "ℹ️  The load balancer has the host names b.example as well, which are not used; --source-endpoint names \
            another address";
        assert_eq!(not_dialled_line(&several, FLAG).unwrap(), line);
        let mixed = service(
            json!([{"hostname": "a.example"}, {"ip": "192.0.2.7", "hostname": "c.example"}, {"ip": "192.0.2.8"}]),
        );
        assert_eq!(
            found(&mixed, AddressType::Auto).unwrap(),
            ["192.0.2.7:2379", "192.0.2.8:2379"]
        );
        assert_eq!(not_dialled(&mixed), ["a.example"]);
        assert_eq!(not_dialled_line(&both, FLAG), None);
        let error = found(&service(json!([])), AddressType::Auto).unwrap_err();
        assert!(error.contains("no address yet") && error.contains(FLAG), "{error}");
    }

    #[test]
    fn a_cluster_ip_is_an_address_and_a_missing_service_says_what_to_do() {
        let spec = json!({"clusterIP": "10.96.0.7", "clusterIPs": ["10.96.0.7"], "ports": [{"port": 2379}]});
        let facts_with = facts(json!({"spec": spec}), json!([]));
        assert_eq!(found(&facts_with, AddressType::Auto).unwrap(), ["10.96.0.7:2379"]);
        let error = found(&facts(Value::Null, json!([])), AddressType::Auto).unwrap_err();
        assert!(
            error.contains("kube-system/clustermesh-apiserver") && error.contains("\"tokyo\""),
            "{error}"
        );
        let headless = facts(
            json!({"spec": {"clusterIP": "None", "ports": [{"port": 2379}]}}),
            json!([]),
        );
        assert!(
            found(&headless, AddressType::Auto)
                .unwrap_err()
                .contains("no ClusterIP")
        );
    }

    #[test]
    fn endpoints_of_the_operator_are_checked() {
        let parse = |texts: &[&str]| {
            let texts: Vec<_> = texts.iter().map(|text| (*text).to_owned()).collect();
            Endpoints::parse(&texts)
                .map(|found| found.addresses())
                .map_err(|error| error.to_string())
        };
        assert_eq!(
            parse(&["192.0.2.7:1", "192.0.2.8:1"]).unwrap(),
            ["192.0.2.7:1", "192.0.2.8:1"]
        );
        assert_eq!(parse(&["[2001:db8::7]:1"]).unwrap(), ["[2001:db8::7]:1"]);
        assert_eq!(parse(&["store.example:443"]).unwrap(), ["store.example:443"]);
        assert!(
            parse(&["192.0.2.7:1", "192.0.2.8:2"])
                .unwrap_err()
                .contains("port mismatch (1 != 2)")
        );
        assert!(parse(&["a.example:1", "192.0.2.8:1"]).unwrap_err().contains("mix"));
        for bad in ["192.0.2.7", "192.0.2.7:0", ":1", "2001:db8::7:1", "a b:1", "a:x"] {
            assert!(parse(&[bad]).unwrap_err().contains("must be HOST:PORT"), "{bad}");
        }
    }
}
