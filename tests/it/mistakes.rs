//! Proves that the mistakes of newcomers are answered with the name of the thing and the remedy.

mod mesh;
mod others;
mod serve;

use crate::support::admin::Admin;
use crate::support::files::example;
use crate::support::{CommandLine, Process, Tls, eventually, isthmus};
use mesh::MESH;
use others::OTHERS;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, date_time_ymd,
};
use serve::SERVE;
use std::path::Path;

/// One wrong command line, the exit code, and words of the answer.
struct Mistake {
    /// `DIR` stands for the directory of the test.
    args: &'static str,
    code: i32,
    words: &'static [&'static str],
}

const fn mistake(args: &'static str, code: i32, words: &'static [&'static str]) -> Mistake {
    Mistake { args, code, words }
}

/// A directory with certificates, and with files that are none.
fn directory() -> Tls {
    let tls = Tls::new();
    std::fs::write(tls.path("empty"), "").unwrap();
    std::fs::write(tls.path("text"), "hello\n").unwrap();
    tls.ca.server("other").unwrap();
    tls
}

/// `serve` with everything that is needed but a source of objects.
fn serve(tls: &Tls) -> CommandLine {
    let base = isthmus([
        "serve",
        "--health-port=0",
        "--api-serve-addr=",
        "--cluster-name=a",
        "--cluster-id=1",
    ]);
    base.args(tls.flags())
}

/// Runs the command lines one by one, and fails for those that are not answered as expected.
fn answered(mistakes: &[Mistake], tls: &Tls, base: impl Fn() -> CommandLine) {
    let directory = tls.dir.path().to_str().unwrap();
    let mut wrong = vec![];
    for Mistake { args, code, words } in mistakes {
        let line = args.replace("DIR", directory);
        let finished = base().env("HOME", directory).args(line.split(' ')).run();
        let text = finished.text();
        let missing: Vec<_> = words
            .iter()
            .filter(|word| !text.contains(&word.replace("DIR", directory)))
            .collect();
        if finished.code != Some(*code) || !missing.is_empty() {
            wrong.push(format!(
                "{args}\n  exit {:?}, missing {missing:?} in:\n{text}",
                finished.code
            ));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn mistakes_of_serve_are_named_with_their_remedy() {
    let tls = directory();
    let with_source = |args: &str| args.contains("kube");
    let manifests = format!("--manifests={}", example("hk-cluster").display());
    let (kube, others): (Vec<_>, Vec<_>) = (0..SERVE.len()).partition(|at| with_source(SERVE[*at].args));
    for at in others {
        answered(&SERVE[at..=at], &tls, || serve(&tls).arg(&manifests));
    }
    for at in kube {
        answered(&SERVE[at..=at], &tls, || serve(&tls));
    }
}

#[test]
fn mistakes_of_other_subcommands_are_named_with_their_remedy() {
    answered(OTHERS, &directory(), || isthmus::<&str>([]));
}

#[test]
fn mistakes_of_mesh_are_named_with_their_remedy() {
    let tls = directory();
    let kubeconfig = "apiVersion: v1\nkind: Config\ncurrent-context: tokyo\n\
        contexts: [{name: tokyo, context: {cluster: tokyo, user: u}}]\nusers: [{name: u, user: {token: t}}]\n\
        clusters: [{name: tokyo, cluster: {server: 'http://127.0.0.1:1'}}]\n";
    std::fs::write(tls.path("config"), kubeconfig).unwrap();
    answered(MESH, &tls, || isthmus::<&str>([]));
}

#[test]
fn a_process_without_a_source_of_objects_says_which_sources_there_are() {
    let tls = directory();
    let words = &[
        "/.kube/config",
        "KUBERNETES_SERVICE_HOST",
        "--k8s-kubeconfig-path",
        "--manifests",
    ];
    answered(&[mistake("--enable-k8s", 1, words)], &tls, || serve(&tls));
}

#[test]
fn a_port_in_use_is_named_with_its_flag() {
    let tls = directory();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let manifests = format!("--manifests={}", example("hk-cluster").display());
    for flag in [
        "--listen-client-urls=https://",
        "--health-port=",
        "--prometheus-serve-addr=",
    ] {
        let finished = serve(&tls).args([&manifests, &format!("{flag}{address}")]).run();
        let (name, text) = (flag.split('=').next().unwrap(), finished.text());
        assert_eq!(finished.code, Some(1), "{text}");
        for word in [name, &address, "another process uses the port"] {
            assert!(text.contains(word), "no {word:?} in:\n{text}");
        }
    }
}

/// A CA that issues certificates that [`isthmus::app::certs`] does not: expired ones.
fn expired_client(tls: &Tls) {
    let mut authority = CertificateParams::default();
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = KeyPair::generate().unwrap();
    let ca = authority.self_signed(&key).unwrap();
    let both = std::fs::read_to_string(tls.ca.path()).unwrap() + &ca.pem();
    std::fs::write(tls.ca.path(), both).unwrap();
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, "remote");
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    (params.not_before, params.not_after) = (date_time_ymd(2001, 1, 1), date_time_ymd(2002, 1, 1));
    let own = KeyPair::generate().unwrap();
    let certificate = params.signed_by(&own, &Issuer::new(authority, key)).unwrap();
    std::fs::write(tls.path("expired.crt"), certificate.pem()).unwrap();
    std::fs::write(tls.path("expired.key"), own.serialize_pem()).unwrap();
}

/// Waits until the status of a remote cluster contains all words.
async fn status_says(admin: &Admin, process: &Process, name: &str, words: &[&str]) {
    let said = eventually("the status names the cause", async || {
        let clusters = admin.clusters().await;
        let cluster = clusters.into_iter().find(|cluster| cluster["name"] == name)?;
        let status = cluster["status"].as_str()?.to_owned();
        words.iter().all(|word| status.contains(word)).then_some(())
    });
    said.await;
    // The cause does not alternate with others in the log.
    let log = process.log();
    let attempts = log
        .lines()
        .filter(|line| line.contains(&format!("cluster_name={name} error=")));
    for line in attempts {
        assert!(
            words.iter().all(|word| line.contains(&word.replace('"', "\\\""))),
            "{words:?}: {line}"
        );
    }
}

#[tokio::test]
async fn a_client_file_with_a_mistake_is_answered_by_its_cause() {
    let (tls, other, admin) = (directory(), Tls::new(), Admin::new());
    expired_client(&tls);
    let manifests = format!("--manifests={}", example("hk-cluster").display());
    let remote = serve(&tls).arg(&manifests).start();
    let address = remote.address().await;
    let mesh = tls.path("mesh");
    std::fs::create_dir(&mesh).unwrap();
    let pair = tls.ca.client("remote", "remote").unwrap();
    let stranger = tls.ca.client("stranger", "remote-b").unwrap();
    tls.client_file(&mesh.join("delta"), &address, &pair);
    tls.client_file(&mesh.join("stranger"), &address, &stranger);
    let text = std::fs::read_to_string(mesh.join("delta")).unwrap();
    let file = |name: &str, change: &dyn Fn(&str) -> String| std::fs::write(mesh.join(name), change(&text)).unwrap();
    let path = |path: &Path| path.to_str().unwrap().to_owned();
    file("wrong-ca", &|text| {
        text.replace(&path(&tls.ca.path()), &path(&other.ca.path()))
    });
    file("expired", &|text| {
        text.replace(&path(&pair.cert), &path(&tls.path("expired.crt")))
            .replace(&path(&pair.key), &path(&tls.path("expired.key")))
    });
    file("swapped", &|text| text.replace(&path(&pair.key), &path(&stranger.key)));
    std::fs::write(mesh.join("plain"), format!("endpoints: [\"http://{address}\"]\n")).unwrap();
    let own = isthmus(["serve", "--cluster-name=own", "--cluster-id=2"]).args(tls.flags());
    let own = own.args([&manifests, &format!("--clustermesh-config={}", mesh.display())]);
    let own = own
        .args([admin.health_flag(), admin.metrics_flag(), admin.api_flag()])
        .start();
    let (ca, expired) = (path(&other.ca.path()), path(&tls.path("expired.crt")));
    for (name, words) in [
        ("delta", &["belongs to cluster a", "rename the client file to a"][..]),
        ("stranger", &["no user \"remote-b\"", "--cluster-users-config-path"]),
        ("wrong-ca", &["CN=test CA", &ca]),
        ("expired", &[&*expired, "expired on 2002-01-01", "issue a new one"]),
        ("swapped", &["the key does not belong to", "remote.crt"]),
        ("plain", &["does it speak TLS?", "https://"]),
    ] {
        status_says(&admin, &own, name, words).await;
    }
    own.line(&format!("the client certificate {expired} expired on 2002-01-01"))
        .await;
    let series =
        format!("isthmus_certificate_expiry_seconds{{role=\"client\",file=\"{expired}\",target_cluster=\"expired\"}}");
    eventually("the metric shows the expiry", async || {
        admin.metric(&series).await.filter(|left| *left < 0.0)
    })
    .await;
    remote.line("the client certificate has expired: issue a new one").await;
}

#[tokio::test]
async fn a_server_certificate_that_has_expired_is_warned_of() {
    let (tls, admin) = (directory(), Admin::new());
    expired_client(&tls);
    let expired = tls.path("expired.crt");
    let server = serve(&tls)
        .arg(format!("--manifests={}", example("hk-cluster").display()))
        .args([
            format!("--cert-file={}", expired.display()),
            format!("--key-file={}", tls.path("expired.key").display()),
            format!("--data-dir={}", tls.path("data").display()),
            admin.health_flag(),
            admin.metrics_flag(),
        ]);
    let server = server.start();
    let warning = format!("the server certificate {} expired on 2002-01-01", expired.display());
    server.line(&warning).await;
    admin.ready().await;
    let report = admin.readyz("?verbose").await.unwrap().body;
    assert!(
        report.contains("[!]certificates failed") && report.contains(&warning),
        "{report}"
    );
    type IsExpected = fn(f64) -> bool;
    let expected: [(String, IsExpected); 5] = [
        (
            format!(
                "isthmus_certificate_expiry_seconds{{role=\"server\",file=\"{}\"}}",
                expired.display()
            ),
            |value| value < 0.0,
        ),
        ("isthmus_durable_damaged_stores".to_owned(), |value| value == 0.0),
        ("isthmus_durable_disk_full".to_owned(), |value| value == 0.0),
        ("etcd_mvcc_db_total_size_in_bytes".to_owned(), |value| value > 1000.0),
        ("etcd_server_quota_backend_bytes".to_owned(), |value| {
            value == 2_147_483_648.0
        }),
    ];
    for (series, is_expected) in expected {
        let value = admin.metric(&series).await;
        assert!(value.is_some_and(is_expected), "{series}: {value:?}");
    }
}
