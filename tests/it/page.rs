//! Proves that the mesh page and its API show what a process knows, live, to those who may see it, and that nothing that a
//! remote cluster writes can run in a browser.

use crate::support::files::{copy_directory, example, free_port};
use crate::support::http::Request;
use crate::support::mesh::{Mirror, RemoteStore, write_client_files};
use crate::support::page::Page;
use crate::support::tls::{etcd, trusting_file};
use crate::support::{PATIENCE, Process, Tls, eventually, isthmus};
use rustls::ALL_VERSIONS;
use serde_json::Value;
use std::time::Duration;

/// The pages that are the same in every cluster.
const PAGES: [&str; 7] = [
    "/",
    "/topology",
    "/topology?sort=lag&order=descending",
    "/services",
    "/services?q=shop/",
    "/clients",
    "/look-up",
];

/// The address of the page that a demo prints for a cluster.
async fn page_of(demo: &Process, cluster: &str) -> Page {
    let line = demo.line(&format!("  {cluster:<15}http://")).await;
    let url = line.split("http://").nth(1).unwrap();
    Page::at(url.trim_end_matches('/'))
}

#[tokio::test]
async fn every_page_and_every_path_of_the_api_shows_the_demo() {
    let demo = isthmus(["demo"]).start();
    demo.line("Ctrl-C stops").await;
    let page = page_of(&demo, "tokyo-cluster").await;
    for path in PAGES.into_iter().chain(["/remote/hk-cluster", "/look-up?q=10.2.0.21"]) {
        let answer = page.get(path).await;
        assert_eq!(answer.status, 200, "{path}");
        let policy = answer.headers["content-security-policy"].to_str().unwrap();
        assert!(
            policy.starts_with("default-src 'none'; ") && !policy.contains("unsafe"),
            "{policy}"
        );
        assert_eq!(answer.headers["cache-control"], "no-store");
        for part in ["<title>", "tokyo-cluster", "Skip to the content"] {
            assert!(
                answer.body.contains(part),
                "{part:?} is not in {path}:\n{}",
                answer.body
            );
        }
        for forbidden in ["style=", "onclick", "<script>", "javascript:", "//"] {
            let body = answer.body.replace("https://", "").replace("http://", "");
            assert!(!body.contains(forbidden), "{forbidden:?} is in {path}");
        }
        for url in answer.body.split("=\"/assets/").skip(1) {
            let name = url.split('"').next().unwrap();
            let asset = page.get(&format!("/assets/{name}")).await;
            assert_eq!(asset.status, 200, "{name}");
            assert!(asset.headers["cache-control"].to_str().unwrap().contains("immutable"));
        }
    }
    for (path, parts) in [
        ("/", &["1 remote cluster is in sync", "addresses"][..]),
        ("/topology", &["hk-cluster", "in sync"]),
        (
            "/remote/hk-cluster",
            &["https://127.0.0.1:", "complete", "CN=remote", "listing"],
        ),
        ("/services", &["payments/", "gateway", "catalog"]),
        ("/clients", &["remote"]),
        (
            "/look-up?q=10.2.0.21",
            &[
                "catalog-5b8d7f9c64-aa21",
                "cilium/cache/ip/v1/hk-cluster/10.2.0.21",
                "app=catalog",
            ],
        ),
    ] {
        // The certificate files are read soon after the start.
        eventually(&format!("{parts:?} are in {path}"), async || {
            let body = page.get(path).await.body;
            parts.iter().all(|part| body.contains(part)).then_some(())
        })
        .await;
    }
    assert_eq!(page.get("/nothing").await.status, 404);
    assert_eq!(page.get("/remote/nobody").await.status, 404);
    assert_eq!(
        Request::post(&format!("http://{}/", page.authority), "")
            .send()
            .await
            .unwrap()
            .status,
        405
    );
}

