//! A remote cluster whose keys change at random, scope files at random, and a naive model of what is mirrored.

use crate::model::keys::Scope;
use crate::scope::file::{ScopeFile, kind_name};
use serde_json::{Value as Json, json};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// A generator of numbers that are the same for the same seed.
pub(super) struct Random(pub(super) u64);

impl Random {
    /// SplitMix64.
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `n`.
    pub(super) fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    /// True once in `n` times.
    pub(super) fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    pub(super) fn of<T: Copy>(&mut self, all: &[T]) -> T {
        all[self.below(all.len())]
    }

    fn some_of<T: Copy>(&mut self, all: &[T]) -> Vec<T> {
        all.iter().copied().filter(|_| self.one_in(2)).collect()
    }
}

pub(super) const NAMESPACES: [&str; 5] = ["shop", "batch-1", "batch-2", "team-a", ""];
const PATTERNS: [&str; 5] = ["shop", "batch-*", "*", "team-a", "*-2"];
const APPS: [&str; 3] = ["web", "db", "job"];
const REGIONS: [Option<&str>; 3] = [None, Some("apac"), Some("emea")];

/// The value of a key of the remote cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Value {
    Endpoint {
        namespace: &'static str,
        identity: u32,
        is_regional: bool,
        version: usize,
    },
    Identity {
        app: &'static str,
        version: usize,
    },
    Object {
        backends: Vec<String>,
        version: usize,
    },
}

impl Value {
    pub(super) fn encoded(&self) -> String {
        match self {
            Self::Endpoint {
                namespace,
                identity,
                is_regional,
                version,
            } => {
                let mut value = json!({"ID": identity, "K8sNamespace": namespace, "K8sPodName": version});
                if *is_regional {
                    value["SyncScope"] = json!("regional");
                }
                value.to_string()
            }
            Self::Identity { app, version } => format!("k8s:app={app};k8s:version={version};"),
            Self::Object { backends, version } => {
                let backends: BTreeMap<_, _> = backends.iter().map(|address| (address, json!({}))).collect();
                json!({"backends": backends, "version": version}).to_string()
            }
        }
    }
}

/// A key of one kind, and its value.
pub(super) fn key(random: &mut Random, kind: Scope, version: usize) -> (String, Value) {
    let address = |random: &mut Random| match random.below(12) {
        0 => "fd00::1".to_owned(),
        1 => "strange".to_owned(),
        n => format!("10.0.0.{n}"),
    };
    match kind {
        Scope::Endpoints => {
            let value = Value::Endpoint {
                namespace: random.of(&NAMESPACES),
                identity: random.of(&[1, 300, 301, 302, 303, 304]),
                is_regional: random.one_in(6),
                version,
            };
            (address(random), value)
        }
        Scope::Identities => {
            let app = random.of(&APPS);
            (
                random.of(&["300", "301", "302", "303", "304"]).to_owned(),
                Value::Identity { app, version },
            )
        }
        _ => {
            let backends = (0..random.below(4)).map(|_| address(random)).collect();
            let name = format!("{}/{}", random.of(&NAMESPACES[..4]), random.of(&["x", "y"]));
            (name, Value::Object { backends, version })
        }
    }
}

/// A rule of a scope file.
#[derive(Clone, Debug)]
struct Rule {
    is_include: bool,
    names: Option<Vec<&'static str>>,
    existing: Option<bool>,
    apps: Option<Vec<&'static str>>,
    backends: Option<bool>,
}

#[derive(Clone, Debug)]
struct List {
    is_include: bool,
    rules: Vec<Rule>,
}

/// A scope file with one entry.
#[derive(Clone, Debug)]
pub(super) struct Rules {
    own_region: Option<&'static str>,
    given_region: Option<&'static str>,
    /// Whether the entry is about the remote cluster.
    governs: bool,
    kinds: BTreeSet<Scope>,
    endpoints: List,
    of_used: bool,
    services: List,
    exports: List,
}

