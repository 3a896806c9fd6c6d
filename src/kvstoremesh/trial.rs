//! Tries a scope file on the keys of a remote cluster without a mirror: the same filter, fed by a caller that reads keys
//! and asks what became of each.

use super::exports::Exports;
use super::filter::{Filter, Mode};
use super::refusal;
use crate::kvstore::Write;
use crate::model::cluster::{ClusterConfig, ClusterName};
use crate::model::keys::Scope;
use crate::scope::file::ScopeFile;
use crate::scope::rules::{Rules, Verdict};
use bytes::Bytes;
use std::collections::BTreeSet;
use std::sync::Arc;

/// The order in which the kinds of keys are to be read: what decides about other kinds comes first. What was decided about
/// an identity is final at the end only.
pub const ORDER: [Scope; Scope::ALL.len()] = [
    Scope::Identities,
    Scope::Services,
    Scope::EndpointSlices,
    Scope::ServiceExports,
    Scope::Nodes,
    Scope::Endpoints,
];

/// The filter of one remote cluster. Remembers of each key what a mirror remembers, and no values.
pub struct Trial {
    filter: Filter,
    prefixes: [String; Scope::ALL.len()],
    writes: Vec<Write>,
}

/// The kinds of keys that a remote cluster exports, with their prefixes in its store.
pub fn exported(config: &ClusterConfig, cluster: &ClusterName, legacy_services: bool) -> Vec<(Scope, String)> {
    let exports = Exports::of(config, legacy_services);
    let kinds = ORDER.into_iter().filter(|kind| exports.scopes.contains(kind));
    kinds.map(|kind| (kind, exports.prefix(kind, cluster))).collect()
}

impl Trial {
    /// `region` is the region that the remote cluster gives itself, and `existing` are the namespaces of this cluster, if they
    /// are known.
    pub fn new(
        cluster: &ClusterName,
        file: Arc<ScopeFile>,
        existing: Option<Arc<BTreeSet<String>>>,
        region: Option<&str>,
    ) -> Self {
        let mut filter = Filter::new(cluster, file, existing);
        let mut writes = vec![];
        filter.set_region(region, &mut writes);
        Scope::ALL.into_iter().for_each(|kind| filter.list_begun(kind));
        Self {
            filter,
            prefixes: Scope::ALL.map(|kind| kind.cache_prefix(cluster)),
            writes,
        }
    }

    /// The remote cluster has this key; `name` is the part after its prefix. `is_mirrored` says whether the mirror holds the
    /// key already. Returns `None` for a key that no mirror takes, whatever the scope file says.
    pub fn put(&mut self, kind: Scope, name: &[u8], value: &Bytes, is_mirrored: bool) -> Option<Verdict> {
        let prefix = &self.prefixes[kind as usize];
        let key = [prefix.as_bytes(), name].concat();
        refusal::check(&key, prefix, value).ok()?;
        let stored = |_: &[u8]| is_mirrored;
        self.filter
            .put(kind, key.into(), value.clone(), &stored, &mut self.writes);
        self.writes.clear();
        Some(self.verdict(kind, name))
    }

    /// All keys of a kind have been put.
    pub fn end(&mut self, kind: Scope) {
        match self.filter.mode(kind) {
            Mode::Off => self.filter.left_out(kind, &mut self.writes),
            Mode::Pass | Mode::Filtered => self.filter.list_ended(kind, &mut self.writes),
        }
        self.writes.clear();
    }

    /// What the scope file says about a key that was put.
    pub fn verdict(&self, kind: Scope, name: &[u8]) -> Verdict {
        self.filter.verdict(kind, name)
    }

    /// The rules for a kind of keys.
    pub fn rules(&self, kind: Scope) -> &Rules {
        self.filter.rules(kind)
    }

    /// The name of the entry of the scope file that governs the cluster.
    pub fn entry(&self) -> Option<&str> {
        self.filter.entry()
    }

    /// The region of the remote cluster: its own word, or that of the scope file.
    pub fn region(&self) -> Option<&str> {
        self.filter.region()
    }

    /// The most keys of a kind that the cluster may have here.
    pub fn limit(&self, kind: Scope) -> Option<usize> {
        self.filter.limit(kind)
    }

    /// Whether rules decide about keys of a kind one by one.
    pub fn is_filtered(&self, kind: Scope) -> bool {
        self.filter.mode(kind) == Mode::Filtered
    }

