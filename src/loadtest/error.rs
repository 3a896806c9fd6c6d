//! Why a load test, or one call of it, failed.

use super::wire::Malformed;
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

    // === of a connection ===
    #[error("connect: {0}")]
    Connect(io::Error),
    #[error("TLS handshake: {0}")]
    Tls(io::Error),
    #[error("HTTP/2: {0}")]
    Http(h2::Error),
    #[error("the store closed the connection")]
    Closed,
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

impl From<h2::Error> for Error {
    fn from(error: h2::Error) -> Self {
        match error.is_io() || error.is_go_away() && error.reason() == Some(h2::Reason::NO_ERROR) {
            true => Self::Closed,
            false => Self::Http(error),
        }
    }
}
