//! The operation of a call: its kind and everything else that admission checks.

use crate::mvcc::{KeyRange, Op, Put, Txn};
use bytes::Bytes;
use smallvec::{SmallVec, smallvec};

/// Bytes that a put takes beside its key and value (etcd: server/storage/quota.go).
const PUT_OVERHEAD: usize = 256;
/// Bytes that a lease takes (etcd: server/storage/quota.go).
const LEASE_COST: usize = 64;

/// The kinds of calls. Calls with the same checks share a kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::server) enum Call {
    /// Range, RangeStream, and the reads of locks and elections.
    Range,
    /// The creation of a watcher.
    Watch,
    Put,
    DeleteRange,
    /// A transaction with a put in any branch.
    TxnWithPuts,
    /// A transaction that changes keys but puts none.
    TxnWithoutPuts,
    /// A transaction of ranges.
    ReadOnlyTxn,
    Compact,
    LeaseGrant,
    LeaseRevoke,
    LeaseKeepAlive,
    LeaseTimeToLive,
    LeaseLeases,
    /// The attached keys in an answer to LeaseTimeToLive or LeaseLeases.
    LeaseKeys,
    /// Every method of the Auth service that changes users, roles or whether authentication is enabled.
    AuthChange,
    /// UserList and RoleList.
    AuthList,
    UserGet,
    RoleGet,
    /// AuthStatus and Authenticate.
    AuthOpen,
    MemberList,
    MemberAdd,
    /// MemberRemove and MemberPromote.
    MemberRemove,
    MemberUpdate,
    /// Status, and Alarm that lists.
    MaintenanceRead,
    /// Alarm that activates or disarms.
    AlarmChange,
    /// Defragment, MoveLeader, Downgrade, Hash, HashKV, Snapshot.
    Maintenance,
}

/// A permission that a call needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Grant {
    /// The user may read all of a range.
    Read(KeyRange),
    /// The user may read a key. Unlike a range, a single key needs no allocation.
    ReadKey(Bytes),
    /// The user may read every key attached to this lease.
    ReadLease(i64),
    /// The user may write all of a range.
    Write(KeyRange),
    /// The user may write a key.
    WriteKey(Bytes),
    /// The user may write every key attached to this lease, because the keys are deleted with the lease.
    WriteLease(i64),
}

type Grants = SmallVec<[Grant; 2]>;

/// Whether a write returns the key-values that were there before, which is a read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::server) enum PrevKv {
    Returned,
    NotReturned,
}

/// The subject of a call, for calls that depend on their subject: a user, a role or a member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::server) enum Subject {
    User(String),
    Role(String),
    Member(u64),
}

/// A call with everything that its checks look at. A check passes if the operation has nothing for it to look at.
#[derive(Clone, Debug)]
pub(in crate::server) struct Operation {
    pub(super) call: Call,
    /// Length of the encoded request, in bytes.
    pub(super) request_bytes: usize,
    /// Bytes that the store grows by.
    pub(super) growth: usize,
    pub(super) grants: Grants,
    pub(super) subject: Option<Subject>,
}

impl From<bool> for PrevKv {
    fn from(prev_kv: bool) -> Self {
        match prev_kv {
            true => Self::Returned,
            false => Self::NotReturned,
        }
    }
}

impl Grant {
    /// Whether the grant depends on the keys of a lease, which change with every put.
    pub(super) fn depends_on_lease(&self) -> bool {
        matches!(self, Self::ReadLease(_) | Self::WriteLease(_))
    }

    /// The grants of a put. The order is not visible: each of them fails with the same error.
    fn of_put(key: Bytes, lease: i64, prev_kv: PrevKv) -> Grants {
        let mut grants: Grants = match prev_kv {
            PrevKv::Returned => smallvec![Self::WriteKey(key.clone()), Self::ReadKey(key)],
            PrevKv::NotReturned => smallvec![Self::WriteKey(key)],
        };
        if lease != 0 {
            grants.push(Self::WriteLease(lease));
        }
        grants
    }

    /// The grants of a deletion.
    fn of_delete(range: KeyRange, prev_kv: PrevKv) -> Grants {
        match prev_kv {
            PrevKv::Returned => smallvec![Self::Write(range.clone()), Self::Read(range)],
            PrevKv::NotReturned => smallvec![Self::Write(range)],
        }
    }
}

/// Bytes that a put adds to the store.
fn put_cost(key: &[u8], value: &[u8]) -> usize {
    PUT_OVERHEAD + key.len() + value.len()
}

