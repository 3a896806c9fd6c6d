//! The KV service: validate, ask the guard, call the store, answer.

use super::alarm::put_cost;
use super::txn::{check_txn, cost, prev_kvs, to_txn, txn_response};
use super::{Core, status};
use crate::mvcc::{
    DeleteResult, KeyRange, Put, PutResult, RangeOptions, RangeResult, RevisionBounds, SortOrder, SortTarget,
};
use crate::pb::etcdserverpb as pb;
use bytes::Bytes;
use prost::Message;
use std::pin::Pin;
use std::sync::Arc;
use tokio_stream::Stream;
use tonic::{Request, Response, Status};

/// Keys in the first chunk of a range stream.
const FIRST_CHUNK: i64 = 10;
/// Bytes of key-values a later chunk should have.
const CHUNK_BYTES: usize = 512 << 10;

/// Serves `etcdserverpb.KV`.
pub(super) struct KvService(pub(super) Arc<Core>);

#[tonic::async_trait]
impl pb::kv_server::Kv for KvService {
    async fn range(&self, request: Request<pb::RangeRequest>) -> Result<Response<pb::RangeResponse>, Status> {
        let options = range_options(request.get_ref().clone())?;
        self.0.guard(&request)?.read(&options.range)?;
        let result = self.0.store.range(&options)?;
        Ok(Response::new(self.range_response(result)))
    }

    type RangeStreamStream = Pin<Box<dyn Stream<Item = Result<pb::RangeStreamResponse, Status>> + Send>>;

    async fn range_stream(
        &self,
        request: Request<pb::RangeRequest>,
    ) -> Result<Response<Self::RangeStreamStream>, Status> {
        let options = range_options(request.get_ref().clone())?;
        self.0.guard(&request)?.read(&options.range)?;
        let ordered = request.get_ref().sort_order != 0 || request.get_ref().sort_target != 0;
        if ordered && !(options.order == SortOrder::Ascend && options.target == SortTarget::Key) {
            return Err(Status::unimplemented("RangeStream does not support custom sort orders"));
        }
        if options.has_revision_bounds() {
            return Err(Status::unimplemented("RangeStream does not support revision filters"));
        }
        Ok(Response::new(Box::pin(self.chunks(options))))
    }

    async fn put(&self, request: Request<pb::PutRequest>) -> Result<Response<pb::PutResponse>, Status> {
        self.check_size(request.get_ref())?;
        check_put(request.get_ref())?;
        self.0.check_alarms(&request, true)?;
        let guard = self.0.guard(&request)?;
        let request = request.into_inner();
        let prev_kv = request.prev_kv;
        let put = to_put(request);
        guard.put(&self.0, &put, prev_kv)?;
        self.0.check_space(put_cost(&put.key, &put.value))?;
        self.0.check_disk()?;
        let PutResult { prev, revision } = self.0.settled(self.0.store.put(put)).await?;
        self.0.committed(revision).await?;
        Ok(Response::new(pb::PutResponse {
            header: Some(self.0.header(revision)),
            prev_kv: prev.filter(|_| prev_kv).map(Into::into),
        }))
    }

    async fn delete_range(
        &self,
        request: Request<pb::DeleteRangeRequest>,
    ) -> Result<Response<pb::DeleteRangeResponse>, Status> {
        self.check_size(request.get_ref())?;
        if request.get_ref().key.is_empty() {
            return Err(status::empty_key());
        }
        self.0.check_alarms(&request, false)?;
        let guard = self.0.guard(&request)?;
        let request = request.into_inner();
        let range = KeyRange::new(request.key, request.range_end);
        guard.write(&range)?;
        if request.prev_kv {
            guard.read(&range)?;
        }
        self.0.check_disk()?;
        let DeleteResult { prev, revision } = self.0.store.delete(&range);
        self.0.committed(revision).await?;
        Ok(Response::new(pb::DeleteRangeResponse {
            header: Some(self.0.header(revision)),
            deleted: prev.len() as i64,
            prev_kvs: if request.prev_kv {
                prev.into_iter().map(Into::into).collect()
            } else {
                vec![]
            },
        }))
    }

    async fn txn(&self, request: Request<pb::TxnRequest>) -> Result<Response<pb::TxnResponse>, Status> {
        self.check_size(request.get_ref())?;
        check_txn(request.get_ref(), self.0.config.max_txn_ops)?;
        let cost = cost(request.get_ref());
        self.0.check_alarms(&request, cost.is_some())?;
        let guard = self.0.guard(&request)?;
        let request = request.into_inner();
        let prev_kv = prev_kvs(&request);
        let txn = to_txn(request.clone());
        guard.txn(&self.0, &txn, &mut prev_kv.into_iter())?;
        if let Some(cost) = cost {
            self.0.check_space(cost)?;
        }
        if !txn.is_read_only() {
            self.0.check_disk()?;
        }
        let result = self.0.settled(self.0.store.txn(&txn)).await?;
        self.0.committed(result.revision).await?;
        let header = Some(self.0.header(result.revision));
        Ok(Response::new(pb::TxnResponse {
            header,
            ..txn_response(&request, result)
        }))
    }

