//! What the filter costs: time for each key that is left out, and memory for what is remembered of it.
//!
//! ```text
//! cargo test --release --lib -- --ignored --nocapture the_filter_costs
//! ```

use super::*;
use std::time::Duration;

/// Endpoints of a large cluster.
const KEYS: u32 = 1_000_000;

/// The time for which this thread has had a CPU.
fn cpu() -> Duration {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    Duration::from_nanos(text.split(' ').next().unwrap().parse().unwrap())
}

fn pod(n: u32) -> (String, String) {
    let (a, b, c) = (n >> 16, n >> 8 & 255, n & 255);
    let value = format!(
        r#"{{"IP":"10.{a}.{b}.{c}","Mask":null,"HostIP":"172.18.{a}.{b}","ID":{},"Key":0,"Metadata":"cilium-global:hk:hk-worker-{b}:{n}","K8sNamespace":"namespace-{}","K8sPodName":"app-{}-7c9d8f6b5-v{n}","K8sServiceAccount":"default"}}"#,
        65_536 + 256 + n % 500,
        n % 20,
        n % 500
    );
    (format!("{ENDPOINTS}10.{a}.{b}.{c}"), value)
}

#[test]
#[ignore = "a measurement"]
#[allow(clippy::print_stderr, reason = "a measurement")]
fn the_filter_costs() {
    let rules = |identity: serde_json::Value| {
        json!({"endpoints": {"default": "exclude", "rules": [
            {"name": "shop", "action": "include", "namespaces": {"names": ["shop", "team-*"]}},
            {"name": "db", "action": "include", "namespaces": {"names": ["data-*"]}, "identity": identity},
        ]}})
    };
    let pods: Vec<(Bytes, Bytes)> = (0..KEYS)
        .map(pod)
        .map(|(key, value)| (key.into(), value.into()))
        .collect();
    let mut mirror = Mirror::new(rules(json!({"matchLabels": {"app": "db"}})));
    for what in ["the first list", "a list of known keys"] {
        mirror.filter.list_begun(Scope::Endpoints);
        let (begun, mut out) = (cpu(), vec![]);
        for (key, value) in &pods {
            mirror
                .filter
                .put(Scope::Endpoints, key.clone(), value.clone(), &|_| false, &mut out);
        }
        let took = cpu() - begun;
        mirror.filter.list_ended(Scope::Endpoints, &mut out);
        assert!(out.is_empty());
        eprintln!(
            "{what}: {} ns for each key that is left out",
            took.as_nanos() / u128::from(KEYS)
        );
    }
    let begun = cpu();
    mirror.set(rules(json!({"matchLabels": {"app": "other"}})));
    eprintln!("other rules for {KEYS} keys that are left out: {:?}", cpu() - begun);
}
