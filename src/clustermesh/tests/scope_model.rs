//! A cluster, a scope, and the keys that follow from them, computed from scratch with loops and nothing else. The walk of the
//! publisher uses it, and that of whole processes (`tests/it/scope_walk.rs`).

use super::Scope;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};

pub(super) type Name = (String, String);

/// A random number generator; the same numbers for the same seed.
pub(super) struct Random(pub(super) u64);

impl Random {
    /// xorshift64*: a number below `limit`.
    pub(super) fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) % limit
    }

    pub(super) fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    pub(super) fn one_of<T: Clone>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len() as u64) as usize].clone()
    }

    /// Each of `choices` with a chance of one half, at least one.
    pub(super) fn some_of(&mut self, choices: &[&str]) -> Vec<String> {
        let mut some: Vec<String> = vec![];
        for choice in choices {
            if self.chance(50) {
                some.push((*choice).to_owned());
            }
        }
        match some.is_empty() {
            true => vec![self.one_of(choices).to_owned()],
            false => some,
        }
    }
}

#[derive(Clone, Debug)]
pub(super) struct Pod {
    pub(super) name: String,
    pub(super) ips: Vec<String>,
    pub(super) identity: u32,
    pub(super) sync: Option<bool>,
    pub(super) is_regional: bool,
}

#[derive(Clone, Debug)]
pub(super) struct Service {
    pub(super) is_global: bool,
    pub(super) tier: String,
}

/// All objects of a cluster.
#[derive(Clone, Debug, Default)]
pub(super) struct World {
    /// Name → whether it is global, and its label `env`.
    pub(super) namespaces: BTreeMap<String, (bool, String)>,
    /// Number → namespace, and label `app`.
    pub(super) identities: BTreeMap<u32, (String, Option<String>)>,
    /// Namespace of the pods, object → pods.
    pub(super) endpoints: BTreeMap<Name, Vec<Pod>>,
    pub(super) services: BTreeMap<Name, Service>,
    /// Slice → its service, and addresses.
    pub(super) slices: BTreeMap<Name, (String, Vec<String>)>,
    /// Export → its label `tier`.
    pub(super) exports: BTreeMap<Name, String>,
}

/// A rule with conditions that must all hold.
#[derive(Clone, Debug)]
pub(super) struct TestRule {
    pub(super) include: bool,
    pub(super) namespaces: Option<Vec<String>>,
    pub(super) env: Option<Vec<String>>,
    /// Values of the label `app`, and whether they are wanted; no values: whether the label exists.
    pub(super) app: Option<(Vec<String>, bool)>,
    pub(super) tier: Option<String>,
    pub(super) backends: Option<bool>,
}

#[derive(Clone, Debug, Default)]
pub(super) struct TestScope {
    /// Whether the default is to exclude, and the rules.
    pub(super) endpoints: (bool, Vec<TestRule>),
    pub(super) services: (bool, Vec<TestRule>),
    pub(super) exports: (bool, Vec<TestRule>),
    pub(super) used: bool,
}

/// What a list of rules says about a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    Keep,
    LeaveOut,
    /// The first rule that may hold asks for an identity that is not known.
    Open,
}

/// What is known of a key's object.
pub(super) struct Facts<'a> {
    pub(super) namespace: &'a str,
    pub(super) env: &'a str,
    /// The label `app` of the identity; `None` outside if the identity is not known.
    pub(super) app: Option<Option<&'a str>>,
    pub(super) tier: Option<&'a str>,
    pub(super) is_backend: bool,
}

impl TestRule {
    /// Whether all conditions hold but that on the identity.
    fn others_hold(&self, facts: &Facts<'_>) -> bool {
        let named = |patterns: &Vec<String>| {
            patterns.iter().any(|pattern| match pattern.strip_suffix('*') {
                Some(start) => facts.namespace.starts_with(start),
                None => facts.namespace == pattern,
            })
        };
        self.namespaces.as_ref().is_none_or(named)
            && self
                .env
                .as_ref()
                .is_none_or(|values| values.iter().any(|v| v == facts.env))
            && self.tier.as_deref().is_none_or(|tier| facts.tier == Some(tier))
            && self.backends.is_none_or(|backends| backends == facts.is_backend)
    }

    fn identity_holds(&self, app: Option<&str>) -> bool {
        match &self.app {
            None => true,
            Some((values, wanted)) if values.is_empty() => app.is_some() == *wanted,
            Some((values, wanted)) => app.is_some_and(|app| values.iter().any(|v| v == app)) == *wanted,
        }
    }
}