    async fn compact(
        &self,
        request: Request<pb::CompactionRequest>,
    ) -> Result<Response<pb::CompactionResponse>, Status> {
        self.0.check_alarms(&request, false)?;
        self.0.check_root(&request)?;
        let request = request.into_inner();
        self.0.check_disk()?;
        self.0.store.compact(request.revision)?;
        if request.physical {
            self.0.purge().await;
        } else {
            self.0.compacted.notify_one();
        }
        self.0.flushed().await?;
        let header = Some(self.0.header(self.0.store.revision()));
        Ok(Response::new(pb::CompactionResponse { header }))
    }
}

impl KvService {
    fn check_size(&self, request: &impl Message) -> Result<(), Status> {
        let fits = request.encoded_len() <= self.0.config.max_request_bytes;
        fits.then_some(()).ok_or_else(status::request_too_large)
    }

    fn range_response(&self, result: RangeResult) -> pb::RangeResponse {
        let header = Some(self.0.header(result.revision));
        pb::RangeResponse {
            header,
            ..to_range_response(result)
        }
    }

    /// The answer in chunks, all read at the revision of the first; the last one carries header and
    /// counts.
    fn chunks(
        &self,
        options: RangeOptions,
    ) -> impl Stream<Item = Result<pb::RangeStreamResponse, Status>> + Send + use<> {
        let core = Arc::clone(&self.0);
        async_stream::try_stream! {
            let mut rest = options.clone();
            let (mut first, mut sent, mut chunk) = (None, 0, FIRST_CHUNK);
            loop {
                rest.limit = if options.limit > 0 { chunk.min(options.limit - sent) } else { chunk };
                let mut result = core.store.range(&rest)?;
                let (revision, count) = *first.get_or_insert((result.revision, result.count));
                if rest.revision <= 0 {
                    rest.revision = revision;
                }
                sent += result.kvs.len() as i64;
                let cut = options.limit > 0 && sent >= options.limit;
                let last = !result.more || cut || options.count_only;
                let bytes: usize = result.kvs.iter().map(|kv| kv.as_bytes().len()).sum();
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

pub(super) fn to_range_response(result: RangeResult) -> pb::RangeResponse {
    pb::RangeResponse {
        header: None,
        kvs: result.kvs.into_iter().map(Into::into).collect(),
        more: result.more,
        count: result.count as i64,
    }
}

pub(super) fn range_options(request: pb::RangeRequest) -> Result<RangeOptions, Status> {
    if request.key.is_empty() {
        return Err(status::empty_key());
    }
    use pb::range_request::{SortOrder as O, SortTarget as T};
    let order = match O::try_from(request.sort_order).map_err(|_| status::invalid_sort_option())? {
        O::None => SortOrder::None,
        O::Ascend => SortOrder::Ascend,
        O::Descend => SortOrder::Descend,
    };
    let target = match T::try_from(request.sort_target).map_err(|_| status::invalid_sort_option())? {
        T::Key => SortTarget::Key,
        T::Version => SortTarget::Version,
        T::Create => SortTarget::Create,
        T::Mod => SortTarget::Mod,
        T::Value => SortTarget::Value,
    };
    Ok(RangeOptions {
        range: KeyRange::new(request.key, request.range_end),
        limit: request.limit,
        revision: request.revision,
        order,
        target,
        keys_only: request.keys_only,
        count_only: request.count_only,
        mod_revision: RevisionBounds {
            min: request.min_mod_revision,
            max: request.max_mod_revision,
        },
        create_revision: RevisionBounds {
            min: request.min_create_revision,
            max: request.max_create_revision,
        },
    })
}

pub(super) fn check_put(request: &pb::PutRequest) -> Result<(), Status> {
    if request.key.is_empty() {
        return Err(status::empty_key());
    }
    if request.ignore_value && !request.value.is_empty() {
        return Err(status::value_provided());
    }
    if request.ignore_lease && request.lease != 0 {
        return Err(status::lease_provided());
    }
    Ok(())
}

pub(super) fn to_put(request: pb::PutRequest) -> Put {
    Put {
        key: request.key,
        value: request.value,
        lease: request.lease,
        ignore_value: request.ignore_value,
        ignore_lease: request.ignore_lease,
    }
}
