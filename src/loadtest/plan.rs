//! What a load test does. Every number has a limit, so that a typing mistake cannot become an outage.

use super::dial::SOURCES_MAX;
use super::error::Error;
use super::stamp::STAMP_BYTES;
use super::verify::LANES_MAX;
use crate::model::cluster::ClusterName;
use crate::model::keys::{self, Scope};
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// The most connections of a run.
const CONNECTIONS_MAX: usize = 1_000_000;
/// The most keys of a run.
const KEYS_MAX: u64 = 10_000_000;
/// The largest value.
const VALUE_MAX: usize = 1 << 20;
/// The longest phase.
const DURATION_MAX: Duration = Duration::from_secs(86_400);
/// The largest rates, per second.
const RATE_MAX: f64 = 1_000_000.0;
/// The most users of agents.
pub const USERS_MAX: u32 = 1000;
/// Local ports of one source address that the kernel hands out by default.
const PORTS: usize = 28_000;
/// The least time that all agents have for being in sync, by default.
const SYNC_MIN: Duration = Duration::from_secs(120);
/// Time of one connection, if all of them are made at once.
const SYNC_EACH: Duration = Duration::from_millis(20);
/// The scopes that agents watch, in their order.
const SCOPES: [Scope; 5] = [
    Scope::Identities,
    Scope::Endpoints,
    Scope::Nodes,
    Scope::Services,
    Scope::ServiceExports,
];
/// The share of each scope in the keys of a cluster, in percent. Cilium's own scale test has the same shape: 100 nodes, 100
/// identities and 1,000 endpoints.
const SHARES: [u32; 5] = [8, 80, 8, 3, 1];

/// Where the keys of the simulated clusters are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Layout {
    /// `cilium/cache/…`: keys as a mirror writes them, which agents of the own cluster read.
    Cache,
    /// `cilium/state/…`: keys as a publisher writes them, which other clusters read.
    State,
    /// A prefix of the user's own.
    Own(String),
}

/// When the slow readers of a run are there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SlowReadersAt {
    /// From the start to the end.
    #[default]
    Start,
    /// In the middle third of the time in which agents watch, so that the others can be compared with and without them.
    Middle,
}

/// The settings of a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    pub scenario: String,
    /// Agents. Each has one connection for each cluster.
    pub agents: usize,
    pub clusters: usize,
    /// Watches of each connection: the heartbeat, the canaries, and up to five scopes.
    pub watches: usize,
    /// Keys of each cluster.
    pub keys: u32,
    pub value_bytes: usize,
    /// Keys per page of a list; 0 for no pages.
    pub page: i64,
    /// Connections that are opened per second; 0 for all at once.
    pub connect_rate: f64,
    /// How long agents watch.
    pub duration: Duration,
    /// Changes of single keys per second.
    pub rate: f64,
    /// The percentage of changes that delete a key and make another one.
    pub deletes: u32,
    /// Changes at once, every `burst_interval`.
    pub burst: u32,
    pub burst_interval: Duration,
    /// All keys of one cluster are written again every `bulk_interval`; 0 for never.
    pub bulk_interval: Duration,
    /// Puts of a transaction while keys are written in bulk.
    pub batch: usize,
    /// Writers, each with a connection and one request at a time.
    pub writers: usize,
    /// Reconnect storms: all agents lose their connections at once, this many times.
    pub storms: u32,
    pub storm_interval: Duration,
    /// More connections that stop reading once they are in sync.
    pub slow_readers: usize,
    #[serde(default)]
    pub slow_readers_at: SlowReadersAt,
    /// Users that agents are spread over, each with a certificate; 0 for the writers' user.
    #[serde(default)]
    pub users: usize,
    pub source_addresses: u32,
    /// Connections are preceded by one that ends during its handshake, as in Cilium.
    pub aborted_handshakes: bool,
    /// Received data is answered by a ping, as in grpc-go.
    pub bdp_pings: bool,
    pub keepalive: Duration,
    /// How long agents may take for the last events.
    pub settle: Duration,
    /// How long all agents may take for being in sync, beyond the time that `connect_rate` takes; `None` for a time that
    /// follows from their number.
    #[serde(default)]
    pub sync_timeout: Option<Duration>,
    /// The lifetime of written keys if nobody renews it.
    pub lease_ttl: Duration,
    /// Nothing is written: agents read the clusters that exist.
    pub read_only: bool,
    /// The names of the clusters that exist, for `read_only`.
    pub existing: Vec<String>,
    pub layout: Layout,
    /// Writes `cilium/.heartbeat`.
    pub heartbeat: bool,
    /// Tells this run from others.
    pub run: u32,
}

