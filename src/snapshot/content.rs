//! The content of an etcd snapshot (etcd: server/storage/schema and server/storage/mvcc).

use super::read::{self, Entries, Reader};
use crate::pb::{authpb, etcdserverpb};
use bytes::Bytes;
use prost::Message;

/// Bytes of an encoded revision: main, `_`, sub.
const REVISION: usize = 17;
const SEPARATOR: u8 = b'_';
/// The mark of a tombstone, after its revision.
const TOMBSTONE: u8 = b't';

/// Why a file is not a snapshot of etcd.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    File(#[from] read::Error),
    /// An entry that etcd would not write.
    #[error("bucket {bucket}: key \"{key}\": {what}")]
    Entry {
        bucket: String,
        /// The key of the entry, escaped.
        key: String,
        /// The fault of the entry.
        what: String,
    },
}

pub type Result<T> = std::result::Result<T, Error>;

/// The content of a snapshot, except what only members of its cluster need. Other buckets and keys are ignored.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Content {
    /// The entries of the bucket `key`, ordered by revision.
    pub keys: Vec<KeyEntry>,
    /// The compact revision of the last finished compaction.
    pub finished_compaction: Option<i64>,
    /// The compact revision of the last requested compaction. Above `finished_compaction`, the compaction must be
    /// repeated; above all key entries, it is the revision of the store.
    pub scheduled_compaction: Option<i64>,
    /// Raft index of the last applied entry.
    pub consistent_index: Option<u64>,
    /// Raft term of the last applied entry; since etcd 3.5.
    pub term: Option<u64>,
    /// `major.minor.patch`; since etcd 3.6.
    pub storage_version: Option<String>,
    /// Leases, ordered by id as unsigned number.
    pub leases: Vec<Lease>,
    /// Raised alarms.
    pub alarms: Vec<etcdserverpb::AlarmMember>,
    /// Whether users must authenticate.
    pub auth_enabled: bool,
    /// The auth revision; 0 if users and roles never changed.
    pub auth_revision: u64,
    /// Users, ordered by name.
    pub users: Vec<authpb::User>,
    /// Roles, ordered by name.
    pub roles: Vec<authpb::Role>,
}

/// An entry of the bucket `key`: one version of a key.
#[derive(Clone, Debug, PartialEq)]
pub struct KeyEntry {
    pub revision: Revision,
    /// The key-value; for a tombstone, only the key. An entry without a key only raises the revision of the store:
    /// `etcdutl snapshot restore --bump-revision` writes such an entry.
    pub kv: KeyValue,
}

/// A key of the bucket `key`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Revision {
    pub main: i64,
    /// Sub revision, from 0.
    pub sub: i64,
    /// Whether the version deletes the key.
    pub tombstone: bool,
}

/// `mvccpb.KeyValue`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct KeyValue {
    /// The key.
    #[prost(bytes = "bytes", tag = "1")]
    pub key: Bytes,
    /// Main revision of the put that created the key.
    #[prost(int64, tag = "2")]
    pub create_revision: i64,
    /// Main revision of the last change.
    #[prost(int64, tag = "3")]
    pub mod_revision: i64,
    /// Number of puts since creation, from 1; 0 in a tombstone.
    #[prost(int64, tag = "4")]
    pub version: i64,
    /// The value.
    #[prost(bytes = "bytes", tag = "5")]
    pub value: Bytes,
    /// The lease the key is attached to, or 0.
    #[prost(int64, tag = "6")]
    pub lease: i64,
}

/// `leasepb.Lease`.
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub struct Lease {
    #[prost(int64, tag = "1")]
    pub id: i64,
    /// Seconds granted.
    #[prost(int64, tag = "2")]
    pub ttl: i64,
    /// Seconds left at the last checkpoint, or 0.
    #[prost(int64, tag = "3")]
    pub remaining_ttl: i64,
}

/// The place of an entry, for errors.
struct Entry<'a> {
    bucket: &'a [u8],
    key: &'a [u8],
}

// === impl Content ===

impl Content {
    /// Reads all of `reader`.
    pub fn read(reader: &Reader) -> Result<Self> {
        let mut content = Self::default();
        reader.each_bucket(|bucket, entries| content.bucket(bucket, entries))?;
        Ok(content)
    }

