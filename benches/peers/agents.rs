//! Scenarios of agents: the load tester's agents and writers, against each server in turn.

use crate::scenarios::{Figure, Kind, Scale};
use crate::server::Server;
use anyhow::{Context, bail};
use isthmus::loadtest;
use isthmus::loadtest::outcome::{Outcome, PhaseCosts, Second, Spent};
use isthmus::loadtest::plan::Plan;
use isthmus::loadtest::report::{Quantiles, Summary};
use isthmus::loadtest::scenarios::Scenario;
use isthmus::util::lifecycle::Lifecycle;
use std::time::Duration;
use tokio::sync::watch;

/// The settings that all scenarios share: six watches on one connection, no change and nothing but one cluster.
pub fn plan() -> Plan {
    Plan {
        agents: 1000,
        clusters: 1,
        keys: 400,
        value_bytes: 256,
        watches: 6,
        rate: 0.0,
        deletes: 0,
        connect_rate: 500.0,
        duration: Duration::from_secs(1),
        aborted_handshakes: false,
        settle: Duration::from_secs(120),
        ..Scenario::Quick.plan()
    }
}

/// A run with its figures.
pub struct Ran {
    pub outcome: Outcome,
    pub summary: Summary,
}

pub async fn run(server: &Server, plan: Plan) -> anyhow::Result<Ran> {
    let (progress, _) = watch::channel(loadtest::Progress::default());
    run_at(&server.target(), plan, &progress).await
}

/// Runs against any target, and tells how far the run is.
pub async fn run_at(
    target: &loadtest::Target,
    plan: Plan,
    progress: &watch::Sender<loadtest::Progress>,
) -> anyhow::Result<Ran> {
    let life = Lifecycle::default();
    let outcome = Box::pin(loadtest::run(plan, target, progress, &life)).await?;
    life.stop();
    let summary = Summary::of(&outcome);
    for (error, n) in &summary.errors {
        eprintln!("  {n} × {error}");
    }
    // Lost connections are a figure of some scenarios. Wrong data never is.
    let found = &summary.findings;
    if found.missing + found.duplicate + found.reordered + found.wrong_state > 0 {
        bail!("the server broke a promise: {}", summary.faults.join("; "));
    }
    Ok(Ran { outcome, summary })
}

impl Ran {
    pub fn phase(&self, name: &str) -> anyhow::Result<(&PhaseCosts, Spent)> {
        let phase = self.outcome.phases.iter().find(|phase| phase.name == name);
        let phase = phase.with_context(|| format!("the run has no phase {name}"))?;
        Ok((phase, phase.server.context("the server's process was not found")?))
    }

    /// CPU time of the server for each operation of a phase, in µs.
    pub fn cpu(&self, name: &str) -> anyhow::Result<f64> {
        let (phase, spent) = self.phase(name)?;
        if phase.operations == 0 {
            bail!(
                "nothing happened in the phase {name}: {}",
                self.summary.faults.join("; ")
            );
        }
        Ok(spent.cpu_secs * 1e6 / phase.operations as f64)
    }

    /// The p99 from commit to delivery of a phase that is compared with others, in ms, and what the server spent in it.
    pub fn delivery(&self, name: &str) -> anyhow::Result<(f64, Spent)> {
        let (phase, spent) = self.phase(name)?;
        let delivery = phase.delivery.as_ref().context("the phase was not compared")?;
        Ok((delivery.at(0.99).as_secs_f64() * 1000.0, spent))
    }

    /// The server's memory in MB, by seconds since the start.
    pub fn memory(&self) -> Vec<(f64, f64)> {
        let seconds = &self.outcome.seconds;
        let first = seconds.first().map_or(0, |second| second.at);
        let at = |second: &Second| ((second.at - first) as f64, second.server_rss as f64 / 1e6);
        seconds.iter().map(at).collect()
    }

    pub fn latency(&self, title: &str) -> anyhow::Result<&Quantiles> {
        let found = self.summary.latencies.get(title);
        found.with_context(|| format!("the run has no latency {title:?}"))
    }

    /// Attempts to connect that failed, and connections that were lost.
    pub fn lost(&self) -> f64 {
        let failed = self
            .summary
            .errors
            .iter()
            .filter(|(error, _)| !error.starts_with("writer"));
        let failed: u64 = failed.map(|(_, n)| n).sum();
        failed.max(self.summary.counts.disconnects) as f64
    }
}