#[tokio::test]
async fn a_request_that_cannot_be_answered_is_refused_as_json() {
    let demo = isthmus(["demo"]).start();
    demo.line("Ctrl-C stops").await;
    let page = page_of(&demo, "tokyo-cluster").await;
    for (path, status) in [
        ("/services?offset=18446744073709551615", 200),
        ("/remote/hk%2Dcluster", 200),
        ("/api/v1/remotes/hk%2Dcluster", 200),
        ("/api/v1/services?limit=-1", 400),
        ("/api/v1/look-up", 400),
        ("/api/v1/look-up?q=%20", 400),
        ("/api/v1/remotes/%FF", 400),
        ("/remote/%FF", 400),
        ("/services?offset=all", 400),
        ("/live/services?offset=-1", 400),
        ("/topology?sort=lag&sort=name", 400),
        ("/nothing", 404),
        ("/live/look-up", 404),
        ("/api/v1/nothing", 404),
        ("/assets/nothing", 404),
    ] {
        let answer = page.get(path).await;
        assert_eq!(answer.status, status, "{path}");
        let refused: Option<Value> = (status != 200).then(|| serde_json::from_str(&answer.body).unwrap());
        assert!(refused.is_none_or(|refused| refused["message"].is_string()), "{path}");
    }
}

#[tokio::test]
async fn whoever_follows_many_searches_keeps_nobody_from_the_pages() {
    let demo = isthmus(["demo"]).start();
    demo.line("Ctrl-C stops").await;
    let page = page_of(&demo, "tokyo-cluster").await;
    let mut streams = vec![];
    for n in 0..70 {
        streams.push(page.stream(&format!("/live/services?q={n}")).await);
    }
    let refused = streams.iter().filter(|(status, _)| *status == 503).count();
    assert_eq!(refused, 6, "64 searches are followed at a time");
    for path in [
        "/live/overview",
        "/live/topology?sort=id&order=descending",
        "/live/services",
        "/live/clients",
        "/live/remote/hk-cluster",
    ] {
        let (status, _stream) = page.stream(path).await;
        assert_eq!(status, 200, "{path}");
    }
    assert_eq!(page.stream("/live/remote/nobody").await.0, 503);
}

#[tokio::test]
async fn the_answers_of_the_api_are_those_of_its_document() {
    let demo = isthmus(["demo"]).start();
    demo.line("Ctrl-C stops").await;
    let page = page_of(&demo, "tokyo-cluster").await;
    eventually("the propagation is measured", async || {
        let remote = page.json("/api/v1/remotes/hk-cluster").await;
        (!remote["propagation"]["round_trip_ms"].is_null() && !remote["lag"].is_null()).then_some(())
    })
    .await;
    let document = page.json("/api/v1/openapi.json").await;
    assert!(document["openapi"].as_str().unwrap().starts_with("3."));
    let paths = document["paths"].as_object().unwrap();
    assert_eq!(paths.len(), 6);
    for (path, item) in paths {
        let asked = path.replace("{name}", "hk-cluster")
            + if path.ends_with("look-up") {
                "?q=shop/catalog"
            } else {
                ""
            };
        let answer = page.json(&asked).await;
        let schema = &item["get"]["responses"]["200"]["content"]["application/json"]["schema"];
        assert!(schema.is_object(), "{path}");
        let complaint = differs(&document, schema, &answer);
        assert_eq!(complaint, None, "{path}: {answer:#}");
    }
    let overview = page.json("/api/v1/overview").await;
    assert_eq!(overview["cluster"]["name"], "tokyo-cluster");
    assert_eq!(overview["remotes"]["in_sync"], 1);
    let nodes = page.json("/api/v1/remotes/hk-cluster").await["kinds"][0].clone();
    assert_eq!((&nodes["mirrored"], &nodes["announced"]), (&2.into(), &2.into()));
    let found = page.json("/api/v1/look-up?q=cilium/cache/endpointslices/").await;
    assert_eq!(found["findings"][0]["encoding"], "zstd protobuf");
    assert!(found["findings"][0]["value"]["endpoints"].is_array(), "{found:#}");
}

