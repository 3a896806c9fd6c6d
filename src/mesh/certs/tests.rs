use super::*;
use crate::mesh::pki::{AuthMode, Authority};
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use serde_json::json;
use std::collections::BTreeMap;

fn now() -> Timestamp {
    "2026-11-27T12:00:00Z".parse().unwrap()
}

fn secret_of(values: &[(&str, &str)]) -> Secret {
    let value = |(key, value): &(&str, &str)| ((*key).to_owned(), ByteString(value.as_bytes().to_vec()));
    Secret {
        data: Some(values.iter().map(value).collect()),
        ..Secret::default()
    }
}

fn facts(authority: &Authority) -> Facts {
    let config = json!({"data": {"cluster-name": "tokyo", "cluster-id": "1"}});
    let mut facts = Facts {
        context: "tokyo-admin".to_owned(),
        namespace: "kube-system".to_owned(),
        cilium_config: Some(serde_json::from_value(config).unwrap()),
        ..Facts::default()
    };
    let owner = owner(&facts, &["lb.example.com".to_owned()]);
    for leaf in Leaf::ALL {
        let material = authority.issue(&leaf.request(&owner), now()).unwrap();
        let values = [
            ("tls.crt", &*material.cert),
            ("tls.key", &*material.key),
            ("ca.crt", &*material.ca),
        ];
        facts.secrets.insert(leaf.secret().to_owned(), secret_of(&values));
    }
    let ca = secret_of(&[("ca.crt", authority.cert()), ("ca.key", authority.key())]);
    facts.secrets.insert(secret::CA.to_owned(), ca);
    facts
}

#[test]
fn an_inventory_has_every_certificate_with_its_days() {
    let authority = Authority::generate("Cilium CA", now()).unwrap();
    let mut facts = facts(&authority);
    facts.secrets.insert(
        secret::MIRROR.to_owned(),
        secret_of(&[("hk", "endpoints: [x]"), ("hk.etcd-client-ca.crt", authority.cert())]),
    );
    let inventory = Inventory::of(&facts, now());
    assert_eq!(inventory.certificates.len(), 1 + 2 * 4 + 1);
    let server = inventory
        .certificates
        .iter()
        .find(|row| row.secret == Leaf::Server.secret())
        .unwrap();
    assert_eq!((server.until.as_str(), server.days_left), ("2027-11-27", 365));
    assert_eq!(server.issuer, "CN=Cilium CA");
    assert!(!inventory.is_wrong());
    let lines = inventory.lines();
    assert_eq!(lines[0], "🔑 Certificates of cluster tokyo (context tokyo-admin):");
    assert!(lines[1].starts_with("  SECRET  "), "{lines:?}");
    let late = Inventory::of(&facts, "2027-11-28T12:00:00Z".parse().unwrap());
    assert!(late.is_wrong());
    let expected = "❌ Secret clustermesh-apiserver-server-cert, key tls.crt: \
                    CN=clustermesh-apiserver.kube-system.svc expired on 2027-11-27";
    assert!(late.lines().iter().any(|line| line == expected), "{:?}", late.lines());
}

#[test]
fn an_unreadable_or_missing_certificate_is_named() {
    let authority = Authority::generate("Cilium CA", now()).unwrap();
    let mut facts = facts(&authority);
    let containers = json!([{"name": "kvstoremesh"}]);
    let deployment = json!({"spec": {"selector": {}, "template": {"spec": {"containers": containers}}}});
    facts.deployment = Some(serde_json::from_value(deployment).unwrap());
    facts.secrets.remove(Leaf::Local.secret());
    facts
        .secrets
        .insert(Leaf::Remote.secret().to_owned(), secret_of(&[("tls.crt", "nonsense")]));
    let inventory = Inventory::of(&facts, now());
    assert!(inventory.is_wrong());
    let lines = inventory.lines();
    let has = |part: &str| lines.iter().any(|line| line.contains(part));
    assert!(
        has("❌ Secret clustermesh-apiserver-remote-cert, key tls.crt: no certificate in PEM form"),
        "{lines:?}"
    );
    assert!(
        has("⚠️  Secret clustermesh-apiserver-local-cert is absent"),
        "{lines:?}"
    );
}

