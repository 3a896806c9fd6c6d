//! Errors of a connection and the codes that name them to the client.

use std::io;

/// Error codes (RFC 9113, section 7) that a server, or our client, sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Code {
    NoError = 0x0,
    ProtocolError = 0x1,
    InternalError = 0x2,
    FlowControlError = 0x3,
    StreamClosed = 0x5,
    FrameSizeError = 0x6,
    RefusedStream = 0x7,
    Cancel = 0x8,
    CompressionError = 0x9,
    EnhanceYourCalm = 0xb,
    InadequateSecurity = 0xc,
}

/// A connection error (RFC 9113, section 5.4.1): the client broke a rule of the protocol, or a limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason} ({code:?})")]
pub struct Violation {
    pub code: Code,
    pub reason: &'static str,
}

impl Violation {
    pub(super) const fn protocol(reason: &'static str) -> Self {
        Self {
            code: Code::ProtocolError,
            reason,
        }
    }

    pub(super) const fn frame_size(reason: &'static str) -> Self {
        Self {
            code: Code::FrameSizeError,
            reason,
        }
    }

    pub(super) const fn flow_control(reason: &'static str) -> Self {
        Self {
            code: Code::FlowControlError,
            reason,
        }
    }

    /// The client does nothing that is forbidden, but too much of it.
    pub(super) const fn calm(reason: &'static str) -> Self {
        Self {
            code: Code::EnhanceYourCalm,
            reason,
        }
    }
}

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Violation(#[from] Violation),
    #[error("the client closed the connection amid calls")]
    ClosedAmidCalls,
    #[error("the client did not answer a ping in time")]
    PingTimeout,
    #[error(transparent)]
    Io(#[from] io::Error),
}
