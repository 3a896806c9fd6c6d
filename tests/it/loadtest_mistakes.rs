//! Proves that mistakes of those who start `loadtest` are named with their remedy, before anything is written.

use crate::support::store::{plain_client, plain_etcd};
use crate::support::tls::etcd;
use crate::support::{Process, Tls, isthmus};

/// Runs a test that is refused, and fails if a word is missing.
fn refused(args: &[String], words: &[&str]) {
    let done = isthmus(["loadtest", "--duration=1s", "--agents=2"]).args(args).run();
    assert_eq!(done.code, Some(1), "{args:?}: {}", done.text());
    for word in words {
        assert!(
            done.stderr.contains(word),
            "no {word:?} for {args:?} in: {}",
            done.stderr
        );
    }
}

async fn plain() -> (Process, String) {
    let server = plain_etcd().start();
    let address = server.address().await;
    (server, address)
}

#[tokio::test(flavor = "multi_thread")]
async fn mistakes_about_tls_name_the_files_and_the_flags() {
    let tls = Tls::new();
    let server = etcd(&tls).start();
    let address = server.address().await;
    let (_plain_server, plain_address) = plain().await;
    let flag = |name: &str, value: &dyn std::fmt::Display| format!("--{name}={value}");
    let (ca, endpoint) = (flag("cacert", &tls.ca.path().display()), flag("endpoints", &address));

    // Plain to a port of TLS, and TLS to a plain port.
    refused(
        std::slice::from_ref(&endpoint),
        &["does it speak TLS?", "https://", "--cacert"],
    );
    refused(
        &[flag("endpoints", &plain_address), ca.clone()],
        &["does not speak TLS on this port", "http?"],
    );
    // No client certificate, and one of another CA.
    refused(
        &[endpoint.clone(), ca.clone()],
        &["client certificate", "--cert and --key"],
    );
    let strangers = Tls::new();
    let stranger = strangers.ca.client("stranger", "stranger").unwrap();
    let pair = [
        flag("cert", &stranger.cert.display()),
        flag("key", &stranger.key.display()),
    ];
    let stranger_cert = stranger.cert.display().to_string();
    refused(
        &[&[endpoint.clone(), ca][..], &pair].concat(),
        &["may not trust the client certificate", &stranger_cert],
    );
    // Another CA for the server, and none because its field is misspelled.
    let other = flag("cacert", &strangers.ca.path().display());
    refused(&[endpoint, other], &["is issued by", "test CA", "is not in"]);
    let file = tls.path("client.yaml");
    let ca_file = tls.ca.path();
    let text = format!(
        "endpoints: [\"https://{address}\"]\ntrusted-ca: {}\n",
        ca_file.display()
    );
    std::fs::write(&file, text).unwrap();
    refused(
        &[flag("client-config", &file.display())],
        &[
            "client.yaml",
            "no client of etcd knows",
            "trusted-ca",
            "CAs of the system",
        ],
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn endpoints_that_are_two_stores_are_refused_with_both_names() {
    let ((_one, first), (_two, second)) = (plain().await, plain().await);
    let both = format!("--endpoints={first},{second}");
    let named = [
        format!("http://{first} has the cluster id"),
        format!("http://{second} has"),
    ];
    refused(&[both], &["different stores", &named[0], &named[1]]);
    let dead = format!("--endpoints={first},127.0.0.1:1");
    refused(&[dead], &["http://127.0.0.1:1: connect", "does a store run there?"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn processes_and_clusters_that_do_not_exist_are_refused() {
    let (_server, address) = plain().await;
    let endpoint = format!("--endpoints={address}");
    let pid = "--server-pid=4194305".to_owned();
    refused(&[endpoint.clone(), pid], &["--server-pid=4194305 is not a process"]);
    let mut client = plain_client(&address).await;
    client.put("cilium/cluster-config/hk", "{}", None).await.unwrap();
    client
        .put("cilium/cache/nodes/v1/only-keys/n1", "{}", None)
        .await
        .unwrap();
    let read = |name: &str| vec![endpoint.clone(), "--read-only".to_owned(), format!("--cluster={name}")];
    refused(&read("hj"), &["nothing of a cluster \"hj\"", "it has hk", "--cluster"]);
    for name in ["hk", "only-keys"] {
        let done = isthmus(["loadtest", "--duration=1s", "--agents=2"])
            .args(read(name))
            .run();
        // The first cluster exists and has no keys, so that the agents see nothing.
        assert_eq!(done.succeeded(), name == "only-keys", "{}", done.text());
        assert_eq!(
            done.stderr.contains("agents saw no key"),
            name == "hk",
            "{}",
            done.text()
        );
    }
}
