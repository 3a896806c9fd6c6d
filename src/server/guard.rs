//! From a request to the questions that authentication must answer.

use super::Core;
use crate::auth::{Error, Identity, Ranges};
use crate::mvcc::{KeyRange, Op, Put, Txn};
use crate::server::peer::Peer;
use std::sync::Arc;
use tonic::metadata::MetadataMap;
use tonic::{Request, Status};

/// What one caller may do, looked up once for each request.
pub(super) struct Guard(Option<Arc<Ranges>>);

impl Core {
    /// Who calls: the token's user, else the certificate's.
    pub(super) fn identity(&self, metadata: &MetadataMap, peer: &Peer) -> Result<Option<Identity>, Error> {
        if !self.auth.state().enabled {
            return Ok(None);
        }
        let token = metadata.get("token").or_else(|| metadata.get("authorization"));
        if let Some(token) = token {
            let token = token.to_str().map_err(|_| Error::InvalidAuthToken)?;
            return self
                .auth
                .token_identity(token.strip_prefix("Bearer ").unwrap_or(token))
                .map(Some);
        }
        let revision = self.auth.state().revision;
        Ok(peer.common_name.clone().map(|user| Identity { user, revision }))
    }

    /// Who calls, if a certificate says so and is asked.
    pub(super) fn certificate_user(&self, metadata: &MetadataMap, peer: &Peer) -> Option<Arc<str>> {
        let by_token = metadata.contains_key("token") || metadata.contains_key("authorization");
        let asked = self.auth.state().enabled && !by_token;
        peer.common_name.clone().filter(|_| asked)
    }

    /// Whether a user who could read `range` still can.
    pub(super) fn may_still_read(&self, user: &str, range: &KeyRange) -> bool {
        self.auth.may_read(user, span(range))
    }

    pub(super) fn identity_of<T>(&self, request: &Request<T>) -> Result<Option<Identity>, Error> {
        self.identity(request.metadata(), &Peer::of(request))
    }

    /// The permissions of `request`'s caller.
    pub(super) fn guard<T>(&self, request: &Request<T>) -> Result<Guard, Status> {
        self.guard_for(request.metadata(), &Peer::of(request))
    }

    pub(super) fn guard_for(&self, metadata: &MetadataMap, peer: &Peer) -> Result<Guard, Status> {
        let identity = self.identity(metadata, peer)?;
        Ok(Guard(self.auth.ranges(identity.as_ref())?))
    }

    /// Fails unless the caller has the role `root`.
    pub(super) fn check_root<T>(&self, request: &Request<T>) -> Result<(), Status> {
        let identity = self.identity_of(request)?;
        Ok(self.auth.check_root(identity.as_ref())?)
    }

    /// Fails unless the caller is somebody.
    pub(super) fn check_authenticated<T>(&self, request: &Request<T>) -> Result<(), Status> {
        if self.auth.state().enabled && self.identity_of(request)?.is_none() {
            return Err(Error::UserEmpty.into());
        }
        Ok(())
    }
}

fn span(range: &KeyRange) -> crate::auth::Span<'_> {
    (range.start(), range.end())
}

fn allow(allowed: bool) -> Result<(), Status> {
    allowed.then_some(()).ok_or_else(|| Error::PermissionDenied.into())
}

impl Guard {
    /// May all of `range` be read?
    pub(super) fn read(&self, range: &KeyRange) -> Result<(), Status> {
        allow(self.0.as_ref().is_none_or(|r| r.may_read(span(range))))
    }

    /// May all of `range` be written?
    pub(super) fn write(&self, range: &KeyRange) -> Result<(), Status> {
        allow(self.0.as_ref().is_none_or(|r| r.may_write(span(range))))
    }

    /// May `put` be done? A lease's other keys end with it, so each of them must be writable, too.
    pub(super) fn put(&self, core: &Core, put: &Put, prev_kv: bool) -> Result<(), Status> {
        if self.0.is_none() {
            return Ok(());
        }
        let key = KeyRange::key(put.key.clone());
        self.write(&key)?;
        if prev_kv {
            self.read(&key)?;
        }
        self.lease(core, put.lease)
    }

    /// May the keys of `lease` be written?
    pub(super) fn lease(&self, core: &Core, lease: i64) -> Result<(), Status> {
        if self.0.is_none() || lease == 0 {
            return Ok(());
        }
        let keys = core.store.lease_keys(lease).unwrap_or_default();
        keys.into_iter().try_for_each(|key| self.write(&KeyRange::key(key)))
    }

    /// May every compare and every operation of both branches be done, at every depth? `prev_kv` says of
    /// the operations in order of their visit whether they return what was there.
    pub(super) fn txn(&self, core: &Core, txn: &Txn, prev_kv: &mut impl Iterator<Item = bool>) -> Result<(), Status> {
        if self.0.is_none() {
            return Ok(());
        }
        for compare in &txn.compares {
            self.read(&compare.range)?;
        }
        for op in txn.success.iter().chain(&txn.failure) {
            match op {
                Op::Range(options) => self.read(&options.range)?,
                Op::Put(put) => self.put(core, put, prev_kv.next().unwrap_or(true))?,
                Op::Delete(range) => {
                    self.write(range)?;
                    if prev_kv.next().unwrap_or(true) {
                        self.read(range)?;
                    }
                }
                Op::Txn(nested) => self.txn(core, nested, prev_kv)?,
            }
        }
        Ok(())
    }
}
