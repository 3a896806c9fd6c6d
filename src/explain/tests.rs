//! Tries files on objects and keys that are made by hand.

use super::import::{Examination, Surroundings};
use super::objects::Objects;
use super::search::{Query, Search};
use super::summary::Summary;
use super::{Answer, Everything, Examined, Files, NamedFile, Report, Sources, export};
use crate::clustermesh::publisher::{Options, Publisher, ServiceMode};
use crate::k8s::events::Event;
use crate::k8s::manifests;
use crate::kvstoremesh::trial::ORDER;
use crate::model::cluster::{ClusterInfo, ClusterName};
use crate::model::keys::Scope;
use crate::scope::ScopeFile;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

fn file(sections: &str) -> NamedFile {
    let text = format!("apiVersion: scope.isthmus.io/v1\nkind: Scope\n{sections}");
    NamedFile {
        name: "new.yaml".to_owned(),
        file: Arc::new(ScopeFile::parse(text.as_bytes()).unwrap()),
    }
}

fn files(new: &str, present: Option<&str>) -> Files {
    Files {
        new: file(new),
        present: present.map(file),
    }
}

fn sources(endpoint_slices: bool) -> Sources {
    Sources {
        options: Options {
            cluster: ClusterInfo::new("hk", 2, 255).unwrap(),
            default_global_namespace: true,
            endpoint_slices,
            service_exports: false,
            service_mode: ServiceMode::PreferLegacy,
            probe_interval: Duration::ZERO,
            scope: None,
        },
        objects: None,
        remotes: None,
        snapshot: None,
        timeout: Duration::from_secs(1),
    }
}

/// Two namespaces, three identities of which one is unknown, four pods, and a service with one backend.
const OBJECTS: &str = "
{apiVersion: v1, kind: Namespace, metadata: {name: shop, labels: {mesh: shared}}}
---
{apiVersion: v1, kind: Namespace, metadata: {name: batch-1}}
---
{apiVersion: v1, kind: Namespace, metadata: {name: own, annotations: {clustermesh.cilium.io/global: 'false'}}}
---
{apiVersion: cilium.io/v2, kind: CiliumIdentity, metadata: {name: '1001'}, security-labels: {'k8s:app': db, 'k8s:io.kubernetes.pod.namespace': shop}}
---
{apiVersion: cilium.io/v2, kind: CiliumIdentity, metadata: {name: '1002'}, security-labels: {'k8s:app': job, 'k8s:io.kubernetes.pod.namespace': batch-1}}
---
{apiVersion: cilium.io/v2, kind: CiliumEndpoint, metadata: {name: db-0, namespace: shop}, status: {identity: {id: 1001}, networking: {addressing: [{ipv4: 10.0.0.1}], node: 1.1.1.1}}}
---
{apiVersion: cilium.io/v2, kind: CiliumEndpoint, metadata: {name: job-0, namespace: batch-1}, status: {identity: {id: 1002}, networking: {addressing: [{ipv4: 10.0.0.2}], node: 1.1.1.1}}}
---
{apiVersion: cilium.io/v2, kind: CiliumEndpoint, metadata: {name: new-0, namespace: shop, annotations: {clustermesh.cilium.io/sync-scope: regional}}, status: {identity: {id: 1003}, networking: {addressing: [{ipv4: 10.0.0.3}], node: 1.1.1.1}}}
---
{apiVersion: cilium.io/v2, kind: CiliumEndpoint, metadata: {name: job-1, namespace: batch-1, annotations: {clustermesh.cilium.io/sync: 'yes'}}, status: {identity: {id: 1002}, networking: {addressing: [{ipv4: 10.0.0.4}], node: 1.1.1.1}}}
---
{apiVersion: cilium.io/v2, kind: CiliumEndpoint, metadata: {name: own-0, namespace: own}, status: {identity: {id: 1001}, networking: {addressing: [{ipv4: 10.0.0.5}], node: 1.1.1.1}}}
---
{apiVersion: v1, kind: Service, metadata: {name: jobs, namespace: batch-1, annotations: {service.cilium.io/global: 'true'}}, spec: {clusterIP: 10.96.0.1, ports: [{name: x, port: 1, protocol: TCP}]}}
---
{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {name: jobs-1, namespace: batch-1, labels: {kubernetes.io/service-name: jobs}}, addressType: IPv4, endpoints: [{addresses: [10.0.0.2]}], ports: [{name: x, port: 1}]}
";

