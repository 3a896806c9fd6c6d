//! A directory of manifests as the source of objects: YAML or JSON, read again when it changes.
//!
//! One bad document costs nobody else anything: it is named, and what its file published before stays
//! until the file is right again.

use super::events::Event;
use super::types::{Kind, Object, ObjectKey};
use notify::{RecursiveMode, Watcher};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::sync::mpsc;

/// The directory is looked at this often even if no change was noticed.
const RESCAN: Duration = Duration::from_secs(5);
/// Changes come in groups: wait for the end of one.
const SETTLE: Duration = Duration::from_millis(20);

/// Why a directory cannot be a source.
#[derive(Debug, thiserror::Error)]
#[error("cannot read the manifest directory {}: {source}", path.display())]
pub struct Error {
    /// The directory.
    path: PathBuf,
    source: std::io::Error,
}

/// What was last said, and the files it came from.
#[derive(Default)]
struct Manifests {
    /// Path → hash of its content and the documents in it.
    files: BTreeMap<PathBuf, File>,
    /// What is published: object → hash of its content, and its file.
    said: HashMap<ObjectKey, (u64, PathBuf)>,
    /// Warnings already given.
    warned: BTreeSet<String>,
}

struct File {
    hash: u64,
    /// Documents that are objects of ours.
    objects: Vec<(ObjectKey, Value)>,
    /// Documents that could not be read.
    errors: Vec<String>,
}

/// Follows `directory`, for ever. The first look must succeed; says [`Event::Listed`] for `kinds` after
/// it.
pub async fn follow(directory: PathBuf, kinds: Vec<Kind>, events: mpsc::Sender<Event>) -> Result<(), Error> {
    let (changed, mut changes) = mpsc::channel(1);
    let noticed = move |_: notify::Result<notify::Event>| {
        // Full is as good as sent.
        let _ = changed.try_send(());
    };
    let mut watcher = notify::recommended_watcher(noticed)
        .inspect_err(|error| tracing::warn!(%error, "changes of manifests are noticed by polling only"))
        .ok();
    let mut manifests = Manifests::default();
    let mut first = true;
    loop {
        if first
            && let Some(watcher) = &mut watcher
            && let Err(error) = watcher.watch(&directory, RecursiveMode::Recursive)
        {
            tracing::warn!(%error, "changes of manifests are noticed by polling only");
        }
        let (path, known) = (directory.clone(), manifests);
        let read = tokio::task::spawn_blocking(move || known.scan(&path)).await;
        let (after, scanned) = read.expect("scanning does not panic");
        manifests = after;
        match scanned {
            Err(source) if first => {
                return Err(Error {
                    path: directory,
                    source,
                });
            }
            Err(error) => {
                tracing::error!(directory = %directory.display(), %error, "cannot read the manifests: nothing changes")
            }
            Ok(list) => {
                for event in list.into_iter().filter(|e| wanted(e, &kinds)) {
                    if events.send(event).await.is_err() {
                        return Ok(());
                    }
                }
            }
        }
        if std::mem::take(&mut first) {
            for kind in &kinds {
                if events.send(Event::Listed(*kind)).await.is_err() {
                    return Ok(());
                }
            }
        }
        tokio::select! {
            Some(()) = changes.recv() => tokio::time::sleep(SETTLE).await,
            () = tokio::time::sleep(RESCAN) => {}
        }
        while changes.try_recv().is_ok() {}
    }
}

fn wanted(event: &Event, kinds: &[Kind]) -> bool {
    match event {
        Event::Apply(object) => kinds.contains(&object.kind()),
        Event::Delete(key) => kinds.contains(&key.kind),
        Event::Listed(_) => true,
    }
}

