//! Checks one endpoint: DNS, TCP, TLS, and the version of the server.

use super::dial::{self, Host};
use super::files::Material;
use super::report::Report;
use super::session::{Failure, Negotiated, Session};
use super::{certificates, verify, words};
use crate::kvstore::config::HostAlias;
use rustls::pki_types::ServerName;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout_at};

/// Limit for the answer to the request for the version.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(1);
/// Number of addresses that are printed.
const NAMED_MAX: usize = 4;

/// The settings for the check of an endpoint.
pub(super) struct Check<'a> {
    pub(super) aliases: &'a [HostAlias],
    /// `None` disables TLS, even for `https` URLs.
    pub(super) tls: Option<&'a Material>,
    pub(super) deadline: Instant,
}

/// Whether a client could use an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    Usable,
    Unusable,
}

/// The parts of an endpoint's URL that are used.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Url<'a> {
    scheme: &'a str,
    /// Host and port, as given.
    authority: &'a str,
    host: &'a str,
    port: Option<&'a str>,
}

impl<'a> Url<'a> {
    /// Parses a URL. The error is the reason, in Go's words.
    pub(super) fn parse(text: &'a str) -> Result<Self, &'static str> {
        let (scheme, rest) = text.split_once("://").ok_or("missing protocol scheme")?;
        let letter = |c: char| c.is_ascii_alphanumeric() || "+-.".contains(c);
        if scheme.is_empty() || !scheme.chars().all(letter) {
            return Err("missing protocol scheme");
        }
        let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
        let authority = authority.rsplit('@').next().unwrap_or_default();
        if authority.contains(|c: char| c.is_whitespace() || c.is_control() || "%\"<>\\^`{|}".contains(c)) {
            return Err("invalid character in host name");
        }
        let (host, port) = match authority.strip_prefix('[') {
            Some(rest) => {
                let (host, rest) = rest.split_once(']').ok_or("missing ']' in host")?;
                (host, rest.strip_prefix(':'))
            }
            None => match authority.split_once(':') {
                Some((_, port)) if port.contains(':') => return Err("too many colons in address"),
                Some((host, port)) => (host, Some(port)),
                None => (authority, None),
            },
        };
        Ok(Self {
            scheme,
            authority,
            host,
            port: port.filter(|port| !port.is_empty()),
        })
    }

    fn port(&self) -> Result<u16, dial::Error> {
        if self.authority.is_empty() {
            return Err(dial::Error::NoAddress);
        }
        let port = self
            .port
            .ok_or_else(|| dial::Error::NoPort(self.authority.to_owned()))?;
        port.parse().map_err(|_| dial::Error::BadPort(port.to_owned()))
    }
}

impl Check<'_> {
    /// Runs the steps until one fails.
    pub(super) async fn run(&self, endpoint: &str, report: &mut Report<'_>) -> io::Result<Outcome> {
        let url = match Url::parse(endpoint) {
            Ok(url) => url,
            Err(why) => {
                report.line(format_args!("❌ Cannot parse endpoint: parse {endpoint:?}: {why}"))?;
                return Ok(Outcome::Unusable);
            }
        };
        let Some(stream) = self.connect(&url, report).await? else {
            return Ok(Outcome::Unusable);
        };
        let address = stream.peer_addr()?;
        report.line(format_args!("✅ TCP connection successfully established to {address}"))?;
        match self.tls {
            Some(material) if url.scheme == "https" => self.secure(&url, stream, address, material, report).await,
            _ => Ok(Outcome::Usable),
        }
    }

    async fn connect(&self, url: &Url<'_>, report: &mut Report<'_>) -> io::Result<Option<TcpStream>> {
        let host = Host {
            name: url.host,
            aliases: self.aliases,
            deadline: self.deadline,
        };
        let found = host.lookup().await;
        if url.host.parse::<std::net::IpAddr>().is_err() {
            match &found {
                Ok(addresses) => {
                    let mut texts: Vec<_> = addresses.iter().take(NAMED_MAX).map(ToString::to_string).collect();
                    if addresses.len() > NAMED_MAX {
                        texts.push("...".to_owned());
                    }
                    report.line(format_args!("✅ Hostname resolved to: {}", texts.join(", ")))?;
                }
                Err(why) => report.line(format_args!("❌ Cannot resolve hostname: {why}"))?,
            }
        }
        let connected = match (url.port(), found) {
            (Ok(port), Ok(addresses)) => host.connect(port, addresses).await,
            (Err(why), _) | (_, Err(why)) => Err(why),
        };
        let why = match connected {
            Ok(stream) => return Ok(Some(stream)),
            // Go's words for the operation include the address.
            Err(why @ dial::Error::Connect { .. }) => format!("dial tcp {why}"),
            Err(why) => format!("dial tcp: {why}"),
        };
        let text = format_args!("❌ Cannot establish TCP connection to {}: {why}", url.authority);
        report.line(text)?;
        Ok(None)
    }

