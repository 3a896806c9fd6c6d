//! Connects to a store: TCP and TLS to one address of one of its endpoints.
//!
//! A store may have several endpoints, and each endpoint several addresses, of which some are dead. The addresses are
//! tried one after the other, and each gets a share of the time (as in Cilium 1.20 for `cilium-host-aliases`). The
//! last good address comes first; endpoints and aliases are shuffled; the addresses of one DNS name stay in the order
//! of the system's resolver. All requests of a connection then go to the same address: two replicas behind one name
//! are two stores, each with its own revisions.

use super::client_error::Error;
use super::config::ClientConfig;
use crate::util::expiry::Facts;
use crate::util::net::Keepalive;
use crate::util::trust::{self, ServerVerifier};
use crate::util::{self, access, resolve};
use futures::future::join_all;
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use rand::seq::SliceRandom;
use rustls::client::Resumption;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{CertificateError, ClientConfig as TlsConfig, InconsistentKeys};
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_util::either::Either;
use tonic::transport::{Channel, Endpoint};

/// Limit for establishing a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// The least time for one address.
const SHARE_MIN: Duration = Duration::from_secs(2);
/// etcd's client port, for endpoints without a port.
const DEFAULT_PORT: u16 = 2379;

/// Remembers the last good address of a store from one connection to the next. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Dialer(Arc<Mutex<Option<Good>>>);

/// An address that accepted a connection.
#[derive(Clone, Debug)]
struct Good {
    address: Address,
    /// The certificate that the server has shown.
    certificate: Option<Facts>,
}

impl Dialer {
    /// Forgets the last good address, so that all addresses are equal again.
    pub fn forget(&self) {
        *self.0.lock() = None;
    }

    /// The last good address; `None` before the first connection.
    pub fn address(&self) -> Option<SocketAddr> {
        self.0.lock().as_ref().map(|good| good.address.at)
    }

    /// The certificate that the server at that address has shown.
    pub fn certificate(&self) -> Option<Facts> {
        self.0.lock().as_ref().and_then(|good| good.certificate.clone())
    }
}

/// The target of one attempt: one address of a host. The server's certificate must be valid for the host's name.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Address {
    host: String,
    at: SocketAddr,
    secure: bool,
}

/// One endpoint of a configuration.
#[derive(Debug, PartialEq, Eq)]
pub struct Target {
    pub host: String,
    pub port: u16,
    pub secure: bool,
}

impl Target {
    /// Takes an endpoint apart as Go's client does.
    pub fn parse(endpoint: &str, config: &ClientConfig) -> Result<Self, Error> {
        let bad = || Error::Endpoint(endpoint.to_owned());
        let (scheme, rest) = endpoint.split_once("://").unwrap_or(("", endpoint));
        let secure = match scheme {
            "https" => true,
            "http" => false,
            // As in Go's client, an endpoint without a scheme uses TLS if the configuration has TLS files.
            "" => config.files().next().is_some(),
            _ => return Err(bad()),
        };
        let authority: http::uri::Authority = rest.trim_end_matches('/').parse().map_err(|_| bad())?;
        let host = authority.host();
        Ok(Self {
            host: host.trim_start_matches('[').trim_end_matches(']').to_owned(),
            port: authority.port_u16().unwrap_or(DEFAULT_PORT),
            secure: secure && !config.insecure_transport,
        })
    }

    /// Host and port of a URL.
    pub fn authority(&self) -> String {
        match self.host.contains(':') {
            true => format!("[{}]:{}", self.host, self.port),
            false => format!("{}:{}", self.host, self.port),
        }
    }

    fn origin(&self) -> String {
        format!("http{}://{}", if self.secure { "s" } else { "" }, self.authority())
    }
}

/// TLS with the files of a configuration.
struct Tls {
    connector: TlsConnector,
    /// Remembers the issuer of the certificate that was refused last.
    verifier: Arc<ServerVerifier>,
}

/// Makes the connections of one channel.
struct Connector {
    config: ClientConfig,
    targets: Vec<Target>,
    tls: Option<Tls>,
    dialer: Dialer,
}

/// How the connections of a channel behave.
#[derive(Clone, Copy, Debug)]
pub struct Transport {
    pub keepalive: Keepalive,
    /// `None` for the library's default.
    pub window: Option<Window>,
}

/// Bytes that the store may send before they are read.
#[derive(Clone, Copy, Debug)]
pub struct Window {
    pub call: u32,
    pub connection: u32,
}

