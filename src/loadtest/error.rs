//! Why a load test, or one call of it, failed.

use super::wire::{Malformed, shown};
use crate::http2::client as http2;
use crate::kvstore::client;
use std::io;
use std::path::PathBuf;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    // === of the configuration ===
    /// A setting that makes no test.
    #[error("{0}")]
    Plan(String),
    #[error(transparent)]
    Client(#[from] client::Error),
    #[error("cannot resolve {host}: {source}")]
    Resolve { host: String, source: io::Error },
    #[error(
        "--source-addresses needs endpoints on the IPv4 loopback interface, such as https://127.0.0.1:2379, and {0} is none"
    )]
    NotLoopback(String),
    #[error("cannot use {}: {why}", path.display())]
    File { path: PathBuf, why: String },
    #[error("interrupted before the test had begun")]
    Interrupted,
    #[error("{url}: {source}")]
    Endpoint { url: String, source: Box<Self> },
    #[error(
        "the agents' user {name}: {source}; every user needs a certificate of a CA that the store trusts, and, if the store \
         has users, must be one who may read the prefixes of the test"
    )]
    User { name: String, source: Box<Self> },
    /// An error of the first connection, with what the operator has to change.
    #[error("{text}; {remedy}")]
    Explained { text: String, remedy: String },

    // === of a connection ===
    #[error("connect: {0}")]
    Connect(io::Error),
    #[error("TLS handshake: {0}")]
    Tls(io::Error),
    #[error("HTTP/2: {0}")]
    Http(http2::Error),
    #[error("the store closed the connection")]
    Closed,
    /// The store has said why: `code` of HTTP/2, and the debug data of GOAWAY.
    #[error("the store closed the connection: {}", farewell(*code, reason))]
    Ended { code: u32, reason: String },
    #[error("the store closed the connection during its handshake")]
    Unwelcome,
    #[error("the store speaks TLS on this port, and the test does not")]
    AsksForTls,
    #[error("the port answers, but not with HTTP/2: it is not the client port of an etcd")]
    NotHttp2,
    #[error("no answer in time: {0}")]
    Timeout(&'static str),
    #[error(transparent)]
    Malformed(#[from] Malformed),
    /// The answer of a call is an error.
    #[error("{call}: {message} (gRPC code {code})")]
    Status {
        call: &'static str,
        code: u32,
        message: String,
    },
    /// The answer has no header, or another one than a store would send.
    #[error("the store's answer has no header")]
    NoHeader,
    /// The store has begun anew, and has no key of this run.
    #[error("the store has another cluster id: its data is gone, and everything is written again")]
    OtherStore,
    #[error("the lease of the written keys has expired, and everything is written again")]
    LeaseExpired,
    #[error("watch refused: {0}")]
    Watch(String),
    /// No heartbeat in time: an agent makes a new connection.
    #[error("no heartbeat for {0} s: an agent would connect anew")]
    Heartbeat(u64),
}

impl Error {
    /// An error of a handshake of TLS.
    pub fn of_handshake(error: io::Error) -> Self {
        match Self::of_tls(error) {
            Self::Closed => Self::Unwelcome,
            other => other,
        }
    }

    /// An error of a connection over TLS.
    pub fn of_tls(error: io::Error) -> Self {
        use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, UnexpectedEof};
        match error.kind() {
            BrokenPipe | ConnectionAborted | ConnectionReset | UnexpectedEof => Self::Closed,
            _ => Self::Tls(error),
        }
    }

    /// Whether the store says that it does not know the lease.
    pub fn is_lease_lost(&self) -> bool {
        matches!(self, Self::Status { message, .. } if message.contains("requested lease not found"))
    }

    /// Whether the store is out of room or refuses the user, so that a repetition will not help.
    pub fn is_lasting(&self) -> bool {
        match self {
            Self::Status { code: 7 | 16, .. } => true,
            Self::Status { message, .. } => message.contains("database space exceeded"),
            Self::Watch(reason) => reason.contains("permission denied"),
            _ => false,
        }
    }

    /// Whether a revision that was asked for is compacted, or not there yet.
    pub fn is_out_of_range(&self) -> bool {
        matches!(self, Self::Status { code: 11, .. })
    }
}

/// The last words of a store. A connection that ends in order has no error code.
fn farewell(code: u32, reason: &str) -> String {
    let reason = shown(reason.as_bytes());
    match (code, &*reason) {
        (0, _) => reason,
        (_, "") => format!("code {code} of HTTP/2"),
        _ => format!("{reason} (code {code} of HTTP/2)"),
    }
}

impl From<http2::Error> for Error {
    fn from(error: http2::Error) -> Self {
        match error {
            http2::Error::Closed => Self::Closed,
            http2::Error::AsksForTls => Self::AsksForTls,
            http2::Error::NotHttp2 => Self::NotHttp2,
            // With TLS 1.3, a store refuses a client's certificate after the client's handshake.
            http2::Error::Io(error) => Self::of_tls(error),
            http2::Error::GoAway { code, reason } => Self::Ended { code, reason },
            other => Self::Http(other),
        }
    }
}
