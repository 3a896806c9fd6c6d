//! The KV service.

mod translate;
mod txn;

use super::admission::{Call, Caller, Operation, PrevKv};
use super::commit::Cause;
use super::compaction::Haste;
use super::fresh::Freshness;
use super::lists::List;
use super::metrics::ReadOnlyTxn;
use super::own_body::OwnBody;
use super::refusals::Budget;
use super::traced::{Traced, written_key};
use super::turns::{self, Done};
use super::{Core, status};
use crate::mvcc::{
    DeleteResult, KeyRange, Put, PutResult, RangeOptions, RangeResult, SortOrder, SortTarget, Txn, TxnResult,
};
use crate::pb::etcdserverpb as pb;
use bytes::Bytes;
use prost::Message;
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use tokio_stream::Stream;
use tonic::{Request, Response, Status};
use translate::{check_put, range_options, to_put, to_range_response};
use txn::{check_txn, count_ops, to_txn, txn_response};

/// Keys in the first chunk of a range stream.
const FIRST_CHUNK: i64 = 10;
/// Bytes of key-values that a later chunk should have.
const CHUNK_BYTES: usize = 256 << 10;

/// Serves `etcdserverpb.KV`.
pub(super) struct KvService(pub(super) Arc<Core>);

#[tonic::async_trait]
impl pb::kv_server::Kv for KvService {
    async fn range(&self, request: Request<pb::RangeRequest>) -> Result<Response<pb::RangeResponse>, Status> {
        let caller = Caller::of(&request);
        let freshness = Freshness::of_range(request.get_ref());
        let options = range_options(request.into_inner())?;
        let operation = Operation::read(Call::Range, options.range.clone());
        // As in etcd, before the permission, which then is that of the same moment.
        self.0.fresh(freshness).await?;
        self.0.admit(&caller, &operation).await?;
        let keys = self.0.store.work_of_range(&options);
        if !turns::is_short(keys) {
            // On the heap, so that the usual call, which needs no turn, has a small future.
            return Box::pin(self.range_in_turn(&caller, operation, keys, options)).await;
        }
        let result = self
            .0
            .commit(self.0.store.range(&options), |_| Cause::Published)
            .await?;
        match result.bytes() {
            bytes if turns::is_long_answer(bytes) => {
                Box::pin(self.answer_range(&caller, Done::default(), result)).await
            }
            _ => Ok(Response::new(self.range_response(result))),
        }
    }

    type RangeStreamStream = Pin<Box<dyn Stream<Item = Result<pb::RangeStreamResponse, Status>> + Send>>;

    async fn range_stream(
        &self,
        request: Request<pb::RangeRequest>,
    ) -> Result<Response<Self::RangeStreamStream>, Status> {
        let caller = Caller::of(&request);
        let freshness = Freshness::of_range(request.get_ref());
        let options = range_options(request.into_inner())?;
        // etcd accepts a target without an order, and then loses keys between chunks that it sorts one by one.
        if options.target != SortTarget::Key || options.order == SortOrder::Descend {
            return Err(Status::unimplemented("RangeStream does not support custom sort orders"));
        }
        if options.has_revision_bounds() {
            return Err(Status::unimplemented("RangeStream does not support revision filters"));
        }
        let operation = Operation::read(Call::Range, options.range.clone());
        self.0.fresh(freshness).await?;
        self.0.admit(&caller, &operation).await?;
        Ok(Response::new(Box::pin(self.chunks(&caller, options))))
    }

    async fn put(&self, request: Request<pb::PutRequest>) -> Result<Response<pb::PutResponse>, Status> {
        let caller = Caller::of(&request);
        let (put, prev_kv, operation) = checked_put(request.into_inner())?;
        self.0.admit(&caller, &operation).await?;
        let traced = Traced::begin("Put", &caller, || Some(put.key.clone()));
        let outcome = traced.run(&self.0, |put: &PutResult| put.revision, || self.0.store.put(put));
        let outcome = self.0.commit(outcome, |put| Cause::Revision(put.revision)).await;
        let PutResult { prev, revision } = outcome?;
        traced.tell(&self.0, revision);
        Ok(Response::new(pb::PutResponse {
            header: Some(self.0.header(revision)),
            prev_kv: prev.filter(|_| prev_kv == PrevKv::Returned).map(Into::into),
        }))
    }

