//! Transactions as data: compares, operations, results.

use super::encoded::Kv;
use super::range::{KeyRange, RangeOptions, RangeResult};
use bytes::Bytes;

/// A transaction: runs `success` if all compares hold, else `failure`.
#[derive(Clone, Debug, Default)]
pub struct Txn {
    /// The conditions. Without conditions, `success` runs.
    pub compares: Vec<Compare>,
    pub success: Vec<Op>,
    pub failure: Vec<Op>,
}

/// One operation of a transaction.
#[derive(Clone, Debug)]
pub enum Op {
    Range(RangeOptions),
    Put(Put),
    Delete(KeyRange),
    /// A nested transaction.
    Txn(Txn),
}

#[derive(Clone, Debug, Default)]
pub struct Put {
    pub key: Bytes,
    /// Ignored with `ignore_value`.
    pub value: Bytes,
    /// The lease to attach the key to; 0 for no lease. Ignored with `ignore_lease`.
    pub lease: i64,
    /// Keep the present value of the key, which must exist.
    pub ignore_value: bool,
    /// Keep the present lease of the key, which must exist.
    pub ignore_lease: bool,
}

/// A condition on every key of a range; an empty range counts as one absent key.
#[derive(Clone, Debug)]
pub struct Compare {
    pub range: KeyRange,
    /// The compared field, with the operand.
    pub target: Target,
    /// The relation that must hold between field and operand.
    pub result: CompareResult,
}

/// The field that a [`Compare`] looks at, with the operand.
#[derive(Clone, Debug)]
pub enum Target {
    Version(i64),
    Create(i64),
    Mod(i64),
    /// A compare of the value never holds for an absent key.
    Value(Bytes),
    Lease(i64),
}

/// The relation between field and operand that a [`Compare`] asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CompareResult {
    Equal,
    Greater,
    Less,
    NotEqual,
    /// A relation that this version does not know. Always holds, as in etcd.
    Unknown,
}

/// The result of a transaction.
#[derive(Clone, Debug, Default)]
pub struct TxnResult {
    /// Whether the compares held, so that `success` was run.
    pub succeeded: bool,
    /// One result for each operation that was run.
    pub results: Vec<OpResult>,
    /// The store's revision after the transaction.
    pub revision: i64,
}

/// The result of one [`Op`].
#[derive(Clone, Debug)]
pub enum OpResult {
    Range(RangeResult),
    Put(PutResult),
    Delete(DeleteResult),
    Txn(TxnResult),
}

/// The result of a put.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PutResult {
    /// The key-value before the put.
    pub prev: Option<Kv>,
    /// The revision of the put.
    pub revision: i64,
}

/// The result of a deletion.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeleteResult {
    /// The deleted key-values, in key order.
    pub prev: Vec<Kv>,
    /// The revision of the deletion, or the store's revision if no key was deleted.
    pub revision: i64,
}

// === impl Txn ===

impl Txn {
    /// Whether the transaction only reads, at every depth, so that a read lock is enough.
    pub fn is_read_only(&self) -> bool {
        self.ops().all(|op| match op {
            Op::Range(_) => true,
            Op::Txn(nested) => nested.is_read_only(),
            Op::Put(_) | Op::Delete(_) => false,
        })
    }

    /// Whether every operation is a range. Only such a transaction does not go through etcd's log: for etcd, a nested
    /// transaction is a write, whatever it does (etcd: server/etcdserver/txn/txn.go, IsTxnReadonly).
    pub fn has_only_ranges(&self) -> bool {
        self.ops().all(|op| matches!(op, Op::Range(_)))
    }

    /// The oldest revision that a range reads, at any depth; `None` if every range reads the present.
    pub fn oldest_revision(&self) -> Option<i64> {
        let of = |op: &Op| match op {
            Op::Range(range) => (range.revision > 0).then_some(range.revision),
            Op::Txn(nested) => nested.oldest_revision(),
            Op::Put(_) | Op::Delete(_) => None,
        };
        self.ops().filter_map(of).min()
    }

    /// The operations of both branches.
    pub(super) fn ops(&self) -> impl Iterator<Item = &Op> {
        self.success.iter().chain(&self.failure)
    }
}

impl From<Vec<Op>> for Txn {
    fn from(success: Vec<Op>) -> Self {
        Self {
            success,
            ..Self::default()
        }
    }
}
