//! Holds back the keys of a scope until its first lists have completed.
//!
//! Before that, an object that is not known yet would look as if it were deleted, and a service would seem to have no
//! backends. Keys of an earlier run may be in the store, and must not be deleted or overwritten on such grounds.

use super::{Action, Name, Options, is_wanted, scopes};
use crate::k8s::types::Kind;
use crate::model::keys::Scope;
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet};

#[derive(Default)]
pub(super) struct InitialLists {
    listed: BTreeSet<Kind>,
    complete: BTreeSet<Scope>,
    /// The last value of each key of the scopes that are not complete yet; `None`: deleted.
    held: BTreeMap<(Scope, Name), Option<Bytes>>,
    /// Whether a scope decides about keys.
    has_scope: bool,
}

impl InitialLists {
    /// A scope decides about keys: identities and addresses depend on each other, and on services.
    pub(super) fn needs_scope(&mut self) {
        self.has_scope = true;
    }

    /// Returns `action`, unless it belongs to a scope that is not complete yet.
    pub(super) fn pass(&mut self, action: Action) -> Option<Action> {
        let is_held = |scope: &Scope| !self.complete.contains(scope);
        match action {
            Action::Upsert { scope, name, value } if is_held(&scope) => {
                self.held.insert((scope, name), Some(value));
                None
            }
            Action::Delete { scope, name } if is_held(&scope) => {
                self.held.insert((scope, name), None);
                None
            }
            action => Some(action),
        }
    }

    /// Notes that the first list of `kind` has completed. Returns the keys of each scope that is complete by that, in
    /// the order of [`Scope::ALL`], each scope followed by [`Action::Complete`].
    pub(super) fn listed(&mut self, kind: Kind, options: &Options) -> Vec<Action> {
        self.listed.insert(kind);
        let mut out = vec![];
        for scope in Scope::ALL {
            let has_scope = self.has_scope && matches!(scope, Scope::Identities | Scope::Endpoints);
            let scopes: &[Scope] = match has_scope {
                true => &[
                    Scope::Identities,
                    Scope::Endpoints,
                    Scope::Services,
                    Scope::EndpointSlices,
                ],
                false => &[scope],
            };
            let mut kinds = scopes.iter().flat_map(|scope| kinds_of(*scope, options));
            if !kinds.all(|kind| self.listed.contains(&kind)) || !self.complete.insert(scope) {
                continue;
            }
            let of_scope = |(s, _): &(Scope, Name), _: &mut Option<Bytes>| *s == scope;
            for ((_, name), value) in self.held.extract_if(.., of_scope) {
                // Deletions are dropped: no key of this scope has been written yet.
                out.extend(value.map(|value| Action::Upsert { scope, name, value }));
            }
            match scope {
                // No stale identity goes before the addresses that have it.
                Scope::Identities if has_scope => {}
                Scope::Endpoints if has_scope => {
                    out.extend([Scope::Endpoints, Scope::Identities].map(Action::Complete))
                }
                _ => out.push(Action::Complete(scope)),
            }
        }
        out
    }
}

/// The kinds of objects that must be listed before `scope` is complete.
fn kinds_of(scope: Scope, options: &Options) -> impl Iterator<Item = Kind> {
    // Without exports the scope has no keys, and readers still wait for its canary.
    let is_empty = scope == Scope::ServiceExports && !options.service_exports;
    let kinds = Kind::ALL.iter().copied().filter(move |_| !is_empty);
    kinds.filter(move |kind| is_wanted(*kind, options) && scopes(*kind).contains(&scope))
}
