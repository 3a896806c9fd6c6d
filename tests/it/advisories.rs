//! etcd's security advisories, each as a test: what was possible there once is not possible here.

use crate::support::{Process, Tls, etcd};
use etcd_client::*;
use std::io::Read;
use std::net::TcpStream;
use std::process::Command;

/// A store with the user `low`, who may read and write `a/` and nothing else.
async fn guarded() -> (Tls, Process, Client, Client) {
    let tls = Tls::new();
    let server = etcd(&tls, &[]);
    let address = server.address();
    let mut root = tls.client(&address, "root").await;
    for user in ["root", "low"] {
        let certificate = UserAddOptions::new().with_no_pwd();
        root.user_add(user, "", Some(certificate)).await.unwrap();
    }
    root.user_grant_role("root", "root").await.unwrap();
    root.role_add("low").await.unwrap();
    let own = Permission::read_write("a/").with_prefix();
    root.role_grant_permission("low", own).await.unwrap();
    root.user_grant_role("low", "low").await.unwrap();
    root.put("secret", "1", None).await.unwrap();
    root.auth_enable().await.unwrap();
    let low = tls.client(&address, "low").await;
    (tls, server, root, low)
}

async fn denied<T: std::fmt::Debug>(what: &str, call: impl Future<Output = Result<T, Error>>) {
    let error = call.await.expect_err(what).to_string();
    assert!(error.contains("permission denied"), "{what}: {error}");
}

/// CVE-2026-33413: calls that forgot to ask who calls.
#[tokio::test]
async fn administration_needs_root_and_leases_need_their_keys() {
    let (tls, server, mut root, mut low) = guarded().await;
    let lease = root.lease_grant(600, None).await.unwrap().id();
    let with_lease = || Some(PutOptions::new().with_lease(lease));
    root.put("leased", "1", with_lease()).await.unwrap();
    denied("compact", low.compact(1, None)).await;
    denied("revoke", low.lease_revoke(lease)).await;
    let keys = Some(LeaseTimeToLiveOptions::new().with_keys());
    denied("keys of a lease", low.lease_time_to_live(lease, keys)).await;
    denied("leases", low.leases()).await;
    denied("attach", low.put("a/1", "", with_lease())).await;
    denied("alarm", low.alarm(AlarmAction::Activate, AlarmType::Nospace, None)).await;
    denied("defragment", low.defragment()).await;
    denied("hash", low.hash()).await;
    denied("hashkv", low.hash_kv(0)).await;
    denied("snapshot", low.snapshot()).await;
    denied("move leader", low.move_leader(1)).await;
    denied("member add", low.member_add(["http://127.0.0.1:9"], None)).await;
    denied("member remove", low.member_remove(1)).await;
    denied("users", low.user_list()).await;
    denied("auth disable", low.auth_disable()).await;
    denied("keep alive", async { low.lease_keep_alive(lease).await.map(drop) }).await;
    // Whoever has a certificate of no user is nobody.
    let mut stranger = tls.client(&server.address(), "stranger").await;
    denied("a stranger", stranger.get("a/1", None)).await;
    let locked = low.lock("lock", None).await;
    assert!(locked.unwrap_err().to_string().contains("permission denied"));
    let elected = low.campaign("e", "v", lease).await;
    assert!(elected.unwrap_err().to_string().contains("permission denied"));
}

/// CVE-2026-33343 and what followed it: what a transaction nests is asked for like the rest.
#[tokio::test]
async fn nested_transactions_are_no_way_around_permissions() {
    let (_tls, _server, mut root, mut low) = guarded().await;
    let lease = root.lease_grant(600, None).await.unwrap().id();
    root.put("leased", "1", Some(PutOptions::new().with_lease(lease)))
        .await
        .unwrap();
    root.role_add("writer").await.unwrap();
    root.role_grant_permission("writer", Permission::write("w"))
        .await
        .unwrap();
    root.user_grant_role("low", "writer").await.unwrap();
    let nested = |op: TxnOp| {
        let inner = Txn::new().and_then([op]);
        let inner = Txn::new().or_else([TxnOp::txn(inner)]);
        Txn::new().and_then([TxnOp::put("a/1", "", None), TxnOp::txn(inner)])
    };
    let previous = Some(PutOptions::new().with_prev_key());
    for (what, op) in [
        ("get", TxnOp::get("secret", None)),
        ("put", TxnOp::put("secret", "2", None)),
        ("delete", TxnOp::delete("secret", None)),
        ("previous value", TxnOp::put("w", "", previous)),
        (
            "lease",
            TxnOp::put("a/2", "", Some(PutOptions::new().with_lease(lease))),
        ),
    ] {
        denied(what, low.txn(nested(op))).await;
    }
    let compare = Txn::new().when([Compare::value("secret", CompareOp::Equal, "1")]);
    denied("compare", low.txn(compare)).await;
    low.txn(nested(TxnOp::put("w", "", None))).await.unwrap();
    assert_eq!(root.get("secret", None).await.unwrap().kvs()[0].value(), b"1");
}