impl List {
    fn random(random: &mut Random, of_endpoints: bool) -> Self {
        let rules = (0..random.below(4)).map(|_| {
            let mut rule = Rule {
                is_include: random.one_in(2),
                names: random
                    .one_in(2)
                    .then(|| vec![random.of(&PATTERNS), random.of(&PATTERNS)]),
                existing: random.one_in(3).then(|| !random.one_in(4)),
                apps: (of_endpoints && random.one_in(3)).then(|| vec![random.of(&APPS), random.of(&APPS)]),
                backends: (of_endpoints && random.one_in(4)).then(|| !random.one_in(4)),
            };
            // A rule without a condition is a mistake.
            if rule.existing.is_none() && rule.apps.is_none() && rule.backends.is_none() {
                rule.names.get_or_insert_with(|| vec!["*"]);
            }
            rule
        });
        Self {
            rules: rules.collect(),
            is_include: random.one_in(2),
        }
    }

    fn json(&self) -> Json {
        let action = |is_include| if is_include { "include" } else { "exclude" };
        let rules = self.rules.iter().enumerate().map(|(at, rule)| {
            let mut json = json!({"name": format!("rule-{at}"), "action": action(rule.is_include)});
            let mut namespaces = json!({});
            if let Some(names) = &rule.names {
                let names: BTreeSet<_> = names.iter().collect();
                namespaces["names"] = json!(names);
            }
            if let Some(existing) = rule.existing {
                namespaces["existing"] = json!(existing);
            }
            if namespaces != json!({}) {
                json["namespaces"] = namespaces;
            }
            if let Some(apps) = &rule.apps {
                let apps: BTreeSet<_> = apps.iter().collect();
                json["identity"] = json!({"matchExpressions": [{"key": "k8s:app", "operator": "In", "values": apps}]});
            }
            if let Some(backends) = rule.backends {
                json["backendsOfServices"] = json!(backends);
            }
            json
        });
        json!({"default": action(self.is_include), "rules": rules.collect::<Vec<_>>()})
    }

    /// Whether the rules leave nothing to ask about a key.
    fn uniform(&self) -> Option<bool> {
        let is_uniform = self.rules.iter().all(|rule| rule.is_include == self.is_include);
        is_uniform.then_some(self.is_include)
    }
}

/// What is known when a decision is made.
pub(super) struct Knowledge<'a> {
    pub(super) existing: Option<&'a BTreeSet<String>>,
    /// The apps of the identities that are known.
    pub(super) apps: BTreeMap<u32, &'static str>,
    pub(super) backends: BTreeSet<String>,
    /// The region that the remote cluster gives itself.
    pub(super) published: Option<&'a str>,
}

impl Rules {
    pub(super) fn random(random: &mut Random) -> Self {
        let kinds = Scope::ALL.into_iter().filter(|_| !random.one_in(8));
        Self {
            kinds: kinds.collect(),
            own_region: random.of(&REGIONS),
            given_region: random.of(&REGIONS),
            governs: !random.one_in(8),
            endpoints: List::random(random, true),
            of_used: random.one_in(2),
            services: List::random(random, false),
            exports: List::random(random, false),
        }
    }

    /// The same with a small change.
    pub(super) fn edited(&self, random: &mut Random) -> Self {
        let mut new = self.clone();
        let other = Self::random(random);
        match random.below(8) {
            0 => new.kinds = other.kinds,
            1 => new.of_used = other.of_used,
            2 => new.services = other.services,
            3 => new.exports = other.exports,
            4 => (new.own_region, new.given_region) = (other.own_region, other.given_region),
            5 => new.endpoints.is_include = !new.endpoints.is_include,
            6 if !new.endpoints.rules.is_empty() => {
                let at = random.below(new.endpoints.rules.len());
                new.endpoints.rules.remove(at);
            }
            _ => new.endpoints = other.endpoints,
        }
        new
    }

    pub(super) fn file(&self) -> Arc<ScopeFile> {
        let clusters = if self.governs { "h*" } else { "tokyo" };
        let kinds: Vec<_> = self.kinds.iter().map(|kind| kind_name(*kind)).collect();
        let mut file = json!({
            "apiVersion": "scope.isthmus.io/v1", "kind": "Scope",
            "import": {"clusters": [{
                "name": "entry", "clusters": [clusters], "kinds": kinds,
                "endpoints": self.endpoints.json(),
                "identities": if self.of_used { "used" } else { "all" },
                "services": self.services.json(), "serviceExports": self.exports.json(),
            }]},
        });
        if kinds.is_empty() {
            // An entry without kinds is a mistake: this one wants nothing of the nodes either.
            file["import"]["clusters"][0]["kinds"] = json!(["nodes"]);
        }
        if let Some(region) = self.own_region {
            file["region"] = json!(region);
        }
        if let Some(region) = self.given_region {
            file["import"]["regions"] = json!({"hk": region});
        }
        Arc::new(ScopeFile::parse(file.to_string().as_bytes()).unwrap_or_else(|e| panic!("{e}: {file}")))
    }