/// Bytes that the puts of the larger branch add to the store; `None` if no branch puts anything.
fn txn_growth(txn: &Txn) -> Option<usize> {
    let of = |op: &Op| match op {
        Op::Put(put) => Some(put_cost(&put.key, &put.value)),
        Op::Txn(nested) => txn_growth(nested),
        Op::Range(_) | Op::Delete(_) => None,
    };
    let branch = |ops: &[Op]| ops.iter().filter_map(of).reduce(|a, b| a + b);
    branch(&txn.success).max(branch(&txn.failure))
}

/// Adds the grants of every compare and of every operation in both branches, at every depth.
fn add_grants(txn: &Txn, prev_kvs: &mut impl Iterator<Item = PrevKv>, grants: &mut Grants) {
    grants.extend(txn.compares.iter().map(|compare| Grant::Read(compare.range.clone())));
    for op in txn.success.iter().chain(&txn.failure) {
        let mut prev_kv = || prev_kvs.next().unwrap_or(PrevKv::Returned);
        match op {
            Op::Range(options) => grants.push(Grant::Read(options.range.clone())),
            Op::Put(put) => grants.extend(Grant::of_put(put.key.clone(), put.lease, prev_kv())),
            Op::Delete(range) => grants.extend(Grant::of_delete(range.clone(), prev_kv())),
            Op::Txn(nested) => add_grants(nested, prev_kvs, grants),
        }
    }
}

impl Operation {
    /// A call whose checks look at the caller alone.
    pub(in crate::server) fn new(call: Call) -> Self {
        Self {
            call,
            request_bytes: 0,
            growth: 0,
            grants: Grants::new(),
            subject: None,
        }
    }

    pub(in crate::server) fn about(call: Call, subject: Subject) -> Self {
        Self {
            subject: Some(subject),
            ..Self::new(call)
        }
    }

    /// A call that reads `range`.
    pub(in crate::server) fn read(call: Call, range: KeyRange) -> Self {
        Self {
            grants: smallvec![Grant::Read(range)],
            ..Self::new(call)
        }
    }

    /// An answer that shows keys of leases.
    pub(in crate::server) fn show(keys: impl IntoIterator<Item = Bytes>) -> Self {
        Self {
            grants: keys.into_iter().map(Grant::ReadKey).collect(),
            ..Self::new(Call::LeaseKeys)
        }
    }

    /// An answer that lists leases, which requires permission to read all of their keys.
    pub(in crate::server) fn show_leases(leases: &[i64]) -> Self {
        Self {
            grants: leases.iter().copied().map(Grant::ReadLease).collect(),
            ..Self::new(Call::LeaseKeys)
        }
    }

    pub(in crate::server) fn put(put: &Put, prev_kv: PrevKv, request_bytes: usize) -> Self {
        Self {
            request_bytes,
            growth: put_cost(&put.key, &put.value),
            grants: Grant::of_put(put.key.clone(), put.lease, prev_kv),
            ..Self::new(Call::Put)
        }
    }

    pub(in crate::server) fn delete(range: KeyRange, prev_kv: PrevKv, request_bytes: usize) -> Self {
        Self {
            request_bytes,
            grants: Grant::of_delete(range, prev_kv),
            ..Self::new(Call::DeleteRange)
        }
    }

    /// A transaction. `prev_kvs` has an item for each put and each deletion, in the order of the operations, nested
    /// ones included; a missing item counts as [`PrevKv::Returned`].
    pub(in crate::server) fn txn(txn: &Txn, mut prev_kvs: impl Iterator<Item = PrevKv>, request_bytes: usize) -> Self {
        let growth = txn_growth(txn);
        let call = match growth {
            Some(_) => Call::TxnWithPuts,
            None if txn.has_only_ranges() => Call::ReadOnlyTxn,
            None => Call::TxnWithoutPuts,
        };
        let mut grants = Grants::new();
        add_grants(txn, &mut prev_kvs, &mut grants);
        Self {
            request_bytes,
            growth: growth.unwrap_or(0),
            grants,
            ..Self::new(call)
        }
    }

    pub(in crate::server) fn lease_grant() -> Self {
        Self {
            growth: LEASE_COST,
            ..Self::new(Call::LeaseGrant)
        }
    }

    /// A call that ends or prolongs a lease.
    pub(in crate::server) fn lease(call: Call, lease: i64) -> Self {
        Self {
            grants: smallvec![Grant::WriteLease(lease)],
            ..Self::new(call)
        }
    }
}
