//! Errors in the words of Go's standard library, which people search for.

use rustls::pki_types::{ServerName, UnixTime};
use rustls::{AlertDescription, CertificateError, Error};
use std::io;

/// An error of the operating system, as in `connection refused`.
pub(super) fn io(error: &io::Error) -> String {
    let text = error.to_string();
    let text = text.split(" (os error ").next().unwrap_or_default();
    let mut chars = text.chars();
    // Keeps abbreviations, as in `EOF`.
    match (chars.next(), chars.clone().next()) {
        (Some(first), Some(second)) if second.is_lowercase() => first.to_lowercase().chain(chars).collect(),
        _ => text.to_owned(),
    }
}

/// The reason of a failed TLS connection.
pub(super) fn tls(error: &Error) -> String {
    match error {
        Error::AlertReceived(alert) => format!("remote error: tls: {}", self::alert(*alert)),
        Error::InvalidCertificate(why) => format!("tls: failed to verify certificate: {}", certificate(why)),
        Error::InvalidMessage(_) => "tls: first record does not look like a TLS handshake".to_owned(),
        Error::InconsistentKeys(_) => "tls: private key does not match public key".to_owned(),
        other => format!("tls: {other}"),
    }
}

fn alert(alert: AlertDescription) -> String {
    let text = match alert {
        AlertDescription::HandshakeFailure => "handshake failure",
        AlertDescription::BadCertificate => "bad certificate",
        AlertDescription::UnsupportedCertificate => "unsupported certificate",
        AlertDescription::CertificateRevoked => "revoked certificate",
        AlertDescription::CertificateExpired => "expired certificate",
        AlertDescription::CertificateUnknown => "unknown certificate",
        AlertDescription::UnknownCA => "unknown certificate authority",
        AlertDescription::AccessDenied => "access denied",
        AlertDescription::DecryptError => "error decrypting message",
        AlertDescription::ProtocolVersion => "protocol version not supported",
        AlertDescription::InsufficientSecurity => "insufficient security level",
        AlertDescription::InternalError => "internal error",
        AlertDescription::UnrecognisedName => "unrecognized name",
        AlertDescription::CertificateRequired => "certificate required",
        AlertDescription::NoApplicationProtocol => "no application protocol",
        other => return format!("alert {other:?}"),
    };
    text.to_owned()
}

/// The reason why a certificate is refused.
pub(super) fn certificate(error: &CertificateError) -> String {
    let expired = "certificate has expired or is not yet valid";
    let text = match error {
        CertificateError::UnknownIssuer => "certificate signed by unknown authority".to_owned(),
        // Happens if two CAs have the same name, as all CAs that Cilium generates do.
        CertificateError::BadSignature => {
            "certificate signed by unknown authority (of the name of a known one, but with another key)".to_owned()
        }
        CertificateError::ExpiredContext { time, not_after } => {
            format!("{expired}: current time {} is after {}", date(*time), date(*not_after))
        }
        CertificateError::NotValidYetContext { time, not_before } => {
            format!(
                "{expired}: current time {} is before {}",
                date(*time),
                date(*not_before)
            )
        }
        CertificateError::Expired | CertificateError::NotValidYet => expired.to_owned(),
        CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => {
            "certificate specifies an incompatible key usage".to_owned()
        }
        CertificateError::NotValidForNameContext { expected, presented } => not_for(expected, presented),
        CertificateError::BadEncoding => "malformed certificate".to_owned(),
        other => other.to_string(),
    };
    format!("x509: {text}")
}

fn not_for(expected: &ServerName<'_>, presented: &[String]) -> String {
    let name = expected.to_str();
    let is_ip = matches!(expected, ServerName::IpAddress(_));
    // rustls formats names as `DnsName("x")`.
    let kind = if is_ip { "IpAddress(" } else { "DnsName(" };
    let strip = |text: &String| {
        let inner = text.strip_prefix(kind)?.strip_suffix(')')?;
        Some(inner.trim_matches('"').to_owned())
    };
    let valid: Vec<_> = presented.iter().filter_map(strip).collect();
    match (valid.is_empty(), is_ip) {
        (false, _) => format!("certificate is valid for {}, not {name}", valid.join(", ")),
        (true, true) => format!("cannot validate certificate for {name} because it doesn't contain any IP SANs"),
        (true, false) => format!("certificate is not valid for any names, but wanted to match {name}"),
    }
}

fn date(time: UnixTime) -> String {
    let secs = i64::try_from(time.as_secs()).unwrap_or(i64::MAX);
    let date = jiff::Timestamp::from_second(secs);
    date.map_or_else(|_| secs.to_string(), |date| date.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn errors_of_the_operating_system_are_in_lower_case_without_numbers() {
        let refused = io::Error::from_raw_os_error(111);
        assert_eq!(io(&refused), "connection refused");
        assert_eq!(io(&io::Error::other("EOF")), "EOF");
    }

    #[test]
    fn certificates_are_refused_in_gos_words() {
        let at = |secs| UnixTime::since_unix_epoch(Duration::from_secs(secs));
        let expired = CertificateError::ExpiredContext {
            time: at(86_400),
            not_after: at(0),
        };
        assert_eq!(
            certificate(&expired),
            "x509: certificate has expired or is not yet valid: current time 1970-01-02T00:00:00Z is after 1970-01-01T00:00:00Z"
        );
        let other = |name: &'static str, presented: &[&str]| {
            certificate(&CertificateError::NotValidForNameContext {
                expected: ServerName::try_from(name).unwrap(),
                presented: presented.iter().map(|p| (*p).to_owned()).collect(),
            })
        };
        assert_eq!(
            other("127.0.0.1", &["DnsName(\"a\")"]),
            "x509: cannot validate certificate for 127.0.0.1 because it doesn't contain any IP SANs"
        );
        assert_eq!(
            other("x.y", &["DnsName(\"a\")", "IpAddress(1.2.3.4)", "DnsName(\"b\")"]),
            "x509: certificate is valid for a, b, not x.y"
        );
        assert_eq!(
            other("x.y", &[]),
            "x509: certificate is not valid for any names, but wanted to match x.y"
        );
        let alert = Error::AlertReceived(AlertDescription::CertificateExpired);
        assert_eq!(tls(&alert), "remote error: tls: expired certificate");
    }
}
