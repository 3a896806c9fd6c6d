//! The payload of groups and checkpoints, as protobuf messages. This version ignores fields that a later version
//! adds. A later version that writes records which readers must understand uses a new format number.

use super::damage::Damage;
use super::directory::StoreRole;
use crate::auth::{AuthState, Difference};
use crate::mvcc::{Change, EventKind, Frozen, GrantedLease, Kv, Loader, Recovery, Version};
use crate::pb::{authpb, etcdserverpb};
use bytes::Bytes;
use prost::{Message, Oneof};

/// Changes that are written and synced together.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Group {
    #[prost(message, repeated, tag = "1")]
    pub(super) entries: Vec<Entry>,
}

/// One change of a group.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Entry {
    #[prost(oneof = "Record", tags = "1, 2, 3, 4, 5, 6, 7, 8")]
    pub(super) record: Option<Record>,
}

/// The change of an entry.
#[derive(Clone, PartialEq, Oneof)]
pub(super) enum Record {
    #[prost(message, tag = "1")]
    Commit(Commit),
    #[prost(message, tag = "2")]
    Grant(Lease),
    #[prost(int64, tag = "3")]
    Compact(i64),
    #[prost(message, tag = "4")]
    Auth(AuthChange),
    #[prost(message, tag = "5")]
    Alarms(Alarms),
    /// A start of the store, with the raft term of that start.
    #[prost(uint64, tag = "6")]
    Term(u64),
    #[prost(message, tag = "7")]
    PeerUrls(PeerUrls),
    /// Keys and leases before this record and after it are void until a checkpoint; always true. Only in the
    /// directories of replicas.
    #[prost(bool, tag = "8")]
    Swapped(bool),
}

/// A revision, the end of a lease, or both.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Commit {
    /// 0 if no key changed.
    #[prost(int64, tag = "1")]
    revision: i64,
    #[prost(message, repeated, tag = "2")]
    events: Vec<Event>,
    #[prost(int64, optional, tag = "3")]
    revoked: Option<i64>,
}

#[derive(Clone, PartialEq, Message)]
struct Event {
    /// Encoded `mvccpb.KeyValue`.
    #[prost(bytes = "bytes", tag = "1")]
    kv: Bytes,
    #[prost(bool, tag = "2")]
    deleted: bool,
    /// Sub revision; only in checkpoints.
    #[prost(uint32, tag = "3")]
    sub: u32,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Lease {
    #[prost(int64, tag = "1")]
    id: i64,
    #[prost(int64, tag = "2")]
    ttl_secs: i64,
}

/// The difference between two states of users and roles.
#[derive(Clone, PartialEq, Message)]
pub(super) struct AuthChange {
    #[prost(bool, tag = "1")]
    enabled: bool,
    #[prost(uint64, tag = "2")]
    revision: u64,
    #[prost(message, repeated, tag = "3")]
    users: Vec<authpb::User>,
    #[prost(message, repeated, tag = "4")]
    roles: Vec<authpb::Role>,
    #[prost(string, repeated, tag = "5")]
    users_gone: Vec<String>,
    #[prost(string, repeated, tag = "6")]
    roles_gone: Vec<String>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Alarms {
    #[prost(message, repeated, tag = "1")]
    alarms: Vec<etcdserverpb::AlarmMember>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct PeerUrls {
    #[prost(string, repeated, tag = "1")]
    urls: Vec<String>,
}

/// A piece of the keys of a checkpoint.
#[derive(Clone, PartialEq, Message)]
struct Chunk {
    #[prost(message, repeated, tag = "1")]
    changes: Vec<Event>,
}

/// The beginning of a checkpoint: everything but the keys.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Head {
    #[prost(int64, tag = "1")]
    pub(super) revision: i64,
    #[prost(int64, tag = "2")]
    pub(super) compacted: i64,
    #[prost(message, repeated, tag = "3")]
    leases: Vec<Lease>,
    #[prost(message, optional, tag = "4")]
    metadata: Option<Metadata>,
    /// Whether a part of the revision `compacted` is missing.
    #[prost(bool, tag = "5")]
    partial: bool,
}

/// Everything durable except keys and leases.
#[derive(Clone, PartialEq, Message)]
pub struct Metadata {
    #[prost(bool, tag = "1")]
    auth_enabled: bool,
    #[prost(uint64, tag = "2")]
    auth_revision: u64,
    /// In order of their names, like the roles.
    #[prost(message, repeated, tag = "3")]
    users: Vec<authpb::User>,
    #[prost(message, repeated, tag = "4")]
    roles: Vec<authpb::Role>,
    /// Raised alarms.
    #[prost(message, repeated, tag = "5")]
    pub alarms: Vec<etcdserverpb::AlarmMember>,
    /// The raft term of the present run: one more than the number of starts.
    #[prost(uint64, tag = "6")]
    pub raft_term: u64,
    /// Advertised peer URLs, if they were changed with `etcdctl member update`.
    #[prost(string, repeated, tag = "7")]
    pub peer_urls: Vec<String>,
}

// === encoding ===

impl From<Record> for Entry {
    fn from(record: Record) -> Self {
        Self { record: Some(record) }
    }
}

impl From<Change> for Record {
    fn from(change: Change) -> Self {
        match change {
            Change::Commit { batch, revoked } => {
                let event = |e: &crate::mvcc::Event| Event {
                    kv: Bytes::from_owner(e.kv.clone()),
                    deleted: e.kind == EventKind::Delete,
                    sub: 0,
                };
                Self::Commit(Commit {
                    revision: batch.as_ref().map_or(0, |b| b.revision),
                    events: batch.iter().flat_map(|b| b.events.iter()).map(event).collect(),
                    revoked,
                })
            }
            Change::Grant { lease, ttl_secs } => Self::Grant(Lease { id: lease, ttl_secs }),
            Change::Compact(revision) => Self::Compact(revision),
            Change::Swapped => Self::Swapped(true),
        }
    }
}

impl Record {
    pub(super) fn auth(before: &AuthState, after: &AuthState) -> Self {
        let Difference {
            users,
            roles,
            users_gone,
            roles_gone,
        } = after.since(before);
        Self::Auth(AuthChange {
            enabled: after.enabled,
            revision: after.revision,
            users,
            roles,
            users_gone,
            roles_gone,
        })
    }