fn objects(options: &Options) -> Objects {
    let mut events = manifests::parse(OBJECTS);
    assert_eq!(events.len(), 12);
    let kinds = Publisher::kinds(options);
    events.retain(|event| matches!(event, Event::Apply(key, _) if kinds.contains(&key.kind)));
    events.extend(kinds.into_iter().map(Event::Listed));
    Objects { events }
}

fn of_export(files: &Files) -> Report {
    let sources = sources(false);
    let mut summary = Summary::default();
    let head = export::examine(&objects(&sources.options), &sources.options, files, &mut summary);
    let everything = Everything {
        export: Some(Ok((head, summary))),
        import: vec![],
        knows_namespaces: true,
    };
    Report::new(files, &sources, everything)
}

/// Each row as `kind decision rule keys`.
fn rows(report: &Report) -> Vec<String> {
    let parts = report.export.iter().chain(&report.import);
    let kinds = parts.flat_map(|part| &part.kinds);
    let rows = kinds.flat_map(|kind| kind.rules.iter().map(move |rule| (kind, rule)));
    rows.map(|(kind, rule)| format!("{} {} {} {}", kind.kind, rule.decision, rule.rule, rule.keys.size.keys))
        .collect()
}

fn problems(report: &Report) -> Vec<String> {
    report
        .warnings
        .iter()
        .map(|trap| format!("{}: {}", trap.place, trap.problem))
        .collect()
}

#[track_caller]
fn assert_warns(report: &Report, text: &str) {
    let problems = problems(report);
    assert!(
        problems.iter().any(|problem| problem.contains(text)),
        "no {text:?} in {problems:#?}"
    );
}

const NO_BATCH: &str = "export: {endpoints: {rules: [
    {name: web, action: include, identity: {matchLabels: {app: web}}},
    {name: no-batch, action: exclude, namespaces: {names: ['batch-*']}}]}}";

#[test]
fn an_export_is_counted_by_rule() {
    let report = of_export(&files(NO_BATCH, None));
    let expected = [
        "identities kept (default) 2",
        "endpoints kept (default) 1",
        "endpoints left-out no-batch 2",
        "endpoints pending web 1",
        "services kept (default) 1",
        "endpointSlices kept (default) 1",
    ];
    assert_eq!(rows(&report), expected);
    let part = report.export.as_ref().unwrap();
    let endpoints = &part.kinds[1];
    // The pending address stays where it is, and only gets the mark of its region.
    assert_eq!(
        (endpoints.all.keys, endpoints.kept.keys, endpoints.removed.size.keys),
        (4, 2, 2)
    );
    assert_eq!(
        endpoints.removed.examples,
        ["10.0.0.2 (batch-1/job-0)", "10.0.0.4 (batch-1/job-1)"]
    );
    assert_eq!(
        (endpoints.added.size.keys, &*endpoints.changed.examples),
        (0, &["10.0.0.3 (shop/new-0)".to_owned()][..])
    );
    assert!(
        part.kinds
            .iter()
            .all(|kind| kind.rules.iter().map(|rule| rule.keys.size.bytes).sum::<u64>() == kind.all.bytes)
    );
    let text = report.text();
    for line in [
        "EXPORT: what hk shows to other clusters",
        "endpoints       left-out  no-batch   ",
        "2 endpoints removed (",
    ] {
        assert!(text.contains(line), "no {line:?} in\n{text}");
    }
}

#[test]
fn traps_of_an_export_are_told_with_a_remedy() {
    let report = of_export(&files(NO_BATCH, None));
    assert_warns(&report, "export.endpoints: 1 service is exported without 1 backend: ");
    assert_warns(
        &report,
        "region: 1 address has the annotation clustermesh.cilium.io/sync-scope: regional",
    );
    assert_warns(&report, "export.endpoints: 1 annotation is ignored");
    assert_warns(&report, "export.endpoints: 1 address is undecided");
    let lost = &report.warnings[0];
    assert_eq!(lost.examples, ["batch-1/jobs without 10.0.0.2"]);
    assert!(lost.remedy.contains("backendsOfGlobalServices: true"), "{lost:?}");
    let text = report.text();
    assert!(
        text.contains("\n4 WARNINGS\n1. export.endpoints: ") && text.contains("   Remedy: put a rule with"),
        "{text}"
    );

    let idle = "export: {identities: used, endpoints: {default: exclude, rules: [
        {name: typo, action: include, namespaces: {names: [shp]}}, {name: db, action: include, namespaces: {names: [shop]}}]}}";
    let report = of_export(&files(idle, None));
    assert_warns(&report, "export.endpoints.rules[0]: rule \"typo\" decides about no key");
    assert_warns(&report, "1 identity is left out although pods have them");
    assert!(!problems(&report).iter().any(|problem| problem.contains("\"db\"")));
    assert!(rows(&report).contains(&"identities left-out (unused) 1".to_owned()));
}

