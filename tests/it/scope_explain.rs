//! Proves that `scope explain`, `why`, `check` and `schema` tell of a scope file what the publisher and the mirror do with it,
//! from every source, and that mistakes and clusters that cannot be read are named.

use crate::support::files::{copy_directory, example};
use crate::support::kubernetes_api::KubernetesApi;
use crate::support::mesh::{RemoteStore, write_client_files};
use crate::support::process::{CommandLine, Finished};
use crate::support::{Tls, isthmus};
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};

const HEAD: &str = "apiVersion: scope.isthmus.io/v1\nkind: Scope\n";
const NO_SHOP: &str = "export: {endpoints: {rules: [{name: no-shop, action: exclude, namespaces: {names: [shop]}}]}}\n";

/// Writes a scope file; returns its path.
fn scope(tls: &Tls, name: &str, sections: &str) -> PathBuf {
    let path = tls.path(name);
    fs::write(&path, format!("{HEAD}{sections}")).unwrap();
    path
}

fn scope_command(command: &str, file: &Path) -> CommandLine {
    isthmus(["scope", command]).arg(format!("--scope={}", file.display()))
}

/// The command for hk-cluster of the example.
fn of_hk(command: &str, file: &Path) -> CommandLine {
    scope_command(command, file)
        .arg("--cluster-name=hk-cluster")
        .arg(format!("--manifests={}", example("hk-cluster").display()))
}

#[track_caller]
fn succeeds(command: CommandLine) -> String {
    let Finished { code, stdout, stderr } = command.run();
    assert_eq!(code, Some(0), "{stdout}{stderr}");
    stdout
}

#[track_caller]
fn fails(command: CommandLine, parts: &[&str]) -> String {
    let finished = command.run();
    let text = finished.text();
    assert_eq!(finished.code, Some(1), "{text}");
    for part in parts {
        assert!(text.contains(part), "no {part:?} in\n{text}");
    }
    finished.stdout
}

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap()
}

/// The numbers of kept and of all keys of a kind.
fn kept(part: &Value, kind: &str) -> (u64, u64) {
    let kinds = part["kinds"].as_array().unwrap();
    let kind = kinds.iter().find(|of| of["kind"] == kind).unwrap();
    (
        kind["kept"]["keys"].as_u64().unwrap(),
        kind["all"]["keys"].as_u64().unwrap(),
    )
}

#[test]
fn explain_reports_what_manifests_would_export() {
    let tls = Tls::new();
    let file = scope(&tls, "new.yaml", NO_SHOP);
    let text = succeeds(of_hk("explain", &file));
    for part in [
        "EXPORT: what hk-cluster shows to other clusters",
        "no-shop",
        "6 endpoints removed",
        "1. export.endpoints: 1 service is exported without 4 backends",
        "For example: shop/catalog without 10.2.0.21",
        "Remedy: put a rule with action: include and backendsOfGlobalServices: true first",
        "The import was not examined",
    ] {
        assert!(text.contains(part), "no {part:?} in\n{text}");
    }
    let report = json(&succeeds(of_hk("explain", &file).arg("--json")));
    assert_eq!(kept(&report["export"], "endpoints"), (4, 10));
    assert_eq!(kept(&report["export"], "identities"), (3, 3));
    assert_eq!(report["warnings"][0]["place"], "export.endpoints");
    assert_eq!(
        (&report["against"], report["import"].as_array().unwrap().len()),
        (&Value::Null, 0)
    );

    let present = scope(&tls, "present.yaml", "export: {endpoints: {default: exclude}}\n");
    let report = json(&succeeds(
        of_hk("explain", &file)
            .arg("--json")
            .arg(format!("--against={}", present.display())),
    ));
    let endpoints = &report["export"]["kinds"][1];
    assert_eq!(
        (
            endpoints["added"]["keys"].as_u64(),
            endpoints["removed"]["keys"].as_u64()
        ),
        (Some(4), Some(0))
    );
}

