//! Isthmus: a control plane for Cilium Cluster Mesh.
//!
//! ```text
//!             Kubernetes API or manifests            remote clusters' etcd
//!                   │                                       │ etcd-client watch
//!                   ▼                                       ▼
//!                k8s/  ── events ──►  clustermesh/     kvstoremesh/
//!                                         │ upsert/delete   │ mirror state→cache
//!                                         └──────┬──────────┘
//!                                                ▼
//!                                    kvstore/  (Backend: local | etcd)
//!                                                │ local: direct call
//!  agent ─TLS─► server/listen ─► server/peer ─► server/{kv,watch,lease,auth}
//!               (accept, certs)  (CN → user)     │  ▲ permissions: auth/
//!                                                ▼  │
//!                               mvcc/  store ─commit─► log ─► groups ─ cursors ─► server/watch ─► stream
//!                                 ▲ revoke
//!                               lease (time)
//!  admin: /readyz          app.rs connects the rooms; cli/ chooses which ones to start
//! ```
//!
//! `ARCHITECTURE.md` explains the rooms (modules) and which of them may use which.

pub mod admin;
pub mod app;
pub mod auth;
pub mod cli;
pub mod clustermesh;
pub mod coredns;
pub mod durable;
pub mod k8s;
pub mod kvstore;
pub mod kvstoremesh;
pub mod lease;
pub mod model;
pub mod mvcc;
pub mod pb;
pub mod server;
pub mod snapshot;
pub mod troubleshoot;
pub mod users;
pub mod util;
