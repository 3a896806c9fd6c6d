//! Turns listen URLs into configurations of listeners.

use crate::app::ListenConfig;
use crate::server::listen::Address;
use crate::server::tls::{TlsFiles, TlsProtocol};
use anyhow::{Context, bail};
use std::path::PathBuf;

/// The TLS settings that all listeners of a process share.
#[derive(Clone, Debug, Default)]
pub struct Tls {
    /// Server certificate with its chain, PEM.
    pub cert: Option<PathBuf>,
    /// Private key of the server certificate, PEM.
    pub key: Option<PathBuf>,
    /// CA certificates of client certificates, PEM. If set, a client certificate is required.
    pub ca: Option<PathBuf>,
    /// Whether the common name of a client certificate is the etcd user.
    pub cert_auth: bool,
    /// Revoked client certificates, DER.
    pub crl: Option<PathBuf>,
    /// Host names, one of which a client certificate must be valid for; empty for any.
    pub allowed_hostnames: Vec<String>,
    pub protocol: TlsProtocol,
}

impl Tls {
    fn files(&self) -> anyhow::Result<TlsFiles> {
        let (Some(cert), Some(key)) = (&self.cert, &self.key) else {
            bail!("KeyFile and CertFile are not presented: set --cert-file and --key-file");
        };
        if self.cert_auth && self.ca.is_none() {
            bail!("--client-cert-auth requires --trusted-ca-file, to verify client certificates");
        }
        Ok(TlsFiles {
            cert: cert.clone(),
            key: key.clone(),
            client_ca: self.ca.clone(),
            client_certificates: Default::default(),
            client_crl: self.crl.clone(),
            allowed_hostnames: self.allowed_hostnames.clone(),
            protocol: self.protocol.clone(),
        })
    }

    /// Configures a listener for each URL, whose scheme is `http`, `https`, `unix` or `unixs`.
    pub fn listeners(&self, urls: &[String]) -> anyhow::Result<Vec<ListenConfig>> {
        urls.iter().map(|url| self.listener(url)).collect()
    }

    fn listener(&self, url: &str) -> anyhow::Result<ListenConfig> {
        let Some((scheme, rest)) = url.split_once("://") else {
            bail!("cannot listen on {url:?}: a URL must start with http://, https://, unix:// or unixs://");
        };
        let rest = rest.trim_end_matches('/');
        let (secure, address) = match scheme {
            "http" => (false, tcp(rest)),
            "https" => (true, tcp(rest)),
            "unix" => (false, unix(rest)),
            "unixs" => (true, unix(rest)),
            _ => bail!("cannot listen on {url:?}: the scheme must be http, https, unix or unixs"),
        };
        let address = address.with_context(|| format!("cannot listen on {url:?}"))?;
        if !secure && (self.cert.is_some() || self.key.is_some()) {
            tracing::warn!(
                url,
                "serving without TLS: --cert-file and --key-file have no effect on an http or unix URL"
            );
        }
        let tls = match secure {
            true => Some(self.files().with_context(|| format!("cannot listen on {url:?}"))?),
            false => None,
        };
        Ok(ListenConfig {
            address,
            tls,
            cert_auth: self.cert_auth && secure,
        })
    }
}

fn unix(path: &str) -> anyhow::Result<Address> {
    if path.is_empty() {
        bail!("the URL has no path of a socket");
    }
    Ok(Address::Unix(path.into()))
}

fn tcp(authority: &str) -> anyhow::Result<Address> {
    let Some((host, port)) = authority.rsplit_once(':') else {
        bail!("the URL has no port");
    };
    if port.parse::<u16>().is_err() {
        bail!("the URL has no port from 0 to 65535, but {port:?}");
    }
    let ip = host.trim_matches(['[', ']']).parse::<std::net::IpAddr>();
    // Parity: etcd refuses names, since a name may resolve to several addresses.
    if host != "localhost" && !host.is_empty() && ip.is_err() {
        bail!("the host must be an IP address or localhost");
    }
    Ok(Address::Tcp(authority.to_owned()))
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
            ("127.0.0.1:2379", "must start with"),
            ("ftp://127.0.0.1:1", "scheme"),
            ("http://localhost", "no port"),
            ("http://example.com:1", "IP address"),
            ("https://127.0.0.1:1", "--cert-file"),
        ] {
            assert!(format!("{:#}", listen(url).unwrap_err()).contains(why), "{url}");
        }
    }
}
