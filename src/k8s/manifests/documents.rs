//! The documents of one manifest: a YAML stream, or JSON, whose documents are objects or lists of objects.

use super::defaults::set_defaults;
use crate::k8s::types::{Kind, ObjectKey};
use crate::util::yaml;
use serde_json::Value;
use std::collections::BTreeSet;
use std::time::SystemTime;

/// The content of a manifest.
#[derive(Default)]
pub(super) struct Documents {
    /// The objects of the kinds that are published.
    pub(super) objects: Vec<Manifest>,
    /// Why some documents cannot be read.
    pub(super) errors: Vec<String>,
    /// Kinds that are not published, with their API versions.
    pub(super) ignored: BTreeSet<String>,
}

/// One object, with defaults, not yet checked against its type.
pub(super) struct Manifest {
    pub(super) key: ObjectKey,
    pub(super) value: Value,
}

/// A document before parsing, and the number of its first line.
struct Document {
    line: usize,
    text: String,
}

impl Documents {
    /// Parses the text of a file that was changed at `modified`.
    pub(super) fn parse(text: &str, modified: SystemTime) -> Self {
        let mut documents = Self::default();
        let modified = kubernetes_time(modified);
        for Document { line, text } in split(text) {
            match serde_saphyr::from_str::<Value>(&text) {
                Ok(value) => documents.add(value, line, &modified),
                Err(error) => {
                    let why = yaml::in_file(&error.to_string(), line);
                    documents.errors.push(format!("does not parse: {why}"));
                }
            }
        }
        documents
    }

    /// Adds an object, or the items of a list.
    fn add(&mut self, mut value: Value, line: usize, modified: &str) {
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
            return items.into_iter().for_each(|item| self.add(item, line, modified));
        }
        let text = |pointer: &str| value.pointer(pointer).and_then(Value::as_str).map(str::to_owned);
        let Some(kind) = text("/kind") else {
            self.errors.push(format!("the document at line {line} has no kind"));
            return;
        };
        let version = text("/apiVersion");
        let Some(kind) = Kind::of(&kind, version.as_deref()) else {
            self.ignored.insert(match version {
                Some(version) => format!("{kind} ({version})"),
                None => kind,
            });
            return;
        };
        let Some(name) = text("/metadata/name").filter(|n| !n.is_empty()) else {
            self.errors
                .push(format!("the {} at line {line} has no name", kind.name()));
            return;
        };
        set_defaults(kind, &mut value, modified);
        let namespace = value.pointer("/metadata/namespace").and_then(Value::as_str);
        let key = ObjectKey {
            kind,
            namespace: namespace.unwrap_or_default().into(),
            name: name.into(),
        };
        self.objects.push(Manifest { key, value });
    }
}

impl Manifest {
    /// The namespace that decides whether the object is exported.
    pub(super) fn namespace(&self) -> Option<String> {
        let text = |pointer: &str| self.value.pointer(pointer).and_then(Value::as_str).map(str::to_owned);
        let namespace = match self.key.kind {
            Kind::Identity => text("/security-labels/k8s:io.kubernetes.pod.namespace"),
            Kind::CiliumEndpointSlice => text("/namespace"),
            _ => Some(self.key.namespace.to_string()),
        };
        namespace.filter(|n| !n.is_empty())
    }
}

fn is_list(value: &Value) -> bool {
    value
        .get("kind")
        .and_then(Value::as_str)
        .is_some_and(|k| k.ends_with("List"))
}

/// Splits a YAML stream, without parsing it, so that a document that does not parse leaves the others alone.
fn split(text: &str) -> Vec<Document> {
    let begin = |line| Document {
        line,
        text: String::new(),
    };
    let mut documents = vec![begin(1)];
    for (at, line) in text.lines().enumerate() {
        if line == "---" || line.starts_with("--- ") {
            documents.push(begin(at + 2));
        } else if let Some(document) = documents.last_mut() {
            document.text.push_str(line);
            document.text.push('\n');
        }
    }
    let is_blank = |line: &str| line.trim().is_empty() || line.trim_start().starts_with('#');
    documents.retain(|document| !document.text.lines().all(is_blank));
    documents
}

fn kubernetes_time(time: SystemTime) -> String {
    let time = jiff::Timestamp::try_from(time).unwrap_or_default();
    time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}
