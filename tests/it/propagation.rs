//! Proves that the mirror measures how long commits take to arrive: through lines with known delays, from publishers whose
//! clocks differ, and by the heartbeat where there are no probes.

use crate::support::environment::Faults;
use crate::support::line::delayed;
use crate::support::mesh::{Mirror, RemoteStore, client_files};
use crate::support::page::Page;
use crate::support::tls::etcd;
use crate::support::{Process, Tls, eventually, isthmus};
use isthmus::model::probe::Probe;
use serde_json::Value;
use std::collections::BTreeMap;
use std::time::Duration;

/// A remote cluster of which nothing but its probes is of interest.
struct Publisher {
    name: &'static str,
    process: Process,
    _faults: Faults,
}

impl Publisher {
    /// Starts the `serve` of the cluster `name`, whose clock is `clock_secs` ahead of that of this machine, and whose store is on
    /// the disk.
    fn start(tls: &Tls, name: &'static str, id: usize, clock_secs: i64) -> Self {
        let faults = Faults::new();
        faults.set("clock", clock_secs);
        let empty = ["manifests", "remotes"].map(|what| tls.path(&format!("{name}-{what}")));
        empty
            .iter()
            .for_each(|directory| std::fs::create_dir_all(directory).unwrap());
        let mut command = isthmus(["serve", "--health-port=0", "--api-serve-addr="])
            .args([format!("--cluster-name={name}"), format!("--cluster-id={id}")])
            .arg(format!("--manifests={}", empty[0].display()))
            .arg(format!("--clustermesh-config={}", empty[1].display()))
            .arg(format!("--data-dir={}", faults.path("data").display()))
            .arg("--propagation-probe-interval=1s")
            .args(tls.flags());
        for (variable, value) in faults.variables() {
            command = command.env(variable, value);
        }
        Self {
            name,
            process: command.start(),
            _faults: faults,
        }
    }

    /// Microseconds of the quickest write, as the probe says.
    async fn write(&self, tls: &Tls) -> u64 {
        let mut client = tls.client(&self.process.address().await, "remote").await;
        let found = client
            .get(format!("cilium/state/probe/v1/{}", self.name), None)
            .await
            .unwrap();
        Probe::parse(found.kvs()[0].value()).unwrap().write_micros.unwrap()
    }
}

/// Measurements in one comparison. The page shows the last one, and the probes are so slow that every one is seen here.
const WINDOW: usize = 15;
/// Comparisons before the measurement counts as wrong. The figures rest on the quickest read and the quickest probe so far, which
/// on a busy machine are quick enough only after a while.
const WINDOWS: usize = 10;

/// Compares what is measured of a remote cluster with what its commits really took, which is known here, where all clocks are the
/// same. Returns both medians, in milliseconds, once they agree within 2 ms or 10 %.
async fn agreed(page: &Page, name: &str, clock_secs: i64) -> Result<(f64, f64), String> {
    let (mut real, mut last) = (BTreeMap::new(), String::new());
    for window in 1..=WINDOWS {
        let lag = eventually("enough commits are measured", async || {
            let lag = page.json(&format!("/api/v1/remotes/{name}")).await["lag"].clone();
            let raw = lag["raw_ms"].as_f64()?;
            real.insert(lag["samples"].as_u64()?, raw + clock_secs as f64 * 1000.0);
            (real.len() >= window * WINDOW).then_some(lag)
        })
        .await;
        assert_eq!(lag["method"], "probe");
        // On a busy machine some measurements are not seen here, and then the medians of different commits would be compared.
        let (first, all) = (*real.keys().next().unwrap(), lag["samples"].as_u64().unwrap());
        let has_seen_most = real.len() as u64 * 10 >= (all + 1 - first) * 9;
        let values: Vec<f64> = real.values().copied().collect();
        let (real_ms, measured) = (median(&values), lag["p50_ms"].as_f64().unwrap());
        if has_seen_most && (measured - real_ms).abs() <= f64::max(2.0, real_ms / 10.0) {
            return Ok((measured, real_ms));
        }
        last = format!("{real_ms:.2} ms in {} measurements was measured as {lag}", real.len());
    }
    Err(last)
}

fn median(values: &[f64]) -> f64 {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

#[tokio::test]
async fn delays_of_a_line_are_measured_although_clocks_differ() {
    let tls = Tls::new();
    let remotes = [("fast", 5_u64, -30_i64), ("middle", 50, 0), ("slow", 500, 30)];
    let user = tls.ca.client("remote", "remote").unwrap();
    let mut running = vec![];
    for (at, (name, delay, clock)) in remotes.into_iter().enumerate() {
        let publisher = Publisher::start(&tls, name, at + 1, clock);
        let line = delayed(publisher.process.address().await, Duration::from_millis(delay)).await;
        tls.client_file(&client_files(&tls).join(name), &line.to_string(), &user);
        running.push(publisher);
    }
    let target = etcd(&tls).start();
    let page = Page::new();
    let mirror = Mirror::start(&tls, &target.address().await, &[&page.flag()]);
    mirror.mirrors(remotes.len()).await;
    let compared = remotes.map(|(name, _, clock)| agreed(&page, name, clock));
    let compared = futures::future::join_all(compared).await;
    for ((name, delay, _), agreed) in remotes.into_iter().zip(compared) {
        let (measured, real) = agreed.unwrap_or_else(|why| panic!("{name}: {why}"));
        // A line that is quicker than it should be would make every figure look right.
        assert!(real > delay as f64 - 1.0, "{name}: commits took {real} ms");
        let publisher = running.iter().find(|publisher| publisher.name == name).unwrap();
        let write = publisher.write(&tls).await;
        eprintln!("{name}: {real:.2} ms were measured as {measured} ms; the quickest write took {write} µs");
        assert!(write > 0);
        let series =
            format!("cilium_kvstoremesh_remote_cluster_propagation_seconds_count{{target_cluster=\"{name}\"}}");
        assert!(mirror.admin.metric(&series).await.unwrap() >= WINDOW as f64);
    }
    let status = isthmus(["kvstoremesh-dbg", "status", "-H", &mirror.admin.api_address()])
        .run()
        .text();
    assert_eq!(status.matches("└  propagation: p50 ").count(), 3, "{status}");
}

#[tokio::test]
async fn a_remote_without_probes_has_an_upper_bound() {
    let tls = Tls::new();
    let store = RemoteStore::start(&tls, "hk").await;
    let mut client = store.fill(&tls, 1).await;
    crate::support::mesh::write_client_files(&tls, &[&store]);
    let target = etcd(&tls).start();
    let page = Page::new();
    let mirror = Mirror::start(&tls, &target.address().await, &[&page.flag()]);
    mirror.mirrors(1).await;
    let before = page.json("/api/v1/remotes/hk").await;
    assert_eq!((&before["lag"], &before["propagation"]), (&Value::Null, &Value::Null));
    let now = jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    client.put("cilium/.heartbeat", now, None).await.unwrap();
    let lag = eventually("the heartbeat is measured", async || {
        let lag = page.json("/api/v1/remotes/hk").await["lag"].clone();
        (!lag.is_null()).then_some(lag)
    })
    .await;
    assert_eq!(lag["method"], "heartbeat");
    let bound = lag["max_ms"].as_f64().unwrap();
    assert!((0.0..10_000.0).contains(&bound), "{lag}");
    let body = page.get("/topology").await.body;
    assert!(body.contains("upper bound"), "{body}");
}
