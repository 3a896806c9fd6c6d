//! Scenarios of replicas: what clients of a replica get beside clients of the etcd that it follows, and what a replica costs.
//! Each figure stands beside its target.
//!
//! The server that is measured has a core of its own: the replica, or etcd where clients are connected to it directly. The
//! upstream of a replica shares the core of the loader.

mod agents;
mod calls;
mod events;
mod report;
mod start;

use crate::calls::{fill, value};
use crate::client::{Call, Client, Page};
use crate::results::Machine;
use crate::scenarios::Scale;
use crate::server::{Follow, Program, Security, Server, Site};
use anyhow::{Context, bail};
use isthmus::pb::etcdserverpb::RangeRequest;
use report::Results;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep};

/// The beginning of the names of all scenarios.
pub const PREFIX: &str = "replicas";
/// How long a replica may take for revisions that it does not have yet.
const CATCH_UP: Duration = Duration::from_secs(60);
/// The bytes of values that fill a store.
const VALUE: usize = 400;

/// One scenario.
#[derive(Debug)]
pub struct Scenario {
    pub name: &'static str,
    pub title: &'static str,
    /// So long that one round is enough.
    is_long: bool,
    load: Load,
}

#[derive(Clone, Copy, Debug)]
enum Load {
    Lag,
    Lone,
    Connections,
    Feed,
    Start,
    Upstream,
    Reads,
    Puts,
    Loss,
}

const fn scenario(name: &'static str, title: &'static str, is_long: bool, load: Load) -> Scenario {
    Scenario {
        name,
        title,
        is_long,
        load,
    }
}

/// All scenarios, in the order of the table.
pub const ALL: [Scenario; 9] = [
    scenario(
        "replicas-lag",
        "First watcher behind the writer's answer, 325 puts/s",
        false,
        Load::Lag,
    ),
    scenario(
        "replicas-lone",
        "Lone event to the last of 5,000 watchers, mTLS",
        true,
        Load::Lone,
    ),
    scenario(
        "replicas-agents",
        "Connections with 6 watches, mTLS, beside many keys",
        true,
        Load::Connections,
    ),
    scenario("replicas-feed", "Events that a replica takes in", false, Load::Feed),
    scenario("replicas-start", "Start of a replica", false, Load::Start),
    scenario(
        "replicas-upstream",
        "Cost of a replica for its upstream",
        false,
        Load::Upstream,
    ),
    scenario("replicas-reads", "Linearizable get of one key", false, Load::Reads),
    scenario("replicas-puts", "Put of 256 B that is passed on", false, Load::Puts),
    scenario(
        "replicas-loss",
        "One of two replicas is killed under 5,000 agents, mTLS",
        true,
        Load::Loss,
    ),
];

/// The side of a target on which a value must be.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Target {
    None,
    AtMost(f64),
    AtLeast(f64),
}

/// A measured number: of clients of etcd, of clients of a replica, or of both.
#[derive(Clone, Debug)]
pub struct Figure {
    name: &'static str,
    unit: &'static str,
    direct: Option<f64>,
    replica: Option<f64>,
    target: Target,
}

/// Sizes that the command line can change.
#[derive(Clone, Copy, Debug, clap::Args)]
pub struct Sizes {
    /// Connections of replicas-agents. Each takes a descriptor of the loader and one of the replica. By default 8000, and 200
    /// with --quick.
    #[arg(long, value_name = "N")]
    connections: Option<usize>,
    /// Agents of replicas-lone and replicas-loss. By default 5000, and 100 with --quick.
    #[arg(long, value_name = "N")]
    agents: Option<usize>,
    /// Keys of the stores of replicas-agents and replicas-start. By default 300000, and 10000 with --quick.
    #[arg(long, value_name = "N")]
    keys: Option<usize>,
}

/// What scenarios measure, and where.
pub struct Bench<'a> {
    pub upstream: &'a Program,
    pub ours: &'a Program,
    /// The CPUs of the measured server, and those of the loader.
    pub cpus: Option<(&'a str, &'a str)>,
    pub scale: Scale,
    pub sizes: Sizes,
    pub rounds: usize,
}

/// Measures scenarios, and writes a table. `output` is the directory for it if it is not the one for such a run.
pub async fn measure(chosen: &[&Scenario], bench: &Bench<'_>, output: Option<&Path>) -> anyhow::Result<()> {
    let is_whole = chosen.len() == ALL.len() && bench.scale == Scale::Full;
    let default = if is_whole { "benches/results" } else { "target/bench" };
    let output = output.map_or_else(|| PathBuf::from(default), Path::to_owned);
    let mut results = Results::new(Machine::here(), bench);
    for scenario in chosen {
        let rounds = if scenario.is_long { 1 } else { bench.rounds };
        for round in 1..=rounds {
            let label = format!("{}, round {round} of {rounds}", scenario.name);
            eprintln!("{label}");
            match Box::pin(scenario.run(bench)).await {
                Ok(figures) => results.add(scenario, figures),
                Err(error) => {
                    eprintln!("{label}: {error:#}");
                    results.fail(scenario.name, &format!("{error:#}"));
                }
            }
        }
    }
    results.write(&output, is_whole)?;
    println!("{}", results.table());
    println!("The results are in {}.", output.display());
    match results.failures.first() {
        None => Ok(()),
        Some((scenario, why)) => bail!("{scenario} failed: {why}"),
    }
}

