//! What a process of this machine costs: CPU time and memory, from `/proc`.

use std::collections::BTreeSet;
use std::fs;
use std::net::SocketAddr;
use std::time::Duration;

/// Ticks of a second in `/proc/PID/stat`, on every Linux that Rust supports.
const TICKS: u64 = 100;

/// The cost of a process up to now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cost {
    pub cpu: Duration,
    /// Resident memory in bytes.
    pub rss: u64,
}

impl Cost {
    /// Reads the cost of a process; `None` if there is no such process.
    pub fn of(pid: u32) -> Option<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        Self::parse(&stat, &status)
    }

    fn parse(stat: &str, status: &str) -> Option<Self> {
        // The name of the program, in parentheses, may contain anything.
        let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
        let ticks = fields.get(11)?.parse::<u64>().ok()? + fields.get(12)?.parse::<u64>().ok()?;
        let rss = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
        let kilobytes: u64 = rss.trim().trim_end_matches("kB").trim().parse().ok()?;
        Some(Self {
            cpu: Duration::from_millis(ticks * (1000 / TICKS)),
            rss: kilobytes * 1024,
        })
    }
}

/// The process of this machine that listens on a port of `addresses`; `None` if an address is not of this machine, or if the
/// process belongs to another user.
pub fn listening(addresses: &[SocketAddr]) -> Option<u32> {
    let address = addresses.first().filter(|address| address.ip().is_loopback())?;
    let sockets = listening_sockets(address.port());
    if sockets.is_empty() {
        return None;
    }
    let processes = fs::read_dir("/proc").ok()?.flatten();
    let pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    pids.into_iter().find(|pid| {
        let files = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
        let mut links = files.filter_map(|file| fs::read_link(file.path()).ok());
        links.any(|link| sockets.contains(link.to_string_lossy().as_ref()))
    })
}

/// The names of the sockets that listen on a port, as `/proc/PID/fd` shows them.
fn listening_sockets(port: u16) -> BTreeSet<String> {
    let tables = ["/proc/net/tcp", "/proc/net/tcp6"].map(|file| fs::read_to_string(file).unwrap_or_default());
    tables.iter().flat_map(|table| sockets_of(table, port)).collect()
}

fn sockets_of(table: &str, port: u16) -> Vec<String> {
    let listening = table.lines().skip(1).filter_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let (_, at) = fields.get(9).and(fields.get(1))?.rsplit_once(':')?;
        let is_listening = *fields.get(3)? == "0A" && u16::from_str_radix(at, 16) == Ok(port);
        is_listening.then(|| format!("socket:[{}]", fields[9]))
    });
    listening.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cost_of_this_process_grows() {
        let cost = Cost::of(std::process::id()).unwrap();
        assert!(cost.rss > 1 << 20, "{cost:?}");
        assert_eq!(Cost::of(u32::MAX), None);
        let odd = "7 (a) b) S 1 2 3 4 5 6 7 8 9 10 150 50 0 0";
        let parsed = Cost::parse(odd, "Name:\tx\nVmRSS:\t  12 kB\n").unwrap();
        assert_eq!((parsed.cpu, parsed.rss), (Duration::from_secs(2), 12 * 1024));
    }

    #[test]
    fn the_listener_of_a_port_is_found() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        assert_eq!(listening(&[address]), Some(std::process::id()));
        drop(listener);
        assert_eq!(listening(&[address]), None);
        assert_eq!(listening(&["10.0.0.1:1".parse().unwrap()]), None);
    }
}
