//! The publisher's core: a pure state machine from object events to key changes.
//!
//! It keeps what it needs to decide again when a namespace or a service changes: converted values of
//! identities and endpoints, and the slim services and slices. All changes of one object come out
//! together, and a scope is complete when every kind it is made of has been listed.

use super::convert::{self, Problems};
use super::owners::{Entries, Name, Owners};
use crate::k8s::events::Event;
use crate::k8s::types::{self as k8s, Kind, Object, ObjectKey};
use crate::model::cluster::ClusterInfo;
use crate::model::keys::Scope;
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

/// Which forms of a service are exported (`--clustermesh-service-v2`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ServiceMode {
    /// Both; readers take the legacy services.
    #[default]
    PreferLegacy,
    /// Both; readers take the slices.
    PreferEndpointSlice,
    /// Slices only.
    OnlyEndpointSlice,
}

/// What to publish.
#[derive(Clone, Debug)]
pub struct Options {
    /// The cluster.
    pub cluster: ClusterInfo,
    /// Whether a namespace that does not say is global.
    pub default_global_namespace: bool,
    /// Addresses come from CiliumEndpointSlices instead of CiliumEndpoints.
    pub endpoint_slices: bool,
    /// Whether MCS-API exports are published.
    pub service_exports: bool,
    /// Which forms of a service are exported.
    pub service_mode: ServiceMode,
}

/// One step towards the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// A key of a scope has this value.
    Upsert(Scope, Name, Bytes),
    /// A key of a scope is gone.
    Delete(Scope, Name),
    /// Every first value of the scope has been said.
    Synced(Scope),
    /// Something is wrong with an object; the rest of it goes on.
    Problem(ObjectKey, String),
}

/// See the module's text.
pub struct Publisher {
    options: Options,
    /// Kinds listed so far.
    listed: BTreeSet<Kind>,
    synced: BTreeSet<Scope>,
    /// Namespaces that exist → whether they are global.
    namespaces: HashMap<Name, bool>,
    /// (namespace, name) → value.
    identities: BTreeMap<(Name, Name), Bytes>,
    /// Identity name → namespace.
    identity_namespaces: HashMap<Name, Name>,
    /// (namespace, object) → its addresses and values.
    endpoints: BTreeMap<(Name, ObjectKey), Entries>,
    /// CiliumEndpointSlice → its namespace, which may change.
    slice_namespaces: HashMap<ObjectKey, Name>,
    owners: Owners,
    /// (namespace, name) → service.
    services: BTreeMap<(Name, Name), k8s::Service>,
    /// (namespace, name) → slice.
    slices: BTreeMap<(Name, Name), k8s::EndpointSlice>,
    /// (namespace, service) → names of its slices.
    slices_of: HashMap<(Name, Name), BTreeSet<Name>>,
    exports: BTreeMap<(Name, Name), k8s::ServiceExport>,
    /// The last change of each key of the scopes that are not complete yet. What is not known completely
    /// could look as if it were gone, and it may be there from a former life.
    held: BTreeMap<(Scope, Name), Option<Bytes>>,
    /// Problems already told.
    told: HashMap<ObjectKey, HashSet<String>>,
}

/// The label by which a slice names its service.
const SERVICE_LABEL: &str = "kubernetes.io/service-name";

impl Publisher {
    /// Nothing seen yet.
    pub fn new(options: Options) -> Self {
        Self {
            options,
            listed: BTreeSet::new(),
            synced: BTreeSet::new(),
            namespaces: HashMap::new(),
            identities: BTreeMap::new(),
            identity_namespaces: HashMap::new(),
            endpoints: BTreeMap::new(),
            slice_namespaces: HashMap::new(),
            owners: Owners::default(),
            services: BTreeMap::new(),
            slices: BTreeMap::new(),
            slices_of: HashMap::new(),
            exports: BTreeMap::new(),
            held: BTreeMap::new(),
            told: HashMap::new(),
        }
    }

    /// The kinds it wants to hear of.
    pub fn kinds(options: &Options) -> Vec<Kind> {
        let unwanted = |kind: &Kind| match kind {
            Kind::Endpoint => options.endpoint_slices,
            Kind::CiliumEndpointSlice => !options.endpoint_slices,
            Kind::ServiceExport => !options.service_exports,
            _ => false,
        };
        Kind::ALL.iter().copied().filter(|k| !unwanted(k)).collect()
    }

    /// Takes one event; returns what follows from it.
    pub fn handle(&mut self, event: Event) -> Vec<Change> {
        let mut out = vec![];
        match event {
            Event::Apply(key, object) => self.apply(key, *object, &mut out),
            Event::Delete(key) => self.delete(key, &mut out),
            Event::Listed(kind) => {
                self.listed.insert(kind);
                let mut complete = vec![];
                self.complete(&mut complete);
                return complete;
            }
        }
        out.into_iter().filter_map(|change| self.unless_held(change)).collect()
    }

