//! Many agents at a replica, and the loss of a replica under them.

use super::{Bench, Figure, Target, fill_keys};
use crate::agents::{Ran, plan, run, run_at};
use crate::scenarios::Scale;
use crate::server::{Security, Server};
use anyhow::{Context, bail};
use isthmus::kvstore::config::ClientConfig;
use isthmus::loadtest::outcome::Second;
use isthmus::loadtest::plan::Plan;
use isthmus::loadtest::{Progress, Target as Endpoints};
use std::time::Duration;
use tokio::sync::watch;

/// Events per second to each agent, in a cluster of many nodes.
const CHURN: f64 = 1.3;
/// Keys that agents list and watch.
const KEYS: u32 = 400;
/// The name of the phase in which agents watch.
const WATCHING: &str = "watching";

fn long(scale: Scale) -> Duration {
    scale.time() * scale.of(6, 4)
}

/// One event a second: until the first, most, and the last of the agents have it.
pub async fn lone(bench: &Bench<'_>) -> anyhow::Result<Vec<Figure>> {
    let plan = || Plan {
        agents: bench.agents(),
        keys: KEYS,
        rate: 1.0,
        duration: long(bench.scale),
        ..plan()
    };
    let etcd = bench.direct(Security::Rsa).await?;
    let direct = Latencies::of(&run(&etcd, plan()).await?, bench.agents())?;
    drop(etcd);
    let upstream = bench.upstream(Security::Rsa).await?;
    let replica = bench.replica(&upstream).await?;
    let through = Latencies::of(&run(&replica, plan()).await?, bench.agents())?;
    let both = |name, of: fn(&Latencies) -> f64| Figure::new(name, "ms").direct(of(&direct)).replica(of(&through));
    Ok(vec![
        both("answer to the last watcher, p50", |found| found.last.0),
        both("answer to the last watcher, p99", |found| found.last.1).target(Target::AtMost(100.0)),
        both("request to all watchers, p50", |found| found.all.0),
        both("request to all watchers, p99", |found| found.all.1),
        Figure::new("CPU per delivered event", "µs")
            .direct(direct.cpu)
            .replica(through.cpu),
    ])
}

/// Latencies of lone events in ms, each as p50 and p99.
struct Latencies {
    /// From the answer to the writer until the last agent has the event.
    last: (f64, f64),
    /// From the request of the writer until any agent has the event.
    all: (f64, f64),
    /// CPU time of the server for each delivered event, in µs.
    cpu: f64,
}

impl Latencies {
    fn of(ran: &Ran, agents: usize) -> anyhow::Result<Self> {
        let mut last = last_of_each(ran, agents as u64);
        if last.is_empty() {
            bail!("no event reached all agents");
        }
        last.sort_by(f64::total_cmp);
        let quantile = |quantile: f64| last[((last.len() - 1) as f64 * quantile).round() as usize];
        let all = ran.latency("send to delivery")?;
        Ok(Self {
            last: (quantile(0.5), quantile(0.99)),
            all: (all.p50_ms, all.p99_ms),
            cpu: ran.cpu("live")?,
        })
    }
}

/// When the last agent had each event, in ms. The samples of the run are those of a second, and so are the events; an event
/// that falls into two seconds is put together.
fn last_of_each(ran: &Ran, agents: u64) -> Vec<f64> {
    let (mut found, mut delivered, mut most) = (vec![], 0, 0);
    for second in &ran.outcome.seconds {
        delivered += second.delivered;
        if second.delivered > 0 {
            most = most.max(second.max);
        }
        if delivered >= agents {
            found.push(most as f64 / 1000.0);
            (delivered, most) = (delivered % agents, 0);
        }
    }
    found
}

/// Memory and CPU time of a replica with many keys and many connections.
pub async fn connections(bench: &Bench<'_>) -> anyhow::Result<Vec<Figure>> {
    let upstream = bench.upstream(Security::Rsa).await?;
    fill_keys(&upstream, bench.keys()).await?;
    let replica = bench.replica(&upstream).await?;
    let plan = Plan {
        agents: bench.connections(),
        keys: 12,
        rate: CHURN,
        duration: long(bench.scale),
        ..plan()
    };
    let ran = run(&replica, plan).await?;
    let (live, spent) = ran.phase("live")?;
    let latency = ran.latency("send to delivery")?;
    let (_, connecting) = ran.phase("connect")?;
    Ok(vec![
        Figure::new("memory of the replica", "MiB")
            .replica(spent.rss_after as f64 / f64::from(1 << 20))
            .target(Target::AtMost(1024.0)),
        Figure::new("memory of the replica before they connect", "MiB")
            .replica(connecting.rss_before as f64 / f64::from(1 << 20)),
        Figure::new("1.3 events/s to each: CPU of the replica", "cores")
            .replica(spent.cpu_secs / live.secs)
            .target(Target::AtMost(0.5)),
        Figure::new("1.3 events/s to each: CPU per delivered event", "µs").replica(ran.cpu("live")?),
        Figure::new("request to all watchers, p99", "ms").replica(latency.p99_ms),
        Figure::new("CPU of the replica per connection", "ms").replica(ran.cpu("connect")? / 1000.0),
        Figure::new("lost connections", "").replica(ran.lost()),
    ])
}

