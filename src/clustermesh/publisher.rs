//! The publisher's state machine: from events of Kubernetes objects to changes of keys. It does no IO.
//!
//! Each kind of object has a file of its own, with the state that is kept of its objects and the keys that follow from
//! them, and a line in the table `kinds!`. State is kept because keys depend on more than one object: on the namespace
//! (is it global?), and a service on its slices. All changes that follow from one event are returned together.
//!
//! The order of the returned changes is part of the behaviour: watchers in other clusters see it. See
//! `tests/sequence.rs`.

mod addresses;
mod cilium_endpoint;
mod cilium_endpoint_slice;
mod claims;
mod endpoint_slice;
mod exports;
mod identity;
mod initial;
mod namespace;
mod node;
mod notes;
mod problems;
mod service;
mod service_export;
mod value;

use crate::k8s::events::Event;
use crate::k8s::types::{Kind, Object, ObjectKey};
use crate::model::cluster::ClusterInfo;
use crate::model::keys::Scope;
use crate::scope::{Export, Exported, Verdict, Watcher};
use bytes::Bytes;
use exports::Exports;
use initial::InitialLists;
use notes::Note;
use problems::ReportedProblems;
use std::collections::{BTreeMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;
use value::Problems;

/// The forms in which a global service is exported (`--clustermesh-service-v2`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ServiceMode {
    /// Both forms; readers prefer the legacy services.
    #[default]
    PreferLegacy,
    /// Both forms; readers prefer the EndpointSlices.
    PreferEndpointSlice,
    /// EndpointSlices only.
    OnlyEndpointSlice,
}

/// The cluster to publish, and the options of its publisher.
#[derive(Clone, Debug)]
pub struct Options {
    pub cluster: ClusterInfo,
    /// Whether a namespace without an annotation is global.
    pub default_global_namespace: bool,
    /// Addresses come from CiliumEndpointSlices instead of CiliumEndpoints.
    pub endpoint_slices: bool,
    /// Whether ServiceExports (MCS API) are published.
    pub service_exports: bool,
    pub service_mode: ServiceMode,
    /// How often the probe key is written; zero writes no probe.
    pub probe_interval: Duration,
    /// The scope file, if there is one; only the shell reads it.
    pub scope: Option<Watcher>,
}

/// A step that the caller must carry out because of an event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Write this value under the scope's prefix and `name`.
    Upsert { scope: Scope, name: Name, value: Bytes },
    /// Delete the key of this name, which need not exist.
    Delete { scope: Scope, name: Name },
    /// All first keys of the scope have been returned: keys of an earlier run that were not among them are stale, and
    /// the scope's canary can be written.
    Complete(Scope),
    /// Tell the user about a problem of an object. The rest of the object is published.
    Warn { object: ObjectKey, problem: String },
}

/// The part of a key after its prefix, or a part of that. Several maps share each name.
pub type Name = Arc<str>;

/// See the module's documentation.
pub struct Publisher {
    state: State,
    initial: InitialLists,
    problems: ReportedProblems,
}

/// The state of all kinds of objects.
struct State {
    options: Options,
    namespaces: namespace::Namespaces,
    identities: identity::Identities,
    addresses: addresses::Addresses,
    cilium_endpoint_slices: cilium_endpoint_slice::CiliumEndpointSlices,
    services: service::Services,
    endpoint_slices: endpoint_slice::EndpointSlices,
    service_exports: service_export::ServiceExports,
    /// Only with a scope file.
    exports: Option<Box<Exports>>,
}

/// The part of the publisher for one kind of object. The functions append the changes that follow to `out`.
trait Resource {
    type Object;

    /// The scopes whose keys depend on objects of this kind. They are complete only after the first list of this kind.
    const SCOPES: &'static [Scope];

    /// Whether objects of this kind are needed with these options.
    fn is_wanted(_: &Options) -> bool {
        true
    }

    /// The object has been created or changed.
    fn apply(state: &mut State, key: &ObjectKey, object: Self::Object, out: &mut Effects);

    /// The object has been deleted.
    fn delete(state: &mut State, key: &ObjectKey, out: &mut Effects);

    /// `namespace` has become global, or is no longer global.
    fn namespace_changed(_state: &mut State, _namespace: &Name, _out: &mut Effects) {}
}

