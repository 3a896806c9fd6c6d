//! A TLS handshake in memory between a client and a server whose certificates are at hand: the proof that two clusters
//! will accept each other, before anything is written.

use super::pki::Material;
use crate::util::trust::{self, ServerVerifier};
use jiff::Timestamp;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::time_provider::TimeProvider;
use rustls::{ClientConfig, ClientConnection, ServerConfig, ServerConnection};
use std::io;
use std::sync::Arc;
use std::time::Duration;

/// The two ends of a handshake.
#[derive(Clone, Debug)]
pub struct Ends<'a> {
    pub server: &'a Material,
    /// The name that the client expects the server's certificate to be valid for.
    pub server_name: &'a str,
    pub client: &'a Material,
    /// The authorities that the client trusts, PEM.
    pub client_trusts: &'a str,
    /// The authorities that the server trusts, PEM.
    pub server_trusts: &'a str,
}

/// Why there is no connection.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    #[error("the server certificate cannot be used: {0}")]
    Server(String),
    #[error("the client certificate cannot be used: {0}")]
    Client(String),
    #[error("the client does not accept the server certificate: {0}")]
    ClientRefuses(String),
    #[error("the server does not accept the client certificate: {0}")]
    ServerRefuses(String),
}

/// The refusals of a certificate that have a remedy of their own.
pub const UNTRUSTED: &str = "no trusted authority has signed it";
pub const EXPIRED: &str = "it has expired";
pub const NOT_YET: &str = "it is not valid yet";
pub const OTHER_NAME: &str = "it is not valid for the name that clients dial";

#[derive(Debug)]
struct At(UnixTime);

impl TimeProvider for At {
    fn current_time(&self) -> Option<UnixTime> {
        Some(self.0)
    }
}

/// Performs the handshake as if the time were `now`.
pub fn attempt(ends: &Ends<'_>, now: Timestamp) -> Result<(), Failure> {
    let seconds = u64::try_from(now.as_second()).unwrap_or_default();
    let time: Arc<dyn TimeProvider> = Arc::new(At(UnixTime::since_unix_epoch(Duration::from_secs(seconds))));
    let server = server(ends, Arc::clone(&time)).map_err(Failure::Server)?;
    let client = client(ends, time).map_err(Failure::Client)?;
    let name = ServerName::try_from(ends.server_name.to_owned())
        .map_err(|_| Failure::ClientRefuses(format!("{:?} is not a valid server name", ends.server_name)))?;
    let server = ServerConnection::new(Arc::new(server)).map_err(|e| Failure::Server(words(&e)))?;
    let client = ClientConnection::new(Arc::new(client), name).map_err(|e| Failure::Client(words(&e)))?;
    exchange(client, server)
}

/// The text of an error for an operator, who looks for the cause and not for the type.
fn words(error: &rustls::Error) -> String {
    use rustls::CertificateError as Certificate;
    let rustls::Error::InvalidCertificate(why) = error else {
        return error.to_string();
    };
    match why {
        Certificate::UnknownIssuer => UNTRUSTED.to_owned(),
        Certificate::Expired | Certificate::ExpiredContext { .. } => EXPIRED.to_owned(),
        Certificate::NotValidYet | Certificate::NotValidYetContext { .. } => NOT_YET.to_owned(),
        Certificate::NotValidForName | Certificate::NotValidForNameContext { .. } => OTHER_NAME.to_owned(),
        Certificate::BadSignature => {
            "its signature was not made by the authority of that name (two authorities have the same name?)".to_owned()
        }
        _ => error.to_string(),
    }
}

fn material(of: &Material) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), String> {
    let chain = CertificateDer::pem_slice_iter(of.cert.as_bytes()).collect::<Result<Vec<_>, _>>();
    let chain = chain.map_err(|e| format!("tls.crt: {e}"))?;
    let key = PrivateKeyDer::from_pem_slice(of.key.as_bytes()).map_err(|e| format!("tls.key: {e}"))?;
    Ok((chain, key))
}

fn trusted(pem: &str) -> Result<Vec<CertificateDer<'static>>, String> {
    let certificates = CertificateDer::pem_slice_iter(pem.as_bytes()).collect::<Result<Vec<_>, _>>();
    certificates.map_err(|e| format!("ca.crt: {e}"))
}

/// The error of a certificate and key that do not fit.
fn unusable(error: &rustls::Error) -> String {
    match error {
        rustls::Error::InconsistentKeys(_) => "tls.key does not belong to tls.crt".to_owned(),
        error => words(error),
    }
}

fn server(ends: &Ends<'_>, time: Arc<dyn TimeProvider>) -> Result<ServerConfig, String> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let roots = Arc::new(trust::roots(trusted(ends.server_trusts)?));
    let verifier = WebPkiClientVerifier::builder_with_provider(roots, Arc::clone(&provider));
    let verifier = verifier.build().map_err(|e| format!("ca.crt: {e}"))?;
    let (chain, key) = material(ends.server)?;
    let config = ServerConfig::builder_with_details(provider, time).with_safe_default_protocol_versions();
    let config = config.map_err(|e| e.to_string())?.with_client_cert_verifier(verifier);
    config.with_single_cert(chain, key).map_err(|e| unusable(&e))
}

fn client(ends: &Ends<'_>, time: Arc<dyn TimeProvider>) -> Result<ClientConfig, String> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let verifier = ServerVerifier::new(trusted(ends.client_trusts)?, Arc::clone(&provider));
    let (chain, key) = material(ends.client)?;
    let config = ClientConfig::builder_with_details(provider, time).with_safe_default_protocol_versions();
    let config = config.map_err(|e| e.to_string())?.dangerous();
    let config = config.with_custom_certificate_verifier(Arc::new(verifier));
    config.with_client_auth_cert(chain, key).map_err(|e| unusable(&e))
}

/// Passes the bytes of each side to the other until both are done.
fn exchange(mut client: ClientConnection, mut server: ServerConnection) -> Result<(), Failure> {
    while client.is_handshaking() || server.is_handshaking() || client.wants_write() || server.wants_write() {
        let mut bytes = vec![];
        pass(&mut bytes, |bytes| client.write_tls(bytes).map(drop)).map_err(Failure::Client)?;
        let mut unread = &bytes[..];
        while !unread.is_empty() {
            server
                .read_tls(&mut unread)
                .map_err(|e| Failure::Server(e.to_string()))?;
            server
                .process_new_packets()
                .map_err(|e| Failure::ServerRefuses(words(&e)))?;
        }
        let mut answer = vec![];
        pass(&mut answer, |bytes| server.write_tls(bytes).map(drop)).map_err(Failure::Server)?;
        let mut unread = &answer[..];
        while !unread.is_empty() {
            client
                .read_tls(&mut unread)
                .map_err(|e| Failure::Client(e.to_string()))?;
            client
                .process_new_packets()
                .map_err(|e| Failure::ClientRefuses(words(&e)))?;
        }
        if bytes.is_empty() && answer.is_empty() {
            return Err(Failure::Client("the handshake does not end".to_owned()));
        }
    }
    Ok(())
}

fn pass(bytes: &mut Vec<u8>, write: impl FnOnce(&mut Vec<u8>) -> io::Result<()>) -> Result<(), String> {
    write(bytes).map_err(|e| e.to_string())
}
