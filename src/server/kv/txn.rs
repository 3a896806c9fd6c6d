//! Transactions: etcd's checks of their fields, their operations for admission, and the translation between protobuf
//! and the store's types.

use super::translate::{check_put, range_options, to_put, to_range_response};
use crate::mvcc::{Compare, CompareResult, DeleteResult, KeyRange, Op, OpResult, PutResult, Target, Txn, TxnResult};
use crate::pb::etcdserverpb as pb;
use crate::server::admission::{Operation, PrevKv};
use crate::server::status;
use bytes::Bytes;
use prost::Message;
use std::collections::HashSet;
use tonic::Status;

type Ops = Vec<pb::RequestOp>;

/// The compares and operations on all levels of a transaction together. etcd limits each level alone, so that a request
/// of a megabyte may have hundreds of thousands.
const OPS_MAX: usize = 10_000;

/// The compares and operations on all levels.
pub(super) fn count_ops(request: &pb::TxnRequest) -> usize {
    use pb::request_op::Request as R;
    let ops = request.success.iter().chain(&request.failure);
    let of = |op: &pb::RequestOp| match &op.request {
        Some(R::RequestTxn(nested)) => 1 + count_ops(nested),
        _ => 1,
    };
    request.compare.len() + ops.map(of).sum::<usize>()
}

/// etcd's checks before a transaction runs: sizes, fields, and keys changed twice.
pub(super) fn check_txn(request: &pb::TxnRequest, budget: usize) -> Result<(), Status> {
    if count_ops(request) > OPS_MAX {
        return Err(status::too_many_ops());
    }
    check_fields(request, budget)?;
    check_intervals(&request.success)?;
    check_intervals(&request.failure)?;
    Ok(())
}

fn check_fields(request: &pb::TxnRequest, budget: usize) -> Result<(), Status> {
    use pb::request_op::Request as R;
    let ops = request
        .compare
        .len()
        .max(request.success.len())
        .max(request.failure.len());
    let budget = budget.checked_sub(ops).ok_or_else(status::too_many_ops)?;
    if request.compare.iter().any(|c| c.key.is_empty()) {
        return Err(status::empty_key());
    }
    for op in request.success.iter().chain(&request.failure) {
        match &op.request {
            Some(R::RequestRange(r)) => range_options(r.clone()).map(drop)?,
            Some(R::RequestPut(p)) => check_put(p)?,
            Some(R::RequestDeleteRange(d)) if d.key.is_empty() => return Err(status::empty_key()),
            Some(R::RequestDeleteRange(_)) => {}
            Some(R::RequestTxn(t)) => check_fields(t, budget)?,
            None => return Err(status::key_not_found()),
        }
    }
    Ok(())
}

/// The transaction as admission sees it. `txn` is `request` translated.
pub(super) fn operation(request: &pb::TxnRequest, txn: &Txn) -> Operation {
    let mut prev_kvs = Vec::new();
    add_prev_kvs(request, &mut prev_kvs);
    Operation::txn(txn, prev_kvs.into_iter(), request.encoded_len())
}

/// Adds an item for each put and each deletion, in the order in which [`Operation::txn`] visits them.
fn add_prev_kvs(request: &pb::TxnRequest, prev_kvs: &mut Vec<PrevKv>) {
    use pb::request_op::Request as R;
    let ops = request.success.iter().chain(&request.failure);
    for op in ops.filter_map(|op| op.request.as_ref()) {
        match op {
            R::RequestPut(put) => prev_kvs.push(put.prev_kv.into()),
            R::RequestDeleteRange(delete) => prev_kvs.push(delete.prev_kv.into()),
            R::RequestTxn(nested) => add_prev_kvs(nested, prev_kvs),
            R::RequestRange(_) => {}
        }
    }
}

/// Deleted intervals, sorted and joined. Ends are compared as bytes, so the end `\0`, which means every key from
/// the start on, covers nothing.
#[derive(Default)]
struct Deletes(Vec<(Bytes, Bytes)>);

impl Deletes {
    fn add(&mut self, more: impl IntoIterator<Item = (Bytes, Bytes)>) {
        self.0.extend(more.into_iter().filter(|(start, end)| start < end));
        self.0.sort();
        self.0.dedup_by(|next, before| {
            let joins = next.0 <= before.1;
            if joins && next.1 > before.1 {
                before.1 = next.1.clone();
            }
            joins
        });
    }

    fn contain(&self, key: &Bytes) -> bool {
        let at = self.0.partition_point(|(start, _)| start <= key);
        at.checked_sub(1).is_some_and(|at| key < &self.0[at].1)
    }
}

