//! Resolves a host and connects to it.

use super::words;
use crate::kvstore::config::HostAlias;
use crate::util::resolve;
use rand::seq::SliceRandom;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout_at};

/// Minimum time for an address that is not the last, if that much time is left.
const SHARE_MIN: Duration = Duration::from_secs(2);

/// Why there is no connection.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Error {
    #[error("lookup {host}: {why}")]
    Lookup { host: String, why: String },
    #[error("missing address")]
    NoAddress,
    #[error("address {0}: missing port in address")]
    NoPort(String),
    #[error("address {0}: invalid port")]
    BadPort(String),
    #[error("{address}: {why}")]
    Connect { address: SocketAddr, why: String },
    #[error("i/o timeout")]
    Timeout,
}

/// A host, and the deadline for resolving and connecting.
pub(super) struct Host<'a> {
    pub(super) name: &'a str,
    pub(super) aliases: &'a [HostAlias],
    pub(super) deadline: Instant,
}

impl Host<'_> {
    /// The addresses that need no DNS: those of an alias, or the host itself if the host is an address.
    fn known(&self) -> Option<Vec<IpAddr>> {
        let alias = self.aliases.iter().find(|alias| alias.hostname == self.name);
        alias
            .map(|alias| alias.ips.clone())
            .or_else(|| Some(vec![self.name.parse().ok()?]))
    }

    /// All addresses of the host.
    pub(super) async fn lookup(&self) -> Result<Vec<IpAddr>, Error> {
        if let Some(addresses) = self.known() {
            return Ok(addresses);
        }
        let failed = |why: String| Error::Lookup {
            host: self.name.to_owned(),
            why,
        };
        match timeout_at(self.deadline, resolve::lookup(self.name, 0)).await {
            Ok(Ok(found)) => Ok(found.into_iter().map(|address| address.ip()).collect()),
            Ok(Err(error)) => Err(failed(not_found(&error.to_string()))),
            Err(_) => Err(failed("i/o timeout".to_owned())),
        }
    }

    /// Connects to the first of `addresses` that answers. The addresses of an alias are replicas and are tried in random
    /// order. Each address gets an equal share of the time that is left.
    pub(super) async fn connect(&self, port: u16, mut addresses: Vec<IpAddr>) -> Result<TcpStream, Error> {
        if addresses.len() > 1 && self.known().is_some() {
            addresses.shuffle(&mut rand::rng());
        }
        let (mut first, count) = (None, addresses.len());
        for (at, ip) in addresses.into_iter().enumerate() {
            let now = Instant::now();
            if now >= self.deadline {
                break;
            }
            let left = self.deadline - now;
            let share = left / u32::try_from(count - at).unwrap_or(u32::MAX);
            let until = now + share.max(left.min(SHARE_MIN));
            let address = SocketAddr::new(ip, port);
            let why = match timeout_at(until, TcpStream::connect(address)).await {
                Ok(Ok(stream)) => return Ok(stream),
                Ok(Err(error)) => format!("connect: {}", words::io(&error)),
                Err(_) => "i/o timeout".to_owned(),
            };
            first.get_or_insert(Error::Connect { address, why });
        }
        Err(first.unwrap_or(Error::Timeout))
    }
}

/// The resolver's error, in Go's words if the host is unknown.
fn not_found(text: &str) -> String {
    let text = text.rsplit(": ").next().unwrap_or(text);
    match text {
        "Name or service not known" | "No address associated with hostname" => "no such host".to_owned(),
        other => other.to_owned(),
    }
}
