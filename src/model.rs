//! The keys and values that the clusters of a mesh exchange, independent of their sources and stores.

pub mod cluster;
pub mod gojson;
pub mod ip;
pub mod keys;
pub mod probe;
pub mod slices;
pub mod values;
