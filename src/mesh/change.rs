//! Changes of objects, before they are made: what differs from the objects that exist, and how that reads.
//!
//! Objects are applied by server-side apply. A field that this program applied before and does not apply any more is
//! removed, so the managed fields of the object that exists decide what a change removes.

use super::facts::MANAGER;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fmt;

/// Characters of a value in a line.
const VALUE_LENGTH: usize = 100;
/// Fields that say which object is meant.
const IDENTITY: [&str; 5] = [
    "apiVersion",
    "kind",
    "metadata.name",
    "metadata.namespace",
    "metadata.resourceVersion",
];

/// The name of an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    pub api_version: String,
    pub kind: String,
    /// `None` for objects of the whole cluster.
    pub namespace: Option<String>,
    pub name: String,
}

/// What is done to an object.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    /// Apply these fields. `force` takes fields over from other managers. An object that was absent when it was read is
    /// only made if it is absent still: two commands at once would overwrite each other, whose manager is the same.
    Apply {
        object: Value,
        force: bool,
        presence: Presence,
    },
    /// Make this object, unless it exists.
    Create(Value),
    /// Set these keys of the data, in the form of the object, and leave all others as they are. The version is that of the
    /// object as it was read.
    SetKeys {
        data: BTreeMap<String, String>,
        version: Option<String>,
    },
    /// Remove these keys of the data, whoever wrote them.
    RemoveKeys(Vec<String>),
    /// Delete the object.
    Delete,
    /// Restart the pods of a Deployment, for this reason.
    Restart { why: String },
}

/// Whether an object existed when it was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Presence {
    Absent,
    Present,
}

/// A change of one object.
#[derive(Clone, Debug, PartialEq)]
pub struct Change {
    pub target: Target,
    pub step: Step,
    /// The differences, for the operator: no secret values.
    pub lines: Vec<String>,
}

/// The changes of one cluster, in their order.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    pub context: String,
    /// The name of the cluster.
    pub cluster: String,
    pub changes: Vec<Change>,
}

/// A difference in one field.
#[derive(Clone, Debug, PartialEq)]
struct Difference {
    path: String,
    before: Option<Value>,
    after: Option<Value>,
}

// === impl Target ===

impl Target {
    /// The name of an object with `apiVersion`, `kind` and `metadata`.
    pub fn of(object: &Value) -> Self {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        Self {
            api_version: text(&object["apiVersion"]),
            kind: text(&object["kind"]),
            namespace: object["metadata"]["namespace"].as_str().map(str::to_owned),
            name: text(&object["metadata"]["name"]),
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.namespace {
            Some(namespace) => write!(f, "{} {namespace}/{}", self.kind, self.name),
            None => write!(f, "{} {}", self.kind, self.name),
        }
    }
}

// === impl Change ===

impl Change {
    /// The keys of the data that the change sets, with their texts.
    pub fn texts(&self) -> Vec<(&str, String)> {
        let Step::SetKeys { data, .. } = &self.step else {
            return vec![];
        };
        let text = |value: &String| match &*self.target.kind {
            "Secret" => String::from_utf8_lossy(&STANDARD.decode(value).unwrap_or_default()).into_owned(),
            _ => value.clone(),
        };
        data.iter().map(|(key, value)| (&**key, text(value))).collect()
    }
}

// === impl Plan ===

impl Plan {
    pub fn new(context: &str, cluster: &str) -> Self {
        Self {
            context: context.to_owned(),
            cluster: cluster.to_owned(),
            changes: vec![],
        }
    }

    /// Adds the application of `object`, unless `live` has all its fields.
    pub fn apply(&mut self, object: Value, live: Option<&Value>, force: bool) {
        let differences = differences(&object, live);
        if live.is_some() && differences.is_empty() {
            return;
        }
        let target = Target::of(&object);
        let is_secret = target.kind == "Secret";
        self.changes.push(Change {
            lines: differences
                .iter()
                .map(|difference| difference.line(is_secret))
                .collect(),
            target,
            step: Step::Apply {
                object,
                force,
                presence: match live {
                    Some(_) => Presence::Present,
                    None => Presence::Absent,
                },
            },
        });
    }

