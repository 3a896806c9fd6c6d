//! Certificates of a mesh: the authority, and the certificates that it issues for one cluster.
//!
//! Parity: common names, alternative names and Secrets are those of Cilium's chart, so that a cluster can go from one
//! to the other. Keys are ECDSA P-256, as certgen makes them.

use jiff::{SignedDuration, Timestamp};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use std::time::SystemTime;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::prelude::{FromDer, X509Certificate};

/// Lifetime of an authority that is generated: that of the chart, 1,095 days.
pub const AUTHORITY_LIFETIME: SignedDuration = SignedDuration::from_hours(24 * 1095);
/// Lifetime of the certificates that an authority issues: that of the chart, 365 days.
pub const LEAF_LIFETIME: SignedDuration = SignedDuration::from_hours(24 * 365);
/// Certificates are valid from this long before they are made, so that clusters whose clocks are behind accept them.
const CLOCK_SKEW: SignedDuration = SignedDuration::from_mins(5);

/// A certificate with its key and the certificates to trust, as in a Secret of type `kubernetes.io/tls`. All are PEM.
#[derive(Clone, PartialEq, Eq)]
pub struct Material {
    /// `tls.crt`: the certificate, followed by its intermediates.
    pub cert: String,
    /// `tls.key`: the private key.
    pub key: String,
    /// `ca.crt`: the authorities that peers of the owner must be certified by.
    pub ca: String,
}

/// An authority that can issue certificates.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    cert: String,
    key: String,
    /// The certificates between the issued ones and a root, PEM.
    chain: String,
    not_after: Timestamp,
}

/// A purpose of a certificate of a cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Leaf {
    /// The store's.
    Server,
    /// The publisher's and the mirror's, towards their own store.
    Admin,
    /// That of whoever reads the stores of other clusters.
    Remote,
    /// The agents', towards their own store.
    Local,
}

/// How the common names of clients of other clusters are chosen (`clustermesh.apiserver.tls.authMode`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AuthMode {
    /// `remote`, for every cluster.
    #[default]
    Shared,
    /// `remote-<cluster>`.
    PerCluster,
}

/// What an authority is asked to certify.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeafRequest {
    pub common_name: String,
    /// DNS names and IP addresses.
    pub names: Vec<String>,
    pub is_server: bool,
    pub lifetime: SignedDuration,
}

/// The cluster that certificates are for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Owner {
    pub cluster: String,
    pub namespace: String,
    pub auth_mode: AuthMode,
    /// More names and addresses for the server certificate, such as the host name of a load balancer.
    pub extra_names: Vec<String>,
}

/// The contents of a certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Certificate {
    pub subject: String,
    pub common_name: String,
    pub issuer: String,
    pub not_before: Timestamp,
    pub not_after: Timestamp,
    /// DNS names and IP addresses.
    pub names: Vec<String>,
    pub is_authority: bool,
    /// The key that the certificate is for; empty without the extension.
    pub subject_key: Vec<u8>,
    /// The key that signed the certificate; empty without the extension.
    pub authority_key: Vec<u8>,
    pub der: CertificateDer<'static>,
}

/// Why there is no certificate.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("no certificate in PEM form")]
    Empty,
    #[error("not a certificate in PEM form: {0}")]
    Pem(rustls::pki_types::pem::Error),
    #[error("not an X.509 certificate: {0}")]
    X509(String),
    #[error("the certificate of {0:?} is not an authority's")]
    NoAuthority(String),
    #[error("the private key cannot be used: {0}")]
    Key(rcgen::Error),
    #[error("the private key does not belong to the certificate of {0:?}")]
    OtherKey(String),
    #[error("the authority {name:?} expired on {}", day(*at))]
    Expired { name: String, at: Timestamp },
    #[error("cannot make a certificate: {0}")]
    Make(#[from] rcgen::Error),
}

/// The date of a time, as `2026-11-27`.
pub fn day(at: Timestamp) -> String {
    at.strftime("%Y-%m-%d").to_string()
}

/// The certificates of a PEM text, at least one.
pub fn certificates(pem: &str) -> Result<Vec<Certificate>, Error> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem.as_bytes()).collect();
    let parsed: Result<Vec<_>, _> = found.map_err(Error::Pem)?.into_iter().map(Certificate::parse).collect();
    match parsed? {
        empty if empty.is_empty() => Err(Error::Empty),
        certificates => Ok(certificates),
    }
}

/// One PEM text with the certificates of all `texts`, each once and in order. Unreadable texts are errors, since a
/// certificate that is left out ends connections.
pub fn bundle(texts: &[&str]) -> Result<String, Error> {
    let mut seen: Vec<CertificateDer<'static>> = vec![];
    for text in texts {
        for certificate in certificates(text)? {
            if !seen.contains(&certificate.der) {
                seen.push(certificate.der);
            }
        }
    }
    Ok(seen.iter().map(|der| encode(der)).collect())
}

