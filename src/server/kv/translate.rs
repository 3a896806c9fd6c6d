//! Single KV requests and answers, between protobuf and the store's types.

use crate::mvcc::{KeyRange, Put, RangeOptions, RangeResult, RevisionBounds, SortOrder, SortTarget};
use crate::pb::etcdserverpb as pb;
use crate::server::status;
use tonic::Status;

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
