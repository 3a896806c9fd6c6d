//! Who may connect, and who may do what.

use crate::support::{Process, Tls, etcd, eventually};
use etcd_client::*;
use std::process::Command;

async fn denied<T: std::fmt::Debug>(call: impl Future<Output = Result<T, Error>>) {
    let error = call.await.unwrap_err().to_string();
    assert!(error.contains("etcdserver: permission denied"), "{error}");
}

#[tokio::test]
async fn without_a_certificate_of_the_ca_there_is_no_connection() {
    let tls = Tls::new();
    let server = etcd(&tls, &[]);
    let address = server.address();
    let ca = Certificate::from_pem(std::fs::read(tls.ca.path()).unwrap());
    let nobody = ConnectOptions::new().with_tls(TlsOptions::new().ca_certificate(ca.clone()));
    let mut client = Client::connect([format!("https://{address}")], Some(nobody))
        .await
        .unwrap();
    client.get("x", None).await.unwrap_err();
    let strange = Tls::new();
    let stranger = strange.ca.client("stranger", "root").unwrap();
    let read = |path| std::fs::read(path).unwrap();
    let identity = Identity::from_pem(read(stranger.cert), read(stranger.key));
    let options = ConnectOptions::new().with_tls(TlsOptions::new().ca_certificate(ca).identity(identity));
    let mut client = Client::connect([format!("https://{address}")], Some(options))
        .await
        .unwrap();
    client.get("x", None).await.unwrap_err();
    tls.client(&address, "any").await.get("x", None).await.unwrap();
}

#[tokio::test]
async fn the_common_name_is_the_user_and_its_roles_decide() {
    let tls = Tls::new();
    let server = etcd(&tls, &[]);
    let address = server.address();
    let mut root = tls.client(&address, "root").await;
    let error = root.auth_enable().await.unwrap_err().to_string();
    assert!(error.contains("etcdserver: root user does not exist"), "{error}");
    root.user_add("root", "", Some(UserAddOptions::new().with_no_pwd()))
        .await
        .unwrap();
    root.user_grant_role("root", "root").await.unwrap();
    root.user_add("remote", "", Some(UserAddOptions::new().with_no_pwd()))
        .await
        .unwrap();
    root.role_add("remote").await.unwrap();
    root.role_grant_permission("remote", Permission::read("cilium/state/").with_prefix())
        .await
        .unwrap();
    root.user_grant_role("remote", "remote").await.unwrap();
    root.auth_enable().await.unwrap();
    root.put("cilium/state/x", "1", None).await.unwrap();
    root.put("cilium/cache/x", "1", None).await.unwrap();

    let mut remote = tls.client(&address, "remote").await;
    let prefix = || Some(GetOptions::new().with_prefix());
    assert_eq!(remote.get("cilium/state/", prefix()).await.unwrap().kvs().len(), 1);
    denied(remote.get("cilium/", prefix())).await;
    denied(remote.get("cilium/cache/x", None)).await;
    denied(remote.put("cilium/state/x", "2", None)).await;
    denied(remote.compact(2, None)).await;
    denied(remote.user_list()).await;
    // Every operation of both branches counts, at any depth.
    let hidden = Txn::new().and_then([TxnOp::get("cilium/cache/x", None)]);
    denied(remote.txn(Txn::new().or_else([TxnOp::txn(hidden)]))).await;
    denied(tls.client(&address, "stranger").await.get("cilium/state/x", None)).await;

    let mut stream = remote
        .watch("cilium/cache/", Some(WatchOptions::new().with_prefix()))
        .await
        .unwrap();
    let refused = stream.message().await.unwrap().unwrap();
    assert_eq!(
        (refused.created(), refused.canceled(), refused.watch_id()),
        (true, true, -1)
    );
    let reason = "rpc error: code = PermissionDenied desc = etcdserver: permission denied";
    assert_eq!(refused.cancel_reason(), reason);
    // From a key on is more than one key.
    stream
        .watch("cilium/state/x", Some(WatchOptions::new().with_from_key()))
        .await
        .unwrap();
    assert_eq!(stream.message().await.unwrap().unwrap().cancel_reason(), reason);
    stream.watch("cilium/state/x", None).await.unwrap();
    assert!(
        !stream.message().await.unwrap().unwrap().canceled(),
        "the stream lives on"
    );

    root.user_revoke_role("remote", "remote").await.unwrap();
    denied(remote.get("cilium/state/x", None)).await;
}

