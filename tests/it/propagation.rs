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
    let mut tick = tokio::time::interval(Duration::from_millis(100));
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

/// The figures of a remote cluster, and how long its last commits really took, in milliseconds.
async fn compared(page: &Page, name: &str, clock_secs: i64) -> (Value, Vec<f64>) {
    let mut real = BTreeMap::new();
    eventually("enough commits are measured", async || {
        let lag = page.json(&format!("/api/v1/remotes/{name}")).await["lag"].clone();
        let raw = lag["raw_ms"].as_f64()?;
        real.insert(lag["samples"].as_u64()?, raw + clock_secs as f64 * 1000.0);
        (real.len() >= 50).then(|| (lag, real.values().copied().collect()))
    })
    .await
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
        tokio::spawn(async move { publish(client, name, clock).await });
        stores.push(store);
    }
    let target = etcd(&tls).start();
    let page = Page::new();
    let mirror = Mirror::start(&tls, &target.address().await, &[&page.flag()]);
    mirror.mirrors(remotes.len()).await;
    for (name, delay, clock) in remotes {
        let (figures, real) = compared(&page, name, clock).await;
        // The machine may be busy: what commits really took is known here, where all clocks are the same.
        let real_ms = median(&real);
        let least_ms = real.iter().copied().fold(f64::MAX, f64::min);
        let commit_ms = least_ms - delay as f64;
        assert!(
            (-1.0..50.0).contains(&commit_ms),
            "{name}: the fastest commit took {least_ms} ms"
        );
        let measured = figures["p50_ms"].as_f64().unwrap();
        let tolerance = f64::max(2.0, real_ms / 10.0) + commit_ms;
        eprintln!("{name}: {real_ms:.2} ms (at least {least_ms:.2}) were measured as {measured} ms");
        assert!(
            (measured - real_ms).abs() <= tolerance,
            "{name}: {real_ms} ms was measured as {figures}"
        );
        assert_eq!(figures["method"], "probe");
        let series =
            format!("cilium_kvstoremesh_remote_cluster_propagation_seconds_count{{target_cluster=\"{name}\"}}");
        assert!(mirror.admin.metric(&series).await.unwrap() >= 30.0);
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
