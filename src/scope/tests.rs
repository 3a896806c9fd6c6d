//! The scope file as a whole: what it can say, how mistakes are told, and how it is followed.

use super::follow::follow;
use super::rules::{Action, Namespaces, Rule};
use super::schema::schema;
use super::*;
use crate::model::keys::Scope as KeyKind;
use serde_json::{Map, Value, json};
use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

const SCHEMA: &str = "docs/scope.schema.json";
const DOCUMENT: &str = include_str!("../../docs/scope.md");

fn parse(text: &str) -> Result<ScopeFile, String> {
    ScopeFile::parse(text.as_bytes()).map_err(|mistake| mistake.to_string())
}

/// A file with these sections.
fn file(sections: &Value) -> String {
    let mut file = json!({"apiVersion": "scope.isthmus.io/v1", "kind": "Scope"});
    let sections = sections.as_object().unwrap().clone();
    file.as_object_mut().unwrap().extend(sections);
    file.to_string()
}

#[test]
fn a_file_says_what_is_exported_and_imported() {
    let scope = parse(
        r#"
apiVersion: scope.isthmus.io/v1
kind: Scope
region: apac
export:
  endpoints:
    default: exclude
    rules:
    - {name: databases, action: include, identity: {matchLabels: {"k8s:app": db}}, namespaces: {names: [prod, "stage-*"]}}
    - {name: backends, action: include, backendsOfGlobalServices: true}
  identities: used
import:
  regions: {"eu-*": emea, eu-1: special, tokyo: apac}
  clusters:
  - name: near
    regions: [apac]
    services: {rules: [{name: known, action: include, namespaces: {existing: true}}], default: exclude}
    limits: {endpoints: 20000}
  - name: others
    clusters: ["*"]
    kinds: [identities, nodes]
"#,
    )
    .unwrap();
    assert_eq!(scope.region.as_deref(), Some("apac"));
    assert_eq!(scope.export.identities, Identities::Used);
    assert_eq!(scope.export.endpoints.list().len(), 2);
    assert!(scope.export.services.keep_all() && scope.import.need_existing());
    let import = &scope.import;
    let region = |cluster, published| import.region(cluster, published);
    assert_eq!(region("eu-7", None), Some("emea"));
    assert_eq!(region("eu-1", None), Some("special"), "an exact name counts first");
    assert_eq!(
        region("tokyo", Some("emea")),
        Some("emea"),
        "what a cluster publishes counts"
    );
    assert_eq!(region("lima", None), None);
    let governs = |cluster, region| import.rules(cluster, region).map(|entry| &*entry.name);
    assert_eq!(governs("tokyo", Some("apac")), Some("near"));
    assert_eq!(governs("lima", None), Some("others"));
    let others = import.rules("lima", None).unwrap();
    assert_eq!(others.kinds, BTreeSet::from([KeyKind::Identities, KeyKind::Nodes]));
    assert_eq!(import.clusters[0].limits[&KeyKind::Endpoints], 20_000);
    assert_eq!(parse(&file(&json!({}))).unwrap(), ScopeFile::default());
}

