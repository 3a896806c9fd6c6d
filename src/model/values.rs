//! The values of the keys, as agents read them: JSON with Cilium's fields in Cilium's order, so that they are equal byte
//! for byte. The table in `keys` has the key of each value.

use super::ip::{Cidr, GoIp};
use serde::Serialize;
use std::collections::BTreeMap;

/// Label or annotation maps.
pub type Strings = BTreeMap<String, String>;

/// `cilium/state/nodes/v1/<cluster>/<node>` (Cilium: pkg/node/types/node.go). Empty fields are written, too.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Node {
    pub name: String,
    pub cluster: String,
    #[serde(rename = "IPAddresses")]
    pub ip_addresses: Option<Vec<NodeAddress>>,
    #[serde(rename = "IPv4AllocCIDR")]
    pub ipv4_alloc_cidr: Option<Cidr>,
    #[serde(rename = "IPv4SecondaryAllocCIDRs")]
    pub ipv4_secondary_alloc_cidrs: Option<Vec<Cidr>>,
    #[serde(rename = "IPv6AllocCIDR")]
    pub ipv6_alloc_cidr: Option<Cidr>,
    #[serde(rename = "IPv6SecondaryAllocCIDRs")]
    pub ipv6_secondary_alloc_cidrs: Option<Vec<Cidr>>,
    #[serde(rename = "IPv4HealthIP")]
    pub ipv4_health_ip: GoIp,
    #[serde(rename = "IPv6HealthIP")]
    pub ipv6_health_ip: GoIp,
    #[serde(rename = "IPv4IngressIP")]
    pub ipv4_ingress_ip: GoIp,
    #[serde(rename = "IPv6IngressIP")]
    pub ipv6_ingress_ip: GoIp,
    #[serde(rename = "ClusterID")]
    pub cluster_id: u32,
    pub source: &'static str,
    pub encryption_key: u8,
    pub labels: Option<Strings>,
    pub annotations: Option<Strings>,
    pub wireguard_pub_key: String,
    #[serde(rename = "BootID")]
    pub boot_id: String,
}

#[derive(Clone, Debug, Serialize)]
pub struct NodeAddress {
    /// `InternalIP`, `ExternalIP`, `CiliumInternalIP`, …
    #[serde(rename = "Type")]
    pub kind: String,
    #[serde(rename = "IP")]
    pub ip: GoIp,
}

/// `cilium/state/ip/v1/default/<ip>` (Cilium: pkg/identity/identity.go).
#[derive(Clone, Debug, Serialize)]
pub struct IpIdentity {
    #[serde(rename = "IP")]
    pub ip: GoIp,
    /// Always null: the key is an address, not a network.
    #[serde(rename = "Mask")]
    pub mask: Option<String>,
    #[serde(rename = "HostIP")]
    pub host_ip: GoIp,
    #[serde(rename = "ID")]
    pub id: u32,
    #[serde(rename = "Key")]
    pub key: u8,
    #[serde(rename = "Metadata")]
    pub metadata: &'static str,
    #[serde(rename = "K8sNamespace", skip_serializing_if = "String::is_empty")]
    pub k8s_namespace: String,
    #[serde(rename = "K8sPodName", skip_serializing_if = "String::is_empty")]
    pub k8s_pod_name: String,
    #[serde(rename = "K8sServiceAccount", skip_serializing_if = "String::is_empty")]
    pub k8s_service_account: String,
    #[serde(rename = "NamedPorts", skip_serializing_if = "Vec::is_empty")]
    pub named_ports: Vec<NamedPort>,
    /// `regional`: for clusters of the same region. Only Isthmus writes and reads the field.
    #[serde(rename = "SyncScope", skip_serializing_if = "Option::is_none")]
    pub sync_scope: Option<&'static str>,
}

/// A port with a name that network policies can refer to.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct NamedPort {
    pub name: String,
    pub port: u16,
    pub protocol: String,
}

/// Port name → port; the name of an unnamed port is empty.
pub type Ports = BTreeMap<String, Port>;

/// A port of a frontend or of a backend.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Port {
    pub protocol: String,
    pub port: u16,
}

/// `cilium/state/services/v1/<cluster>/<namespace>/<name>` (Cilium: pkg/clustermesh/store/store.go).
#[derive(Clone, Debug, Serialize)]
pub struct Service {
    pub cluster: String,
    pub namespace: String,
    pub name: String,
    /// Cluster IP → ports.
    pub frontends: BTreeMap<String, Ports>,
    /// Address of a backend → ports; `hostnames` and `zones` have the same keys.
    pub backends: BTreeMap<String, Ports>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub hostnames: Strings,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub zones: BTreeMap<String, Zone>,
    pub labels: Strings,
    pub selector: Strings,
    #[serde(rename = "includeExternal")]
    pub include_external: bool,
    pub shared: bool,
    #[serde(rename = "clusterID")]
    pub cluster_id: u32,
}

/// The zone of a backend.
#[derive(Clone, Debug, Serialize)]
pub struct Zone {
    pub zone: String,
    /// The zones whose clients should use the backend.
    #[serde(rename = "forZones")]
    pub for_zones: Vec<ForZone>,
}

#[derive(Clone, Debug, Serialize)]
pub struct ForZone {
    pub name: String,
}

/// `cilium/state/serviceexports/v1/<cluster>/<namespace>/<name>` (Cilium:
/// pkg/clustermesh/mcsapi/types/mcsapiservicespec.go).
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ServiceExport {
    pub cluster: String,
    pub name: String,
    pub namespace: String,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: Strings,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: Strings,
    /// For readers of older versions, which expect upper-case names.
    #[serde(rename = "Labels", skip_serializing_if = "BTreeMap::is_empty")]
    pub old_labels: Strings,
    /// For readers of older versions, which expect upper-case names.
    #[serde(rename = "Annotations", skip_serializing_if = "BTreeMap::is_empty")]
    pub old_annotations: Strings,
    pub export_creation_timestamp: Option<String>,
    pub ports: Vec<ExportPort>,
    #[serde(rename = "type")]
    pub kind: &'static str,
    pub session_affinity: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub session_affinity_config: Option<SessionAffinityConfig>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ip_families: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub internal_traffic_policy: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub traffic_distribution: Option<String>,
}

#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ExportPort {
    #[serde(skip_serializing_if = "String::is_empty")]
    pub name: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub protocol: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub app_protocol: Option<String>,
    pub port: i32,
}

#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct SessionAffinityConfig {
    #[serde(rename = "clientIP")]
    pub client_ip: ClientIp,
}

#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ClientIp {
    pub timeout_seconds: i32,
}

/// `cilium/state/endpointslices/v1/<cluster>/<namespace>/<slice>`: the message before compression (zstd), see
/// `proto/endpointslice.proto`.
pub mod slice {
    #![allow(unreachable_pub, clippy::all, clippy::pedantic)]
    tonic::include_proto!("endpointslice");
}