/// Where `value` is not as `schema` says.
fn differs(document: &Value, schema: &Value, value: &Value) -> Option<String> {
    if let Some(reference) = schema["$ref"].as_str() {
        let pointer = reference.trim_start_matches('#');
        let found = document.pointer(pointer);
        return match found {
            Some(schema) => differs(document, schema, value),
            None => Some(format!("{reference} is not in the document")),
        };
    }
    if let Some(all) = schema["allOf"].as_array() {
        return all.iter().find_map(|schema| differs(document, schema, value));
    }
    if let Some(one) = schema["oneOf"].as_array() {
        let fits = one.iter().any(|schema| differs(document, schema, value).is_none());
        return (!fits).then(|| format!("{value} is none of {schema}"));
    }
    if let Some(words) = schema["enum"].as_array() {
        return (!words.contains(value)).then(|| format!("{value} is none of {words:?}"));
    }
    let kinds = match &schema["type"] {
        Value::Array(kinds) => kinds.clone(),
        Value::Null => return None,
        kind => vec![kind.clone()],
    };
    let kind = match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(n) if n.is_f64() => "number",
        Value::Number(_) => "integer",
        Value::String(_) => "string",
        Value::Array(items) => {
            let differing = items.iter().find_map(|item| differs(document, &schema["items"], item));
            return differing.or_else(|| (!kinds.contains(&"array".into())).then(|| format!("no list: {schema}")));
        }
        Value::Object(fields) => {
            for name in schema["required"].as_array().into_iter().flatten() {
                if !fields.contains_key(name.as_str().unwrap()) {
                    return Some(format!("{name} is missing"));
                }
            }
            let properties = schema["properties"].as_object();
            let of_field = |(name, value): (&String, &Value)| {
                let schema = properties?.get(name)?;
                differs(document, schema, value).map(|why| format!("{name}: {why}"))
            };
            return fields.iter().find_map(of_field);
        }
    };
    let fits = kinds
        .iter()
        .any(|allowed| allowed == kind || (allowed == "number" && kind == "integer"));
    (!fits).then(|| format!("{value} is not of type {kinds:?}"))
}

#[tokio::test]
async fn an_edit_of_a_manifest_reaches_an_open_page() {
    let dir = tempfile::tempdir().unwrap();
    for cluster in ["tokyo-cluster", "hk-cluster"] {
        copy_directory(&example(cluster), &dir.path().join(cluster));
    }
    let demo = isthmus(["demo", "--manifests"]).arg(dir.path()).start();
    demo.line("Ctrl-C stops").await;
    let page = page_of(&demo, "tokyo-cluster").await;
    let mut remote = page.follow("/live/remote/hk-cluster").await;
    let all = remote.with("Mirrored keys").await;
    assert!(
        all.as_str().unwrap().contains("<h1>hk-cluster</h1>"),
        "a page without a version gets everything"
    );
    let mut services = page.follow("/live/services?q=shop").await;
    services.with("catalog").await;
    let path = dir.path().join("hk-cluster/services.yaml");
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, text.replace("  name: catalog\n", "  name: pantry\n")).unwrap();
    let pieces = services.with("pantry").await;
    let ids: Vec<_> = pieces
        .as_array()
        .unwrap()
        .iter()
        .map(|piece| piece[0].as_str().unwrap())
        .collect();
    assert!(ids.contains(&"services") && !ids.contains(&"pages"), "{ids:?}");
}

