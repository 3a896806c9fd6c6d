//! Proves that publisher and mirror of replicas (`serve --follow`) run in one process each, that another replica takes over at
//! once when that process leaves, and within a lease when it is killed, and that nothing is rewritten then.

use crate::support::admin::Admin;
use crate::support::files::example;
use crate::support::mesh::{RemoteStore, write_client_files};
use crate::support::store::{next, read, revision};
use crate::support::tls::{self, Tls};
use crate::support::{Process, Signal, eventually, isthmus};
use etcd_client::*;
use std::collections::BTreeMap;
use std::time::Duration;
use tokio::time::Instant;

/// Less than the rest of a lease of a lock that is not given back: it is renewed every third of 25 seconds.
const AT_ONCE: Duration = Duration::from_secs(15);
/// The lease of a lock, with time for a slow machine.
const LEASE: Duration = Duration::from_secs(40);
/// What publisher and mirror write, but for the heartbeat and the canaries, which say when a list was complete.
const WRITTEN: [&str; 3] = ["cilium/state/", "cilium/cache/", "cilium/cluster-config/"];

/// An etcd, a remote cluster, and `serve` processes that follow the etcd.
struct Cluster {
    tls: Tls,
    _upstream: Process,
    _remote: RemoteStore,
}

struct Replica {
    process: Process,
    admin: Admin,
    client: Client,
}

impl Cluster {
    async fn start() -> Self {
        let tls = Tls::new();
        let remote = RemoteStore::start(&tls, "remote").await;
        remote.fill(&tls, 7).await;
        write_client_files(&tls, &[&remote]);
        let upstream = tls::etcd(&tls).start();
        let address = upstream.address().await;
        tls.client_file(
            &tls.path("upstream.yaml"),
            &address,
            &tls.ca.client("replica", "replica").unwrap(),
        );
        Self {
            tls,
            _upstream: upstream,
            _remote: remote,
        }
    }

    async fn replica(&self, flags: &[&str]) -> Replica {
        let (tls, admin) = (&self.tls, Admin::new());
        let process = isthmus(["serve", "--cluster-name=hk-cluster", "--cluster-id=2"])
            .arg(format!("--manifests={}", example("hk-cluster").display()))
            .arg(format!("--clustermesh-config={}", tls.path("remotes").display()))
            .arg(format!("--follow={}", tls.path("upstream.yaml").display()))
            .args([admin.health_flag(), admin.metrics_flag(), admin.api_flag()])
            .args(tls.flags())
            .args(flags)
            .start();
        let client = tls.client(&process.address().await, "any").await;
        Replica { process, admin, client }
    }
}

impl Replica {
    /// Waits until this process publishes and mirrors, completely.
    async fn writes(&self) {
        eventually("publisher and mirror are complete", async || {
            let report = self.admin.readyz("?verbose").await?.body;
            ["[+]publisher ok", "[+]mirror ok"]
                .iter()
                .all(|part| report.contains(part))
                .then_some(())
        })
        .await;
    }

    /// Waits until this process is ready, and says that it does not write.
    async fn stands_by(&self) {
        self.admin.ready().await;
        let report = self.admin.readyz("?verbose").await.unwrap().body;
        assert_eq!(
            report.matches("another replica holds the leader lock").count(),
            2,
            "{report}"
        );
    }

    /// The revision in which each written key was changed last.
    async fn written(&mut self) -> BTreeMap<String, i64> {
        let mut found = BTreeMap::new();
        for prefix in WRITTEN {
            let kvs = read(&mut self.client, prefix).await;
            found.extend(
                kvs.iter()
                    .map(|kv| (kv.key_str().unwrap().to_owned(), kv.mod_revision())),
            );
        }
        found
    }

    /// The keys of all events of `watch` up to one of the key `last`.
    async fn changed(&mut self, watch: &mut WatchStream, last: &str) -> Vec<String> {
        let mut changed = vec![];
        self.client.put(last, "", None).await.unwrap();
        loop {
            for event in next(watch).await.events() {
                let key = event.kv().unwrap().key_str().unwrap();
                if key == last {
                    return changed;
                }
                changed.push(key.to_owned());
            }
        }
    }
}

/// Lets `end` end the process that writes, and waits until the other one does. Returns how long that took.
async fn handed_over(cluster: &Cluster, flags: &[&str], end: impl FnOnce(&Process)) -> (Duration, Replica) {
    let first = cluster.replica(flags).await;
    first.writes().await;
    let mut second = cluster.replica(&[]).await;
    second.stands_by().await;
    let before = second.written().await;
    let of = |part: &str| before.keys().filter(|key| key.contains(part)).count();
    assert!(
        of("cilium/state/") > 5 && of("cilium/cache/nodes/v1/remote/") == 10,
        "{before:?}"
    );
    let from = revision(&mut second.client).await + 1;
    let options = WatchOptions::new().with_prefix().with_start_revision(from);
    let mut watch = second.client.watch("cilium/", Some(options)).await.unwrap();
    end(&first.process);
    let begun = Instant::now();
    second.writes().await;
    let took = begun.elapsed();
    assert_eq!(second.written().await, before, "a key was rewritten");
    let changed = second.changed(&mut watch, "cilium/last").await;
    let rewritten: Vec<_> = changed
        .iter()
        .filter(|key| WRITTEN.iter().any(|prefix| key.starts_with(prefix)))
        .collect();
    assert!(rewritten.is_empty(), "{rewritten:?}");
    (took, first)
}

#[tokio::test]
async fn a_replica_that_leaves_hands_publisher_and_mirror_over_while_its_clients_are_still_here() {
    let cluster = Cluster::start().await;
    let (took, mut first) = handed_over(&cluster, &["--drain-time=60s"], |first| first.signal(Signal::SIGTERM)).await;
    assert!(took < AT_ONCE, "{took:?}");
    let host = first.admin.api_address();
    let status = isthmus(["kvstoremesh-dbg", "status", "--host", &host]).run().stdout;
    let line = status.lines().find(|line| line.starts_with("Replica:\tat revision "));
    assert!(
        line.is_some_and(|line| line.ends_with(" revisions behind the etcd")),
        "{status}"
    );
    // The former writer has not ended: its clients have not all left.
    first.client.put("alive", "1", None).await.unwrap();
    let report = first.admin.readyz("?verbose").await.unwrap();
    assert!(!report.status.is_success());
    assert!(report.body.contains("[-]in service failed"), "{}", report.body);
    first.process.signal(Signal::SIGTERM);
    assert!(first.process.ended().await.success());
}

#[tokio::test]
async fn a_replica_that_stops_hands_publisher_and_mirror_over_at_once() {
    let cluster = Cluster::start().await;
    let (took, first) = handed_over(&cluster, &[], |first| first.signal(Signal::SIGTERM)).await;
    assert!(took < AT_ONCE, "{took:?}");
    assert!(first.process.ended().await.success());
}

#[tokio::test]
async fn a_replica_that_is_killed_is_followed_by_another_within_a_lease() {
    let cluster = Cluster::start().await;
    let (took, _first) = handed_over(&cluster, &[], |first| first.signal(Signal::SIGKILL)).await;
    assert!(took < LEASE, "{took:?}");
}
