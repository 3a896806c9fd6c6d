//! A certificate authority of the test's own, the certificates it issues, and clients that use them.

use crate::support::CommandLine;
use etcd_client::{Certificate, Client, ConnectOptions, Identity, TlsOptions};
use isthmus::app::certs::{Ca, Pair};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore, SupportedProtocolVersion};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// A temporary directory with a CA and a server certificate. It also holds whatever else the test writes.
pub struct Tls {
    pub dir: tempfile::TempDir,
    pub ca: Ca,
    pub server: Pair,
}

impl Tls {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let ca = Ca::new(&dir.path().join("certs"), "test CA").unwrap();
        let server = ca.server("server").unwrap();
        Self { dir, ca, server }
    }

    /// A path in the temporary directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The flags of a listener that requires client certificates.
    pub fn flags(&self) -> Vec<String> {
        let flag = |name: &str, path: &Path| format!("--{name}={}", path.display());
        vec![
            flag("cert-file", &self.server.cert),
            flag("key-file", &self.server.key),
            flag("trusted-ca-file", &self.ca.path()),
            "--client-cert-auth".to_owned(),
            "--listen-client-urls=https://127.0.0.1:0".to_owned(),
        ]
    }

    /// Writes the etcd client file of a connection that authenticates with `pair`.
    pub fn client_file(&self, path: &Path, address: &str, pair: &Pair) {
        let text = format!(
            "endpoints:\n- https://{address}\ntrusted-ca-file: {}\ncert-file: {}\nkey-file: {}\n",
            self.ca.path().display(),
            pair.cert.display(),
            pair.key.display()
        );
        std::fs::write(path, text).unwrap();
    }

    /// Options of an etcd client that trusts this CA and shows no certificate.
    pub fn trusting(&self) -> TlsOptions {
        TlsOptions::new().ca_certificate(Certificate::from_pem(read(&self.ca.path())))
    }

    /// Options of an etcd client that trusts this CA and authenticates with `pair`.
    pub fn options(&self, pair: &Pair) -> ConnectOptions {
        let identity = Identity::from_pem(read(&pair.cert), read(&pair.key));
        ConnectOptions::new().with_tls(self.trusting().identity(identity))
    }

    /// An etcd client whose certificate has the common name `user`.
    pub async fn client(&self, address: &str, user: &str) -> Client {
        let pair = self.ca.client(&format!("client-{user}"), user).unwrap();
        let endpoint = format!("https://{address}");
        Client::connect([endpoint], Some(self.options(&pair))).await.unwrap()
    }

    /// A rustls client that trusts this CA, authenticates with `pair` and speaks `versions` of TLS.
    pub fn rustls_client(&self, pair: &Pair, versions: &[&'static SupportedProtocolVersion]) -> Arc<ClientConfig> {
        let certificate = CertificateDer::from_pem_file(&pair.cert).unwrap();
        let key = PrivateKeyDer::from_pem_file(&pair.key).unwrap();
        let config = trust(&self.ca.path(), versions).with_client_auth_cert(vec![certificate], key);
        Arc::new(config.unwrap())
    }

    /// The certificate that the server at `address` presents.
    pub async fn presented(&self, address: &str) -> CertificateDer<'static> {
        let probe = self.ca.client("probe", "probe").unwrap();
        let connector = TlsConnector::from(self.rustls_client(&probe, rustls::ALL_VERSIONS));
        let stream = TcpStream::connect(address).await.unwrap();
        let host = ServerName::try_from("127.0.0.1").unwrap();
        let stream = connector.connect(host, stream).await.unwrap();
        let (_, session) = stream.get_ref();
        session.peer_certificates().unwrap()[0].clone().into_owned()
    }
}

/// A rustls client that trusts the certificate in `file` and shows none of its own.
pub fn trusting_file(file: &Path) -> Arc<ClientConfig> {
    Arc::new(trust(file, rustls::ALL_VERSIONS).with_no_client_auth())
}

fn trust(
    file: &Path,
    versions: &[&'static SupportedProtocolVersion],
) -> rustls::ConfigBuilder<ClientConfig, rustls::client::WantsClientCert> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(file).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(versions)
        .unwrap()
        .with_root_certificates(roots)
}

fn read(path: &Path) -> Vec<u8> {
    std::fs::read(path).unwrap()
}

/// `etcd` over TLS without users: whoever has a certificate of the CA may do everything.
pub fn etcd(tls: &Tls) -> CommandLine {
    super::isthmus(["etcd", "--advertise-client-urls=https://127.0.0.1:2379"]).args(tls.flags())
}