#[tokio::test]
async fn what_a_hostile_remote_writes_is_shown_as_text() {
    const EVIL: &str = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>";
    let tls = Tls::new();
    let remote = RemoteStore::start(&tls, "hk").await;
    let mut client = remote.fill(&tls, 1).await;
    let service = serde_json::json!({
        "frontends": {EVIL: {EVIL: {"Protocol": EVIL, "Port": 80}}}, "backends": {}, "shared": true,
    });
    for (key, value) in [
        (
            format!("cilium/state/services/v1/hk/{EVIL}/{EVIL}"),
            service.to_string(),
        ),
        (
            format!("cilium/state/nodes/v1/hk/{EVIL}"),
            format!("{{\"Labels\":{{\"{}\":1}}}}", EVIL.replace('"', "\\\"")),
        ),
        (format!("cilium/state/nodes/v1/hk/a//{EVIL}"), EVIL.to_owned()),
        (
            "cilium/state/services/v1/hk/shop/gnp.\u{202e}cilbup\u{200b}".to_owned(),
            "{}".to_owned(),
        ),
    ] {
        client.put(key, value, None).await.unwrap();
    }
    write_client_files(&tls, &[&remote]);
    let target = etcd(&tls).start();
    let page = Page::new();
    let mirror = Mirror::start(&tls, &target.address().await, &[&page.flag()]);
    mirror.mirrors(1).await;
    eventually("the refused key is counted", async || {
        let remote = page.json("/api/v1/remotes/hk").await;
        (remote["refused"][0]["count"] == 1).then_some(())
    })
    .await;
    let mut shown = 0;
    for path in PAGES.into_iter().chain([
        "/remote/hk",
        "/look-up?q=cilium/cache/",
        "/look-up?q=%3Cscript%3E",
        "/services?q=%3Cscript%3E",
    ]) {
        let body = page.get(path).await.body;
        assert!(
            !body.contains("<script>alert") && !body.contains("<img"),
            "{path}:\n{body}"
        );
        shown += usize::from(body.contains("&lt;script&gt;alert(1)"));
    }
    assert!(shown >= 4, "the texts are shown on {shown} pages");
    let services = page.get("/services?q=cilbup").await.body;
    assert!(services.contains("gnp.\\u{202e}cilbup\\u{200b}"), "{services}");
    let events = page.follow("/live/services").await.with("alert").await;
    assert!(!events.as_str().unwrap().contains("<script>alert"));
    assert_eq!(
        page.json("/api/v1/clients").await["clients"],
        Value::Null,
        "the store is another process"
    );
}

/// The flags of a page over TLS that lets in clients of `ca`, and whoever knows the token.
fn page_flags(tls: &Tls, port: u16, ca: &std::path::Path, token: &std::path::Path) -> [String; 5] {
    let flag = |name: &str, path: &std::path::Path| format!("--{name}={}", path.display());
    [
        format!("--ui-addr=127.0.0.1:{port}"),
        flag("ui-cert-file", &tls.server.cert),
        flag("ui-key-file", &tls.server.key),
        flag("ui-trusted-ca-file", ca),
        flag("ui-token-file", token),
    ]
}

#[tokio::test]
async fn over_tls_the_page_asks_for_a_certificate_or_a_token() {
    let tls = Tls::new();
    let token = tls.path("token");
    std::fs::write(&token, "letmein\n").unwrap();
    write_client_files(&tls, &[]);
    let target = etcd(&tls).start();
    let (address, port) = (target.address().await, free_port());
    let flags = page_flags(&tls, port, &tls.ca.path(), &token);
    let mirror = Mirror::start(&tls, &address, &flags.each_ref().map(String::as_str));
    mirror.process.line("serving the mesh page").await;
    let url = format!("https://127.0.0.1:{port}/api/v1/overview");
    let with_user = |user: &str| {
        let pair = tls.ca.client(&format!("page-{user}"), user).unwrap();
        Request::get(&url).tls(tls.rustls_client(&pair, ALL_VERSIONS))
    };
    let without = || Request::get(&url).tls(trusting_file(&tls.ca.path()));
    for (request, status) in [
        (with_user("admin-local"), 200),
        (with_user("local-local"), 200),
        (with_user("admin-hk"), 401),
        (with_user("local-hk"), 401),
        (with_user("remote"), 401),
        (without(), 401),
        (without().header("authorization", "Bearer letmein"), 200),
        (without().header("authorization", "Basic YW55OmxldG1laW4="), 200),
        (without().header("authorization", "Bearer guess"), 401),
    ] {
        let answer = request.send().await.unwrap();
        assert_eq!(answer.status, status, "{}", answer.body);
        let asks = answer.headers.contains_key("www-authenticate");
        assert_eq!(asks, status == 401, "a browser asks for the token");
        assert!(answer.headers.contains_key("content-security-policy"));
    }
    std::fs::write(&token, "other").unwrap();
    let stale = without()
        .header("authorization", "Bearer letmein")
        .send()
        .await
        .unwrap();
    assert_eq!(stale.status, 401, "a changed token counts at once");
}

