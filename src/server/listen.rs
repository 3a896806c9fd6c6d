//! Sockets: bind, accept, TLS handshake. A failing connection does not affect the others.

use super::peer::{self, Peer, UserSource};
use super::tls::TlsConfig;
use parking_lot::Mutex;
use rustls::server::Acceptor;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::{Semaphore, mpsc};
use tokio::time::Instant;
use tokio_rustls::LazyConfigAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::either::Either;
use tokio_util::sync::CancellationToken;
use tonic::transport::server::Connected;

/// The longest time for a handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// The most handshakes that are computed at once, so that many new connections do not starve watches. Clients that
/// have not sent anything yet do not count.
const HANDSHAKES_MAX: usize = 256;
/// The most connections with an unfinished handshake. Further connections wait in the kernel's queue.
const UNFINISHED_MAX: usize = 8192;

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

/// A connection before its handshake, over TCP or a Unix socket.
pub type Stream = Either<TcpStream, UnixStream>;

/// An accepted connection.
pub enum Io {
    /// Without TLS.
    Plain(Stream, Peer),
    /// With TLS.
    Tls(Box<TlsStream<Stream>>, Peer),
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
        tracing::warn!("remote-addr" = remote, %error, "rejected connection on client endpoint");
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

    /// Accepts connections until `stop`, and sends those whose handshake succeeded to `connections`. Handshakes run
    /// on tasks made by `spawn`.
    pub async fn accept(
        self,
        connections: mpsc::Sender<io::Result<Io>>,
        spawn: impl Fn(Pin<Box<dyn Future<Output = ()> + Send>>),
        stop: CancellationToken,
    ) {
        let unfinished = Arc::new(Semaphore::new(UNFINISHED_MAX));
        let handshakes = Arc::new(Semaphore::new(HANDSHAKES_MAX));
        let rejections = Arc::new(Rejections::default());
        loop {
            let permit = tokio::select! {
                () = stop.cancelled() => return,
                permit = Arc::clone(&unfinished).acquire_owned() => permit,
            };
            let Ok(permit) = permit else { return };
            let accepted = tokio::select! {
                () = stop.cancelled() => return,
                accepted = self.socket.accept() => accepted,
            };
            let (stream, address) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    // The likely cause is a lack of file descriptors: wait until connections end.
                    tracing::warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            let (tls, users) = (self.tls.clone(), self.users);
            let (connections, stop, rejections) = (connections.clone(), stop.clone(), Arc::clone(&rejections));
            let computing = Arc::clone(&handshakes);
            spawn(Box::pin(async move {
                let _permit = permit;
                let handshake =
                    tokio::time::timeout(HANDSHAKE_TIMEOUT, handshake(stream, address, tls, users, &computing));
                let done = tokio::select! {
                    () = stop.cancelled() => return,
                    done = handshake => done,
                };
                match done {
                    Ok(Ok(io)) => {
                        tokio::select! {
                            _ = connections.send(Ok(io)) => {}
                            () = stop.cancelled() => {}
                        }
                    }
                    Ok(Err(error)) => rejections.say(address, &error),
                    Err(_) => tracing::debug!(?address, "handshake timed out"),
                }
            }));
        }
    }
}

async fn handshake(
    stream: Stream,
    address: Option<SocketAddr>,
    tls: Option<Arc<TlsConfig>>,
    users: UserSource,
    computing: &Semaphore,
) -> io::Result<Io> {
    let Some(tls) = tls else {
        return Ok(Io::Plain(
            stream,
            Peer {
                address,
                ..Peer::default()
            },
        ));
    };
    let hello = LazyConfigAcceptor::new(Acceptor::default(), stream).await?;
    let mut accept = pin!(hello.into_stream(tls.current()));
    // The first answer is the expensive part. The permit is returned before the client's reply is awaited.
    let first = {
        let _permit = computing.acquire().await.map_err(io::Error::other)?;
        futures::poll!(accept.as_mut())
    };
    let stream = match first {
        Poll::Ready(done) => done?,
        Poll::Pending => accept.await?,
    };
    let certificates = stream.get_ref().1.peer_certificates();
    let leaf = certificates.and_then(|c| c.first());
    let leaf = leaf.filter(|_| users == UserSource::TokenOrCertificate);
    let common_name = leaf.and_then(|der| peer::common_name(der));
    let peer = Peer {
        address,
        secure: true,
        common_name,
    };
    Ok(Io::Tls(Box::new(stream), peer))
}

// === impl Io ===

impl Connected for Io {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        match self {
            Self::Plain(_, peer) | Self::Tls(_, peer) => peer.clone(),
        }
    }
}

impl AsyncRead for Io {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(io, _) => Pin::new(io).poll_read(cx, buf),
            Self::Tls(io, _) => Pin::new(io).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Io {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(io, _) => Pin::new(io).poll_write(cx, buf),
            Self::Tls(io, _) => Pin::new(io).poll_write(cx, buf),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(io, _) => Pin::new(io).poll_write_vectored(cx, bufs),
            Self::Tls(io, _) => Pin::new(io).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Plain(io, _) => io.is_write_vectored(),
            Self::Tls(io, _) => io.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(io, _) => Pin::new(io).poll_flush(cx),
            Self::Tls(io, _) => Pin::new(io).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(io, _) => Pin::new(io).poll_shutdown(cx),
            Self::Tls(io, _) => Pin::new(io).poll_shutdown(cx),
        }
    }
}