impl Scenario {
    async fn run(&self, bench: &Bench<'_>) -> anyhow::Result<Vec<Figure>> {
        match self.load {
            Load::Lag => events::lag(bench).await,
            Load::Lone => agents::lone(bench).await,
            Load::Connections => agents::connections(bench).await,
            Load::Feed => events::feed(bench).await,
            Load::Start => start::start(bench).await,
            Load::Upstream => events::upstream(bench).await,
            Load::Reads => calls::reads(bench).await,
            Load::Puts => calls::puts(bench).await,
            Load::Loss => agents::loss(bench).await,
        }
    }
}

impl Target {
    /// Whether a value is on the right side; `None` without a target.
    fn is_met(self, value: f64) -> Option<bool> {
        match self {
            Self::None => None,
            Self::AtMost(most) => Some(value <= most),
            Self::AtLeast(least) => Some(value >= least),
        }
    }
}

impl Figure {
    fn new(name: &'static str, unit: &'static str) -> Self {
        Self {
            name,
            unit,
            direct: None,
            replica: None,
            target: Target::None,
        }
    }

    fn direct(self, value: f64) -> Self {
        Self {
            direct: Some(value),
            ..self
        }
    }

    fn replica(self, value: f64) -> Self {
        Self {
            replica: Some(value),
            ..self
        }
    }

    fn target(self, target: Target) -> Self {
        Self { target, ..self }
    }
}

impl Bench<'_> {
    fn server_cpu(&self) -> Option<&str> {
        self.cpus.map(|(server, _)| server)
    }

    fn loader_cpu(&self) -> Option<&str> {
        self.cpus.map(|(_, loader)| loader)
    }

    /// An etcd whose clients are measured.
    async fn direct(&self, security: Security) -> anyhow::Result<Server> {
        self.upstream.start(security, self.server_cpu()).await
    }

    /// An etcd for replicas.
    async fn upstream(&self, security: Security) -> anyhow::Result<Server> {
        self.upstream.start_in(&Site::new(security)?, self.loader_cpu()).await
    }

    /// A replica of `upstream`.
    async fn replica(&self, upstream: &Server) -> anyhow::Result<Server> {
        self.ours.follow(upstream, self.server_cpu(), Follow::default()).await
    }

    fn connections(&self) -> usize {
        self.sizes.connections.unwrap_or(self.scale.of(8000, 200))
    }

    fn agents(&self) -> usize {
        self.sizes.agents.unwrap_or(self.scale.of(5000, 100))
    }

    fn keys(&self) -> usize {
        self.sizes.keys.unwrap_or(self.scale.of(300_000, 10_000))
    }
}

/// Fills a store with keys of 400 bytes.
async fn fill_keys(server: &Server, keys: usize) -> anyhow::Result<()> {
    let client = Client::connect(&server.authority).await?;
    fill(server, &client, 0..keys, &value(VALUE)).await
}

/// The last revision that a server has itself.
async fn revision(client: &Client) -> anyhow::Result<i64> {
    let get = RangeRequest {
        key: "revision".into(),
        serializable: true,
        ..RangeRequest::default()
    };
    Ok(Page::read(&client.call(Call::Range, &get).await?)?.revision)
}

/// Waits until a server has a revision. The questions for it must cost little beside what is measured.
async fn has_revision(client: &Client, wanted: i64) -> anyhow::Result<()> {
    let began = Instant::now();
    loop {
        let found = revision(client).await?;
        if found >= wanted {
            return Ok(());
        }
        if began.elapsed() > CATCH_UP {
            bail!(
                "the replica is at revision {found} after {} s, not at {wanted}",
                CATCH_UP.as_secs()
            );
        }
        sleep(Duration::from_millis(25)).await;
    }
}

/// The sum of a metric of a server, over all labels; 0 if the server does not have it.
async fn metric(server: &Server, name: &str) -> anyhow::Result<f64> {
    let mut stream = TcpStream::connect(&server.authority).await?;
    let request = format!("GET /metrics HTTP/1.0\r\nHost: {}\r\n\r\n", server.authority);
    stream.write_all(request.as_bytes()).await?;
    let mut page = vec![];
    stream.read_to_end(&mut page).await.context("cannot read metrics")?;
    let page = String::from_utf8_lossy(&page);
    let values = page.lines().filter_map(|line| {
        let rest = line.strip_prefix(name)?;
        let is_metric = rest.starts_with(['{', ' ']);
        is_metric
            .then(|| rest.rsplit(' ').next()?.parse::<f64>().ok())
            .flatten()
    });
    Ok(values.sum())
}

/// Times that all states were loaded by a replica, instead of being followed.
async fn loads(replica: &Server) -> anyhow::Result<f64> {
    metric(replica, "isthmus_follow_loads_total").await
}
