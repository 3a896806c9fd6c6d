//! What a process of this machine costs: CPU time and memory, from `/proc`.

use super::error::Error;
use parking_lot::Mutex;
use std::collections::BTreeSet;
use std::fs;
use std::net::SocketAddr;
use std::time::Duration;

/// Ticks of a second in `/proc/PID/stat`, on every Linux that Rust supports.
const TICKS: u64 = 100;
/// CPU time below which the ticks of the kernel are too coarse for a figure.
pub const CPU_MIN: Duration = Duration::from_millis(100);
/// A process with more CPU time than that has done something before the test, and may have memory to use again.
const FRESH_MAX: Duration = Duration::from_millis(300);

/// The cost of a process up to now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cost {
    pub cpu: Duration,
    /// Resident memory in bytes; 0 while no process runs.
    pub rss: u64,
    /// The most resident memory that the process ever had.
    pub peak: u64,
    /// Restarts of the process since the test began.
    pub restarts: u32,
}

/// When a process started, in ticks since the boot: tells it from another one with the same number.
type Started = u64;

impl Cost {
    /// Reads the cost of a process; `None` if there is no such process.
    pub fn of(pid: u32) -> Option<Self> {
        Some(look(pid)?.1)
    }

    /// Whether a process with these costs was in use before.
    pub fn is_used(&self) -> bool {
        self.cpu > FRESH_MAX
    }

    fn parse(stat: &str, status: &str) -> Option<(Started, Self)> {
        // The name of the program, in parentheses, may contain anything.
        let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
        let ticks = fields.get(11)?.parse::<u64>().ok()? + fields.get(12)?.parse::<u64>().ok()?;
        let started = fields.get(19)?.parse().ok()?;
        let bytes = |name: &str| {
            let value = status.lines().find_map(|line| line.strip_prefix(name))?;
            let kilobytes: u64 = value.trim().trim_end_matches("kB").trim().parse().ok()?;
            Some(kilobytes * 1024)
        };
        let rss = bytes("VmRSS:")?;
        let cost = Self {
            cpu: Duration::from_millis(ticks * (1000 / TICKS)),
            rss,
            peak: bytes("VmHWM:").unwrap_or(rss),
            restarts: 0,
        };
        Some((started, cost))
    }
}

/// A process that runs; `None` for one that has ended, even if its parent has not noticed.
fn look(pid: u32) -> Option<(Started, Cost)> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    Cost::parse(&stat, &status)
}

/// The process of the server. After a restart, the process that listens at the endpoint is the next one.
#[derive(Debug)]
pub struct Server {
    addresses: Vec<SocketAddr>,
    seen: Mutex<Seen>,
}

#[derive(Debug, Default)]
struct Seen {
    /// The process, while one runs.
    process: Option<(u32, Started)>,
    /// What it had cost when it was seen last.
    last: Cost,
    /// CPU time of the processes before it.
    ended: Duration,
    restarts: u32,
}

impl Server {
    /// The process `pid`, or the one that listens at the first address; `None` if no process of this machine is known.
    pub fn find(pid: Option<u32>, addresses: Vec<SocketAddr>) -> Result<Option<Self>, Error> {
        let Some(pid) = pid.or_else(|| listening(&addresses)) else {
            return Ok(None);
        };
        let Some((started, last)) = look(pid) else {
            let text = format!("--server-pid={pid} is not a process of this machine: `pgrep etcd` lists candidates");
            return Err(Error::Plan(text));
        };
        let seen = Seen {
            process: Some((pid, started)),
            last,
            ..Seen::default()
        };
        Ok(Some(Self {
            addresses,
            seen: Mutex::new(seen),
        }))
    }

    /// The cost of all processes of the server up to now.
    pub fn cost(&self) -> Cost {
        let mut seen = self.seen.lock();
        let seen = &mut *seen;
        let alive = seen.process.and_then(|(pid, started)| {
            let (now, cost) = look(pid)?;
            (now == started).then_some(cost)
        });
        match alive {
            Some(cost) => seen.last = cost,
            None => {
                seen.process = None;
                seen.ended += std::mem::take(&mut seen.last).cpu;
                if let Some(pid) = listening(&self.addresses)
                    && let Some((started, cost)) = look(pid)
                {
                    (seen.process, seen.last) = (Some((pid, started)), cost);
                    seen.restarts += 1;
                }
            }
        }
        Cost {
            cpu: seen.ended + seen.last.cpu,
            restarts: seen.restarts,
            ..seen.last
        }
    }
}

/// The process of this machine that listens on a port of `addresses`; `None` if an address is not of this machine, or if the
/// process belongs to another user.
fn listening(addresses: &[SocketAddr]) -> Option<u32> {
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
    use std::process::{Child, Command, Stdio};

    #[test]
    fn the_cost_of_this_process_grows() {
        let cost = Cost::of(std::process::id()).unwrap();
        assert!(cost.rss > 1 << 20 && cost.peak >= cost.rss, "{cost:?}");
        assert_eq!(Cost::of(u32::MAX), None);
        let odd = "7 (a) b) S 1 2 3 4 5 6 7 8 9 10 150 50 0 0 20 0 1 0 4242 0";
        let (started, parsed) = Cost::parse(odd, "Name:\tx\nVmHWM:\t 20 kB\nVmRSS:\t  12 kB\n").unwrap();
        assert_eq!((started, parsed.cpu), (4242, Duration::from_secs(2)));
        assert_eq!((parsed.rss, parsed.peak), (12 * 1024, 20 * 1024));
        assert!(parsed.is_used());
    }

    #[test]
    fn the_listener_of_a_port_is_found() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        assert_eq!(listening(&[address]), Some(std::process::id()));
        assert!(Server::find(None, vec![address]).unwrap().is_some());
        drop(listener);
        assert_eq!(listening(&[address]), None);
        assert_eq!(listening(&["10.0.0.1:1".parse().unwrap()]), None);
        assert!(Server::find(None, vec![address]).unwrap().is_none());
    }

    /// A process that does nothing, until the test ends it.
    fn sleeper() -> Child {
        let mut command = Command::new("sleep");
        command.arg("60").stdout(Stdio::null()).spawn().unwrap()
    }

    #[test]
    fn the_next_process_at_the_port_is_counted_with_the_one_that_ended() {
        let mut first = sleeper();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let server = Server::find(Some(first.id()), vec![listener.local_addr().unwrap()]);
        let server = server.unwrap().unwrap();
        let before = server.cost();
        assert_eq!((before.restarts, before.rss > 0), (0, true));
        first.kill().unwrap();
        first.wait().unwrap();
        // This process listens at the port now, and has used more CPU time.
        let after = server.cost();
        assert!(
            after.cpu >= before.cpu && after.rss > before.rss,
            "{before:?} {after:?}"
        );
        assert_eq!(after.restarts, 1);
        assert_eq!(server.cost().restarts, 1);
        let error = Server::find(Some(first.id()), vec![]).unwrap_err().to_string();
        assert!(
            error.contains("--server-pid=") && error.contains("not a process"),
            "{error}"
        );
    }
}
