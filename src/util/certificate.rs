//! Whose an X.509 certificate is.

use std::sync::Arc;
use x509_parser::prelude::{FromDer, X509Certificate};

/// The common name in the subject of a DER certificate; as in Go, the last of several.
pub fn common_name(der: &[u8]) -> Option<Arc<str>> {
    let (_, certificate) = X509Certificate::from_der(der).ok()?;
    let names: Vec<_> = certificate.subject().iter_common_name().collect();
    names.last()?.as_str().ok().map(Arc::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_common_name_of_a_certificate_is_the_user() {
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
