use super::super::remote::{of_agent, of_mirror};
use super::*;
use serde_json::{Value, json};

const READY: &str = "ready";

/// What one pod says about the cluster `hk`.
fn remote(what: &str) -> Value {
    let config = json!({"required": true});
    match what {
        READY => json!({"name": "hk", "ready": true, "connected": true}),
        "waiting" => json!({"name": "hk", "connected": true, "config": config}),
        "syncing" => json!({"name": "hk", "connected": true, "synced": {"nodes": true},
            "config": {"required": true, "retrieved": true}}),
        status => json!({"name": "hk", "status": status}),
    }
}

fn pods(says: &[&str], read: impl Fn(Value) -> Answer) -> Answers {
    let names = ["a", "b", "c"];
    let says = says.iter().zip(names);
    says.map(|(what, name)| (name.to_owned(), read(json!([remote(what)]))))
        .collect()
}

fn agents(says: &[&str]) -> Answers {
    pods(says, |clusters| {
        of_agent(&json!({"cluster-mesh": {"clusters": clusters}}).to_string())
    })
}

fn mirrors(says: &[&str]) -> Answers {
    pods(says, |clusters| of_mirror(&clusters.to_string()))
}

struct Seen {
    agents: Answers,
    mirrors: Option<Answers>,
    agent_peers: BTreeMap<String, Source>,
    mirror_peers: BTreeSet<String>,
    store: Option<&'static str>,
    traces: BTreeMap<Question, String>,
}

impl Seen {
    fn new(agents: Answers, mirrors: Option<Answers>) -> Self {
        let source = if mirrors.is_some() { Source::Own } else { Source::Remote };
        Self {
            agents,
            mirrors,
            agent_peers: [("hk".to_owned(), source)].into(),
            mirror_peers: ["hk".to_owned()].into(),
            store: None,
            traces: BTreeMap::new(),
        }
    }

    fn evidence(&self) -> Evidence<'_> {
        Evidence {
            tool: "isthmus",
            namespace: "kube-system",
            local: "tokyo",
            agents: &self.agents,
            agent_peers: &self.agent_peers,
            mirror: self.mirrors.as_ref().map(|answers| Mirror {
                answers,
                peers: &self.mirror_peers,
            }),
            store: self.store,
            traces: &self.traces,
        }
    }

    fn broken(&self) -> Broken {
        self.evidence().paths()["hk"].broken.clone()
    }
}

#[test]
fn a_whole_way_is_not_reported() {
    let seen = Seen::new(agents(&[READY, READY]), Some(mirrors(&[READY])));
    assert!(seen.evidence().paths().is_empty() && seen.evidence().questions().is_empty());
}

#[test]
fn an_agent_that_does_not_reach_its_own_store_is_not_blamed_on_the_remote() {
    let waiting = "Waiting for initial connection to be established";
    let mut seen = Seen::new(agents(&[READY, waiting]), Some(mirrors(&[READY])));
    let question = Question {
        side: Side::Agent,
        peer: "hk".to_owned(),
        pod: "b".to_owned(),
    };
    assert_eq!(seen.evidence().questions(), [question.clone()].into());
    assert_eq!((seen.broken().hop, &*seen.broken().cause), (Hop::OwnStore, waiting));
    seen.traces
        .insert(question, "x509: certificate signed by unknown authority".to_owned());
    let broken = seen.broken();
    assert_eq!((broken.hop, broken.pod.as_deref()), (Hop::OwnStore, Some("b")));
    assert!(broken.cause.contains("unknown authority") && broken.remedy.contains("this cluster"));
    seen.store = Some("deployment clustermesh-apiserver is not ready: replicas count is zero");
    assert!(seen.broken().cause.ends_with("replicas count is zero"));
    assert!(seen.evidence().questions().is_empty());
}

#[test]
fn an_agent_without_cluster_configuration_is_explained_by_the_mirror() {
    let why = "cannot connect to 10.14.1.128:32379: Connection refused";
    let seen = Seen::new(agents(&["waiting", "waiting"]), Some(mirrors(&[why])));
    let broken = seen.broken();
    assert_eq!((broken.hop, &*broken.cause), (Hop::Remote, why));
    assert!(broken.remedy.contains("cluster hk"), "{}", broken.remedy);
    let question = seen.evidence().questions().pop_first().unwrap();
    assert_eq!((question.side, &*question.pod), (Side::Mirror, "a"));
}