#[tokio::test]
async fn a_password_buys_a_token() {
    let tls = Tls::new();
    let server = etcd(&tls, &["--bcrypt-cost=4"]);
    let address = server.address();
    let mut root = tls.client(&address, "root").await;
    root.user_add("root", "", Some(UserAddOptions::new().with_no_pwd()))
        .await
        .unwrap();
    root.user_grant_role("root", "root").await.unwrap();
    root.user_add("alice", "wonder", None).await.unwrap();
    root.role_add("r").await.unwrap();
    root.role_grant_permission("r", Permission::read_write("a/").with_prefix())
        .await
        .unwrap();
    root.user_grant_role("alice", "r").await.unwrap();
    root.auth_enable().await.unwrap();
    let read = |path| std::fs::read(path).unwrap();
    let any = tls.ca.client("any", "any").unwrap();
    let options = || {
        let ca = Certificate::from_pem(read(tls.ca.path()));
        let identity = Identity::from_pem(read(any.cert.clone()), read(any.key.clone()));
        ConnectOptions::new().with_tls(TlsOptions::new().ca_certificate(ca).identity(identity))
    };
    let endpoint = [format!("https://{address}")];
    let wrong = Client::connect(&endpoint, Some(options().with_user("alice", "land"))).await;
    let error = wrong.err().unwrap().to_string();
    assert!(
        error.contains("etcdserver: authentication failed, invalid user ID or password"),
        "{error}"
    );
    let mut alice = Client::connect(&endpoint, Some(options().with_user("alice", "wonder")))
        .await
        .unwrap();
    alice.put("a/1", "", None).await.unwrap();
    denied(alice.put("b/1", "", None)).await;
}

/// The serial number of the certificate that the server shows.
fn serial(tls: &Tls, address: &str) -> String {
    let client = tls.ca.client("probe", "probe").unwrap();
    let args = [
        "s_client".to_owned(),
        format!("-connect={address}"),
        format!("-CAfile={}", tls.ca.path().display()),
        format!("-cert={}", client.cert.display()),
        format!("-key={}", client.key.display()),
    ];
    let args = args
        .iter()
        .flat_map(|a| a.split_once('=').map_or(vec![&**a], |(k, v)| vec![k, v]));
    let shown = Command::new("openssl")
        .args(args)
        .stdin(std::process::Stdio::null())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&shown.stdout).into_owned();
    let pem = text
        .split("-----BEGIN CERTIFICATE-----")
        .nth(1)
        .unwrap_or_else(|| panic!("no certificate:\n{text}"));
    pem.split("-----END").next().unwrap().to_owned()
}

#[tokio::test]
async fn new_certificate_files_are_used_for_new_connections_and_broken_ones_are_not() {
    let tls = Tls::new();
    let server = etcd(&tls, &[]);
    let address = server.address();
    let before = serial(&tls, &address);
    std::fs::write(&tls.server.cert, "not a certificate").unwrap();
    eventually("the broken file is noticed", async || {
        serial(&tls, &address);
        server.log().contains("changed TLS files cannot be used").then_some(())
    })
    .await;
    assert_eq!(serial(&tls, &address), before);
    assert!(
        server.log().contains("server.crt"),
        "the file is named:\n{}",
        server.log()
    );
    tls.ca.server("server").unwrap();
    eventually("the new certificate is shown", async || {
        (serial(&tls, &address) != before).then_some(())
    })
    .await;
    tls.client(&address, "any").await.get("x", None).await.unwrap();
}

#[tokio::test]
async fn health_and_version_are_answered_over_http_1_on_the_same_port() {
    let server = Process::start(&[
        "etcd",
        "-listen-client-urls",
        "http://127.0.0.1:0",
        "-advertise-client-urls=http://x:1",
    ]);
    let address = server.address();
    let get = |path: &str| {
        let url = format!("http://{address}{path}");
        let out = Command::new("curl").args(["-s", "--http1.1", &url]).output().unwrap();
        String::from_utf8(out.stdout).unwrap()
    };
    assert_eq!(get("/health"), r#"{"health":"true","reason":""}"#);
    assert!(get("/version").starts_with(r#"{"etcdserver":"3.6."#));
    assert!(get("/metrics").contains("\netcd_debugging_mvcc_current_revision 1\n"));
    use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};
    let mut health = HealthClient::new(
        tonic::transport::Endpoint::new(format!("http://{address}"))
            .unwrap()
            .connect_lazy(),
    );
    let answer = health
        .check(HealthCheckRequest { service: String::new() })
        .await
        .unwrap();
    assert_eq!(answer.into_inner().status, 1, "serving");
}
