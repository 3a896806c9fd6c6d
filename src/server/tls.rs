//! rustls server configuration from files, read again when they change.
//!
//! etcd reads certificate and key at each handshake and the CA once; here all three are followed, by
//! modification time and size, at most once a second, when a connection comes in.

use parking_lot::Mutex;
use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, RootCertStore, ServerConfig, SignatureScheme,
    SupportedCipherSuite, SupportedProtocolVersion,
};
use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::time::Instant;
use x509_parser::prelude::{ASN1Time, CertificateRevocationList, FromDer, X509Certificate};

/// How often the files are looked at, when connections come in.
const RECHECK: Duration = Duration::from_secs(1);

/// Files of one TLS listener, and what is asked of its clients.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    /// Certificate chain, PEM.
    pub cert: PathBuf,
    /// Private key, PEM: PKCS#8, PKCS#1 or SEC1.
    pub key: PathBuf,
    /// CAs for client certificates, PEM; with it a client certificate is required.
    pub client_ca: Option<PathBuf>,
    /// Serial numbers of client certificates to refuse: a CRL, DER.
    pub client_crl: Option<PathBuf>,
    /// Names of which client certificates must be for one; empty for any.
    pub allowed_hostnames: Vec<String>,
    /// Versions and cipher suites.
    pub protocol: Protocol,
}

/// What a listener speaks. The default is TLS 1.2 and 1.3 with all suites.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Protocol {
    /// Lowest version.
    pub min: Option<Version>,
    /// Highest version.
    pub max: Option<Version>,
    /// Suites for TLS 1.2, by their IANA names; empty for all. TLS 1.3 has all of its own, as in Go.
    pub cipher_suites: Vec<String>,
}

/// A version of TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Version {
    Tls12,
    Tls13,
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
    /// A CRL cannot be read.
    #[error("CRL file {} cannot be used: {why}", path.display())]
    Crl {
        /// The file.
        path: PathBuf,
        /// Why not.
        why: String,
    },
    /// Versions and suites leave nothing to speak, or are not known.
    #[error("{0}")]
    Protocol(String),
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
        let optional = [self.client_ca.as_ref(), self.client_crl.as_ref()];
        [Some(&self.cert), Some(&self.key)]
            .into_iter()
            .chain(optional)
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

    fn verifier(&self, ca: &Path, provider: Arc<CryptoProvider>) -> Result<ClientVerifier, Error> {
        let inner = WebPkiClientVerifier::builder_with_provider(Arc::new(roots(ca)?), provider).build();
        Ok(ClientVerifier {
            inner: inner.map_err(|e| Error::Ca {
                path: ca.to_owned(),
                why: e.to_string(),
            })?,
            roots: certificates(ca)?.iter().map(|c| c.to_vec()).collect(),
            revoked: self.client_crl.as_deref().map(revoked).transpose()?.unwrap_or_default(),
            allowed_hostnames: self
                .allowed_hostnames
                .iter()
                .map(|name| {
                    let parsed = ServerName::try_from(name.clone());
                    parsed.map_err(|_| Error::Protocol(format!("allowed hostname {name:?} is not a name")))
                })
                .collect::<Result<_, _>>()?,
        })
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
            Some(path) => builder.with_client_cert_verifier(Arc::new(self.verifier(path, provider)?)),
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

// === impl Protocol ===

impl Protocol {
    fn versions(&self) -> Result<Vec<&'static SupportedProtocolVersion>, Error> {
        let (min, max) = (self.min.unwrap_or(Version::Tls12), self.max.unwrap_or(Version::Tls13));
        let all = [
            (Version::Tls13, &rustls::version::TLS13),
            (Version::Tls12, &rustls::version::TLS12),
        ];
        let versions = all.iter().filter(|(v, _)| (min..=max).contains(v)).map(|(_, v)| *v);
        let versions: Vec<_> = versions.collect();
        if versions.is_empty() {
            let text = "min version of TLS is greater than the max version";
            return Err(Error::Protocol(text.to_owned()));
        }
        if min == Version::Tls13 && !self.cipher_suites.is_empty() {
            let text = "cipher suites cannot be configured with TLS 1.3 alone";
            return Err(Error::Protocol(text.to_owned()));
        }
        Ok(versions)
    }

    fn provider(&self) -> Result<CryptoProvider, Error> {
        let mut provider = rustls::crypto::aws_lc_rs::default_provider();
        if self.cipher_suites.is_empty() {
            return Ok(provider);
        }
        let name = |suite: &SupportedCipherSuite| format!("{:?}", suite.suite());
        // Go knows these two by older names as well.
        let wanted = self.cipher_suites.iter().map(|s| match s.strip_suffix("_POLY1305") {
            Some(_) => format!("{s}_SHA256"),
            None => s.clone(),
        });
        let (known, unknown): (Vec<_>, Vec<_>) =
            wanted.partition(|s| provider.cipher_suites.iter().any(|have| name(have) == *s));
        if known.is_empty() {
            let list = unknown.join(", ");
            return Err(Error::Protocol(format!("no supported cipher suite among {list}")));
        }
        if !unknown.is_empty() {
            tracing::warn!(
                suites = unknown.join(","),
                "cipher suites are not supported and left out"
            );
        }
        provider
            .cipher_suites
            .retain(|s| s.tls13().is_some() || known.contains(&name(s)));
        Ok(provider)
    }
}

