//! The scenarios by name, and what they measure.

use crate::agents;
use crate::calls;
use crate::server::{Security, Server};
use crate::slopes;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// Whether a run is for results or for a look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scale {
    Full,
    Quick,
}

impl Scale {
    /// The full number, or the one of a quick run.
    pub fn of<T>(self, full: T, quick: T) -> T {
        match self {
            Self::Full => full,
            Self::Quick => quick,
        }
    }

    /// The duration of a measurement.
    pub fn time(self) -> Duration {
        self.of(Duration::from_secs(10), Duration::from_millis(1500))
    }
}

/// What a figure is about. Figures of one kind are in one plot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    Cpu,
    Latency,
    Memory,
    /// Higher is better. Not in a plot, because CPU time says the same.
    Rate,
    Count,
}

/// A measured number.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Figure {
    pub name: String,
    pub kind: Kind,
    pub unit: String,
    pub value: f64,
    /// A line of a plot, if the figure changes while the scenario runs, and what grows meanwhile.
    pub points: Vec<(f64, f64)>,
    pub x: String,
}

impl Figure {
    pub fn new(name: &str, kind: Kind, unit: &str, value: f64) -> Self {
        Self {
            name: name.to_owned(),
            kind,
            unit: unit.to_owned(),
            value,
            points: vec![],
            x: String::new(),
        }
    }
}

/// One scenario. Its server has an empty store, and runs for it alone.
pub struct Scenario {
    pub name: &'static str,
    pub title: &'static str,
    pub security: Security,
    /// So long that one round is enough.
    pub is_long: bool,
    load: Load,
}

enum Load {
    Puts,
    Gets,
    Lists,
    Growth,
    Storm,
    Lone,
    Bursts,
    Idle,
    /// The number of connections, and that of a quick run.
    Rush(usize, usize),
    Wide,
    Connections,
    Keys,
    Beside,
    Stopped,
}

const fn scenario(name: &'static str, title: &'static str, security: Security, load: Load) -> Scenario {
    Scenario {
        name,
        title,
        security,
        is_long: false,
        load,
    }
}

/// All scenarios, in the order of the table.
pub const ALL: [Scenario; 20] = {
    use Security::{Ec, Plain, Rsa};
    [
        scenario("puts", "Put of 256 B, 8 × 32 in flight", Plain, Load::Puts),
        scenario(
            "gets",
            "Linearizable get of one key, 8 × 32 in flight",
            Plain,
            Load::Gets,
        ),
        scenario("lists", "List of 100,000 keys", Plain, Load::Lists),
        Scenario {
            is_long: true,
            ..scenario("growth", "Puts of 400 B up to 1,000,000 keys", Plain, Load::Growth)
        },
        scenario("storm", "200 clients list 10,000 keys at once", Plain, Load::Storm),
        scenario(
            "storm-mtls",
            "200 clients list 10,000 keys at once, mTLS RSA-2048",
            Rsa,
            Load::Storm,
        ),
        scenario("lone", "20 lone events/s to 1,000 connections", Plain, Load::Lone),
        scenario(
            "lone-mtls",
            "20 lone events/s to 1,000 connections, mTLS",
            Rsa,
            Load::Lone,
        ),
        scenario(
            "bursts",
            "20 bursts/s of 50 events to 1,000 connections",
            Plain,
            Load::Bursts,
        ),
        scenario(
            "bursts-mtls",
            "20 bursts/s of 50 events to 1,000 connections, mTLS",
            Rsa,
            Load::Bursts,
        ),
        scenario("idle", "Idle connection with 6 watches", Plain, Load::Idle),
        scenario(
            "idle-mtls",
            "Idle connection with 6 watches, mTLS P-256",
            Ec,
            Load::Idle,
        ),
        scenario(
            "idle-mtls-rsa",
            "Idle connection with 6 watches, mTLS RSA-2048",
            Rsa,
            Load::Idle,
        ),
        scenario("rush", "2,000 connections at once", Plain, Load::Rush(2000, 500)),
        Scenario {
            is_long: true,
            ..scenario(
                "rush-mtls",
                "5,000 connections at once, mTLS RSA-2048",
                Rsa,
                Load::Rush(5000, 300),
            )
        },
        Scenario {
            is_long: true,
            ..scenario("wide-mtls", "1 event/s to 9,000 connections, mTLS", Rsa, Load::Wide)
        },
        Scenario {
            is_long: true,
            ..scenario(
                "connections",
                "9,000 deliveries/s to 1,000 … 18,000 connections",
                Plain,
                Load::Connections,
            )
        },
        Scenario {
            is_long: true,
            ..scenario("keys", "10,000 … 3,000,000 keys of 400 B", Plain, Load::Keys)
        },
        Scenario {
            is_long: true,
            ..scenario(
                "beside",
                "Puts beside a list and a compaction, 500,000 keys",
                Plain,
                Load::Beside,
            )
        },
        Scenario {
            is_long: true,
            ..scenario("stopped", "Bursts beside 100 readers that stop", Plain, Load::Stopped)
        },
    ]
};

impl Scenario {
    /// Loads a server and measures.
    pub async fn run(&self, server: &Server, scale: Scale) -> anyhow::Result<Vec<Figure>> {
        match self.load {
            Load::Puts => calls::puts(server, scale).await,
            Load::Gets => calls::gets(server, scale).await,
            Load::Lists => calls::lists(server, scale).await,
            Load::Growth => calls::growth(server, scale).await,
            Load::Storm => agents::storm(server, scale).await,
            Load::Lone => agents::lone(server, scale).await,
            Load::Bursts => agents::bursts(server, scale).await,
            Load::Idle => agents::idle(server, scale).await,
            Load::Rush(full, quick) => agents::rush(server, scale.of(full, quick)).await,
            Load::Wide => agents::wide(server, scale).await,
            Load::Connections => slopes::connections(server, scale).await,
            Load::Keys => slopes::keys(server, scale).await,
            Load::Beside => slopes::beside(server, scale).await,
            Load::Stopped => slopes::stopped(server, scale).await,
        }
    }
}