#[test]
fn an_export_is_compared_with_the_present_scope() {
    let present = "export: {endpoints: {default: exclude}}";
    let report = of_export(&files(NO_BATCH, Some(present)));
    let endpoints = &report.export.as_ref().unwrap().kinds[1];
    // Nothing is guessed: an address that is not there stays away while its identity is not known.
    assert_eq!((endpoints.added.size.keys, endpoints.removed.size.keys), (1, 0));
    assert_eq!(endpoints.added.examples, ["10.0.0.1 (shop/db-0)"]);
    let same = of_export(&files(NO_BATCH, Some(NO_BATCH)));
    assert!(same.text().contains("Nothing changes."), "{}", same.text());
}

#[test]
fn slices_without_annotations_are_told() {
    let (files, sources) = (files("region: apac", None), sources(true));
    let mut summary = Summary::default();
    let head = export::examine(&objects(&sources.options), &sources.options, &files, &mut summary);
    let everything = Everything {
        export: Some(Ok((head, summary))),
        import: vec![],
        knows_namespaces: true,
    };
    assert_warns(
        &Report::new(&files, &sources, everything),
        "addresses come from CiliumEndpointSlices",
    );
}

// --- import

/// Shows the keys of a remote cluster: two identities, a service with two backends, four endpoints.
fn remote<V: super::judged::Visitor>(files: &Files, name: &str, region: Option<&str>, visitor: V) -> Examined<V> {
    let namespaces = Some(Arc::new(BTreeSet::from(["shop".to_owned()])));
    let surroundings = Surroundings { files, namespaces };
    let cluster = ClusterName::new(name).unwrap();
    let mut examination = Examination::new(&cluster, region, &surroundings, visitor);
    let endpoint = |namespace: &str, pod: &str, id: u32, more: &str| {
        format!(r#"{{"ID":{id},"K8sNamespace":"{namespace}","K8sPodName":"{pod}"{more}}}"#)
    };
    let keys = [
        (Scope::Identities, "1001", "k8s:app=db;".to_owned()),
        (Scope::Identities, "1002", "k8s:app=job;".to_owned()),
        (
            Scope::Services,
            "shop/db",
            r#"{"backends":{"10.1.0.1":{},"10.1.0.2":{}}}"#.to_owned(),
        ),
        (Scope::Nodes, "n1", "{}".to_owned()),
        (Scope::Nodes, "../n2", "{}".to_owned()),
        (Scope::Endpoints, "10.1.0.1", endpoint("shop", "db-0", 1001, "")),
        (Scope::Endpoints, "10.1.0.2", endpoint("batch", "job-0", 1002, "")),
        (Scope::Endpoints, "10.1.0.3", endpoint("batch", "job-1", 1002, "")),
        (
            Scope::Endpoints,
            "10.1.0.4",
            endpoint("shop", "db-1", 1001, r#","SyncScope":"regional""#),
        ),
    ];
    for kind in ORDER {
        for (_, name, value) in keys.iter().filter(|(of, ..)| *of == kind) {
            examination.put(kind, name.as_bytes(), value.clone().into());
        }
        examination.end(kind);
    }
    Examined {
        cluster,
        outcome: Ok(examination.finish()),
    }
}

fn of_import(files: &Files, clusters: &[(&str, Option<&str>)]) -> Report {
    let examined = clusters
        .iter()
        .map(|(name, region)| remote(files, name, *region, Summary::default()));
    let everything = Everything {
        export: None,
        import: examined.collect(),
        knows_namespaces: true,
    };
    Report::new(files, &sources(false), everything)
}

#[test]
fn an_import_is_counted_by_cluster_and_rule() {
    let new = "region: apac
import: {clusters: [{name: near, regions: [apac]}, {name: far, clusters: ['*'], identities: used, endpoints: {default: exclude, rules: [
    {name: ours, action: include, namespaces: {existing: true}}]}}]}";
    let files = files(new, None);
    let report = of_import(&files, &[("hk", Some("emea")), ("tokyo", Some("apac"))]);
    let [hk, tokyo] = &report.import[..] else {
        panic!("{report:?}")
    };
    assert_eq!((hk.entry.as_deref(), hk.region.as_deref()), (Some("far"), Some("emea")));
    assert_eq!(tokyo.entry.as_deref(), Some("near"));
    assert!(
        tokyo
            .kinds
            .iter()
            .all(|kind| kind.is_plain() && kind.removed.size.keys == 0)
    );
    let of_hk: Vec<_> = rows(&report)[..9].to_vec();
    let expected = [
        "identities kept (default) 1",
        "identities left-out (unused) 1",
        "endpoints kept ours 1",
        "endpoints left-out (default) 2",
        "endpoints left-out (region) 1",
        "nodes kept (default) 1",
        "services kept (default) 1",
    ];
    assert_eq!(of_hk[..7], expected);
    assert_warns(
        &report,
        "import.clusters[1] (far): 1 service is imported without 1 backend: ",
    );
    assert_warns(
        &report,
        "import.clusters[1] (far): 1 identity is left out although pods have them",
    );
    let lost = report
        .warnings
        .iter()
        .find(|trap| trap.problem.contains("without 1 backend"));
    assert_eq!(lost.unwrap().examples, ["hk: shop/db without 10.1.0.2"]);
    let text = report.text();
    for line in [
        "IMPORT: what this cluster takes from 2 remote clusters",
        "hk (region emea, entry \"far\")",
        "tokyo (region apac, entry \"near\")",
        "3 endpoints removed (",
        "(region): the address is for clusters of another region.",
    ] {
        assert!(text.contains(line), "no {line:?} in\n{text}");
    }
}

#[test]
fn traps_of_an_import_are_told() {
    let new = "import: {clusters: [
        {name: kinds, clusters: [hk], kinds: [endpoints], limits: {endpoints: 3}},
        {name: regional, regions: [apac]}, {name: nobody, clusters: ['paris-*']}]}";
    let report = of_import(&files(new, None), &[("hk", None), ("tokyo", Some("apac"))]);
    assert_warns(&report, "import: 1 key of hk is mirrored by nobody");
    assert_warns(
        &report,
        "import.clusters[0] (kinds): 2 identities are left out, and endpoints that are imported have them",
    );
    assert_warns(
        &report,
        "import.clusters (kinds).limits.endpoints: hk has 4 keys after the rules, more than the limit of 3",
    );
    assert_warns(
        &report,
        "import.clusters[2] (nobody): the entry governs none of the 2 clusters",
    );
    assert_warns(&report, "import.regions: the region of 1 cluster is not known");
    assert_warns(
        &report,
        "region: 2 addresses of remote clusters are for clusters of their own region",
    );
}

