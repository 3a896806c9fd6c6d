//! For each kind of call, a test world in which every check fails: the errors come in the order of the table.

use super::*;
use crate::auth::{Access, Config, Permission, ROOT};
use crate::durable;
use crate::mvcc::{Hooks, Put};
use crate::server::peer::Peer;
use tonic::metadata::MetadataMap;

/// A fault of a test world: a reason to refuse the call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    /// The request is too long.
    Size,
    /// The token is not valid.
    Token,
    /// The caller has no credentials.
    Anonymous,
    /// The user has no role.
    NoRole,
    CorruptAlarm,
    SpaceAlarm,
    /// The store is as large as the quota.
    Quota,
    /// The data directory has no room.
    FullDisk,
    /// The call is about an unknown member.
    UnknownMember,
}
use Fault::{Anonymous, CorruptAlarm, FullDisk, NoRole, Quota, Size, SpaceAlarm, Token, UnknownMember};

/// For each kind of call, the order in which a client sees the faults when one after the other is repaired.
const ORDERS: &[(Call, &[Fault])] = &[
    (Call::Range, &[Token, Anonymous, NoRole]),
    (Call::Watch, &[Token, Anonymous, NoRole]),
    (
        Call::Put,
        &[
            Token,
            Size,
            CorruptAlarm,
            SpaceAlarm,
            Anonymous,
            NoRole,
            Quota,
            FullDisk,
        ],
    ),
    (
        Call::TxnWithPuts,
        &[
            Token,
            Size,
            CorruptAlarm,
            SpaceAlarm,
            Anonymous,
            NoRole,
            Quota,
            FullDisk,
        ],
    ),
    (
        Call::DeleteRange,
        &[Token, Size, CorruptAlarm, Anonymous, NoRole, FullDisk],
    ),
    (
        Call::TxnWithoutPuts,
        &[Token, Size, CorruptAlarm, Anonymous, NoRole, FullDisk],
    ),
    (Call::ReadOnlyTxn, &[Token, Anonymous, NoRole]),
    (Call::Compact, &[Token, Anonymous, NoRole, CorruptAlarm, FullDisk]),
    (
        Call::LeaseGrant,
        &[Token, Anonymous, CorruptAlarm, SpaceAlarm, Quota, FullDisk],
    ),
    (Call::LeaseRevoke, &[Token, Anonymous, CorruptAlarm, NoRole, FullDisk]),
    (Call::LeaseKeepAlive, &[Token, Anonymous, NoRole]),
    (Call::LeaseTimeToLive, &[Token, Anonymous]),
    (Call::LeaseLeases, &[Token, Anonymous]),
    (Call::LeaseKeys, &[Token, Anonymous, NoRole]),
    (Call::AuthChange, &[Token, Anonymous, NoRole, FullDisk]),
    (Call::AuthList, &[Token, Anonymous, NoRole]),
    (Call::UserGet, &[Token, Anonymous, NoRole]),
    (Call::RoleGet, &[Token, Anonymous, NoRole]),
    (Call::AuthOpen, &[]),
    (Call::MemberList, &[Token, Anonymous]),
    (Call::MemberAdd, &[Token, Anonymous, NoRole]),
    (Call::MemberRemove, &[Token, Anonymous, NoRole, UnknownMember]),
    (Call::MemberUpdate, &[Token, Anonymous, NoRole, UnknownMember, FullDisk]),
    (Call::MaintenanceRead, &[Token, Anonymous]),
    (Call::AlarmChange, &[Token, Anonymous, NoRole, FullDisk]),
    (Call::Maintenance, &[Token, Anonymous, NoRole]),
];

const MEMBER: u64 = 7;
const LEASE: i64 = 5;

struct World {
    admission: Admission,
    caller: Caller,
    operation: Operation,
    _directory: tempfile::TempDir,
}

impl Fault {
    fn text(self) -> &'static str {
        match self {
            Size => "etcdserver: request is too large",
            Token => "etcdserver: invalid auth token",
            Anonymous => "etcdserver: user name is empty",
            NoRole => "etcdserver: permission denied",
            CorruptAlarm => "etcdserver: corrupt cluster",
            SpaceAlarm | Quota => "etcdserver: mvcc: database space exceeded",
            FullDisk => {
                "etcdserver: no room on the disk of the data directory (ENOSPC); free space there, or enlarge the volume"
            }
            UnknownMember => "etcdserver: member not found",
        }
    }
}

fn user(name: &str) -> Caller {
    let common_name = Some(name.into());
    let peer = Peer {
        common_name,
        ..Peer::default()
    };
    Caller::new(&MetadataMap::new(), peer)
}

