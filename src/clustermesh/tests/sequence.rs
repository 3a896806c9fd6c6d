//! The exact sequence of changes for a long random walk of events.
//!
//! Watchers in other clusters see changes in the order in which the publisher returns them, and that order is
//! compared with Cilium's elsewhere. This test notices when a refactoring changes it: for each combination of options
//! it feeds the example manifests and then a seeded random walk over all kinds of objects (colliding addresses,
//! objects that move to another namespace or service, invalid fields, deletions, lists that complete late), and
//! compares a hash of everything that comes out.

use super::*;
use crate::k8s::manifests;
use sha2::{Digest, Sha256};

const EXAMPLES: [&str; 11] = [
    include_str!("../../../examples/tokyo-hk/hk-cluster/endpoints.yaml"),
    include_str!("../../../examples/tokyo-hk/hk-cluster/exports.yaml"),
    include_str!("../../../examples/tokyo-hk/hk-cluster/identities.yaml"),
    include_str!("../../../examples/tokyo-hk/hk-cluster/namespaces.yaml"),
    include_str!("../../../examples/tokyo-hk/hk-cluster/nodes.yaml"),
    include_str!("../../../examples/tokyo-hk/hk-cluster/services.yaml"),
    include_str!("../../../examples/tokyo-hk/tokyo-cluster/endpoints.yaml"),
    include_str!("../../../examples/tokyo-hk/tokyo-cluster/identities.yaml"),
    include_str!("../../../examples/tokyo-hk/tokyo-cluster/namespaces.yaml"),
    include_str!("../../../examples/tokyo-hk/tokyo-cluster/nodes.yaml"),
    include_str!("../../../examples/tokyo-hk/tokyo-cluster/services.yaml"),
];

/// Events per combination of options.
const EVENTS: usize = 600;

#[test]
fn a_random_walk_gives_the_recorded_sequence_of_changes() {
    let mut hashes = vec![];
    for endpoint_slices in [false, true] {
        for (default_global_namespace, service_exports) in [(true, true), (false, true), (true, false)] {
            for service_mode in [ServiceMode::PreferLegacy, ServiceMode::OnlyEndpointSlice] {
                let options = Options {
                    default_global_namespace,
                    endpoint_slices,
                    service_exports,
                    service_mode,
                    ..options()
                };
                hashes.push(hash_of_walk(options, hashes.len() as u64 + 1));
            }
        }
    }
    assert_eq!(hashes, RECORDED);
}

/// The hash of each walk. If the sequence changes on purpose, the failing test shows the new ones.
const RECORDED: [&str; 12] = [
    "602c942f1d5eada7",
    "417c0680765ac674",
    "f08c1c617652b652",
    "98ef46405d9f4443",
    "4abcc9e6dd317846",
    "d2138b8e92982352",
    "2db23fa4601d9c0c",
    "a629ebd3162e44af",
    "563fb374bd7e4f14",
    "9d07cc5560239d02",
    "5ae915df7a439b6d",
    "88ac88456f4a2e7c",
];

