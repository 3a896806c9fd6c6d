//! Proves that what a cluster shows, and what others take of it, is at any time what both scope files say about the present
//! objects, and that no watcher sees a key deleted that is wanted before and after: a long random walk of objects, labels,
//! namespaces, annotations, regions, edits of both scope files, and restarts of the publisher and of the mirrors, beside a
//! naive model that computes the keys from scratch.
//!
//! `SEEDS=3 STEPS=2000 cargo test --test it scope_walk` is the long walk, and `SEED=2` begins with another one.

mod imports;
mod processes;
#[path = "../../src/clustermesh/tests/scope_model.rs"]
mod scope_model;
#[path = "../../src/clustermesh/tests/scope_world.rs"]
mod scope_world;
mod views;

use crate::support::PATIENCE;
use imports::{ImportScope, Source, named};
use isthmus::model::keys::Scope;
use processes::{End, Processes};
use scope_model::{Model, Pod, Published, Random, Service, TestScope};
use scope_world::Change;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use tokio::sync::watch;
use tokio::time::timeout;
use views::{Key, Keys, View, Views};

/// Namespaces of objects that show how far the processes are: after a change of an object, an object of the same kind there
/// changes, and after an edit of a file, the file says something else about one of the last two.
const MARKED: [&str; 3] = ["zz", "zy", "zx"];
const EXPORT_MARK: &str = "zx";
const IMPORT_MARK: &str = "zw";
const MARK_IDENTITY: u32 = 1999;

/// What was there before a step.
struct Before {
    source: Keys,
    whole: Keys,
    scoped: Keys,
    region: Option<&'static str>,
}

struct Walk {
    random: Random,
    model: Model,
    region: Option<&'static str>,
    export_turn: bool,
    import: ImportScope,
    import_turn: bool,
    processes: Processes,
    views: watch::Receiver<Views>,
    /// The keys of the source that were wanted throughout the present step.
    lasting: BTreeSet<Key>,
    /// The number of deletions in each view that were looked at.
    looked: [usize; 3],
}

fn keys(published: &Published) -> BTreeSet<Key> {
    let addresses = published.addresses.keys().map(|ip| (Scope::Endpoints, ip.clone()));
    addresses.chain(published.others.iter().cloned()).collect()
}

/// What the store of the publisher shows, as the model says it.
fn published(keys: &Keys) -> Published {
    let mut published = Published::default();
    for ((scope, name), value) in keys {
        if *scope != Scope::Endpoints {
            published.others.insert((*scope, name.clone()));
            continue;
        }
        let value: Value = serde_json::from_slice(value).unwrap();
        let pod = value["K8sPodName"].as_str().unwrap().to_owned();
        let identity = u32::try_from(value["ID"].as_u64().unwrap()).unwrap();
        let is_regional = value.get("SyncScope").is_some();
        published.addresses.insert(name.clone(), (pod, identity, is_regional));
    }
    published
}

/// The keys that only one of both has, or with another value, and their last values in the source and here.
fn differences(source: &View, view: &View, wanted: &Keys) -> String {
    let found = &view.keys;
    let all: BTreeSet<_> = found.keys().chain(wanted.keys()).collect();
    let differing = all.into_iter().filter(|key| found.get(*key) != wanted.get(*key));
    let text = |keys: &Keys, key: &Key| keys.get(key).map(|value| String::from_utf8_lossy(value).into_owned());
    let lines = differing.map(|key| {
        format!(
            "{key:?}: {:?}, must be {:?}; in the source {:#?}, here {:#?}\n",
            text(found, key),
            text(wanted, key),
            source.history(key),
            view.history(key)
        )
    });
    lines.collect()
}

impl Walk {
    async fn start(seed: u64) -> Self {
        let mut random = Random(seed);
        let mut model = Model::default();
        model.scope = TestScope::random(&mut random);
        let import = ImportScope::random(&mut random, &import_marks(true));
        mark_scope(&mut model.scope, true);
        let (sender, views) = watch::channel(Views::default());
        let processes = Box::pin(Processes::start(&model.scope.file(), &import.file(), &sender)).await;
        let mut walk = Self {
            random,
            model,
            region: None,
            export_turn: true,
            import,
            import_turn: true,
            processes,
            views,
            lasting: BTreeSet::new(),
            looked: [0; 3],
        };
        walk.begin().await;
        walk
    }

