//! Verification of client certificates: the chain, then etcd's CRL and allowed hostnames.

use super::{ClientCertificates, Error, TlsFiles, certificates};
use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{CertificateError, DigitallySignedStruct, DistinguishedName, RootCertStore, SignatureScheme};
use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;
use x509_parser::prelude::{ASN1Time, CertificateRevocationList, FromDer, X509Certificate};

/// What the file of trusted certificates is for.
const CA: &str = "CA of client certificates (--trusted-ca-file)";

/// Verifies the chain as rustls does, then compares the certificates with the CRL and the allowed hostnames.
#[derive(Debug)]
pub(super) struct ClientVerifier {
    inner: Arc<dyn ClientCertVerifier>,
    /// The trusted certificates, DER.
    roots: HashSet<Vec<u8>>,
    revoked: HashSet<Vec<u8>>,
    allowed_hostnames: Vec<ServerName<'static>>,
    is_mandatory: bool,
}

impl ClientVerifier {
    /// A verifier for clients whose certificates are signed by `ca`.
    pub(super) fn new(files: &TlsFiles, ca: &Path, provider: Arc<CryptoProvider>) -> Result<Self, Error> {
        let inner = WebPkiClientVerifier::builder_with_provider(Arc::new(roots(ca)?), provider).build();
        let hostname = |name: &String| {
            let parsed = ServerName::try_from(name.clone());
            parsed.map_err(|_| Error::Protocol(format!("allowed hostname {name:?} is not a name")))
        };
        Ok(Self {
            inner: inner.map_err(|e| Error::Ca {
                path: ca.to_owned(),
                why: e.to_string(),
            })?,
            roots: certificates(ca, CA)?.iter().map(|c| c.to_vec()).collect(),
            revoked: files
                .client_crl
                .as_deref()
                .map(revoked)
                .transpose()?
                .unwrap_or_default(),
            allowed_hostnames: files.allowed_hostnames.iter().map(hostname).collect::<Result<_, _>>()?,
            is_mandatory: files.client_certificates == ClientCertificates::Required,
        })
    }

    /// Whether `leaf` is one of the trusted certificates, valid now, and usable by clients. Go accepts such a
    /// certificate; webpki refuses the certificate of a CA.
    fn is_trusted(&self, leaf: &CertificateDer<'_>, now: UnixTime) -> bool {
        let now = i64::try_from(now.as_secs())
            .ok()
            .and_then(|s| ASN1Time::from_timestamp(s).ok());
        let certificate = X509Certificate::from_der(leaf);
        let for_clients = |c: &X509Certificate<'_>| match c.extended_key_usage() {
            Ok(usage) => usage.is_none_or(|u| u.value.any || u.value.client_auth),
            Err(_) => false,
        };
        self.roots.contains(&leaf[..])
            && certificate.is_ok_and(|(_, c)| for_clients(&c) && now.is_some_and(|now| c.validity().is_valid_at(now)))
    }

    /// Checks the CRL and the allowed hostnames. As in etcd, serial numbers are compared without their issuers
    /// (client/pkg/transport/listener_tls.go).
    fn check(&self, leaf: &CertificateDer<'_>, others: &[CertificateDer<'_>]) -> Result<(), rustls::Error> {
        if !self.revoked.is_empty() {
            for certificate in others.iter().chain([leaf]) {
                let parsed = X509Certificate::from_der(certificate);
                let (_, parsed) = parsed.map_err(|_| CertificateError::BadEncoding)?;
                if self.revoked.contains(parsed.raw_serial()) {
                    return Err(CertificateError::Revoked.into());
                }
            }
        }
        if self.allowed_hostnames.is_empty() {
            return Ok(());
        }
        let parsed = rustls::server::ParsedCertificate::try_from(leaf)?;
        let mut names = self.allowed_hostnames.iter();
        match names.any(|name| rustls::client::verify_server_name(&parsed, name).is_ok()) {
            true => Ok(()),
            false => Err(CertificateError::NotValidForName.into()),
        }
    }
}

impl ClientCertVerifier for ClientVerifier {
    fn client_auth_mandatory(&self) -> bool {
        self.is_mandatory
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.inner.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        let verified = match self.inner.verify_client_cert(leaf, intermediates, now) {
            Err(_) if self.is_trusted(leaf, now) => ClientCertVerified::assertion(),
            verified => verified?,
        };
        self.check(leaf, intermediates)?;
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}

/// The serial numbers in a CRL.
fn revoked(path: &Path) -> Result<HashSet<Vec<u8>>, Error> {
    let wrap = |why: String| Error::Crl {
        path: path.to_owned(),
        why,
    };
    let der = std::fs::read(path).map_err(|e| wrap(e.to_string()))?;
    let (_, list) = CertificateRevocationList::from_der(&der).map_err(|e| wrap(e.to_string()))?;
    let serials = list.iter_revoked_certificates().map(|c| c.raw_serial().to_vec());
    Ok(serials.collect())
}

fn roots(path: &Path) -> Result<RootCertStore, Error> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(path, CA)? {
        let ca = |e: rustls::Error| Error::Ca {
            path: path.to_owned(),
            why: e.to_string(),
        };
        roots.add(certificate).map_err(ca)?;
    }
    Ok(roots)
}

