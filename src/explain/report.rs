//! The report about a scope file, as a document.

use super::summary::{KindSummary, Sample, Summary};
use super::traps::{self, Trap};
use super::{Everything, Files, Sources, import};
use crate::model::keys::Scope;
use crate::scope::Decision;
use crate::scope::file::kind_name;
use serde::Serialize;

/// What a scope file would change.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// The scope file.
    pub scope: String,
    /// The file with the present scope; `None`: everything is exported and imported.
    pub against: Option<String>,
    /// What the file says about the keys of this cluster.
    pub export: Option<Part>,
    /// What the file says about the keys of each remote cluster.
    pub import: Vec<Part>,
    pub warnings: Vec<Trap>,
    /// What else changes, and what was not examined.
    pub notes: Vec<String>,
}

/// The keys of one cluster.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Part {
    pub cluster: String,
    /// The entry of the file that governs a remote cluster.
    pub entry: Option<String>,
    pub region: Option<String>,
    /// Why the keys could not be read.
    pub error: Option<String>,
    pub kinds: Vec<KindPart>,
}

/// The keys of one kind.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct KindPart {
    pub kind: &'static str,
    /// All keys.
    pub all: Size,
    /// Keys that are there with the new scope, also undecided ones that are there already.
    pub kept: Size,
    pub rules: Vec<RulePart>,
    /// Keys that the change of the scope adds, removes, and gives another value.
    pub added: Keys,
    pub removed: Keys,
    pub changed: Keys,
}

/// The keys about which one rule decides.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RulePart {
    /// `kept`, `left-out`, or `pending`.
    pub decision: &'static str,
    /// The rule, or a word in parentheses.
    pub rule: String,
    #[serde(flatten)]
    pub keys: Keys,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Size {
    pub keys: u64,
    /// Bytes of keys and values.
    pub bytes: u64,
}

/// Keys with examples.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Keys {
    #[serde(flatten)]
    pub size: Size,
    pub examples: Vec<String>,
}

impl Report {
    pub(super) fn new(files: &Files, sources: &Sources, everything: Everything<Summary>) -> Self {
        let warnings = traps::all(files, sources, &everything);
        let region = files.new.file.region.clone();
        let export = everything.export.map(|examined| match examined {
            Ok((head, summary)) => Part {
                region,
                ..Part::new(head.cluster, &summary)
            },
            Err(error) => Part::failed(sources.options.cluster.name.to_string(), error),
        });
        let import = everything.import.into_iter().map(|examined| match examined.outcome {
            Ok((import::Head { entry, region, .. }, summary)) => Part {
                entry,
                region,
                ..Part::new(examined.cluster.to_string(), &summary)
            },
            Err(error) => Part::failed(examined.cluster.to_string(), error),
        });
        Self {
            scope: files.new.name.clone(),
            against: files.present.as_ref().map(|file| file.name.clone()),
            export,
            import: import.collect(),
            warnings,
            notes: notes(files, sources),
        }
    }

    /// The clusters whose keys could not be read, with the reasons.
    pub fn failures(&self) -> impl Iterator<Item = (&str, &str)> {
        let parts = self.export.iter().chain(&self.import);
        parts.filter_map(|part| Some((&*part.cluster, part.error.as_deref()?)))
    }
}

/// What else changes, and what was not examined.
fn notes(files: &Files, sources: &Sources) -> Vec<String> {
    let mut notes = vec![];
    let named = |region: Option<&String>| region.map_or_else(|| "none".to_owned(), Clone::clone);
    let region = files.new.file.region.as_ref();
    let former = files.present.as_ref().and_then(|present| present.file.region.as_ref());
    if region != former {
        let (former, region) = (named(former), named(region));
        notes.push(format!(
            "The region in the cluster configuration changes: {former} before, {region} afterwards."
        ));
    }
    if sources.objects.is_none() {
        notes.push(
            "The export was not examined: give the objects of this cluster with --manifests or --k8s-kubeconfig-path."
                .to_owned(),
        );
    }
    if sources.remotes.is_none() && sources.snapshot.is_none() {
        notes.push(
            "The import was not examined: give the client files of the remote clusters with --clustermesh-config, or a snapshot \
             of a store with --snapshot."
                .to_owned(),
        );
    }
    notes
}

impl Part {
    fn new(cluster: String, summary: &Summary) -> Self {
        let kinds = Scope::ALL
            .into_iter()
            .filter_map(|kind| Some(KindPart::new(kind, summary.kinds.get(&kind)?)));
        Self {
            cluster,
            entry: None,
            region: None,
            error: None,
            kinds: kinds.collect(),
        }
    }

    fn failed(cluster: String, error: String) -> Self {
        Self {
            error: Some(error),
            ..Self::new(cluster, &Summary::default())
        }
    }

    /// The sum of a figure over all kinds.
    pub fn sum(&self, of: impl Fn(&KindPart) -> Size) -> Size {
        self.kinds.iter().map(of).fold(Size::default(), |sum, size| Size {
            keys: sum.keys + size.keys,
            bytes: sum.bytes + size.bytes,
        })
    }
}

impl KindPart {
    fn new(kind: Scope, summary: &KindSummary) -> Self {
        let all = summary.rows.values().fold(Size::default(), |sum, row| Size {
            keys: sum.keys + row.sample.keys,
            bytes: sum.bytes + row.sample.bytes,
        });
        let rules = summary.rows.iter().map(|((decision, _), row)| RulePart {
            decision: decision.word(),
            rule: row.rule.clone(),
            keys: (&row.sample).into(),
        });
        Self {
            kind: kind_name(kind),
            all,
            kept: Keys::from(&summary.kept).size,
            rules: rules.collect(),
            added: (&summary.added).into(),
            removed: (&summary.removed).into(),
            changed: (&summary.changed).into(),
        }
    }

    /// Whether every key is kept, and no rule was asked.
    pub fn is_plain(&self) -> bool {
        let is_plain = |rule: &RulePart| rule.decision == Decision::Keep.word() && rule.rule.starts_with('(');
        self.rules.iter().all(is_plain)
    }
}

impl From<&Sample> for Keys {
    fn from(sample: &Sample) -> Self {
        Self {
            size: Size {
                keys: sample.keys,
                bytes: sample.bytes,
            },
            examples: sample.examples.clone(),
        }
    }
}