    /// Adds the creation of an object that nobody has made.
    pub fn create(&mut self, object: Value) {
        let target = Target::of(&object);
        let is_secret = target.kind == "Secret";
        self.changes.push(Change {
            lines: differences(&object, None)
                .iter()
                .map(|difference| difference.line(is_secret))
                .collect(),
            target,
            step: Step::Create(object),
        });
    }

    /// Adds the change of one text in a Secret or ConfigMap that somebody else may own. Server-side apply would remove the
    /// other keys if this program has made the object.
    pub fn set_text(&mut self, target: Target, key: &str, text: &str, version: Option<String>) {
        let value = match &*target.kind {
            "Secret" => STANDARD.encode(text),
            _ => text.to_owned(),
        };
        self.changes.push(Change {
            target,
            lines: vec![format!("~ data.{key}: <{} bytes>", text.len())],
            step: Step::SetKeys {
                data: BTreeMap::from([(key.to_owned(), value)]),
                version,
            },
        });
    }

    /// Adds the removal of keys of a Secret or ConfigMap.
    pub fn remove_keys(&mut self, target: Target, keys: Vec<String>) {
        self.changes.push(Change {
            target,
            lines: keys.iter().map(|key| format!("- data.{key}")).collect(),
            step: Step::RemoveKeys(keys),
        });
    }

    /// Adds the deletion of an object.
    pub fn delete(&mut self, target: Target) {
        self.changes.push(Change {
            target,
            step: Step::Delete,
            lines: vec![],
        });
    }

    /// Adds the restart of a Deployment.
    pub fn restart(&mut self, target: Target, why: &str) {
        let why = why.to_owned();
        self.changes.push(Change {
            target,
            lines: vec![],
            step: Step::Restart { why },
        });
    }

    /// Takes the changes of objects of one kind out of the plan.
    pub fn take_kind(&mut self, kind: &str) -> Vec<Change> {
        let (of_kind, rest) = std::mem::take(&mut self.changes)
            .into_iter()
            .partition(|change| change.target.kind == kind);
        self.changes = rest;
        of_kind
    }

    /// What somebody else would have to do: comments about the changes that no manifest makes, and the manifests.
    pub fn document(&self) -> Result<String, serde_saphyr::ser::Error> {
        let by_hand: Vec<Vec<String>> = self.changes.iter().filter_map(by_hand).collect();
        let mut text = format!("# Cluster {}, context {}\n", self.cluster, self.context);
        if !by_hand.is_empty() {
            text += "# First make these changes, in this order: no manifest makes them.\n";
        }
        for (at, lines) in by_hand.iter().enumerate() {
            text += &format!("# {}. {}\n", at + 1, lines.join("\n#    "));
        }
        Ok(text + &manifests(self.objects())?)
    }

    /// The objects to apply.
    pub fn objects(&self) -> impl Iterator<Item = &Value> {
        self.changes.iter().filter_map(|change| match &change.step {
            Step::Apply { object, .. } | Step::Create(object) => Some(object),
            Step::SetKeys { .. } | Step::RemoveKeys(_) | Step::Delete | Step::Restart { .. } => None,
        })
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "Cluster {} (context {}):", self.cluster, self.context)?;
        if self.changes.is_empty() {
            return writeln!(f, "  nothing to change");
        }
        for change in &self.changes {
            writeln!(f, "  {change}")?;
            for line in &change.lines {
                writeln!(f, "    {line}")?;
            }
        }
        Ok(())
    }
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.step {
            Step::Apply { .. } => write!(f, "apply {}", self.target),
            Step::Create(_) => write!(f, "create {}", self.target),
            Step::SetKeys { data, .. } => {
                let keys: Vec<&str> = data.keys().map(String::as_str).collect();
                write!(f, "change {} of {}", keys.join(", "), self.target)
            }
            Step::RemoveKeys(keys) => write!(f, "remove {} from {}", keys.join(", "), self.target),
            Step::Delete => write!(f, "delete {}", self.target),
            Step::Restart { why } => write!(f, "restart the pods of {}: {why}", self.target),
        }
    }
}

