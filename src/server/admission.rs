//! Admission: decides whether a call may run.
//!
//! Every call of every service passes [`Admission::admit`] before it touches keys, leases, users, alarms or
//! members. [`Call::checks`] is the table of checks for each kind of call. A client sees the first check that
//! fails, so the order of the checks is part of etcd's API. Admission does not check single fields: as in etcd, the
//! services check them while they translate a request.
//!
//! Of gRPC, admission uses only the caller's metadata and the status codes. What a call may hold and for how long it may
//! work is decided elsewhere: see [`super::budgets`].

mod caller;
mod operation;
#[cfg(test)]
mod tests;

pub(super) use caller::Caller;
use operation::Grant;
pub(super) use operation::{Call, Operation, PrevKv, Subject};

use super::alarm::Alarms;
use super::commit::{Cause, Durability};
use super::config::Config;
use super::farewell::Farewell;
use super::refusals::{Budget, Refusals};
use super::status;
use crate::auth::{self, AuthStore, AuthVersion, Principal, Span};
use crate::durable::Refused;
use crate::mvcc::{KeyRange, Store};
use crate::pb::etcdserverpb::AlarmType;
use bytes::Bytes;
use std::ops::Bound;
use std::sync::Arc;
use tonic::Status;

/// A condition that a call has to meet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Check {
    /// The request is not longer than `--max-request-bytes`.
    Size,
    /// The token is valid, if there is one.
    Token,
    /// A valid token or a certificate names a user.
    Authenticated,
    /// The user has the role `root`.
    Root,
    /// The user has the role `root`, or the call is about the user, or about a role of the user.
    RootOrOwn,
    /// The user's roles grant what the operation needs, and the token is not older than the last change of users.
    Grants,
    /// The call is about the only member.
    Member,
    /// No CORRUPT alarm is active.
    NotCorrupt,
    /// No NOSPACE alarm is active.
    NoSpaceAlarm,
    /// The store does not outgrow `--quota-backend-bytes`. Raises the NOSPACE alarm otherwise.
    Quota,
    /// The data directory takes another change.
    Disk,
}

/// Admits calls to one store.
pub(super) struct Admission {
    pub(super) store: Arc<Store>,
    pub(super) auth: Arc<AuthStore>,
    pub(super) alarms: Arc<Alarms>,
    pub(super) durability: Durability,
    pub(super) refusals: Arc<Refusals>,
    /// Whether the store follows a cluster, which then decides by its own alarms, quota and members.
    pub(super) follows: bool,
    pub(super) limits: Limits,
}

/// Limits from the configuration.
pub(super) struct Limits {
    /// Largest write request, in bytes.
    pub(super) max_request_bytes: usize,
    /// Bytes that the store may take.
    pub(super) quota_bytes: usize,
    /// The only member, which NOSPACE alarms are raised for.
    pub(super) member_id: u64,
}

impl Limits {
    pub(super) fn of(config: &Config) -> Self {
        Self {
            max_request_bytes: config.max_request_bytes,
            quota_bytes: usize::try_from(config.quota_bytes).unwrap_or(usize::MAX),
            member_id: config.identity.member_id,
        }
    }
}

/// The proof that a call was admitted.
#[derive(Debug)]
pub(super) struct Admitted {
    /// The user, if a certificate rather than a token names the user.
    pub(super) certificate_user: Option<Arc<str>>,
}

/// A failed check, and the state on which its result rests.
#[derive(Debug)]
pub(super) struct Refusal {
    pub(super) status: Status,
    pub(super) cause: Cause,
}

impl Check {
    /// Whether the check rests on state of the cluster that a replica does not have.
    const fn is_upstreams(self) -> bool {
        match self {
            Self::Member | Self::NotCorrupt | Self::NoSpaceAlarm | Self::Quota | Self::Disk => true,
            Self::Size | Self::Token | Self::Authenticated | Self::Root | Self::RootOrOwn | Self::Grants => false,
        }
    }
}

