//! Black-box tests: the real binary as a process, on loopback, over real TLS.
//!
//! Each file says at its top what it proves. `tests/README.md` says which kind of test belongs here.

#![allow(clippy::disallowed_methods, reason = "tests may spawn tasks")]
#![allow(clippy::too_many_lines, reason = "a scenario is told in one piece")]
#![allow(clippy::print_stderr, reason = "a skipped test says so")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on shows where")]

mod advisories;
mod auth_mtls;
mod authority;
mod bad_input;
mod command_line;
mod coredns;
mod demo;
mod documents;
mod durable;
mod environments;
mod etcd_api;
mod etcd_flags;
mod etcdctl;
mod follow;
mod follow_moves;
mod follow_past;
mod follow_sisters;
mod follow_users;
mod follow_writers;
mod forbidden;
mod kubernetes;
mod kubernetes_client;
mod layers;
mod loadtest;
mod loadtest_mistakes;
mod membership;
mod mesh;
mod mesh_certs;
mod mesh_cli;
mod mesh_disconnect;
mod mesh_races;
mod mesh_status;
mod mesh_trust;
mod mistakes;
mod monitoring;
mod page;
mod page_cost;
mod propagation;
mod remotes;
mod scope;
mod scope_explain;
mod scope_import;
mod scope_walk;
mod shutdown;
mod support;
mod traces;
mod troubleshoot;
mod trust;
mod users;
mod watch;
