use super::super::State;
use super::*;
use crate::mesh::profile;
use serde_json::{Value, json};

fn facts(name: &str, id: u32, more: &Value) -> Facts {
    let config = json!({"cluster-name": name, "cluster-id": id.to_string(), "cluster-pool-ipv4-cidr": format!("10.{id}.0.0/16")});
    let mut facts = json!({"context": name, "namespace": "kube-system", "ciliumConfig": {"data": config}});
    let (facts, more) = (facts.as_object_mut().unwrap(), more.as_object().unwrap());
    if let Some(config) = more.get("config") {
        facts["ciliumConfig"]["data"]
            .as_object_mut()
            .unwrap()
            .extend(config.as_object().unwrap().clone());
    }
    facts.extend(more.clone());
    serde_json::from_value(Value::Object(facts.clone())).unwrap()
}

fn states(checks: &[Check], topic: &str) -> Vec<State> {
    checks
        .iter()
        .filter(|check| check.topic == topic)
        .map(|check| check.state)
        .collect()
}

fn pair(local: &Facts, remote: &Facts) -> Vec<Check> {
    together(&[profile::of(local), profile::of(remote)], Timestamp::now())
}

#[test]
fn clusters_that_fit_have_one_line_for_each_topic() {
    let none = json!({});
    let checks = pair(&facts("tokyo", 1, &none), &facts("hk", 2, &none));
    assert!(checks.iter().all(|check| check.state == State::Ok), "{checks:?}");
    let topics: Vec<_> = checks.iter().map(|check| check.topic).collect();
    assert_eq!(topics, ["identity", "modes", "networks"]);
    assert_eq!(checks[0].clusters, ["tokyo", "hk"]);
}

/// Complaint 9 of the field: all green but no traffic.
#[test]
fn networks_modes_and_versions_that_do_not_fit_are_found_before_connecting() {
    let agents = |version: &str| {
        let image = format!("quay.io/cilium/cilium:{version}");
        json!({"spec": {"selector": {}, "template": {"spec": {"containers": [{"name": "cilium-agent", "image": image}]}}}})
    };
    let local = facts(
        "tokyo",
        1,
        &json!({"agents": agents("v1.20.2"), "config": {"routing-mode": "tunnel"}}),
    );
    let remote = json!({"agents": agents("v1.18.1"),
        "config": {"routing-mode": "native", "cluster-pool-ipv4-cidr": "10.1.128.0/17", "enable-ipsec": "true"}});
    let checks = pair(&local, &facts("hk", 2, &remote));
    assert_eq!(states(&checks, "networks"), [State::Failed]);
    assert_eq!(states(&checks, "version"), [State::Failed]);
    assert_eq!(states(&checks, "modes"), [State::Failed, State::Warning]);
    assert!(
        checks
            .iter()
            .filter(|check| check.state != State::Ok)
            .all(|check| check.remedy.is_some())
    );
}

#[test]
fn an_id_that_a_cluster_of_the_mesh_has_already_is_refused() {
    let all = [facts("tokyo", 1, &json!({})), facts("hk", 2, &json!({}))];
    let known = [
        Peers::from([("osaka".to_owned(), 2), ("hk".to_owned(), 2), ("kobe".to_owned(), 9)]),
        Peers::new(),
    ];
    let checks = peers(&all, &known);
    assert_eq!(states(&checks, "identity"), [State::Failed]);
    let text = "cluster osaka, to which it is connected, has the id 2, which is that of cluster hk, too";
    assert_eq!(checks[0].what, text);
}

#[test]
fn a_cluster_without_a_store_says_what_to_run() {
    let checks = alone(&facts("tokyo", 1, &json!({})), "isthmus", Timestamp::now());
    assert_eq!(states(&checks, "identity"), [State::Ok]);
    assert_eq!(states(&checks, "service"), [State::Failed]);
    assert!(
        checks
            .iter()
            .any(|check| check.what.contains("run 'isthmus enable' to deploy it")),
        "{checks:?}"
    );
    let unnamed = alone(&facts("default", 0, &json!({})), "isthmus", Timestamp::now());
    assert_eq!(states(&unnamed, "identity"), [State::Failed]);
}

/// Complaint 5 of the field: the mesh is gone after an unrelated upgrade.
#[test]
fn tools_that_would_undo_a_connect_are_named() {
    let meta = json!({"labels": {"app.kubernetes.io/managed-by": "Helm"},
        "annotations": {"meta.helm.sh/release-name": "cilium", "meta.helm.sh/release-namespace": "kube-system"}});
    let secrets =
        json!({"secrets": {"cilium-clustermesh": {"metadata": meta}, "cilium-kvstoremesh": {"metadata": meta}}});
    let checks = keepers(&facts("tokyo", 1, &secrets), "isthmus");
    assert_eq!(states(&checks, "ownership"), [State::Warning]);
    assert_eq!(
        checks[0].what,
        "the Helm release kube-system/cilium keeps cilium-clustermesh, cilium-kvstoremesh, and will undo changes by others"
    );
}