    /// Whether an endpoint is a backend of a mirrored service; `None` if no rule asks.
    pub fn is_backend(&self, name: &[u8]) -> Option<bool> {
        self.filter.is_backend(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scope::rules::{Cause, Decision};

    fn trial(import: &str, existing: Option<&[&str]>) -> Trial {
        let text = format!("apiVersion: scope.isthmus.io/v1\nkind: Scope\nregion: apac\nimport: {{{import}}}\n");
        let file = Arc::new(ScopeFile::parse(text.as_bytes()).unwrap());
        let existing = existing.map(|names| Arc::new(names.iter().map(|name| (*name).to_owned()).collect()));
        Trial::new(&ClusterName::new("hk").unwrap(), file, existing, Some("emea"))
    }

    fn endpoint(namespace: &str, identity: u32, more: &str) -> Bytes {
        format!(r#"{{"IP":"10.0.0.1","ID":{identity},"K8sNamespace":"{namespace}"{more}}}"#).into()
    }

    /// Puts one identity, one service with a backend, and five endpoints; returns what became of each.
    fn fill(trial: &mut Trial) -> Vec<(Scope, String, Decision, Cause)> {
        let service = Bytes::from(r#"{"name":"db","backends":{"10.0.0.1":{}}}"#);
        let keys = [
            (Scope::Identities, "70000", Bytes::from("k8s:app=db;")),
            (Scope::Identities, "70001", Bytes::from("k8s:app=web;")),
            (Scope::Services, "shop/db", service),
            (Scope::Nodes, "n1", Bytes::from("{}")),
            (Scope::Endpoints, "10.0.0.1", endpoint("shop", 70000, "")),
            (Scope::Endpoints, "10.0.0.2", endpoint("shop", 70000, "")),
            (Scope::Endpoints, "10.0.0.3", endpoint("batch", 70001, "")),
            (Scope::Endpoints, "10.0.0.4", endpoint("shop", 70002, "")),
            (
                Scope::Endpoints,
                "10.0.0.5",
                endpoint("shop", 70000, r#","SyncScope":"regional""#),
            ),
        ];
        for kind in ORDER {
            for (_, name, value) in keys.iter().filter(|(of, ..)| *of == kind) {
                assert!(trial.put(kind, name.as_bytes(), value, false).is_some());
            }
            trial.end(kind);
        }
        let told = |(kind, name, _): &(Scope, &str, Bytes)| {
            let verdict = trial.verdict(*kind, name.as_bytes());
            (*kind, (*name).to_owned(), verdict.decision, verdict.cause)
        };
        keys.iter().map(told).collect()
    }

    fn endpoints(told: &[(Scope, String, Decision, Cause)]) -> Vec<(Decision, Cause)> {
        let of_kind = told.iter().filter(|(kind, ..)| *kind == Scope::Endpoints);
        of_kind.map(|(_, _, decision, cause)| (*decision, *cause)).collect()
    }

    #[test]
    fn a_verdict_names_its_cause() {
        use Decision::{Keep, LeaveOut, Pending};
        let rules = "clusters: [{name: all, clusters: ['*'], identities: used, endpoints: {default: exclude, rules: [
            {name: backends, action: include, backendsOfServices: true},
            {name: web, action: include, namespaces: {names: [shop]}, identity: {matchLabels: {app: web}}}]}}]";
        let mut trial = trial(rules, None);
        let told = fill(&mut trial);
        let expected = [
            (Keep, Cause::Rule(0)),
            (LeaveOut, Cause::Default),
            (LeaveOut, Cause::Default),
            (Pending, Cause::Rule(1)),
            (LeaveOut, Cause::Region),
        ];
        assert_eq!(endpoints(&told), expected);
        assert_eq!((told[0].2, told[0].3), (Keep, Cause::Default));
        assert_eq!((told[1].2, told[1].3), (LeaveOut, Cause::Unused));
        assert_eq!((told[2].2, told[3].2), (Keep, Keep));
        assert_eq!(trial.is_backend(b"10.0.0.1"), Some(true));
        assert_eq!(trial.is_backend(b"10.0.0.2"), Some(false));
        assert_eq!((trial.entry(), trial.region()), (Some("all"), Some("emea")));
    }

    #[test]
    fn kinds_that_are_not_imported_are_left_out_with_their_cause() {
        let mut kinds = trial(
            "clusters: [{name: all, clusters: ['*'], kinds: [endpoints], endpoints: {default: exclude}}]",
            None,
        );
        let told = fill(&mut kinds);
        let causes: Vec<_> = told.iter().map(|(_, _, decision, cause)| (*decision, *cause)).collect();
        assert_eq!(causes[0], (Decision::LeaveOut, Cause::Kind));
        assert_eq!(causes[2], (Decision::LeaveOut, Cause::Kind));
        assert_eq!(causes[4], (Decision::LeaveOut, Cause::Default));
    }

    #[test]
    fn namespaces_that_are_not_known_leave_it_open() {
        let rules = "clusters: [{name: all, clusters: ['*'], endpoints: {default: exclude, rules: [
            {name: ours, action: include, namespaces: {existing: true}}]}}]";
        let open = fill(&mut trial(rules, None));
        assert_eq!(endpoints(&open)[0].0, Decision::Pending);
        let known = fill(&mut trial(rules, Some(&["shop"])));
        let decisions: Vec<_> = endpoints(&known).iter().map(|(decision, _)| *decision).collect();
        use Decision::{Keep, LeaveOut};
        assert_eq!(decisions, [Keep, Keep, LeaveOut, Keep, LeaveOut]);
    }

    #[test]
    fn a_key_that_no_mirror_takes_is_told() {
        let mut trial = trial("", None);
        assert_eq!(trial.put(Scope::Nodes, b"../n1", &Bytes::new(), false), None);
        assert!(trial.put(Scope::Nodes, b"n1", &Bytes::new(), false).is_some());
        assert_eq!(trial.entry(), None);
    }
}
