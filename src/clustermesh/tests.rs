//! The publisher compared with what Cilium wrote for the same objects, and single rules.

mod cost;
mod invalid;
mod scope;
mod scope_model;
mod scope_walk;
mod scope_world;
mod sequence;

use super::publisher::{Action, Options, Publisher, ServiceMode};
use crate::k8s::events::Event;
use crate::k8s::types::{Kind, ObjectKey};
use crate::model::cluster::{Capabilities, ClusterConfig, ClusterInfo, ExportMode};
use crate::model::keys::{self, Scope};
use crate::model::values::slice::ClusterEndpointSlice;
use bytes::Bytes;
use prost::Message;
use serde_json::{Value, json};
use std::collections::BTreeMap;

fn options() -> Options {
    Options {
        cluster: ClusterInfo::new("c3", 3, 255).unwrap(),
        default_global_namespace: true,
        endpoint_slices: false,
        service_exports: true,
        service_mode: ServiceMode::default(),
        probe_interval: Default::default(),
        scope: None,
    }
}

fn object(value: Value) -> Event {
    let kind = Kind::of(value["kind"].as_str().unwrap(), None).unwrap();
    let object = kind.parse(value).unwrap();
    Event::Apply(object.key(), Box::new(object))
}

/// A publisher and the keys that its actions have written so far.
struct Bench {
    publisher: Publisher,
    keys: BTreeMap<(Scope, String), Bytes>,
    synced: Vec<Scope>,
    problems: Vec<String>,
}

impl Bench {
    /// A publisher whose first lists have completed without objects.
    fn new(options: Options) -> Self {
        let mut bench = Self::before_lists(options);
        Kind::ALL.iter().for_each(|kind| bench.send(Event::Listed(*kind)));
        bench
    }

    fn before_lists(options: Options) -> Self {
        let publisher = Publisher::new(options);
        Self {
            publisher,
            keys: BTreeMap::new(),
            synced: vec![],
            problems: vec![],
        }
    }

    fn send(&mut self, event: Event) {
        for change in self.publisher.handle(event) {
            match change {
                Action::Upsert { scope, name, value } => {
                    self.keys.insert((scope, name.to_string()), value);
                }
                Action::Delete { scope, name } => {
                    self.keys.remove(&(scope, name.to_string()));
                }
                Action::Complete(scope) => self.synced.push(scope),
                Action::Warn { object, problem } => self.problems.push(format!("{object}: {problem}")),
            }
        }
    }

    fn apply(&mut self, value: Value) {
        self.send(object(value));
    }

    fn delete(&mut self, kind: Kind, namespace: &str, name: &str) {
        let (namespace, name) = (namespace.into(), name.into());
        self.send(Event::Delete(ObjectKey { kind, namespace, name }));
    }

    fn names(&self, scope: Scope) -> Vec<&str> {
        self.keys
            .keys()
            .filter(|(s, _)| *s == scope)
            .map(|(_, name)| &**name)
            .collect()
    }

    fn json(&self, scope: Scope, name: &str) -> Value {
        serde_json::from_slice(&self.keys[&(scope, name.to_owned())]).unwrap()
    }
}

fn namespace(name: &str, global: Option<&str>) -> Value {
    let annotations = global.map(|g| json!({"clustermesh.cilium.io/global": g}));
    json!({"kind": "Namespace", "metadata": {"name": name, "annotations": annotations}})
}

fn endpoint(name: &str, ip: &str) -> Value {
    json!({
        "kind": "CiliumEndpoint", "metadata": {"name": name, "namespace": "foo"},
        "status": {"identity": {"id": 9}, "networking": {"addressing": [{"ipv4": ip}], "node": "1.1.1.1"}},
    })
}

fn service(annotations: Value) -> Value {
    json!({
        "kind": "Service", "metadata": {"name": "s", "namespace": "foo", "annotations": annotations},
        "spec": {"clusterIP": "10.96.0.1", "ports": [{"name": "http", "port": 80, "protocol": "TCP"}]},
    })
}

