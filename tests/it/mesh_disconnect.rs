//! Proves what `mesh disconnect` and `mesh disable` remove, rehearse, print for repositories and leave, and that a name that
//! nobody knows is no success.

use crate::mesh_cli::{AGENTS, HK, MIRROR, Mesh, TOKYO, assert_fails, assert_lines, assert_ok, authority};
use crate::support::apply_api::CORE;
use isthmus::mesh::pki;
use serde_json::{Value, json};

const SERVER: &str = "clustermesh-apiserver-server-cert";

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_that_nobody_knows_is_an_error_that_names_the_peers() {
    let mesh = Mesh::with_one_ca().await;
    assert_ok(&mesh.connect(&[]).await);
    let writes = mesh.writes();
    let known = "cluster tokyo-cluster is connected to: hk-cluster";
    let stranger = mesh.run(&["disconnect", "--destination-name=osaka"]).await;
    assert_fails(
        &stranger,
        &["no cluster osaka: nothing of that name is left in tokyo-cluster", known],
    );
    // One wrong name stops the others, too.
    let partly = mesh.run(&["disconnect", "--destination-name=hk-cluster,osaka"]).await;
    assert_fails(&partly, &["no cluster osaka", known]);
    let itself = mesh.run(&["disconnect", "--destination-name", TOKYO]).await;
    assert_fails(
        &itself,
        &["cluster tokyo-cluster cannot be disconnected from itself", known],
    );
    let twice = mesh.run(&["disconnect", "--destination-context", TOKYO]).await;
    assert_fails(
        &twice,
        &[
            "cannot be disconnected from itself (contexts \"tokyo-cluster\" and \"tokyo-cluster\" lead to it)",
            known,
        ],
    );
    for finished in [&stranger, &partly, &itself, &twice] {
        assert!(!finished.text().contains('✅'), "{}", finished.text());
    }
    assert_eq!(mesh.writes(), writes);
    // A context is taken for a name.
    mesh.tokyo.edit(&format!("{CORE}/configmaps/isthmus-mesh"), |map| {
        let record = map["data"][HK]
            .as_str()
            .unwrap()
            .replace(r#""context":"hk-cluster""#, r#""context":"admin@hk""#);
        map["data"][HK] = json!(record);
    });
    let context = mesh.run(&["disconnect", "--destination-name=admin@hk"]).await;
    assert_fails(
        &context,
        &["Did you mean --destination-name hk-cluster, whose context this is?"],
    );
    // Two clusters that are not connected any more.
    let both = ["disconnect", "--destination-context", HK];
    assert_ok(&mesh.run(&both).await);
    let again = mesh.run(&both).await;
    assert_ok(&again);
    assert!(!again.stdout.contains('✅'), "{}", again.stdout);
    let text =
        "Cluster tokyo-cluster is not connected to cluster hk-cluster: nothing to change (connected to: no cluster)";
    assert!(again.stdout.contains(text), "{}", again.stdout);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_that_is_left_makes_a_cluster_known() {
    let mesh = Mesh::with_one_ca().await;
    let users = format!("{CORE}/configmaps/clustermesh-remote-users");
    let text = "# by hand\nusers:\n- name: remote-osaka\n  role: remote\n";
    mesh.tokyo.put(&users, json!({"data": {"users.yaml": text}}));
    assert_ok(&mesh.run(&["disconnect", "--destination-name=osaka"]).await);
    assert_eq!(mesh.tokyo.get(&users).unwrap()["data"]["users.yaml"], "users: []\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removal_is_rehearsed_in_all_clusters_before_the_first_write() {
    let mesh = Mesh::with_one_ca().await;
    assert_ok(&mesh.connect(&[]).await);
    let writes = mesh.writes();
    let both = ["disconnect", "--destination-context", HK];
    let dry = mesh.run(&[&both[..], &["--dry-run"]].concat()).await;
    assert_ok(&dry);
    assert_lines(
        &dry.stdout,
        &[
            "Cluster tokyo-cluster (context tokyo-cluster):",
            "  remove hk-cluster from Secret kube-system/cilium-clustermesh",
            "ℹ️  Nothing was changed: this is a dry run, whose changes the Kubernetes APIs would accept",
        ],
    );
    mesh.hk.refuse("PATCH", &format!("{CORE}/secrets/{MIRROR}"));
    for flags in [&["--dry-run"][..], &[]] {
        let refused = mesh.run(&[&both[..], flags].concat()).await;
        assert_fails(
            &refused,
            &[
                "❌ Cluster hk-cluster: cannot patch Secret kube-system/cilium-kvstoremesh in context \"hk-cluster\"",
                "the user of this context needs the right to patch secrets",
                "1 of the clusters would not accept the changes, nothing was changed",
            ],
        );
    }
    assert_eq!(mesh.writes(), writes);
    assert!(mesh.tokyo.texts(AGENTS).contains_key(HK));
    let deployment = "/apis/rbac.authorization.k8s.io/v1/clusterroles/clustermesh-apiserver";
    let mesh = Mesh::bare().await;
    assert_ok(&mesh.run(&["enable", "--service-type=ClusterIP"]).await);
    let writes = mesh.writes();
    mesh.tokyo.refuse("DELETE", deployment);
    for flags in [&["disable", "--dry-run"][..], &["disable"]] {
        assert_fails(
            &mesh.run(flags).await,
            &["cannot delete ClusterRole clustermesh-apiserver"],
        );
    }
    assert_eq!(mesh.writes(), writes);
}

#[tokio::test(flavor = "multi_thread")]
async fn manifests_and_values_say_what_a_repository_has_to_remove() {
    let (one, two) = (authority(), authority());
    let mesh = Mesh::of_charts(&one, &two).await;
    let content = |printed: &str, at: usize| {
        let values: Value = serde_saphyr::from_str(printed.split("\n---\n").nth(at).unwrap()).unwrap();
        values["tls"]["caBundle"]["content"].as_str().map(str::to_owned)
    };
    let values = mesh.connect(&["--share-ca", "--print=values"]).await;
    assert_ok(&values);
    for at in 0..2 {
        let bundle = content(&values.stdout, at).unwrap();
        assert!(
            pki::contains(&bundle, one.cert()) && pki::contains(&bundle, two.cert()),
            "{bundle}"
        );
    }
    assert_ok(&mesh.connect(&["--share-ca"]).await);
    let writes = mesh.writes();
    let both = ["disconnect", "--destination-context", HK];
    let printed = mesh.run(&[&both[..], &["--print=manifests"]].concat()).await;
    assert_ok(&printed);
    assert_lines(
        &printed.stdout,
        &[
            "# Cluster tokyo-cluster, context tokyo-cluster",
            "# 1. Remove hk-cluster from Secret kube-system/cilium-clustermesh, also where the repository has it. As a JSON patch:",
            r#"#    [{"op":"remove","path":"/data/hk-cluster"}]"#,
            "# 2. Remove hk-cluster, hk-cluster.etcd-client-ca.crt from Secret kube-system/cilium-kvstoremesh, also where the repository has it. As a JSON patch:",
            "# 3. Set ca.crt of Secret kube-system/clustermesh-apiserver-server-cert to:",
            "kind: ConfigMap",
            "# Cluster hk-cluster, context hk-cluster",
        ],
    );
    let values = mesh.run(&[&both[..], &["--print=values"]].concat()).await;
    assert_ok(&values);
    assert_eq!(content(&values.stdout, 0), None);
    let text = "No other CA is needed for the mesh any more: remove tls.caBundle";
    assert!(values.stdout.contains(text), "{}", values.stdout);
    assert_eq!(mesh.writes(), writes);
    assert!(pki::contains(&mesh.tokyo.texts(SERVER)["ca.crt"], two.cert()));
}

#[tokio::test(flavor = "multi_thread")]
async fn disable_says_what_stays_and_needs_no_rights_for_a_job_that_was_never_made() {
    let mesh = Mesh::with_one_ca().await;
    assert_ok(&mesh.connect(&[]).await);
    mesh.tokyo.edit(&format!("{CORE}/secrets/{MIRROR}"), |secret| {
        secret["data"]["osaka"] = json!("ZW5kcG9pbnRzOgotIGh0dHBzOi8vb3Nha2E6MjM3OQo=");
    });
    let job = "/apis/batch/v1/namespaces/kube-system/cronjobs/isthmus-certs";
    mesh.tokyo.refuse("GET", job);
    let listed = mesh.run(&["disable", "--print=manifests"]).await;
    assert_ok(&listed);
    assert_lines(
        &listed.stdout,
        &[
            "# 1. Remove hk-cluster from Secret kube-system/cilium-kvstoremesh, also where the repository has it. As a JSON patch:",
        ],
    );
    assert_fails(
        &mesh.run(&["disable", "--print=values"]).await,
        &["--print=manifests lists the objects"],
    );
    let lines = [
        "ℹ️  Secret kube-system/cilium-ca stays: other parts of Cilium may use this CA",
        "ℹ️  Secret kube-system/cilium-kvstoremesh stays: another tool has written osaka",
        "ℹ️  Secret kube-system/clustermesh-apiserver-server-cert stays: another tool has made it",
        "⚠️  This user may not read CronJob kube-system/isthmus-certs: what exists of them stays",
        "   💡 If it was made: kubectl delete -n kube-system cronjob isthmus-certs",
        "⚠️  The entries of osaka stay: another tool has connected them. 'disconnect --destination-name' removes them",
        "⚠️  Cluster hk-cluster keeps its entry for tokyo-cluster and goes on dialling",
    ];
    let before = mesh.writes();
    for flags in [&["disable", "--dry-run"][..], &["disable"]] {
        let disabled = mesh.run(flags).await;
        assert_ok(&disabled);
        for line in lines {
            assert_lines(&disabled.stdout, &[line]);
        }
        let helm = "Deployment kube-system/clustermesh-apiserver stays: the Helm release kube-system/cilium keeps it";
        assert!(disabled.stdout.contains(helm), "{}", disabled.stdout);
        let is_dry = flags.len() == 2;
        assert_eq!(mesh.writes() == before, is_dry, "{:?}", mesh.tokyo.writes());
    }
    assert_eq!(mesh.tokyo.texts(MIRROR).keys().collect::<Vec<_>>(), ["osaka"]);
    assert_eq!(mesh.tokyo.get(&format!("{CORE}/configmaps/isthmus-mesh")), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_load_balancer_with_several_names_is_connected_by_the_first() {
    let mesh = Mesh::with_one_ca().await;
    mesh.hk
        .edit(&format!("{CORE}/services/clustermesh-apiserver"), |service| {
            service["spec"]["type"] = json!("LoadBalancer");
            let ingress = json!([{"hostname": "a.example"}, {"hostname": "b.example"}]);
            service["status"] = json!({"loadBalancer": {"ingress": ingress}});
        });
    let refused = mesh.connect(&[]).await;
    assert_fails(
        &refused,
        &[
            "The load balancer has the host names b.example as well, which are not used; --destination-endpoint names another",
            "not valid for the host name a.example",
        ],
    );
    assert!(!refused.text().contains("host name b.example,"), "{}", refused.text());
    assert_ok(&mesh.connect(&["--force"]).await);
    let file = &mesh.tokyo.texts(MIRROR)[HK];
    assert!(
        file.contains("https://a.example:2379") && !file.contains("b.example"),
        "{file}"
    );
}
