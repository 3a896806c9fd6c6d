//! `why`: finds the keys that a word names, and says what decides about each.

use super::judged::{Facts, Judged, Visitor};
use super::sentence::{self, List, RulesAre};
use super::values::{self, Pod};
use super::{Everything, Files, NamedFile, export, import};
use crate::model::cluster::ClusterName;
use crate::model::keys::{self, Scope};
use crate::scope::{Cause, Decision, ScopeFile};
use serde::Serialize;
use std::fmt::Write as _;
use std::net::IpAddr;

/// Keys that are told of one cluster.
const FOUND_MAX: usize = 20;

/// What is searched for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Query {
    /// A key in a store.
    Key(Target),
    Address(String),
    Identity(u32),
    /// A pod, service, slice or ServiceExport.
    Named {
        namespace: String,
        name: String,
    },
}

/// A key in a store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Target {
    kind: Scope,
    name: String,
    /// The cluster that the key names; `None`: any.
    cluster: Option<String>,
    /// Whether the key is one of the mirror.
    is_mirrored: bool,
}

/// Keeps the keys that match.
pub(super) struct Search {
    query: Query,
    found: Vec<Found>,
    more: u64,
    unpublished: Vec<String>,
}

/// A key that matches, and what decides about it.
struct Found {
    kind: Scope,
    name: String,
    verdict: (Decision, Cause, String),
    former: Option<(Decision, Cause, String)>,
    was_kept: bool,
    is_kept: bool,
    facts: Vec<String>,
}

/// What decides about the keys that a word names.
#[derive(Clone, Debug, Serialize)]
pub struct Answer {
    /// One entry for each key.
    pub keys: Vec<Told>,
    /// What was not found, or could not be examined.
    pub notes: Vec<String>,
    /// Clusters whose keys could not be read, with the reasons.
    pub failures: Vec<String>,
}

/// What decides about one key.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Told {
    /// `export` or `import`.
    pub direction: &'static str,
    pub cluster: String,
    pub key: String,
    /// `kept`, `left-out`, or `pending`.
    pub decision: &'static str,
    /// The rule, or a word in parentheses.
    pub rule: String,
    pub reason: String,
    /// Whether the key is there now, and with the new scope.
    pub is_there: bool,
    pub will_be_there: bool,
    /// What the decision rests on.
    pub facts: Vec<String>,
    /// What the present scope says.
    pub present: Option<String>,
}

// === impl Query ===

impl Query {
    pub(super) fn parse(text: &str) -> Option<Self> {
        if text.starts_with("cilium/") {
            return Target::parse(text).map(Self::Key);
        }
        if let Ok(address) = text.parse::<IpAddr>() {
            return Some(Self::Address(address.to_string()));
        }
        if let Ok(number) = text.parse() {
            return Some(Self::Identity(number));
        }
        let (namespace, name) = text.split_once('/')?;
        let is_named = !namespace.is_empty() && !name.is_empty() && !name.contains('/');
        is_named.then(|| Self::Named {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
        })
    }

    fn matches(&self, key: &Judged<'_>) -> bool {
        match self {
            Self::Key(target) => target.kind == key.kind && target.name == key.name,
            Self::Address(address) => key.kind == Scope::Endpoints && key.name == address,
            Self::Identity(number) => key.kind == Scope::Identities && key.name == number.to_string(),
            Self::Named { namespace, name } => match key.kind {
                Scope::Identities | Scope::Nodes => false,
                Scope::Endpoints => {
                    let pod = Pod::of(key.value);
                    pod.namespace == *namespace && pod.name == *name
                }
                _ => key.name.split_once('/') == Some((namespace, name)),
            },
        }
    }

    /// Whether a key of this cluster or of a remote one can match.
    fn concerns(&self, cluster: &str, is_own: bool) -> bool {
        match self {
            Self::Key(target) if target.is_mirrored => !is_own && target.cluster.as_deref() == Some(cluster),
            Self::Key(target) => target.cluster.as_deref().is_none_or(|of| of == cluster),
            _ => true,
        }
    }
}

impl Target {
    /// Reads `cilium/{state,cache}/<kind>/v1/…`.
    fn parse(key: &str) -> Option<Self> {
        let mut parts = key.splitn(5, '/').skip(1);
        let (place, word, version, rest) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
        let kind = Scope::ALL.into_iter().find(|kind| kind.word() == word)?;
        let is_mirrored = match place {
            "state" => false,
            "cache" => true,
            _ => return None,
        };
        // The keys of a cluster's own identities and addresses do not name the cluster.
        let (cluster, name) = match (is_mirrored, kind) {
            (false, Scope::Identities) => (None, rest.strip_prefix("id/")?),
            (false, Scope::Endpoints) => (None, rest.strip_prefix("default/")?),
            _ => {
                let (cluster, name) = rest.split_once('/')?;
                let name = if kind == Scope::Identities {
                    name.strip_prefix("id/")?
                } else {
                    name
                };
                (Some(cluster.to_owned()), name)
            }
        };
        let is_key = version == "v1" && keys::is_safe_name(name.as_bytes());
        is_key.then(|| Self {
            kind,
            name: name.to_owned(),
            cluster,
            is_mirrored,
        })
    }
}