    /// Whether the key of a service, slice or export is mirrored; `None` if that is not known.
    pub(super) fn object(&self, kind: Scope, name: &str, known: &Knowledge<'_>) -> Option<bool> {
        if !self.governs {
            return Some(true);
        }
        let list = match kind {
            Scope::ServiceExports => &self.exports,
            _ => &self.services,
        };
        if !self.kinds.contains(&kind) {
            return Some(false);
        }
        let namespace = name.split_once('/').map_or("", |(namespace, _)| namespace);
        decide(list, namespace, known, |_| Some(true))
    }

    /// Whether an endpoint is mirrored; `None` if that is not known.
    pub(super) fn endpoint(&self, name: &str, value: &Value, known: &Knowledge<'_>) -> Option<bool> {
        let Value::Endpoint {
            namespace,
            identity,
            is_regional,
            ..
        } = value
        else {
            panic!("{value:?}")
        };
        let region = known.published.or(self.given_region);
        if self.governs && (!self.kinds.contains(&Scope::Endpoints) || self.endpoints.uniform() == Some(false)) {
            return Some(false);
        }
        if *is_regional && self.own_region.is_some() && region.is_some() && region != self.own_region {
            return Some(false);
        }
        if !self.governs {
            return Some(true);
        }
        decide(&self.endpoints, namespace, known, |rule| {
            if rule
                .backends
                .is_some_and(|backends| backends != known.backends.contains(name))
            {
                return Some(false);
            }
            let Some(apps) = &rule.apps else { return Some(true) };
            match (identity, known.apps.get(identity)) {
                // The identity of hosts, which has no app.
                (1, _) => Some(false),
                (_, Some(app)) => Some(apps.contains(app)),
                (_, None) => None,
            }
        })
    }

    /// Whether an identity is mirrored, which mirrored endpoints use or not; `None` if that is not known.
    pub(super) fn identity(&self, is_used: bool, known: &Knowledge<'_>) -> Option<bool> {
        if !self.governs {
            return Some(true);
        }
        if !self.kinds.contains(&Scope::Identities) || !self.of_used || is_used {
            return Some(self.kinds.contains(&Scope::Identities));
        }
        let is_endpoint_known = !self.kinds.contains(&Scope::Endpoints)
            || self.endpoints.uniform().is_some()
            || known.existing.is_some()
            || self.endpoints.rules.iter().all(|rule| rule.existing.is_none());
        is_endpoint_known.then_some(false)
    }
}

/// The first rule that matches decides. `others` are the conditions that are not on the namespace.
fn decide(list: &List, namespace: &str, known: &Knowledge<'_>, others: impl Fn(&Rule) -> Option<bool>) -> Option<bool> {
    if let Some(uniform) = list.uniform() {
        return Some(uniform);
    }
    if known.existing.is_none() && list.rules.iter().any(|rule| rule.existing.is_some()) {
        return None;
    }
    let matches = |pattern: &str| match (pattern.strip_suffix('*'), pattern.strip_prefix('*')) {
        (Some(start), _) => namespace.starts_with(start),
        (None, Some(end)) => namespace.ends_with(end),
        (None, None) => namespace == pattern,
    };
    for rule in &list.rules {
        let names = rule
            .names
            .as_ref()
            .is_none_or(|names| names.iter().any(|pattern| matches(pattern)));
        let exists = known.existing.is_some_and(|all| all.contains(namespace));
        if names && rule.existing.is_none_or(|existing| existing == exists) && others(rule)? {
            return Some(rule.is_include);
        }
    }
    Some(list.is_include)
}

/// Namespaces of this cluster.
pub(super) fn existing(random: &mut Random) -> Arc<BTreeSet<String>> {
    Arc::new(random.some_of(&NAMESPACES).into_iter().map(str::to_owned).collect())
}

/// A region that a remote cluster gives itself.
pub(super) fn region(random: &mut Random) -> Option<&'static str> {
    random.of(&REGIONS)
}
