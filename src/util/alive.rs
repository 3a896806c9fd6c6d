//! Whether another process of this machine is alive: each binds a name in its network namespace, and the kernel
//! takes the name back when the process ends, however it ends.
//!
//! Containers of one pod share that namespace, and it outlives a container that is restarted.

use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::Path;

/// Shows, until dropped, that this process is alive.
#[derive(Debug)]
pub struct Sign(#[allow(dead_code, reason = "it is there to be found")] UnixDatagram);

/// Binds `name`, at most 100 bytes.
pub fn show(name: &str) -> io::Result<Sign> {
    UnixDatagram::bind_addr(&address(name)?).map(Sign)
}

/// Whether nobody has bound `name` here. A name bound elsewhere is not seen: compare [`place`] first.
pub fn is_gone(name: &str) -> bool {
    let found = address(name).and_then(|address| UnixDatagram::unbound()?.connect_addr(&address));
    found.is_err_and(|e| e.kind() == io::ErrorKind::ConnectionRefused)
}

/// Where names are seen: this boot of this machine, this network namespace. None where it cannot be told.
pub fn place() -> Option<String> {
    let boot = std::fs::read_to_string(Path::new("/proc/sys/kernel/random/boot_id")).ok()?;
    let namespace = std::fs::read_link("/proc/self/ns/net").ok()?;
    Some(format!("{} {}", boot.trim(), namespace.display()))
}

fn address(name: &str) -> io::Result<SocketAddr> {
    SocketAddr::from_abstract_name(format!("isthmus/{name}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_there_as_long_as_its_process() {
        let name = format!("test/{}", std::process::id());
        assert!(is_gone(&name));
        let sign = show(&name).unwrap();
        assert!(!is_gone(&name));
        assert!(show(&name).is_err(), "one at a time");
        drop(sign);
        assert!(is_gone(&name));
        assert_eq!(place(), place());
        assert!(place().unwrap().contains("net:["));
    }
}