macro_rules! kinds {
    ($($kind:ident: $resource:ty,)*) => {
        impl State {
            fn apply(&mut self, key: &ObjectKey, object: Object, out: &mut Effects) {
                match object { $(Object::$kind(object) => <$resource>::apply(self, key, object, out),)* }
            }

            fn delete(&mut self, key: &ObjectKey, out: &mut Effects) {
                match key.kind { $(Kind::$kind => <$resource>::delete(self, key, out),)* }
            }

            fn namespace_changed(&mut self, namespace: &Name, out: &mut Effects) {
                $(<$resource>::namespace_changed(self, namespace, out);)*
            }
        }

        fn is_wanted(kind: Kind, options: &Options) -> bool {
            match kind { $(Kind::$kind => <$resource>::is_wanted(options),)* }
        }

        fn scopes(kind: Kind) -> &'static [Scope] {
            match kind { $(Kind::$kind => <$resource>::SCOPES,)* }
        }
    };
}

// In the order in which a changed namespace is passed to them.
kinds! {
    Namespace: namespace::Namespaces,
    Node: node::Nodes,
    Identity: identity::Identities,
    Endpoint: cilium_endpoint::CiliumEndpoints,
    CiliumEndpointSlice: cilium_endpoint_slice::CiliumEndpointSlices,
    Service: service::Services,
    EndpointSlice: endpoint_slice::EndpointSlices,
    ServiceExport: service_export::ServiceExports,
}

/// Collects the consequences of one event.
#[derive(Default)]
struct Effects {
    actions: Vec<Action>,
    /// Problems of the event's object.
    problems: Problems,
    /// Services whose keys depend on the event's object.
    services: VecDeque<NamespacedName>,
    /// What a scope decided about keys; empty without a scope.
    notes: Vec<Note>,
    has_scope: bool,
}

/// The name of an object with a namespace.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct NamespacedName {
    namespace: Name,
    name: Name,
}

// === impl Publisher ===

impl Publisher {
    pub fn new(options: Options) -> Self {
        let state = State {
            options,
            namespaces: namespace::Namespaces::default(),
            identities: identity::Identities::default(),
            addresses: addresses::Addresses::default(),
            cilium_endpoint_slices: cilium_endpoint_slice::CiliumEndpointSlices::default(),
            services: service::Services::default(),
            endpoint_slices: endpoint_slice::EndpointSlices::default(),
            service_exports: service_export::ServiceExports::default(),
            exports: None,
        };
        Self {
            state,
            initial: InitialLists::default(),
            problems: ReportedProblems::default(),
        }
    }

    /// The publisher exports what these rules say. To be called before the first event; [`Self::set_scope`] changes the
    /// rules later. `former` are the addresses that the store holds already.
    pub fn with_scope(mut self, rules: Arc<Export>, former: HashSet<Name>) -> Self {
        let exports = Exports::new(rules, former, &self.state.options.cluster.name);
        self.state.exports = Some(Box::new(exports));
        self.initial.needs_scope();
        self
    }

    /// The kinds of objects that a publisher with these options needs.
    pub fn kinds(options: &Options) -> Vec<Kind> {
        Kind::ALL
            .iter()
            .copied()
            .filter(|kind| is_wanted(*kind, options))
            .collect()
    }

    /// Takes one event; returns the actions that follow from it.
    pub fn handle(&mut self, event: Event) -> Vec<Action> {
        let mut out = self.effects();
        match event {
            Event::Listed(kind) => {
                let actions = self.initial.listed(kind, &self.state.options);
                if let Some(exports) = &mut self.state.exports
                    && actions.contains(&Action::Complete(Scope::Endpoints))
                {
                    exports.forget_former();
                }
                return actions;
            }
            Event::Apply(key, object) => {
                self.state.apply(&key, *object, &mut out);
                self.finish(&mut out);
                let new = self.problems.replace(&key, std::mem::take(&mut out.problems));
                out.actions.extend(new.into_iter().map(|problem| Action::Warn {
                    object: key.clone(),
                    problem,
                }));
            }
            Event::Delete(key) => {
                self.problems.forget(&key);
                self.state.delete(&key, &mut out);
                self.finish(&mut out);
            }
        }
        self.pass(out)
    }

    /// Exports what other rules say, from now on. Returns actions for the keys about which they decide otherwise. Without
    /// a scope, nothing happens.
    pub fn set_scope(&mut self, rules: Arc<Export>) -> Vec<Action> {
        let mut out = self.effects();
        self.state.set_scope(rules, &mut out);
        self.finish(&mut out);
        self.pass(out)
    }

