//! Clusters with different CAs: who writes what a store trusts, and bundles that pods use in place of `ca.crt`.

use crate::mesh_cli::{HK, MIRROR, Mesh, TOKYO, assert_fails, assert_ok, authority};
use crate::support::apply_api::{ApplyApi, CORE};
use isthmus::mesh::pki;
use serde_json::{Value, json};

const SERVER: &str = "clustermesh-apiserver-server-cert";
const CERTGEN: &str = "/apis/batch/v1/namespaces/kube-system/cronjobs/clustermesh-apiserver-generate-certs";

fn secret(name: &str) -> String {
    format!("{CORE}/secrets/{name}")
}

/// The first document of YAML in an output, which begins with a comment.
fn document(output: &str) -> Value {
    let lines = output.lines().skip_while(|line| !line.starts_with("# "));
    let is_yaml = |line: &&str| line.starts_with([' ', '#']) || line.ends_with(':');
    let text: Vec<&str> = lines.take_while(is_yaml).collect();
    serde_saphyr::from_str(&text.join("\n")).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn authorities_that_another_tool_writes_are_changed_only_on_request() {
    let mark = |api: &ApplyApi, meta: Value| {
        api.edit(&secret(SERVER), |object| {
            object["metadata"]
                .as_object_mut()
                .unwrap()
                .extend(meta.as_object().unwrap().clone());
        });
    };
    let helm = json!({"labels": {"app.kubernetes.io/managed-by": "Helm"},
        "annotations": {"meta.helm.sh/release-name": "cilium", "meta.helm.sh/release-namespace": "kube-system"}});
    let manager = json!({"annotations": {"cert-manager.io/certificate-name": "server"}});
    let certgen = json!({"managedFields": [{"manager": "cilium-certgen", "operation": "Update"}]});
    for (meta, by) in [
        (Some(helm), "the Helm release kube-system/cilium"),
        (Some(manager), "cert-manager (Certificate server)"),
        (
            Some(certgen),
            "Cilium's certgen (CronJob clustermesh-apiserver-generate-certs)",
        ),
        (None, "Cilium's certgen (CronJob clustermesh-apiserver-generate-certs)"),
    ] {
        let (one, two) = (authority(), authority());
        let mesh = Mesh::of_charts(&one, &two).await;
        match meta {
            Some(meta) => mark(&mesh.hk, meta),
            None => mesh.hk.put(CERTGEN, json!({"spec": {}})),
        }
        let refused = mesh.connect(&["--share-ca"]).await;
        assert_fails(
            &refused,
            &[
                "key ca.crt of Secret kube-system/clustermesh-apiserver-server-cert in context \"hk-cluster\"",
                by,
                "--adopt",
            ],
        );
        assert_eq!(mesh.writes(), 0);
        // The values trust both authorities.
        let values = document(&refused.stdout);
        let content = values["tls"]["caBundle"]["content"].as_str().unwrap();
        assert!(
            pki::contains(content, one.cert()) && pki::contains(content, two.cert()),
            "{content}"
        );
        assert_fails(&mesh.connect(&["--share-ca", "--dry-run"]).await, &[by]);
        assert_ok(&mesh.connect(&["--share-ca", "--adopt"]).await);
        assert!(pki::contains(&mesh.hk.texts(SERVER)["ca.crt"], one.cert()));
    }
}

/// Clusters with different CAs whose pods read the given bundle.
async fn with_bundles(content: impl Fn(&str, &str) -> String, kind: &str) -> (Mesh, [String; 2]) {
    let (one, two) = (authority(), authority());
    let mesh = Mesh::of_charts(&one, &two).await;
    for (api, own, other) in [(&mesh.tokyo, &one, &two), (&mesh.hk, &two, &one)] {
        let content = content(own.cert(), other.cert());
        match kind {
            "secret" => api.secret("roots", &[("all.pem", content)]),
            _ => api.put(
                &format!("{CORE}/configmaps/roots"),
                json!({"data": {"all.pem": content}}),
            ),
        }
        api.use_bundle(kind, "roots", "all.pem");
    }
    (mesh, [one.cert().to_owned(), two.cert().to_owned()])
}

/// The CA bundle of a cluster.
fn bundle(api: &ApplyApi, kind: &str) -> String {
    match kind {
        "secret" => api.texts("roots")["all.pem"].clone(),
        _ => api.get(&format!("{CORE}/configmaps/roots")).unwrap()["data"]["all.pem"]
            .as_str()
            .unwrap()
            .to_owned(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn clusters_are_judged_by_the_bundle_that_their_pods_use() {
    for kind in ["configMap", "secret"] {
        let (mesh, _) = with_bundles(|own, other| format!("{own}{other}"), kind).await;
        let connected = mesh.connect(&[]).await;
        assert_ok(&connected);
        assert!(
            !connected.stdout.contains("CA certificates do not match"),
            "{}",
            connected.stdout
        );
        assert_eq!(mesh.tokyo.texts(MIRROR).keys().collect::<Vec<_>>(), [HK]);
        let judged = mesh.run(&["preflight", "--destination-context", HK]).await.stdout;
        assert!(
            judged.contains("each cluster accepts the certificate of the other"),
            "{judged}"
        );
        assert!(!judged.contains("do not match"), "{judged}");
        // The Secret has both authorities, and no pod reads it.
        let (mesh, [one, two]) = with_bundles(|own, _| own.to_owned(), kind).await;
        for api in [&mesh.tokyo, &mesh.hk] {
            api.edit(&secret(SERVER), |object| {
                use base64::Engine;
                let both = base64::engine::general_purpose::STANDARD.encode(format!("{one}{two}"));
                object["data"]["ca.crt"] = json!(both);
            });
        }
        assert_fails(
            &mesh.connect(&[]).await,
            &["does not accept the server certificate", "--share-ca"],
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn authorities_are_shared_in_the_bundle_and_removed_from_it() {
    for kind in ["configMap", "secret"] {
        let (mesh, [one, two]) = with_bundles(|own, _| own.to_owned(), kind).await;
        let before = mesh.tokyo.texts(SERVER);
        assert_ok(&mesh.connect(&["--share-ca"]).await);
        assert_eq!(mesh.tokyo.texts(SERVER), before);
        for api in [&mesh.tokyo, &mesh.hk] {
            let content = bundle(api, kind);
            assert!(
                pki::contains(&content, &one) && pki::contains(&content, &two),
                "{content}"
            );
        }
        let again = mesh.connect(&[]).await;
        assert_ok(&again);
        assert!(again.stdout.contains("nothing to change"), "{}", again.stdout);
        assert_ok(&mesh.run(&["disconnect", "--destination-context", HK]).await);
        let content = bundle(&mesh.tokyo, kind);
        assert!(
            pki::contains(&content, &one) && !pki::contains(&content, &two),
            "{content}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bundle_that_another_tool_writes_or_that_is_absent_is_named() {
    let (mesh, _) = with_bundles(|own, _| own.to_owned(), "configMap").await;
    let path = format!("{CORE}/configmaps/roots");
    mesh.tokyo.edit(&path, |map| {
        map["metadata"]["labels"] = json!({"trust.cert-manager.io/bundle": "roots"});
    });
    let refused = mesh.connect(&["--share-ca"]).await;
    assert_fails(
        &refused,
        &[
            "key all.pem of ConfigMap kube-system/roots",
            "trust-manager (Bundle roots)",
            "  - inLine: |",
            "--adopt",
        ],
    );
    assert_eq!(mesh.writes(), 0);
    mesh.tokyo.edit(&path, |map| map["data"] = json!({}));
    assert_fails(
        &mesh.connect(&[]).await,
        &["ConfigMap kube-system/roots in context \"tokyo-cluster\" has no key all.pem"],
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_ca_of_clusters_with_a_bundle_is_replaced_in_the_bundle() {
    let authority = authority();
    let mesh = Mesh::of_charts(&authority, &authority).await;
    for api in [&mesh.tokyo, &mesh.hk] {
        api.secret("roots", &[("all.pem", authority.cert())]);
        api.use_bundle("secret", "roots", "all.pem");
    }
    assert_ok(&mesh.connect(&[]).await);
    let shown = mesh.run(&["certs", "--context", TOKYO]).await;
    assert!(shown.stdout.contains("roots  "), "{}", shown.stdout);
    let rotated = mesh
        .run(&["certs", "rotate", "--ca", "--rest=0s", "--destination-context", HK])
        .await;
    assert_ok(&rotated);
    let new = mesh.tokyo.texts("cilium-ca")["ca.crt"].clone();
    for api in [&mesh.tokyo, &mesh.hk] {
        assert_eq!(bundle(api, "secret"), new);
    }
}
