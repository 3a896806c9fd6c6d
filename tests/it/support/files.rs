//! Manifests, directories and ports.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU16, Ordering};

/// The manifests of one of the demo's clusters, relative to the repository's root.
pub fn example(cluster: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("examples/tokyo-hk")
        .join(cluster)
}

/// Copies a directory with everything below it.
pub fn copy_directory(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let source = entry.unwrap().path();
        let target = to.join(source.file_name().unwrap());
        if source.is_dir() {
            copy_directory(&source, &target);
        } else {
            std::fs::copy(&source, target).unwrap();
        }
    }
}

/// A port on loopback that was free a moment ago, and that no other test of this process gets. All ports are below the range
/// from which the kernel chooses for outgoing connections and for port 0: the tests beside this test take thousands of those,
/// and one of them could take the port before the process under test listens.
pub fn free_port() -> u16 {
    const FIRST: u16 = 10_000;
    const PORTS: u16 = 20_000;
    static NEXT: AtomicU16 = AtomicU16::new(0);
    // Another run of the tests on this machine begins elsewhere.
    let start = std::process::id().wrapping_mul(7919);
    (0..PORTS)
        .map(|_| start.wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed).into()) % u32::from(PORTS))
        .map(|offset| FIRST + u16::try_from(offset).unwrap())
        .find(|port| TcpListener::bind(("127.0.0.1", *port)).is_ok())
        .unwrap()
}
