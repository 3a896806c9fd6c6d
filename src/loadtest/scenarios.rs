//! The scenarios by name: sets of settings that flags override.

use super::plan::{Layout, Plan, SlowReadersAt};
use std::time::Duration;

/// A named set of settings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scenario {
    Quick,
    Agents10k,
    Storm,
    Kvstoremesh250,
    SlowReaders,
    Soak,
}

impl Scenario {
    pub const ALL: [Self; 6] = [
        Self::Quick,
        Self::Agents10k,
        Self::Storm,
        Self::Kvstoremesh250,
        Self::SlowReaders,
        Self::Soak,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::Quick => "quick",
            Self::Agents10k => "agents-10k",
            Self::Storm => "storm",
            Self::Kvstoremesh250 => "kvstoremesh-250",
            Self::SlowReaders => "slow-readers",
            Self::Soak => "soak",
        }
    }

    /// The question that the scenario answers.
    pub fn question(self) -> &'static str {
        match self {
            Self::Quick => "Does the tester reach the store, and with which rights? 100 agents for 10 seconds.",
            Self::Agents10k => {
                "Can one store serve 10,000 nodes, and how late are changes? 10,000 connections follow one remote cluster \
                 with 20 changes a second and a burst of 50 every 10 seconds."
            }
            Self::Storm => {
                "Will my nodes survive a restart of this pod? All connections are lost at once, three times, and each agent \
                 lists everything again. Set --agents to the number of nodes, --clusters to the number of remote clusters, \
                 and --keys to the keys of each."
            }
            Self::Kvstoremesh250 => {
                "Can one store serve the agents of a mesh of 250 clusters? 100 nodes with a connection for each cluster \
                 (25,000 in all), 1,200 keys of each cluster, and 325 changes a second: the load of Cilium's own scale test."
            }
            Self::SlowReaders => {
                "Does a client that stops reading harm the others? 500 agents with 20 changes a second and a burst of 100 every \
                 second, for a minute each without, with, and after 100 readers that stop reading."
            }
            Self::Soak => {
                "Does anything leak or get lost over hours? 1,000 agents, changes, bursts, rewritten clusters, a storm every \
                 20 minutes and ten readers that stop reading, for 2 hours."
            }
        }
    }

    /// What the scenarios have in common.
    fn base(self) -> Plan {
        Plan {
            scenario: self.name().to_owned(),
            agents: 100,
            clusters: 1,
            watches: 6,
            keys: 1200,
            value_bytes: 400,
            page: 256,
            connect_rate: 500.0,
            duration: Duration::from_secs(60),
            rate: 20.0,
            deletes: 10,
            burst: 0,
            burst_interval: Duration::from_secs(10),
            bulk_interval: Duration::ZERO,
            batch: 100,
            writers: 8,
            storms: 0,
            storm_interval: Duration::from_secs(30),
            slow_readers: 0,
            slow_readers_at: SlowReadersAt::Start,
            users: 0,
            source_addresses: 0,
            aborted_handshakes: true,
            bdp_pings: true,
            keepalive: Duration::from_secs(15),
            settle: Duration::from_secs(60),
            sync_timeout: None,
            lease_ttl: Duration::from_secs(600),
            read_only: false,
            existing: vec![],
            layout: Layout::Cache,
            heartbeat: false,
            run: rand::random(),
        }
    }

    /// The settings.
    pub fn plan(self) -> Plan {
        let base = self.base();
        let minutes = |n: u64| Duration::from_secs(n * 60);
        match self {
            Self::Quick => Plan {
                duration: Duration::from_secs(10),
                ..base
            },
            Self::Agents10k => Plan {
                agents: 10_000,
                keys: 12_000,
                burst: 50,
                duration: minutes(2),
                ..base
            },
            Self::Storm => Plan {
                agents: 3000,
                keys: 12_000,
                connect_rate: 0.0,
                storms: 3,
                duration: minutes(2),
                ..base
            },
            Self::Kvstoremesh250 => Plan {
                agents: 100,
                clusters: 250,
                connect_rate: 1000.0,
                rate: 325.0,
                writers: 16,
                duration: minutes(10),
                ..base
            },
            Self::SlowReaders => Plan {
                agents: 500,
                value_bytes: 1024,
                burst: 100,
                burst_interval: Duration::from_secs(1),
                // A writer has one request at a time, and the events of a burst shall come together.
                writers: 50,
                slow_readers: 100,
                slow_readers_at: SlowReadersAt::Middle,
                duration: minutes(3),
                ..base
            },
            Self::Soak => Plan {
                agents: 1000,
                clusters: 4,
                keys: 5000,
                rate: 50.0,
                burst: 100,
                burst_interval: minutes(1),
                bulk_interval: minutes(5),
                storms: 5,
                storm_interval: minutes(20),
                slow_readers: 10,
                duration: minutes(120),
                ..base
            },
        }
    }
}
