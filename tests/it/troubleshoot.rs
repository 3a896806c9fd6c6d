//! `clustermesh-dbg troubleshoot` and `kvstoremesh-dbg troubleshoot`, against our own etcd.

use crate::support::{Process, Tls, etcd};
use isthmus::app::certs::Pair;
use std::path::Path;
use std::process::Command;

/// Runs the binary; its exit code and both outputs.
pub fn run(variables: &[(&str, &str)], args: &[&str]) -> (Option<i32>, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_clustermesh-apiserver"));
    let output = command.args(args).envs(variables.iter().copied()).output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code(), text(output.stdout), text(output.stderr))
}

/// What is printed for an etcd client file. Always with success.
fn local(file: &Path) -> String {
    let (code, text, complaints) = run(
        &[],
        &[
            "clustermesh-dbg",
            "troubleshoot",
            "--etcd-config",
            file.to_str().unwrap(),
        ],
    );
    assert_eq!((code, &*complaints), (Some(0), ""), "{text}");
    assert!(
        text.starts_with(&format!(
            "Local etcd kvstore:\n📄 Configuration path: {}\n",
            file.display()
        )),
        "{text}"
    );
    text
}

/// The lines without those about certificates.
fn steps(text: &str) -> Vec<&str> {
    let mark = |line: &&str| line.contains(['✅', '❌', '⚠', 'ℹ', '📄', '🔌', '🔑', '⚙']);
    text.lines().filter(mark).map(str::trim).collect()
}

#[tokio::test]
async fn a_good_connection_is_good_at_every_step() {
    let tls = Tls::new();
    let server = etcd(&tls, &[]);
    let file = tls.path("etcd.yaml");
    let port = server.address().rsplit(':').next().unwrap().to_owned();
    tls.client_file(
        &file,
        &format!("localhost:{port}"),
        &tls.ca.client("c", "admin").unwrap(),
    );
    let text = local(&file);
    let steps = steps(&text);
    let expected = [
        "🔌 Endpoints:",
        "✅ Hostname resolved to: ",
        "✅ TCP connection successfully established to ",
        "✅ TLS connection successfully established to ",
        "ℹ️  Negotiated TLS version: TLS 1.3, ciphersuite TLS_AES_",
        "ℹ️  TLS certificates presented by the server:",
        "ℹ️  Etcd server version: 3.6.",
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
async fn a_certificate_that_is_not_accepted_is_said_where_it_shows() {
    let (tls, strange) = (Tls::new(), Tls::new());
    let server = etcd(&tls, &[]);
    let address = server.address();
    let file = tls.path("etcd.yaml");
    let good = tls.ca.client("good", "admin").unwrap();
    // Of another CA of the same name, so only the server can tell.
    tls.client_file(&file, &address, &strange.ca.client("c", "admin").unwrap());
    let text = local(&file);
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
    let (own, other) = (tls.ca.path(), strange.ca.path());
    let swapped = with_ca.replace(own.to_str().unwrap(), other.to_str().unwrap());
    std::fs::write(&file, swapped).unwrap();
    let text = local(&file);
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
    let text = local(&file);
    let expected = format!(
        "❌ Cannot establish TLS connection to {address}: client certificate is not signed by any acceptable CA\n     ℹ️  Acceptable CAs:\n        - CN=test CA\n"
    );
    assert!(text.contains(&expected), "{text}");
    assert!(text.contains("   ⚠️ No available TLS client certificates\n"), "{text}");
}

#[tokio::test]
async fn the_clusters_of_a_mesh_are_looked_at_by_name_and_alias() {
    let tls = Tls::new();
    let server = etcd(&tls, &[]);
    let address = server.address();
    let port = address.rsplit(':').next().unwrap();
    let pair: Pair = tls.ca.client("c", "remote").unwrap();
    let mesh = tls.path("mesh");
    std::fs::create_dir(&mesh).unwrap();
    let hk = mesh.join("hk");
    tls.client_file(&hk, &format!("hk.mesh.cilium.io:{port}"), &pair);
    let alias = "cilium-host-aliases:\n- hostname: hk.mesh.cilium.io\n  ips: [127.0.0.1]\n";
    let text = std::fs::read_to_string(&hk).unwrap() + alias;
    std::fs::write(&hk, text).unwrap();
    let plain = Process::start(&[
        "etcd",
        "--listen-client-urls=http://127.0.0.1:0",
        "--advertise-client-urls=http://x",
    ]);
    let own = format!("endpoints: ['http://{}']\ninsecure-transport: true\n", plain.address());
    std::fs::write(mesh.join("tokyo"), &own).unwrap();
    std::fs::write(tls.path("own.yaml"), own).unwrap();
    let directory = format!("--clustermesh-config={}", mesh.display());
    let local = format!("--etcd-config={}", tls.path("own.yaml").display());
    let args = ["kvstoremesh-dbg", "troubleshoot", &directory, &local, "--include-local"];
    let (code, text, complaints) = run(&[("CLUSTER_NAME", "tokyo")], &args);
    assert_eq!((code, &*complaints), (Some(0), ""));
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
    let (code, text, _) = run(&[], &["kvstoremesh-dbg", "troubleshoot", &directory, "hk", "x"]);
    assert_eq!(code, Some(0));
    assert!(
        text.contains("Troubleshooting filtered subset of clusters: hk, x\n"),
        "{text}"
    );
    assert!(text.ends_with("Cluster \"x\":\n❌ Configuration not found\n"), "{text}");
}