#[test]
fn why_names_the_rule_for_a_pod_an_address_an_identity_and_a_key() {
    let tls = Tls::new();
    let file = scope(&tls, "new.yaml", NO_SHOP);
    let excluded = "left-out: rule \"no-shop\" excludes the key (export.endpoints, rule 1).";
    for what in [
        "shop/frontend-5b8d7f9c64-aa22",
        "10.2.0.22",
        "cilium/state/ip/v1/default/10.2.0.22",
    ] {
        let text = succeeds(of_hk("why", &file).arg(what));
        assert!(
            text.contains(excluded) && text.contains("identity 132086 (k8s:app=frontend;"),
            "{text}"
        );
    }
    let text = succeeds(of_hk("why", &file).arg("132086"));
    assert!(
        text.contains("kept: export.identities includes the identity."),
        "{text}"
    );
    let text = succeeds(of_hk("why", &file).arg("cilium/state/nodes/v1/hk-cluster/hkg-node-1"));
    assert!(text.contains("kept: nodes have no rules."), "{text}");
    let answer = json(&succeeds(of_hk("why", &file).args(["10.2.0.22", "--json"])));
    assert_eq!(answer["keys"][0]["rule"], "no-shop");
    assert_eq!(
        (&answer["keys"][0]["isThere"], &answer["keys"][0]["willBeThere"]),
        (&true.into(), &false.into())
    );

    let absent = fails(
        of_hk("why", &file).arg("shop/nobody"),
        &["no key matches \"shop/nobody\""],
    );
    assert!(absent.contains("No key matches"), "{absent}");
    let own = fails(
        of_hk("why", &file).arg("billing/ledger-5b8d7f9c64-aa23"),
        &["no key matches"],
    );
    assert!(
        own.contains("CiliumEndpoint billing/ledger-5b8d7f9c64-aa23 exists and is not published"),
        "{own}"
    );
    fails(
        of_hk("why", &file).arg("nonsense"),
        &["\"nonsense\" is no key, pod, address or identity"],
    );
}

#[tokio::test]
async fn explain_reads_a_kubernetes_api_once() {
    let (tls, api) = (Tls::new(), KubernetesApi::with_golden_objects().await);
    let file = scope(&tls, "new.yaml", "export: {endpoints: {default: exclude}}\n");
    let command = scope_command("explain", &file)
        .arg("--json")
        .arg(format!("--k8s-api-server-urls={}", api.url));
    let report = json(&tokio::task::spawn_blocking(|| succeeds(command)).await.unwrap());
    assert_eq!(kept(&report["export"], "endpoints"), (0, 3));
    assert_eq!(kept(&report["export"], "nodes"), (2, 2));
    assert!(!api.requests().join("\n").contains("secrets"));
}

#[test]
fn a_source_that_cannot_be_read_is_named() {
    let tls = Tls::new();
    let file = scope(&tls, "new.yaml", NO_SHOP);
    let api = scope_command("explain", &file).args(["--k8s-api-server-urls=http://127.0.0.1:1", "--timeout=2s"]);
    let text = fails(api, &["the answer is incomplete: could not read this-cluster"]);
    assert!(
        text.contains("could not be listed in 2 s") && text.contains("onnect"),
        "{text}"
    );
    let none = scope_command("explain", &file)
        .env("KUBECONFIG", tls.path("absent"))
        .env("HOME", tls.path("absent"));
    fails(none, &["--k8s-kubeconfig-path", "--manifests"]);
    let manifests = scope_command("explain", &file).arg("--manifests=/nowhere");
    fails(manifests, &["cannot read the manifest directory /nowhere"]);
    let remotes = scope_command("explain", &file).arg("--clustermesh-config=/nowhere");
    fails(remotes, &["cannot read the directory of client files /nowhere"]);
    let snapshot = scope_command("explain", &file).arg(format!("--snapshot={}", file.display()));
    fails(snapshot, &["cannot read the snapshot", "not a bbolt file"]);
}