    /// All raised alarms.
    pub(super) fn alarms(alarms: Vec<etcdserverpb::AlarmMember>) -> Self {
        Self::Alarms(Alarms { alarms })
    }

    pub(super) fn peer_urls(urls: Vec<String>) -> Self {
        Self::PeerUrls(PeerUrls { urls })
    }
}

impl Head {
    pub(super) fn new(frozen: &Frozen, metadata: Metadata) -> Self {
        let lease = |&GrantedLease { id, ttl_secs }: &GrantedLease| Lease { id, ttl_secs };
        Self {
            revision: frozen.revision,
            compacted: frozen.compacted,
            leases: frozen.leases.iter().map(lease).collect(),
            metadata: Some(metadata),
            partial: frozen.partial,
        }
    }
}

/// Appends `versions` as a chunk's payload.
pub(super) fn write_chunk(versions: &[Version], out: &mut Vec<u8>) {
    let event = |v: &Version| Event {
        kv: Bytes::from_owner(v.kv.clone()),
        deleted: v.tombstone,
        sub: v.sub,
    };
    let chunk = Chunk {
        changes: versions.iter().map(event).collect(),
    };
    out.reserve(chunk.encoded_len());
    chunk.encode_raw(out);
}

// === decoding ===

fn kv(bytes: &Bytes) -> Result<Kv, Damage> {
    Kv::checked(bytes).ok_or_else(|| Damage::new("a record does not hold a valid key-value"))
}

impl Group {
    pub(super) fn read(payload: &[u8]) -> Result<Self, Damage> {
        Self::decode(payload).map_err(|e| Damage::new(format!("a group cannot be decoded: {e}")))
    }

    /// Repeats the changes of the group. Those of keys and leases are left out once `is_void` is set.
    pub(super) fn apply(self, store: &mut Recovery, metadata: &mut Metadata, is_void: &mut bool) -> Result<(), Damage> {
        for entry in self.entries {
            let record = entry
                .record
                .ok_or_else(|| Damage::new("a record is of an unknown kind"))?;
            match record {
                Record::Swapped(_) => *is_void = true,
                Record::Commit(_) | Record::Grant(_) | Record::Compact(_) if *is_void => {}
                Record::Commit(commit) => commit.apply(store)?,
                Record::Grant(Lease { id, ttl_secs }) => {
                    if !store.grant(id, ttl_secs) {
                        return Err(Damage::new(format!("lease {id:x} is granted twice")));
                    }
                }
                Record::Compact(revision) => {
                    let compacted = store.compact(revision);
                    compacted.map_err(|e| Damage::new(format!("compaction to revision {revision}: {e}")))?;
                }
                record => metadata.apply(record),
            }
        }
        Ok(())
    }
}

impl Commit {
    fn apply(self, store: &mut Recovery) -> Result<(), Damage> {
        let mut events = Vec::with_capacity(self.events.len());
        for event in &self.events {
            let kind = if event.deleted {
                EventKind::Delete
            } else {
                EventKind::Put
            };
            events.push((kind, kv(&event.kv)?));
        }
        let replayed = store.commit(self.revision, events.into_iter(), self.revoked);
        replayed.map_err(|e| Damage::new(e.to_string()))
    }
}

impl Head {
    pub(super) fn read(payload: &[u8], role: StoreRole) -> Result<(Loader, Metadata), Damage> {
        let head = Self::decode(payload);
        let head = head.map_err(|e| Damage::new(format!("a checkpoint's head cannot be decoded: {e}")))?;
        let leases = head
            .leases
            .iter()
            .map(|&Lease { id, ttl_secs }| GrantedLease { id, ttl_secs });
        let loader = match role {
            StoreRole::Own => Loader::new(head.revision, head.compacted, leases),
            StoreRole::Follower => Loader::following(head.revision, head.compacted),
        };
        let loader = if head.partial { loader.partial() } else { loader };
        Ok((loader, head.metadata.unwrap_or_default()))
    }
}

/// Adds the versions of a chunk to the loader.
pub(super) fn read_chunk(payload: &[u8], loader: &mut Loader) -> Result<(), Damage> {
    // Decode without a copy: a chunk is large.
    let chunk = Chunk::decode(payload).map_err(|e| Damage::new(format!("a chunk cannot be decoded: {e}")))?;
    for change in &chunk.changes {
        let kv = kv(&change.kv)?;
        let main = kv.fields().mod_revision;
        let version = Version {
            main,
            sub: change.sub,
            tombstone: change.deleted,
            kv,
        };
        if !loader.push(version) {
            return Err(Damage::new(format!("a change at revision {main} is out of place")));
        }
    }
    Ok(())
}

// === impl Metadata ===

impl Metadata {
    /// The metadata of a new store.
    pub(super) fn new() -> Self {
        Self {
            auth_revision: 1,
            raft_term: 1,
            ..Self::default()
        }
    }