#[test]
fn names_that_were_added_and_the_naming_of_clients_stay() {
    let authority = Authority::generate("Cilium CA", now()).unwrap();
    let mut facts = facts(&authority);
    let again = owner(&facts, &["192.0.2.7".to_owned()]);
    let names = Leaf::Server.request(&again).names;
    assert!(names.contains(&"lb.example.com".to_owned()) && names.contains(&"192.0.2.7".to_owned()));
    assert_eq!(names.iter().filter(|name| *name == "127.0.0.1").count(), 1);
    assert_eq!(again.auth_mode, AuthMode::Shared);
    let per_cluster = Owner {
        auth_mode: AuthMode::PerCluster,
        ..again
    };
    let remote = authority.issue(&Leaf::Remote.request(&per_cluster), now()).unwrap();
    facts.secrets.insert(
        Leaf::Remote.secret().to_owned(),
        secret_of(&[("tls.crt", &remote.cert)]),
    );
    assert_eq!(owner(&facts, &[]).auth_mode, AuthMode::PerCluster);
}

#[test]
fn certificates_of_other_tools_are_not_issued_silently() {
    let authority = Authority::generate("Cilium CA", now()).unwrap();
    let mut facts = facts(&authority);
    assert!(leaves::check_methods(&facts, &Leaf::ALL, false).is_ok());
    let mut mark = |labels: serde_json::Value, annotations: serde_json::Value| {
        let meta = json!({"labels": labels, "annotations": annotations});
        let server = facts.secrets.get_mut(Leaf::Server.secret()).unwrap();
        server.metadata = serde_json::from_value(meta).unwrap();
        [false, true].map(|adopt| leaves::check_methods(&facts, &Leaf::ALL, adopt).map_err(|e| e.to_string()))
    };
    let helm = mark(
        json!({"app.kubernetes.io/managed-by": "Helm"}),
        json!({"meta.helm.sh/release-name": "cilium", "meta.helm.sh/release-namespace": "kube-system"}),
    );
    let text = helm[0].clone().unwrap_err();
    assert!(
        text.contains("the Helm release kube-system/cilium") && text.contains("--adopt"),
        "{text}"
    );
    assert_eq!(helm[1], Ok(()));
    let manager = mark(json!({}), json!({"cert-manager.io/certificate-name": "server"}));
    assert!(
        manager[0]
            .clone()
            .unwrap_err()
            .contains("cmctl renew -n kube-system server")
    );
    assert!(manager[1].is_err(), "cert-manager undoes changes at once");
}

#[test]
fn the_cronjob_may_read_and_write_its_secrets_and_nothing_else() {
    let objects = cronjob::objects(&cronjob::Options {
        namespace: "kube-system".to_owned(),
        image: "isthmus:1".to_owned(),
        schedule: "0 3 * * 1".to_owned(),
        renew_before: "2160h".to_owned(),
        adopt: false,
    });
    let kinds: Vec<_> = objects.iter().map(|object| object["kind"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["ServiceAccount", "Role", "RoleBinding", "CronJob"]);
    let rules = objects[1]["rules"].as_array().unwrap();
    assert!(
        rules.iter().all(|rule| rule["resourceNames"].is_array()),
        "every rule names its objects"
    );
    let pod = &objects[3]["spec"]["jobTemplate"]["spec"]["template"]["spec"];
    let args: Vec<_> = pod["containers"][0]["args"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(|a| a.as_str())
        .collect();
    assert_eq!(
        args,
        [
            "mesh",
            "certs",
            "rotate",
            "--namespace=kube-system",
            "--renew-before=2160h"
        ]
    );
    let _: BTreeMap<String, serde_json::Value> = serde_json::from_value(objects[3].clone()).unwrap();
}
