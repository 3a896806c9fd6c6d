//! While the disk hangs, the server sends no answer and no error that a crash could contradict.

use super::*;
use crate::durable;
use crate::mvcc::Put;
use crate::pb::v3electionpb::election_server::Election;
use crate::pb::v3electionpb::{self as epb};
use crate::pb::v3lockpb::lock_server::Lock;
use crate::pb::v3lockpb::{self as lpb};
use pb::auth_server::Auth;
use pb::cluster_server::Cluster;
use pb::kv_server::Kv;
use pb::lease_server::Lease;
use pb::maintenance_server::Maintenance;
use std::pin::Pin;
use std::time::Duration;
use tonic::{Request, Response};

/// A named call that runs until its answer or its error is sent.
type Pending<'a> = (&'static str, Pin<Box<dyn Future<Output = ()> + 'a>>);

/// A server whose disk can be made to hang.
pub(super) struct Bench {
    pub(super) core: Arc<Core>,
    pub(super) disk: Arc<Durable>,
    _life: Lifecycle,
    _directory: tempfile::TempDir,
}

/// Time after which a call that has not ended counts as waiting for the disk.
pub(super) const PATIENCE: Duration = Duration::from_millis(50);

/// Limit for a call that does not wait for the disk.
const DEADLINE: Duration = Duration::from_secs(5);

impl Bench {
    /// Holds a key "a", a lease 7, and the users `root` and `kim`, who has a password.
    pub(super) async fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let (wakers, life) = (Wakers::default(), Lifecycle::default());
        let config = durable::Config {
            checkpoint_bytes: 64 << 10,
            ..durable::Config::new(directory.path().join("data"))
        };
        let (disk, loaded) = durable::open(&config, wakers.hooks()).unwrap();
        let (disk, store) = (Arc::new(disk), loaded.store);
        let auth = Arc::new(auth(&disk, loaded.metadata.auth()));
        auth.user_add(crate::auth::ROOT, None).unwrap();
        auth.user_grant_role(crate::auth::ROOT, crate::auth::ROOT).unwrap();
        auth.user_add("kim", Some("secret")).unwrap();
        let lessor = Arc::new(Lessor::new(Arc::clone(&store), 2));
        lessor.grant(7, 600).unwrap();
        let put = Put {
            key: "a".into(),
            ..Put::default()
        };
        store.put(put).unwrap();
        let config = Config::new(MemberIdentity::random());
        let parts = Parts {
            store,
            lessor,
            auth,
            durable: Some(Arc::clone(&disk)),
            upstream: None,
            wakers,
        };
        let core = Core::start(parts, config, &life);
        disk.flushed().await.unwrap();
        Self {
            core,
            disk,
            _life: life,
            _directory: directory,
        }
    }

    /// Checks that none of the calls ends while the disk hangs, and that all end afterwards.
    async fn all_wait(&self, mut calls: Vec<Pending<'_>>) {
        for (name, call) in &mut calls {
            let ended = tokio::time::timeout(PATIENCE, call.as_mut()).await;
            assert!(ended.is_err(), "{name} did not wait for the disk");
        }
        self.disk.stall(false);
        for (name, call) in calls {
            let ended = tokio::time::timeout(DEADLINE, call).await;
            assert!(ended.is_ok(), "{name} did not end");
        }
    }
}

fn auth(disk: &Arc<Durable>, state: crate::auth::AuthState) -> AuthStore {
    let config = crate::auth::Config {
        bcrypt_cost: 4,
        ..crate::auth::Config::default()
    };
    let disk = Arc::clone(disk);
    let on_change: crate::auth::OnChange = Box::new(move |before, after| disk.auth_changed(before, after));
    AuthStore::with(state, config, Some(on_change)).unwrap()
}

fn succeeds<'a, T>(name: &'static str, call: impl Future<Output = Result<Response<T>, Status>> + 'a) -> Pending<'a> {
    let ended = async move {
        let answer = call.await;
        assert!(answer.is_ok(), "{name}: {}", answer.err().unwrap().message());
    };
    (name, Box::pin(ended))
}

fn fails<'a, T>(
    name: &'static str,
    text: &'static str,
    call: impl Future<Output = Result<Response<T>, Status>> + 'a,
) -> Pending<'a> {
    let ended = async move {
        let error = call.await.err().unwrap_or_else(|| panic!("{name} succeeded"));
        assert!(error.message().ends_with(text), "{name}: {}", error.message());
    };
    (name, Box::pin(ended))
}

fn put(key: &'static str, lease: i64) -> pb::PutRequest {
    pb::PutRequest {
        key: key.into(),
        lease,
        ..Default::default()
    }
}

