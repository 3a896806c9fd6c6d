//! Which servers a client trusts. The rules are those of Go's crypto/x509, since peers and operators expect them.

use parking_lot::{Mutex, RwLock};
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, DigitallySignedStruct, Error, RootCertStore, SignatureScheme};
use sha2::{Digest, Sha256};
use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;
use x509_parser::prelude::{ASN1Time, FromDer, X509Certificate};

/// A file of trusted certificates is read again for a handshake this long after the last time.
const RELOAD: Duration = Duration::from_secs(60);

/// Verifies a server's certificate: by a chain to a trusted certificate, or because the certificate itself is trusted.
/// webpki knows the chain only, and refuses a certificate that is a CA's.
#[derive(Debug)]
pub struct ServerVerifier {
    trusted: RwLock<(Arc<Trusted>, Instant)>,
    /// The file that the trusted certificates come from, if it is to be read again.
    file: Option<PathBuf>,
    provider: Arc<CryptoProvider>,
    /// The issuer of the certificate that was refused last because no CA is known for it.
    refused_issuer: Mutex<String>,
}

#[derive(Debug)]
struct Trusted {
    /// `None` without any usable certificate.
    chain: Option<Arc<WebPkiServerVerifier>>,
    /// SHA-256 of each trusted certificate.
    certificates: HashSet<[u8; 32]>,
}

/// The certificates that the system trusts. Unusable certificates are left out.
pub fn of_system() -> Vec<CertificateDer<'static>> {
    rustls_native_certs::load_native_certs().certs
}

/// A store with these trusted certificates. Unusable certificates are left out.
pub fn roots(certificates: impl IntoIterator<Item = CertificateDer<'static>>) -> RootCertStore {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(certificates);
    roots
}

// === impl Trusted ===

impl Trusted {
    fn new(certificates: Vec<CertificateDer<'static>>, provider: &Arc<CryptoProvider>) -> Self {
        let hashes = certificates.iter().map(|der| hash(der)).collect();
        let roots = Arc::new(roots(certificates));
        Self {
            // Building fails only without any certificate.
            chain: WebPkiServerVerifier::builder_with_provider(roots, Arc::clone(provider))
                .build()
                .ok(),
            certificates: hashes,
        }
    }

    fn read(file: &Path, provider: &Arc<CryptoProvider>) -> Result<Self, pem::Error> {
        let certificates: Result<Vec<_>, _> = CertificateDer::pem_file_iter(file)?.collect();
        Ok(Self::new(certificates?, provider))
    }

    /// Checks a certificate that is itself trusted: its period, its names and its purposes.
    fn verify_itself(der: &CertificateDer<'_>, name: &ServerName<'_>, now: UnixTime) -> Result<(), Error> {
        let (_, certificate) = X509Certificate::from_der(der).map_err(|_| CertificateError::BadEncoding)?;
        let now = i64::try_from(now.as_secs()).ok();
        let now = now.and_then(|secs| ASN1Time::from_timestamp(secs).ok());
        let now = now.ok_or(Error::FailedToGetCurrentTime)?;
        if now < certificate.validity().not_before {
            return Err(CertificateError::NotValidYet.into());
        }
        if now > certificate.validity().not_after {
            return Err(CertificateError::Expired.into());
        }
        let usage = certificate.extended_key_usage();
        let usage = usage.map_err(|_| CertificateError::BadEncoding)?;
        if usage.is_some_and(|usage| !usage.value.any && !usage.value.server_auth) {
            return Err(CertificateError::InvalidPurpose.into());
        }
        // Fails for critical extensions that are not known, too.
        rustls::client::verify_server_name(&ParsedCertificate::try_from(der)?, name)
    }
}

// === impl ServerVerifier ===

