//! What this cluster takes from one remote cluster, by the mirror's own filter.

use super::Files;
use super::judged::{Facts, Judged, Ruling, Visitor};
use crate::kvstoremesh::trial::Trial;
use crate::model::cluster::ClusterName;
use crate::model::keys::Scope;
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// The files, and what the rules know of this cluster.
pub(super) struct Surroundings<'a> {
    pub(super) files: &'a Files,
    /// The namespaces of this cluster, if they are known.
    pub(super) namespaces: Option<Arc<BTreeSet<String>>>,
}

/// What is known of a remote cluster beside its keys.
#[derive(Debug, Default)]
pub(super) struct Head {
    /// The entry of the new file that governs the cluster.
    pub(super) entry: Option<String>,
    /// The region, by the cluster's own word or by the new file.
    pub(super) region: Option<String>,
    /// The kinds about whose keys rules decide one by one.
    pub(super) filtered: BTreeSet<Scope>,
    /// The limits of the entry.
    pub(super) limits: BTreeMap<Scope, usize>,
    /// Keys that no mirror takes.
    pub(super) refused: u64,
}

/// The keys of one remote cluster, while they are read. Holds no values but those of identities.
pub(super) struct Examination<V> {
    trial: Trial,
    present: Option<Trial>,
    cluster: ClusterName,
    /// What was decided about identities is final at the end only.
    identities: BTreeMap<Box<str>, Bytes>,
    refused: u64,
    visitor: V,
}

impl<V: Visitor> Examination<V> {
    /// `region` is the region that the cluster gives itself.
    pub(super) fn new(
        cluster: &ClusterName,
        region: Option<&str>,
        Surroundings { files, namespaces }: &Surroundings<'_>,
        visitor: V,
    ) -> Self {
        let trial = |file: &super::NamedFile| Trial::new(cluster, Arc::clone(&file.file), namespaces.clone(), region);
        Self {
            trial: trial(&files.new),
            present: files.present.as_ref().map(trial),
            cluster: cluster.clone(),
            identities: BTreeMap::new(),
            refused: 0,
            visitor,
        }
    }

    /// The cluster has this key. The kinds come in the order of [`trial::ORDER`](crate::kvstoremesh::trial::ORDER).
    pub(super) fn put(&mut self, kind: Scope, name: &[u8], value: Bytes) {
        let was_kept = match &mut self.present {
            Some(present) => present
                .put(kind, name, &value, false)
                .is_some_and(|verdict| verdict.keeps()),
            None => true,
        };
        if self.trial.put(kind, name, &value, was_kept).is_none() {
            self.refused += 1;
            return;
        }
        let name = String::from_utf8_lossy(name);
        if kind == Scope::Identities {
            self.identities.insert((&*name).into(), value);
            return;
        }
        self.visit(kind, &name, &value);
    }

    /// All keys of a kind have been put.
    pub(super) fn end(&mut self, kind: Scope) {
        self.trial.end(kind);
        if let Some(present) = &mut self.present {
            present.end(kind);
        }
    }

    /// All keys of all kinds have been put.
    pub(super) fn finish(mut self) -> (Head, V) {
        let identities = std::mem::take(&mut self.identities);
        for (name, value) in &identities {
            self.visit(Scope::Identities, name, value);
        }
        let trial = &self.trial;
        let head = Head {
            entry: trial.entry().map(str::to_owned),
            region: trial.region().map(str::to_owned),
            filtered: Scope::ALL.into_iter().filter(|kind| trial.is_filtered(*kind)).collect(),
            limits: Scope::ALL
                .into_iter()
                .filter_map(|kind| Some((kind, trial.limit(kind)?)))
                .collect(),
            refused: self.refused,
        };
        (head, self.visitor)
    }

    fn visit(&mut self, kind: Scope, name: &str, value: &Bytes) {
        let Self {
            trial,
            present,
            cluster,
            identities,
            visitor,
            ..
        } = self;
        let former = present.as_ref().map(|present| ruling(present, kind, name));
        visitor.key(&Judged {
            kind,
            name,
            value,
            bytes: (kind.cache_prefix(cluster).len() + name.len() + value.len()) as u64,
            ruling: ruling(trial, kind, name),
            former,
            was_kept: former.is_none_or(|former| former.keeps(false)),
            is_changed: false,
            facts: &Seen { trial, identities },
        });
    }
}

fn ruling<'a>(trial: &'a Trial, kind: Scope, name: &str) -> Ruling<'a> {
    let rules = !matches!(kind, Scope::Identities | Scope::Nodes);
    Ruling {
        verdict: trial.verdict(kind, name.as_bytes()),
        rules: rules.then(|| trial.rules(kind)),
    }
}

/// What the rules know of addresses.
struct Seen<'a> {
    trial: &'a Trial,
    identities: &'a BTreeMap<Box<str>, Bytes>,
}

impl Facts for Seen<'_> {
    fn labels(&self, identity: u32) -> Option<String> {
        let value = self.identities.get(&*identity.to_string())?;
        Some(String::from_utf8_lossy(value).into_owned())
    }

    fn is_backend(&self, address: &str) -> Option<bool> {
        self.trial.is_backend(address.as_bytes())
    }
}
