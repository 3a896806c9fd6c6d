//! A random walk: keys of the remote cluster, namespaces, scope edits, lists that break off, and restarts, beside a model that
//! computes from scratch what must be mirrored. No key that is wanted before and after a step may be deleted in between.

use super::model::{Knowledge, Random, Rules, Value, existing, key, region};
use super::*;
use std::collections::VecDeque;

/// The kinds whose keys change. Nodes have no rules.
const KINDS: [Scope; 5] = [
    Scope::Identities,
    Scope::Endpoints,
    Scope::Services,
    Scope::EndpointSlices,
    Scope::ServiceExports,
];

/// The task that reads one kind.
#[derive(Default)]
struct Task {
    /// The keys at the revision that the watch has reached.
    view: BTreeMap<String, Value>,
    /// Changes after that revision.
    events: VecDeque<(String, Option<Value>)>,
    is_off: bool,
    has_listed: bool,
}

struct Walk {
    random: Random,
    rules: Rules,
    existing: Option<Arc<BTreeSet<String>>>,
    published: Option<&'static str>,
    filter: Filter,
    tasks: BTreeMap<Scope, Task>,
    remote: BTreeMap<Scope, BTreeMap<String, Value>>,
    /// The keys of the mirror, each with the list during which it was written.
    mirror: BTreeMap<String, (String, u64)>,
    lists: u64,
    /// Keys that this step has deleted.
    deleted: BTreeSet<String>,
    version: usize,
}

impl Walk {
    fn new(seed: u64) -> Self {
        let mut random = Random(seed);
        let rules = Rules::random(&mut random);
        Self {
            filter: Filter::new(&hk(), rules.file(), None),
            random,
            rules,
            existing: None,
            published: None,
            tasks: KINDS.map(|kind| (kind, Task::default())).into(),
            remote: KINDS.map(|kind| (kind, BTreeMap::new())).into(),
            mirror: BTreeMap::new(),
            lists: 0,
            deleted: BTreeSet::new(),
            version: 0,
        }
    }

