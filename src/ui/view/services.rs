//! What is shown of services, and of keys that somebody looks for.

use serde::Serialize;
use utoipa::ToSchema;

/// A global service, in all clusters.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct Service {
    pub namespace: String,
    pub name: String,
    /// Where the service exists, by cluster.
    pub clusters: Vec<ServiceIn>,
    /// Differences between clusters that make traffic fail.
    pub conflicts: Vec<String>,
}

/// A global service in one cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, ToSchema)]
pub struct ServiceIn {
    pub cluster: String,
    /// Addresses that get traffic.
    pub ready: usize,
    /// Addresses of its endpoint slices that get none.
    pub not_ready: usize,
    /// Name, number and protocol of each port.
    pub ports: Vec<String>,
    /// Cluster addresses.
    pub addresses: Vec<String>,
    /// Whether other clusters send traffic to its backends; absent without the service itself.
    pub shared: Option<bool>,
    /// Whether a ServiceExport exports it.
    pub exported: bool,
    /// The session affinity that its export names.
    pub session_affinity: Option<String>,
}

/// A part of the services.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct Services {
    /// Services that match the search.
    pub total: usize,
    /// The first of them in `services`.
    pub offset: usize,
    pub services: Vec<Service>,
    /// Why the list is not complete, if so.
    pub incomplete: Option<String>,
}

/// The answer to a look-up.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
pub struct Findings {
    /// What the question was taken for.
    pub looked_for: String,
    pub findings: Vec<Finding>,
    /// Why there may be more, if so.
    pub incomplete: Option<String>,
}

/// A key that was found.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
pub struct Finding {
    pub key: String,
    /// The kind of the key, such as `nodes`.
    pub kind: String,
    /// The cluster that the key comes from; absent if the key does not say.
    pub cluster: Option<String>,
    /// Whether the key was mirrored from another cluster.
    pub is_mirrored: bool,
    /// The revision of this store since which the key exists.
    pub since_revision: i64,
    /// The revision of this store in which the key changed last.
    pub changed_revision: i64,
    /// How often the key was written since it exists.
    pub version: i64,
    /// The size of the value.
    pub bytes: usize,
    /// How the value is encoded in the store: `json`, `zstd protobuf`, `text` or `binary`.
    pub encoding: String,
    /// Whether only the beginning of the value is there, as text or base64: the value is large, or the answer is.
    pub is_cut: bool,
    /// The decoded value; binary values as base64.
    #[schema(value_type = Object)]
    pub value: serde_json::Value,
}