#[tokio::test]
async fn an_open_page_ends_with_its_token_and_with_the_trust_in_its_certificate() {
    let (tls, others) = (Tls::new(), Tls::new());
    let (token, ca) = (tls.path("token"), tls.path("page-ca.crt"));
    std::fs::write(&token, "letmein\n").unwrap();
    std::fs::copy(tls.ca.path(), &ca).unwrap();
    write_client_files(&tls, &[]);
    let target = etcd(&tls).start();
    let (address, port) = (target.address().await, free_port());
    let flags = page_flags(&tls, port, &ca, &token);
    let mirror = Mirror::start(&tls, &address, &flags.each_ref().map(String::as_str));
    mirror.process.line("serving the mesh page").await;
    let live = || Request::get(&format!("https://127.0.0.1:{port}/live/overview")).within(PATIENCE);
    let pair = tls.ca.client("page-operator", "admin-local").unwrap();
    // The answers end with the pages.
    let by_certificate = live().tls(tls.rustls_client(&pair, ALL_VERSIONS)).send();
    let by_token = live()
        .tls(trusting_file(&tls.ca.path()))
        .header("authorization", "Bearer letmein")
        .send();
    let open = async { tokio::join!(by_certificate, by_token) };
    let mut open = std::pin::pin!(open);
    let still_open = tokio::time::timeout(Duration::from_secs(1), &mut open).await;
    assert!(still_open.is_err(), "{still_open:?}");
    std::fs::write(&token, "another\n").unwrap();
    std::fs::copy(others.ca.path(), &ca).unwrap();
    let (by_certificate, by_token) = open.await;
    assert!(by_token.unwrap().body.contains("event: all"));
    let error = by_certificate.unwrap_err();
    assert_ne!(error.kind(), std::io::ErrorKind::TimedOut, "the page is still open");
}

