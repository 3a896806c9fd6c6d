//! The JSON Schema of the scope file.

use super::file::kind_name;
use super::parse::{API_VERSION, KIND};
use super::rules::RULES_MAX;
use crate::model::keys::Scope as KeyKind;
use serde_json::{Map, Value, json};

/// The schema, as `docs/scope.schema.json` has it.
pub fn schema() -> Value {
    let mut root = object(
        "Which keys a cluster exports to the mesh, and which keys of remote clusters it imports.",
        &["apiVersion", "kind"],
        [
            ("apiVersion", json!({"const": API_VERSION})),
            ("kind", json!({"const": KIND})),
            (
                "region",
                described(
                    word(),
                    "Region of this cluster. Addresses with sync-scope regional are for clusters of the same region.",
                ),
            ),
            ("export", export()),
            ("import", import()),
        ],
    );
    if let Some(root) = root.as_object_mut() {
        root.insert(
            "$schema".to_owned(),
            json!("https://json-schema.org/draft/2020-12/schema"),
        );
        root.insert("title".to_owned(), json!("Scope file of Isthmus"));
    }
    root
}

fn export() -> Value {
    let namespaces = object(
        "Conditions on the namespace, which must all hold.",
        &[],
        [
            ("names", names("Names of namespaces; * stands for any characters.")),
            ("labels", selector("Over the labels of the Namespace object.")),
        ],
    );
    let endpoints = rule([
        ("namespaces", namespaces.clone()),
        ("identity", identity()),
        (
            "backendsOfGlobalServices",
            flag("Whether the address must be one of an exported global service, or must not be one."),
        ),
    ]);
    let objects = rule([
        ("namespaces", namespaces),
        (
            "labels",
            selector("Over the labels of the Service or of the ServiceExport."),
        ),
    ]);
    object(
        "What this cluster shows.",
        &[],
        [
            ("endpoints", list("Addresses of pods.", endpoints)),
            ("identities", identities("exported")),
            (
                "services",
                list("Global services and their EndpointSlices.", objects.clone()),
            ),
            ("serviceExports", list("ServiceExports of the MCS API.", objects)),
        ],
    )
}

fn import() -> Value {
    let namespaces = object(
        "Conditions on the namespace, which must all hold.",
        &[],
        [
            ("names", names("Names of namespaces; * stands for any characters.")),
            (
                "existing",
                flag("Whether the namespace must exist in this cluster, or must not exist."),
            ),
        ],
    );
    let endpoints = rule([
        ("namespaces", namespaces.clone()),
        ("identity", identity()),
        (
            "backendsOfServices",
            flag("Whether the address must be one of a service imported from the same cluster, or must not be one."),
        ),
    ]);
    let objects = rule([("namespaces", namespaces)]);
    let kinds = KeyKind::ALL.map(kind_name);
    let limits = kinds.map(|kind| (kind, json!({"type": "integer", "minimum": 0})));
    let entry = object(
        "What this cluster takes from some clusters. The first entry that matches a cluster governs it.",
        &["name"],
        [
            ("name", described(word(), "Name of the entry in reports and metrics.")),
            ("clusters", names("Names of clusters; * stands for any characters.")),
            (
                "regions",
                json!({"type": "array", "minItems": 1, "items": word(), "description": "Regions of clusters."}),
            ),
            (
                "kinds",
                json!({"type": "array", "items": {"enum": kinds}, "description": "Kinds of keys that are imported; all by default."}),
            ),
            ("endpoints", list("Addresses of pods.", endpoints)),
            ("identities", identities("imported")),
            (
                "services",
                list("Global services and their EndpointSlices.", objects.clone()),
            ),
            ("serviceExports", list("ServiceExports of the MCS API.", objects)),
            (
                "limits",
                object("Keys of each kind that a cluster may have here.", &[], limits),
            ),
        ],
    );
    object(
        "What this cluster takes from others. Everything is imported from a cluster that no entry matches.",
        &[],
        [
            (
                "regions",
                json!({
                    "type": "object",
                    "additionalProperties": word(),
                    "description": "Regions by names of clusters, for clusters that publish none; * stands for any characters.",
                }),
            ),
            ("clusters", json!({"type": "array", "items": entry})),
        ],
    )
}

/// An object that has these properties and no others.
fn object<'a>(description: &str, required: &[&str], properties: impl IntoIterator<Item = (&'a str, Value)>) -> Value {
    let properties: Map<String, Value> = properties.into_iter().map(|(k, v)| (k.to_owned(), v)).collect();
    let mut object = json!({
        "type": "object",
        "description": description,
        "additionalProperties": false,
        "properties": properties,
    });
    if !required.is_empty() {
        object["required"] = json!(required);
    }
    object
}

fn described(mut schema: Value, description: &str) -> Value {
    schema["description"] = json!(description);
    schema
}

/// A rule with these conditions, of which it needs one.
fn rule<'a>(conditions: impl IntoIterator<Item = (&'a str, Value)>) -> Value {
    let own = [
        (
            "name",
            described(word(), "Name of the rule in reports and metrics; unique in the list."),
        ),
        ("action", json!({"enum": ["include", "exclude"]})),
    ];
    let mut rule = object(
        "All conditions must hold.",
        &["name", "action"],
        own.into_iter().chain(conditions),
    );
    rule["minProperties"] = json!(3);
    rule
}

fn list(description: &str, rule: Value) -> Value {
    object(
        &format!("{description} The first rule that matches decides."),
        &[],
        [
            (
                "default",
                json!({"enum": ["include", "exclude"], "default": "include", "description": "What happens if no rule matches."}),
            ),
            ("rules", json!({"type": "array", "maxItems": RULES_MAX, "items": rule})),
        ],
    )
}

fn identities(verb: &str) -> Value {
    json!({
        "enum": ["all", "used"],
        "default": "all",
        "description": format!("All identities, or those that an {verb} endpoint has."),
    })
}

fn identity() -> Value {
    selector(
        "Over the labels of the security identity. A key without a source, such as app, is that of a label of any source; k8s:app is that of a label of Kubernetes.",
    )
}

fn selector(description: &str) -> Value {
    let expression = object(
        "A requirement.",
        &["key", "operator"],
        [
            ("key", json!({"type": "string", "minLength": 1})),
            ("operator", json!({"enum": ["In", "NotIn", "Exists", "DoesNotExist"]})),
            ("values", json!({"type": "array", "items": {"type": "string"}})),
        ],
    );
    object(
        description,
        &[],
        [
            (
                "matchLabels",
                json!({"type": "object", "additionalProperties": {"type": "string"}}),
            ),
            ("matchExpressions", json!({"type": "array", "items": expression})),
        ],
    )
}

fn names(description: &str) -> Value {
    let name = json!({"type": "string", "pattern": "^[a-z0-9*-]+$"});
    json!({"type": "array", "minItems": 1, "items": name, "description": description})
}

fn word() -> Value {
    json!({"type": "string", "pattern": "^[A-Za-z0-9._-]{1,63}$"})
}

fn flag(description: &str) -> Value {
    json!({"type": "boolean", "description": description})
}