impl Window {
    /// The same for a call and for the connection, which has one call.
    pub fn both(bytes: u32) -> Self {
        Self {
            call: bytes,
            connection: bytes,
        }
    }
}

/// Makes a channel that connects at the first request, and again after its connection is lost. The TLS files are
/// read now.
pub fn channel(config: &ClientConfig, dialer: &Dialer, transport: Transport) -> Result<Channel, Error> {
    let Transport { keepalive, window } = transport;
    let targets: Vec<_> = config
        .endpoints
        .iter()
        .map(|e| Target::parse(e, config))
        .collect::<Result<_, _>>()?;
    let Some(first) = targets.first() else {
        return Err(Error::Endpoint(String::new()));
    };
    let origin = first.origin();
    let bad = |_| Error::Endpoint(origin.clone());
    // The connector does TLS itself: for tonic the connection is plain.
    let endpoint = Endpoint::from_static("http://store")
        .origin(origin.parse().map_err(bad)?)
        .http2_keep_alive_interval(keepalive.interval)
        .keep_alive_timeout(keepalive.timeout)
        .initial_stream_window_size(window.map(|window| window.call))
        .initial_connection_window_size(window.map(|window| window.connection));
    let tls = match targets.iter().any(|t| t.secure) {
        true => Some(tls(config)?),
        false => None,
    };
    let connector = Arc::new(Connector {
        config: config.clone(),
        targets,
        tls,
        dialer: dialer.clone(),
    });
    let connect = move |_| {
        let connector = Arc::clone(&connector);
        async move { connector.connect().await.map(TokioIo::new) }
    };
    Ok(endpoint.connect_with_connector_lazy(tower::service_fn(connect)))
}

impl Connector {
    async fn connect(&self) -> io::Result<Either<TcpStream, TlsStream<TcpStream>>> {
        let deadline = Instant::now() + CONNECT_TIMEOUT;
        let (mut addresses, mut failures) = (vec![], vec![]);
        let mut targets: Vec<_> = self.targets.iter().collect();
        targets.shuffle(&mut rand::rng());
        // A name that the resolver does not answer must not use up the time for the other names.
        let resolved = targets
            .iter()
            .map(|target| timeout(CONNECT_TIMEOUT / 2, self.addresses(target)));
        for (target, found) in targets.iter().zip(join_all(resolved).await) {
            match found {
                Ok(Ok(found)) => addresses.extend(found),
                Ok(Err(error)) => failures.push(format!("{}: {error}", target.host)),
                Err(_) => failures.push(format!("{}: no answer from the resolver", target.host)),
            }
        }
        if let Some(good) = self.dialer.0.lock().clone() {
            addresses.sort_by_key(|address| *address != good.address);
        }
        for (at, address) in addresses.iter().enumerate() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                failures.push(format!("{} addresses not tried in time", addresses.len() - at));
                break;
            }
            let share = (left / (addresses.len() - at) as u32).max(SHARE_MIN);
            let why = match timeout(share, self.connect_to(address)).await {
                Ok(Ok(stream)) => {
                    *self.dialer.0.lock() = Some(Good {
                        address: address.clone(),
                        certificate: shown(&stream),
                    });
                    return Ok(stream);
                }
                Ok(Err(error)) => error.to_string(),
                Err(_) => format!("no connection in {:.1} s", share.as_secs_f32()),
            };
            failures.push(format!("{}: {why}", address.at));
        }
        Err(io::Error::other(failures.join("; ")))
    }

    async fn addresses(&self, target: &Target) -> io::Result<Vec<Address>> {
        let address = |at| Address {
            host: target.host.clone(),
            at,
            secure: target.secure,
        };
        let aliases = &self.config.cilium_host_aliases;
        if let Some(alias) = aliases.iter().find(|alias| alias.hostname == target.host) {
            let mut at: Vec<_> = alias.ips.iter().map(|ip| SocketAddr::new(*ip, target.port)).collect();
            at.shuffle(&mut rand::rng());
            return Ok(at.into_iter().map(address).collect());
        }
        // The system's resolver knows which address family works: its order stays.
        let found = resolve::lookup(&target.host, target.port).await?;
        Ok(found.into_iter().map(address).collect())
    }

    async fn connect_to(&self, address: &Address) -> io::Result<Either<TcpStream, TlsStream<TcpStream>>> {
        let tcp = TcpStream::connect(address.at).await?;
        tcp.set_nodelay(true)?;
        let Some(tls) = self.tls.as_ref().filter(|_| address.secure) else {
            return Ok(Either::Left(tcp));
        };
        let name = ServerName::try_from(address.host.clone()).map_err(io::Error::other)?;
        let connected = tls.connector.connect(name, tcp).await;
        Ok(Either::Right(
            connected.map_err(|error| explained(&self.config, &tls.verifier, error))?,
        ))
    }
}