fn slice(name: &str, address: &str, port: (&str, i32)) -> Value {
    json!({
        "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {"name": name, "namespace": "foo", "labels": {"kubernetes.io/service-name": "s"}},
        "endpoints": [{"addresses": [address]}], "ports": [{"name": port.0, "port": port.1}],
    })
}

/// Every key that Cilium 1.20-dev wrote for `objs.json`, apart from the differences named below.
#[test]
fn the_golden_objects_give_ciliums_keys_and_values() {
    let mut bench = Bench::before_lists(options());
    let objects = include_str!("../../tests/testdata/golden/objs.json");
    for value in serde_json::from_str::<Vec<Value>>(objects).unwrap() {
        bench.apply(value);
    }
    Kind::ALL.iter().for_each(|kind| bench.send(Event::Listed(*kind)));
    let cluster = options().cluster;
    let mut ours: BTreeMap<String, String> = bench
        .keys
        .iter()
        .filter(|((scope, _), _)| *scope != Scope::EndpointSlices)
        .map(|((scope, name), value)| {
            (
                scope.state_prefix(&cluster.name) + name,
                String::from_utf8(value.to_vec()).unwrap(),
            )
        })
        .collect();
    for scope in &bench.synced {
        ours.insert(scope.state_canary(&cluster.name), "time".to_owned());
    }
    ours.insert(
        keys::cluster_config(&cluster.name),
        String::from_utf8(config().to_json()).unwrap(),
    );

    let dump = include_str!("../../tests/testdata/golden/dump.txt");
    let lines: Vec<_> = dump.lines().collect();
    let mut golden: BTreeMap<String, String> = lines
        .chunks_exact(2)
        .map(|pair| (pair[0].to_owned(), pair[1].to_owned()))
        .collect();
    for (key, value) in &mut golden {
        if key.starts_with("cilium/synced/") {
            *value = "time".to_owned();
        }
    }
    // Cilium 1.20 does not export services of namespaces that are not global.
    assert!(golden.remove("cilium/state/services/v1/c3/priv/privsvc").is_some());
    // Cilium 1.20 also exports slices: the configuration has another field, and there is another canary.
    golden.insert(
        "cilium/synced/c3/cilium/state/endpointslices/v1".to_owned(),
        "time".to_owned(),
    );
    let old = golden.get_mut("cilium/cluster-config/c3").unwrap();
    *old = old.replace("}}", r#","endpointSlicesExportMode":"services-and-endpointslices"}}"#);
    // Cilium 1.20.1 sets the named ports (clustermesh/converters.go, namedPortsToIPIdentity).
    for ip in ["10.0.0.1", "fd00::a"] {
        let value = golden.get_mut(&format!("cilium/state/ip/v1/default/{ip}")).unwrap();
        let ports = r#","NamedPorts":[{"Name":"http","Port":80,"Protocol":"TCP"}]}"#;
        *value = value.strip_suffix('}').unwrap().to_owned() + ports;
    }
    // Cilium 1.20.1 no longer writes the node's identity (pkg/node/types/node.go).
    for (node, identity) in [("n1", 1), ("n2", 0)] {
        let value = golden.get_mut(&format!("cilium/state/nodes/v1/c3/{node}")).unwrap();
        *value = value.replace(&format!("\"NodeIdentity\":{identity},"), "");
    }
    // Isthmus does not export an ExternalName service: it has no address, and readers reject its value.
    assert!(golden.remove("cilium/state/services/v1/c3/foo/ext").is_some());
    assert!(bench.problems.iter().any(|p| p.starts_with("Service foo/ext: ")));
    // Isthmus warns about an invalid address instead of writing the key `<nil>`, which readers reject.
    assert!(golden.remove("cilium/state/ip/v1/default/<nil>").is_some());
    assert!(
        bench
            .problems
            .iter()
            .any(|p| p.starts_with("CiliumEndpoint foo/p2: address \"bad\""))
    );

    assert_eq!(ours.keys().collect::<Vec<_>>(), golden.keys().collect::<Vec<_>>());
    for (key, value) in &golden {
        assert_eq!(&ours[key], value, "{key}");
    }
    assert_eq!(bench.names(Scope::EndpointSlices), ["foo/s1-a", "foo/s1-b"]);
}

fn config() -> ClusterConfig {
    ClusterConfig {
        id: 3,
        capabilities: Capabilities {
            synced_canaries: true,
            cached: false,
            max_connected_clusters: 255,
            service_exports_enabled: Some(true),
            endpoint_slices_export_mode: ExportMode::ServicesAndEndpointSlices,
        },
        region: None,
    }
}

#[test]
fn a_slice_is_exported_with_all_fields_and_compressed() {
    let mut bench = Bench::new(options());
    bench.apply(namespace("foo", None));
    bench.apply(service(json!({"service.cilium.io/global": "true"})));
    let mut value = slice("s-1", "10.0.0.1", ("", 8080));
    value["endpoints"][0]["conditions"] = json!({"ready": false, "serving": true});
    bench.apply(value);
    let bytes = &bench.keys[&(Scope::EndpointSlices, "foo/s-1".to_owned())];
    let message = ClusterEndpointSlice::decode(&*zstd::decode_all(&bytes[..]).unwrap()).unwrap();
    assert_eq!(
        (
            message.cluster(),
            message.cluster_id(),
            message.namespace(),
            message.name()
        ),
        ("c3", 3, "foo", "s-1")
    );
    assert_eq!(message.endpoints[0].addresses, ["10.0.0.1"]);
    let conditions = message.endpoints[0].conditions.unwrap();
    assert_eq!(
        (conditions.ready, conditions.serving, conditions.terminating),
        (Some(false), Some(true), None)
    );
    assert_eq!(
        (message.ports[0].name.as_deref(), message.ports[0].port),
        (Some(""), Some(8080))
    );
}

/// Since 1.20.2, Cilium's readers refuse a service or a slice because of one address with a zone.
#[test]
fn addresses_that_readers_refuse_are_left_out_and_the_others_are_published() {
    let mut bench = Bench::new(options());
    bench.apply(namespace("foo", None));
    let mut global = service(json!({"service.cilium.io/global": "true"}));
    global["spec"]["clusterIPs"] = json!(["fd00::1", "fe80::1%eth0", "10.96.0.300"]);
    bench.apply(global);
    let problems = std::mem::take(&mut bench.problems);
    assert_eq!(problems.len(), 2, "{problems:?}");
    let zone = "Service foo/s: cluster IP \"fe80::1%eth0\" is not an IP address without a zone";
    assert!(problems.iter().any(|p| p == zone), "{problems:?}");
    let mut value = slice("s-1", "fd00::2", ("http", 80));
    value["addressType"] = json!("IPv6");
    value["endpoints"] = json!([{"addresses": ["fd00::2", "fd00::3%eth0"]}, {"addresses": ["10.0.0.300"]}]);
    bench.apply(value);
    let problems = std::mem::take(&mut bench.problems);
    assert!(problems.iter().any(|p| p.contains("\"fd00::3%eth0\"")), "{problems:?}");
    let service = bench.json(Scope::Services, "foo/s");
    assert_eq!(
        service["frontends"].as_object().unwrap().keys().collect::<Vec<_>>(),
        ["fd00::1"]
    );
    assert_eq!(
        service["backends"].as_object().unwrap().keys().collect::<Vec<_>>(),
        ["fd00::2"]
    );
    let bytes = &bench.keys[&(Scope::EndpointSlices, "foo/s-1".to_owned())];
    let message = ClusterEndpointSlice::decode(&*zstd::decode_all(&bytes[..]).unwrap()).unwrap();
    assert_eq!(message.endpoints.len(), 1);
    assert_eq!(message.endpoints[0].addresses, ["fd00::2"]);
}

#[test]
fn the_keys_of_a_namespace_are_withdrawn_and_published_again_with_its_annotation() {
    let mut bench = Bench::new(options());
    bench.apply(endpoint("p", "10.0.0.1"));
    bench.apply(json!({"kind": "CiliumIdentity", "metadata": {"name": "9"}, "security-labels": {"k8s:io.kubernetes.pod.namespace": "foo"}}));
    bench.apply(service(json!({"service.cilium.io/global": "true"})));
    bench.apply(slice("s-1", "10.0.0.1", ("http", 80)));
    assert!(bench.keys.is_empty(), "the namespace does not exist yet");
    bench.apply(namespace("foo", None));
    assert_eq!(bench.keys.len(), 4);
    bench.apply(namespace("foo", Some("false")));
    assert_eq!(bench.keys.len(), 0);
    bench.apply(namespace("foo", Some("TRUE")));
    assert_eq!(bench.keys.len(), 4);
    bench.delete(Kind::Namespace, "", "foo");
    assert_eq!(bench.keys.len(), 0);
}

#[test]
fn only_annotated_namespaces_are_global_if_the_default_is_not_global() {
    let mut bench = Bench::new(Options {
        default_global_namespace: false,
        ..options()
    });
    bench.apply(endpoint("p", "10.0.0.1"));
    bench.apply(namespace("foo", None));
    assert!(bench.keys.is_empty());
    bench.apply(namespace("foo", Some("true")));
    assert_eq!(bench.names(Scope::Endpoints), ["10.0.0.1"]);
}

#[test]
fn an_address_that_moves_between_pods_keeps_its_key() {
    let mut bench = Bench::new(options());
    bench.apply(namespace("foo", None));
    bench.apply(endpoint("old", "10.0.0.1"));
    bench.apply(endpoint("new", "10.0.0.1"));
    bench.delete(Kind::Endpoint, "foo", "old");
    assert_eq!(bench.json(Scope::Endpoints, "10.0.0.1")["K8sPodName"], "new");
    bench.apply(endpoint("new", "10.0.0.2"));
    assert_eq!(bench.names(Scope::Endpoints), ["10.0.0.2"]);
}

#[test]
fn a_cilium_endpoint_slice_can_change_its_namespace() {
    let mut bench = Bench::new(Options {
        endpoint_slices: true,
        ..options()
    });
    bench.apply(namespace("foo", None));
    bench.apply(namespace("private", Some("false")));
    let mut value = json!({
        "kind": "CiliumEndpointSlice", "metadata": {"name": "ces-1"}, "namespace": "foo",
        "endpoints": [{"name": "p", "id": 7, "networking": {"addressing": [{"ipv4": "10.0.0.1", "ipv6": "fd00::1"}], "node": "1.1.1.1"}}],
    });
    bench.apply(value.clone());
    assert_eq!(bench.names(Scope::Endpoints), ["10.0.0.1", "fd00::1"]);
    value["namespace"] = json!("private");
    bench.apply(value);
    assert!(bench.keys.is_empty());
    bench.apply(namespace("foo", Some("false")));
    bench.apply(namespace("private", Some("true")));
    assert_eq!(bench.names(Scope::Endpoints), ["10.0.0.1", "fd00::1"]);
}

#[test]
fn annotations_decide_whether_a_service_is_shared() {
    let cases = [
        (json!({"service.cilium.io/global": "true"}), true),
        (
            json!({"service.cilium.io/global": "True", "service.cilium.io/shared": "false"}),
            false,
        ),
        (json!({"io.cilium/global-service": "true"}), true),
        (
            json!({"service.cilium.io/global": "false", "io.cilium/global-service": "true"}),
            false,
        ),
        (json!({"service.cilium.io/shared": "true"}), false),
    ];
    for (annotations, shared) in cases {
        let mut bench = Bench::new(options());
        bench.apply(namespace("foo", None));
        bench.apply(slice("s-1", "10.0.0.1", ("http", 80)));
        bench.apply(service(annotations.clone()));
        assert_eq!(bench.names(Scope::Services).len(), usize::from(shared), "{annotations}");
        assert_eq!(
            bench.names(Scope::EndpointSlices).len(),
            usize::from(shared),
            "{annotations}"
        );
        bench.apply(service(json!({})));
        assert!(bench.keys.is_empty());
    }
}

#[test]
fn ports_of_several_slices_are_merged_and_a_slice_that_changes_its_service_is_removed() {
    let mut bench = Bench::new(options());
    bench.apply(namespace("foo", None));
    bench.apply(service(json!({"service.cilium.io/global": "true"})));
    bench.apply(slice("s-2", "10.0.0.1", ("dns", 53)));
    bench.apply(slice("s-1", "10.0.0.1", ("http", 80)));
    let ports = |b: &Bench| b.json(Scope::Services, "foo/s")["backends"].clone();
    let tcp = |port| json!({"Protocol": "TCP", "Port": port});
    assert_eq!(ports(&bench), json!({"10.0.0.1": {"dns": tcp(53), "http": tcp(80)}}));
    let mut moved = slice("s-2", "10.0.0.1", ("dns", 53));
    moved["metadata"]["labels"]["kubernetes.io/service-name"] = json!("other");
    bench.apply(moved);
    assert_eq!(ports(&bench), json!({"10.0.0.1": {"http": tcp(80)}}));
    assert_eq!(bench.names(Scope::EndpointSlices), ["foo/s-1"]);
    bench.delete(Kind::EndpointSlice, "foo", "s-1");
    assert_eq!(ports(&bench), json!({}));
    bench.delete(Kind::Service, "foo", "s");
    assert!(bench.keys.is_empty());
}

#[test]
fn only_slices_are_exported_in_the_mode_only_endpoint_slice() {
    let mut bench = Bench::new(Options {
        service_mode: ServiceMode::OnlyEndpointSlice,
        probe_interval: Default::default(),
        ..options()
    });
    bench.apply(namespace("foo", None));
    bench.apply(service(json!({"service.cilium.io/global": "true"})));
    bench.apply(slice("s-1", "10.0.0.1", ("http", 80)));
    assert_eq!(bench.names(Scope::Services), Vec::<&str>::new());
    assert_eq!(bench.names(Scope::EndpointSlices), ["foo/s-1"]);
}

#[test]
fn a_scope_is_complete_when_all_its_kinds_are_listed() {
    let mut bench = Bench::before_lists(Options {
        service_exports: false,
        ..options()
    });
    bench.send(Event::Listed(Kind::Node));
    // With exports disabled, the canary of the exports waits for no list.
    assert_eq!(bench.synced, [Scope::Nodes, Scope::ServiceExports]);
    bench.send(Event::Listed(Kind::Identity));
    assert_eq!(bench.synced.len(), 2, "identities depend on their namespaces");
    bench.send(Event::Listed(Kind::Namespace));
    assert_eq!(bench.synced[2..], [Scope::Identities]);
}

#[test]
fn a_problem_is_reported_once_and_again_after_it_was_solved() {
    let mut bench = Bench::new(options());
    bench.apply(namespace("foo", None));
    for _ in 0..3 {
        bench.apply(endpoint("p", "bad"));
    }
    assert_eq!(
        bench.problems,
        ["CiliumEndpoint foo/p: address \"bad\" of pod \"p\" is not an IP address"]
    );
    bench.apply(endpoint("p", "10.0.0.1"));
    bench.apply(endpoint("p", "bad"));
    assert_eq!(bench.problems.len(), 2);
    assert!(bench.keys.is_empty());
}

#[test]
fn no_key_of_a_scope_is_returned_before_the_scope_is_complete() {
    let mut bench = Bench::before_lists(options());
    // After a restart the store has keys of the earlier run. A service that is listed before its namespace must not be
    // deleted, and one that is listed before its slices must not lose its backends.
    let before = bench
        .publisher
        .handle(object(service(json!({"service.cilium.io/global": "true"}))));
    assert_eq!(before, []);
    bench.apply(slice("s-1", "10.0.0.1", ("http", 80)));
    for kind in [Kind::Service, Kind::EndpointSlice] {
        bench.send(Event::Listed(kind));
    }
    bench.apply(namespace("foo", None));
    assert!(bench.keys.is_empty());
    let complete = bench.publisher.handle(Event::Listed(Kind::Namespace));
    let services: Vec<_> = complete
        .iter()
        .filter(|action| {
            matches!(
                action,
                Action::Upsert {
                    scope: Scope::Services,
                    ..
                }
            )
        })
        .collect();
    let [Action::Upsert { name, value, .. }] = services[..] else {
        panic!("{complete:?}")
    };
    assert_eq!(&**name, "foo/s");
    assert!(String::from_utf8_lossy(value).contains("10.0.0.1"));
    assert!(!complete.iter().any(|action| matches!(action, Action::Delete { .. })));
}

#[test]
fn an_export_is_withdrawn_with_its_namespace() {
    let mut bench = Bench::new(options());
    bench.apply(namespace("foo", None));
    bench.apply(service(json!({})));
    bench.apply(json!({"kind": "ServiceExport", "metadata": {"name": "s", "namespace": "foo"}}));
    assert_eq!(bench.names(Scope::ServiceExports), ["foo/s"]);
    bench.apply(namespace("foo", Some("false")));
    assert_eq!(bench.names(Scope::ServiceExports), Vec::<&str>::new());
}

#[test]
fn labels_of_identities_are_parsed_as_in_cilium() {
    let mut bench = Bench::new(options());
    bench.apply(namespace("foo", None));
    let labels =
        json!({"reserved.host": "v", ":empty": "v", "$x": "1", "k8s:io.kubernetes.pod.namespace": "foo", "$": "y"});
    bench.apply(json!({"kind": "CiliumIdentity", "metadata": {"name": "9"}, "security-labels": labels}));
    let value = &bench.keys[&(Scope::Identities, "9".to_owned())];
    assert_eq!(
        std::str::from_utf8(value).unwrap(),
        "unspec:empty=v;k8s:io.kubernetes.pod.namespace=foo;unspec:reserved.host=v;reserved:x=1;reserved:y=;"
    );
}

#[test]
fn of_several_endpoints_of_a_slice_with_one_address_the_last_counts() {
    let mut bench = Bench::new(options());
    bench.apply(namespace("foo", None));
    bench.apply(service(json!({"service.cilium.io/global": "true"})));
    let mut value = slice("s-1", "10.0.0.1", ("", 8080));
    value["endpoints"] = json!([
        {"addresses": ["10.0.0.1"], "hostname": "h1", "zone": "z1"}, {"addresses": ["10.0.0.2"]},
        {"addresses": ["10.0.0.1"]}, {"addresses": ["10.0.0.2"], "conditions": {"ready": false, "serving": false}},
    ]);
    bench.apply(value);
    let json = bench.json(Scope::Services, "foo/s");
    assert_eq!(
        json["backends"].as_object().unwrap().keys().collect::<Vec<_>>(),
        ["10.0.0.1"]
    );
    assert_eq!((json.get("hostnames"), json.get("zones")), (None, None));
}

#[test]
fn an_external_name_service_has_no_key_but_its_slices_have() {
    let mut bench = Bench::new(options());
    bench.apply(namespace("foo", None));
    let mut outside = service(json!({"service.cilium.io/global": "true"}));
    outside["spec"]["type"] = json!("ExternalName");
    bench.apply(outside);
    bench.apply(slice("s-1", "10.0.0.1", ("", 8080)));
    assert!(bench.names(Scope::Services).is_empty());
    assert_eq!(bench.names(Scope::EndpointSlices), ["foo/s-1"]);
    assert_eq!(bench.problems.len(), 1, "{:?}", bench.problems);
}
