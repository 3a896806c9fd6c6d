//! Opens the tester's connections: which endpoint, from which address of this machine, and at which pace.

use super::error::Error;
use super::link::{Connection, Link, RequestHead, Socket};
use crate::kvstore::config::ClientConfig;
use crate::kvstore::dial::{Target, explained, key_pair, tls_config};
use crate::util::resolve;
use crate::util::trust::ServerVerifier;
use parking_lot::Mutex;
use rustls::client::{ResolvesClientCert, Resumption};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::sign::SingleCertAndKey;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::{Instant, sleep_until, timeout};
use tokio_rustls::TlsConnector;
use tokio_util::either::Either;

/// Limit for one attempt to connect, as in grpc-go.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(20);
/// The most addresses of 127.0.0.0/8 that clients connect from.
pub const SOURCES_MAX: u32 = 1 << 16;

/// One endpoint with an address.
#[derive(Debug)]
struct Endpoint {
    /// As the operator wrote it.
    url: String,
    address: SocketAddr,
    name: ServerName<'static>,
    secure: bool,
    head: Arc<RequestHead>,
}

/// Opens connections. All of them share the TLS configuration.
pub struct Dialer {
    endpoints: Vec<Endpoint>,
    tls: Option<TlsConnector>,
    /// The same with the certificates of the agents' users, if agents have users of their own.
    users: Vec<(String, TlsConnector)>,
    /// Remembers the issuer of the certificate that was refused last.
    verifier: Option<Arc<ServerVerifier>>,
    config: ClientConfig,
    /// How many addresses of 127.0.0.0/8 to connect from; 0 leaves the choice to the kernel.
    sources: u32,
    /// Whether each connection is preceded by one that ends during its handshake, as in Cilium.
    aborted: bool,
    pace: Option<Pace>,
}

/// Gives out moments at a fixed rate.
struct Pace {
    gap: Duration,
    next: Mutex<Instant>,
}

impl Pace {
    /// Waits for the next moment.
    async fn wait(&self) {
        let at = {
            let mut next = self.next.lock();
            let at = (*next).max(Instant::now());
            *next = at + self.gap;
            at
        };
        sleep_until(at).await;
    }
}

/// A user of agents: its name, and its certificate with its key, PEM.
#[derive(Clone)]
pub struct User {
    pub name: String,
    pub cert: String,
    pub key: String,
}

/// Whose connection is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Who {
    /// The user of the client's configuration, who may write.
    Writer,
    /// The user of agents with this number, modulo their number; without users of their own, agents are the writers' user.
    Agent(usize),
}

/// How connections are opened.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    pub sources: u32,
    pub aborted: bool,
    /// Connections per second; 0 for no limit.
    pub rate: f64,
}

impl Dialer {
    /// Resolves the endpoints and reads the TLS files. Agents are spread over `users`, if there are any.
    pub async fn new(config: &ClientConfig, options: Options, users: &[User]) -> Result<Self, Error> {
        let mut endpoints = vec![];
        for endpoint in &config.endpoints {
            let target = Target::parse(endpoint, config)?;
            let failed = |source| Error::Resolve {
                host: target.host.clone(),
                source,
            };
            let address = addresses(config, &target).await.map_err(failed)?;
            let address = address.ok_or_else(|| failed(std::io::Error::other("no address")))?;
            if options.sources > 0 && !(address.is_ipv4() && address.ip().is_loopback()) {
                return Err(Error::NotLoopback(endpoint.clone()));
            }
            endpoints.push(Endpoint {
                url: endpoint.clone(),
                address,
                name: ServerName::try_from(target.host.clone()).map_err(|e| failed(std::io::Error::other(e)))?,
                secure: target.secure,
                head: RequestHead::new(target.authority(), target.secure),
            });
        }
        let mut connectors = vec![];
        let (tls, verifier) = match endpoints.iter().any(|endpoint| endpoint.secure) {
            true => {
                let (mut tls, verifier) = tls_config(config)?;
                // Go's clients make full handshakes.
                tls.resumption = Resumption::disabled();
                for user in users {
                    let mut own = tls.clone();
                    own.client_auth_cert_resolver = certificate(user)?;
                    connectors.push((user.name.clone(), TlsConnector::from(Arc::new(own))));
                }
                (Some(TlsConnector::from(Arc::new(tls))), Some(verifier))
            }
            false if !users.is_empty() => {
                return Err(Error::Plan(
                    "users of agents need endpoints with TLS, such as https://127.0.0.1:2379: without TLS, a store tells \
                     clients apart by their addresses (--source-addresses)"
                        .to_owned(),
                ));
            }
            false => (None, None),
        };
        let pace = (options.rate > 0.0).then(|| Pace {
            gap: Duration::from_secs_f64(1.0 / options.rate),
            next: Mutex::new(Instant::now()),
        });
        Ok(Self {
            endpoints,
            tls,
            users: connectors,
            verifier,
            config: config.clone(),
            sources: options.sources,
            aborted: options.aborted,
            pace,
        })
    }

    /// The addresses of the endpoints.
    pub fn addresses(&self) -> impl Iterator<Item = SocketAddr> {
        self.endpoints.iter().map(|endpoint| endpoint.address)
    }