#[tokio::test]
async fn explain_reads_remote_clusters_and_names_those_that_it_cannot_reach() {
    let tls = Tls::new();
    let store = RemoteStore::start(&tls, "hk").await;
    let mut client = store.fill(&tls, 1).await;
    let endpoint = r#"{"ID":7,"K8sNamespace":"shop","K8sPodName":"db-0"}"#;
    client
        .put("cilium/state/ip/v1/default/10.9.0.1", endpoint, None)
        .await
        .unwrap();
    let remotes = write_client_files(&tls, &[&store]);
    let new = "import: {clusters: [{name: all, clusters: ['*'], endpoints: {default: exclude, rules: [
        {name: ours, action: include, namespaces: {existing: true}}]}}]}\n";
    let file = scope(&tls, "new.yaml", new);
    let command = |name: &str| {
        scope_command(name, &file)
            .arg(format!("--clustermesh-config={}", remotes.display()))
            .arg(format!("--manifests={}", example("hk-cluster").display()))
    };
    let report = json(&succeeds(command("explain").arg("--json")));
    assert_eq!(kept(&report["import"][0], "endpoints"), (1, 11));
    assert_eq!(kept(&report["import"][0], "nodes"), (10, 10));
    assert_eq!(report["import"][0]["entry"], "all");
    let text = succeeds(command("why").arg("shop/db-0"));
    assert!(text.contains("cilium/cache/ip/v1/hk/10.9.0.1 (import, hk)"), "{text}");
    assert!(
        text.contains("kept: rule \"ours\" includes the key (import.clusters (all), rule 1)."),
        "{text}"
    );

    // Without the namespaces of this cluster, nothing is guessed.
    let blind = scope_command("explain", &file).arg(format!("--clustermesh-config={}", remotes.display()));
    let text = succeeds(blind.arg("--enable-k8s=false"));
    assert!(
        text.contains("its namespaces are not known: keys that depend on them are undecided"),
        "{text}"
    );
    assert!(
        text.contains("The export was not examined") && text.contains("pending"),
        "{text}"
    );

    // A store that does not answer, a file that is none, and a name that is not that of the cluster.
    let admin = tls.ca.client("admin", "admin").unwrap();
    tls.client_file(&remotes.join("dead"), "127.0.0.1:1", &admin);
    tls.client_file(&remotes.join("misnamed"), &store.address(), &admin);
    fs::write(remotes.join("broken"), "endpoints: [").unwrap();
    let text = fails(
        command("explain").arg("--timeout=5s"),
        &["the answer is incomplete: could not read broken, dead, misnamed"],
    );
    for part in [
        "broken is not an etcd client configuration",
        "`kvstoremesh-dbg troubleshoot dead` shows where the connection ends",
        "the store has no key cilium/cluster-config/misnamed",
        "11 of 21 keys stay",
    ] {
        assert!(text.contains(part), "no {part:?} in\n{text}");
    }
}

#[tokio::test]
async fn explain_reads_a_snapshot_of_a_store() {
    let tls = Tls::new();
    let store = RemoteStore::start(&tls, "hk").await;
    let mut client = store.fill(&tls, 1).await;
    // A mirrored cluster, a key with history, and one that was deleted.
    let config = r#"{"id":3,"capabilities":{"syncedCanaries":true,"cached":true,"maxConnectedClusters":255}}"#;
    client.put("cilium/cluster-config/tokyo", config, None).await.unwrap();
    for (address, id) in [("10.8.0.1", 70001), ("10.8.0.2", 70002), ("10.8.0.1", 70003)] {
        let value = format!(r#"{{"ID":{id},"K8sNamespace":"batch","K8sPodName":"job"}}"#);
        client
            .put(format!("cilium/cache/ip/v1/tokyo/{address}"), value, None)
            .await
            .unwrap();
    }
    client.delete("cilium/cache/ip/v1/tokyo/10.8.0.2", None).await.unwrap();
    client
        .put("cilium/cache/identities/v1/tokyo/id/70003", "k8s:app=job;", None)
        .await
        .unwrap();
    let saved = tls.path("saved.db");
    let pair = tls.ca.client("tool", "tool").unwrap();
    let flag = |name: &str, path: &Path| format!("--{name}={}", path.display());
    let save = isthmus(["snapshot", "save"])
        .arg(&saved)
        .arg(format!("--endpoints={}", store.address()));
    succeeds(save.args([
        flag("cacert", &tls.ca.path()),
        flag("cert", &pair.cert),
        flag("key", &pair.key),
    ]));

    let new = "import: {clusters: [{name: all, clusters: ['*'], endpoints: {rules: [
        {name: no-jobs, action: exclude, identity: {matchLabels: {app: job}}}]}}]}\n";
    let file = scope(&tls, "new.yaml", new);
    let command = |name: &str| scope_command(name, &file).arg(flag("snapshot", &saved));
    let report = json(&succeeds(command("explain").arg("--json")));
    let [hk, tokyo] = &report["import"].as_array().unwrap()[..] else {
        panic!("{report}")
    };
    assert_eq!((&hk["cluster"], &tokyo["cluster"]), (&"hk".into(), &"tokyo".into()));
    assert_eq!(
        (kept(hk, "nodes"), kept(tokyo, "endpoints"), kept(tokyo, "identities")),
        ((10, 10), (0, 1), (1, 1))
    );
    let text = succeeds(command("why").arg("cilium/cache/ip/v1/tokyo/10.8.0.1"));
    assert!(text.contains("rule \"no-jobs\" excludes the key"), "{text}");
}

