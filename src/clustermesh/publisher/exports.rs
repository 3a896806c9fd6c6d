//! What the scope file says about the keys of this cluster, and what its rules depend on. Exists only with a scope file.
//!
//! An event marks the addresses and identities about which the rules may now decide otherwise. They are judged again at the
//! end of the event, see [`State::settle`].

use super::notes::Note;
use super::{Action, Effects, Name, NamespacedName, State, identity, service, service_export};
use crate::k8s::types as k8s;
use crate::model::cluster::ClusterName;
use crate::model::keys::Scope;
use crate::scope::{
    Bits, Cause, Counts, Decision, Export, Exported, Identities, IdentityLabels, NamespaceFacts, Verdict,
};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

pub(super) struct Exports {
    rules: Arc<Export>,
    namespaces: HashMap<Name, Namespace>,
    /// Identities with known labels → the rules for addresses that select them.
    identities: HashMap<u32, Bits>,
    /// Identity → the addresses that claims with this identity name.
    claimed: HashMap<u32, HashSet<Name>>,
    /// Identity → the number of published addresses that have it.
    users: HashMap<u32, u32>,
    /// Address → the number of exported services that it is a backend of.
    backends: HashMap<Name, u32>,
    /// What was decided about each global service, and its backends if it is exported.
    services: HashMap<NamespacedName, ServiceState>,
    service_exports: HashMap<NamespacedName, Verdict>,
    /// What was decided about each key, and its size; but addresses, whose claims know.
    keys: HashMap<(Scope, Name), (Verdict, u64)>,
    counts: BTreeMap<Scope, Counts>,
    /// Whether the counts changed since they were last asked for.
    is_counted: bool,
    marked: Marked,
    /// The addresses that an earlier run left in the store, until this run knows all addresses.
    former: HashSet<Name>,
    /// The length of each scope's prefix.
    prefixes: BTreeMap<Scope, u64>,
}

struct Namespace {
    labels: k8s::Strings,
    bits: NamespaceBits,
}

/// The rules of each list whose conditions on a namespace hold.
#[derive(Clone, Copy, PartialEq, Eq)]
struct NamespaceBits {
    endpoints: Bits,
    services: Bits,
    service_exports: Bits,
}

struct ServiceState {
    verdict: Verdict,
    backends: Box<[Name]>,
}

/// What the rules may now decide otherwise about.
#[derive(Default)]
struct Marked {
    addresses: BTreeSet<Name>,
    identities: BTreeSet<u32>,
}

/// What a verdict about an address rests on, and the verdict.
pub(super) struct Facts {
    pub(super) namespace: Name,
    pub(super) identity: u32,
    sync: Option<bool>,
    pub(super) verdict: Verdict,
    /// Whether the key has the value of this claim.
    pub(super) owns: bool,
}

/// How an address counts.
#[derive(Clone, Copy)]
pub(super) struct Standing {
    verdict: Verdict,
    bytes: u64,
    /// The identity of a published address.
    identity: Option<u32>,
}

impl Facts {
    /// A claim that has not been judged.
    pub(super) fn new(namespace: &Name, identity: u32, sync: Option<bool>) -> Self {
        Self {
            namespace: namespace.clone(),
            identity,
            sync,
            verdict: Verdict::new(Decision::Pending, Cause::Default),
            owns: false,
        }
    }
}

impl Standing {
    pub(super) fn new(facts: &Facts, name: &Name, value: &[u8]) -> Self {
        Self {
            verdict: facts.verdict,
            bytes: (name.len() + value.len()) as u64,
            identity: facts.owns.then_some(facts.identity),
        }
    }
}

// === impl Exports ===

impl Exports {
    pub(super) fn new(rules: Arc<Export>, former: HashSet<Name>, cluster: &ClusterName) -> Self {
        let prefixes = Scope::ALL.map(|scope| (scope, scope.state_prefix(cluster).len() as u64));
        Self {
            rules,
            namespaces: HashMap::new(),
            identities: HashMap::new(),
            claimed: HashMap::new(),
            users: HashMap::new(),
            backends: HashMap::new(),
            services: HashMap::new(),
            service_exports: HashMap::new(),
            keys: HashMap::new(),
            counts: BTreeMap::new(),
            is_counted: true,
            marked: Marked::default(),
            former,
            prefixes: prefixes.into(),
        }
    }

