//! Users: who checks a call, and on whose behalf it goes upstream.

use super::*;
use crate::server::upstream::Judge;

#[tokio::test(start_paused = true)]
async fn a_replica_without_the_key_checks_the_users_of_certificates_itself() {
    let bench = Bench::following();
    bench.enable_auth().await;
    let denied = crate::auth::Error::PermissionDenied.to_string();
    let (kim, eve) = (Client::named("kim"), Client::named("eve"));
    let _: pb::PutResponse = bench.call(&kim, PUT, &put("k", "1")).await.unwrap();
    assert_eq!(bench.upstream.sent.lock()[0].who, Credentials::Replica);
    bench.upstream.take_sent();
    let put_of = async |client: &Client, key| bench.call::<pb::PutResponse>(client, PUT, &put(key, "")).await;
    for refused in [put_of(&kim, "z").await, put_of(&eve, "k").await] {
        let refused = refused.unwrap_err();
        assert_eq!(refused.message(), format!("etcdserver: {denied}"));
    }
    let nobody = put_of(&anybody(), "k").await.unwrap_err();
    assert_eq!(nobody.message(), "etcdserver: user name is empty");
    let unknown = bench
        .call::<Listed>(&Client::with_token("x.1"), RANGE, &range("k", 0))
        .await;
    assert_eq!(unknown.unwrap_err().message(), "etcdserver: invalid auth token");
    assert_eq!(bench.upstream.take_sent(), ["Alarm"], "nothing of that was sent");
    let read: Listed = bench.call(&kim, RANGE, &range("k", 0)).await.unwrap();
    assert_eq!(read.count, 1);
    let path = "/etcdserverpb.Lease/LeaseGrant";
    let _: pb::LeaseGrantResponse = bench
        .call(&Client::named("root"), path, &pb::LeaseGrantRequest { id: 7, ttl: 600 })
        .await
        .unwrap();
    let secret = pb::PutRequest {
        lease: 7,
        ..put("z", "")
    };
    let _: pb::PutResponse = bench.call(&Client::named("root"), PUT, &secret).await.unwrap();
    let shown = pb::LeaseTimeToLiveRequest { id: 7, keys: true };
    let path = "/etcdserverpb.Lease/LeaseTimeToLive";
    let hidden = bench.call::<pb::LeaseTimeToLiveResponse>(&kim, path, &shown).await;
    assert_eq!(hidden.unwrap_err().message(), format!("etcdserver: {denied}"));
    let renewed = bench
        .call::<pb::LeaseKeepAliveResponse>(&kim, KEEP_ALIVE, &pb::LeaseKeepAliveRequest { id: 7 })
        .await;
    assert_eq!(renewed.unwrap_err().message(), format!("etcdserver: {denied}"));
}

#[tokio::test(start_paused = true)]
async fn a_lease_is_judged_by_the_keys_that_it_has_upstream() {
    let bench = Bench::new();
    bench.enable_auth().await;
    bench.upstream_grant(7);
    let secret = crate::mvcc::Put {
        key: "z".into(),
        lease: 7,
        ..Default::default()
    };
    bench.upstream.store.put(secret).unwrap();
    let (kim, path) = (Client::named("kim"), "/etcdserverpb.Lease/LeaseRevoke");
    let revoke = pb::LeaseRevokeRequest { id: 7 };
    // The key is not here yet.
    let unknown = bench.call::<pb::LeaseRevokeResponse>(&kim, path, &revoke).await;
    assert_eq!(unknown.unwrap_err().message(), not_sent().message());
    bench.follow_to(i64::MAX);
    let denied = bench.call::<pb::LeaseRevokeResponse>(&kim, path, &revoke).await;
    assert_eq!(denied.unwrap_err().code(), Code::PermissionDenied);
    let attach = pb::PutRequest {
        lease: 7,
        ..put("k", "")
    };
    let denied = bench.call::<pb::PutResponse>(&kim, PUT, &attach).await;
    assert_eq!(denied.unwrap_err().code(), Code::PermissionDenied);
    assert!(bench.upstream.store.get(b"z").is_some());
}

#[tokio::test(start_paused = true)]
async fn authentication_that_was_turned_on_elsewhere_counts_for_the_next_call() {
    let bench = Bench::following();
    let kim = Client::named("kim");
    let _: pb::PutResponse = bench.call(&kim, PUT, &put("z", "1")).await.unwrap();
    let grant = pb::LeaseGrantRequest { id: 7, ttl: 600 };
    let _: pb::LeaseGrantResponse = bench.call(&kim, GRANT, &grant).await.unwrap();
    bench.enable_auth_upstream();
    bench.upstream.take_sent();
    let denied = bench.call::<pb::PutResponse>(&kim, PUT, &put("z", "2")).await;
    let text = format!("etcdserver: {}", crate::auth::Error::PermissionDenied);
    assert_eq!(denied.unwrap_err().message(), text);
    assert_eq!(bench.upstream.store.get(b"z").unwrap().value(), b"1");
    let _: pb::PutResponse = bench.call(&kim, PUT, &put("k", "2")).await.unwrap();
    assert_eq!(bench.upstream.sent.lock().last().unwrap().who, Credentials::Replica);
    let renewal = pb::LeaseKeepAliveRequest { id: 7 };
    let renewed: pb::LeaseKeepAliveResponse = bench.call(&kim, KEEP_ALIVE, &renewal).await.unwrap();
    assert_eq!(renewed.ttl, 600);
}

