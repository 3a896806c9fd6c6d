use super::super::change::Step;
use super::super::endpoints::Endpoints;
use super::super::record::Peer;
use super::plan::knows;
use super::*;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;

fn facts() -> Facts {
    let file = |name: &str| STANDARD.encode(format!("endpoints:\n- https://{name}.mesh.cilium.io:2379\n"));
    let data = json!({"hk": file("hk"), "hk.etcd-client-ca.crt": STANDARD.encode("PEM"), "hk2": file("hk2")});
    let users = "users:\n- name: remote-hk\n  role: remote\n- name: remote-hk2\n  role: remote\n";
    serde_json::from_value(json!({"context": "t", "namespace": "kube-system",
        "ciliumConfig": {"data": {"cluster-name": "tokyo"}}, "secrets": {"cilium-clustermesh": {"data": data}},
        "users": {"metadata": {"name": "clustermesh-remote-users"}, "data": {"users.yaml": users}}}))
    .unwrap()
}

fn lost() -> BTreeSet<String> {
    BTreeSet::from(["hk".to_owned()])
}

#[test]
fn a_peer_that_another_tool_has_connected_is_forgotten_with_all_its_keys() {
    let plan = plan(&facts(), &Record::default(), &lost()).unwrap();
    let Step::RemoveKeys(keys) = &plan.changes[0].step else {
        panic!("{plan}")
    };
    assert_eq!(*keys, ["hk", "hk.etcd-client-ca.crt"]);
    let text = plan.to_string();
    assert!(
        text.contains("remove hk, hk.etcd-client-ca.crt from Secret kube-system/cilium-clustermesh"),
        "{text}"
    );
    let Step::Apply { object, .. } = &plan.changes[1].step else {
        panic!("{plan}")
    };
    assert_eq!(
        object["data"]["users.yaml"],
        "users:\n- name: remote-hk2\n  role: remote\n"
    );
    assert_eq!(plan.changes.len(), 2, "{plan}");
}

#[test]
fn the_record_is_changed_last() {
    let mut record = Record::default();
    let hk = Peer {
        endpoints: Some(Endpoints::of_ips(vec!["192.0.2.7".parse().unwrap()], 2379)),
        ..Peer::default()
    };
    record.peers.insert("hk".to_owned(), hk);
    let plan = plan(&facts(), &record, &lost()).unwrap();
    assert_eq!(plan.changes.last().unwrap().target.name, "isthmus-mesh");
    let nobody = BTreeSet::from(["osaka".to_owned()]);
    let nothing = super::plan(&facts(), &Record::default(), &nobody).unwrap();
    assert!(nothing.changes.is_empty(), "{nothing}");
}

#[test]
fn a_peer_is_known_by_whatever_is_left_of_it() {
    let known = |name: &str| knows(&facts(), &Record::default(), name).unwrap();
    assert!(known("hk") && known("hk2") && !known("h") && !known("osaka") && !known("remote-hk"));
    let mut rest = facts();
    rest.secrets.clear();
    assert!(knows(&rest, &Record::default(), "hk").unwrap());
    let record = Record {
        peers: [("osaka".to_owned(), Peer::default())].into(),
    };
    assert!(knows(&rest, &record, "osaka").unwrap());
}

#[test]
fn what_is_removed_is_printed_for_those_who_keep_the_objects_in_a_repository() {
    let text = plan(&facts(), &Record::default(), &lost()).unwrap().document().unwrap();
    let removal = "# 1. Remove hk, hk.etcd-client-ca.crt from Secret kube-system/cilium-clustermesh";
    assert!(text.contains(removal) && text.contains("kind: ConfigMap"), "{text}");
}
