//! Why a request to a store failed.

use crate::util::causes::{GONE, causes, causes_after};
use std::error::Error as _;
use std::time::Duration;

/// etcd's error if a permission is missing.
const PERMISSION_DENIED: &str = "etcdserver: permission denied";

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot read {path}: {source}")]
    File { path: String, source: std::io::Error },
    /// A TLS file cannot be used.
    #[error("{path}: {why}")]
    Tls { path: String, why: String },
    #[error("{0:?} is not a valid endpoint URL")]
    Endpoint(String),
    /// A status of the store, or a failure of the transport that has no variant of its own.
    #[error("{}", describe(.0))]
    Etcd(etcd_client::Error),
    /// A plain connection to a port that speaks TLS.
    #[error("the store speaks TLS: use an https:// URL, and name the CA of its certificate")]
    NotPlain,
    /// A TLS connection ended without a `close_notify` alert.
    #[error("the store closed the connection")]
    ConnectionClosed,
    /// The connection is gone, or keepalive pings were not answered.
    #[error(
        "the connection broke, or a keepalive ping was not answered: if that happens again and again, look at the log of the store, and at proxies and firewalls in between"
    )]
    ConnectionBroken,
    #[error("no answer in {} s", .0.as_secs())]
    Timeout(Duration),
    /// An answer came from another store than the first answer.
    #[error("etcd cluster ID has changed: expected {expected:x}, got {got:x}")]
    ClusterChanged { expected: u64, got: u64 },
    #[error("the etcd response has no header")]
    NoHeader,
    /// The requested revision is compacted, so only a new list shows the present keys.
    #[error("required revision has been compacted (at {0})")]
    Compacted(i64),
    /// An answer that no etcd would give.
    #[error("invalid answer from the store: {0}")]
    InvalidAnswer(String),
    #[error("watch cancelled: {0}")]
    Cancelled(String),
    /// The stream of a watch ended.
    #[error("the watch stream ended")]
    Ended,
}

// === impl Error ===

impl Error {
    /// Whether the requested revision is compacted or in the future.
    pub fn is_out_of_range(&self) -> bool {
        self.status().is_some_and(|s| s.code() == tonic::Code::OutOfRange) && !self.is_too_large()
    }

    /// Whether the store refuses the request because its user lacks a permission.
    pub fn is_permission_denied(&self) -> bool {
        // A refused watch is cancelled with the text of the error.
        let is_denied = |text: &str| text.contains(PERMISSION_DENIED);
        match self {
            Self::Cancelled(reason) | Self::Etcd(etcd_client::Error::WatchError(reason)) => is_denied(reason),
            _ => self
                .status()
                .is_some_and(|s| s.code() == tonic::Code::PermissionDenied && is_denied(s.message())),
        }
    }

    /// Whether the store sent a message that is larger than this client accepts.
    pub fn is_too_large(&self) -> bool {
        // The text is tonic's; its status code means something else in etcd.
        self.status()
            .is_some_and(|s| s.message().contains("decoded message length too large"))
    }

    /// Whether the connection ended without an error from the store. Typical causes: the store refuses the client's
    /// certificate, or only one side uses TLS.
    pub fn is_connection_lost(&self) -> bool {
        matches!(self, Self::ConnectionClosed | Self::ConnectionBroken)
    }

    /// Whether nothing listens at any address of the store, as at the address of a Service without ready pods.
    pub fn is_refused(&self) -> bool {
        // The failures of all addresses are one text (`dial.rs`).
        let text = self.to_string();
        text.contains("Connection refused") && !text.contains("no connection in") && !text.contains("not tried in time")
    }

    fn status(&self) -> Option<&tonic::Status> {
        match self {
            Self::Etcd(etcd_client::Error::GRpcStatus(status)) => Some(status),
            _ => None,
        }
    }
}

impl From<etcd_client::Error> for Error {
    fn from(error: etcd_client::Error) -> Self {
        // The libraries have no types for the end of a connection: these are the texts of rustls and h2.
        let text = describe(&error);
        if text.contains("without sending TLS close_notify") || text.ends_with("connection closed") {
            Self::ConnectionClosed
        } else if text.contains("frame with invalid size") {
            // A TLS alert, read as a frame.
            Self::NotPlain
        } else if text.contains("stream closed because of a broken pipe") || text == GONE {
            Self::ConnectionBroken
        } else {
            Self::Etcd(error)
        }
    }
}

/// An error with its causes, which etcd-client's own text leaves out.
fn describe(error: &etcd_client::Error) -> String {
    match error {
        etcd_client::Error::GRpcStatus(status) => causes_after(status.message(), status.source()),
        etcd_client::Error::TransportError(e) => causes(e),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_connection_has_variants_of_its_own() {
        let of = |text: &str| Error::from(etcd_client::Error::GRpcStatus(tonic::Status::unknown(text)));
        let closed = of("peer closed connection without sending TLS close_notify: https://docs.rs/rustls");
        assert_eq!(closed.to_string(), "the store closed the connection");
        let broken = of("h2 protocol error: stream closed because of a broken pipe");
        assert!(closed.is_connection_lost() && broken.is_connection_lost());
        // What tonic and tower say of a connection whose task has ended.
        let gone = of("Service was not ready: transport error");
        assert!(gone.to_string().starts_with("the connection broke"), "{gone}");
        let other = of("etcdserver: no leader");
        assert_eq!(other.to_string(), "etcdserver: no leader");
        assert!(!other.is_connection_lost());
    }

    #[test]
    fn a_missing_permission_is_recognized_in_an_answer_and_in_a_cancelled_watch() {
        let answer = |status| Error::from(etcd_client::Error::GRpcStatus(status));
        let denied = tonic::Status::permission_denied(PERMISSION_DENIED);
        assert!(answer(denied).is_permission_denied());
        assert!(
            Error::Cancelled("rpc error: code = PermissionDenied desc = etcdserver: permission denied".to_owned())
                .is_permission_denied()
        );
        assert!(!answer(tonic::Status::unavailable("etcdserver: no leader")).is_permission_denied());
        // A proxy's refusal of the whole connection.
        assert!(!answer(tonic::Status::permission_denied("RBAC: access denied")).is_permission_denied());
        assert!(!Error::Ended.is_permission_denied());
    }
}
