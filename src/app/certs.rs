//! Certificates for the demo, the tests and `--auto-tls`: a CA without protection of its key, and self-signed ones.
//! Not for production.

use rcgen::{
    BasicConstraints, Certificate, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose,
};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

/// A CA that writes the certificates it issues into a directory.
pub struct Ca {
    certificate: Certificate,
    issuer: Issuer<'static, KeyPair>,
    directory: PathBuf,
}

/// The files of a certificate and its private key, PEM.
#[derive(Clone, Debug)]
pub struct Pair {
    pub cert: PathBuf,
    pub key: PathBuf,
}

fn other(error: rcgen::Error) -> io::Error {
    io::Error::other(error)
}

/// How long certificates are valid; so long that a demo and its page do not end with them.
const LIFETIME: Duration = Duration::from_secs(10 * 365 * 86_400);
/// How far the clock of a reader may be behind.
const CLOCK_SKEW: Duration = Duration::from_secs(3600);

/// Parameters of a certificate that is valid from now on.
fn valid_now(names: impl Into<Vec<String>>) -> io::Result<CertificateParams> {
    let mut params = CertificateParams::new(names).map_err(other)?;
    let now = SystemTime::now();
    params.not_before = (now - CLOCK_SKEW).into();
    params.not_after = (now + LIFETIME).into();
    Ok(params)
}

fn named(common_name: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, common_name);
    name
}

/// Writes a private key to a file of mode 0600.
fn write_key(path: &Path, pem: &str) -> io::Result<()> {
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;
    let mut options = std::fs::OpenOptions::new();
    options
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)?
        .write_all(pem.as_bytes())
}

/// The self-signed certificate of `--auto-tls` in `directory`, made at the first call.
pub fn self_signed(directory: &Path) -> io::Result<Pair> {
    let pair = Pair {
        cert: directory.join("cert.pem"),
        key: directory.join("key.pem"),
    };
    if pair.cert.is_file() && pair.key.is_file() {
        return Ok(pair);
    }
    std::fs::create_dir_all(directory)?;
    let names = ["localhost", "127.0.0.1", "::1"].map(str::to_owned);
    let mut params = valid_now(names)?;
    params.distinguished_name = named("etcd");
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let key = KeyPair::generate().map_err(other)?;
    let certificate = params.self_signed(&key).map_err(other)?;
    std::fs::write(&pair.cert, certificate.pem())?;
    write_key(&pair.key, &key.serialize_pem())?;
    Ok(pair)
}

impl Ca {
    /// Makes a CA and writes its certificate to `ca.crt` in `directory`.
    pub fn new(directory: &Path, common_name: &str) -> io::Result<Self> {
        let mut params = valid_now([])?;
        params.distinguished_name = named(common_name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate().map_err(other)?;
        let certificate = params.self_signed(&key).map_err(other)?;
        std::fs::create_dir_all(directory)?;
        let ca = Self {
            certificate,
            issuer: Issuer::new(params, key),
            directory: directory.to_owned(),
        };
        std::fs::write(ca.path(), ca.certificate.pem())?;
        Ok(ca)
    }

    /// The CA's certificate file.
    pub fn path(&self) -> PathBuf {
        self.directory.join("ca.crt")
    }

    /// Issues a server certificate for loopback addresses, `localhost` and `*.mesh.cilium.io`.
    pub fn server(&self, file: &str) -> io::Result<Pair> {
        let names = [
            "localhost",
            "127.0.0.1",
            "::1",
            "*.mesh.cilium.io",
            "clustermesh-apiserver.cilium.io",
        ];
        self.issue(
            file,
            "clustermesh-apiserver.cilium.io",
            &names,
            ExtendedKeyUsagePurpose::ServerAuth,
        )
    }

    /// Issues a client certificate. The common name is the etcd user.
    pub fn client(&self, file: &str, common_name: &str) -> io::Result<Pair> {
        self.issue(file, common_name, &[], ExtendedKeyUsagePurpose::ClientAuth)
    }

    fn issue(&self, file: &str, common_name: &str, names: &[&str], usage: ExtendedKeyUsagePurpose) -> io::Result<Pair> {
        let names: Vec<String> = names.iter().map(|n| (*n).to_owned()).collect();
        let mut params = valid_now(names)?;
        params.distinguished_name = named(common_name);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
        params.extended_key_usages = vec![usage];
        let key = KeyPair::generate().map_err(other)?;
        let certificate = params.signed_by(&key, &self.issuer).map_err(other)?;
        let pair = Pair {
            cert: self.directory.join(format!("{file}.crt")),
            key: self.directory.join(format!("{file}.key")),
        };
        std::fs::write(&pair.cert, certificate.pem())?;
        write_key(&pair.key, &key.serialize_pem())?;
        Ok(pair)
    }
}
