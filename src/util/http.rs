//! A small HTTP/1 server for operators, which no number of clients can stop.

use super::certificate::common_name;
use super::lifecycle::Lifecycle;
use axum::{Extension, Router};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use rustls::ServerConfig;
use rustls::pki_types::CertificateDer;
use std::collections::VecDeque;
use std::future::poll_fn;
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::task::ready;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::{interval, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::{CancellationToken, PollSemaphore};

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
/// TLS handshakes of one server that are computed at once: many new connections must not take the processors from the rest of
/// the process.
const HANDSHAKES_COMPUTED: usize = 1;
/// How often the client certificate of a live connection is checked.
const TRUST_CHECK: Duration = Duration::from_secs(10);

/// The TLS of a server.
pub trait Tls: Send + Sync {
    /// The configuration for the next connection.
    fn next(&self) -> Arc<ServerConfig>;
    /// How to find out whether the client with this chain, which a handshake has just verified, would still be accepted.
    fn trust(&self, chain: &[CertificateDer<'_>]) -> StillTrusted;
}

/// Whether the client certificate of a connection would still be accepted.
pub type StillTrusted = Box<dyn Fn() -> bool + Send + Sync>;

/// How connections are served.
#[derive(Clone)]
pub struct Options {
    /// `None` serves without TLS.
    pub tls: Option<Arc<dyn Tls>>,
    /// Open connections. A further connection replaces the oldest one of the lowest [`Standing`].
    pub connections: usize,
}

/// How much a connection is worth, attached to each of its requests: if there are too many connections, those with the lowest
/// number are closed first. A connection begins at zero.
#[derive(Clone, Debug, Default)]
pub struct Standing(Arc<AtomicU8>);

/// A connection that is served.
struct Open {
    connection: CancellationToken,
    standing: Standing,
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
    let computed = PollSemaphore::new(Arc::new(Semaphore::new(HANDSHAKES_COMPUTED)));
    let mut open: VecDeque<Open> = VecDeque::new();
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => return Ok(()),
            accepted = listener.accept() => accepted,
        };
        open.retain(|open| !open.connection.is_cancelled());
        match accepted {
            Ok((stream, _)) => {
                if open.len() >= options.connections {
                    make_room(&mut open);
                }
                let (connection, standing) = (stop.child_token(), Standing::default());
                open.push_back(Open {
                    connection: connection.clone(),
                    standing: standing.clone(),
                });
                let router = router.clone().layer(Extension(standing));
                let (tls, computed) = (options.tls.clone(), computed.clone());
                life.spawn_part("HTTP connection", async move {
                    match tls {
                        None => connected(stream, router, connection, None).await,
                        Some(tls) => connected_over_tls(stream, router, &*tls, computed, connection).await,
                    }
                });
            }
            Err(_) => {
                make_room(&mut open);
                tokio::time::sleep(NO_DESCRIPTOR).await;
            }
        }
    }
}

/// Closes the oldest connection of those with the lowest standing.
fn make_room(open: &mut VecDeque<Open>) {
    let standing = |(_, open): &(usize, &Open)| open.standing.0.load(Ordering::Relaxed);
    // The first one of several lowest ones.
    let lowest = open.iter().enumerate().min_by_key(standing).map(|(at, _)| at);
    if let Some(evicted) = lowest.and_then(|at| open.remove(at)) {
        evicted.connection.cancel();
    }
}

/// Serves one connection after its handshake. Cancels its token at the end.
async fn connected_over_tls(
    stream: TcpStream,
    router: Router,
    tls: &dyn Tls,
    computed: PollSemaphore,
    connection: CancellationToken,
) {
    let ended = connection.clone().drop_guard();
    let handshake = by_turns(TlsAcceptor::from(tls.next()).accept(stream), computed);
    let accepted = tokio::select! {
        accepted = timeout(HANDSHAKE_TIMEOUT, handshake) => accepted,
        () = connection.cancelled() => return,
    };
    match accepted {
        Ok(Ok(stream)) => {
            let chain = stream.get_ref().1.peer_certificates();
            let name = chain.and_then(|chain| common_name(chain.first()?));
            let trust = chain.map(|chain| tls.trust(chain));
            ended.disarm();
            connected(stream, router.layer(Extension(ClientName(name))), connection, trust).await;
        }
        Ok(Err(error)) => tracing::debug!(%error, "a TLS handshake failed"),
        Err(_) => tracing::debug!("a TLS handshake took too long"),
    }
}

/// Polls `work` only with one of the permits, and returns the permit whenever `work` waits for the client.
async fn by_turns<T>(work: impl Future<Output = T>, mut permits: PollSemaphore) -> T {
    let mut work = pin!(work);
    poll_fn(|context| {
        let _permit = ready!(permits.poll_acquire(context));
        work.as_mut().poll(context)
    })
    .await
}

/// Serves one connection, as long as its client is trusted. Cancels its token at the end.
async fn connected<S>(stream: S, router: Router, connection: CancellationToken, trust: Option<StillTrusted>)
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
        () = until_untrusted(trust) => tracing::debug!("closed a connection: its client certificate is not valid any more"),
        () = tokio::time::sleep(CONNECTION_TIMEOUT) => {}
    }
}

