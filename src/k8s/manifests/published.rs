//! The objects of all manifests, and the events that bring a reader from the published state to the contents of the
//! files. Pure: no files.

use super::documents::{Documents, Manifest};
use crate::k8s::events::Event;
use crate::k8s::types::{Kind, ObjectKey};
use crate::util::follow_dir::{File, FileChange};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};

/// The documents of all files, and the objects that have been published from them.
#[derive(Default)]
pub(super) struct Manifests {
    files: BTreeMap<PathBuf, Documents>,
    published: HashMap<ObjectKey, Published>,
    /// Namespaces that objects name and no manifest declares. They are published without annotations.
    implied: BTreeSet<String>,
    /// Warnings already given.
    warned: BTreeSet<String>,
    /// Kinds that are not published and that a warning has named.
    ignored: BTreeSet<String>,
}

/// The state of an object when it was last published.
struct Published {
    hash: u64,
    file: PathBuf,
}

/// The object that counts, if several files contain it.
struct Desired<'a> {
    value: &'a Value,
    file: &'a PathBuf,
}

impl Manifests {
    /// Takes over changed files; returns the events that follow from them.
    pub(super) fn update(&mut self, changes: Vec<FileChange>) -> Vec<Event> {
        for change in changes {
            match change {
                FileChange::Content(file) => self.read(file),
                FileChange::Removed(path) => drop(self.files.remove(&path)),
                FileChange::Unreadable { path, error } => tracing::warn!("cannot read {}: {error}", path.display()),
                FileChange::ReadableAgain(_) => {}
            }
        }
        self.events()
    }

    /// The number of published objects of a kind.
    pub(super) fn count(&self, kind: Kind) -> usize {
        self.published.keys().filter(|key| key.kind == kind).count()
    }

    #[cfg(test)]
    pub(super) fn ignored_kinds(&self) -> Vec<&str> {
        self.ignored.iter().map(String::as_str).collect()
    }

    #[cfg(test)]
    pub(super) fn has_warned(&self, part: &str) -> bool {
        self.warned.iter().any(|warning| warning.contains(part))
    }

    fn warn(&mut self, text: String) {
        if self.warned.insert(text.clone()) {
            tracing::warn!("{text}");
        }
    }

    /// Warns once of each kind.
    fn warn_of_kind(&mut self, kind: &str, file: &Path) {
        if self.ignored.insert(kind.to_owned()) {
            let published: Vec<_> = Kind::ALL.iter().map(|kind| kind.name()).collect();
            tracing::warn!(
                kind, file = %file.display(), published = published.join(", "),
                "manifests of this kind are not published"
            );
        }
    }

    /// Replaces the documents of a file. A file that is not text keeps the documents that it had.
    fn read(&mut self, file: File) {
        let File {
            path,
            content,
            modified,
        } = file;
        let Ok(text) = String::from_utf8(content) else {
            tracing::warn!("cannot read {}: stream did not contain valid UTF-8", path.display());
            return;
        };
        let documents = Documents::parse(&text, modified);
        // The changed file may contain the same mistake again, which is then worth another warning.
        let prefix = format!("{}: ", path.display());
        self.warned.retain(|warning| !warning.starts_with(&prefix));
        for kind in &documents.ignored {
            self.warn_of_kind(kind, &path);
        }
        for error in &documents.errors {
            self.warn(format!("{prefix}{error}"));
        }
        self.files.insert(path, documents);
    }

    /// The events that publish everything in the files, and delete everything else.
    fn events(&mut self) -> Vec<Event> {
        let mut problems = vec![];
        let desired = desired(&self.files, &mut problems);
        let mut events = vec![];
        let mut published = HashMap::new();
        for (key, Desired { value, file }) in desired {
            let hash = hash(value);
            let file = file.clone();
            let before = self.published.remove(&key);
            if before.as_ref().is_some_and(|before| before.hash == hash) {
                published.insert(key, Published { hash, file });
                continue;
            }
            match key.kind.parse(value.clone()) {
                Ok(object) => {
                    events.push(Event::Apply(key.clone(), Box::new(object)));
                    published.insert(key, Published { hash, file });
                }
                Err(error) => {
                    problems.push(format!("{}: {key} is not valid: {error}", file.display()));
                    // The version that was published before stays.
                    if let Some(before) = before {
                        published.insert(key, before);
                    }
                }
            }
        }
        for (key, before) in self.published.drain() {
            match has_errors(&self.files, &before.file) {
                true => drop(published.insert(key, before)),
                false => events.push(Event::Delete(key)),
            }
        }
        self.published = published;
        for problem in problems {
            self.warn(problem);
        }
        self.add_implied_namespaces(&mut events);
        events
    }

    /// A namespace that an object names exists even without a manifest of its own. The namespace is applied before the
    /// objects, and applied again, instead of deleted, when its manifest is removed.
    fn add_implied_namespaces(&mut self, events: &mut Vec<Event>) {
        let objects = self.files.values().flat_map(|file| &file.objects);
        let named: BTreeSet<String> = objects.filter_map(Manifest::namespace).collect();
        let is_declared = |name: &str| self.published.contains_key(&namespace_key(name));
        let implied: BTreeSet<String> = named.into_iter().filter(|name| !is_declared(name)).collect();
        let deleted: BTreeSet<String> = events.iter().filter_map(deleted_namespace).collect();
        events.retain(|event| deleted_namespace(event).is_none_or(|name| !implied.contains(&name)));
        for name in &implied {
            if !self.implied.contains(name) || deleted.contains(name) {
                let value = serde_json::json!({"metadata": {"name": name}});
                let object = Kind::Namespace.parse(value).expect("a namespace needs only a name");
                events.insert(0, Event::Apply(object.key(), Box::new(object)));
            }
        }
        let gone = self.implied.difference(&implied).filter(|name| !is_declared(name));
        events.extend(gone.map(|name| Event::Delete(namespace_key(name))));
        self.implied = implied;
    }
}

/// The objects of all files. Of an object in two files, the file that is first by name counts.
fn desired<'a>(
    files: &'a BTreeMap<PathBuf, Documents>,
    problems: &mut Vec<String>,
) -> BTreeMap<ObjectKey, Desired<'a>> {
    let mut desired: BTreeMap<ObjectKey, Desired<'_>> = BTreeMap::new();
    for (path, file) in files {
        for Manifest { key, value } in &file.objects {
            match desired.get(key) {
                Some(first) => problems.push(format!(
                    "{}: {key} is also in {}, which counts",
                    path.display(),
                    first.file.display()
                )),
                None => drop(desired.insert(key.clone(), Desired { value, file: path })),
            }
        }
    }
    desired
}

/// Whether a file contains documents that cannot be read, which may be the objects that are missing.
fn has_errors(files: &BTreeMap<PathBuf, Documents>, path: &Path) -> bool {
    files.get(path).is_some_and(|file| !file.errors.is_empty())
}

fn namespace_key(name: &str) -> ObjectKey {
    ObjectKey {
        kind: Kind::Namespace,
        namespace: "".into(),
        name: name.into(),
    }
}

fn deleted_namespace(event: &Event) -> Option<String> {
    match event {
        Event::Delete(key) if key.kind == Kind::Namespace => Some(key.name.to_string()),
        _ => None,
    }
}

fn hash(value: &Value) -> u64 {
    let mut hasher = DefaultHasher::new();
    value.to_string().hash(&mut hasher);
    hasher.finish()
}