impl Manifests {
    /// Reads what changed in `directory`; returns the events that follow.
    fn scan(mut self, directory: &Path) -> (Self, std::io::Result<Vec<Event>>) {
        let mut paths = vec![];
        if let Err(error) = walk(directory, &mut paths) {
            return (self, Err(error));
        }
        paths.sort();
        self.files.retain(|path, _| paths.contains(path));
        for path in paths {
            match std::fs::read_to_string(&path) {
                Ok(text) => self.read(path, &text),
                Err(error) => self.warn(format!("cannot read {}: {error}", path.display())),
            }
        }
        let events = self.events();
        (self, Ok(events))
    }

    fn warn(&mut self, text: String) {
        if self.warned.insert(text.clone()) {
            tracing::warn!("{text}");
        }
    }

    fn read(&mut self, path: PathBuf, text: &str) {
        let hash = hash(&text);
        if self.files.get(&path).is_some_and(|f| f.hash == hash) {
            return;
        }
        let mut file = File {
            hash,
            objects: vec![],
            errors: vec![],
        };
        for (line, document) in documents(text) {
            match serde_saphyr::from_str::<Value>(&document) {
                Ok(value) => add(&mut file, value, line),
                Err(error) => file
                    .errors
                    .push(format!("the document at line {line} does not parse: {error}")),
            }
        }
        // A file that changed may be wrong again in the same words.
        let prefix = format!("{}: ", path.display());
        self.warned.retain(|w| !w.starts_with(&prefix));
        for error in file.errors.clone() {
            self.warn(format!("{prefix}{error}"));
        }
        self.files.insert(path, file);
    }

    /// What has to be said so that everything in the files has been said.
    fn events(&mut self) -> Vec<Event> {
        let mut desired: BTreeMap<ObjectKey, (&Value, &PathBuf)> = BTreeMap::new();
        let mut problems = vec![];
        for (path, file) in &self.files {
            for (key, value) in &file.objects {
                if let Some((_, first)) = desired.get(key) {
                    problems.push(format!(
                        "{}: {key} is also in {}, which counts",
                        path.display(),
                        first.display()
                    ));
                    continue;
                }
                desired.insert(key.clone(), (value, path));
            }
        }
        let mut events = vec![];
        let mut said = HashMap::new();
        for (key, (value, path)) in &desired {
            let hash = hash(&value.to_string());
            let before = self.said.remove(key);
            if before.as_ref().is_some_and(|(h, _)| *h == hash) {
                said.insert(key.clone(), (hash, (*path).clone()));
                continue;
            }
            match key.kind.parse((*value).clone()) {
                Ok(object) => {
                    events.push(Event::Apply(Box::new(object)));
                    said.insert(key.clone(), (hash, (*path).clone()));
                }
                Err(error) => {
                    problems.push(format!("{}: {key} is not valid: {error}", path.display()));
                    // What was published of it before stays.
                    if let Some(before) = before {
                        said.insert(key.clone(), before);
                    }
                }
            }
        }
        for (key, (hash, path)) in self.said.drain() {
            let broken = self.files.get(&path).is_some_and(|f| !f.errors.is_empty());
            match broken {
                true => drop(said.insert(key, (hash, path))),
                false => events.push(Event::Delete(key)),
            }
        }
        self.said = said;
        for problem in problems {
            self.warn(problem);
        }
        self.implied_namespaces(&mut events);
        events
    }

    /// A namespace that objects name exists, whether it has a manifest or not.
    fn implied_namespaces(&mut self, events: &mut Vec<Event>) {
        let named: BTreeSet<String> = events
            .iter()
            .filter_map(|event| match event {
                Event::Apply(object) => namespace_of(object),
                Event::Delete(_) | Event::Listed(_) => None,
            })
            .collect();
        for name in named {
            let key = ObjectKey {
                kind: Kind::Namespace,
                namespace: String::new(),
                name,
            };
            if !self.said.contains_key(&key) {
                let value = serde_json::json!({"metadata": {"name": key.name}});
                let object = Kind::Namespace.parse(value).expect("a name is all it needs");
                events.insert(0, Event::Apply(Box::new(object)));
            }
        }
    }
}