    /// The metadata of an imported store.
    pub(super) fn of(auth: &AuthState, alarms: Vec<etcdserverpb::AlarmMember>) -> Self {
        Self {
            auth_enabled: auth.enabled,
            auth_revision: auth.revision,
            users: auth.user_messages(),
            roles: auth.role_messages(),
            alarms,
            ..Self::new()
        }
    }

    /// Users and roles.
    pub fn auth(&self) -> AuthState {
        AuthState::of(
            self.auth_enabled,
            self.auth_revision,
            self.users.clone(),
            self.roles.clone(),
        )
    }

    /// Applies a record. Records of keys and leases change nothing here.
    pub(super) fn apply(&mut self, record: Record) {
        match record {
            Record::Commit(_) | Record::Grant(_) | Record::Compact(_) | Record::Swapped(_) => {}
            Record::Auth(change) => {
                (self.auth_enabled, self.auth_revision) = (change.enabled, change.revision);
                let name = |user: &authpb::User| user.name.clone();
                merge(&mut self.users, change.users, &change.users_gone, name);
                let name = |role: &authpb::Role| role.name.clone();
                merge(&mut self.roles, change.roles, &change.roles_gone, name);
            }
            Record::Alarms(Alarms { alarms }) => self.alarms = alarms,
            Record::Term(term) => self.raft_term = term,
            Record::PeerUrls(PeerUrls { urls }) => self.peer_urls = urls,
        }
    }
}

fn merge<T>(all: &mut Vec<T>, changed: Vec<T>, gone: &[String], name: impl Fn(&T) -> Bytes) {
    for item in changed {
        match all.binary_search_by_key(&name(&item), &name) {
            Ok(at) => all[at] = item,
            Err(at) => all.insert(at, item),
        }
    }
    for gone in gone {
        if let Ok(at) = all.binary_search_by(|item| name(item)[..].cmp(gone.as_bytes())) {
            all.remove(at);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::{AuthStore, Config};
    use parking_lot::Mutex;
    use std::sync::Arc;

    #[test]
    fn changes_of_users_and_roles_add_up_to_the_state() {
        let metadata = Arc::new(Mutex::new(Metadata::new()));
        let shadow = Arc::clone(&metadata);
        let config = Config {
            bcrypt_cost: 4,
            ..Config::default()
        };
        let on_change = move |before: &AuthState, after: &AuthState| shadow.lock().apply(Record::auth(before, after));
        let auth = AuthStore::with(
            AuthState::of(false, 1, vec![], vec![]),
            config,
            Some(Box::new(on_change)),
        )
        .unwrap();
        auth.user_add("root", Some("secret")).unwrap();
        auth.user_add("a", None).unwrap();
        auth.role_add("r").unwrap();
        auth.role_add("gone").unwrap();
        auth.user_grant_role("root", "root").unwrap();
        auth.user_grant_role("a", "gone").unwrap();
        let permission = crate::auth::Permission {
            access: crate::auth::Access::Read,
            key: b"k".to_vec(),
            range_end: b"l".to_vec(),
        };
        auth.role_grant("r", permission).unwrap();
        auth.role_delete("gone").unwrap();
        auth.user_add("b", None).unwrap();
        auth.user_delete("b").unwrap();
        auth.enable().unwrap();
        let (kept, state) = (metadata.lock().auth(), auth.state());
        assert_eq!((kept.enabled, kept.revision), (true, state.revision));
        assert_eq!((kept.users, kept.roles), (state.users.clone(), state.roles.clone()));
    }
}
