//! Follows the way of a remote cluster's keys from an agent back to the remote store, up to the first broken hop:
//! agent → own store → mirror → remote cluster, or agent → remote cluster where no mirror runs.

use super::causes::Connection;
use super::connectivity::Answers;
use super::remote::{Answer, NO_CONFIG, Remote};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};

/// A stage of the way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Hop {
    Agent,
    OwnStore,
    Kvstoremesh,
    Remote,
}

/// The way to one remote cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Path {
    pub hops: &'static [Hop],
    pub broken: Broken,
}

/// The first broken hop.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Broken {
    pub hop: Hop,
    pub cause: String,
    /// The pod that saw the cause.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pod: Option<String>,
    pub remedy: String,
}

/// Whose connection is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Side {
    Agent,
    Mirror,
}

/// A connection to check by `troubleshoot` in a pod.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Question {
    pub side: Side,
    pub peer: String,
    pub pod: String,
}

/// Everything that was seen in one cluster.
#[derive(Clone, Copy, Debug)]
pub struct Evidence<'a> {
    pub tool: &'a str,
    pub namespace: &'a str,
    /// The name of the cluster.
    pub local: &'a str,
    pub agents: &'a Answers,
    /// The peers in Secret `cilium-clustermesh`.
    pub agent_peers: &'a BTreeMap<String, Source>,
    /// `None` if no mirror runs.
    pub mirror: Option<Mirror<'a>>,
    /// What is wrong with the own store, as far as Kubernetes knows.
    pub store: Option<&'a str>,
    /// Question → the first step that failed.
    pub traces: &'a BTreeMap<Question, String>,
}

/// The store that agents read a remote cluster from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// The own store, which a mirror fills.
    Own,
    /// The store of the remote cluster.
    Remote,
}

/// What was seen of the mirror.
#[derive(Clone, Copy, Debug)]
pub struct Mirror<'a> {
    pub answers: &'a Answers,
    /// The peers in Secret `cilium-kvstoremesh`.
    pub peers: &'a BTreeSet<String>,
}

/// A hop that is broken, before its cause is looked for by `troubleshoot`.
struct Suspect {
    hop: Hop,
    cause: String,
    pod: Option<String>,
    /// A remedy that does not follow from the words of the cause.
    remedy: Option<String>,
    /// The question whose answer says more than `cause`.
    question: Option<Question>,
}

const WITH_MIRROR: &[Hop] = &[Hop::Agent, Hop::OwnStore, Hop::Kvstoremesh, Hop::Remote];
const WITHOUT_MIRROR: &[Hop] = &[Hop::Agent, Hop::Remote];
/// A Secret reaches a pod at the next look of the kubelet.
const KUBELET_DELAY: &str =
    "A changed Secret reaches the pod within two minutes; if this stays, look at the log of the pod.";

// === impl Evidence ===

