//! Single rules of a scoped publisher; `scope_walk` has all of them together.

use super::*;
use crate::scope::{Export, ScopeFile};
use std::collections::HashSet;
use std::sync::Arc;

fn export(export: Value) -> Arc<Export> {
    let file = json!({"apiVersion": "scope.isthmus.io/v1", "kind": "Scope", "export": export});
    Arc::new(ScopeFile::parse(file.to_string().as_bytes()).unwrap().export)
}

/// A publisher with this scope, whose first lists have completed without objects, and its namespace `foo`.
fn bench(rules: Value) -> Bench {
    let mut bench = Bench::before_lists(options());
    bench.publisher = bench.publisher.with_scope(export(rules), HashSet::new());
    Kind::ALL.iter().for_each(|kind| bench.send(Event::Listed(*kind)));
    bench.apply(namespace("foo", None));
    bench
}

fn identity(number: u32, app: &str) -> Value {
    json!({
        "kind": "CiliumIdentity", "metadata": {"name": number.to_string()},
        "security-labels": {"k8s:io.kubernetes.pod.namespace": "foo", "k8s:app": app},
    })
}

fn pod(name: &str, ip: &str, identity: u32) -> Value {
    let mut value = endpoint(name, ip);
    value["status"]["identity"]["id"] = json!(identity);
    value
}

fn annotated(mut value: Value, annotations: Value) -> Value {
    value["metadata"]["annotations"] = annotations;
    value
}

/// The kinds and names of actions.
fn lines(actions: &[Action]) -> Vec<String> {
    let line = |action: &Action| match action {
        Action::Upsert { scope, name, .. } => format!("+{} {name}", scope.word()),
        Action::Delete { scope, name } => format!("-{} {name}", scope.word()),
        other => format!("{other:?}"),
    };
    actions.iter().map(line).collect()
}

fn only(app: &str) -> Value {
    json!({"endpoints": {"default": "exclude", "rules": [
        {"name": "only", "action": "include", "identity": {"matchLabels": {"k8s:app": app}}},
    ]}})
}

#[test]
fn an_address_with_an_unknown_identity_is_neither_published_nor_withdrawn() {
    let mut bench = bench(only("db"));
    bench.apply(pod("p", "10.0.0.1", 1009));
    assert!(bench.names(Scope::Endpoints).is_empty(), "kept back");
    bench.apply(identity(1009, "db"));
    assert_eq!(bench.names(Scope::Endpoints), ["10.0.0.1"]);
    bench.delete(Kind::Identity, "", "1009");
    assert_eq!(bench.names(Scope::Endpoints), ["10.0.0.1"], "stays");
    let mut moved = pod("p", "10.0.0.1", 1009);
    moved["status"]["networking"]["node"] = json!("2.2.2.2");
    bench.apply(moved);
    let node = |bench: &Bench| bench.json(Scope::Endpoints, "10.0.0.1")["HostIP"].clone();
    assert_eq!(node(&bench), "2.2.2.2", "the value follows");
    bench.apply(pod("p", "10.0.0.1", 1010));
    assert_eq!(
        bench.json(Scope::Endpoints, "10.0.0.1")["ID"],
        1010,
        "another unknown identity"
    );
    bench.apply(identity(1010, "web"));
    assert!(bench.names(Scope::Endpoints).is_empty(), "known, and not wanted");
}

#[test]
fn a_reserved_identity_is_known_but_one_that_is_being_found() {
    let reserved = json!({"endpoints": {"default": "exclude", "rules": [
        {"name": "health", "action": "include", "identity": {"matchExpressions": [{"key": "reserved:health", "operator": "Exists"}]}},
    ]}});
    let mut bench = bench(reserved);
    bench.apply(pod("health", "10.0.0.1", 4));
    bench.apply(pod("web", "10.0.0.2", 1009));
    bench.apply(identity(1009, "web"));
    assert_eq!(bench.names(Scope::Endpoints), ["10.0.0.1"]);
    bench.apply(pod("health", "10.0.0.1", 5));
    assert_eq!(bench.names(Scope::Endpoints), ["10.0.0.1"], "nothing is known of init");
}

#[test]
fn after_a_restart_an_undecided_address_stays_and_a_new_one_does_not_come() {
    let mut bench = Bench::before_lists(options());
    let former = HashSet::from(["10.0.0.1".into(), "10.0.0.3".into()]);
    bench.publisher = bench.publisher.with_scope(export(only("db")), former);
    bench.apply(namespace("foo", None));
    bench.apply(pod("p", "10.0.0.1", 1009));
    bench.apply(pod("q", "10.0.0.2", 1009));
    Kind::ALL.iter().for_each(|kind| bench.send(Event::Listed(*kind)));
    assert_eq!(bench.names(Scope::Endpoints), ["10.0.0.1"]);
    bench.apply(pod("r", "10.0.0.3", 1009));
    assert_eq!(
        bench.names(Scope::Endpoints),
        ["10.0.0.1"],
        "the past is forgotten after the lists"
    );
}

