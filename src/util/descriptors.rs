//! File descriptors: the limit of the process, and how many of them connections may hold.

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use std::sync::OnceLock;

/// Descriptors that connections never get, for the data directory, TLS files, remote clusters and the Kubernetes API.
const RESERVED_MIN: u64 = 64;
/// Above this number, more reserved descriptors would help nobody.
const RESERVED_MAX: u64 = 1024;

/// Raises the limit of open files to the most that the system allows, and returns the limit. A container runtime often
/// starts processes with 1,024, which is too few for the agents of a large cluster.
pub fn raise_limit() -> u64 {
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else {
        return 1024;
    };
    match soft < hard && setrlimit(Resource::RLIMIT_NOFILE, hard, hard).is_ok() {
        true => hard,
        false => soft,
    }
}

/// The most connections that this process should hold. The first call raises the limit of open files.
pub fn connections() -> usize {
    static CONNECTIONS: OnceLock<usize> = OnceLock::new();
    *CONNECTIONS.get_or_init(|| connections_of(raise_limit()))
}

/// The most connections that a process with a limit of `limit` open files should hold: the rest is reserved.
pub fn connections_of(limit: u64) -> usize {
    let reserved = (limit / 4).clamp(RESERVED_MIN, RESERVED_MAX);
    usize::try_from(limit.saturating_sub(reserved))
        .unwrap_or(usize::MAX)
        .max(16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_of_the_descriptors_is_reserved_for_files() {
        assert_eq!(connections_of(1024), 768);
        assert_eq!(connections_of(1 << 20), (1 << 20) - 1024);
        assert_eq!(connections_of(10), 16);
    }
}
