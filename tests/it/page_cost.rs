//! Measures what open pages of a large mesh cost, and what watchers notice of them: `make page-cost`. Not part of `cargo test`, since
//! the figures of a build without optimization say nothing. `ISTHMUS_BIN` names the binary that is measured.

use crate::support::Tls;
use crate::support::eventually;
use crate::support::files::free_port;
use crate::support::mesh::client_files;
use crate::support::page::Page;
use crate::support::process::BINARY;
use crate::support::tls::etcd;
use etcd_client::{Client, WatchOptions};
use isthmus::model::probe::Probe;
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::time::Instant;

const CLUSTERS: usize = 250;
const PAGES: usize = 50;
/// Comparisons, each of a stretch with pages and one without.
const ROUNDS: usize = 5;
const STRETCH: Duration = Duration::from_secs(20);
/// What the pages may cost, in cores.
const MOST: f64 = 0.05;
/// What watchers may notice: nothing beyond the differences that stretches without pages have among themselves, nor beyond this
/// share, since a few stretches may agree by chance.
const NOISE: f64 = 0.1;

/// The figures of the stretches without pages, and of those with pages.
#[derive(Default)]
struct Figures {
    /// Cores.
    cost: [Vec<f64>; 2],
    /// Median and 99th percentile of the latency of a watcher, in microseconds.
    p50: [Vec<f64>; 2],
    p99: [Vec<f64>; 2],
}

struct Daemon(Child);

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Daemon {
    /// CPU time of all threads so far, user and system.
    fn cpu(&self) -> Duration {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.0.id())).unwrap();
        // The name of the program may contain spaces.
        let fields: Vec<_> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
        let ticks: u64 = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
        Duration::from_millis(ticks * 10)
    }
}

/// Makes `client`'s store that of all clusters, and writes the probe of each every second, for ever.
async fn publish(mut client: Client) {
    let begun = Instant::now();
    let mut tick = tokio::time::interval(Duration::from_secs(1));
    loop {
        tick.tick().await;
        for n in 0..CLUSTERS {
            let probe = Probe {
                run: 1,
                unix_micros: jiff::Timestamp::now().as_microsecond(),
                run_micros: i64::try_from(begun.elapsed().as_micros()).unwrap(),
                ..Probe::default()
            };
            let key = format!("cilium/state/probe/v1/c{n}");
            // The store ends with the test.
            if client.put(key, probe.to_json(), None).await.is_err() {
                return;
            }
        }
    }
}

/// Reads a live page until it is aborted.
async fn look(authority: String, path: &'static str) {
    let mut stream = TcpStream::connect(&authority).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nhost: {authority}\r\n\r\n");
    tokio::io::AsyncWriteExt::write_all(&mut stream, request.as_bytes())
        .await
        .unwrap();
    let mut buffer = vec![0; 64 << 10];
    while stream.read(&mut buffer).await.unwrap() > 0 {}
}