/// Ends when the client certificate would not be accepted any more.
async fn until_untrusted(trust: Option<StillTrusted>) {
    let Some(still_trusted) = trust else {
        return std::future::pending().await;
    };
    let mut check = interval(TRUST_CHECK);
    while still_trusted() {
        check.tick().await;
    }
}

// === impl Standing ===

impl Standing {
    /// Raises the worth of the connection to `standing` at least.
    pub fn raise(&self, standing: u8) {
        self.0.fetch_max(standing, Ordering::Relaxed);
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
    /// The answer to a request on a new connection, and the connection.
    async fn asked(address: std::net::SocketAddr, path: &str) -> (TcpStream, String) {
        let mut asking = TcpStream::connect(address).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\n\r\n");
        asking.write_all(request.as_bytes()).await.unwrap();
        let mut answer = vec![0; 1024];
        let n = asking.read(&mut answer).await.unwrap();
        (asking, String::from_utf8_lossy(&answer[..n]).into_owned())
    }

    #[tokio::test]
    async fn strangers_give_way_before_clients_that_were_let_in() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let raise = |standing: u8| {
            get(async move |Extension(connection): Extension<Standing>| {
                connection.raise(standing);
                "here"
            })
        };
        let router = Router::new().route("/agent", raise(1)).route("/operator", raise(2));
        let (life, options) = (
            Lifecycle::default(),
            Options {
                tls: None,
                connections: 4,
            },
        );
        let serving = serve(listener, router, options, life.clone());
        let is_open = async |connection: &mut TcpStream| {
            timeout(Duration::from_millis(50), connection.read(&mut [0]))
                .await
                .is_err()
        };
        let client = async {
            let (mut operator, answer) = asked(address, "/operator").await;
            assert!(answer.ends_with("here"), "{answer}");
            let (mut agent, _) = asked(address, "/agent").await;
            let mut strangers = vec![];
            for _ in 0..10 {
                strangers.push(TcpStream::connect(address).await.unwrap());
            }
            let mut agents = vec![];
            for _ in 0..3 {
                assert!(is_open(&mut agent).await, "strangers give way first");
                agents.push(asked(address, "/agent").await);
            }
            assert!(!is_open(&mut agent).await, "an agent gives way to further agents");
            assert!(is_open(&mut operator).await);
            life.stop();
        };
        tokio::join!(async { serving.await.unwrap() }, client);
    }

    #[tokio::test(start_paused = true)]
    async fn work_waits_for_its_turn_and_gives_it_back_while_it_waits() {
        let permits = PollSemaphore::new(Arc::new(Semaphore::new(1)));
        let stuck = by_turns(std::future::pending::<()>(), permits.clone());
        let done = by_turns(async { 1 }, permits.clone());
        let (stuck, done) = tokio::join!(timeout(Duration::from_secs(1), stuck), done);
        assert_eq!((stuck.is_err(), done), (true, 1));
        let held = permits.clone_inner().acquire_owned().await.unwrap();
        let waits = by_turns(async { 2 }, permits.clone());
        assert!(timeout(Duration::from_secs(1), waits).await.is_err());
        drop(held);
        assert_eq!(by_turns(async { 3 }, permits).await, 3);
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_ends_soon_after_the_trust_in_its_client() {
        let trusted = Arc::new(std::sync::atomic::AtomicBool::new(true));
        let asked = Arc::clone(&trusted);
        let ending = until_untrusted(Some(Box::new(move || asked.load(Ordering::Relaxed))));
        let mut ending = pin!(ending);
        assert!(timeout(3 * TRUST_CHECK, &mut ending).await.is_err());
        trusted.store(false, Ordering::Relaxed);
        timeout(2 * TRUST_CHECK, ending).await.unwrap();
        assert!(timeout(3 * TRUST_CHECK, until_untrusted(None)).await.is_err());
    }
}
