//! The answers of agents and mirrors: how each of them sees the remote clusters.

use serde::Deserialize;

/// A remote cluster as one pod sees it (Cilium: api/v1/models/remote_cluster.go). Absent fields are zero.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub struct Remote {
    pub name: String,
    pub ready: bool,
    pub connected: bool,
    /// The state of the connection in words; an error of our mirror, nothing useful of Cilium's before it connects.
    pub status: String,
    pub config: Option<Config>,
    pub synced: Option<Synced>,
    pub num_shared_services: i64,
}

/// What is known of the remote's cluster configuration.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub struct Config {
    pub cluster_id: u32,
    pub required: bool,
    pub retrieved: bool,
}

/// The kinds of keys that have been listed completely.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Synced {
    pub nodes: bool,
    pub endpoints: bool,
    pub identities: bool,
    pub services: bool,
}

/// The answer of one pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    Known(View),
    /// The agent has no Cluster Mesh status: no mesh is configured, or the agent has not started its part yet.
    NotAvailable,
    /// The program in the pod has no command for the question.
    Unsupported,
    /// No answer, with the reason.
    Failed(String),
}

/// The remote clusters that one pod knows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct View {
    pub remotes: Vec<Remote>,
    /// The number of global services, which agents before Cilium 1.20 report as one number.
    pub global_services: Option<i64>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct AgentStatus {
    cluster_mesh: Option<ClusterMesh>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct ClusterMesh {
    // Go writes an empty list as null.
    clusters: Option<Vec<Option<Remote>>>,
    num_global_services: Option<i64>,
}

/// Reads the answer of `cilium status -o json` in an agent.
pub fn of_agent(stdout: &str) -> Answer {
    let status: AgentStatus = match serde_json::from_str(stdout) {
        Ok(status) => status,
        Err(why) => return Answer::Failed(format!("unable to unmarshal response of cilium status: {why}")),
    };
    let Some(mesh) = status.cluster_mesh else {
        return Answer::NotAvailable;
    };
    Answer::Known(View {
        remotes: mesh.clusters.into_iter().flatten().flatten().collect(),
        global_services: mesh.num_global_services,
    })
}

/// Reads the answer of `kvstoremesh-dbg status -o json` in a mirror.
pub fn of_mirror(stdout: &str) -> Answer {
    match serde_json::from_str::<Option<Vec<Option<Remote>>>>(stdout) {
        Ok(remotes) => Answer::Known(View {
            remotes: remotes.into_iter().flatten().flatten().collect(),
            global_services: None,
        }),
        Err(why) => Answer::Failed(format!("unable to unmarshal response of kvstoremesh-dbg status: {why}")),
    }
}

/// The text of a missing cluster configuration.
pub const NO_CONFIG: &str = "remote cluster configuration required but not found";

// === impl Remote ===

impl Remote {
    /// Why the cluster is not ready, in the words of Cilium's CLI; `None` if it is ready.
    pub fn problem(&self) -> Option<String> {
        if self.ready {
            return None;
        }
        if !self.connected {
            return Some(self.status.clone());
        }
        let text = match (self.config, self.synced) {
            (None, _) => "remote cluster configuration retrieval status unknown",
            (Some(config), _) if config.required && !config.retrieved => NO_CONFIG,
            (_, None) => "synchronization status unknown",
            (_, Some(synced)) => match synced.missing().as_slice() {
                [] => "not ready",
                missing => return Some(format!("synchronization in progress for {}", missing.join(", "))),
            },
        };
        Some(text.to_owned())
    }

    /// Whether the cluster is connected, but does not have a cluster configuration under the expected name.
    pub fn lacks_config(&self) -> bool {
        self.connected && self.config.is_some_and(|config| config.required && !config.retrieved)
    }
}

// === impl Synced ===

impl Synced {
    fn missing(self) -> Vec<&'static str> {
        let kinds = [
            ("endpoints", self.endpoints),
            ("identities", self.identities),
            ("nodes", self.nodes),
            ("services", self.services),
        ];
        kinds.iter().filter(|(_, done)| !done).map(|(name, _)| *name).collect()
    }
}