pub(super) fn decide((excludes, rules): &(bool, Vec<TestRule>), facts: &Facts<'_>) -> Outcome {
    for rule in rules {
        if !rule.others_hold(facts) {
            continue;
        }
        let holds = match (&rule.app, facts.app) {
            (Some(_), None) => return Outcome::Open,
            (_, app) => rule.identity_holds(app.flatten()),
        };
        if holds {
            return if rule.include { Outcome::Keep } else { Outcome::LeaveOut };
        }
    }
    if *excludes { Outcome::LeaveOut } else { Outcome::Keep }
}

// === impl TestScope ===

impl TestScope {
    pub(super) fn random(random: &mut Random) -> Self {
        let list = |random: &mut Random, kind: &str| {
            let rules = (0..random.below(4)).map(|_| TestRule::random(random, kind)).collect();
            (random.chance(40), rules)
        };
        Self {
            endpoints: list(random, "endpoints"),
            services: list(random, "objects"),
            exports: list(random, "objects"),
            used: random.chance(50),
        }
    }

    /// The file that says this.
    pub(super) fn file(&self) -> Value {
        let list = |(excludes, rules): &(bool, Vec<TestRule>)| {
            let rules: Vec<_> = rules.iter().enumerate().map(|(at, rule)| rule.json(at)).collect();
            json!({"default": if *excludes { "exclude" } else { "include" }, "rules": rules})
        };
        json!({
            "apiVersion": "scope.isthmus.io/v1", "kind": "Scope",
            "export": {
                "endpoints": list(&self.endpoints),
                "services": list(&self.services),
                "serviceExports": list(&self.exports),
                "identities": if self.used { "used" } else { "all" },
            },
        })
    }
}

impl TestRule {
    fn random(random: &mut Random, kind: &str) -> Self {
        let is_endpoint = kind == "endpoints";
        let mut rule = Self {
            include: random.chance(50),
            namespaces: random
                .chance(40)
                .then(|| random.some_of(&["foo", "bar", "team-*", "fo*"])),
            env: random.chance(30).then(|| random.some_of(&["dev", "prod"])),
            app: (is_endpoint && random.chance(50)).then(|| {
                let values = if random.chance(70) {
                    random.some_of(&["a", "b"])
                } else {
                    vec![]
                };
                (values, random.chance(60))
            }),
            tier: (!is_endpoint && random.chance(30)).then(|| random.one_of(&["x", "y"]).to_owned()),
            backends: (is_endpoint && random.chance(30)).then(|| random.chance(70)),
        };
        let has_condition = rule.namespaces.is_some() || rule.env.is_some() || rule.app.is_some();
        if !has_condition && rule.tier.is_none() && rule.backends.is_none() {
            rule.env = Some(vec!["dev".to_owned()]);
        }
        rule
    }

    pub(super) fn json(&self, at: usize) -> Value {
        let mut rule = json!({"name": format!("r{at}"), "action": if self.include { "include" } else { "exclude" }});
        if self.namespaces.is_some() || self.env.is_some() {
            rule["namespaces"] = json!({});
        }
        if let Some(names) = &self.namespaces {
            rule["namespaces"]["names"] = json!(names);
        }
        if let Some(values) = &self.env {
            let expression = json!({"key": "env", "operator": "In", "values": values});
            rule["namespaces"]["labels"] = json!({"matchExpressions": [expression]});
        }
        if let Some((values, wanted)) = &self.app {
            let operator = match (values.is_empty(), wanted) {
                (true, true) => "Exists",
                (true, false) => "DoesNotExist",
                (false, true) => "In",
                (false, false) => "NotIn",
            };
            // With a source and without one.
            let key = if self.include { "k8s:app" } else { "app" };
            let mut expression = json!({"key": key, "operator": operator});
            if !values.is_empty() {
                expression["values"] = json!(values);
            }
            rule["identity"] = json!({"matchExpressions": [expression]});
        }
        if let Some(tier) = &self.tier {
            rule["labels"] = json!({"matchLabels": {"tier": tier}});
        }
        if let Some(backends) = self.backends {
            rule["backendsOfGlobalServices"] = json!(backends);
        }
        rule
    }
}

// === impl World ===

/// What is published: addresses with the pod that owns each, and the names of the other keys.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Published {
    pub(super) addresses: BTreeMap<String, (String, u32, bool)>,
    pub(super) others: BTreeSet<(Scope, String)>,
}

/// The model: the objects, the scope, and what cannot be computed from them.
#[derive(Default)]
pub(super) struct Model {
    pub(super) world: World,
    pub(super) scope: TestScope,
    /// Address → the objects that claim it, in the order in which they began to.
    claims: BTreeMap<String, Vec<Name>>,
    pub(super) published: Published,
}