impl Evidence<'_> {
    /// The ways that are broken, by remote cluster.
    pub fn paths(&self) -> BTreeMap<String, Path> {
        let broken = |peer: &String| {
            let suspect = self.suspect(peer)?;
            let hops = if self.reads_own_store(peer) {
                WITH_MIRROR
            } else {
                WITHOUT_MIRROR
            };
            let broken = self.explain(peer, suspect);
            Some((peer.clone(), Path { hops, broken }))
        };
        self.peers().iter().filter_map(broken).collect()
    }

    /// The checks that would say more about broken ways.
    pub fn questions(&self) -> BTreeSet<Question> {
        let peers = self.peers();
        peers.iter().filter_map(|peer| self.suspect(peer)?.question).collect()
    }

    fn peers(&self) -> BTreeSet<String> {
        let mirror = self.mirror.iter().flat_map(|mirror| mirror.peers);
        self.agent_peers.keys().chain(mirror).cloned().collect()
    }

    fn reads_own_store(&self, peer: &str) -> bool {
        self.agent_peers.get(peer) != Some(&Source::Remote)
    }

    fn explain(&self, peer: &str, suspect: Suspect) -> Broken {
        let trace = suspect.question.as_ref().and_then(|question| self.traces.get(question));
        let cause = trace.cloned().unwrap_or(suspect.cause);
        let connection = Connection {
            tool: self.tool,
            namespace: self.namespace,
            local: self.local,
            peer: (suspect.hop == Hop::Remote).then_some(peer),
        };
        Broken {
            hop: suspect.hop,
            remedy: suspect.remedy.unwrap_or_else(|| connection.remedy(&cause)),
            cause,
            pod: suspect.pod,
        }
    }

    fn suspect(&self, peer: &str) -> Option<Suspect> {
        if !self.agent_peers.contains_key(peer) {
            return Some(self.not_configured(Hop::Agent, "cilium-clustermesh", peer));
        }
        let agent = self.worst(self.agents, peer, Hop::Agent);
        if !self.reads_own_store(peer) {
            return agent.map(|seen| self.between(Side::Agent, peer, seen));
        }
        let Some(mirror) = &self.mirror else {
            return Some(self.not_filled(peer));
        };
        if !mirror.peers.contains(peer) {
            return Some(self.not_configured(Hop::Kvstoremesh, "cilium-kvstoremesh", peer));
        }
        match &agent {
            // The agent does not reach the own store.
            Some(Seen::NotReady { remote, .. }) if !remote.connected => {
                return agent.map(|seen| self.between(Side::Agent, peer, seen));
            }
            _ => {}
        }
        let seen = match mirror.answers.is_empty() {
            true => Some(Seen::Broken(self.no_mirror())),
            false => self.worst(mirror.answers, peer, Hop::Kvstoremesh),
        };
        // A broken mirror explains an agent that waits for keys. A silent agent explains nothing but itself.
        let mirrored = seen.map(|seen| self.between(Side::Mirror, peer, seen));
        mirrored.or_else(|| agent.map(|seen| self.between(Side::Agent, peer, seen)))
    }

    fn not_configured(&self, hop: Hop, secret: &str, peer: &str) -> Suspect {
        let Self { tool, namespace, .. } = self;
        Suspect {
            hop,
            cause: format!("Secret {namespace}/{secret} has no entry {peer}"),
            pod: None,
            remedy: Some(format!(
                "Run '{tool} connect' with {peer} again to write the entry, or '{tool} disconnect' to remove the other one."
            )),
            question: None,
        }
    }

    fn not_filled(&self, peer: &str) -> Suspect {
        let Self { tool, namespace, .. } = self;
        Suspect {
            hop: Hop::Kvstoremesh,
            cause: format!(
                "Secret {namespace}/cilium-clustermesh sends agents to the own store for {peer}, but no KVStoreMesh fills that store"
            ),
            pod: None,
            remedy: Some(format!(
                "Turn KVStoreMesh on (chart: clustermesh.apiserver.kvstoremesh.enabled), or run '{tool} connect' again, which \
                 sends agents to {peer}."
            )),
            question: None,
        }
    }

    fn no_mirror(&self) -> Suspect {
        let cause = match self.store {
            Some(why) => why.to_owned(),
            None => format!("no pod of Deployment {}/clustermesh-apiserver runs", self.namespace),
        };
        let remedy = format!(
            "kubectl describe pods -n {} -l k8s-app=clustermesh-apiserver",
            self.namespace
        );
        Suspect {
            hop: Hop::Kvstoremesh,
            cause,
            pod: None,
            remedy: Some(format!("Run '{remedy}' to see why.")),
            question: None,
        }
    }

    /// What the first pod saw that is not connected to `peer`; pods that answered say more than silent ones.
    fn worst(&self, answers: &Answers, peer: &str, hop: Hop) -> Option<Seen> {
        let mut silent = None;
        for (pod, answer) in answers {
            let cause = match answer {
                Answer::Known(view) => match view.remote(peer) {
                    Some(remote) if remote.ready => continue,
                    Some(remote) => {
                        let (pod, remote) = (pod.clone(), Box::new(remote.clone()));
                        return Some(Seen::NotReady { pod, remote });
                    }
                    None => (
                        format!("the pod does not know cluster {peer} yet"),
                        Some(KUBELET_DELAY.to_owned()),
                    ),
                },
                Answer::NotAvailable => ("ClusterMesh status is not available".to_owned(), None),
                Answer::Unsupported => continue,
                Answer::Failed(why) => (why.clone(), None),
            };
            let (cause, remedy) = cause;
            let describe = format!("Run 'kubectl describe pod -n {} {pod}' to see why.", self.namespace);
            silent.get_or_insert(Suspect {
                hop,
                cause,
                pod: Some(pod.clone()),
                remedy: Some(remedy.unwrap_or(describe)),
                question: None,
            });
        }
        silent.map(Seen::Broken)
    }

    /// The broken hop behind a pod that is not connected to `peer`.
    fn between(&self, side: Side, peer: &str, seen: Seen) -> Suspect {
        let (pod, remote) = match seen {
            Seen::Broken(suspect) => return suspect,
            Seen::NotReady { pod, remote } => (pod, remote),
        };
        let to_own_store = side == Side::Agent && self.reads_own_store(peer);
        let cause = remote.problem().unwrap_or_default();
        if !remote.connected {
            let question = Question {
                side,
                peer: peer.to_owned(),
                pod: pod.clone(),
            };
            let store = self.store.filter(|_| to_own_store);
            return Suspect {
                hop: if to_own_store { Hop::OwnStore } else { Hop::Remote },
                cause: store.map_or(cause, str::to_owned),
                pod: Some(pod),
                remedy: None,
                question: store.is_none().then_some(question),
            };
        }
        if remote.lacks_config() && !to_own_store {
            // Our mirror's words name the key that is missing.
            let words = remote.status.contains("is missing").then(|| remote.status.clone());
            return Suspect {
                hop: Hop::Remote,
                cause: words.unwrap_or(NO_CONFIG.to_owned()),
                pod: Some(pod),
                remedy: None,
                question: None,
            };
        }
        let forbidden = remote
            .status
            .contains("permission denied")
            .then(|| remote.status.clone());
        let waiting = "Wait: the keys are being copied; if the status stays so, look at the log of the pod.";
        Suspect {
            hop: match side {
                Side::Agent => Hop::Agent,
                Side::Mirror => Hop::Kvstoremesh,
            },
            remedy: forbidden.is_none().then(|| waiting.to_owned()),
            cause: forbidden.unwrap_or(cause),
            pod: Some(pod),
            question: None,
        }
    }
}

/// What a pod saw that is not connected to a peer.
enum Seen {
    NotReady { pod: String, remote: Box<Remote> },
    Broken(Suspect),
}

#[cfg(test)]
mod tests;
