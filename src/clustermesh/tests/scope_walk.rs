//! A random walk of objects, labels, namespaces, scope files and restarts: after each step, the store holds what the model
//! computes from scratch, and no step deletes a key that is wanted before and after it.

use super::scope_model::*;
use super::scope_world::Change;
use super::*;
use crate::scope::ScopeFile;
use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;

const STEPS: usize = 2000;

/// A publisher and the store that it writes to.
struct Run {
    publisher: Publisher,
    /// The keys in the store; addresses with their pod, identity and region.
    store: BTreeMap<(Scope, String), Bytes>,
    /// The keys that this run has written or deleted, as the writer knows them.
    declared: BTreeSet<(Scope, String)>,
    synced: BTreeSet<Scope>,
    model: Model,
    random: Random,
    /// Pods come in CiliumEndpointSlices.
    slices: bool,
    counts: crate::scope::Exported,
    /// The keys that are wanted before and after the present step.
    lasting: BTreeSet<(Scope, String)>,
}

fn keys(published: &Published) -> BTreeSet<(Scope, String)> {
    let addresses = published.addresses.keys().map(|ip| (Scope::Endpoints, ip.clone()));
    addresses.chain(published.others.iter().cloned()).collect()
}

fn file(scope: &TestScope) -> ScopeFile {
    ScopeFile::parse(scope.file().to_string().as_bytes()).unwrap()
}

fn options(slices: bool) -> Options {
    Options {
        endpoint_slices: slices,
        ..super::options()
    }
}

impl Run {
    fn new(seed: u64, slices: bool) -> Self {
        let mut run = Self {
            publisher: Publisher::new(options(slices)),
            store: BTreeMap::new(),
            declared: BTreeSet::new(),
            synced: BTreeSet::new(),
            model: Model::default(),
            random: Random(seed),
            slices,
            counts: Default::default(),
            lasting: BTreeSet::new(),
        };
        run.restart();
        run
    }

    /// One change of the cluster, of the scope, or of the process.
    fn step(&mut self) {
        match self.random.below(100) {
            0 => {
                self.model.forget_order();
                self.change(Self::restart);
            }
            1..9 => {
                self.model.scope = TestScope::random(&mut self.random);
                let export = Arc::new(file(&self.model.scope).export);
                self.change(|run| {
                    let actions = run.publisher.set_scope(export);
                    run.act(actions);
                });
            }
            _ => {
                let change = self.model.world.change(&mut self.random, self.slices);
                self.change(|run| run.send(event(change)));
            }
        }
    }

    /// Makes a change of which the model knows, and compares.
    fn change(&mut self, change: impl FnOnce(&mut Self)) {
        let before = keys(&self.model.published);
        self.model.compute();
        self.lasting = before.intersection(&keys(&self.model.published)).cloned().collect();
        change(self);
        self.lasting.clear();
        self.compare();
    }

    fn send(&mut self, event: Event) {
        let actions = self.publisher.handle(event);
        self.act(actions);
    }

    fn act(&mut self, actions: Vec<Action>) {
        for action in actions {
            match action {
                Action::Upsert { scope, name, value } => {
                    let key = (scope, name.to_string());
                    if scope == Scope::Endpoints {
                        self.has_identity(&value);
                    }
                    self.declared.insert(key.clone());
                    self.store.insert(key, value);
                }
                Action::Delete { scope, name } => self.delete((scope, name.to_string())),
                Action::Complete(scope) => {
                    let is_stale = |key: &&(Scope, String)| key.0 == scope && !self.declared.contains(*key);
                    let stale: Vec<_> = self.store.keys().filter(is_stale).cloned().collect();
                    stale.into_iter().for_each(|key| self.delete(key));
                    assert!(self.synced.insert(scope), "{scope:?} twice");
                }
                Action::Warn { object, problem } => panic!("{object}: {problem}"),
            }
        }
        if let Some(counts) = self.publisher.counted() {
            self.counts = counts;
        }
    }

    fn delete(&mut self, key: (Scope, String)) {
        assert!(
            !self.lasting.contains(&key),
            "{key:?} is wanted before and after, and deleted"
        );
        if key.0 == Scope::Identities {
            let number: u32 = key.1.parse().unwrap();
            let still = self.model.published.others.contains(&key);
            let has = |value: &Bytes| serde_json::from_slice::<Value>(value).unwrap()["ID"] == number;
            let used = self
                .store
                .iter()
                .any(|((scope, _), value)| *scope == Scope::Endpoints && has(value));
            let exists = self
                .model
                .world
                .identities
                .get(&number)
                .is_some_and(|(ns, _)| self.model.world.is_global(ns));
            assert!(!(used && exists) || still, "{number} is deleted before its addresses");
        }
        self.declared.remove(&key);
        self.store.remove(&key);
    }

    /// Fails if an address is written before its identity, where the identity is exported.
    fn has_identity(&self, value: &Bytes) {
        let value: Value = serde_json::from_slice(value).unwrap();
        let key = (Scope::Identities, value["ID"].to_string());
        let is_wanted = self.model.published.others.contains(&key);
        assert!(
            !is_wanted || self.store.contains_key(&key),
            "{value} is written before its identity"
        );
    }

