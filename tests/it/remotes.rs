//! The mirror against remotes that restart, misbehave or claim somebody else's id, and beside another mirror.

use crate::support::{Process, Tls, copy_dir, etcd, eventually, free_port};
use etcd_client::{Client, GetOptions, WatchOptions};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Command;

const SCOPES: [&str; 6] = [
    "identities",
    "ip",
    "nodes",
    "services",
    "serviceexports",
    "endpointslices",
];

/// A remote cluster's store, filled by hand.
pub struct Source {
    _process: Process,
    pub port: u16,
    pub data: PathBuf,
}

impl Source {
    /// Starts a store that keeps its data, at `port`.
    pub fn start(tls: &Tls, name: &str, port: u16) -> Self {
        let data = tls.path(&format!("{name}-data"));
        let url = format!("https://127.0.0.1:{port}");
        let (listen, advertise) = (
            format!("--listen-client-urls={url}"),
            format!("--advertise-client-urls={url}"),
        );
        let directory = format!("--data-dir={}", data.display());
        let mut args = vec![
            "etcd".to_owned(),
            listen,
            advertise,
            directory,
            "--client-cert-auth".to_owned(),
        ];
        args.extend(tls.flags());
        let process = Process::start(&args.iter().map(String::as_str).collect::<Vec<_>>());
        process.line("serving client traffic");
        Self {
            _process: process,
            port,
            data,
        }
    }

    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    pub async fn fill(&self, tls: &Tls, name: &str, id: u32) -> Client {
        let mut client = tls.client(&self.address(), "any").await;
        let config = format!(r#"{{"id":{id},"capabilities":{{"syncedCanaries":true,"maxConnectedClusters":255}}}}"#);
        client
            .put(format!("cilium/cluster-config/{name}"), config, None)
            .await
            .unwrap();
        client.put("cilium/.heartbeat", "now", None).await.unwrap();
        for n in 0..10 {
            client
                .put(format!("cilium/state/nodes/v1/{name}/n{n}"), format!("node {n}"), None)
                .await
                .unwrap();
            client
                .put(
                    format!("cilium/state/ip/v1/default/10.0.0.{n}"),
                    format!("ip {n}"),
                    None,
                )
                .await
                .unwrap();
        }
        for scope in SCOPES {
            client
                .put(format!("cilium/synced/{name}/cilium/state/{scope}/v1"), "now", None)
                .await
                .unwrap();
        }
        client
    }
}

/// A mirror that is a process of its own, and where it shows itself.
pub struct Mirror {
    pub process: Process,
    health: u16,
    api: u16,
    metrics: u16,
}

impl Mirror {
    pub fn start(tls: &Tls, target: &str, remotes: &str, more: &[&str]) -> Self {
        let config = tls.path("target.yaml");
        tls.client_file(&config, target, &tls.ca.client("admin", "admin").unwrap());
        let (health, api, metrics) = (free_port(), free_port(), free_port());
        let flags = [
            format!("--kvstore-opt=etcd.config={}", config.display()),
            format!("--clustermesh-config={}", tls.path(remotes).display()),
            format!("--health-port={health}"),
            format!("--api-serve-addr=127.0.0.1:{api}"),
            format!("--prometheus-serve-addr=127.0.0.1:{metrics}"),
        ];
        let mut args = vec![
            "kvstoremesh",
            "--cluster-name=local",
            "--cluster-id=9",
            "--kvstore-opt=etcd.qps=0",
        ];
        args.extend(flags.iter().map(String::as_str));
        args.extend(more);
        let process = Process::start(&args);
        Self {
            process,
            health,
            api,
            metrics,
        }
    }

    fn get(port: u16, path: &str) -> String {
        let url = format!("http://127.0.0.1:{port}{path}");
        String::from_utf8(Command::new("curl").args(["-s", &url]).output().unwrap().stdout).unwrap()
    }

    pub fn clusters(&self) -> Vec<Value> {
        serde_json::from_str(&Self::get(self.api, "/v1/cluster")).unwrap_or_default()
    }

