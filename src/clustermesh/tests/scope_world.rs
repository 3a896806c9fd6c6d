//! Changes of a cluster at random, and its objects as Kubernetes shows them.

use super::scope_model::*;
use serde_json::{Value, json};

const NAMESPACES: [&str; 4] = ["foo", "bar", "team-a", "team-b"];

/// A change of one object.
pub(super) struct Change {
    pub(super) kind: &'static str,
    /// Empty for an object without a namespace.
    pub(super) namespace: String,
    pub(super) name: String,
    /// `None`: the object is gone.
    pub(super) object: Option<Value>,
}

impl Change {
    fn new(kind: &'static str, (namespace, name): &Name, object: Option<Value>) -> Self {
        Self {
            kind,
            namespace: namespace.clone(),
            name: name.clone(),
            object,
        }
    }

    /// A change of an object without a namespace.
    fn of_cluster(kind: &'static str, name: &str, object: Option<Value>) -> Self {
        Self::new(kind, &(String::new(), name.to_owned()), object)
    }
}

fn name(random: &mut Random, prefix: &str, count: u64) -> Name {
    let namespace = random.one_of(&NAMESPACES).to_owned();
    (namespace, format!("{prefix}{}", random.below(count)))
}

// === random changes ===

impl World {
    /// Changes an object at random. The pods come in CiliumEndpointSlices if `slices` says so.
    pub(super) fn change(&mut self, random: &mut Random, slices: bool) -> Change {
        let is_deletion = random.chance(20);
        match random.below(100) {
            0..12 => self.change_namespace(random, is_deletion),
            12..25 => self.change_identity(random, is_deletion),
            25..65 => self.change_endpoint(random, is_deletion, slices),
            65..78 => self.change_service(random, is_deletion),
            78..92 => self.change_slice(random, is_deletion),
            _ => self.change_export(random, is_deletion),
        }
    }

    fn change_namespace(&mut self, random: &mut Random, is_deletion: bool) -> Change {
        let name = random.one_of(&NAMESPACES).to_owned();
        if is_deletion && random.chance(50) {
            self.namespaces.remove(&name);
        } else {
            let namespace = (random.chance(85), random.one_of(&["dev", "prod"]).to_owned());
            self.namespaces.insert(name.clone(), namespace);
        }
        self.namespace_change(&name)
    }

    fn change_identity(&mut self, random: &mut Random, is_deletion: bool) -> Change {
        let number = 1000 + random.below(6) as u32;
        if is_deletion {
            self.identities.remove(&number);
            return self.identity_change(number);
        }
        // An identity that moves to a namespace that does not exist keeps its key until the namespace exists, which
        // cannot be computed from the objects.
        let before = self.identities.get(&number).map(|(namespace, _)| namespace.clone());
        let namespace = before.unwrap_or_else(|| random.one_of(&NAMESPACES).to_owned());
        let app = random.chance(80).then(|| random.one_of(&["a", "b", "c"]).to_owned());
        self.identities.insert(number, (namespace, app));
        self.identity_change(number)
    }

    fn change_endpoint(&mut self, random: &mut Random, is_deletion: bool, slices: bool) -> Change {
        let name = name(random, "p", 5);
        if is_deletion {
            self.endpoints.remove(&name);
            return self.endpoint_change(&name, slices);
        }
        let pods = match slices {
            true => (0..random.below(4))
                .map(|n| pod(random, &format!("{}-{n}", name.1), true))
                .collect(),
            false => vec![pod(random, &name.1, false)],
        };
        self.endpoints.insert(name.clone(), pods);
        self.endpoint_change(&name, slices)
    }

    fn change_service(&mut self, random: &mut Random, is_deletion: bool) -> Change {
        let name = name(random, "s", 3);
        if is_deletion {
            self.services.remove(&name);
            return self.service_change(&name);
        }
        let service = Service {
            is_global: random.chance(75),
            tier: random.one_of(&["x", "y", "z"]).to_owned(),
        };
        self.services.insert(name.clone(), service);
        self.service_change(&name)
    }

    fn change_slice(&mut self, random: &mut Random, is_deletion: bool) -> Change {
        let name = name(random, "e", 4);
        if is_deletion {
            self.slices.remove(&name);
            return self.slice_change(&name);
        }
        let service = format!("s{}", random.below(3));
        let addresses = (0..random.below(4)).map(|_| format!("10.0.0.{}", random.below(12)));
        let slice = (service, addresses.collect());
        self.slices.insert(name.clone(), slice);
        self.slice_change(&name)
    }

    fn change_export(&mut self, random: &mut Random, is_deletion: bool) -> Change {
        let name = name(random, "s", 3);
        if is_deletion {
            self.exports.remove(&name);
            return self.export_change(&name);
        }
        let tier = random.one_of(&["x", "y", "z"]).to_owned();
        self.exports.insert(name.clone(), tier);
        self.export_change(&name)
    }
}