    async fn delete_range(
        &self,
        request: Request<pb::DeleteRangeRequest>,
    ) -> Result<Response<pb::DeleteRangeResponse>, Status> {
        let caller = Caller::of(&request);
        let (range, prev_kv, operation) = checked_delete(request.into_inner())?;
        self.0.admit(&caller, &operation).await?;
        let keys = self.0.store.work_of_range(&RangeOptions::new(range.clone()));
        let traced = Traced::begin("DeleteRange", &caller, || Some(Bytes::copy_from_slice(range.start())));
        let delete = move |core: &Core, _: &mut dyn FnMut() -> bool| {
            let done = traced.run(
                core,
                |d: &DeleteResult| d.revision,
                || Ok::<_, Infallible>(core.store.delete(&range)),
            );
            let Ok(deleted) = done;
            (deleted, traced)
        };
        let done = self.0.take_admitted_turn(&caller, operation, keys, delete).await?;
        let ((deleted, traced), done) = done.take();
        let outcome = self
            .0
            .commit(Ok::<_, Status>(deleted), |deleted| Cause::Revision(deleted.revision))
            .await;
        let DeleteResult { prev, revision } = outcome?;
        traced.tell(&self.0, revision);
        let (count, prev) = match prev_kv {
            PrevKv::Returned => (prev.len(), prev),
            PrevKv::NotReturned => (prev.len(), vec![]),
        };
        let bytes = prev.iter().map(|kv| kv.as_bytes().len()).sum();
        let message = pb::DeleteRangeResponse {
            header: Some(self.0.header(revision)),
            deleted: count as i64,
            prev_kvs: prev.into_iter().map(Into::into).collect(),
        };
        self.0.answer(caller.peer(), done, bytes, message).await
    }

    async fn txn(&self, request: Request<pb::TxnRequest>) -> Result<Response<pb::TxnResponse>, Status> {
        let caller = Caller::of(&request);
        let request = request.into_inner();
        // A request of many tiny operations is work before it is a transaction.
        let turn = self.0.turn(caller.peer(), count_ops(&request)).await?;
        check_txn(&request, self.0.config.max_txn_ops)?;
        let txn = to_txn(request.clone());
        let operation = txn::operation(&request, &txn);
        if txn.is_read_only() {
            self.0.fresh(Freshness::of_txn(&request)).await?;
        }
        self.0.admit(&caller, &operation).await?;
        let keys = self.check_work(&caller, &txn)?;
        let read_only = txn.is_read_only();
        drop(turn);
        let traced = Traced::begin("Txn", &caller, || written_key(&request).filter(|_| !read_only));
        let run = move |core: &Core, go_on: &mut dyn FnMut() -> bool| {
            let outcome = traced.run(
                core,
                |txn: &TxnResult| txn.revision,
                || core.store.txn_while(&txn, go_on),
            );
            (outcome, traced)
        };
        let done = self.0.take_admitted_turn(&caller, operation, keys, run).await?;
        let ((outcome, traced), done) = done.take();
        let result = self
            .0
            .commit(outcome, |result| Cause::Revision(result.revision))
            .await?;
        traced.tell(&self.0, result.revision);
        let header = Some(self.0.header(result.revision));
        let message = pb::TxnResponse {
            header,
            ..txn_response(&request, result)
        };
        let bytes = message.encoded_len();
        let mut response = self.0.answer(caller.peer(), done, bytes, message).await?;
        if read_only {
            response.extensions_mut().insert(ReadOnlyTxn);
        }
        Ok(response)
    }

    async fn compact(
        &self,
        request: Request<pb::CompactionRequest>,
    ) -> Result<Response<pb::CompactionResponse>, Status> {
        let caller = Caller::of(&request);
        self.0.admit(&caller, &Operation::new(Call::Compact)).await?;
        let request = request.into_inner();
        let compacted = self.0.store.compact(request.revision);
        if compacted.is_ok() {
            // Also if the client goes away before the end.
            self.0.compacted.notify_one();
            if request.physical {
                self.0.purge(request.revision, Haste::None).await;
            }
        }
        self.0.commit(compacted, |()| Cause::EveryChange).await?;
        let header = Some(self.0.header(self.0.store.revision()));
        Ok(Response::new(pb::CompactionResponse { header }))
    }
}

/// A put whose fields are right, and the put as admission sees it.
pub(super) fn checked_put(request: pb::PutRequest) -> Result<(Put, PrevKv, Operation), Status> {
    check_put(&request)?;
    let (bytes, prev_kv) = (request.encoded_len(), PrevKv::from(request.prev_kv));
    let put = to_put(request);
    let operation = Operation::put(&put, prev_kv, bytes);
    Ok((put, prev_kv, operation))
}

/// A deletion whose fields are right, and the deletion as admission sees it.
pub(super) fn checked_delete(request: pb::DeleteRangeRequest) -> Result<(KeyRange, PrevKv, Operation), Status> {
    if request.key.is_empty() {
        return Err(status::empty_key());
    }
    let (bytes, prev_kv) = (request.encoded_len(), PrevKv::from(request.prev_kv));
    let range = KeyRange::new(request.key, request.range_end);
    let operation = Operation::delete(range.clone(), prev_kv, bytes);
    Ok((range, prev_kv, operation))
}

/// A transaction whose fields are right, and the transaction as admission sees it.
pub(super) struct CheckedTxn {
    pub(super) operation: Operation,
    pub(super) read_only: bool,
    /// The oldest revision that a range reads; `None` if all of them read the present.
    pub(super) oldest: Option<i64>,
}

/// Shortens a chunk whose key-values turned out to be larger than those of the chunks before.
fn cut(chunk: &mut RangeResult) {
    let mut bytes = 0;
    let fits = chunk.kvs.iter().take_while(|kv| {
        bytes += kv.as_bytes().len();
        bytes <= 2 * CHUNK_BYTES
    });
    let fits = fits.count().max(1);
    if fits < chunk.kvs.len() {
        chunk.kvs.truncate(fits);
        chunk.more = true;
    }
}