// === impl Answer ===

impl Answer {
    pub fn view(&self) -> Option<&View> {
        match self {
            Self::Known(view) => Some(view),
            _ => None,
        }
    }
}

// === impl View ===

impl View {
    pub fn remote(&self, name: &str) -> Option<&Remote> {
        self.remotes.iter().find(|remote| remote.name == name)
    }

    /// The services that remote clusters share with this pod's cluster. Since Cilium 1.20 agents count them per remote.
    pub fn services(&self) -> i64 {
        let sum = || self.remotes.iter().map(|remote| remote.num_shared_services).sum();
        self.global_services.unwrap_or_else(sum)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Written after Cilium 1.20.2's API models; other parts of the status are left out.
    const AGENT: &str = r#"{"cilium": {"state": "Ok"}, "cluster-mesh": {"clusters": [
        {"config": {"cluster-id": 2, "kvstoremesh": true, "required": true, "retrieved": true, "sync-canaries": true},
         "connected": true, "last-failure": "0001-01-01T00:00:00.000Z", "name": "hk", "num-nodes": 3,
         "num-shared-services": 4, "ready": true, "status": "etcd: 1/1 connected",
         "synced": {"endpoints": true, "identities": true, "nodes": true, "services": true}},
        {"last-failure": "0001-01-01T00:00:00.000Z", "name": "osaka",
         "status": "Waiting for initial connection to be established", "synced": {}}, null]}}"#;

    #[test]
    fn the_status_of_an_agent_is_read() {
        let answer = of_agent(AGENT);
        let view = answer.view().unwrap();
        assert_eq!(view.remotes.len(), 2);
        assert_eq!(view.services(), 4);
        assert_eq!(view.remote("hk").unwrap().problem(), None);
        let osaka = view.remote("osaka").unwrap().problem();
        assert_eq!(
            osaka.as_deref(),
            Some("Waiting for initial connection to be established")
        );
        let older = of_agent(r#"{"cluster-mesh": {"clusters": null, "num-global-services": 7}}"#);
        assert_eq!(older.view().unwrap().services(), 7);
    }

    #[test]
    fn an_agent_without_a_mesh_and_nonsense_are_told_apart() {
        assert_eq!(of_agent(r#"{"cilium": {}}"#), Answer::NotAvailable);
        let Answer::Failed(why) = of_agent("Error: no such socket") else {
            panic!("nonsense was read");
        };
        assert!(
            why.starts_with("unable to unmarshal response of cilium status: expected value"),
            "{why}"
        );
        assert_eq!(of_mirror("null"), Answer::Known(View::default()));
        let Answer::Failed(why) = of_mirror("{}") else {
            panic!("nonsense was read");
        };
        assert!(
            why.starts_with("unable to unmarshal response of kvstoremesh-dbg status: "),
            "{why}"
        );
    }

    #[test]
    fn the_first_reason_that_applies_is_told() {
        let read = |text: &str| serde_json::from_str::<Remote>(text).unwrap().problem().unwrap();
        assert_eq!(read(r#"{"status": "no route"}"#), "no route");
        let unknown = "remote cluster configuration retrieval status unknown";
        assert_eq!(read(r#"{"connected": true}"#), unknown);
        assert_eq!(read(r#"{"connected": true, "config": {"required": true}}"#), NO_CONFIG);
        let no_sync = read(r#"{"connected": true, "config": {"required": true, "retrieved": true}}"#);
        assert_eq!(no_sync, "synchronization status unknown");
        let syncing = read(r#"{"connected": true, "config": {}, "synced": {"nodes": true, "identities": true}}"#);
        assert_eq!(syncing, "synchronization in progress for endpoints, services");
        let all = r#"{"nodes": true, "identities": true, "endpoints": true, "services": true}"#;
        assert_eq!(
            read(&format!(r#"{{"connected": true, "config": {{}}, "synced": {all}}}"#)),
            "not ready"
        );
    }
}