/// Two replicas with half of the agents each, of which one is killed.
pub async fn loss(bench: &Bench<'_>) -> anyhow::Result<Vec<Figure>> {
    let upstream = bench.upstream(Security::Rsa).await?;
    let (killed, left) = (bench.replica(&upstream).await?, bench.replica(&upstream).await?);
    let plan = Plan {
        agents: bench.agents(),
        keys: KEYS,
        rate: 1.0,
        // Quick runs, too, need time until all agents are back.
        duration: bench.scale.of(Duration::from_secs(60), Duration::from_secs(12)),
        ..plan()
    };
    let before = bench.scale.of(5, 2);
    let (progress, seen) = watch::channel(Progress::default());
    let endpoints = both(&killed, &left);
    let (ran, killed) = tokio::join!(run_at(&endpoints, plan.clone(), &progress), kill(killed, before, seen));
    killed?;
    let ran = ran?;
    let back = ran
        .latency("loss to in sync")
        .context("no agent has lost its connection")?;
    let counts = &ran.summary.counts;
    let (agents, keys) = (bench.agents() as u64, plan.total_keys());
    // Every agent lists once, when it connects for the first time.
    let listed = counts.listed.saturating_sub(agents * keys) as f64 / keys.max(1) as f64;
    if counts.verified < agents {
        bail!("{} of {agents} agents have all events", counts.verified);
    }
    Ok(vec![
        Figure::new("agents that lost their connection", "").replica(counts.disconnects as f64),
        Figure::new("until the last of them is back", "s")
            .replica(back.max_ms / 1000.0)
            .target(Target::AtMost(10.0)),
        Figure::new("until they are back, p50", "s").replica(back.p50_ms / 1000.0),
        Figure::new("lists that they made", "")
            .replica(listed.ceil() + counts.relists as f64)
            .target(Target::AtMost(0.0)),
        Figure::new("CPU of the other replica meanwhile", "s")
            .replica(spent_meanwhile(&ran, agents)?)
            .target(Target::AtMost(5.0)),
        Figure::new("events that an agent lacked at the end", "").replica(counts.behind as f64),
    ])
}

/// Both servers as endpoints of one store. The one that is left is measured.
fn both(killed: &Server, left: &Server) -> Endpoints {
    let (first, second) = (killed.target(), left.target());
    Endpoints {
        config: ClientConfig {
            // What the run has written is removed through the first one.
            endpoints: [second.config.endpoints, first.config.endpoints].concat(),
            ..second.config
        },
        users: second.users,
        pid: second.pid,
    }
}

/// Kills a server after agents have watched for some seconds.
async fn kill(server: Server, after: u64, mut seen: watch::Receiver<Progress>) -> anyhow::Result<()> {
    let is_time = |progress: &Progress| progress.phase == WATCHING && progress.done >= after;
    seen.wait_for(is_time)
        .await
        .context("the run ended before a replica was killed")?;
    server.signal("KILL")
}

/// CPU time in seconds that the measured server has spent while agents were missing, in whole seconds of the run.
fn spent_meanwhile(ran: &Ran, agents: u64) -> anyhow::Result<f64> {
    let is_missing = |second: &&Second| second.live < i64::try_from(agents).unwrap_or(i64::MAX);
    // Before all were there, agents connected for the first time.
    let mut seconds = ran
        .outcome
        .seconds
        .iter()
        .skip_while(is_missing)
        .skip_while(|second| !is_missing(second));
    let mut spent = 0.0;
    for second in &mut seconds {
        spent += second.server_cpu;
        // The second in which the last agent came back counts, too.
        if !is_missing(&second) {
            return Ok(spent);
        }
    }
    bail!("the run ended before all agents were back")
}
