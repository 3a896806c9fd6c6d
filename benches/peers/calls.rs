//! Scenarios of plain calls: puts, gets, lists, and filling a store.

use crate::client::{Call, Client, Page};
use crate::scenarios::{Figure, Kind, Scale};
use crate::server::{Cost, Server};
use anyhow::{Context, bail};
use bytes::Bytes;
use futures::future::try_join_all;
use hdrhistogram::Histogram;
use isthmus::pb::etcdserverpb::request_op::Request;
use isthmus::pb::etcdserverpb::{PutRequest, RangeRequest, RequestOp, TxnRequest};
use std::cell::{Cell, RefCell};
use std::ops::Range;
use std::time::Duration;
use tokio::time::Instant;

const CONNECTIONS: usize = 8;
pub const IN_FLIGHT: usize = 32;
/// Keys that are put and read again and again.
pub const SPACE: usize = 10_000;
const PREFIX: &str = "cilium/";
/// One key below all keys of [`PREFIX`], and the first key after them.
pub const RANGE: (&str, &str) = ("cilium/", "cilium0");
/// Puts of a transaction.
const BATCH: usize = 100;
/// The longest call that is told apart, in microseconds.
const LONGEST: u64 = 60_000_000;
/// Parts of a fill whose costs are told apart.
const PARTS: usize = 10;

fn key(i: usize) -> Bytes {
    let [a, b, c] = [i >> 16 & 255, i >> 8 & 255, i & 255];
    format!("{PREFIX}cache/ip/v1/c{:03}/10.{a}.{b}.{c}", i % 250).into()
}

/// A put of the key of this number.
pub fn put(i: usize, value: &Bytes) -> PutRequest {
    PutRequest {
        key: key(i),
        value: value.clone(),
        ..PutRequest::default()
    }
}

pub fn value(bytes: usize) -> Bytes {
    vec![b'x'; bytes].into()
}

pub async fn connect(server: &Server) -> anyhow::Result<Vec<Client>> {
    try_join_all((0..CONNECTIONS).map(|_| Client::connect(&server.authority))).await
}

pub fn micros(cpu: Duration, operations: usize) -> f64 {
    cpu.as_secs_f64() * 1e6 / operations.max(1) as f64
}

/// Calls on all connections, `in_flight` on each, for a time. `call` makes the call of this number.
pub async fn load(
    server: &Server,
    time: Duration,
    clients: &[Client],
    in_flight: usize,
    call: impl AsyncFn(&Client, usize) -> anyhow::Result<()>,
) -> anyhow::Result<Load> {
    let (next, histogram) = (
        Cell::new(0usize),
        RefCell::new(Histogram::<u64>::new_with_bounds(1, LONGEST, 3)?),
    );
    let before = server.cost()?;
    let began = Instant::now();
    let worker = async |client: &Client| {
        while began.elapsed() < time {
            let number = next.replace(next.get() + 1);
            let sent = Instant::now();
            call(client, number).await?;
            histogram
                .borrow_mut()
                .saturating_record(sent.elapsed().as_micros() as u64);
        }
        anyhow::Ok(())
    };
    try_join_all(clients.iter().flat_map(|client| (0..in_flight).map(|_| worker(client)))).await?;
    Ok(Load {
        calls: next.get(),
        secs: began.elapsed().as_secs_f64(),
        cpu: server.cost()?.cpu - before.cpu,
        histogram: histogram.into_inner(),
    })
}

/// What calls have cost.
pub struct Load {
    calls: usize,
    secs: f64,
    cpu: Duration,
    histogram: Histogram<u64>,
}

impl Load {
    /// CPU time of the server for each call, in µs.
    pub fn cpu_per_call(&self) -> f64 {
        micros(self.cpu, self.calls)
    }

    /// Calls that ended.
    pub fn calls(&self) -> usize {
        self.calls
    }

    pub fn secs(&self) -> f64 {
        self.secs
    }

    /// A quantile of the latency, in ms.
    pub fn ms(&self, quantile: f64) -> f64 {
        self.histogram.value_at_quantile(quantile) as f64 / 1000.0
    }

    fn figures(&self) -> Vec<Figure> {
        vec![
            Figure::new("server CPU per call", Kind::Cpu, "µs", self.cpu_per_call()),
            Figure::new("calls per second", Kind::Rate, "/s", self.calls as f64 / self.secs),
            Figure::new("latency, p99", Kind::Latency, "ms", self.ms(0.99)),
        ]
    }
}

/// Puts over keys that exist.
pub async fn puts(server: &Server, scale: Scale) -> anyhow::Result<Vec<Figure>> {
    let clients = connect(server).await?;
    let value = value(256);
    fill(server, &clients[0], 0..SPACE, &value).await?;
    let call = async |client: &Client, n: usize| {
        let message = put(n.wrapping_mul(7919) % SPACE, &value);
        client.call(Call::Put, &message).await.map(drop)
    };
    load(server, scale.time() / 5, &clients, IN_FLIGHT, call).await?;
    Ok(load(server, scale.time(), &clients, IN_FLIGHT, call).await?.figures())
}

/// Linearizable gets of keys that exist.
pub async fn gets(server: &Server, scale: Scale) -> anyhow::Result<Vec<Figure>> {
    let clients = connect(server).await?;
    fill(server, &clients[0], 0..SPACE, &value(256)).await?;
    let call = async |client: &Client, n: usize| {
        let message = RangeRequest {
            key: key(n.wrapping_mul(7919) % SPACE),
            ..RangeRequest::default()
        };
        let answer = client.call(Call::Range, &message).await?;
        match Page::read(&answer)?.keys {
            1 => Ok(()),
            keys => bail!("a get of one key returned {keys} keys"),
        }
    };
    load(server, scale.time() / 5, &clients, IN_FLIGHT, call).await?;
    Ok(load(server, scale.time(), &clients, IN_FLIGHT, call).await?.figures())
}

