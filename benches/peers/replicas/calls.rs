//! Calls at a replica beside the same calls at its upstream.

use super::{Bench, Figure, Target};
use crate::calls::{IN_FLIGHT, SPACE, connect, fill, load, put, value};
use crate::client::{Call, Client, Page};
use crate::server::{Security, Server};
use anyhow::bail;
use isthmus::pb::etcdserverpb::RangeRequest;

/// An upstream with keys, and a replica of it.
async fn pair(bench: &Bench<'_>) -> anyhow::Result<(Server, Server)> {
    let upstream = bench.upstream(Security::Plain).await?;
    let client = Client::connect(&upstream.authority).await?;
    fill(&upstream, &client, 0..SPACE, &value(256)).await?;
    let replica = bench.replica(&upstream).await?;
    Ok((upstream, replica))
}

/// The latency of lone calls, and what calls cost a replica that has many of them at once.
struct Measured {
    /// Medians of calls, one at a time, in ms: at the upstream, and at the replica.
    p50: (f64, f64),
    /// CPU time of the replica for each of many calls, in µs.
    cpu: f64,
    /// Calls per second, with many at once: at the upstream, and at the replica.
    rate: (f64, f64),
}

async fn measure(
    bench: &Bench<'_>,
    call: impl AsyncFn(&Client, usize) -> anyhow::Result<()>,
) -> anyhow::Result<Measured> {
    let (upstream, replica) = pair(bench).await?;
    let (near, far) = (connect(&upstream).await?, connect(&replica).await?);
    let time = bench.scale.time();
    // The first calls are not measured.
    load(&replica, time / 5, &far, IN_FLIGHT, &call).await?;
    let lone = (
        load(&upstream, time / 2, &near[..1], 1, &call).await?,
        load(&replica, time / 2, &far[..1], 1, &call).await?,
    );
    let many = (
        load(&upstream, time / 2, &near, IN_FLIGHT, &call).await?,
        load(&replica, time, &far, IN_FLIGHT, &call).await?,
    );
    Ok(Measured {
        p50: (lone.0.ms(0.5), lone.1.ms(0.5)),
        cpu: many.1.cpu_per_call(),
        rate: (
            many.0.calls() as f64 / many.0.secs(),
            many.1.calls() as f64 / many.1.secs(),
        ),
    })
}

impl Measured {
    fn figures(&self, added: Figure, mut costs: Vec<Figure>) -> Vec<Figure> {
        let mut figures = vec![
            Figure::new("latency of lone calls, p50", "ms")
                .direct(self.p50.0)
                .replica(self.p50.1),
            added.replica(self.p50.1 - self.p50.0),
        ];
        figures.append(&mut costs);
        figures.push(
            Figure::new("calls per second, 8 × 32 in flight", "/s")
                .direct(self.rate.0)
                .replica(self.rate.1),
        );
        figures
    }
}

/// Linearizable gets.
pub async fn reads(bench: &Bench<'_>) -> anyhow::Result<Vec<Figure>> {
    let value = value(0);
    let call = async |client: &Client, number: usize| {
        let get = RangeRequest {
            key: put(number.wrapping_mul(7919) % SPACE, &value).key,
            ..RangeRequest::default()
        };
        match Page::read(&client.call(Call::Range, &get).await?)?.keys {
            1 => Ok(()),
            keys => bail!("a get of one key returned {keys} keys"),
        }
    };
    let measured = measure(bench, call).await?;
    let added = Figure::new("added latency, p50", "ms").target(Target::AtMost(2.0));
    let rate = Figure::new("reads per second of a core of the replica", "/s/core")
        .replica(1e6 / measured.cpu)
        .target(Target::AtLeast(60_000.0));
    Ok(measured.figures(added, vec![rate]))
}

/// Puts over keys that exist.
pub async fn puts(bench: &Bench<'_>) -> anyhow::Result<Vec<Figure>> {
    let value = value(256);
    let call = async |client: &Client, number: usize| {
        let message = put(number.wrapping_mul(7919) % SPACE, &value);
        client.call(Call::Put, &message).await.map(drop)
    };
    let measured = measure(bench, call).await?;
    let added = Figure::new("added latency, p50", "ms").target(Target::AtMost(0.5));
    // The event of the put comes back to the replica, which is a part of the cost.
    let cpu = Figure::new("CPU of the replica per put, its event included", "µs")
        .replica(measured.cpu)
        .target(Target::AtMost(40.0));
    Ok(measured.figures(added, vec![cpu]))
}
