//! Cluster names and ids, and the configuration that a cluster publishes of itself (Cilium: pkg/clustermesh/types).

use super::gojson;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::sync::Arc;

/// Cilium's default cluster name, which no cluster of a mesh may have.
pub const DEFAULT_NAME: &str = "default";

/// A valid cluster name: 1 to 32 of `a-z`, `0-9` and `-`, without `-` at the start or end.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClusterName(Arc<str>);

/// The identity of a cluster in the mesh.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClusterInfo {
    pub name: ClusterName,
    /// From 1 to [`ClusterInfo::max_connected`].
    pub id: u32,
    /// The number of clusters that the mesh can have: 255 or 511.
    pub max_connected: u32,
}

/// An invalid name or id; the texts are Cilium's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error("ClusterID 0 is reserved")]
    IdZero,
    #[error("ClusterID {id} > {max} is not supported")]
    IdTooLarge { id: u32, max: u32 },
    #[error("--max-connected-clusters={0} is invalid; supported values are [255, 511]")]
    MaxConnected(u32),
    #[error(
        "invalid cluster name: {name:?} must be 1 to 32 lower case alphanumeric characters or '-', and start and end with an alphanumeric one"
    )]
    Name { name: String },
    #[error("cannot use default cluster name (default) with option cluster-id")]
    DefaultName,
}

/// The value of `cilium/cluster-config/<cluster>`. Unknown fields are dropped, as in Cilium's mirror.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterConfig {
    /// The cluster id; 0 if unset.
    #[serde(default, skip_serializing_if = "is_default")]
    pub id: u32,
    #[serde(default)]
    pub capabilities: Capabilities,
    /// The region that the cluster's scope file gives. Only Isthmus knows the field; mirrors do not copy it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub region: Option<String>,
}

/// The guarantees that a cluster gives to readers of its keys.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Capabilities {
    /// Each scope gets a canary once its first state is complete.
    #[serde(default, skip_serializing_if = "is_default")]
    pub synced_canaries: bool,
    /// The keys are mirrored ones, under `cilium/cache`.
    #[serde(default, skip_serializing_if = "is_default")]
    pub cached: bool,
    /// 255 or 511.
    #[serde(default, skip_serializing_if = "is_default")]
    pub max_connected_clusters: u32,
    /// `None`: service exports are not supported; `Some(false)`: they are disabled.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service_exports_enabled: Option<bool>,
    #[serde(default, skip_serializing_if = "is_default")]
    pub endpoint_slices_export_mode: ExportMode,
}

/// The forms in which a cluster exports a global service.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "String", into = "String")]
pub enum ExportMode {
    /// Legacy services only.
    #[default]
    Services,
    ServicesAndEndpointSlices,
    /// EndpointSlices only.
    EndpointSlices,
    /// A mode of a newer version.
    Unknown(String),
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

// === impl ClusterName ===

impl ClusterName {
    pub fn new(name: &str) -> Result<Self, Error> {
        let inner = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        let valid =
            (1..=32).contains(&name.len()) && name.chars().all(inner) && !name.starts_with('-') && !name.ends_with('-');
        valid
            .then(|| Self(name.into()))
            .ok_or_else(|| Error::Name { name: name.to_owned() })
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ClusterName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

// === impl ClusterInfo ===

impl ClusterInfo {
    /// Checks that the cluster can join a mesh.
    pub fn new(name: &str, id: u32, max_connected: u32) -> Result<Self, Error> {
        if ![255, 511].contains(&max_connected) {
            return Err(Error::MaxConnected(max_connected));
        }
        match id {
            0 => return Err(Error::IdZero),
            id if id > max_connected => return Err(Error::IdTooLarge { id, max: max_connected }),
            _ => {}
        }
        if name == DEFAULT_NAME {
            return Err(Error::DefaultName);
        }
        Ok(Self {
            name: ClusterName::new(name)?,
            id,
            max_connected,
        })
    }
}

// === impl ClusterConfig ===

impl ClusterConfig {
    /// The value of the cluster's key.
    pub fn to_json(&self) -> Vec<u8> {
        gojson::to_vec(self)
    }
}

impl From<String> for ExportMode {
    fn from(mode: String) -> Self {
        match &*mode {
            "" => Self::Services,
            "services-and-endpointslices" => Self::ServicesAndEndpointSlices,
            "endpointslices-only" => Self::EndpointSlices,
            _ => Self::Unknown(mode),
        }
    }
}

impl From<ExportMode> for String {
    fn from(mode: ExportMode) -> Self {
        match mode {
            ExportMode::Services => Self::new(),
            ExportMode::ServicesAndEndpointSlices => "services-and-endpointslices".to_owned(),
            ExportMode::EndpointSlices => "endpointslices-only".to_owned(),
            ExportMode::Unknown(mode) => mode,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_ciliums_rules() {
        for good in ["a", "tokyo-cluster", "0x", &"a".repeat(32)] {
            assert!(ClusterName::new(good).is_ok(), "{good}");
        }
        for bad in ["", "-a", "a-", "A", "a.b", "a/b", "..", &"a".repeat(33)] {
            assert!(ClusterName::new(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn ids_are_limited_by_the_size_of_the_mesh() {
        assert_eq!(ClusterInfo::new("c", 0, 255), Err(Error::IdZero));
        assert_eq!(
            ClusterInfo::new("c", 256, 255),
            Err(Error::IdTooLarge { id: 256, max: 255 })
        );
        assert!(ClusterInfo::new("c", 256, 511).is_ok());
        assert_eq!(ClusterInfo::new("c", 1, 300), Err(Error::MaxConnected(300)));
        assert_eq!(ClusterInfo::new("default", 1, 255), Err(Error::DefaultName));
    }

    #[test]
    fn the_configuration_is_ciliums_json() {
        let text = r#"{"id":3,"capabilities":{"syncedCanaries":true,"maxConnectedClusters":255,"serviceExportsEnabled":false,"endpointSlicesExportMode":"services-and-endpointslices"}}"#;
        let config: ClusterConfig = serde_json::from_str(text).unwrap();
        assert_eq!(String::from_utf8(config.to_json()).unwrap(), text);
        assert_eq!(ClusterConfig::default().to_json(), br#"{"capabilities":{}}"#);
        let here: ClusterConfig = serde_json::from_str(r#"{"id":3,"region":"apac"}"#).unwrap();
        assert_eq!(here.to_json(), br#"{"id":3,"capabilities":{},"region":"apac"}"#);
    }
}