/// GHSA-xg4h-6gfc-h4m8: an open range is not one key.
#[tokio::test]
async fn an_open_range_is_not_taken_for_one_key() {
    let (_tls, _server, mut root, mut low) = guarded().await;
    root.role_grant_permission("low", Permission::read("b")).await.unwrap();
    low.get("b", None).await.unwrap();
    denied("range", low.get("b", Some(GetOptions::new().with_from_key()))).await;
    let mut stream = low.watch("b", Some(WatchOptions::new().with_from_key())).await.unwrap();
    let refused = stream.message().await.unwrap().unwrap();
    assert!(refused.canceled() && refused.cancel_reason().contains("permission denied"));
    denied("delete", low.delete("a/", Some(DeleteOptions::new().with_from_key()))).await;
}

/// GHSA-6vch: a connection that never ends its handshake is closed. (etcd: ten seconds.)
#[tokio::test]
async fn a_handshake_has_an_end() {
    let tls = Tls::new();
    let server = etcd(&tls, &[]);
    let mut silent = TcpStream::connect(server.address()).unwrap();
    silent
        .set_read_timeout(Some(std::time::Duration::from_secs(20)))
        .unwrap();
    let closed = tokio::task::spawn_blocking(move || silent.read(&mut [0; 1]))
        .await
        .unwrap();
    assert!(matches!(closed, Ok(0)), "{closed:?}");
}

/// CVE-2021-28235: passwords are in no log and no dump.
#[tokio::test]
async fn passwords_stay_out_of_logs() {
    let args = [
        "etcd",
        "--listen-client-urls=http://127.0.0.1:0",
        "--advertise-client-urls=http://127.0.0.1:1",
        "--log-level=debug",
        "--bcrypt-cost=4",
        "--enable-pprof",
    ];
    let server = Process::start(&args);
    let address = server.address();
    let mut client = Client::connect([&address], None).await.unwrap();
    client.user_add("ann", "hunter2hunter2", None).await.unwrap();
    client.user_change_password("ann", "hunter3hunter3").await.unwrap();
    assert!(!server.log().contains("hunter"), "{}", server.log());
    for path in ["/debug/vars", "/debug/requests", "/debug/pprof/cmdline", "/metrics"] {
        let shown = Command::new("curl")
            .args(["-s", &format!("http://{address}{path}")])
            .output()
            .unwrap();
        assert!(!String::from_utf8_lossy(&shown.stdout).contains("hunter"), "{path}");
    }
}

/// The quota counts what nested transactions put.
#[tokio::test]
async fn nested_puts_count_towards_the_quota() {
    let tls = Tls::new();
    let server = etcd(&tls, &["--quota-backend-bytes=200000"]);
    let mut client = tls.client(&server.address(), "any").await;
    let large = || TxnOp::put("k", vec![b'x'; 150_000], None);
    let nested = || Txn::new().and_then([TxnOp::txn(Txn::new().or_else([large()]))]);
    let mut refused = None;
    for _ in 0..3 {
        if let Err(error) = client.txn(nested()).await {
            refused = Some(error.to_string());
        }
        // Only the failure branch of the nested one puts, and it is not taken: still it is counted.
        client.put("filler", vec![b'y'; 60_000], None).await.ok();
    }
    let refused = refused.unwrap();
    assert!(
        refused.contains("etcdserver: mvcc: database space exceeded"),
        "{refused}"
    );
}
