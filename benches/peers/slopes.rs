//! Scenarios of what grows and of what disturbs: costs over the number of connections and of keys, and the latency of
//! some clients while others list, compact or stop reading.

use crate::agents::{plan, run};
use crate::calls::{Load, RANGE, connect, fill, list_for, load, micros, put, value};
use crate::client::{Call, Client, Page};
use crate::scenarios::{Figure, Kind, Scale};
use crate::server::Server;
use isthmus::loadtest::outcome::{WITH_SLOW_READERS, WITHOUT_SLOW_READERS};
use isthmus::loadtest::plan::{Plan, SlowReadersAt};
use isthmus::pb::etcdserverpb::{CompactionRequest, RangeRequest};
use std::time::Duration;
use tokio::time::Instant;

/// Events that are delivered per second, whatever the number of connections: several writes in the time of a measurement.
const DELIVERIES: f64 = 9000.0;
/// Addresses that agents connect from: a store gives one of them three quarters of its connections at most.
const ADDRESSES: u32 = 4;

fn line(mut figure: Figure, x: &str, points: Vec<(f64, f64)>) -> Figure {
    figure.x = x.to_owned();
    figure.points = points;
    figure
}

/// The same number of deliveries per second, to more and more connections.
pub async fn connections(server: &Server, scale: Scale) -> anyhow::Result<Vec<Figure>> {
    let sizes: &[usize] = scale.of(&[1000, 5000, 10_000, 18_000], &[100, 200, 300]);
    let (mut cpu, mut p99) = (vec![], vec![]);
    for &agents in sizes {
        let plan = Plan {
            agents,
            keys: 12,
            // Of several writers each would write less than once in the time.
            writers: 1,
            rate: DELIVERIES / agents as f64,
            duration: scale.time(),
            source_addresses: ADDRESSES,
            ..plan()
        };
        let ran = run(server, plan).await?;
        cpu.push((agents as f64, ran.cpu("live")?));
        p99.push((agents as f64, ran.latency("send to delivery")?.p99_ms));
    }
    let last = |points: &[(f64, f64)]| points.last().map_or(0.0, |point| point.1);
    let (most_cpu, most_p99) = (last(&cpu), last(&p99));
    Ok(vec![
        line(
            Figure::new("server CPU per delivered event", Kind::Cpu, "µs", most_cpu),
            "connections",
            cpu,
        ),
        line(
            Figure::new("write to delivery, p99", Kind::Latency, "ms", most_p99),
            "connections",
            p99,
        ),
    ])
}

/// Puts, gets, lists and memory of a store with more and more keys.
pub async fn keys(server: &Server, scale: Scale) -> anyhow::Result<Vec<Figure>> {
    // etcd would take minutes and many gigabytes for the last size.
    let sizes: &[usize] = match server.is_ours {
        true => scale.of(&[10_000, 100_000, 1_000_000, 3_000_000], &[5000, 20_000]),
        false => scale.of(&[10_000, 100_000, 1_000_000], &[5000, 20_000]),
    };
    let clients = connect(server).await?;
    let (value, empty) = (value(400), server.cost()?.rss);
    let time = scale.time() / 3;
    let (mut puts, mut gets, mut lists, mut memory) = (vec![], vec![], vec![], vec![]);
    let mut filled = 0;
    for &size in sizes {
        fill(server, &clients[0], filled..size, &value).await?;
        filled = size;
        // The puts of the former size are history.
        compact(&clients[0]).await?;
        let x = size as f64;
        memory.push((x, server.cost()?.rss.saturating_sub(empty) as f64 / x));
        let at = |n: usize| n.wrapping_mul(7919) % size;
        let write = async |client: &Client, n: usize| client.call(Call::Put, &put(at(n), &value)).await.map(drop);
        puts.push((x, load(server, time, &clients, 32, write).await?.cpu_per_call()));
        let read = async |client: &Client, n: usize| {
            let get = RangeRequest {
                key: put(at(n), &value).key,
                ..RangeRequest::default()
            };
            client.call(Call::Range, &get).await.map(drop)
        };
        gets.push((x, load(server, time, &clients, 32, read).await?.cpu_per_call()));
        let before = server.cost()?;
        let listed = list_for(&clients[0], time).await?;
        lists.push((x, micros(server.cost()?.cpu - before.cpu, listed)));
    }
    let figure = |name, kind, unit, points: Vec<(f64, f64)>| {
        let last = points.last().map_or(0.0, |point| point.1);
        line(Figure::new(name, kind, unit, last), "keys", points)
    };
    Ok(vec![
        figure("server CPU per put", Kind::Cpu, "µs", puts),
        figure("server CPU per get", Kind::Cpu, "µs", gets),
        figure("server CPU per listed key, by 256", Kind::Cpu, "µs", lists),
        figure("memory per key", Kind::Memory, "B", memory),
    ])
}