    async fn secure(
        &self,
        url: &Url<'_>,
        stream: TcpStream,
        address: SocketAddr,
        material: &Material,
        report: &mut Report<'_>,
    ) -> io::Result<Outcome> {
        let Ok(name) = ServerName::try_from(url.host.to_owned()) else {
            let text = format_args!(
                "❌ Cannot establish TLS connection to {}: {:?} is no name that a certificate can be for",
                url.authority, url.host
            );
            report.line(text)?;
            return Ok(Outcome::Unusable);
        };
        let (server, client) = (verify::ServerVerifier::new(material), verify::ClientCert::new(material));
        let made = verify::config(material, &server, &client).and_then(|config| Session::new(config, name, stream));
        let mut session = match made {
            Ok(session) => session,
            Err(error) => {
                let why = words::tls(&error);
                let text = format_args!("❌ Cannot establish TLS connection to {}: {why}", url.authority);
                report.line(text)?;
                return Ok(Outcome::Unusable);
            }
        };
        let done = timeout_at(self.deadline, session.handshake()).await;
        let done = done.unwrap_or(Err(Failure::TooLate));
        // If no client certificate was acceptable, that is the reason of any later failure. A server that is not trusted
        // is an earlier reason.
        let acceptable = client
            .refused()
            .filter(|_| !matches!(done, Err(Failure::Tls(_) | Failure::TooLate)));
        let authority = url.authority;
        let failure = match &acceptable {
            Some(_) => Some("client certificate is not signed by any acceptable CA".to_owned()),
            None => done.err().map(|failure| failure.to_string()),
        };
        match &failure {
            None => report.line(format_args!("✅ TLS connection successfully established to {address}"))?,
            Some(why) => report.line(format_args!("❌ Cannot establish TLS connection to {authority}: {why}"))?,
        }
        let names = acceptable.unwrap_or_default();
        if !names.is_empty() {
            report.line("ℹ️  Acceptable CAs:")?;
        }
        for name in names {
            report.line(format_args!("   - {}", certificates::name_of_der(&name)))?;
        }
        report_negotiated(&session, &server, report)?;
        match failure {
            Some(_) => Ok(Outcome::Unusable),
            None => self.version(authority, &mut session, report).await,
        }
    }

    /// Requests the server's version. With TLS 1.3, only the answer shows whether the server accepted the client
    /// certificate.
    async fn version(&self, authority: &str, session: &mut Session, report: &mut Report<'_>) -> io::Result<Outcome> {
        let request = format!("GET /version HTTP/1.1\r\nHost: {authority}\r\nConnection: close\r\n\r\n");
        let until = self.deadline.min(Instant::now() + ANSWER_TIMEOUT);
        let answer = match timeout_at(until, session.ask(request.as_bytes(), is_whole)).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(why @ Failure::Alert(_))) => {
                report.line(format_args!("❌ TLS client authentication failed: {why}"))?;
                return Ok(Outcome::Unusable);
            }
            failed => {
                let why = failed.map_or(Failure::TooLate, |failed| failed.err().unwrap_or(Failure::Eof));
                report.line(format_args!("❌ Failed to retrieve GET /version answer: {why}"))?;
                return Ok(Outcome::Unusable);
            }
        };
        match version_in(&answer) {
            Some(version) => report.line(format_args!("ℹ️  Etcd server version: {version}"))?,
            None => report.line("⚠️ Could not retrieve etcd server version")?,
        }
        Ok(Outcome::Usable)
    }
}

/// Prints the negotiated parameters and the server's certificates, as far as the handshake got.
fn report_negotiated(session: &Session, server: &verify::ServerVerifier, report: &mut Report<'_>) -> io::Result<()> {
    if let Some(Negotiated { version, suite }) = session.negotiated() {
        let text = format_args!("ℹ️  Negotiated TLS version: {version}, ciphersuite {suite}");
        report.line(text)?;
    }
    let seen = server.presented();
    let Some((first, others)) = seen.split_first() else {
        return Ok(());
    };
    report.line("ℹ️  TLS certificates presented by the server:")?;
    let mut report = report.nested(3);
    certificates::report_chain(first, others, &mut report)
}

const VERSION: &str = r#""etcdserver":""#;

fn version_in(answer: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(answer);
    let (_, rest) = text.split_once(VERSION)?;
    Some(rest.split_once('"')?.0.to_owned())
}

fn is_whole(answer: &[u8]) -> bool {
    version_in(answer).is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_parsed_and_invalid_ones_are_refused() {
        let of = |text: &'static str| Url::parse(text).map(|url| (url.scheme, url.host, url.port().ok()));
        assert_eq!(of("https://a.b:2379"), Ok(("https", "a.b", Some(2379))));
        assert_eq!(of("http://u@[::1]:1/x"), Ok(("http", "::1", Some(1))));
        assert_eq!(of("https://127.0.0.1"), Ok(("https", "127.0.0.1", None)));
        assert_eq!(of("https://127.0.0.1:99999"), Ok(("https", "127.0.0.1", None)));
        assert_eq!(of("unix:///tmp/x"), Ok(("unix", "", None)));
        for bad in [
            "127.0.0.1:2379",
            "::",
            "://x",
            "https://%zz:1",
            "https://a:b:c",
            "https://[::1",
        ] {
            assert!(of(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_version_is_found_in_an_answer() {
        let answer = b"HTTP/1.1 200 OK\r\n\r\n{\"etcdserver\":\"3.6.7\",\"etcdcluster\":\"3.6.0\"}";
        assert_eq!(version_in(answer).as_deref(), Some("3.6.7"));
        assert!(!is_whole(&answer[..38]));
        assert_eq!(version_in(b"HTTP/1.1 404 Not Found\r\n\r\n"), None);
    }
}