    /// Whether an earlier run left this address in the store.
    pub(super) fn is_former(&self, name: &Name) -> bool {
        self.former.contains(name)
    }

    /// All addresses of this run are known: those that are not among them are stale.
    pub(super) fn forget_former(&mut self) {
        self.former = HashSet::new();
    }

    /// Notes the labels of a namespace. Returns whether that changes what the rules say about it.
    pub(super) fn namespace(&mut self, name: &Name, labels: &k8s::Strings) -> bool {
        let bits = NamespaceBits::new(&self.rules, name, Some(labels));
        let labels = labels.clone();
        let before = self.namespaces.insert(name.clone(), Namespace { labels, bits });
        before.is_none_or(|before| before.bits != bits)
    }

    pub(super) fn remove_namespace(&mut self, name: &Name) {
        self.namespaces.remove(name);
    }

    /// Whether an address is one of the backends of an exported service.
    pub(super) fn is_backend(&self, address: &Name) -> bool {
        self.backends.contains_key(address)
    }

    fn bits(&self, namespace: &Name) -> NamespaceBits {
        let known = self.namespaces.get(namespace).map(|known| known.bits);
        known.unwrap_or_else(|| NamespaceBits::new(&self.rules, namespace, None))
    }

    /// Notes the labels of an identity, as its key has them; `None`: they are not known any more.
    pub(super) fn identity(&mut self, number: u32, labels: Option<&[u8]>) {
        let labels = labels.and_then(IdentityLabels::parse);
        let bits = labels.map(|labels| self.rules.endpoints.identity(&labels));
        let before = match bits {
            Some(bits) => self.identities.insert(number, bits),
            None => self.identities.remove(&number),
        };
        if before != bits
            && let Some(claimed) = self.claimed.get(&number)
        {
            self.marked.addresses.extend(claimed.iter().cloned());
        }
    }

    /// Decides about a claim of the address `name`.
    pub(super) fn judge(&self, facts: &mut Facts, name: &Name) {
        facts.verdict = self.endpoint(&facts.namespace, facts.identity, facts.sync, name);
    }

    fn endpoint(&self, namespace: &Name, identity: u32, sync: Option<bool>, name: &Name) -> Verdict {
        match sync {
            Some(true) => Verdict::new(Decision::Keep, Cause::Annotation),
            Some(false) => Verdict::new(Decision::LeaveOut, Cause::Annotation),
            None => {
                let labels = self.identities.get(&identity).copied();
                let labels = labels.or_else(|| {
                    let labels = IdentityLabels::reserved(identity)?;
                    Some(self.rules.endpoints.identity(&labels))
                });
                let bits = self.bits(namespace).endpoints;
                self.rules.endpoints.endpoint(bits, labels, self.is_backend(name))
            }
        }
    }

    /// Decides about a global service and its slices.
    pub(super) fn service(&self, namespace: &Name, labels: &k8s::Strings) -> Verdict {
        self.rules.services.object(self.bits(namespace).services, labels)
    }

    /// Decides about a ServiceExport.
    pub(super) fn service_export(&self, namespace: &Name, labels: &k8s::Strings) -> Verdict {
        let bits = self.bits(namespace).service_exports;
        self.rules.service_exports.object(bits, labels)
    }

    /// Decides about an identity.
    pub(super) fn identity_verdict(&self, number: Option<u32>) -> Verdict {
        let is_used = || number.is_some_and(|number| self.users.contains_key(&number));
        match self.rules.identities {
            Identities::All => Verdict::new(Decision::Keep, Cause::Default),
            Identities::Used if is_used() => Verdict::new(Decision::Keep, Cause::Default),
            Identities::Used => Verdict::new(Decision::LeaveOut, Cause::Unused),
        }
    }

    /// A claim of the address `name` has this identity.
    pub(super) fn link(&mut self, identity: u32, name: &Name) {
        self.claimed.entry(identity).or_default().insert(name.clone());
    }

