//! The filter by hand: what enters the mirror, what leaves it, and in which order.

mod cost;
mod memory;
mod model;
mod walk;

use super::*;
use bytes::Bytes;
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};

const ENDPOINTS: &str = "cilium/cache/ip/v1/hk/";
const IDENTITIES: &str = "cilium/cache/identities/v1/hk/id/";
const SERVICES_HERE: &str = "cilium/cache/services/v1/hk/";

fn file(region: &str, entry: &serde_json::Value) -> Arc<ScopeFile> {
    let file = json!({
        "apiVersion": "scope.isthmus.io/v1", "kind": "Scope", "region": region,
        "import": {"clusters": [entry]},
    });
    Arc::new(ScopeFile::parse(file.to_string().as_bytes()).unwrap())
}

fn entry(fields: serde_json::Value) -> serde_json::Value {
    let mut entry = json!({"name": "hk", "clusters": ["hk"]});
    let entries = entry.as_object_mut().unwrap();
    entries.extend(fields.as_object().unwrap().clone());
    entry
}

fn hk() -> ClusterName {
    ClusterName::new("hk").unwrap()
}

/// A filter with what it has written.
struct Mirror {
    filter: Filter,
    keys: BTreeMap<String, String>,
    log: Vec<String>,
}

impl Mirror {
    fn new(fields: serde_json::Value) -> Self {
        Self {
            filter: Filter::new(&hk(), file("apac", &entry(fields)), None),
            keys: BTreeMap::new(),
            log: vec![],
        }
    }