// === impl Search ===

impl Search {
    pub(super) fn new(query: Query) -> Self {
        Self {
            query,
            found: vec![],
            more: 0,
            unpublished: vec![],
        }
    }
}

impl Visitor for Search {
    fn key(&mut self, key: &Judged<'_>) {
        if !self.query.matches(key) {
            return;
        }
        if self.found.len() == FOUND_MAX {
            self.more += 1;
            return;
        }
        let told = |ruling: super::judged::Ruling<'_>| {
            let verdict = ruling.verdict;
            (verdict.decision, verdict.cause, ruling.cause().to_owned())
        };
        self.found.push(Found {
            kind: key.kind,
            name: key.name.to_owned(),
            verdict: told(key.ruling),
            former: key.former.map(told),
            was_kept: key.was_kept,
            is_kept: key.is_kept(),
            facts: facts(key, key.facts),
        });
    }

    fn unpublished(&mut self, kind: &'static str, namespace: &str, name: &str) {
        let is_named = |of: &str, named: &str| of == namespace && named == name;
        if matches!(&self.query, Query::Named { namespace, name } if is_named(namespace, name)) {
            self.unpublished.push(format!("{kind} {namespace}/{name}"));
        }
    }
}

/// What a decision rests on.
fn facts(key: &Judged<'_>, known: &dyn Facts) -> Vec<String> {
    match key.kind {
        Scope::Endpoints => {
            let pod = Pod::of(key.value);
            let name = format!("{}/{}", pod.namespace, pod.name);
            let labels = match known.labels(pod.identity) {
                Some(labels) => format!("identity {} ({})", pod.identity, values::shown(&labels)),
                None => format!("identity {}, whose labels are not known", pod.identity),
            };
            let mut facts = vec![format!("pod {}", values::shown(&name)), labels];
            facts.extend(known.is_backend(key.name).map(|is_backend| match is_backend {
                true => "a backend of a service".to_owned(),
                false => "no backend of a service".to_owned(),
            }));
            facts.extend(pod.is_regional().then(|| "for clusters of the same region".to_owned()));
            facts
        }
        Scope::Identities => vec![format!("labels {}", values::shown(&String::from_utf8_lossy(key.value)))],
        _ => vec![],
    }
}

// === impl Answer ===

impl Answer {
    pub(super) fn new(files: &Files, query: &Query, everything: Everything<Search>) -> Self {
        let mut answer = Self {
            keys: vec![],
            notes: vec![],
            failures: vec![],
        };
        let any_examined = everything.export.is_some() || !everything.import.is_empty();
        match everything.export {
            Some(Ok((export::Head { cluster, .. }, search))) if query.concerns(&cluster, true) => {
                answer.add(
                    "export",
                    &cluster,
                    search,
                    |found, file| told_of_export(&cluster, found, file),
                    files,
                );
            }
            Some(Err(error)) => answer.failures.push(format!("the objects of this cluster: {error}")),
            _ => {}
        }
        for examined in everything.import {
            let cluster = examined.cluster.to_string();
            match examined.outcome {
                Ok((head, search)) if query.concerns(&cluster, false) => {
                    let told = |found: &Found, file: &ScopeFile| told_of_import(&cluster, &head, found, file);
                    answer.add("import", &cluster, search, told, files);
                }
                Ok(_) => {}
                Err(error) => answer.failures.push(format!("{cluster}: {error}")),
            }
        }
        if answer.keys.is_empty() && any_examined {
            answer.notes.push(
                "No key matches, with or without a scope. Give the exact name: a pod is NAMESPACE/POD, an address has its usual \
                 spelling."
                    .to_owned(),
            );
        }
        answer
    }

    fn add(
        &mut self,
        direction: &'static str,
        cluster: &str,
        search: Search,
        tell: impl Fn(&Found, &ScopeFile) -> List,
        files: &Files,
    ) {
        for found in &search.found {
            let list = tell(found, &files.new.file);
            let (decision, cause, rule) = &found.verdict;
            let present = files.present.as_ref().zip(found.former.as_ref());
            self.keys.push(Told {
                direction,
                cluster: cluster.to_owned(),
                key: list.key.clone(),
                decision: decision.word(),
                rule: rule.clone(),
                reason: sentence::reason(&list, *decision, *cause, rule),
                is_there: found.was_kept,
                will_be_there: found.is_kept,
                facts: found.facts.clone(),
                present: present.map(|(NamedFile { file, .. }, (decision, cause, rule))| {
                    sentence::reason(&tell(found, file), *decision, *cause, rule)
                }),
            });
        }
        if search.more > 0 {
            self.notes.push(format!("{cluster}: {} more keys match.", search.more));
        }
        self.notes.extend(search.unpublished.into_iter().map(|object| {
            format!(
                "{object} exists and is not published, with or without a scope: its namespace is not global \
                 (clustermesh.cilium.io/global), a Service is not global (service.cilium.io/global), or a pod has no address \
                 yet."
            )
        }));
    }

