//! Counts what becomes of the keys of one cluster, and keeps a few examples. Holds no keys.

use super::judged::{Judged, Visitor};
use super::values::{self, Pod};
use crate::model::keys::Scope;
use crate::scope::{Cause, Decision};
use std::collections::{BTreeMap, HashMap};

/// Examples that are kept of each group of keys.
const EXAMPLES: usize = 3;

/// Keys with their bytes, and the first few of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Sample {
    pub(super) keys: u64,
    pub(super) bytes: u64,
    pub(super) examples: Vec<String>,
}

/// The keys about which one rule decides.
#[derive(Clone, Debug, Default)]
pub(super) struct Row {
    pub(super) rule: String,
    pub(super) sample: Sample,
}

/// The keys of one kind.
#[derive(Clone, Debug, Default)]
pub(super) struct KindSummary {
    pub(super) rows: BTreeMap<(Decision, Cause), Row>,
    /// Keys that are there, once the new scope is in force.
    pub(super) kept: Sample,
    /// Keys that are not there before, and are afterwards.
    pub(super) added: Sample,
    /// Keys that are there before, and are not afterwards.
    pub(super) removed: Sample,
    /// Keys that get another value.
    pub(super) changed: Sample,
}

/// See the module's documentation.
#[derive(Debug, Default)]
pub(super) struct Summary {
    pub(super) kinds: BTreeMap<Scope, KindSummary>,
    pub(super) findings: Findings,
    /// Address → a service that is kept and has the address as a backend.
    backends: HashMap<String, String>,
    /// Identity → whether addresses with it are kept, and whether such addresses are left out.
    users: HashMap<u32, Users>,
}

/// What is a trap, or may be one.
#[derive(Clone, Debug, Default)]
pub(super) struct Findings {
    /// Service that is kept → its backends that are not.
    pub(super) lost_backends: BTreeMap<String, Sample>,
    /// Identities that are left out although addresses with them are kept.
    pub(super) needed_identities: Sample,
    /// Identities that are left out although pods have them.
    pub(super) identities_of_pods: Sample,
    /// Addresses for clusters of the same region.
    pub(super) regional: Sample,
}

#[derive(Clone, Copy, Debug, Default)]
struct Users {
    any_kept: bool,
    any_left_out: bool,
}

impl Sample {
    pub(super) fn add(&mut self, bytes: u64, example: impl FnOnce() -> String) {
        self.keys += 1;
        self.bytes += bytes;
        if self.examples.len() < EXAMPLES {
            self.examples.push(example());
        }
    }

    /// Adds all keys of another sample.
    pub(super) fn merge(&mut self, other: &Self, example: impl Fn(&str) -> String) {
        self.keys += other.keys;
        self.bytes += other.bytes;
        let free = EXAMPLES.saturating_sub(self.examples.len());
        self.examples
            .extend(other.examples.iter().take(free).map(|text| example(text)));
    }
}

impl Visitor for Summary {
    fn key(&mut self, key: &Judged<'_>) {
        let summary = self.kinds.entry(key.kind).or_default();
        let example = || values::example(key.kind, key.name, key.value);
        let verdict = key.ruling.verdict;
        let row = summary
            .rows
            .entry((verdict.decision, verdict.cause))
            .or_insert_with(|| Row {
                rule: key.ruling.cause().to_owned(),
                sample: Sample::default(),
            });
        row.sample.add(key.bytes, example);
        let is_kept = key.is_kept();
        if is_kept {
            summary.kept.add(key.bytes, String::new);
        }
        match (key.was_kept, is_kept) {
            (false, true) => summary.added.add(key.bytes, example),
            (true, false) => summary.removed.add(key.bytes, example),
            (true, true) if key.is_changed => summary.changed.add(key.bytes, example),
            _ => {}
        }
        self.find(key, is_kept);
    }
}

impl Summary {
    fn find(&mut self, key: &Judged<'_>, is_kept: bool) {
        let findings = &mut self.findings;
        match key.kind {
            Scope::Services | Scope::EndpointSlices if is_kept => {
                for address in values::backends(key.kind, key.value) {
                    self.backends.entry(address).or_insert_with(|| key.name.to_owned());
                }
            }
            Scope::Endpoints => {
                let pod = Pod::of(key.value);
                let users = self.users.entry(pod.identity).or_default();
                match is_kept {
                    true => users.any_kept = true,
                    false => users.any_left_out = true,
                }
                if pod.is_regional() {
                    findings
                        .regional
                        .add(key.bytes, || values::example(key.kind, key.name, key.value));
                }
                if let Some(service) = self.backends.get(key.name).filter(|_| !is_kept) {
                    let lost = findings.lost_backends.entry(service.clone()).or_default();
                    lost.add(key.bytes, || values::shown(key.name));
                }
            }
            Scope::Identities if !is_kept => {
                let number = key.name.parse().ok();
                let users = number
                    .and_then(|number: u32| self.users.get(&number))
                    .copied()
                    .unwrap_or_default();
                let example = || values::example(key.kind, key.name, key.value);
                match (users.any_kept, users.any_left_out) {
                    (true, _) => findings.needed_identities.add(key.bytes, example),
                    (false, true) => findings.identities_of_pods.add(key.bytes, example),
                    (false, false) => {}
                }
            }
            _ => {}
        }
    }

    /// Whether the rule at this place of a list decides about any key of these kinds.
    pub(super) fn decides(&self, kinds: &[Scope], at: usize) -> bool {
        let rows = kinds
            .iter()
            .filter_map(|kind| self.kinds.get(kind))
            .flat_map(|kind| kind.rows.keys());
        rows.into_iter()
            .any(|(_, cause)| matches!(cause, Cause::Rule(rule) if usize::from(*rule) == at))
    }
}
