//! Sockets: bind, accept, TLS handshake. A failing connection does not affect the others.

use super::connection::Connection;
use super::connections::{Connections, Place, Trust};
use super::farewell::Farewell;
use super::io::{Io, Stream};
use super::peer::{Peer, UserSource};
use super::refusals::Budget;
use super::tls::{Identity, TlsConfig, hints};
use super::transport::Transport;
use crate::util::certificate::common_name;
use crate::util::lifecycle::Lifecycle;
use parking_lot::Mutex;
use rustls::server::Acceptor;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Poll, ready};
use std::time::Duration;
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tokio_rustls::LazyConfigAcceptor;
use tokio_util::either::Either;
use tokio_util::sync::{CancellationToken, PollSemaphore};

/// The most handshakes that are computed at once, so that many new connections do not starve watches. A computation
/// takes up to a few milliseconds and does not wait for the client.
const COMPUTED_AT_ONCE: usize = 4;
/// The most connections that are accepted before other tasks run. The kernel's queue is emptied first: clients whose
/// connection does not fit wait for a second, or are reset, while those that were accepted wait for milliseconds.
const ACCEPTED_AT_ONCE: u32 = 4096;
/// The wait after the system had no file descriptor for a new connection.
const NO_DESCRIPTOR: Duration = Duration::from_millis(10);
/// The time between two warnings of rejected connections.
const QUIET: Duration = Duration::from_secs(1);

/// The address of a listener.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// `host:port`. Port 0 picks a free port.
    Tcp(String),
    /// A socket file. An existing file is replaced.
    Unix(PathBuf),
}

/// A bound socket, and how its connections are authenticated.
pub struct Listener {
    socket: Socket,
    tls: Option<Arc<TlsConfig>>,
    users: UserSource,
}

enum Socket {
    Tcp(TcpListener),
    Unix(UnixListener, PathBuf),
}

/// Logs why connections are rejected, at most once per [`QUIET`], because a rejected client may try often.
#[derive(Default)]
struct Rejections(Mutex<Option<Instant>>);

impl Rejections {
    fn say(&self, address: Option<SocketAddr>, error: &io::Error) {
        let now = Instant::now();
        let mut last = self.0.lock();
        // Clients often disconnect during the handshake.
        let routine = matches!(
            error.kind(),
            io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe
        );
        let remote = address.map(|a| a.to_string()).unwrap_or_default();
        if routine || last.is_some_and(|last| now.duration_since(last) < QUIET) {
            return tracing::debug!("remote-addr" = remote, %error, "rejected connection on client endpoint");
        }
        *last = Some(now);
        let hint = hints::of(error);
        tracing::warn!("remote-addr" = remote, %error, hint, "rejected connection on client endpoint");
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => f.write_str(address),
            Self::Unix(path) => write!(f, "{}", path.display()),
        }
    }
}

impl Socket {
    async fn accept(&self) -> io::Result<(Stream, Option<SocketAddr>)> {
        match self {
            Self::Tcp(socket) => {
                let (stream, address) = socket.accept().await?;
                // Clients wait for small answers, which must not be delayed.
                let _ = stream.set_nodelay(true);
                Ok((Either::Left(stream), Some(address)))
            }
            Self::Unix(socket, _) => Ok((Either::Right(socket.accept().await?.0), None)),
        }
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        if let Self::Unix(_, path) = self {
            let _ = std::fs::remove_file(path);
        }
    }
}

impl Listener {
    pub async fn bind(address: &Address, tls: Option<Arc<TlsConfig>>, users: UserSource) -> io::Result<Self> {
        let socket = match address {
            Address::Tcp(address) => Socket::Tcp(crate::util::net::bind(address).await?),
            Address::Unix(path) => {
                // A killed process leaves its socket file behind.
                let _ = std::fs::remove_file(path);
                Socket::Unix(UnixListener::bind(path)?, path.clone())
            }
        };
        Ok(Self { socket, tls, users })
    }

    /// Whether connections use TLS.
    pub fn is_secure(&self) -> bool {
        self.tls.is_some()
    }

    /// The bound address; `None` for a Unix socket.
    pub fn address(&self) -> io::Result<Option<SocketAddr>> {
        match &self.socket {
            Socket::Tcp(socket) => socket.local_addr().map(Some),
            Socket::Unix(..) => Ok(None),
        }
    }

    /// Accepts connections until `stop`, and serves each on a task of its own.
    pub(super) async fn accept(self, transport: Arc<Transport>, connections: Arc<Connections>, life: Lifecycle) {
        let stop = life.stop_token().clone();
        let computing = Arc::new(Semaphore::new(COMPUTED_AT_ONCE));
        let rejections = Arc::new(Rejections::default());
        let (mut last_warning, mut accepted_at_once) = (None, 0);
        loop {
            if accepted_at_once == ACCEPTED_AT_ONCE {
                accepted_at_once = 0;
                tokio::task::yield_now().await;
            }
            let accepted = tokio::select! {
                () = stop.cancelled() => return connections.close_all(),
                // The runtime would let others go first after 128 connections.
                accepted = tokio::task::unconstrained(self.socket.accept()) => accepted,
            };
            accepted_at_once += 1;
            let (stream, address) = match accepted {
                Ok(accepted) => accepted,
                Err(error) if is_peers(&error) => continue,
                Err(error) => {
                    no_descriptor(&connections, &error, &mut last_warning);
                    tokio::time::sleep(NO_DESCRIPTOR).await;
                    continue;
                }
            };
            let handshake = Handshake {
                place: connections.enter(address),
                connections: Arc::clone(&connections),
                tls: self.tls.clone(),
                users: self.users,
                computing: PollSemaphore::new(Arc::clone(&computing)),
                address,
            };
            let (transport, rejections, stop) = (Arc::clone(&transport), Arc::clone(&rejections), stop.clone());
            life.spawn_part("connection", async move {
                // The handshake takes more memory than what comes after it.
                let shaken = Box::pin(handshake.run_until(stream, stop)).await;
                match shaken {
                    Some(Ok(Accepted {
                        io,
                        peer,
                        place: _place,
                    })) => transport.serve(io, peer).await,
                    Some(Err(error)) => rejections.say(address, &error),
                    None => {}
                }
            });
        }
    }
}

