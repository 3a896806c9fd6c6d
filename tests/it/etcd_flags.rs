//! Where `etcd` takes its settings from, and what they do.

use crate::support::{Process, Tls, etcd, eventually};
use etcd_client::*;
use std::process::Command;

/// What `curl` gets: the status code and the body.
fn curl(args: &[&str]) -> (String, String) {
    let out = Command::new("curl")
        .args(["-s", "-w", "\n%{http_code}", "--max-time", "10"])
        .args(args)
        .output()
        .unwrap();
    let text = String::from_utf8(out.stdout).unwrap();
    let (body, code) = text.rsplit_once('\n').unwrap();
    (code.to_owned(), body.to_owned())
}

const PLAIN: [&str; 3] = [
    "etcd",
    "--listen-client-urls=http://127.0.0.1:0",
    "--advertise-client-urls=http://127.0.0.1:1",
];

#[tokio::test]
async fn settings_come_from_the_environment_or_a_file_but_not_twice() {
    let server = Process::start_with(&[("ETCD_NAME", "from-env"), ("ETCD_NONSENSE", "1")], &PLAIN);
    let mut client = Client::connect([server.address()], None).await.unwrap();
    let members = client.member_list().await.unwrap();
    assert_eq!(members.members()[0].name(), "from-env");
    server.line("unrecognized setting ETCD_NONSENSE");

    let twice = [&PLAIN[..], &["--name=flag"]].concat();
    let mut refused = Process::start_with(&[("ETCD_NAME", "env")], &twice);
    assert_eq!(refused.ended().await.0.code(), Some(1));
    refused.line("conflicting environment variable");
    let mut stray = Process::start(&["etcd", "stray"]);
    assert_eq!(stray.ended().await.0.code(), Some(1));
    stray.line("\"stray\" is not a valid flag");

    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("etcd.yml");
    let text = "name: from-file\nproxy: off\nlisten-client-urls: http://127.0.0.1:0\n\
        advertise-client-urls: http://127.0.0.1:1\nmax-txn-ops: 2\n";
    std::fs::write(&file, text).unwrap();
    let flag = format!("--config-file={}", file.display());
    let server = Process::start_with(&[("ETCD_NAME", "ignored")], &["etcd", "--name=ignored", &flag]);
    let mut client = Client::connect([server.address()], None).await.unwrap();
    let members = client.member_list().await.unwrap();
    assert_eq!(members.members()[0].name(), "from-file");
    let three = (0..3)
        .map(|n| TxnOp::put(format!("k{n}"), "v", None))
        .collect::<Vec<_>>();
    let error = client.txn(Txn::new().and_then(three)).await.unwrap_err().to_string();
    assert!(error.contains("too many operations"), "{error}");
}