impl Call {
    /// The checks in the order in which etcd makes them, and the sources of that order.
    ///
    /// Writes in etcd 3.7: `processInternalRaftRequestOnce` (server/etcdserver/v3_server.go) checks the token and
    /// then the size before a proposal. The appliers (server/etcdserver/apply/uber_applier.go) then check in turn:
    /// CORRUPT, NOSPACE, grants, quota. Two checks differ on purpose: etcd asks for the quota before everything
    /// else as well (v3rpc/quota.go), so that anonymous callers raise the alarm; and a full disk ends etcd, while
    /// here it refuses writes, as the last check.
    const fn checks(self) -> &'static [Check] {
        use Check::*;
        match self {
            // v3_server.go, Range; v3rpc/watch.go, isWatchPermitted. Reads work under every alarm.
            Self::Range | Self::Watch => &[Grants],
            Self::Put | Self::TxnWithPuts => &[Token, Size, NotCorrupt, NoSpaceAlarm, Grants, Quota, Disk],
            // apply/apply.go: applierV3Capped refuses only puts.
            Self::DeleteRange | Self::TxnWithoutPuts => &[Token, Size, NotCorrupt, Grants, Disk],
            // v3_server.go, Txn: no proposal, so no limit of size and no alarm.
            Self::ReadOnlyTxn => &[Grants],
            // v3rpc/key.go, Compact: the role is checked before the proposal.
            Self::Compact => &[Root, NotCorrupt, Disk],
            // v3_server.go, LeaseGrant: anonymous callers are refused before the proposal.
            Self::LeaseGrant => &[Authenticated, NotCorrupt, NoSpaceAlarm, Quota, Disk],
            // v3_server.go, LeaseRevoke; apply/apply_auth.go, checkLeasePuts.
            Self::LeaseRevoke => &[Authenticated, NotCorrupt, Grants, Disk],
            // v3_server.go, LeaseRenew, LeaseTimeToLive, LeaseLeases, checkLeaseTimeToLive.
            Self::LeaseKeepAlive | Self::LeaseLeases | Self::LeaseKeys => &[Grants],
            Self::LeaseTimeToLive => &[Authenticated],
            // apply/apply_auth.go, needAdminPermission.
            Self::AuthChange => &[Root, Disk],
            Self::AuthList => &[Root],
            // apply/apply_auth.go, UserGet, RoleGet.
            Self::UserGet | Self::RoleGet => &[RootOrOwn],
            // v3_server.go, Authenticate. AuthStatus is open as in etcd 3.7; in 3.6 only the role root may call it.
            Self::AuthOpen => &[],
            // v3rpc/member.go; server.go, MemberList.
            Self::MemberList => &[Authenticated],
            // server.go, checkMembershipOperationPermission, before the member is looked up.
            Self::MemberAdd => &[Root],
            Self::MemberRemove => &[Root, Member],
            Self::MemberUpdate => &[Root, Member, Disk],
            // v3rpc/maintenance.go, authMaintenanceServer; v3_server.go, Alarm.
            Self::MaintenanceRead => &[Authenticated],
            Self::AlarmChange => &[Root, Disk],
            Self::Maintenance => &[Root],
        }
    }
}

// === impl Refusal ===

impl Refusal {
    /// A refusal that rests on the request and the configuration alone.
    fn of_request(status: Status) -> Self {
        Self {
            status,
            cause: Cause::Published,
        }
    }

    /// A refusal that rests on users, roles or alarms.
    fn of_metadata(status: Status) -> Self {
        Self {
            status,
            cause: Cause::Metadata,
        }
    }

    /// A refusal that rests on keys and leases that may not be durable yet.
    fn of_store(status: Status) -> Self {
        Self {
            status,
            cause: Cause::EveryChange,
        }
    }
}

impl From<auth::Error> for Refusal {
    fn from(error: auth::Error) -> Self {
        Self::of_metadata(error.into())
    }
}

impl From<Refused> for Refusal {
    /// A refusal because of the disk must not wait for the disk, which may never make another change durable.
    fn from(refused: Refused) -> Self {
        Self::of_request(refused.into())
    }
}

// === impl Admission ===

fn span(range: &KeyRange) -> Span<'_> {
    Span {
        start: range.start(),
        end: range.end(),
    }
}

fn end(span: Span<'_>) -> Bound<&[u8]> {
    span.end.map_or(Bound::Unbounded, Bound::Excluded)
}

fn require(met: bool, refusal: impl FnOnce() -> Refusal) -> Result<(), Refusal> {
    match met {
        true => Ok(()),
        false => Err(refusal()),
    }
}

impl Admission {
    /// Admits the operation, or returns the error of the first check that fails, once the state on which the error
    /// rests is durable.
    pub(super) async fn admit(&self, caller: &Caller, operation: &Operation) -> Result<Admitted, Status> {
        self.settle(self.check(caller, operation)).await
    }

