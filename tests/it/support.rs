//! Helpers of the black-box tests, one concept per file.

pub mod admin;
pub mod apply_api;
pub mod certificates;
pub mod cluster_api;
pub mod collector;
pub mod environment;
pub mod exec;
pub mod files;
pub mod http;
pub mod kubernetes_api;
pub mod kubernetes_client;
pub mod line;
pub mod mesh;
pub mod page;
pub mod process;
pub mod store;
pub mod tls;
pub mod wait;

pub use process::{CommandLine, Process, Signal, isthmus};
pub use tls::Tls;
pub use wait::{PATIENCE, eventually};