#[test]
fn check_names_mistakes_and_schema_is_the_documented_one() {
    let tls = Tls::new();
    let good = scope(&tls, "good.yaml", &format!("region: apac\n{NO_SHOP}"));
    let text = succeeds(isthmus(["scope", "check"]).arg(&good));
    assert!(
        text.ends_with("good.yaml is valid: region apac; export with 1 rule; import with 0 entries and 0 rules\n"),
        "{text}"
    );
    let idle = scope(
        &tls,
        "idle.yaml",
        &NO_SHOP.replace("rules:", "default: exclude, rules:"),
    );
    let text = succeeds(isthmus(["scope", "check"]).arg(&idle));
    assert!(
        text.contains("1. export.endpoints: every rule excludes, and so does the default"),
        "{text}"
    );
    for (sections, mistake) in [
        ("export: {endpoint: {}}\n", "unknown field `endpoint`"),
        (
            "export: {services: {default: drop}}\n",
            "export.services.default: unknown variant `drop`",
        ),
        ("import: [\n", "bad.yaml is not a valid scope file"),
    ] {
        let bad = scope(&tls, "bad.yaml", sections);
        fails(isthmus(["scope", "check"]).arg(&bad), &[mistake]);
        fails(of_hk("explain", &bad), &[mistake]);
        fails(of_hk("why", &bad).arg("10.2.0.22"), &[mistake]);
        fails(
            of_hk("explain", &good).arg(format!("--against={}", bad.display())),
            &[mistake],
        );
    }
    fails(
        isthmus(["scope", "check", "/nowhere"]),
        &["cannot read the scope file /nowhere"],
    );
    let documented = fs::read_to_string(root().join("docs/scope.schema.json")).unwrap();
    assert_eq!(json(&succeeds(isthmus(["scope", "schema"]))), json(&documented));
}

// --- the document

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The blocks of a language in a text, such as `yaml`.
fn blocks<'a>(text: &'a str, language: &str) -> Vec<&'a str> {
    let fence = format!("```{language}\n");
    text.split(&*fence)
        .skip(1)
        .filter_map(|rest| Some(rest.split_once("\n```")?.0))
        .collect()
}

#[test]
fn every_file_in_the_document_can_be_explained() {
    let (tls, text) = (Tls::new(), fs::read_to_string(root().join("docs/scope.md")).unwrap());
    let files: Vec<_> = blocks(&text, "yaml")
        .into_iter()
        .filter(|block| block.starts_with("apiVersion: scope"))
        .collect();
    assert!(files.len() >= 7, "{files:?}");
    for block in files {
        let path = tls.path("recipe.yaml");
        fs::write(&path, block).unwrap();
        succeeds(isthmus(["scope", "check"]).arg(&path));
        let report = succeeds(of_hk("explain", &path));
        assert!(report.contains("EXPORT: what hk-cluster shows"), "{report}");
    }
}

/// Runs the commands of the section "Before you apply a file" where its files are, and compares what they print.
#[test]
fn the_commands_in_the_document_print_what_it_says() {
    let (tls, text) = (Tls::new(), fs::read_to_string(root().join("docs/scope.md")).unwrap());
    let section = text
        .split("\n## Before you apply a file\n")
        .nth(1)
        .unwrap()
        .split("\n## ")
        .next()
        .unwrap();
    let file = blocks(section, "yaml")[0];
    let directory = tls.path("here");
    copy_directory(&example("hk-cluster"), &directory.join("examples/tokyo-hk/hk-cluster"));
    fs::write(directory.join("new.yaml"), file).unwrap();
    let consoles = blocks(section, "console");
    assert!(consoles.len() >= 3, "{consoles:?}");
    for console in consoles {
        let (command, expected) = console.split_once('\n').unwrap();
        let words = command
            .strip_prefix("$ clustermesh-apiserver ")
            .unwrap()
            .split_whitespace();
        let printed = succeeds(isthmus(words).current_dir(&directory));
        assert_eq!(printed.trim_end(), expected, "{command}");
    }
}
