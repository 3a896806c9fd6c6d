//! Isthmus: a control plane for Cilium Cluster Mesh.
//!
//! `ARCHITECTURE.md` explains the rooms (modules) and which of them may use which.

pub mod admin;
pub mod app;
pub mod auth;
pub mod cli;
pub mod clustermesh;
pub mod coredns;
pub mod durable;
pub mod explain;
pub mod follow;
pub mod http2;
pub mod k8s;
pub mod kvstore;
pub mod kvstoremesh;
pub mod lease;
pub mod loadtest;
pub mod mesh;
pub mod model;
pub mod mvcc;
pub mod pb;
pub mod scope;
pub mod server;
pub mod snapshot;
pub mod troubleshoot;
pub mod ui;
pub mod users;
pub mod util;