/// Why `key`, a private key, is not that of the first certificate of `cert`, both PEM; `None` if it is.
pub fn key_fault(cert: &str, key: &str) -> Option<Error> {
    let check = || {
        let first = certificates(cert)?.swap_remove(0);
        let pair = KeyPair::from_pem(key).map_err(Error::Key)?;
        let (_, parsed) = X509Certificate::from_der(&first.der).map_err(|e| Error::X509(e.to_string()))?;
        match *parsed.public_key().subject_public_key.data == *pair.public_key_raw() {
            true => Ok(()),
            false => Err(Error::OtherKey(first.subject)),
        }
    };
    check().err()
}

/// Whether `bundle` has all certificates of `text`.
pub fn contains(bundle: &str, text: &str) -> bool {
    let (Ok(bundle), Ok(wanted)) = (certificates(bundle), certificates(text)) else {
        return false;
    };
    wanted.iter().all(|one| bundle.iter().any(|other| other.der == one.der))
}

/// `der` as PEM.
pub fn encode(der: &CertificateDer<'_>) -> String {
    use base64::Engine;
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    let lines = text.as_bytes().chunks(64).map(String::from_utf8_lossy);
    let body: Vec<_> = lines.collect();
    format!(
        "-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n",
        body.join("\n")
    )
}

fn key_identifier(certificate: &X509Certificate<'_>, of_issuer: bool) -> Vec<u8> {
    let found = certificate
        .iter_extensions()
        .find_map(|extension| match extension.parsed_extension() {
            ParsedExtension::SubjectKeyIdentifier(id) if !of_issuer => Some(id.0.to_vec()),
            ParsedExtension::AuthorityKeyIdentifier(id) if of_issuer => {
                id.key_identifier.as_ref().map(|id| id.0.to_vec())
            }
            _ => None,
        });
    found.unwrap_or_default()
}

fn named(common_name: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, common_name);
    name
}

// === impl Certificate ===

impl Certificate {
    fn parse(der: CertificateDer<'static>) -> Result<Self, Error> {
        let (_, parsed) = X509Certificate::from_der(&der).map_err(|e| Error::X509(e.to_string()))?;
        let time = |at: x509_parser::time::ASN1Time| Timestamp::from_second(at.timestamp()).unwrap_or(Timestamp::MAX);
        let names = parsed.subject_alternative_name().ok().flatten();
        let names = names.into_iter().flat_map(|extension| &extension.value.general_names);
        let names = names.filter_map(|name| match name {
            GeneralName::DNSName(name) => Some((*name).to_owned()),
            GeneralName::IPAddress(bytes) => address(bytes),
            _ => None,
        });
        let common_name = parsed.subject().iter_common_name().next();
        Ok(Self {
            subject: parsed.subject().to_string(),
            common_name: common_name
                .and_then(|name| name.as_str().ok())
                .unwrap_or_default()
                .to_owned(),
            issuer: parsed.issuer().to_string(),
            not_before: time(parsed.validity().not_before),
            not_after: time(parsed.validity().not_after),
            names: names.collect(),
            is_authority: parsed.is_ca(),
            subject_key: key_identifier(&parsed, false),
            authority_key: key_identifier(&parsed, true),
            der: der.clone(),
        })
    }

    /// Whole days until the certificate expires; negative once it has.
    pub fn days_left(&self, now: Timestamp) -> i64 {
        let seconds = self.not_after.as_second() - now.as_second();
        seconds.div_euclid(86_400)
    }

    /// Whether `authority` has signed the certificate.
    pub fn is_signed_by(&self, authority: &Self) -> bool {
        let (Ok((_, own)), Ok((_, theirs))) = (
            X509Certificate::from_der(&self.der),
            X509Certificate::from_der(&authority.der),
        ) else {
            return false;
        };
        own.verify_signature(Some(theirs.public_key())).is_ok()
    }

    /// Whether the certificate ends a chain.
    pub fn is_self_signed(&self) -> bool {
        self.subject == self.issuer && self.is_signed_by(self)
    }

    /// Whether the certificate is valid for `host`, a DNS name or an IP address.
    pub fn is_for(&self, host: &str) -> bool {
        let host = host.trim_end_matches('.').to_ascii_lowercase();
        self.names.iter().any(|name| match name.strip_prefix("*.") {
            // A wildcard stands for one label.
            Some(domain) => host
                .split_once('.')
                .is_some_and(|(_, rest)| rest.eq_ignore_ascii_case(domain)),
            None => name.eq_ignore_ascii_case(&host),
        })
    }
}

fn address(bytes: &[u8]) -> Option<String> {
    if let Ok(v4) = <[u8; 4]>::try_from(bytes) {
        return Some(std::net::Ipv4Addr::from(v4).to_string());
    }
    let v6 = <[u8; 16]>::try_from(bytes).ok()?;
    Some(std::net::Ipv6Addr::from(v6).to_string())
}

// === impl Leaf ===

impl Leaf {
    pub const ALL: [Self; 4] = [Self::Server, Self::Admin, Self::Remote, Self::Local];