#[test]
fn an_import_is_compared_with_the_present_scope() {
    let all = "import: {clusters: [{name: all, clusters: ['*']}]}";
    let none = "import: {clusters: [{name: none, clusters: ['*'], endpoints: {default: exclude}}]}";
    let endpoints = |new, present| {
        let report = of_import(&files(new, present), &[("hk", None)]);
        let kind = report.import[0].kinds[1].clone();
        (kind.added.size.keys, kind.removed.size.keys)
    };
    assert_eq!(endpoints(all, None), (0, 0));
    assert_eq!(endpoints(none, None), (0, 4));
    assert_eq!(endpoints(all, Some(none)), (4, 0));
    assert_eq!(endpoints(none, Some(all)), (0, 4));
    assert_eq!(endpoints(none, Some(none)), (0, 0));
}

#[test]
fn the_longest_list_is_explained_to_its_last_rule() {
    let rule = |n: usize| {
        format!(
            "{{name: r{n}, action: exclude, namespaces: {{names: [{}]}}}}",
            if n == 127 { "batch" } else { "x" }
        )
    };
    let rules: Vec<_> = (0..128).map(rule).collect();
    let lists = format!("{{rules: [{}]}}", rules.join(", "));
    let new = format!(
        "import: {{clusters: [{{name: all, clusters: ['*'], endpoints: {lists}}}]}}\nexport: {{endpoints: {lists}}}"
    );
    let report = of_import(&files(&new, None), &[("hk", None)]);
    assert!(
        rows(&report).contains(&"endpoints left-out r127 2".to_owned()),
        "{:?}",
        rows(&report)
    );
    let idle = problems(&report)
        .iter()
        .filter(|problem| problem.contains("decides about no key"))
        .count();
    assert_eq!(idle, 127);
    let report = of_export(&files(&new, None));
    assert!(rows(&report).contains(&"endpoints kept (default) 4".to_owned()));
}