impl ServerVerifier {
    /// Trusts these certificates.
    pub fn new(certificates: Vec<CertificateDer<'static>>, provider: Arc<CryptoProvider>) -> Self {
        let trusted = Arc::new(Trusted::new(certificates, &provider));
        Self {
            trusted: RwLock::new((trusted, Instant::now())),
            file: None,
            provider,
            refused_issuer: Mutex::default(),
        }
    }

    /// Trusts the certificates in a PEM file, which is read again from time to time. If that fails, the certificates that
    /// were read last stay.
    pub fn of_file(file: PathBuf, provider: Arc<CryptoProvider>) -> Result<Self, pem::Error> {
        let trusted = Arc::new(Trusted::read(&file, &provider)?);
        Ok(Self {
            trusted: RwLock::new((trusted, Instant::now())),
            file: Some(file),
            provider,
            refused_issuer: Mutex::default(),
        })
    }

    /// The issuer of the certificate that was refused last because no CA is known for it.
    pub fn refused_issuer(&self) -> String {
        self.refused_issuer.lock().clone()
    }

    fn note_issuer(&self, leaf: &CertificateDer<'_>, intermediates: &[CertificateDer<'_>]) {
        // The issuer of the last certificate that was sent is the CA that is missing.
        let last = intermediates.last().unwrap_or(leaf);
        if let Ok((_, certificate)) = X509Certificate::from_der(last) {
            *self.refused_issuer.lock() = certificate.issuer().to_string();
        }
    }

    fn trusted(&self) -> Arc<Trusted> {
        let (trusted, read_at) = self.trusted.read().clone();
        let Some(file) = self.file.as_ref().filter(|_| read_at.elapsed() >= RELOAD) else {
            return trusted;
        };
        let now = match Trusted::read(file, &self.provider) {
            Ok(now) => Arc::new(now),
            Err(error) => {
                tracing::warn!(file = %file.display(), %error, "cannot read the trusted certificates again; keeping those read before");
                trusted
            }
        };
        *self.trusted.write() = (Arc::clone(&now), Instant::now());
        now
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
        let trusted = self.trusted();
        let by_chain = match &trusted.chain {
            Some(chain) => chain.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now),
            None => Err(CertificateError::UnknownIssuer.into()),
        };
        if by_chain.is_err() && trusted.certificates.contains(&hash(end_entity)) {
            Trusted::verify_itself(end_entity, server_name, now)?;
            return Ok(ServerCertVerified::assertion());
        }
        if let Err(Error::InvalidCertificate(CertificateError::UnknownIssuer | CertificateError::BadSignature)) =
            by_chain
        {
            self.note_issuer(end_entity, intermediates);
        }
        by_chain
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

