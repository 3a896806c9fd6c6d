//! What was decided about the keys of a cluster.

use super::counts::{Counts, Tally};
use super::file::{Export, kind_name};
use super::rules::Rules;
use crate::model::keys::Scope as KeyKind;
use crate::util::metrics::Labels;
use std::collections::BTreeMap;
use std::sync::Arc;

/// What was decided about the keys of this cluster.
#[derive(Clone, Debug, Default)]
pub struct Exported {
    pub rules: Arc<Export>,
    pub counts: BTreeMap<KeyKind, Counts>,
}

impl Exported {
    /// The rules of a kind of keys; `None` for nodes and identities, which have none.
    fn list(&self, kind: KeyKind) -> Option<&Rules> {
        match kind {
            KeyKind::Endpoints => Some(&self.rules.endpoints),
            KeyKind::Services | KeyKind::EndpointSlices => Some(&self.rules.services),
            KeyKind::ServiceExports => Some(&self.rules.service_exports),
            KeyKind::Identities | KeyKind::Nodes => None,
        }
    }

    /// One row for each verdict that some key has: kind, decision, cause, keys, bytes.
    pub fn rows(&self) -> impl Iterator<Item = (Labels, Tally)> + '_ {
        self.counts.iter().flat_map(move |(kind, counts)| {
            counts.iter().map(move |(verdict, tally)| {
                let cause = match self.list(*kind) {
                    Some(rules) => rules.cause(verdict.cause).to_owned(),
                    None => verdict.cause.word().to_owned(),
                };
                let labels = vec![
                    ("kind", kind_name(*kind).to_owned()),
                    ("decision", verdict.decision.word().to_owned()),
                    ("rule", cause),
                ];
                (labels, tally)
            })
        })
    }
}
