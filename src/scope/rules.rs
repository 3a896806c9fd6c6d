//! Lists of rules, and what they decide about a key.

mod carry;

use super::glob::Glob;
use super::selector::{IdentityLabels, Labels, Selector};
use std::fmt;

/// One bit for each rule of a list: whether a condition holds. A rule without the condition has its bit set. Mirrors keep
/// millions of these in maps, so they are not aligned to 16 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(Rust, packed(4))]
pub struct Bits(u128);

/// The longest list.
pub const RULES_MAX: usize = 128;

/// Rules in order, of which the first that matches decides, and what happens if none does.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rules {
    default: Action,
    rules: Vec<Rule>,
    /// The rules that have an identity selector.
    of_identity: u128,
    /// The rules that hold for backends only, and those that hold for others only.
    backends: u128,
    not_backends: u128,
}

/// A rule whose conditions must all hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    pub name: String,
    pub action: Action,
    pub namespaces: Option<Namespaces>,
    pub identity: Option<Selector>,
    /// Labels of the object of the key; export of services, slices and exports.
    pub labels: Option<Selector>,
    /// Whether the address must be one of a backend, or must not be one.
    pub backends: Option<bool>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Action {
    #[default]
    Include,
    Exclude,
}

/// Conditions on a namespace, which must all hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Namespaces {
    /// One of these must match.
    pub names: Option<Vec<Glob>>,
    /// Over the labels of the Namespace object; export.
    pub labels: Option<Selector>,
    /// Whether the namespace must exist in this cluster, or must not; import.
    pub existing: Option<bool>,
}

/// What is known of a namespace.
#[derive(Clone, Copy, Debug, Default)]
pub struct NamespaceFacts<'a> {
    /// The labels of the Namespace object; `None` counts as no labels.
    pub labels: Option<&'a Labels>,
    /// Whether the namespace exists in this cluster.
    pub exists: bool,
}

/// What happens to a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Decision {
    Keep,
    LeaveOut,
    /// The decision needs labels of an identity that is not known: a key that is there stays, and a key that is not
    /// there is kept back.
    Pending,
}

/// What decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Cause {
    /// The rule at this place of its list.
    Rule(u8),
    /// No rule matched.
    Default,
    /// An annotation of the object.
    Annotation,
    /// The address is for readers of another region.
    Region,
    /// No key that is kept refers to the identity.
    Unused,
    /// Keys of this kind are not imported from this cluster.
    Kind,
    /// The cluster has as many keys of this kind as it may have here.
    Limit,
}

/// A decision and its cause.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Verdict {
    pub decision: Decision,
    pub cause: Cause,
}

impl Bits {
    /// The condition holds for every rule.
    pub const ALL: Self = Self(u128::MAX);
}

impl Rules {
    /// `rules` are at most [`RULES_MAX`]; further ones would never match.
    pub fn new(default: Action, rules: Vec<Rule>) -> Self {
        let bits = |holds: fn(&Rule) -> bool| bits(&rules, holds);
        let (of_identity, backends, not_backends) = (
            bits(|r| r.identity.is_some()),
            bits(|r| r.backends == Some(true)),
            bits(|r| r.backends == Some(false)),
        );
        Self {
            default,
            rules,
            of_identity,
            backends,
            not_backends,
        }
    }

    /// Whether every key is kept, whatever it is.
    pub fn keep_all(&self) -> bool {
        self.default == Action::Include && self.rules.iter().all(|r| r.action == Action::Include)
    }

    /// Whether every key is left out, whatever it is.
    pub fn leave_out_all(&self) -> bool {
        self.default == Action::Exclude && self.rules.iter().all(|r| r.action == Action::Exclude)
    }

    pub fn list(&self) -> &[Rule] {
        &self.rules
    }

    pub fn default_action(&self) -> Action {
        self.default
    }

    /// Whether a decision can depend on the labels of identities.
    pub fn need_identities(&self) -> bool {
        self.of_identity != 0
    }

    /// Whether a decision can depend on the backends of services.
    pub fn need_backends(&self) -> bool {
        self.backends | self.not_backends != 0
    }

    /// Whether a decision can depend on the namespaces of this cluster.
    pub fn need_existing(&self) -> bool {
        let namespaces = self.rules.iter().filter_map(|r| r.namespaces.as_ref());
        namespaces.into_iter().any(|n| n.existing.is_some())
    }

