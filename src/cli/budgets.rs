//! Flags of the budgets of clients, shared by `etcd` and `serve`.

use super::flags::duration;
use super::variables::Variables;
use crate::server::Budgets;
use crate::util::descriptors;
use clap::Args;
use std::time::Duration;

const MIB: u64 = 1 << 20;
/// A shorter time would end connections between the calls of a busy client, or let clients do nothing but connect.
const IDLE_MIN: Duration = Duration::from_secs(1);
/// Clients wait for the answer to a ping for some seconds at least.
const PING_ANSWER_DELAY_MAX: Duration = Duration::from_secs(1);

pub const VARIABLES: &[Variables] = &[
    Variables {
        flag: "max_connections",
        etcd: "ETCD_MAX_CONNECTIONS",
        serve: "CILIUM_MAX_CONNECTIONS",
    },
    Variables {
        flag: "max_concurrent_streams",
        etcd: "ETCD_MAX_CONCURRENT_STREAMS",
        serve: "CILIUM_MAX_CONCURRENT_STREAMS",
    },
    Variables {
        flag: "max_watchers_per_connection",
        etcd: "ETCD_MAX_WATCHERS_PER_CONNECTION",
        serve: "CILIUM_MAX_WATCHERS_PER_CONNECTION",
    },
    Variables {
        flag: "max_request_bytes_per_connection",
        etcd: "ETCD_MAX_REQUEST_BYTES_PER_CONNECTION",
        serve: "CILIUM_MAX_REQUEST_BYTES_PER_CONNECTION",
    },
    Variables {
        flag: "max_answer_bytes_per_connection",
        etcd: "ETCD_MAX_ANSWER_BYTES_PER_CONNECTION",
        serve: "CILIUM_MAX_ANSWER_BYTES_PER_CONNECTION",
    },
    Variables {
        flag: "max_long_answer_bytes",
        etcd: "ETCD_MAX_LONG_ANSWER_BYTES",
        serve: "CILIUM_MAX_LONG_ANSWER_BYTES",
    },
    Variables {
        flag: "max_watch_bytes_per_user",
        etcd: "ETCD_MAX_WATCH_BYTES_PER_USER",
        serve: "CILIUM_MAX_WATCH_BYTES_PER_USER",
    },
    Variables {
        flag: "max_leases_per_user",
        etcd: "ETCD_MAX_LEASES_PER_USER",
        serve: "CILIUM_MAX_LEASES_PER_USER",
    },
    Variables {
        flag: "max_txn_keys",
        etcd: "ETCD_MAX_TXN_KEYS",
        serve: "CILIUM_MAX_TXN_KEYS",
    },
    Variables {
        flag: "idle_timeout",
        etcd: "ETCD_IDLE_TIMEOUT",
        serve: "CILIUM_IDLE_TIMEOUT",
    },
    Variables {
        flag: "max_connection_age",
        etcd: "ETCD_MAX_CONNECTION_AGE",
        serve: "CILIUM_MAX_CONNECTION_AGE",
    },
    Variables {
        flag: "drain_time",
        etcd: "ETCD_DRAIN_TIME",
        serve: "CILIUM_DRAIN_TIME",
    },
    Variables {
        flag: "watch_gather_time",
        etcd: "ETCD_WATCH_GATHER_TIME",
        serve: "CILIUM_WATCH_GATHER_TIME",
    },
    Variables {
        flag: "ping_answer_delay",
        etcd: "ETCD_PING_ANSWER_DELAY",
        serve: "CILIUM_PING_ANSWER_DELAY",
    },
];

