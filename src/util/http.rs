//! A small HTTP/1 server for operators, which no number of clients can stop.

use super::certificate::common_name;
use super::lifecycle::Lifecycle;
use axum::{Extension, Router};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use rustls::ServerConfig;
use std::collections::VecDeque;
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

/// Open connections of one server, unless it has an option: probes and scrapes are short.
const CONNECTIONS_MAX: usize = 128;
/// The time for the headers of a request, and between two requests.
const HEADERS_TIMEOUT: Duration = Duration::from_secs(10);
/// The longest time for a connection.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(300);
/// The wait after the system had no file descriptor for a new connection.
const NO_DESCRIPTOR: Duration = Duration::from_millis(50);

/// The longest time for a TLS handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// The TLS configuration for the next connection.
pub type NextTls = Arc<dyn Fn() -> Arc<ServerConfig> + Send + Sync>;

/// How connections are served.
#[derive(Clone)]
pub struct Options {
    /// `None` serves without TLS.
    pub tls: Option<NextTls>,
    /// Open connections. A further connection replaces the oldest one.
    pub connections: usize,
}

/// The common name of the client certificate that was verified, attached to each request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClientName(pub Option<Arc<str>>);

impl Default for Options {
    fn default() -> Self {
        Self {
            tls: None,
            connections: CONNECTIONS_MAX,
        }
    }
}

/// Serves `router` until the lifecycle stops.
pub async fn serve(listener: TcpListener, router: Router, options: Options, life: Lifecycle) -> io::Result<()> {
    let stop = life.stop_token().clone();
    let mut open: VecDeque<CancellationToken> = VecDeque::new();
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => return Ok(()),
            accepted = listener.accept() => accepted,
        };
        open.retain(|connection| !connection.is_cancelled());
        match accepted {
            Ok((stream, _)) => {
                if open.len() >= options.connections
                    && let Some(oldest) = open.pop_front()
                {
                    oldest.cancel();
                }
                let connection = stop.child_token();
                open.push_back(connection.clone());
                let (router, tls) = (router.clone(), options.tls.clone());
                life.spawn_part("HTTP connection", async move {
                    match tls {
                        None => connected(stream, router, connection).await,
                        Some(tls) => connected_over_tls(stream, router, tls(), connection).await,
                    }
                });
            }
            Err(_) => {
                if let Some(oldest) = open.pop_front() {
                    oldest.cancel();
                }
                tokio::time::sleep(NO_DESCRIPTOR).await;
            }
        }
    }
}

/// Serves one connection after its handshake. Cancels its token at the end.
async fn connected_over_tls(stream: TcpStream, router: Router, tls: Arc<ServerConfig>, connection: CancellationToken) {
    let ended = connection.clone().drop_guard();
    let accepted = tokio::select! {
        accepted = tokio::time::timeout(HANDSHAKE_TIMEOUT, TlsAcceptor::from(tls).accept(stream)) => accepted,
        () = connection.cancelled() => return,
    };
    match accepted {
        Ok(Ok(stream)) => {
            let certificates = stream.get_ref().1.peer_certificates();
            let name = certificates.and_then(|chain| common_name(chain.first()?));
            ended.disarm();
            connected(stream, router.layer(Extension(ClientName(name))), connection).await;
        }
        Ok(Err(error)) => tracing::debug!(%error, "a TLS handshake failed"),
        Err(_) => tracing::debug!("a TLS handshake took too long"),
    }
}

/// Serves one connection. Cancels its token at the end.
async fn connected<S>(stream: S, router: Router, connection: CancellationToken)
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let _ended = connection.clone().drop_guard();
    let service = TowerToHyperService::new(router);
    let mut builder = hyper::server::conn::http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(HEADERS_TIMEOUT);
    let mut serving = pin!(builder.serve_connection(TokioIo::new(stream), service));
    tokio::select! {
        _ = &mut serving => {}
        () = connection.cancelled() => {}
        () = tokio::time::sleep(CONNECTION_TIMEOUT) => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::routing::get;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    #[tokio::test]
    async fn idle_connections_do_not_keep_others_out() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (life, router) = (Lifecycle::default(), Router::new().route("/", get(|| async { "here" })));
        let serving = serve(listener, router, Options::default(), life.clone());
        let client = async {
            let mut idle = vec![];
            for _ in 0..CONNECTIONS_MAX + 5 {
                idle.push(TcpStream::connect(address).await.unwrap());
            }
            let mut asking = TcpStream::connect(address).await.unwrap();
            asking
                .write_all(b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
                .await
                .unwrap();
            let mut answer = String::new();
            asking.read_to_string(&mut answer).await.unwrap();
            assert!(answer.ends_with("here"), "{answer}");
            assert_eq!(
                idle[0].read(&mut [0]).await.unwrap_or(0),
                0,
                "the oldest connection was closed"
            );
            life.stop();
        };
        tokio::join!(async { serving.await.unwrap() }, client);
    }
}