    /// What the scope decided about the present keys, if that changed since this was last asked for.
    pub fn counted(&mut self) -> Option<Exported> {
        self.state.exports.as_mut()?.counted()
    }

    /// What the scope says about a key that is published unless the scope leaves it out; `None` for nodes and without a
    /// scope.
    pub fn verdict(&self, scope: Scope, name: &Name) -> Option<Verdict> {
        match scope {
            Scope::Endpoints => self.state.addresses.verdict(name),
            _ => self.state.exports.as_ref()?.decided(scope, name),
        }
    }

    /// Whether an address is one of the backends of an exported service, as the rules of the scope see it.
    pub fn is_backend(&self, address: &Name) -> bool {
        let exports = self.state.exports.as_ref();
        exports.is_some_and(|exports| exports.is_backend(address))
    }

    fn effects(&self) -> Effects {
        Effects {
            has_scope: self.state.exports.is_some(),
            ..Effects::default()
        }
    }

    /// Adds what follows from the changes so far.
    fn finish(&mut self, out: &mut Effects) {
        while let Some(name) = out.services.pop_front() {
            service::publish(&self.state, &name, out);
        }
        self.state.settle(out);
    }

    fn pass(&mut self, out: Effects) -> Vec<Action> {
        let actions = match out.has_scope {
            true => exports::ordered(out.actions),
            false => out.actions,
        };
        let actions = actions.into_iter();
        actions.filter_map(|action| self.initial.pass(action)).collect()
    }
}

// === impl Effects ===

impl Effects {
    fn upsert(&mut self, scope: Scope, name: &Name, value: Bytes) {
        let name = name.clone();
        self.actions.push(Action::Upsert { scope, name, value });
    }

    fn delete(&mut self, scope: Scope, name: &Name) {
        let name = name.clone();
        self.actions.push(Action::Delete { scope, name });
    }

    /// The key of an object that is exported unless the scope leaves it out; `verdict` is `None` without a scope.
    fn export(&mut self, scope: Scope, name: &Name, verdict: Option<Verdict>, value: Bytes) {
        if let Some(verdict) = verdict {
            let (name, decided) = (name.clone(), Some((verdict, value.len() as u64)));
            self.notes.push(Note::Key { scope, name, decided });
        }
        match verdict.is_none_or(Verdict::keeps) {
            true => self.upsert(scope, name, value),
            false => self.delete(scope, name),
        }
    }

    /// The key of an object that is not exported, whatever the scope says.
    fn withdraw(&mut self, scope: Scope, name: &Name) {
        if self.has_scope {
            let (name, decided) = (name.clone(), None);
            self.notes.push(Note::Key { scope, name, decided });
        }
        self.delete(scope, name);
    }

    /// The scope decides otherwise than before about the key of an object that is exported unless the scope leaves it out.
    fn decide_again(
        &mut self,
        scope: Scope,
        name: &Name,
        (before, now): (Verdict, Verdict),
        value: impl FnOnce() -> Bytes,
    ) {
        match before.keeps() == now.keeps() {
            true => {
                let (name, verdict) = (name.clone(), now);
                self.notes.push(Note::Cause { scope, name, verdict });
            }
            false => self.export(scope, name, Some(now), value()),
        }
    }

    fn problem(&mut self, problem: String) {
        self.problems.push(problem);
    }

    /// Publishes the keys of a service again, after the other changes of this event.
    fn republish_service(&mut self, service: NamespacedName) {
        self.services.push_back(service);
    }
}

// === impl NamespacedName ===

impl NamespacedName {
    fn new(namespace: &Name, name: &Name) -> Self {
        Self {
            namespace: namespace.clone(),
            name: name.clone(),
        }
    }

    fn of(key: &ObjectKey) -> Self {
        Self::new(&key.namespace, &key.name)
    }

    /// The name of the object's key: `<namespace>/<name>`.
    fn key(&self) -> Name {
        format!("{}/{}", self.namespace, self.name).into()
    }
}

/// The part of a map that belongs to `namespace`, in the order of names.
fn of_namespace<'a, V>(
    map: &'a BTreeMap<NamespacedName, V>,
    namespace: &'a Name,
) -> impl Iterator<Item = (&'a NamespacedName, &'a V)> {
    let first = NamespacedName::new(namespace, &Name::default());
    map.range(first..)
        .take_while(move |(name, _)| name.namespace == *namespace)
}
