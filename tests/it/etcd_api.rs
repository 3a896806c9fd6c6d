//! Proves that the calls of KV, Lease, Maintenance and Cluster answer as etcd does, through a client over mTLS.

use crate::support::tls::etcd;
use crate::support::{Tls, eventually};
use etcd_client::*;

#[tokio::test]
async fn put_get_delete_and_transactions_answer_as_etcd_does() {
    let tls = Tls::new();
    let server = etcd(&tls).start();
    let mut client = tls.client(&server.address().await, "any").await;

    let put = client.put("a", "1", None).await.unwrap();
    assert_eq!(put.header().unwrap().revision(), 2, "a new store is at revision 1");
    assert_ne!(put.header().unwrap().cluster_id(), 0);
    let put = client
        .put("a", "2", Some(PutOptions::new().with_prev_key()))
        .await
        .unwrap();
    assert_eq!(put.prev_key().unwrap().value(), b"1");

    let create = |key: &str| {
        Txn::new()
            .when([Compare::version(key, CompareOp::Equal, 0)])
            .and_then([TxnOp::put(key, "new", None), TxnOp::get(key, None)])
            .or_else([TxnOp::get(key, None)])
    };
    let created = client.txn(create("b")).await.unwrap();
    assert!(created.succeeded());
    let responses = created.op_responses();
    let [TxnOpResponse::Put(put), TxnOpResponse::Get(get)] = &responses[..] else {
        panic!("{responses:?}")
    };
    assert_eq!(put.header().unwrap().revision(), 4);
    assert_eq!(get.kvs()[0].mod_revision(), 4, "a read sees the writes before it");
    let again = client.txn(create("a")).await.unwrap();
    assert!(!again.succeeded());
    assert_eq!(
        again.header().unwrap().revision(),
        4,
        "reads do not change the revision"
    );

    let twice = Txn::new().and_then([TxnOp::put("x", "1", None), TxnOp::put("x", "2", None)]);
    let error = client.txn(twice).await.unwrap_err().to_string();
    assert!(
        error.contains("etcdserver: duplicate key given in txn request"),
        "{error}"
    );
    let error = client.put("", "", None).await.unwrap_err().to_string();
    assert!(error.contains("etcdserver: key is not provided"), "{error}");
    let error = client
        .put("big", vec![0; 1_600_000], None)
        .await
        .unwrap_err()
        .to_string();
    assert!(error.contains("etcdserver: request is too large"), "{error}");

    let deleted = client
        .delete("a", Some(DeleteOptions::new().with_range("c").with_prev_key()))
        .await
        .unwrap();
    assert_eq!((deleted.deleted(), deleted.prev_kvs().len()), (2, 2));
    let none = client.delete("a", None).await.unwrap();
    assert_eq!((none.deleted(), none.header().unwrap().revision()), (0, 5));
}

#[tokio::test]
async fn pages_read_at_one_revision_are_one_snapshot() {
    let tls = Tls::new();
    let server = etcd(&tls).start();
    let mut client = tls.client(&server.address().await, "any").await;
    for chunk in (0..1000).collect::<Vec<_>>().chunks(100) {
        let ops: Vec<_> = chunk
            .iter()
            .map(|i| TxnOp::put(format!("k/{i:04}"), "v", None))
            .collect();
        client.txn(Txn::new().and_then(ops)).await.unwrap();
    }
    let (mut from, mut at, mut seen) = ("k/".to_owned(), 0, vec![]);
    loop {
        let options = GetOptions::new().with_range("k0").with_limit(256).with_revision(at);
        let page = client.get(from, Some(options)).await.unwrap();
        if at == 0 {
            at = page.header().unwrap().revision();
        }
        assert_eq!(page.count() as usize, 1000 - seen.len(), "the count ignores the limit");
        seen.extend(page.kvs().iter().map(|kv| kv.key_str().unwrap().to_owned()));
        client
            .delete(format!("k/{:04}", 999 - seen.len() / 10), None)
            .await
            .unwrap();
        client
            .put(format!("k/{}x", seen.last().unwrap()), "new", None)
            .await
            .unwrap();
        if !page.more() {
            break;
        }
        from = seen.last().unwrap().clone() + "\0";
    }
    assert_eq!(seen, (0..1000).map(|i| format!("k/{i:04}")).collect::<Vec<_>>());
}