    /// The rules whose conditions on the namespace hold.
    pub fn namespace(&self, name: &str, facts: NamespaceFacts<'_>) -> Bits {
        Bits(bits(&self.rules, |rule| {
            rule.namespaces.as_ref().is_none_or(|n| n.hold(name, facts))
        }))
    }

    /// The rules whose conditions on the identity hold.
    pub fn identity(&self, labels: &IdentityLabels<'_>) -> Bits {
        if self.of_identity == 0 {
            return Bits::ALL;
        }
        Bits(bits(&self.rules, |rule| {
            rule.identity.as_ref().is_none_or(|s| s.selects_identity(labels))
        }))
    }

    /// Decides about an address. `identity` is `None` if the labels of its identity are not known.
    pub fn endpoint(&self, namespace: Bits, identity: Option<Bits>, is_backend: bool) -> Verdict {
        let other = if is_backend { self.not_backends } else { self.backends };
        let candidates = namespace.0 & !other;
        match identity {
            Some(identity) => self.first(candidates & identity.0),
            None => {
                let first = candidates & candidates.wrapping_neg();
                match first & self.of_identity {
                    0 => self.first(candidates),
                    _ => Verdict {
                        decision: Decision::Pending,
                        cause: self.first(candidates).cause,
                    },
                }
            }
        }
    }

    /// Decides about a key of an object with a namespace and labels.
    pub fn object(&self, namespace: Bits, labels: &Labels) -> Verdict {
        let candidates = bits(&self.rules, |rule| {
            rule.labels.as_ref().is_none_or(|s| s.selects(labels))
        });
        self.first(namespace.0 & candidates)
    }

    /// Decides about a key of an object whose labels no rule asks for.
    pub fn name(&self, namespace: Bits) -> Verdict {
        self.first(namespace.0)
    }

    fn first(&self, candidates: u128) -> Verdict {
        let at = candidates.trailing_zeros() as usize;
        match self.rules.get(at) {
            Some(rule) => Verdict::new(rule.action.into(), Cause::Rule(at as u8)),
            None => Verdict::new(self.default.into(), Cause::Default),
        }
    }

    /// The name of a cause in metrics and reports: that of the rule, or a word that no rule can have.
    pub fn cause(&self, cause: Cause) -> &str {
        match cause {
            Cause::Rule(at) => self.rules.get(usize::from(at)).map_or("?", |rule| &rule.name),
            other => other.word(),
        }
    }
}

fn bits(rules: &[Rule], holds: impl Fn(&Rule) -> bool) -> u128 {
    let rules = rules.iter().take(RULES_MAX).enumerate();
    rules.fold(0, |bits, (at, rule)| bits | u128::from(holds(rule)) << at)
}

impl Namespaces {
    fn hold(&self, name: &str, facts: NamespaceFacts<'_>) -> bool {
        let no_labels = Labels::new();
        let names = self.names.as_ref();
        names.is_none_or(|names| names.iter().any(|glob| glob.matches(name)))
            && self.existing.is_none_or(|existing| existing == facts.exists)
            && (self.labels.as_ref()).is_none_or(|s| s.selects(facts.labels.unwrap_or(&no_labels)))
    }
}

impl Verdict {
    pub const fn new(decision: Decision, cause: Cause) -> Self {
        Self { decision, cause }
    }

    pub fn keeps(self) -> bool {
        self.decision == Decision::Keep
    }
}

impl From<Action> for Decision {
    fn from(action: Action) -> Self {
        match action {
            Action::Include => Self::Keep,
            Action::Exclude => Self::LeaveOut,
        }
    }
}

impl Decision {
    /// The decision in metrics and reports.
    pub fn word(self) -> &'static str {
        match self {
            Self::Keep => "kept",
            Self::LeaveOut => "left-out",
            Self::Pending => "pending",
        }
    }
}

impl Cause {
    /// The cause in metrics and reports; names of rules contain no parenthesis.
    pub fn word(self) -> &'static str {
        match self {
            Self::Rule(_) => "(rule)",
            Self::Default => "(default)",
            Self::Annotation => "(annotation)",
            Self::Region => "(region)",
            Self::Unused => "(unused)",
            Self::Kind => "(kind)",
            Self::Limit => "(limit)",
        }
    }
}

impl fmt::Display for Decision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}