impl Model {
    /// Computes what must be published now.
    pub(super) fn compute(&mut self) {
        self.reclaim();
        let mut published = Published::default();
        let mut backends = BTreeSet::new();
        let world = &self.world;
        for (name, service) in &world.services {
            if !service.is_global || !self.is_kept(&self.scope.services, name, &service.tier) {
                continue;
            }
            published
                .others
                .insert((Scope::Services, format!("{}/{}", name.0, name.1)));
            for (slice, (_, addresses)) in world.slices_of(name) {
                published
                    .others
                    .insert((Scope::EndpointSlices, format!("{}/{}", slice.0, slice.1)));
                backends.extend(addresses.iter().cloned());
            }
        }
        for (name, tier) in &world.exports {
            if world.services.contains_key(name) && self.is_kept(&self.scope.exports, name, tier) {
                published
                    .others
                    .insert((Scope::ServiceExports, format!("{}/{}", name.0, name.1)));
            }
        }
        for (ip, objects) in &self.claims {
            let is_backend = backends.contains(ip);
            let outcomes = objects
                .iter()
                .map(|object| (object, self.outcome(object, ip, is_backend)));
            let outcomes: Vec<_> = outcomes.collect();
            let first = |wanted| {
                outcomes
                    .iter()
                    .find(|(_, outcome)| *outcome == wanted)
                    .map(|(object, _)| *object)
            };
            let is_there = self.published.addresses.contains_key(ip);
            let owner = first(Outcome::Keep).or_else(|| first(Outcome::Open).filter(|_| is_there));
            if let Some(object) = owner {
                let pod = self.world.pod(object, ip);
                published
                    .addresses
                    .insert(ip.clone(), (pod.name.clone(), pod.identity, pod.is_regional));
            }
        }
        for (number, (namespace, _)) in &self.world.identities {
            let is_used = || published.addresses.values().any(|(_, identity, _)| identity == number);
            if self.world.is_global(namespace) && (!self.scope.used || is_used()) {
                published.others.insert((Scope::Identities, number.to_string()));
            }
        }
        self.published = published;
    }

    /// Whether the key of an object is kept.
    fn is_kept(&self, rules: &(bool, Vec<TestRule>), (namespace, _): &Name, tier: &str) -> bool {
        let Some((true, env)) = self.world.namespaces.get(namespace) else {
            return false;
        };
        let facts = Facts {
            namespace,
            env,
            app: None,
            tier: Some(tier),
            is_backend: false,
        };
        decide(rules, &facts) == Outcome::Keep
    }

    fn outcome(&self, object: &Name, ip: &str, is_backend: bool) -> Outcome {
        let pod = self.world.pod(object, ip);
        let identity = self.world.identities.get(&pod.identity);
        let facts = Facts {
            namespace: &object.0,
            env: &self.world.namespaces[&object.0].1,
            app: identity.map(|(_, app)| app.as_deref()),
            tier: None,
            is_backend,
        };
        match pod.sync {
            Some(true) => Outcome::Keep,
            Some(false) => Outcome::LeaveOut,
            None => decide(&self.scope.endpoints, &facts),
        }
    }

    /// Forgets who claimed what first, as a restart does.
    pub(super) fn forget_order(&mut self) {
        self.claims.clear();
    }

    fn reclaim(&mut self) {
        let world = &self.world;
        let mut now: BTreeMap<&str, Vec<&Name>> = BTreeMap::new();
        for (object, pods) in &world.endpoints {
            let ips: BTreeSet<_> = pods.iter().flat_map(|pod| &pod.ips).collect();
            for ip in ips.into_iter().filter(|_| world.is_global(&object.0)) {
                now.entry(ip).or_default().push(object);
            }
        }
        for (ip, objects) in &mut self.claims {
            let present = now.get(&**ip);
            objects.retain(|object| present.is_some_and(|present| present.contains(&object)));
        }
        for (ip, objects) in now {
            let claims = self.claims.entry(ip.to_owned()).or_default();
            let new: Vec<Name> = objects
                .into_iter()
                .filter(|object| !claims.contains(object))
                .cloned()
                .collect();
            claims.extend(new);
        }
        self.claims.retain(|_, objects| !objects.is_empty());
    }
}

impl World {
    pub(super) fn is_global(&self, namespace: &str) -> bool {
        self.namespaces.get(namespace).is_some_and(|(is_global, _)| *is_global)
    }

    fn slices_of<'a>(&'a self, service: &'a Name) -> impl Iterator<Item = (&'a Name, &'a (String, Vec<String>))> {
        let of = move |(slice, (name, _)): &(&Name, &(String, Vec<String>))| slice.0 == service.0 && *name == service.1;
        self.slices.iter().filter(of)
    }

    /// The pod of an object that has this address; of several, the last one counts.
    fn pod(&self, object: &Name, ip: &str) -> &Pod {
        let mut pods = self.endpoints[object].iter().rev();
        pods.find(|pod| pod.ips.iter().any(|i| i == ip)).unwrap()
    }
}
