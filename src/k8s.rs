//! Where objects come from: a Kubernetes API, or a directory of manifests.

pub mod api;
pub mod events;
mod follow;
pub mod manifests;
pub mod status;
pub mod types;