    /// The answer as text.
    pub fn text(&self) -> String {
        let mut out = String::new();
        // Writing to a string does not fail.
        for told in &self.keys {
            let Told { direction, cluster, .. } = told;
            let _ = writeln!(out, "{} ({direction}, {cluster})", values::shown(&told.key));
            let _ = writeln!(out, "  {}: {}.", told.decision, told.reason);
            if !told.facts.is_empty() {
                let _ = writeln!(out, "  Facts: {}.", told.facts.join("; "));
            }
            if let Some(present) = &told.present {
                let _ = writeln!(out, "  Present scope: {present}.");
            }
            let _ = writeln!(out, "  {}", change(told));
        }
        for note in &self.notes {
            let _ = writeln!(out, "{note}");
        }
        for failure in &self.failures {
            let _ = writeln!(out, "Could not be read: {failure}.");
        }
        out
    }
}

fn change(told: &Told) -> &'static str {
    match (told.is_there, told.will_be_there) {
        (true, true) => "Change: none, the key stays.",
        (false, false) => "Change: none, the key is not there.",
        (true, false) => "Change: the key is deleted.",
        (false, true) => "Change: the key is written.",
    }
}

fn told_of_export(cluster: &str, found: &Found, file: &ScopeFile) -> List {
    let place = match found.kind {
        Scope::Identities => "export.identities".to_owned(),
        Scope::Nodes => "export".to_owned(),
        Scope::Services | Scope::EndpointSlices => "export.services".to_owned(),
        Scope::Endpoints => "export.endpoints".to_owned(),
        Scope::ServiceExports => "export.serviceExports".to_owned(),
    };
    let rules = export::list(&file.export, found.kind);
    List {
        key: key(found, cluster, Scope::state_prefix),
        place,
        kind: found.kind,
        rules: match rules {
            Some(rules) if !rules.list().is_empty() => RulesAre::Asked,
            _ => RulesAre::Missing,
        },
        entry: None,
        region: None,
    }
}

fn told_of_import(cluster: &str, head: &import::Head, found: &Found, file: &ScopeFile) -> List {
    let region = head.region.as_deref();
    let at = file.import.rules(cluster, region);
    let rules = at.and_then(|entry| entry.list(found.kind));
    List {
        key: key(found, cluster, Scope::cache_prefix),
        place: at.map_or_else(
            || "import".to_owned(),
            |entry| format!("import.clusters ({})", entry.name),
        ),
        kind: found.kind,
        rules: match rules {
            Some(rules) if rules.list().is_empty() => RulesAre::Missing,
            Some(rules) if rules.keep_all() || rules.leave_out_all() => RulesAre::Uniform,
            Some(_) => RulesAre::Asked,
            None => RulesAre::Missing,
        },
        entry: Some(at.map(|entry| entry.name.clone())),
        region: Some((
            file.region.clone().unwrap_or_default(),
            region.unwrap_or_default().to_owned(),
        )),
    }
}

fn key(found: &Found, cluster: &str, prefix: fn(Scope, &ClusterName) -> String) -> String {
    let name = ClusterName::new(cluster);
    name.map_or_else(|_| found.name.clone(), |name| prefix(found.kind, &name) + &found.name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_is_a_key_a_pod_an_address_or_an_identity() {
        let key = |kind, name: &str, cluster: Option<&str>, is_mirrored| {
            Some(Query::Key(Target {
                kind,
                name: name.to_owned(),
                cluster: cluster.map(str::to_owned),
                is_mirrored,
            }))
        };
        assert_eq!(
            Query::parse("cilium/state/ip/v1/default/10.0.0.1"),
            key(Scope::Endpoints, "10.0.0.1", None, false)
        );
        assert_eq!(
            Query::parse("cilium/state/identities/v1/id/7"),
            key(Scope::Identities, "7", None, false)
        );
        let service = "cilium/state/services/v1/hk/shop/db";
        assert_eq!(
            Query::parse(service),
            key(Scope::Services, "shop/db", Some("hk"), false)
        );
        let cached = "cilium/cache/identities/v1/hk/id/7";
        assert_eq!(Query::parse(cached), key(Scope::Identities, "7", Some("hk"), true));
        assert_eq!(Query::parse("fd00:0::1"), Some(Query::Address("fd00::1".to_owned())));
        assert_eq!(Query::parse("66000"), Some(Query::Identity(66000)));
        let named = Query::Named {
            namespace: "shop".to_owned(),
            name: "db-0".to_owned(),
        };
        assert_eq!(Query::parse("shop/db-0"), Some(named));
        for bad in [
            "",
            "db",
            "a/b/c",
            "/b",
            "a/",
            "cilium/x",
            "cilium/state/pods/v1/x",
            "cilium/cache/ip/v1/hk",
            "cilium/state/ip/v2/default/x",
        ] {
            assert_eq!(Query::parse(bad), None, "{bad}");
        }
    }
}