    fn act(&mut self, act: impl FnOnce(&mut Filter, Stored<'_>, &mut Vec<Write>)) {
        let mut out = vec![];
        let mirror = &self.mirror;
        let stored = |key: &[u8]| mirror.contains_key(std::str::from_utf8(key).unwrap());
        act(&mut self.filter, &stored, &mut out);
        self.filter.settle(&mut out);
        for write in out {
            match write {
                Write::Put(key, value) => {
                    self.mirror.insert(text(&key), (text(&value), self.lists));
                }
                Write::Delete(key) => self.delete_key(&text(&key)),
            }
        }
    }

    fn delete_key(&mut self, key: &str) {
        if self.mirror.remove(key).is_some() {
            self.deleted.insert(key.to_owned());
        }
    }

    /// What the writer does at the end of a list.
    fn end_list(&mut self, kind: Scope, list: u64) {
        let prefix = kind.cache_prefix(&hk());
        let is_gone =
            |(key, (_, at)): (&String, &(String, u64))| (key.starts_with(&prefix) && *at < list).then(|| key.clone());
        let gone: Vec<_> = self.mirror.iter().filter_map(is_gone).collect();
        gone.iter().for_each(|key| self.delete_key(key));
    }

    fn put(&mut self, kind: Scope, name: &str, value: &Value) {
        let (key, value) = (kind.cache_prefix(&hk()) + name, value.encoded());
        self.act(|filter, stored, out| filter.put(kind, key.into(), value.into(), stored, out));
    }

    // --- the tasks

    /// Lists a kind, or its first keys only.
    fn list(&mut self, kind: Scope, is_whole: bool) {
        self.lists += 1;
        let list = self.lists;
        self.filter.list_begun(kind);
        let all = self.remote[&kind].clone();
        let most = if is_whole { all.len() } else { all.len() / 2 };
        for (name, value) in all.iter().take(most) {
            self.put(kind, name, value);
        }
        let task = self.tasks.get_mut(&kind).unwrap();
        task.events.clear();
        task.has_listed = is_whole;
        task.view = all;
        if is_whole {
            self.act(|filter, _, out| filter.list_ended(kind, out));
            self.end_list(kind, list);
        }
    }

    /// Does what the filter asks of the task of one kind. Returns whether there was anything to do.
    fn run_task(&mut self, kind: Scope) -> bool {
        let is_queued = |kind: &Scope| self.tasks[kind].has_listed || self.tasks[kind].is_off;
        let may_list = self.filter.may_list(kind) && self.filter.needs(kind).iter().all(is_queued);
        let todo = self.filter.todo(kind);
        let task = self.tasks.get_mut(&kind).unwrap();
        let was_off = std::mem::replace(&mut task.is_off, todo == Todo::Off);
        match todo {
            Todo::Off if was_off => false,
            Todo::Off => {
                task.has_listed = false;
                self.lists += 1;
                self.end_list(kind, self.lists);
                self.act(|filter, _, out| filter.left_out(kind, out));
                true
            }
            _ if !task.has_listed && !may_list => false,
            todo if todo == Todo::List || !task.has_listed => {
                self.list(kind, true);
                true
            }
            Todo::Read(names) => {
                let values: Vec<_> = names
                    .iter()
                    .map(|name| {
                        let key = kind.cache_prefix(&hk()) + &text(name);
                        (key, task.view.get(&text(name)).map(Value::encoded))
                    })
                    .collect();
                self.act(|filter, _, out| {
                    for (key, value) in values {
                        filter.read(kind, key.into(), value.map(Into::into), out);
                    }
                });
                true
            }
            _ => false,
        }
    }

    fn run_tasks(&mut self) {
        let mut rounds = 0;
        loop {
            let first = self.random.below(KINDS.len());
            let kinds = KINDS.iter().cycle().skip(first).take(KINDS.len());
            let busy = kinds.copied().filter(|kind| self.run_task(*kind)).count();
            if busy == 0 {
                return;
            }
            rounds += 1;
            assert!(
                rounds < 50,
                "the tasks do not end: {:?}",
                KINDS.map(|kind| self.filter.todo(kind))
            );
        }
    }

    /// Delivers up to `most` changes of a kind in one message, of different keys.
    fn deliver(&mut self, kind: Scope, most: usize) {
        let task = self.tasks.get_mut(&kind).unwrap();
        let mut message = BTreeMap::new();
        while message.len() < most && task.events.front().is_some_and(|(name, _)| !message.contains_key(name)) {
            message.extend(task.events.pop_front());
        }
        for (name, value) in &message {
            match value {
                Some(value) => task.view.insert(name.clone(), value.clone()),
                None => task.view.remove(name),
            };
        }
        if task.is_off || !task.has_listed {
            return;
        }
        self.act(|filter, stored, out| {
            for (name, value) in message {
                let key = (kind.cache_prefix(&hk()) + &name).into();
                match value {
                    Some(value) => filter.put(kind, key, value.encoded().into(), stored, out),
                    None => filter.delete(kind, key, out),
                }
            }
        });
    }

    fn deliver_all(&mut self) {
        for kind in KINDS {
            while !self.tasks[&kind].events.is_empty() {
                self.deliver(kind, 1);
                self.run_tasks();
            }
        }
    }

    // --- the model

    fn knowledge(&self) -> Knowledge<'_> {
        let mut known = Knowledge {
            existing: self.existing.as_deref(),
            apps: BTreeMap::new(),
            backends: BTreeSet::new(),
            published: self.published,
        };
        for (name, value) in &self.tasks[&Scope::Identities].view {
            if let Value::Identity { app, .. } = value {
                known.apps.insert(name.parse().unwrap(), app);
            }
        }
        // The values of slices are compressed; those of the walk are not, and so have no backends.
        for (name, value) in &self.tasks[&Scope::Services].view {
            let is_here = self.mirror.contains_key(&(Scope::Services.cache_prefix(&hk()) + name));
            if let (Value::Object { backends, .. }, true) = (value, is_here) {
                known
                    .backends
                    .extend(backends.iter().filter(|name| *name != "strange").cloned());
            }
        }
        known
    }

    /// What must be mirrored, computed from scratch: keys with their values. A key whose decision is not known is mirrored
    /// if it was before the step.
    fn expected(&self, before: &BTreeSet<String>) -> BTreeMap<String, String> {
        let known = self.knowledge();
        let mut expected = BTreeMap::new();
        let mut used = BTreeSet::new();
        let mut keep = |kind: Scope, name: &str, value: &Value| {
            expected.insert(kind.cache_prefix(&hk()) + name, value.encoded());
        };
        for kind in KINDS {
            for (name, value) in &self.tasks[&kind].view {
                let verdict = match kind {
                    Scope::Identities => continue,
                    Scope::Endpoints => self.rules.endpoint(name, value, &known),
                    _ => self.rules.object(kind, name, &known),
                };
                let was_here = before.contains(&(kind.cache_prefix(&hk()) + name));
                if verdict.unwrap_or(was_here) {
                    keep(kind, name, value);
                    if let Value::Endpoint { identity, .. } = value {
                        used.insert(identity.to_string());
                    }
                }
            }
        }
        for (name, value) in &self.tasks[&Scope::Identities].view {
            let was_here = before.contains(&(Scope::Identities.cache_prefix(&hk()) + name));
            if self.rules.identity(used.contains(name), &known).unwrap_or(was_here) {
                keep(Scope::Identities, name, value);
            }
        }
        expected
    }

