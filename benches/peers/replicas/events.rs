//! Events: how late they are at a replica, what they cost it, and what they cost its upstream.

use super::{Bench, Figure, Target, has_revision, loads, metric, revision};
use crate::calls::{IN_FLIGHT, RANGE, SPACE, connect, fill, load, micros, put, value};
use crate::client::{Call, Client, Page, Watch};
use crate::server::{Cost, Security, Server};
use anyhow::{Context, bail};
use futures::future::try_join_all;
use hdrhistogram::Histogram;
use isthmus::pb::etcdserverpb::RangeRequest;
use std::cell::{Cell, RefCell};
use std::time::Duration;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};

/// Puts per second: the load of Cilium's own scale test.
const RATE: f64 = 325.0;
/// The longest wait for an event.
const LATE: Duration = Duration::from_secs(10);
/// Revisions that a replica misses and takes in one after the other. With 20,000 it would load everything.
const MISSED: usize = 15_000;
/// Keys that are written by a hundred while a replica is stopped.
const MISSED_KEYS: usize = 50_000;
/// A replica that was stopped for longer gives its connection up.
const STOP_MAX: Duration = Duration::from_secs(8);
/// Replicas whose cost is told from that of no replica.
const REPLICAS: usize = 3;

/// The moments of one put, and those in which its event came.
struct Moments {
    sent: Instant,
    answered: Cell<Option<Instant>>,
    seen: [Cell<Option<Instant>>; 2],
}

/// A watcher at etcd and one at a replica, and a writer at etcd.
pub async fn lag(bench: &Bench<'_>) -> anyhow::Result<Vec<Figure>> {
    let upstream = bench.upstream(Security::Plain).await?;
    let replica = bench.replica(&upstream).await?;
    let (writer, here, there) = (
        Client::connect(&upstream.authority).await?,
        Client::connect(&upstream.authority).await?,
        Client::connect(&replica.authority).await?,
    );
    let watches = [here.watch(RANGE).await?, there.watch(RANGE).await?];
    let total = (RATE * bench.scale.time().as_secs_f64() * 2.0) as usize;
    let moments: RefCell<Vec<Moments>> = RefCell::default();
    let write = async {
        let mut ticks = interval(Duration::from_secs_f64(1.0 / RATE));
        // No put is left out because an earlier one was slow.
        ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
        for number in 0..total {
            ticks.tick().await;
            moments.borrow_mut().push(Moments {
                sent: Instant::now(),
                answered: Cell::default(),
                seen: <[Cell<Option<Instant>>; 2]>::default(),
            });
            let mut message = put(number % SPACE, &value(256));
            message.value = [&(number as u64).to_be_bytes()[..], &message.value].concat().into();
            writer.call(Call::Put, &message).await?;
            moments.borrow()[number].answered.set(Some(Instant::now()));
        }
        anyhow::Ok(())
    };
    let [here, there] = watches;
    let see = async |mut watch: Watch, at: usize| {
        let mut seen = 0;
        while seen < total {
            let numbers = timeout(LATE, watch.numbers())
                .await
                .context("an event does not come")??;
            let now = Instant::now();
            for number in numbers {
                if number != seen as u64 {
                    bail!("event {number} came in the place of event {seen}");
                }
                moments.borrow()[seen].seen[at].set(Some(now));
                seen += 1;
            }
        }
        anyhow::Ok(())
    };
    tokio::try_join!(write, see(here, 0), see(there, 1))?;
    lag_figures(&moments.into_inner())
}