    /// No claim of the address `name` has this identity any more.
    pub(super) fn unlink(&mut self, identity: u32, name: &Name) {
        if let Some(claimed) = self.claimed.get_mut(&identity) {
            claimed.remove(name);
            if claimed.is_empty() {
                self.claimed.remove(&identity);
            }
        }
    }

    /// An address counts otherwise than before.
    pub(super) fn recount(&mut self, before: Option<Standing>, now: Option<Standing>) {
        let prefix = self.prefix(Scope::Endpoints);
        let counts = self.counts.entry(Scope::Endpoints).or_default();
        if let Some(before) = before {
            counts.remove(before.verdict, prefix + before.bytes);
        }
        if let Some(now) = now {
            counts.add(now.verdict, prefix + now.bytes);
        }
        self.is_counted = false;
        let (before, now) = (before.and_then(|s| s.identity), now.and_then(|s| s.identity));
        if before == now {
            return;
        }
        if let Some(identity) = now {
            let users = self.users.entry(identity).or_default();
            *users += 1;
            if *users == 1 {
                self.marked.identities.insert(identity);
            }
        }
        if let Some(identity) = before
            && let Some(users) = self.users.get_mut(&identity)
        {
            *users -= 1;
            if *users == 0 {
                self.users.remove(&identity);
                self.marked.identities.insert(identity);
            }
        }
    }

    fn prefix(&self, scope: Scope) -> u64 {
        self.prefixes.get(&scope).copied().unwrap_or_default()
    }

    /// What was decided about a key; `None` if its object is not exported whatever the rules say.
    pub(super) fn decided(&self, scope: Scope, name: &Name) -> Option<Verdict> {
        // The map has names by value.
        self.keys.get(&(scope, name.clone())).map(|(verdict, _)| *verdict)
    }

    fn note(&mut self, note: Note) {
        match note {
            Note::Key { scope, name, decided } => self.note_key(scope, name, decided),
            Note::Cause { scope, name, verdict } => {
                let known = self.keys.get(&(scope, name.clone())).copied();
                let prefix = self.prefix(scope) + name.len() as u64;
                let decided = known.map(|(_, bytes)| (verdict, bytes - prefix));
                self.note_key(scope, name, decided);
            }
            Note::Service { name, decided } => self.note_service(name, decided),
            Note::ServiceExport { name, verdict } => match verdict {
                Some(verdict) => drop(self.service_exports.insert(name, verdict)),
                None => drop(self.service_exports.remove(&name)),
            },
        }
    }

    fn note_key(&mut self, scope: Scope, name: Name, decided: Option<(Verdict, u64)>) {
        let bytes = self.prefix(scope) + name.len() as u64;
        let decided = decided.map(|(verdict, value)| (verdict, bytes + value));
        let before = match decided {
            Some(decided) => self.keys.insert((scope, name), decided),
            None => self.keys.remove(&(scope, name)),
        };
        if before == decided {
            return;
        }
        let counts = self.counts.entry(scope).or_default();
        if let Some((verdict, bytes)) = before {
            counts.remove(verdict, bytes);
        }
        if let Some((verdict, bytes)) = decided {
            counts.add(verdict, bytes);
        }
        self.is_counted = false;
    }

    fn note_service(&mut self, name: NamespacedName, decided: Option<(Verdict, Box<[Name]>)>) {
        let now = decided
            .as_ref()
            .map(|(_, backends)| backends.clone())
            .unwrap_or_default();
        let before = match decided {
            Some((verdict, backends)) => self.services.insert(name, ServiceState { verdict, backends }),
            None => self.services.remove(&name),
        };
        for address in now.iter() {
            let services = self.backends.entry(address.clone()).or_default();
            *services += 1;
            if *services == 1 {
                self.marked.addresses.insert(address.clone());
            }
        }
        for address in before.iter().flat_map(|before| before.backends.iter()) {
            let Some(services) = self.backends.get_mut(address) else {
                continue;
            };
            *services -= 1;
            if *services == 0 {
                self.backends.remove(address);
                self.marked.addresses.insert(address.clone());
            }
        }
    }

    /// What was decided, if that changed since it was last asked for.
    pub(super) fn counted(&mut self) -> Option<Exported> {
        if std::mem::replace(&mut self.is_counted, true) {
            return None;
        }
        Some(Exported {
            rules: Arc::clone(&self.rules),
            counts: self.counts.clone(),
        })
    }
}