#[tokio::test]
async fn compaction_makes_older_revisions_unreadable() {
    let tls = Tls::new();
    let server = etcd(&tls).start();
    let mut client = tls.client(&server.address().await, "any").await;
    for value in ["1", "2", "3"] {
        client.put("k", value, None).await.unwrap();
    }
    client
        .compact(3, Some(CompactionOptions::new().with_physical()))
        .await
        .unwrap();
    let at = |revision| Some(GetOptions::new().with_revision(revision));
    assert_eq!(client.get("k", at(3)).await.unwrap().kvs()[0].value(), b"2");
    for (revision, why) in [(2, "has been compacted"), (9, "is a future revision")] {
        let error = client.get("k", at(revision)).await.unwrap_err().to_string();
        assert!(
            error.contains(&format!("etcdserver: mvcc: required revision {why}")),
            "{error}"
        );
    }
    let error = client.compact(3, None).await.unwrap_err().to_string();
    assert!(error.contains("has been compacted"), "{error}");
}

#[tokio::test]
async fn an_expired_lease_deletes_its_keys_and_a_kept_lease_does_not_expire() {
    let tls = Tls::new();
    let server = etcd(&tls).start();
    let mut client = tls.client(&server.address().await, "any").await;
    let short = client.lease_grant(1, None).await.unwrap();
    assert_eq!(short.ttl(), 2, "the shortest lease");
    let kept = client.lease_grant(2, None).await.unwrap().id();
    for (key, lease) in [("short", short.id()), ("kept", kept)] {
        client
            .put(key, "", Some(PutOptions::new().with_lease(lease)))
            .await
            .unwrap();
    }
    let (mut keeper, mut answers) = client.lease_keep_alive(kept).await.unwrap();
    eventually("the short lease has expired", async || {
        keeper.keep_alive().await.unwrap();
        assert_eq!(answers.message().await.unwrap().unwrap().ttl(), 2);
        client.get("short", None).await.unwrap().kvs().is_empty().then_some(())
    })
    .await;
    assert_eq!(client.get("kept", None).await.unwrap().kvs()[0].lease(), kept);
    let options = LeaseTimeToLiveOptions::new().with_keys();
    let info = client.lease_time_to_live(kept, Some(options)).await.unwrap();
    assert_eq!((info.granted_ttl(), info.keys()), (2, &[b"kept".to_vec()][..]));
    assert_eq!(client.lease_time_to_live(short.id(), None).await.unwrap().ttl(), -1);
    client.lease_revoke(kept).await.unwrap();
    assert!(client.get("kept", None).await.unwrap().kvs().is_empty());
    let error = client.lease_revoke(kept).await.unwrap_err().to_string();
    assert!(error.contains("etcdserver: requested lease not found"), "{error}");
}

#[tokio::test]
async fn status_and_member_list_show_a_cluster_of_one() {
    let tls = Tls::new();
    let server = etcd(&tls).arg("--name=solo").start();
    let address = server.address().await;
    let mut client = tls.client(&address, "any").await;
    let status = client.status().await.unwrap();
    assert_eq!(status.leader(), status.header().unwrap().member_id());
    assert!(status.version().starts_with("3.7."));
    let members = client.member_list().await.unwrap();
    let [member] = members.members() else { panic!() };
    assert_eq!(
        (member.name(), member.client_urls()),
        ("solo", &["https://127.0.0.1:2379".to_owned()][..])
    );
    assert_eq!(member.id(), status.leader());
    let error = client.member_remove(member.id()).await.unwrap_err().to_string();
    assert!(error.contains("not enough started members"), "{error}");
}

#[tokio::test]
async fn a_store_without_a_data_directory_has_a_new_cluster_id_at_each_start() {
    let tls = Tls::new();
    let mut ids = vec![];
    for _ in 0..2 {
        let server = etcd(&tls).start();
        let mut client = tls.client(&server.address().await, "any").await;
        ids.push(client.get("x", None).await.unwrap().header().unwrap().cluster_id());
    }
    assert_ne!(ids[0], ids[1], "both starts have the same cluster id");
}