/// A prefix that agents list and watch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Prefix {
    Heartbeat,
    Canaries {
        prefix: String,
    },
    /// A scope of a cluster. `number` counts the scopes of all clusters.
    Scope {
        prefix: String,
        number: usize,
    },
}

impl Prefix {
    pub fn text(&self) -> &str {
        match self {
            Self::Heartbeat => keys::HEARTBEAT,
            Self::Canaries { prefix } | Self::Scope { prefix, .. } => prefix,
        }
    }
}

impl Plan {
    /// Connections that agents hold in the end.
    pub fn connections(&self) -> usize {
        self.agents * self.clusters
    }

    pub fn total_keys(&self) -> u64 {
        let keys = (0..self.scopes()).map(|scope| u64::from(self.keys_of(scope)));
        keys.sum::<u64>() * self.clusters as u64
    }

    /// How long all agents have for being in sync.
    pub fn sync_limit(&self) -> Duration {
        let total = self.connections();
        let each = SYNC_EACH.saturating_mul(u32::try_from(total).unwrap_or(u32::MAX));
        let paced = match self.connect_rate > 0.0 {
            true => Duration::from_secs_f64(total as f64 / self.connect_rate),
            false => Duration::ZERO,
        };
        self.sync_timeout.unwrap_or(SYNC_MIN.max(each)) + paced
    }

    /// Changes on schedule in a time.
    pub fn planned_changes(&self, time: Duration) -> u64 {
        match self.read_only {
            true => 0,
            false => (self.rate * time.as_secs_f64()) as u64,
        }
    }

    /// Scopes that agents watch.
    pub fn scopes(&self) -> usize {
        self.watches.saturating_sub(2)
    }

    /// Keys of a scope of one cluster.
    pub fn keys_of(&self, scope: usize) -> u32 {
        let shares = &SHARES[..self.scopes()];
        let all: u32 = shares.iter().sum();
        let of = |share: &u32| (u64::from(self.keys) * u64::from(*share) / u64::from(all)) as u32;
        let others: u32 = shares.iter().map(of).sum();
        // Most keys are addresses, and so is what rounding has left.
        let rest = if scope == 1.min(shares.len() - 1) {
            self.keys - others
        } else {
            0
        };
        of(&shares[scope]) + rest
    }

    /// Lanes of each scope: enough that every writer has one.
    pub fn lanes(&self) -> usize {
        let scopes = (self.clusters * self.scopes()).max(1);
        self.writers.div_ceil(scopes).clamp(1, LANES_MAX)
    }

    /// Scopes of all clusters.
    pub fn prefixes(&self) -> usize {
        self.clusters * self.scopes()
    }

    /// The name of a cluster.
    pub fn cluster(&self, number: usize) -> String {
        match self.existing.get(number % self.existing.len().max(1)) {
            Some(name) if self.read_only => name.clone(),
            _ => format!("loadtest-{:06x}-{number:03}", self.run & 0xFF_FFFF),
        }
    }

    /// The prefix of a scope of a cluster.
    pub fn prefix(&self, cluster: usize, scope: usize) -> String {
        let (name, kind) = (self.cluster(cluster), SCOPES[scope]);
        match (&self.layout, ClusterName::new(&name)) {
            (Layout::Cache, Ok(name)) => kind.cache_prefix(&name),
            (Layout::State, Ok(name)) if self.read_only => kind.state_prefix(&name),
            // Identities and addresses of a real cluster have no cluster in their prefix, so written ones stay away from it.
            (Layout::State, _) => format!("cilium/state/{}/v1/{name}/", kind.word()),
            (Layout::Cache, _) => format!("cilium/cache/{}/v1/{name}/", kind.word()),
            (Layout::Own(own), _) => format!("{}/{name}/{}/", own.trim_end_matches('/'), kind.word()),
        }
    }

    /// The key with a number in a prefix.
    pub fn key(prefix: &str, lane: u16, key: u32) -> String {
        format!("{prefix}{lane:02}-{key:07}")
    }

    /// What a connection to a cluster watches, in order.
    pub fn watched(&self, cluster: usize) -> Vec<Prefix> {
        let canaries = format!("{}{}/", keys::SYNCED, self.cluster(cluster));
        let scopes = (0..self.scopes()).map(|scope| Prefix::Scope {
            prefix: self.prefix(cluster, scope),
            number: cluster * self.scopes() + scope,
        });
        [Prefix::Heartbeat, Prefix::Canaries { prefix: canaries }]
            .into_iter()
            .chain(scopes)
            .collect()
    }

    /// What the run writes, for the operator.
    pub fn written(&self) -> Vec<String> {
        if self.read_only {
            return vec![];
        }
        let heartbeat = self.heartbeat.then(|| keys::HEARTBEAT.to_owned());
        let clusters = (0..self.clusters).flat_map(|c| (0..self.scopes()).map(move |s| self.prefix(c, s)));
        heartbeat.into_iter().chain(clusters).collect()
    }