/// Agents that connect all at once and list many keys.
pub async fn storm(server: &Server, scale: Scale) -> anyhow::Result<Vec<Figure>> {
    let plan = Plan {
        agents: scale.of(200, 30),
        keys: scale.of(10_000, 5000),
        connect_rate: 0.0,
        ..plan()
    };
    let ran = run(server, plan).await?;
    Ok(vec![
        Figure::new("server CPU per client", Kind::Cpu, "ms", ran.cpu("connect")? / 1000.0),
        Figure::new(
            "until all clients are in sync",
            Kind::Latency,
            "s",
            ran.phase("connect")?.0.secs,
        ),
    ])
}

/// Events that come alone, to many connections. Agents answer each event by a ping, as grpc-go does; a second run without
/// these pings shows what they cost.
pub async fn lone(server: &Server, scale: Scale) -> anyhow::Result<Vec<Figure>> {
    let plan = |bdp_pings| Plan {
        agents: scale.of(1000, 300),
        rate: 20.0,
        duration: scale.time(),
        bdp_pings,
        ..plan()
    };
    let (ran, silent) = (run(server, plan(true)).await?, run(server, plan(false)).await?);
    let latency = ran.latency("send to delivery")?;
    Ok(vec![
        Figure::new("server CPU per delivered event", Kind::Cpu, "µs", ran.cpu("live")?),
        Figure::new(
            "server CPU per delivered event, agents without pings",
            Kind::Cpu,
            "µs",
            silent.cpu("live")?,
        ),
        Figure::new("write to delivery, p50", Kind::Latency, "ms", latency.p50_ms),
        Figure::new("write to delivery, p99", Kind::Latency, "ms", latency.p99_ms),
    ])
}

/// Twenty bursts of 50 events a second, to many connections.
pub async fn bursts(server: &Server, scale: Scale) -> anyhow::Result<Vec<Figure>> {
    let plan = Plan {
        agents: scale.of(1000, 100),
        // One writer for each event, since a writer has one request at a time.
        writers: 50,
        burst: 50,
        burst_interval: Duration::from_millis(50),
        duration: scale.time(),
        ..plan()
    };
    let ran = run(server, plan).await?;
    let (live, _) = ran.phase("live")?;
    Ok(vec![
        Figure::new("server CPU per delivered event", Kind::Cpu, "µs", ran.cpu("live")?),
        Figure::new(
            "delivered events per second",
            Kind::Rate,
            "/s",
            live.operations as f64 / live.secs,
        ),
        Figure::new(
            "write to delivery, p99",
            Kind::Latency,
            "ms",
            ran.latency("send to delivery")?.p99_ms,
        ),
    ])
}

/// Connections that open their watches and then do nothing.
pub async fn idle(server: &Server, scale: Scale) -> anyhow::Result<Vec<Figure>> {
    let plan = Plan {
        agents: scale.of(2000, 300),
        keys: 12,
        ..plan()
    };
    let ran = run(server, plan).await?;
    let memory = ran
        .summary
        .server_bytes_per_connection
        .context("the server's memory was not found")?;
    Ok(vec![
        Figure::new("memory per connection", Kind::Memory, "KB", memory / 1000.0),
        Figure::new(
            "server CPU to connect and watch",
            Kind::Cpu,
            "ms",
            ran.cpu("connect")? / 1000.0,
        ),
    ])
}

/// Connections that are all opened at once.
pub async fn rush(server: &Server, connections: usize) -> anyhow::Result<Vec<Figure>> {
    let plan = Plan {
        agents: connections,
        keys: 12,
        connect_rate: 0.0,
        ..plan()
    };
    let ran = run(server, plan).await?;
    let connect = ran.latency("connect")?;
    Ok(vec![
        Figure::new(
            "server CPU per connection",
            Kind::Cpu,
            "ms",
            ran.cpu("connect")? / 1000.0,
        ),
        Figure::new("until connected, p50", Kind::Latency, "s", connect.p50_ms / 1000.0),
        Figure::new("until connected, p99", Kind::Latency, "s", connect.p99_ms / 1000.0),
        Figure::new(
            "until all clients watch",
            Kind::Latency,
            "s",
            ran.phase("connect")?.0.secs,
        ),
        Figure::new("lost connections", Kind::Count, "", ran.lost()),
    ])
}

/// One event a second to very many connections.
pub async fn wide(server: &Server, scale: Scale) -> anyhow::Result<Vec<Figure>> {
    let plan = Plan {
        agents: scale.of(9000, 500),
        keys: 12,
        rate: 1.0,
        duration: scale.time() * 2,
        ..plan()
    };
    let ran = run(server, plan).await?;
    let latency = ran.latency("send to delivery")?;
    Ok(vec![
        Figure::new("server CPU per delivered event", Kind::Cpu, "µs", ran.cpu("live")?),
        Figure::new("write to delivery, p50", Kind::Latency, "ms", latency.p50_ms),
        Figure::new("write to delivery, p99", Kind::Latency, "ms", latency.p99_ms),
    ])
}