#[test]
fn a_mirror_that_lost_the_remote_is_told_although_agents_are_ready() {
    let seen = Seen::new(agents(&[READY]), Some(mirrors(&["no route to host"])));
    assert_eq!(seen.broken().hop, Hop::Remote);
}

#[test]
fn a_wrong_name_is_told_from_a_network_fault() {
    let seen = Seen::new(agents(&["waiting"]), Some(mirrors(&["waiting"])));
    let broken = seen.broken();
    assert_eq!((broken.hop, &*broken.cause), (Hop::Remote, NO_CONFIG));
    assert!(broken.remedy.contains("cluster-name"), "{}", broken.remedy);
}

#[test]
fn keys_that_are_being_copied_mean_waiting() {
    let seen = Seen::new(agents(&["waiting"]), Some(mirrors(&["syncing"])));
    let broken = seen.broken();
    assert_eq!(broken.hop, Hop::Kvstoremesh);
    assert_eq!(
        broken.cause,
        "synchronization in progress for endpoints, identities, services"
    );
    assert!(broken.remedy.starts_with("Wait"));
    let seen = Seen::new(agents(&["syncing"]), Some(mirrors(&[READY])));
    assert_eq!(seen.broken().hop, Hop::Agent);
}

#[test]
fn missing_entries_and_missing_pods_are_named() {
    let mut seen = Seen::new(agents(&["waiting"]), Some(Answers::new()));
    let broken = seen.broken();
    assert_eq!(broken.hop, Hop::Kvstoremesh);
    assert_eq!(
        broken.cause,
        "no pod of Deployment kube-system/clustermesh-apiserver runs"
    );
    seen.mirror_peers.clear();
    assert_eq!(
        seen.broken().cause,
        "Secret kube-system/cilium-kvstoremesh has no entry hk"
    );
    seen.mirror_peers.insert("hk".to_owned());
    seen.agent_peers.clear();
    let broken = seen.broken();
    assert_eq!(broken.hop, Hop::Agent);
    assert_eq!(broken.cause, "Secret kube-system/cilium-clustermesh has no entry hk");
}

#[test]
fn agents_that_read_an_empty_store_are_explained() {
    let mut seen = Seen::new(agents(&["waiting"]), None);
    seen.agent_peers.insert("hk".to_owned(), Source::Own);
    let broken = seen.broken();
    assert_eq!(broken.hop, Hop::Kvstoremesh);
    assert!(
        broken.cause.ends_with("but no KVStoreMesh fills that store"),
        "{}",
        broken.cause
    );
}

#[test]
fn agents_may_read_the_remote_although_a_mirror_runs() {
    let mut seen = Seen::new(agents(&["no such host"]), Some(mirrors(&[READY])));
    seen.agent_peers.insert("hk".to_owned(), Source::Remote);
    assert_eq!(seen.evidence().paths()["hk"].hops, [Hop::Agent, Hop::Remote]);
    assert_eq!(seen.broken().hop, Hop::Remote);
}

#[test]
fn a_silent_agent_is_told_only_if_nothing_else_is_broken() {
    let mut all = agents(&[READY, READY]);
    all.insert("c".to_owned(), Answer::Failed("pod is Pending".to_owned()));
    let seen = Seen::new(all.clone(), Some(mirrors(&[READY])));
    let broken = seen.broken();
    assert_eq!((broken.hop, broken.pod.as_deref()), (Hop::Agent, Some("c")));
    assert!(broken.remedy.contains("kubectl describe pod -n kube-system c"));
    let seen = Seen::new(all, Some(mirrors(&["i/o timeout"])));
    assert_eq!(seen.broken().hop, Hop::Remote);
}

#[test]
fn without_a_mirror_agents_reach_for_the_remote_themselves() {
    let seen = Seen::new(agents(&["no such host"]), None);
    let paths = seen.evidence().paths();
    assert_eq!(paths["hk"].hops, [Hop::Agent, Hop::Remote]);
    assert_eq!(paths["hk"].broken.hop, Hop::Remote);
    let seen = Seen::new(agents(&["waiting"]), None);
    assert_eq!(seen.broken().hop, Hop::Remote);
}
