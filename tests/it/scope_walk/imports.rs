//! Import rules at random, and what a mirror with them must have of the keys of its source, computed from scratch.

use super::scope_model::{Facts, Outcome, Random, TestRule, decide};
use super::views::{Key, Keys};
use isthmus::model::keys::Scope;
use isthmus::model::slices;
use serde_json::{Value, json};
use std::collections::BTreeSet;

type List = (bool, Vec<TestRule>);

/// The import of a scope file, with one entry for all clusters.
#[derive(Clone, Debug)]
pub struct ImportScope {
    pub own_region: Option<&'static str>,
    endpoints: List,
    services: List,
    exports: List,
    used: bool,
}

/// The keys of the source, and its region.
#[derive(Clone, Copy)]
pub struct Source<'a> {
    pub keys: &'a Keys,
    pub region: Option<&'a str>,
}

/// What the value of an endpoint says.
struct Endpoint {
    namespace: String,
    identity: String,
    is_regional: bool,
}

/// A rule by namespaces.
pub fn named(include: bool, names: &[&str]) -> TestRule {
    TestRule {
        include,
        namespaces: Some(names.iter().map(|name| (*name).to_owned()).collect()),
        env: None,
        app: None,
        tier: None,
        backends: None,
    }
}

fn rule(random: &mut Random, is_endpoint: bool) -> TestRule {
    let names = random.some_of(&["foo", "bar", "team-*", "fo*"]);
    let mut rule = named(random.chance(50), &[]);
    rule.namespaces = random.chance(50).then_some(names);
    if is_endpoint {
        rule.app = random
            .chance(50)
            .then(|| (random.some_of(&["a", "b"]), random.chance(60)));
        rule.backends = random.chance(40).then(|| random.chance(70));
    }
    if rule.namespaces.is_none() && rule.app.is_none() && rule.backends.is_none() {
        rule.namespaces = Some(vec!["foo".to_owned()]);
    }
    rule
}

fn list(random: &mut Random, is_endpoint: bool) -> List {
    let rules = (0..random.below(4)).map(|_| rule(random, is_endpoint)).collect();
    (random.chance(40), rules)
}

fn list_json((excludes, rules): &List) -> Value {
    let rule = |(at, rule): (usize, &TestRule)| {
        let mut json = rule.json(at);
        if let Some(wanted) = json.as_object_mut().unwrap().remove("backendsOfGlobalServices") {
            json["backendsOfServices"] = wanted;
        }
        json
    };
    let rules: Vec<_> = rules.iter().enumerate().map(rule).collect();
    json!({"default": if *excludes { "exclude" } else { "include" }, "rules": rules})
}

/// The addresses that a service or slice names as backends.
fn backends((scope, _): &Key, value: &[u8]) -> BTreeSet<String> {
    match scope {
        Scope::Services => {
            let value: Value = serde_json::from_slice(value).unwrap();
            let backends = value["backends"].as_object().into_iter().flatten();
            backends.map(|(address, _)| address.clone()).collect()
        }
        Scope::EndpointSlices => {
            let endpoints = slices::decode(value).unwrap().endpoints.into_iter();
            endpoints.flat_map(|endpoint| endpoint.addresses).collect()
        }
        _ => BTreeSet::new(),
    }
}

fn endpoint(value: &[u8]) -> Endpoint {
    let value: Value = serde_json::from_slice(value).unwrap();
    Endpoint {
        namespace: value["K8sNamespace"].as_str().unwrap().to_owned(),
        identity: value["ID"].to_string(),
        is_regional: value["SyncScope"] == "regional",
    }
}

/// The label `app` of an identity; `None` outside if the identity is not known.
fn app<'a>(keys: &'a Keys, identity: &str) -> Option<Option<&'a str>> {
    let value = keys.get(&(Scope::Identities, identity.to_owned()))?;
    let mut labels = std::str::from_utf8(value).unwrap().split(';');
    Some(labels.find_map(|label| label.strip_prefix("k8s:app=")))
}

impl ImportScope {
    /// The rules in `first` come first in each list.
    pub fn random(random: &mut Random, first: &[TestRule]) -> Self {
        let mut scope = Self {
            own_region: random.one_of(&[None, Some("apac")]),
            endpoints: list(random, true),
            services: list(random, false),
            exports: list(random, false),
            used: random.chance(50),
        };
        for (_, rules) in [&mut scope.endpoints, &mut scope.services, &mut scope.exports] {
            rules.splice(0..0, first.iter().cloned());
        }
        scope
    }

    /// The scope file that says this.
    pub fn file(&self) -> Value {
        let entry = json!({
            "name": "all", "clusters": ["*"],
            "identities": if self.used { "used" } else { "all" },
            "endpoints": list_json(&self.endpoints),
            "services": list_json(&self.services),
            "serviceExports": list_json(&self.exports),
        });
        let mut file = json!({
            "apiVersion": "scope.isthmus.io/v1", "kind": "Scope", "import": {"clusters": [entry]},
        });
        if let Some(region) = self.own_region {
            file["region"] = json!(region);
        }
        file
    }