/// Fails unless a file with each of these sections is refused with this text.
#[track_caller]
fn refused(cases: impl IntoIterator<Item = (Value, &'static str)>) {
    for (sections, told) in cases {
        let error = parse(&file(&sections)).unwrap_err();
        assert!(error.contains(told), "{sections}: {error}");
    }
}

#[test]
fn every_mistake_in_a_list_of_rules_is_told_with_its_place_and_a_remedy() {
    let rule = |rule: Value| json!({"export": {"endpoints": {"rules": [rule]}}});
    refused([
        (json!({"exports": {}}), "unknown field `exports`, expected one of"),
        (
            json!({"export": {"endpoint": {}}}),
            "unknown field `endpoint`, expected one of",
        ),
        (
            rule(json!({"name": "a", "action": "drop"})),
            "export.endpoints.rules[0].action: unknown variant `drop`, expected `include` or `exclude`",
        ),
        (
            rule(json!({"name": "a", "action": "exclude"})),
            "export.endpoints.rules[0]: the rule has no condition and would match everything; give a condition, or set default",
        ),
        (
            rule(json!({"name": "a", "action": "exclude", "namespaces": {}})),
            "the rule has no condition",
        ),
        (
            rule(json!({"name": "a", "action": "exclude", "namespaces": {"names": []}})),
            "export.endpoints.rules[0].namespaces.names: the list is empty and would match nothing",
        ),
        (
            rule(json!({"name": "a", "action": "exclude", "namespaces": {"names": ["Prod"]}})),
            "export.endpoints.rules[0].namespaces.names[0]: \"Prod\" is no name",
        ),
        (
            rule(json!({"name": "a b", "action": "exclude", "namespaces": {"names": ["a"]}})),
            "export.endpoints.rules[0].name: \"a b\" is no name: it must be 1 to 63 letters",
        ),
        (
            rule(json!({"name": "a", "action": "exclude", "namespaces": {"labels": {"matchLabels": {"k8s:a": "b"}}}})),
            "has the source \"k8s\", which only labels of identities have",
        ),
        (
            rule(
                json!({"name": "a", "action": "exclude", "identity": {"matchExpressions": [{"key": "a", "operator": "In"}]}}),
            ),
            "export.endpoints.rules[0].identity.matchExpressions[0]: In needs values",
        ),
        (
            rule(
                json!({"name": "a", "action": "exclude", "identity": {"matchExpressions": [{"key": "a", "operator": "Exists", "values": ["b"]}]}}),
            ),
            "Exists takes no values",
        ),
        (
            rule(json!({"name": "a", "action": "exclude", "identity": {"matchLabels": {"a": true}}})),
            "export.endpoints.rules[0].identity.matchLabels.a: invalid type: boolean",
        ),
        (
            json!({"export": {"endpoints": {"rules": [
                {"name": "a", "action": "exclude", "backendsOfGlobalServices": true},
                {"name": "a", "action": "include", "backendsOfGlobalServices": false},
            ]}}}),
            "export.endpoints.rules[1].name: \"a\" is the name of a former item of the list; choose another one",
        ),
    ]);
}

#[test]
fn every_other_mistake_is_told_with_its_place_and_a_remedy() {
    let entry = |entry: Value| json!({"import": {"clusters": [entry]}});
    refused([
        (
            entry(json!({"name": "a"})),
            "import.clusters[0]: the entry names no clusters; give clusters: [\"*\"] for all, or regions",
        ),
        (
            entry(json!({"name": "a", "clusters": ["a"], "kinds": ["pods"]})),
            "import.clusters[0].kinds[0]: unknown kind `pods`, expected one of `identities`",
        ),
        (
            entry(json!({"name": "a", "clusters": ["a"], "limits": {"endpoints": -1}})),
            "import.clusters[0].limits.endpoints: invalid value: integer `-1`",
        ),
        (json!({"region": ""}), "region: \"\" is no region"),
        (
            json!({"apiVersion": "scope.isthmus.io/v2"}),
            "apiVersion: \"scope.isthmus.io/v2\" is not known",
        ),
        (json!({"kind": "Skope"}), "kind: \"Skope\" must be Scope"),
    ]);
    for (text, told) in [
        ("", "the file is empty or is no mapping"),
        ("[]", "no mapping"),
        ("apiVersion: a\nkind: [\n", "line"),
        ("kind: Scope", "missing field `apiVersion`"),
    ] {
        let error = parse(text).unwrap_err();
        assert!(error.contains(told), "{text}: {error}");
    }
    assert!(ScopeFile::parse(b"\xff").is_err());
    assert!(
        parse("apiVersion: scope.isthmus.io/v1\nkind: Scope\nkind: Scope\n").is_err(),
        "twice"
    );
}

fn named(name: &str, action: Action) -> Rule {
    Rule {
        name: name.to_owned(),
        action,
        namespaces: None,
        identity: None,
        labels: None,
        backends: None,
    }
}

#[test]
fn the_first_rule_that_matches_decides_and_an_unknown_identity_leaves_it_open() {
    let namespaces = |name: &str| {
        Some(Namespaces {
            names: Some(vec![Glob::new(name)]),
            ..Namespaces::default()
        })
    };
    let scope = parse(&file(&json!({"export": {"endpoints": {"rules": [
        {"name": "x", "action": "include", "identity": {"matchLabels": {"app": "db"}}},
    ]}}})))
    .unwrap();
    let of_db = scope.export.endpoints.list()[0].identity.clone();
    let rules = Rules::new(
        Action::Exclude,
        vec![
            Rule {
                namespaces: namespaces("batch-*"),
                ..named("no-batch", Action::Exclude)
            },
            Rule {
                namespaces: namespaces("prod"),
                identity: of_db,
                ..named("databases", Action::Include)
            },
            Rule {
                backends: Some(true),
                ..named("backends", Action::Include)
            },
        ],
    );
    let db = rules.identity(&IdentityLabels::parse(b"k8s:app=db;").unwrap());
    let web = rules.identity(&IdentityLabels::parse(b"k8s:app=web;").unwrap());
    let decide = |namespace: &str, identity, is_backend| {
        let bits = rules.namespace(namespace, NamespaceFacts::default());
        let verdict = rules.endpoint(bits, identity, is_backend);
        (verdict.decision, rules.cause(verdict.cause).to_owned())
    };
    let is = |decision, cause: &str| (decision, cause.to_owned());
    assert_eq!(decide("batch-1", Some(db), true), is(Decision::LeaveOut, "no-batch"));
    assert_eq!(decide("batch-1", None, true), is(Decision::LeaveOut, "no-batch"));
    assert_eq!(decide("prod", Some(db), false), is(Decision::Keep, "databases"));
    assert_eq!(decide("prod", Some(web), false), is(Decision::LeaveOut, "(default)"));
    assert_eq!(decide("prod", Some(web), true), is(Decision::Keep, "backends"));
    assert_eq!(decide("prod", None, true), is(Decision::Pending, "databases"));
    assert_eq!(decide("dev", None, true), is(Decision::Keep, "backends"));
    assert_eq!(decide("dev", None, false), is(Decision::LeaveOut, "(default)"));
}

#[test]
fn a_list_of_the_most_rules_decides_by_its_last_one() {
    let rule =
        |n: usize| json!({"name": format!("r{n}"), "action": "exclude", "namespaces": {"names": [format!("n{n}")]}});
    let rules = |count| file(&json!({"export": {"services": {"rules": (0..count).map(rule).collect::<Vec<_>>()}}}));
    let scope = parse(&rules(rules::RULES_MAX)).unwrap();
    let services = &scope.export.services;
    let decide = |name: &str| services.object(services.namespace(name, NamespaceFacts::default()), &Default::default());
    assert_eq!(services.cause(decide("n127").cause), "r127");
    assert_eq!(decide("n128"), Verdict::new(Decision::Keep, Cause::Default));
    let error = parse(&rules(rules::RULES_MAX + 1)).unwrap_err();
    assert!(
        error.starts_with("export.services.rules: 129 rules are more than 128"),
        "{error}"
    );
}

/// The names in an error of the parser that lists what it expects.
fn expected(error: &str) -> BTreeSet<String> {
    let (_, names) = error.split_once("expected").unwrap_or_else(|| panic!("{error}"));
    names.split('`').skip(1).step_by(2).map(str::to_owned).collect()
}

/// Compares each closed object of `schema` with what the parser says about an unknown field there. `wrap` makes a file of
/// the object.
fn compare(schema: &Value, wrap: &dyn Fn(Value) -> Value, count: &mut usize) {
    if let Some(items) = schema.get("items") {
        compare(items, &|value| wrap(json!([value])), count);
    }
    let Some(properties) = schema.get("properties").and_then(Value::as_object) else {
        return;
    };
    let error = parse(&wrap(json!({"zzz": {}})).to_string()).unwrap_err();
    let names: BTreeSet<String> = properties.keys().cloned().collect();
    assert_eq!(expected(&error), names, "{error}");
    *count += 1;
    for (name, property) in properties {
        let wrap_property = |value: Value| wrap(Value::Object(Map::from_iter([(name.clone(), value)])));
        compare(property, &wrap_property, count);
    }
}

#[test]
fn the_schema_knows_the_fields_of_the_parser() {
    let mut count = 0;
    compare(&schema(), &|value| value, &mut count);
    assert!(count > 30, "{count} objects");
}

#[test]
fn the_schema_is_in_the_documents() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(SCHEMA);
    let text = serde_json::to_string_pretty(&schema()).unwrap() + "\n";
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(&path, &text).unwrap();
    }
    let remedy = "UPDATE=1 cargo test --lib the_schema_is_in_the_documents";
    assert_eq!(std::fs::read_to_string(&path).unwrap(), text, "run {remedy}");
}

