//! Warnings: scope files that say something else than their authors mean.

mod file;

pub use file::file_traps;

use super::summary::{Sample, Summary};
use super::{Everything, Files, Sources, export, import};
use crate::model::keys::Scope;
use crate::scope::file::{ClusterRules, kind_name};
use crate::scope::{Decision, Rules, ScopeFile};
use serde::Serialize;
use std::collections::BTreeMap;

/// A warning.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Trap {
    /// The place in the scope file, or what the warning is about.
    pub place: String,
    pub problem: String,
    pub examples: Vec<String>,
    pub remedy: String,
}

/// What was found in the clusters of one place of the file.
#[derive(Default)]
struct Gathered {
    services: u64,
    lost_backends: Sample,
    needed_identities: Sample,
    identities_of_pods: Sample,
    regional: Sample,
    undecided: Sample,
}

/// The words that differ between export and import.
struct Words {
    place: String,
    verb: &'static str,
    backends: &'static str,
    whole: &'static str,
}

impl Trap {
    fn new(place: impl Into<String>, problem: String, remedy: impl Into<String>) -> Self {
        Self {
            place: place.into(),
            problem,
            examples: vec![],
            remedy: remedy.into(),
        }
    }

    fn with(self, examples: &[String]) -> Self {
        Self {
            examples: examples.to_vec(),
            ..self
        }
    }
}

/// All warnings about what was examined.
pub(super) fn all(files: &Files, sources: &Sources, everything: &Everything<Summary>) -> Vec<Trap> {
    let file = &*files.new.file;
    let mut traps = file_traps(file);
    if let Some(Ok((head, summary))) = &everything.export {
        of_export(file, sources, head, summary, &mut traps);
    }
    let examined = everything.import.iter().filter_map(|examined| {
        let (head, summary) = examined.outcome.as_ref().ok()?;
        Some((examined.cluster.as_str(), head, summary))
    });
    let examined: Vec<_> = examined.collect();
    if !examined.is_empty() {
        of_import(file, &examined, examined.len() == everything.import.len(), &mut traps);
        let asks = file.import.need_existing() && !everything.knows_namespaces;
        traps.extend(asks.then(|| {
            Trap::new(
                "import",
                "rules ask whether a namespace exists in this cluster, and its namespaces are not known: keys that depend on \
                 them are undecided"
                    .to_owned(),
                "give the namespaces with --manifests or --k8s-kubeconfig-path",
            )
        }));
    }
    traps
}

// --- export

fn of_export(file: &ScopeFile, sources: &Sources, head: &export::Head, summary: &Summary, traps: &mut Vec<Trap>) {
    let mut gathered = Gathered::default();
    gathered.add(summary, str::to_owned);
    let words = Words {
        place: "export.endpoints".to_owned(),
        verb: "exported",
        backends: "backendsOfGlobalServices",
        whole: "export.identities: all",
    };
    gathered.tell(&words, traps);
    let export = &file.export;
    let lists: [(&str, &Rules, &[Scope]); 3] = [
        ("export.endpoints", &export.endpoints, &[Scope::Endpoints]),
        (
            "export.services",
            &export.services,
            &[Scope::Services, Scope::EndpointSlices],
        ),
        (
            "export.serviceExports",
            &export.service_exports,
            &[Scope::ServiceExports],
        ),
    ];
    for (place, rules, kinds) in lists {
        idle_rules(place, rules, |at| summary.decides(kinds, at), traps);
    }
    if gathered.regional.keys > 0 && file.region.is_none() {
        let problem = format!(
            "{} the annotation clustermesh.cilium.io/sync-scope: regional, and the file gives no region: every cluster \
             takes them",
            count(gathered.regional.keys, "address has", "addresses have")
        );
        traps.push(
            Trap::new("region", problem, "set region to the region of this cluster").with(&gathered.regional.examples),
        );
    }
    if sources.options.endpoint_slices && (file.region.is_some() || !head.annotated_slices.is_empty()) {
        let problem = "addresses come from CiliumEndpointSlices, which have no annotations for each pod: \
                       clustermesh.cilium.io/sync and sync-scope do not count, and no address is for one region only";
        let remedy = "use a rule with an identity selector over a label of the pods";
        let examples = &head.annotated_slices[..head.annotated_slices.len().min(3)];
        traps.push(Trap::new("export.endpoints", problem.to_owned(), remedy).with(examples));
    }
    if !head.problems.is_empty() {
        let objects = count(head.problems.len() as u64, "annotation is", "annotations are");
        let examples = &head.problems[..head.problems.len().min(3)];
        let trap = Trap::new(
            "export.endpoints",
            format!("{objects} ignored"),
            "correct the values of the annotations",
        );
        traps.push(trap.with(examples));
    }
}

