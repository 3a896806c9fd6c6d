//! `mesh certs` against Kubernetes APIs that keep what is written.

use crate::support::apply_api::{ApplyApi, CORE, kubeconfig};
use crate::support::isthmus;
use crate::support::process::Finished;
use isthmus::mesh::handshake::{self, Ends};
use isthmus::mesh::pki::{self, Authority, Leaf, Material};
use jiff::Timestamp;
use serde_json::{Value, json};

const TOKYO: &str = "tokyo-cluster";
const HK: &str = "hk-cluster";

/// Two clusters with the chart's certificates, which one CA has issued.
struct Mesh {
    tokyo: ApplyApi,
    hk: ApplyApi,
    directory: tempfile::TempDir,
}

impl Mesh {
    async fn start() -> Self {
        let mesh = Self {
            tokyo: ApplyApi::start(TOKYO, 1).await,
            hk: ApplyApi::start(HK, 2).await,
            directory: tempfile::tempdir().unwrap(),
        };
        let authority = Authority::generate("Cilium CA", Timestamp::now()).unwrap();
        mesh.tokyo.install_chart(&authority);
        mesh.hk.install_chart(&authority);
        let contexts = [(TOKYO, &mesh.tokyo), (HK, &mesh.hk)];
        kubeconfig(&mesh.directory.path().join("config"), &contexts);
        mesh
    }

    async fn run(&self, arguments: &[&str]) -> Finished {
        let file = format!("--kubeconfig={}", self.directory.path().join("config").display());
        let command = isthmus(["mesh"]).args(arguments).args([&*file]);
        tokio::task::spawn_blocking(move || command.run()).await.unwrap()
    }

    async fn connected() -> Self {
        let mesh = Self::start().await;
        let done = mesh
            .run(&["connect", "--context", TOKYO, "--destination-context", HK])
            .await;
        assert!(done.succeeded(), "{}", done.text());
        mesh
    }

    async fn rotate_ca(&self) -> Finished {
        let arguments = [
            "certs",
            "rotate",
            "--ca",
            "--rest=0s",
            "--context",
            TOKYO,
            "--destination-context",
            HK,
        ];
        self.run(&arguments).await
    }

    /// Whether the mirror of each cluster gets a connection to the store of the other one.
    fn accept_each_other(&self) -> bool {
        let connects = |client: &ApplyApi, server: &ApplyApi| {
            let (own, theirs) = (material(client, Leaf::Remote), material(server, Leaf::Server));
            let ends = Ends {
                server: &theirs,
                server_name: &format!("{}.mesh.cilium.io", server.name),
                client: &own,
                client_trusts: &own.ca,
                server_trusts: &theirs.ca,
            };
            handshake::attempt(&ends, Timestamp::now()).is_ok()
        };
        connects(&self.tokyo, &self.hk) && connects(&self.hk, &self.tokyo)
    }
}

fn material(cluster: &ApplyApi, leaf: Leaf) -> Material {
    let mut texts = cluster.texts(leaf.secret());
    let mut text = |key: &str| texts.remove(key).unwrap();
    Material {
        cert: text("tls.crt"),
        key: text("tls.key"),
        ca: text("ca.crt"),
    }
}

fn secret(name: &str) -> String {
    format!("{CORE}/secrets/{name}")
}

#[track_caller]
fn assert_fails(finished: &Finished, parts: &[&str]) {
    let text = finished.text();
    assert_eq!(finished.code, Some(1), "{text}");
    for part in parts {
        assert!(text.contains(part), "no {part:?} in {text}");
    }
}

#[tokio::test]
async fn every_certificate_is_shown_with_its_days_and_a_broken_one_fails_the_command() {
    let mesh = Mesh::start().await;
    let shown = mesh
        .run(&["certs", "--context", TOKYO, "--destination-context", HK])
        .await;
    assert!(shown.succeeded(), "{}", shown.text());
    for part in [
        "🔑 Certificates of cluster tokyo-cluster (context tokyo-cluster):",
        "🔑 Certificates of cluster hk-cluster (context hk-cluster):",
        "CN=clustermesh-apiserver.kube-system.svc  CN=Cilium CA",
    ] {
        assert!(shown.stdout.contains(part), "{}", shown.stdout);
    }
    assert!(!shown.text().contains("PRIVATE"), "no private key is printed");
    mesh.hk.secret(
        Leaf::Local.secret(),
        &[("tls.crt", "nonsense"), ("tls.key", ""), ("ca.crt", "")],
    );
    let arguments = [
        "certs",
        "show",
        "-o",
        "json",
        "--context",
        TOKYO,
        "--destination-context",
        HK,
    ];
    let wrong = mesh.run(&arguments).await;
    assert_fails(&wrong, &["certificates of hk-cluster need attention"]);
    let document: Value = serde_json::from_str(&wrong.stdout).unwrap();
    let rows = document[1]["certificates"].as_array().unwrap();
    let broken = rows.iter().find(|row| row["secret"] == Leaf::Local.secret()).unwrap();
    assert_eq!(broken["problem"], "no certificate in PEM form");
}

