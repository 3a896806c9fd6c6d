//! The certificates that a client has presented.

use rustls::pki_types::CertificateDer;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use x509_parser::prelude::{FromDer, X509Certificate};

/// The verified certificate of a live connection, kept to be verified again when the trust in certificates changes.
pub(in crate::server) struct Identity {
    /// The certificate of the client, and the certificates between that and a CA.
    chain: Vec<CertificateDer<'static>>,
    /// The end of the first certificate of the chain that expires.
    expires: SystemTime,
    /// The generation of the configuration that has verified the chain last.
    verified_by: AtomicU64,
}

impl Identity {
    /// The identity of a connection whose chain was just verified; `None` if the client presented no certificate.
    pub(in crate::server) fn of(chain: Option<&[CertificateDer<'_>]>, verified_by: u64) -> Option<Self> {
        let chain: Vec<_> = chain?.iter().map(|c| c.clone().into_owned()).collect();
        let expires = chain.iter().filter_map(expiry).min()?;
        Some(Self {
            chain,
            expires,
            verified_by: AtomicU64::new(verified_by),
        })
    }

    pub(in crate::server) fn leaf(&self) -> &CertificateDer<'static> {
        &self.chain[0]
    }

    pub(super) fn intermediates(&self) -> &[CertificateDer<'static>] {
        &self.chain[1..]
    }

    pub(super) fn is_expired(&self, now: SystemTime) -> bool {
        self.expires < now
    }

    pub(super) fn is_verified_by(&self, generation: u64) -> bool {
        self.verified_by.load(Ordering::Relaxed) == generation
    }

    pub(super) fn set_verified_by(&self, generation: u64) {
        self.verified_by.store(generation, Ordering::Relaxed);
    }
}

fn expiry(certificate: &CertificateDer<'_>) -> Option<SystemTime> {
    let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
    let secs = u64::try_from(parsed.validity().not_after.timestamp()).ok()?;
    UNIX_EPOCH.checked_add(Duration::from_secs(secs))
}
