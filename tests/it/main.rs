//! Black-box tests: the real binary, on loopback, over real TLS.

#![allow(clippy::disallowed_methods, reason = "tests may spawn")]
#![allow(
    missing_docs,
    clippy::too_many_lines,
    clippy::print_stderr,
    reason = "test names and asserts say it"
)]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on should say where")]

mod advisories;
mod auth_mtls;
mod bad_input;
mod command_line;
mod coredns;
mod demo;
mod durable;
mod etcd_api;
mod etcd_flags;
mod etcdctl;
mod fake_api;
mod kubernetes;
mod layers;
mod membership;
mod mesh;
mod remotes;
mod shutdown;
mod support;
mod troubleshoot;
mod users;
mod watch;