/// Lists of all keys of a store: in pages of 256 keys, as Cilium's agents list, and in one answer.
pub async fn lists(server: &Server, scale: Scale) -> anyhow::Result<Vec<Figure>> {
    let keys = scale.of(100_000, 20_000);
    let client = Client::connect(&server.authority).await?;
    fill(server, &client, 0..keys, &value(256)).await?;
    let (paged, whole) = (
        list(server, &client, keys, 256, scale).await?,
        list(server, &client, keys, 0, scale).await?,
    );
    Ok(vec![
        Figure::new("by 256 keys: server CPU per key", Kind::Cpu, "µs", paged),
        Figure::new("in one answer: server CPU per key", Kind::Cpu, "µs", whole),
    ])
}

/// Lists everything again and again. Returns the CPU time of one key in µs.
async fn list(server: &Server, client: &Client, keys: usize, limit: i64, scale: Scale) -> anyhow::Result<f64> {
    let before = server.cost()?;
    let (began, mut lists) = (Instant::now(), 0);
    while lists == 0 || began.elapsed() < scale.time() / 2 {
        let (mut list, mut seen) = (List::new(limit), 0);
        while let Some(page) = list.next(client).await? {
            seen += page;
        }
        if seen != keys {
            bail!("a list of {keys} keys returned {seen}");
        }
        lists += 1;
    }
    Ok(micros(server.cost()?.cpu - before.cpu, keys * lists))
}

/// Lists everything by 256 for a time, again and again. Returns the number of keys.
pub async fn list_for(client: &Client, time: Duration) -> anyhow::Result<usize> {
    let (began, mut list, mut seen) = (Instant::now(), List::new(256), 0);
    while began.elapsed() < time {
        match list.next(client).await? {
            Some(keys) => seen += keys,
            None => list = List::new(256),
        }
    }
    Ok(seen)
}

/// A list of everything, in pages of one revision.
struct List {
    limit: i64,
    revision: i64,
    /// The first key of the next page; `None` after the last page.
    from: Option<Bytes>,
}

impl List {
    fn new(limit: i64) -> Self {
        Self {
            limit,
            revision: 0,
            from: Some(RANGE.0.into()),
        }
    }

    /// The number of keys of the next page.
    async fn next(&mut self, client: &Client) -> anyhow::Result<Option<usize>> {
        let Some(from) = self.from.take() else { return Ok(None) };
        let message = RangeRequest {
            key: from,
            range_end: RANGE.1.into(),
            limit: self.limit,
            revision: self.revision,
            ..RangeRequest::default()
        };
        let mut page = Page::read(&client.call(Call::Range, &message).await?)?;
        if self.revision == 0 {
            self.revision = page.revision;
        }
        if page.more {
            page.last.push(0);
            self.from = Some(page.last.into());
        }
        Ok(Some(page.keys))
    }
}

/// Writes keys in transactions, which are not measured.
pub async fn fill(server: &Server, client: &Client, keys: Range<usize>, value: &Bytes) -> anyhow::Result<()> {
    for from in keys.clone().step_by(BATCH) {
        let puts = (from..keys.end.min(from + BATCH)).map(|i| RequestOp {
            request: Some(Request::RequestPut(put(i, value))),
        });
        let message = TxnRequest {
            success: puts.collect(),
            ..TxnRequest::default()
        };
        client
            .call(Call::Txn, &message)
            .await
            .context("cannot fill the store")?;
    }
    server.cost().map(drop)
}

/// Puts of new keys, until the store is large.
pub async fn growth(server: &Server, scale: Scale) -> anyhow::Result<Vec<Figure>> {
    let keys = scale.of(1_000_000, 50_000);
    let clients = connect(server).await?;
    let value = value(400);
    let first = server.cost()?;
    let mut parts: Vec<f64> = vec![];
    for part in 0..PARTS {
        let before: Cost = server.cost()?;
        let (next, end) = (Cell::new(keys / PARTS * part), keys / PARTS * (part + 1));
        let worker = async |client: &Client| {
            while next.get() < end {
                let number = next.replace(next.get() + 1);
                // Clusters in turns, so that keys arrive everywhere in the order of keys.
                client.call(Call::Put, &put(number, &value)).await?;
            }
            anyhow::Ok(())
        };
        try_join_all(clients.iter().flat_map(|client| (0..IN_FLIGHT).map(|_| worker(client)))).await?;
        parts.push(micros(server.cost()?.cpu - before.cpu, keys / PARTS));
    }
    let grown = server.cost()?.rss.saturating_sub(first.rss);
    let mean = parts.iter().sum::<f64>() / PARTS as f64;
    let mut figures = vec![
        Figure::new("server CPU per put", Kind::Cpu, "µs", mean),
        Figure::new("first tenth: server CPU per put", Kind::Cpu, "µs", parts[0]),
        Figure::new("last tenth: server CPU per put", Kind::Cpu, "µs", parts[PARTS - 1]),
        Figure::new("memory per key", Kind::Memory, "B", grown as f64 / keys as f64),
    ];
    let points = parts
        .iter()
        .enumerate()
        .map(|(at, us)| ((keys / PARTS * (at + 1)) as f64, *us));
    figures[0].points = points.collect();
    figures[0].x = "keys".to_owned();
    Ok(figures)
}