    /// Returns the result of a check, a refusal once the state on which it rests is durable.
    pub(super) async fn settle(&self, checked: Result<Admitted, Refusal>) -> Result<Admitted, Status> {
        match checked {
            Ok(admitted) => Ok(admitted),
            Err(refusal) => Err(self.refused(refusal).await),
        }
    }

    /// The error of a refusal, once the state on which the refusal rests is durable.
    pub(super) async fn refused(&self, Refusal { status, cause }: Refusal) -> Status {
        match self.durability.wait(cause).await {
            Ok(()) => status,
            Err(late) => late,
        }
    }

    /// Like [`Admission::admit`], but leaves waiting to the caller, since a stream must not wait between its messages.
    pub(super) fn check(&self, caller: &Caller, operation: &Operation) -> Result<Admitted, Refusal> {
        let checks = operation.call.checks();
        let principal = match checks {
            [] => Ok(None),
            _ => caller.principal(&self.auth),
        };
        for check in checks.iter().filter(|check| !(self.follows && check.is_upstreams())) {
            let checked = self.run(*check, operation, &principal);
            if checked.is_err() && self.is_unknown(caller, &principal) {
                self.turn_away(caller);
            }
            checked?;
        }
        if !checks.is_empty() && self.is_user(&principal) {
            caller.peer().connection.admitted();
        }
        let user = principal.ok().flatten().map(|principal| principal.user);
        Ok(Admitted {
            certificate_user: user.filter(|_| !caller.has_token()),
        })
    }

    /// Admits a call that upstream checks for its user. Only the size is checked here, since upstream would not take so
    /// large a message from anybody; as in etcd, an invalid token is noticed before.
    pub(super) async fn admit_for_upstream(&self, caller: &Caller, operation: &Operation) -> Result<(), Status> {
        let principal = caller.principal(&self.auth);
        if self.is_user(&principal) {
            caller.peer().connection.admitted();
        }
        if !operation.call.checks().contains(&Check::Size) {
            return Ok(());
        }
        match (self.run(Check::Size, operation, &principal), principal) {
            (Ok(()), _) => Ok(()),
            (Err(_), Err(error)) => Err(self.refused(error.into()).await),
            (Err(refusal), Ok(_)) => Err(self.refused(refusal).await),
        }
    }

    /// Whether the rights of the call depend on the keys of a lease, which change with every put. A renewal changes none.
    pub(super) fn rests_on_lease(&self, caller: &Caller, operation: &Operation) -> bool {
        operation.call != Call::LeaseKeepAlive
            && operation.grants.iter().any(Grant::depends_on_lease)
            && matches!(caller.principal(&self.auth), Ok(Some(user)) if matches!(self.auth.ranges(Some(&user)), Ok(Some(_))))
    }

    /// The alarms that etcd would look at before it refuses the call as this replica does, with the error of each.
    pub(super) fn alarms_before_refusal(&self, caller: &Caller, operation: &Operation) -> Vec<(AlarmType, Status)> {
        let principal = caller.principal(&self.auth);
        let mut alarms = vec![];
        for check in operation.call.checks() {
            match check {
                Check::NotCorrupt => alarms.push((AlarmType::Corrupt, status::corrupt())),
                Check::NoSpaceAlarm => alarms.push((AlarmType::Nospace, status::no_space())),
                check if check.is_upstreams() => {}
                check if self.run(*check, operation, &principal).is_err() => return alarms,
                _ => {}
            }
        }
        vec![]
    }

    /// Notes that upstream refused a call. As for calls that are refused here, a certificate that names no user loses its
    /// connection.
    pub(super) fn refused_by_upstream(&self, caller: &Caller) {
        let principal = caller.principal(&self.auth);
        if self.is_unknown(caller, &principal) {
            self.turn_away(caller);
        }
    }

    /// Any certificate of the CA opens a connection. Whoever is no user has no use for the connection.
    fn turn_away(&self, caller: &Caller) {
        self.refusals.note(Budget::UnknownUser, caller.peer());
        caller.peer().connection.close(Farewell::UnknownUser);
    }

    /// Whether a user whose watcher of `range` was admitted may still read all of the range.
    pub(super) fn may_still_read(&self, user: &str, range: &KeyRange) -> bool {
        self.auth.may_read(user, span(range))
    }

    /// Changes whenever [`Admission::may_still_read`] may answer differently than before.
    pub(super) fn auth_version(&self) -> AuthVersion {
        self.auth.version()
    }