fn operation(call: Call) -> Operation {
    let key = || KeyRange::key("a");
    let put = Put {
        key: "a".into(),
        ..Put::default()
    };
    let operation = match call {
        Call::Put => Operation::put(&put, PrevKv::NotReturned, 0),
        Call::DeleteRange => Operation::delete(key(), PrevKv::NotReturned, 0),
        Call::Range | Call::Watch | Call::ReadOnlyTxn | Call::TxnWithPuts | Call::TxnWithoutPuts => {
            Operation::read(call, key())
        }
        Call::LeaseGrant => Operation::lease_grant(),
        Call::LeaseRevoke | Call::LeaseKeepAlive => Operation::lease(call, LEASE),
        Call::LeaseKeys => Operation::show(["a".into()]),
        Call::UserGet => Operation::about(call, Subject::User("root".to_owned())),
        Call::RoleGet => Operation::about(call, Subject::Role("reader".to_owned())),
        Call::MemberRemove | Call::MemberUpdate => Operation::about(call, Subject::Member(MEMBER + 1)),
        _ => Operation::new(call),
    };
    Operation {
        request_bytes: 100,
        ..operation
    }
}

impl World {
    /// A store with a key "a" that is attached to a lease, where everything is wrong with the call.
    fn broken(call: Call) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let config = durable::Config {
            checkpoint_bytes: 64 << 10,
            ..durable::Config::new(directory.path().join("data"))
        };
        let (disk, loaded) = durable::open(&config, Hooks::default()).unwrap();
        let auth = AuthStore::new(Config::default()).unwrap();
        for name in [ROOT, "kim"] {
            auth.user_add(name, None).unwrap();
        }
        auth.user_grant_role(ROOT, ROOT).unwrap();
        auth.role_add("reader").unwrap();
        auth.enable().unwrap();
        loaded.store.grant(LEASE, 60);
        let put = Put {
            key: "a".into(),
            lease: LEASE,
            ..Put::default()
        };
        loaded.store.put(put).unwrap();
        disk.refuse_changes(true);
        let durability = Durability::new(Some(Arc::new(disk)));
        let alarms = Alarms::new(&[], durability.clone());
        alarms.raise(AlarmType::Corrupt, MEMBER);
        alarms.raise(AlarmType::Nospace, MEMBER);
        let mut metadata = MetadataMap::new();
        metadata.insert("token", "stale.1".parse().unwrap());
        Self {
            admission: Admission {
                store: loaded.store,
                auth: Arc::new(auth),
                alarms: Arc::new(alarms),
                durability,
                refusals: Arc::default(),
                follows: false,
                limits: Limits {
                    max_request_bytes: 10,
                    quota_bytes: 0,
                    member_id: MEMBER,
                },
            },
            caller: Caller::new(&metadata, Peer::default()),
            operation: operation(call),
            _directory: directory,
        }
    }

    fn mend(&mut self, fault: Fault) {
        let Admission {
            alarms,
            durability,
            limits,
            ..
        } = &mut self.admission;
        match fault {
            Size => limits.max_request_bytes = 1000,
            Token => self.caller = Caller::default(),
            Anonymous => self.caller = user("kim"),
            NoRole => self.caller = user(ROOT),
            CorruptAlarm => assert!(alarms.disarm(AlarmType::Corrupt, MEMBER).is_some()),
            SpaceAlarm => assert!(alarms.disarm(AlarmType::Nospace, MEMBER).is_some()),
            Quota => {
                let raised = alarms.disarm(AlarmType::Nospace, MEMBER);
                assert!(raised.is_some(), "a full store raises the alarm");
                limits.quota_bytes = usize::MAX;
            }
            FullDisk => durability.disk().unwrap().refuse_changes(false),
            UnknownMember => self.operation.subject = Some(Subject::Member(MEMBER)),
        }
    }

    async fn admit(&self) -> Result<Admitted, Status> {
        self.admission.admit(&self.caller, &self.operation).await
    }
}

#[tokio::test]
async fn the_first_check_of_the_table_that_fails_gives_the_error() {
    for (call, faults) in ORDERS {
        let mut world = World::broken(*call);
        for fault in *faults {
            let error = world.admit().await.unwrap_err();
            assert_eq!(error.message(), fault.text(), "{call:?}, {fault:?} of {faults:?}");
            world.mend(*fault);
        }
        world
            .admit()
            .await
            .unwrap_or_else(|e| panic!("{call:?}: {}", e.message()));
    }
}

#[tokio::test]
async fn a_user_may_see_the_own_user_and_own_roles() {
    let mut world = World::broken(Call::UserGet);
    world.admission.auth.user_grant_role("kim", "reader").unwrap();
    world.caller = user("kim");
    assert!(world.admit().await.is_err());
    world.operation = Operation::about(Call::UserGet, Subject::User("kim".to_owned()));
    world.admit().await.unwrap();
    world.operation = operation(Call::RoleGet);
    world.admit().await.unwrap();
}

#[tokio::test]
async fn a_lease_ends_only_for_a_user_who_may_write_its_keys() {
    let mut world = World::broken(Call::LeaseKeepAlive);
    world.caller = user("kim");
    let auth = Arc::clone(&world.admission.auth);
    auth.user_grant_role("kim", "reader").unwrap();
    let allow = |access| {
        let permission = Permission {
            access,
            key: b"a".to_vec(),
            range_end: vec![],
        };
        auth.role_grant("reader", permission).unwrap();
    };
    allow(Access::Read);
    assert!(world.admit().await.is_err());
    allow(Access::ReadWrite);
    let admitted = world.admit().await.unwrap();
    assert_eq!(admitted.certificate_user.as_deref(), Some("kim"));
}
