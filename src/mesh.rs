//! The mesh as an operator sees it.

pub mod checks;
pub mod handshake;
pub mod pki;
pub mod rotation;