    /// Checks all limits.
    pub fn check(&self) -> Result<(), Error> {
        let fail = |text: String| Err(Error::Plan(text));
        let connections = self.connections() + self.slow_readers;
        let sources = self.source_addresses.max(1) as usize;
        let rates = [("--rate", self.rate), ("--connect-rate", self.connect_rate)];
        let times = [
            ("--duration", self.duration),
            ("--storm-interval", self.storm_interval),
            ("--burst-interval", self.burst_interval),
            ("--bulk-interval", self.bulk_interval),
            ("--settle", self.settle),
            ("--sync-timeout", self.sync_timeout.unwrap_or_default()),
        ];
        if let Some((flag, rate)) = rates.iter().find(|(_, rate)| !(0.0..=RATE_MAX).contains(rate)) {
            return fail(format!("{flag}={rate} is not a rate from 0 to {RATE_MAX} per second"));
        }
        if let Some((flag, _)) = times.iter().find(|(_, time)| *time > DURATION_MAX) {
            return fail(format!("{flag} is longer than 24 hours, the most that a run may take"));
        }
        if let Layout::Own(own) = &self.layout {
            check_prefix(own)?;
        }
        match () {
            () if self.clusters == 0 || connections == 0 => {
                fail("--agents and --clusters must be at least 1".to_owned())
            }
            () if self.clusters > 511 => fail("a mesh has at most 511 clusters: lower --clusters".to_owned()),
            () if connections > CONNECTIONS_MAX => fail(format!(
                "{connections} connections (--agents × --clusters) are more than {CONNECTIONS_MAX}, the most of one run"
            )),
            () if self.users > USERS_MAX as usize => {
                fail(format!("{} users of agents are more than {USERS_MAX}", self.users))
            }
            () if self.source_addresses > SOURCES_MAX => fail(format!("--source-addresses is more than {SOURCES_MAX}")),
            () if self.source_addresses > 0 && connections > sources * PORTS => fail(format!(
                "{connections} connections need {} source addresses, since each has about {PORTS} ports",
                connections.div_ceil(PORTS)
            )),
            () if !(3..=7).contains(&self.watches) => fail(format!("--watches={} is not from 3 to 7", self.watches)),
            () if !self.read_only && u64::from(self.keys) * self.clusters as u64 > KEYS_MAX => fail(format!(
                "--keys × --clusters is more than {KEYS_MAX} keys, the most of one run"
            )),
            () if !(STAMP_BYTES..=VALUE_MAX).contains(&self.value_bytes) => {
                fail(format!("--value-bytes must be from {STAMP_BYTES} to {VALUE_MAX}"))
            }
            () if !(1..=128).contains(&self.batch) => {
                fail("--batch must be from 1 to 128, the most operations that etcd takes in a transaction".to_owned())
            }
            () if !(1..=1024).contains(&self.writers) => fail("--writers must be from 1 to 1024".to_owned()),
            () if self.deletes > 100 => fail("--deletes is a percentage: at most 100".to_owned()),
            () if self.burst > 100_000 => fail("--burst must be at most 100000".to_owned()),
            () if self.storms > 1000 => fail("--storms must be at most 1000".to_owned()),
            () if self.storms > 0 && self.storm_interval * self.storms >= self.duration => fail(format!(
                "{} storms, one every {:?}, take longer than --duration={:?}: lengthen it, or shorten --storm-interval",
                self.storms, self.storm_interval, self.duration
            )),
            () if self.page < 0 => fail("--page must be at least 0".to_owned()),
            () if self.burst > 0 && self.burst_interval.is_zero() => {
                fail("--burst needs a --burst-interval".to_owned())
            }
            () if self.keepalive < Duration::from_secs(5) => {
                fail("--keepalive must be at least 5s: etcd ends connections that ping more often".to_owned())
            }
            () if self.lease_ttl < Duration::from_secs(60) || self.lease_ttl > DURATION_MAX => {
                fail("--lease-ttl must be from 1m to 24h".to_owned())
            }
            () => Ok(()),
        }
    }
}