    pub fn metric(&self, series: &str) -> Option<f64> {
        let page = Self::get(self.metrics, "/metrics");
        let line = page
            .lines()
            .find(|l| l.rsplit_once(' ').is_some_and(|(name, _)| name == series))?;
        line.rsplit_once(' ')?.1.parse().ok()
    }

    pub async fn ready(&self, clusters: usize) {
        eventually("all clusters are mirrored", async || {
            let all = self.clusters();
            let ready = all.iter().filter(|c| c["ready"] == true).count();
            (ready == clusters && Self::get(self.health, "/readyz") == "Ready").then_some(())
        })
        .await;
    }
}

pub async fn cache(client: &mut Client, scope: &str, name: &str) -> BTreeMap<String, String> {
    let prefix = format!("cilium/cache/{scope}/v1/{name}");
    let options = GetOptions::new().with_prefix();
    let kvs = client.get(&*prefix, Some(options)).await.unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    kvs.kvs()
        .iter()
        .map(|kv| (text(&kv.key()[prefix.len()..]), text(kv.value())))
        .collect()
}

pub fn remotes(tls: &Tls, directory: &str, clusters: &[(&str, &Source)]) {
    std::fs::create_dir_all(tls.path(directory)).unwrap();
    let admin = tls.ca.client("admin", "admin").unwrap();
    for (name, source) in clusters {
        tls.client_file(&tls.path(directory).join(name), &source.address(), &admin);
    }
}

#[tokio::test]
async fn a_remote_that_comes_back_with_its_data_is_gone_on_with_and_one_without_is_listed() {
    let tls = Tls::new();
    let port = free_port();
    let source = Source::start(&tls, "hk", port);
    let mut client = source.fill(&tls, "hk", 1).await;
    remotes(&tls, "remotes", &[("hk", &source)]);
    let target = etcd(&tls, &[]);
    let mirror = Mirror::start(&tls, &target.address(), "remotes", &[]);
    mirror.ready(1).await;
    let lists = "cilium_kvstoremesh_remote_cluster_lists_total{target_cluster=\"hk\"}";
    let resumes = "cilium_kvstoremesh_remote_cluster_resumes_total{target_cluster=\"hk\"}";
    let listed = mirror.metric(lists).unwrap();
    assert_eq!(mirror.metric(resumes), Some(0.0));
    let mut local = tls.client(&target.address(), "any").await;
    let mut watch = local
        .watch("cilium/cache/", Some(WatchOptions::new().with_prefix()))
        .await
        .unwrap();

    client
        .put("cilium/state/nodes/v1/hk/n3", "changed", None)
        .await
        .unwrap();
    drop(client);
    let data = source.data.clone();
    drop(source);
    let source = Source::start(&tls, "hk", port);
    let mut client = tls.client(&source.address(), "any").await;
    client.delete("cilium/state/nodes/v1/hk/n4", None).await.unwrap();
    eventually("it goes on", async || {
        let nodes = cache(&mut local, "nodes", "hk/").await;
        (nodes.len() == 9 && nodes["n3"] == "changed").then_some(())
    })
    .await;
    // Identities and services, of which there are none.
    assert_eq!(
        mirror.metric(lists),
        Some(listed + 2.0),
        "only what is empty was listed again"
    );
    assert_eq!(mirror.metric(resumes), Some(2.0));

    // Another store behind the same address: most of it is the same.
    drop((client, source));
    std::fs::remove_dir_all(data).unwrap();
    let source = Source::start(&tls, "hk", port);
    let mut client = source.fill(&tls, "hk", 1).await;
    client.put("cilium/state/nodes/v1/hk/n77", "new", None).await.unwrap();
    eventually("it is mirrored anew", async || {
        let nodes = cache(&mut local, "nodes", "hk/").await;
        (nodes.len() == 11 && nodes["n3"] == "node 3").then_some(())
    })
    .await;
    local.put("cilium/cache/end", "", None).await.unwrap();
    let mut seen = vec![];
    while seen.last() != Some(&(false, "end".to_owned())) {
        let message = watch.message().await.unwrap().unwrap();
        for event in message.events() {
            let key = event
                .kv()
                .unwrap()
                .key_str()
                .unwrap()
                .rsplit('/')
                .next()
                .unwrap()
                .to_owned();
            seen.push((event.event_type() == etcd_client::EventType::Delete, key));
        }
    }
    seen.sort();
    let expected = [
        (false, "end"),
        (false, "n3"),
        (false, "n3"),
        (false, "n4"),
        (false, "n77"),
        (true, "n4"),
    ];
    assert_eq!(seen, expected.map(|(deleted, key)| (deleted, key.to_owned())));
}

#[tokio::test]
async fn a_store_with_its_old_id_and_another_past_is_listed() {
    let tls = Tls::new();
    let port = free_port();
    let source = Source::start(&tls, "hk", port);
    drop(source.fill(&tls, "hk", 1).await);
    let (data, copy) = (source.data.clone(), tls.path("copy"));
    drop(source);
    std::fs::create_dir(&copy).unwrap();
    copy_dir(&data, &copy);
    let source = Source::start(&tls, "hk", port);
    let mut client = tls.client(&source.address(), "any").await;
    remotes(&tls, "remotes", &[("hk", &source)]);
    let target = etcd(&tls, &[]);
    let mirror = Mirror::start(&tls, &target.address(), "remotes", &[]);
    mirror.ready(1).await;
    let mut local = tls.client(&target.address(), "any").await;
    client.put("cilium/state/nodes/v1/hk/n5", "later", None).await.unwrap();
    client.delete("cilium/state/nodes/v1/hk/n6", None).await.unwrap();
    eventually("the changes are mirrored", async || {
        let nodes = cache(&mut local, "nodes", "hk/").await;
        (nodes.len() == 9 && nodes["n5"] == "later").then_some(())
    })
    .await;
    // As after a snapshot was restored by hand: then revisions come again, for other changes.
    drop((client, source));
    std::fs::remove_dir_all(&data).unwrap();
    std::fs::create_dir(&data).unwrap();
    copy_dir(&copy, &data);
    let source = Source::start(&tls, "hk", port);
    let mut client = tls.client(&source.address(), "any").await;
    for n in 0..5 {
        client
            .put(format!("cilium/state/nodes/v1/hk/other{n}"), "x", None)
            .await
            .unwrap();
    }
    eventually("the mirror is as the store is now", async || {
        let nodes = cache(&mut local, "nodes", "hk/").await;
        (nodes.len() == 15 && nodes["n5"] == "node 5" && nodes.contains_key("n6")).then_some(())
    })
    .await;
}

#[tokio::test]
async fn what_a_hostile_remote_holds_stays_there_and_is_named() {
    let tls = Tls::new();
    let (good, bad) = (
        Source::start(&tls, "good", free_port()),
        Source::start(&tls, "bad", free_port()),
    );
    let _good_client = good.fill(&tls, "good", 1).await;
    let mut client = bad.fill(&tls, "bad", 1).await;
    for key in ["..", "../good/n1", "", "a//b", "a/", "."] {
        client
            .put(format!("cilium/state/nodes/v1/bad/{key}"), "evil", None)
            .await
            .unwrap();
    }
    client
        .put("cilium/state/ip/v1/default/10.9.9.9", vec![b'x'; 1_200_000], None)
        .await
        .unwrap();
    remotes(&tls, "remotes", &[("good", &good), ("bad", &bad)]);
    let target = etcd(&tls, &[]);
    let mirror = Mirror::start(
        &tls,
        &target.address(),
        "remotes",
        &["--clustermesh-max-keys=20", "--controller-group-metrics=all"],
    );
    mirror.ready(2).await;
    let mut local = tls.client(&target.address(), "any").await;
    assert_eq!(cache(&mut local, "nodes", "").await.len(), 20);
    assert_eq!(cache(&mut local, "ip", "").await.len(), 20);
    let statuses = mirror.clusters();
    let status = |name: &str| {
        let cluster = statuses.iter().find(|c| c["name"] == name).unwrap();
        cluster["status"].as_str().unwrap().to_owned()
    };
    assert!(status("bad").contains("6 × unsafe key, last "), "{}", status("bad"));
    assert!(status("bad").contains("1 × value too large, last \"cilium/state/ip/v1/default/10.9.9.9\""));
    assert!(
        status("good").contains("cluster id 1 is also that of bad"),
        "{}",
        status("good")
    );
    let series = "cilium_kvstoremesh_remote_cluster_keys_refused_total{target_cluster=\"bad\",reason=\"unsafe key\"}";
    assert_eq!(mirror.metric(series), Some(6.0));

    let runs =
        "cilium_kvstoremesh_controllers_group_runs_total{group_name=\"clustermesh-remote-cluster\",status=\"success\"}";
    assert_eq!(mirror.metric(runs), Some(2.0));
    let read = |source: &str| {
        mirror.metric(&format!(
            "cilium_kvstoremesh_kvstore_initial_sync_completed{{scope=\"nodes/v1\",source_cluster=\"{source}\",action=\"read\"}}"
        ))
    };
    assert_eq!((read("good"), read("bad")), (Some(1.0), Some(1.0)));

    // Too much of one kind: what is here of it stays and nothing more comes, and everything else goes on.
    for n in 0..15 {
        client
            .put(format!("cilium/state/nodes/v1/bad/more{n}"), "x", None)
            .await
            .unwrap();
    }
    eventually("it is named", async || {
        let all = mirror.clusters();
        let bad = all.iter().find(|c| c["name"] == "bad")?;
        let named = bad["status"].as_str()?.contains(
            "cilium/state/nodes/v1/bad/ holds 21 keys, more than the 20 that are mirrored (--clustermesh-max-keys)",
        );
        (named && bad["ready"] == serde_json::Value::Null && bad["synced"]["endpoints"] == true).then_some(())
    })
    .await;
    let stopped = "cilium_kvstoremesh_remote_cluster_kinds_stopped{target_cluster=\"bad\"}";
    assert_eq!(mirror.metric(stopped), Some(1.0));
    assert_eq!((read("good"), read("bad")), (Some(1.0), Some(0.0)));
    let mut good_client = tls.client(&good.address(), "any").await;
    for (client, key) in [
        (&mut client, "cilium/state/ip/v1/default/1.2.3.4"),
        (&mut good_client, "cilium/state/nodes/v1/good/n0"),
    ] {
        client.put(key, "changed", None).await.unwrap();
    }
    eventually("what is good goes on", async || {
        let node = cache(&mut local, "nodes", "good/").await["n0"] == "changed";
        let address = cache(&mut local, "ip", "bad/").await.contains_key("1.2.3.4");
        (node && address).then_some(())
    })
    .await;
}

#[tokio::test]
async fn of_two_mirrors_one_writes_and_the_other_takes_over() {
    let tls = Tls::new();
    let source = Source::start(&tls, "hk", free_port());
    let mut client = source.fill(&tls, "hk", 1).await;
    remotes(&tls, "remotes", &[("hk", &source)]);
    let target = etcd(&tls, &[]);
    let mut first = Mirror::start(&tls, &target.address(), "remotes", &[]);
    first.ready(1).await;
    let mut second = Mirror::start(&tls, &target.address(), "remotes", &[]);
    second.process.line("waiting to lead");
    let leads = "cilium_kvstoremesh_leader_election_master_status{name=\"kvstoremesh\"}";
    assert_eq!((first.metric(leads), second.metric(leads)), (Some(1.0), Some(0.0)));
    assert_eq!(second.clusters().len(), 0);
    let mut local = tls.client(&target.address(), "any").await;
    let before = cache(&mut local, "nodes", "hk/").await;
    // Told to stop, it gives the lock back at once.
    first.process.signal("-TERM");
    assert!(first.process.ended().await.0.success());
    second.process.line("leading");
    // Of one that died here the lease need not run out: a restarted container leads at once.
    second.process.signal("-KILL");
    second.process.ended().await;
    let second = Mirror::start(&tls, &target.address(), "remotes", &[]);
    second.process.line("it died here: its lease is revoked");
    second.process.line("leading");
    client
        .put("cilium/state/nodes/v1/hk/n0", "changed", None)
        .await
        .unwrap();
    second.ready(1).await;
    eventually("the second writes", async || {
        let nodes = cache(&mut local, "nodes", "hk/").await;
        (nodes["n0"] == "changed" && nodes.len() == before.len()).then_some(())
    })
    .await;
}
