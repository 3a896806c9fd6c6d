//! HTTP/1.1 requests over TCP, TLS or a Unix socket.

use bytes::Bytes;
use http::{HeaderMap, Method, StatusCode, Uri};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsConnector;

/// How long one exchange may take, unless the request says otherwise.
const LIMIT: Duration = Duration::from_secs(10);

/// An answer with its whole body.
#[derive(Debug)]
pub struct Response {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: String,
}

/// A request that has not been sent yet.
pub struct Request {
    request: http::Request<Full<Bytes>>,
    transport: Transport,
    limit: Duration,
}

/// The transport to the server.
enum Transport {
    Tcp,
    Unix(PathBuf),
    Tls(Arc<ClientConfig>),
}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

impl Request {
    pub fn get(url: &str) -> Self {
        Self::new(Method::GET, url, Bytes::new())
    }

    pub fn post(url: &str, body: &'static str) -> Self {
        Self::new(Method::POST, url, Bytes::from_static(body.as_bytes()))
    }

    fn new(method: Method, url: &str, body: Bytes) -> Self {
        let url: Uri = url.parse().unwrap();
        let request = http::Request::builder()
            .method(method)
            .header(http::header::HOST, url.authority().unwrap().as_str())
            .uri(url)
            .body(Full::new(body))
            .unwrap();
        Self {
            request,
            transport: Transport::Tcp,
            limit: LIMIT,
        }
    }

    /// Sets a header, in place of an earlier one with the same name.
    pub fn header(mut self, name: &'static str, value: &str) -> Self {
        self.request.headers_mut().insert(name, value.parse().unwrap());
        self
    }

    /// Sends the request through a Unix socket, whatever host the URL names.
    pub fn unix_socket(mut self, path: impl Into<PathBuf>) -> Self {
        self.transport = Transport::Unix(path.into());
        self
    }

    /// Sends the request over TLS.
    pub fn tls(mut self, config: Arc<ClientConfig>) -> Self {
        self.transport = Transport::Tls(config);
        self
    }

    /// Waits for the whole answer for so long.
    pub fn within(mut self, limit: Duration) -> Self {
        self.limit = limit;
        self
    }

    /// Sends the request over a connection of its own.
    pub async fn send(self) -> io::Result<Response> {
        tokio::time::timeout(self.limit, self.exchange()).await?
    }

    async fn exchange(mut self) -> io::Result<Response> {
        let uri = self.request.uri().clone();
        let stream: Box<dyn Stream> = match self.transport {
            Transport::Unix(path) => Box::new(UnixStream::connect(path).await?),
            Transport::Tcp => Box::new(TcpStream::connect(uri.authority().unwrap().as_str()).await?),
            Transport::Tls(config) => {
                let stream = TcpStream::connect(uri.authority().unwrap().as_str()).await?;
                let host = ServerName::try_from(uri.host().unwrap().to_owned()).unwrap();
                Box::new(TlsConnector::from(config).connect(host, stream).await?)
            }
        };
        *self.request.uri_mut() = uri.path_and_query().unwrap().as_str().parse().unwrap();
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(io::Error::other)?;
        let driver = tokio::spawn(connection);
        let response = sender.send_request(self.request).await.map_err(io::Error::other)?;
        let (head, body) = response.into_parts();
        let body = body.collect().await.map_err(io::Error::other)?.to_bytes();
        driver.abort();
        Ok(Response {
            status: head.status,
            headers: head.headers,
            body: String::from_utf8(body.into()).map_err(io::Error::other)?,
        })
    }
}

/// Sends a GET request over TCP.
pub async fn get(url: &str) -> io::Result<Response> {
    Request::get(url).send().await
}
