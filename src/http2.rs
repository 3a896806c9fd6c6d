//! HTTP/2 (RFC 9113) for tens of thousands of connections that wait for events most of the time: the server side, and as much of
//! the client side as the load tester needs ([`client`]).
//!
//! A connection is one task. [`core`] is its state machine without IO: frames in, events and output out. [`connection`]
//! reads, polls the calls that were woken, and sends everything that is ready in one write. A connection that waits holds no
//! buffer. Limits are in [`config`]; whoever breaks one is reset, or disconnected with the code of the RFC.

pub mod client;
pub mod config;
mod connection;
mod core;
mod error;
mod frame;
mod headers;
mod hpack;
mod inbound;
mod output;
mod streams;
mod wakers;
mod window;

pub use config::Config;
pub use connection::Connection;
pub use error::{Code, Error, Violation};
pub use frame::PREFACE;
pub use inbound::{BodyError, RequestStream};
