//! Commands that change the same cluster at the same time: each decides anew from what the others have written.

use crate::mesh_cli::{AGENTS, HK, MIRROR, Mesh, TOKYO, assert_fails, assert_ok, authority};
use crate::support::apply_api::{APPS, ApplyApi, CORE, kubeconfig};
use isthmus::mesh::pki;
use serde_json::{Value, json};

const RECORD: &str = "configmaps/isthmus-mesh";
const BINDING: &str = "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings/clustermesh-apiserver";
const ROLE: &str = "/apis/rbac.authorization.k8s.io/v1/clusterroles/clustermesh-apiserver";
const AGAIN: &str = "Another command changes the same objects: reading them again";

/// The object of another command that has connected a cluster `osaka`.
fn record_of_another() -> Value {
    let osaka = json!({"id": 9, "context": "osaka", "reads": true, "endpoints": {"ips": ["192.0.2.9"], "port": 2379}});
    json!({"metadata": {"labels": {"app.kubernetes.io/managed-by": "isthmus"}}, "data": {"osaka": osaka.to_string()}})
}

fn peers(api: &ApplyApi) -> Vec<String> {
    let record = api.get(&format!("{CORE}/{RECORD}")).unwrap();
    record["data"].as_object().unwrap().keys().cloned().collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_first_connect_keeps_what_another_first_connect_has_written_meanwhile() {
    let mesh = Mesh::with_one_ca().await;
    let path = format!("{CORE}/{RECORD}");
    let other = path.clone();
    mesh.tokyo
        .interrupt(&format!("POST {path}"), move |api| api.put(&other, record_of_another()));
    let connected = mesh.connect(&["--adopt"]).await;
    assert_ok(&connected);
    assert!(connected.stdout.contains(AGAIN), "{}", connected.stdout);
    assert_eq!(peers(&mesh.tokyo), [HK, "osaka"]);
    assert_eq!(mesh.tokyo.texts(MIRROR).keys().collect::<Vec<_>>(), [HK, "osaka"]);
    assert_eq!(peers(&mesh.hk), [TOKYO]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_later_connect_decides_anew_when_the_record_has_changed_and_gives_up_after_some_attempts() {
    let mesh = Mesh::with_one_ca().await;
    assert_ok(&mesh.connect(&[]).await);
    let path = format!("{CORE}/{RECORD}");
    let touch = |api: &ApplyApi| {
        let path = format!("{CORE}/{RECORD}");
        api.edit(&path, |map| {
            let mut osaka = record_of_another()["data"]["osaka"].clone();
            osaka = json!(osaka.as_str().unwrap().replace("true", "false"));
            map["data"]["osaka"] = osaka;
        });
    };
    let moved = ["--adopt", "--destination-endpoint=192.0.2.7:2379"];
    mesh.tokyo.interrupt(&format!("PATCH {path}"), touch);
    assert_ok(&mesh.connect(&moved).await);
    assert_eq!(peers(&mesh.tokyo), [HK, "osaka"]);
    for _ in 0..9 {
        mesh.tokyo.interrupt(&format!("PATCH {path}"), touch);
    }
    let writes = mesh.hk.writes().len();
    let gave_up = mesh.connect(&["--destination-endpoint=192.0.2.8:2379"]).await;
    assert_fails(
        &gave_up,
        &[
            "other commands change the same clusters again and again",
            "isthmus-mesh",
        ],
    );
    assert_eq!(gave_up.stdout.matches(AGAIN).count(), 4, "{}", gave_up.stdout);
    assert_eq!(mesh.hk.writes().len(), writes);
}

#[tokio::test(flavor = "multi_thread")]
async fn connects_of_one_cluster_at_the_same_time_all_take_effect() {
    let authority = authority();
    let mesh = Mesh::of_charts(&authority, &authority).await;
    let paris = ApplyApi::start("paris", 3).await;
    paris.install_chart(&authority);
    kubeconfig(
        &mesh.directory.path().join("config"),
        &[(TOKYO, &mesh.tokyo), (HK, &mesh.hk), ("paris", &paris)],
    );
    let connect = async |destination| {
        let arguments = ["connect", "--context", TOKYO, "--destination-context", destination];
        mesh.run(&arguments).await
    };
    let (one, other) = tokio::join!(connect(HK), connect("paris"));
    assert_ok(&one);
    assert_ok(&other);
    assert_eq!(peers(&mesh.tokyo), [HK, "paris"]);
    for secret in [AGENTS, MIRROR] {
        assert_eq!(mesh.tokyo.texts(secret).keys().collect::<Vec<_>>(), [HK, "paris"]);
    }
    let users = mesh
        .tokyo
        .get(&format!("{CORE}/configmaps/clustermesh-remote-users"))
        .unwrap();
    let users = users["data"]["users.yaml"].as_str().unwrap();
    assert!(
        users.contains("remote-hk-cluster") && users.contains("remote-paris"),
        "{users}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn enables_of_one_cluster_at_the_same_time_have_one_ca() {
    let mesh = Mesh::bare().await;
    // Another command has made the CA after this one has read the cluster.
    let other = authority();
    let (cert, key) = (other.cert().to_owned(), other.key().to_owned());
    mesh.tokyo
        .interrupt(&format!("POST {CORE}/secrets/cilium-ca"), move |api| {
            api.secret("cilium-ca", &[("ca.crt", &*cert), ("ca.key", &*key)]);
        });
    let enable = ["enable", "--context", TOKYO, "--service-type=NodePort"];
    let enabled = mesh.run(&enable).await;
    assert_ok(&enabled);
    assert!(enabled.stdout.contains(AGAIN), "{}", enabled.stdout);
    assert_eq!(mesh.tokyo.texts("cilium-ca")["ca.crt"], other.cert());
    let is_of = |api: &ApplyApi, secret: &str, authority: &str| {
        let leaf = pki::certificates(&api.texts(secret)["tls.crt"]).unwrap().swap_remove(0);
        leaf.is_signed_by(&pki::certificates(authority).unwrap()[0])
    };
    for name in ["server", "remote", "local"] {
        assert!(is_of(
            &mesh.tokyo,
            &format!("clustermesh-apiserver-{name}-cert"),
            other.cert()
        ));
    }
    let enable = async || mesh.run(&["enable", "--context", HK, "--service-type=NodePort"]).await;
    let (one, other) = tokio::join!(enable(), enable());
    assert_ok(&one);
    assert_ok(&other);
    let authority = mesh.hk.texts("cilium-ca")["ca.crt"].clone();
    for name in ["server", "remote", "local"] {
        assert!(is_of(
            &mesh.hk,
            &format!("clustermesh-apiserver-{name}-cert"),
            &authority
        ));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_installation_in_another_namespace_keeps_its_rights() {
    let mesh = Mesh::bare().await;
    assert_ok(&mesh.run(&["enable", "--service-type=NodePort"]).await);
    let [core, apps] = [CORE, APPS].map(|prefix| prefix.replace("kube-system", "cilium"));
    let config = mesh.tokyo.get(&format!("{CORE}/configmaps/cilium-config")).unwrap();
    mesh.tokyo.put(&format!("{core}/configmaps/cilium-config"), config);
    let (binding, writes) = (mesh.tokyo.get(BINDING), mesh.writes());
    let second = ["enable", "--namespace=cilium", "--service-type=NodePort"];
    for more in [&[][..], &["--adopt"], &["--dry-run"]] {
        assert_fails(
            &mesh.run(&[&second[..], more].concat()).await,
            &[
                "ClusterRoleBinding clustermesh-apiserver",
                "belongs to the installation in namespace kube-system",
                "disable --namespace kube-system",
            ],
        );
    }
    assert_eq!((mesh.tokyo.get(BINDING), mesh.writes()), (binding.clone(), writes));
    // What a removal in the other namespace finds there is not its own.
    let account = format!("{core}/serviceaccounts/clustermesh-apiserver");
    mesh.tokyo.put(
        &account,
        json!({"metadata": {"labels": {"app.kubernetes.io/managed-by": "isthmus"}}}),
    );
    assert_ok(&mesh.run(&["disable", "--namespace=cilium"]).await);
    assert_eq!(mesh.tokyo.get(&account), None);
    assert_eq!(mesh.tokyo.get(BINDING), binding);
    assert!(mesh.tokyo.get(ROLE).is_some());
    // The first one removes both; then the other namespace may have the store.
    assert_ok(&mesh.run(&["disable"]).await);
    assert_eq!((mesh.tokyo.get(BINDING), mesh.tokyo.get(ROLE)), (None, None));
    assert_ok(&mesh.run(&second).await);
    assert!(
        mesh.tokyo
            .get(&format!("{apps}/deployments/clustermesh-apiserver"))
            .is_some()
    );
    assert_eq!(mesh.tokyo.get(BINDING).unwrap()["subjects"][0]["namespace"], "cilium");
}

#[tokio::test(flavor = "multi_thread")]
async fn enable_is_rehearsed_and_its_manifests_have_no_list_of_users() {
    let mesh = Mesh::bare().await;
    let enable = ["enable", "--service-type=NodePort"];
    let printed = mesh.run(&[&enable[..], &["--print=manifests"]].concat()).await;
    assert_ok(&printed);
    assert!(
        printed.stdout.contains("kind: Deployment") && !printed.stdout.contains("kind: ConfigMap"),
        "{}",
        printed.stdout
    );
    let dry = mesh.run(&[&enable[..], &["--dry-run"]].concat()).await;
    assert_ok(&dry);
    assert!(
        dry.stdout
            .contains("apply ConfigMap kube-system/clustermesh-remote-users"),
        "{}",
        dry.stdout
    );
    assert!(
        dry.stdout.contains("create Secret kube-system/cilium-ca"),
        "{}",
        dry.stdout
    );
    // A right that is missing for the last object leaves no half of an installation.
    mesh.tokyo
        .refuse("PATCH", &format!("{APPS}/deployments/clustermesh-apiserver"));
    for more in [&["--dry-run"][..], &[]] {
        assert_fails(
            &mesh.run(&[&enable[..], more].concat()).await,
            &[
                "the cluster would not accept the changes, nothing was changed",
                "cannot apply Deployment kube-system/clustermesh-apiserver",
                "the right to create and patch deployments",
            ],
        );
    }
    assert_eq!(mesh.writes(), 0);
    // The chart's pod waits for the ConfigMap, which is not for a repository.
    let mesh = Mesh::with_one_ca().await;
    let printed = mesh.run(&["enable", "--print=manifests"]).await;
    assert_ok(&printed);
    assert_eq!(printed.stdout, "");
    assert!(
        printed.stderr.contains("clustermesh-remote-users"),
        "{}",
        printed.stderr
    );
}
