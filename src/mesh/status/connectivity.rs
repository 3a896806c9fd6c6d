//! Counts which pods are connected to which remote clusters, as Cilium's CLI does.

use super::remote::{Answer, NO_CONFIG, Remote};
use serde::{Serialize, Serializer};
use std::collections::{BTreeMap, BTreeSet};

/// The name under which errors of a whole pod are kept: the name of no cluster.
pub const WHOLE_POD: &str = "*";

/// The answers of pods, by the name of the pod.
pub type Answers = BTreeMap<String, Answer>;

/// How many peers pods are connected to; as in Cilium's CLI, the minimum over no pods is -1.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Spread {
    pub min: i64,
    #[serde(serialize_with = "shortest")]
    pub avg: f64,
    pub max: i64,
}

/// How many pods know a remote cluster, and how many of these are connected to it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Count {
    pub configured: usize,
    pub connected: usize,
}

/// What is wrong between one pod and one cluster. The names are those of Cilium's CLI.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Problems {
    #[serde(rename = "Errors")]
    pub errors: Vec<String>,
    #[serde(rename = "Warnings")]
    pub warnings: Vec<String>,
    #[serde(rename = "Disabled")]
    pub is_disabled: bool,
    #[serde(skip)]
    pub kind: Kind,
}

/// What a hint to the reader depends on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Kind {
    NotConnected,
    NoConfig,
    /// The pod does not know the cluster, although the Secret names it.
    Unread,
    #[default]
    Other,
}

/// The connections of agents, or of mirrors, to remote clusters.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Connectivity {
    pub connected: Spread,
    pub global_services: Spread,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub clusters: BTreeMap<String, Count>,
    pub total: usize,
    pub not_ready: usize,
    /// Pod → cluster → problems.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub errors: BTreeMap<String, BTreeMap<String, Problems>>,
    /// Whether a pod has no command for the question.
    #[serde(skip)]
    pub is_unsupported: bool,
}

/// A whole number without its fraction, as Go writes it.
fn shortest<S: Serializer>(value: &f64, serializer: S) -> Result<S::Ok, S::Error> {
    #[allow(clippy::cast_possible_truncation, reason = "only whole numbers are converted")]
    match value.fract() == 0.0 {
        true => serializer.serialize_i64(*value as i64),
        false => serializer.serialize_f64(*value),
    }
}

// === impl Spread ===

impl Spread {
    #[allow(clippy::cast_precision_loss, reason = "the numbers of clusters and pods are small")]
    fn of(values: &[i64]) -> Self {
        let sum: i64 = values.iter().sum();
        Self {
            min: values.iter().copied().min().unwrap_or(-1),
            avg: sum as f64 / values.len().max(1) as f64,
            max: values.iter().copied().max().unwrap_or(0),
        }
    }
}

// === impl Problems ===

impl Problems {
    fn of(text: String, kind: Kind) -> Self {
        Self {
            errors: vec![text],
            kind,
            ..Self::default()
        }
    }
}

// === impl Connectivity ===

impl Connectivity {
    /// Counts the answers. `expected` are the peers that the pods are configured with.
    pub fn of(answers: &Answers, expected: &BTreeSet<String>) -> Self {
        let (mut connected, mut services, mut not_ready) = (vec![], vec![], 0);
        let mut clusters: BTreeMap<String, Count> =
            expected.iter().map(|name| (name.clone(), Count::default())).collect();
        let mut errors = BTreeMap::new();
        for (pod, answer) in answers {
            let mut problems = BTreeMap::new();
            let remotes = match answer {
                Answer::Known(view) => {
                    services.push(view.services());
                    &view.remotes[..]
                }
                Answer::NotAvailable => {
                    if !expected.is_empty() {
                        let problem = Problems::of("ClusterMesh status is not available".to_owned(), Kind::Other);
                        problems.insert(WHOLE_POD.to_owned(), problem);
                    }
                    &[]
                }
                Answer::Unsupported => continue,
                Answer::Failed(why) => {
                    problems.insert(WHOLE_POD.to_owned(), Problems::of(why.clone(), Kind::Other));
                    &[]
                }
            };
            let ready = count(remotes, &mut clusters, &mut problems);
            if matches!(answer, Answer::Known(_)) {
                for name in expected
                    .iter()
                    .filter(|name| !remotes.iter().any(|remote| remote.name == **name))
                {
                    problems.insert(name.clone(), Problems::of("unknown status".to_owned(), Kind::Unread));
                }
            }
            connected.push(ready);
            if !problems.is_empty() {
                not_ready += 1;
                errors.insert(pod.clone(), problems);
            }
        }
        Self {
            total: connected.len(),
            connected: Spread::of(&connected),
            global_services: Spread::of(&services),
            clusters,
            not_ready,
            errors,
            is_unsupported: answers.values().any(|answer| *answer == Answer::Unsupported),
        }
    }

    /// Whether every pod answered and is connected to every peer. Without an answer, nobody is connected to the peers.
    pub fn is_healthy(&self) -> bool {
        self.not_ready == 0 && !self.is_silent()
    }

    /// Whether nothing is wrong but that pods have not read a changed Secret yet.
    pub fn is_unread(&self) -> bool {
        let mut problems = self.errors.values().flat_map(BTreeMap::values);
        self.not_ready > 0 && problems.all(|problem| problem.kind == Kind::Unread)
    }