fn lag_figures(moments: &[Moments]) -> anyhow::Result<Vec<Figure>> {
    let empty = || Histogram::<u64>::new_with_bounds(1, LATE.as_micros() as u64, 3);
    let (mut behind, mut whole) = ([empty()?, empty()?], [empty()?, empty()?]);
    for put in moments {
        for at in 0..2 {
            let seen = put.seen[at].get().context("an event did not come")?;
            let answered = put.answered.get().context("a put was not answered")?;
            // An event often comes before the answer.
            let late = seen.saturating_duration_since(answered);
            behind[at].saturating_record(late.as_micros() as u64);
            whole[at].saturating_record((seen - put.sent).as_micros() as u64);
        }
    }
    let figure = |name, of: &[Histogram<u64>; 2], quantile| {
        let ms = |at: usize| of[at].value_at_quantile(quantile) as f64 / 1000.0;
        Figure::new(name, "ms").direct(ms(0)).replica(ms(1))
    };
    Ok(vec![
        figure("answer to event, p50", &behind, 0.5),
        figure("answer to event, p99", &behind, 0.99).target(Target::AtMost(5.0)),
        figure("request to event, p50", &whole, 0.5),
        figure("request to event, p99", &whole, 0.99),
    ])
}

/// What an event costs a replica that was stopped, and one that follows as fast as its upstream writes.
pub async fn feed(bench: &Bench<'_>) -> anyhow::Result<Vec<Figure>> {
    let upstream = bench.upstream(Security::Plain).await?;
    let replica = bench.replica(&upstream).await?;
    let (writers, reader) = (connect(&upstream).await?, Client::connect(&replica.authority).await?);
    let scale = bench.scale;
    let (missed, missed_keys) = (scale.of(MISSED, 1000), scale.of(MISSED_KEYS, 10_000));
    let value = value(256);
    let mut single = Duration::ZERO;
    let rounds = scale.of(5, 1);
    for _ in 0..rounds {
        let next = Cell::new(0);
        let write = async |client: &Client| {
            while next.get() < missed {
                let number = next.replace(next.get() + 1);
                client.call(Call::Put, &put(number % SPACE, &value)).await?;
            }
            anyhow::Ok(())
        };
        let all = try_join_all(writers.iter().flat_map(|client| (0..IN_FLIGHT).map(|_| write(client))));
        let spent = stopped(&upstream, &replica, &reader, async { all.await.map(drop) }).await?;
        single += spent;
    }
    let batches = fill(&upstream, &writers[0], 0..missed_keys, &value);
    let batched = stopped(&upstream, &replica, &reader, batches).await?;
    let before = replica.cost()?;
    let call =
        async |client: &Client, number: usize| client.call(Call::Put, &put(number % SPACE, &value)).await.map(drop);
    let live = load(&upstream, scale.time(), &writers, IN_FLIGHT, call).await?;
    has_revision(&reader, revision(&writers[0]).await?).await?;
    let live_cpu = replica.cost()?.cpu - before.cpu;
    let rate = |cpu: Duration, events: usize| events as f64 / cpu.max(Duration::from_millis(10)).as_secs_f64();
    let of = |name, cpu, events| {
        Figure::new(name, "/s/core")
            .replica(rate(cpu, events))
            .target(Target::AtLeast(100_000.0))
    };
    Ok(vec![
        of("behind by 15,000 revisions of one event", single, missed * rounds),
        of("behind by 500 revisions of 100 events", batched, missed_keys),
        of("live, at the upstream's highest rate", live_cpu, live.calls()),
        Figure::new("the upstream's highest rate", "puts/s").replica(live.calls() as f64 / live.secs()),
        Figure::new("live: CPU of the replica per event", "µs").replica(micros(live_cpu, live.calls())),
    ])
}

/// Stops a replica, writes, and lets it go on. Returns the CPU time that it needs until it has everything.
async fn stopped(
    upstream: &Server,
    replica: &Server,
    reader: &Client,
    write: impl Future<Output = anyhow::Result<()>>,
) -> anyhow::Result<Duration> {
    let writer = Client::connect(&upstream.authority).await?;
    has_revision(reader, revision(&writer).await?).await?;
    let (loaded, before) = (loads(replica).await?, replica.cost()?);
    replica.signal("STOP")?;
    let began = Instant::now();
    let written = write.await;
    let last = revision(&writer).await;
    let took = began.elapsed();
    replica.signal("CONT")?;
    written?;
    let last = last?;
    if took > STOP_MAX {
        bail!(
            "the writes took {:.1} s, and a replica gives its connection up: the machine is too slow for this scenario",
            took.as_secs_f64()
        );
    }
    has_revision(reader, last).await?;
    let spent = replica.cost()?.cpu - before.cpu;
    match loads(replica).await? > loaded {
        true => bail!("the replica has loaded everything instead of reading what it missed"),
        false => Ok(spent),
    }
}

