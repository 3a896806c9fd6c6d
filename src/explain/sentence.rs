//! What decided about a key, as a sentence.

use crate::model::keys::Scope;
use crate::scope::file::kind_name;
use crate::scope::{Cause, Decision};

/// What the list of rules for a kind is like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RulesAre {
    Missing,
    /// Every rule says the same as the default, so that no rule is asked.
    Uniform,
    Asked,
}

/// The place in the file that governs a key.
pub(super) struct List {
    /// The key in its store.
    pub(super) key: String,
    /// The place of the list in the file.
    pub(super) place: String,
    pub(super) kind: Scope,
    pub(super) rules: RulesAre,
    /// The entry that governs a remote cluster, if one does; `None` for this cluster.
    pub(super) entry: Option<Option<String>>,
    /// The regions of this and of the remote cluster, empty if they are not known.
    pub(super) region: Option<(String, String)>,
}

/// Why a key is kept, left out, or undecided.
pub(super) fn reason(list: &List, decision: Decision, cause: Cause, rule: &str) -> String {
    let (place, kind) = (&list.place, kind_name(list.kind));
    let action = match decision {
        Decision::Keep => "includes",
        Decision::LeaveOut => "excludes",
        Decision::Pending => "would decide",
    };
    match (decision, cause) {
        (Decision::Pending, Cause::Rule(_)) => format!(
            "the labels of the identity are not known yet, and rule {rule:?} of {place} asks for them; a key that is there \
             stays, and a key that is not there is kept back"
        ),
        (Decision::Pending, _) => {
            "what the rules ask for is not known yet (the namespaces of this cluster, or an identity); a key that is there \
             stays, and a key that is not there is kept back"
                .to_owned()
        }
        (_, Cause::Rule(at)) => format!("rule {rule:?} {action} the key ({place}, rule {})", u32::from(at) + 1),
        (_, Cause::Annotation) => format!("the annotation clustermesh.cilium.io/sync on the CiliumEndpoint {action} the key"),
        (_, Cause::Region) => {
            let (own, other) = list.region.clone().unwrap_or_default();
            format!("the address is for clusters of the region {other}, and this cluster is in {own}")
        }
        (_, Cause::Unused) => format!("identities: used ({place}), and no address that is kept has this identity"),
        (_, Cause::Kind) => format!("{kind} are not among the kinds of {place}"),
        (_, Cause::Limit) => format!("the cluster has as many {kind} here as {place} allows"),
        (_, Cause::Default) => of_default(list, action),
    }
}

fn of_default(list: &List, action: &str) -> String {
    let place = &list.place;
    match (&list.entry, list.kind, list.rules) {
        (Some(None), ..) => "no entry of import.clusters governs the cluster, so everything is imported".to_owned(),
        (_, Scope::Nodes, _) => "nodes have no rules".to_owned(),
        (_, Scope::Identities, _) => format!("{place} includes the identity"),
        (_, _, RulesAre::Asked) => format!("no rule of {place} matches, and its default {action} the key"),
        (_, _, RulesAre::Uniform) => {
            format!("{place} {action} every key of this kind, by its rules and by its default")
        }
        (_, _, RulesAre::Missing) => format!("{place} has no rules for this kind, and its default {action} the key"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(kind: Scope, rules: RulesAre, entry: Option<Option<&str>>) -> List {
        List {
            key: String::new(),
            place: "export.endpoints".to_owned(),
            kind,
            rules,
            entry: entry.map(|entry| entry.map(str::to_owned)),
            region: Some(("apac".to_owned(), "emea".to_owned())),
        }
    }

    #[test]
    fn each_cause_is_a_sentence() {
        use Decision::{Keep, LeaveOut, Pending};
        let endpoints = list(Scope::Endpoints, RulesAre::Asked, None);
        let told = |decision, cause| reason(&endpoints, decision, cause, "no-batch");
        let rows = [
            (
                LeaveOut,
                Cause::Rule(1),
                "rule \"no-batch\" excludes the key (export.endpoints, rule 2)",
            ),
            (
                Keep,
                Cause::Default,
                "no rule of export.endpoints matches, and its default includes the key",
            ),
            (
                LeaveOut,
                Cause::Region,
                "the address is for clusters of the region emea, and this cluster is in apac",
            ),
            (
                Keep,
                Cause::Annotation,
                "the annotation clustermesh.cilium.io/sync on the CiliumEndpoint includes the key",
            ),
            (
                LeaveOut,
                Cause::Kind,
                "endpoints are not among the kinds of export.endpoints",
            ),
            (
                LeaveOut,
                Cause::Unused,
                "identities: used (export.endpoints), and no address that is kept has this identity",
            ),
        ];
        for (decision, cause, sentence) in rows {
            assert_eq!(told(decision, cause), sentence);
        }
        assert!(
            told(Pending, Cause::Rule(0))
                .starts_with("the labels of the identity are not known yet, and rule \"no-batch\"")
        );
        let told = |list: &List| reason(list, Keep, Cause::Default, "(default)");
        assert_eq!(
            told(&list(Scope::Nodes, RulesAre::Missing, None)),
            "nodes have no rules"
        );
        let ungoverned = told(&list(Scope::Endpoints, RulesAre::Missing, Some(None)));
        assert_eq!(
            ungoverned,
            "no entry of import.clusters governs the cluster, so everything is imported"
        );
        let uniform = told(&list(Scope::Endpoints, RulesAre::Uniform, Some(Some("x"))));
        assert_eq!(
            uniform,
            "export.endpoints includes every key of this kind, by its rules and by its default"
        );
    }
}
