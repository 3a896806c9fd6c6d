//! Proves where `etcd` takes its settings from (flags, environment, file) and that the settings have their effect.

use crate::support::http::{self, Request};
use crate::support::store::{plain_client, plain_etcd};
use crate::support::tls::{etcd, trusting_file};
use crate::support::{CommandLine, Tls, isthmus};
use ::http::StatusCode;
use etcd_client::*;
use rustls::version::{TLS12, TLS13};

/// The name of the only member.
async fn member_name(client: &mut Client) -> String {
    client.member_list().await.unwrap().members()[0].name().to_owned()
}

/// Fails unless the command exits with 1 and prints `reason`.
fn refused(command: CommandLine, reason: &str) {
    let finished = command.run();
    let text = finished.text();
    assert_eq!(finished.code, Some(1), "{text}");
    assert!(text.contains(reason), "no {reason:?} in:\n{text}");
}

#[tokio::test]
async fn settings_come_from_flags_the_environment_or_a_file() {
    let server = plain_etcd()
        .env("ETCD_NAME", "from-env")
        .env("ETCD_NONSENSE", "1")
        .start();
    let mut client = plain_client(&server.address().await).await;
    assert_eq!(member_name(&mut client).await, "from-env");
    server.line("unrecognized setting ETCD_NONSENSE").await;

    let flag_and_variable = plain_etcd().arg("--name=flag").env("ETCD_NAME", "env");
    refused(flag_and_variable, "conflicting environment variable");
    refused(isthmus(["etcd", "stray"]), "\"stray\" is not a valid flag");

    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("etcd.yml");
    let text = "name: from-file\nproxy: off\nlisten-client-urls: http://127.0.0.1:0\n\
        advertise-client-urls: http://127.0.0.1:1\nmax-txn-ops: 2\n";
    std::fs::write(&file, text).unwrap();
    let flag = format!("--config-file={}", file.display());
    let server = isthmus(["etcd", "--name=ignored", &flag])
        .env("ETCD_NAME", "ignored")
        .start();
    let mut client = plain_client(&server.address().await).await;
    assert_eq!(member_name(&mut client).await, "from-file");
    let three = (0..3)
        .map(|n| TxnOp::put(format!("k{n}"), "v", None))
        .collect::<Vec<_>>();
    let error = client.txn(Txn::new().and_then(three)).await.unwrap_err().to_string();
    assert!(error.contains("too many operations"), "{error}");
}

#[test]
fn flags_that_etcd_removed_are_refused_with_their_successors() {
    for (flag, successor) in [
        (
            "-experimental-watch-progress-notify-interval=1m",
            "--watch-progress-notify-interval",
        ),
        (
            "--experimental-initial-corrupt-check",
            "--feature-gates=InitialCorruptCheck=true",
        ),
        ("--discovery=http://example", "--discovery-endpoints"),
    ] {
        let finished = plain_etcd().arg(flag).run();
        let name = flag.trim_start_matches('-').split('=').next().unwrap();
        let text = finished.text();
        assert_eq!(finished.code, Some(2), "{text}");
        assert!(
            text.contains(&format!("flag provided but not defined: -{name}\n")),
            "{text}"
        );
        assert!(text.contains(&format!("use {successor}")), "{text}");
    }
}

