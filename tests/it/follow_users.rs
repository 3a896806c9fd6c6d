//! Proves that the users of an upstream count on its replica: whoever may not do something there may not do it here, for
//! users of certificates and of passwords, and whether or not the replica can sign tokens.

use crate::support::store::{add_user, denied};
use crate::support::tls::etcd;
use crate::support::{Process, Tls, eventually};
use etcd_client::*;

/// The key with which the upstream signs tokens.
fn signed(tls: &Tls) -> String {
    let secret = tls.path("secret");
    std::fs::write(&secret, "a secret of the upstream, long enough").unwrap();
    format!(
        "--auth-token=jwt,sign-method=HS256,priv-key={},ttl=5m",
        secret.display()
    )
}

/// Creates the users `root` and `kim`, who may use keys from `k` on and has a password, and enables authentication.
async fn enable(root: &mut Client) {
    add_user(root, "root").await;
    root.user_grant_role("root", "root").await.unwrap();
    root.user_add("kim", "secret", None).await.unwrap();
    root.role_add("k").await.unwrap();
    let permission = Permission::read_write("k").with_prefix();
    root.role_grant_permission("k", permission).await.unwrap();
    root.user_grant_role("kim", "k").await.unwrap();
    root.auth_enable().await.unwrap();
}

/// A replica whose certificate at the upstream has the common name `user`.
fn replica(tls: &Tls, address: &str, user: &str, args: &[String]) -> Process {
    let file = tls.path("upstream.yaml");
    let pair = tls.ca.client("replica", user).unwrap();
    tls.client_file(&file, address, &pair);
    etcd(tls).arg(format!("--follow={}", file.display())).args(args).start()
}

async fn logged_in(tls: &Tls, address: &str) -> Client {
    let options = ConnectOptions::new()
        .with_tls(tls.trusting().identity(identity(tls)))
        .with_user("kim", "secret");
    Client::connect([format!("https://{address}")], Some(options))
        .await
        .unwrap()
}

/// A certificate whose name is no user.
fn identity(tls: &Tls) -> Identity {
    let pair = tls.ca.client("stranger", "stranger").unwrap();
    Identity::from_pem(std::fs::read(&pair.cert).unwrap(), std::fs::read(&pair.key).unwrap())
}

async fn may_use_its_keys(client: &mut Client) {
    client.put("k1", "1", None).await.unwrap();
    assert_eq!(client.get("k1", None).await.unwrap().kvs().len(), 1);
    denied("another key", client.put("z", "1", None)).await;
    denied("another key", client.get("z", None)).await;
    denied("users", client.user_list()).await;
}

#[tokio::test]
async fn a_replica_that_may_read_the_users_checks_them_itself() {
    let tls = Tls::new();
    let upstream = etcd(&tls).start();
    let address = upstream.address().await;
    let mut root = tls.client(&address, "root").await;
    enable(&mut root).await;
    let here = replica(&tls, &address, "root", &[]);
    let here_address = here.address().await;
    let mut kim = tls.client(&here_address, "kim").await;
    may_use_its_keys(&mut kim).await;
    may_use_its_keys(&mut logged_in(&tls, &here_address).await).await;
    denied(
        "a stranger",
        tls.client(&here_address, "stranger").await.get("k1", None),
    )
    .await;
    // A change that goes through the replica is in force before its answer.
    let mut root_here = tls.client(&here_address, "root").await;
    root_here.user_revoke_role("kim", "k").await.unwrap();
    denied("without the role", kim.get("k1", None)).await;
    denied("without the role", kim.put("k1", "2", None)).await;
    // Any other change is noticed after a while.
    root.user_grant_role("kim", "k").await.unwrap();
    eventually("the role is back", async || kim.get("k1", None).await.ok()).await;
    assert_eq!(
        root.get("k1", None).await.unwrap().kvs()[0].version(),
        2,
        "no denied put was executed"
    );
}

#[tokio::test]
async fn a_replica_with_the_key_of_the_upstream_lets_it_check_every_user() {
    let tls = Tls::new();
    let token = signed(&tls);
    let upstream = etcd(&tls).arg(&token).start();
    let address = upstream.address().await;
    let mut root = tls.client(&address, "root").await;
    enable(&mut root).await;
    // The name of its certificate is no user of the upstream: it signs for itself, too.
    let here = replica(&tls, &address, "replica", &[token]);
    let here_address = here.address().await;
    let mut kim = tls.client(&here_address, "kim").await;
    may_use_its_keys(&mut kim).await;
    may_use_its_keys(&mut logged_in(&tls, &here_address).await).await;
    // Changes of users at the upstream are in force here at once, for writes and for reads.
    for _ in 0..3 {
        root.user_revoke_role("kim", "k").await.unwrap();
        denied("a write without the role", kim.put("k1", "3", None)).await;
        denied("a read without the role", kim.get("k1", None)).await;
        root.user_grant_role("kim", "k").await.unwrap();
        kim.get("k1", None).await.unwrap();
        kim.put("k1", "4", None).await.unwrap();
    }
    let lease = kim.lease_grant(60, None).await.unwrap().id();
    let (mut keeper, mut answers) = kim.lease_keep_alive(lease).await.unwrap();
    keeper.keep_alive().await.unwrap();
    assert_eq!(answers.message().await.unwrap().unwrap().ttl(), 60);
}

#[tokio::test]
async fn a_replica_that_may_not_read_the_users_says_so_and_serves_nobody() {
    let tls = Tls::new();
    let upstream = etcd(&tls).start();
    let address = upstream.address().await;
    enable(&mut tls.client(&address, "root").await).await;
    let here = replica(&tls, &address, "kim", &[]);
    let line = here.line("cannot follow the upstream").await;
    assert!(line.contains(&address), "{line}");
    assert!(!here.log().contains("serving"), "{}", here.log());
}

#[tokio::test]
async fn authentication_that_is_turned_on_at_the_upstream_counts_for_the_next_call_here() {
    let tls = Tls::new();
    let upstream = etcd(&tls).start();
    let address = upstream.address().await;
    // The replica could do everything for everybody.
    let here = replica(&tls, &address, "root", &[]);
    let here_address = here.address().await;
    let mut kim = tls.client(&here_address, "kim").await;
    let lease = kim.lease_grant(60, None).await.unwrap().id();
    kim.put("z", "1", None).await.unwrap();
    let (mut keeper, mut answers) = kim.lease_keep_alive(lease).await.unwrap();
    keeper.keep_alive().await.unwrap();
    assert_eq!(answers.message().await.unwrap().unwrap().ttl(), 60);
    enable(&mut tls.client(&address, "root").await).await;
    denied("a write", kim.put("z", "2", None)).await;
    kim.put("k1", "1", None).await.unwrap();
    keeper.keep_alive().await.unwrap();
    assert_eq!(answers.message().await.unwrap().unwrap().ttl(), 60);
    denied("a read", kim.get("z", None)).await;
}
