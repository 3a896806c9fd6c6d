pub mod auth;
pub mod lease;
pub mod mvcc;
pub mod pb;
pub mod server;
pub mod util;
