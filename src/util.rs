//! Small parts that know nothing of the product.

pub mod alive;
pub mod backoff;
pub mod follow_dir;
pub mod interval;
pub mod lifecycle;
pub mod metrics;
pub mod net;
pub mod notify;
pub mod outage;
pub mod readiness;

/// What this runs on, as Go names it.
pub fn arch() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}