/// The fields in which `live` differs from `object`, as far as `object` or this program's ownership concerns them.
fn differences(object: &Value, live: Option<&Value>) -> Vec<Difference> {
    let mut found = vec![];
    compare(object, live.unwrap_or(&Value::Null), "", &mut found);
    for path in live.map(owned).unwrap_or_default() {
        let field = |of: &Value| path.iter().try_fold(of, |at, name| at.get(name)).cloned();
        let before = live.and_then(field);
        if field(object).is_none() && before.is_some() {
            found.push(Difference {
                path: path.join("."),
                before,
                after: None,
            });
        }
    }
    found.retain(|difference| !IDENTITY.contains(&&*difference.path));
    found
}

/// Whether `live` has all fields of `object`, after a write.
pub fn missing(object: &Value, live: &Value) -> Vec<String> {
    let mut found = vec![];
    compare(object, live, "", &mut found);
    found.retain(|difference| !IDENTITY.contains(&&*difference.path));
    found.into_iter().map(|difference| difference.path).collect()
}

fn compare(wanted: &Value, live: &Value, path: &str, found: &mut Vec<Difference>) {
    match (wanted, live) {
        (Value::Object(fields), _) if live.is_object() || !fields.is_empty() => {
            for (name, value) in fields {
                let path = match path.is_empty() {
                    true => name.clone(),
                    false => format!("{path}.{name}"),
                };
                compare(value, live.get(name).unwrap_or(&Value::Null), &path, found);
            }
        }
        (Value::Array(wanted), Value::Array(live)) if wanted.len() == live.len() => {
            for (at, (wanted, live)) in wanted.iter().zip(live).enumerate() {
                compare(wanted, live, &format!("{path}[{at}]"), found);
            }
        }
        _ if wanted == live || is_empty_default(wanted, live) => {}
        _ => found.push(Difference {
            path: path.to_owned(),
            before: Some(live.clone()).filter(|live| !live.is_null()),
            after: Some(wanted.clone()),
        }),
    }
}

/// The API leaves out empty maps and lists.
fn is_empty_default(wanted: &Value, live: &Value) -> bool {
    let is_empty = match wanted {
        Value::Object(fields) => fields.is_empty(),
        Value::Array(items) => items.is_empty(),
        _ => false,
    };
    is_empty && live.is_null()
}

/// The paths of the fields that this program applied to an object; fields inside lists are left out.
pub fn owned(live: &Value) -> Vec<Vec<String>> {
    let entries = live["metadata"]["managedFields"].as_array();
    let ours = entries
        .into_iter()
        .flatten()
        .filter(|entry| entry["manager"] == MANAGER && entry["operation"] == "Apply");
    let mut paths = vec![];
    for entry in ours {
        collect(&entry["fieldsV1"], &mut vec![], &mut paths);
    }
    paths
}

fn collect(fields: &Value, at: &mut Vec<String>, paths: &mut Vec<Vec<String>>) {
    for (name, inner) in fields.as_object().into_iter().flatten() {
        let Some(name) = name.strip_prefix("f:") else { continue };
        at.push(name.to_owned());
        match inner.as_object().is_none_or(|inner| inner.is_empty()) {
            true => paths.push(at.clone()),
            false => collect(inner, at, paths),
        }
        at.pop();
    }
}

// === impl Difference ===

impl Difference {
    /// The line for the operator.
    fn line(&self, is_secret: bool) -> String {
        let is_secret = is_secret && self.path.starts_with("data");
        let shown = |value: &Value| if is_secret { of_secret(value) } else { of_value(value) };
        match (&self.before, &self.after) {
            (None, Some(after)) => format!("+ {}: {}", self.path, shown(after)),
            (Some(before), None) => format!("- {}: {}", self.path, shown(before)),
            (Some(before), Some(after)) => format!("~ {}: {} → {}", self.path, shown(before), shown(after)),
            (None, None) => self.path.clone(),
        }
    }
}