    /// The change, or nothing if its scope is not complete yet.
    fn unless_held(&mut self, change: Change) -> Option<Change> {
        match change {
            Change::Upsert(scope, key, value) if !self.synced.contains(&scope) => {
                self.held.insert((scope, key), Some(value));
                None
            }
            Change::Delete(scope, key) if !self.synced.contains(&scope) => {
                self.held.insert((scope, key), None);
                None
            }
            change => Some(change),
        }
    }

    /// Says which scopes have become complete.
    fn complete(&mut self, out: &mut Vec<Change>) {
        let endpoints = match self.options.endpoint_slices {
            true => Kind::CiliumEndpointSlice,
            false => Kind::Endpoint,
        };
        for scope in Scope::ALL {
            let needs: &[Kind] = match scope {
                Scope::Nodes => &[Kind::Node],
                Scope::Identities => &[Kind::Identity, Kind::Namespace],
                Scope::Endpoints => &[endpoints, Kind::Namespace],
                Scope::Services | Scope::EndpointSlices => &[Kind::Service, Kind::EndpointSlice, Kind::Namespace],
                // Without exports there is nothing to wait for, and readers wait for the canary.
                Scope::ServiceExports if !self.options.service_exports => &[],
                Scope::ServiceExports => &[Kind::Service, Kind::ServiceExport, Kind::Namespace],
            };
            if needs.iter().all(|k| self.listed.contains(k)) && self.synced.insert(scope) {
                let of_scope = |(s, _): &(Scope, Name), _: &mut Option<Bytes>| *s == scope;
                for ((_, key), value) in self.held.extract_if(.., of_scope) {
                    // Nothing of an incomplete scope was said, so there is nothing to take back.
                    out.extend(value.map(|value| Change::Upsert(scope, key, value)));
                }
                out.push(Change::Synced(scope));
            }
        }
    }

    fn apply(&mut self, key: ObjectKey, object: Object, out: &mut Vec<Change>) {
        let mut problems = vec![];
        match object {
            Object::Namespace(namespace) => {
                let global = self.says_global(&namespace);
                if self.namespaces.insert(key.name.clone(), global) != Some(global) {
                    self.namespace_changed(&key.name, out);
                }
            }
            Object::Node(node) => {
                let value = convert::node(&node, &self.options.cluster, &mut problems);
                out.push(Change::Upsert(Scope::Nodes, key.name.clone(), value));
            }
            Object::Identity(identity) => self.identity(&key, &identity, &mut problems, out),
            Object::Endpoint(e) => {
                let endpoint = convert::Endpoint {
                    namespace: &key.namespace,
                    pod: &key.name,
                    identity: e.status.identity.id,
                    networking: &e.status.networking,
                    encryption_key: e.status.encryption.key,
                    service_account: &e.status.service_account,
                    named_ports: &e.status.named_ports,
                };
                let entries = convert::endpoint(&endpoint, &mut problems);
                self.endpoints(&key.namespace, &key, entries.into(), out);
            }
            Object::CiliumEndpointSlice(slice) => {
                let entries = convert::endpoints_of_slice(&slice, &mut problems);
                if slice.namespace.is_empty() {
                    problems.push("it has no namespace".to_owned());
                }
                self.endpoints(&(&*slice.namespace).into(), &key, entries.into(), out);
            }
            Object::Service(service) => {
                if convert::is_shared(&service) && convert::is_name_outside(&service) {
                    problems.push("it is global, but a name outside the cluster has no address to share".to_owned());
                }
                let name = (key.namespace.clone(), key.name.clone());
                self.services.insert(name.clone(), service);
                self.service_changed(&name, &mut problems, out);
            }
            Object::EndpointSlice(slice) => self.slice(&key, Some(slice), &mut problems, out),
            Object::ServiceExport(export) => {
                let name = (key.namespace.clone(), key.name.clone());
                self.exports.insert(name.clone(), export);
                self.export_changed(&name, out);
            }
        }
        self.tell(&key, problems, out);
    }

