//! Proves which clients may connect and what each of them may do: client certificates, the user in their common
//! name, roles, passwords, and certificate files that change while the server runs.

use crate::support::store::{add_user, denied, prefix};
use crate::support::tls::etcd;
use crate::support::{Tls, eventually, http, isthmus};
use etcd_client::*;

#[tokio::test]
async fn a_client_without_a_certificate_of_the_ca_is_refused() {
    let tls = Tls::new();
    let server = etcd(&tls).start();
    let address = server.address().await;
    let without_certificate = ConnectOptions::new().with_tls(tls.trusting());
    let with_certificate_of_another_ca = {
        let other = Tls::new();
        tls.options(&other.ca.client("stranger", "root").unwrap())
    };
    for options in [without_certificate, with_certificate_of_another_ca] {
        let endpoint = format!("https://{address}");
        let mut client = Client::connect([endpoint], Some(options)).await.unwrap();
        client.get("x", None).await.unwrap_err();
    }
    tls.client(&address, "any").await.get("x", None).await.unwrap();
}

#[tokio::test]
async fn the_common_name_is_the_user_and_its_roles_decide() {
    let tls = Tls::new();
    let server = etcd(&tls).start();
    let address = server.address().await;
    let mut root = tls.client(&address, "root").await;
    let error = root.auth_enable().await.unwrap_err().to_string();
    assert!(error.contains("etcdserver: root user does not exist"), "{error}");
    add_user(&mut root, "root").await;
    root.user_grant_role("root", "root").await.unwrap();
    add_user(&mut root, "remote").await;
    root.role_add("remote").await.unwrap();
    root.role_grant_permission("remote", Permission::read("cilium/state/").with_prefix())
        .await
        .unwrap();
    root.user_grant_role("remote", "remote").await.unwrap();
    root.auth_enable().await.unwrap();
    root.put("cilium/state/x", "1", None).await.unwrap();
    root.put("cilium/cache/x", "1", None).await.unwrap();

    let mut remote = tls.client(&address, "remote").await;
    assert_eq!(remote.get("cilium/state/", prefix()).await.unwrap().kvs().len(), 1);
    denied("wider range", remote.get("cilium/", prefix())).await;
    denied("other key", remote.get("cilium/cache/x", None)).await;
    denied("put", remote.put("cilium/state/x", "2", None)).await;
    denied("compact", remote.compact(2, None)).await;
    denied("users", remote.user_list()).await;
    // The operations of both branches are checked, at any depth.
    let hidden = Txn::new().and_then([TxnOp::get("cilium/cache/x", None)]);
    denied("nested get", remote.txn(Txn::new().or_else([TxnOp::txn(hidden)]))).await;
    let mut stranger = tls.client(&address, "stranger").await;
    denied("unknown user", stranger.get("cilium/state/x", None)).await;

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
    // The permission covers the key, but not the range that begins with the key.
    stream
        .watch("cilium/state/x", Some(WatchOptions::new().with_from_key()))
        .await
        .unwrap();
    assert_eq!(stream.message().await.unwrap().unwrap().cancel_reason(), reason);
    stream.watch("cilium/state/x", None).await.unwrap();
    assert!(
        !stream.message().await.unwrap().unwrap().canceled(),
        "the stream outlives refused watchers"
    );

    root.user_revoke_role("remote", "remote").await.unwrap();
    denied("after revocation", remote.get("cilium/state/x", None)).await;
}

#[tokio::test]
async fn a_password_authenticates_a_user() {
    let tls = Tls::new();
    let server = etcd(&tls).arg("--bcrypt-cost=4").start();
    let address = server.address().await;
    let mut root = tls.client(&address, "root").await;
    add_user(&mut root, "root").await;
    root.user_grant_role("root", "root").await.unwrap();
    root.user_add("alice", "wonder", None).await.unwrap();
    root.role_add("r").await.unwrap();
    root.role_grant_permission("r", Permission::read_write("a/").with_prefix())
        .await
        .unwrap();
    root.user_grant_role("alice", "r").await.unwrap();
    root.auth_enable().await.unwrap();
    let any = tls.ca.client("any", "any").unwrap();
    let options = || tls.options(&any);
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
    denied("put", alice.put("b/1", "", None)).await;
}

#[tokio::test]
async fn new_connections_use_changed_certificate_files_unless_they_are_broken() {
    let tls = Tls::new();
    let server = etcd(&tls).start();
    let address = server.address().await;
    let before = tls.presented(&address).await;
    std::fs::write(&tls.server.cert, "not a certificate").unwrap();
    eventually("the broken file is noticed", async || {
        tls.presented(&address).await;
        server.log().contains("changed TLS files cannot be used").then_some(())
    })
    .await;
    assert_eq!(tls.presented(&address).await, before);
    assert!(
        server.log().contains("server.crt"),
        "the log does not name the file:\n{}",
        server.log()
    );
    tls.ca.server("server").unwrap();
    eventually("the new certificate is presented", async || {
        (tls.presented(&address).await != before).then_some(())
    })
    .await;
    tls.client(&address, "any").await.get("x", None).await.unwrap();
}

#[tokio::test]
async fn health_version_and_metrics_share_the_port_of_grpc() {
    // Like etcd, flags are accepted with one dash, too.
    let server = isthmus([
        "etcd",
        "-listen-client-urls",
        "http://127.0.0.1:0",
        "-advertise-client-urls=http://x:1",
    ])
    .start();
    let address = server.address().await;
    let get = async |path: &str| http::get(&format!("http://{address}{path}")).await.unwrap().body;
    assert_eq!(get("/health").await, r#"{"health":"true","reason":""}"#);
    assert!(get("/version").await.starts_with(r#"{"etcdserver":"3.7."#));
    assert!(
        get("/metrics")
            .await
            .contains("\netcd_debugging_mvcc_current_revision 1\n")
    );
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
