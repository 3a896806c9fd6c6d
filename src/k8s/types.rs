//! Kubernetes objects with only the fields that are published.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

/// Label or annotation maps.
pub type Strings = BTreeMap<String, String>;

macro_rules! resources {
    ($($kind:ident: $type:ident, $group:literal, $version:literal, $plural:literal;)*) => {
        /// The kinds of objects that are watched.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Kind { $($kind,)* }

        /// One object of any kind.
        #[derive(Clone, Debug)]
        pub enum Object { $($kind($type),)* }

        impl Kind {
            /// All of them.
            pub const ALL: &'static [Self] = &[$(Self::$kind,)*];

            /// The kind that a manifest's `kind` and `apiVersion` name. Without an API version the kind
            /// alone decides.
            pub fn of(kind: &str, api_version: Option<&str>) -> Option<Self> {
                let group = |v: &str| v.split_once('/').map_or("", |(g, _)| g).to_owned();
                match (kind, api_version.map(group)) {
                    $((stringify!($type), None) => Some(Self::$kind),
                    (stringify!($type), Some(g)) if g == $group => Some(Self::$kind),)*
                    _ => None,
                }
            }

            /// Whether a cluster may do without: its definition may come late, or never.
            pub fn is_optional(self) -> bool {
                self == Self::ServiceExport
            }

            /// Its name in Kubernetes.
            pub fn name(self) -> &'static str {
                match self { $(Self::$kind => stringify!($type),)* }
            }

            /// Where the API has it: group, version and plural.
            pub fn resource(self) -> (&'static str, &'static str, &'static str) {
                match self { $(Self::$kind => ($group, $version, $plural),)* }
            }

            /// Reads an object of this kind.
            pub fn parse(self, value: serde_json::Value) -> serde_json::Result<Object> {
                Ok(match self { $(Self::$kind => Object::$kind(serde_json::from_value(value)?),)* })
            }
        }

        impl Object {
            /// Its kind.
            pub fn kind(&self) -> Kind {
                match self { $(Self::$kind(_) => Kind::$kind,)* }
            }

            /// Its metadata.
            pub fn meta(&self) -> &Meta {
                match self { $(Self::$kind(o) => &o.metadata,)* }
            }
        }

        $(impl HasMeta for $type {
            fn meta_mut(&mut self) -> &mut Meta { &mut self.metadata }
        }

        impl From<$type> for Object {
            fn from(object: $type) -> Self { Self::$kind(object) }
        })*
    };
}

resources! {
    Namespace: Namespace, "", "v1", "namespaces";
    Node: CiliumNode, "cilium.io", "v2", "ciliumnodes";
    Identity: CiliumIdentity, "cilium.io", "v2", "ciliumidentities";
    Endpoint: CiliumEndpoint, "cilium.io", "v2", "ciliumendpoints";
    CiliumEndpointSlice: CiliumEndpointSlice, "cilium.io", "v2alpha1", "ciliumendpointslices";
    Service: Service, "", "v1", "services";
    EndpointSlice: EndpointSlice, "discovery.k8s.io", "v1", "endpointslices";
    ServiceExport: ServiceExport, "multicluster.x-k8s.io", "v1beta1", "serviceexports";
}

/// An object of one kind, whose metadata can be changed.
pub trait HasMeta {
    /// Its metadata.
    fn meta_mut(&mut self) -> &mut Meta;
}

/// What names an object.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectKey {
    /// Its kind.
    pub kind: Kind,
    /// Its namespace; empty for objects without.
    pub namespace: Arc<str>,
    /// Its name.
    pub name: Arc<str>,
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kind, namespace, name } = self;
        match namespace.is_empty() {
            true => write!(f, "{} {name}", kind.name()),
            false => write!(f, "{} {namespace}/{name}", kind.name()),
        }
    }
}

impl Object {
    /// What names it.
    pub fn key(&self) -> ObjectKey {
        let meta = self.meta();
        ObjectKey {
            kind: self.kind(),
            namespace: (&*meta.namespace).into(),
            name: (&*meta.name).into(),
        }
    }
}