/// The part of JSON Schema that the schema uses, but patterns.
fn check(schema: &Value, value: &Value, place: &str) -> Result<(), String> {
    let wrong = |why: &str| Err(format!("{place}: {why}: {value}"));
    if schema.get("const").is_some_and(|only| only != value) {
        return wrong("is another constant");
    }
    if schema
        .get("enum")
        .is_some_and(|all| !all.as_array().unwrap().contains(value))
    {
        return wrong("is not in the enumeration");
    }
    match (schema.get("type").and_then(Value::as_str), value) {
        (None, _) | (Some("string"), Value::String(_)) | (Some("boolean"), Value::Bool(_)) => {}
        (Some("integer"), Value::Number(n)) if n.is_u64() => {}
        (Some("array"), Value::Array(items)) => {
            if items.len() < schema.get("minItems").map_or(0, |n| n.as_u64().unwrap() as usize) {
                return wrong("has too few items");
            }
            for (at, item) in items.iter().enumerate() {
                check(&schema["items"], item, &format!("{place}[{at}]"))?;
            }
        }
        (Some("object"), Value::Object(fields)) => {
            let required = schema.get("required").and_then(Value::as_array);
            if !required
                .into_iter()
                .flatten()
                .all(|name| fields.contains_key(name.as_str().unwrap()))
            {
                return wrong("lacks a field");
            }
            if fields.len() < schema.get("minProperties").map_or(0, |n| n.as_u64().unwrap() as usize) {
                return wrong("has too few fields");
            }
            for (name, field) in fields {
                let of_field = schema.get("properties").and_then(|p| p.get(name));
                match of_field.or(schema.get("additionalProperties")) {
                    Some(Value::Bool(false)) => return wrong(&format!("has an unknown field {name}")),
                    Some(schema) => check(schema, field, &format!("{place}.{name}"))?,
                    None => {}
                }
            }
        }
        _ => return wrong("has another type"),
    }
    Ok(())
}

