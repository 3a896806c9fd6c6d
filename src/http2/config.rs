//! The limits of a connection.

use std::time::Duration;

/// What a client may make one connection hold and do.
#[derive(Clone, Debug)]
pub struct Config {
    /// Bytes that a stream may send before its call reads them.
    pub stream_window: u32,
    /// Bytes that all streams of the connection may send before their calls read them.
    pub connection_window: u32,
    pub max_concurrent_streams: u32,
    /// Bytes of the header fields of a request, as RFC 9113 counts them, and of an encoded header block.
    pub max_header_list: u32,
    /// Streams that the client resets before the server has polled their calls. A call that was polled makes up
    /// for one.
    pub max_unseen_resets: u32,
    /// Streams that the server resets because of errors of the client, in the life of the connection (CVE-2025-8671).
    pub max_error_resets: u32,
    /// SETTINGS frames in the life of the connection. Each makes the server visit every stream.
    pub max_settings: u32,
    /// DATA frames in succession that carry nothing (CVE-2019-9518).
    pub max_empty_data: u32,
    /// Bytes that wait for the socket. More are only taken for frames that the protocol requires.
    pub max_output: usize,
    pub keepalive: Option<Keepalive>,
    /// The longest time for which the answer to a ping may wait for something to go with. Zero answers at once.
    pub ping_answer_delay: Duration,
}

/// Pings of idle connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Keepalive {
    /// A connection on which nothing was received for this long is pinged.
    pub interval: Duration,
    /// A connection on which nothing was received for this long after a ping is closed.
    pub timeout: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            stream_window: 128 << 10,
            connection_window: 8 << 20,
            max_concurrent_streams: 1000,
            max_header_list: 256 << 10,
            max_unseen_resets: 2048,
            max_error_resets: 1024,
            max_settings: 100,
            max_empty_data: 1000,
            max_output: 64 << 10,
            keepalive: None,
            ping_answer_delay: Duration::ZERO,
        }
    }
}
