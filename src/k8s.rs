//! Where objects come from: a Kubernetes API, or a directory of manifests.

pub mod events;
pub mod types;
