//! Proves that `clustermesh-dbg troubleshoot` and `kvstoremesh-dbg troubleshoot` report each step of a connection, in
//! Cilium's words, and name the step that fails.

use crate::support::store::plain_etcd;
use crate::support::tls::etcd;
use crate::support::{CommandLine, Tls, isthmus};
use isthmus::app::certs::Pair;
use std::path::Path;

/// Runs a command that must succeed without complaints, and returns what it prints.
fn report(command: CommandLine) -> String {
    let finished = command.run();
    assert_eq!((finished.code, &*finished.stderr), (Some(0), ""), "{}", finished.stdout);
    finished.stdout
}

/// The report on an etcd client file.
fn report_on_file(file: &Path) -> String {
    let text = report(isthmus(["clustermesh-dbg", "troubleshoot", "--etcd-config"]).arg(file));
    let heading = format!("Local etcd kvstore:\n📄 Configuration path: {}\n", file.display());
    assert!(text.starts_with(&heading), "{text}");
    text
}

/// The lines that report a step. The details of certificates are other lines.
fn steps(text: &str) -> Vec<&str> {
    let mark = |line: &&str| line.contains(['✅', '❌', '⚠', 'ℹ', '📄', '🔌', '🔑', '⚙']);
    text.lines().filter(mark).map(str::trim).collect()
}

#[tokio::test]
async fn every_step_of_a_working_connection_is_reported_as_good() {
    let tls = Tls::new();
    let server = etcd(&tls).start();
    let file = tls.path("etcd.yaml");
    let port = server.address().await.rsplit(':').next().unwrap().to_owned();
    tls.client_file(
        &file,
        &format!("localhost:{port}"),
        &tls.ca.client("c", "admin").unwrap(),
    );
    let text = report_on_file(&file);
    let steps = steps(&text);
    let expected = [
        "🔌 Endpoints:",
        "✅ Hostname resolved to: ",
        "✅ TCP connection successfully established to ",
        "✅ TLS connection successfully established to ",
        "ℹ️  Negotiated TLS version: TLS 1.3, ciphersuite TLS_AES_",
        "ℹ️  TLS certificates presented by the server:",
        "ℹ️  Etcd server version: 3.7.",
        "🔑 Digital certificates:",
        "✅ TLS Root CA certificates:",
        "✅ TLS client certificates:",
        "⚙️ Etcd client:",
        "✅ Etcd connection successfully established",
        "ℹ️  Etcd cluster ID: ",
    ];
    assert_eq!(steps.len(), expected.len() + 1, "{text}");
    for (line, expected) in steps[1..].iter().zip(expected) {
        assert!(line.starts_with(expected), "{expected:?} is not {line:?} in {text}");
    }
    for part in [
        "          Subject alternative names:\n          - localhost\n",
        "        Subject:             CN=admin\n",
        "        Issuer:              CN=test CA\n",
        "        Validity:\n          Not before:  ",
    ] {
        assert!(text.contains(part), "no {part:?} in {text}");
    }
}

