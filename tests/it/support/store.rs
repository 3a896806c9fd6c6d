//! Short forms of common requests to an etcd.

use crate::support::{CommandLine, PATIENCE, isthmus};
use etcd_client::{Client, Error, GetOptions, KeyValue, UserAddOptions, WatchResponse, WatchStream};
use std::collections::BTreeMap;
use std::fmt::Debug;
use tokio::time::timeout;

/// `etcd` without TLS on a port of the kernel's choice.
pub fn plain_etcd() -> CommandLine {
    isthmus([
        "etcd",
        "--listen-client-urls=http://127.0.0.1:0",
        "--advertise-client-urls=http://127.0.0.1:1",
    ])
}

/// A connection without TLS.
pub async fn plain_client(address: &str) -> Client {
    Client::connect([address], None).await.unwrap()
}

/// Reads a prefix rather than a key.
pub fn prefix() -> Option<GetOptions> {
    Some(GetOptions::new().with_prefix())
}

/// Everything below `prefix`.
pub async fn read(client: &mut Client, prefix: &str) -> Vec<KeyValue> {
    let found = client.get(prefix, self::prefix()).await.unwrap();
    found.kvs().to_vec()
}

fn key(kv: &KeyValue) -> String {
    kv.key_str().unwrap().to_owned()
}

/// Key → value below `prefix`.
pub async fn values(client: &mut Client, prefix: &str) -> BTreeMap<String, String> {
    let text = |kv: &KeyValue| String::from_utf8_lossy(kv.value()).into_owned();
    let kvs = read(client, prefix).await;
    kvs.iter().map(|kv| (key(kv), text(kv))).collect()
}

/// Key → revision of its last change below `prefix`.
pub async fn revisions(client: &mut Client, prefix: &str) -> BTreeMap<String, i64> {
    let kvs = read(client, prefix).await;
    kvs.iter().map(|kv| (key(kv), kv.mod_revision())).collect()
}

/// The keys below `prefix`, without the prefix.
pub async fn names(client: &mut Client, prefix: &str) -> Vec<String> {
    let kvs = read(client, prefix).await;
    kvs.iter().map(|kv| key(kv)[prefix.len()..].to_owned()).collect()
}

/// The revision of the store.
pub async fn revision(client: &mut Client) -> i64 {
    client.get("x", None).await.unwrap().header().unwrap().revision()
}

/// Adds a user that authenticates with a certificate.
pub async fn add_user(root: &mut Client, name: &str) {
    let without_password = UserAddOptions::new().with_no_pwd();
    root.user_add(name, "", Some(without_password)).await.unwrap();
}

/// Fails unless the store denies the call.
pub async fn denied<T: Debug>(call_name: &str, call: impl Future<Output = Result<T, Error>>) {
    let error = call.await.expect_err(call_name).to_string();
    assert!(
        error.contains("etcdserver: permission denied"),
        "{call_name} failed for another reason: {error}"
    );
}

/// The next response of a watch stream.
pub async fn message(stream: &mut WatchStream) -> WatchResponse {
    let message = timeout(PATIENCE, stream.message()).await;
    message.expect("no watch response came").unwrap().unwrap()
}

/// The next message with events. A watch that begins below the present revision may be told its progress first.
pub async fn next_events(stream: &mut WatchStream) -> WatchResponse {
    loop {
        let message = next(stream).await;
        if !message.events().is_empty() || message.canceled() {
            return message;
        }
    }
}

/// The next response of a watch stream that does not confirm a new watcher.
pub async fn next(stream: &mut WatchStream) -> WatchResponse {
    loop {
        let message = message(stream).await;
        if !message.created() || message.canceled() {
            return message;
        }
    }
}
