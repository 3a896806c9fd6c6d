//! What this cluster publishes, by the publisher's own state machine: without a scope, with the present one, and with the
//! new one.

use super::Files;
use super::judged::{Facts, Judged, ORDER, Ruling, Visitor};
use super::objects::Objects;
use crate::clustermesh::publisher::{Action, Name, Options, Publisher};
use crate::k8s::types::{Kind, Object};
use crate::model::cluster::ClusterName;
use crate::model::keys::Scope;
use crate::scope::{Cause, Decision, Export, Rules, Verdict};
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;

/// What is known of the export beside its keys.
#[derive(Debug, Default)]
pub(super) struct Head {
    pub(super) cluster: String,
    /// Problems of objects that exist with the new scope only: annotations that are ignored.
    pub(super) problems: Vec<String>,
    /// CiliumEndpointSlices with an annotation that would count on a CiliumEndpoint.
    pub(super) annotated_slices: Vec<String>,
}

type Keys = BTreeMap<(Scope, Name), Bytes>;

/// A publisher that has seen all objects, and its keys.
struct Published {
    publisher: Publisher,
    keys: Keys,
    problems: BTreeSet<String>,
}

/// The prefix of the annotations that say whether a CiliumEndpoint is exported.
const ANNOTATIONS: &str = "clustermesh.cilium.io/sync";

/// The list of rules for a kind of keys.
pub(super) fn list(export: &Export, kind: Scope) -> Option<&Rules> {
    match kind {
        Scope::Endpoints => Some(&export.endpoints),
        Scope::Services | Scope::EndpointSlices => Some(&export.services),
        Scope::ServiceExports => Some(&export.service_exports),
        Scope::Identities | Scope::Nodes => None,
    }
}

/// Shows every key that is published without a scope to `visitor`.
pub(super) fn examine(objects: &Objects, options: &Options, files: &Files, visitor: &mut impl Visitor) -> Head {
    let cluster = &options.cluster.name;
    let plain = publish(Publisher::new(options.clone()), objects);
    let scoped = |rules: &Arc<Export>, former| {
        let publisher = Publisher::new(options.clone());
        publish(publisher.with_scope(Arc::clone(rules), former), objects)
    };
    let present = files.present.as_ref().map(|present| {
        let rules = Arc::new(present.file.export.clone());
        (scoped(&rules, HashSet::new()), rules)
    });
    let before = present.as_ref().map_or(&plain.keys, |(published, _)| &published.keys);
    let rules = Arc::new(files.new.file.export.clone());
    let now = scoped(&rules, addresses(before));
    let facts = Seen {
        plain: &plain.keys,
        publisher: &now.publisher,
    };
    for kind in ORDER {
        for ((_, name), value) in plain.keys.iter().filter(|((of, _), _)| *of == kind) {
            let key = (kind, name.clone());
            let (then, new) = (before.get(&key), now.keys.get(&key));
            visitor.key(&Judged {
                kind,
                name,
                value: new.unwrap_or(value),
                bytes: bytes(kind, cluster, name, new.unwrap_or(value)),
                ruling: ruling(&now, &rules, kind, name),
                former: present
                    .as_ref()
                    .map(|(published, rules)| ruling(published, rules, kind, name)),
                was_kept: then.is_some(),
                is_changed: then.is_some() && new.is_some() && then != new,
                facts: &facts,
            });
        }
    }
    for_unpublished(objects, &plain.keys, visitor);
    Head {
        cluster: cluster.to_string(),
        problems: now.problems.difference(&plain.problems).cloned().collect(),
        annotated_slices: annotated_slices(objects),
    }
}

/// Feeds all objects to a publisher.
fn publish(mut publisher: Publisher, objects: &Objects) -> Published {
    let (mut keys, mut problems) = (Keys::new(), BTreeSet::new());
    for event in &objects.events {
        for action in publisher.handle(event.clone()) {
            match action {
                Action::Upsert { scope, name, value } => drop(keys.insert((scope, name), value)),
                Action::Delete { scope, name } => drop(keys.remove(&(scope, name))),
                Action::Complete(_) => {}
                Action::Warn { object, problem } => drop(problems.insert(format!("{object}: {problem}"))),
            }
        }
    }
    Published {
        publisher,
        keys,
        problems,
    }
}

/// The names of the addresses among the keys.
fn addresses(keys: &Keys) -> HashSet<Name> {
    let addresses = keys.keys().filter(|(kind, _)| *kind == Scope::Endpoints);
    addresses.map(|(_, name)| name.clone()).collect()
}

fn ruling<'a>(published: &Published, rules: &'a Export, kind: Scope, name: &Name) -> Ruling<'a> {
    // Nodes have no rules.
    let verdict = published.publisher.verdict(kind, name);
    Ruling {
        verdict: verdict.unwrap_or(Verdict::new(Decision::Keep, Cause::Default)),
        rules: list(rules, kind),
    }
}

fn bytes(kind: Scope, cluster: &ClusterName, name: &str, value: &[u8]) -> u64 {
    (kind.state_prefix(cluster).len() + name.len() + value.len()) as u64
}

/// Names the objects of which nothing is published, whatever the scope says.
fn for_unpublished(objects: &Objects, keys: &Keys, visitor: &mut impl Visitor) {
    let pods: HashSet<(String, String)> = keys
        .iter()
        .filter(|((kind, _), _)| *kind == Scope::Endpoints)
        .map(|(_, value)| super::values::Pod::of(value))
        .map(|pod| (pod.namespace.into_owned(), pod.name.into_owned()))
        .collect();
    for object in objects.applied() {
        let meta = object.meta();
        let has_key = |kind: Scope| keys.contains_key(&(kind, format!("{}/{}", meta.namespace, meta.name).into()));
        let is_published = match object.kind() {
            Kind::Endpoint => pods.contains(&(meta.namespace.clone(), meta.name.clone())),
            Kind::Service => has_key(Scope::Services),
            Kind::ServiceExport => has_key(Scope::ServiceExports),
            _ => continue,
        };
        if !is_published {
            visitor.unpublished(object.kind().name(), &meta.namespace, &meta.name);
        }
    }
}

fn annotated_slices(objects: &Objects) -> Vec<String> {
    let annotated = objects.applied().filter_map(|object| match object {
        Object::CiliumEndpointSlice(slice) => {
            let annotations = &slice.metadata.annotations;
            let counts = annotations.keys().any(|name| name.starts_with(ANNOTATIONS));
            counts.then(|| slice.metadata.name.clone())
        }
        _ => None,
    });
    annotated.collect()
}

/// What the rules know of addresses.
struct Seen<'a> {
    plain: &'a Keys,
    publisher: &'a Publisher,
}

impl Facts for Seen<'_> {
    fn labels(&self, identity: u32) -> Option<String> {
        let value = self.plain.get(&(Scope::Identities, identity.to_string().into()))?;
        Some(String::from_utf8_lossy(value).into_owned())
    }

    fn is_backend(&self, address: &str) -> Option<bool> {
        Some(self.publisher.is_backend(&address.into()))
    }
}
