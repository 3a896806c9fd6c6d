//! What a client is told when the server ends its connection: the code and the debug data of GOAWAY (RFC 9113, section
//! 6.8). grpc-go shows both in the errors of the calls that end with the connection.
//!
//! A client whose TLS handshake is not over is told nothing. An alert could be sent without keys until the server's first
//! message, but an alert is a number, and there is none for a connection that is one too many: `internal_error` would be
//! taken for a fault of the certificates. Later alerts need the keys of the handshake, which rustls does not lend.

use crate::http2::{Code, Violation};

/// Why the server ends a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Farewell {
    /// The server stops.
    Stop,
    /// The connection has been without calls for too long.
    Idle,
    /// The connection has reached its age.
    Age,
    /// The certificate names a user that does not exist.
    UnknownUser,
    /// The table is full, and another connection takes the place.
    Room,
    /// The user, or the address, has as many connections as one may have.
    Share,
    /// The client does not take its answers.
    Answers,
    /// The certificate is not valid any more.
    Certificate,
}

impl Farewell {
    /// All of them, by their numbers.
    pub(super) const ALL: [Self; 8] = [
        Self::Stop,
        Self::Idle,
        Self::Age,
        Self::UnknownUser,
        Self::Room,
        Self::Share,
        Self::Answers,
        Self::Certificate,
    ];

    /// The debug data. The first three are grpc-go's, which etcd sends.
    pub(super) const fn reason(self) -> &'static str {
        match self {
            Self::Stop => "graceful_stop",
            Self::Idle => "max_idle",
            Self::Age => "max_age",
            Self::UnknownUser => "the certificate names a user that does not exist in the store",
            Self::Room => "too many connections (--max-connections): this one was the idlest",
            Self::Share => "too many connections of one user or address: it may have 3/4 of --max-connections",
            Self::Answers => "the client has not read its answers for too long",
            Self::Certificate => "the client certificate has expired, was revoked, or is not trusted any more",
        }
    }

    /// The error of a connection that ends at once.
    pub(super) const fn violation(self) -> Violation {
        let code = match self {
            Self::Stop | Self::Idle | Self::Age => Code::NoError,
            Self::UnknownUser | Self::Certificate => Code::InadequateSecurity,
            Self::Room | Self::Share | Self::Answers => Code::EnhanceYourCalm,
        };
        Violation {
            code,
            reason: self.reason(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_lead_back_and_reasons_fit_where_clients_show_them() {
        for (number, farewell) in Farewell::ALL.into_iter().enumerate() {
            assert_eq!(farewell as usize, number);
            assert!(farewell.reason().len() <= 100, "{}", farewell.reason());
            assert_ne!(
                farewell.reason(),
                "too_many_pings",
                "a client of Go would ping less often"
            );
        }
    }
}