/// The error of a handshake, with what a reader needs to find the mistake.
pub fn explained(config: &ClientConfig, verifier: &ServerVerifier, error: io::Error) -> io::Error {
    let ca = match &config.trusted_ca_file {
        Some(file) => file.display().to_string(),
        None => "the CAs of the system, since no CA file is given".to_owned(),
    };
    let hint = match of_rustls(&error) {
        Some(rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer | CertificateError::BadSignature)) => {
            let issuer = verifier.refused_issuer();
            format!("the server's certificate is issued by {issuer:?}, whose CA certificate is not in {ca}")
        }
        Some(rustls::Error::InvalidMessage(_)) => "the server does not speak TLS on this port: is it http?".to_owned(),
        _ => return error,
    };
    io::Error::new(error.kind(), format!("{error}; {hint}"))
}

/// The certificate that the server has shown.
fn shown(stream: &Either<TcpStream, TlsStream<TcpStream>>) -> Option<Facts> {
    match stream {
        Either::Left(_) => None,
        Either::Right(stream) => Facts::of(stream.get_ref().1.peer_certificates()?.first()?),
    }
}

/// The error of rustls inside an error of a connection.
fn of_rustls(error: &io::Error) -> Option<&rustls::Error> {
    error.get_ref()?.downcast_ref()
}

fn read(path: &Path) -> Result<Vec<u8>, Error> {
    std::fs::read(path).map_err(|source| Error::File {
        path: path.display().to_string(),
        source: access::explained(source, path),
    })
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, Error> {
    let content = read(path)?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&content).collect();
    let error = match found {
        Ok(found) if found.is_empty() => pem::Error::NoItemsFound,
        Ok(found) => return Ok(found),
        Err(error) => error,
    };
    Err(Error::Tls {
        path: path.display().to_string(),
        why: util::pem::trouble(path, "a certificate", &error),
    })
}

/// A client's certificate with its key. Fails if the key is unusable or does not belong to the certificate. The server
/// checks the rest of the certificate, which may be an X.509 v1 certificate.
pub fn key_pair(
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    provider: &CryptoProvider,
) -> Result<CertifiedKey, rustls::Error> {
    let pair = CertifiedKey::new(chain, provider.key_provider.load_private_key(key)?);
    match pair.keys_match() {
        Err(error @ rustls::Error::InconsistentKeys(InconsistentKeys::KeyMismatch)) => Err(error),
        _ => Ok(pair),
    }
}

/// TLS with the files read now.
fn tls(config: &ClientConfig) -> Result<Tls, Error> {
    let (tls, verifier) = tls_config(config)?;
    Ok(Tls {
        connector: TlsConnector::from(Arc::new(tls)),
        verifier,
    })
}

