//! The sources of objects: a Kubernetes API, or a directory of manifests.

pub mod api;
pub mod client;
mod definitions;
pub mod events;
mod known;
pub mod manifests;
pub mod status;
pub mod types;
mod watch;
