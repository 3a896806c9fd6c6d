//! One key, and what becomes of it.

use crate::model::keys::Scope;
use crate::scope::{Decision, Rules, Verdict};

/// What a scope file says about a key.
#[derive(Clone, Copy)]
pub(super) struct Ruling<'a> {
    pub(super) verdict: Verdict,
    /// The list of rules for this kind of keys; `None` for nodes and identities, which have none.
    pub(super) rules: Option<&'a Rules>,
}

/// A key that is published without a scope, or that a remote cluster has.
pub(super) struct Judged<'a> {
    pub(super) kind: Scope,
    /// The part after the prefix.
    pub(super) name: &'a str,
    pub(super) value: &'a [u8],
    /// Bytes of key and value in the store of a reader.
    pub(super) bytes: u64,
    pub(super) ruling: Ruling<'a>,
    /// What the present file says; `None` without one.
    pub(super) former: Option<Ruling<'a>>,
    pub(super) was_kept: bool,
    /// Whether the key is kept before and after, with another value.
    pub(super) is_changed: bool,
    pub(super) facts: &'a dyn Facts,
}

/// What rules know of an address, beside its value.
pub(super) trait Facts {
    /// The labels of an identity.
    fn labels(&self, identity: u32) -> Option<String>;

    /// Whether an address is a backend of a service; `None` if nobody asks.
    fn is_backend(&self, address: &str) -> Option<bool>;
}

/// Sees every key of a cluster. Services come before endpoints, and identities last.
pub(super) trait Visitor {
    fn key(&mut self, key: &Judged<'_>);

    /// An object of this cluster that is published neither with nor without the scope.
    fn unpublished(&mut self, _kind: &'static str, _namespace: &str, _name: &str) {}
}

/// The order in which a visitor sees the kinds.
pub(super) const ORDER: [Scope; Scope::ALL.len()] = [
    Scope::Services,
    Scope::EndpointSlices,
    Scope::ServiceExports,
    Scope::Nodes,
    Scope::Endpoints,
    Scope::Identities,
];

impl<'a> Ruling<'a> {
    /// Whether the key is there, if it `was` there before.
    pub(super) fn keeps(self, was: bool) -> bool {
        match self.verdict.decision {
            Decision::Keep => true,
            Decision::LeaveOut => false,
            Decision::Pending => was,
        }
    }

    /// The name of the rule, or a word in parentheses.
    pub(super) fn cause(self) -> &'a str {
        match self.rules {
            Some(rules) => rules.cause(self.verdict.cause),
            None => self.verdict.cause.word(),
        }
    }
}

impl Judged<'_> {
    pub(super) fn is_kept(&self) -> bool {
        self.ruling.keeps(self.was_kept)
    }
}
