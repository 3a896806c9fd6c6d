//! The TLS configuration of a listener, loaded from files and loaded again when the files change.
//!
//! etcd reads the certificate and the key at each handshake, and the CA once. Here a new connection looks for
//! changes of all files, by modification time and size, at most once a second.

mod client_verifier;
pub(super) mod hints;
mod identity;
mod protocol;

pub(super) use identity::Identity;
pub use protocol::{TlsProtocol, TlsVersion};

use crate::util::pem;
use client_verifier::ClientVerifier;
use parking_lot::Mutex;
use rustls::ServerConfig;
use rustls::pki_types::UnixTime;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::danger::ClientCertVerifier;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
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
    /// The CAs of client certificates, PEM. With this file, a client certificate is required, or verified if there is one.
    pub client_ca: Option<PathBuf>,
    pub client_certificates: ClientCertificates,
    /// A CRL, DER: the serial numbers of client certificates to refuse.
    pub client_crl: Option<PathBuf>,
    /// A client certificate must be valid for one of these names; empty for any name.
    pub allowed_hostnames: Vec<String>,
    pub protocol: TlsProtocol,
}

/// Whether clients must show a certificate, on a listener with CAs of client certificates.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ClientCertificates {
    #[default]
    Required,
    Optional,
}

/// Why a TLS configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot use {} as the {what}: {}", path.display(), pem::trouble(path, wanted, error))]
    Read {
        /// What the file is for.
        what: &'static str,
        /// What the file must hold.
        wanted: &'static str,
        path: PathBuf,
        error: rustls::pki_types::pem::Error,
    },
    #[error("CA file {} holds no usable CA: {why}", path.display())]
    Ca { path: PathBuf, why: String },
    #[error("CRL file {} cannot be used: {why}", path.display())]
    Crl { path: PathBuf, why: String },
    /// Versions, suites or hostnames are unknown or exclude each other.
    #[error("{0}")]
    Protocol(String),
    #[error("the key in {} (--key-file) does not belong to the certificate in {} (--cert-file)", key.display(), cert.display())]
    Mismatch { cert: PathBuf, key: PathBuf },
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
    state: Mutex<State>,
}

/// The metadata by which a changed file is recognised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct FileStamp {
    modified: SystemTime,
    bytes: u64,
}

/// A configuration, and how to verify certificates with it.
#[derive(Clone)]
pub(super) struct Loaded {
    pub(super) config: Arc<ServerConfig>,
    /// Verifies client certificates; `None` if clients need none.
    verifier: Option<Arc<ClientVerifier>>,
    /// Counts the configurations since the start of the process.
    pub(super) generation: u64,
}

struct State {
    loaded: Loaded,
    stamps: Vec<Option<FileStamp>>,
    /// The error of the present files, which was logged.
    failed: Option<String>,
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

    /// The stamps of all files; `None` for a missing file. Fails if the system cannot say, for example because the
    /// process has no free file descriptor: that is no change of a file.
    fn stamps(&self) -> std::io::Result<Vec<Option<FileStamp>>> {
        let of = |path: &Path| match std::fs::metadata(path) {
            Ok(meta) => Ok(Some(FileStamp {
                modified: meta.modified()?,
                bytes: meta.len(),
            })),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        };
        self.paths().map(of).collect()
    }

    fn load(&self, generation: u64) -> Result<Loaded, Error> {
        let chain = certificates(&self.cert, "server certificate (--cert-file)")?;
        let key = PrivateKeyDer::from_pem_file(&self.key).map_err(|error| Error::Read {
            what: "private key (--key-file)",
            wanted: "a private key",
            path: self.key.clone(),
            error,
        })?;
        let provider = Arc::new(self.protocol.provider()?);
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&self.protocol.versions()?)
            .map_err(|e| Error::Protocol(e.to_string()))?;
        let verifier = match &self.client_ca {
            None => None,
            Some(path) => Some(Arc::new(ClientVerifier::new(self, path, provider)?)),
        };
        let builder = match verifier.clone() {
            None => builder.with_no_client_auth(),
            Some(verifier) => builder.with_client_cert_verifier(verifier),
        };
        let mut config = builder.with_single_cert(chain, key).map_err(|source| {
            let (cert, key) = (self.cert.clone(), self.key.clone());
            match source {
                rustls::Error::InconsistentKeys(rustls::InconsistentKeys::KeyMismatch) => Error::Mismatch { cert, key },
                source => Error::Pair { cert, key, source },
            }
        })?;
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        // Go clients do not resume sessions, so tickets would only slow down handshakes.
        config.send_tls13_tickets = 0;
        Ok(Loaded {
            config: Arc::new(config),
            verifier,
            generation,
        })
    }
}