impl NamespaceBits {
    fn new(rules: &Export, name: &Name, labels: Option<&k8s::Strings>) -> Self {
        let facts = NamespaceFacts { labels, exists: true };
        Self {
            endpoints: rules.endpoints.namespace(name, facts),
            services: rules.services.namespace(name, facts),
            service_exports: rules.service_exports.namespace(name, facts),
        }
    }
}

// === impl State ===

impl State {
    /// The rules are `rules` from now on.
    pub(super) fn set_scope(&mut self, rules: Arc<Export>, out: &mut Effects) {
        let Self {
            exports, identities, ..
        } = self;
        let Some(exports) = exports else {
            return;
        };
        exports.rules = rules;
        exports.is_counted = false;
        for (name, namespace) in &mut exports.namespaces {
            namespace.bits = NamespaceBits::new(&exports.rules, name, Some(&namespace.labels));
        }
        // Every address is judged again, so none has to be marked.
        exports.identities.clear();
        for (name, labels) in identities.all() {
            if let (Some(number), Some(labels)) = (identity::number(name), IdentityLabels::parse(labels)) {
                let bits = exports.rules.endpoints.identity(&labels);
                exports.identities.insert(number, bits);
                exports.marked.identities.insert(number);
            }
        }
        let names = identities.all().map(|(name, _)| name.clone());
        let unnumbered: Vec<_> = names.filter(|name| identity::number(name).is_none()).collect();
        for name in unnumbered {
            identity::judge_again(self, &name, out);
        }
        self.judge_namespace(None, out);
    }

    /// Judges the addresses, services and exports of `namespace` again; of all namespaces with `None`.
    pub(super) fn judge_namespace(&mut self, namespace: Option<&Name>, out: &mut Effects) {
        let Self { exports, addresses, .. } = self;
        let Some(exports) = exports else {
            return;
        };
        exports.marked.addresses.extend(addresses.names(namespace).cloned());
        let state = &*self;
        let Some(exports) = &state.exports else {
            return;
        };
        let is_of = |name: &&NamespacedName| namespace.is_none_or(|namespace| name.namespace == *namespace);
        let mut services: Vec<_> = exports.services.keys().filter(is_of).collect();
        services.sort();
        for name in services {
            service::judge_again(state, name, exports.services[name].verdict, out);
        }
        let mut of_exports: Vec<_> = exports.service_exports.keys().filter(is_of).collect();
        of_exports.sort();
        for name in of_exports {
            service_export::judge_again(state, name, exports.service_exports[name], out);
        }
    }

    /// Notes what was decided in this event, and judges again what may now be decided otherwise.
    pub(super) fn settle(&mut self, out: &mut Effects) {
        while let Some(exports) = &mut self.exports {
            std::mem::take(&mut out.notes)
                .into_iter()
                .for_each(|note| exports.note(note));
            if let Some(address) = exports.marked.addresses.pop_first() {
                self.addresses.judge_again(&address, exports, out);
            } else if let Some(number) = exports.marked.identities.pop_first() {
                identity::judge_again(self, &number.to_string().into(), out);
            } else {
                return;
            }
        }
    }
}

/// One action for each key, the last one, in an order in which no reader sees an address without its identity.
pub(super) fn ordered(actions: Vec<Action>) -> Vec<Action> {
    let mut seen = HashSet::new();
    let mut last: Vec<Action> = vec![];
    for action in actions.into_iter().rev() {
        let is_last = match &action {
            Action::Upsert { scope, name, .. } | Action::Delete { scope, name } => seen.insert((*scope, name.clone())),
            Action::Complete(_) | Action::Warn { .. } => true,
        };
        if is_last {
            last.push(action);
        }
    }
    last.reverse();
    last.sort_by_key(|action| match action {
        Action::Upsert { scope, .. } => match scope {
            Scope::Identities => 0,
            Scope::Endpoints => 1,
            _ => 2,
        },
        Action::Delete { scope, .. } => match scope {
            Scope::Endpoints => 4,
            Scope::Identities => 5,
            _ => 3,
        },
        Action::Complete(_) | Action::Warn { .. } => 6,
    });
    last
}
