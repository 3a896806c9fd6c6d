//! Proves that clients accept a self-signed certificate that is both the server's certificate and the trusted one, as Go
//! does: case C1 from the field.

use crate::support::kubernetes_client::SelfSigned;
use crate::support::mesh::{Mirror, client_files};
use crate::support::tls::etcd;
use crate::support::{Process, Tls, eventually, isthmus};

/// An etcd without users that shows this certificate.
fn etcd_with(certificate: &SelfSigned) -> Process {
    isthmus(["etcd", "--advertise-client-urls=https://127.0.0.1:2379"])
        .arg(format!("--cert-file={}", certificate.cert.display()))
        .arg(format!("--key-file={}", certificate.key.display()))
        .arg("--listen-client-urls=https://127.0.0.1:0")
        .start()
}

#[tokio::test]
async fn a_remote_with_a_self_signed_certificate_is_connected() {
    for is_ca in [false, true] {
        let tls = Tls::new();
        let certificate = SelfSigned::new(&tls, is_ca);
        let remote = etcd_with(&certificate);
        let file = client_files(&tls).join("hk");
        let text = format!(
            "endpoints:\n- https://{}\ntrusted-ca-file: {}\n",
            remote.address().await,
            certificate.cert.display()
        );
        std::fs::write(&file, text).unwrap();
        let target = etcd(&tls).start();
        let mirror = Mirror::start(&tls, &target.address().await, &[]);
        eventually("the remote is connected", async || {
            let cluster = mirror.admin.clusters().await.into_iter().next()?;
            (cluster["connected"] == true).then_some(())
        })
        .await;
        let output = isthmus(["clustermesh-dbg", "troubleshoot", "--etcd-config"])
            .arg(file)
            .run();
        assert!(!output.stdout.contains('❌'), "{}", output.stdout);
    }
}
