//! The TLS configuration of a listener, loaded from files and loaded again when the files change.
//!
//! etcd reads the certificate and the key at each handshake, and the CA once. Here a new connection looks for
//! changes of all files, by modification time and size, at most once a second.

mod client_verifier;
mod protocol;

pub use protocol::{TlsProtocol, TlsVersion};

use client_verifier::ClientVerifier;
use parking_lot::Mutex;
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::time::Instant;

/// How often new connections look for changed files.
const RECHECK: Duration = Duration::from_secs(1);

/// The files of one TLS listener, and the requirements on its clients' certificates.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    /// Certificate chain, PEM.
    pub cert: PathBuf,
    /// Private key, PEM: PKCS#8, PKCS#1 or SEC1.
    pub key: PathBuf,
    /// The CAs of client certificates, PEM. With this file, a client certificate is required.
    pub client_ca: Option<PathBuf>,
    /// A CRL, DER: the serial numbers of client certificates to refuse.
    pub client_crl: Option<PathBuf>,
    /// A client certificate must be valid for one of these names; empty for any name.
    pub allowed_hostnames: Vec<String>,
    pub protocol: TlsProtocol,
}

/// Why a TLS configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot read {what} {}: {source}", path.display())]
    Read {
        what: &'static str,
        path: PathBuf,
        source: rustls::pki_types::pem::Error,
    },
    #[error("CA file {} holds no usable CA: {why}", path.display())]
    Ca { path: PathBuf, why: String },
    #[error("CRL file {} cannot be used: {why}", path.display())]
    Crl { path: PathBuf, why: String },
    /// Versions, suites or hostnames are unknown or exclude each other.
    #[error("{0}")]
    Protocol(String),
    #[error("certificate {} and key {} cannot be used: {source}", cert.display(), key.display())]
    Pair {
        cert: PathBuf,
        key: PathBuf,
        source: rustls::Error,
    },
}

/// A TLS configuration that follows its files.
pub struct TlsConfig {
    files: TlsFiles,
    loaded: Mutex<Loaded>,
}

/// The metadata by which a changed file is recognised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct FileStamp {
    modified: SystemTime,
    bytes: u64,
}

struct Loaded {
    config: Arc<ServerConfig>,
    stamps: Vec<Option<FileStamp>>,
    checked: Instant,
}

// === impl TlsFiles ===

impl TlsFiles {
    fn paths(&self) -> impl Iterator<Item = &Path> {
        let optional = [self.client_ca.as_ref(), self.client_crl.as_ref()];
        [Some(&self.cert), Some(&self.key)]
            .into_iter()
            .chain(optional)
            .flatten()
            .map(|p| &**p)
    }

    /// The stamps of all files; `None` for a missing file.
    fn stamps(&self) -> Vec<Option<FileStamp>> {
        let of = |path: &Path| {
            let meta = std::fs::metadata(path).ok()?;
            Some(FileStamp {
                modified: meta.modified().ok()?,
                bytes: meta.len(),
            })
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
        let provider = Arc::new(self.protocol.provider()?);
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&self.protocol.versions()?)
            .map_err(|e| Error::Protocol(e.to_string()))?;
        let builder = match &self.client_ca {
            None => builder.with_no_client_auth(),
            Some(path) => builder.with_client_cert_verifier(Arc::new(ClientVerifier::new(self, path, provider)?)),
        };
        let mut config = builder.with_single_cert(chain, key).map_err(|source| Error::Pair {
            cert: self.cert.clone(),
            key: self.key.clone(),
            source,
        })?;
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        // Go clients do not resume sessions, so tickets would only slow down handshakes.
        config.send_tls13_tickets = 0;
        Ok(Arc::new(config))
    }
}

/// All certificates of a PEM file. A file without certificates is an error.
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

// === impl TlsConfig ===

impl TlsConfig {
    /// Loads the files. An error names the file at fault.
    pub fn load(files: TlsFiles) -> Result<Self, Error> {
        let stamps = files.stamps();
        let loaded = Loaded {
            config: files.load()?,
            stamps,
            checked: Instant::now(),
        };
        Ok(Self {
            files,
            loaded: Mutex::new(loaded),
        })
    }

    /// The configuration for a new connection. Changed files that cannot be used are logged, once for each change,
    /// and the configuration loaded before stays in use.
    pub fn current(&self) -> Arc<ServerConfig> {
        let mut loaded = self.loaded.lock();
        if loaded.checked.elapsed() >= RECHECK {
            loaded.checked = Instant::now();
            let stamps = self.files.stamps();
            if stamps != loaded.stamps {
                match self.files.load() {
                    Ok(config) => {
                        loaded.config = config;
                        tracing::info!(cert = %self.files.cert.display(), "TLS files changed and were loaded");
                    }
                    Err(error) => tracing::error!(%error, "changed TLS files cannot be used"),
                }
                loaded.stamps = stamps;
            }
        }
        Arc::clone(&loaded.config)
    }
}
