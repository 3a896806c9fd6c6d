//! The binary `clustermesh-apiserver`, a thin wrapper around the library.

use std::process::ExitCode;

/// Faster than the system's allocator at the dozens of small allocations of a request.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    // Fails only if a provider is installed already; aws-lc-rs is the only one linked.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    ExitCode::from(isthmus::cli::run(std::env::args().collect()))
}
