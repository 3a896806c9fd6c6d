//! Proves that the vulnerabilities in etcd's security advisories do not exist here. Each test names its advisory. The
//! last test keeps docs/advisories.md up to date.

use crate::support::store::{add_user, denied, plain_client, plain_etcd};
use crate::support::tls::etcd;
use crate::support::{Process, Tls, http};
use etcd_client::*;
use std::time::Duration;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::time::timeout;

/// A store with authentication on. The user `low` may read and write below `a/` and nothing else.
struct Guarded {
    tls: Tls,
    server: Process,
    root: Client,
    low: Client,
}

async fn guarded() -> Guarded {
    let tls = Tls::new();
    let server = etcd(&tls).start();
    let address = server.address().await;
    let mut root = tls.client(&address, "root").await;
    for user in ["root", "low"] {
        add_user(&mut root, user).await;
    }
    root.user_grant_role("root", "root").await.unwrap();
    root.role_add("low").await.unwrap();
    let own = Permission::read_write("a/").with_prefix();
    root.role_grant_permission("low", own).await.unwrap();
    root.user_grant_role("low", "low").await.unwrap();
    root.put("secret", "1", None).await.unwrap();
    root.auth_enable().await.unwrap();
    let low = tls.client(&address, "low").await;
    Guarded { tls, server, root, low }
}

/// CVE-2026-33413: calls that did not check the caller's permissions.
#[tokio::test]
async fn administration_needs_root_and_leases_need_their_keys() {
    let Guarded {
        tls,
        server,
        mut root,
        mut low,
    } = guarded().await;
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
    // A certificate whose common name is not a user gives no permission.
    let mut stranger = tls.client(&server.address().await, "stranger").await;
    denied("a stranger", stranger.get("a/1", None)).await;
    denied("lock", low.lock("lock", None)).await;
    denied("campaign", low.campaign("e", "v", lease)).await;
}

/// CVE-2026-33343 and its follow-ups: permissions are checked at every depth of a transaction.
#[tokio::test]
async fn nested_transactions_cannot_bypass_permissions() {
    let Guarded { root, low, .. } = &mut guarded().await;
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
    for (hidden, op) in [
        ("get", TxnOp::get("secret", None)),
        ("put", TxnOp::put("secret", "2", None)),
        ("delete", TxnOp::delete("secret", None)),
        ("previous value", TxnOp::put("w", "", previous)),
        (
            "lease",
            TxnOp::put("a/2", "", Some(PutOptions::new().with_lease(lease))),
        ),
    ] {
        denied(hidden, low.txn(nested(op))).await;
    }
    let compare = Txn::new().when([Compare::value("secret", CompareOp::Equal, "1")]);
    denied("compare", low.txn(compare)).await;
    low.txn(nested(TxnOp::put("w", "", None))).await.unwrap();
    assert_eq!(root.get("secret", None).await.unwrap().kvs()[0].value(), b"1");
}

/// GHSA-xg4h-6gfc-h4m8: permission for one key does not cover the range from that key on.
#[tokio::test]
async fn permission_for_one_key_does_not_cover_an_open_range() {
    let Guarded { root, low, .. } = &mut guarded().await;
    root.role_grant_permission("low", Permission::read("b")).await.unwrap();
    low.get("b", None).await.unwrap();
    denied("range", low.get("b", Some(GetOptions::new().with_from_key()))).await;
    let mut stream = low.watch("b", Some(WatchOptions::new().with_from_key())).await.unwrap();
    let refused = stream.message().await.unwrap().unwrap();
    assert!(refused.canceled() && refused.cancel_reason().contains("permission denied"));
    denied("delete", low.delete("a/", Some(DeleteOptions::new().with_from_key()))).await;
}

/// GHSA-6vch: a client that never completes its TLS handshake is disconnected. (etcd waits ten seconds.)
#[tokio::test]
async fn an_unfinished_tls_handshake_is_closed() {
    let tls = Tls::new();
    let server = etcd(&tls).start();
    let mut silent = TcpStream::connect(server.address().await).await.unwrap();
    let mut byte = [0];
    let closed = timeout(Duration::from_secs(20), silent.read(&mut byte)).await;
    assert!(matches!(closed, Ok(Ok(0))), "{closed:?}");
}

/// CVE-2021-28235: no log and no debug page shows a password.
#[tokio::test]
async fn logs_and_debug_pages_show_no_password() {
    let flags = ["--log-level=debug", "--bcrypt-cost=4", "--enable-pprof"];
    let server = plain_etcd().args(flags).start();
    let address = server.address().await;
    let mut client = plain_client(&address).await;
    client.user_add("ann", "hunter2hunter2", None).await.unwrap();
    client.user_change_password("ann", "hunter3hunter3").await.unwrap();
    assert!(!server.log().contains("hunter"), "{}", server.log());
    for path in ["/debug/vars", "/debug/requests", "/debug/pprof/cmdline", "/metrics"] {
        let page = http::get(&format!("http://{address}{path}")).await.unwrap();
        assert!(!page.body.contains("hunter"), "{path}");
    }
}

/// Puts of nested transactions count towards the quota.
#[tokio::test]
async fn nested_puts_count_towards_the_quota() {
    let tls = Tls::new();
    let server = etcd(&tls).arg("--quota-backend-bytes=200000").start();
    let mut client = tls.client(&server.address().await, "any").await;
    let large = || TxnOp::put("k", vec![b'x'; 150_000], None);
    let nested = || Txn::new().and_then([TxnOp::txn(Txn::new().or_else([large()]))]);
    let mut refused = None;
    for _ in 0..3 {
        if let Err(error) = client.txn(nested()).await {
            refused = Some(error.to_string());
        }
        // The put is in a branch that is not taken, and counts nevertheless.
        client.put("filler", vec![b'y'; 60_000], None).await.ok();
    }
    let refused = refused.unwrap();
    assert!(
        refused.contains("etcdserver: mvcc: database space exceeded"),
        "{refused}"
    );
}

#[test]
fn the_table_of_advisories_names_the_versions_that_are_built_and_they_have_every_fix() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let read = |file: &str| std::fs::read_to_string(root.join(file)).unwrap();
    let (document, lock) = (read("docs/advisories.md"), read("Cargo.lock"));
    let numbers = |version: &str| version.split('.').map(|n| n.parse().unwrap()).collect::<Vec<u64>>();
    let (mut version, mut crates, mut fixes) = (String::new(), 0, 0);
    let table = document.split("\n## Crates\n").nth(1).unwrap();
    let rows = table.lines().take_while(|line| !line.starts_with("## "));
    for cells in rows.map(|row| row.split('|').map(str::trim).collect::<Vec<_>>()) {
        let ["", name, named, _, fixed, _, ""] = cells[..] else {
            continue;
        };
        if name.starts_with('`') {
            version = named.to_owned();
            crates += 1;
            let package = format!("name = \"{}\"\nversion = \"{version}\"\n", name.trim_matches('`'));
            assert!(
                lock.contains(&package),
                "docs/advisories.md: {name} {version} is not in Cargo.lock"
            );
        }
        if fixed.starts_with(|c: char| c.is_ascii_digit()) {
            fixes += 1;
            assert!(
                numbers(&version) >= numbers(fixed),
                "{name} {version} lacks the fix in {fixed}"
            );
        }
    }
    assert!(
        crates >= 15 && fixes >= crates,
        "{crates} crates, {fixes} fixes: the table was not understood"
    );
}