fn hash_of_walk(options: Options, seed: u64) -> String {
    let mut publisher = Publisher::new(options);
    let mut walk = Walk { random: seed };
    let mut hash = Sha256::new();
    let examples = EXAMPLES.iter().flat_map(|text| manifests::parse(text));
    let walked = std::iter::repeat_with(|| walk.event()).take(EVENTS);
    // Objects come before and after the end of their first list.
    for event in examples.chain(walked) {
        let (mut problems, mut changes) = (vec![], vec![]);
        for change in publisher.handle(event) {
            match change {
                Action::Warn { object, problem } => problems.push(format!("problem {object}: {problem}")),
                Action::Upsert { scope, name, value } => {
                    // Compressed bytes may differ between versions of zstd.
                    let value = match scope {
                        Scope::EndpointSlices => zstd::decode_all(&value[..]).unwrap(),
                        _ => value.to_vec(),
                    };
                    changes.push(format!("upsert {} {name} {value:x?}", scope.word()));
                }
                Action::Delete { scope, name } => changes.push(format!("delete {} {name}", scope.word())),
                Action::Complete(scope) => changes.push(format!("synced {}", scope.word())),
            }
        }
        // Problems of one event come in no particular order.
        problems.sort();
        for line in changes.into_iter().chain(problems) {
            hash.update(line);
            hash.update("\n");
        }
        hash.update("--\n");
    }
    hash.finalize()
        .iter()
        .take(8)
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

#[test]
fn a_scope_that_keeps_everything_gives_the_keys_of_no_scope() {
    for (endpoint_slices, seed) in [(false, 21), (true, 22)] {
        let options = Options {
            endpoint_slices,
            ..options()
        };
        let (mut plain, mut scoped) = (Bench::new(options.clone()), Bench::before_lists(options));
        scoped.publisher = scoped.publisher.with_scope(Default::default(), Default::default());
        Kind::ALL.iter().for_each(|kind| scoped.send(Event::Listed(*kind)));
        let mut walk = Walk { random: seed };
        for _ in 0..EVENTS {
            let event = walk.event();
            plain.send(event.clone());
            scoped.send(event);
            assert_eq!(scoped.keys, plain.keys);
        }
        assert!(!plain.keys.is_empty());
    }
}

/// Draws events; the same ones for the same seed.
struct Walk {
    random: u64,
}

impl Walk {
    /// xorshift64*: a number below `limit`.
    fn below(&mut self, limit: u64) -> u64 {
        self.random ^= self.random >> 12;
        self.random ^= self.random << 25;
        self.random ^= self.random >> 27;
        (self.random.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) % limit
    }

    fn one_of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len() as u64) as usize]
    }

    fn event(&mut self) -> Event {
        let kind = self.one_of(Kind::ALL);
        match self.below(100) {
            0 => return Event::Listed(kind),
            1..20 => {
                let namespace = match kind {
                    Kind::Namespace | Kind::Node | Kind::Identity | Kind::CiliumEndpointSlice => "",
                    _ => self.namespace(),
                };
                let name = self.name(kind);
                return Event::Delete(ObjectKey {
                    kind,
                    namespace: namespace.into(),
                    name: name.into(),
                });
            }
            _ => {}
        }
        let name = self.name(kind);
        object(match kind {
            Kind::Namespace => namespace(&name, self.one_of(&[None, Some("true"), Some("FALSE"), Some("x")])),
            Kind::Node => self.node(&name),
            Kind::Identity => self.identity(&name),
            Kind::Endpoint => self.endpoint(&name),
            Kind::CiliumEndpointSlice => self.cilium_endpoint_slice(&name),
            Kind::Service => self.service(&name),
            Kind::EndpointSlice => self.endpoint_slice(&name),
            Kind::ServiceExport => json!({
                "kind": "ServiceExport", "metadata": {"name": name, "namespace": self.namespace()},
                "spec": {"exportedLabels": {"n": self.below(3).to_string()}},
            }),
        })
    }

    fn namespace(&mut self) -> &'static str {
        self.one_of(&["foo", "bar", "team-a"])
    }

    fn name(&mut self, kind: Kind) -> String {
        let n = self.below(4);
        match kind {
            Kind::Namespace => self.namespace().to_owned(),
            Kind::Identity => (1000 + n).to_string(),
            // Exports have the name of their service.
            Kind::Service | Kind::ServiceExport => format!("s{n}"),
            _ => format!("{}-{n}", kind.name().to_lowercase()),
        }
    }

    fn address(&mut self) -> String {
        match self.below(12) {
            0 => "not-an-address".to_owned(),
            1 => String::new(),
            2..5 => format!("fd00::{}", self.below(3)),
            _ => format!("10.0.0.{}", self.below(6)),
        }
    }

    fn node(&mut self, name: &str) -> Value {
        json!({
            "kind": "CiliumNode",
            "metadata": {"name": name, "labels": {"l": self.below(3).to_string()}},
            "spec": {
                "addresses": [{"type": "InternalIP", "ip": self.address()}, {"type": "CiliumInternalIP", "ip": self.address()}],
                "ipam": {"podCIDRs": [self.one_of(&["10.1.0.0/24", "fd00::/64", "bad"]), "10.2.0.0/24"]},
                "encryption": {"key": self.one_of(&[0, 3, 300])},
            },
        })
    }

    fn identity(&mut self, name: &str) -> Value {
        let mut labels = json!({"k8s:app": self.below(3).to_string()});
        if self.below(8) > 0 {
            labels["k8s:io.kubernetes.pod.namespace"] = json!(self.namespace());
        }
        json!({"kind": "CiliumIdentity", "metadata": {"name": name}, "security-labels": labels})
    }

    fn endpoint(&mut self, name: &str) -> Value {
        json!({
            "kind": "CiliumEndpoint", "metadata": {"name": name, "namespace": self.namespace()},
            "status": {
                "identity": {"id": self.one_of(&[1000, 1001, -1])},
                "networking": {"addressing": [{"ipv4": self.address(), "ipv6": self.address()}], "node": "1.1.1.1"},
                "named-ports": [{"name": "http", "port": self.one_of(&[80, 70000]), "protocol": "TCP"}],
            },
        })
    }

    fn cilium_endpoint_slice(&mut self, name: &str) -> Value {
        let endpoints: Vec<_> = (0..self.below(3))
            .map(|n| {
                json!({
                    "name": format!("p{n}"), "id": 1000 + n,
                    "networking": {"addressing": [{"ipv4": self.address()}], "node": "1.1.1.2"},
                })
            })
            .collect();
        let namespace = match self.below(10) {
            0 => "",
            _ => self.namespace(),
        };
        json!({"kind": "CiliumEndpointSlice", "metadata": {"name": name}, "namespace": namespace, "endpoints": endpoints})
    }

    fn service(&mut self, name: &str) -> Value {
        let annotations = match self.below(4) {
            0 => json!({}),
            1 => json!({"service.cilium.io/global": "true", "service.cilium.io/shared": "false"}),
            _ => json!({"service.cilium.io/global": "true"}),
        };
        json!({
            "kind": "Service",
            "metadata": {"name": name, "namespace": self.namespace(), "annotations": annotations},
            "spec": {
                "type": self.one_of(&["ClusterIP", "ClusterIP", "ClusterIP", "ExternalName"]),
                "clusterIP": self.one_of(&["10.96.0.1", "10.96.0.2", "None"]),
                "ports": [{"name": "http", "port": 80, "protocol": "TCP"}],
            },
        })
    }

    fn endpoint_slice(&mut self, name: &str) -> Value {
        let mut labels = json!({});
        if self.below(10) > 0 {
            labels["kubernetes.io/service-name"] = json!(format!("s{}", self.below(4)));
        }
        json!({
            "kind": "EndpointSlice", "addressType": self.one_of(&["IPv4", "IPv4", "FQDN"]),
            "metadata": {"name": name, "namespace": self.namespace(), "labels": labels},
            "endpoints": [{"addresses": [self.address()]}, {"addresses": [self.address()], "zone": "z"}],
            "ports": [{"name": "http", "port": 8000 + self.below(2)}],
        })
    }
}