#[tokio::test]
async fn a_unix_socket_serves_clients_and_metrics_have_a_listener_of_their_own() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("etcd.sock");
    let unix = format!("--listen-client-urls=http://127.0.0.1:0,unix://{}", socket.display());
    let advertise = "--advertise-client-urls=http://127.0.0.1:1";
    let server = isthmus(["etcd", &unix, advertise, "--listen-metrics-urls=http://127.0.0.1:0"]).start();
    server.line("ready to serve").await;
    let ready = Request::get("http://etcd/readyz")
        .unix_socket(&socket)
        .send()
        .await
        .unwrap();
    assert_eq!((ready.status, &*ready.body), (StatusCode::OK, "ok\n"));
    let put = Request::post("http://etcd/v3/kv/put", r#"{"key":"Zm9v","value":"YmFy"}"#);
    let put = put.unix_socket(&socket).send().await.unwrap();
    assert!(put.body.contains(r#""revision":"2""#), "{put:?}");

    let read = Request::post(
        "http://etcd/v3/kv/txn",
        r#"{"success":[{"requestRange":{"key":"Zm9v"}}]}"#,
    );
    let read = read.unix_socket(&socket).send().await.unwrap();
    assert!(read.body.contains("YmFy"), "{read:?}");

    let line = server.line("serving metrics and health").await;
    let metrics = line.split("\"address\":\"").nth(1).unwrap().split('"').next().unwrap();
    let get = async |path: &str| http::get(&format!("http://{metrics}{path}")).await.unwrap();
    let text = get("/metrics").await.body;
    for name in [
        "etcd_server_has_leader 1",
        "etcd_debugging_mvcc_current_revision 2",
        "etcd_mvcc_put_total 1",
        r#"etcd_server_request_duration_seconds_count{success="true",type="Put"} 1"#,
        r#"etcd_server_request_duration_seconds_count{success="true",type="ReadonlyTxn"} 1"#,
        "etcd_debugging_server_watch_send_loop_progress_duration_seconds_count 0",
        "etcd_disk_wal_fsync_duration_seconds_count 0",
        r#"isthmus_server_connections{state="handshake"} 0.0"#,
        "isthmus_server_answer_bytes 0.0",
        "isthmus_mvcc_frames_dropped_total 0",
        "isthmus_mvcc_log_reads_total 0",
        r#"grpc_server_handled_total{grpc_code="OK",grpc_method="Put",grpc_service="etcdserverpb.KV",grpc_type="unary"} 1"#,
        r#"grpc_server_started_total{grpc_method="Watch",grpc_service="etcdserverpb.Watch",grpc_type="bidi_stream"} 0"#,
    ] {
        assert!(text.contains(&format!("\n{name}\n")), "no {name} in:\n{text}");
    }
    assert_eq!(get("/health").await.body, r#"{"health":"true","reason":""}"#);
    assert_eq!(
        get("/version").await.status,
        StatusCode::NOT_FOUND,
        "the metrics listener serves no paths of clients"
    );
    assert!(server.terminate().await.success());
    assert!(!socket.exists(), "the server must remove its socket");
}

#[tokio::test]
async fn the_json_gateway_can_be_disabled_and_hosts_and_origins_restricted() {
    let server = plain_etcd()
        .arg("--enable-grpc-gateway=false")
        .arg("--host-whitelist=good.example")
        .arg("--cors=http://a.example")
        .start();
    let address = server.address().await;
    let get = |path: &str, host: &str| Request::get(&format!("http://{address}{path}")).header("host", host);
    for (path, host, status) in [
        ("/v3/kv/range", "good.example", StatusCode::NOT_FOUND),
        ("/health", "good.example:2379", StatusCode::OK),
        ("/health", "evil.example", StatusCode::MISDIRECTED_REQUEST),
    ] {
        assert_eq!(get(path, host).send().await.unwrap().status, status, "{host}{path}");
    }
    for (origin, allowed) in [
        ("http://a.example", Some("http://a.example")),
        ("http://b.example", None),
    ] {
        let request = get("/health", "good.example").header("origin", origin);
        let headers = request.send().await.unwrap().headers;
        let header = headers.get("access-control-allow-origin").map(|h| h.to_str().unwrap());
        assert_eq!(header, allowed, "{origin}");
    }
}

#[tokio::test]
async fn tls_versions_can_be_limited_and_auto_tls_makes_a_certificate() {
    let tls = Tls::new();
    let server = etcd(&tls).arg("--tls-min-version=TLS1.3").start();
    let pair = tls.ca.client("http", "http").unwrap();
    let url = format!("https://{}/health", server.address().await);
    let get = |version| Request::get(&url).tls(tls.rustls_client(&pair, &[version])).send();
    assert_eq!(get(&TLS13).await.unwrap().status, StatusCode::OK);
    get(&TLS12).await.unwrap_err();
    server.line("rejected connection on client endpoint").await;

    let dir = tempfile::tempdir().unwrap();
    let server = isthmus(["etcd", "--auto-tls", "--listen-client-urls=https://127.0.0.1:0"])
        .arg("--advertise-client-urls=https://127.0.0.1:1")
        .arg(format!("--data-dir={}", dir.path().display()))
        .start();
    let health = Request::get(&format!("https://{}/health", server.address().await));
    let made = dir.path().join("fixtures/client/cert.pem");
    let health = health.tls(trusting_file(&made)).send().await.unwrap();
    assert_eq!(health.status, StatusCode::OK);
}

#[tokio::test]
async fn a_json_web_token_authenticates_its_user() {
    let dir = tempfile::tempdir().unwrap();
    let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
    let file = |name: &str, text: String| {
        let path = dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    let (private, public) = (file("key", key.serialize_pem()), file("pub", key.public_key_pem()));
    let token = format!("--auth-token=jwt,sign-method=ES256,pub-key={public},priv-key={private},ttl=5m");
    let server = plain_etcd().args([&token, "--bcrypt-cost=4"]).start();
    let address = server.address().await;
    let mut open = plain_client(&address).await;
    open.user_add("root", "secret", None).await.unwrap();
    open.user_grant_role("root", "root").await.unwrap();
    open.auth_enable().await.unwrap();
    let error = open.put("a", "", None).await.unwrap_err().to_string();
    assert!(error.contains("user name is empty"), "{error}");
    let options = ConnectOptions::new().with_user("root", "secret");
    let mut root = Client::connect([&address], Some(options)).await.unwrap();
    root.put("a", "", None).await.unwrap();
    let authenticate = Request::post(
        &format!("http://{address}/v3/auth/authenticate"),
        r#"{"name":"root","password":"secret"}"#,
    );
    let answer = authenticate.send().await.unwrap().body;
    let answer: serde_json::Value = serde_json::from_str(&answer).unwrap();
    let token = answer["token"].as_str().unwrap();
    assert_eq!(token.split('.').count(), 3, "{token}");
    let put = async |token: &str| {
        let url = format!("http://{address}/v3/kv/put");
        let put = Request::post(&url, r#"{"key":"YQ==","value":"Yg=="}"#);
        put.header("authorization", token).send().await.unwrap().status
    };
    assert_eq!(put(token).await, StatusCode::OK);
    assert_eq!(put(&format!("{token}x")).await, StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn compaction_by_revisions_wants_a_number_of_revisions() {
    let retaining = |retention: &str| {
        plain_etcd()
            .arg("--auto-compaction-mode=revision")
            .arg(format!("--auto-compaction-retention={retention}"))
    };
    let server = retaining("3").start();
    let mut client = plain_client(&server.address().await).await;
    client.put("a", "1", None).await.unwrap();
    refused(retaining("1h"), "not a number of revisions");
}

#[tokio::test]
async fn budgets_of_clients_can_be_set_and_refusals_are_counted_and_logged() {
    let server = plain_etcd()
        .args(["--max-leases-per-user=1", "--max-connections=40"])
        .env("ETCD_MAX_WATCHERS_PER_CONNECTION", "1")
        .start();
    let address = server.address().await;
    let mut client = plain_client(&address).await;
    client.lease_grant(60, None).await.unwrap();
    let error = client.lease_grant(60, None).await.unwrap_err().to_string();
    assert!(error.contains("etcdserver: too many leases of one user"), "{error}");
    let mut first = client.watch("a", None).await.unwrap();
    assert!(first.message().await.unwrap().unwrap().created());
    let mut second = client.watch("b", None).await.unwrap();
    let refused = second.message().await.unwrap().unwrap();
    let reason = refused.cancel_reason();
    assert!(
        refused.canceled() && reason.contains("too many watchers of one connection"),
        "{reason}"
    );
    server.line("refused a watcher: too many watchers").await;
    let metrics = http::get(&format!("http://{address}/metrics")).await.unwrap().body;
    for name in [
        r#"isthmus_server_refusals_total{budget="leases"} 1"#,
        r#"isthmus_server_refusals_total{budget="watchers"} 1"#,
        r#"isthmus_server_refusals_total{budget="answers"} 0"#,
        "isthmus_server_connections_max 40.0",
    ] {
        assert!(metrics.contains(&format!("\n{name}\n")), "no {name} in:\n{metrics}");
    }
    drop(first);
}