    /// The name of the Secret.
    pub fn secret(self) -> &'static str {
        match self {
            Self::Server => "clustermesh-apiserver-server-cert",
            Self::Admin => "clustermesh-apiserver-admin-cert",
            Self::Remote => "clustermesh-apiserver-remote-cert",
            Self::Local => "clustermesh-apiserver-local-cert",
        }
    }

    /// What to certify for `owner`.
    pub fn request(self, owner: &Owner) -> LeafRequest {
        let service = format!("clustermesh-apiserver.{}.svc", owner.namespace);
        let common_name = match (self, owner.auth_mode) {
            (Self::Server, _) => service.clone(),
            (Self::Admin, _) => format!("admin-{}", owner.cluster),
            (Self::Remote, AuthMode::Shared) => "remote".to_owned(),
            (Self::Remote, AuthMode::PerCluster) => format!("remote-{}", owner.cluster),
            (Self::Local, _) => format!("local-{}", owner.cluster),
        };
        let mut names = vec![];
        if self == Self::Server {
            names = vec![
                service,
                "*.mesh.cilium.io".to_owned(),
                "127.0.0.1".to_owned(),
                "::1".to_owned(),
            ];
            for name in &owner.extra_names {
                if !names.contains(name) {
                    names.push(name.clone());
                }
            }
        }
        LeafRequest {
            common_name,
            names,
            is_server: self == Self::Server,
            lifetime: LEAF_LIFETIME,
        }
    }
}

// === impl Authority ===

impl Authority {
    /// A new self-signed authority. The common name of the chart's is `Cilium CA`.
    pub fn generate(common_name: &str, now: Timestamp) -> Result<Self, Error> {
        let mut params = CertificateParams::default();
        params.distinguished_name = named(common_name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![
            KeyUsagePurpose::DigitalSignature,
            KeyUsagePurpose::KeyCertSign,
            KeyUsagePurpose::CrlSign,
        ];
        let not_after = now + AUTHORITY_LIFETIME;
        params.not_before = SystemTime::from(now - CLOCK_SKEW).into();
        params.not_after = SystemTime::from(not_after).into();
        let key = KeyPair::generate()?;
        let cert = params.self_signed(&key)?.pem();
        Self::parse(&cert, &key.serialize_pem())
    }

    /// The authority of a Secret `cilium-ca`: the first certificate of `ca.crt`, and `ca.key` in the form PKCS#8, PKCS#1
    /// or SEC1.
    pub fn parse(cert: &str, key: &str) -> Result<Self, Error> {
        let all = certificates(cert)?;
        let certificate = &all[0];
        if !certificate.is_authority {
            return Err(Error::NoAuthority(certificate.subject.clone()));
        }
        if let Some(fault) = key_fault(cert, key) {
            return Err(fault);
        }
        let pair = KeyPair::from_pem(key).map_err(Error::Key)?;
        let between = all.iter().filter(|one| !one.is_self_signed());
        Ok(Self {
            issuer: Issuer::from_ca_cert_der(&certificate.der, pair)?,
            cert: cert.to_owned(),
            key: key.to_owned(),
            chain: between.map(|one| encode(&one.der)).collect(),
            not_after: certificate.not_after,
        })
    }

    /// The certificate, PEM.
    pub fn cert(&self) -> &str {
        &self.cert
    }

    /// The private key, PEM.
    pub fn key(&self) -> &str {
        &self.key
    }

    /// When the authority ends.
    pub fn not_after(&self) -> Timestamp {
        self.not_after
    }

    /// The certificate alone, without those that follow it.
    pub fn certificate(&self) -> Result<Certificate, Error> {
        Ok(certificates(&self.cert)?.swap_remove(0))
    }

    /// Issues a certificate, which ends no later than the authority. Its owner trusts this authority alone.
    pub fn issue(&self, request: &LeafRequest, now: Timestamp) -> Result<Material, Error> {
        if self.not_after <= now {
            let name = certificates(&self.cert)?.swap_remove(0).subject;
            return Err(Error::Expired {
                name,
                at: self.not_after,
            });
        }
        let mut params = CertificateParams::new(request.names.clone())?;
        params.distinguished_name = named(&request.common_name);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
        // A store may use its certificate as a client's, too, as etcd does towards itself.
        params.extended_key_usages = match request.is_server {
            true => vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth],
            false => vec![ExtendedKeyUsagePurpose::ClientAuth],
        };
        params.use_authority_key_identifier_extension = true;
        params.not_before = SystemTime::from(now - CLOCK_SKEW).into();
        params.not_after = SystemTime::from((now + request.lifetime).min(self.not_after)).into();
        let key = KeyPair::generate()?;
        let cert = params.signed_by(&key, &self.issuer)?.pem() + &self.chain;
        Ok(Material {
            cert,
            key: key.serialize_pem(),
            ca: self.cert.clone(),
        })
    }
}

impl std::fmt::Debug for Material {
    /// Leaves the private key out.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Material")
            .field("cert", &self.cert)
            .field("ca", &self.ca)
            .finish_non_exhaustive()
    }
}

impl std::fmt::Debug for Authority {
    /// Leaves the private key out.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Authority")
            .field("cert", &self.cert)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