fn of_value(value: &Value) -> String {
    let text = match value {
        Value::String(text) => text.trim_end().replace('\n', "\\n"),
        other => other.to_string(),
    };
    match text.char_indices().nth(VALUE_LENGTH) {
        None => text,
        Some((end, _)) => format!("{}…", &text[..end]),
    }
}

/// A value of a Secret: the addresses of a client file, and of others the length alone.
fn of_secret(value: &Value) -> String {
    let bytes = value
        .as_str()
        .and_then(|text| STANDARD.decode(text).ok())
        .unwrap_or_default();
    let text = std::str::from_utf8(&bytes).unwrap_or_default();
    match crate::kvstore::config::ClientConfig::parse(text) {
        Ok(file) => {
            let aliases = file.cilium_host_aliases.iter().flat_map(|alias| &alias.ips);
            let ips: Vec<_> = aliases.map(ToString::to_string).collect();
            let at = if ips.is_empty() {
                String::new()
            } else {
                format!(" at {}", ips.join(", "))
            };
            format!("{}{at}", file.endpoints.join(", "))
        }
        Err(_) => format!("<{} bytes>", bytes.len()),
    }
}

/// The lines about a change that no manifest makes; `None` for a manifest.
fn by_hand(change: &Change) -> Option<Vec<String>> {
    let target = &change.target;
    Some(match &change.step {
        Step::Apply { .. } | Step::Create(_) => return None,
        Step::SetKeys { .. } => {
            let mut lines = vec![];
            for (key, text) in change.texts() {
                lines.push(format!("Set {key} of {target} to:"));
                lines.extend(text.lines().map(str::to_owned));
            }
            lines
        }
        Step::RemoveKeys(keys) => {
            let pointer = |key: &String| format!("/data/{}", key.replace('~', "~0").replace('/', "~1"));
            let patch: Vec<Value> = keys
                .iter()
                .map(|key| json!({"op": "remove", "path": pointer(key)}))
                .collect();
            let what = keys.join(", ");
            vec![
                format!("Remove {what} from {target}, also where the repository has it. As a JSON patch:"),
                Value::Array(patch).to_string(),
            ]
        }
        Step::Delete => vec![format!("Delete {target}, also where the repository has it.")],
        Step::Restart { why } => vec![format!("Restart the pods of {target}: {why}.")],
    })
}

