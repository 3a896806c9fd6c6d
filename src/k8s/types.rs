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
        /// The kinds of objects that are published.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Kind { $($kind,)* }

        /// An object of any kind.
        #[derive(Clone, Debug)]
        pub enum Object { $($kind($type),)* }

        impl Kind {
            pub const ALL: &'static [Self] = &[$(Self::$kind,)*];

            /// The kind that a manifest's `kind` and `apiVersion` name. Without an API version, the kind
            /// alone decides.
            pub fn of(kind: &str, api_version: Option<&str>) -> Option<Self> {
                let group = |v: &str| v.split_once('/').map_or("", |(g, _)| g).to_owned();
                match (kind, api_version.map(group)) {
                    $((stringify!($type), None) => Some(Self::$kind),
                    (stringify!($type), Some(g)) if g == $group => Some(Self::$kind),)*
                    _ => None,
                }
            }

            /// Whether a cluster works without this kind, whose definition may be installed late or never.
            pub fn is_optional(self) -> bool {
                self == Self::ServiceExport
            }

            /// The kind's name in Kubernetes.
            pub fn name(self) -> &'static str {
                match self { $(Self::$kind => stringify!($type),)* }
            }

            /// The kind's path in the API.
            pub(super) fn api_name(self) -> ApiName {
                let (group, version, plural) = match self {
                    $(Self::$kind => ($group, $version, $plural),)*
                };
                ApiName { group, version, plural }
            }

            /// Reads an object of this kind.
            pub fn parse(self, value: serde_json::Value) -> serde_json::Result<Object> {
                Ok(match self { $(Self::$kind => Object::$kind(serde_json::from_value(value)?),)* })
            }
        }

        impl Object {
            pub fn kind(&self) -> Kind {
                match self { $(Self::$kind(_) => Kind::$kind,)* }
            }

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
    fn meta_mut(&mut self) -> &mut Meta;
}

/// Identifies a kind in the paths of the API.
#[derive(Clone, Copy, Debug)]
pub(super) struct ApiName {
    /// Empty for Kubernetes' core group.
    pub(super) group: &'static str,
    pub(super) version: &'static str,
    pub(super) plural: &'static str,
}

/// Identifies an object.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectKey {
    pub kind: Kind,
    /// Empty for objects without a namespace.
    pub namespace: Arc<str>,
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
    /// The metadata that is published. The rest is dropped: managed fields alone can be larger than an object.
    Meta {
        name: String,
        namespace: String,
        labels: Strings,
        annotations: Strings,
        resource_version: String,
        creation_timestamp: Option<Time>,
    }

    /// `v1` Namespace, whose annotations say whether its objects are exported.
    Namespace { metadata: Meta, }

    /// `cilium.io/v2` CiliumNode.
    CiliumNode { metadata: Meta, spec: NodeSpec, }
    NodeSpec {
        addresses: Vec<NodeAddress>,
        ipam: NodeIpam,
        health: IpPair,
        ingress: IpPair,
        encryption: Encryption,
        boot_id as "bootid": String,
    }
    NodeAddress { kind as "type": String, ip: String, }
    /// The networks that a node's pods get their addresses from.
    NodeIpam { pod_cidrs as "podCIDRs": Vec<String>, pools: NodePools, }
    /// The pools of multi-pool IPAM.
    NodePools { allocated: Vec<NodePool>, }
    NodePool { cidrs: Vec<String>, }
    /// One address per family.
    IpPair { ipv4: String, ipv6: String, }
    /// The index of the key for transparent encryption; 0 without encryption.
    Encryption { key: i64, }

    /// `cilium.io/v2` CiliumIdentity.
    CiliumIdentity { metadata: Meta, security_labels as "security-labels": Strings, }

    /// `cilium.io/v2` CiliumEndpoint.
    CiliumEndpoint { metadata: Meta, status: EndpointStatus, }
    EndpointStatus {
        identity: EndpointIdentity,
        networking: Networking,
        encryption: Encryption,
        service_account as "service-account": String,
        named_ports as "named-ports": Vec<NamedPort>,
    }
    EndpointIdentity { id: i64, }
    Networking { addressing: Vec<IpPair>, node: String, }
    NamedPort { name: String, port: i64, protocol: String, }

    /// `cilium.io/v2alpha1` CiliumEndpointSlice: many endpoints of one namespace.
    CiliumEndpointSlice { metadata: Meta, namespace: String, endpoints: Vec<CoreEndpoint>, }
    /// An endpoint of a CiliumEndpointSlice.
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
    ServicePort { name: String, protocol: String, port: i32, app_protocol: Option<String>, }
    SessionAffinityConfig { client_ip as "clientIP": ClientIp, }
    /// Session affinity by client address.
    ClientIp { timeout_seconds: Option<i32>, }

    /// `discovery.k8s.io/v1` EndpointSlice.
    EndpointSlice {
        metadata: Meta,
        address_type: String,
        endpoints: Vec<SliceEndpoint>,
        ports: Vec<SlicePort>,
    }
    /// A backend of an EndpointSlice.
    SliceEndpoint {
        addresses: Vec<String>,
        conditions: Conditions,
        hostname: Option<String>,
        deprecated_topology: Strings,
        node_name: Option<String>,
        zone: Option<String>,
        hints: Option<Hints>,
    }
    /// The state of a backend. Unset differs from false.
    Conditions { ready: Option<bool>, serving: Option<bool>, terminating: Option<bool>, }
    Hints { for_zones: Vec<ForZone>, }
    /// A zone that should use a backend.
    ForZone { name: String, }
    /// A port of all backends of an EndpointSlice.
    SlicePort {
        name: Option<String>,
        protocol: Option<String>,
        port: Option<i32>,
        app_protocol: Option<String>,
    }

    /// `multicluster.x-k8s.io/v1beta1` ServiceExport; the fields read here are the same in `v1alpha1`.
    ServiceExport { metadata: Meta, spec: ServiceExportSpec, }
    /// The labels and annotations that are exported with a service.
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