/// The configuration of rustls with the files read now, and its verifier.
pub fn tls_config(config: &ClientConfig) -> Result<(TlsConfig, Arc<ServerVerifier>), Error> {
    let trusted = config.trusted_ca_file.as_deref().map(certificates).transpose()?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let verifier = ServerVerifier::new(trusted.unwrap_or_else(trust::of_system), Arc::clone(&provider));
    let verifier = Arc::new(verifier);
    let builder = TlsConfig::builder_with_provider(Arc::clone(&provider)).with_safe_default_protocol_versions();
    let of = |path: &Path, why: String| Error::Tls {
        path: path.display().to_string(),
        why,
    };
    let nothing = Path::new("TLS");
    let builder = builder
        .map_err(|e| of(nothing, e.to_string()))?
        .dangerous()
        .with_custom_certificate_verifier(Arc::clone(&verifier) as _);
    let mut tls = match (&config.cert_file, &config.key_file) {
        (Some(cert), Some(key)) => {
            let secret = PrivateKeyDer::from_pem_slice(&read(key)?)
                .map_err(|e| of(key, util::pem::trouble(key, "a private key", &e)))?;
            let pair = key_pair(certificates(cert)?, secret, &provider).map_err(|e| match e {
                rustls::Error::InconsistentKeys(_) => of(key, format!("the key does not belong to {}", cert.display())),
                e => of(key, e.to_string()),
            })?;
            builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(pair)))
        }
        (Some(cert), None) => return Err(of(cert, "the certificate needs a key: name its file, too".to_owned())),
        (None, Some(key)) => return Err(of(key, "the key needs a certificate: name its file, too".to_owned())),
        (None, None) => builder.with_no_client_auth(),
    };
    tls.alpn_protocols = vec![b"h2".to_vec()];
    // A configuration is for one store. By default it reserves memory for sessions of 32 servers.
    tls.resumption = Resumption::in_memory_sessions(1);
    Ok((tls, verifier))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncReadExt;
    use tokio::net::TcpListener;

    #[test]
    fn endpoints_are_taken_apart_as_gos_client_does() {
        let plain = ClientConfig::default();
        let target = |endpoint: &str| Target::parse(endpoint, &plain).unwrap();
        for (endpoint, origin) in [
            ("https://hk.mesh.cilium.io:2379", "https://hk.mesh.cilium.io:2379"),
            ("http://10.0.0.1:80/", "http://10.0.0.1:80"),
            ("https://[fd00::1]:4001", "https://[fd00::1]:4001"),
            ("https://hk", "https://hk:2379"),
            ("hk:1", "http://hk:1"),
        ] {
            assert_eq!(target(endpoint).origin(), origin);
        }
        assert_eq!(target("https://[fd00::1]:4001").host, "fd00::1");
        let insecure = ClientConfig {
            insecure_transport: true,
            ..ClientConfig::default()
        };
        assert!(!Target::parse("https://hk:1", &insecure).unwrap().secure);
        for bad in ["ftp://x:1", "https://", "https://a b:1"] {
            let error = Target::parse(bad, &plain).unwrap_err().to_string();
            assert!(error.contains(bad), "{error}");
        }
    }

    /// Two of the host's three addresses refuse connections.
    #[tokio::test]
    async fn the_address_that_was_good_last_is_tried_first() {
        let dead = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = dead.local_addr().unwrap().port();
        drop(dead);
        let good = TcpListener::bind(("127.0.0.2", port)).await.unwrap();
        let text = format!(
            "endpoints: [\"http://hk.mesh:{port}\"]\ncilium-host-aliases:\n- hostname: hk.mesh\n  ips: [127.0.0.1, 127.0.0.2, 127.0.0.3]\n"
        );
        let config = ClientConfig::parse(&text).unwrap();
        let connector = Connector {
            targets: vec![Target::parse(&config.endpoints[0], &config).unwrap()],
            config,
            tls: None,
            dialer: Dialer::default(),
        };
        for _ in 0..20 {
            let stream = connector.connect().await.unwrap();
            let Either::Left(tcp) = stream else {
                panic!("no TLS was asked for")
            };
            assert_eq!(tcp.peer_addr().unwrap().ip().to_string(), "127.0.0.2");
            assert_eq!(connector.dialer.address(), Some(tcp.peer_addr().unwrap()));
            good.accept().await.unwrap();
        }
        drop(good);
        let error = connector.connect().await.unwrap_err().to_string();
        assert!(error.starts_with(&format!("127.0.0.2:{port}: ")), "{error}");
        assert!(error.contains("127.0.0.1") && error.contains("127.0.0.3"), "{error}");
    }

    /// A host that accepts a connection and sends nothing uses its share of the time, and no more.
    #[tokio::test(start_paused = true)]
    async fn an_address_that_hangs_leaves_time_for_the_others() {
        let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = silent.local_addr().unwrap().port();
        let text = format!("endpoints: [\"https://127.0.0.1:{port}\", \"https://127.0.0.1:{port}\"]\n");
        let config = ClientConfig::parse(&text).unwrap();
        let connector = Connector {
            targets: config
                .endpoints
                .iter()
                .map(|e| Target::parse(e, &config).unwrap())
                .collect(),
            tls: Some(tls(&config).unwrap()),
            config,
            dialer: Dialer::default(),
        };
        let accept = async {
            let mut streams = vec![];
            while let Ok((mut stream, _)) = silent.accept().await {
                let _ = stream.read_u8().await;
                streams.push(stream);
            }
        };
        let begun = Instant::now();
        let error = tokio::select! {
            connected = connector.connect() => connected.unwrap_err().to_string(),
            () = accept => unreachable!("it listens on"),
        };
        assert_eq!(error.matches("no connection in 5.0 s").count(), 2, "{error}");
        assert!(begun.elapsed() <= CONNECT_TIMEOUT + Duration::from_secs(1));
    }
}