    /// Creates the objects that do not change at random.
    async fn begin(&mut self) {
        let before = self.before();
        let mut changes = vec![];
        let world = &mut self.model.world;
        for namespace in MARKED.into_iter().chain([IMPORT_MARK]) {
            world.namespaces.insert(namespace.to_owned(), (true, "none".to_owned()));
            changes.push(world.namespace_change(namespace));
            let service = (namespace.to_owned(), "m".to_owned());
            world.services.insert(service.clone(), mark_service());
            changes.push(world.service_change(&service));
        }
        let user = ("zz".to_owned(), "user".to_owned());
        world.endpoints.insert(user.clone(), vec![mark_pod("user", "10.9.0.2")]);
        changes.push(world.endpoint_change(&user, false));
        for change in changes {
            self.apply(change);
        }
        self.compute();
        self.settle(&before, "the start").await;
    }

    fn before(&mut self) -> Before {
        self.lasting = keys(&self.model.published);
        let views = self.views.borrow();
        Before {
            source: views.source.keys.clone(),
            whole: views.whole.keys.clone(),
            scoped: views.scoped.keys.clone(),
            region: self.region,
        }
    }

    /// Computes what must be published now.
    fn compute(&mut self) {
        self.model.compute();
        let now = keys(&self.model.published);
        self.lasting.retain(|key| now.contains(key));
    }

    fn apply(&mut self, change: Change) {
        let Change {
            kind,
            namespace,
            name,
            object,
        } = change;
        self.processes.apply(kind, &namespace, &name, object);
    }

    // --- steps

    async fn step(&mut self, step: usize) {
        let before = self.before();
        let what = match (step % 20, self.random.below(100)) {
            (7, _) => self.restart_publisher().await,
            (17, _) => self.restart_mirror().await,
            (_, 0..9) => self.edit_export(),
            (_, 9..15) => self.edit_import(),
            _ => self.change(),
        };
        self.settle(&before, &format!("step {step}, {what}")).await;
    }

    /// Changes an object, and then one of its kind that shows when the change was noticed.
    fn change(&mut self) -> String {
        let kind = self.change_unmarked();
        let mark = self.mark(kind);
        self.apply(mark);
        self.compute();
        format!("a change of a {kind}")
    }

