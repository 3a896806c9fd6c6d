//! docs/metrics.md is written from the code: `UPDATE=1 cargo test --lib metrics_reference` writes the file anew.

use super::*;
use crate::app::etcd::{Etcd, EtcdConfig, ListenConfig};
use crate::follow;
use crate::server::listen::Address;
use crate::server::{self, MemberIdentity};
use crate::util::metrics::describe;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

type Families = Vec<(String, String, String)>;

const FILE: &str = "docs/metrics.md";

const HEAD: &str = "\
# Metrics

Which metrics are there, on which page, and what does each one mean? What is worth an alert, and what to do then, is in
[operations.md](operations.md#metrics); rules and dashboards are in [deploy/monitoring](../deploy/monitoring/README.md). The names, the types
and the texts are those of the code: a test compares them.

| Page | Flag | Metrics |
|---|---|---|
| publisher and mirror: `serve`, `clustermesh`, `kvstoremesh` | `--prometheus-serve-addr` | [process](#process), [publisher](#publisher), [mirror](#mirror), [scope](#scope), and in `serve` [store](#store) and [replica](#replica) |
| store: `etcd`, `serve` | `/metrics` of the client port (with its TLS), and `--listen-metrics-urls` of `etcd` | [process](#process), [store](#store), [replica](#replica), [names of etcd](#names-of-etcd) |

The page is in Prometheus' text format 0.0.4, or in OpenMetrics if the scraper asks for that. A metric without a value, such as the counter
of a refusal that never happened, may not be on the page.

Labels: `source_cluster` and `target_cluster` are names of clusters, `scope` is a kind of keys such as `ip/v1`, `reason` and `cause`
are explained by the help text or by the log line that comes with them. A *group* is all changes that are written to the disk together.
";

fn section(out: &mut String, title: &str, intro: &str, families: impl IntoIterator<Item = (String, String, String)>) {
    *out += &format!("\n## {title}\n\n{intro}\n\n| Metric | Type | Meaning |\n|---|---|---|\n");
    for (name, kind, help) in families {
        let help = help.trim_end_matches('.').replace('|', "\\|");
        *out += &format!("| `{name}` | {kind} | {help} |\n");
    }
}

/// The families of the page of publisher and mirror, and of the store's own page.
async fn families() -> (Families, Families) {
    let life = Lifecycle::default();
    let data = tempfile::tempdir().unwrap();
    let config = EtcdConfig {
        data: Some(crate::durable::Config::new(data.path().join("data"))),
        ..EtcdConfig::new(server::Config::new(MemberIdentity::random()), vec![])
    };
    let etcd = Etcd::start(config, &life).await.unwrap();
    let replica = replica(data.path(), &life).await;
    let metrics = DaemonMetrics {
        kvstore: kvstore::Metrics::with_all_families(),
        kubernetes: Status::with_all_families(),
        ..DaemonMetrics::default()
    };
    metrics.mesh.stand_by();
    metrics.set_leader(true);
    let registry = metrics.registry(
        "cilium_clustermesh_apiserver",
        ControllerGroups::new(&["all".to_owned()]),
    );
    let daemon = describe([&registry, &etcd.figures(), &replica.figures()]);
    let store = etcd.described_metrics();
    let names = |families: &Families| -> BTreeSet<String> {
        let followed = families.iter().filter(|(name, ..)| name.starts_with("isthmus_follow_"));
        followed.map(|(name, ..)| name.clone()).collect()
    };
    assert_eq!(
        names(&replica.described_metrics()),
        names(&daemon),
        "both pages of a replica"
    );
    life.stop();
    (daemon, store)
}

/// A replica of a store here.
async fn replica(directory: &Path, life: &Lifecycle) -> Etcd {
    let listen = ListenConfig {
        address: Address::Tcp("127.0.0.1:0".to_owned()),
        tls: None,
        cert_auth: false,
    };
    let of = |listen| EtcdConfig::new(server::Config::new(MemberIdentity::random()), listen);
    let upstream = Etcd::start(of(vec![listen]), life).await.unwrap();
    let file = directory.join("upstream.yaml");
    std::fs::write(&file, format!("endpoints: [\"http://{}\"]\n", upstream.addresses[0])).unwrap();
    let follow = follow::Config {
        file,
        peers: None,
        on_divergence: follow::OnDivergence::Reload,
        cut_off: follow::CutOff::Refuse,
    };
    let config = EtcdConfig {
        follow: Some(follow),
        ..of(vec![])
    };
    Etcd::start(config, life).await.unwrap()
}

fn page(daemon: Families, store: Families) -> String {
    let mut all: BTreeMap<String, (String, String)> = BTreeMap::new();
    for (name, kind, help) in store.into_iter().chain(daemon) {
        all.insert(name, (kind, help));
    }
    let mut take = |wanted: &dyn Fn(&str, &str) -> bool| -> Families {
        let names: Vec<_> = all
            .iter()
            .filter(|(name, (_, help))| wanted(name, help))
            .map(|(name, _)| name.clone())
            .collect();
        let taken = names.into_iter().filter_map(|name| all.remove_entry(&name));
        taken.map(|(name, (kind, help))| (name, kind, help)).collect()
    };
    let mut out = HEAD.to_owned();
    let process = take(&|name, _| {
        ["process_", "os_fd", "isthmus_build", "isthmus_certificate"]
            .iter()
            .any(|p| name.starts_with(p))
    });
    section(&mut out, "Process", "On every page.", process);
    let mirror = take(&|name, _| name.starts_with("cilium_kvstoremesh_remote"));
    let publisher = take(&|name, _| name.starts_with("cilium_"));
    let intro = "The names are those of Cilium's `clustermesh-apiserver`, as far as it has them. The metrics of writers \
                 (`kvstore_…`, `propagation_seconds`, `api_limiter_…`) and `version`, `bootstrap_seconds` and \
                 `leader_election_master_status` have the prefix `cilium_kvstoremesh_` for the mirror's writers, and in a process that \
                 is a mirror alone.";
    section(
        &mut out,
        "Publisher",
        intro,
        publisher
            .into_iter()
            .filter(|(name, ..)| name.starts_with("cilium_clustermesh")),
    );
    let intro = "One series for each remote cluster (`target_cluster`).";
    section(&mut out, "Mirror", intro, mirror);
    let scope = take(&|name, _| name.starts_with("isthmus_scope_"));
    let intro = "In a process with a [scope file](scope.md#how-do-i-see-what-is-left-out).";
    section(&mut out, "Scope", intro, scope);
    let follow = take(&|name, _| name.starts_with("isthmus_follow_"));
    let ours = take(&|name, _| name.starts_with("isthmus_"));
    section(&mut out, "Store", "Metrics that etcd does not have.", ours);
    let intro = "Of a replica (`--follow`), which [replicas.md](replicas.md) explains. The upstream is the etcd that it follows.";
    section(&mut out, "Replica", intro, follow);
    let real = take(&|_, help| !help.starts_with("Nothing here does this") && !help.starts_with("See etcd"));
    let alike = take(&|_, help| help.starts_with("See etcd"));
    let intro = "The names are those of etcd 3.7 and grpc-prometheus, so that their dashboards and alerts work.";
    section(&mut out, "Names of etcd", intro, real);
    let list = |families: Families| {
        let names: Vec<_> = families.into_iter().map(|(name, ..)| format!("`{name}`")).collect();
        names.join(", ")
    };
    out += &format!(
        "\nWith etcd's meaning, or always 0 where the store has no such thing: {}.\n",
        list(alike)
    );
    let zero = take(&|_, _| true);
    out += &format!("\nHistograms that are always empty: {}.\n", list(zero));
    out
}

#[tokio::test]
async fn metrics_reference_is_that_of_the_code() {
    let (daemon, store) = families().await;
    let page = page(daemon, store);
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join(FILE);
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(&file, &page).unwrap();
    }
    let written = std::fs::read_to_string(&file).unwrap_or_default();
    assert!(
        written == page,
        "{FILE} is not that of the code: run `UPDATE=1 cargo test --lib metrics_reference`, and look at the difference"
    );
}
