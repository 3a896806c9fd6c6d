//! Reports each problem of an object once.

use super::value::Problems;
use crate::k8s::types::ObjectKey;
use std::collections::{BTreeSet, HashMap};

#[derive(Default)]
pub(super) struct ReportedProblems(HashMap<ObjectKey, BTreeSet<String>>);

impl ReportedProblems {
    /// Replaces the problems of `object` by `now`; returns those that it did not have before.
    pub(super) fn replace(&mut self, object: &ObjectKey, now: Problems) -> Vec<String> {
        if now.is_empty() {
            self.forget(object);
            return vec![];
        }
        let now: BTreeSet<String> = now.into_iter().collect();
        let reported = self.0.entry(object.clone()).or_default();
        let new = now.difference(reported).cloned().collect();
        *reported = now;
        new
    }

    /// `object` is deleted.
    pub(super) fn forget(&mut self, object: &ObjectKey) {
        self.0.remove(object);
    }
}
