//! The binary: everything is in the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    // The only provider that is linked; refusing a second one is not an error here.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    ExitCode::from(isthmus::cli::run(std::env::args().collect()))
}