/// How late a watcher of the mirror's target sees puts of its own, by 20 a second; the median and the 99th percentile, in
/// microseconds.
async fn latency(mut client: Client, stretch: Duration) -> (f64, f64) {
    let mut watch = client.watch("latency", Some(WatchOptions::new())).await.unwrap();
    let (until, mut all) = (Instant::now() + stretch, vec![]);
    while Instant::now() < until {
        let begun = Instant::now();
        client.put("latency", "x", None).await.unwrap();
        watch.message().await.unwrap();
        all.push(begun.elapsed().as_secs_f64() * 1e6);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    all.sort_by(f64::total_cmp);
    (all[all.len() / 2], all[all.len() * 99 / 100])
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

/// Fails if watchers notice the pages.
fn unnoticed(what: &str, [without, with]: &[Vec<f64>; 2]) {
    let spread = without.iter().copied().fold(f64::MIN, f64::max) - without.iter().copied().fold(f64::MAX, f64::min);
    let (more, bound) = (mean(with) - mean(without), spread.max(mean(without) * NOISE));
    eprintln!(
        "{what} of a watcher in µs without pages {without:.0?}, with {PAGES} {with:.0?}: {more:.0} more of {bound:.0}"
    );
    assert!(
        more <= bound,
        "{what} of a watcher is {more:.0} µs more with {PAGES} pages"
    );
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "measures, for four minutes: make page-cost"]
async fn open_pages_of_a_large_mesh_cost_little() {
    let program = std::env::var("ISTHMUS_BIN").unwrap_or_else(|_| BINARY.to_owned());
    let tls = Tls::new();
    let remote = etcd(&tls).program(&program).start();
    let address = remote.address().await;
    let mut client = tls.client(&address, "any").await;
    client.put("cilium/.heartbeat", "now", None).await.unwrap();
    let admin = tls.ca.client("admin", "admin").unwrap();
    for n in 0..CLUSTERS {
        let name = format!("c{n}");
        let config = format!(
            r#"{{"id":{},"capabilities":{{"syncedCanaries":true,"maxConnectedClusters":511}}}}"#,
            n + 1
        );
        client
            .put(format!("cilium/cluster-config/{name}"), config, None)
            .await
            .unwrap();
        for kind in [
            "identities",
            "ip",
            "nodes",
            "services",
            "serviceexports",
            "endpointslices",
        ] {
            let canary = format!("cilium/synced/{name}/cilium/state/{kind}/v1");
            client.put(canary, "now", None).await.unwrap();
        }
        tls.client_file(&client_files(&tls).join(&name), &address, &admin);
    }
    let (page, store) = (Page::new(), free_port());
    // A serve, so that the pages share a process with a store and its watchers.
    let manifests = tls.path("manifests");
    std::fs::create_dir_all(&manifests).unwrap();
    let serve = Command::new(program)
        .args([
            "serve",
            "--cluster-name=here",
            "--cluster-id=511",
            "--max-connected-clusters=511",
            "--health-port=0",
            "--api-serve-addr=",
        ])
        .arg(format!("--manifests={}", manifests.display()))
        .arg(format!("--clustermesh-config={}", client_files(&tls).display()))
        .args(tls.flags().into_iter().filter(|flag| !flag.starts_with("--listen")))
        .arg(format!("--listen-client-urls=https://127.0.0.1:{store}"))
        .arg(page.flag())
        .stdout(Stdio::null())
        .spawn();
    let serve = Daemon(serve.unwrap());
    tokio::spawn(publish(client));
    eventually("all clusters are mirrored", async || {
        let reached = TcpStream::connect(&page.authority).await.is_ok();
        if !reached {
            return None;
        }
        let remotes = page.json("/api/v1/remotes").await;
        let synced = remotes
            .as_array()
            .unwrap()
            .iter()
            .filter(|remote| remote["state"] == "in-sync");
        (synced.count() == CLUSTERS).then_some(())
    })
    .await;
    let here = format!("127.0.0.1:{store}");
    let mut figures = Figures::default();
    for round in 0..2 * ROUNDS {
        let with = round % 2;
        let pages: Vec<_> = (0..PAGES * with)
            .map(|n| {
                let path = [
                    "/live/topology",
                    "/live/overview",
                    "/live/remote/c7",
                    "/live/services",
                    "/live/clients",
                ][n % 5];
                tokio::spawn(look(page.authority.clone(), path))
            })
            .collect();
        tokio::time::sleep(Duration::from_secs(2)).await;
        let (before, begun) = (serve.cpu(), Instant::now());
        let watcher = tls.client(&here, "admin-here").await;
        let (p50, p99) = latency(watcher, STRETCH).await;
        figures.p50[with].push(p50);
        figures.p99[with].push(p99);
        figures.cost[with].push((serve.cpu() - before).as_secs_f64() / begun.elapsed().as_secs_f64());
        pages.iter().for_each(tokio::task::JoinHandle::abort);
    }
    let [without, with] = &figures.cost;
    let cost = mean(with) - mean(without);
    eprintln!("cores without pages {without:.3?}, with {PAGES} {with:.3?}: the pages cost {cost:.4}");
    assert!(cost < MOST, "{PAGES} pages cost {cost} of a core");
    unnoticed("the median latency", &figures.p50);
    unnoticed("the 99th percentile of the latency", &figures.p99);
}