fn pod(random: &mut Random, name: &str, slices: bool) -> Pod {
    let has_annotation = !slices && random.chance(20);
    Pod {
        name: name.to_owned(),
        ips: (0..random.below(3))
            .map(|_| format!("10.0.0.{}", random.below(12)))
            .collect(),
        identity: 1000 + random.below(7) as u32,
        sync: has_annotation.then(|| random.chance(50)),
        is_regional: !slices && random.chance(20),
    }
}

// === what has become of an object ===

impl World {
    pub(super) fn namespace_change(&self, name: &str) -> Change {
        let object = self.namespaces.get(name).map(|(is_global, env)| {
            let annotations = json!({"clustermesh.cilium.io/global": is_global.to_string()});
            json!({"kind": "Namespace", "metadata": {"name": name, "annotations": annotations, "labels": {"env": env}}})
        });
        Change::of_cluster("Namespace", name, object)
    }

    pub(super) fn identity_change(&self, number: u32) -> Change {
        let object = self.identities.get(&number).map(|(namespace, app)| {
            let mut labels = json!({"k8s:io.kubernetes.pod.namespace": namespace});
            if let Some(app) = app {
                labels["k8s:app"] = json!(app);
            }
            json!({"kind": "CiliumIdentity", "metadata": {"name": number.to_string()}, "security-labels": labels})
        });
        Change::of_cluster("CiliumIdentity", &number.to_string(), object)
    }

    pub(super) fn endpoint_change(&self, name: &Name, slices: bool) -> Change {
        let pods = self.endpoints.get(name);
        match slices {
            true => {
                let object = pods.map(|pods| endpoint_slice(name, pods));
                Change::of_cluster("CiliumEndpointSlice", &endpoint_slice_name(name), object)
            }
            false => Change::new("CiliumEndpoint", name, pods.map(|pods| endpoint(name, &pods[0]))),
        }
    }

    pub(super) fn service_change(&self, name: &Name) -> Change {
        let object = self.services.get(name).map(|service| {
            let annotations = match service.is_global {
                true => json!({"service.cilium.io/global": "true"}),
                false => json!({}),
            };
            json!({
                "kind": "Service",
                "metadata": {
                    "name": name.1, "namespace": name.0, "annotations": annotations, "labels": {"tier": service.tier},
                },
                "spec": {"clusterIP": "10.96.0.1", "ports": [{"name": "http", "port": 80, "protocol": "TCP"}]},
            })
        });
        Change::new("Service", name, object)
    }

    pub(super) fn slice_change(&self, name: &Name) -> Change {
        // A backend that is not ready is one nevertheless.
        let backend = |(at, ip): (usize, &String)| json!({"addresses": [ip], "conditions": {"ready": at % 2 == 0, "serving": at % 2 == 0}});
        let object = self.slices.get(name).map(|(service, addresses)| {
            let endpoints: Vec<_> = addresses.iter().enumerate().map(backend).collect();
            json!({
                "kind": "EndpointSlice", "addressType": "IPv4",
                "metadata": {"name": name.1, "namespace": name.0, "labels": {"kubernetes.io/service-name": service}},
                "endpoints": endpoints, "ports": [{"name": "http", "port": 80}],
            })
        });
        Change::new("EndpointSlice", name, object)
    }

    pub(super) fn export_change(&self, name: &Name) -> Change {
        let object = self.exports.get(name).map(|tier| {
            json!({
                "kind": "ServiceExport",
                "metadata": {"name": name.1, "namespace": name.0, "labels": {"tier": tier}},
            })
        });
        Change::new("ServiceExport", name, object)
    }
}

fn networking(pod: &Pod) -> Value {
    let addressing: Vec<_> = pod.ips.iter().map(|ip| json!({"ipv4": ip})).collect();
    json!({"addressing": addressing, "node": "1.1.1.1"})
}

fn endpoint(name: &Name, pod: &Pod) -> Value {
    let mut annotations = json!({});
    if let Some(sync) = pod.sync {
        annotations["clustermesh.cilium.io/sync"] = json!(if sync { "true" } else { "False" });
    }
    if pod.is_regional {
        annotations["clustermesh.cilium.io/sync-scope"] = json!("regional");
    }
    json!({
        "kind": "CiliumEndpoint",
        "metadata": {"name": name.1, "namespace": name.0, "annotations": annotations},
        "status": {"identity": {"id": pod.identity}, "networking": networking(pod)},
    })
}

fn endpoint_slice_name((namespace, name): &Name) -> String {
    format!("{namespace}-{name}")
}

fn endpoint_slice(name: &Name, pods: &[Pod]) -> Value {
    let endpoints: Vec<_> = pods
        .iter()
        .map(|pod| json!({"name": pod.name, "id": pod.identity, "networking": networking(pod)}))
        .collect();
    json!({
        "kind": "CiliumEndpointSlice", "metadata": {"name": endpoint_slice_name(name)},
        "namespace": name.0, "endpoints": endpoints,
    })
}