fn txn(put: pb::PutRequest) -> Request<pb::TxnRequest> {
    let op = pb::RequestOp {
        request: Some(pb::request_op::Request::RequestPut(put)),
    };
    Request::new(pb::TxnRequest {
        success: vec![op],
        ..Default::default()
    })
}

fn range(revision: i64) -> Request<pb::RangeRequest> {
    Request::new(pb::RangeRequest {
        key: "a".into(),
        revision,
        ..Default::default()
    })
}

#[tokio::test]
async fn answers_and_errors_about_keys_and_leases_wait_for_the_disk() {
    let bench = Bench::new().await;
    let (kv, lease) = (
        kv::KvService(Arc::clone(&bench.core)),
        lease::LeaseService(Arc::clone(&bench.core)),
    );
    bench.disk.stall(true);
    bench.core.lessor.grant(8, 600).unwrap();
    let delete = pb::DeleteRangeRequest {
        key: "a".into(),
        ..Default::default()
    };
    let compact = |revision, physical| Request::new(pb::CompactionRequest { revision, physical });
    let grant = |id| Request::new(pb::LeaseGrantRequest { ttl: 60, id });
    let revoke = |id| Request::new(pb::LeaseRevokeRequest { id });
    let lease_of = |id| Request::new(pb::LeaseTimeToLiveRequest { id, keys: true });
    bench
        .all_wait(vec![
            succeeds("put", kv.put(Request::new(put("b", 0)))),
            fails("put", "requested lease not found", kv.put(Request::new(put("b", 99)))),
            succeeds("txn", kv.txn(txn(put("c", 0)))),
            fails("txn", "requested lease not found", kv.txn(txn(put("c", 99)))),
            succeeds("delete", kv.delete_range(Request::new(delete))),
            fails("range", "future revision", kv.range(range(1000))),
            fails("compact", "future revision", kv.compact(compact(1000, false))),
            succeeds("compact", kv.compact(compact(2, true))),
            fails("compact", "has been compacted", kv.compact(compact(2, false))),
            succeeds("grant", lease.lease_grant(grant(9))),
            fails("grant", "lease already exists", lease.lease_grant(grant(7))),
            fails("revoke", "requested lease not found", lease.lease_revoke(revoke(99))),
            succeeds("revoke", lease.lease_revoke(revoke(8))),
            succeeds("time to live", lease.lease_time_to_live(lease_of(99))),
            succeeds("leases", lease.lease_leases(Request::new(pb::LeaseLeasesRequest {}))),
        ])
        .await;
}

#[tokio::test]
async fn answers_and_errors_of_locks_and_elections_wait_for_the_disk() {
    let bench = Bench::new().await;
    let service = concurrency::ConcurrencyService::new(&bench.core);
    let lock = |name: &'static str, lease| {
        let name = name.into();
        service.lock(Request::new(lpb::LockRequest { name, lease }))
    };
    let campaign = |name: &'static str, lease| {
        service.campaign(Request::new(epb::CampaignRequest {
            name: name.into(),
            lease,
            value: "v".into(),
        }))
    };
    let leader = || {
        Some(epb::LeaderKey {
            name: "e".into(),
            key: "e/7".into(),
            rev: 1,
            lease: 7,
        })
    };
    let proclaim = epb::ProclaimRequest {
        leader: leader(),
        value: "w".into(),
    };
    bench.disk.stall(true);
    bench.core.lessor.grant(8, 600).unwrap();
    bench
        .all_wait(vec![
            succeeds("lock with a new lease", lock("l", 0)),
            succeeds("lock", lock("m", 7)),
            fails("lock", "requested lease not found", lock("n", 99)),
            succeeds("campaign", campaign("f", 7)),
            fails("campaign", "requested lease not found", campaign("g", 99)),
            fails(
                "proclaim",
                "election: not leader",
                service.proclaim(Request::new(proclaim)),
            ),
            succeeds(
                "resign",
                service.resign(Request::new(epb::ResignRequest { leader: leader() })),
            ),
            succeeds(
                "unlock",
                service.unlock(Request::new(lpb::UnlockRequest { key: "a".into() })),
            ),
        ])
        .await;
}