#[test]
fn addresses_and_identities_wait_for_all_lists_that_decide_about_them() {
    let mut bench = Bench::before_lists(options());
    bench.publisher = bench.publisher.with_scope(export(json!({})), HashSet::new());
    for kind in [
        Kind::Namespace,
        Kind::Identity,
        Kind::Endpoint,
        Kind::Service,
        Kind::Node,
    ] {
        bench.send(Event::Listed(kind));
    }
    assert_eq!(bench.synced, [Scope::Nodes]);
    bench.send(Event::Listed(Kind::EndpointSlice));
    assert!(bench.synced.contains(&Scope::Identities) && bench.synced.contains(&Scope::Endpoints));
}

#[test]
fn an_annotation_goes_before_rules_and_after_the_global_namespace() {
    let sync = |value: &str| json!({"clustermesh.cilium.io/sync": value});
    let mut bench = bench(json!({"endpoints": {"default": "exclude"}}));
    bench.apply(annotated(pod("p", "10.0.0.1", 9), sync("true")));
    bench.apply(pod("q", "10.0.0.2", 9));
    assert_eq!(bench.names(Scope::Endpoints), ["10.0.0.1"]);
    bench.apply(namespace("foo", Some("false")));
    assert!(bench.keys.is_empty());
    bench.apply(namespace("foo", Some("true")));
    bench.apply(annotated(pod("p", "10.0.0.1", 9), sync("yes")));
    assert!(bench.keys.is_empty());
    let told = "annotation clustermesh.cilium.io/sync: \"yes\" is ignored, because it is neither true nor false";
    assert!(bench.problems[0].ends_with(told), "{:?}", bench.problems);

    let mut without = Bench::new(options());
    without.apply(namespace("foo", None));
    without.apply(annotated(pod("p", "10.0.0.1", 9), sync("false")));
    assert_eq!(
        without.names(Scope::Endpoints),
        ["10.0.0.1"],
        "annotations count only with a scope"
    );
}