/// The keys of a `serve`: its own, those of its remote cluster, and one of somebody else.
#[tokio::test]
async fn an_agent_sees_what_its_role_may_read() {
    let tls = Tls::new();
    let remote = RemoteStore::start(&tls, "hk-cluster").await;
    let mut filled = remote.fill(&tls, 2).await;
    filled
        .put(
            "cilium/state/services/v1/hk-cluster/shop/web",
            r#"{"name":"web","namespace":"shop"}"#,
            None,
        )
        .await
        .unwrap();
    let remotes = write_client_files(&tls, &[&remote]);
    let port = free_port();
    let flag = |name: &str, path: &std::path::Path| format!("--{name}={}", path.display());
    let serve = isthmus(["serve", "--cluster-name=tokyo-cluster", "--cluster-id=1"])
        .arg(flag("manifests", &example("tokyo-cluster")))
        .arg(flag("clustermesh-config", &remotes))
        .args(["--health-port=0", "--api-serve-addr="])
        .args(tls.flags())
        .arg(format!("--ui-addr=127.0.0.1:{port}"))
        .arg(flag("ui-cert-file", &tls.server.cert))
        .arg(flag("ui-key-file", &tls.server.key))
        .arg(flag("ui-trusted-ca-file", &tls.ca.path()))
        .start();
    serve.line("serving the mesh page").await;
    let mut root = tls.client(&serve.address().await, "admin-tokyo-cluster").await;
    root.put("registry/secrets/default/s", "topsecret", None).await.unwrap();
    let read = async |user: &str, path: &str| {
        let pair = tls.ca.client(&format!("page-{user}"), user).unwrap();
        let url = format!("https://127.0.0.1:{port}{path}");
        let answer = Request::get(&url)
            .tls(tls.rustls_client(&pair, ALL_VERSIONS))
            .send()
            .await
            .unwrap();
        assert_eq!(answer.status, 200, "{path}: {}", answer.body);
        answer.body
    };
    let (operator, agent) = ("admin-tokyo-cluster", "local-tokyo-cluster");
    let (own, mirrored) = (
        "cilium/state/nodes/v1/tokyo-cluster/",
        "cilium/cache/nodes/v1/hk-cluster/",
    );
    let found = async |user: &str, question: &str| -> Vec<String> {
        let body = read(user, &format!("/api/v1/look-up?q={question}")).await;
        let answer: Value = serde_json::from_str(&body).unwrap();
        let is_restricted = answer["incomplete"]
            .as_str()
            .is_some_and(|why| why.contains("the role local may not read"));
        assert_eq!(is_restricted, user == agent, "{answer}");
        let findings = answer["findings"].as_array().unwrap().iter();
        findings
            .map(|finding| finding["key"].as_str().unwrap().to_owned())
            .collect()
    };
    eventually("both clusters are there", async || {
        (found(operator, own).await.len() == 3 && found(operator, mirrored).await.len() == 10).then_some(())
    })
    .await;
    let configuration = "cilium/cluster-config/tokyo-cluster";
    for (question, hidden, shown) in [
        (own, own, None),
        // A name, an address, an identity, and the beginning of all keys.
        ("tky-node", own, None),
        ("10.1.0.21", "cilium/state/ip/v1/default/10.1.0.21", None),
        ("cilium/", own, Some(mirrored)),
        ("registry/secrets/default", "registry/secrets/default/s", None),
    ] {
        let (all, readable) = (found(operator, question).await, found(agent, question).await);
        assert!(all.iter().any(|key| key.starts_with(hidden)), "{question}: {all:?}");
        assert!(
            !readable.iter().any(|key| key.starts_with(hidden)),
            "{question}: {readable:?}"
        );
        match shown {
            Some(shown) => assert!(
                readable.iter().any(|key| key.starts_with(shown)),
                "{question}: {readable:?}"
            ),
            None => assert_eq!(readable, [""; 0], "{question}"),
        }
    }
    for question in [mirrored, configuration, "hk-cluster"] {
        assert_eq!(
            found(agent, question).await,
            found(operator, question).await,
            "{question}"
        );
    }
    let page = read(agent, "/look-up?q=registry/secrets/default").await;
    assert!(page.contains("0 keys") && !page.contains("topsecret"), "{page}");
    let services = async |user| {
        let all: Value = serde_json::from_str(&read(user, "/api/v1/services").await).unwrap();
        let clusters = all["services"].as_array().unwrap().iter();
        let clusters = clusters.flat_map(|service| service["clusters"].as_array().unwrap());
        let names = clusters.map(|here| here["cluster"].as_str().unwrap().to_owned());
        names.collect::<std::collections::BTreeSet<_>>()
    };
    let of = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect();
    assert_eq!(services(operator).await, of(&["hk-cluster", "tokyo-cluster"]));
    assert_eq!(services(agent).await, of(&["hk-cluster"]));
    assert!(read(operator, "/services").await.contains("<td>tokyo-cluster</td>"));
    assert!(!read(agent, "/services").await.contains("<td>tokyo-cluster</td>"));
}

#[tokio::test]
async fn an_open_page_is_for_this_machine_and_for_its_names() {
    let tls = Tls::new();
    write_client_files(&tls, &[]);
    let target = etcd(&tls).start();
    let (address, page) = (target.address().await, Page::new());
    let mirror = Mirror::start(&tls, &address, &[&page.flag()]);
    mirror.process.line("serving the mesh page").await;
    let url = format!("http://{}/api/v1/overview", page.authority);
    let foreign = Request::get(&url).header("host", "evil.example").send().await.unwrap();
    assert_eq!(
        foreign.status, 421,
        "a page elsewhere whose name leads here reads nothing"
    );
    assert_eq!(
        Request::get(&url)
            .header("host", "localhost")
            .send()
            .await
            .unwrap()
            .status,
        200
    );
    for (flags, part) in [
        (&["--ui-addr=:0"][..], "--ui-cert-file"),
        (&["--ui-addr=0.0.0.0:0", "--ui-token-file=/t"], "--ui-insecure"),
        (&["--ui-cert-file=/c"], "--ui-key-file"),
        (&["--ui-trusted-ca-file=/c"], "--ui-cert-file"),
    ] {
        let admin = crate::support::admin::Admin::new();
        let ended = Mirror::command(&tls, &address, &admin).args(flags).run();
        assert!(
            !ended.succeeded() && ended.text().contains(part),
            "{flags:?}: {}",
            ended.text()
        );
    }
}
