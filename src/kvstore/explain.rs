//! Why a store refuses a client, from what the client knows of itself and may ask the store.

use super::client::EtcdClient;
use super::client_error::Error;
use super::config::ClientConfig;
use crate::util::expiry::Validity;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use std::path::Path;
use std::time::{Duration, SystemTime};
use x509_parser::prelude::{FromDer, X509Certificate, X509Version};

/// Limit for the questions about a user.
const TIMEOUT: Duration = Duration::from_secs(5);
/// Repetitions of a question that a closing connection has lost, and the pause before each.
const ATTEMPTS: u32 = 5;
const PAUSE: Duration = Duration::from_millis(200);
/// etcd's error for a user that does not exist.
const NO_USER: &str = "user name not found";

/// Why the user of a certificate may not read keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refused {
    /// The store has no user of the certificate's common name.
    NoUser { user: String },
    /// The user may read other keys.
    Allowed { user: String, keys: Vec<String> },
}

/// How a connection ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ended {
    /// Without a word of the store.
    pub is_lost: bool,
    /// The store speaks TLS, and the client does not.
    pub asks_for_tls: bool,
    /// The store refused the handshake.
    pub has_alert: bool,
}

impl From<&Error> for Ended {
    fn from(error: &Error) -> Self {
        Self {
            is_lost: error.is_connection_lost(),
            asks_for_tls: matches!(error, Error::NotPlain),
            has_alert: has_alert(&error.to_string()),
        }
    }
}

/// Whether an error is a TLS alert of the store, by rustls's text.
pub fn has_alert(error: &str) -> bool {
    error.contains("received fatal alert")
}

/// What is wrong with the client's own configuration, if that explains why a connection ended: the store ends connections
/// in several ways, whose errors differ.
pub fn own_mistake(config: &ClientConfig, ended: impl Into<Ended>) -> Option<String> {
    let ended = ended.into();
    let is_plain = !config.endpoints.iter().any(|url| url.starts_with("https://")) && config.cert_file.is_none();
    if is_plain && (ended.is_lost || ended.asks_for_tls) {
        let urls = config.endpoints.join(",");
        return Some(format!(
            "the store at {urls} ends plain connections: does it speak TLS? Use https://, and name the CA of its certificate"
        ));
    }
    let is_refusal = ended.is_lost || ended.has_alert;
    let path = config.cert_file.as_deref().filter(|_| is_refusal)?;
    let (der, now) = (certificate(path)?, SystemTime::now());
    let validity = Validity::of(&der)?;
    let is_past = now < validity.not_before || now > validity.not_after;
    if let Some(trouble) = validity.trouble(now).filter(|_| is_past) {
        return Some(format!("the client certificate {} {trouble}", path.display()));
    }
    let (_, parsed) = X509Certificate::from_der(&der).ok()?;
    (parsed.version() != X509Version::V3).then(|| {
        format!(
            "the client certificate {} is X.509 v1: issue a v3 certificate (openssl x509 -req needs -extfile)",
            path.display()
        )
    })
}

/// Asks the store what the user of the client's certificate may do.
pub async fn refused(client: &EtcdClient, config: &ClientConfig) -> Option<Refused> {
    let user = match &config.username {
        Some(user) => user.clone(),
        None => common_name(&certificate(config.cert_file.as_deref()?)?)?,
    };
    tokio::time::timeout(TIMEOUT, ask(client, user)).await.ok()?
}

async fn ask(client: &EtcdClient, user: String) -> Option<Refused> {
    let mut raw = client.raw();
    let mut attempts = 0;
    let roles = loop {
        match raw.user_get(&*user).await {
            Ok(found) => break found.roles().to_vec(),
            Err(error) if error.to_string().contains(NO_USER) => return Some(Refused::NoUser { user }),
            Err(_) if attempts == ATTEMPTS => return None,
            // Our stores close the connection of a user that does not exist.
            Err(_) => attempts += 1,
        }
        tokio::time::sleep(PAUSE).await;
    };
    let mut keys = vec![];
    for role in roles {
        // A user may ask for its own roles.
        let permissions = raw.role_get(role).await.ok()?.permissions();
        keys.extend(
            permissions
                .iter()
                .map(|p| String::from_utf8_lossy(p.key()).into_owned()),
        );
    }
    Some(Refused::Allowed { user, keys })
}

fn certificate(path: &Path) -> Option<CertificateDer<'static>> {
    CertificateDer::from_pem_file(path).ok()
}

fn common_name(der: &[u8]) -> Option<String> {
    let (_, certificate) = X509Certificate::from_der(der).ok()?;
    let name = certificate.subject().iter_common_name().last()?;
    name.as_str().ok().map(str::to_owned)
}