#[tokio::test]
async fn sockets_metrics_and_http_have_addresses_of_their_own() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("etcd.sock");
    let unix = format!("--listen-client-urls=http://127.0.0.1:0,unix://{}", socket.display());
    let advertise = "--advertise-client-urls=http://127.0.0.1:1";
    let args = ["etcd", &unix, advertise, "--listen-metrics-urls=http://127.0.0.1:0"];
    let mut server = Process::start(&args);
    server.line("ready to serve");
    let path = socket.display().to_string();
    let over = |url: &str| curl(&["--unix-socket", &path, url]);
    assert_eq!(over("http://etcd/readyz"), ("200".to_owned(), "ok\n".to_owned()));
    let key = r#"{"key":"Zm9v","value":"YmFy"}"#;
    let put = curl(&["--unix-socket", &path, "http://etcd/v3/kv/put", "-d", key]);
    assert!(put.1.contains(r#""revision":"2""#), "{put:?}");

    let line = server.line("metrics are here");
    let metrics = line.split("\"address\":\"").nth(1).unwrap().split('"').next().unwrap();
    let at = |path: &str| curl(&[&format!("http://{metrics}{path}")]);
    let text = at("/metrics").1;
    for name in [
        "etcd_server_has_leader 1",
        "etcd_debugging_mvcc_current_revision 2",
        "etcd_mvcc_put_total 1",
        "etcd_disk_wal_fsync_duration_seconds_count 0",
        r#"grpc_server_handled_total{grpc_code="OK",grpc_method="Put",grpc_service="etcdserverpb.KV",grpc_type="unary"} 1"#,
        r#"grpc_server_started_total{grpc_method="Watch",grpc_service="etcdserverpb.Watch",grpc_type="bidi_stream"} 0"#,
    ] {
        assert!(text.contains(&format!("\n{name}\n")), "no {name} in:\n{text}");
    }
    assert_eq!(at("/health").1, r#"{"health":"true","reason":""}"#);
    assert_eq!(at("/version").0, "404", "clients' paths are not for everybody");
    server.signal("-TERM");
    assert!(server.ended().await.0.success());
    assert!(!socket.exists(), "the socket is gone with its server");
}

#[tokio::test]
async fn the_gateway_can_be_off_and_hosts_can_be_chosen() {
    let off = [
        "--enable-grpc-gateway=false",
        "--host-whitelist=good.example",
        "--cors=http://a.example",
    ];
    let server = Process::start(&[&PLAIN[..], &off].concat());
    let url = |path: &str| format!("http://{}{path}", server.address());
    let get = |path: &str, host: &str| curl(&["-H", &format!("Host: {host}"), &url(path)]).0;
    assert_eq!(get("/v3/kv/range", "good.example"), "404");
    assert_eq!(get("/health", "good.example:2379"), "200");
    assert_eq!(get("/health", "evil.example"), "421");
    let headers = |origin: &str| {
        let (host, origin) = ("Host: good.example", format!("Origin: {origin}"));
        curl(&["-i", "-H", host, "-H", &origin, &url("/health")])
            .1
            .to_lowercase()
    };
    assert!(headers("http://a.example").contains("access-control-allow-origin: http://a.example"));
    assert!(!headers("http://b.example").contains("access-control-allow-origin"));
}

#[tokio::test]
async fn tls_versions_are_limited_and_a_certificate_is_made_where_wanted() {
    let tls = Tls::new();
    let server = etcd(&tls, &["--tls-min-version=TLS1.3"]);
    let pair = tls.ca.client("curl", "curl").unwrap();
    let [ca, cert, key] = [&tls.ca.path(), &pair.cert, &pair.key].map(|p| p.display().to_string());
    let url = format!("https://{}/health", server.address());
    let get = |version: &str, max: &str| {
        let files = ["--cacert", &ca, "--cert", &cert, "--key", &key];
        curl(&[&files[..], &[version, "--tls-max", max, &url]].concat()).0
    };
    assert_eq!(get("--tlsv1.3", "1.3"), "200");
    assert_eq!(get("--tlsv1.2", "1.2"), "000");
    server.line("rejected connection on client endpoint");

    let dir = tempfile::tempdir().unwrap();
    let args = [
        "etcd",
        "--auto-tls",
        "--listen-client-urls=https://127.0.0.1:0",
        "--advertise-client-urls=https://127.0.0.1:1",
        &format!("--data-dir={}", dir.path().display()),
    ];
    let server = Process::start(&args);
    assert_eq!(curl(&["-k", &format!("https://{}/health", server.address())]).0, "200");
}

#[tokio::test]
async fn json_web_tokens_name_the_user() {
    let dir = tempfile::tempdir().unwrap();
    let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
    let file = |name: &str, text: String| {
        let path = dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    let (private, public) = (file("key", key.serialize_pem()), file("pub", key.public_key_pem()));
    let token = format!("--auth-token=jwt,sign-method=ES256,pub-key={public},priv-key={private},ttl=5m");
    let server = Process::start(&[&PLAIN[..], &[&token, "--bcrypt-cost=4"]].concat());
    let address = server.address();
    let mut open = Client::connect([&address], None).await.unwrap();
    open.user_add("root", "secret", None).await.unwrap();
    open.user_grant_role("root", "root").await.unwrap();
    open.auth_enable().await.unwrap();
    let error = open.put("a", "", None).await.unwrap_err().to_string();
    assert!(error.contains("user name is empty"), "{error}");
    let options = ConnectOptions::new().with_user("root", "secret");
    let mut root = Client::connect([&address], Some(options)).await.unwrap();
    root.put("a", "", None).await.unwrap();
    let (_, answer) = curl(&[
        &format!("http://{address}/v3/auth/authenticate"),
        "-d",
        r#"{"name":"root","password":"secret"}"#,
    ]);
    let answer: serde_json::Value = serde_json::from_str(&answer).unwrap();
    let token = answer["token"].as_str().unwrap();
    assert_eq!(token.split('.').count(), 3, "{token}");
    let authorization = format!("Authorization: {token}");
    let put = format!("http://{address}/v3/kv/put");
    let body = r#"{"key":"YQ==","value":"Yg=="}"#;
    assert_eq!(curl(&["-H", &authorization, &put, "-d", body]).0, "200");
    assert_eq!(curl(&["-H", &format!("{authorization}x"), &put, "-d", body]).0, "401");
}

#[tokio::test]
async fn history_goes_by_revisions_where_wanted() {
    let args = ["--auto-compaction-mode=revision", "--auto-compaction-retention=3"];
    let server = Process::start(&[&PLAIN[..], &args].concat());
    let mut client = Client::connect([server.address()], None).await.unwrap();
    client.put("a", "1", None).await.unwrap();
    let wrong = ["--auto-compaction-mode=revision", "--auto-compaction-retention=1h"];
    let mut refused = Process::start(&[&PLAIN[..], &wrong].concat());
    assert_eq!(refused.ended().await.0.code(), Some(1));
    eventually("the reason is printed", async || {
        refused.log().contains("not a number of revisions").then_some(())
    })
    .await;
}