    /// Does something to the filter, and applies the writes.
    fn act(&mut self, act: impl FnOnce(&mut Filter, Stored<'_>, &mut Vec<Write>)) {
        let mut out = vec![];
        let keys = &self.keys;
        let stored = |key: &[u8]| keys.contains_key(std::str::from_utf8(key).unwrap());
        act(&mut self.filter, &stored, &mut out);
        self.filter.settle(&mut out);
        for write in out {
            match write {
                Write::Put(key, value) => {
                    let (key, value) = (text(&key), text(&value));
                    self.log.push(format!("+{}", key.rsplit('/').next().unwrap()));
                    self.keys.insert(key, value);
                }
                Write::Delete(key) => {
                    let key = text(&key);
                    if self.keys.remove(&key).is_some() {
                        self.log.push(format!("-{}", key.rsplit('/').next().unwrap()));
                    }
                }
            }
        }
    }

    fn put(&mut self, kind: Scope, name: &str, value: &str) {
        let key = kind.cache_prefix(&hk()) + name;
        self.act(|filter, stored, out| {
            filter.put(kind, key.into(), Bytes::copy_from_slice(value.as_bytes()), stored, out);
        });
    }

    fn endpoint(&mut self, address: &str, namespace: &str, identity: u32) {
        self.put(Scope::Endpoints, address, &endpoint(namespace, identity));
    }

    fn delete(&mut self, kind: Scope, name: &str) {
        let key = kind.cache_prefix(&hk()) + name;
        self.act(|filter, _, out| filter.delete(kind, key.into(), out));
    }

    fn list(&mut self, kind: Scope, keys: &[(&str, &str)]) {
        self.filter.list_begun(kind);
        for (name, value) in keys {
            self.put(kind, name, value);
        }
        self.act(|filter, _, out| filter.list_ended(kind, out));
    }

    fn set(&mut self, fields: serde_json::Value) {
        let file = file("apac", &entry(fields));
        self.act(|filter, _, out| filter.set_file(&file, out));
    }

    fn log(&mut self) -> Vec<String> {
        std::mem::take(&mut self.log)
    }

    fn names(&self, prefix: &str) -> BTreeSet<&str> {
        self.keys.keys().filter_map(|key| key.strip_prefix(prefix)).collect()
    }

    fn wanted(&self, kind: Scope) -> Vec<String> {
        match self.filter.todo(kind) {
            Todo::Read(names) => names.iter().map(|name| text(name)).collect(),
            other => panic!("{other:?}"),
        }
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

fn endpoint(namespace: &str, identity: u32) -> String {
    json!({"ID": identity, "K8sNamespace": namespace}).to_string()
}

fn service(backends: &[&str]) -> String {
    let backends: BTreeMap<_, _> = backends.iter().map(|address| (*address, json!({}))).collect();
    json!({"backends": backends}).to_string()
}

fn shop_only() -> serde_json::Value {
    json!({"endpoints": {"default": "exclude", "rules": [
        {"name": "shop", "action": "include", "namespaces": {"names": ["shop"]}},
    ]}})
}

#[test]
fn a_key_that_leaves_the_scope_is_deleted_and_one_that_enters_is_read() {
    let mut mirror = Mirror::new(shop_only());
    let list = [
        ("10.0.0.1", endpoint("shop", 300)),
        ("10.0.0.2", endpoint("batch", 301)),
    ];
    mirror.list(
        Scope::Endpoints,
        &list.each_ref().map(|(name, value)| (*name, &**value)),
    );
    assert_eq!(mirror.log(), ["+10.0.0.1"]);
    // The address passes from a pod to another.
    mirror.endpoint("10.0.0.1", "batch", 301);
    mirror.endpoint("10.0.0.2", "shop", 300);
    assert_eq!(mirror.log(), ["-10.0.0.1", "+10.0.0.2"]);
    mirror.set(json!({"endpoints": {"default": "exclude", "rules": [
        {"name": "batch", "action": "include", "namespaces": {"names": ["bat*"]}},
    ]}}));
    assert_eq!(mirror.log(), ["-10.0.0.2"]);
    assert_eq!(mirror.wanted(Scope::Endpoints), ["10.0.0.1"]);
    let value = endpoint("batch", 301);
    mirror.act(|filter, _, out| {
        filter.read(
            Scope::Endpoints,
            format!("{ENDPOINTS}10.0.0.1").into(),
            Some(value.into()),
            out,
        );
    });
    assert_eq!(mirror.log(), ["+10.0.0.1"]);
    assert_eq!(mirror.filter.todo(Scope::Endpoints), Todo::Nothing);
}

#[test]
fn rules_that_say_the_same_touch_nothing() {
    let mut mirror = Mirror::new(shop_only());
    let values = ["shop", "batch"].map(|namespace| endpoint(namespace, 300));
    mirror.list(Scope::Endpoints, &[("10.0.0.1", &values[0]), ("10.0.0.2", &values[1])]);
    let version = mirror.filter.version();
    mirror.set(shop_only());
    assert_eq!(mirror.filter.version(), version);
    // Another kind gets rules.
    let mut fields = shop_only();
    fields["services"] = json!({"default": "exclude", "rules": [
        {"name": "shop", "action": "include", "namespaces": {"names": ["shop"]}},
    ]});
    mirror.log();
    mirror.set(fields);
    assert_eq!(mirror.log(), Vec::<String>::new());
    assert_eq!(mirror.filter.todo(Scope::Endpoints), Todo::Nothing);
    // Nothing is remembered of the services so far.
    assert_eq!(mirror.filter.todo(Scope::Services), Todo::List);
}

#[test]
fn an_endpoint_whose_identity_is_not_known_is_kept_back_or_stays() {
    let by_app = json!({"endpoints": {"default": "include", "rules": [
        {"name": "no-batch", "action": "exclude", "identity": {"matchLabels": {"k8s:app": "batch"}}},
    ]}});
    let mut mirror = Mirror::new(by_app);
    mirror.list(
        Scope::Identities,
        &[("300", "k8s:app=shop;"), ("301", "k8s:app=batch;")],
    );
    // The process that ran before has mirrored an address whose identity is gone.
    mirror.keys.insert(format!("{ENDPOINTS}10.0.0.9"), "old".to_owned());
    let values = [300, 301, 302, 302].map(|identity| endpoint("a", identity));
    let names = ["10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.9"];
    let list: Vec<_> = names
        .iter()
        .zip(&values)
        .map(|(name, value)| (*name, &**value))
        .collect();
    mirror.list(Scope::Endpoints, &list);
    assert_eq!(mirror.names(ENDPOINTS), ["10.0.0.1", "10.0.0.9"].into());
    assert_eq!(
        mirror.keys[&format!("{ENDPOINTS}10.0.0.9")],
        endpoint("a", 302),
        "its value follows"
    );
    mirror.log();
    mirror.put(Scope::Identities, "302", "k8s:app=shop;");
    assert_eq!(mirror.wanted(Scope::Endpoints), ["10.0.0.3"]);
    // The identity is collected while an endpoint still has it, and is another one later.
    mirror.delete(Scope::Identities, "300");
    assert_eq!(mirror.names(ENDPOINTS), ["10.0.0.1", "10.0.0.9"].into());
    mirror.log();
    mirror.put(Scope::Identities, "300", "k8s:app=batch;");
    assert_eq!(mirror.log(), ["+300", "-10.0.0.1"]);
    // Reserved identities have no keys.
    mirror.endpoint("10.0.0.4", "", 1);
    assert_eq!(mirror.log(), ["+10.0.0.4"]);
}

#[test]
fn an_identity_is_mirrored_before_its_first_endpoint_and_removed_after_its_last() {
    let mut fields = shop_only();
    fields["identities"] = json!("used");
    let mut mirror = Mirror::new(fields);
    // An earlier process has mirrored an identity that is still used: it must not be gone for a moment.
    mirror.keys.insert(format!("{IDENTITIES}300"), "old".to_owned());
    mirror.list(
        Scope::Identities,
        &[("300", "k8s:a=1;"), ("301", "k8s:a=2;"), ("302", "k8s:a=3;")],
    );
    assert_eq!(mirror.log(), ["+300"]);
    assert!(!mirror.filter.is_decided(Scope::Identities));
    let values = [300, 301].map(|identity| endpoint("shop", identity));
    mirror.list(Scope::Endpoints, &[("10.0.0.1", &values[0]), ("10.0.0.2", &values[1])]);
    assert_eq!(mirror.log(), ["+10.0.0.1", "+301", "+10.0.0.2"]);
    assert!(mirror.filter.is_decided(Scope::Identities));
    mirror.delete(Scope::Endpoints, "10.0.0.2");
    assert_eq!(mirror.log(), ["-10.0.0.2", "-301"]);
    // The labels change while the identity is left out.
    mirror.put(Scope::Identities, "301", "k8s:a=22;");
    assert_eq!(mirror.log(), Vec::<String>::new());
    mirror.endpoint("10.0.0.3", "shop", 301);
    assert_eq!(mirror.log(), ["+301", "+10.0.0.3"]);
    assert_eq!(mirror.keys[&format!("{IDENTITIES}301")], "k8s:a=22;");
    // One endpoint replaces another in the same message.
    mirror.act(|filter, stored, out| {
        filter.delete(Scope::Endpoints, format!("{ENDPOINTS}10.0.0.3").into(), out);
        let (key, value) = (format!("{ENDPOINTS}10.0.0.4").into(), endpoint("shop", 301).into());
        filter.put(Scope::Endpoints, key, value, stored, out);
    });
    assert_eq!(mirror.log(), ["-10.0.0.3", "+10.0.0.4"]);
    mirror.set(json!({}));
    assert_eq!(mirror.log(), ["+302"], "all identities come back without a read");
}

#[test]
fn endpoints_follow_the_services_that_are_mirrored() {
    let behind_services = json!({
        "endpoints": {"default": "exclude", "rules": [
            {"name": "backends", "action": "include", "backendsOfServices": true},
        ]},
        "services": {"default": "exclude", "rules": [
            {"name": "shop", "action": "include", "namespaces": {"names": ["shop"]}},
        ]},
    });
    let mut mirror = Mirror::new(behind_services);
    assert_eq!(
        mirror.filter.needs(Scope::Endpoints),
        [Scope::Identities, Scope::Services, Scope::EndpointSlices]
    );
    let (db, other) = (service(&["10.0.0.1", "10.0.0.2"]), service(&["10.0.0.3"]));
    mirror.list(Scope::Services, &[("shop/db", &db), ("batch/x", &other)]);
    mirror.act(|filter, _, out| filter.emptied(Scope::EndpointSlices, out));
    assert_eq!(mirror.names(SERVICES_HERE), ["shop/db"].into());
    let values = ["10.0.0.1", "10.0.0.2", "10.0.0.3"].map(|address| (address, endpoint("shop", 300)));
    mirror.list(
        Scope::Endpoints,
        &values.each_ref().map(|(name, value)| (*name, &**value)),
    );
    assert_eq!(mirror.names(ENDPOINTS), ["10.0.0.1", "10.0.0.2"].into());
    mirror.log();
    mirror.put(
        Scope::Services,
        "shop/db",
        &service(&["10.0.0.2", "10.0.0.3", "10.0.0.4"]),
    );
    assert_eq!(mirror.log(), ["+db", "-10.0.0.1"]);
    // There is no endpoint 10.0.0.4 yet.
    assert_eq!(mirror.wanted(Scope::Endpoints), ["10.0.0.3"]);
    mirror.endpoint("10.0.0.4", "shop", 300);
    assert_eq!(mirror.log(), ["+10.0.0.4"]);
    mirror.delete(Scope::Services, "shop/db");
    assert_eq!(mirror.log(), ["-db", "-10.0.0.2", "-10.0.0.4"]);
    assert_eq!(mirror.filter.todo(Scope::Endpoints), Todo::Nothing);
}

#[test]
fn namespaces_of_this_cluster_that_are_not_known_change_nothing() {
    let existing = json!({"endpoints": {"default": "exclude", "rules": [
        {"name": "here", "action": "include", "namespaces": {"existing": true}},
    ]}});
    let mut mirror = Mirror::new(existing);
    mirror.keys.insert(format!("{ENDPOINTS}10.0.0.1"), "old".to_owned());
    let values = ["shop", "batch"].map(|namespace| endpoint(namespace, 300));
    mirror.list(Scope::Endpoints, &[("10.0.0.1", &values[1]), ("10.0.0.2", &values[0])]);
    assert_eq!(mirror.names(ENDPOINTS), ["10.0.0.1"].into());
    assert!(!mirror.filter.is_decided(Scope::Endpoints));
    let set = |mirror: &mut Mirror, names: &[&str]| {
        let names: BTreeSet<_> = names.iter().map(|name| (*name).to_owned()).collect();
        mirror.act(|filter, _, out| filter.set_existing(Some(Arc::new(names)), out));
    };
    set(&mut mirror, &["shop"]);
    assert!(mirror.filter.is_decided(Scope::Endpoints));
    assert_eq!(mirror.names(ENDPOINTS), [].into());
    assert_eq!(mirror.wanted(Scope::Endpoints), ["10.0.0.2"]);
    set(&mut mirror, &["batch"]);
    assert_eq!(mirror.wanted(Scope::Endpoints), ["10.0.0.1"]);
}

#[test]
fn endpoints_for_another_region_are_left_out_where_both_regions_are_known() {
    let mut mirror = Mirror::new(json!({}));
    let regional = json!({"ID": 300, "SyncScope": "regional"}).to_string();
    let global = json!({"ID": 300}).to_string();
    let list = [("10.0.0.1", &*regional), ("10.0.0.2", &*global)];
    assert_eq!(mirror.filter.mode(Scope::Endpoints), Mode::Pass);
    mirror.list(Scope::Endpoints, &list);
    assert_eq!(mirror.names(ENDPOINTS), ["10.0.0.1", "10.0.0.2"].into());
    for (region, todo, names) in [
        ("apac", Todo::Nothing, vec!["10.0.0.1", "10.0.0.2"]),
        ("emea", Todo::List, vec!["10.0.0.2"]),
        ("apac", Todo::List, vec!["10.0.0.1", "10.0.0.2"]),
    ] {
        mirror.act(|filter, _, out| filter.set_region(Some(region), out));
        assert_eq!(mirror.filter.todo(Scope::Endpoints), todo, "{region}");
        mirror.list(Scope::Endpoints, &list);
        // What the list did not write is removed by the writer.
        let present: BTreeSet<_> = mirror.log().iter().map(|put| put[1..].to_owned()).collect();
        assert_eq!(present, names.into_iter().map(str::to_owned).collect(), "{region}");
    }
}

#[test]
fn a_kind_that_is_left_out_whole_is_off_unless_rules_need_its_labels() {
    let mut mirror = Mirror::new(json!({"kinds": ["endpoints"], "endpoints": {"default": "exclude"}}));
    for kind in Scope::ALL {
        assert_eq!(mirror.filter.mode(kind), Mode::Off, "{kind:?}");
        assert_eq!(mirror.filter.todo(kind), Todo::Off);
    }
    mirror.set(json!({"kinds": ["endpoints"], "endpoints": {"rules": [
        {"name": "no-batch", "action": "exclude", "identity": {"matchLabels": {"app": "batch"}}},
    ]}}));
    assert_eq!(mirror.filter.mode(Scope::Identities), Mode::Filtered);
    mirror.list(Scope::Identities, &[("300", "k8s:app=shop;")]);
    mirror.list(Scope::Endpoints, &[("10.0.0.1", &endpoint("shop", 300))]);
    assert_eq!(mirror.log(), ["+10.0.0.1"]);
    let report = mirror.filter.report().unwrap();
    let kinds: Vec<_> = report
        .kinds
        .iter()
        .map(|k| (k.kind, k.is_off, k.kept, k.left_out))
        .collect();
    assert_eq!(kinds[0], (Scope::Identities, false, 0, 1));
    assert_eq!(kinds[1], (Scope::Endpoints, false, 1, 0));
    assert!(kinds[2..].iter().all(|(_, is_off, ..)| *is_off));
}

#[test]
fn the_report_counts_keys_by_rule() {
    let mut mirror = Mirror::new(json!({"endpoints": {"default": "exclude", "rules": [
        {"name": "no-batch", "action": "exclude", "namespaces": {"names": ["batch-*"]}},
        {"name": "shop", "action": "include", "namespaces": {"names": ["shop"]}},
        {"name": "db", "action": "include", "identity": {"matchLabels": {"app": "db"}}},
    ]}}));
    mirror.list(Scope::Identities, &[]);
    let values = ["batch-1", "batch-2", "shop", "other"].map(|namespace| endpoint(namespace, 300));
    let list: Vec<_> = ["10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.4"]
        .into_iter()
        .zip(&values)
        .map(|(name, value)| (name, &**value))
        .collect();
    mirror.list(Scope::Endpoints, &list);
    let report = mirror.filter.report().unwrap();
    assert_eq!(report.entry.as_deref(), Some("hk"));
    let endpoints = report.kinds.iter().find(|k| k.kind == Scope::Endpoints).unwrap();
    assert_eq!((endpoints.kept, endpoints.left_out, endpoints.pending), (1, 2, 1));
    let rules: Vec<_> = endpoints
        .rules
        .iter()
        .map(|((decision, rule), keys)| format!("{} {rule} {keys}", decision.word()))
        .collect();
    assert_eq!(rules, ["kept shop 1", "left-out no-batch 2", "pending db 1"]);
    let size = values[0].len() as u64;
    assert!(
        (3 * size - 9..=3 * size + 3).contains(&endpoints.bytes_left_out),
        "{endpoints:?}"
    );
}
