use super::super::change::Plan;
use super::super::facts::secret;
use super::super::output::Recorded;
use super::super::pki::{Authority, Certificate};
use super::*;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use serde_json::{Value, json};

fn facts(config: &Value, secrets: &Value) -> Facts {
    serde_json::from_value(
        json!({"context": "t", "namespace": "kube-system", "ciliumConfig": {"data": config},
        "secrets": secrets}),
    )
    .unwrap()
}

fn named() -> Value {
    json!({"cluster-name": "tokyo", "cluster-id": "1"})
}

fn ca(with_key: bool) -> (Authority, Value) {
    let authority = Authority::generate("Cilium CA", Timestamp::now()).unwrap();
    let mut data = json!({"ca.crt": STANDARD.encode(authority.cert())});
    if with_key {
        data["ca.key"] = json!(STANDARD.encode(authority.key()));
    }
    (authority, json!({"cilium-ca": {"data": data}}))
}

fn certified(facts: &Facts, names: &[String]) -> Result<(Plan, Vec<String>), Error> {
    let (mut plan, output) = (Plan::new("t", "tokyo"), Recorded::default());
    plan::certificates(facts, &Request::default(), names, Timestamp::now(), &mut plan, &output)?;
    Ok((plan, output.lines()))
}

fn names(plan: &Plan) -> Vec<&str> {
    plan.changes.iter().map(|change| &*change.target.name).collect()
}

#[test]
fn a_cluster_without_a_name_or_with_an_impossible_id_is_refused_with_the_values_to_set() {
    let error = |config: Value| check(&facts(&config, &json!({}))).unwrap_err().to_string();
    let unnamed = error(json!({"cluster-name": "default", "cluster-id": "0"}));
    assert!(
        unnamed.contains("cluster.name and cluster.id") && unnamed.contains("restart all pods"),
        "{unnamed}"
    );
    assert!(error(json!({"cluster-name": "tokyo", "cluster-id": "one"})).contains("\"one\" is not a number"));
    assert!(error(json!({"cluster-name": "tokyo", "cluster-id": "256"})).contains("256 > 255"));
    assert!(error(json!({"cluster-name": "Tokyo_1", "cluster-id": "1"})).contains("invalid cluster name"));
    let mut kvstore = named();
    kvstore["identity-allocation-mode"] = json!("kvstore");
    assert!(error(kvstore).contains("identity-allocation-mode kvstore"));
    assert!(check(&facts(&named(), &json!({}))).is_ok());
}

#[test]
fn only_missing_certificates_are_issued_by_the_ca_that_is_there() {
    let (authority, mut secrets) = ca(true);
    secrets[secret::REMOTE] = json!({"data": {"tls.crt": "eA=="}});
    let (plan, _) = certified(&facts(&named(), &secrets), &["lb.example".to_owned()]).unwrap();
    assert_eq!(names(&plan), [secret::SERVER, secret::LOCAL]);
    let data = &plan.objects().next().unwrap()["data"];
    let text = |key: &str| String::from_utf8(STANDARD.decode(data[key].as_str().unwrap()).unwrap()).unwrap();
    let server: Certificate = pki::certificates(&text("tls.crt")).unwrap().remove(0);
    assert!(server.is_for("lb.example") && server.is_for("tokyo.mesh.cilium.io"));
    assert!(pki::contains(&text("ca.crt"), authority.cert()));
    assert!(!plan.to_string().contains(&STANDARD.encode(text("tls.key"))));
}

#[test]
fn a_ca_without_its_key_is_no_reason_for_another_ca() {
    let (_, secrets) = ca(false);
    let error = certified(&facts(&named(), &secrets), &[]).unwrap_err().to_string();
    assert!(
        error.contains("kube-system/cilium-ca") && error.contains("has no private key"),
        "{error}"
    );
    assert!(error.contains(secret::SERVER), "{error}");
}

#[test]
fn a_new_ca_can_be_taken_over_by_helm() {
    let mut facts = facts(&named(), &json!({}));
    facts.releases = serde_json::from_value(json!([{"namespace": "kube-system", "name": "cilium"}])).unwrap();
    let (plan, lines) = certified(&facts, &[]).unwrap();
    assert_eq!(
        names(&plan),
        [secret::CA, secret::SERVER, secret::REMOTE, secret::LOCAL]
    );
    let meta = &plan.objects().next().unwrap()["metadata"];
    assert_eq!(meta["annotations"]["meta.helm.sh/release-name"], "cilium");
    assert_eq!(lines[0], "🔑 Created CA in Secret kube-system/cilium-ca");
}

#[test]
fn a_pod_that_does_not_start_says_why() {
    let status = json!({"containerStatuses": [{"name": "kvstoremesh", "image": "", "imageID": "", "ready": false,
        "restartCount": 0, "state": {"waiting": {"reason": "ImagePullBackOff", "message": "Back-off pulling image"}}}]});
    let pod = serde_json::from_value(json!({"metadata": {"name": "p"}, "status": status})).unwrap();
    let reason = ready::reason(&pod).unwrap();
    assert_eq!(
        reason,
        "pod p: container kvstoremesh ImagePullBackOff: Back-off pulling image"
    );
    let unscheduled = json!({"conditions": [{"type": "PodScheduled", "status": "False", "message": "no room"}]});
    let pod = serde_json::from_value(json!({"metadata": {"name": "p"}, "status": unscheduled})).unwrap();
    assert_eq!(ready::reason(&pod).unwrap(), "pod p: no room");
    let deployment = serde_json::from_value(
        json!({"metadata": {"generation": 1}, "spec": {"replicas": 2, "selector": {},
        "template": {}}, "status": {"observedGeneration": 1, "availableReplicas": 1}}),
    )
    .unwrap();
    assert_eq!(
        ready::obstacle(Some(&deployment)).unwrap(),
        "only 1 of 2 replicas are available"
    );
}
