//! What the scope file leaves of the keys of a remote cluster, as the status API tells it.

use super::is_default;
use crate::kvstoremesh::filter::{KindReport, Report};
use crate::scope::file::kind_name;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// See the module's documentation.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Scope {
    /// The entry of the scope file that governs the cluster.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub entry: Option<String>,
    /// The region of the cluster.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub region: Option<String>,
    /// By the name of the kind in the scope file; without those of which every key is mirrored.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub kinds: BTreeMap<String, KindScope>,
}

/// What the scope file leaves of one kind of keys.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct KindScope {
    /// Whether no key of the kind is mirrored, so that no key is read or counted.
    #[serde(default, skip_serializing_if = "is_default")]
    pub off: bool,
    /// Mirrored keys.
    #[serde(default)]
    pub kept: usize,
    #[serde(default)]
    pub left_out: usize,
    /// Keys that are not mirrored as long as something is not known, or until they are read.
    #[serde(default, skip_serializing_if = "is_default")]
    pub pending: usize,
    /// An estimate of the bytes of the values that are left out.
    #[serde(default, skip_serializing_if = "is_default")]
    pub bytes_left_out: u64,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rules: Vec<RuleScope>,
}

/// The keys about which one rule decided.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct RuleScope {
    /// The name of the rule, or a word in parentheses for what decides where no rule does.
    pub rule: String,
    /// `kept`, `left-out` or `pending`.
    pub decision: String,
    pub keys: usize,
}

impl Scope {
    /// The scope in one line.
    pub(super) fn line(&self) -> String {
        let by = match (&self.entry, &self.region) {
            (Some(entry), Some(region)) => format!(" by {entry:?} (region {region})"),
            (Some(entry), None) => format!(" by {entry:?}"),
            (None, Some(region)) => format!(" (region {region})"),
            (None, None) => String::new(),
        };
        let kinds = self.kinds.iter().map(|(kind, scope)| match scope.off {
            true => format!("no {kind}"),
            false => {
                let all = scope.kept + scope.left_out + scope.pending;
                let pending = match scope.pending {
                    0 => String::new(),
                    pending => format!(" ({pending} pending)"),
                };
                format!("{} of {all} {kind}{pending}", scope.kept)
            }
        });
        let kinds: Vec<_> = kinds.collect();
        match kinds.is_empty() {
            true => format!("scoped{by}: every key is mirrored"),
            false => format!("scoped{by}: {}", kinds.join(", ")),
        }
    }
}

impl From<Report> for Scope {
    fn from(report: Report) -> Self {
        let kinds = report.kinds.into_iter();
        Self {
            entry: report.entry,
            region: report.region,
            kinds: kinds
                .map(|kind| (kind_name(kind.kind).to_owned(), kind.into()))
                .collect(),
        }
    }
}

impl From<KindReport> for KindScope {
    fn from(kind: KindReport) -> Self {
        let rules = kind.rules.into_iter().map(|((decision, rule), keys)| RuleScope {
            rule,
            decision: decision.word().to_owned(),
            keys,
        });
        Self {
            off: kind.is_off,
            kept: kind.kept,
            left_out: kind.left_out,
            pending: kind.pending,
            bytes_left_out: kind.bytes_left_out,
            rules: rules.collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_says_who_scopes_the_cluster_and_what_is_left() {
        let kind = |off, kept, left_out, pending| KindScope {
            off,
            kept,
            left_out,
            pending,
            ..KindScope::default()
        };
        let scope = Scope {
            entry: Some("neighbours".to_owned()),
            region: Some("apac".to_owned()),
            kinds: BTreeMap::from([
                ("endpoints".to_owned(), kind(false, 750, 14_249, 1)),
                ("services".to_owned(), kind(true, 0, 0, 0)),
            ]),
        };
        assert_eq!(
            scope.line(),
            r#"scoped by "neighbours" (region apac): 750 of 15000 endpoints (1 pending), no services"#
        );
        let scope = Scope {
            entry: Some("all".to_owned()),
            ..Scope::default()
        };
        assert_eq!(scope.line(), r#"scoped by "all": every key is mirrored"#);
    }
}
