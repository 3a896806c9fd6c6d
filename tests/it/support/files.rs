//! Manifests, directories and ports.

use std::net::TcpListener;
use std::path::{Path, PathBuf};

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

/// A port on loopback that was free a moment ago.
pub fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}
