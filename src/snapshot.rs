//! Snapshots in etcd's format, a bbolt file. `etcdutl snapshot status` and `restore` accept our snapshots, and we
//! accept etcd's, so that data can be moved in both directions.
//!
//! For the buckets and their content, see etcd: server/storage/schema.

mod bolt;
mod content;
mod live;
mod read;
mod restore;
mod status;

pub use content::{Content, Error};
pub use live::Live;
pub use read::Reader;
pub use status::Status;

use crate::auth::AuthState;
use crate::lease::{LeaseInfo, MIN_TTL_SECS};
use crate::mvcc::Versions;
use crate::pb::etcdserverpb;
use prost::Message;
use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io;
use std::path::Path;

/// The content of a snapshot to write.
pub struct Snapshot {
    /// Every version that compaction has kept.
    pub versions: Versions,
    /// Lease id → lease.
    pub leases: Vec<(i64, LeaseInfo)>,
    /// Users and roles.
    pub auth: std::sync::Arc<AuthState>,
    /// Raised alarms.
    pub alarms: Vec<etcdserverpb::AlarmMember>,
    /// The member, with the version of its cluster.
    pub member: Member,
}

/// The only member of the cluster.
pub struct Member {
    pub id: u64,
    pub name: String,
    /// Advertised peer URLs.
    pub peer_urls: Vec<String>,
    /// Advertised client URLs.
    pub client_urls: Vec<String>,
    /// Raft term of the last applied entry.
    pub term: u64,
    /// Raft index of the last applied entry.
    pub index: u64,
    /// Version of cluster and storage, as `major.minor.patch`.
    pub version: String,
}

type Entries = Vec<(Vec<u8>, Vec<u8>)>;

impl Snapshot {
    /// Writes the snapshot into a temporary file without a name; returns the file, at its start, and its length in
    /// bytes. The file is in the system's directory for temporary files, or in `fallback` if that directory takes none.
    /// Fails if versions came from lists: the file names each version by its place in its revision.
    pub fn write(self, fallback: Option<&Path>) -> io::Result<(File, u64)> {
        if !self.versions.is_exact() {
            return Err(io::Error::other(
                "the state of this replica came from lists, which do not tell the order of changes: ask upstream",
            ));
        }
        let mut out = bolt::Writer::new(temporary(fallback)?)?;
        let compacted = self.versions.compacted;
        let leases = leases(&self.leases, &self.versions);
        let versions = self.versions.all.into_iter();
        out.bucket(
            "key",
            versions.map(|v| (v.revision_key(), v.value().as_bytes().to_vec())),
        )?;
        out.bucket("meta", meta(&self.member, compacted))?;
        out.bucket("lease", leases)?;
        out.bucket("alarm", sorted(self.alarms.iter().map(|a| (a.encode_to_vec(), vec![]))))?;
        let version = self.member.version.clone().into_bytes();
        out.bucket("cluster", [(b"clusterVersion".to_vec(), version)])?;
        out.bucket("members", [member(&self.member)])?;
        out.bucket("members_removed", [])?;
        let enabled = vec![u8::from(self.auth.enabled)];
        let revision = self.auth.revision.to_be_bytes().to_vec();
        out.bucket(
            "auth",
            [(b"authEnabled".to_vec(), enabled), (b"authRevision".to_vec(), revision)],
        )?;
        out.bucket("authUsers", users(&self.auth))?;
        out.bucket("authRoles", roles(&self.auth))?;
        out.finish()
    }
}

/// A temporary file without a name. Containers often have a read-only root and no `/tmp`.
fn temporary(fallback: Option<&Path>) -> io::Result<File> {
    tempfile::tempfile().or_else(|error| match fallback {
        Some(directory) => tempfile::tempfile_in(directory),
        None => {
            let text = format!(
                "no temporary file in {}: {error}; set TMPDIR to a writable directory",
                std::env::temp_dir().display()
            );
            Err(io::Error::new(error.kind(), text))
        }
    })
}

fn sorted(entries: impl Iterator<Item = (Vec<u8>, Vec<u8>)>) -> Entries {
    let mut entries: Entries = entries.collect();
    entries.sort();
    entries
}

fn meta(member: &Member, compacted: i64) -> Entries {
    let entry = |key: &str, value: Vec<u8>| (key.as_bytes().to_vec(), value);
    let revision = |r: i64| [&r.to_be_bytes()[..], b"_", &[0; 8]].concat();
    let conf_state = serde_json::json!({ "voters": [member.id], "auto_leave": false });
    let mut meta = vec![
        entry("confState", conf_state.to_string().into_bytes()),
        entry("consistent_index", member.index.to_be_bytes().to_vec()),
        entry("storageVersion", member.version.clone().into_bytes()),
        entry("term", member.term.to_be_bytes().to_vec()),
    ];
    if compacted >= 0 {
        meta.push(entry("finishedCompactRev", revision(compacted)));
        meta.push(entry("scheduledCompactRev", revision(compacted)));
    }
    sorted(meta.into_iter())
}

/// The leases, and leases that are only known from a key: without its lease in the snapshot, the key would never
/// expire.
fn leases(leases: &[(i64, LeaseInfo)], versions: &Versions) -> Entries {
    /// `leasepb.Lease`.
    #[derive(Clone, PartialEq, prost::Message)]
    struct Lease {
        #[prost(int64, tag = "1")]
        id: i64,
        #[prost(int64, tag = "2")]
        ttl: i64,
    }
    let mut newest = HashMap::new();
    for version in &versions.all {
        newest.insert(version.kv.key(), version);
    }
    let live = newest.into_values().filter(|version| !version.tombstone);
    let named = live.map(|version| (version.kv.lease(), MIN_TTL_SECS));
    let mut ttls: BTreeMap<i64, i64> = named.filter(|(id, _)| *id != 0).collect();
    ttls.extend(leases.iter().map(|(id, info)| (*id, info.granted_secs)));
    let entry = |(id, ttl): (i64, i64)| (id.to_be_bytes().to_vec(), Lease { id, ttl }.encode_to_vec());
    sorted(ttls.into_iter().map(entry))
}

fn member(member: &Member) -> (Vec<u8>, Vec<u8>) {
    // etcd stores a member as JSON, under its id in hexadecimal (etcd: api/membership/store.go).
    let json = serde_json::json!({
        "id": member.id,
        "peerURLs": member.peer_urls,
        "name": member.name,
        "clientURLs": member.client_urls,
    });
    (format!("{:x}", member.id).into_bytes(), json.to_string().into_bytes())
}

fn users(auth: &AuthState) -> Entries {
    let users = auth.user_messages().into_iter();
    users.map(|user| (user.name.to_vec(), user.encode_to_vec())).collect()
}

fn roles(auth: &AuthState) -> Entries {
    let roles = auth.role_messages().into_iter();
    roles.map(|role| (role.name.to_vec(), role.encode_to_vec())).collect()
}
