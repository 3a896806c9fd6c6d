//! Detects whether another process on this machine is alive. Each process binds a name (an abstract Unix socket) in its
//! network namespace, and the kernel releases the name when the process ends for whatever reason.
//!
//! The containers of a pod share a network namespace, which outlives the restart of a container.

use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::Path;

/// A bound name, released when dropped.
#[derive(Debug)]
pub struct BoundName(#[allow(dead_code, reason = "held to keep the name bound")] UnixDatagram);

/// Binds `name`, at most 100 bytes. Fails if a process has bound the name already.
pub fn bind(name: &str) -> io::Result<BoundName> {
    UnixDatagram::bind_addr(&address(name)?).map(BoundName)
}

/// Whether no process of this network namespace has bound `name`. Names in other namespaces are invisible: compare
/// [`namespace`] first.
pub fn is_gone(name: &str) -> bool {
    let found = address(name).and_then(|address| UnixDatagram::unbound()?.connect_addr(&address));
    found.is_err_and(|e| e.kind() == io::ErrorKind::ConnectionRefused)
}

/// Identifies the network namespace in which names are visible, and the boot of the machine. `None` if unknown.
pub fn namespace() -> Option<String> {
    let boot = std::fs::read_to_string(Path::new("/proc/sys/kernel/random/boot_id")).ok()?;
    let network = std::fs::read_link("/proc/self/ns/net").ok()?;
    Some(format!("{} {}", boot.trim(), network.display()))
}

fn address(name: &str) -> io::Result<SocketAddr> {
    SocketAddr::from_abstract_name(format!("isthmus/{name}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_bound_until_it_is_dropped() {
        let name = format!("test/{}", std::process::id());
        assert!(is_gone(&name));
        let bound = bind(&name).unwrap();
        assert!(!is_gone(&name));
        assert!(bind(&name).is_err(), "bound already");
        drop(bound);
        assert!(is_gone(&name));
        assert_eq!(namespace(), namespace());
        assert!(namespace().unwrap().contains("net:["));
    }
}