    /// Whether rules by namespace keep a key.
    fn keeps((scope, name): &Key, rules: &List) -> bool {
        let facts = Facts {
            namespace: name.split_once('/').unwrap_or_else(|| panic!("{scope:?} {name}")).0,
            env: "",
            app: None,
            tier: None,
            is_backend: false,
        };
        decide(rules, &facts) == Outcome::Keep
    }

    /// Whether the rules keep a service, a slice or an export; `None` for another key.
    fn object(&self, key: &Key) -> Option<bool> {
        match key.0 {
            Scope::Services | Scope::EndpointSlices => Some(Self::keeps(key, &self.services)),
            Scope::ServiceExports => Some(Self::keeps(key, &self.exports)),
            _ => None,
        }
    }

    fn endpoint(
        &self,
        endpoint: &Endpoint,
        region: Option<&str>,
        app: Option<Option<&str>>,
        is_backend: bool,
    ) -> Outcome {
        let is_elsewhere = matches!((self.own_region, region), (Some(own), Some(other)) if own != other);
        if endpoint.is_regional && is_elsewhere {
            return Outcome::LeaveOut;
        }
        let (excludes, rules) = &self.endpoints;
        // Nothing can leave an endpoint out, whatever its labels are.
        if !excludes && rules.iter().all(|rule| rule.include) {
            return Outcome::Keep;
        }
        let facts = Facts {
            namespace: &endpoint.namespace,
            env: "",
            app,
            tier: None,
            is_backend,
        };
        decide(&self.endpoints, &facts)
    }

    /// The keys with their values that must be mirrored. `present` are the keys that are, where nothing else decides.
    pub fn mirrored(&self, source: Source<'_>, present: &Keys) -> Keys {
        let mut mirrored = Keys::new();
        let mut all_backends = BTreeSet::new();
        for (key, value) in source.keys {
            if self.object(key) == Some(true) {
                all_backends.extend(backends(key, value));
                mirrored.insert(key.clone(), value.clone());
            }
        }
        let mut used = BTreeSet::new();
        for (key, value) in source.keys.iter().filter(|(key, _)| key.0 == Scope::Endpoints) {
            let endpoint = endpoint(value);
            let app = app(source.keys, &endpoint.identity);
            let is_kept = match self.endpoint(&endpoint, source.region, app, all_backends.contains(&key.1)) {
                Outcome::Keep => true,
                Outcome::LeaveOut => false,
                Outcome::Open => present.contains_key(key),
            };
            if is_kept {
                used.insert(endpoint.identity);
                mirrored.insert(key.clone(), value.clone());
            }
        }
        for (key, value) in source.keys.iter().filter(|(key, _)| key.0 == Scope::Identities) {
            if !self.used || used.contains(&key.1) {
                mirrored.insert(key.clone(), value.clone());
            }
        }
        mirrored
    }

    /// The keys of a mirror, which has these rules now, that must not be deleted while its source changes from `was` to
    /// `after`, in whatever order the kinds and the region arrive.
    pub fn lasting(&self, was: Source<'_>, after: Source<'_>, present: &Keys) -> BTreeSet<Key> {
        let before = was.keys;
        let stays = |key: &Key| before.contains_key(key) && after.keys.contains_key(key);
        let mut always_backends = BTreeSet::new();
        let mut ever_backends = BTreeSet::new();
        for (keys, others) in [(before, after.keys), (after.keys, before)] {
            for (key, value) in keys.iter().filter(|(key, _)| self.object(key) == Some(true)) {
                let here = backends(key, value);
                let there = others.get(key).map(|value| backends(key, value)).unwrap_or_default();
                always_backends.extend(here.intersection(&there).cloned());
                ever_backends.extend(here);
            }
        }
        let may_be_backend = |address: &String| -> &[bool] {
            match (always_backends.contains(address), ever_backends.contains(address)) {
                (true, _) => &[true],
                (false, false) => &[false],
                (false, true) => &[false, true],
            }
        };
        let mut lasting = BTreeSet::new();
        let mut used = BTreeSet::new();
        let endpoints = before.keys().filter(|key| key.0 == Scope::Endpoints && stays(key));
        for key in endpoints {
            let values = [before, after.keys].map(|keys| endpoint(&keys[key]));
            let mut outcomes = vec![];
            for value in &values {
                for (keys, region) in [was, after]
                    .iter()
                    .flat_map(|s| [(s.keys, was.region), (s.keys, after.region)])
                {
                    let app = app(keys, &value.identity);
                    let is_backend = may_be_backend(&key.1).iter();
                    outcomes.extend(is_backend.map(|is_backend| self.endpoint(value, region, app, *is_backend)));
                }
            }
            let is_present = present.contains_key(key);
            let keeps = |outcome: &Outcome| match outcome {
                Outcome::Keep => true,
                Outcome::LeaveOut => false,
                Outcome::Open => is_present,
            };
            if outcomes.iter().all(keeps) {
                lasting.insert(key.clone());
                if values[0].identity == values[1].identity {
                    used.insert(values[0].identity.clone());
                }
            }
        }
        for key in before.keys().filter(|key| stays(key)) {
            let is_lasting = match key.0 {
                Scope::Identities => !self.used || used.contains(&key.1),
                _ => self.object(key) == Some(true),
            };
            if is_lasting {
                lasting.insert(key.clone());
            }
        }
        lasting.retain(|key| present.contains_key(key));
        lasting
    }
}