    fn change_unmarked(&mut self) -> &'static str {
        let change = self.model.world.change(&mut self.random, false);
        let kind = change.kind;
        self.apply(change);
        self.compute();
        kind
    }

    fn mark(&mut self, kind: &str) -> Change {
        let world = &mut self.model.world;
        let name = |name: &str| ("zz".to_owned(), name.to_owned());
        match kind {
            "Namespace" => {
                let (is_global, _) = world.namespaces.get_mut("zy").unwrap();
                *is_global = !*is_global;
                world.namespace_change("zy")
            }
            "CiliumIdentity" => {
                if world.identities.remove(&MARK_IDENTITY).is_none() {
                    world.identities.insert(MARK_IDENTITY, ("zz".to_owned(), None));
                }
                world.identity_change(MARK_IDENTITY)
            }
            "CiliumEndpoint" => {
                let name = name("turn");
                if world.endpoints.remove(&name).is_none() {
                    world.endpoints.insert(name.clone(), vec![mark_pod("turn", "10.9.0.1")]);
                }
                world.endpoint_change(&name, false)
            }
            "Service" => {
                let name = name("turn");
                if world.services.remove(&name).is_none() {
                    world.services.insert(name.clone(), mark_service());
                }
                world.service_change(&name)
            }
            "EndpointSlice" => {
                let name = name("turn");
                if world.slices.remove(&name).is_none() {
                    world.slices.insert(name.clone(), ("m".to_owned(), vec![]));
                }
                world.slice_change(&name)
            }
            _ => {
                let name = name("m");
                if world.exports.remove(&name).is_none() {
                    world.exports.insert(name.clone(), "x".to_owned());
                }
                world.export_change(&name)
            }
        }
    }

    fn edit_export(&mut self) -> String {
        self.export_turn = !self.export_turn;
        self.model.scope = TestScope::random(&mut self.random);
        mark_scope(&mut self.model.scope, self.export_turn);
        if self.random.chance(25) {
            self.region = self.random.one_of(&[None, Some("apac"), Some("emea")]);
        }
        let mut file = self.model.scope.file();
        if let Some(region) = self.region {
            file["region"] = json!(region);
        }
        self.processes.write_export(&file);
        self.compute();
        "an edit of the export".to_owned()
    }

    fn edit_import(&mut self) -> String {
        self.import_turn = !self.import_turn;
        self.import = ImportScope::random(&mut self.random, &import_marks(self.import_turn));
        self.processes.write_import(&self.import.file());
        "an edit of the import".to_owned()
    }

    fn end(&mut self) -> End {
        self.random.one_of(&[End::Kill, End::Stop])
    }

    /// Ends the publisher just after a change, and starts it after some more.
    async fn restart_publisher(&mut self) -> String {
        let end = self.end();
        self.change_unmarked();
        self.processes.end_publisher(end).await;
        // What is there stays where nothing decides; the publisher may or may not have noticed the change.
        let addresses = self.processes.addresses().await.into_iter();
        self.model.published.addresses = addresses.map(|ip| (ip, Default::default())).collect();
        for _ in 0..self.random.below(4) {
            let change = self.model.world.change(&mut self.random, false);
            self.apply(change);
        }
        self.model.forget_order();
        match self.random.chance(30) {
            true => {
                self.edit_export();
            }
            false => self.compute(),
        }
        self.processes.start_publisher().await;
        format!("{end:?} of the publisher")
    }

    /// Ends a mirror, and starts it after something may have changed.
    async fn restart_mirror(&mut self) -> String {
        let (end, at) = (self.end(), self.random.below(2) as usize);
        self.processes.end_mirror(at, end).await;
        let mut what = match self.random.below(4) {
            0 => String::new(),
            1 => self.edit_export(),
            _ => self.change(),
        };
        if at == 1 && self.random.chance(30) {
            what = format!("{what} {}", self.edit_import());
        }
        self.source_settles(&what).await;
        self.processes.start_mirror(at).await;
        format!("{end:?} of mirror {at} with {what}")
    }

    // --- comparisons

    /// Waits until the publisher has written what the model says.
    async fn source_settles(&mut self, what: &str) {
        let wanted = self.model.published.clone();
        let mut views = self.views.clone();
        let reached = views.wait_for(|views| published(&views.source.keys) == wanted);
        if !matches!(timeout(PATIENCE, reached).await, Ok(Ok(_))) {
            let found = published(&self.views.borrow().source.keys);
            panic!(
                "after {what}:\nfound {found:#?}\nwanted {wanted:#?}\n{:#?}\n{:#?}\n{}",
                self.model.world,
                self.model.scope,
                self.processes.logs()
            );
        }
    }

    /// Waits until all stores have what the model says, and looks at the deletions until then.
    async fn settle(&mut self, before: &Before, what: &str) {
        self.source_settles(what).await;
        self.processes.knows_region(self.region).await;
        let (import, region) = (self.import.clone(), self.region);
        let agrees = |views: &Views| {
            let source = &views.source.keys;
            views.whole.keys == *source && views.scoped.keys == scoped(&import, region, before, views)
        };
        let mut views = self.views.clone();
        if !matches!(timeout(PATIENCE, views.wait_for(agrees)).await, Ok(Ok(_))) {
            let views = self.views.borrow().clone();
            panic!(
                "after {what}:\nmirror without a scope: {}\nmirror with a scope: {}\n{import:#?}\nregion {region:?}\nsource {:#?}\n{}",
                differences(&views.source, &views.whole, &views.source.keys),
                differences(&views.source, &views.scoped, &scoped(&import, region, before, &views)),
                published(&views.source.keys),
                self.processes.logs()
            );
        }
        self.no_lasting_key_was_deleted(before, what);
    }

    fn no_lasting_key_was_deleted(&mut self, before: &Before, what: &str) {
        let views = self.views.borrow();
        let present = |keys: &Keys| {
            self.lasting
                .iter()
                .filter(|key| keys.contains_key(*key))
                .cloned()
                .collect()
        };
        let source = Source {
            keys: &views.source.keys,
            region: self.region,
        };
        let was = Source {
            keys: &before.source,
            region: before.region,
        };
        let lasting: [BTreeSet<Key>; 3] = [
            present(&before.source),
            present(&before.whole),
            self.import.lasting(was, source, &before.scoped),
        ];
        let of: [&View; 3] = [&views.source, &views.whole, &views.scoped];
        for (at, (view, lasting)) in of.into_iter().zip(&lasting).enumerate() {
            let new = &view.deleted[self.looked[at]..];
            let wrong: Vec<_> = new.iter().filter(|key| lasting.contains(*key)).collect();
            assert!(
                wrong.is_empty(),
                "{what}: store {at} deleted {wrong:?}, which were wanted before and after\n{:#?}\n{:#?}\n{}",
                self.model.scope,
                self.import,
                self.processes.logs()
            );
            self.looked[at] = view.deleted.len();
        }
    }
}

