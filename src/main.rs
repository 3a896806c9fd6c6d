//! The binary: everything is in the library.

use std::process::ExitCode;

/// A request makes dozens of small allocations, which this one is quicker at than the system's.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    // The only provider that is linked; refusing a second one is not an error here.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    ExitCode::from(isthmus::cli::run(std::env::args().collect()))
}