fn hash(certificate: &CertificateDer<'_>) -> [u8; 32] {
    Sha256::digest(certificate).into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, date_time_ymd};

    fn provider() -> Arc<CryptoProvider> {
        Arc::new(rustls::crypto::aws_lc_rs::default_provider())
    }

    fn params(name: &str) -> CertificateParams {
        CertificateParams::new(vec![name.to_owned()]).unwrap()
    }

    fn self_signed(params: &CertificateParams) -> CertificateDer<'static> {
        params.self_signed(&KeyPair::generate().unwrap()).unwrap().der().clone()
    }

    fn verify(trusted: &CertificateDer<'static>, presented: &CertificateDer<'_>, name: &str) -> Result<(), Error> {
        let verifier = ServerVerifier::new(vec![trusted.clone()], provider());
        let name = ServerName::try_from(name).unwrap();
        let verified = verifier.verify_server_cert(presented, &[], &name, &[], UnixTime::now());
        verified.map(drop)
    }

    fn refused(why: CertificateError) -> Result<(), Error> {
        Err(Error::InvalidCertificate(why))
    }

    /// Case C1 from the field: as in Go, with and without `CA:TRUE`, for an address and for a name.
    #[test]
    fn a_certificate_that_is_trusted_itself_is_accepted() {
        for is_ca in [
            IsCa::NoCa,
            IsCa::ExplicitNoCa,
            IsCa::Ca(BasicConstraints::Unconstrained),
        ] {
            for name in ["127.0.0.1", "hk.mesh.example"] {
                let mut params = params(name);
                params.is_ca = is_ca;
                let certificate = self_signed(&params);
                assert_eq!(verify(&certificate, &certificate, name), Ok(()), "{is_ca:?} {name}");
                // The same names with another key.
                let other = self_signed(&params);
                assert!(verify(&certificate, &other, name).is_err(), "{is_ca:?} {name}");
            }
        }
    }

    #[test]
    fn a_trusted_certificate_must_be_valid_in_time_name_and_purpose() {
        let ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let with = |change: &dyn Fn(&mut CertificateParams)| {
            let mut params = params("hk.example");
            params.is_ca = ca;
            change(&mut params);
            let certificate = self_signed(&params);
            verify(&certificate, &certificate, "hk.example")
        };
        assert_eq!(with(&|_| ()), Ok(()));
        let expired = with(&|p| (p.not_before, p.not_after) = (date_time_ymd(2001, 1, 1), date_time_ymd(2002, 1, 1)));
        assert_eq!(expired, refused(CertificateError::Expired));
        let future = with(&|p| (p.not_before, p.not_after) = (date_time_ymd(2901, 1, 1), date_time_ymd(2902, 1, 1)));
        assert_eq!(future, refused(CertificateError::NotValidYet));
        let of_clients = with(&|p| p.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth]);
        assert_eq!(of_clients, refused(CertificateError::InvalidPurpose));
        assert_eq!(
            with(&|p| p.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth]),
            Ok(())
        );
        let certificate = self_signed(&params("other.example"));
        let error = verify(&certificate, &certificate, "hk.example").unwrap_err();
        assert!(error.to_string().contains("not valid for name"), "{error}");
    }

    #[test]
    fn chains_are_verified_as_before() {
        let mut issuer = CertificateParams::default();
        issuer.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let ca = issuer.self_signed(&key).unwrap().der().clone();
        let issuer = Issuer::new(issuer, key);
        let leaf = params("hk").signed_by(&KeyPair::generate().unwrap(), &issuer).unwrap();
        assert_eq!(verify(&ca, leaf.der(), "hk"), Ok(()));
        let stranger = self_signed(&params("hk"));
        let verifier = ServerVerifier::new(vec![stranger], provider());
        let name = ServerName::try_from("hk").unwrap();
        let refused = verifier.verify_server_cert(leaf.der(), &[], &name, &[], UnixTime::now());
        assert!(
            refused.is_err() && verifier.refused_issuer().contains("CN="),
            "{}",
            verifier.refused_issuer()
        );
        let nothing = ServerVerifier::new(vec![], provider());
        let name = ServerName::try_from("hk").unwrap();
        assert!(
            nothing
                .verify_server_cert(leaf.der(), &[], &name, &[], UnixTime::now())
                .is_err()
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_file_of_trusted_certificates_is_read_again() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let certificate = || params("hk").self_signed(&KeyPair::generate().unwrap()).unwrap();
        let (old, new) = (certificate(), certificate());
        std::fs::write(file.path(), old.pem()).unwrap();
        let verifier = ServerVerifier::of_file(file.path().to_owned(), provider()).unwrap();
        let accepts = |certificate: &rcgen::Certificate| {
            let name = ServerName::try_from("hk").unwrap();
            let verified = verifier.verify_server_cert(certificate.der(), &[], &name, &[], UnixTime::now());
            verified.is_ok()
        };
        std::fs::write(file.path(), new.pem()).unwrap();
        assert!(accepts(&old) && !accepts(&new));
        tokio::time::advance(RELOAD).await;
        assert!(!accepts(&old) && accepts(&new));
        let path = file.path().to_owned();
        drop(file);
        assert!(!path.exists());
        tokio::time::advance(RELOAD).await;
        assert!(accepts(&new), "the certificates that were read last stay");
    }
}
