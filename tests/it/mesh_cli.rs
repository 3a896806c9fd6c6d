//! Proves that `mesh enable`, `connect`, `disconnect` and `disable` end the complaints of users about Cilium's CLI: one
//! test for each complaint, against Kubernetes APIs that keep what is applied.

use crate::support::apply_api::{APPS, ApplyApi, CORE, kubeconfig};
use crate::support::isthmus;
use crate::support::process::Finished;
use isthmus::kvstore::config::ClientConfig;
use isthmus::mesh::pki::{self, Authority};
use serde_json::{Value, json};

pub const TOKYO: &str = "tokyo-cluster";
pub const HK: &str = "hk-cluster";
pub const AGENTS: &str = "cilium-clustermesh";
pub const MIRROR: &str = "cilium-kvstoremesh";

/// Two clusters, and a directory with their kubeconfig.
pub struct Mesh {
    pub tokyo: ApplyApi,
    pub hk: ApplyApi,
    pub directory: tempfile::TempDir,
}

pub fn authority() -> Authority {
    Authority::generate("Cilium CA", jiff::Timestamp::now()).unwrap()
}

impl Mesh {
    /// Clusters with Cilium, and no mesh.
    pub async fn bare() -> Self {
        let mesh = Self {
            tokyo: ApplyApi::start(TOKYO, 1).await,
            hk: ApplyApi::start(HK, 2).await,
            directory: tempfile::tempdir().unwrap(),
        };
        kubeconfig(
            &mesh.directory.path().join("config"),
            &[(TOKYO, &mesh.tokyo), (HK, &mesh.hk)],
        );
        mesh
    }

    /// Clusters whose chart runs the store and leaves the connections to others.
    pub async fn of_charts(tokyo: &Authority, hk: &Authority) -> Self {
        let mesh = Self::bare().await;
        mesh.tokyo.install_chart(tokyo);
        mesh.hk.install_chart(hk);
        mesh
    }

    pub async fn with_one_ca() -> Self {
        let authority = authority();
        Self::of_charts(&authority, &authority).await
    }

    /// Runs a subcommand of `mesh` to its end.
    pub async fn run(&self, arguments: &[&str]) -> Finished {
        let file = format!("--kubeconfig={}", self.directory.path().join("config").display());
        run(&[arguments, &[&file]].concat()).await
    }

    pub async fn connect(&self, more: &[&str]) -> Finished {
        self.run(&[&["connect", "--context", TOKYO, "--destination-context", HK], more].concat())
            .await
    }

    pub fn writes(&self) -> usize {
        self.tokyo.writes().len() + self.hk.writes().len()
    }
}

pub async fn run(arguments: &[&str]) -> Finished {
    let command = isthmus(["mesh"]).args(arguments);
    tokio::task::spawn_blocking(move || command.run()).await.unwrap()
}

#[track_caller]
pub fn assert_ok(finished: &Finished) {
    assert!(finished.succeeded(), "{}", finished.text());
}

#[track_caller]
pub fn assert_fails(finished: &Finished, parts: &[&str]) {
    let text = finished.text();
    assert_eq!(finished.code, Some(1), "{text}");
    for part in parts {
        assert!(text.contains(part), "no {part:?} in {text}");
    }
}

/// Asserts that `text` has these lines, in this order.
#[track_caller]
pub fn assert_lines(text: &str, lines: &[&str]) {
    let mut rest = text.lines();
    for line in lines {
        assert!(
            rest.any(|found| found == *line),
            "no line {line:?} at its place in:\n{text}"
        );
    }
}

/// The writes that make an object: nobody else has made it, then its contents.
fn made(object: &str) -> [String; 2] {
    ["POST", "PATCH"].map(|method| format!("{method} {CORE}/{object}"))
}

fn endpoints(text: &str) -> (String, Vec<String>) {
    let file = ClientConfig::parse(text).unwrap();
    let ips = file
        .cilium_host_aliases
        .iter()
        .flat_map(|alias| &alias.ips)
        .map(ToString::to_string);
    (file.endpoints[0].clone(), ips.collect())
}