/// The namespace that decides whether an object is exported.
fn namespace_of(object: &Object) -> Option<String> {
    let namespace = match object {
        Object::Identity(i) => i.security_labels.get("k8s:io.kubernetes.pod.namespace").cloned(),
        Object::CiliumEndpointSlice(s) => Some(s.namespace.clone()),
        other => other.meta().namespace.clone(),
    };
    namespace.filter(|n| !n.is_empty())
}

/// Adds a document, or what a list of them holds.
fn add(file: &mut File, value: Value, line: usize) {
    let items = match &value {
        Value::Array(items) => Some(items.clone()),
        Value::Null => return,
        _ => value
            .get("items")
            .filter(|_| is_list(&value))
            .and_then(Value::as_array)
            .cloned(),
    };
    if let Some(items) = items {
        return items.into_iter().for_each(|item| add(file, item, line));
    }
    let text = |pointer: &str| value.pointer(pointer).and_then(Value::as_str).map(str::to_owned);
    let Some(kind) = text("/kind") else {
        file.errors.push(format!("the document at line {line} has no kind"));
        return;
    };
    // Other kinds are somebody else's business.
    let Some(kind) = Kind::of(&kind, text("/apiVersion").as_deref()) else {
        return;
    };
    let Some(name) = text("/metadata/name").filter(|n| !n.is_empty()) else {
        file.errors
            .push(format!("the {} at line {line} has no name", kind.name()));
        return;
    };
    let namespace = text("/metadata/namespace").unwrap_or_default();
    file.objects.push((ObjectKey { kind, namespace, name }, value));
}

fn is_list(value: &Value) -> bool {
    value
        .get("kind")
        .and_then(Value::as_str)
        .is_some_and(|k| k.ends_with("List"))
}

/// The documents of a YAML stream, each with its first line's number. Cut by hand, so that one that does
/// not parse leaves the others alone.
fn documents(text: &str) -> Vec<(usize, String)> {
    let mut documents = vec![(1, String::new())];
    for (at, line) in text.lines().enumerate() {
        if line == "---" || line.starts_with("--- ") {
            documents.push((at + 2, String::new()));
        } else if let Some((_, document)) = documents.last_mut() {
            document.push_str(line);
            document.push('\n');
        }
    }
    let is_blank = |d: &str| {
        d.lines()
            .all(|l| l.trim().is_empty() || l.trim_start().starts_with('#'))
    };
    documents.retain(|(_, d)| !is_blank(d));
    documents
}

fn walk(directory: &Path, out: &mut Vec<PathBuf>) -> std::io::Result<()> {
    for entry in std::fs::read_dir(directory)? {
        let path = entry?.path();
        let hidden = path.file_name().is_some_and(|n| n.to_string_lossy().starts_with('.'));
        let manifest = path
            .extension()
            .is_some_and(|e| ["yaml", "yml", "json"].iter().any(|m| e == *m));
        // Follows symlinks: a mounted ConfigMap is made of them.
        match std::fs::metadata(&path) {
            Ok(_) if hidden => {}
            Ok(meta) if meta.is_dir() => walk(&path, out)?,
            Ok(meta) if meta.is_file() && manifest => out.push(path),
            _ => {}
        }
    }
    Ok(())
}

