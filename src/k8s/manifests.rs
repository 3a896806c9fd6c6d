//! A directory of manifests as the source of objects: YAML or JSON, read again when it changes.
//!
//! One bad document costs nobody else anything: it is named, and what its file published before stays
//! until the file is right again.

use super::events::{Event, Received};
use super::status::Status;
use super::types::{Kind, ObjectKey};
use crate::util::files::{SETTLE, is_change, is_settled};
use notify::{RecursiveMode, Watcher};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::sync::mpsc;

/// The directory is looked at this often even if no change was noticed.
const RESCAN: Duration = Duration::from_secs(5);

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
    /// Namespaces that objects name and no manifest declares.
    implied: BTreeSet<String>,
    /// Whether a file was being written when it was looked at.
    unsettled: bool,
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
pub async fn follow(
    directory: PathBuf,
    kinds: Vec<Kind>,
    events: mpsc::Sender<Received>,
    status: &Status,
) -> Result<(), Error> {
    let (changed, mut changes) = mpsc::channel(1);
    let noticed = move |event: notify::Result<notify::Event>| {
        if !is_change(&event) {
            return;
        }
        // Full is as good as sent.
        let _ = changed.try_send(());
    };
    let mut watcher = notify::recommended_watcher(noticed)
        .inspect_err(|error| tracing::warn!(%error, "changes of manifests are noticed by polling only"))
        .ok();
    let mut manifests = Manifests::default();
    let mut first = true;
    if let Some(watcher) = &mut watcher
        && let Err(error) = watcher.watch(&directory, RecursiveMode::Recursive)
    {
        tracing::warn!(%error, "changes of manifests are noticed by polling only");
    }
    loop {
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
                    status.happened(&event);
                    if events.send(event.into()).await.is_err() {
                        return Ok(());
                    }
                }
                for kind in &kinds {
                    let count = manifests.said.keys().filter(|key| key.kind == *kind).count();
                    status.counted(*kind, count);
                }
            }
        }
        if manifests.unsettled {
            tokio::time::sleep(SETTLE).await;
            continue;
        }
        if std::mem::take(&mut first) {
            for kind in &kinds {
                let listed = Event::Listed(*kind);
                status.happened(&listed);
                if events.send(listed.into()).await.is_err() {
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

/// The events of one manifest, as if it were the only one in its directory. Documents that are not valid
/// are left out.
pub fn parse(text: &str) -> Vec<Event> {
    let mut manifests = Manifests::default();
    manifests.read(PathBuf::from("manifest"), text, "2006-01-02T15:04:05Z");
    manifests.events()
}

fn wanted(event: &Event, kinds: &[Kind]) -> bool {
    match event {
        Event::Apply(key, _) => kinds.contains(&key.kind),
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
        self.unsettled = false;
        for path in paths {
            if !is_settled(&path) {
                self.unsettled = true;
                continue;
            }
            match std::fs::read_to_string(&path) {
                Ok(text) => {
                    let modified = modified(&path);
                    self.read(path, &text, &modified);
                }
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

    fn read(&mut self, path: PathBuf, text: &str, modified: &str) {
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
                Ok(value) => add(&mut file, value, line, modified),
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
                    events.push(Event::Apply(key.clone(), Box::new(object)));
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

    /// A namespace that objects name exists, whether it has a manifest or not: said before the objects, and
    /// again in place of a manifest's end.
    fn implied_namespaces(&mut self, events: &mut Vec<Event>) {
        let named: BTreeSet<String> = self
            .files
            .values()
            .flat_map(|f| &f.objects)
            .filter_map(namespace_of)
            .collect();
        let key = |name: &String| ObjectKey {
            kind: Kind::Namespace,
            namespace: "".into(),
            name: (&**name).into(),
        };
        let wanted: BTreeSet<String> = named.into_iter().filter(|n| !self.said.contains_key(&key(n))).collect();
        let ended = |event: &Event| matches!(event, Event::Delete(k) if k.kind == Kind::Namespace);
        let deleted: BTreeSet<String> = events
            .iter()
            .filter(|e| ended(e))
            .filter_map(|e| match e {
                Event::Delete(key) => Some(key.name.to_string()),
                _ => None,
            })
            .collect();
        events.retain(|e| !matches!(e, Event::Delete(k) if ended(e) && wanted.contains(&*k.name)));
        for name in wanted
            .iter()
            .filter(|n| !self.implied.contains(*n) || deleted.contains(*n))
        {
            let value = serde_json::json!({"metadata": {"name": name}});
            let object = Kind::Namespace.parse(value).expect("a name is all it needs");
            events.insert(0, Event::Apply(object.key(), Box::new(object)));
        }
        let gone: Vec<_> = self
            .implied
            .difference(&wanted)
            .filter(|n| !self.said.contains_key(&key(n)))
            .collect();
        events.extend(gone.into_iter().map(|n| Event::Delete(key(n))));
        self.implied = wanted;
    }
}

/// The namespace that decides whether an object is exported.
fn namespace_of((key, value): &(ObjectKey, Value)) -> Option<String> {
    let text = |pointer: &str| value.pointer(pointer).and_then(Value::as_str).map(str::to_owned);
    let namespace = match key.kind {
        Kind::Identity => text("/security-labels/k8s:io.kubernetes.pod.namespace"),
        Kind::CiliumEndpointSlice => text("/namespace"),
        _ => Some(key.namespace.to_string()),
    };
    namespace.filter(|n| !n.is_empty())
}

/// Fills in what an API server would, since readers count on it.
fn set_defaults(kind: Kind, value: &mut Value, modified: &str) {
    let namespaced = [Kind::Endpoint, Kind::Service, Kind::EndpointSlice, Kind::ServiceExport].contains(&kind);
    let default = |object: &mut Value, field: &str, default: Value| {
        if let Some(map) = object.as_object_mut() {
            let empty = map.get(field).is_none_or(|v| v.is_null() || v == "");
            if empty {
                map.insert(field.to_owned(), default);
            }
        }
    };
    if namespaced {
        default(&mut value["metadata"], "namespace", "default".into());
    }
    match kind {
        Kind::Service => {
            let Some(spec) = value.get_mut("spec").filter(|s| s.is_object()) else {
                return;
            };
            default(spec, "sessionAffinity", "None".into());
            if spec["type"] != "ExternalName" && spec["clusterIPs"].as_array().is_none_or(Vec::is_empty) {
                // Nobody hands out addresses here, so a service without one is headless.
                default(spec, "clusterIP", "None".into());
            }
            for port in spec
                .get_mut("ports")
                .and_then(Value::as_array_mut)
                .into_iter()
                .flatten()
            {
                default(port, "protocol", "TCP".into());
            }
        }
        Kind::ServiceExport => default(&mut value["metadata"], "creationTimestamp", modified.into()),
        _ => {}
    }
}

/// Adds a document, or what a list of them holds.
fn add(file: &mut File, mut value: Value, line: usize, modified: &str) {
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
        return items.into_iter().for_each(|item| add(file, item, line, modified));
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
    set_defaults(kind, &mut value, modified);
    let namespace = value
        .pointer("/metadata/namespace")
        .and_then(Value::as_str)
        .unwrap_or_default()
        .to_owned();
    let (namespace, name) = (namespace.into(), name.into());
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

/// When a file was last changed, as Kubernetes writes times.
fn modified(path: &Path) -> String {
    let time = std::fs::metadata(path).and_then(|m| m.modified()).ok();
    let time = time.and_then(|t| jiff::Timestamp::try_from(t).ok()).unwrap_or_default();
    time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
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

    #[allow(clippy::disallowed_methods, reason = "file times are what is waited for")]
    impl Dir {
        fn new() -> Self {
            Self(tempfile::tempdir().unwrap(), Some(Manifests::default()))
        }

        fn write(&self, name: &str, text: &str) {
            std::fs::write(self.0.path().join(name), text).unwrap();
        }

        fn scan(&mut self) -> Vec<String> {
            std::thread::sleep(SETTLE);
            let (after, events) = self.1.take().unwrap().scan(self.0.path());
            self.1 = Some(after);
            let text = |e: Event| match e {
                Event::Apply(key, _) => format!("+{key}"),
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
    fn a_file_that_is_being_written_is_left_for_later() {
        let mut dir = Dir::new();
        dir.write("a.yaml", &node("n1"));
        dir.scan();
        // Emptied, and not yet filled.
        dir.write("a.yaml", "");
        let (after, events) = dir.1.take().unwrap().scan(dir.0.path());
        assert!(events.unwrap().is_empty() && after.unsettled);
        dir.1 = Some(after);
        dir.write("a.yaml", &node("n2"));
        assert_eq!(dir.scan(), ["+CiliumNode n2", "-CiliumNode n1"]);
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
    fn a_namespace_outlives_its_manifest_while_objects_name_it() {
        let mut dir = Dir::new();
        dir.write("ns.yaml", "kind: Namespace\nmetadata: {name: ns}\n");
        dir.write("s.yaml", "kind: Service\nmetadata: {name: s, namespace: ns}\n");
        assert_eq!(dir.scan(), ["+Namespace ns", "+Service ns/s"]);
        std::fs::remove_file(dir.0.path().join("ns.yaml")).unwrap();
        assert_eq!(dir.scan(), ["+Namespace ns"], "as if it had no annotations");
        std::fs::remove_file(dir.0.path().join("s.yaml")).unwrap();
        assert_eq!(dir.scan(), ["-Service ns/s", "-Namespace ns"]);
    }

    #[test]
    fn what_an_api_server_fills_in_is_filled_in() {
        let mut value = serde_json::json!({"metadata": {"name": "s"}, "spec": {"ports": [{"port": 80}]}});
        set_defaults(Kind::Service, &mut value, "");
        assert_eq!(value["metadata"]["namespace"], "default");
        let spec = serde_json::json!({"clusterIP": "None", "sessionAffinity": "None", "ports": [{"port": 80, "protocol": "TCP"}]});
        assert_eq!(value["spec"], spec);
        let mut export = serde_json::json!({"metadata": {"name": "s"}});
        set_defaults(Kind::ServiceExport, &mut export, "2026-11-01T09:00:00Z");
        assert_eq!(export["metadata"]["creationTimestamp"], "2026-11-01T09:00:00Z");
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
