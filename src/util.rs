//! Small parts that are independent of the product.

pub mod access;
pub mod alive;
pub mod backoff;
pub mod blocking;
pub mod causes;
pub mod certificate;
pub mod deadline;
pub mod deliveries;
pub mod descriptors;
pub mod durations;
pub mod expiry;
pub mod follow_dir;
pub mod http;
pub mod interval;
pub mod lifecycle;
pub mod metrics;
pub mod minima;
pub mod net;
pub mod outage;
pub mod pace;
pub mod pem;
pub mod readiness;
pub mod resolve;
pub mod trace;
pub mod trust;
pub mod wait;
pub mod words;
pub mod yaml;

/// The CPU architecture, by its name in Go.
pub fn arch() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}