/// What the mirror with a scope must have. Where nothing decides, what was there stays; if several kinds have changed, it
/// depends on their order whether something was there.
fn scoped(import: &ImportScope, region: Option<&str>, before: &Before, views: &Views) -> Keys {
    let keys = &views.source.keys;
    let of = |keys: &'_ Keys, scope: Scope| -> Keys {
        let of_kind = keys.iter().filter(|((s, _), _)| *s == scope);
        of_kind.map(|(key, value)| (key.clone(), value.clone())).collect()
    };
    let has_changed = |scope: &&Scope| of(keys, **scope) != of(&before.source, **scope);
    let present = match Scope::ALL.iter().filter(has_changed).count() {
        0 | 1 => &before.scoped,
        _ => &views.scoped.keys,
    };
    import.mirrored(Source { keys, region }, present)
}

fn mark_pod(name: &str, ip: &str) -> Pod {
    Pod {
        name: name.to_owned(),
        ips: vec![ip.to_owned()],
        identity: MARK_IDENTITY,
        sync: None,
        is_regional: false,
    }
}

fn mark_service() -> Service {
    Service {
        is_global: true,
        tier: "x".to_owned(),
    }
}

/// Adds the rules that show which of the files is in force.
fn mark_scope(scope: &mut TestScope, turn: bool) {
    let first = [named(turn, &[EXPORT_MARK]), named(true, &["zz", "zy", IMPORT_MARK])];
    for (_, rules) in [&mut scope.endpoints, &mut scope.services, &mut scope.exports] {
        rules.splice(0..0, first.iter().cloned());
    }
}

fn import_marks(turn: bool) -> [scope_model::TestRule; 2] {
    [named(turn, &[IMPORT_MARK]), named(true, &MARKED)]
}

#[tokio::test]
async fn export_and_import_rules_hold_at_any_time_and_delete_no_key_that_stays_wanted() {
    let number = |name: &str, default| {
        let number = std::env::var(name).ok().and_then(|text| text.parse().ok());
        number.unwrap_or(default)
    };
    let (steps, first) = (number("STEPS", 60), number("SEED", 1));
    for seed in first..first + number("SEEDS", 1) {
        let mut walk = Box::pin(Walk::start(seed as u64)).await;
        for step in 0..steps {
            walk.step(step).await;
        }
        let views = walk.views.borrow();
        let deletions = [&views.source, &views.whole, &views.scoped].map(|view| view.deleted.len());
        eprintln!("seed {seed}: {steps} steps; deletions in the three stores: {deletions:?}");
    }
}
