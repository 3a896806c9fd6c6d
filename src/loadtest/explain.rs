//! Why the first connection of a test failed, with what the operator has to change.

use super::error::Error;
use crate::kvstore::config::ClientConfig;
use crate::kvstore::explain::{Ended, has_alert, own_mistake};
use std::io;

/// What to do about a store that asks for a client certificate.
const GIVE_A_CERTIFICATE: &str = "the store asks for a client certificate: give --cert and --key, or a --client-config that names \
    them as cert-file and key-file";

/// The error with its remedy, if one is known.
pub fn explained(error: Error, config: &ClientConfig) -> Error {
    match remedy(&error, config) {
        Some(remedy) => Error::Explained {
            text: error.to_string(),
            remedy,
        },
        None => error,
    }
}

fn remedy(error: &Error, config: &ClientConfig) -> Option<String> {
    let text = error.to_string();
    let ended = Ended {
        is_lost: matches!(error, Error::Closed | Error::Unwelcome),
        asks_for_tls: matches!(error, Error::AsksForTls),
        has_alert: has_alert(&text),
    };
    if let Some(mistake) = own_mistake(config, ended) {
        let flags = match config.cert_file {
            None => " with --cacert, or give a --client-config",
            Some(_) => "",
        };
        return Some(mistake + flags);
    }
    let refused = |path: &std::path::Path| {
        format!(
            "the store may not trust the client certificate {}: compare its issuer with the CA that the store trusts, and \
             read the log of the store",
            path.display()
        )
    };
    Some(match (error, &config.cert_file) {
        (Error::Connect(why), _) if why.kind() == io::ErrorKind::ConnectionRefused => {
            "does a store run there?".to_owned()
        }
        (Error::Timeout("connect"), _) => {
            "nothing answers there: compare the address, and look for a firewall or a NetworkPolicy".to_owned()
        }
        (Error::NotHttp2, _) => {
            "etcd's client port is 2379; ports of metrics and of health checks cannot be tested".to_owned()
        }
        (Error::Closed | Error::Unwelcome, None) => GIVE_A_CERTIFICATE.replacen("the store asks", "it may ask", 1),
        (Error::Tls(_), None) if ended.has_alert => GIVE_A_CERTIFICATE.to_owned(),
        (Error::Closed | Error::Unwelcome, Some(path)) => refused(path),
        (Error::Tls(_), Some(path)) if ended.has_alert => refused(path),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn alert() -> Error {
        Error::Tls(io::Error::new(
            io::ErrorKind::InvalidData,
            rustls::Error::AlertReceived(rustls::AlertDescription::CertificateRequired),
        ))
    }

    #[test]
    fn mistakes_of_the_first_connection_name_the_flags() {
        let plain = ClientConfig::address("http://a:1");
        let tls = ClientConfig::address("https://a:1");
        let with_certificate = ClientConfig {
            cert_file: Some("/nowhere/c.crt".into()),
            ..tls.clone()
        };
        for (error, config, words) in [
            (Error::AsksForTls, &plain, &["speak TLS", "https://", "--cacert"][..]),
            (
                Error::Closed,
                &plain,
                &["closed", "does it speak TLS?", "--client-config"],
            ),
            (alert(), &tls, &["CertificateRequired", "--cert and --key", "cert-file"]),
            (Error::Closed, &tls, &["may ask", "--cert and --key"]),
            (alert(), &with_certificate, &["/nowhere/c.crt", "issuer"]),
            (Error::Closed, &with_certificate, &["/nowhere/c.crt", "issuer"]),
            (Error::NotHttp2, &plain, &["2379"]),
            (Error::Timeout("connect"), &plain, &["firewall"]),
        ] {
            let text = explained(error, config).to_string();
            for word in words {
                assert!(text.contains(word), "no {word:?} in: {text}");
            }
        }
        assert_eq!(
            explained(Error::NoHeader, &plain).to_string(),
            Error::NoHeader.to_string()
        );
    }
}