impl KvService {
    /// Checks the fields of a transaction, in the turn of its connection if there are many.
    pub(super) async fn check(&self, caller: &Caller, request: &pb::TxnRequest) -> Result<CheckedTxn, Status> {
        let _turn = self.0.turn(caller.peer(), count_ops(request)).await?;
        check_txn(request, self.0.config.max_txn_ops)?;
        let txn = to_txn(request.clone());
        Ok(CheckedTxn {
            operation: txn::operation(request, &txn),
            read_only: txn.is_read_only(),
            oldest: txn.oldest_revision(),
        })
    }

    /// The keys that a transaction visits. A transaction that writes runs under one lock, so these have a limit.
    fn check_work(&self, caller: &Caller, txn: &Txn) -> Result<usize, Status> {
        let (keys, most) = (self.0.store.work_of_txn(txn).keys, self.0.config.budgets.txn_keys);
        if txn.is_read_only() || keys <= most {
            return Ok(keys);
        }
        self.0.refusals.note(Budget::Transaction, caller.peer());
        Err(status::too_much_work(keys, most))
    }

    /// A range read that takes a turn.
    async fn range_in_turn(
        &self,
        caller: &Caller,
        operation: Operation,
        keys: usize,
        options: RangeOptions,
    ) -> Result<Response<pb::RangeResponse>, Status> {
        let read = move |core: &Core, go_on: &mut dyn FnMut() -> bool| core.store.range_while(&options, go_on);
        let done = self.0.take_admitted_turn(caller, operation, keys, read).await?;
        let (result, done) = done.take();
        let result = self.0.commit(result, |_| Cause::Published).await?;
        self.answer_range(caller, done, result).await
    }

    async fn answer_range(
        &self,
        caller: &Caller,
        done: Done<()>,
        result: RangeResult,
    ) -> Result<Response<pb::RangeResponse>, Status> {
        let bytes = result.bytes();
        if !turns::is_long_answer(bytes) {
            let message = self.range_response(result);
            return self.0.answer(caller.peer(), done, bytes, message).await;
        }
        let list = List::new(self.0.header(result.revision), result);
        let empty = pb::RangeResponse::default();
        let mut response = self.0.answer(caller.peer(), done, bytes, empty).await?;
        response.extensions_mut().insert(OwnBody::new(list));
        Ok(response)
    }

    fn range_response(&self, result: RangeResult) -> pb::RangeResponse {
        let header = Some(self.0.header(result.revision));
        pb::RangeResponse {
            header,
            ..to_range_response(result)
        }
    }

    /// The answer in chunks, all read at the revision of the first chunk. The last chunk carries the header and
    /// the counts.
    fn chunks(
        &self,
        caller: &Caller,
        options: RangeOptions,
    ) -> impl Stream<Item = Result<pb::RangeStreamResponse, Status>> + Send + use<> {
        let core = Arc::clone(&self.0);
        let peer = caller.peer().clone();
        let documents = Arc::clone(&peer.connection.documents);
        async_stream::try_stream! {
            let _document = documents.acquire_owned().await.map_err(|_| status::stopped())?;
            let mut rest = options.clone();
            let (mut first, mut sent, mut chunk) = (None, 0, FIRST_CHUNK);
            loop {
                rest.limit = if options.limit > 0 { chunk.min(options.limit - sent) } else { chunk };
                let (keys, next) = (core.store.work_of_range(&rest), rest.clone());
                let read = move |core: &Core, go_on: &mut dyn FnMut() -> bool| core.store.range_while(&next, go_on);
                // The client's pace bounds the chunks in memory, so that a chunk is held by nothing.
                let (result, _) = core.take_turn(&peer, keys, read).await?.take();
                let mut result = core.commit(result, |_| Cause::Published).await?;
                cut(&mut result);
                let (revision, count) = *first.get_or_insert((result.revision, result.count));
                if rest.revision <= 0 {
                    rest.revision = revision;
                }
                sent += result.kvs.len() as i64;
                let cut = options.limit > 0 && sent >= options.limit;
                let last = !result.more || cut || options.count_only;
                let bytes = result.bytes();
                if let Some(kv) = result.kvs.last() {
                    rest.range = KeyRange::new([kv.key(), &[0]].concat(), match options.range.end() {
                        None => Bytes::from_static(&[0]),
                        Some(end) => Bytes::copy_from_slice(end),
                    });
                }
                (result.count, result.revision) = (count, revision);
                let response = if last {
                    pb::RangeResponse { header: Some(core.header(revision)), ..to_range_response(result) }
                } else {
                    pb::RangeResponse { count: 0, more: false, ..to_range_response(result) }
                };
                yield pb::RangeStreamResponse { range_response: Some(response) };
                if last {
                    break;
                }
                chunk = if bytes < CHUNK_BYTES { chunk * 2 } else { (chunk / 2).max(1) };
            }
        }
    }
}