/// The most that clients may make the server hold; docs/security.md says what happens when a budget is used up.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Budgets of clients")]
pub struct BudgetArgs {
    /// Largest number of open connections of all clients, handshakes included; 0 for as many as the limit of open files
    /// allows, less a reserve of 64 to 1024 files, and at most 65536. When the number is reached, the oldest unfinished
    /// handshake or the connection that has been idle for longest is closed. One user has at most three quarters of the
    /// connections. Lower the number where memory is scarce.
    #[arg(long, default_value_t = 0, value_name = "N")]
    max_connections: usize,
    /// Largest number of concurrent calls on one connection; a client waits with further calls. A watch stream is one
    /// call. Raise the number for a proxy that sends the calls of many clients over one connection.
    #[arg(long, default_value_t = 1000, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub max_concurrent_streams: u32,
    /// Largest number of watchers of one connection; further ones are refused. Raise the number for a proxy.
    #[arg(long, default_value_t = 50_000, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    max_watchers_per_connection: u64,
    /// Bytes of the requests of one connection that are incomplete or not answered yet; 48 further requests wait, and
    /// more are refused. Raise the number for clients that write many large values at once.
    #[arg(long, default_value_t = 8 * MIB, value_name = "BYTES", value_parser = clap::value_parser!(u64).range(1..))]
    max_request_bytes_per_connection: u64,
    /// Bytes of answers and events of one connection that the client has not taken yet; further answers of the
    /// connection wait. Raise the number for clients far away that read much over one connection.
    #[arg(long, default_value_t = 4 * MIB, value_name = "BYTES", value_parser = clap::value_parser!(u64).range(1..))]
    max_answer_bytes_per_connection: u64,
    /// Bytes of the answers from 512 KiB on of all connections that clients have not taken yet; further long answers
    /// wait, and a single answer that is longer is refused. Lower the number where memory is scarce, and raise the number
    /// if clients read more than this in one answer, without a limit.
    #[arg(long, default_value_t = 128 * MIB, value_name = "BYTES", value_parser = clap::value_parser!(u64).range(1..))]
    max_long_answer_bytes: u64,
    /// Bytes of the different ranges that one user watches: their keys and 1 KiB for each range. A range that is watched
    /// already costs nothing. Further watchers are refused. Raise the number if a user watches more than 50,000 single
    /// keys.
    #[arg(long, default_value_t = 64 * MIB, value_name = "BYTES", value_parser = clap::value_parser!(u64).range(1..))]
    max_watch_bytes_per_user: u64,
    /// Largest number of leases of one user; further ones are refused. Leases from before a restart do not count. Raise
    /// the number if one user grants leases for many clients.
    #[arg(long, default_value_t = 100_000, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    max_leases_per_user: u64,
    /// Largest number of keys that a transaction that writes may look at in its compares, ranges and deletions; a larger
    /// one is refused, since all others would wait for the transaction.
    #[arg(long, default_value_t = 500_000, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    max_txn_keys: u64,
    /// Time without calls after which a connection is closed, at least 1s. An open watch is a call. Raise the time
    /// for a proxy that takes a closed connection for a failure.
    #[arg(long, default_value = "5m", value_parser = duration, value_name = "DURATION")]
    idle_timeout: Duration,
    /// Age at which the client of a connection is asked to connect anew, with a random part so that connections of one
    /// moment do not end together: between half of the age and the age, at least 1s. Calls that have begun end as usual,
    /// and watches are resumed on the new connection. 0s never asks. Set an age, such as 30m, where several replicas serve
    /// the same clients, so that a replica that was added gets its share.
    #[arg(long, default_value = "0s", value_parser = duration, value_name = "DURATION")]
    max_connection_age: Duration,
    /// Time between SIGTERM and the end of the process in which clients are asked, one after the other, to connect
    /// elsewhere. The first sixth, at most 5s, is for load balancers to forget this process, which is not ready from
    /// SIGTERM on; locks of writers are given back at once. A second signal ends the wait. Set a time, such as 30s, where
    /// several replicas serve the same clients, so that the other replicas are not overrun.
    #[arg(long, default_value = "0s", value_parser = duration, value_name = "DURATION")]
    pub drain_time: Duration,
    /// Longest time for which the events of a watched range are gathered into one message once they follow each other
    /// closely; the first event after a pause is sent at once, but of more than 512 watchers for each core most get the event
    /// a millisecond later. The time begins when all watchers of the range were woken for
    /// the events before, and takes 20µs for each watcher, at most this. 0s sends each event at once, which costs a message
    /// for each event and watcher.
    #[arg(long, default_value = "4ms", value_parser = duration, value_name = "DURATION")]
    pub watch_gather_time: Duration,
    /// Longest time for which the answer to a ping of HTTP/2 waits for the next output of its connection, at most 1s. Clients
    /// of gRPC ping after data to measure their bandwidth; only a ping after at most 32 KiB waits, only one at a time, and
    /// 1 of 16 where events are further apart. 0s answers each ping at once, which costs about as much as sending an event.
    #[arg(long, default_value = "100ms", value_parser = ping_answer_delay, value_name = "DURATION")]
    pub ping_answer_delay: Duration,
}

/// A delay that no client takes for a silence.
fn ping_answer_delay(text: &str) -> Result<Duration, String> {
    match duration(text)? {
        delay if delay > PING_ANSWER_DELAY_MAX => {
            Err("at most 1s, since clients would take the silence for a failure".to_owned())
        }
        delay => Ok(delay),
    }
}

impl BudgetArgs {
    /// The budgets of the server.
    pub fn budgets(&self) -> Budgets {
        let size = |n: u64| usize::try_from(n).unwrap_or(usize::MAX);
        Budgets {
            connections: match self.max_connections {
                0 => Budgets::default().connections,
                n => n.min(descriptors::connections()),
            },
            idle_timeout: self.idle_timeout.max(IDLE_MIN),
            connection_age: (!self.max_connection_age.is_zero()).then(|| self.max_connection_age.max(IDLE_MIN)),
            request_bytes: size(self.max_request_bytes_per_connection),
            answer_bytes: size(self.max_answer_bytes_per_connection),
            long_answer_bytes: size(self.max_long_answer_bytes),
            watchers: size(self.max_watchers_per_connection),
            watch_bytes: size(self.max_watch_bytes_per_user),
            leases: size(self.max_leases_per_user),
            txn_keys: size(self.max_txn_keys),
            ..Budgets::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        budgets: BudgetArgs,
    }

    fn parse(flags: &[&str]) -> BudgetArgs {
        let line = Line::try_parse_from([&["etcd"], flags].concat());
        line.unwrap().budgets
    }

    #[test]
    fn the_defaults_of_the_flags_are_those_of_the_server() {
        let args = parse(&[]);
        assert_eq!(args.budgets(), Budgets::default());
        let config = crate::server::Config::new(crate::server::MemberIdentity::random());
        assert_eq!(args.max_concurrent_streams, config.max_concurrent_streams);
        assert_eq!(args.watch_gather_time, config.watch_gather_time);
        assert_eq!(args.ping_answer_delay, config.ping_answer_delay);
        assert_eq!(args.drain_time, config.drain_time);
    }

    #[test]
    fn budgets_are_at_least_one_and_connections_at_most_the_open_files() {
        for flag in ["--max-leases-per-user=0", "--max-answer-bytes-per-connection=0"] {
            assert!(Line::try_parse_from(["etcd", flag]).is_err(), "{flag}");
        }
        assert!(Line::try_parse_from(["etcd", "--ping-answer-delay=2s"]).is_err());
        let all = parse(&["--max-connections=99999999", "--idle-timeout=0s"]).budgets();
        assert_eq!(all.connections, descriptors::connections());
        assert_eq!(all.idle_timeout, IDLE_MIN);
        assert_eq!(parse(&["--max-connections=20"]).budgets().connections, 20);
    }
}