#[test]
fn a_regional_address_has_one_field_more_at_its_end() {
    let regional = json!({"clustermesh.cilium.io/sync-scope": "Regional"});
    let value = |bench: &Bench| bench.keys[&(Scope::Endpoints, "10.0.0.1".to_owned())].clone();
    let mut scoped = bench(json!({}));
    scoped.apply(pod("p", "10.0.0.1", 9));
    let plain = value(&scoped);
    scoped.apply(annotated(pod("p", "10.0.0.1", 9), regional.clone()));
    let end = [plain.strip_suffix(b"}").unwrap(), br#","SyncScope":"regional"}"#].concat();
    assert_eq!(value(&scoped), end);
    let mut without = Bench::new(options());
    without.apply(namespace("foo", None));
    without.apply(annotated(pod("p", "10.0.0.1", 9), regional));
    assert_eq!(value(&without), plain);
}

#[test]
fn a_claim_that_is_left_out_owns_no_address() {
    let mut bench = bench(only("db"));
    bench.apply(identity(9, "db"));
    bench.apply(identity(10, "web"));
    bench.apply(pod("old", "10.0.0.1", 10));
    bench.apply(pod("new", "10.0.0.1", 9));
    let owner = |bench: &Bench| bench.json(Scope::Endpoints, "10.0.0.1")["K8sPodName"].clone();
    assert_eq!(owner(&bench), "new");
    bench.apply(identity(10, "db"));
    assert_eq!(owner(&bench), "old", "the first claim that is kept");
    bench.apply(identity(9, "web"));
    bench.delete(Kind::Endpoint, "foo", "old");
    assert!(bench.names(Scope::Endpoints).is_empty());
}

#[test]
fn backends_of_global_services_come_and_go_with_services_and_slices() {
    let rules = json!({
        "endpoints": {"default": "exclude", "rules": [
            {"name": "backends", "action": "include", "backendsOfGlobalServices": true},
        ]},
        "services": {"rules": [
            {"name": "internal", "action": "exclude", "labels": {"matchLabels": {"tier": "internal"}}},
        ]},
    });
    let mut bench = bench(rules);
    let global = service(json!({"service.cilium.io/global": "true"}));
    bench.apply(pod("p", "10.0.0.1", 9));
    bench.apply(pod("q", "10.0.0.2", 9));
    bench.apply(slice("s-1", "10.0.0.1", ("http", 80)));
    assert!(bench.keys.is_empty());
    bench.apply(global.clone());
    assert_eq!(bench.names(Scope::Endpoints), ["10.0.0.1"]);
    bench.apply(slice("s-2", "10.0.0.2", ("http", 80)));
    bench.apply(slice("s-1", "10.0.0.2", ("http", 80)));
    assert_eq!(bench.names(Scope::Endpoints), ["10.0.0.2"]);
    bench.delete(Kind::EndpointSlice, "foo", "s-1");
    assert_eq!(
        bench.names(Scope::Endpoints),
        ["10.0.0.2"],
        "another slice has the address"
    );
    let mut internal = global.clone();
    internal["metadata"]["labels"] = json!({"tier": "internal"});
    bench.apply(internal);
    assert!(
        bench.keys.is_empty(),
        "a service that is left out is not global: {:?}",
        bench.keys.keys()
    );
    bench.apply(global);
    assert_eq!(bench.keys.len(), 3);
    bench.apply(service(json!({})));
    assert!(bench.keys.is_empty());
}

#[test]
fn a_changed_scope_acts_on_the_keys_that_are_decided_otherwise() {
    let mut bench = bench(only("db"));
    for (n, app) in [(1, "db"), (2, "web"), (3, "db"), (4, "cache")] {
        bench.apply(identity(n, app));
        bench.apply(pod(&format!("p{n}"), &format!("10.0.0.{n}"), n));
    }
    let global = service(json!({"service.cilium.io/global": "true"}));
    bench.apply(global);
    let publisher = &mut bench.publisher;
    let none = Vec::<String>::new();
    assert_eq!(lines(&publisher.set_scope(export(only("db")))), none);
    assert_eq!(
        lines(&publisher.set_scope(export(only("web")))),
        ["+ip 10.0.0.2", "-ip 10.0.0.1", "-ip 10.0.0.3"]
    );
    let mut renamed = only("web");
    renamed["endpoints"]["rules"][0]["name"] = json!("other");
    assert_eq!(lines(&publisher.set_scope(export(renamed))), none);
    let mut used = only("web");
    used["identities"] = json!("used");
    assert_eq!(
        lines(&publisher.set_scope(export(used))),
        ["-identities 1", "-identities 3", "-identities 4"]
    );
    assert_eq!(
        lines(&publisher.set_scope(export(json!({"services": {"default": "exclude"}})))),
        [
            "+identities 1",
            "+identities 3",
            "+identities 4",
            "+ip 10.0.0.1",
            "+ip 10.0.0.3",
            "+ip 10.0.0.4",
            "-services foo/s"
        ]
    );
    let label = json!({"services": {"default": "exclude", "rules": [
        {"name": "dev", "action": "exclude", "namespaces": {"labels": {"matchLabels": {"env": "dev"}}}},
    ]}});
    assert_eq!(lines(&publisher.set_scope(export(label))), none);
}

#[test]
fn used_identities_are_there_before_their_first_address_and_until_after_their_last() {
    let mut bench = bench(json!({"identities": "used"}));
    bench.apply(identity(9, "db"));
    assert!(bench.keys.is_empty());
    let mut send = |value: Value| lines(&bench.publisher.handle(object(value)));
    assert_eq!(send(pod("p", "10.0.0.1", 9)), ["+identities 9", "+ip 10.0.0.1"]);
    assert_eq!(send(pod("q", "10.0.0.2", 9)), ["+ip 10.0.0.2"]);
    assert_eq!(send(identity(10, "web")), ["-identities 10"]);
    assert_eq!(send(pod("q", "10.0.0.2", 10)), ["+identities 10", "+ip 10.0.0.2"]);
    assert_eq!(send(pod("p", "10.0.0.1", 10)), ["+ip 10.0.0.1", "-identities 9"]);
    assert_eq!(send(pod("p", "10.0.0.3", 10)), ["+ip 10.0.0.3", "-ip 10.0.0.1"]);
}

#[test]
fn labels_of_a_namespace_move_the_keys_of_that_namespace() {
    let prod = json!({"default": "exclude", "rules": [
        {"name": "prod", "action": "include", "namespaces": {"labels": {"matchLabels": {"env": "prod"}}}},
    ]});
    let mut bench = bench(json!({"endpoints": prod, "services": prod, "serviceExports": prod}));
    let in_bar = |mut value: Value| {
        value["metadata"]["namespace"] = json!("bar");
        value
    };
    bench.apply(namespace("bar", None));
    let global = service(json!({"service.cilium.io/global": "true"}));
    for value in [pod("p", "10.0.0.1", 9), global, slice("s-1", "10.0.0.1", ("http", 80))] {
        bench.apply(value.clone());
        bench.apply(in_bar(value));
    }
    bench.apply(json!({"kind": "ServiceExport", "metadata": {"name": "s", "namespace": "foo"}}));
    assert!(bench.keys.is_empty());
    let label = |env: &str| {
        let mut value = namespace("foo", None);
        value["metadata"]["labels"] = json!({"env": env});
        object(value)
    };
    assert_eq!(
        lines(&bench.publisher.handle(label("prod"))),
        [
            "+ip 10.0.0.1",
            "+services foo/s",
            "+endpointslices foo/s-1",
            "+serviceexports foo/s"
        ]
    );
    assert!(bench.publisher.handle(label("prod")).is_empty());
    assert_eq!(
        lines(&bench.publisher.handle(label("dev"))),
        [
            "-services foo/s",
            "-endpointslices foo/s-1",
            "-serviceexports foo/s",
            "-ip 10.0.0.1"
        ]
    );
}