/// All certificates of a PEM file. A file without certificates is an error, which says what the file is for.
pub fn certificates(path: &Path, what: &'static str) -> Result<Vec<CertificateDer<'static>>, Error> {
    let wrap = |error| Error::Read {
        what,
        wanted: "a certificate",
        path: path.to_owned(),
        error,
    };
    let list = CertificateDer::pem_file_iter(path).map_err(wrap)?;
    let list = list.collect::<Result<Vec<_>, _>>().map_err(wrap)?;
    match list.is_empty() {
        true => Err(wrap(rustls::pki_types::pem::Error::NoItemsFound)),
        false => Ok(list),
    }
}

// === impl Loaded ===

impl Loaded {
    /// Whether the client with `identity` would be accepted by this configuration.
    fn accepts(&self, identity: &Identity, now: SystemTime) -> bool {
        let verified = identity.is_verified_by(self.generation) && !identity.is_expired(now);
        // An expired certificate may be one that the chain does not need.
        let Some(verifier) = self.verifier.as_ref().filter(|_| !verified) else {
            return true;
        };
        let since = now.duration_since(UNIX_EPOCH).unwrap_or_default();
        let now = UnixTime::since_unix_epoch(since);
        let accepted = verifier.verify_client_cert(identity.leaf(), identity.intermediates(), now);
        identity.set_verified_by(self.generation);
        accepted.is_ok()
    }
}

// === impl TlsConfig ===

impl TlsConfig {
    /// Loads the files. An error names the file at fault.
    pub fn load(files: TlsFiles) -> Result<Self, Error> {
        let stamps = files.stamps().unwrap_or_default();
        let state = State {
            loaded: files.load(0)?,
            stamps,
            failed: None,
            checked: Instant::now(),
        };
        Ok(Self {
            files,
            state: Mutex::new(state),
        })
    }

    /// The configuration of rustls for a new connection.
    pub fn next(&self) -> Arc<ServerConfig> {
        self.current().config
    }

    /// The configuration for a new connection. Changed files that cannot be used are logged, once for each error, and
    /// looked at again; the configuration loaded before stays in use.
    pub(super) fn current(&self) -> Loaded {
        let mut state = self.state.lock();
        if state.checked.elapsed() >= RECHECK {
            state.checked = Instant::now();
            if let Ok(stamps) = self.files.stamps()
                && (stamps != state.stamps || state.failed.is_some())
            {
                self.reload(&mut state, stamps);
            }
        }
        state.loaded.clone()
    }

    fn reload(&self, state: &mut State, stamps: Vec<Option<FileStamp>>) {
        match self.files.load(state.loaded.generation + 1) {
            Ok(loaded) => {
                state.loaded = loaded;
                state.failed = None;
                tracing::info!(cert = %self.files.cert.display(), "TLS files changed and were loaded");
            }
            Err(error) => {
                let error = error.to_string();
                if state.failed.as_ref() != Some(&error) {
                    tracing::error!(error, "changed TLS files cannot be used; the former ones stay in use");
                }
                state.failed = Some(error);
            }
        }
        state.stamps = stamps;
    }

    /// How to find out whether a client with this chain, which a handshake has just verified, would still be accepted.
    pub fn trust(self: &Arc<Self>, chain: &[CertificateDer<'_>]) -> impl Fn() -> bool + Send + Sync + 'static {
        // The files may have changed during the handshake: the first check verifies the chain again.
        let identity = Identity::of(Some(chain), u64::MAX);
        let tls = Arc::clone(self);
        move || {
            let trusted = |identity| tls.still_trusts(identity, SystemTime::now());
            identity.as_ref().is_none_or(trusted)
        }
    }

    /// Whether a connecting client with `identity` would still be accepted: its certificates are neither expired nor
    /// revoked, and are signed by a CA of the present files.
    pub(super) fn still_trusts(&self, identity: &Identity, now: SystemTime) -> bool {
        self.current().accepts(identity, now)
    }
}
