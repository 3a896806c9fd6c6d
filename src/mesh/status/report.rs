//! The report of a look at a cluster, and its summary.

use super::access::Access;
use super::connectivity::Connectivity;
use super::path::Path;
use super::summary::Summary;
use crate::mesh::context::Context;
use crate::mesh::facts::Facts;
use serde::Serialize;
use std::collections::BTreeMap;

/// What a wait adds where time alone helps.
const UNREAD: &str = "the kubelet passes a changed Secret on to its pods within about two minutes";

/// The status of one cluster. The fields are those of Cilium's CLI, and more.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Report {
    pub cluster: Identity,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub access_information: Option<Access>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub connectivity: Option<Connectivity>,
    pub kvstoremesh: Kvstoremesh,
    /// The paths to remote clusters that are broken.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub paths: BTreeMap<String, Path>,
    /// What will break, or is unusual.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
    /// What is wrong apart from connections.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub errors: Vec<String>,
    /// Whether the time for waiting is over.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub timed_out: bool,
    pub healthy: bool,
}

/// Which cluster it is.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Identity {
    pub context: String,
    pub namespace: String,
    pub name: String,
    pub id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cilium_version: Option<String>,
}

/// The mirror of the cluster.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Kvstoremesh {
    pub enabled: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<Connectivity>,
}

impl Report {
    pub(super) fn of(facts: &Facts) -> Self {
        Self {
            cluster: Identity {
                context: facts.context.clone(),
                namespace: facts.namespace.clone(),
                name: facts.setting("cluster-name").to_owned(),
                id: facts.setting("cluster-id").to_owned(),
                cilium_version: facts.cilium_version().map(|version| version.to_string()),
            },
            ..Self::default()
        }
    }

    /// The lines for people, after those of the steps.
    pub fn summary(&self) -> String {
        let mut text = self.connectivity.as_ref().map_or_else(String::new, |agents| {
            let summary = Summary {
                namespace: &self.cluster.namespace,
                agents,
                mirrors: self.kvstoremesh.status.as_ref(),
                paths: &self.paths,
            };
            summary.to_string()
        });
        if !self.warnings.is_empty() {
            text.push('\n');
        }
        for warning in &self.warnings {
            text += &format!("⚠️  {warning}\n");
        }
        text
    }

    /// A report of a cluster whose objects could not be read.
    pub fn failed(context: &Context, why: String) -> Self {
        Self {
            cluster: Identity {
                context: context.name.clone(),
                namespace: context.namespace.clone(),
                ..Identity::default()
            },
            errors: vec![why],
            ..Self::default()
        }
    }

    /// What is wrong, in one sentence; `None` if the cluster is healthy.
    pub fn problem(&self) -> Option<String> {
        let problem = self.errors.first().cloned().or_else(|| self.disconnected())?;
        Some(match self.timed_out {
            true => format!("timeout while waiting for condition, last error: {problem}"),
            false => problem,
        })
    }

    /// Why the cluster is not connected to all peers.
    fn disconnected(&self) -> Option<String> {
        let mirrors = self.kvstoremesh.status.as_ref();
        let mirrors = mirrors.and_then(|mirrors| not_ready(mirrors, "KVStoreMesh replicas"));
        mirrors.or_else(|| not_ready(self.connectivity.as_ref()?, "nodes"))
    }

    /// What a wait is for.
    pub(super) fn missing(&self) -> Option<String> {
        let why = self.disconnected()?;
        let parts = [self.kvstoremesh.status.as_ref(), self.connectivity.as_ref()];
        let first = parts.into_iter().flatten().find(|status| !status.is_healthy());
        Some(match first.is_some_and(Connectivity::is_unread) {
            true => format!("{why}: {UNREAD}"),
            false => why,
        })
    }
}

/// How many pods are not ready.
fn not_ready(status: &Connectivity, what: &str) -> Option<String> {
    (!status.is_healthy()).then(|| match status.is_silent() {
        true => format!("no pod runs for the {what}"),
        false => format!("{} {what} are not ready", status.not_ready),
    })
}
