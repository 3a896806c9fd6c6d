//! Starts of a replica: from a snapshot of its upstream, and from its own directory.

use super::{Bench, Figure, Target, fill_keys, loads, metric};
use crate::server::{Follow, Security, Server};
use anyhow::bail;
use std::time::Duration;
use tokio::time::{Instant, sleep};

/// How long a replica may take to write its copy.
const COPIED: Duration = Duration::from_secs(60);

/// What a start has taken.
struct Start {
    secs: f64,
    cpu: f64,
    peak: f64,
}

/// Looks at a replica that has just answered for the first time. `expected` is the number of times that it has loaded
/// everything.
async fn look(replica: &Server, expected: f64) -> anyhow::Result<Start> {
    let cost = replica.cost()?;
    let found = loads(replica).await?;
    if found != expected {
        bail!("the replica has loaded everything {found} times, not {expected} times");
    }
    Ok(Start {
        secs: replica.ready_after.as_secs_f64(),
        cpu: cost.cpu.as_secs_f64(),
        peak: cost.peak as f64,
    })
}

pub async fn start(bench: &Bench<'_>) -> anyhow::Result<Vec<Figure>> {
    let keys = bench.keys();
    let upstream = bench.upstream(Security::Plain).await?;
    fill_keys(&upstream, keys).await?;
    let before = upstream.cost()?.cpu;
    let replica = bench.replica(&upstream).await?;
    let snapshot = look(&replica, 1.0).await?;
    let asked = (upstream.cost()?.cpu - before).as_secs_f64();
    drop(replica);
    let with = || Follow { data: Some("copy") };
    let writing = bench.ours.follow(&upstream, bench.server_cpu(), with()).await?;
    let begun = Instant::now();
    // A copy that is incomplete when its replica ends is of no use.
    while metric(&writing, "isthmus_durable_checkpoints_total").await? == 0.0 {
        if begun.elapsed() > COPIED {
            bail!("the replica has not written its copy within {COPIED:?}");
        }
        sleep(Duration::from_millis(50)).await;
    }
    let status = writing.end().await?;
    if !status.success() {
        bail!("the replica ended with {status}");
    }
    let replica = bench.ours.follow(&upstream, bench.server_cpu(), with()).await?;
    let own = look(&replica, 0.0).await?;
    let million = keys as f64 / 1e6;
    Ok(vec![
        Figure::new("from a snapshot: until it answers, per million keys", "s")
            .replica(snapshot.secs / million)
            .target(Target::AtMost(10.0)),
        Figure::new("from a snapshot: most memory, per key", "B")
            .replica(snapshot.peak / keys as f64)
            .target(Target::AtMost(1500.0)),
        Figure::new("from a snapshot: CPU of the replica, per million keys", "s").replica(snapshot.cpu / million),
        Figure::new("from a snapshot: CPU of the upstream, per million keys", "s").replica(asked / million),
        Figure::new("from its directory: until it answers, per million keys", "s")
            .replica(own.secs / million)
            .target(Target::AtMost(2.0)),
        Figure::new("from its directory: most memory, per key", "B").replica(own.peak / keys as f64),
        Figure::new("from its directory: CPU of the replica, per million keys", "s").replica(own.cpu / million),
    ])
}