/// Whether a client that went away before it was accepted caused the error.
fn is_peers(error: &io::Error) -> bool {
    use io::ErrorKind as K;
    matches!(
        error.kind(),
        K::ConnectionAborted | K::ConnectionReset | K::ConnectionRefused | K::Interrupted
    )
}

/// Frees a descriptor, and says so, at most once per [`QUIET`].
fn no_descriptor(connections: &Connections, error: &io::Error, last: &mut Option<Instant>) {
    connections.give_way();
    if last.is_none_or(|last| last.elapsed() >= QUIET) {
        *last = Some(Instant::now());
        tracing::warn!(
            %error,
            connections = connections.len(),
            "cannot accept a connection: an idle connection is closed to make room; raise the limit of open files"
        );
    }
}

/// A connection before its handshake.
struct Handshake {
    place: Place,
    connections: Arc<Connections>,
    tls: Option<Arc<TlsConfig>>,
    users: UserSource,
    computing: PollSemaphore,
    address: Option<SocketAddr>,
}

/// A connection after its handshake.
struct Accepted {
    io: Io,
    peer: Peer,
    /// The connection's place in the table.
    place: Place,
}

impl Handshake {
    /// Returns `None` if the connection has to give way, or the server stops.
    async fn run_until(self, stream: Stream, stop: CancellationToken) -> Option<io::Result<Accepted>> {
        let evicted = self.place.evicted.clone();
        let shaken = tokio::select! {
            () = stop.cancelled() => return None,
            () = evicted.cancelled() => return None,
            shaken = self.run(stream) => shaken,
        };
        if let (Ok(accepted), true) = (&shaken, stop.is_cancelled()) {
            // All connections were closed before this one was there.
            accepted.peer.connection.close(Farewell::Stop);
        }
        Some(shaken)
    }

    async fn run(mut self, stream: Stream) -> io::Result<Accepted> {
        let connection = Arc::new(Connection::new(&self.connections.budgets));
        let mut peer = Peer {
            address: self.address,
            secure: self.tls.is_some(),
            common_name: None,
            connection,
        };
        let Some(tls) = self.tls.take() else {
            self.place.opened(peer.clone(), None);
            return Ok(Accepted {
                io: Io::plain(stream),
                peer,
                place: self.place,
            });
        };
        let limit = self.connections.budgets.handshake_timeout;
        let late = |peer: &Peer, connections: &Connections| {
            connections.refusals.note(Budget::Handshake, peer);
            io::Error::from(io::ErrorKind::UnexpectedEof)
        };
        let hello = LazyConfigAcceptor::new(Acceptor::default(), stream);
        let hello = limited(hello, None, &mut self.place, limit).await;
        let hello = hello.map_err(|Late| late(&peer, &self.connections))??;
        let loaded = tls.current();
        // Making the answer to the hello is part of the computation, too.
        let accept = async move { hello.into_stream(loaded.config).await };
        let done = limited(accept, Some(self.computing), &mut self.place, 2 * limit).await;
        let stream = done.map_err(|Late| late(&peer, &self.connections))??;
        let identity = Identity::of(stream.get_ref().1.peer_certificates(), loaded.generation);
        if self.users == UserSource::TokenOrCertificate {
            peer.common_name = identity.as_ref().and_then(|identity| common_name(identity.leaf()));
        }
        let trust = identity.map(|identity| Trust { identity, tls });
        self.place.opened(peer.clone(), trust);
        Ok(Accepted {
            io: Io::tls(stream),
            peer,
            place: self.place,
        })
    }
}

/// A client that was waited for too long.
struct Late;

/// Polls `work`, and only with a permit if there are permits. The permit is returned whenever `work` waits for the client,
/// who may lose the place then, and has `limit` in all. The time in which many other handshakes are computed is not the
/// client's.
async fn limited<T>(
    work: impl Future<Output = T>,
    mut permits: Option<PollSemaphore>,
    place: &mut Place,
    limit: Duration,
) -> Result<T, Late> {
    let (mut work, mut left) = (pin!(work), limit);
    let mut timer = pin!(tokio::time::sleep(limit));
    let mut waiting_since: Option<Instant> = None;
    std::future::poll_fn(|cx| {
        if let Some(since) = waiting_since.take() {
            left = left.saturating_sub(since.elapsed());
            place.computing();
        }
        let _permit = match &mut permits {
            Some(permits) => ready!(permits.poll_acquire(cx)),
            None => None,
        };
        if let Poll::Ready(done) = work.as_mut().poll(cx) {
            return Poll::Ready(Ok(done));
        }
        let now = Instant::now();
        timer.as_mut().reset(now + left);
        if left.is_zero() || timer.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Err(Late));
        }
        waiting_since = Some(now);
        place.waiting();
        Poll::Pending
    })
    .await
}