#[tokio::test(start_paused = true)]
async fn an_alarm_comes_before_a_denial_as_in_etcd() {
    let bench = Bench::following();
    bench.enable_auth().await;
    let (root, kim) = (Client::named("root"), Client::named("kim"));
    let path = "/etcdserverpb.Maintenance/Alarm";
    let raise = pb::AlarmRequest {
        action: pb::alarm_request::AlarmAction::Activate.into(),
        member_id: 1,
        alarm: pb::AlarmType::Nospace.into(),
    };
    let _: pb::AlarmResponse = bench.call(&root, path, &raise).await.unwrap();
    bench.upstream.take_sent();
    for _ in 0..10 {
        let full = bench
            .call::<pb::PutResponse>(&kim, PUT, &put("z", ""))
            .await
            .unwrap_err();
        assert_eq!(full.message(), "etcdserver: mvcc: database space exceeded");
    }
    assert_eq!(bench.upstream.take_sent(), ["Alarm"], "once a second");
    let delete = pb::DeleteRangeRequest {
        key: "z".into(),
        ..Default::default()
    };
    let path = "/etcdserverpb.KV/DeleteRange";
    let denied = bench
        .call::<pb::DeleteRangeResponse>(&kim, path, &delete)
        .await
        .unwrap_err();
    assert_eq!(denied.code(), Code::PermissionDenied, "a deletion makes room");
}

#[tokio::test(start_paused = true)]
async fn with_the_key_the_upstream_checks_the_user_and_an_old_token_is_signed_anew() {
    let bench = Bench::following();
    bench.enable_auth().await;
    *bench.upstream.judge.lock() = Judge::Upstream;
    let kim = Client::named("kim");
    *bench.upstream.old.lock() = 1;
    let _: pb::PutResponse = bench.call(&kim, PUT, &put("k", "1")).await.unwrap();
    let whose: Vec<_> = bench.upstream.sent.lock().drain(..).map(|sent| sent.who).collect();
    let user = Credentials::User("kim".into());
    assert_eq!(whose, [user.clone(), user], "refused once, and repeated once");
    let denied = bench
        .call::<pb::PutResponse>(&kim, PUT, &put("z", ""))
        .await
        .unwrap_err();
    assert_eq!(denied.code(), Code::PermissionDenied);
    assert_eq!(bench.upstream.take_sent(), ["Put"], "the upstream has refused it");
    let nobody = bench
        .call::<pb::PutResponse>(&anybody(), PUT, &put("k", ""))
        .await
        .unwrap_err();
    assert_eq!(nobody.message(), "etcdserver: user name is empty");
    assert_eq!(
        bench.upstream.take_sent(),
        ["Alarm"],
        "never with the rights of the replica"
    );
}

#[tokio::test(start_paused = true)]
async fn a_token_from_a_login_here_goes_through_and_is_known_here() {
    let bench = Bench::following();
    bench.enable_auth().await;
    let path = "/etcdserverpb.Auth/Authenticate";
    let login = |password: &str| pb::AuthenticateRequest {
        name: "kim".to_owned(),
        password: password.to_owned(),
    };
    let wrong = bench
        .call::<pb::AuthenticateResponse>(&anybody(), path, &login("?"))
        .await;
    assert!(wrong.unwrap_err().message().contains("authentication failed"));
    let token = bench
        .call::<pb::AuthenticateResponse>(&anybody(), path, &login("secret"))
        .await
        .unwrap()
        .token;
    let kim = Client::with_token(&token);
    let _: pb::PutResponse = bench.call(&kim, PUT, &put("k", "1")).await.unwrap();
    let who = bench.upstream.sent.lock().last().unwrap().who.clone();
    assert_eq!(who, Credentials::Token(token.as_str().into()));
    let read: Listed = bench.call(&kim, RANGE, &range("k", 0)).await.unwrap();
    assert_eq!(read.count, 1);
    let path = "/etcdserverpb.Auth/UserRevokeRole";
    let revoke = pb::AuthUserRevokeRoleRequest {
        name: "kim".to_owned(),
        role: "k".to_owned(),
    };
    let _: pb::AuthUserRevokeRoleResponse = bench.call(&Client::named("root"), path, &revoke).await.unwrap();
    let forgotten = bench.call::<Listed>(&kim, RANGE, &range("k", 0)).await.unwrap_err();
    assert_eq!(
        forgotten.message(),
        "etcdserver: invalid auth token",
        "before the answer"
    );
}

#[tokio::test(start_paused = true)]
async fn a_request_that_is_too_large_is_refused_here_after_a_bad_token() {
    let bench = Bench::following();
    bench.enable_auth().await;
    let long = pb::PutRequest {
        value: vec![7; bench.core.config.max_request_bytes + 1].into(),
        ..put("k", "")
    };
    let root = bench
        .call::<pb::PutResponse>(&Client::named("root"), PUT, &long)
        .await
        .unwrap_err();
    assert_eq!(root.message(), "etcdserver: request is too large");
    let stale = bench
        .call::<pb::PutResponse>(&Client::with_token("x.1"), PUT, &long)
        .await
        .unwrap_err();
    assert_eq!(stale.message(), "etcdserver: invalid auth token");
    assert!(bench.upstream.take_sent().is_empty());
}