    /// The endpoints, as the operator wrote them. Connection `n` goes to number `n`, modulo their number.
    pub fn urls(&self) -> impl ExactSizeIterator<Item = &str> {
        self.endpoints.iter().map(|endpoint| &*endpoint.url)
    }

    /// The names of the agents' users, if agents have users of their own.
    pub fn users(&self) -> impl ExactSizeIterator<Item = &str> {
        self.users.iter().map(|(name, _)| &**name)
    }

    /// The configuration of the client.
    pub fn config(&self) -> &ClientConfig {
        &self.config
    }

    /// Opens connection number `n` when its time has come. Returns the time of the handshakes, too.
    pub async fn agent(&self, n: usize) -> Result<(Link, Connection, Duration), Error> {
        if let Some(pace) = &self.pace {
            pace.wait().await;
        }
        let began = Instant::now();
        if self.aborted {
            // Errors show up in the connection that follows.
            let _ = timeout(CONNECT_TIMEOUT, self.abort(n)).await;
        }
        // Each endpoint gets connections of each user.
        let user = Who::Agent(n / self.endpoints.len());
        let (link, connection) = self.connect(n, user).await?;
        Ok((link, connection, began.elapsed()))
    }

    /// Opens a connection at once.
    pub async fn connect(&self, n: usize, who: Who) -> Result<(Link, Connection), Error> {
        let late = |_| Error::Timeout("connect");
        timeout(CONNECT_TIMEOUT, self.handshake(n, who)).await.map_err(late)?
    }

    fn connector(&self, who: Who) -> Option<&TlsConnector> {
        match who {
            Who::Agent(n) if !self.users.is_empty() => Some(&self.users[n % self.users.len()].1),
            _ => self.tls.as_ref(),
        }
    }

    async fn handshake(&self, n: usize, who: Who) -> Result<(Link, Connection), Error> {
        let endpoint = &self.endpoints[n % self.endpoints.len()];
        let tcp = self.tcp(endpoint, n).await.map_err(Error::Connect)?;
        let socket: Socket = match self.connector(who).filter(|_| endpoint.secure) {
            None => Either::Left(tcp),
            Some(tls) => {
                let connected = tls.connect(endpoint.name.clone(), tcp).await;
                Either::Right(Box::new(connected.map_err(|error| self.refused(error))?))
            }
        };
        Ok(Link::open(socket, &endpoint.head))
    }

    /// The error of a handshake, with the mistake behind it if that is known.
    fn refused(&self, error: std::io::Error) -> Error {
        match &self.verifier {
            Some(verifier) => Error::of_handshake(explained(&self.config, verifier, error)),
            None => Error::of_handshake(error),
        }
    }

    /// Begins a handshake and closes the connection.
    async fn abort(&self, n: usize) -> Result<(), Error> {
        let endpoint = &self.endpoints[n % self.endpoints.len()];
        let mut tcp = self.tcp(endpoint, n).await.map_err(Error::Connect)?;
        if let Some(tls) = self.tls.as_ref().filter(|_| endpoint.secure) {
            let config = Arc::clone(tls.config());
            let started = rustls::ClientConnection::new(config, endpoint.name.clone());
            let mut hello = vec![];
            started
                .and_then(|mut session| {
                    session
                        .write_tls(&mut hello)
                        .map_err(|e| rustls::Error::General(e.to_string()))
                })
                .map_err(|e| Error::Tls(std::io::Error::other(e)))?;
            tcp.write_all(&hello).await.map_err(Error::Connect)?;
        }
        Ok(())
    }

    async fn tcp(&self, endpoint: &Endpoint, n: usize) -> std::io::Result<TcpStream> {
        let socket = match endpoint.address {
            SocketAddr::V4(_) => TcpSocket::new_v4()?,
            SocketAddr::V6(_) => TcpSocket::new_v6()?,
        };
        if self.sources > 0 {
            let source = u32::from(Ipv4Addr::new(127, 0, 0, 2)) + (n % self.sources as usize) as u32;
            socket.bind((IpAddr::from(Ipv4Addr::from(source)), 0).into())?;
        }
        let tcp = socket.connect(endpoint.address).await?;
        tcp.set_nodelay(true)?;
        Ok(tcp)
    }
}

/// The certificate of a user.
fn certificate(user: &User) -> Result<Arc<dyn ResolvesClientCert>, Error> {
    let fail = |why: String| {
        Error::Plan(format!(
            "the certificate of the user {} cannot be used: {why}",
            user.name
        ))
    };
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(user.cert.as_bytes()).collect();
    let chain = chain.map_err(|error| fail(error.to_string()))?;
    let key = PrivateKeyDer::from_pem_slice(user.key.as_bytes()).map_err(|error| fail(error.to_string()))?;
    let provider = rustls::crypto::aws_lc_rs::default_provider();
    let pair = key_pair(chain, key, &provider).map_err(|error| fail(error.to_string()))?;
    Ok(Arc::new(SingleCertAndKey::from(pair)))
}

async fn addresses(config: &ClientConfig, target: &Target) -> std::io::Result<Option<SocketAddr>> {
    let aliases = &config.cilium_host_aliases;
    if let Some(alias) = aliases.iter().find(|alias| alias.hostname == target.host) {
        return Ok(alias.ips.first().map(|ip| SocketAddr::new(*ip, target.port)));
    }
    Ok(resolve::lookup(&target.host, target.port).await?.first().copied())
}