#[test]
fn the_files_in_the_document_are_valid_for_the_parser_and_the_schema() {
    let blocks = DOCUMENT
        .split("```yaml\n")
        .skip(1)
        .map(|rest| rest.split("```").next().unwrap());
    let files: Vec<_> = blocks
        .filter(|text| text.starts_with("apiVersion: scope.isthmus.io"))
        .collect();
    assert!(files.len() >= 4, "{} files", files.len());
    for text in files {
        let value: Value = serde_saphyr::from_str(text).unwrap();
        parse(text).unwrap_or_else(|error| panic!("{error}\n{text}"));
        check(&schema(), &value, "").unwrap_or_else(|error| panic!("{error}\n{text}"));
    }
}

#[test]
fn the_schema_refuses_what_the_parser_refuses() {
    for sections in [
        json!({"exports": {}}),
        json!({"export": {"endpoints": {"rules": [{"name": "a", "action": "exclude"}]}}}),
        json!({"export": {"endpoints": {"rules": [{"name": "a", "action": "drop", "backendsOfGlobalServices": true}]}}}),
        json!({"export": {"endpoints": {"rules": [{"name": "a", "action": "exclude", "namespaces": {"existing": true}}]}}}),
        json!({"import": {"clusters": [{"clusters": ["a"]}]}}),
        json!({"import": {"clusters": [{"name": "a", "clusters": []}]}}),
        json!({"import": {"clusters": [{"name": "a", "clusters": ["a"], "limits": {"pods": 1}}]}}),
    ] {
        let text = file(&sections);
        assert!(parse(&text).is_err(), "{text}");
        assert!(
            check(&schema(), &serde_json::from_str(&text).unwrap(), "").is_err(),
            "{text}"
        );
    }
}