#[tokio::test]
async fn a_key_of_another_certificate_is_seen_and_issued_anew_with_its_certificate() {
    let mesh = Mesh::start().await;
    let (server, local) = (material(&mesh.tokyo, Leaf::Server), material(&mesh.tokyo, Leaf::Local));
    let swapped = [
        ("tls.crt", &*server.cert),
        ("tls.key", &*local.key),
        ("ca.crt", &*server.ca),
    ];
    mesh.tokyo.secret(Leaf::Server.secret(), &swapped);
    let shown = mesh.run(&["certs", "--context", TOKYO]).await;
    let fault =
        "❌ Secret clustermesh-apiserver-server-cert, key tls.key: the private key does not belong to the certificate";
    assert_fails(&shown, &[fault]);
    let done = mesh
        .run(&["certs", "rotate", "--context", TOKYO, "--renew-before=720h"])
        .await;
    assert!(done.succeeded(), "{}", done.text());
    assert_eq!(done.stdout.matches("Issued Secret").count(), 1, "{}", done.stdout);
    assert!(mesh.run(&["certs", "--context", TOKYO]).await.succeeded());
}

#[tokio::test]
async fn certificates_are_issued_anew_and_what_they_trust_and_are_named_stays() {
    let mesh = Mesh::start().await;
    let before = material(&mesh.tokyo, Leaf::Server);
    let untouched = material(&mesh.hk, Leaf::Server);
    let arguments = ["certs", "rotate", "--context", TOKYO, "--add-name", "mesh.example.com"];
    let dry = mesh.run(&[&arguments[..], &["--dry-run"]].concat()).await;
    assert!(
        dry.succeeded() && dry.stdout.contains("Would issue Secret"),
        "{}",
        dry.text()
    );
    assert_eq!(mesh.tokyo.writes(), Vec::<String>::new());
    let done = mesh.run(&arguments).await;
    assert!(done.succeeded(), "{}", done.text());
    let after = material(&mesh.tokyo, Leaf::Server);
    assert!(after.cert != before.cert && after.key != before.key);
    assert_eq!(after.ca, before.ca);
    let names = &pki::certificates(&after.cert).unwrap()[0].names;
    assert!(names.contains(&"mesh.example.com".to_owned()) && names.contains(&"*.mesh.cilium.io".to_owned()));
    assert_eq!(material(&mesh.hk, Leaf::Server), untouched);
    assert!(mesh.accept_each_other());
    // Nothing is due for a CronJob.
    let writes = mesh.tokyo.writes().len();
    let due = mesh
        .run(&["certs", "rotate", "--context", TOKYO, "--renew-before", "720h"])
        .await;
    assert!(
        due.succeeded() && due.stdout.contains("No certificate of cluster tokyo-cluster is due"),
        "{}",
        due.text()
    );
    assert_eq!(mesh.tokyo.writes().len(), writes);
}

#[tokio::test]
async fn certificates_that_others_issue_are_left_to_them() {
    let mesh = Mesh::start().await;
    let path = secret(Leaf::Server.secret());
    mesh.tokyo.edit(&path, |object| {
        object["metadata"]["labels"] = json!({"app.kubernetes.io/managed-by": "Helm"});
        object["metadata"]["annotations"] =
            json!({"meta.helm.sh/release-name": "cilium", "meta.helm.sh/release-namespace": "kube-system"});
    });
    let refused = mesh.run(&["certs", "rotate", "--context", TOKYO]).await;
    assert_fails(
        &refused,
        &[Leaf::Server.secret(), "the Helm release kube-system/cilium", "--adopt"],
    );
    assert_eq!(mesh.tokyo.writes(), Vec::<String>::new());
    mesh.tokyo.edit(&path, |object| {
        object["metadata"]["annotations"] = json!({"cert-manager.io/certificate-name": "server"});
    });
    let refused = mesh.run(&["certs", "rotate", "--context", TOKYO, "--adopt"]).await;
    assert_fails(&refused, &["cert-manager", "cmctl renew -n kube-system server"]);
    assert_eq!(mesh.tokyo.writes(), Vec::<String>::new());
}