// --- import

type Cluster<'a> = (&'a str, &'a import::Head, &'a Summary);

fn of_import(file: &ScopeFile, clusters: &[Cluster<'_>], is_whole: bool, traps: &mut Vec<Trap>) {
    let mut by_entry: BTreeMap<&str, Gathered> = BTreeMap::new();
    for (name, head, summary) in clusters {
        let gathered = by_entry.entry(head.entry.as_deref().unwrap_or_default()).or_default();
        gathered.add(summary, |example| format!("{name}: {example}"));
        limits(name, head, summary, traps);
        if head.refused > 0 {
            let keys = count(
                head.refused,
                &format!("key of {name} is"),
                &format!("keys of {name} are"),
            );
            let problem = format!("{keys} mirrored by nobody, because of unsafe names or of the size");
            traps.push(Trap::new("import", problem, "correct the publisher of that cluster"));
        }
    }
    for (at, entry) in file.import.clusters.iter().enumerate() {
        let place = format!("import.clusters[{at}] ({})", entry.name);
        let governed: Vec<_> = clusters
            .iter()
            .filter(|(_, head, _)| head.entry.as_deref() == Some(&*entry.name))
            .collect();
        if let Some(gathered) = by_entry.get(&*entry.name) {
            let words = Words {
                place: place.clone(),
                verb: "imported",
                backends: "backendsOfServices",
                whole: "identities: all, and identities among kinds,",
            };
            gathered.tell(&words, traps);
        }
        if !is_whole {
            continue;
        }
        if governed.is_empty() {
            let problem = format!(
                "the entry governs none of the {} clusters that were examined",
                clusters.len()
            );
            let remedy =
                "compare its clusters and regions with the names of the clusters, and with the entries before it";
            traps.push(Trap::new(place, problem, remedy));
            continue;
        }
        for (list, rules, kinds) in lists(entry) {
            // Where nothing is decided key by key, no rule is asked.
            let asked: Vec<_> = governed
                .iter()
                .filter(|(_, head, _)| kinds.iter().any(|k| head.filtered.contains(k)))
                .collect();
            if !asked.is_empty() {
                let decides = |rule| asked.iter().any(|(.., summary)| summary.decides(kinds, rule));
                idle_rules(&format!("{place}.{list}"), rules, decides, traps);
            }
        }
    }
    regions(file, clusters, traps);
}

fn lists(entry: &ClusterRules) -> [(&'static str, &Rules, &'static [Scope]); 3] {
    [
        ("endpoints", &entry.endpoints, &[Scope::Endpoints]),
        ("services", &entry.services, &[Scope::Services, Scope::EndpointSlices]),
        ("serviceExports", &entry.service_exports, &[Scope::ServiceExports]),
    ]
}

/// Clusters that exceed a limit.
fn limits(name: &str, head: &import::Head, summary: &Summary, traps: &mut Vec<Trap>) {
    for (kind, limit) in &head.limits {
        let kept = summary.kinds.get(kind).map_or(0, |summary| summary.kept.keys);
        if kept > *limit as u64 {
            let (kind, entry) = (kind_name(*kind), head.entry.as_deref().unwrap_or_default());
            let problem = format!(
                "{name} has {kept} keys after the rules, more than the limit of {limit}: the mirror of this kind stops"
            );
            let remedy = "raise the limit, or let the rules leave out more";
            traps.push(Trap::new(
                format!("import.clusters ({entry}).limits.{kind}"),
                problem,
                remedy,
            ));
        }
    }
}

/// Regions that are asked for and not known.
fn regions(file: &ScopeFile, clusters: &[Cluster<'_>], traps: &mut Vec<Trap>) {
    let ask = file.import.clusters.iter().any(|entry| !entry.regions.is_empty());
    let unknown: Vec<_> = clusters
        .iter()
        .filter(|(_, head, _)| head.region.is_none())
        .map(|(name, ..)| (*name).to_owned())
        .collect();
    if ask && !unknown.is_empty() {
        let problem = format!(
            "the region of {} is not known: entries with regions do not govern them",
            count(unknown.len() as u64, "cluster", "clusters")
        );
        let remedy = "set region in the scope files of these clusters, or import.regions here";
        traps.push(Trap::new("import.regions", problem, remedy).with(&unknown[..unknown.len().min(3)]));
    }
    let regional = clusters
        .iter()
        .map(|(.., summary)| summary.findings.regional.keys)
        .sum::<u64>();
    if regional > 0 && file.region.is_none() {
        let problem = format!(
            "{} of remote clusters are for clusters of their own region, and the file gives no region of this cluster: all \
             of them are taken",
            count(regional, "address", "addresses")
        );
        traps.push(Trap::new("region", problem, "set region to the region of this cluster"));
    }
}

// --- both

impl Gathered {
    fn add(&mut self, summary: &Summary, named: impl Fn(&str) -> String) {
        let findings = &summary.findings;
        self.services += findings.lost_backends.len() as u64;
        for (service, backends) in &findings.lost_backends {
            let named = |address: &str| named(&format!("{service} without {address}"));
            self.lost_backends.merge(backends, named);
        }
        self.needed_identities.merge(&findings.needed_identities, &named);
        self.identities_of_pods.merge(&findings.identities_of_pods, &named);
        self.regional.merge(&findings.regional, &named);
        let undecided = summary
            .kinds
            .get(&Scope::Endpoints)
            .into_iter()
            .flat_map(|kind| &kind.rows);
        for (_, row) in
            undecided.filter(|((decision, _), row)| *decision == Decision::Pending && !row.rule.starts_with('('))
        {
            self.undecided.merge(&row.sample, &named);
        }
    }

    fn tell(&self, words: &Words, traps: &mut Vec<Trap>) {
        let Words {
            place,
            verb,
            backends,
            whole,
        } = words;
        let mut tell = |sample: &Sample, problem: String, remedy: String| {
            if sample.keys > 0 {
                traps.push(Trap::new(place, problem, remedy).with(&sample.examples));
            }
        };
        let lost = format!(
            "{} {verb} without {}: other clusters cannot attribute these addresses to pods, so that policy by labels does \
             not hold for them",
            count(self.services, "service is", "services are"),
            count(self.lost_backends.keys, "backend", "backends")
        );
        let remedy = format!(
            "put a rule with action: include and {backends}: true first in the list of endpoints, or leave the services out as \
             well"
        );
        tell(&self.lost_backends, lost, remedy);
        let needed = format!(
            "{} left out, and endpoints that are {verb} have them: agents do not know the labels of these addresses",
            count(self.needed_identities.keys, "identity is", "identities are")
        );
        tell(
            &self.needed_identities,
            needed,
            format!("set {whole} in this place of the file"),
        );
        let of_pods = format!(
            "{} left out although pods have them: what such a pod sends through a tunnel has an identity that the other \
             cluster does not know, and policy that asks for labels drops it",
            count(self.identities_of_pods.keys, "identity is", "identities are")
        );
        let remedy = format!("set {whole} unless these pods send nothing to other clusters");
        tell(&self.identities_of_pods, of_pods, remedy);
        let undecided = format!(
            "{} undecided, because the labels of their identities are not known: an address that is there stays, and one that \
             is not there is kept back",
            count(self.undecided.keys, "address is", "addresses are")
        );
        let remedy = "look whether the CiliumIdentities of these pods exist and are exported";
        tell(&self.undecided, undecided, remedy.to_owned());
    }
}

/// Rules that decide about no key.
fn idle_rules(place: &str, rules: &Rules, decides: impl Fn(usize) -> bool, traps: &mut Vec<Trap>) {
    for (at, rule) in rules.list().iter().enumerate().filter(|(at, _)| !decides(*at)) {
        let problem = format!(
            "rule {:?} decides about no key: nothing matches it, or a rule before it matches first",
            rule.name
        );
        let remedy = "compare its conditions with the names and labels in the cluster, or remove the rule";
        traps.push(Trap::new(format!("{place}.rules[{at}]"), problem, remedy));
    }
}

/// A number with its noun.
fn count(n: u64, one: &str, many: &str) -> String {
    match n {
        1 => format!("1 {one}"),
        n => format!("{n} {many}"),
    }
}
