//! Proves that `loadtest` finds nothing wrong with the store, reports in every form, removes what it wrote, and adds results up.

use crate::support::store::{add_user, plain_etcd};
use crate::support::tls::etcd;
use crate::support::{CommandLine, Process, Signal, Tls, isthmus};
use etcd_client::GetOptions;
use isthmus::mesh::pki::Authority;
use serde_json::Value;
use std::path::PathBuf;
use std::time::Duration;

/// A load test of a few seconds against a store over mutual TLS.
async fn short_test(tls: &Tls, server: &Process, flags: &[&str]) -> CommandLine {
    let pair = tls.ca.client("tester", "tester").unwrap();
    let file = tls.path("client.yaml");
    tls.client_file(&file, &server.address().await, &pair);
    isthmus([
        "loadtest",
        "quick",
        "--agents=20",
        "--keys=300",
        "--duration=3s",
        "--settle=20s",
    ])
    .arg(format!("--client-config={}", file.display()))
    .args(flags)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_test_with_storms_bursts_and_slow_readers_passes_and_reports() {
    let tls = Tls::new();
    let server = etcd(&tls).start();
    let (raw, page) = (tls.path("raw.json"), tls.path("report.html"));
    let flags = [
        "--clusters=2",
        "--rate=200",
        "--burst=50",
        "--burst-interval=1s",
        "--bulk-interval=2s",
        "--storms=1",
        "--slow-readers=2",
        "--source-addresses=3",
        "--heartbeat",
        "--json",
    ];
    let test = short_test(&tls, &server, &flags).await;
    let done = test
        .arg(format!("--output={}", raw.display()))
        .arg(format!("--report={}", page.display()))
        .run();
    assert!(done.succeeded(), "{}", done.text());
    let summary: Value = serde_json::from_str(&done.stdout).unwrap();
    let count = |pointer: &str| {
        summary
            .pointer(pointer)
            .and_then(Value::as_u64)
            .unwrap_or_else(|| panic!("{pointer}"))
    };
    assert_eq!(
        (count("/connections"), count("/counts/verified")),
        (40, 40),
        "{summary:#}"
    );
    assert_eq!(
        (count("/counts/behind"), count("/counts/stalled")),
        (0, 2),
        "{summary:#}"
    );
    assert!(count("/counts/synced") >= 80, "{summary:#}");
    assert!(count("/counts/delivered") > 20 * 400, "{summary:#}");
    assert!(
        count("/counts/heartbeats") >= 40 || count("/counts/listed") > 0,
        "{summary:#}"
    );
    assert_eq!(summary["errors"], serde_json::json!({}), "{summary:#}");
    assert_eq!(summary["passed"], true);
    for measure in [
        "commit to delivery",
        "connect",
        "loss to in sync",
        "ping",
        "write",
        "write of a batch",
    ] {
        assert!(
            summary["latencies"][measure]["count"].as_u64() > Some(0),
            "{measure}: {summary:#}"
        );
    }
    let phases: Vec<_> = summary["phases"]
        .as_array()
        .unwrap()
        .iter()
        .map(|p| &p["name"])
        .collect();
    assert_eq!(phases, ["fill", "connect", "storm 1", "live"]);
    // The server was found by its port.
    assert!(
        summary["phases"][1]["server"]["rss_mib"].as_f64() > Some(1.0),
        "{summary:#}"
    );
    let page = std::fs::read_to_string(page).unwrap();
    assert!(page.matches("<svg").count() >= 5 && page.contains("PASSED"), "{page}");
    // Nothing is left in the store.
    let mut client = tls.client(&server.address().await, "tester").await;
    let all = client.get("", Some(GetOptions::new().with_all_keys())).await.unwrap();
    assert_eq!(all.count(), 0, "{:?}", all.kvs());
    assert!(client.leases().await.unwrap().leases().is_empty());

    // The connections that the storm closed are no losses.
    assert_eq!(
        (count("/counts/storm_closed"), count("/counts/disconnects")),
        (40, 0),
        "{summary:#}"
    );
    let raw: Value = serde_json::from_slice(&std::fs::read(raw).unwrap()).unwrap();
    assert_eq!(raw["format"], 1);
    let marks: Vec<_> = raw["marks"]
        .as_array()
        .unwrap()
        .iter()
        .map(|mark| &mark["text"])
        .collect();
    assert_eq!(marks, ["fill", "connect", "live", "storm 1", "end of changes"]);
}

/// Two machines test at the same time. One result is a file of `--output`, the other what `--json` printed.
#[tokio::test(flavor = "multi_thread")]
async fn results_of_two_machines_add_up_once() {
    let tls = Tls::new();
    let server = etcd(&tls).start();
    let [one, two, sum] = ["one.json", "two.json", "sum.json"].map(|name| tls.path(name));
    let first = short_test(&tls, &server, &["--rate=50"]).await;
    let first = first.arg(format!("--output={}", one.display())).start();
    let second = short_test(&tls, &server, &["--rate=50", "--json"]).await.run();
    assert!(second.succeeded(), "{}", second.text());
    std::fs::write(&two, &second.stdout).unwrap();
    assert!(first.ended().await.success(), "{}", first.log());

    let merge = |files: &[&PathBuf]| isthmus(["loadtest", "merge"]).args(files);
    let merged = merge(&[&one, &two]).arg(format!("--output={}", sum.display())).run();
    assert!(merged.succeeded(), "{}", merged.text());
    for part in ["40 connections", "2 runs added up", "commit to delivery", "PASSED"] {
        assert!(merged.stdout.contains(part), "{part}: {}", merged.stdout);
    }
    let again = merge(&[&one, &sum]).run();
    assert!(!again.succeeded());
    for part in ["one.json", "sum.json", "both contain the run"] {
        assert!(again.stderr.contains(part), "{part}: {}", again.stderr);
    }
    let other = short_test(&tls, &server, &["--rate=51"]).await;
    assert!(other.arg(format!("--output={}", two.display())).run().succeeded());
    let different = merge(&[&one, &two]).run();
    assert!(
        different.stderr.contains("settings differ: rate (50.0 and 51.0)"),
        "{}",
        different.stderr
    );
}

/// One user may have three quarters of the connections. Whoever has more is told so, and agents of several users have room.
#[tokio::test(flavor = "multi_thread")]
async fn one_user_with_too_many_connections_is_told_why_and_several_users_have_room() {
    let tls = Tls::new();
    let server = etcd(&tls).arg("--max-connections=48").start();
    let flags = [
        "--agents=44",
        "--rate=20",
        "--sync-timeout=3s",
        "--settle=1s",
        "--duration=1s",
    ];
    let alone = short_test(&tls, &server, &flags).await.run();
    assert!(!alone.succeeded(), "{}", alone.text());
    let why = "the store closed the connection: too many connections of one user or address: it may have 3/4 of \
               --max-connections (code 11 of HTTP/2)";
    assert!(alone.stdout.contains(why), "{}", alone.stdout);
    assert!(alone.stderr.contains(why), "{}", alone.stderr);

    let users = tls.path("users");
    std::fs::create_dir(&users).unwrap();
    for name in ["one", "two"] {
        let pair = tls.ca.client(name, name).unwrap();
        std::fs::copy(&pair.cert, users.join(format!("{name}.crt"))).unwrap();
        std::fs::copy(&pair.key, users.join(format!("{name}.key"))).unwrap();
    }
    let user_certs = format!("--user-certs={}", users.display());
    let together = short_test(
        &tls,
        &server,
        &[
            "--agents=40",
            "--writers=4",
            "--aborted-handshakes=false",
            "--json",
            &user_certs,
        ],
    )
    .await
    .run();
    assert!(together.succeeded(), "{}", together.text());
    let summary: Value = serde_json::from_str(&together.stdout).unwrap();
    assert_eq!(summary["counts"]["verified"], 40, "{summary:#}");
    assert_eq!(summary["result"]["plan"]["users"], 2, "{summary:#}");
    assert_eq!(summary["errors"], serde_json::json!({}), "{summary:#}");

    let plain = isthmus(["loadtest", "--endpoints=127.0.0.1:1"]).arg(&user_certs).run();
    assert!(plain.stderr.contains("need endpoints with TLS"), "{}", plain.stderr);
}

/// A store with users, as the chart makes it: agents are spread over users whose certificates the tester issues.
#[tokio::test(flavor = "multi_thread")]
async fn agents_of_issued_users_pass_once_the_store_knows_the_users() {
    let tls = Tls::new();
    let (data, bundle, key) = (tls.path("data"), tls.path("bundle.crt"), tls.path("issuer.key"));
    std::fs::create_dir(&data).unwrap();
    let init = isthmus(["etcdinit", "--cluster-name=tokyo"]);
    let init = init.arg(format!("--etcd-data-dir={}", data.display())).run();
    assert!(init.succeeded(), "{}", init.text());
    // The store trusts two authorities. The key of one of them is at hand.
    let issuer = Authority::generate("issuer", jiff::Timestamp::now()).unwrap();
    std::fs::write(&key, issuer.key()).unwrap();
    let authorities = std::fs::read_to_string(tls.ca.path()).unwrap() + issuer.cert();
    std::fs::write(&bundle, authorities).unwrap();
    let server = etcd(&tls)
        .arg("--name=clustermesh-apiserver")
        .arg(format!("--data-dir={}", data.display()))
        .arg(format!("--trusted-ca-file={}", bundle.display()))
        .arg("--max-connections=36")
        .start();
    let address = server.address().await;
    let (admin, file) = (tls.ca.client("admin", "admin-tokyo").unwrap(), tls.path("admin.yaml"));
    tls.client_file(&file, &address, &admin);
    let text = std::fs::read_to_string(&file).unwrap();
    let text = text.replace(&tls.ca.path().display().to_string(), &bundle.display().to_string());
    std::fs::write(&file, text).unwrap();
    let test = |flags: &[&str]| {
        isthmus([
            "loadtest",
            "quick",
            "--agents=30",
            "--writers=2",
            "--keys=300",
            "--json",
        ])
        .arg("--aborted-handshakes=false")
        .arg(format!("--client-config={}", file.display()))
        .arg(format!("--ca-key={}", key.display()))
        .args(["--users=3", "--duration=3s"])
        .args(flags)
    };
    let unknown = test(&["--sync-timeout=3s", "--settle=1s"]).run();
    assert!(!unknown.succeeded(), "{}", unknown.text());
    let why = "the agents' user loadtest-1: Range: etcdserver: permission denied";
    assert!(unknown.text().contains(why), "{}", unknown.text());

    let mut client = tls.client(&address, "admin-tokyo").await;
    for name in ["loadtest-1", "loadtest-2", "loadtest-3"] {
        add_user(&mut client, name).await;
        client.user_grant_role(name, "local").await.unwrap();
    }
    let known = test(&["--settle=20s"]).run();
    assert!(known.succeeded(), "{}", known.text());
    let summary: Value = serde_json::from_str(&known.stdout).unwrap();
    // One user may have 27 connections.
    assert_eq!(summary["counts"]["verified"], 30, "{summary:#}");
    assert_eq!(summary["result"]["plan"]["users"], 3, "{summary:#}");
    assert_eq!(summary["errors"], serde_json::json!({}), "{summary:#}");
}

/// Readers that stop in the middle of a run: the others are measured without, with, and after them.
#[tokio::test(flavor = "multi_thread")]
async fn the_others_are_compared_without_with_and_after_slow_readers() {
    let server = plain_etcd().start();
    let test = isthmus([
        "loadtest",
        "slow-readers",
        "--agents=10",
        "--keys=100",
        "--slow-readers=3",
        "--burst=10",
        "--duration=9s",
    ]);
    let done = test
        .arg(format!("--endpoints={}", server.address().await))
        .arg("--json")
        .run();
    assert!(done.succeeded(), "{}", done.text());
    let summary: Value = serde_json::from_str(&done.stdout).unwrap();
    let phases = summary["phases"].as_array().unwrap();
    let compared = phases.iter().filter(|phase| !phase["delivery"].is_null());
    let compared: Vec<_> = compared.map(|phase| phase["name"].as_str().unwrap()).collect();
    assert_eq!(
        compared,
        ["without slow readers", "with slow readers", "after slow readers"]
    );
    for phase in phases.iter().filter(|phase| !phase["delivery"].is_null()) {
        assert!(phase["delivery"]["count"].as_u64() > Some(0), "{summary:#}");
        assert!(phase["server"]["rss_most_mib"].as_f64() > Some(1.0), "{summary:#}");
    }
    assert_eq!(
        (&summary["counts"]["stalled"], &summary["counts"]["verified"]),
        (&3.into(), &10.into()),
        "{summary:#}"
    );
}

/// The pod restarts without its data: agents and writers begin anew, and nothing is missing at the end.
#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_restarts_empty_is_listed_and_written_again() {
    let tls = Tls::new();
    let server = etcd(&tls).start();
    let address = server.address().await;
    let flags = ["--duration=8s", "--rate=100", "--json"];
    let test = short_test(&tls, &server, &flags).await.start();
    test.line("watching").await;
    server.terminate().await;
    let again = etcd(&tls).arg(format!("--listen-client-urls=https://{address}"));
    let again = again.arg(format!("--advertise-client-urls=https://{address}")).start();
    again.address().await;
    assert!(test.ended().await.success(), "{}", test.log());
    let log = test.log();
    let summary: Value = serde_json::from_str(&log[log.find('{').unwrap()..=log.rfind('}').unwrap()]).unwrap();
    assert_eq!(summary["counts"]["verified"], 20, "{summary:#}");
    assert_eq!(summary["counts"]["disconnects"], 20, "{summary:#}");
    // The figures of the server are those of both processes.
    let live = &summary["phases"][2];
    assert_eq!(
        (&live["name"], &live["server"]["restarts"]),
        (&"live".into(), &1.into()),
        "{summary:#}"
    );
    assert!(live["server"]["rss_mib"].as_f64() > Some(1.0), "{summary:#}");
    let marks = summary["result"]["marks"].as_array().unwrap();
    for text in ["server restarted", "connections lost"] {
        let is_marked = |mark: &Value| mark["text"].as_str().unwrap().ends_with(text);
        assert!(marks.iter().any(is_marked), "{text}: {marks:?}");
    }
    // The changes that the outage prevented count with their delay.
    assert!(summary["counts"]["skipped"].as_u64() > Some(0), "{summary:#}");
    assert!(
        summary["latencies"]["writers' delay"]["max_ms"].as_f64() > Some(100.0),
        "{summary:#}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rate_that_is_not_reached_is_told() {
    let tls = Tls::new();
    let server = etcd(&tls).start();
    let flags = ["--rate=500000", "--writers=1", "--json"];
    let test = short_test(&tls, &server, &flags).await.run();
    assert!(test.succeeded(), "{}", test.text());
    let summary: Value = serde_json::from_str(&test.stdout).unwrap();
    let warnings = summary["warnings"].as_array().unwrap();
    assert!(
        warnings
            .iter()
            .any(|warning| warning.as_str().unwrap().contains("the rate was not reached")),
        "{summary:#}"
    );
}

/// The store stops answering, as a node without power does, and the operator presses Ctrl-C.
#[tokio::test(flavor = "multi_thread")]
async fn an_interrupted_test_of_a_dead_store_ends_soon_with_its_result() {
    let tls = Tls::new();
    let server = etcd(&tls).start();
    let test = short_test(&tls, &server, &["--duration=5m"]).await.start();
    test.line("watching").await;
    server.signal(Signal::SIGSTOP);
    tokio::time::sleep(Duration::from_secs(1)).await;
    test.signal(Signal::SIGINT);
    let status = test.ended_within(Duration::from_secs(4)).await;
    assert!(!status.success());
    let log = test.log();
    for part in [
        "connect to in sync",
        "20 connections",
        "INTERRUPTED",
        "could not be emptied",
        "remain until their lease ends",
    ] {
        assert!(log.contains(part), "{part}: {log}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_only_test_reads_existing_clusters_and_writes_nothing() {
    let server = plain_etcd().start();
    let address = server.address().await;
    let mut client = crate::support::store::plain_client(&address).await;
    for key in [
        "cilium/cluster-config/hk",
        "cilium/cache/nodes/v1/hk/n1",
        "cilium/.heartbeat",
    ] {
        client.put(key, "{}", None).await.unwrap();
    }
    let before = client.get("cilium/", None).await.unwrap().header().unwrap().revision();
    let done = isthmus(["loadtest", "--read-only", "--agents=5", "--duration=1s", "--json"])
        .arg(format!("--endpoints={address}"))
        .run();
    assert!(done.succeeded(), "{}", done.text());
    let summary: Value = serde_json::from_str(&done.stdout).unwrap();
    // The heartbeat and the node, for each agent.
    assert_eq!(summary["counts"]["listed"], 10, "{summary:#}");
    let after = client.get("cilium/", None).await.unwrap().header().unwrap().revision();
    assert_eq!(before, after);
}

#[test]
fn a_store_that_is_not_there_and_a_wrong_number_are_explained() {
    let absent = isthmus(["loadtest", "--endpoints=127.0.0.1:1"]).run();
    assert!(!absent.succeeded());
    assert!(
        absent
            .stderr
            .contains("cannot test http://127.0.0.1:1: connect: Connection refused"),
        "{}",
        absent.stderr
    );
    let many = isthmus(["loadtest", "--agents=5000000"]).run();
    assert!(many.stderr.contains("--agents × --clusters"), "{}", many.stderr);
    let scenarios = isthmus(["loadtest", "scenarios"]).run();
    for part in ["agents-10k", "kvstoremesh-250", "--agents=3000", "--read-only"] {
        assert!(scenarios.stdout.contains(part), "{part}");
    }
}
