//! Listen URLs → listeners.

use crate::app::ListenConfig;
use crate::server::listen::Address;
use crate::server::tls::{Protocol, TlsFiles};
use anyhow::{Context, bail};
use std::path::PathBuf;

/// What the listeners of a process share.
#[derive(Clone, Debug, Default)]
pub struct Tls {
    /// Server certificate, PEM.
    pub cert: Option<PathBuf>,
    /// Its key, PEM.
    pub key: Option<PathBuf>,
    /// CAs of client certificates.
    pub ca: Option<PathBuf>,
    /// Whether client certificates say who the user is.
    pub cert_auth: bool,
    /// Client certificates to refuse.
    pub crl: Option<PathBuf>,
    /// The names of which client certificates must be for one.
    pub allowed_hostnames: Vec<String>,
    /// Versions and suites.
    pub protocol: Protocol,
}

impl Tls {
    fn files(&self) -> anyhow::Result<TlsFiles> {
        let (Some(cert), Some(key)) = (&self.cert, &self.key) else {
            bail!("KeyFile and CertFile are not presented (--cert-file, --key-file)");
        };
        if self.cert_auth && self.ca.is_none() {
            bail!("--client-cert-auth needs --trusted-ca-file");
        }
        Ok(TlsFiles {
            cert: cert.clone(),
            key: key.clone(),
            client_ca: self.ca.clone(),
            client_crl: self.crl.clone(),
            allowed_hostnames: self.allowed_hostnames.clone(),
            protocol: self.protocol.clone(),
        })
    }

    /// A listener for each URL: `http`, `https`, `unix` or `unixs`.
    pub fn listeners(&self, urls: &[String]) -> anyhow::Result<Vec<ListenConfig>> {
        urls.iter().map(|url| self.listener(url)).collect()
    }

    fn listener(&self, url: &str) -> anyhow::Result<ListenConfig> {
        let Some((scheme, rest)) = url.split_once("://") else {
            bail!("{url:?} is not a URL: it needs http://, https://, unix:// or unixs://");
        };
        let (secure, unix) = match scheme {
            "http" => (false, false),
            "https" => (true, false),
            "unix" => (false, true),
            "unixs" => (true, true),
            _ => bail!("{url:?}: the scheme must be http, https, unix or unixs"),
        };
        let rest = rest.trim_end_matches('/');
        let address = if unix {
            if rest.is_empty() {
                bail!("{url:?} names no socket");
            }
            Address::Unix(rest.into())
        } else {
            let Some((host, Ok(_))) = rest.rsplit_once(':').map(|(host, port)| (host, port.parse::<u16>())) else {
                bail!("{url:?} has no port");
            };
            let ip = host.trim_matches(['[', ']']).parse::<std::net::IpAddr>();
            // Parity: names would resolve to one address of several.
            if host != "localhost" && !host.is_empty() && ip.is_err() {
                bail!("{url:?}: expected an IP address or localhost to listen on");
            }
            Address::Tcp(rest.to_owned())
        };
        if !secure && (self.cert.is_some() || self.key.is_some()) {
            tracing::warn!(url, "TLS files are ignored for a URL without TLS");
        }
        let tls = match secure {
            true => Some(
                self.files()
                    .with_context(|| format!("cannot listen on TLS for {url}"))?,
            ),
            false => None,
        };
        Ok(ListenConfig {
            address,
            tls,
            cert_auth: self.cert_auth && secure,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_must_be_complete() {
        let listen = |url: &str| Tls::default().listeners(&[url.to_owned()]);
        assert!(listen("http://127.0.0.1:2379").is_ok());
        assert!(listen("http://[::1]:2379/").is_ok());
        let unix = listen("unix://localhost:m1").unwrap();
        assert_eq!(unix[0].address, Address::Unix("localhost:m1".into()));
        for (url, why) in [
            ("127.0.0.1:2379", "not a URL"),
            ("ftp://127.0.0.1:1", "scheme"),
            ("http://localhost", "no port"),
            ("http://example.com:1", "IP address"),
            ("https://127.0.0.1:1", "--cert-file"),
        ] {
            assert!(format!("{:#}", listen(url).unwrap_err()).contains(why), "{url}");
        }
    }
}