#[tokio::test]
async fn answers_and_errors_of_administration_wait_for_the_disk() {
    let bench = Bench::new().await;
    let (users, cluster, maintenance) = (
        auth::AuthService(Arc::clone(&bench.core)),
        cluster::ClusterService(Arc::clone(&bench.core)),
        maintenance::MaintenanceService(Arc::clone(&bench.core)),
    );
    bench.disk.stall(true);
    bench.core.auth.role_add("pending").unwrap();
    let add = |name: &str| {
        let name = name.to_owned();
        Request::new(pb::AuthUserAddRequest {
            name,
            ..Default::default()
        })
    };
    let user = |name: &str| Request::new(pb::AuthUserGetRequest { name: name.to_owned() });
    let role = |role: &str| Request::new(pb::AuthRoleGetRequest { role: role.to_owned() });
    let login = pb::AuthenticateRequest {
        name: "kim".to_owned(),
        password: "secret".to_owned(),
    };
    let id = bench.core.config.identity.member_id;
    let update = pb::MemberUpdateRequest {
        id,
        peer_ur_ls: vec!["http://x:1".to_owned()],
    };
    let new_member = pb::MemberAddRequest {
        peer_ur_ls: vec!["http://y:1".to_owned()],
        ..Default::default()
    };
    bench
        .all_wait(vec![
            succeeds("user add", users.user_add(add("new"))),
            fails("user add", "user name already exists", users.user_add(add("kim"))),
            succeeds("user get", users.user_get(user("kim"))),
            fails("user get", "user name not found", users.user_get(user("nobody"))),
            succeeds("user list", users.user_list(Request::new(pb::AuthUserListRequest {}))),
            succeeds("role get", users.role_get(role("pending"))),
            fails("role get", "role name not found", users.role_get(role("none"))),
            succeeds("role list", users.role_list(Request::new(pb::AuthRoleListRequest {}))),
            succeeds("auth status", users.auth_status(Request::new(pb::AuthStatusRequest {}))),
            fails(
                "authenticate",
                "authentication is not enabled",
                users.authenticate(Request::new(login)),
            ),
            succeeds("member update", cluster.member_update(Request::new(update))),
            succeeds(
                "member list",
                cluster.member_list(Request::new(pb::MemberListRequest::default())),
            ),
            fails(
                "member add",
                "unhealthy cluster",
                cluster.member_add(Request::new(new_member)),
            ),
            succeeds("alarms", maintenance.alarm(Request::new(pb::AlarmRequest::default()))),
            succeeds("hash", maintenance.hash(Request::new(pb::HashRequest {}))),
            succeeds(
                "hash of keys",
                maintenance.hash_kv(Request::new(pb::HashKvRequest { revision: 0 })),
            ),
            fails(
                "hash of keys",
                "future revision",
                maintenance.hash_kv(Request::new(pb::HashKvRequest { revision: 1000 })),
            ),
        ])
        .await;
}

#[tokio::test]
async fn refusals_by_pending_changes_of_users_wait_for_the_disk() {
    let bench = Bench::new().await;
    let kv = kv::KvService(Arc::clone(&bench.core));
    let lease = lease::LeaseService(Arc::clone(&bench.core));
    let locks = concurrency::ConcurrencyService::new(&bench.core);
    let maintenance = maintenance::MaintenanceService(Arc::clone(&bench.core));
    let lock = lpb::LockRequest {
        name: "l".into(),
        lease: 0,
    };
    bench.disk.stall(true);
    bench.core.auth.enable().unwrap();
    let nobody = "user name is empty";
    bench
        .all_wait(vec![
            fails("range", nobody, kv.range(range(0))),
            fails("put", nobody, kv.put(Request::new(put("b", 0)))),
            fails(
                "leases",
                nobody,
                lease.lease_leases(Request::new(pb::LeaseLeasesRequest {})),
            ),
            fails("lock", nobody, locks.lock(Request::new(lock))),
            fails("status", nobody, maintenance.status(Request::new(pb::StatusRequest {}))),
        ])
        .await;
}

#[tokio::test]
async fn reads_logins_the_status_and_a_snapshot_do_not_wait_for_keys_on_the_disk() {
    let bench = Bench::new().await;
    let users = auth::AuthService(Arc::clone(&bench.core));
    let kv = kv::KvService(Arc::clone(&bench.core));
    let maintenance = maintenance::MaintenanceService(Arc::clone(&bench.core));
    bench.disk.stall(true);
    let pending = Put {
        key: "a".into(),
        value: "pending".into(),
        ..Put::default()
    };
    bench.core.store.put(pending).unwrap();
    let read = tokio::time::timeout(DEADLINE, kv.range(range(0))).await;
    let read = read.unwrap().unwrap().into_inner();
    assert_eq!(
        read.header.unwrap().revision,
        2,
        "a revision that is not durable is not read"
    );
    let status = maintenance.status(Request::new(pb::StatusRequest {}));
    tokio::time::timeout(DEADLINE, status).await.unwrap().unwrap();
    let snapshot = maintenance.snapshot(Request::new(pb::SnapshotRequest {}));
    assert!(tokio::time::timeout(DEADLINE, snapshot).await.unwrap().is_ok());
    let login = users.authenticate(Request::new(pb::AuthenticateRequest::default()));
    let refused = tokio::time::timeout(DEADLINE, login).await.unwrap().unwrap_err();
    assert!(
        refused.message().ends_with("authentication is not enabled"),
        "{}",
        refused.message()
    );
    bench.disk.stall(false);
}