/// The walk from Tokyo to Hong Kong, steps 1 and 3, without a chart: enable, then connect from one side.
#[tokio::test(flavor = "multi_thread")]
async fn the_walk_from_nothing_to_connected_clusters() {
    let mesh = Mesh::bare().await;
    let undetected = mesh.run(&["enable"]).await;
    assert_fails(
        &undetected,
        &["cannot auto-detect service type, please specify using '--service-type' option"],
    );
    assert_eq!(mesh.writes(), 0);
    for context in [TOKYO, HK] {
        let enabled = mesh
            .run(&["enable", "--context", context, "--service-type", "NodePort"])
            .await;
        assert_ok(&enabled);
        assert_lines(
            &enabled.stdout,
            &[
                "⚠️  Using service type NodePort may fail when nodes are removed from the cluster!",
                "🔑 Created CA in Secret kube-system/cilium-ca",
                "🔑 Created certificate in Secret kube-system/clustermesh-apiserver-server-cert",
                "✅ Deployment clustermesh-apiserver is ready",
                &format!("✅ Cluster {context} is ready to be connected"),
            ],
        );
    }
    // Each cluster has made a CA of its own.
    let refused = mesh.connect(&[]).await;
    assert_fails(
        &refused,
        &["Cilium CA certificates do not match between clusters", "--share-ca"],
    );
    let connected = mesh.connect(&["--share-ca"]).await;
    assert_ok(&connected);
    assert_lines(
        &connected.stdout,
        &[
            "✨ Extracting access information of cluster tokyo-cluster...",
            "🔑 Extracting secrets from cluster tokyo-cluster...",
            "⚠️  Service type NodePort detected! Service may fail when nodes are removed from the cluster!",
            "ℹ️  Found ClusterMesh service IPs: [10.13.1.0 10.13.1.1]",
            "✨ Extracting access information of cluster hk-cluster...",
            "🔑 Extracting secrets from cluster hk-cluster...",
            "⚠️  Service type NodePort detected! Service may fail when nodes are removed from the cluster!",
            "ℹ️  Found ClusterMesh service IPs: [10.14.1.0 10.14.1.1]",
            "ℹ️  Configuring Cilium in cluster tokyo-cluster to connect to cluster hk-cluster",
            "ℹ️  Configuring Cilium in cluster hk-cluster to connect to cluster tokyo-cluster",
            "✅ Connected cluster tokyo-cluster <=> hk-cluster!",
        ],
    );
    let (url, ips) = endpoints(&mesh.tokyo.texts(MIRROR)[HK]);
    assert_eq!(url, "https://hk-cluster.mesh.cilium.io:32379");
    assert_eq!(ips, ["10.14.1.0", "10.14.1.1"]);
    let (url, _) = endpoints(&mesh.tokyo.texts(AGENTS)[HK]);
    assert_eq!(url, "https://clustermesh-apiserver.kube-system.svc:2379");
    let users = mesh
        .hk
        .get(&format!("{CORE}/configmaps/clustermesh-remote-users"))
        .unwrap();
    assert_eq!(
        users["data"]["users.yaml"],
        "users:\n- name: remote-tokyo-cluster\n  role: remote\n"
    );
    // Our store reads new CAs while it runs.
    assert!(!connected.stdout.contains("restart"), "{}", connected.stdout);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_run_changes_nothing_and_keeps_certificates() {
    let mesh = Mesh::bare().await;
    let enable = ["enable", "--context", TOKYO, "--service-type", "NodePort"];
    assert_ok(&mesh.run(&enable).await);
    let (writes, certificate) = (mesh.writes(), mesh.tokyo.texts("clustermesh-apiserver-server-cert"));
    let again = mesh.run(&["enable", "--context", TOKYO]).await;
    assert_ok(&again);
    assert!(again.stdout.contains("nothing to change"), "{}", again.stdout);
    assert_eq!(mesh.writes(), writes);
    assert_eq!(mesh.tokyo.texts("clustermesh-apiserver-server-cert"), certificate);
    let mesh = Mesh::with_one_ca().await;
    assert_ok(&mesh.connect(&[]).await);
    let writes = mesh.writes();
    let again = mesh.connect(&[]).await;
    assert_ok(&again);
    assert!(again.stdout.contains("nothing to change"), "{}", again.stdout);
    assert_eq!(mesh.writes(), writes, "{:?}", mesh.tokyo.writes());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_enable_keeps_what_its_flags_do_not_name() {
    let service = format!("{CORE}/services/clustermesh-apiserver");
    let deployment = format!("{APPS}/deployments/clustermesh-apiserver");
    for flags in [
        &["--service-type=NodePort", "--node-port=31000"][..],
        &["--service-type=ClusterIP", "--replicas=3"],
        &["--service-type=ClusterIP", "--storage=persistent"],
        &["--service-type=ClusterIP", "--storage=memory"],
        &["--service-type=ClusterIP", "--enable-kvstoremesh=false"],
    ] {
        let mesh = Mesh::bare().await;
        assert_ok(&mesh.run(&[&["enable"], flags].concat()).await);
        let before = [&service, &deployment].map(|path| mesh.tokyo.get(path).unwrap()["spec"].clone());
        assert_ok(&mesh.run(&["enable", "--image=registry/isthmus:2"]).await);
        let [exposed, mut deployed] = [&service, &deployment].map(|path| mesh.tokyo.get(path).unwrap()["spec"].clone());
        let image = &mut deployed["template"]["spec"]["containers"][0]["image"];
        assert_eq!(*image, "registry/isthmus:2");
        *image = before[1]["template"]["spec"]["containers"][0]["image"].clone();
        assert_eq!([exposed, deployed], before, "{flags:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_internal_load_balancer_stays_internal() {
    let mesh = Mesh::bare().await;
    assert_ok(&mesh.run(&["enable", "--service-type=ClusterIP"]).await);
    let service = format!("{CORE}/services/clustermesh-apiserver");
    // As if the cloud had been detected in the first run.
    mesh.tokyo.edit(&service, |service| {
        service["metadata"]["annotations"]["example.com/internal"] = json!("true");
        let fields = &mut service["metadata"]["managedFields"][0]["fieldsV1"]["f:metadata"]["f:annotations"];
        fields["f:example.com/internal"] = json!({});
    });
    assert_ok(&mesh.run(&["enable", "--image=registry/isthmus:2"]).await);
    let service = mesh.tokyo.get(&service).unwrap();
    assert_eq!(service["metadata"]["annotations"]["example.com/internal"], "true");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mirror_is_removed_and_added_without_cutting_off_peers() {
    let mesh = Mesh::bare().await;
    for context in [TOKYO, HK] {
        assert_ok(
            &mesh
                .run(&["enable", "--context", context, "--service-type=NodePort"])
                .await,
        );
    }
    assert_ok(&mesh.connect(&["--share-ca"]).await);
    let own = "https://clustermesh-apiserver.kube-system.svc:2379";
    let peers = "https://hk-cluster.mesh.cilium.io:32379";
    let at = |from: usize, part: &str| {
        let writes = mesh.tokyo.writes();
        writes[from..].iter().position(|write| write.contains(part)).unwrap()
    };
    let from = mesh.tokyo.writes().len();
    assert_ok(&mesh.run(&["enable", "--enable-kvstoremesh=false"]).await);
    assert_eq!(endpoints(&mesh.tokyo.texts(AGENTS)[HK]).0, peers);
    assert!(at(from, AGENTS) < at(from, "deployments"));
    let refused = mesh.run(&["enable", "--enable-kvstoremesh=true", "--wait=false"]).await;
    assert_fails(&refused, &["needs --wait"]);
    let from = mesh.tokyo.writes().len();
    assert_ok(&mesh.run(&["enable", "--enable-kvstoremesh=true"]).await);
    assert_eq!(endpoints(&mesh.tokyo.texts(AGENTS)[HK]).0, own);
    assert_eq!(endpoints(&mesh.tokyo.texts(MIRROR)[HK]).0, peers);
    assert!(at(from, MIRROR) < at(from, "deployments") && at(from, "deployments") < at(from, AGENTS));
}

#[tokio::test(flavor = "multi_thread")]
async fn another_cluster_with_the_name_of_a_peer_does_not_replace_it() {
    let mesh = Mesh::with_one_ca().await;
    assert_ok(&mesh.connect(&[]).await);
    let (before, writes) = (mesh.tokyo.texts(MIRROR), mesh.writes());
    mesh.hk.edit(&format!("{CORE}/configmaps/cilium-config"), |map| {
        map["data"]["cluster-id"] = json!("7");
    });
    assert_fails(
        &mesh.connect(&[]).await,
        &[
            "a cluster hk-cluster with the ID 2 is connected to cluster tokyo-cluster already",
            "--destination-name",
        ],
    );
    assert_eq!((mesh.tokyo.texts(MIRROR), mesh.writes()), (before, writes));
    // A client file of another tool.
    let mesh = Mesh::with_one_ca().await;
    mesh.tokyo
        .secret(MIRROR, &[(HK, "endpoints:\n- https://elsewhere.example:2379\n")]);
    assert_fails(
        &mesh.connect(&[]).await,
        &[
            "another tool has connected cluster tokyo-cluster to a cluster hk-cluster at",
            "--adopt",
        ],
    );
    assert_eq!(mesh.writes(), 0);
}

/// Complaint 1.
#[tokio::test(flavor = "multi_thread")]
async fn destinations_are_found_in_the_files_of_kubeconfig() {
    let mesh = Mesh::with_one_ca().await;
    let (one, two) = (mesh.directory.path().join("one"), mesh.directory.path().join("two"));
    kubeconfig(&one, &[("admin", &mesh.tokyo)]);
    kubeconfig(&two, &[("admin", &mesh.hk)]);
    let files = [
        format!("--kubeconfig={}", one.display()),
        format!("--kubeconfig={}", two.display()),
    ];
    let with = |arguments: &[&str]| {
        let all: Vec<String> = arguments.iter().map(|a| (*a).to_owned()).chain(files.clone()).collect();
        async move { run(&all.iter().map(String::as_str).collect::<Vec<_>>()).await }
    };
    let ambiguous = with(&["connect", "--destination-context", "admin"]).await;
    assert_fails(
        &ambiguous,
        &["exists in several kubeconfigs", &format!("{}#admin", two.display())],
    );
    let unknown = with(&["connect", "--destination-context", "paris"]).await;
    assert_fails(&unknown, &["context \"paris\" does not exist", "there are: admin"]);
    let destination = format!("{}#admin", two.display());
    assert_ok(&with(&["connect", "--destination-context", &destination]).await);
    assert!(mesh.tokyo.texts(MIRROR).contains_key(HK) && mesh.hk.texts(MIRROR).contains_key(TOKYO));
}

/// Complaint 2.
#[tokio::test(flavor = "multi_thread")]
async fn no_helm_release_is_needed_and_values_and_manifests_can_be_printed() {
    let mesh = Mesh::with_one_ca().await;
    let printed = mesh.connect(&["--print=values"]).await;
    assert_ok(&printed);
    let first = printed.stdout.split("---\n").next().unwrap();
    let values: Value = serde_saphyr::from_str(first).unwrap();
    let clusters = &values["clustermesh"]["config"]["clusters"];
    assert_eq!(
        *clusters,
        json!({HK: {"ips": ["10.14.1.0", "10.14.1.1"], "port": 32379}})
    );
    let printed = mesh.connect(&["--print=manifests"]).await;
    assert_ok(&printed);
    let kinds: Vec<&str> = printed
        .stdout
        .lines()
        .filter(|line| line.starts_with("kind: "))
        .collect();
    assert_eq!(kinds.len(), 8, "{kinds:?}");
    assert!(
        printed.stderr.contains("✨ Extracting access information"),
        "{}",
        printed.stderr
    );
    assert_eq!(mesh.writes(), 0);
    let wrong = mesh
        .run(&["connect", "-n", "cilium", "--destination-context", HK])
        .await;
    assert_fails(&wrong, &["no ConfigMap cilium/cilium-config", "set --namespace"]);
}

/// Complaint 3.
#[tokio::test(flavor = "multi_thread")]
async fn the_host_name_of_a_load_balancer_is_an_address_and_a_pending_one_is_no_success() {
    let mesh = Mesh::with_one_ca().await;
    let service = format!("{CORE}/services/clustermesh-apiserver");
    let balance = |ingress: Value| {
        mesh.hk.edit(&service, |service| {
            service["spec"]["type"] = json!("LoadBalancer");
            service["status"] = json!({"loadBalancer": {"ingress": ingress}});
        });
    };
    balance(json!([]));
    let pending = mesh.connect(&["--wait-duration=1s"]).await;
    assert_fails(
        &pending,
        &[
            "⌛ Waiting (0s) for the load balancer of cluster hk-cluster",
            "has no address yet",
        ],
    );
    balance(json!([{"hostname": "hk.lb.example"}]));
    let missing = mesh.connect(&[]).await;
    assert_fails(
        &missing,
        &["not valid for the host name hk.lb.example", "nothing was changed"],
    );
    assert_eq!(mesh.writes(), 0);
    let forced = mesh.connect(&["--force"]).await;
    assert_ok(&forced);
    let (url, ips) = endpoints(&mesh.tokyo.texts(MIRROR)[HK]);
    assert_eq!((&*url, ips), ("https://hk.lb.example:2379", vec![]));
}

/// Complaint 4.
#[tokio::test(flavor = "multi_thread")]
async fn all_ready_nodes_are_used_and_their_addresses_follow_a_second_connect() {
    let mesh = Mesh::with_one_ca().await;
    assert_ok(&mesh.connect(&[]).await);
    assert_eq!(endpoints(&mesh.tokyo.texts(MIRROR)[HK]).1, ["10.14.1.0", "10.14.1.1"]);
    mesh.hk.edit("/api/v1/nodes/n0", |node| {
        node["status"]["conditions"][0]["status"] = json!("Unknown")
    });
    mesh.hk.edit("/api/v1/nodes/n1", |node| {
        node["status"]["addresses"] =
            json!([{"type": "ExternalIP", "address": "192.0.2.1"}, {"type": "InternalIP", "address": "10.14.1.1"}]);
    });
    assert_ok(
        &mesh
            .connect(&["--node-address-type=ExternalIP", "--source-endpoint=10.13.9.9:443"])
            .await,
    );
    assert_eq!(endpoints(&mesh.tokyo.texts(MIRROR)[HK]).1, ["192.0.2.1"]);
    assert_eq!(
        endpoints(&mesh.hk.texts(MIRROR)[TOKYO]).0,
        "https://tokyo-cluster.mesh.cilium.io:443"
    );
}

/// Complaint 5.
#[tokio::test(flavor = "multi_thread")]
async fn objects_that_helm_keeps_are_not_fought_over() {
    let mesh = Mesh::with_one_ca().await;
    let helm = json!({"labels": {"app.kubernetes.io/managed-by": "Helm"},
        "annotations": {"meta.helm.sh/release-name": "cilium", "meta.helm.sh/release-namespace": "kube-system"}});
    let path = format!("{CORE}/secrets/{AGENTS}");
    mesh.hk.put(&path, json!({"metadata": helm, "data": {}}));
    let refused = mesh.connect(&[]).await;
    assert_fails(
        &refused,
        &[
            "is kept by the Helm release kube-system/cilium",
            "--adopt",
            "clusters:",
            "tokyo-cluster:",
        ],
    );
    assert_eq!(mesh.writes(), 0);
    assert_ok(&mesh.connect(&["--adopt"]).await);
    assert!(mesh.hk.texts(AGENTS).contains_key(TOKYO));
    // The marks of Helm stay, so that Helm can go on.
    assert_eq!(
        mesh.hk.get(&path).unwrap()["metadata"]["labels"]["app.kubernetes.io/managed-by"],
        "Helm"
    );
}

/// Complaint 6.
#[tokio::test(flavor = "multi_thread")]
async fn different_cas_are_found_before_any_write_and_shared_in_two_phases() {
    let (one, two) = (authority(), authority());
    let mesh = Mesh::of_charts(&one, &two).await;
    let refused = mesh.connect(&[]).await;
    assert_fails(
        &refused,
        &[
            "Cilium CA certificates do not match between clusters tokyo-cluster and hk-cluster",
            "does not accept the server certificate of cluster hk-cluster",
            "nothing was changed",
        ],
    );
    assert_eq!(mesh.writes(), 0);
    let shared = mesh.connect(&["--allow-mismatching-ca"]).await;
    assert_ok(&shared);
    assert!(
        shared
            .stdout
            .contains("restart the pods of Deployment kube-system/clustermesh-apiserver"),
        "{}",
        shared.stdout
    );
    for (api, own, other, peer) in [(&mesh.tokyo, &one, &two, HK), (&mesh.hk, &two, &one, TOKYO)] {
        let trusted = &api.texts("clustermesh-apiserver-server-cert")["ca.crt"];
        assert!(pki::contains(trusted, own.cert()) && pki::contains(trusted, other.cert()));
        let files = api.texts(MIRROR);
        let authorities = &files[&format!("{peer}.etcd-client-ca.crt")];
        assert!(pki::contains(authorities, other.cert()) && !pki::contains(authorities, own.cert()));
        assert!(files[peer].contains(&format!("{peer}.etcd-client-ca.crt")));
        // Trust comes before the connection.
        let writes = api.writes();
        let at = |part: &str| writes.iter().position(|write| write.contains(part)).unwrap();
        assert!(
            at("server-cert") < at(AGENTS) && at("deployments") < at(AGENTS),
            "{writes:?}"
        );
    }
    let again = mesh.connect(&[]).await;
    assert_ok(&again);
    assert!(again.stdout.contains("nothing to change"), "{}", again.stdout);
    let judged = mesh.run(&["preflight", "--destination-context", HK]).await.stdout;
    assert!(!judged.contains("does not accept"), "{judged}");
    // What was trusted for the peer ends with the connection.
    assert_ok(&mesh.run(&["disconnect", "--destination-context", HK]).await);
    let trusted = &mesh.tokyo.texts("clustermesh-apiserver-server-cert")["ca.crt"];
    assert!(pki::contains(trusted, one.cert()) && !pki::contains(trusted, two.cert()));
}

/// Complaint 7.
#[tokio::test(flavor = "multi_thread")]
async fn a_dead_peer_is_disconnected_by_its_name() {
    let mesh = Mesh::with_one_ca().await;
    assert_ok(&mesh.connect(&[]).await);
    let before = mesh.hk.writes().len();
    let removed = mesh
        .run(&["disconnect", "--context", TOKYO, "--destination-name", HK])
        .await;
    assert_ok(&removed);
    assert_lines(
        &removed.stdout,
        &[
            "ℹ️  Configuring Cilium in cluster tokyo-cluster to disconnect from cluster hk-cluster",
            "✅ Disconnected clusters tokyo-cluster x> hk-cluster!",
            "⚠️  Cluster hk-cluster was not asked: it keeps its entry for tokyo-cluster and goes on dialling",
        ],
    );
    assert!(
        removed
            .stdout
            .contains("mesh disconnect --context hk-cluster --destination-name tokyo-cluster")
    );
    assert_eq!(mesh.hk.writes().len(), before);
    assert!(mesh.tokyo.texts(AGENTS).is_empty() && mesh.tokyo.texts(MIRROR).is_empty());
    let users = mesh
        .tokyo
        .get(&format!("{CORE}/configmaps/clustermesh-remote-users"))
        .unwrap();
    assert_eq!(users["data"]["users.yaml"], "users: []\n");
    let again = mesh.run(&["disconnect", "--destination-name", HK]).await;
    let nothing = "nothing of that name is left in tokyo-cluster; cluster tokyo-cluster is connected to no cluster";
    assert_fails(&again, &[nothing]);
    let nobody = mesh.run(&["disconnect"]).await;
    assert_fails(&nobody, &["no destination context specified", "--destination-name"]);
    // The other side, once it is back.
    let both = mesh
        .run(&["disconnect", "--context", HK, "--destination-context", TOKYO])
        .await;
    assert_ok(&both);
    assert!(
        both.stdout
            .contains("✅ Disconnected clusters hk-cluster <x> tokyo-cluster!"),
        "{}",
        both.stdout
    );
    assert!(mesh.hk.texts(AGENTS).is_empty());
}

/// Complaint 9.
#[tokio::test(flavor = "multi_thread")]
async fn names_ids_networks_and_versions_are_checked_over_the_whole_mesh_before_any_write() {
    let authority = authority();
    let mesh = Mesh::of_charts(&authority, &authority).await;
    let paris = ApplyApi::start("paris", 2).await;
    paris.install_chart(&authority);
    let config = mesh.directory.path().join("config");
    kubeconfig(&config, &[(TOKYO, &mesh.tokyo), (HK, &mesh.hk), ("paris", &paris)]);
    // Two destinations with one id.
    let twice = mesh
        .run(&["connect", "--destination-context", "hk-cluster,paris"])
        .await;
    assert_fails(&twice, &["have the same, non-unique ID: 2", "nothing was changed"]);
    assert_eq!(mesh.writes() + paris.writes().len(), 0);
    // A destination with the id of a cluster that was connected before.
    assert_ok(&mesh.connect(&[]).await);
    let later = mesh.run(&["connect", "--destination-context", "paris"]).await;
    assert_fails(
        &later,
        &["cluster paris has the ID 2, which is that of cluster hk-cluster"],
    );
    assert_eq!(paris.writes().len(), 0);
    paris.edit(&format!("{CORE}/configmaps/cilium-config"), |map| {
        map["data"]["cluster-id"] = json!("3");
        map["data"]["routing-mode"] = json!("native");
    });
    paris.agents("v1.17.3");
    let networks = mesh.run(&["connect", "--destination-context", "paris"]).await;
    assert_fails(
        &networks,
        &[
            "routing-mode is tunnel",
            "more than one minor release apart",
            "does not read addresses from client files",
        ],
    );
    let unnamed = |map: &mut Value| map["data"]["cluster-id"] = json!("0");
    paris.edit(&format!("{CORE}/configmaps/cilium-config"), unnamed);
    let unnamed = mesh.run(&["connect", "--destination-context", "paris"]).await;
    assert_fails(
        &unnamed,
        &["remote cluster has non-unique name (paris) and/or ID (0)", "cluster.id"],
    );
    let enabled = mesh.run(&["enable", "--context", "paris"]).await;
    assert_fails(
        &enabled,
        &["has no name or id of its own", "cluster.name and cluster.id"],
    );
}

/// Complaint 10.
#[tokio::test(flavor = "multi_thread")]
async fn a_connect_changes_four_objects_of_each_cluster_and_restarts_nothing() {
    let mesh = Mesh::with_one_ca().await;
    let planned = mesh.connect(&["--dry-run"]).await;
    assert_ok(&planned);
    let text = &planned.stdout;
    assert!(
        text.contains("+ data.hk-cluster: https://hk-cluster.mesh.cilium.io:32379 at 10.14.1.0, 10.14.1.1"),
        "{text}"
    );
    assert_eq!(mesh.writes(), 0);
    assert_ok(&mesh.connect(&[]).await);
    let objects = [
        "configmaps/isthmus-mesh",
        "configmaps/clustermesh-remote-users",
        "secrets/cilium-kvstoremesh",
        "secrets/cilium-clustermesh",
    ];
    let expected: Vec<String> = objects.iter().flat_map(|object| made(object)).collect();
    assert_eq!(mesh.tokyo.writes(), expected);
    assert_eq!(mesh.hk.writes(), expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failure_half_way_says_what_was_done_and_the_same_command_continues() {
    let mesh = Mesh::with_one_ca().await;
    let path = format!("{CORE}/secrets/{MIRROR}");
    mesh.hk.forbid(&path);
    let halfway = mesh.connect(&[]).await;
    assert_fails(
        &halfway,
        &[
            "❌ Cluster hk-cluster: cannot create Secret kube-system/cilium-kvstoremesh in context \"hk-cluster\"",
            "the user of this context needs the right to create secrets",
            "Done: apply ConfigMap kube-system/isthmus-mesh; apply ConfigMap kube-system/clustermesh-remote-users.",
            "Not done: apply Secret kube-system/cilium-kvstoremesh; apply Secret kube-system/cilium-clustermesh.",
            "run the same command again, which continues",
        ],
    );
    assert!(mesh.tokyo.texts(AGENTS).contains_key(HK) && !mesh.hk.texts(AGENTS).contains_key(TOKYO));
    mesh.hk.allow(&path);
    assert_ok(&mesh.connect(&[]).await);
    assert!(mesh.hk.texts(AGENTS).contains_key(TOKYO) && mesh.hk.texts(MIRROR).contains_key(TOKYO));
}

#[tokio::test(flavor = "multi_thread")]
async fn many_clusters_form_a_mesh_or_a_star_in_one_call() {
    let authority = authority();
    let mesh = Mesh::of_charts(&authority, &authority).await;
    let paris = ApplyApi::start("paris", 3).await;
    paris.install_chart(&authority);
    let config = mesh.directory.path().join("config");
    kubeconfig(&config, &[(TOKYO, &mesh.tokyo), (HK, &mesh.hk), ("paris", &paris)]);
    let destinations = ["--destination-context", HK, "--destination-context", "paris"];
    let unicast = mesh
        .run(&[&["connect", "--connection-mode=unicast"], &destinations[..]].concat())
        .await;
    assert_ok(&unicast);
    assert!(
        unicast.stdout.contains("✅ Connected cluster tokyo-cluster => paris!"),
        "{}",
        unicast.stdout
    );
    // The read cluster notes its reader, and nothing else.
    assert_eq!(paris.writes(), made("configmaps/isthmus-mesh"));
    let star = mesh.run(&[&["connect"], &destinations[..]].concat()).await;
    assert_ok(&star);
    assert_eq!(paris.texts(MIRROR).keys().collect::<Vec<_>>(), [TOKYO]);
    let full = mesh
        .run(
            &[
                &["connect", "--connection-mode=mesh", "--parallel=2"],
                &destinations[..],
            ]
            .concat(),
        )
        .await;
    assert_ok(&full);
    assert!(
        full.stdout
            .contains("✅ Connected clusters hk-cluster, paris, and tokyo-cluster!"),
        "{}",
        full.stdout
    );
    assert_eq!(paris.texts(MIRROR).keys().collect::<Vec<_>>(), [HK, TOKYO]);
    let apart = mesh
        .run(&[&["disconnect", "--connection-mode=mesh"], &destinations[..]].concat())
        .await;
    assert_ok(&apart);
    assert!(paris.texts(MIRROR).is_empty() && mesh.hk.texts(MIRROR).is_empty() && mesh.tokyo.texts(MIRROR).is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_others_have_written_stays() {
    let mesh = Mesh::with_one_ca().await;
    mesh.tokyo.secret(
        MIRROR,
        &[("osaka", "endpoints:\n- https://osaka.mesh.cilium.io:2379\n")],
    );
    mesh.tokyo.put(
        &format!("{CORE}/configmaps/clustermesh-remote-users"),
        json!({"data": {"users.yaml": "users:\n- name: remote-osaka\n  role: remote\n"}}),
    );
    let refused = mesh.connect(&[]).await;
    assert_fails(&refused, &["conflict", "--adopt", "nothing was changed"]);
    assert_eq!(mesh.writes(), 0);
    assert_ok(&mesh.connect(&["--adopt"]).await);
    assert_eq!(mesh.tokyo.texts(MIRROR).keys().collect::<Vec<_>>(), [HK, "osaka"]);
    let users = mesh
        .tokyo
        .get(&format!("{CORE}/configmaps/clustermesh-remote-users"))
        .unwrap();
    assert!(users["data"]["users.yaml"].as_str().unwrap().contains("remote-osaka"));
    assert_ok(&mesh.run(&["disconnect", "--destination-context", HK]).await);
    assert_eq!(mesh.tokyo.texts(MIRROR).keys().collect::<Vec<_>>(), ["osaka"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn disable_removes_what_was_made_and_names_the_clusters_that_still_dial() {
    let mesh = Mesh::bare().await;
    for context in [TOKYO, HK] {
        assert_ok(
            &mesh
                .run(&[
                    "enable",
                    "--context",
                    context,
                    "--service-type=ClusterIP",
                    "--replicas=2",
                ])
                .await,
        );
    }
    let service = format!("{CORE}/services/clustermesh-apiserver");
    for api in [&mesh.tokyo, &mesh.hk] {
        api.edit(&service, |service| service["spec"]["clusterIP"] = json!("10.96.0.9"));
    }
    assert_ok(&mesh.connect(&["--share-ca"]).await);
    let disabled = mesh.run(&["disable", "--keep-certs"]).await;
    assert_ok(&disabled);
    assert_lines(
        &disabled.stdout,
        &[
            "✅ Cluster mesh is disabled in cluster tokyo-cluster",
            "⚠️  Cluster hk-cluster keeps its entry for tokyo-cluster and goes on dialling",
        ],
    );
    for path in [
        format!("{APPS}/deployments/clustermesh-apiserver"),
        service,
        format!("{CORE}/secrets/{AGENTS}"),
        format!("{CORE}/configmaps/isthmus-mesh"),
        format!("{CORE}/configmaps/clustermesh-remote-users"),
    ] {
        assert_eq!(mesh.tokyo.get(&path), None, "{path}");
    }
    assert!(
        mesh.tokyo
            .texts("clustermesh-apiserver-server-cert")
            .contains_key("tls.crt")
    );
    assert!(mesh.hk.texts(AGENTS).contains_key(TOKYO));
    let again = mesh.run(&["disable", "--keep-certs"]).await;
    assert_ok(&again);
    assert!(again.stdout.contains("nothing to change"), "{}", again.stdout);
}

#[tokio::test(flavor = "multi_thread")]
async fn enable_leaves_the_charts_deployment_and_adds_what_its_pod_waits_for() {
    let mesh = Mesh::with_one_ca().await;
    let enabled = mesh.run(&["enable", "--service-type=LoadBalancer"]).await;
    assert_ok(&enabled);
    assert!(
        enabled
            .stdout
            .contains("is kept by the Helm release kube-system/cilium and stays as it is"),
        "{}",
        enabled.stdout
    );
    assert!(
        enabled.stdout.contains("Its Service stays of type NodePort"),
        "{}",
        enabled.stdout
    );
    assert_eq!(mesh.tokyo.writes(), made("configmaps/clustermesh-remote-users"));
}
