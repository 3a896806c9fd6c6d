//! Connects clusters to a mesh, from an operator's machine: reads and writes the Kubernetes objects that publishers,
//! mirrors and agents are configured by.
//!
//! Everything that decides is a function of [`facts::Facts`], the objects of one cluster as they were read. The shells
//! beside it read, apply, and execute in pods.

pub mod apply;
pub mod certs;
pub mod change;
pub mod checks;
pub mod connect;
pub mod context;
pub mod disable;
pub mod disconnect;
pub mod drift;
pub mod enable;
pub mod endpoints;
pub mod exec;
pub mod facts;
pub mod flavor;
pub mod handshake;
pub mod manifests;
pub mod objects;
pub mod output;
pub mod pki;
pub mod preflight;
pub mod profile;
pub mod read;
pub mod ready;
pub mod record;
pub mod rotation;
pub mod status;
pub mod trust;
pub mod values;
pub mod wait;