/// Checks a prefix of the user's own: it must not be where something else looks.
fn check_prefix(own: &str) -> Result<(), Error> {
    let fail = |text: String| Err(Error::Plan(text));
    if own.trim_matches('/').is_empty() {
        return fail("--prefix is empty: name a prefix for the keys of the test, such as isthmus/loadtest".to_owned());
    }
    if own == "cilium" || own.starts_with("cilium/") {
        return fail(format!(
            "--prefix={own} is where agents and mirrors of Cilium look: use cilium/cache, cilium/state, or a prefix outside of \
             cilium/"
        ));
    }
    match own.chars().find(|c| c.is_whitespace() || c.is_control()) {
        Some(bad) => fail(format!(
            "--prefix={own:?} contains {bad:?}: use letters, digits, '-', '.' and '/'"
        )),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::loadtest::scenarios::Scenario;

    #[test]
    fn prefixes_where_others_look_are_refused() {
        let check = |own: &str| {
            let layout = Layout::Own(own.to_owned());
            let plan = Plan {
                layout,
                ..Scenario::Quick.plan()
            };
            plan.check().map_err(|error| error.to_string())
        };
        assert_eq!(check("isthmus/loadtest"), Ok(()));
        for (bad, word) in [
            ("", "empty"),
            ("//", "empty"),
            ("cilium", "Cilium look"),
            ("cilium/cluster-config", "Cilium look"),
            ("a b", "contains ' '"),
        ] {
            let error = check(bad).unwrap_err();
            assert!(error.contains("--prefix") && error.contains(word), "{error}");
        }
    }

    #[test]
    fn the_time_to_be_in_sync_can_be_set() {
        let plan = Scenario::Storm.plan();
        assert_eq!(plan.sync_limit(), Duration::from_secs(120));
        let many = Scenario::Kvstoremesh250.plan();
        assert_eq!(many.sync_limit(), Duration::from_secs(500 + 25));
        let set = Plan {
            sync_timeout: Some(Duration::from_secs(7)),
            ..plan
        };
        assert_eq!(set.sync_limit(), Duration::from_secs(7));
    }

    #[test]
    fn every_scenario_is_within_the_limits() {
        for scenario in Scenario::ALL {
            let plan = scenario.plan();
            plan.check()
                .unwrap_or_else(|error| panic!("{}: {error}", plan.scenario));
            assert_eq!(plan.total_keys(), u64::from(plan.keys) * plan.clusters as u64);
        }
    }

    #[test]
    fn written_keys_are_below_names_of_the_run() {
        let plan = Plan {
            clusters: 2,
            watches: 7,
            run: 0xABCDEF,
            ..Scenario::Soak.plan()
        };
        for layout in [Layout::Cache, Layout::State, Layout::Own("isthmus/loadtest".to_owned())] {
            let plan = Plan { layout, ..plan.clone() };
            let written = plan.written();
            assert_eq!(written.len(), 10);
            for prefix in written {
                assert!(prefix.contains("/loadtest-abcdef-00"), "{prefix}");
                assert!(!prefix.starts_with(keys::CLUSTER_CONFIGS) && prefix != keys::HEARTBEAT);
            }
        }
    }

    #[test]
    fn a_read_only_run_reads_the_clusters_that_exist_and_writes_nothing() {
        let plan = Plan {
            read_only: true,
            existing: vec!["hk".to_owned()],
            ..Scenario::Storm.plan()
        };
        assert_eq!(plan.prefix(0, 2), "cilium/cache/nodes/v1/hk/");
        assert_eq!(plan.written(), Vec::<String>::new());
        let watched = plan.watched(0);
        assert_eq!(watched[0].text(), "cilium/.heartbeat");
        assert_eq!(watched[1].text(), "cilium/synced/hk/");
        assert_eq!(watched[2].text(), "cilium/cache/identities/v1/hk/id/");
    }

    #[test]
    fn storms_that_would_not_come_are_refused() {
        let plan = Plan {
            duration: Duration::from_secs(15),
            ..Scenario::Storm.plan()
        };
        let error = plan.check().unwrap_err().to_string();
        assert!(
            error.contains("3 storms, one every 30s, take longer than --duration=15s"),
            "{error}"
        );
    }

    #[test]
    fn numbers_outside_of_their_limits_name_the_flag() {
        let plan = Scenario::Soak.plan();
        for (bad, flag) in [
            (
                Plan {
                    agents: 2_000_000,
                    ..plan.clone()
                },
                "--agents",
            ),
            (
                Plan {
                    value_bytes: 10,
                    ..plan.clone()
                },
                "--value-bytes",
            ),
            (
                Plan {
                    rate: f64::NAN,
                    ..plan.clone()
                },
                "--rate",
            ),
            (
                Plan {
                    duration: Duration::from_secs(1 << 40),
                    ..plan.clone()
                },
                "--duration",
            ),
            (
                Plan {
                    watches: 8,
                    ..plan.clone()
                },
                "--watches",
            ),
            (
                Plan {
                    agents: 60_000,
                    clusters: 1,
                    source_addresses: 2,
                    ..plan.clone()
                },
                "3 source addresses",
            ),
        ] {
            let error = bad.check().unwrap_err().to_string();
            assert!(error.contains(flag), "{error}");
        }
    }
}