    /// Another process over the same store and cluster.
    fn restart(&mut self) {
        let addresses = self.store.keys().filter(|(scope, _)| *scope == Scope::Endpoints);
        let former: HashSet<Arc<str>> = addresses.map(|(_, name)| name.as_str().into()).collect();
        let export = Arc::new(file(&self.model.scope).export);
        self.publisher = Publisher::new(options(self.slices)).with_scope(export, former);
        self.declared.clear();
        self.synced.clear();
        let mut lists = self.lists();
        while !lists.is_empty() {
            let at = self.random.below(lists.len() as u64) as usize;
            let (kind, objects) = lists.swap_remove(at);
            for value in objects {
                self.send(object(value));
            }
            self.send(Event::Listed(kind));
        }
        assert_eq!(self.synced.len(), Scope::ALL.len());
    }

    /// All objects of the cluster, by kind.
    fn lists(&self) -> Vec<(Kind, Vec<Value>)> {
        let world = &self.model.world;
        let changes = world.namespaces.keys().map(|name| world.namespace_change(name));
        let changes = changes
            .chain(world.identities.keys().map(|number| world.identity_change(*number)))
            .chain(
                world
                    .endpoints
                    .keys()
                    .map(|name| world.endpoint_change(name, self.slices)),
            )
            .chain(world.services.keys().map(|name| world.service_change(name)))
            .chain(world.slices.keys().map(|name| world.slice_change(name)))
            .chain(world.exports.keys().map(|name| world.export_change(name)));
        let mut lists: BTreeMap<Kind, Vec<Value>> = Kind::ALL.iter().map(|kind| (*kind, vec![])).collect();
        for change in changes {
            let kind = Kind::of(change.kind, None).unwrap();
            lists.get_mut(&kind).unwrap().extend(change.object);
        }
        lists.into_iter().collect()
    }

    fn compare(&mut self) {
        let wanted = &self.model.published;
        let mut found = Published::default();
        for ((scope, name), value) in &self.store {
            if *scope != Scope::Endpoints {
                found.others.insert((*scope, name.clone()));
                continue;
            }
            let value: Value = serde_json::from_slice(value).unwrap();
            let pod = value["K8sPodName"].as_str().unwrap().to_owned();
            let identity = u32::try_from(value["ID"].as_u64().unwrap()).unwrap();
            found
                .addresses
                .insert(name.clone(), (pod, identity, value.get("SyncScope").is_some()));
        }
        assert_eq!(found, *wanted, "{:#?}\n{:#?}", self.model.world, self.model.scope);
    }

    /// The values are those of a publisher without a scope, and the counts are those of the keys.
    fn compare_values(&self) {
        let mut plain = Bench::before_lists(options(self.slices));
        for (kind, objects) in self.lists() {
            objects.into_iter().for_each(|value| plain.apply(value));
            plain.send(Event::Listed(kind));
        }
        for ((scope, name), value) in &self.store {
            let expected = &plain.keys[&(*scope, name.clone())];
            // Several pods can have an address.
            if *scope != Scope::Endpoints {
                assert_eq!(value, expected, "{scope:?} {name}");
            }
        }
        let (mut kept, mut all) = (BTreeMap::new(), BTreeMap::new());
        for (labels, tally) in self.counts.rows() {
            let label = |name: &str| labels.iter().find(|(l, _)| *l == name).unwrap().1.clone();
            *all.entry(label("kind")).or_insert(0) += tally.keys;
            if label("decision") != "left-out" {
                *kept.entry(label("kind")).or_insert(0) += tally.keys;
            }
        }
        for scope in Scope::ALL.into_iter().filter(|scope| *scope != Scope::Nodes) {
            let name = crate::scope::file::kind_name(scope);
            let of = |keys: &BTreeMap<(Scope, String), Bytes>| keys.keys().filter(|(s, _)| *s == scope).count() as u64;
            assert_eq!(all.get(name).copied().unwrap_or(0), of(&plain.keys), "{name}");
            assert!(kept.get(name).copied().unwrap_or(0) >= of(&self.store), "{name}");
        }
    }
}

fn event(change: Change) -> Event {
    let Change {
        kind,
        namespace,
        name,
        object,
    } = change;
    match object {
        Some(value) => super::object(value),
        None => {
            let kind = Kind::of(kind, None).unwrap();
            let (namespace, name) = (namespace.into(), name.into());
            Event::Delete(ObjectKey { kind, namespace, name })
        }
    }
}

#[test]
fn a_scoped_publisher_shows_what_the_model_computes_from_scratch() {
    for (seed, slices) in [(1, false), (2, false), (3, true)] {
        let mut run = Run::new(seed, slices);
        for step in 0..STEPS {
            run.step();
            if step % 50 == 0 {
                run.compare_values();
            }
        }
    }
}
