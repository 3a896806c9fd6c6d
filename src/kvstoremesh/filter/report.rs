//! What the filter has decided, for operators.

use super::classes::Tally;
use super::identities::{Sizes, Wanted};
use super::{Filter, Mode, endpoints_judge, identities_judge, object_at};
use crate::model::keys::Scope;
use crate::scope::rules::{Cause, Decision, Verdict};
use std::collections::BTreeMap;

/// What the scope file does to one remote cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// The entry of the file that governs the cluster. `None`: the default governs it.
    pub entry: Option<String>,
    /// The region of the cluster.
    pub region: Option<String>,
    /// The kinds of keys that are not simply mirrored.
    pub kinds: Vec<KindReport>,
}

/// What the scope file does to one kind of keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KindReport {
    pub kind: Scope,
    /// Whether no key of the kind is mirrored, so that no key is read or counted.
    pub is_off: bool,
    /// The keys that are mirrored.
    pub kept: usize,
    /// The keys that are not mirrored.
    pub left_out: usize,
    /// The keys that are not mirrored as long as something is not known, or until they are read.
    pub pending: usize,
    /// An estimate of the bytes of the values that are left out.
    pub bytes_left_out: u64,
    /// Bytes that are remembered of the keys, about.
    pub remembered: usize,
    /// The numbers of keys by decision and rule.
    pub rules: BTreeMap<(Decision, String), usize>,
}

impl Filter {
    /// `None` for a cluster whose keys are all mirrored.
    pub(in super::super) fn report(&self) -> Option<Report> {
        let kinds = Scope::ALL.iter().filter(|kind| self.mode(**kind) != Mode::Pass);
        let kinds: Vec<_> = kinds.map(|kind| self.kind_report(*kind)).collect();
        let entry = self.setup.entry().map(|entry| entry.name.clone());
        (entry.is_some() || !kinds.is_empty()).then(|| Report {
            entry,
            region: self.setup.region().map(str::to_owned),
            kinds,
        })
    }

    /// Bytes that are remembered of the keys of a kind, about. The remote cluster chooses names, backends and the values of
    /// identities, so that a number of keys alone limits little.
    pub(in super::super) fn remembered(&self, kind: Scope) -> usize {
        match (kind, object_at(kind)) {
            (Scope::Services | Scope::EndpointSlices, Some(at)) => self.objects[at].bytes() + self.backends.bytes(),
            (_, Some(at)) => self.objects[at].bytes(),
            (Scope::Identities, _) => self.identities.bytes(),
            (Scope::Endpoints, _) => self.endpoints.bytes(),
            _ => 0,
        }
    }

    fn kind_report(&self, kind: Scope) -> KindReport {
        let mut report = KindReport {
            kind,
            is_off: self.mode(kind) == Mode::Off,
            kept: 0,
            left_out: 0,
            pending: 0,
            bytes_left_out: 0,
            remembered: self.remembered(kind),
            rules: BTreeMap::new(),
        };
        let rules = self.setup.rules(kind);
        let mut add = |verdict: Verdict, tally: Tally| {
            let mut count = |decision: Decision, keys: usize| {
                if keys > 0 {
                    let rule = rules.cause(verdict.cause).to_owned();
                    *report.rules.entry((decision, rule)).or_default() += keys;
                }
            };
            count(Decision::Keep, tally.kept);
            report.kept += tally.kept;
            let others = tally.keys - tally.kept;
            match verdict.decision {
                Decision::LeaveOut => {
                    count(Decision::LeaveOut, others);
                    report.left_out += others;
                }
                // A key that should be mirrored, and is not yet, is about to be read.
                Decision::Keep | Decision::Pending => {
                    count(Decision::Pending, others);
                    report.pending += others;
                }
            }
        };
        let sizes: Sizes = match (kind, object_at(kind)) {
            (_, Some(at)) => {
                let tallies = self.objects[at].tallies(self.setup.judge(kind));
                tallies.for_each(|(verdict, tally)| add(verdict, tally));
                self.objects[at].left_out()
            }
            (Scope::Identities, _) => {
                self.identity_tallies().for_each(|(verdict, tally)| add(verdict, tally));
                self.identities.left_out()
            }
            _ => {
                let judge = endpoints_judge(
                    &self.setup,
                    &self.progress,
                    &self.objects,
                    (&self.identities, &self.backends),
                );
                self.endpoints
                    .tallies(judge)
                    .for_each(|(verdict, tally)| add(verdict, tally));
                self.endpoints.left_out()
            }
        };
        report.bytes_left_out = sizes.of(report.left_out + report.pending);
        report
    }

    fn identity_tallies(&self) -> impl Iterator<Item = (Verdict, Tally)> {
        let tally = self.identities.tally();
        let judge = identities_judge(&self.setup, &self.progress, (&self.objects, &self.endpoints));
        let kept = Tally {
            keys: tally.kept,
            kept: tally.kept,
        };
        let others = Tally {
            keys: tally.keys - tally.kept,
            kept: 0,
        };
        let other = match judge.wanted {
            Wanted::Labels => Verdict::new(Decision::LeaveOut, Cause::Kind),
            Wanted::Used if judge.knows_users => Verdict::new(Decision::LeaveOut, Cause::Unused),
            Wanted::All | Wanted::Used => Verdict::new(Decision::Pending, Cause::Unused),
        };
        [(Verdict::new(Decision::Keep, Cause::Default), kept), (other, others)].into_iter()
    }
}