    fn delete(&mut self, key: ObjectKey, out: &mut Vec<Change>) {
        self.told.remove(&key);
        let name = (key.namespace.clone(), key.name.clone());
        match key.kind {
            Kind::Namespace => {
                if self.namespaces.remove(&key.name).is_some() {
                    self.namespace_changed(&key.name, out);
                }
            }
            Kind::Node => out.push(Change::Delete(Scope::Nodes, key.name)),
            Kind::Identity => self.forget_identity(&key.name, out),
            Kind::Endpoint => {
                self.endpoints.remove(&(key.namespace.clone(), key.clone()));
                self.own(&key, &[], out);
            }
            Kind::CiliumEndpointSlice => {
                if let Some(namespace) = self.slice_namespaces.remove(&key) {
                    self.endpoints.remove(&(namespace, key.clone()));
                }
                self.own(&key, &[], out);
            }
            Kind::Service => {
                self.services.remove(&name);
                self.service_changed(&name, &mut vec![], out);
            }
            Kind::EndpointSlice => self.slice(&key, None, &mut vec![], out),
            Kind::ServiceExport => {
                self.exports.remove(&name);
                self.export_changed(&name, out);
            }
        }
    }

    /// Tells each problem of an object once, until the object is deleted or loses it.
    fn tell(&mut self, key: &ObjectKey, problems: Problems, out: &mut Vec<Change>) {
        if problems.is_empty() {
            self.told.remove(key);
            return;
        }
        let told = self.told.entry(key.clone()).or_default();
        let now: HashSet<String> = problems.into_iter().collect();
        out.extend(now.difference(told).map(|p| Change::Problem(key.clone(), p.clone())));
        *told = now;
    }

    // --- namespaces ---

    /// Whether a namespace is global by its annotation (pkg/clustermesh/namespace/namespace.go).
    fn says_global(&self, namespace: &k8s::Namespace) -> bool {
        let annotation = namespace.metadata.annotations.get("clustermesh.cilium.io/global");
        annotation.map_or(self.options.default_global_namespace, |v| {
            v.eq_ignore_ascii_case("true")
        })
    }

    /// A namespace that does not exist is not global.
    fn is_global(&self, namespace: &str) -> bool {
        self.namespaces.get(namespace).copied().unwrap_or(false)
    }

    /// Decides again about everything in a namespace.
    fn namespace_changed(&mut self, namespace: &Name, out: &mut Vec<Change>) {
        let global = self.is_global(namespace);
        let from = (Name::clone(namespace), Name::from(""));
        for ((_, name), value) in of_namespace(&self.identities, namespace, &from) {
            out.push(match global {
                true => Change::Upsert(Scope::Identities, name.clone(), value.clone()),
                false => Change::Delete(Scope::Identities, name.clone()),
            });
        }
        let objects = self.endpoints.range(first_endpoint(namespace)..);
        let objects: Vec<_> = objects
            .take_while(|((ns, _), _)| ns == namespace)
            .map(|(k, _)| k.clone())
            .collect();
        for (ns, object) in objects {
            let entries = match global {
                true => self.endpoints[&(ns, object.clone())].clone(),
                false => Entries::default(),
            };
            self.own(&object, &entries, out);
        }
        let services: Vec<_> = of_namespace(&self.services, namespace, &from)
            .map(|(k, _)| k.clone())
            .collect();
        for name in services {
            self.service_changed(&name, &mut vec![], out);
        }
    }

    // --- identities ---

    fn identity(
        &mut self,
        key: &ObjectKey,
        identity: &k8s::CiliumIdentity,
        problems: &mut Problems,
        out: &mut Vec<Change>,
    ) {
        let labels = &identity.security_labels;
        let Some(namespace) = labels.get(convert::NAMESPACE_LABEL).filter(|n| !n.is_empty()) else {
            // Parity: an identity of no namespace is never exported.
            problems.push(format!("it has no label {}", convert::NAMESPACE_LABEL));
            return self.forget_identity(&key.name, out);
        };
        let (value, namespace) = (convert::identity(labels), Name::from(&**namespace));
        let before = self.identity_namespaces.insert(key.name.clone(), namespace.clone());
        if let Some(before) = before.filter(|b| *b != namespace) {
            self.identities.remove(&(before, key.name.clone()));
        }
        self.identities
            .insert((namespace.clone(), key.name.clone()), value.clone());
        out.push(match self.is_global(&namespace) {
            true => Change::Upsert(Scope::Identities, key.name.clone(), value),
            false => Change::Delete(Scope::Identities, key.name.clone()),
        });
    }

    fn forget_identity(&mut self, name: &Name, out: &mut Vec<Change>) {
        if let Some(namespace) = self.identity_namespaces.remove(name) {
            self.identities.remove(&(namespace, name.clone()));
        }
        out.push(Change::Delete(Scope::Identities, name.clone()));
    }

    // --- endpoints ---