/// Waits until `found` says so.
async fn until(what: &str, mut found: impl FnMut() -> bool) {
    let waited = tokio::time::timeout(Duration::from_secs(60), async {
        while !found() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    waited.await.unwrap_or_else(|_| panic!("{what}"));
}

#[tokio::test]
async fn a_scope_file_with_a_mistake_changes_nothing_and_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("scope.yaml");
    let (mut watcher, follower) = follow(path.clone());
    let state = std::sync::Arc::clone(watcher.state());
    let story = async {
        until("a missing file is named", || {
            state
                .problem()
                .is_some_and(|p| p.contains("scope.yaml: the file does not exist"))
        })
        .await;
        assert!(watcher.current().is_none() && state.loaded().is_none());
        std::fs::write(&path, file(&json!({"region": 7}))).unwrap();
        until("a mistake is named", || {
            state.problem().is_some_and(|p| p.contains("region: invalid type"))
        })
        .await;
        assert!(watcher.current().is_none() && state.errors() >= 2);
        std::fs::write(&path, file(&json!({"region": "apac"}))).unwrap();
        assert_eq!(watcher.usable().await.region.as_deref(), Some("apac"));
        assert_eq!(state.problem(), None);
        let errors = state.errors();
        std::fs::write(&path, "kind: [").unwrap();
        until("a later mistake is named", || state.problem().is_some()).await;
        assert_eq!(
            watcher.current().unwrap().region.as_deref(),
            Some("apac"),
            "the former scope stays"
        );
        assert_eq!(state.errors(), errors + 1);
        std::fs::remove_file(&path).unwrap();
        until("a removed file is named", || {
            state.problem().is_some_and(|p| p.contains("the file is gone"))
        })
        .await;
        assert_eq!(watcher.current().unwrap().region.as_deref(), Some("apac"));
        std::fs::write(&path, file(&json!({"region": "emea"}))).unwrap();
        assert_eq!(watcher.changed().await.region.as_deref(), Some("emea"));
        assert_eq!(state.problem(), None);
    };
    tokio::select! {
        () = follower.run() => {}
        () = story => {}
    }
}

#[tokio::test]
async fn a_mounted_config_map_is_followed_through_its_links() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    let version = |name: &str, region: &str| {
        std::fs::create_dir(at(name)).unwrap();
        std::fs::write(at(name).join("scope.yaml"), file(&json!({"region": region}))).unwrap();
    };
    version("..v1", "apac");
    std::os::unix::fs::symlink("..v1", at("..data")).unwrap();
    std::os::unix::fs::symlink("..data/scope.yaml", at("scope.yaml")).unwrap();
    let (mut watcher, follower) = follow(at("scope.yaml"));
    let story = async {
        assert_eq!(watcher.usable().await.region.as_deref(), Some("apac"));
        // As the kubelet replaces a mounted ConfigMap.
        version("..v2", "emea");
        std::os::unix::fs::symlink("..v2", at("..tmp")).unwrap();
        std::fs::rename(at("..tmp"), at("..data")).unwrap();
        assert_eq!(watcher.changed().await.region.as_deref(), Some("emea"));
    };
    tokio::select! {
        () = follower.run() => {}
        () = story => {}
    }
}
