//! The publisher: from Kubernetes objects to the keys that other clusters read.

mod convert;
mod owners;
pub mod publisher;
#[cfg(test)]
mod tests;