/// The latency of puts, one at a time on each connection: alone, beside a client that lists everything without end, and
/// beside compactions.
pub async fn beside(server: &Server, scale: Scale) -> anyhow::Result<Vec<Figure>> {
    let keys = scale.of(500_000, 20_000);
    let clients = connect(server).await?;
    let other = Client::connect(&server.authority).await?;
    let value = value(256);
    fill(server, &other, 0..keys, &value).await?;
    let write = async |client: &Client, n: usize| {
        let message = put(n.wrapping_mul(7919) % keys, &value);
        client.call(Call::Put, &message).await.map(drop)
    };
    let time = scale.time() / 2;
    let alone = load(server, time, &clients, 1, write).await?;
    let (listing, listed) = tokio::try_join!(load(server, time, &clients, 1, write), list_for(&other, time))?;
    // History to compact: every key twice.
    fill(server, &other, 0..keys, &value).await?;
    let (compacting, compactions) =
        tokio::try_join!(load(server, time, &clients, 1, write), compact_for(&other, time))?;
    let figure = |name, load: &Load| Figure::new(name, Kind::Latency, "ms", load.ms(0.99));
    Ok(vec![
        figure("p99 of a put, alone", &alone),
        figure("p99 of a put beside a list", &listing),
        figure("p99 of a put beside a compaction", &compacting),
        Figure::new(
            "listed keys per second",
            Kind::Rate,
            "/s",
            listed as f64 / time.as_secs_f64(),
        ),
        Figure::new("compactions", Kind::Count, "", compactions as f64),
    ])
}

/// Compacts everything up to the present, as often as the store allows.
async fn compact_for(client: &Client, time: Duration) -> anyhow::Result<usize> {
    let (began, mut count) = (Instant::now(), 0);
    while began.elapsed() < time {
        compact(client).await?;
        count += 1;
    }
    Ok(count)
}

/// Compacts everything up to the present, and waits until that is done.
async fn compact(client: &Client) -> anyhow::Result<()> {
    let head = RangeRequest {
        key: RANGE.0.into(),
        ..RangeRequest::default()
    };
    let revision = Page::read(&client.call(Call::Range, &head).await?)?.revision;
    let message = CompactionRequest {
        revision,
        physical: true,
    };
    client.call(Call::Compact, &message).await.map(drop)
}

/// Bursts to agents: without, with, and after a hundred connections that stop reading, a third of the time each.
pub async fn stopped(server: &Server, scale: Scale) -> anyhow::Result<Vec<Figure>> {
    let plan = Plan {
        agents: scale.of(500, 50),
        writers: 50,
        burst: 50,
        burst_interval: Duration::from_millis(200),
        slow_readers: scale.of(100, 10),
        slow_readers_at: SlowReadersAt::Middle,
        duration: scale.time() * 3,
        ..plan()
    };
    let ran = run(server, plan).await?;
    let (without, alone) = ran.delivery(WITHOUT_SLOW_READERS)?;
    let (with, beside) = ran.delivery(WITH_SLOW_READERS)?;
    let grown = beside.rss_most.saturating_sub(alone.rss_after);
    let memory = Figure::new(
        "memory, at most beside them",
        Kind::Count,
        "MB",
        beside.rss_most as f64 / 1e6,
    );
    Ok(vec![
        Figure::new("commit to delivery, p99", Kind::Latency, "ms", without),
        Figure::new(
            "commit to delivery, p99, beside 100 readers that stopped",
            Kind::Latency,
            "ms",
            with,
        ),
        Figure::new("growth of memory beside them", Kind::Count, "MB", grown as f64 / 1e6),
        line(memory, "s", ran.memory()),
    ])
}