/// Deserializes `null` as the default, as Go does.
fn nullable<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: serde::Deserializer<'de>,
    T: Deserialize<'de> + Default,
{
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

macro_rules! objects {
    ($($(#[$doc:meta])* $name:ident { $($field:ident $(as $wire:literal)?: $type:ty,)* })*) => {
        $($(#[$doc])*
        #[derive(Clone, Debug, Default, Deserialize)]
        #[serde(rename_all = "camelCase")]
        pub struct $name {
            $(#[serde(default, deserialize_with = "nullable" $(, rename = $wire)?)] pub $field: $type,)*
        })*
    };
}

objects! {
    /// What all objects have. Nobody keeps the rest: managed fields alone can be larger than an object.
    Meta {
        name: String,
        namespace: String,
        labels: Strings,
        annotations: Strings,
        resource_version: String,
        creation_timestamp: Option<Time>,
    }

    /// A namespace; its annotations say whether it is global.
    Namespace { metadata: Meta, }

    /// `cilium.io/v2` CiliumNode.
    CiliumNode { metadata: Meta, spec: NodeSpec, }
    /// What a node is.
    NodeSpec {
        addresses: Vec<NodeAddress>,
        ipam: NodeIpam,
        health: IpPair,
        ingress: IpPair,
        encryption: Encryption,
        boot_id as "bootid": String,
    }
    /// An address of a node.
    NodeAddress { kind as "type": String, ip: String, }
    /// Where a node's pods get addresses.
    NodeIpam { pod_cidrs as "podCIDRs": Vec<String>, pools: NodePools, }
    /// Multi-pool IPAM.
    NodePools { allocated: Vec<NodePool>, }
    /// One pool's networks.
    NodePool { cidrs: Vec<String>, }
    /// One address per family.
    IpPair { ipv4: String, ipv6: String, }
    /// A transparent encryption key.
    Encryption { key: i64, }

    /// `cilium.io/v2` CiliumIdentity.
    CiliumIdentity { metadata: Meta, security_labels as "security-labels": Strings, }

    /// `cilium.io/v2` CiliumEndpoint.
    CiliumEndpoint { metadata: Meta, status: EndpointStatus, }
    /// What an endpoint is now.
    EndpointStatus {
        identity: EndpointIdentity,
        networking: Networking,
        encryption: Encryption,
        service_account as "service-account": String,
        named_ports as "named-ports": Vec<NamedPort>,
    }
    /// A numeric identity.
    EndpointIdentity { id: i64, }
    /// Where an endpoint is.
    Networking { addressing: Vec<IpPair>, node: String, }
    /// A port with a name.
    NamedPort { name: String, port: i64, protocol: String, }

    /// `cilium.io/v2alpha1` CiliumEndpointSlice: many endpoints of one namespace.
    CiliumEndpointSlice { metadata: Meta, namespace: String, endpoints: Vec<CoreEndpoint>, }
    /// An endpoint in a slice.
    CoreEndpoint {
        name: String,
        id: i64,
        networking: Networking,
        encryption: Encryption,
        service_account as "service-account": String,
        named_ports as "named-ports": Vec<NamedPort>,
    }

    /// `v1` Service.
    Service { metadata: Meta, spec: ServiceSpec, }
    /// What a service is.
    ServiceSpec {
        kind as "type": String,
        cluster_ip as "clusterIP": String,
        cluster_ips as "clusterIPs": Vec<String>,
        ports: Vec<ServicePort>,
        selector: Strings,
        session_affinity: String,
        session_affinity_config: SessionAffinityConfig,
        ip_families: Vec<String>,
        internal_traffic_policy: Option<String>,
        traffic_distribution: Option<String>,
    }
    /// A port of a service.
    ServicePort { name: String, protocol: String, port: i32, app_protocol: Option<String>, }
    /// Session affinity.
    SessionAffinityConfig { client_ip as "clientIP": ClientIp, }
    /// Affinity by client address.
    ClientIp { timeout_seconds: Option<i32>, }

    /// `discovery.k8s.io/v1` EndpointSlice.
    EndpointSlice {
        metadata: Meta,
        address_type: String,
        endpoints: Vec<SliceEndpoint>,
        ports: Vec<SlicePort>,
    }
    /// A backend.
    SliceEndpoint {
        addresses: Vec<String>,
        conditions: Conditions,
        hostname: Option<String>,
        deprecated_topology: Strings,
        node_name: Option<String>,
        zone: Option<String>,
        hints: Option<Hints>,
    }
    /// What a backend can do; unset differs from false.
    Conditions { ready: Option<bool>, serving: Option<bool>, terminating: Option<bool>, }
    /// Topology hints.
    Hints { for_zones: Vec<ForZone>, }
    /// A zone to serve.
    ForZone { name: String, }
    /// A port of all backends of a slice.
    SlicePort {
        name: Option<String>,
        protocol: Option<String>,
        port: Option<i32>,
        app_protocol: Option<String>,
    }

    /// `multicluster.x-k8s.io/v1beta1` ServiceExport; `v1alpha1` is the same in what matters here.
    ServiceExport { metadata: Meta, spec: ServiceExportSpec, }
    /// What to export with a service.
    ServiceExportSpec { exported_labels: Strings, exported_annotations: Strings, }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kind_goes_with_its_api_group() {
        assert_eq!(
            Kind::of("EndpointSlice", Some("discovery.k8s.io/v1")),
            Some(Kind::EndpointSlice)
        );
        assert_eq!(Kind::of("Service", Some("v1")), Some(Kind::Service));
        assert_eq!(Kind::of("Service", None), Some(Kind::Service));
        assert_eq!(Kind::of("Service", Some("serving.knative.dev/v1")), None);
        assert_eq!(Kind::of("Pod", Some("v1")), None);
    }

    #[test]
    fn null_and_absent_fields_are_empty() {
        let value = serde_json::json!({"metadata": {"name": "s"}, "endpoints": null, "ports": null});
        let Object::EndpointSlice(slice) = Kind::EndpointSlice.parse(value).unwrap() else {
            panic!()
        };
        assert!(slice.endpoints.is_empty() && slice.ports.is_empty());
    }
}
