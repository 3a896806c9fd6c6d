//! Network settings that clients and servers share: listening as Go does, and gRPC keepalive.

use std::io;
use std::time::Duration;
use tokio::net::TcpListener;

/// gRPC keepalive of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Keepalive {
    /// A connection on which nothing was received for this long is pinged.
    pub interval: Duration,
    /// A connection whose ping is not answered for this long is closed.
    pub timeout: Duration,
}

/// Binds `host:port`. Without a host, or with `0.0.0.0`, the listener accepts IPv4 and IPv6 if the machine has IPv6.
pub async fn bind(address: &str) -> io::Result<TcpListener> {
    let port = address.strip_prefix("0.0.0.0:").or_else(|| address.strip_prefix(':'));
    let Some(port) = port else {
        return TcpListener::bind(address).await;
    };
    match TcpListener::bind(format!("[::]:{port}")).await {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => Err(error),
        Err(_) => TcpListener::bind(format!("0.0.0.0:{port}")).await,
        listener => listener,
    }
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