    fn endpoints(&mut self, namespace: &Name, key: &ObjectKey, entries: Entries, out: &mut Vec<Change>) {
        if key.kind == Kind::CiliumEndpointSlice {
            let before = self.slice_namespaces.insert(key.clone(), namespace.clone());
            if let Some(before) = before.filter(|b| b != namespace) {
                self.endpoints.remove(&(before, key.clone()));
            }
        }
        let global = self.is_global(namespace);
        self.own(key, if global { &entries } else { &[] }, out);
        self.endpoints.insert((namespace.clone(), key.clone()), entries);
    }

    fn own(&mut self, key: &ObjectKey, entries: &[(Name, Bytes)], out: &mut Vec<Change>) {
        let changes = self.owners.set(key, entries).into_iter();
        out.extend(changes.map(|(name, value)| match value {
            Some(value) => Change::Upsert(Scope::Endpoints, name, value),
            None => Change::Delete(Scope::Endpoints, name),
        }));
    }

    // --- services ---

    fn service_changed(&mut self, name: &(Name, Name), problems: &mut Problems, out: &mut Vec<Change>) {
        let key: Name = format!("{}/{}", name.0, name.1).into();
        let shared = self
            .services
            .get(name)
            .filter(|s| convert::is_shared(s) && self.is_global(&name.0));
        let slices = self.slices_of.get(name);
        let slices: Vec<_> = slices
            .into_iter()
            .flatten()
            .filter_map(|slice| self.slices.get(&(name.0.clone(), slice.clone())))
            .collect();
        let legacy = self.options.service_mode != ServiceMode::OnlyEndpointSlice;
        out.push(match shared.filter(|s| legacy && !convert::is_name_outside(s)) {
            Some(service) => {
                let cluster = &self.options.cluster;
                let value = convert::service(service, slices.iter().copied(), cluster, problems);
                Change::Upsert(Scope::Services, key, value)
            }
            None => Change::Delete(Scope::Services, key),
        });
        for slice in slices {
            let key = format!("{}/{}", name.0, slice.metadata.name).into();
            out.push(match shared {
                Some(_) => {
                    let value = convert::endpoint_slice(slice, &self.options.cluster);
                    Change::Upsert(Scope::EndpointSlices, key, value)
                }
                None => Change::Delete(Scope::EndpointSlices, key),
            });
        }
        if self.exports.contains_key(name) {
            self.export_changed(name, out);
        }
    }

    /// A slice is there with this content, or is gone.
    fn slice(
        &mut self,
        key: &ObjectKey,
        slice: Option<k8s::EndpointSlice>,
        problems: &mut Problems,
        out: &mut Vec<Change>,
    ) {
        let service_of = |slice: &k8s::EndpointSlice| {
            let label = slice.metadata.labels.get(SERVICE_LABEL);
            label.map(|service| (key.namespace.clone(), Name::from(&**service)))
        };
        let name = (key.namespace.clone(), key.name.clone());
        let now = slice.as_ref().and_then(service_of);
        let before = match slice {
            Some(slice) => self.slices.insert(name, slice),
            None => self.slices.remove(&name),
        };
        let before = before.as_ref().and_then(service_of).filter(|b| Some(b) != now.as_ref());
        if let Some(service) = before {
            if let Some(names) = self.slices_of.get_mut(&service) {
                names.remove(&key.name);
                if names.is_empty() {
                    self.slices_of.remove(&service);
                }
            }
            out.push(Change::Delete(
                Scope::EndpointSlices,
                format!("{}/{}", key.namespace, key.name).into(),
            ));
            self.service_changed(&service, problems, out);
        }
        if let Some(service) = now {
            self.slices_of
                .entry(service.clone())
                .or_default()
                .insert(key.name.clone());
            if self.services.contains_key(&service) {
                self.service_changed(&service, problems, out);
            }
        }
    }

    fn export_changed(&self, name: &(Name, Name), out: &mut Vec<Change>) {
        let global = self.is_global(&name.0);
        let pair = self.exports.get(name).zip(self.services.get(name)).filter(|_| global);
        let value = pair.and_then(|(e, s)| convert::service_export(e, s, &self.options.cluster));
        let key = format!("{}/{}", name.0, name.1).into();
        out.push(match value {
            Some(value) => Change::Upsert(Scope::ServiceExports, key, value),
            None => Change::Delete(Scope::ServiceExports, key),
        });
    }
}

fn of_namespace<'a, V>(
    map: &'a BTreeMap<(Name, Name), V>,
    namespace: &'a Name,
    from: &(Name, Name),
) -> impl Iterator<Item = (&'a (Name, Name), &'a V)> {
    map.range(from.clone()..)
        .take_while(move |((ns, _), _)| ns == namespace)
}

fn first_endpoint(namespace: &Name) -> (Name, ObjectKey) {
    let first = ObjectKey {
        kind: Kind::ALL[0],
        namespace: "".into(),
        name: "".into(),
    };
    (namespace.clone(), first)
}
