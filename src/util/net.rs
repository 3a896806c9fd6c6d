//! Network settings that clients and servers share: listening as Go does, and gRPC keepalive.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::net::{TcpListener, TcpSocket};

/// Connections that the kernel keeps until they are accepted; it lowers the number to `net.core.somaxconn`, usually 4096.
/// All agents of a mesh may connect at once, and a client that finds the queue full waits a second before the next attempt.
const BACKLOG: u32 = 65_535;

/// gRPC keepalive of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Keepalive {
    /// A connection on which nothing was received for this long is pinged.
    pub interval: Duration,
    /// A connection whose ping is not answered for this long is closed.
    pub timeout: Duration,
}

/// Binds `host:port`. Without a host, or with `0.0.0.0`, the listener accepts IPv4 and IPv6 if the machine has IPv6.
/// `localhost` is a loopback address that the machine has, whatever its resolver says.
pub async fn bind(address: &str) -> io::Result<TcpListener> {
    if !address.contains(':') {
        let text = format!("{address:?} has no port: write HOST:PORT, or :PORT for all addresses of this machine");
        return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
    }
    bind_any(address).await.map_err(with_remedy)
}

/// The error of a socket that cannot be bound, with what to do.
fn with_remedy(error: io::Error) -> io::Error {
    let remedy = match error.kind() {
        io::ErrorKind::AddrInUse => "another process uses the port: stop it, or choose another port",
        io::ErrorKind::AddrNotAvailable => "choose an address of this machine, or `:PORT` for all of them",
        io::ErrorKind::PermissionDenied => "choose a port from 1024 on, or give the process CAP_NET_BIND_SERVICE",
        _ => return error,
    };
    io::Error::new(error.kind(), format!("{error}; {remedy}"))
}

async fn bind_any(address: &str) -> io::Result<TcpListener> {
    let port = address.strip_prefix("0.0.0.0:").or_else(|| address.strip_prefix(':'));
    if let Some(port) = port {
        return either(format!("[::]:{port}"), format!("0.0.0.0:{port}")).await;
    }
    let bound = listen(address).await;
    match (bound, address.strip_prefix("localhost:")) {
        (Err(error), Some(port)) if error.kind() != io::ErrorKind::AddrInUse => {
            either(format!("127.0.0.1:{port}"), format!("[::1]:{port}")).await
        }
        (bound, _) => bound,
    }
}

/// Binds `first`, or `second` if the machine does not have the first address.
async fn either(first: String, second: String) -> io::Result<TcpListener> {
    match listen(&first).await {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => Err(error),
        Err(_) => listen(&second).await,
        listener => listener,
    }
}

/// Listens at the first address of `host:port` that can be bound.
async fn listen(address: &str) -> io::Result<TcpListener> {
    let mut failed = None;
    for address in tokio::net::lookup_host(address).await? {
        let bound = match address {
            SocketAddr::V4(_) => TcpSocket::new_v4(),
            SocketAddr::V6(_) => TcpSocket::new_v6(),
        };
        let bound = bound.and_then(|socket| {
            socket.set_reuseaddr(true)?;
            socket.bind(address)?;
            socket.listen(BACKLOG)
        });
        match bound {
            Ok(listener) => return Ok(listener),
            Err(error) => failed = Some(error),
        }
    }
    Err(failed.unwrap_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, format!("{address} has no address"))))
}

/// Connects to `host:port` and blocks meanwhile. `localhost` is also tried as the addresses that [`bind`] tries.
pub fn connect(address: &str) -> io::Result<std::net::TcpStream> {
    if !address.contains(':') {
        let text = format!("{address:?} has no port: write HOST:PORT");
        return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
    }
    let connect = |address: &str| std::net::TcpStream::connect(address);
    connect(address).or_else(|error| match address.strip_prefix("localhost:") {
        Some(port) => connect(&format!("127.0.0.1:{port}"))
            .or_else(|_| connect(&format!("[::1]:{port}")))
            .map_err(|_| error),
        None => Err(error),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::TcpStream;

    #[tokio::test]
    async fn all_interfaces_are_reached_over_ipv4() {
        for address in [":0", "0.0.0.0:0"] {
            let listener = bind(address).await.unwrap();
            let port = listener.local_addr().unwrap().port();
            TcpStream::connect(("127.0.0.1", port)).await.unwrap();
            let taken = bind(&format!(":{port}")).await.unwrap_err();
            assert_eq!(taken.kind(), io::ErrorKind::AddrInUse);
        }
    }
}
