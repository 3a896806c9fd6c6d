//! What an operator can do about a handshake that failed.

use rustls::{AlertDescription as Alert, CertificateError, Error};
use std::io;

/// What is probably wrong, and where; `None` if the error says so itself.
pub(in crate::server) fn of(error: &io::Error) -> Option<&'static str> {
    let error = error.get_ref()?.downcast_ref::<Error>()?;
    Some(match error {
        // webpki has no type of its own for it.
        Error::InvalidCertificate(CertificateError::Other(other))
            if other.to_string().contains("UnsupportedCertVersion") =>
        {
            "the client certificate is X.509 v1: issue a v3 certificate (openssl x509 -req needs -extfile)"
        }
        Error::InvalidCertificate(CertificateError::UnknownIssuer | CertificateError::BadSignature) => {
            "the CA of the client certificate is not in --trusted-ca-file"
        }
        Error::InvalidCertificate(CertificateError::Expired | CertificateError::ExpiredContext { .. }) => {
            "the client certificate has expired: issue a new one"
        }
        Error::InvalidCertificate(CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. }) => {
            "the client certificate is not valid yet: compare the clocks"
        }
        Error::InvalidCertificate(
            CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. },
        ) => "the client certificate is for servers only: issue one with extendedKeyUsage=clientAuth",
        Error::NoCertificatesPresented => "the client sent no certificate, and this port asks for one",
        Error::InvalidMessage(_) => "the client does not speak TLS: did it use http:// in place of https://?",
        Error::AlertReceived(Alert::UnknownCA) => {
            "the client does not know the CA of the server certificate (--cert-file): compare its CA file"
        }
        Error::AlertReceived(Alert::BadCertificate | Alert::CertificateUnknown) => {
            "the client refuses the server certificate (--cert-file): does it name the host that the client connects to?"
        }
        Error::AlertReceived(Alert::CertificateExpired) => "the server certificate (--cert-file) has expired",
        _ => return None,
    })
}
