//! A random walk of objects, labels, namespaces, scope files and restarts: after each step, the store holds what the model
//! computes from scratch, and no step deletes a key that is wanted before and after it.

use super::scope_model::*;
use super::*;
use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;

const STEPS: usize = 2000;
const NAMESPACES: [&str; 4] = ["foo", "bar", "team-a", "team-b"];

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
                let export = Arc::new(self.model.scope.file().export);
                self.change(|run| {
                    let actions = run.publisher.set_scope(export);
                    run.act(actions);
                });
            }
            _ => {
                let event = self.event();
                self.change(|run| run.send(event));
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
        let export = Arc::new(self.model.scope.file().export);
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
        let mut lists: BTreeMap<Kind, Vec<Value>> = Kind::ALL.iter().map(|kind| (*kind, vec![])).collect();
        let mut add = |values: Vec<Value>| {
            for value in values {
                let kind = Kind::of(value["kind"].as_str().unwrap(), None).unwrap();
                lists.get_mut(&kind).unwrap().push(value);
            }
        };
        add(world.namespaces.keys().map(|name| self.namespace(name)).collect());
        add(world.identities.keys().map(|number| self.identity(*number)).collect());
        add(world.endpoints.keys().map(|name| self.endpoint(name)).collect());
        add(world.services.keys().map(|name| self.service(name)).collect());
        add(world.slices.keys().map(|name| self.slice(name)).collect());
        add(world.exports.keys().map(|name| self.export(name)).collect());
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

// === the objects ===

impl Run {
    fn name(&mut self, prefix: &str, count: u64) -> Name {
        let namespace = self.random.one_of(&NAMESPACES).to_owned();
        (namespace, format!("{prefix}{}", self.random.below(count)))
    }

    /// Changes the world, and returns the event of it.
    fn event(&mut self) -> Event {
        let is_deletion = self.random.chance(20);
        match self.random.below(100) {
            0..12 => self.change_namespace(is_deletion),
            12..25 => self.change_identity(is_deletion),
            25..65 => self.change_endpoint(is_deletion),
            65..78 => self.change_service(is_deletion),
            78..92 => self.change_slice(is_deletion),
            _ => self.change_export(is_deletion),
        }
    }

    fn change_namespace(&mut self, is_deletion: bool) -> Event {
        let name = self.random.one_of(&NAMESPACES).to_owned();
        if is_deletion && self.random.chance(50) {
            self.model.world.namespaces.remove(&name);
            return deleted(Kind::Namespace, "", &name);
        }
        let namespace = (self.random.chance(85), self.random.one_of(&["dev", "prod"]).to_owned());
        self.model.world.namespaces.insert(name.clone(), namespace);
        object(self.namespace(&name))
    }

    fn change_identity(&mut self, is_deletion: bool) -> Event {
        let number = 1000 + self.random.below(6) as u32;
        if is_deletion {
            self.model.world.identities.remove(&number);
            return deleted(Kind::Identity, "", &number.to_string());
        }
        // An identity that moves to a namespace that does not exist keeps its key until the namespace exists, which
        // cannot be computed from the objects.
        let before = self
            .model
            .world
            .identities
            .get(&number)
            .map(|(namespace, _)| namespace.clone());
        let namespace = before.unwrap_or_else(|| self.random.one_of(&NAMESPACES).to_owned());
        let app = self
            .random
            .chance(80)
            .then(|| self.random.one_of(&["a", "b", "c"]).to_owned());
        self.model.world.identities.insert(number, (namespace, app));
        object(self.identity(number))
    }

    fn change_endpoint(&mut self, is_deletion: bool) -> Event {
        let name = self.name("p", 5);
        if is_deletion {
            self.model.world.endpoints.remove(&name);
            return match self.slices {
                true => deleted(Kind::CiliumEndpointSlice, "", &slice_name(&name)),
                false => deleted(Kind::Endpoint, &name.0, &name.1),
            };
        }
        let pods = match self.slices {
            true => (0..self.random.below(4))
                .map(|n| self.pod(&format!("{}-{n}", name.1)))
                .collect(),
            false => vec![self.pod(&name.1)],
        };
        self.model.world.endpoints.insert(name.clone(), pods);
        object(self.endpoint(&name))
    }

    fn pod(&mut self, name: &str) -> Pod {
        let random = &mut self.random;
        let has_annotation = !self.slices && random.chance(20);
        Pod {
            name: name.to_owned(),
            ips: (0..random.below(3))
                .map(|_| format!("10.0.0.{}", random.below(12)))
                .collect(),
            identity: 1000 + random.below(7) as u32,
            sync: has_annotation.then(|| random.chance(50)),
            is_regional: !self.slices && random.chance(20),
        }
    }

    fn change_service(&mut self, is_deletion: bool) -> Event {
        let name = self.name("s", 3);
        if is_deletion {
            self.model.world.services.remove(&name);
            return deleted(Kind::Service, &name.0, &name.1);
        }
        let service = Service {
            is_global: self.random.chance(75),
            tier: self.random.one_of(&["x", "y", "z"]).to_owned(),
        };
        self.model.world.services.insert(name.clone(), service);
        object(self.service(&name))
    }

    fn change_slice(&mut self, is_deletion: bool) -> Event {
        let name = self.name("e", 4);
        if is_deletion {
            self.model.world.slices.remove(&name);
            return deleted(Kind::EndpointSlice, &name.0, &name.1);
        }
        let service = format!("s{}", self.random.below(3));
        let addresses = (0..self.random.below(4)).map(|_| format!("10.0.0.{}", self.random.below(12)));
        let slice = (service, addresses.collect());
        self.model.world.slices.insert(name.clone(), slice);
        object(self.slice(&name))
    }

    fn change_export(&mut self, is_deletion: bool) -> Event {
        let name = self.name("s", 3);
        if is_deletion {
            self.model.world.exports.remove(&name);
            return deleted(Kind::ServiceExport, &name.0, &name.1);
        }
        let tier = self.random.one_of(&["x", "y", "z"]).to_owned();
        self.model.world.exports.insert(name.clone(), tier);
        object(self.export(&name))
    }

    fn namespace(&self, name: &str) -> Value {
        let (is_global, env) = &self.model.world.namespaces[name];
        let mut value = namespace(name, Some(if *is_global { "true" } else { "false" }));
        value["metadata"]["labels"] = json!({"env": env});
        value
    }

    fn identity(&self, number: u32) -> Value {
        let (namespace, app) = &self.model.world.identities[&number];
        let mut labels = json!({"k8s:io.kubernetes.pod.namespace": namespace});
        if let Some(app) = app {
            labels["k8s:app"] = json!(app);
        }
        json!({"kind": "CiliumIdentity", "metadata": {"name": number.to_string()}, "security-labels": labels})
    }

    fn endpoint(&self, name: &Name) -> Value {
        let pods = &self.model.world.endpoints[name];
        let networking = |pod: &Pod| {
            let addressing: Vec<_> = pod.ips.iter().map(|ip| json!({"ipv4": ip})).collect();
            json!({"addressing": addressing, "node": "1.1.1.1"})
        };
        if self.slices {
            let endpoints: Vec<_> = pods
                .iter()
                .map(|pod| json!({"name": pod.name, "id": pod.identity, "networking": networking(pod)}))
                .collect();
            return json!({
                "kind": "CiliumEndpointSlice", "metadata": {"name": slice_name(name)},
                "namespace": name.0, "endpoints": endpoints,
            });
        }
        let pod = &pods[0];
        let mut annotations = json!({});
        if let Some(sync) = pod.sync {
            annotations["clustermesh.cilium.io/sync"] = json!(if sync { "true" } else { "False" });
        }
        if pod.is_regional {
            annotations["clustermesh.cilium.io/sync-scope"] = json!("regional");
        }
        json!({
            "kind": "CiliumEndpoint",
            "metadata": {"name": name.1, "namespace": name.0, "annotations": annotations},
            "status": {"identity": {"id": pod.identity}, "networking": networking(pod)},
        })
    }

    fn service(&self, name: &Name) -> Value {
        let service = &self.model.world.services[name];
        let annotations = if service.is_global {
            json!({"service.cilium.io/global": "true"})
        } else {
            json!({})
        };
        json!({
            "kind": "Service",
            "metadata": {
                "name": name.1, "namespace": name.0, "annotations": annotations, "labels": {"tier": service.tier},
            },
            "spec": {"clusterIP": "10.96.0.1", "ports": [{"name": "http", "port": 80, "protocol": "TCP"}]},
        })
    }

    fn slice(&self, name: &Name) -> Value {
        let (service, addresses) = &self.model.world.slices[name];
        // A backend that is not ready is one nevertheless.
        let endpoints: Vec<_> = addresses
            .iter()
            .enumerate()
            .map(|(at, ip)| json!({"addresses": [ip], "conditions": {"ready": at % 2 == 0, "serving": at % 2 == 0}}))
            .collect();
        json!({
            "kind": "EndpointSlice", "addressType": "IPv4",
            "metadata": {"name": name.1, "namespace": name.0, "labels": {"kubernetes.io/service-name": service}},
            "endpoints": endpoints, "ports": [{"name": "http", "port": 80}],
        })
    }

    fn export(&self, name: &Name) -> Value {
        let tier = &self.model.world.exports[name];
        json!({
            "kind": "ServiceExport",
            "metadata": {"name": name.1, "namespace": name.0, "labels": {"tier": tier}},
        })
    }
}

fn slice_name((namespace, name): &Name) -> String {
    format!("{namespace}-{name}")
}

fn deleted(kind: Kind, namespace: &str, name: &str) -> Event {
    let (namespace, name) = (namespace.into(), name.into());
    Event::Delete(ObjectKey { kind, namespace, name })
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
