//! Versions and cipher suites of TLS.

use super::Error;
use rustls::crypto::CryptoProvider;
use rustls::{SupportedCipherSuite, SupportedProtocolVersion};

/// The versions and cipher suites that a listener accepts. The default is TLS 1.2 and 1.3 with all suites.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TlsProtocol {
    pub min: Option<TlsVersion>,
    pub max: Option<TlsVersion>,
    /// The suites for TLS 1.2, by their IANA names; empty for all. As in Go, all suites of TLS 1.3 are always on.
    pub cipher_suites: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum TlsVersion {
    Tls12,
    Tls13,
}

impl TlsProtocol {
    pub(super) fn versions(&self) -> Result<Vec<&'static SupportedProtocolVersion>, Error> {
        let (min, max) = (
            self.min.unwrap_or(TlsVersion::Tls12),
            self.max.unwrap_or(TlsVersion::Tls13),
        );
        let all = [
            (TlsVersion::Tls13, &rustls::version::TLS13),
            (TlsVersion::Tls12, &rustls::version::TLS12),
        ];
        let versions = all.iter().filter(|(v, _)| (min..=max).contains(v)).map(|(_, v)| *v);
        let versions: Vec<_> = versions.collect();
        if versions.is_empty() {
            let text = "min version of TLS is greater than the max version";
            return Err(Error::Protocol(text.to_owned()));
        }
        if min == TlsVersion::Tls13 && !self.cipher_suites.is_empty() {
            let text = "cipher suites cannot be configured with TLS 1.3 alone";
            return Err(Error::Protocol(text.to_owned()));
        }
        Ok(versions)
    }

    pub(super) fn provider(&self) -> Result<CryptoProvider, Error> {
        let mut provider = rustls::crypto::aws_lc_rs::default_provider();
        if self.cipher_suites.is_empty() {
            return Ok(provider);
        }
        let name = |suite: &SupportedCipherSuite| format!("{:?}", suite.suite());
        // Go accepts older names of these two suites as well.
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

impl std::str::FromStr for TlsVersion {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "TLS1.2" => Ok(Self::Tls12),
            "TLS1.3" => Ok(Self::Tls13),
            _ => Err(format!("{text:?} is no TLS version: TLS1.2 or TLS1.3")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_protocol_without_versions_or_suites_is_refused() {
        let protocol = |min, max, suites: &[&str]| {
            let cipher_suites = suites.iter().map(|s| (*s).to_owned()).collect();
            let p = TlsProtocol {
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
        // A suite by its older name, beside a suite that rustls does not have.
        let old = ["TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305", "TLS_RSA_WITH_AES_128_CBC_SHA"];
        assert_eq!(protocol(None, None, &old).unwrap(), protocol(None, None, &one).unwrap());
        assert!(protocol(Some(TlsVersion::Tls13), None, &one).is_err());
        assert!(protocol(Some(TlsVersion::Tls13), Some(TlsVersion::Tls12), &[]).is_err());
        assert!(protocol(None, None, &["TLS_RSA_WITH_RC4_128_SHA"]).is_err());
    }
}