    fn bucket(&mut self, bucket: &[u8], entries: &mut Entries<'_>) -> Result<()> {
        for entry in entries {
            let (key, value) = entry?;
            let entry = Entry { bucket, key: &key };
            match bucket {
                b"key" => self.keys.push(KeyEntry {
                    revision: entry.revision(&key)?,
                    kv: entry.decode(value)?,
                }),
                b"meta" => self.meta(&entry, value)?,
                b"lease" => {
                    let lease: Lease = entry.decode(value)?;
                    entry.expect_key(&lease.id.to_be_bytes())?;
                    self.leases.push(lease);
                }
                b"alarm" => self.alarms.push(entry.decode(key.clone())?),
                b"auth" => match &key[..] {
                    b"authEnabled" => self.auth_enabled = value == [1],
                    b"authRevision" => self.auth_revision = entry.number(&value)?,
                    _ => {}
                },
                b"authUsers" => {
                    let user: authpb::User = entry.decode(value)?;
                    entry.expect_key(&user.name)?;
                    self.users.push(user);
                }
                b"authRoles" => {
                    let role: authpb::Role = entry.decode(value)?;
                    entry.expect_key(&role.name)?;
                    self.roles.push(role);
                }
                // Other entries are read, too, so that a broken page is found.
                _ => {}
            }
        }
        Ok(())
    }

    fn meta(&mut self, entry: &Entry<'_>, value: Vec<u8>) -> Result<()> {
        match entry.key {
            b"finishedCompactRev" => self.finished_compaction = Some(entry.revision(&value)?.main),
            b"scheduledCompactRev" => self.scheduled_compaction = Some(entry.revision(&value)?.main),
            b"consistent_index" => self.consistent_index = Some(entry.number(&value)?),
            b"term" => self.term = Some(entry.number(&value)?),
            b"storageVersion" => {
                let version = String::from_utf8(value).map_err(|e| entry.fault(e.to_string()))?;
                self.storage_version = Some(version);
            }
            _ => {}
        }
        Ok(())
    }

    /// The revision at which etcd would continue after a restore.
    pub fn revision(&self) -> i64 {
        let newest = self.keys.last().map_or(1, |entry| entry.revision.main);
        let compactions = [self.finished_compaction, self.scheduled_compaction];
        compactions.into_iter().flatten().fold(newest.max(1), i64::max)
    }
}

// === impl Revision ===

impl Revision {
    /// Parses a revision like etcd, which ignores a last byte that is not the tombstone mark.
    pub(super) fn parse(bytes: &[u8]) -> std::result::Result<Self, String> {
        if bytes.len() != REVISION && bytes.len() != REVISION + 1 {
            return Err(format!("a revision of {} bytes", bytes.len()));
        }
        let at = |at: usize| bytes.get(at..)?.first_chunk().map(|b| i64::from_be_bytes(*b));
        match (at(0), at(9)) {
            (Some(main @ 0..), Some(sub @ 0..)) if bytes[8] == SEPARATOR => Ok(Self {
                main,
                sub,
                tombstone: bytes.get(REVISION) == Some(&TOMBSTONE),
            }),
            _ => Err(format!("\"{}\" is no revision", bytes.escape_ascii())),
        }
    }
}

// === impl Entry ===

impl Entry<'_> {
    fn fault(&self, what: impl Into<String>) -> Error {
        Error::Entry {
            bucket: self.bucket.escape_ascii().to_string(),
            key: self.key.escape_ascii().to_string(),
            what: what.into(),
        }
    }

    fn decode<M: Message + Default>(&self, message: Vec<u8>) -> Result<M> {
        M::decode(Bytes::from(message)).map_err(|e| self.fault(e.to_string()))
    }

    fn revision(&self, bytes: &[u8]) -> Result<Revision> {
        Revision::parse(bytes).map_err(|what| self.fault(what))
    }

    fn number(&self, bytes: &[u8]) -> Result<u64> {
        let number = bytes.try_into().map(u64::from_be_bytes);
        number.map_err(|_| self.fault(format!("a number of {} bytes", bytes.len())))
    }

    /// Refuses a message that is stored under the key of another message.
    fn expect_key(&self, key: &[u8]) -> Result<()> {
        if self.key == key {
            return Ok(());
        }
        Err(self.fault(format!("holds \"{}\"", key.escape_ascii())))
    }
}