#[tokio::test]
async fn a_rejected_certificate_is_reported_at_the_step_that_fails() {
    let (tls, other) = (Tls::new(), Tls::new());
    let server = etcd(&tls).start();
    let address = server.address().await;
    let file = tls.path("etcd.yaml");
    let good = tls.ca.client("good", "admin").unwrap();
    // Another CA with the same name issued the certificate, so only the server can reject it.
    tls.client_file(&file, &address, &other.ca.client("c", "admin").unwrap());
    let text = report_on_file(&file);
    assert!(
        text.contains("     ❌ TLS client authentication failed: remote error: tls: "),
        "{text}"
    );
    assert!(
        text.contains("        ⚠️ Cannot verify certificate with the configured root CAs: x509: certificate signed by unknown authority"),
        "{text}"
    );
    assert!(text.contains("   ❌ Failed to establish connection: "), "{text}");

    tls.client_file(&file, &address, &good);
    let with_ca = std::fs::read_to_string(&file).unwrap();
    let (own_ca, other_ca) = (tls.ca.path(), other.ca.path());
    let swapped = with_ca.replace(own_ca.to_str().unwrap(), other_ca.to_str().unwrap());
    std::fs::write(&file, swapped).unwrap();
    let text = report_on_file(&file);
    let expected = format!(
        "❌ Cannot establish TLS connection to {address}: tls: failed to verify certificate: x509: certificate signed by unknown authority"
    );
    assert!(text.contains(&expected), "{text}");
    assert!(text.contains("TLS certificates presented by the server:"), "{text}");
    assert!(!text.contains("Acceptable"), "{text}");

    let without = with_ca
        .lines()
        .filter(|line| !line.contains("-file: ") || line.starts_with("trusted"));
    std::fs::write(&file, without.map(|line| format!("{line}\n")).collect::<String>()).unwrap();
    let text = report_on_file(&file);
    let expected = format!(
        "❌ Cannot establish TLS connection to {address}: client certificate is not signed by any acceptable CA\n     ℹ️  Acceptable CAs:\n        - CN=test CA\n"
    );
    assert!(text.contains(&expected), "{text}");
    assert!(text.contains("   ⚠️ No available TLS client certificates\n"), "{text}");
}

#[tokio::test]
async fn each_remote_cluster_is_reported_by_name_and_reached_through_its_alias() {
    let tls = Tls::new();
    let server = etcd(&tls).start();
    let address = server.address().await;
    let port = address.rsplit(':').next().unwrap();
    let pair: Pair = tls.ca.client("c", "remote").unwrap();
    let mesh = tls.path("mesh");
    std::fs::create_dir(&mesh).unwrap();
    let hk = mesh.join("hk");
    tls.client_file(&hk, &format!("hk.mesh.cilium.io:{port}"), &pair);
    let alias = "cilium-host-aliases:\n- hostname: hk.mesh.cilium.io\n  ips: [127.0.0.1]\n";
    let text = std::fs::read_to_string(&hk).unwrap() + alias;
    std::fs::write(&hk, text).unwrap();
    let plain = plain_etcd().start();
    let own = format!(
        "endpoints: ['http://{}']\ninsecure-transport: true\n",
        plain.address().await
    );
    std::fs::write(mesh.join("tokyo"), &own).unwrap();
    std::fs::write(tls.path("own.yaml"), own).unwrap();
    let directory = format!("--clustermesh-config={}", mesh.display());
    let troubleshoot = || isthmus(["kvstoremesh-dbg", "troubleshoot", &directory]);
    let with_local = troubleshoot()
        .arg(format!("--etcd-config={}", tls.path("own.yaml").display()))
        .arg("--include-local")
        .env("CLUSTER_NAME", "tokyo");
    let text = report(with_local);
    for part in [
        "Local etcd kvstore:\n📄 ",
        "\n\n\nFound 2 cluster configurations\n\nCluster \"hk\":\n📄 ",
        "     ✅ Hostname resolved to: 127.0.0.1\n",
        "\n\nCluster \"tokyo\":\nℹ️  This entry corresponds to the local cluster\n📄 ",
        "   ⚠️ TLS is off: insecure-transport is set\n",
    ] {
        assert!(text.contains(part), "no {part:?} in {text}");
    }
    assert_eq!(
        text.matches("✅ Etcd connection successfully established").count(),
        3,
        "{text}"
    );
    assert_eq!(text.matches('❌').count(), 0, "{text}");
    let subset = troubleshoot().args(["hk", "x"]).run();
    assert!(subset.succeeded());
    let text = subset.stdout;
    assert!(
        text.contains("Troubleshooting filtered subset of clusters: hk, x\n"),
        "{text}"
    );
    assert!(text.ends_with("Cluster \"x\":\n❌ Configuration not found\n"), "{text}");
}