// --- why

fn why(files: &Files, query: &str) -> Answer {
    let query = Query::parse(query).unwrap();
    let sources = sources(false);
    let mut search = Search::new(query.clone());
    let head = export::examine(&objects(&sources.options), &sources.options, files, &mut search);
    let everything = Everything {
        export: Some(Ok((head, search))),
        import: vec![remote(files, "tokyo", Some("emea"), Search::new(query.clone()))],
        knows_namespaces: true,
    };
    Answer::new(files, &query, everything)
}

#[test]
fn why_names_the_rule_and_what_it_rests_on() {
    let new = format!(
        "region: apac\n{NO_BATCH}
import: {{clusters: [{{name: far, clusters: ['*'], identities: used, endpoints: {{default: exclude, rules: [
    {{name: behind, action: include, backendsOfServices: true}}]}}}}]}}"
    );
    let files = files(&new, None);
    let told = |query: &str| {
        let answer = why(&files, query);
        let keys = answer
            .keys
            .iter()
            .map(|told| format!("{} {}: {}: {}", told.direction, told.key, told.decision, told.reason));
        keys.collect::<Vec<_>>()
    };
    let job = "export cilium/state/ip/v1/default/10.0.0.2: left-out: rule \"no-batch\" excludes the key (export.endpoints, rule 2)";
    for query in ["batch-1/job-0", "10.0.0.2", "cilium/state/ip/v1/default/10.0.0.2"] {
        assert_eq!(told(query), [job], "{query}");
    }
    assert!(told("10.0.0.3")[0].contains("pending: the labels of the identity are not known yet, and rule \"web\""));
    let behind = "import cilium/cache/ip/v1/tokyo/10.1.0.2: kept: rule \"behind\" includes the key (import.clusters (far), rule 1)";
    assert_eq!(told("10.1.0.2"), [behind]);
    assert_eq!(told("cilium/cache/ip/v1/tokyo/10.1.0.2"), [behind]);
    assert!(
        told("10.1.0.3")[0].ends_with("no rule of import.clusters (far) matches, and its default excludes the key")
    );
    assert!(
        told("shop/db-1")[0].ends_with("the address is for clusters of the region emea, and this cluster is in apac")
    );
    let identities = told("1001");
    assert_eq!(identities.len(), 2);
    assert!(
        identities[1].ends_with("import.clusters (far) includes the identity"),
        "{identities:?}"
    );
    let text = why(&files, "10.1.0.2").text();
    assert!(
        text.contains("Facts: pod batch/job-0; identity 1002 (k8s:app=job;); a backend of a service."),
        "{text}"
    );
    assert!(text.contains("Change: none, the key stays."), "{text}");
}

#[test]
fn why_says_what_it_did_not_find() {
    let answer = why(
        &files(NO_BATCH, Some("export: {endpoints: {default: exclude}}")),
        "own/own-0",
    );
    assert!(answer.keys.is_empty());
    assert!(
        answer.notes[0].starts_with("CiliumEndpoint own/own-0 exists and is not published"),
        "{answer:?}"
    );
    assert!(answer.notes[1].starts_with("No key matches"), "{answer:?}");
    let answer = why(
        &files(NO_BATCH, Some("export: {endpoints: {default: exclude}}")),
        "shop/db-0",
    );
    let present = answer.keys[0].present.as_deref();
    assert_eq!(
        present,
        Some("export.endpoints has no rules for this kind, and its default excludes the key")
    );
    assert!(answer.text().contains("Change: the key is written."));
}
