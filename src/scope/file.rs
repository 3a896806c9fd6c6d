//! The content of a scope file.

use super::glob::Glob;
use super::rules::Rules;
use crate::model::keys::Scope as KeyKind;
use std::collections::{BTreeMap, BTreeSet};

/// A valid scope file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ScopeFile {
    /// The region of this cluster.
    pub region: Option<String>,
    pub export: Export,
    pub import: Import,
}

/// What this cluster shows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Export {
    pub endpoints: Rules,
    pub identities: Identities,
    /// Legacy services and their EndpointSlices.
    pub services: Rules,
    pub service_exports: Rules,
}

/// What this cluster takes from others.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Import {
    /// Cluster names → region, for clusters that publish none.
    regions: Vec<(Glob, String)>,
    /// The first entry that matches a cluster governs it.
    pub clusters: Vec<ClusterRules>,
}

/// What this cluster takes from some remote clusters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClusterRules {
    pub name: String,
    /// Cluster names; empty: any.
    pub clusters: Vec<Glob>,
    /// Regions; empty: any, also an unknown one.
    pub regions: Vec<String>,
    /// The kinds of keys that are imported. The mirror of another kind is empty, and complete.
    pub kinds: BTreeSet<KeyKind>,
    pub endpoints: Rules,
    pub identities: Identities,
    /// Legacy services and EndpointSlices.
    pub services: Rules,
    pub service_exports: Rules,
    /// The keys of each kind that a cluster may have here.
    pub limits: BTreeMap<KeyKind, u64>,
}

/// Which identities are exported or imported.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Identities {
    #[default]
    All,
    /// Those that an exported or imported endpoint has.
    Used,
}

impl Import {
    /// `regions` are put in the order in which they count: exact names first, then the pattern with the most characters.
    pub fn new(mut regions: Vec<(Glob, String)>, clusters: Vec<ClusterRules>) -> Self {
        regions.sort_by_key(|(glob, _)| (!glob.is_exact(), std::cmp::Reverse(glob.literals()), glob.to_string()));
        Self { regions, clusters }
    }

    /// The region of a remote cluster: the published one, else the one that this file gives.
    pub fn region<'a>(&'a self, cluster: &str, published: Option<&'a str>) -> Option<&'a str> {
        published.filter(|region| !region.is_empty()).or_else(|| {
            let given = self.regions.iter().find(|(glob, _)| glob.matches(cluster));
            given.map(|(_, region)| &**region)
        })
    }

    /// The entry that governs a remote cluster of this region; `None`: everything is imported.
    pub fn rules(&self, cluster: &str, region: Option<&str>) -> Option<&ClusterRules> {
        self.clusters.iter().find(|entry| entry.governs(cluster, region))
    }

    /// Whether any decision can depend on the namespaces of this cluster.
    pub fn need_existing(&self) -> bool {
        let lists = |entry: &ClusterRules| {
            let lists = [&entry.endpoints, &entry.services, &entry.service_exports];
            lists.into_iter().any(Rules::need_existing)
        };
        self.clusters.iter().any(lists)
    }
}

impl ClusterRules {
    fn governs(&self, cluster: &str, region: Option<&str>) -> bool {
        let of_region = |regions: &[String]| region.is_some_and(|region| regions.iter().any(|r| r == region));
        (self.clusters.is_empty() || self.clusters.iter().any(|glob| glob.matches(cluster)))
            && (self.regions.is_empty() || of_region(&self.regions))
    }

    /// The rules for a kind of keys; `None` for nodes and identities, which have none.
    pub fn list(&self, kind: KeyKind) -> Option<&Rules> {
        match kind {
            KeyKind::Endpoints => Some(&self.endpoints),
            KeyKind::Services | KeyKind::EndpointSlices => Some(&self.services),
            KeyKind::ServiceExports => Some(&self.service_exports),
            KeyKind::Identities | KeyKind::Nodes => None,
        }
    }
}

/// The name of a kind of keys in the file.
pub fn kind_name(kind: KeyKind) -> &'static str {
    match kind {
        KeyKind::Identities => "identities",
        KeyKind::Endpoints => "endpoints",
        KeyKind::Nodes => "nodes",
        KeyKind::Services => "services",
        KeyKind::ServiceExports => "serviceExports",
        KeyKind::EndpointSlices => "endpointSlices",
    }
}