    /// Whether the caller is a user, or authentication is off.
    fn is_user(&self, principal: &Result<Option<Principal>, auth::Error>) -> bool {
        let state = self.auth.state();
        let named = principal.as_ref().ok().and_then(Option::as_ref);
        !state.enabled || named.is_some_and(|principal| state.users.contains_key(&*principal.user))
    }

    /// Whether the call rests on a certificate that names no user.
    fn is_unknown(&self, caller: &Caller, principal: &Result<Option<Principal>, auth::Error>) -> bool {
        match principal {
            Ok(Some(principal)) if !caller.has_token() => !self.auth.state().users.contains_key(&*principal.user),
            _ => false,
        }
    }

    fn run(
        &self,
        check: Check,
        operation: &Operation,
        principal: &Result<Option<Principal>, auth::Error>,
    ) -> Result<(), Refusal> {
        let principal = || principal.as_ref().map(Option::as_ref).map_err(Clone::clone);
        match check {
            Check::Size => require(operation.request_bytes <= self.limits.max_request_bytes, || {
                Refusal::of_request(status::request_too_large())
            }),
            Check::Token => Ok(principal().map(drop)?),
            Check::Authenticated => {
                let state = self.auth.state();
                match principal()? {
                    None => require(!state.enabled, || auth::Error::UserEmpty.into()),
                    // etcd takes a certificate of any name here, which lets strangers fill the store with leases.
                    Some(user) => require(state.users.contains_key(&*user.user), || {
                        auth::Error::PermissionDenied.into()
                    }),
                }
            }
            Check::Root => Ok(self.auth.check_root(principal()?)?),
            Check::RootOrOwn => Ok(self.check_root_or_own(principal()?, operation.subject.as_ref())?),
            Check::Grants => {
                let checked = self.check_grants(principal()?, &operation.grants);
                checked.map_err(|error| match operation.grants.iter().any(Grant::depends_on_lease) {
                    true => Refusal::of_store(error.into()),
                    false => error.into(),
                })
            }
            Check::Member => {
                let here = operation.subject == Some(Subject::Member(self.limits.member_id));
                require(here, || Refusal::of_request(status::member_not_found()))
            }
            Check::NotCorrupt => require(!self.alarms.has(AlarmType::Corrupt), || {
                Refusal::of_metadata(status::corrupt())
            }),
            Check::NoSpaceAlarm => require(!self.alarms.has(AlarmType::Nospace), || {
                Refusal::of_metadata(status::no_space())
            }),
            Check::Quota => require(self.store.size() + operation.growth < self.limits.quota_bytes, || {
                self.alarms.raise(AlarmType::Nospace, self.limits.member_id);
                Refusal::of_store(status::no_space())
            }),
            Check::Disk => match self.durability.disk() {
                Some(disk) => Ok(disk.admit()?),
                None => Ok(()),
            },
        }
    }

    fn check_root_or_own(&self, principal: Option<&Principal>, subject: Option<&Subject>) -> Result<(), auth::Error> {
        let Err(refused) = self.auth.check_root(principal) else {
            return Ok(());
        };
        let user = principal.map_or("", |principal| &*principal.user);
        let own = match subject {
            Some(Subject::User(name)) => user == name,
            Some(Subject::Role(role)) => {
                let state = self.auth.state();
                state.users.get(user).is_some_and(|user| user.roles.contains(role))
            }
            Some(Subject::Member(_)) | None => false,
        };
        match own {
            true => Ok(()),
            false => Err(refused),
        }
    }

    fn check_grants(&self, principal: Option<&Principal>, grants: &[Grant]) -> Result<(), auth::Error> {
        let Some(granted) = self.auth.ranges(principal)? else {
            return Ok(());
        };
        let may_read = |key: Bytes| granted.may_read(span(&KeyRange::key(key)));
        let may_write = |key: Bytes| granted.may_write(span(&KeyRange::key(key)));
        let readable = |key: &[u8]| granted.readable_around(key).map(end);
        let writable = |key: &[u8]| granted.writable_around(key).map(end);
        let is_granted = |grant: &Grant| match grant {
            Grant::Read(range) => granted.may_read(span(range)),
            Grant::ReadKey(key) => may_read(key.clone()),
            Grant::ReadLease(lease) => self.store.lease_is_within(*lease, readable),
            Grant::Write(range) => granted.may_write(span(range)),
            Grant::WriteKey(key) => may_write(key.clone()),
            Grant::WriteLease(lease) => self.store.lease_is_within(*lease, writable),
        };
        match grants.iter().all(is_granted) {
            true => Ok(()),
            false => Err(auth::Error::PermissionDenied),
        }
    }
}