    /// Whether peers are expected and no pod runs that could be connected to them.
    pub fn is_silent(&self) -> bool {
        self.total == 0 && !self.clusters.is_empty() && !self.is_unsupported
    }
}

/// Counts the clusters of one pod. Returns the number of those that are ready.
fn count(remotes: &[Remote], clusters: &mut BTreeMap<String, Count>, problems: &mut BTreeMap<String, Problems>) -> i64 {
    let mut ready = 0;
    for remote in remotes {
        let count = clusters.entry(remote.name.clone()).or_default();
        count.configured += 1;
        let Some(problem) = remote.problem() else {
            count.connected += 1;
            ready += 1;
            continue;
        };
        let kind = match remote.connected {
            false => Kind::NotConnected,
            true if problem == NO_CONFIG => Kind::NoConfig,
            true => Kind::Other,
        };
        problems.insert(remote.name.clone(), Problems::of(problem, kind));
    }
    ready
}

#[cfg(test)]
mod tests {
    use super::super::remote::View;
    use super::*;

    fn ready(name: &str) -> Remote {
        Remote {
            name: name.to_owned(),
            ready: true,
            num_shared_services: 3,
            ..Remote::default()
        }
    }

    fn known(remotes: Vec<Remote>) -> Answer {
        let global_services = None;
        Answer::Known(View {
            remotes,
            global_services,
        })
    }

    fn answers<const N: usize>(answers: [(&str, Answer); N]) -> Answers {
        answers.map(|(pod, answer)| (pod.to_owned(), answer)).into()
    }

    fn expected<const N: usize>(names: [&str; N]) -> BTreeSet<String> {
        names.map(str::to_owned).into()
    }

    #[test]
    fn no_pods_and_no_peers_are_counted_as_in_ciliums_tool() {
        let empty = Connectivity::of(&Answers::new(), &expected([]));
        assert_eq!(
            empty.connected,
            Spread {
                min: -1,
                avg: 0.0,
                max: 0
            }
        );
        let json = serde_json::to_string(&empty.connected).unwrap();
        assert_eq!(json, r#"{"min":-1,"avg":0,"max":0}"#);
        let lost = Connectivity::of(&Answers::new(), &expected(["hk"]));
        assert!(empty.is_healthy() && !lost.is_healthy() && lost.is_silent());
        let silent = Connectivity::of(&answers([("a", Answer::NotAvailable)]), &expected([]));
        assert!(silent.is_healthy());
        assert_eq!((silent.total, silent.global_services.min), (1, -1));
    }

    #[test]
    fn each_pod_counts_for_itself_and_a_failed_one_hides_no_other() {
        let away = Remote {
            name: "hk".to_owned(),
            status: "no route".to_owned(),
            ..Remote::default()
        };
        let pods = answers([
            ("a", known(vec![ready("hk"), ready("osaka")])),
            ("b", known(vec![away, ready("osaka")])),
            ("c", Answer::Failed("pod is Pending".to_owned())),
            ("d", known(vec![ready("osaka")])),
        ]);
        let status = Connectivity::of(&pods, &expected(["hk", "osaka"]));
        assert_eq!((status.total, status.not_ready), (4, 3));
        assert_eq!(
            status.connected,
            Spread {
                min: 0,
                avg: 1.0,
                max: 2
            }
        );
        assert_eq!(
            status.global_services,
            Spread {
                min: 3,
                avg: 4.0,
                max: 6
            }
        );
        let hk = status.clusters["hk"];
        assert_eq!((hk.configured, hk.connected), (2, 1));
        let osaka = status.clusters["osaka"];
        assert_eq!((osaka.configured, osaka.connected), (3, 3));
        assert_eq!(status.errors["b"]["hk"].errors, ["no route"]);
        assert_eq!(status.errors["b"]["hk"].kind, Kind::NotConnected);
        assert_eq!(status.errors["c"][WHOLE_POD].errors, ["pod is Pending"]);
        assert_eq!(status.errors["d"]["hk"].errors, ["unknown status"]);
        assert!(!status.errors.contains_key("a") && !status.is_unread());
    }

    #[test]
    fn a_pod_that_does_not_know_a_peer_has_not_read_its_secret() {
        let status = |view| Connectivity::of(&answers([("a", known(view))]), &expected(["hk"]));
        assert!(status(vec![]).is_unread());
        assert!(!status(vec![ready("hk")]).is_unread());
        assert!(!Connectivity::of(&Answers::new(), &expected(["hk"])).is_unread());
    }

    #[test]
    fn an_agent_without_a_mesh_is_wrong_only_if_peers_are_expected() {
        let pods = answers([("a", Answer::NotAvailable)]);
        let status = Connectivity::of(&pods, &expected(["hk"]));
        assert_eq!(status.not_ready, 1);
        assert_eq!(
            status.errors["a"][WHOLE_POD].errors,
            ["ClusterMesh status is not available"]
        );
        assert_eq!(status.clusters["hk"], Count::default());
    }

    #[test]
    fn pods_without_the_command_count_as_fine() {
        let status = Connectivity::of(&answers([("a", Answer::Unsupported)]), &expected(["hk"]));
        assert!(status.is_healthy() && status.is_unsupported);
        assert_eq!(status.total, 0);
    }
}
