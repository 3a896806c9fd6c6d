//! Where objects come from: a Kubernetes API, or a directory of manifests.

pub mod api;
pub mod events;
pub mod manifests;
pub mod types;