/// The YAML of objects, one document for each.
pub fn manifests<'a>(objects: impl Iterator<Item = &'a Value>) -> Result<String, serde_saphyr::ser::Error> {
    let mut text = String::new();
    for object in objects {
        let mut object = object.clone();
        if let Some(meta) = object["metadata"].as_object_mut() {
            meta.remove("resourceVersion");
        }
        // Fields in the order of their names, but for the first ones.
        let rest: BTreeMap<String, Value> = object.as_object().cloned().unwrap_or_default().into_iter().collect();
        text += "---\n";
        text += &serde_saphyr::to_string(&rest)?;
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secret(data: &Value) -> Value {
        json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s", "namespace": "n"}, "data": data})
    }

    fn lines(object: Value, live: Option<&Value>) -> Vec<String> {
        let mut plan = Plan::new("c", "c");
        plan.apply(object, live, false);
        plan.changes.into_iter().flat_map(|change| change.lines).collect()
    }

    #[test]
    fn a_secret_shows_addresses_and_no_values() {
        let file = "endpoints:\n- https://hk.mesh.cilium.io:1\ncilium-host-aliases:\n- hostname: hk.mesh.cilium.io\n  ips: [192.0.2.7]\n";
        let desired = secret(&json!({"hk": STANDARD.encode(file), "k": STANDARD.encode("secret")}));
        let found = lines(desired.clone(), None);
        assert_eq!(
            found,
            [
                "+ data.hk: https://hk.mesh.cilium.io:1 at 192.0.2.7",
                "+ data.k: <6 bytes>"
            ]
        );
        let text = format!("{found:?}");
        assert!(!text.contains("secret") && !text.contains(&STANDARD.encode("secret")));
    }

    #[test]
    fn a_change_removes_the_fields_that_this_program_owns_and_no_others() {
        let managed = json!([
            {"manager": "isthmus", "operation": "Apply", "fieldsV1": {"f:data": {"f:old": {}, "f:hk": {}}}},
            {"manager": "kubectl", "operation": "Apply", "fieldsV1": {"f:data": {"f:theirs": {}}}},
        ]);
        let mut live = secret(&json!({"old": "YQ==", "hk": "YQ==", "theirs": "YQ=="}));
        live["metadata"]["managedFields"] = managed;
        assert_eq!(
            lines(secret(&json!({"hk": "YQ=="})), Some(&live)),
            ["- data.old: <1 bytes>"]
        );
        let same = secret(&json!({"hk": "YQ==", "old": "YQ=="}));
        assert_eq!(lines(same, Some(&live)), Vec::<String>::new());
    }

    #[test]
    fn defaults_of_the_api_are_no_difference() {
        let desired = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "s", "resourceVersion": "1"},
            "spec": {"ports": [{"port": 2379}], "selector": {"a": "b"}, "x": {}}});
        let live = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "s", "resourceVersion": "2"},
            "spec": {"ports": [{"port": 2379, "protocol": "TCP"}], "selector": {"a": "b"}, "type": "ClusterIP"}});
        assert_eq!(lines(desired.clone(), Some(&live)), Vec::<String>::new());
        let mut other = desired;
        other["spec"]["ports"][0]["port"] = json!(2380);
        assert_eq!(lines(other, Some(&live)), ["~ spec.ports[0].port: 2379 → 2380"]);
    }

    #[test]
    fn a_plan_reads_as_text_and_as_manifests() {
        let mut plan = Plan::new("tokyo", "tokyo-cluster");
        assert_eq!(
            plan.to_string(),
            "Cluster tokyo-cluster (context tokyo):\n  nothing to change\n"
        );
        let object = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "m", "namespace": "n",
            "resourceVersion": "7"}, "data": {"a": "b"}});
        plan.apply(object, None, false);
        plan.delete(Target {
            api_version: "v1".into(),
            kind: "Secret".into(),
            namespace: Some("n".into()),
            name: "x".into(),
        });
        let text = plan.to_string();
        assert!(
            text.contains("  apply ConfigMap n/m\n    + data.a: b\n  delete Secret n/x\n"),
            "{text}"
        );
        let yaml = manifests(plan.objects()).unwrap();
        assert!(
            yaml.starts_with("---\napiVersion: v1\n") && !yaml.contains("resourceVersion"),
            "{yaml}"
        );
        let parsed: Value = serde_saphyr::from_str(yaml.trim_start_matches("---\n")).unwrap();
        assert_eq!(parsed["data"]["a"], "b");
    }

    #[test]
    fn a_document_says_what_no_manifest_does() {
        let mut plan = Plan::new("t", "tokyo");
        let target = || Target::of(&secret(&json!({})));
        plan.remove_keys(target(), vec!["hk".to_owned(), "hk.etcd-client-ca.crt".to_owned()]);
        plan.set_text(target(), "ca.crt", "-----BEGIN\nx\n", None);
        plan.apply(secret(&json!({"a": "YQ=="})), None, false);
        plan.delete(target());
        plan.restart(target(), "because");
        let text = plan.document().unwrap();
        let expected = "# Cluster tokyo, context t\n\
            # First make these changes, in this order: no manifest makes them.\n\
            # 1. Remove hk, hk.etcd-client-ca.crt from Secret n/s, also where the repository has it. As a JSON patch:\n\
            #    [{\"op\":\"remove\",\"path\":\"/data/hk\"},{\"op\":\"remove\",\"path\":\"/data/hk.etcd-client-ca.crt\"}]\n\
            # 2. Set ca.crt of Secret n/s to:\n#    -----BEGIN\n#    x\n\
            # 3. Delete Secret n/s, also where the repository has it.\n\
            # 4. Restart the pods of Secret n/s: because.\n---\n";
        assert!(text.starts_with(expected), "{text}");
        let read: Value = serde_saphyr::from_str(text.split("---\n").nth(1).unwrap()).unwrap();
        assert_eq!(read["data"]["a"], "YQ==", "{text}");
    }
}