/// Refuses a branch that changes a key twice. Returns the keys that the branch puts and the intervals that it deletes,
/// nested branches included.
///
/// Parity: one pass, so that a put in a nested transaction collides with deletes of an earlier sibling
/// but not of a later one (etcd: server/etcdserver/api/v3rpc/key.go, checkIntervals).
fn check_intervals(ops: &Ops) -> Result<(HashSet<Bytes>, Deletes), Status> {
    use pb::request_op::Request as R;
    let requests = || ops.iter().filter_map(|op| op.request.as_ref());
    let mut deletes = Deletes::default();
    deletes.add(requests().filter_map(|r| match r {
        R::RequestDeleteRange(d) if d.range_end.is_empty() => Some((d.key.clone(), [&d.key[..], &[0]].concat().into())),
        R::RequestDeleteRange(d) => Some((d.key.clone(), d.range_end.clone())),
        _ => None,
    }));
    let mut puts = HashSet::new();
    for request in requests() {
        let R::RequestTxn(nested) = request else { continue };
        let (then_puts, then_deletes) = check_intervals(&nested.success)?;
        let (else_puts, else_deletes) = check_intervals(&nested.failure)?;
        for key in &then_puts {
            if deletes.contain(key) || !puts.insert(key.clone()) {
                return Err(status::duplicate_key());
            }
        }
        for key in else_puts {
            // The two branches exclude each other, so both may put the same key.
            let twice = puts.contains(&key) && !then_puts.contains(&key);
            if deletes.contain(&key) || twice {
                return Err(status::duplicate_key());
            }
            puts.insert(key);
        }
        deletes.add(then_deletes.0);
        deletes.add(else_deletes.0);
    }
    for request in requests() {
        let R::RequestPut(put) = request else { continue };
        if deletes.contain(&put.key) || !puts.insert(put.key.clone()) {
            return Err(status::duplicate_key());
        }
    }
    Ok((puts, deletes))
}

pub(super) fn to_txn(request: pb::TxnRequest) -> Txn {
    Txn {
        compares: request.compare.into_iter().map(to_compare).collect(),
        success: request.success.into_iter().filter_map(to_op).collect(),
        failure: request.failure.into_iter().filter_map(to_op).collect(),
    }
}

fn to_op(op: pb::RequestOp) -> Option<Op> {
    use pb::request_op::Request as R;
    Some(match op.request? {
        // `check_fields` has checked the request.
        R::RequestRange(r) => Op::Range(range_options(r).ok()?),
        R::RequestPut(p) => Op::Put(to_put(p)),
        R::RequestDeleteRange(d) => Op::Delete(KeyRange::new(d.key, d.range_end)),
        R::RequestTxn(t) => Op::Txn(to_txn(t)),
    })
}

fn to_compare(compare: pb::Compare) -> Compare {
    use pb::compare::{CompareResult as R, CompareTarget as T, TargetUnion as U};
    let target = T::try_from(compare.target).unwrap_or(T::Version);
    // A target without its operand compares with zero, as in etcd.
    let number = match &compare.target_union {
        Some(U::Version(n) | U::CreateRevision(n) | U::ModRevision(n) | U::Lease(n)) => *n,
        Some(U::Value(_)) | None => 0,
    };
    Compare {
        range: KeyRange::new(compare.key, compare.range_end),
        target: match target {
            T::Version => Target::Version(number),
            T::Create => Target::Create(number),
            T::Mod => Target::Mod(number),
            T::Lease => Target::Lease(number),
            T::Value => Target::Value(match compare.target_union {
                Some(U::Value(value)) => value,
                _ => Bytes::new(),
            }),
        },
        result: match R::try_from(compare.result) {
            Ok(R::Equal) => CompareResult::Equal,
            Ok(R::Greater) => CompareResult::Greater,
            Ok(R::Less) => CompareResult::Less,
            Ok(R::NotEqual) => CompareResult::NotEqual,
            Err(_) => CompareResult::Unknown,
        },
    }
}