impl std::str::FromStr for Version {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "TLS1.2" => Ok(Self::Tls12),
            "TLS1.3" => Ok(Self::Tls13),
            _ => Err(format!("{text:?} is no TLS version: TLS1.2 or TLS1.3")),
        }
    }
}

/// The chain is verified as ever; then the CRL and the name wanted are held against the leaf.
#[derive(Debug)]
struct ClientVerifier {
    inner: Arc<dyn ClientCertVerifier>,
    /// The trusted certificates, DER.
    roots: HashSet<Vec<u8>>,
    revoked: HashSet<Vec<u8>>,
    allowed_hostnames: Vec<ServerName<'static>>,
}

impl ClientVerifier {
    /// Whether `leaf` is itself trusted, valid now, and not for servers alone. Go takes such a certificate,
    /// webpki does not if it is a CA's.
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

    /// Parity: etcd looks at serial numbers alone, whoever issued them (client/pkg/transport/listener_tls.go).
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

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, SerialNumber};

    /// A CA and what it issues, in a directory.
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
                client_crl: None,
                allowed_hostnames: vec![],
                protocol: Protocol::default(),
            };
            change(&mut files);
            files.verifier(&ca, Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
        }
    }

    fn accepts(verifier: &ClientVerifier, leaf: &CertificateDer<'_>) -> bool {
        verifier.verify_client_cert(leaf, &[], UnixTime::now()).is_ok()
    }

    #[test]
    fn revoked_certificates_and_those_for_other_names_are_refused() {
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
    fn a_trusted_certificate_is_a_clients_own_as_in_go() {
        let (ca, stranger) = (Authority::new(), Authority::new());
        let verifier = ca.verifier(|_| ()).unwrap();
        assert!(accepts(&verifier, &ca.own));
        assert!(!accepts(&verifier, &stranger.own));
    }

    #[test]
    fn versions_and_suites_must_leave_something() {
        let protocol = |min, max, suites: &[&str]| {
            let cipher_suites = suites.iter().map(|s| (*s).to_owned()).collect();
            let p = Protocol {
                min,
                max,
                cipher_suites,
            };
            let versions = p.versions().map_err(|e| e.to_string())?.len();
            Ok::<_, String>((versions, p.provider().map_err(|e| e.to_string())?.cipher_suites.len()))
        };
        let all = protocol(None, None, &[]).unwrap();
        assert_eq!(all.0, 2);
        let one = ["TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256"];
        assert!(protocol(None, None, &one).unwrap().1 < all.1);
        // By its older name, and beside one that nobody has any more.
        let old = ["TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305", "TLS_RSA_WITH_AES_128_CBC_SHA"];
        assert_eq!(protocol(None, None, &old).unwrap(), protocol(None, None, &one).unwrap());
        assert!(protocol(Some(Version::Tls13), None, &one).is_err());
        assert!(protocol(Some(Version::Tls13), Some(Version::Tls12), &[]).is_err());
        assert!(protocol(None, None, &["TLS_RSA_WITH_RC4_128_SHA"]).is_err());
    }
}
