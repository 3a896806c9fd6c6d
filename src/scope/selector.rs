//! Label selectors with the semantics of Kubernetes, over the labels of objects and of security identities.

use std::collections::{BTreeMap, BTreeSet};

/// Labels of an object.
pub type Labels = BTreeMap<String, String>;

/// All of its requirements must hold; without any, it selects everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selector {
    pub(super) requirements: Vec<Requirement>,
}

/// A requirement on one label.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Requirement {
    /// The source of an identity's label, such as `k8s`; `None`: any source.
    pub(super) source: Option<Box<str>>,
    pub(super) key: Box<str>,
    pub(super) operator: Operator,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Operator {
    In(BTreeSet<Box<str>>),
    /// Also holds if the label is missing.
    NotIn(BTreeSet<Box<str>>),
    Exists,
    DoesNotExist,
}

/// The labels of a security identity: `source:key=value`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IdentityLabels<'a>(Vec<IdentityLabel<'a>>);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct IdentityLabel<'a> {
    source: &'a str,
    key: &'a str,
    value: &'a str,
}

impl Selector {
    /// Whether an object with these labels is selected. A source in the selector is ignored: the parser refuses one.
    pub fn selects(&self, labels: &Labels) -> bool {
        self.requirements.iter().all(|r| {
            let value = labels.get(&*r.key).map(|v| &**v);
            r.operator.holds(value.into_iter())
        })
    }

    /// Whether an identity with these labels is selected.
    pub fn selects_identity(&self, labels: &IdentityLabels<'_>) -> bool {
        self.requirements.iter().all(|r| {
            let of_key = labels.0.iter().filter(|l| l.key == &*r.key);
            let of_source = of_key.filter(|l| r.source.as_deref().is_none_or(|source| source == l.source));
            r.operator.holds(of_source.map(|l| l.value))
        })
    }
}

impl Operator {
    /// `values`: those of the labels with the requirement's key, of which an identity can have one for each source.
    fn holds<'a>(&self, mut values: impl Iterator<Item = &'a str>) -> bool {
        match self {
            Self::In(set) => values.any(|v| set.contains(v)),
            Self::NotIn(set) => !values.any(|v| set.contains(v)),
            Self::Exists => values.next().is_some(),
            Self::DoesNotExist => values.next().is_none(),
        }
    }
}

impl IdentityLabels<'static> {
    /// The labels of a reserved identity (Cilium: pkg/identity/numericidentity.go), which has no key. An endpoint whose
    /// identity is being found has the reserved identity `init`, about which nothing is known.
    pub fn reserved(number: u32) -> Option<Self> {
        let key = match number {
            1 => "host",
            2 => "world",
            3 => "unmanaged",
            4 => "health",
            6 => "remote-node",
            7 => "kube-apiserver",
            8 => "ingress",
            9 => "world-ipv4",
            10 => "world-ipv6",
            _ => return None,
        };
        let (source, value) = ("reserved", "");
        Some(Self(vec![IdentityLabel { source, key, value }]))
    }
}

impl<'a> IdentityLabels<'a> {
    /// The labels in the value of an identity's key, `source:key=value;…`; `None` if the value is not such a list.
    pub fn parse(value: &'a [u8]) -> Option<Self> {
        let text = std::str::from_utf8(value).ok()?;
        let labels = text.split_terminator(';').map(|label| {
            let (source, rest) = label.split_once(':')?;
            let (key, value) = rest.split_once('=').unwrap_or((rest, ""));
            Some(IdentityLabel { source, key, value })
        });
        labels.collect::<Option<Vec<_>>>().map(Self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(values: &[&str]) -> BTreeSet<Box<str>> {
        values.iter().map(|v| (*v).into()).collect()
    }

    fn selector(source: Option<&str>, key: &str, operator: Operator) -> Selector {
        let source = source.map(Into::into);
        let key = key.into();
        Selector {
            requirements: vec![Requirement { source, key, operator }],
        }
    }

    #[test]
    fn operators_mean_what_they_mean_in_kubernetes() {
        let labels = Labels::from([("team".to_owned(), "db".to_owned())]);
        for (key, operator, selects) in [
            ("team", Operator::In(set(&["db", "web"])), true),
            ("team", Operator::In(set(&["web"])), false),
            ("tier", Operator::In(set(&["db"])), false),
            ("team", Operator::NotIn(set(&["db"])), false),
            ("team", Operator::NotIn(set(&["web"])), true),
            ("tier", Operator::NotIn(set(&["db"])), true),
            ("team", Operator::Exists, true),
            ("tier", Operator::Exists, false),
            ("team", Operator::DoesNotExist, false),
            ("tier", Operator::DoesNotExist, true),
        ] {
            assert_eq!(
                selector(None, key, operator.clone()).selects(&labels),
                selects,
                "{key} {operator:?}"
            );
        }
        assert!(Selector::default().selects(&labels));
        assert!(Selector::default().selects_identity(&IdentityLabels::default()));
    }

    #[test]
    fn a_label_of_an_identity_has_any_source_unless_the_selector_names_one() {
        let labels = IdentityLabels::parse(b"k8s:app=db;container:app=x;reserved:host=;k8s:a.b/c=d=e;").unwrap();
        let is = |source: Option<&str>, key: &str, value: &str| {
            selector(source, key, Operator::In(set(&[value]))).selects_identity(&labels)
        };
        assert!(is(None, "app", "db") && is(None, "app", "x") && is(Some("k8s"), "app", "db"));
        assert!(!is(Some("k8s"), "app", "x") && !is(Some("unspec"), "app", "db"));
        assert!(is(Some("reserved"), "host", "") && is(None, "a.b/c", "d=e"));
        let without = |value: &str| selector(None, "app", Operator::NotIn(set(&[value]))).selects_identity(&labels);
        assert!(!without("db") && !without("x") && without("y"));
    }

    #[test]
    fn a_value_that_is_no_list_of_labels_has_no_labels() {
        assert_eq!(IdentityLabels::parse(b"no source;"), None);
        assert_eq!(IdentityLabels::parse(b"k8s:a=\xff;"), None);
        assert_eq!(IdentityLabels::parse(b""), Some(IdentityLabels::default()));
        assert!(
            IdentityLabels::parse(b"k8s:a=b").is_some(),
            "the last semicolon may be missing"
        );
    }
}
