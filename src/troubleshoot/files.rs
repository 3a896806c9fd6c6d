//! Reads the TLS files of a client configuration.

use super::words;
use crate::kvstore::config::ClientConfig;
use crate::kvstore::dial;
use crate::util::trust;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Why the files cannot be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error("open {}: {}", path.display(), words::io(source))]
    Open { path: PathBuf, source: io::Error },
    #[error("{} holds no private key", .0.display())]
    NoKey(PathBuf),
    #[error("{} holds no certificate", .0.display())]
    NoCertificate(PathBuf),
    #[error("{}", words::tls(.0))]
    Pair(rustls::Error),
}

/// The contents of the files.
pub(super) struct Material {
    /// The CAs for the server; `None` if no file is configured.
    pub(super) roots: Option<Vec<CertificateDer<'static>>>,
    /// The client's certificate chain, leaf first, and key.
    pub(super) identity: Option<Arc<CertifiedKey>>,
    pub(super) provider: Arc<CryptoProvider>,
}

fn bytes(path: &Path) -> Result<Vec<u8>, Error> {
    std::fs::read(path).map_err(|source| Error::Open {
        path: path.to_owned(),
        source,
    })
}

/// The certificates in a PEM file. Other contents are skipped, as in the client.
fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, Error> {
    let found = CertificateDer::pem_slice_iter(&bytes(path)?)
        .filter_map(Result::ok)
        .collect();
    Ok(found)
}

impl Material {
    pub(super) fn read(config: &ClientConfig) -> Result<Self, Error> {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let identity = match (&config.cert_file, &config.key_file) {
            (Some(cert), Some(key)) => Some(Arc::new(pair(cert, key, &provider)?)),
            _ => None,
        };
        let roots = config.trusted_ca_file.as_deref().map(certificates).transpose()?;
        Ok(Self {
            roots,
            identity,
            provider,
        })
    }

    /// The trusted certificates: those of the file, or else those of the system.
    pub(super) fn trusted(&self) -> Vec<CertificateDer<'static>> {
        self.roots.clone().unwrap_or_else(trust::of_system)
    }
}

fn pair(cert: &Path, key: &Path, provider: &CryptoProvider) -> Result<CertifiedKey, Error> {
    let chain = certificates(cert)?;
    let key_bytes = bytes(key)?;
    if chain.is_empty() {
        return Err(Error::NoCertificate(cert.to_owned()));
    }
    let key = PrivateKeyDer::from_pem_slice(&key_bytes).map_err(|_| Error::NoKey(key.to_owned()))?;
    dial::key_pair(chain, key, provider).map_err(Error::Pair)
}
