//! Counts keys and bytes by what was decided about them.

use super::rules::{Decision, Verdict};
use std::collections::BTreeMap;

/// The number of keys, and the bytes of keys and values.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    pub keys: u64,
    pub bytes: u64,
}

/// One tally for each verdict that some key has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts(BTreeMap<Verdict, Tally>);

impl Counts {
    pub fn add(&mut self, verdict: Verdict, bytes: u64) {
        let tally = self.0.entry(verdict).or_default();
        tally.keys += 1;
        tally.bytes += bytes;
    }

    /// Takes back what was added. A tally of no keys is removed, so that rules that are gone leave nothing behind.
    pub fn remove(&mut self, verdict: Verdict, bytes: u64) {
        if let Some(tally) = self.0.get_mut(&verdict) {
            tally.keys = tally.keys.saturating_sub(1);
            tally.bytes = tally.bytes.saturating_sub(bytes);
            if tally.keys == 0 {
                self.0.remove(&verdict);
            }
        }
    }

    pub fn iter(&self) -> impl Iterator<Item = (Verdict, Tally)> + '_ {
        self.0.iter().map(|(verdict, tally)| (*verdict, *tally))
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The keys with this decision, whatever the cause.
    pub fn of(&self, decision: Decision) -> Tally {
        let all = self.iter().filter(|(verdict, _)| verdict.decision == decision);
        all.fold(Tally::default(), |sum, (_, tally)| Tally {
            keys: sum.keys + tally.keys,
            bytes: sum.bytes + tally.bytes,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::rules::Cause;
    use super::*;

    #[test]
    fn what_is_added_and_removed_leaves_nothing() {
        let (kept, out) = (
            Verdict::new(Decision::Keep, Cause::Default),
            Verdict::new(Decision::LeaveOut, Cause::Rule(1)),
        );
        let mut counts = Counts::default();
        counts.add(kept, 10);
        counts.add(out, 20);
        counts.add(Verdict::new(Decision::LeaveOut, Cause::Default), 5);
        assert_eq!(counts.of(Decision::LeaveOut), Tally { keys: 2, bytes: 25 });
        counts.remove(out, 20);
        assert_eq!(counts.of(Decision::LeaveOut), Tally { keys: 1, bytes: 5 });
        counts.remove(kept, 10);
        counts.remove(Verdict::new(Decision::LeaveOut, Cause::Default), 5);
        assert!(counts.is_empty());
    }
}
