//! What the publisher costs: CPU time for each object, without a scope file and with one.
//!
//! ```text
//! cargo test --release --lib -- --ignored --nocapture the_publisher_costs
//! ```

use super::*;
use crate::scope::ScopeFile;
use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

/// Pods of a large cluster.
const PODS: u32 = 30_000;
const IDENTITIES: u32 = 500;
const SERVICES: u32 = 300;

/// The time for which this thread has had a CPU.
fn cpu() -> Duration {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    Duration::from_nanos(text.split(' ').next().unwrap().parse().unwrap())
}

fn pod(n: u32, node: u32) -> Event {
    let (a, b, c) = (n >> 16, n >> 8 & 255, n & 255);
    object(json!({
        "kind": "CiliumEndpoint", "metadata": {"name": format!("app-7c9d8f6b5-v{n}"), "namespace": format!("ns-{}", n % 20)},
        "status": {
            "identity": {"id": 66_000 + n % IDENTITIES},
            "networking": {"addressing": [{"ipv4": format!("10.{a}.{b}.{c}")}], "node": format!("172.18.0.{node}")},
        },
    }))
}

/// The objects that are there before the pods.
fn others() -> Vec<Event> {
    let namespaces = (0..20).map(|n| namespace(&format!("ns-{n}"), Some("true")));
    let identities = (0..IDENTITIES).map(|n| {
        let labels =
            json!({"k8s:app": format!("app-{n}"), "k8s:io.kubernetes.pod.namespace": format!("ns-{}", n % 20)});
        json!({"kind": "CiliumIdentity", "metadata": {"name": (66_000 + n).to_string()}, "security-labels": labels})
    });
    let services = (0..SERVICES).flat_map(|n| {
        let (mut service, mut slice) = (
            service(json!({"service.cilium.io/global": "true"})),
            slice("s", &format!("10.0.0.{}", n % 250), ("http", 80)),
        );
        for object in [&mut service, &mut slice] {
            object["metadata"]["namespace"] = json!(format!("ns-{}", n % 20));
            object["metadata"]["name"] = json!(format!("s-{n}"));
        }
        slice["metadata"]["labels"] = json!({"kubernetes.io/service-name": format!("s-{n}")});
        [service, slice]
    });
    namespaces.chain(identities).chain(services).map(object).collect()
}

/// Publishes all objects, changes every pod, and deletes every pod.
fn publish(mut publisher: Publisher) -> Duration {
    let deleted = |n: u32| {
        Event::Delete(ObjectKey {
            kind: Kind::Endpoint,
            namespace: format!("ns-{}", n % 20).into(),
            name: format!("app-7c9d8f6b5-v{n}").into(),
        })
    };
    let first = others().into_iter().chain((0..PODS).map(|n| pod(n, 1)));
    let listed = Kind::ALL.iter().map(|kind| Event::Listed(*kind));
    let later = (0..PODS).map(|n| pod(n, 2)).chain((0..PODS).map(deleted));
    let events: Vec<Event> = first.chain(listed).chain(later).collect();
    let (begun, mut actions) = (cpu(), 0);
    for event in events {
        actions += publisher.handle(event).len();
    }
    assert!(actions > 3 * PODS as usize);
    cpu() - begun
}

#[test]
#[ignore = "a measurement"]
#[allow(clippy::print_stderr, reason = "a measurement")]
fn the_publisher_costs() {
    let file = json!({
        "apiVersion": "scope.isthmus.io/v1", "kind": "Scope",
        "export": {"endpoints": {"rules": [
            {"name": "backends", "action": "include", "backendsOfGlobalServices": true},
            {"name": "batch", "action": "exclude", "namespaces": {"names": ["batch-*"]}},
        ]}},
    });
    let file = ScopeFile::parse(file.to_string().as_bytes()).unwrap();
    let scoped = || Publisher::new(options()).with_scope(Arc::new(file.export.clone()), HashSet::new());
    for _ in 0..5 {
        let each = |cost: Duration| cost / (3 * PODS);
        eprintln!(
            "without a scope {:?}, with one {:?} for each event of a pod",
            each(publish(Publisher::new(options()))),
            each(publish(scoped()))
        );
    }
}