#[tokio::test]
async fn the_ca_of_a_mesh_is_replaced_without_a_moment_in_which_clusters_refuse_each_other() {
    let mesh = Mesh::connected().await;
    let old = mesh.tokyo.texts("cilium-ca")["ca.crt"].clone();
    // A cluster that is connected and not given would be cut off.
    let alone = mesh
        .run(&["certs", "rotate", "--ca", "--rest=0s", "--context", TOKYO])
        .await;
    assert_fails(
        &alone,
        &[
            "tokyo-cluster is connected to hk-cluster",
            "--destination-context",
            "--without=hk-cluster",
        ],
    );
    // Nothing is written by a rehearsal.
    let writes = mesh.tokyo.writes().len() + mesh.hk.writes().len();
    let arguments = [
        "certs",
        "rotate",
        "--ca",
        "--dry-run",
        "--context",
        TOKYO,
        "--destination-context",
        HK,
    ];
    let dry = mesh.run(&arguments).await;
    assert!(
        dry.succeeded() && dry.stdout.contains("Would do next: every cluster trusts"),
        "{}",
        dry.text()
    );
    assert_eq!(mesh.tokyo.writes().len() + mesh.hk.writes().len(), writes);
    // A step fails half-way.
    mesh.hk.forbid(&secret(Leaf::Remote.secret()));
    let failed = mesh.rotate_ca().await;
    assert_fails(
        &failed,
        &["Secret kube-system/clustermesh-apiserver-remote-cert", HK, "forbidden"],
    );
    assert!(mesh.accept_each_other());
    mesh.hk.allow(&secret(Leaf::Remote.secret()));
    let done = mesh.rotate_ca().await;
    assert!(done.succeeded(), "{}", done.text());
    assert!(
        done.stdout.contains("A rotation is under way and goes on"),
        "{}",
        done.stdout
    );
    assert!(mesh.accept_each_other());
    let new = mesh.tokyo.texts("cilium-ca")["ca.crt"].clone();
    assert_ne!(new, old);
    for cluster in [&mesh.tokyo, &mesh.hk] {
        assert_eq!(cluster.texts("cilium-ca")["ca.crt"], new);
        for leaf in Leaf::ALL {
            let Material { cert, ca, .. } = material(cluster, leaf);
            assert_eq!(ca, new, "{leaf:?} of {}", cluster.name);
            let signer = &pki::certificates(&new).unwrap()[0].subject_key;
            assert_eq!(&pki::certificates(&cert).unwrap()[0].authority_key, signer);
        }
        assert_eq!(cluster.get(&secret("isthmus-ca-rotation")), None);
    }
}

#[tokio::test]
async fn certificates_of_another_ca_are_not_replaced_by_those_of_cilium_ca() {
    let mesh = Mesh::start().await;
    let other = Authority::generate("Other", Timestamp::now()).unwrap();
    mesh.tokyo
        .secret("cilium-ca", &[("ca.crt", other.cert()), ("ca.key", other.key())]);
    let refused = mesh.run(&["certs", "rotate", "--context", TOKYO]).await;
    assert_fails(
        &refused,
        &["was issued by \"CN=Cilium CA\"", "CN=Other", "peers do not trust"],
    );
    assert_eq!(mesh.tokyo.writes(), Vec::<String>::new());
}

#[tokio::test]
async fn the_cronjob_is_printed_for_git() {
    let arguments = [
        "mesh",
        "certs",
        "cronjob",
        "--image",
        "registry/isthmus:0.2.0",
        "--print",
    ];
    let command = isthmus(arguments);
    let printed = tokio::task::spawn_blocking(move || command.run()).await.unwrap();
    assert!(printed.succeeded(), "{}", printed.text());
    for part in [
        "kind: ServiceAccount",
        "kind: Role\n",
        "kind: RoleBinding",
        "kind: CronJob",
        "registry/isthmus:0.2.0",
    ] {
        assert!(printed.stdout.contains(part), "no {part:?} in {}", printed.stdout);
    }
}