/// The answer without its header. Nested answers carry the revision alone, and nested transactions an empty
/// header.
pub(super) fn txn_response(request: &pb::TxnRequest, result: TxnResult) -> pb::TxnResponse {
    use pb::request_op::Request as Q;
    use pb::response_op::Response as R;
    let ops = if result.succeeded {
        &request.success
    } else {
        &request.failure
    };
    let header = |revision| {
        Some(pb::ResponseHeader {
            revision,
            ..Default::default()
        })
    };
    let responses = ops.iter().zip(result.results).map(|(op, result)| {
        let response = match (&op.request, result) {
            (_, OpResult::Range(result)) => R::ResponseRange(pb::RangeResponse {
                header: header(result.revision),
                ..to_range_response(result)
            }),
            (Some(Q::RequestPut(put)), OpResult::Put(PutResult { prev, revision })) => {
                R::ResponsePut(pb::PutResponse {
                    header: header(revision),
                    prev_kv: prev.filter(|_| put.prev_kv).map(Into::into),
                })
            }
            (Some(Q::RequestDeleteRange(delete)), OpResult::Delete(DeleteResult { prev, revision })) => {
                R::ResponseDeleteRange(pb::DeleteRangeResponse {
                    header: header(revision),
                    deleted: prev.len() as i64,
                    prev_kvs: if delete.prev_kv {
                        prev.into_iter().map(Into::into).collect()
                    } else {
                        vec![]
                    },
                })
            }
            (Some(Q::RequestTxn(nested)), OpResult::Txn(result)) => R::ResponseTxn(pb::TxnResponse {
                header: Some(pb::ResponseHeader::default()),
                ..txn_response(nested, result)
            }),
            _ => unreachable!("an operation's result is of its kind"),
        };
        pb::ResponseOp {
            response: Some(response),
        }
    });
    pb::TxnResponse {
        header: None,
        succeeded: result.succeeded,
        responses: responses.collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pb::request_op::Request as R;

    fn op(request: R) -> pb::RequestOp {
        pb::RequestOp { request: Some(request) }
    }

    fn put(key: &'static str) -> pb::RequestOp {
        op(R::RequestPut(pb::PutRequest {
            key: key.into(),
            ..Default::default()
        }))
    }

    fn delete(key: &'static str, end: &'static str) -> pb::RequestOp {
        op(R::RequestDeleteRange(pb::DeleteRangeRequest {
            key: key.into(),
            range_end: end.into(),
            ..Default::default()
        }))
    }

    fn nested(success: Ops, failure: Ops) -> pb::RequestOp {
        op(R::RequestTxn(pb::TxnRequest {
            success,
            failure,
            ..Default::default()
        }))
    }

    fn check(success: Ops) -> Result<(), String> {
        let request = pb::TxnRequest {
            success,
            ..Default::default()
        };
        check_txn(&request, 128).map_err(|s| s.message().trim_start_matches("etcdserver: ").to_owned())
    }

    #[test]
    fn a_transaction_may_not_change_a_key_twice() {
        let duplicate = || Err("duplicate key given in txn request".to_owned());
        assert_eq!(check(vec![put("a"), put("a")]), duplicate());
        assert_eq!(check(vec![put("a"), delete("a", "")]), duplicate());
        assert_eq!(check(vec![delete("a", "z"), put("b")]), duplicate());
        assert_eq!(check(vec![put("a"), nested(vec![put("a")], vec![])]), duplicate());
        assert_eq!(
            check(vec![nested(vec![delete("a", "c")], vec![]), put("b")]),
            duplicate()
        );
        assert_eq!(check(vec![delete("a", "c"), delete("b", "d")]), Ok(()));
        assert_eq!(check(vec![nested(vec![put("a")], vec![put("a")])]), Ok(()));
        // etcd's two quirks: the end `\0` overlaps nothing, and deletes of later siblings are not compared.
        assert_eq!(check(vec![put("b"), delete("a", "\0")]), Ok(()));
        assert_eq!(
            check(vec![
                nested(vec![put("b")], vec![]),
                nested(vec![delete("a", "c")], vec![])
            ]),
            Ok(())
        );
        assert_eq!(
            check(vec![
                nested(vec![delete("a", "c")], vec![]),
                nested(vec![put("b")], vec![])
            ]),
            duplicate()
        );
    }

    #[test]
    fn a_transaction_with_too_many_or_empty_operations_is_refused() {
        let many = || Err("too many operations in txn request".to_owned());
        let reads = |n| (0..n).map(|i| put(["a", "b"][i % 2])).collect::<Vec<_>>();
        assert_eq!(check(reads(129)), many());
        let deep = |n| {
            (0..n)
                .map(|_| nested(vec![delete("a", "")], vec![]))
                .collect::<Vec<_>>()
        };
        assert_eq!(check(deep(128)), many());
        assert_eq!(check(deep(127)), Ok(()));
        assert_eq!(
            check(vec![pb::RequestOp { request: None }]),
            Err("key not found".to_owned())
        );
        assert_eq!(check(vec![put("")]), Err("key is not provided".to_owned()));
    }
}
