//! Verification during a TLS handshake, as in the etcd client, with a record of what the server sent.

use super::files::Material;
use crate::util::trust;
use parking_lot::Mutex;
use rustls::client::ResolvesClientCert;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::sign::CertifiedKey;
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, Error, SignatureScheme};
use std::sync::Arc;
use x509_parser::prelude::{FromDer, X509Certificate};

/// Verifies the server, and records the certificates that it presented.
#[derive(Debug)]
pub(super) struct ServerVerifier {
    verifier: trust::ServerVerifier,
    presented: Mutex<Vec<CertificateDer<'static>>>,
}

/// Chooses the client certificate, and records whether the server would refuse it.
#[derive(Debug)]
pub(super) struct ClientCert {
    identity: Option<Arc<CertifiedKey>>,
    /// The names of acceptable CAs, DER, if the certificate was refused.
    refused: Mutex<Option<Vec<Vec<u8>>>>,
}

/// A client configuration with this verifier and this certificate.
pub(super) fn config(
    material: &Material,
    server: &Arc<ServerVerifier>,
    client: &Arc<ClientCert>,
) -> Result<ClientConfig, Error> {
    let provider = Arc::clone(&material.provider);
    let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
    let builder = builder
        .dangerous()
        .with_custom_certificate_verifier(Arc::clone(server) as _);
    Ok(builder.with_client_cert_resolver(Arc::clone(client) as _))
}

/// Verifies the client's certificate with the configured CAs. The server may trust other CAs.
pub(super) fn client(material: &Material, chain: &[CertificateDer<'_>]) -> Result<(), CertificateError> {
    let Some((leaf, intermediates)) = chain.split_first() else {
        return Ok(());
    };
    let provider = Arc::clone(&material.provider);
    let trusted = material.trusted();
    // Servers accept a certificate that they trust itself.
    if trusted.contains(leaf) {
        return Ok(());
    }
    let roots = Arc::new(trust::roots(trusted));
    let Ok(verifier) = WebPkiClientVerifier::builder_with_provider(roots, provider).build() else {
        return Err(CertificateError::UnknownIssuer);
    };
    match verifier.verify_client_cert(leaf, intermediates, UnixTime::now()) {
        Err(Error::InvalidCertificate(why)) => Err(why),
        _ => Ok(()),
    }
}

// === impl ServerVerifier ===

impl ServerVerifier {
    pub(super) fn new(material: &Material) -> Arc<Self> {
        let provider = Arc::clone(&material.provider);
        Arc::new(Self {
            verifier: trust::ServerVerifier::new(material.trusted(), provider),
            presented: Mutex::default(),
        })
    }

    /// The server's certificates, leaf first.
    pub(super) fn presented(&self) -> Vec<CertificateDer<'static>> {
        self.presented.lock().clone()
    }
}

impl ServerCertVerifier for ServerVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let owned = |der: &CertificateDer<'_>| der.clone().into_owned();
        *self.presented.lock() = std::iter::once(end_entity).chain(intermediates).map(owned).collect();
        let verifier = &self.verifier;
        verifier.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.verifier.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.verifier.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.verifier.supported_verify_schemes()
    }
}

// === impl ClientCert ===

impl ClientCert {
    pub(super) fn new(material: &Material) -> Arc<Self> {
        Arc::new(Self {
            identity: material.identity.clone(),
            refused: Mutex::default(),
        })
    }

    /// The names of the CAs that the server accepts, DER, if none of them issued the client's certificate.
    pub(super) fn refused(&self) -> Option<Vec<Vec<u8>>> {
        self.refused.lock().clone()
    }
}

/// Whether a CA with one of these names issued a certificate of the chain. Several CAs may have the same name.
fn is_issued_by(chain: &[CertificateDer<'_>], names: &[&[u8]]) -> bool {
    chain.iter().any(|der| {
        let parsed = X509Certificate::from_der(der);
        parsed.is_ok_and(|(_, cert)| names.contains(&cert.issuer().as_raw()))
    })
}

impl ResolvesClientCert for ClientCert {
    fn resolve(&self, names: &[&[u8]], schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        let acceptable = |identity: &&Arc<CertifiedKey>| {
            (names.is_empty() || is_issued_by(&identity.cert, names)) && identity.key.choose_scheme(schemes).is_some()
        };
        let chosen = self.identity.as_ref().filter(acceptable).cloned();
        if chosen.is_none() {
            *self.refused.lock() = Some(names.iter().map(|name| name.to_vec()).collect());
        }
        chosen
    }

    fn has_certs(&self) -> bool {
        true
    }
}