fn hash(text: &(impl Hash + ?Sized)) -> u64 {
    let mut hasher = DefaultHasher::new();
    text.hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Dir(tempfile::TempDir, Option<Manifests>);

    impl Dir {
        fn new() -> Self {
            Self(tempfile::tempdir().unwrap(), Some(Manifests::default()))
        }

        fn write(&self, name: &str, text: &str) {
            std::fs::write(self.0.path().join(name), text).unwrap();
        }

        fn scan(&mut self) -> Vec<String> {
            let (after, events) = self.1.take().unwrap().scan(self.0.path());
            self.1 = Some(after);
            let text = |e: Event| match e {
                Event::Apply(o) => format!("+{}", o.key()),
                Event::Delete(k) => format!("-{k}"),
                Event::Listed(_) => unreachable!(),
            };
            events.unwrap().into_iter().map(text).collect()
        }

        fn warned(&self, part: &str) -> bool {
            self.1.as_ref().unwrap().warned.iter().any(|w| w.contains(part))
        }
    }

    fn node(name: &str) -> String {
        format!("apiVersion: cilium.io/v2\nkind: CiliumNode\nmetadata:\n  name: {name}\n")
    }

    #[test]
    fn objects_come_go_and_change_with_their_files() {
        let mut dir = Dir::new();
        dir.write("a.yaml", &format!("{}---\n{}", node("n1"), node("n2")));
        dir.write("ignored.txt", &node("n9"));
        assert_eq!(dir.scan(), ["+CiliumNode n1", "+CiliumNode n2"]);
        assert_eq!(dir.scan(), Vec::<String>::new());
        dir.write("a.yaml", &format!("{}spec: {{bootid: x}}\n", node("n1")));
        assert_eq!(dir.scan(), ["+CiliumNode n1", "-CiliumNode n2"]);
        std::fs::remove_file(dir.0.path().join("a.yaml")).unwrap();
        assert_eq!(dir.scan(), ["-CiliumNode n1"]);
    }

    #[test]
    fn a_document_that_does_not_parse_is_named_and_loses_nothing() {
        let mut dir = Dir::new();
        dir.write("a.yaml", &format!("{}---\n{}", node("n1"), node("n2")));
        dir.scan();
        dir.write(
            "a.yaml",
            &format!("{}---\nkind: [broken\n---\n{}", node("n1"), node("n3")),
        );
        assert_eq!(dir.scan(), ["+CiliumNode n3"]);
        assert!(dir.warned("a.yaml: the document at line 6 does not parse"));
        dir.write("a.yaml", &node("n1"));
        let mut gone = dir.scan();
        gone.sort();
        assert_eq!(gone, ["-CiliumNode n2", "-CiliumNode n3"]);
        assert!(!dir.warned("does not parse"));
    }

    #[test]
    fn an_object_of_the_wrong_shape_keeps_what_it_was() {
        let mut dir = Dir::new();
        dir.write("a.yaml", &node("n1"));
        dir.scan();
        dir.write("a.yaml", &format!("{}spec: {{addresses: 5}}\n", node("n1")));
        assert_eq!(dir.scan(), Vec::<String>::new());
        assert!(dir.warned("a.yaml: CiliumNode n1 is not valid"));
    }

    #[test]
    fn of_an_object_in_two_files_the_first_counts_and_both_are_named() {
        let mut dir = Dir::new();
        dir.write("a.yaml", &node("n1"));
        dir.write("b.yaml", &node("n1"));
        assert_eq!(dir.scan(), ["+CiliumNode n1"]);
        assert!(dir.warned("b.yaml: CiliumNode n1 is also in"));
        std::fs::remove_file(dir.0.path().join("a.yaml")).unwrap();
        assert_eq!(
            dir.scan(),
            Vec::<String>::new(),
            "the same content from another file is no change"
        );
    }

    #[test]
    fn lists_and_json_are_read_and_namespaces_are_implied() {
        let mut dir = Dir::new();
        dir.write(
            "a.json",
            r#"{"kind":"List","items":[{"kind":"Service","metadata":{"name":"s","namespace":"ns"}}]}"#,
        );
        dir.write(
            "b.yaml",
            "kind: Deployment\nmetadata: {name: d}\n---\nmetadata: {name: x}\n---\nkind: Service\n",
        );
        assert_eq!(dir.scan(), ["+Namespace ns", "+Service ns/s"]);
        assert!(dir.warned("line 4 has no kind") && dir.warned("the Service at line 6 has no name"));
    }
}
