//! Small parts that know nothing of the product.

pub mod alive;
pub mod backoff;
pub mod files;
pub mod interval;
pub mod lifecycle;
pub mod metrics;
pub mod net;
pub mod notify;
pub mod readiness;
