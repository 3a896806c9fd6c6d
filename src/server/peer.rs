//! The other end of a connection.

use super::connection::Connection;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use tonic::Request;

/// The other end of a connection, attached to each request of the connection.
#[derive(Clone, Debug, Default)]
pub struct Peer {
    /// `None` on a Unix socket.
    pub address: Option<SocketAddr>,
    /// Whether the connection uses TLS.
    pub secure: bool,
    /// The common name in the subject of the verified client certificate, if certificates name users on this listener.
    pub common_name: Option<Arc<str>>,
    /// What the connection holds.
    pub(super) connection: Arc<Connection>,
}

/// The credentials that may name the user of a call on a listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UserSource {
    /// The token of the call.
    Token,
    /// The token of the call, or else the common name of the client certificate.
    TokenOrCertificate,
}

impl Peer {
    /// The name under which everything that the client holds is counted: the user of the certificate, or the address, or
    /// the network of an IPv6 address.
    pub(super) fn owner(&self) -> Arc<str> {
        match (
            &self.common_name,
            self.address.map(|address| address.ip().to_canonical()),
        ) {
            (Some(name), _) => format!("user {name}").into(),
            (None, Some(IpAddr::V4(address))) => address.to_string().into(),
            // Whoever has one address of a network of this size usually has all.
            (None, Some(IpAddr::V6(address))) => {
                let [a, b, c, d, ..] = address.segments();
                format!("{a:x}:{b:x}:{c:x}:{d:x}::/64").into()
            }
            (None, None) => "".into(),
        }
    }

    pub fn of<T>(request: &Request<T>) -> Self {
        request.extensions().get::<Self>().cloned().unwrap_or_default()
    }
}
