//! Connections to an API server: TCP, perhaps a proxy, perhaps TLS. Each error names the part that failed.

use super::proxy::{Proxy, Scheme};
use super::tunnel::{self, Target};
use futures::future::BoxFuture;
use http::Uri;
use hyper_util::client::legacy::connect::{Connected, Connection, HttpConnector};
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsConnector;
use tower::Service;

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error("cannot connect to {to}")]
    Tcp {
        to: String,
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    #[error("no TLS with {with}")]
    Tls { with: String, source: io::Error },
    #[error("{proxy} does not lead to {to}")]
    Proxy {
        proxy: String,
        to: String,
        source: tunnel::Error,
    },
    #[error("{0:?} is not a valid server name")]
    Name(String),
    #[error("no connection to {to} in {} s", limit.as_secs())]
    Timeout { to: String, limit: Duration },
}

/// Makes connections. Clones share the configuration.
#[derive(Clone)]
pub(super) struct Connector(Arc<Config>);

pub(super) struct Config {
    pub(super) proxy: Option<Proxy>,
    pub(super) tls: Arc<ClientConfig>,
    /// The name that the server's certificate must be valid for, if it is not the host of the URL.
    pub(super) server_name: Option<String>,
    /// Limit for a connection.
    pub(super) timeout: Option<Duration>,
}

/// A connection.
pub(super) struct Stream(TokioIo<Box<dyn Io>>);

trait Io: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

// === impl Connector ===

impl Connector {
    pub(super) fn new(config: Config) -> Self {
        Self(Arc::new(config))
    }
}

impl Service<Uri> for Connector {
    type Response = Stream;
    type Error = Error;
    type Future = BoxFuture<'static, Result<Stream, Error>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, target: Uri) -> Self::Future {
        let config = Arc::clone(&self.0);
        Box::pin(async move {
            let Some(limit) = config.timeout else {
                return config.connect(&target).await;
            };
            let connected = tokio::time::timeout(limit, config.connect(&target)).await;
            connected.unwrap_or_else(|_| {
                let to = target.authority().map(ToString::to_string).unwrap_or_default();
                Err(Error::Timeout { to, limit })
            })
        })
    }
}

// === impl Config ===

impl Config {
    async fn connect(&self, target: &Uri) -> Result<Stream, Error> {
        let is_secure = target.scheme_str() == Some("https");
        let host = target.host().unwrap_or_default();
        let host = host.trim_start_matches('[').trim_end_matches(']');
        let port = target.port_u16().unwrap_or(if is_secure { 443 } else { 80 });
        let stream = match &self.proxy {
            None => tcp(&format!("{}:{port}", target.host().unwrap_or_default())).await?,
            Some(proxy) => self.through(proxy, Target { host, port }).await?,
        };
        let stream = match is_secure {
            true => self.secure(self.server_name.as_deref().unwrap_or(host), stream).await?,
            false => stream,
        };
        Ok(Stream(TokioIo::new(stream)))
    }

    async fn through(&self, proxy: &Proxy, target: Target<'_>) -> Result<Box<dyn Io>, Error> {
        let mut stream = tcp(&proxy.authority()).await?;
        if proxy.scheme == Scheme::Https {
            stream = self.secure(&proxy.host, stream).await?;
        }
        let to = format!("{}:{}", target.host, target.port);
        let credentials = proxy.credentials.as_ref();
        let led = match proxy.scheme {
            Scheme::Http | Scheme::Https => tunnel::connect(&mut stream, target, credentials).await,
            Scheme::Socks5 => tunnel::socks(&mut stream, target, credentials).await,
        };
        led.map_err(|source| Error::Proxy {
            proxy: format!("the proxy {proxy}"),
            to,
            source,
        })?;
        Ok(stream)
    }

    async fn secure(&self, name: &str, stream: Box<dyn Io>) -> Result<Box<dyn Io>, Error> {
        let server = ServerName::try_from(name.to_owned()).map_err(|_| Error::Name(name.to_owned()))?;
        let connector = TlsConnector::from(Arc::clone(&self.tls));
        let stream = connector.connect(server, stream).await.map_err(|source| Error::Tls {
            with: name.to_owned(),
            source,
        })?;
        Ok(Box::new(stream))
    }
}

/// Connects to a host and port, whose addresses are tried as in Go: those of both families nearly at the same time.
async fn tcp(to: &str) -> Result<Box<dyn Io>, Error> {
    let failed = |source| Error::Tcp {
        to: to.to_owned(),
        source,
    };
    let uri: Uri = format!("http://{to}")
        .parse()
        .map_err(|e: http::uri::InvalidUri| failed(e.into()))?;
    let mut connector = HttpConnector::new();
    connector.set_nodelay(true);
    let stream = connector.call(uri).await.map_err(|e| failed(e.into()))?;
    Ok(Box::new(stream.into_inner()))
}

// === impl Stream ===

impl Connection for Stream {
    fn connected(&self) -> Connected {
        Connected::new()
    }
}

impl hyper::rt::Read for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: hyper::rt::ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl hyper::rt::Write for Stream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.0.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write_vectored(cx, bufs)
    }
}