/// What the upstream spends without and with replicas.
pub async fn upstream(bench: &Bench<'_>) -> anyhow::Result<Vec<Figure>> {
    let upstream = bench.upstream(Security::Plain).await?;
    let writer = Client::connect(&upstream.authority).await?;
    fill(&upstream, &writer, 0..SPACE, &value(256)).await?;
    let time = bench.scale.time() * 2;
    let alone = churn(&upstream, &writer, time).await?;
    let before = streams(&upstream).await?;
    let mut replicas = vec![];
    for _ in 0..REPLICAS {
        replicas.push(bench.replica(&upstream).await?);
    }
    let followed = churn(&upstream, &writer, time).await?;
    let each = |with: f64, without: f64| (with - without) / REPLICAS as f64;
    let (with, without) = (streams(&upstream).await?, before);
    let reading = upstream_reads(bench, &upstream, &replicas[0]).await?;
    Ok(vec![
        Figure::new("watch streams per replica", "")
            .replica(each(with.0, without.0))
            .target(Target::AtMost(1.0)),
        Figure::new("watches per replica", "")
            .replica(each(with.1, without.1))
            .target(Target::AtMost(1.0)),
        Figure::new("CPU of the upstream per lone event and replica", "µs")
            .replica(each(followed, alone))
            .target(Target::AtMost(30.0)),
        Figure::new("CPU of the upstream per lone put, without replicas", "µs").direct(alone),
        Figure::new("CPU of the upstream for reads of one replica", "cores")
            .replica(reading.0)
            .target(Target::AtMost(0.1)),
        Figure::new("these reads", "/s").replica(reading.1),
    ])
}

/// Puts at a rate that leaves each alone. Returns the CPU time of the server for each, in µs.
async fn churn(server: &Server, writer: &Client, time: Duration) -> anyhow::Result<f64> {
    let (mut ticks, value) = (interval(Duration::from_secs_f64(1.0 / RATE)), value(256));
    let before: Cost = server.cost()?;
    let total = (RATE * time.as_secs_f64()) as usize;
    for number in 0..total {
        ticks.tick().await;
        writer.call(Call::Put, &put(number % SPACE, &value)).await?;
    }
    Ok(micros(server.cost()?.cpu - before.cpu, total))
}

/// Watch streams and watches of a server.
async fn streams(server: &Server) -> anyhow::Result<(f64, f64)> {
    Ok((
        metric(server, "etcd_debugging_mvcc_watch_stream_total").await?,
        metric(server, "etcd_debugging_mvcc_watcher_total").await?,
    ))
}

/// Cores of the upstream that linearizable reads at a replica keep busy, and the rate of the reads.
async fn upstream_reads(bench: &Bench<'_>, upstream: &Server, replica: &Server) -> anyhow::Result<(f64, f64)> {
    let clients = connect(replica).await?;
    let before = upstream.cost()?;
    let value = value(0);
    let call = async |client: &Client, number: usize| {
        let get = RangeRequest {
            key: put(number % SPACE, &value).key,
            ..RangeRequest::default()
        };
        Page::read(&client.call(Call::Range, &get).await?).map(drop)
    };
    let reads = load(replica, bench.scale.time(), &clients, IN_FLIGHT, call).await?;
    let spent = upstream.cost()?.cpu - before.cpu;
    Ok((spent.as_secs_f64() / reads.secs(), reads.calls() as f64 / reads.secs()))
}
