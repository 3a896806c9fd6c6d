//! Who is on the other end of a connection.

use std::net::SocketAddr;
use std::sync::Arc;
use tonic::Request;
use x509_parser::prelude::{FromDer, X509Certificate};

/// The other end of a connection, attached to each of its requests.
#[derive(Clone, Debug, Default)]
pub struct Peer {
    /// Its address, unless on a unix socket.
    pub address: Option<SocketAddr>,
    /// Whether the connection is encrypted.
    pub secure: bool,
    /// Subject CN of its verified certificate; the etcd user, where certificates authenticate.
    pub common_name: Option<Arc<str>>,
}

impl Peer {
    /// The peer of `request`.
    pub fn of<T>(request: &Request<T>) -> Self {
        request.extensions().get::<Self>().cloned().unwrap_or_default()
    }
}

/// The last CN in the subject of a DER certificate, if it has one. Go takes the last, too.
pub(super) fn common_name(der: &[u8]) -> Option<Arc<str>> {
    let (_, certificate) = X509Certificate::from_der(der).ok()?;
    let names: Vec<_> = certificate.subject().iter_common_name().collect();
    names.last()?.as_str().ok().map(Arc::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_common_name_of_a_certificate_is_its_user() {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        let bare = params.self_signed(&key).unwrap();
        assert_eq!(common_name(bare.der()), None);
        params.distinguished_name.push(rcgen::DnType::CommonName, "remote-hk");
        let cert = params.self_signed(&key).unwrap();
        assert_eq!(common_name(cert.der()).as_deref(), Some("remote-hk"));
        assert_eq!(common_name(b"not a certificate"), None);
    }
}
