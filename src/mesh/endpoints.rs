//! The addresses at which other clusters reach the store of a cluster.
//!
//! The addresses of nodes are in this order: the first address of each node, in the order in which the API lists the nodes;
//! then the further addresses, which are those of the second IP family where nodes have two. Addresses of a family that the
//! Service does not have are left out: no node answers there.
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
         address of type {wanted} in an IP family of the Service; choose another --node-address-type, or name the addresses with {flag}"
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
    #[error(
        "{address} cannot be the address of the store for other clusters: {why}; name one that they reach, such as \
         192.0.2.7:2379"
    )]
    Unusable { address: String, why: &'static str },
    #[error(
        "{owner} of context {context:?} has only addresses that other clusters cannot use ({}); name the addresses with {flag}",
        addresses.join(", ")
    )]
    AllUnusable {
        owner: String,
        context: String,
        /// The addresses with the reasons.
        addresses: Vec<String>,
        flag: &'static str,
    },
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
        "ClusterIP" => match cluster_ips(spec) {
            ips if ips.is_empty() => Err(Error::Headless(service)),
            ips => found(ips, number(port.port), facts, &format!("Service {service}"), flag),
        },
        "NodePort" => {
            let port = port
                .node_port
                .filter(|port| *port != 0)
                .ok_or(Error::NoNodePort(service))?;
            let ready: Vec<&Node> = facts.ready_nodes().collect();
            let ips = nodes.all(&ready, spec);
            match ips.is_empty() {
                true => Err(Error::NoNode {
                    nodes: facts.nodes.len(),
                    wanted: nodes.name(),
                    context: context(),
                    flag,
                }),
                false => found(ips, number(port), facts, "the list of Ready nodes", flag),
            }
        }
        "LoadBalancer" => load_balancer(facts, number(port.port), service, flag),
        kind => Err(Error::Kind {
            kind: kind.to_owned(),
            service,
        }),
    }
}

/// Whether a Service has the family of an address, as far as the API says.
fn has_family(service: &ServiceSpec, ip: IpAddr) -> bool {
    let family = if ip.is_ipv4() { "IPv4" } else { "IPv6" };
    let families = service.ip_families.as_deref().unwrap_or_default();
    families.is_empty() || families.iter().any(|one| one == family)
}

/// The endpoints at the addresses of `owner` that other clusters can use.
fn found(ips: Vec<IpAddr>, port: u16, facts: &Facts, owner: &str, flag: &'static str) -> Result<Endpoints, Error> {
    let (usable, others): (Vec<IpAddr>, Vec<IpAddr>) = ips.into_iter().partition(|ip| unusable(*ip).is_none());
    match usable.is_empty() {
        false => Ok(Endpoints::of_ips(usable, port)),
        true => Err(Error::AllUnusable {
            owner: owner.to_owned(),
            context: facts.context.clone(),
            addresses: others
                .into_iter()
                .map(|ip| format!("{ip}: {}", unusable(ip).unwrap_or_default()))
                .collect(),
            flag,
        }),
    }
}

/// Why other clusters cannot use an address; `None` if they may.
fn unusable(ip: IpAddr) -> Option<&'static str> {
    let ip = ip.to_canonical();
    let is_link_local = match ip {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    };
    let is_broadcast = matches!(ip, IpAddr::V4(ip) if ip.is_broadcast());
    match () {
        () if ip.is_unspecified() => Some("it stands for all addresses of a machine, and is none to connect to"),
        () if ip.is_loopback() => Some("it is the loopback address, which leads each client to its own machine"),
        () if ip.is_multicast() => Some("it is a multicast address"),
        () if is_broadcast => Some("it is the broadcast address"),
        () if is_link_local => Some("it is link-local, which no other network reaches"),
        () => None,
    }
}