#[cfg(test)]
mod tests {
    use super::super::TlsProtocol;
    use super::*;
    use rcgen::{CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, SerialNumber};
    use std::path::PathBuf;

    /// A CA that issues certificates and a CRL, in a directory.
    struct Authority {
        dir: tempfile::TempDir,
        issuer: Issuer<'static, KeyPair>,
        own: CertificateDer<'static>,
    }

    impl Authority {
        fn new() -> Self {
            let mut params = CertificateParams::default();
            params.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
            params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
            let key = KeyPair::generate().unwrap();
            let own = params.self_signed(&key).unwrap();
            let dir = tempfile::tempdir().unwrap();
            std::fs::write(dir.path().join("ca.crt"), own.pem()).unwrap();
            Self {
                dir,
                own: own.der().clone(),
                issuer: Issuer::new(params, key),
            }
        }

        fn client(&self, serial: u64, name: &str) -> CertificateDer<'static> {
            let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
            params.serial_number = Some(SerialNumber::from(serial));
            params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
            let key = KeyPair::generate().unwrap();
            params.signed_by(&key, &self.issuer).unwrap().der().clone()
        }

        /// A CRL with these serial numbers.
        fn revoke(&self, serials: &[u64]) -> PathBuf {
            let now = rcgen::date_time_ymd(2026, 1, 1);
            let revoked = serials.iter().map(|serial| rcgen::RevokedCertParams {
                serial_number: SerialNumber::from(*serial),
                revocation_time: now,
                reason_code: None,
                invalidity_date: None,
            });
            let params = rcgen::CertificateRevocationListParams {
                this_update: now,
                next_update: rcgen::date_time_ymd(2100, 1, 1),
                crl_number: SerialNumber::from(1),
                issuing_distribution_point: None,
                revoked_certs: revoked.collect(),
                key_identifier_method: rcgen::KeyIdMethod::Sha256,
            };
            let path = self.dir.path().join("crl.der");
            std::fs::write(&path, params.signed_by(&self.issuer).unwrap().der()).unwrap();
            path
        }

        fn verifier(&self, change: impl FnOnce(&mut TlsFiles)) -> Result<ClientVerifier, Error> {
            let ca = self.dir.path().join("ca.crt");
            let mut files = TlsFiles {
                cert: ca.clone(),
                key: ca.clone(),
                client_ca: Some(ca.clone()),
                client_certificates: Default::default(),
                client_crl: None,
                allowed_hostnames: vec![],
                protocol: TlsProtocol::default(),
            };
            change(&mut files);
            ClientVerifier::new(&files, &ca, Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
        }
    }

    fn accepts(verifier: &ClientVerifier, leaf: &CertificateDer<'_>) -> bool {
        verifier.verify_client_cert(leaf, &[], UnixTime::now()).is_ok()
    }

    #[test]
    fn revoked_certificates_and_certificates_for_other_hostnames_are_refused() {
        let ca = Authority::new();
        let (one, two) = (ca.client(1001, "one.example"), ca.client(1002, "two.example"));
        let plain = ca.verifier(|_| ()).unwrap();
        assert!(accepts(&plain, &one) && accepts(&plain, &two));
        let revoking = ca.verifier(|f| f.client_crl = Some(ca.revoke(&[1002]))).unwrap();
        assert!(accepts(&revoking, &one) && !accepts(&revoking, &two));
        let naming = |f: &mut TlsFiles| f.allowed_hostnames = ["x.example", "two.example"].map(str::to_owned).into();
        let naming = ca.verifier(naming).unwrap();
        assert!(!accepts(&naming, &one) && accepts(&naming, &two));
        assert!(!accepts(&plain, &Authority::new().client(1001, "one.example")));
        let broken = ca.verifier(|f| f.client_crl = Some(ca.dir.path().join("ca.crt")));
        assert!(broken.err().unwrap().to_string().contains("CRL file"));
    }

    #[test]
    fn a_client_may_use_a_trusted_certificate_itself_as_in_go() {
        let (ca, stranger) = (Authority::new(), Authority::new());
        let verifier = ca.verifier(|_| ()).unwrap();
        assert!(accepts(&verifier, &ca.own));
        assert!(!accepts(&verifier, &stranger.own));
    }
}
