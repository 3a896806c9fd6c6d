//! Proves that the mirror measures how long commits take to arrive: through lines with known delays, from publishers whose
//! clocks differ, and by the heartbeat where there are no probes.

use crate::support::line::delayed;
use crate::support::mesh::{Mirror, RemoteStore, client_files};
use crate::support::page::Page;
use crate::support::tls::etcd;
use crate::support::{Tls, eventually, isthmus};
use isthmus::model::probe::Probe;
use serde_json::Value;
use std::collections::BTreeMap;
use std::time::Duration;
use tokio::time::Instant;

/// Writes probes of a publisher whose clock is `clock_secs` ahead of that of this machine, for ever.
async fn publish(mut client: etcd_client::Client, name: &str, clock_secs: i64) {
    let begun = Instant::now();
    let mut tick = tokio::time::interval(Duration::from_secs(1));
    loop {
        tick.tick().await;
        let probe = Probe {
            run: 1,
            unix_micros: jiff::Timestamp::now().as_microsecond() + clock_secs * 1_000_000,
            run_micros: i64::try_from(begun.elapsed().as_micros()).unwrap() + 77,
            ..Probe::default()
        };
        let key = format!("cilium/state/probe/v1/{name}");
        client.put(key, probe.to_json(), None).await.unwrap();
    }
}

/// Measurements in one comparison. The page shows the last one, and the probes are so slow that every one is seen here.
const WINDOW: usize = 15;
/// Comparisons before the measurement counts as wrong. The figures rest on the quickest read and the quickest probe so far, which
/// on a busy machine are quick enough only after a while.
const WINDOWS: usize = 6;

/// The formula is right within 2 ms or 10 % (`delays_are_right_whatever_the_clocks_say`); with processes that wait for a CPU, the way
/// out and the way back differ by some milliseconds more.
///
/// Compares what is measured of a remote cluster with what its commits really took, which is known here, where all clocks are the
/// same. Returns both medians, in milliseconds, once they agree.
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
        let samples = lag["samples"].as_u64().unwrap();
        assert!(
            real.len() as u64 * 10 >= samples * 9,
            "{} of {samples} were seen",
            real.len()
        );
        let values: Vec<f64> = real.values().copied().collect();
        let (real_ms, measured) = (median(&values), lag["p50_ms"].as_f64().unwrap());
        if (measured - real_ms).abs() <= f64::max(5.0, real_ms / 10.0) {
            return Ok((measured, real_ms));
        }
        last = format!("{real_ms:.2} ms was measured as {lag}");
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
    let admin = tls.ca.client("admin", "admin").unwrap();
    let mut stores = vec![];
    for (id, (name, delay, clock)) in remotes.into_iter().enumerate() {
        let store = RemoteStore::start(&tls, name).await;
        let client = store.fill(&tls, u32::try_from(id).unwrap() + 1).await;
        let line = delayed(store.address(), Duration::from_millis(delay)).await;
        tls.client_file(&client_files(&tls).join(name), &line.to_string(), &admin);
        stores.push((store, client, name, clock));
    }
    let target = etcd(&tls).start();
    let page = Page::new();
    let mirror = Mirror::start(&tls, &target.address().await, &[&page.flag()]);
    mirror.mirrors(remotes.len()).await;
    let mut running = vec![];
    for (store, client, name, clock) in stores {
        tokio::spawn(async move { publish(client, name, clock).await });
        running.push(store);
    }
    let compared = remotes.map(|(name, _, clock)| agreed(&page, name, clock));
    let compared = futures::future::join_all(compared).await;
    for ((name, delay, _), agreed) in remotes.into_iter().zip(compared) {
        let (measured, real) = agreed.unwrap_or_else(|why| panic!("{name}: {why}"));
        // A line that is quicker than it should be would make every figure look right.
        assert!(real > delay as f64 - 1.0, "{name}: commits took {real} ms");
        eprintln!("{name}: {real:.2} ms were measured as {measured} ms");
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