fn load_balancer(facts: &Facts, port: u16, service: String, flag: &'static str) -> Result<Endpoints, Error> {
    let Ingress { ips, names } = Ingress::of(facts);
    match (ips.is_empty(), names.into_iter().next()) {
        (false, _) => found(ips, port, facts, &format!("the LoadBalancer Service {service}"), flag),
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
    /// The addresses of nodes at which a Service is reached, in the order that the beginning of this file tells; those that
    /// cannot be used if there are no others.
    fn all(self, nodes: &[&Node], service: &ServiceSpec) -> Vec<IpAddr> {
        let is_good = |ip: &IpAddr| unusable(*ip).is_none() && has_family(service, *ip);
        let good: Vec<Vec<IpAddr>> = nodes.iter().map(|node| self.of(node, is_good)).collect();
        let first = good.iter().filter_map(|ips| ips.first());
        let further = good.iter().flat_map(|ips| ips.iter().skip(1));
        let mut all: Vec<IpAddr> = vec![];
        for ip in first.chain(further) {
            if !all.contains(ip) {
                all.push(*ip);
            }
        }
        match all.is_empty() {
            false => all,
            true => nodes
                .iter()
                .flat_map(|node| self.of(node, |ip| unusable(*ip).is_some()))
                .collect(),
        }
    }

    /// The addresses of a node that are wanted.
    fn of(self, node: &Node, is_wanted: impl Fn(&IpAddr) -> bool) -> Vec<IpAddr> {
        let addresses = node.status.as_ref().and_then(|status| status.addresses.as_ref());
        let of = |kind: &str| -> Vec<IpAddr> {
            let addresses = addresses.into_iter().flatten().filter(|address| address.type_ == kind);
            let ips = addresses.filter_map(|address| address.address.parse().ok());
            ips.filter(&is_wanted).collect()
        };
        match self {
            Self::Auto => match of("ExternalIP") {
                ips if ips.is_empty() => of("InternalIP"),
                ips => ips,
            },
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
                Ok(ip) => match unusable(ip) {
                    Some(why) => {
                        return Err(Error::Unusable {
                            address: text.clone(),
                            why,
                        });
                    }
                    None => parsed.ips.push(ip),
                },
                Err(_) if is_local_name(bare) => {
                    let why = "the name leads each client to its own machine";
                    return Err(Error::Unusable {
                        address: text.clone(),
                        why,
                    });
                }
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
    let labels = || text.trim_end_matches('.').split('.');
    // A last label of digits makes an address, which resolvers complete: 127.1.
    let is_number = labels()
        .next_back()
        .is_some_and(|label| label.chars().all(|c| c.is_ascii_digit()));
    text.len() <= 253 && labels().all(is_label) && !is_number
}

/// Whether a DNS name stands for the machine that resolves it.
fn is_local_name(text: &str) -> bool {
    let text = text.trim_end_matches('.').to_ascii_lowercase();
    text == "localhost" || text.ends_with(".localhost")
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
    fn nodes_of_two_families_are_reached_at_all_addresses_the_first_ones_first() {
        let nodes = json!([
            node(
                "a",
                "True",
                &[
                    ("InternalIP", "fe80::1"),
                    ("InternalIP", "10.0.0.1"),
                    ("InternalIP", "2001:db8::1")
                ]
            ),
            node(
                "b",
                "True",
                &[
                    ("InternalIP", "10.0.0.2"),
                    ("InternalIP", "2001:db8::2"),
                    ("Hostname", "b")
                ]
            ),
            node(
                "c",
                "True",
                &[
                    ("InternalIP", "10.0.0.3"),
                    ("ExternalIP", "192.0.2.3"),
                    ("ExternalIP", "2001:db8::3")
                ]
            ),
        ]);
        let with = |families: Value| {
            let spec = json!({"type": "NodePort", "ipFamilies": families, "ports": [{"port": 2379, "nodePort": 1}]});
            facts(json!({"spec": spec}), nodes.clone())
        };
        let both = with(json!(["IPv4", "IPv6"]));
        let internal = [
            "10.0.0.1:1",
            "10.0.0.2:1",
            "10.0.0.3:1",
            "[2001:db8::1]:1",
            "[2001:db8::2]:1",
        ];
        assert_eq!(found(&both, AddressType::Internal).unwrap(), internal);
        let auto = [
            "10.0.0.1:1",
            "10.0.0.2:1",
            "192.0.2.3:1",
            "[2001:db8::1]:1",
            "[2001:db8::2]:1",
            "[2001:db8::3]:1",
        ];
        assert_eq!(found(&both, AddressType::Auto).unwrap(), auto);
        assert_eq!(found(&with(Value::Null), AddressType::Auto).unwrap(), auto);
        // A Service of one family is reached in that family.
        assert_eq!(found(&with(json!(["IPv4"])), AddressType::Auto).unwrap(), auto[..3]);
        let six = found(&with(json!(["IPv6"])), AddressType::Internal).unwrap();
        assert_eq!(six, ["[2001:db8::1]:1", "[2001:db8::2]:1"]);
    }

    #[test]
    fn addresses_that_other_clusters_cannot_use_are_refused_with_the_reason() {
        for (address, why) in [
            ("0.0.0.0:1", "all addresses of a machine"),
            ("[::]:1", "all addresses of a machine"),
            ("127.0.0.1:1", "loopback"),
            ("[::1]:1", "loopback"),
            ("[::ffff:127.0.0.1]:1", "loopback"),
            ("224.0.0.1:1", "multicast"),
            ("[ff02::1]:1", "multicast"),
            ("255.255.255.255:1", "broadcast"),
            ("169.254.1.1:1", "link-local"),
            ("[fe80::1]:1", "link-local"),
            ("localhost:1", "its own machine"),
            ("a.LOCALHOST.:1", "its own machine"),
        ] {
            let error = Endpoints::parse(&[address.to_owned()]).unwrap_err().to_string();
            assert!(error.contains(why) && error.starts_with(address), "{error}");
        }
        let spec = json!({"type": "LoadBalancer", "ports": [{"port": 1, "nodePort": 2}]});
        let balancer = |ingress: Value| {
            facts(
                json!({"spec": spec, "status": {"loadBalancer": {"ingress": ingress}}}),
                json!([]),
            )
        };
        let error = found(
            &balancer(json!([{"ip": "0.0.0.0"}, {"ip": "fe80::1"}])),
            AddressType::Auto,
        )
        .unwrap_err();
        for part in [
            "the LoadBalancer Service kube-system/clustermesh-apiserver",
            "0.0.0.0: it stands",
            "fe80::1: it is link",
            FLAG,
        ] {
            assert!(error.contains(part), "no {part:?} in {error}");
        }
        // One that can be used is enough.
        let one = found(
            &balancer(json!([{"ip": "0.0.0.0"}, {"ip": "192.0.2.7"}])),
            AddressType::Auto,
        );
        assert_eq!(one.unwrap(), ["192.0.2.7:1"]);
        let nodes = json!([node("a", "True", &[("InternalIP", "127.0.0.1")])]);
        let service = json!({"spec": {"type": "NodePort", "ports": [{"port": 1, "nodePort": 2}]}});
        let error = found(&facts(service, nodes), AddressType::Auto).unwrap_err();
        assert!(
            error.contains("Ready nodes of context \"tokyo\"") && error.contains("loopback"),
            "{error}"
        );
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
        for bad in [
            "192.0.2.7",
            "192.0.2.7:0",
            ":1",
            "2001:db8::7:1",
            "a b:1",
            "a:x",
            "127.1:1",
        ] {
            assert!(parse(&[bad]).unwrap_err().contains("must be HOST:PORT"), "{bad}");
        }
    }
}