    fn check(&self, before: &BTreeSet<String>, what: &str) {
        let mirror: BTreeMap<_, _> = self
            .mirror
            .iter()
            .map(|(key, (value, _))| (key.clone(), value.clone()))
            .collect();
        let expected = self.expected(before);
        let keys = mirror.keys().chain(expected.keys());
        let wrong: BTreeSet<_> = keys.filter(|key| mirror.get(*key) != expected.get(*key)).collect();
        let of = |key: &String| format!("{key}: {:?}, must be {:?}", mirror.get(key), expected.get(key));
        let wrong: Vec<_> = wrong.into_iter().map(of).collect();
        assert!(
            wrong.is_empty(),
            "after {what}:\n{}\nrules: {:?}",
            wrong.join("\n"),
            self.rules
        );
        for kind in self.filter.report().into_iter().flat_map(|report| report.kinds) {
            let Some(task) = self.tasks.get(&kind.kind).filter(|_| !kind.is_off) else {
                continue;
            };
            let here = mirror
                .keys()
                .filter(|key| key.starts_with(&kind.kind.cache_prefix(&hk())));
            assert_eq!(kind.kept, here.count(), "after {what}: {kind:?}");
            assert_eq!(
                kind.kept + kind.left_out + kind.pending,
                task.view.len(),
                "after {what}: {kind:?}"
            );
            assert_eq!(
                kind.rules.values().sum::<usize>(),
                task.view.len(),
                "after {what}: {kind:?}"
            );
        }
    }

    // --- steps

    fn restart(&mut self) {
        self.filter = Filter::new(&hk(), self.rules.file(), None);
        self.tasks.values_mut().for_each(|task| {
            (task.has_listed, task.is_off) = (false, false);
        });
        self.existing = None;
        let published = self.published;
        self.act(|filter, _, out| filter.set_region(published, out));
    }

    fn remote_changes(&mut self) {
        let kind = self.random.of(&KINDS);
        self.version += 1;
        let (name, value) = key(&mut self.random, kind, self.version);
        let value = (!self.random.one_in(3)).then_some(value);
        let keys = self.remote.get_mut(&kind).unwrap();
        let is_change = match &value {
            Some(value) => keys.insert(name.clone(), value.clone()).as_ref() != Some(value),
            None => keys.remove(&name).is_some(),
        };
        if is_change {
            self.tasks.get_mut(&kind).unwrap().events.push_back((name, value));
        }
    }

    fn step(&mut self, dice: usize) -> String {
        match dice {
            0..8 => {
                self.remote_changes();
                "a change of the remote".to_owned()
            }
            8..14 => {
                let (kind, most) = (self.random.of(&KINDS), 1 + self.random.below(3));
                self.deliver(kind, most);
                format!("events of {kind:?}")
            }
            14 => {
                let kind = self.random.of(&KINDS);
                if self.filter.mode(kind) != Mode::Off && self.tasks[&kind].has_listed {
                    self.list(kind, false);
                }
                format!("a list of {kind:?} that breaks off")
            }
            15..18 => {
                self.rules = match self.random.one_in(4) {
                    true => Rules::random(&mut self.random),
                    false => self.rules.edited(&mut self.random),
                };
                let file = self.rules.file();
                self.act(|filter, _, out| filter.set_file(&file, out));
                "a scope edit".to_owned()
            }
            18 => {
                let new = existing(&mut self.random);
                self.existing = Some(Arc::clone(&new));
                self.act(|filter, _, out| filter.set_existing(Some(new), out));
                "a change of namespaces".to_owned()
            }
            19 => {
                let published = region(&mut self.random);
                self.published = published;
                self.act(|filter, _, out| filter.set_region(published, out));
                "a change of the region".to_owned()
            }
            _ => {
                self.restart();
                "a restart".to_owned()
            }
        }
    }

    fn run(&mut self, steps: usize) {
        self.run_tasks();
        for step in 0..steps {
            let dice = self.random.below(21);
            if dice > 14 {
                // What a list brings to the present beside the step would hide what the step does.
                self.deliver_all();
            }
            let before: BTreeSet<String> = self.mirror.keys().cloned().collect();
            let wanted = self.expected(&before);
            self.deleted.clear();
            let what = self.step(dice);
            self.run_tasks();
            let what = format!("step {step}, {what}");
            self.check(&before, &what);
            let after = self.expected(&before);
            let stayed = |key: &&String| wanted.contains_key(*key) && after.contains_key(*key);
            let flapped: Vec<_> = self.deleted.iter().filter(stayed).collect();
            assert!(
                flapped.is_empty(),
                "{what}: deleted and written again: {flapped:?}\n{:?}",
                self.rules
            );
        }
    }
}

#[test]
fn a_scoped_mirror_has_what_the_model_computes_from_scratch_and_deletes_no_key_that_stays_wanted() {
    let number = |name: &str, default| {
        let number = std::env::var(name).ok().and_then(|text| text.parse().ok());
        number.unwrap_or(default)
    };
    for seed in 1..=number("SEEDS", 3) {
        Walk::new(seed as u64).run(number("STEPS", 2000));
    }
}
