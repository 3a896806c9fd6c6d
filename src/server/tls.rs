//! rustls server configuration from files, read again when they change.
//!
//! etcd reads certificate and key at each handshake and the CA once; here all three are followed, by
//! modification time and size, at most once a second, when a connection comes in.

use parking_lot::Mutex;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::time::Instant;

/// How often the files are looked at, when connections come in.
const RECHECK: Duration = Duration::from_secs(1);

/// Files of one TLS listener.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    /// Certificate chain, PEM.
    pub cert: PathBuf,
    /// Private key, PEM: PKCS#8, PKCS#1 or SEC1.
    pub key: PathBuf,
    /// CAs for client certificates, PEM; with it a client certificate is required.
    pub client_ca: Option<PathBuf>,
}

/// Why a TLS configuration cannot be had. Each names its file.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file cannot be read or holds no PEM of the kind wanted.
    #[error("cannot read {what} {}: {source}", path.display())]
    Read {
        /// What it should hold.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Why not.
        source: rustls::pki_types::pem::Error,
    },
    /// A CA is not usable.
    #[error("CA file {} holds no usable CA: {why}", path.display())]
    Ca {
        /// The file.
        path: PathBuf,
        /// Why not.
        why: String,
    },
    /// Certificate and key do not fit together.
    #[error("certificate {} and key {} cannot be used: {source}", cert.display(), key.display())]
    Pair {
        /// The certificate file.
        cert: PathBuf,
        /// The key file.
        key: PathBuf,
        /// Why not.
        source: rustls::Error,
    },
}

/// A server configuration that follows its files.
pub struct TlsConfig {
    files: TlsFiles,
    loaded: Mutex<Loaded>,
}

struct Loaded {
    config: Arc<ServerConfig>,
    print: Vec<Option<(SystemTime, u64)>>,
    checked: Instant,
}

// === impl TlsFiles ===

impl TlsFiles {
    fn paths(&self) -> impl Iterator<Item = &Path> {
        [Some(&self.cert), Some(&self.key), self.client_ca.as_ref()]
            .into_iter()
            .flatten()
            .map(|p| &**p)
    }

    fn print(&self) -> Vec<Option<(SystemTime, u64)>> {
        let of = |path: &Path| {
            let meta = std::fs::metadata(path).ok()?;
            Some((meta.modified().ok()?, meta.len()))
        };
        self.paths().map(of).collect()
    }

    fn load(&self) -> Result<Arc<ServerConfig>, Error> {
        let chain = certificates(&self.cert)?;
        let key = PrivateKeyDer::from_pem_file(&self.key).map_err(|source| Error::Read {
            what: "private key",
            path: self.key.clone(),
            source,
        })?;
        let versions = &[&rustls::version::TLS13, &rustls::version::TLS12];
        let builder = ServerConfig::builder_with_protocol_versions(versions);
        let builder = match &self.client_ca {
            None => builder.with_no_client_auth(),
            Some(path) => {
                let ca = |why: String| Error::Ca {
                    path: path.clone(),
                    why,
                };
                let roots = Arc::new(roots(path)?);
                let verifier = WebPkiClientVerifier::builder(roots).build();
                builder.with_client_cert_verifier(verifier.map_err(|e| ca(e.to_string()))?)
            }
        };
        let mut config = builder.with_single_cert(chain, key).map_err(|source| Error::Pair {
            cert: self.cert.clone(),
            key: self.key.clone(),
            source,
        })?;
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        // Go clients never resume; a ticket would cost each handshake for nothing.
        config.send_tls13_tickets = 0;
        Ok(Arc::new(config))
    }
}

/// All certificates of a PEM file; an error if there is none.
pub fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, Error> {
    let wrap = |source| Error::Read {
        what: "certificate",
        path: path.to_owned(),
        source,
    };
    let list = CertificateDer::pem_file_iter(path).map_err(wrap)?;
    let list = list.collect::<Result<Vec<_>, _>>().map_err(wrap)?;
    match list.is_empty() {
        true => Err(wrap(rustls::pki_types::pem::Error::NoItemsFound)),
        false => Ok(list),
    }
}

fn roots(path: &Path) -> Result<RootCertStore, Error> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(path)? {
        let ca = |e: rustls::Error| Error::Ca {
            path: path.to_owned(),
            why: e.to_string(),
        };
        roots.add(certificate).map_err(ca)?;
    }
    Ok(roots)
}

// === impl TlsConfig ===

impl TlsConfig {
    /// Loads the files; an error names the one at fault.
    pub fn load(files: TlsFiles) -> Result<Self, Error> {
        let print = files.print();
        let loaded = Loaded {
            config: files.load()?,
            print,
            checked: Instant::now(),
        };
        Ok(Self {
            files,
            loaded: Mutex::new(loaded),
        })
    }

    /// The configuration for a new connection. Changed files that cannot be used are logged, once for
    /// each change, and what was loaded before stays.
    pub fn current(&self) -> Arc<ServerConfig> {
        let mut loaded = self.loaded.lock();
        if loaded.checked.elapsed() >= RECHECK {
            loaded.checked = Instant::now();
            let print = self.files.print();
            if print != loaded.print {
                match self.files.load() {
                    Ok(config) => {
                        loaded.config = config;
                        tracing::info!(cert = %self.files.cert.display(), "TLS files changed and were loaded");
                    }
                    Err(error) => tracing::error!(%error, "changed TLS files cannot be used"),
                }
                loaded.print = print;
            }
        }
        Arc::clone(&loaded.config)
    }
}
